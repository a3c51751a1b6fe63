"""Native code of gather and scatter: windows of an array at run-time starts, and the dense array of them.

A scatter is cut where its windows cannot meet: along batching dimensions, else along the last dimension of
the windows, so results depend neither on threads nor on timing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from infini.compiler.affine import row_major
from infini.compiler.llvm import builder as b, registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.movement import (
    BYTE_NS,
    RUN_NS,
    TASK_BYTES,
    Chunks,
    bits_of,
    clamp,
    coordinates,
    copy_bytes,
    dot,
    fill_run,
    load_integer,
    make_task,
)
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.core import primitive
from infini.core.ir import ArrayType, Attrs
from infini.lax import families, indexing

# --- windows ---------------------------------------------


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

    def start(
        self, f: Function, pointer: Value, point: Int, batch: Sequence[Int]
    ) -> tuple[Int, Value | None]:
        """Position in the operand of the window of a point, and whether it lies inside (None: it always
        does).
        """
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
        for d, where in zip(
            self.numbers.operand_batching_dims, self.numbers.start_indices_batching_dims, strict=True
        ):
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

    cost = chunks.count * (RUN_NS + size * operand.dtype.itemsize * BYTE_NS)
    return (make_task("gather", 3, chunks.num_tasks, cost, write),)


def _constant_bits(f: Function, number: np.ndarray) -> Value:
    raw = int.from_bytes(number.tobytes(), "little")
    return (
        f.constant(raw, b.scalar(bits_of(number.dtype)))
        if number.dtype.itemsize <= 8
        else Value(str(raw), b.scalar(bits_of(number.dtype)), f.root)
    )


def _copy_window(f: Function, w: Windows, to: Value, source: Value) -> None:
    element = bits_of(w.operand.dtype)
    with _window_rows(f, w) as (here, there, count):
        copy_bytes(f, f.at(to, there, element), f.at(source, here, element), count * w.operand.dtype.itemsize)


@contextlib.contextmanager
def _window_rows(f: Function, w: Windows) -> Iterator[tuple[Int, Int, int]]:
    """Loops over the runs of a window: offsets in operand and dense array, and elements of a run."""
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
                    _add_run(
                        f, f.at(to, loop.index, element), f.at(source, loop.index, element), dtype, lanes
                    )
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

    cost = points * RUN_NS * parts.num_tasks + nbytes * BYTE_NS * 2
    return (make_task(name, 4, parts.num_tasks, cost, write),)


@dataclass(frozen=True, slots=True)
class _Parts:
    """How a scatter is cut into tasks that never write the same element.

    Either every task takes `columns` elements of each run of all points, or the points of some values of the
    leading dimension of the starts, which is a batching dimension.
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
