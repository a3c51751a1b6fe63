"""Native code for moves at places known at run time: gather, scatter, dynamic slices, and what kernels leave over.

Elements move as bits of their width, runs that lie together by `memcpy`. A scatter is cut where its windows cannot meet: along
batching dimensions, else along the windows' last dimension, so results depend neither on threads nor on timing.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from infini.compiler.affine import row_major
from infini.compiler.llvm import builder as b
from infini.compiler.llvm import registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.core import dtypes, primitive
from infini.core.ir import ArrayType, Attrs
from infini.lax import families, indexing

TASK_BYTES = 256 << 10
_BYTE_NS = 0.06
_RUN_NS = 4.0


def bits_of(dtype: np.dtype) -> str:
    """The integer that holds one element."""
    return f"i{8 * dtype.itemsize}"


def make_task(
    name: str, num_arrays: int, num_tasks: int, cost_ns: float, write: Callable[[Function, list[Value], Value], None]
) -> TaskFunction:
    """A task function; `write(f, pointers, task)` writes its body."""
    f = Function("@NAME@", [(b.PTR, "args"), (b.I64, "task")])
    pointers = [f.load(f.at(f.parameters[0], i, "ptr"), b.PTR, is_invariant=True) for i in range(num_arrays)]
    write(f, pointers, f.parameters[1])
    text = f.finish()
    symbol = f"{name}_{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"
    return TaskFunction(symbol, text.replace("@NAME@", symbol), frozenset(f.declares), num_tasks, cost_ns=cost_ns)


@dataclass(frozen=True, slots=True)
class Chunks:
    """`count` items in tasks of `per_task`."""

    count: int
    per_task: int

    @classmethod
    def of(cls, count: int, bytes_each: float) -> Chunks:
        """Tasks of about `TASK_BYTES`."""
        return cls(count, max(1, min(count, int(TASK_BYTES // max(bytes_each, 1.0)))))

    @property
    def num_tasks(self) -> int:
        """Number of tasks."""
        return -(-self.count // self.per_task) if self.count else 0

    @contextlib.contextmanager
    def loop(self, f: Function, task: Value) -> Iterator[Int]:
        """A loop over the items of a task."""
        if self.num_tasks == 1 and self.count == 1:
            yield 0
            return
        first = f.mul(task, self.per_task) if self.num_tasks > 1 else 0
        stop: Int = f.add(first, self.per_task)
        if self.count % self.per_task:
            stop = f.minimum(stop, self.count)
        with f.loop(first, stop, runs=True) as loop:
            yield loop.index


def copy_bytes(f: Function, target: Value, source: Value, nbytes: int) -> None:
    """Copy bytes that do not overlap."""
    f.declare("declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
    f.do(f"call void @llvm.memcpy.p0.p0.i64(ptr {target}, ptr {source}, i64 {nbytes}, i1 false)")


def fill_run(f: Function, target: Value, bits: Value, count: int, lanes: int) -> None:
    """Store one element `count` times."""
    width = min(lanes, 1 << max(count.bit_length() - 1, 0))
    whole = count - count % width
    with f.loop(0, whole, width) as loop:
        f.store(f.splat(bits, width), f.at(target, loop.index, bits.type.element))
    for i in range(whole, count):
        f.store(bits, f.at(target, i, bits.type.element))


def coordinates(f: Function, number: Int, shape: Sequence[int]) -> list[Int]:
    """Index along each dimension of a row-major number."""
    found: list[Int] = []
    for size in reversed(shape[1:]):
        number, rest = f.divide(number, size)
        found.append(rest if size > 1 else 0)
    if shape:
        found.append(number)
    return found[::-1]


def dot(f: Function, index: Sequence[Int], strides: Sequence[int]) -> Int:
    """Sum of index times stride."""
    total: Int = 0
    for i, stride in zip(index, strides, strict=True):
        total = f.add(total, f.mul(i, stride))
    return total


def load_integer(f: Function, pointer: Value, place: Int, dtype: np.dtype) -> Value:
    """An integer of any dtype as i64."""
    element = registers.memory_element(dtype)
    value = f.load(f.at(pointer, place, element), b.scalar(element))
    return f.convert("sext" if dtype in dtypes.SIGNED else "zext", value, b.I64)


def clamp(f: Function, value: Value, high: int) -> Value:
    """The number limited to 0 .. high."""
    return f.minimum(f.maximum(value, 0), high)


# --- windows: what gather and scatter have in common ---------------------------------------------


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of an array at run-time starts, and the dense array that holds them one after another.

    Args:
        operand: type of the array.
        indices: type of the starts; the last dimension has one number per indexed dimension.
        dense: type of the array of windows.
        numbers: dimension numbers of the gather, or of the gather a scatter undoes.
        sizes: size of a window along each dimension of the operand.
        mode: what happens outside.
    """

    operand: ArrayType
    indices: ArrayType
    dense: ArrayType
    numbers: indexing.GatherDimensionNumbers
    sizes: tuple[int, ...]
    mode: str

    @property
    def batch(self) -> tuple[int, ...]:
        """Shape of the starts."""
        return self.indices.shape[:-1]

    @property
    def window_dims(self) -> list[int]:
        """Dimensions of the operand that windows extend over."""
        dropped = {*self.numbers.collapsed_slice_dims, *self.numbers.operand_batching_dims}
        return [d for d in range(self.operand.ndim) if d not in dropped]

    @property
    def window(self) -> tuple[int, ...]:
        """Shape of a window."""
        return tuple(self.sizes[d] for d in self.window_dims)

    @property
    def window_strides(self) -> tuple[list[int], list[int]]:
        """Strides of the window's dimensions in the operand and in the dense array."""
        operand, dense = row_major(self.operand.shape), row_major(self.dense.shape)
        return [operand[d] for d in self.window_dims], [dense[d] for d in self.numbers.offset_dims]

    @property
    def batch_strides(self) -> list[int]:
        """Strides of the starts' dimensions in the dense array."""
        dense = row_major(self.dense.shape)
        return [dense[d] for d in range(self.dense.ndim) if d not in self.numbers.offset_dims]

    @property
    def run(self) -> tuple[int, int]:
        """How many trailing dimensions of the window lie together in both arrays, and their size."""
        operand, dense = self.window_strides
        count, size = 0, 1
        for n, s, t in zip(reversed(self.window), reversed(operand), reversed(dense), strict=True):
            if n != 1 and not s == t == size:
                break
            count, size = count + 1, size * n
        return count, size

    def start(self, f: Function, pointer: Value, point: Int, batch: Sequence[Int]) -> tuple[Int, Value | None]:
        """Position in the operand of the window of a point, and whether it lies inside (None: it always does)."""
        strides = row_major(self.operand.shape)
        limits = [n - s for n, s in zip(self.operand.shape, self.sizes, strict=True)]
        position: Int = 0
        inside: Value | None = None
        columns = self.indices.shape[-1]
        for column, d in enumerate(self.numbers.start_index_map):
            place = load_integer(f, pointer, f.add(f.mul(point, columns), column), self.indices.dtype)
            if self.mode == "fill":
                fits = f.compare("ule", place, f.integer(limits[d]))
                inside = fits if inside is None else f.binary("and", inside, fits)
            elif self.mode == "clip":
                place = clamp(f, place, limits[d])
            position = f.add(position, f.mul(place, strides[d]))
        for d, where in zip(self.numbers.operand_batching_dims, self.numbers.start_indices_batching_dims, strict=True):
            position = f.add(position, f.mul(batch[where], strides[d]))
        return position, inside


def gather(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """The operation `gather`."""
    operand, indices = types
    (dense,) = indexing.gather_p.rule(primitive.TYPE)(*types, **attrs)
    w = Windows(operand, indices, dense, attrs["dimension_numbers"], attrs["slice_sizes"], attrs["mode"])
    element = bits_of(operand.dtype)
    fill = attrs["fill_value"]
    number = np.asarray(families.default_fill(operand.dtype) if fill is None else fill).astype(operand.dtype)
    size = math.prod(w.window)
    chunks = Chunks.of(math.prod(w.batch), size * operand.dtype.itemsize + 16)

    def write(f: Function, pointers: list[Value], task: Value) -> None:
        source, starts, out = pointers
        with chunks.loop(f, task) as point:
            batch = coordinates(f, point, w.batch)
            to = f.at(out, dot(f, batch, w.batch_strides), element)
            position, inside = w.start(f, starts, point, batch)
            if inside is None:
                _copy_window(f, w, to, f.at(source, position, element))
                return
            with f.when(inside):
                _copy_window(f, w, to, f.at(source, position, element))
            with f.when(f.binary("xor", inside, f.constant(True, b.I1))):
                bits = _constant_bits(f, number)
                with _window_rows(f, w) as (_, place, count):
                    fill_run(f, f.at(to, place, element), bits, count, target.lanes)

    cost = chunks.count * (_RUN_NS + size * operand.dtype.itemsize * _BYTE_NS)
    return (make_task("gather", 3, chunks.num_tasks, cost, write),)


def _constant_bits(f: Function, number: np.ndarray) -> Value:
    raw = int.from_bytes(number.tobytes(), "little")
    return f.constant(raw, b.scalar(bits_of(number.dtype))) if number.dtype.itemsize <= 8 else Value(
        str(raw), b.scalar(bits_of(number.dtype)), f.root
    )


def _copy_window(f: Function, w: Windows, to: Value, source: Value) -> None:
    element = bits_of(w.operand.dtype)
    with _window_rows(f, w) as (here, there, count):
        copy_bytes(f, f.at(to, there, element), f.at(source, here, element), count * w.operand.dtype.itemsize)


@contextlib.contextmanager
def _window_rows(f: Function, w: Windows) -> Iterator[tuple[Int, Int, int]]:
    """Loops over the runs of a window: offset in the operand, offset in the dense array, elements of a run."""
    run_dims, count = w.run
    outer = len(w.window) - run_dims
    operand, dense = w.window_strides
    with contextlib.ExitStack() as loops:
        index = [loops.enter_context(f.loop(0, n)).index if n > 1 else 0 for n in w.window[:outer]]
        yield dot(f, index, operand[:outer]), dot(f, index, dense[:outer]), count


# --- scatter ---------------------------------------------------------------------------------------


def scatter(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """The operation `scatter`: the result starts as the operand, later windows overwrite earlier ones."""
    element = bits_of(types[0].dtype)

    def move(f: Function, to: Value, source: Value, count: int) -> None:
        copy_bytes(f, to, source, count * types[0].dtype.itemsize)

    return _scatter("scatter", types, attrs, element, move)


def scatter_add(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """The operation `scatter_add`: the result starts as the operand, windows are added in their order."""
    dtype = types[0].dtype
    element = registers.memory_element(dtype)

    def move(f: Function, to: Value, source: Value, count: int) -> None:
        start = 0
        lanes = target.lanes
        while lanes:
            whole = (count - start) // lanes
            if whole:
                with f.loop(start, start + whole * lanes, lanes) as loop:
                    _add_run(f, f.at(to, loop.index, element), f.at(source, loop.index, element), dtype, lanes)
                start += whole * lanes
            lanes //= 2

    return _scatter("scatter_add", types, attrs, element, move)


def _add_run(f: Function, to: Value, source: Value, dtype: np.dtype, lanes: int) -> None:
    x, y = registers.load(f, to, dtype, lanes), registers.load(f, source, dtype, lanes)
    total = f.binary("fadd" if x.type.is_float else "add", x, y)
    registers.store(f, registers.rounded(f, total, dtype), to, dtype)


def _scatter(
    name: str,
    types: tuple[ArrayType, ...],
    attrs: Attrs,
    element: str,
    move: Callable[[Function, Value, Value, int], None],
) -> tuple[TaskFunction, ...]:
    operand, indices, updates = types
    numbers = attrs["dimension_numbers"]
    as_gather = indexing.GatherDimensionNumbers(
        numbers.update_window_dims,
        numbers.inserted_window_dims,
        numbers.scatter_dims_to_operand_dims,
        numbers.operand_batching_dims,
        numbers.scatter_indices_batching_dims,
    )
    sizes = indexing.scatter_slice_sizes(operand, updates, numbers)
    w = Windows(operand, indices, updates, as_gather, sizes, attrs["mode"])
    points, window = math.prod(w.batch), math.prod(w.window)
    nbytes = points * (window * operand.dtype.itemsize + 16)
    parts = _Parts.of(w, nbytes)

    def write(f: Function, pointers: list[Value], task: Value) -> None:
        _, starts, source, out = pointers
        with parts.points(f, task) as point:
            batch = coordinates(f, point, w.batch)
            position, inside = w.start(f, starts, point, batch)
            with contextlib.ExitStack() as guard:
                if inside is not None:
                    guard.enter_context(f.when(inside))
                to = f.at(out, position, element)
                given = f.at(source, dot(f, batch, w.batch_strides), element)
                with _window_rows(f, w) as (here, there, count):
                    first = f.mul(task, parts.columns) if parts.columns < count else 0
                    move(
                        f,
                        f.at(to, f.add(here, first), element),
                        f.at(given, f.add(there, first), element),
                        min(parts.columns, count),
                    )

    cost = points * _RUN_NS * parts.num_tasks + nbytes * _BYTE_NS * 2
    return (make_task(name, 4, parts.num_tasks, cost, write),)


@dataclass(frozen=True, slots=True)
class _Parts:
    """How a scatter is cut into tasks that never write the same element.

    Either every task takes `columns` elements of each run of all points, or the points of some values of the leading
    dimension of the starts, which is a batching dimension.
    """

    num_tasks: int
    columns: int
    num_points: int
    by_point: bool

    @classmethod
    def of(cls, w: Windows, nbytes: int) -> _Parts:
        """Cut by batching dimension where there is one, else by column."""
        points, (_, run) = math.prod(w.batch), w.run
        wanted = max(1, min(16, nbytes // TASK_BYTES))
        if 0 in w.numbers.start_indices_batching_dims and w.batch[0] > 1 and wanted > 1:
            return cls(w.batch[0], run, points, True)
        smallest = max(1, 64 // w.operand.dtype.itemsize)
        count = next((n for n in range(wanted, 0, -1) if run % n == 0 and run // n >= smallest), 1)
        return cls(count, run // count, points, False)

    @contextlib.contextmanager
    def points(self, f: Function, task: Value) -> Iterator[Int]:
        """A loop over the points of a task, in order."""
        each = self.num_points // self.num_tasks if self.by_point else self.num_points
        first = f.mul(task, each) if self.by_point else 0
        with f.loop(first, f.add(first, each), runs=each > 0) as loop:
            yield loop.index


# --- dynamic slices ----------------------------------------------------------------------------------


def dynamic_slice(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """The operation `dynamic_slice`."""
    operand, *starts = types
    out = operand.update(shape=attrs["slice_sizes"])
    return (_moved_slice("dynamic_slice", operand, out, starts, writes_slice=False),)


def dynamic_update_slice(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """The operation `dynamic_update_slice`: the result starts as the operand."""
    operand, update, *starts = types
    return (_moved_slice("dynamic_update_slice", operand, update, starts, writes_slice=True),)


def _moved_slice(
    name: str, whole: ArrayType, part: ArrayType, starts: Sequence[ArrayType], *, writes_slice: bool
) -> TaskFunction:
    """Copy between an array and a dense part of it whose place is known at run time.

    The starts are the last `part.ndim` operands; leading dimensions of the array without a start begin at 0.
    """
    element = bits_of(whole.dtype)
    outer = part.ndim
    run = 1
    while outer > 0:
        outer -= 1
        run *= part.shape[outer]
        if part.shape[outer] != whole.shape[outer]:
            break
    rows = part.shape[:outer]
    whole_strides, part_strides = row_major(whole.shape), row_major(part.shape)
    nbytes = run * whole.dtype.itemsize
    pieces = _run_pieces(math.prod(rows), run, whole.dtype.itemsize)
    chunks = Chunks.of(math.prod(rows) * pieces, nbytes / pieces)

    def write(f: Function, pointers: list[Value], task: Value) -> None:
        if writes_slice:
            _, source, *places, out = pointers
        else:
            source, *places, out = pointers
        corner: Int = 0
        for i, (pointer, type_) in enumerate(zip(places, starts, strict=True)):
            d = whole.ndim - len(starts) + i
            start = clamp(f, load_integer(f, pointer, 0, type_.dtype), whole.shape[d] - part.shape[d])
            corner = f.add(corner, f.mul(start, whole_strides[d]))
        with chunks.loop(f, task) as item:
            row, piece = f.divide(item, pieces)
            index = coordinates(f, row, rows)
            within = f.mul(piece, run // pieces)
            big = f.add(f.add(corner, dot(f, index, whole_strides[:outer])), within)
            small = f.add(dot(f, index, part_strides[:outer]), within)
            to, at = (big, small) if writes_slice else (small, big)
            copy_bytes(f, f.at(out, to, element), f.at(source, at, element), nbytes // pieces)

    cost = chunks.count * _RUN_NS + part.nbytes * _BYTE_NS
    return make_task(name, len(starts) + 2 + writes_slice, chunks.num_tasks, cost, write)


def _run_pieces(rows: int, run: int, itemsize: int) -> int:
    """In how many equal pieces to cut each run so that a few long ones give work to several threads."""
    wanted = max(1, run * itemsize // TASK_BYTES) if rows < 8 else 1
    return next((n for n in range(min(wanted, 64), 0, -1) if run % n == 0), 1)


# --- pad with elements between, concatenate, copy ------------------------------------------------------


def pad(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """The operation `pad` with interior padding: fill everything, then place the elements."""
    operand, _ = types
    low, high, interior = attrs["low"], attrs["high"], attrs["interior"]
    rank = len(low)
    loops = operand.ndim - rank
    core = operand.shape[loops:]
    grown = tuple(lo + hi + n + max(n - 1, 0) * k for lo, hi, k, n in zip(low, high, interior, core, strict=True))
    out = operand.update(shape=operand.shape[:loops] + grown)
    element = bits_of(operand.dtype)
    strides, from_strides = row_major(out.shape), row_major(operand.shape)
    first = [max(0, -(lo // (k + 1))) if lo < 0 else 0 for lo, k in zip(low, interior, strict=True)]
    last = [
        min(n, (m - 1 - lo) // (k + 1) + 1) for n, m, lo, k in zip(core, grown, low, interior, strict=True)
    ]
    counts = operand.shape[:loops] + tuple(max(0, e - s) for s, e in zip(first, last, strict=True))
    fill_chunks = Chunks.of(out.size, operand.dtype.itemsize)

    def write_fill(f: Function, pointers: list[Value], task: Value) -> None:
        bits = f.load(pointers[1], b.scalar(element))
        with fill_chunks.loop(f, task) as i:
            f.store(bits, f.at(pointers[2], i, element))

    chunks = Chunks.of(math.prod(counts), operand.dtype.itemsize * 4)

    def write_elements(f: Function, pointers: list[Value], task: Value) -> None:
        source, _, to = pointers
        with chunks.loop(f, task) as i:
            index = coordinates(f, i, counts)
            shifted = [*index[:loops], *(f.add(x, s) for x, s in zip(index[loops:], first, strict=True))]
            placed = [
                *index[:loops],
                *(f.add(f.mul(x, k + 1), lo) for x, k, lo in zip(shifted[loops:], interior, low, strict=True)),
            ]
            bits = f.load(f.at(source, dot(f, shifted, from_strides), element), b.scalar(element))
            f.store(bits, f.at(to, dot(f, placed, strides), element))

    tasks = [make_task("pad_fill", 3, fill_chunks.num_tasks, out.nbytes * _BYTE_NS, write_fill)]
    if chunks.count:
        tasks.append(make_task("pad_place", 3, chunks.num_tasks, operand.size * 1.0, write_elements))
    return tuple(tasks)


def concatenate(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """The operation `concatenate` of many arrays: each row of the result is one run per operand."""
    axis = attrs["axis"] + types[0].ndim
    itemsize = types[0].dtype.itemsize
    outer = math.prod(types[0].shape[:axis])
    runs = [math.prod(t.shape[axis:]) * itemsize for t in types]
    starts = [sum(runs[:i]) for i in range(len(runs))]
    total = sum(runs)
    tasks = []
    for i, (run, start) in enumerate(zip(runs, starts, strict=True)):
        if not run * outer:
            continue
        pieces = _run_pieces(outer, run, 1)
        chunks = Chunks.of(outer * pieces, run / pieces)

        def write(
            f: Function, pointers: list[Value], task: Value, i: int = i, run: int = run, start: int = start,
            pieces: int = pieces, chunks: Chunks = chunks,
        ) -> None:  # fmt: skip
            with chunks.loop(f, task) as item:
                row, piece = f.divide(item, pieces)
                within = f.mul(piece, run // pieces)
                to = f.at(pointers[-1], f.add(f.add(f.mul(row, total), start), within), "i8")
                copy_bytes(f, to, f.at(pointers[i], f.add(f.mul(row, run), within), "i8"), run // pieces)

        tasks.append(make_task("concatenate", len(types) + 1, chunks.num_tasks, outer * run * _BYTE_NS, write))
    return tuple(tasks)


def copy(nbytes: int) -> TaskFunction:
    """Copy the first argument to the second."""
    pieces = _run_pieces(1, nbytes, 1)
    chunks = Chunks(pieces, 1)

    def write(f: Function, pointers: list[Value], task: Value) -> None:
        with chunks.loop(f, task) as piece:
            place = f.mul(piece, nbytes // pieces)
            copy_bytes(f, f.at(pointers[1], place, "i8"), f.at(pointers[0], place, "i8"), nbytes // pieces)

    return make_task("copy", 2, chunks.num_tasks, nbytes * _BYTE_NS, write)
