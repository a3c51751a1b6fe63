"""Reductions of columns that walk the rows as they lie in memory, alone or in the wake of a kernel of rows.

A column is far apart in memory, so rows are taken one after the other and added to partial results, one row
of them per block of rows; a second task function joins those in a fixed order. A kernel of rows that has just
read (or made) what is reduced can be followed row by row, while the row is in the cache: the gradients of a
normalisation's input, weight and bias then read everything once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from infini.compiler.llvm import accumulators, columns, kernels
from infini.compiler.llvm.accumulators import Accumulator
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.columns import Columns
from infini.compiler.llvm.evaluate import Evaluator, Operand
from infini.compiler.llvm.indexing import Index
from infini.compiler.llvm.nests import Lane
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import BYTES, I64, PTR
from infini.core.ir import ArrayType, Equation
from infini.tile.program import Kernel

BLOCK_ROWS: Final = 32  # rows that are added one after the other
MIN_BLOCKS: Final = 8
GROUP_ROWS: Final = 4  # rows that are joined before they are added to partial results
UNROLL: Final = 2  # vectors along a row that are in hand at once
JOIN_UNROLL: Final = 4
PARTIAL: Final = 16  # partial results that are joined one after the other
JOIN_NS: Final = 0.05  # of one partial result


Turn: TypeAlias = Callable[[Value, list[Value]], list[Value]]  # the totals after a turn of a loop


@dataclass(frozen=True, slots=True)
class Rider:
    """Columns to reduce.

    Args:
        columns: what is reduced.
        arguments: which arguments of the task functions are its operands and then its results.
        is_before: whether a row is reduced before the leader has run for it, as what it may overwrite has to
            be.
    """

    columns: Columns
    arguments: tuple[int, ...]
    is_before: bool = False


@dataclass(frozen=True, slots=True)
class Leader:
    """A kernel of which program `i` is what belongs to row `i`, and the types of its operands."""

    kernel: Kernel
    in_types: tuple[ArrayType, ...]


def emit(
    riders: Sequence[Rider],
    leader: Leader | None,
    num_arguments: int,
    target: Target,
    name: str,
    leader_ns: float = 0.0,
) -> tuple[TaskFunction, ...]:
    """Task functions that reduce columns.

    Args:
        riders: columns of equally many rows.
        leader: what runs for each row when that is reduced; its operands and results are the first
            arguments of each kind.
        num_arguments: operands and results of the phase; the scratch memory comes after them.
        target: processor to make code for.
        name: for people.
        leader_ns: estimated time of the leader.
    """
    return _Writer(riders, leader, num_arguments, target, name, leader_ns).run()


@dataclass(frozen=True, slots=True)
class _Partial:
    """Partial results of a reduction: where they are in the scratch memory, one row per block."""

    equation: Equation
    kind: Accumulator
    offset: int
    stride: int  # elements from row to row

    @property
    def element(self) -> str:
        return columns.element(self.equation)


@dataclass(frozen=True, slots=True)
class _Ride:
    """Columns that are being reduced: who evaluates, and where results go."""

    columns: Columns
    partials: Sequence[_Partial]
    evaluator: Evaluator
    stores: Sequence[Operand]
    is_before: bool

    def vectors(self, rows: Sequence[Int], lane: Lane) -> list[list[Value]]:
        """What each reduction takes from some columns of some rows; results that have rows are stored."""
        e, results, first = self.evaluator, self.columns.plan.body.results, self.columns.plan.passes[0]
        e.mask = lane.mask
        at = [(Index(row), lane.place) for row in rows]
        values = [[e.vector(p.equation.inputs[0], place) for place in at] for p in self.partials]
        written = [[e.vector(results[n], place) for place in at] for n in first.stores]
        for n, vectors in zip(first.stores, written, strict=True):
            for place, value in zip(at, vectors, strict=True):
                self.stores[n].store(e, place, value)
        e.mask = None
        return values


class _Writer:
    def __init__(
        self,
        riders: Sequence[Rider],
        leader: Leader | None,
        num_arguments: int,
        target: Target,
        name: str,
        leader_ns: float,
    ) -> None:
        self.riders, self.leader, self.num_arguments, self.target = riders, leader, num_arguments, target
        self.name = "".join(c if c.isalnum() else "_" for c in name)[:40]
        self.rows, self.outer = riders[0].columns.rows, riders[0].columns.outer
        self.block_rows = min(BLOCK_ROWS, self.rows, max(1, self.outer * self.rows // MIN_BLOCKS))
        self.each = -(-self.rows // self.block_rows)  # blocks of an array
        self.num_blocks = self.outer * self.each
        self.row_ns = leader_ns / (self.outer * self.rows) + sum(_row_ns(r.columns, target) for r in riders)
        total_ns = self.row_ns * self.outer * self.rows
        wanted = max(1, round(kernels.task_ns(total_ns) / (self.row_ns * self.block_rows)))
        self.per_task = min(wanted, max(1, self.num_blocks // MIN_BLOCKS))
        self.num_tasks = -(-self.num_blocks // self.per_task)
        self.partial_bytes = 0
        self.partials = [[self._partial(r.columns, e) for e in r.columns.reductions] for r in riders]

    def _partial(self, what: Columns, equation: Equation) -> _Partial:
        kind = accumulators.accumulator(equation)
        assert isinstance(kind, Accumulator)
        stride = -(-what.width // 64) * 64  # whole vectors
        found = _Partial(equation, kind, self.partial_bytes, stride)
        self.partial_bytes += self.num_blocks * stride * BYTES[columns.element(equation)]
        return found

    def run(self) -> tuple[TaskFunction, ...]:
        rows, slot_bytes = self._rows()
        joined, num_joins, join_ns = self._joins()
        scratch = self.partial_bytes + slot_bytes * self.num_tasks
        return (
            self._task(rows, self.num_tasks, scratch, self.row_ns * self.outer * self.rows, slot_bytes),
            self._task(joined, num_joins, scratch, join_ns),
        )

    def _task(
        self, f: Function, num_tasks: int, scratch: int, cost_ns: float, slot_bytes: int = 0
    ) -> TaskFunction:
        text = f.finish().replace("@SLOT@", str(slot_bytes))
        name = f"{self.name}_{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"
        return TaskFunction(
            name, text.replace("@NAME@", name), frozenset(f.declares), num_tasks, scratch, cost_ns
        )

    def _function(self) -> tuple[Function, list[Value]]:
        """A task function, and pointers to its arguments with the scratch memory last."""
        f = Function("@NAME@", [(PTR, "args"), (I64, "task")])
        pointers = [
            f.load(f.at(f.parameters[0], i, "ptr"), PTR, is_invariant=True)
            for i in range(self.num_arguments + 1)
        ]
        return f, pointers

    def _evaluator(self, f: Function, rider: Rider, pointers: Sequence[Value], array: Int) -> Evaluator:
        kernel, params = rider.columns.kernel, rider.columns.kernel.body.params
        types = rider.columns.in_types
        loads = [
            Operand(pointers[i], type_, access)
            for i, type_, access in zip(rider.arguments, types, kernel.loads, strict=False)
        ]
        evaluator = Evaluator(
            f,
            rider.columns.plan.definitions,
            kernel.grid,
            rider.columns.program_ids(array),
            dict(zip(params, loads, strict=False)),
            dict(kernel.body.consts),
            allocate=f.allocate,
        )
        evaluator.lanes = self.target.lanes
        return evaluator

    def _stores(self, rider: Rider, pointers: Sequence[Value]) -> list[Operand]:
        kernel = rider.columns.kernel
        places = rider.arguments[len(kernel.loads) :]
        return [
            Operand(pointers[i], type_, access)
            for i, type_, access in zip(places, kernel.outputs, kernel.stores, strict=True)
        ]

    # --- rows ---------------------------------------------------------------------------------

    def _rows(self) -> tuple[Function, int]:
        """The function that adds rows to partial results, and the bytes that each task has for itself."""
        f, pointers = self._function()
        scratch = pointers[-1]
        first = f.mul(f.parameters[1], self.per_task)
        last = f.minimum(f.add(first, self.per_task), self.num_blocks)
        slots = _Slots(f, f.at(scratch, self.partial_bytes, "i8"))
        with f.loop(first, last, runs=True) as block:
            array, part = f.divide(block.index, self.each) if self.outer > 1 else (0, block.index)
            start = f.mul(part, self.block_rows)
            stop: Int = f.add(start, self.block_rows)
            if self.rows % self.block_rows:
                stop = f.minimum(stop, self.rows)
            rides = [
                _Ride(
                    rider.columns,
                    partials,
                    self._evaluator(f, rider, pointers, array),
                    self._stores(rider, pointers),
                    rider.is_before,
                )
                for rider, partials in zip(self.riders, self.partials, strict=True)
            ]
            for ride in rides:
                self._clear(f, scratch, ride, block.index)
            if self.leader is None:
                whole = f.add(start, f.mul(f.divide(f.sub(stop, start), GROUP_ROWS)[0], GROUP_ROWS))
                with f.loop(start, whole, GROUP_ROWS) as row:
                    group = [f.add(row.index, i) for i in range(GROUP_ROWS)]
                    self._add(f, scratch, rides, block.index, group)
                with f.loop(whole, stop) as row:
                    self._add(f, scratch, rides, block.index, [row.index])
            else:
                with f.loop(start, stop, runs=True) as row:
                    self._add(f, scratch, [r for r in rides if r.is_before], block.index, [row.index])
                    number = f.add(f.mul(array, self.rows), row.index)
                    self._lead(f, pointers, slots, f.integer(number))
                    self._add(f, scratch, [r for r in rides if not r.is_before], block.index, [row.index])
        return f, slots.nbytes

    def _lead(self, f: Function, pointers: Sequence[Value], slots: _Slots, row: Value) -> None:
        assert self.leader is not None
        kernel, types = self.leader.kernel, self.leader.in_types
        reads = pointers[: len(types)]
        start = self._first_output()
        writes = pointers[start : start + len(kernel.outputs)]
        kernels.emit_program(
            f, kernel, types, self.target, pointers=[*reads, *writes], program=row, allocate=slots.allocate
        )

    def _first_output(self) -> int:
        """Where the results begin among the arguments: after every operand."""
        assert self.leader is not None
        found = self.num_arguments - len(self.leader.kernel.outputs)
        return found - sum(len(r.columns.kernel.outputs) for r in self.riders)

    def _place(self, f: Function, scratch: Value, partial: _Partial, block: Int, column: Int) -> Value:
        start = f.at(scratch, partial.offset, "i8")
        return f.at(f.at(start, f.mul(block, partial.stride), partial.element), column, partial.element)

    def _clear(self, f: Function, scratch: Value, ride: _Ride, block: Int) -> None:
        lanes = self.target.lanes
        with f.loop(0, ride.partials[0].stride, lanes, runs=True) as column:
            for partial in ride.partials:
                place = self._place(f, scratch, partial, block, column.index)
                f.store(partial.kind.start(f, lanes)[0], place)

    def _add(
        self, f: Function, scratch: Value, rides: Sequence[_Ride], block: Int, rows: Sequence[Int]
    ) -> None:
        """Add some rows to the partial results of a block, and store what is computed in full."""
        for ride in rides:
            ride.evaluator.turn += 1
            width = ride.columns.width
            for lanes in self._vectors(f, 0, width, UNROLL, size=width):
                for lane in lanes:
                    vectors = ride.vectors(rows, lane)
                    for partial, several in zip(ride.partials, vectors, strict=True):
                        kind = partial.kind
                        if lane.mask is not None:
                            nothing = kind.start(f, self.target.lanes)[0]
                            several = [f.select(lane.mask, x, nothing) for x in several]
                        (joined,) = accumulators.tree(f, kind, [(x,) for x in several])
                        place = self._place(f, scratch, partial, block, lane.place.base)
                        before = f.load(place, joined.type)
                        f.store(kind.join(f, (before,), (joined,))[0], place)

    def _vectors(
        self, f: Function, start: Int, stop: Int, unroll: int, *, size: int
    ) -> Iterator[Sequence[Lane]]:
        """Blocks of vectors of `range(start, stop)`, each inside its loop; `size` is a multiple of which the
        difference is when it is not known.
        """
        lanes = self.target.lanes
        step = lanes * unroll
        if isinstance(start, int) and isinstance(stop, int):
            whole = start + (stop - start) // step * step
            if whole > start:
                with f.loop(start, whole, step, runs=True) as loop:
                    yield [Lane(Index(f.add(loop.index, u * lanes), 1)) for u in range(unroll)]
            for at in range(whole, stop, lanes):
                mask = None if at + lanes <= stop else f.first_lanes(stop - at, lanes)
                yield [Lane(Index(at, 1), mask)]
            return
        assert size % step == 0
        with f.loop(start, stop, step, runs=True) as loop:
            yield [Lane(Index(f.add(loop.index, u * lanes), 1)) for u in range(unroll)]

    # --- joining ------------------------------------------------------------------------------

    def _joins(self) -> tuple[Function, int, float]:
        """The function that joins partial results, its number of tasks and estimated time."""
        f, pointers = self._function()
        first, total_ns = 0, 0.0
        for rider, partials in zip(self.riders, self.partials, strict=True):
            cost_ns = self.num_blocks * rider.columns.width * len(partials) * JOIN_NS
            total_ns += cost_ns
            task = f.sub(f.parameters[1], first)
            parts = self._arrays if self.outer > 1 else self._chunks
            count = parts(f, task, cost_ns, rider, partials, pointers)
            first += count
        return f, first, total_ns

    def _arrays(
        self, f: Function, task: Int, cost_ns: float, rider: Rider, partials: Sequence[_Partial],
        pointers: Sequence[Value],
    ) -> int:  # fmt: skip
        """Tasks that each join some whole arrays; how many."""
        wanted = max(1, round(self.outer * kernels.task_ns(cost_ns) / cost_ns))
        size = self.outer if cost_ns < kernels.ALONE_NS else min(wanted, self.outer)
        count, width = -(-self.outer // size), rider.columns.width
        start = f.mul(task, size)
        with f.when(f.compare("ult", f.integer(task), f.integer(count))):
            stop = f.minimum(f.add(start, size), self.outer)
            with f.loop(start, stop, runs=True) as array:
                columns = self._vectors(f, 0, width, JOIN_UNROLL, size=width)
                self._join(f, pointers, rider, partials, columns, array.index)
        return count

    def _chunks(
        self, f: Function, task: Int, cost_ns: float, rider: Rider, partials: Sequence[_Partial],
        pointers: Sequence[Value],
    ) -> int:  # fmt: skip
        """Tasks that each join some columns of the only array; how many."""
        width, unit = rider.columns.width, self.target.lanes * JOIN_UNROLL
        chunk = width
        if cost_ns >= kernels.ALONE_NS:
            chunk = min(width, max(1, round(width * kernels.task_ns(cost_ns) / cost_ns / unit)) * unit)
        whole = width // chunk
        with f.when(f.compare("ult", f.integer(task), f.integer(whole))):
            first: Int = f.mul(task, chunk) if whole > 1 else 0
            columns = self._vectors(f, first, f.add(first, chunk), JOIN_UNROLL, size=chunk)
            self._join(f, pointers, rider, partials, columns, 0)
        if width % chunk:
            with f.when(f.compare("eq", f.integer(task), f.integer(whole))):
                columns = self._vectors(f, whole * chunk, width, JOIN_UNROLL, size=width)
                self._join(f, pointers, rider, partials, columns, 0)
        return -(-width // chunk)

    def _join(
        self,
        f: Function,
        pointers: Sequence[Value],
        rider: Rider,
        partials: Sequence[_Partial],
        columns: Iterable[Sequence[Lane]],
        array: Int,
    ) -> None:
        evaluator = self._evaluator(f, rider, pointers, array)
        stores, results = self._stores(rider, pointers), rider.columns.plan.body.results
        for lanes in columns:
            places = [lane.place.base for lane in lanes]
            states = self._total(f, pointers[-1], partials, places, f.mul(array, self.each))
            for lane, state in zip(lanes, states, strict=True):
                evaluator.mask = lane.mask
                evaluator.turn += 1
                for partial, value in zip(partials, state, strict=True):
                    evaluator.registers[partial.equation.output] = partial.kind.finish(f, (value,))
                for p in rider.columns.plan.passes[1:]:
                    at = (lane.place,)
                    written = [evaluator.vector(results[n], at) for n in p.stores]
                    for n, value in zip(p.stores, written, strict=True):
                        stores[n].store(evaluator, at, value)

    def _total(
        self, f: Function, scratch: Value, partials: Sequence[_Partial], columns: Sequence[Int], first: Int
    ) -> list[list[Value]]:
        """Of each vector of columns, every reduction; `first` is the first block of the array."""
        lanes = self.target.lanes

        def nothing() -> list[Value]:
            return [p.kind.start(f, lanes)[0] for _ in columns for p in partials]

        def turn(block: Value, totals: list[Value]) -> list[Value]:
            found = []
            for number, column in enumerate(columns):
                for k, partial in enumerate(partials):
                    before = totals[number * len(partials) + k]
                    place = self._place(f, scratch, partial, f.add(first, block), column)
                    x = f.load(place, before.type)
                    found.append(partial.kind.join(f, (x,), (before,))[0])
            return found

        def joined(a: Sequence[Value], b: Sequence[Value]) -> list[Value]:
            kinds = [p.kind for _ in columns for p in partials]
            return [kind.join(f, (x,), (y,))[0] for kind, x, y in zip(kinds, a, b, strict=True)]

        def plain(start: Int, stop: Int, step: int, turn: Turn) -> list[Value]:
            with f.loop(start, stop, step, nothing(), runs=True) as loop:
                loop.next = turn(loop.index, loop.carried)
            return loop.results

        def walk(step: int, turn: Turn) -> list[Value]:
            if self.each <= 2 * PARTIAL * step:
                return plain(0, self.each, step, turn)
            part = step * PARTIAL

            def partial(at: Value, totals: list[Value]) -> list[Value]:
                last = f.minimum(f.add(at, part), self.each)
                return joined(plain(at, last, step, turn), totals)

            return walk(part, partial)

        values = walk(1, turn)
        return [values[i : i + len(partials)] for i in range(0, len(values), len(partials))]


def _row_ns(columns: Columns, target: Target) -> float:
    """Estimated time of reducing one row."""
    read = sum(
        columns.width * t.dtype.itemsize
        for t, access in zip(columns.in_types, columns.kernel.loads, strict=False)
        if len(access.tile) == 2
    )
    weight = columns.plan.weights[0] + 2
    return columns.width / target.lanes * weight * kernels.INSTRUCTION_NS + read * kernels.BYTE_NS


class _Slots:
    """Memory that each task has for itself: on the stack while it is small, else in the scratch memory."""

    def __init__(self, f: Function, start: Value) -> None:
        self.f, self.start, self.nbytes, self.stack_bytes = f, start, 0, 0

    def allocate(self, nbytes: int) -> Value:
        rounded = -(-nbytes // 64) * 64
        if self.stack_bytes + rounded <= kernels.MAX_STACK_BYTES:
            self.stack_bytes += rounded
            return self.f.allocate(nbytes)
        offset, self.nbytes = self.nbytes, self.nbytes + rounded
        task = self.f.parameters[1]
        slot = self.f.pure(f"mul i64 {task}, @SLOT@", I64, task)
        return self.f.at(self.f.at(self.start, slot, "i8"), offset, "i8")
