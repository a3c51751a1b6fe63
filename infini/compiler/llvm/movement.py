"""Native code for moves at places known at run time: dynamic slices, and what kernels leave over.

Elements move as bits of their width, runs that lie together by `memcpy`. Gather and scatter are in `windows`.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from infini.compiler.affine import row_major
from infini.compiler.llvm import builder as b, registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.core import dtypes
from infini.core.ir import ArrayType, Attrs

TASK_BYTES: Final = 256 << 10  # moved by one task
BYTE_NS: Final = 0.06  # of memory traffic
RUN_NS: Final = 4.0  # of starting a run


def bits_of(dtype: np.dtype) -> str:
    """The integer that holds one element."""
    return f"i{8 * dtype.itemsize}"


def make_task(
    name: str,
    num_arrays: int,
    num_tasks: int,
    cost_ns: float,
    write: Callable[[Function, list[Value], Value], None],
) -> TaskFunction:
    """A task function; `write(f, pointers, task)` writes its body."""
    f = Function("@NAME@", [(b.PTR, "args"), (b.I64, "task")])
    pointers = [f.load(f.at(f.parameters[0], i, "ptr"), b.PTR, is_invariant=True) for i in range(num_arrays)]
    write(f, pointers, f.parameters[1])
    text = f.finish()
    symbol = f"{name}_{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"
    return TaskFunction(
        symbol, text.replace("@NAME@", symbol), frozenset(f.declares), num_tasks, cost_ns=cost_ns
    )


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


# --- dynamic slices ----------------------------------------------------------------------------------


def dynamic_slice(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """The operation `dynamic_slice`."""
    operand, *starts = types
    out = operand.update(shape=attrs["slice_sizes"])
    return (_moved_slice("dynamic_slice", operand, out, starts, writes_slice=False),)


def dynamic_update_slice(
    types: tuple[ArrayType, ...], attrs: Attrs, target: Target
) -> tuple[TaskFunction, ...]:
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

    cost = chunks.count * RUN_NS + part.nbytes * BYTE_NS
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
    grown = tuple(
        lo + hi + n + max(n - 1, 0) * k for lo, hi, k, n in zip(low, high, interior, core, strict=True)
    )
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
                *(
                    f.add(f.mul(x, k + 1), lo)
                    for x, k, lo in zip(shifted[loops:], interior, low, strict=True)
                ),
            ]
            bits = f.load(f.at(source, dot(f, shifted, from_strides), element), b.scalar(element))
            f.store(bits, f.at(to, dot(f, placed, strides), element))

    tasks = [make_task("pad_fill", 3, fill_chunks.num_tasks, out.nbytes * BYTE_NS, write_fill)]
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
    return tuple(
        _part(i, run, start, total, outer, len(types))
        for i, (run, start) in enumerate(zip(runs, starts, strict=True))
        if run * outer
    )


def _part(number: int, run: int, start: int, total: int, outer: int, num_operands: int) -> TaskFunction:
    """One operand of a concatenation: `run` bytes at `start` of each of `outer` rows of `total` bytes."""
    pieces = _run_pieces(outer, run, 1)
    chunks = Chunks.of(outer * pieces, run / pieces)

    def write(f: Function, pointers: list[Value], task: Value) -> None:
        with chunks.loop(f, task) as item:
            row, piece = f.divide(item, pieces)
            within = f.mul(piece, run // pieces)
            to = f.at(pointers[-1], f.add(f.add(f.mul(row, total), start), within), "i8")
            copy_bytes(f, to, f.at(pointers[number], f.add(f.mul(row, run), within), "i8"), run // pieces)

    return make_task("concatenate", num_operands + 1, chunks.num_tasks, outer * run * BYTE_NS, write)


def copy(nbytes: int) -> TaskFunction:
    """Copy the first argument to the second."""
    pieces = _run_pieces(1, nbytes, 1)
    chunks = Chunks(pieces, 1)

    def write(f: Function, pointers: list[Value], task: Value) -> None:
        with chunks.loop(f, task) as piece:
            place = f.mul(piece, nbytes // pieces)
            copy_bytes(f, f.at(pointers[1], place, "i8"), f.at(pointers[0], place, "i8"), nbytes // pieces)

    return make_task("copy", 2, chunks.num_tasks, nbytes * BYTE_NS, write)
