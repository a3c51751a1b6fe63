"""The operation `fft`: each task hands lines of numbers to the transform of a library.

The routines are symbols that the backend gives addresses to (`library_symbols`), with the convention of
NumPy's generalised functions: pointers, sizes and strides of an operand, a factor and a result, then what the
routine was registered with. They work on many lines in one call, along any dimension and in place, so a
transform of several dimensions is one pass after another over the memory of the result.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Final

import numpy as np

from infini.compiler.llvm import builder as b, movement
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.library_symbols import DATA_SUFFIX, TRANSFORM_PREFIX, WITH_DATA
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.core import dtypes
from infini.core.ir import ArrayType, Attrs, Shape
from infini.lax import complex_views

NAMES: Final = frozenset({"fft"})
TASK_NS: Final = 60_000.0
FLOP_NS: Final = 0.07
# A call works out roots of unity first, and computes some lines at once in a vector: so a task takes lines
# by this number, unless they are long.
LINES: Final = 8
LONG_NS: Final = 100_000.0

_LETTERS: Final = {dtypes.float32: "s", dtypes.float64: "d"}


@dataclasses.dataclass(frozen=True, slots=True)
class Pass:
    """A transform along one dimension.

    Args:
        routine: name of the library's function.
        dtype: real dtype of its arithmetic.
        source: number of the array that it reads.
        target: number of the array that it writes; may be the same.
        in_shape: shape of the operand.
        out_shape: shape of the result, which differs along `axis` at most.
        axis: the dimension.
        factor: what the result is multiplied with.
        in_bytes: size of an element of the operand.
        out_bytes: size of an element of the result.
    """

    routine: str
    dtype: np.dtype
    source: int
    target: int
    in_shape: Shape
    out_shape: Shape
    axis: int
    factor: float
    in_bytes: int
    out_bytes: int

    @property
    def num_blocks(self) -> int:
        """Number of places along the dimensions before the transformed one."""
        return math.prod(self.out_shape[: self.axis])

    @property
    def num_columns(self) -> int:
        """Number of lines of a block, whose elements are neighbours."""
        return math.prod(self.out_shape[self.axis + 1 :])

    @property
    def line_ns(self) -> float:
        """Estimated time of one line."""
        size = max(self.in_shape[self.axis], self.out_shape[self.axis])
        flops = 5.0 * size * math.log2(size + 1)
        return 20.0 + FLOP_NS * (flops if self.routine in WITH_DATA else 0.5 * flops)

    @property
    def call_ns(self) -> float:
        """Estimated time of a call without its lines."""
        return 300.0 + 5.0 * self.out_shape[self.axis]

    @property
    def task_lines(self) -> int:
        """Lines of a task."""
        if self.line_ns > LONG_NS:
            return 1
        return -(-max(1, int(TASK_NS // self.line_ns)) // LINES) * LINES


def fft(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """One task function per transformed dimension, run one after another."""
    (x,) = types
    found = _passes(x, attrs["fft_type"], attrs["fft_lengths"])
    num_arrays = 1 + max(max(p.source, p.target) for p in found)
    scratch = math.prod(x.shape) * x.dtype.itemsize if num_arrays == 3 else 0
    tasks = [_task(p, num_arrays) for p in found]
    return tuple(dataclasses.replace(task, scratch_bytes=scratch) for task in tasks)


def _passes(x: ArrayType, fft_type: str, lengths: tuple[int, ...]) -> list[Pass]:
    """The passes of a transform over arrays 0, the operand, 1, the result, and 2, memory meanwhile."""
    real = complex_views.PART.get(x.dtype, x.dtype)
    number = 2 * real.itemsize
    last = x.ndim - 1
    first = x.ndim - len(lengths)
    before = x.shape[:last]
    others = range(last - 1, first - 1, -1)

    def inner(axis: int, routine: str, source: int, target: int) -> Pass:
        shape = (*before, lengths[-1] // 2 + 1 if fft_type in ("rfft", "irfft") else lengths[-1])
        factor = 1.0 / shape[axis] if routine == "ifft" else 1.0
        return Pass(routine, real, source, target, shape, shape, axis, factor, number, number)

    if fft_type == "rfft":
        routine = "rfft_n_odd" if lengths[-1] % 2 else "rfft_n_even"
        out_shape = (*before, lengths[-1] // 2 + 1)
        start = Pass(routine, real, 0, 1, x.shape, out_shape, last, 1.0, real.itemsize, number)
        return [start, *(inner(axis, "fft", 1, 1) for axis in others)]
    if fft_type == "irfft":
        # The library needs the half of a spectrum along the last dimension, so that one comes at the end.
        steps = [inner(axis, "ifft", 0 if i == 0 else 2, 2) for i, axis in enumerate(others)]
        out_shape, source = (*before, lengths[-1]), 2 if steps else 0
        factor = 1.0 / lengths[-1]
        return [
            *steps, Pass("irfft", real, source, 1, x.shape, out_shape, last, factor, number, real.itemsize)
        ]  # fmt: skip
    return [inner(last, fft_type, 0, 1), *(inner(axis, fft_type, 1, 1) for axis in others)]


def _task(p: Pass, num_arrays: int) -> TaskFunction:
    """Tasks of some lines each: blocks, or when one block has many columns, pieces of one."""
    lines = p.task_lines
    if p.num_columns == 1:
        chunks = movement.Chunks(p.num_blocks, min(lines, p.num_blocks))
        write, num_tasks, num_calls = _rows, chunks.num_tasks, chunks.num_tasks
    elif lines >= p.num_columns:
        chunks = movement.Chunks(p.num_blocks, min(lines // p.num_columns, p.num_blocks))
        write, num_tasks, num_calls = _blocks, chunks.num_tasks, p.num_blocks
    else:
        chunks = movement.Chunks(p.num_columns, min(max(lines, LINES), p.num_columns))
        write, num_tasks = _columns, p.num_blocks * chunks.num_tasks
        num_calls = num_tasks
    cost_ns = p.num_blocks * p.num_columns * p.line_ns + num_calls * p.call_ns
    body = functools.partial(write, p, chunks)
    return movement.make_task(f"fft_{p.routine}", num_arrays, num_tasks, cost_ns, body)


def _rows(p: Pass, chunks: movement.Chunks, f: Function, pointers: list[Value], task: Value) -> None:
    """Lines along the last dimension, some in one call."""
    row = f.mul(task, chunks.per_task) if chunks.num_tasks > 1 else 0
    count: Int = chunks.per_task
    if chunks.count % chunks.per_task:
        count = f.minimum(f.sub(chunks.count, row), chunks.per_task)
    _Lines(p, f, pointers).call(row, 0, count)


def _blocks(p: Pass, chunks: movement.Chunks, f: Function, pointers: list[Value], task: Value) -> None:
    """All columns of some blocks, a block in one call."""
    lines = _Lines(p, f, pointers)
    with chunks.loop(f, task) as block:
        lines.call(block, 0, p.num_columns)


def _columns(p: Pass, chunks: movement.Chunks, f: Function, pointers: list[Value], task: Value) -> None:
    """Some columns of one block."""
    block, piece = f.divide(task, chunks.num_tasks)
    column = f.mul(piece, chunks.per_task)
    count: Int = chunks.per_task
    if chunks.count % chunks.per_task:
        count = f.minimum(f.sub(chunks.count, column), chunks.per_task)
    _Lines(p, f, pointers).call(block, column, count)


class _Lines:
    """Calls of a library's transform; what does not change between them lies on the stack."""

    def __init__(self, p: Pass, f: Function, pointers: list[Value]) -> None:
        self.p, self.f, self.pointers = p, f, pointers
        before, after = p.in_shape[p.axis], p.out_shape[p.axis]
        columns = p.num_columns
        line = (columns * p.in_bytes, columns * p.out_bytes)
        # From one line to the next: a whole block when each has one line, otherwise an element.
        steps = (before * p.in_bytes, after * p.out_bytes) if columns == 1 else (p.in_bytes, p.out_bytes)
        self.arguments = f.allocate(24)
        self.sizes = self._numbers(0, before, after)
        self.strides = self._numbers(steps[0], 0, steps[1], *line)
        element = b.scalar("float" if p.dtype == dtypes.float32 else "double")
        factor = f.allocate(8)
        f.store(f.constant(p.factor, element), factor)
        f.store(factor, f.at(self.arguments, 1, "ptr"))

    def _numbers(self, *numbers: int) -> Value:
        place = self.f.allocate(8 * len(numbers))
        for i, number in enumerate(numbers):
            self.f.store(self.f.integer(number), self.f.at(place, i, "i64"))
        return place

    def call(self, block: Int, column: Int, count: Int) -> None:
        """Transform `count` lines of a block from `column` on; blocks of one line count as lines."""
        p, f = self.p, self.f
        for number, shape, width, entry in (
            (p.source, p.in_shape, p.in_bytes, 0),
            (p.target, p.out_shape, p.out_bytes, 2),
        ):
            offset = f.add(f.mul(block, shape[p.axis] * p.num_columns), column)
            start = f.at(self.pointers[number], f.mul(offset, width), "i8")
            f.store(start, f.at(self.arguments, entry, "ptr"))
        f.store(f.integer(count), self.sizes)
        symbol = f"{TRANSFORM_PREFIX}{p.routine}_{_LETTERS[p.dtype]}"
        f.declare(f"declare void @{symbol}(ptr, ptr, ptr, ptr)")
        data = "null"
        if p.routine in WITH_DATA:
            data = f"@{symbol}{DATA_SUFFIX}"
            f.declare(f"{data} = external global i8")
        f.do(f"call void @{symbol}(ptr {self.arguments}, ptr {self.sizes}, ptr {self.strides}, ptr {data})")
