"""A few rows times a large matrix that lies in memory row by row: read once, in order, at the speed of
memory.

Each task walks rows of the matrix for a part of k, and of n where there are several rows of x, so its reads
are long runs, and keeps its partial sums in the first-level cache; a second phase adds the partial sums in a
fixed order.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm import operations, registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.contraction import Problem
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import I64, PTR

MAX_ROWS = 16
MIN_BYTES = 4 << 20  # of the matrix; a smaller one stays in the cache and needs no such care
TASK_BYTES = 1 << 20
PARTIAL_BYTES = 16 << 10
PAD = 144  # elements between rows of the partial sums
AHEAD_ROWS = 8  # of the matrix that are asked for before they are read
GROUP = 4  # rows of the matrix per pass over the partial sums
GROUP_OF_MANY = 2  # the same with more than FEW_ROWS rows of x, whose elements fill the registers
FEW_ROWS = 4
NS_PER_BYTE = 0.05


def is_suited(problem: Problem, y_dtype: np.dtype) -> bool:
    """Whether a contraction is a few rows times one large matrix in row-major order."""
    (k,) = problem.k
    is_row_major = problem.n.y == 1 and k.y >= problem.n.size and (k.x == 1 or k.size == 1)
    return (
        not problem.batch
        and problem.m.size <= MAX_ROWS
        and is_row_major
        and k.size * problem.n.size * y_dtype.itemsize >= MIN_BYTES
    )


def emit(
    problem: Problem,
    x_dtype: np.dtype,
    y_dtype: np.dtype,
    out_dtype: np.dtype,
    compute: np.dtype,
    target: Target,
) -> tuple[TaskFunction, ...]:
    """Two phases, with `args` x, y, result and scratch."""
    return _Emission(
        problem, x_dtype, y_dtype, out_dtype, compute, target.lanes * 4 // compute.itemsize
    ).phases()


@dataclass(frozen=True, slots=True)
class _Emission:
    problem: Problem
    x_dtype: np.dtype
    y_dtype: np.dtype
    out_dtype: np.dtype
    compute: np.dtype
    lanes: int

    @property
    def group(self) -> int:
        """Rows of the matrix per pass over the partial sums."""
        return GROUP if self.problem.m.size <= FEW_ROWS else GROUP_OF_MANY

    @property
    def block(self) -> int:
        """Columns per task: so few that their partial sums stay in the cache."""
        size = self.columns
        most = max(8 * self.lanes, PARTIAL_BYTES // self.compute.itemsize // self.problem.m.size)
        count = -(-size // most)
        return -(-size // count // self.lanes) * self.lanes

    @property
    def num_blocks(self) -> int:
        """Tasks of the first phase along n."""
        return -(-self.columns // self.block)

    @property
    def depth(self) -> int:
        """Rows of the matrix per task."""
        row_bytes = min(self.block, self.problem.n.size) * self.y_dtype.itemsize
        return max(self.group, TASK_BYTES // row_bytes // self.group * self.group)

    @property
    def num_parts(self) -> int:
        """Tasks of the first phase along k."""
        return -(-self.problem.k[0].size // self.depth)

    @property
    def columns(self) -> int:
        """Columns of the partial sums, a multiple of the lanes."""
        return -(-self.problem.n.size // self.lanes) * self.lanes

    @property
    def row(self) -> int:
        """Elements from one row of the partial sums to the next: not the same place of a page, where a load
        waits for a store to another page.
        """
        return self.columns + PAD

    def phases(self) -> tuple[TaskFunction, ...]:
        """Partial sums, and their sum."""
        problem = self.problem
        nbytes = problem.m.size * self.row * self.compute.itemsize
        read = problem.k[0].size * problem.n.size * self.y_dtype.itemsize
        first = self._finish("stream", self._partial(), self.num_parts * self.num_blocks, read * NS_PER_BYTE)
        blocks = -(-self.columns // (self.lanes * 16))
        last = self._finish("join", self._join(), blocks, nbytes * self.num_parts * NS_PER_BYTE)
        return (
            TaskFunction(
                first.name,
                first.text,
                first.declares,
                first.num_tasks,
                nbytes * self.num_parts,
                first.cost_ns,
            ),
            last,
        )

    def _finish(self, kind: str, f: Function, num_tasks: int, cost_ns: float) -> TaskFunction:
        text = f.finish()
        name = f"{kind}_{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"
        return TaskFunction(
            name, text.replace("@TASK", f"@{name}"), frozenset(f.declares), num_tasks, 0, cost_ns
        )

    def _start(self) -> tuple[Function, list[Value]]:
        f = Function("TASK", [(PTR, "args"), (I64, "task")])
        order = (1, 0, 2, 3) if self.problem.is_swapped else (0, 1, 2, 3)
        return f, [f.load(f.at(f.parameters[0], i, "ptr"), PTR, is_invariant=True) for i in order]

    # --- partial sums -----------------------------------------------------------------------

    def _partial(self) -> Function:
        f, (x, y, _, scratch) = self._start()
        k, m, size = self.problem.k[0], self.problem.m, self.problem.n.size
        element, memory = registers.memory_element(self.compute), registers.memory_element(self.y_dtype)
        part, number = f.divide(f.parameters[1], self.num_blocks)
        first = f.mul(number, self.block)
        # Rows of the partial sums of a task lie where those of the whole product would.
        partial = f.at(scratch, f.add(f.mul(part, m.size * self.row), first), element)
        width: Int = self.block
        if self.columns % self.block:
            width = f.minimum(f.sub(self.columns, first), self.block)
        zero = registers.constant(f, 0, self.compute, self.lanes)
        with f.loop(0, width, self.lanes) as loop:
            for i in range(m.size):
                place = f.at(f.at(partial, loop.index, element), i * self.row, element)
                registers.store(f, zero, place, self.compute)
        whole = width
        if size % self.lanes:
            whole = f.minimum(f.sub(size - size % self.lanes, first), self.block)
        y = f.at(y, first, memory)
        start = f.mul(part, self.depth)
        stop = f.minimum(f.add(start, self.depth), k.size)
        groups = f.add(start, f.mul(f.divide(f.sub(stop, start), self.group)[0], self.group))
        with f.loop(start, groups, self.group) as loop:
            self._rows(f, x, y, partial, loop.index, count=self.group, columns=(whole, width))
        if k.size % self.group:
            with f.loop(groups, stop) as loop:
                self._rows(f, x, y, partial, loop.index, count=1, columns=(whole, width))
        return f

    def _rows(
        self, f: Function, x: Value, y: Value, partial: Value, row: Int, *, count: int,
        columns: tuple[Int, Int],
    ) -> None:  # fmt: skip
        """Add `count` rows of the matrix, each times an element of every row of x."""
        (k,), m, rest = self.problem.k, self.problem.m, self.problem.n.size % self.lanes
        x_memory = registers.memory_element(self.x_dtype)
        factors: list[list[Value]] = []  # of each row of x, for each row of the matrix
        for i in range(m.size):
            places = [f.at(x, f.add(f.mul(f.add(row, u), k.x), i * m.x), x_memory) for u in range(count)]
            loaded = [registers.load(f, place, self.x_dtype, 1, is_invariant=True) for place in places]
            factors.append([f.splat(self._wide(f, self.x_dtype, one), self.lanes) for one in loaded])
        y_row = f.at(y, f.mul(row, k.y), registers.memory_element(self.y_dtype))
        whole, width = columns
        with f.loop(0, whole, self.lanes) as loop:
            self._column(f, y_row, partial, loop.index, factors=factors, mask=None)
        if rest:
            with f.when(f.compare("slt", f.integer(whole), f.integer(width))):
                mask = f.first_lanes(rest, self.lanes)
                self._column(f, y_row, partial, whole, factors=factors, mask=mask)

    def _wide(self, f: Function, dtype: np.dtype, x: Value) -> Value:
        return operations.convert(f, dtype, x, new_dtype=self.compute)

    def _column(
        self,
        f: Function,
        y_row: Value,
        partial: Value,
        column: Int,
        *,
        factors: list[list[Value]],
        mask: Value | None,
    ) -> None:
        """One vector of the partial sums; the rows of the matrix are read in the lanes of the mask."""
        (k,) = self.problem.k
        memory, element = registers.memory_element(self.y_dtype), registers.memory_element(self.compute)
        here = f.at(y_row, column, memory)
        values = []
        for u in range(len(factors[0])):
            place = f.at(here, u * k.y, memory)
            if self.num_blocks > 1:  # its runs are too short for the processor to foresee the next
                f.prefetch(f.at(place, AHEAD_ROWS * k.y, memory))
            if mask is None:
                value = registers.load(f, place, self.y_dtype, self.lanes)
            else:
                value = registers.masked_load(f, place, self.y_dtype, mask, 0)
            values.append(self._wide(f, self.y_dtype, value))
        for i, row_factors in enumerate(factors):
            place = f.at(f.at(partial, column, element), i * self.row, element)
            total = registers.load(f, place, self.compute, self.lanes)
            for value, factor in zip(values, row_factors, strict=True):
                total = f.fma(value, factor, total)
            registers.store(f, total, place, self.compute)

    # --- the sum of the parts -----------------------------------------------------------------

    def _join(self) -> Function:
        f, (_, _, out, scratch) = self._start()
        size, step = self.problem.n.size, self.lanes * 16
        start = f.mul(f.parameters[1], step)
        stop = f.minimum(f.add(start, step), size)
        with f.loop(start, stop, self.lanes) as loop:
            rest = f.sub(size, loop.index)
            mask = None if size % self.lanes == 0 else f.first_lanes(rest, self.lanes)
            for i in range(self.problem.m.size):
                total = self._total(f, scratch, f.add(loop.index, i * self.row))
                memory = registers.memory_element(self.out_dtype)
                place = f.at(f.at(out, loop.index, memory), i * self.problem.m.out, memory)
                registers.store(f, registers.rounded(f, total, self.out_dtype), place, self.out_dtype, mask)
        return f

    def _total(self, f: Function, scratch: Value, place: Int) -> Value:
        element = registers.memory_element(self.compute)
        zero = registers.constant(f, 0, self.compute, self.lanes)
        with f.loop(0, self.num_parts, 1, [zero]) as loop:
            part = f.at(scratch, f.add(f.mul(loop.index, self.problem.m.size * self.row), place), element)
            loop.next = [f.binary("fadd", loop.carried[0], registers.load(f, part, self.compute, self.lanes))]
        return loop.results[0]
