"""A few rows times a large matrix that lies in memory row by row: read once, in order, at the speed of
memory.

Each task walks rows of the matrix for a part of k, and of n where there are several rows of x, so its reads
are long runs, and keeps its partial sums in the first-level cache; a second phase adds the partial sums in a
fixed order. Nothing of the matrix is packed: register blocks read a few rows of it at a time, and what comes
next is asked for while they compute. Packing first and computing then takes the sum of both times.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm import microkernel, operations, registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.contraction import Problem
from infini.compiler.llvm.microkernel import LINE_BYTES
from infini.compiler.llvm.packing import Packer, Source
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import I1, I64, PTR

MAX_ROWS = 16
MIN_BYTES = 4 << 20  # of the matrix; a smaller one stays in the cache and needs no such care
MAX_FAR_ROWS = 36  # when the matrix comes from memory, is wide, and has numbers of 32 bits or more
FAR_BYTES = 32 << 20
MIN_COLUMNS = 1024
TASK_BYTES = 2 << 20
MIN_TASKS = 8
MAX_DEPTH = 4096  # rows of the matrix whose products are added one after the other
PARTIAL_BYTES = 16 << 10
MIN_BLOCK = 1024  # columns per task, so that rows of the matrix are read in long runs
PAD = 144  # elements between rows of the partial sums
X_PAD = 16  # elements between rows of the copy of x
FEW_ROWS = 8  # of x, whose elements stay in registers while a group of rows of the matrix passes
GROUP = 8  # rows of the matrix per pass over the partial sums when x has more rows
AHEAD_ROWS = 8  # how much earlier rows of the matrix are asked for
NS_PER_BYTE = 0.05
NS_PER_FLOP = 0.008


def is_suited(problem: Problem, y_dtype: np.dtype) -> bool:
    """Whether a contraction is a few rows times one large matrix in row-major order."""
    (k,) = problem.k
    is_row_major = problem.n.y == 1 and k.y >= problem.n.size and (k.x == 1 or k.size == 1)
    nbytes = k.size * problem.n.size * y_dtype.itemsize
    is_far = nbytes >= FAR_BYTES and problem.n.size >= MIN_COLUMNS and y_dtype.itemsize >= 4
    return (
        not problem.batch
        and problem.m.size <= (MAX_FAR_ROWS if is_far else MAX_ROWS)
        and is_row_major
        and nbytes >= MIN_BYTES
    )


def is_best(problem: Problem, y_dtype: np.dtype) -> bool:
    """Whether nothing is gained when the matrix has been packed long before."""
    return problem.m.size <= FEW_ROWS and is_suited(problem, y_dtype)


def emit(
    problem: Problem,
    x_dtype: np.dtype,
    y_dtype: np.dtype,
    out_dtype: np.dtype,
    compute: np.dtype,
    target: Target,
) -> tuple[TaskFunction, ...]:
    """Two phases, with `args` x, y, result and scratch."""
    rows, vectors, lanes = microkernel.block_size(target, problem.m.size, compute)
    if problem.m.size <= FEW_ROWS:
        vectors = 1
    return _Emission(problem, x_dtype, y_dtype, out_dtype, compute, lanes, rows, vectors).phases()


@dataclass(frozen=True, slots=True)
class _Emission:
    problem: Problem
    x_dtype: np.dtype
    y_dtype: np.dtype
    out_dtype: np.dtype
    compute: np.dtype
    lanes: int
    rows: int  # of a register block
    vectors: int

    @property
    def group(self) -> int:
        """Rows of the matrix per pass over the partial sums."""
        m = self.problem.m.size
        return GROUP if m > FEW_ROWS else 2 if m > 4 else 4

    @property
    def panel(self) -> int:
        """Columns of a register block."""
        return self.vectors * self.lanes

    @property
    def block(self) -> int:
        """Columns per task: so few that their partial sums stay in the cache."""
        size = self.columns
        most = max(MIN_BLOCK, PARTIAL_BYTES // self.compute.itemsize // self.problem.m.size)
        count = -(-size // most)
        return min(-(-size // count // (self.panel * self.group)) * self.panel * self.group, size)

    @property
    def num_blocks(self) -> int:
        """Tasks of the first phase along n."""
        return -(-self.columns // self.block)

    @property
    def depth(self) -> int:
        """Rows of the matrix per task."""
        row_bytes = min(self.block, self.problem.n.size) * self.y_dtype.itemsize
        nbytes = min(
            TASK_BYTES, self.problem.k[0].size * self.problem.n.size * self.y_dtype.itemsize // MIN_TASKS
        )
        most = min(MAX_DEPTH, max(self.group, nbytes // row_bytes))
        parts = -(-self.problem.k[0].size // most)
        return -(-self.problem.k[0].size // parts // self.group) * self.group

    @property
    def num_parts(self) -> int:
        """Tasks of the first phase along k."""
        return -(-self.problem.k[0].size // self.depth)

    @property
    def columns(self) -> int:
        """Columns of the partial sums, a multiple of those of a register block."""
        return -(-self.problem.n.size // self.panel) * self.panel

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
        cost_ns = max(read * NS_PER_BYTE, problem.flops * NS_PER_FLOP)
        first = self._finish("stream", self._partial(), self.num_parts * self.num_blocks, cost_ns)
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
        k, m = self.problem.k[0], self.problem.m
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
        y = f.at(y, first, memory)
        start = f.mul(part, self.depth)
        copy = f.allocate(m.size * self.x_row * self.compute.itemsize)
        stop = f.minimum(f.add(start, self.depth), k.size) if self.num_parts > 1 else k.size
        self._copy_x(f, f.at(x, f.mul(start, k.x), registers.memory_element(self.x_dtype)), copy, start)
        length = f.sub(stop, start)
        groups = f.mul(f.divide(length, self.group)[0], self.group)
        y = f.at(y, f.mul(start, k.y), memory)
        with f.loop(0, groups, self.group) as loop:
            self._rows(f, copy, y, partial, loop.index, count=self.group, columns=(first, width))
        if k.size % self.group:
            with f.when(f.compare("slt", f.integer(groups), f.integer(length))):
                self._rows(f, copy, y, partial, groups, count=k.size % self.group, columns=(first, width))
        return f

    @property
    def x_row(self) -> int:
        """Elements from one row of the copy of x to the next: not a power of two, so that rows do not share
        sets of the cache.
        """
        return self.depth + X_PAD

    def _copy_x(self, f: Function, x: Value, copy: Value, start: Int) -> None:
        """The part of x that a task needs, converted."""
        (k,), m = self.problem.k, self.problem.m
        packer = Packer(Source(self.x_dtype, 1, m.x), self.x_row, self.lanes, self.compute)
        rest = k.size % self.depth
        if self.num_parts == 1 or not rest:
            packer.rows(f, x, copy, m.size, min(self.depth, k.size))
            return
        is_last = f.compare("eq", f.integer(start), f.integer(k.size - rest))
        with f.when(f.binary("xor", is_last, f.constant(True, I1))):
            packer.rows(f, x, copy, m.size, self.depth)
        with f.when(is_last):
            packer.rows(f, x, copy, m.size, rest)

    def _rows(
        self, f: Function, x: Value, y: Value, partial: Value, row: Int, *, count: int,
        columns: tuple[Int, Int],
    ) -> None:  # fmt: skip
        """Add `count` rows of the matrix, each times an element of every row of x, in some columns."""
        (k,), size = self.problem.k, self.problem.n.size
        y_row = f.at(y, f.mul(row, k.y), registers.memory_element(self.y_dtype))
        x = f.at(x, row, registers.memory_element(self.compute))
        # With few rows of x their elements stay in registers.
        m = self.problem.m.size
        factors = self._factors(f, x, m, count) if m <= FEW_ROWS else None
        first, width = columns
        rest = size % self.panel
        whole: Int = width
        if rest:
            whole = f.minimum(f.sub(size - rest, first), width)
        with f.loop(0, whole, self.panel) as loop:
            self._panel(f, (x, y_row, partial), loop.index, factors, count=count, width=self.panel)
        if rest:
            with f.when(f.compare("slt", f.integer(whole), f.integer(width))):
                self._panel(f, (x, y_row, partial), whole, factors, count=count, width=rest)

    def _factors(self, f: Function, x: Value, rows: int, count: int) -> list[list[Value]]:
        """Elements of some rows of x, for each row of the matrix, in every lane."""
        element = registers.memory_element(self.compute)
        places = [[f.at(x, i * self.x_row + u, element) for u in range(count)] for i in range(rows)]
        return [[f.splat(registers.load(f, p, self.compute, 1), self.lanes) for p in line] for line in places]

    def _panel(
        self, f: Function, pointers: tuple[Value, Value, Value], column: Int,
        factors: list[list[Value]] | None, *, count: int, width: int,
    ) -> None:  # fmt: skip
        """Some columns of all rows of the partial sums, in blocks of registers."""
        x, y_row, partial = pointers
        memory, element = registers.memory_element(self.y_dtype), registers.memory_element(self.compute)
        y_here, there = f.at(y_row, column, memory), f.at(partial, column, element)
        if self.num_blocks > 1:  # its runs are too short for the processor to foresee the next
            self._ask(f, y_row, column, count)
        if factors is not None:
            self._block(f, y_here, there, factors, width)
            return
        size = self.problem.m.size
        whole = size // self.rows * self.rows
        with f.loop(0, whole, self.rows) as loop:
            here = f.at(x, f.mul(loop.index, self.x_row), element)
            own = f.at(there, f.mul(loop.index, self.row), element)
            self._block(f, y_here, own, self._factors(f, here, self.rows, count), width)
        if whole < size:
            here = f.at(x, whole * self.x_row, element)
            own = f.at(there, whole * self.row, element)
            self._block(f, y_here, own, self._factors(f, here, size - whole, count), width)

    def _ask(self, f: Function, y_row: Value, column: Int, count: int) -> None:
        """Ask for what comes some rows later: the same columns, or, where a group of rows is wide, a long run
        of one of its rows, so that all panels of a pass ask for all of the next group.
        """
        memory, k = registers.memory_element(self.y_dtype), self.problem.k[0]
        line = LINE_BYTES // self.y_dtype.itemsize
        if self.problem.m.size <= FEW_ROWS:
            for u in range(count):
                here = f.at(f.at(y_row, column, memory), (AHEAD_ROWS + u) * k.y, memory)
                for start in range(0, self.panel, line):
                    f.prefetch(f.at(here, start, memory))
            return
        run = self.group * self.panel
        row, piece = f.divide(f.divide(column, self.panel)[0], max(1, self.block // run))
        here = f.at(y_row, f.mul(f.add(row, AHEAD_ROWS), k.y), memory)
        here = f.at(here, f.mul(piece, run), memory)
        for start in range(0, run, line):
            f.prefetch(f.at(here, start, memory))

    def _block(self, f: Function, y: Value, partial: Value, factors: list[list[Value]], width: int) -> None:
        """Add the products of some rows of x and of the matrix to a block of the sums."""
        memory, element = registers.memory_element(self.y_dtype), registers.memory_element(self.compute)
        starts = range(0, width, self.lanes)
        places = [[f.at(partial, i * self.row + at, element) for at in starts] for i in range(len(factors))]
        sums = [[registers.load(f, place, self.compute, self.lanes) for place in line] for line in places]
        for u in range(len(factors[0])):
            row = f.at(y, u * self.problem.k[0].y, memory)
            values = [self._load_y(f, f.at(row, at, memory), width - at) for at in starts]
            for i, line in enumerate(factors):
                sums[i] = [f.fma(line[u], value, total) for value, total in zip(values, sums[i], strict=True)]
        for line, totals in zip(places, sums, strict=True):
            for place, total in zip(line, totals, strict=True):
                registers.store(f, total, place, self.compute)

    def _load_y(self, f: Function, place: Value, width: int) -> Value:
        """A vector of the matrix, of which `width` numbers are there."""
        if width >= self.lanes:
            value = registers.load(f, place, self.y_dtype, self.lanes)
        else:
            value = registers.masked_load(f, place, self.y_dtype, f.first_lanes(width, self.lanes), 0)
        return operations.convert(f, self.y_dtype, value, new_dtype=self.compute)

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
