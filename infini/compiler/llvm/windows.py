"""Native code of gather and the scatters: windows of an array at run-time starts, and the dense array of
them.

Window dimensions that come before the places in the dense array are the outer loops, so it is read or written
in its own order. A scatter is cut into tasks where windows cannot meet, so results depend neither on threads
nor on timing, and repeated places combine in the order of the updates.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from infini.compiler.affine import row_major
from infini.compiler.llvm import builder as b, operations, picking, registers, single_scatters
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.movement import (
    BYTE_NS,
    RUN_NS,
    TASK_BYTES,
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
from infini.core import dtypes, primitive
from infini.core.ir import ArrayType, Attrs
from infini.lax import indexing

SMALLEST_RUN: Final = 128  # bytes of what a task of a scatter combines per point
AHEAD: Final = 2  # windows that a gather asks for before it copies them
AHEAD_BYTES: Final = range(1 << 10, (4 << 10) + 1)  # of these; the processor foresees longer ones itself
LINE: Final = 64  # bytes of the cache

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
        clips: whether windows outside are moved inside.
    """

    operand: ArrayType
    indices: ArrayType
    dense: ArrayType
    numbers: indexing.GatherDimensionNumbers
    sizes: tuple[int, ...]
    clips: bool

    @property
    def batch(self) -> tuple[int, ...]:
        """Shape of the starts."""
        return self.indices.shape[:-1]

    @property
    def num_before(self) -> int:
        """How many dimensions of the window come before all of the starts' in the dense array."""
        if not self.batch:
            return 0
        first = min(d for d in range(self.dense.ndim) if d not in self.numbers.offset_dims)
        return sum(d < first for d in self.numbers.offset_dims)

    @property
    def window(self) -> tuple[int, ...]:
        """Shape of a window."""
        return self.numbers.window_of(self.sizes)

    @property
    def before(self) -> tuple[int, ...]:
        """Sizes of the window's dimensions that come before the starts'."""
        return self.window[: self.num_before]

    @property
    def window_strides(self) -> tuple[list[int], list[int]]:
        """Strides of the window's dimensions in the operand and in the dense array."""
        operand, dense = row_major(self.operand.shape), row_major(self.dense.shape)
        kept = [d for d in range(self.operand.ndim) if d not in self.numbers.dropped]
        return [operand[d] for d in kept], [dense[d] for d in self.numbers.offset_dims]

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
        inner = slice(self.num_before, None)
        for n, s, t in zip(
            reversed(self.window[inner]), reversed(operand[inner]), reversed(dense[inner]), strict=True
        ):
            if n != 1 and not s == t == size:
                break
            count, size = count + 1, size * n
        return count, size

    def offsets(self, f: Function, before: Sequence[Int], point: Int) -> tuple[Int, Int]:
        """Offsets that the outer dimensions of a window add in the operand, and with the point's in the dense
        array.
        """
        operand, dense = self.window_strides
        outer = self.num_before
        place = dot(f, before, dense[:outer])
        strides = self.batch_strides
        together = [n * s for n, s in zip(self.batch[1:], strides[1:], strict=True)]
        if strides[:-1] == together:  # points lie one after another
            along = f.mul(point, strides[-1]) if strides else 0
        else:
            along = dot(f, coordinates(f, point, self.batch), strides)
        return dot(f, before, operand[:outer]), f.add(place, along)

    def start(self, f: Function, pointer: Value, point: Int) -> tuple[Int, Value | None]:
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
            if not self.clips:
                fits = f.compare("ule", place, f.integer(limits[d]))
                inside = fits if inside is None else f.binary("and", inside, fits)
            elif self.indices.dtype == dtypes.uint64:
                is_small = f.compare("ult", place, f.integer(limits[d]))
                place = f.select(is_small, place, f.integer(limits[d]))
            else:
                place = clamp(f, place, limits[d])
            position = f.add(position, f.mul(place, strides[d]))
        batching = self.numbers.operand_batching_dims, self.numbers.start_indices_batching_dims
        batch = coordinates(f, point, self.batch) if batching[0] else []
        for d, where in zip(*batching, strict=True):
            position = f.add(position, f.mul(batch[where], strides[d]))
        return position, inside

    @contextlib.contextmanager
    def rows(self, f: Function) -> Iterator[tuple[Int, Int, int]]:
        """Loops over the runs of a window: offsets in operand and dense array, and elements of a run."""
        run_dims, count = self.run
        inner = slice(self.num_before, len(self.window) - run_dims)
        operand, dense = self.window_strides
        with contextlib.ExitStack() as loops:
            index = [loops.enter_context(f.loop(0, n)).index if n > 1 else 0 for n in self.window[inner]]
            yield dot(f, index, operand[inner]), dot(f, index, dense[inner]), count


def of_gather(operand: ArrayType, indices: ArrayType, attrs: Attrs) -> Windows:
    """The windows that a gather copies."""
    (dense,) = indexing.gather_p.rule(primitive.TYPE)(operand, indices, **attrs)
    numbers, sizes = attrs["dimension_numbers"], attrs["slice_sizes"]
    return Windows(operand, indices, dense, numbers, sizes, attrs["mode"] != "fill")


def fill_of(w: Windows, attrs: Attrs) -> np.ndarray:
    """What a gather gives for windows outside."""
    return indexing.fill_of(w.operand.dtype, attrs["fill_value"])


def gather(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """The operation `gather`."""
    operand, indices = types
    w = of_gather(operand, indices, attrs)
    element, itemsize = bits_of(operand.dtype), operand.dtype.itemsize
    number = fill_of(w, attrs)
    if picking.is_for(w):
        return (picking.emit(w, number, target),)
    points, outer, inner = math.prod(w.batch), math.prod(w.before), math.prod(w.window[w.num_before :])
    wanted = max(1, outer * points * (inner * itemsize + 16) // TASK_BYTES)
    cuts = _Cut.into(outer, wanted), _Cut(points)
    if outer < wanted:
        cuts = _Cut(outer), _Cut.into(points, wanted)
    num_tasks = max(cut.num_tasks for cut in cuts)

    def write(f: Function, pointers: list[Value], task: Value) -> None:
        source, starts, out = pointers
        with cuts[0].loop(f, task) as turn, cuts[1].loop(f, task) as point:
            here, there = w.offsets(f, coordinates(f, turn, w.before), point)
            to = f.at(out, there, element)
            if inner * itemsize in AHEAD_BYTES and w.run[1] == inner and points > AHEAD:
                later, _ = w.start(f, starts, f.minimum(f.add(point, AHEAD), points - 1))
                ahead = f.at(source, f.add(later, here), element)
                for line in range(0, inner * itemsize, LINE):
                    f.prefetch(f.at(ahead, line, "i8"))
            position, inside = w.start(f, starts, point)
            at = f.at(source, f.add(position, here), element)

            def copy() -> None:
                with w.rows(f) as (row, place, count):
                    copy_bytes(f, f.at(to, place, element), f.at(at, row, element), count * itemsize)

            if inside is None:
                copy()
                return
            with f.when(inside):
                copy()
            with f.when(f.binary("xor", inside, f.constant(True, b.I1))):
                bits = _constant_bits(f, number)
                with w.rows(f) as (_, place, count):
                    fill_run(f, f.at(to, place, element), bits, count, target.lanes)

    cost = outer * points * (RUN_NS + inner * itemsize * BYTE_NS)
    return (make_task("gather", 3, num_tasks, cost, write),)


def _constant_bits(f: Function, number: np.ndarray) -> Value:
    raw = int.from_bytes(number.tobytes(), "little")
    return (
        f.constant(raw, b.scalar(bits_of(number.dtype)))
        if number.dtype.itemsize <= 8
        else Value(str(raw), b.scalar(bits_of(number.dtype)), f.root)
    )


# --- scatters --------------------------------------------------------------------------------------

Emit = Callable[[tuple[ArrayType, ...], Attrs, Target], tuple[TaskFunction, ...]]
Move = Callable[[Function, Value, Value, int], None]


def scatter(name: str) -> Emit:
    """Code of the scatter `name`: the result starts as the operand, windows are combined in their order."""
    combine = indexing.KINDS[name].combine

    def emit(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
        dtype = types[0].dtype
        if combine is None:
            return _scatter(name, types, attrs, bits_of(dtype), _overwrite(dtype), target)
        return _scatter(
            name, types, attrs, registers.memory_element(dtype), _combined(combine, dtype, target), target
        )

    return emit


def _overwrite(dtype: np.dtype) -> Move:
    return lambda f, to, source, count: copy_bytes(f, to, source, count * dtype.itemsize)


def _combined(combine: str, dtype: np.dtype, target: Target) -> Move:
    """Combine a run with what is there, in vectors of the widest size that fits, then of smaller ones."""
    element = registers.memory_element(dtype)

    def run(f: Function, to: Value, source: Value, lanes: int) -> None:
        x, y = registers.load(f, to, dtype, lanes), registers.load(f, source, dtype, lanes)
        registers.store(f, operations.emit(f, combine, (dtype, dtype), dtype, (x, y), {}), to, dtype)

    def move(f: Function, to: Value, source: Value, count: int) -> None:
        start, lanes = 0, target.lanes
        while lanes:
            whole = (count - start) // lanes
            if whole == 1:
                run(f, f.at(to, start, element), f.at(source, start, element), lanes)
            elif whole:
                with f.loop(start, start + whole * lanes, lanes) as loop:
                    run(f, f.at(to, loop.index, element), f.at(source, loop.index, element), lanes)
            start += whole * lanes
            lanes //= 2

    return move


def _scatter(
    name: str, types: tuple[ArrayType, ...], attrs: Attrs, element: str, move: Move, target: Target
) -> tuple[TaskFunction, ...]:
    operand, indices, updates = types
    numbers = attrs["dimension_numbers"]
    sizes = numbers.slice_sizes(operand.shape, updates.shape)
    w = Windows(operand, indices, updates, numbers.as_gather, sizes, attrs["mode"] == "clip")
    points, window = math.prod(w.batch), math.prod(w.window)
    nbytes = points * (window * operand.dtype.itemsize + 16)
    if not attrs["unique_indices"] and single_scatters.num_parts(w, target) > 1:
        return (single_scatters.emit(name, w, element, move, target),)
    parts = _Parts.of(w, nbytes, is_unique=attrs["unique_indices"])

    def write(f: Function, pointers: list[Value], task: Value) -> None:
        _, starts, source, out = pointers
        with parts.loops(f, task) as (outer, point):
            here, there = w.offsets(f, coordinates(f, outer, w.before), point)
            position, inside = w.start(f, starts, point)
            with contextlib.ExitStack() as guard:
                if inside is not None:
                    guard.enter_context(f.when(inside))
                to = f.at(out, f.add(position, here), element)
                given = f.at(source, there, element)
                with w.rows(f) as (row, place, count):
                    first = f.mul(task, parts.columns) if parts.columns < count else 0
                    move(
                        f,
                        f.at(to, f.add(row, first), element),
                        f.at(given, f.add(place, first), element),
                        min(parts.columns, count),
                    )

    cost = points * math.prod(w.before) * RUN_NS + nbytes * BYTE_NS * 2
    return (make_task(name, 4, parts.num_tasks, cost, write),)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A loop of `count` turns of which every task takes up to `each`; all of them when that is None."""

    count: int
    each: int | None = None

    @classmethod
    def into(cls, count: int, wanted: int, unit: int = 1) -> _Cut:
        """About `wanted` parts, each a multiple of `unit`."""
        return cls(count, max(-(-count // (wanted * unit)), 1) * unit)

    @property
    def num_tasks(self) -> int:
        """Number of parts."""
        return 1 if self.each is None else -(-self.count // self.each)

    @contextlib.contextmanager
    def loop(self, f: Function, task: Value) -> Iterator[Int]:
        """The turns of a task."""
        if self.count == 1:
            yield 0
            return
        first = 0 if self.each is None else f.mul(task, self.each)
        stop: Int = self.count if self.each is None else f.add(first, self.each)
        if self.each is not None and self.count % self.each:
            stop = f.minimum(stop, self.count)
        with f.loop(first, stop) as loop:
            yield loop.index


@dataclass(frozen=True, slots=True)
class _Parts:
    """How a scatter is cut into tasks that never write the same element.

    A task takes some of the outer positions in the window of all points, or some of the points, or `columns`
    elements of each run of all points.
    """

    num_tasks: int
    columns: int
    outer: _Cut
    points: _Cut

    @classmethod
    def of(cls, w: Windows, nbytes: int, *, is_unique: bool) -> _Parts:
        """Cut points that cannot meet, else the outer dimensions of the window, else its runs."""
        points, (_, run), outer = math.prod(w.batch), w.run, math.prod(w.before)
        wanted = max(1, min(16, nbytes // TASK_BYTES))
        is_batched = 0 in w.numbers.start_indices_batching_dims and w.batch[0] > 1
        if wanted > 1 and points > 1 and (is_unique or is_batched):
            cut = _Cut.into(points, wanted, 1 if is_unique else points // w.batch[0])
            return cls(cut.num_tasks, run, _Cut(outer), cut)
        if wanted > 1 and outer > 1:
            cut = _Cut.into(outer, wanted)
            return cls(cut.num_tasks, run, cut, _Cut(points))
        smallest = max(1, SMALLEST_RUN // w.operand.dtype.itemsize)
        count = next((n for n in range(wanted, 0, -1) if run % n == 0 and run // n >= smallest), 1)
        return cls(count, run // count, _Cut(outer), _Cut(points))

    @contextlib.contextmanager
    def loops(self, f: Function, task: Value) -> Iterator[tuple[Int, Int]]:
        """Loops over the outer positions and the points of a task, in order."""
        with self.outer.loop(f, task) as outer, self.points.loop(f, task) as point:
            yield outer, point
