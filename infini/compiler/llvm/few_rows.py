"""A few rows times a large matrix in which k is contiguous, the layout of PyTorch's weights: inner products,
the matrix read once, in order, at the speed of memory.

A task takes rows of the matrix a few at a time and keeps their products with every row of x in registers, so
each number of the matrix is loaded once, and each of x once per group. Where the processor multiplies pairs
of bfloat16, numbers stay as they are in memory.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm import operations, pairs, registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.contraction import Problem
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import I64, PTR, vector
from infini.core import dtypes

MAX_ROWS = 8
MIN_BYTES = 1 << 20  # of the matrix; a smaller one stays in the cache, where packing it is cheap
MAX_X_BYTES = 512 << 10  # of x, which stays in the cache while the matrix passes by
TASK_BYTES = 512 << 10
AHEAD_BYTES = 1 << 10  # of each row that are asked for before they are read
FAR_AHEAD_BYTES = 1 << 12  # the same where rows are read one after the other
MAX_GROUP = 4  # rows of the matrix at a time, each a stream for the processor to follow
CHAINS = 4  # sums of a single row of x and of the matrix
NS_PER_BYTE = 0.05


def is_suited(problem: Problem, x_dtype: np.dtype, y_dtype: np.dtype) -> bool:
    """Whether a contraction is a few rows times one large matrix with contiguous k. A single row is one of
    them where the matrix has numbers of 16 bits; others are streamed.
    """
    (k,) = problem.k
    least = 1 if y_dtype.itemsize == 2 else 2
    return (
        not problem.batch
        and least <= problem.m.size <= MAX_ROWS
        and k.x == k.y == 1
        and problem.n.y >= k.size
        and k.size * problem.n.size * y_dtype.itemsize >= MIN_BYTES
        and k.size * problem.m.size * x_dtype.itemsize <= MAX_X_BYTES
    )


def _has_pairs(problem: Problem, x_dtype: np.dtype, y_dtype: np.dtype, target: Target) -> bool:
    """Whether numbers are multiplied in pairs as they lie in memory."""
    (k,) = problem.k
    is_even = not any(n % 2 for n in (k.size, problem.m.x, problem.n.y))
    return is_even and pairs.is_paired_kind(x_dtype, y_dtype, target)


def emit(
    problem: Problem,
    x_dtype: np.dtype,
    y_dtype: np.dtype,
    out_dtype: np.dtype,
    compute: np.dtype,
    target: Target,
) -> tuple[TaskFunction, ...]:
    """One phase, with `args` x, y and result."""
    has_pairs = compute == dtypes.float32 and _has_pairs(problem, x_dtype, y_dtype, target)
    lanes = target.lanes * 4 // compute.itemsize
    # Registers for the sums; the others hold the group's numbers of the matrix and one of x.
    room = 24 if target.num_registers >= 32 else 10
    # A single row of x is read again for every row of the matrix: that costs less than following several.
    group = max(1, min(MAX_GROUP, room // problem.m.size)) if problem.m.size > 1 else 1
    return _Emission(problem, x_dtype, y_dtype, out_dtype, compute, lanes, group, has_pairs).phases()


@dataclass(frozen=True, slots=True)
class _Emission:
    problem: Problem
    x_dtype: np.dtype
    y_dtype: np.dtype
    out_dtype: np.dtype
    compute: np.dtype
    lanes: int
    group: int
    has_pairs: bool

    @property
    def width(self) -> int:
        """Numbers along k that a register holds."""
        return self.lanes * (2 if self.has_pairs else 1)

    def phases(self) -> tuple[TaskFunction, ...]:
        """The only phase."""
        (k,), n = self.problem.k, self.problem.n
        row_bytes = k.size * self.y_dtype.itemsize
        count = max(1, TASK_BYTES // row_bytes // self.group) * self.group
        f = Function("TASK", [(PTR, "args"), (I64, "task")])
        order = (1, 0, 2) if self.problem.is_swapped else (0, 1, 2)
        x, y, out = (f.load(f.at(f.parameters[0], i, "ptr"), PTR, is_invariant=True) for i in order)
        first = f.mul(f.parameters[1], count)
        stop = f.minimum(f.add(first, count), n.size)
        whole = f.minimum(f.add(first, count), n.size // self.group * self.group)
        with f.loop(first, whole, self.group) as loop:
            self._rows(f, (x, y, out), loop.index, self.group)
        if n.size % self.group:
            with f.loop(whole, stop) as loop:
                self._rows(f, (x, y, out), loop.index, 1)
        text = f.finish()
        name = f"rows_{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"
        text = text.replace("@TASK", f"@{name}")
        cost = row_bytes * n.size * NS_PER_BYTE
        return (TaskFunction(name, text, frozenset(f.declares), -(-n.size // count), 0, cost),)

    def _rows(self, f: Function, pointers: tuple[Value, Value, Value], row: Int, count: int) -> None:
        """The products of `count` rows of the matrix with all rows of x."""
        (k,), m, n = self.problem.k, self.problem.m, self.problem.n
        x, y, out = pointers
        y = f.at(y, f.mul(row, n.y), registers.memory_element(self.y_dtype))
        zero = registers.constant(f, 0, self.compute, self.lanes)
        size = m.size * count
        whole = k.size // self.width * self.width
        # A single sum would wait for itself: several in turn, which are added at the end.
        chains = max(1, CHAINS // size)
        turn = chains * self.width
        stop = k.size // turn * turn
        with f.loop(0, stop, turn, [zero] * (size * chains)) as loop:
            found = []
            for i in range(chains):
                place = f.add(loop.index, i * self.width)
                found += self._step(f, (x, y), place, loop.carried[i * size : (i + 1) * size], None)
            loop.next = found
        sums = loop.results[:size]
        for i in range(size, size * chains):
            sums[i % size] = f.binary("fadd", sums[i % size], loop.results[i])
        for start in range(stop, whole, self.width):
            sums = self._step(f, (x, y), start, sums, None)
        if whole < k.size:
            rest = (k.size - whole) * self.lanes // self.width
            sums = self._step(f, (x, y), whole, sums, f.first_lanes(rest, self.lanes))
        memory = registers.memory_element(self.out_dtype)
        for i in range(m.size):
            for j in range(count):
                total = registers.rounded(f, self._total(f, sums[i * count + j]), self.out_dtype)
                place = f.at(f.at(out, f.mul(f.add(row, j), n.out), memory), i * m.out, memory)
                registers.store(f, total, place, self.out_dtype)

    def _step(
        self, f: Function, pointers: tuple[Value, Value], place: Int, sums: list[Value], mask: Value | None
    ) -> list[Value]:
        """Add the products of the next numbers of every row."""
        m, n, sums = self.problem.m, self.problem.n, list(sums)
        count = len(sums) // m.size
        x, y = pointers
        y_memory = registers.memory_element(self.y_dtype)
        here = f.at(y, place, y_memory)
        rows = []
        for j in range(count):
            source = f.at(here, j * n.y, y_memory)
            ahead = AHEAD_BYTES if self.group > 1 else FAR_AHEAD_BYTES
            f.prefetch(f.at(source, ahead // self.y_dtype.itemsize, y_memory))
            rows.append(self._load(f, source, self.y_dtype, mask))
        x_memory = registers.memory_element(self.x_dtype)
        for i in range(m.size):
            one = self._load(f, f.at(f.at(x, place, x_memory), i * m.x, x_memory), self.x_dtype, mask)
            for j in range(count):
                sums[i * count + j] = self._added(f, one, rows[j], sums[i * count + j])
        return sums

    def _added(self, f: Function, x: Value, y: Value, total: Value) -> Value:
        if not self.has_pairs:
            return f.fma(x, y, total)
        both = vector("bfloat", 2 * self.lanes)
        symbol = f"@llvm.x86.avx512bf16.dpbf16ps.{32 * self.lanes}"
        f.declare(f"declare {total.type} {symbol}({total.type}, {both}, {both})")
        a, b = (f.convert("bitcast", v, both) for v in (x, y))
        text = f"call {total.type} {symbol}({total.type} {total}, {both} {a}, {both} {b})"
        return f.pure(text, total.type, total, a, b)

    def _load(self, f: Function, place: Value, dtype: np.dtype, mask: Value | None) -> Value:
        if self.has_pairs:
            words = vector("i32", self.lanes)
            if mask is None:
                return f.load(place, words, align=2)
            return f.masked_load(place, mask, f.constant(0, words))
        if mask is None:
            x = registers.load(f, place, dtype, self.lanes)
        else:
            x = registers.masked_load(f, place, dtype, mask, 0)
        return operations.convert(f, dtype, x, new_dtype=self.compute)

    def _total(self, f: Function, x: Value) -> Value:
        """The sum of the lanes, by halves."""
        one, symbol = x.type.with_lanes(1), f"@llvm.vector.reduce.fadd.v{x.type.lanes}f{x.type.bits}"
        f.declare(f"declare {one} {symbol}({one}, {x.type})")
        nothing = f.constant(-0.0, one)
        return f.pure(f"call reassoc {one} {symbol}({one} {nothing}, {x.type} {x})", one, x)
