"""Loop nests of passes: which dimension is the vector, unrolling, tails, and accumulators of reductions.

Kept dimensions are the outer loops, reduced ones the inner. When the vector dimension is kept, its vectors
stay in registers while the reduced dimensions stream by; when it is reduced, several accumulators hide the
latency and are joined at the end in a fixed order, so results depend on shapes only.

The error of a sum of n floats, one after the other, grows with n. Long loops therefore add up partial sums,
and those partial sums of theirs, so that it grows with log(n), as in pairwise summation (N. Higham, The
accuracy of floating point summation, 1993).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from infini.compiler.llvm import accumulators
from infini.compiler.llvm.accumulators import State
from infini.compiler.llvm.builder import Int, Value
from infini.compiler.llvm.evaluate import Buffer, Evaluator
from infini.compiler.llvm.indexing import ZERO, Index
from infini.compiler.llvm.schedule import Pass
from infini.core import ir
from infini.core.ir import Equation
from infini.lax import positions

STRAIGHT_LINE = 2  # turns of a vector loop that are written out instead
LONG_SUM: Final = 32  # turns of a loop above which it adds up partial sums
PARTIAL_SUM: Final = 16  # turns of each of them


class StoreTarget(Protocol):
    """Where a result goes: an array or a buffer."""

    def store(self, evaluator: Evaluator, index: Sequence[Index], x: Value) -> None:
        """Store elements of the result."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One vector of the vector dimension: where it starts, and its active lanes."""

    place: Index
    mask: Value | None = None


Vectors: TypeAlias = tuple[int, Sequence[Lane]]  # the vector dimension and the vectors in hand
States: TypeAlias = list[list[State]]  # of each reduction, of each vector
Turn: TypeAlias = Callable[[Value, States], States]  # the states after the turn of a loop at an index


@dataclass(frozen=True, slots=True)
class Shape:
    """How the nest of a pass is laid out."""

    vector: int | None  # the vector dimension
    lanes: int
    unroll: int


def layout(p: Pass, weight: int, lanes: int, contiguity: Callable[[int], int]) -> Shape:
    """Choose vector dimension and unrolling; `contiguity` scores a dimension by its accesses."""
    candidates = [d for d, n in enumerate(p.space) if n > 1]
    if not candidates:
        return Shape(None, 1, 1)
    vector = max(candidates, key=lambda d: (p.space[d] >= lanes, contiguity(d), d))
    size = p.space[vector]
    while lanes // 2 >= size:
        lanes //= 2
    unroll = 4 if weight <= 12 else 2 if weight <= 30 else 1
    if p.reductions and len(p.reductions) * unroll < 4:
        unroll = 2
    if p.axes is not None and vector not in p.axes and weight <= 12:
        unroll = 8
    return Shape(vector, lanes, max(1, min(unroll, -(-size // lanes))))


class Nest:
    """Emits one pass.

    Args:
        evaluator: evaluates the values of the body.
        p: the pass.
        shape: its layout.
        stores: where each result goes.
        results: variable of each result.
        limit: number of elements of the vector dimension, when it is known at run time only.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        p: Pass,
        shape: Shape,
        stores: Sequence[StoreTarget],
        results: Sequence[ir.Var],
        limit: Int | None = None,
    ) -> None:
        self.e, self.f = evaluator, evaluator.f
        self.p, self.shape, self.stores, self.results = p, shape, stores, results
        self.axes = p.axes or frozenset()
        self.kinds = [accumulators.accumulator(equation) for equation in p.reductions]
        self.buffers: dict[ir.Var, Buffer] = {}
        self.limit = limit

    def emit(self) -> None:
        """Write the nest."""
        self.e.lanes, self.e.mask = self.shape.lanes, None
        buffers = {var: Buffer(self.e.allocate(var.type.nbytes), var.type) for var in self.p.kept}
        for equation in self.p.reductions:
            if equation.output.type.size > 1:
                buffers[equation.output] = Buffer(
                    self.e.allocate(equation.output.type.nbytes), equation.output.type
                )
        self.buffers = buffers
        kept = [d for d in range(len(self.p.space)) if d not in self.axes and d != self.shape.vector]
        with contextlib.ExitStack() as loops:
            index = [ZERO] * len(self.p.space)
            for d in kept:
                if self.p.space[d] > 1:
                    index[d] = Index(loops.enter_context(self.f.loop(0, self.p.space[d])).index)
            vector = self.shape.vector
            if vector is None:
                self._inner(index, (-1, [Lane(ZERO)]))
            elif vector in self.axes:
                self._inner(index, None)
            else:
                for lanes in self._vectors(vector):
                    self._inner(index, (vector, lanes))
        self.e.lanes = 1
        # Within the pass what it keeps is computed inline; from here on it is read.
        self.e.buffers.update(buffers)

    # --- the inner part: reduced dimensions -------------------------------------------------

    def _inner(self, index: list[Index], vectors: Vectors | None) -> None:
        width = len(vectors[1]) if vectors else self.shape.unroll
        states = self._start(width)
        loops = [d for d in sorted(self.axes) if d != self.shape.vector and self.p.space[d] != 1]
        self._finish(index, vectors, self._accumulate(loops, index, vectors, states))

    def _accumulate(
        self, loops: list[int], index: list[Index], vectors: Vectors | None, states: States
    ) -> States:
        """Run over the reduced dimensions, carrying the accumulators."""
        if loops:
            d = loops[0]

            def turn(at: Value, states: States) -> States:
                inner = [Index(at) if i == d else place for i, place in enumerate(index)]
                return self._accumulate(loops[1:], inner, vectors, states)

            return self._turns(self.p.space[d], 1, states, turn)
        if vectors is not None:
            return self._point(index, vectors, states)
        assert self.shape.vector is not None
        return self._along_vector(index, self.shape.vector, states)

    def _along_vector(self, index: list[Index], d: int, states: States) -> States:
        """The vector dimension as the innermost reduced loop."""
        f, size = self.f, self.p.space[d]
        step = self.shape.lanes * self.shape.unroll
        turns = size // step
        start = 0
        if turns > STRAIGHT_LINE:
            start = turns * step

            def turn(at: Value, states: States) -> States:
                lanes = [Lane(Index(f.add(at, u * self.shape.lanes), 1)) for u in range(self.shape.unroll)]
                return self._point(index, (d, lanes), states)

            states = self._turns(start, step, states, turn)
        while start < size:
            lanes = self._static_lanes(start, min(size, start + step))
            states = self._point(index, (d, lanes), states)
            start += step
        return states

    def _turns(self, stop: int, step: int, states: States, turn: Turn) -> States:
        """A loop over `range(0, stop, step)` that accumulates."""
        if stop <= LONG_SUM * step or not any(kind.rounds for kind in self.kinds):
            return self._plain_turns(0, stop, step, states, turn)
        part = step * PARTIAL_SUM

        def partial(at: Value, states: States) -> States:
            after = self.f.add(at, part)
            last = after if stop % part == 0 else self.f.minimum(after, stop)
            sums = self._plain_turns(at, last, step, self._start(len(states[0])), turn)
            return [
                [kind.join(self.f, *pair) for pair in zip(state, more, strict=True)]
                for kind, state, more in zip(self.kinds, states, sums, strict=True)
            ]

        return self._turns(stop, part, states, partial)

    def _plain_turns(self, start: Int, stop: Int, step: int, states: States, turn: Turn) -> States:
        """A loop that carries the states. One whose bounds are not known has a turn."""
        with self.f.loop(start, stop, step, _pack(states), runs=isinstance(start, Value)) as loop:
            loop.next = _pack(turn(loop.index, _unpack(loop.carried, states)))
        return _unpack(loop.results, states)

    def _start(self, width: int) -> States:
        """States of nothing for some vectors."""
        return [[kind.start(self.f, self.shape.lanes) for _ in range(width)] for kind in self.kinds]

    def _static_lanes(self, start: int, stop: int) -> list[Lane]:
        lanes = self.shape.lanes
        return [
            Lane(Index(at, 1), None if at + lanes <= stop else self.f.first_lanes(stop - at, lanes))
            for at in range(start, stop, lanes)
        ]

    def _between(self, segment: range) -> Iterator[list[Lane]]:
        """Blocks of a part of the vector dimension, each inside its loop."""
        f, step = self.f, self.shape.lanes * self.shape.unroll
        start, stop = segment.start, segment.stop
        turns = (stop - start) // step
        if turns > STRAIGHT_LINE:
            with f.loop(start, start + turns * step, step, runs=True) as loop:
                yield [
                    Lane(Index(f.add(loop.index, u * self.shape.lanes), 1)) for u in range(self.shape.unroll)
                ]
            start += turns * step
        while start < stop:
            yield self._static_lanes(start, min(stop, start + step))
            start += step

    def _vectors(self, d: int) -> Iterator[list[Lane]]:
        """Blocks of the kept vector dimension, each inside its loop."""
        f, step = self.f, self.shape.lanes * self.shape.unroll
        if self.limit is None:
            for segment in self.e.segments(self.p.space[d]):
                yield from self._between(segment)
            return
        limit = f.integer(self.limit)
        whole = f.mul(f.divide(f.maximum(limit, 0), step)[0], step)
        with f.loop(0, whole, step) as loop:
            yield [Lane(Index(f.add(loop.index, u * self.shape.lanes), 1)) for u in range(self.shape.unroll)]
        with f.loop(whole, limit, self.shape.lanes) as loop:
            yield [Lane(Index(loop.index, 1), f.first_lanes(f.sub(limit, loop.index), self.shape.lanes))]

    # --- one point of the nest --------------------------------------------------------------

    def _point(self, index: list[Index], vectors: Vectors, states: States) -> States:
        """Evaluate the roots of the pass in some vectors, store, and accumulate."""
        d, lanes = vectors
        states = [list(state) for state in states]
        for u, lane in enumerate(lanes):
            at = tuple(lane.place if i == d else place for i, place in enumerate(index))
            self.e.mask = lane.mask
            # All is read before anything is written: a result may take the memory of an operand.
            operands = [self.e.vector(equation.inputs[0], at) for equation in self.p.reductions]
            written = [self.e.vector(var, at) for var in self._written()]
            self._write(at, written)
            for state, equation, kind, x in zip(states, self.p.reductions, self.kinds, operands, strict=True):
                state[u] = kind.step(self.f, state[u], x, self._reduced_place(equation, at), lane.mask)
        self.e.mask = None
        return states

    def _reduced_place(self, equation: Equation, at: tuple[Index, ...]) -> Value | None:
        """Where an argmax or argmin stands along its dimension."""
        if equation.op.name not in positions.NAMES:
            return None
        place = at[equation.attrs["axis"] % len(at)]
        return self.f.splat(self.e.lane_places(place), self.shape.lanes)

    def _written(self) -> list[ir.Var]:
        return [*self.p.kept, *(self.results[number] for number in self.p.stores)]

    def _write(self, at: tuple[Index, ...], values: Sequence[Value]) -> None:
        count = len(self.p.kept)
        for var, value in zip(self.p.kept, values[:count], strict=True):
            self.e.store_buffer(self.buffers[var], at, value)
        for number, value in zip(self.p.stores, values[count:], strict=True):
            self.stores[number].store(self.e, at, value)

    # --- results of reductions ----------------------------------------------------------------

    def _finish(self, index: list[Index], vectors: Vectors | None, states: States) -> None:
        """Join accumulators and keep the results."""
        for equation, kind, state in zip(self.p.reductions, self.kinds, states, strict=True):
            if self.shape.vector is None or self.shape.vector in self.axes:
                whole = accumulators.across(self.f, kind, accumulators.tree(self.f, kind, state))
                lanes, self.e.lanes = self.e.lanes, 1
                self._keep(equation.output, kind.finish(self.f, whole), index)
                self.e.lanes = lanes
                continue
            assert vectors is not None
            d = vectors[0]
            for lane, one in zip(vectors[1], state, strict=True):
                self.e.mask = lane.mask
                at = [lane.place if i == d else place for i, place in enumerate(index)]
                self._keep(equation.output, kind.finish(self.f, one), at)
            self.e.mask = None

    def _keep(self, out: ir.Var, value: Value, at: list[Index]) -> None:
        if out in self.buffers:
            kept = tuple(place for d, place in enumerate(at) if d not in self.axes)
            self.e.store_buffer(self.buffers[out], kept, value)
        else:
            self.e.registers[out] = value


def _pack(states: States) -> list[Value]:
    return [value for state in states for one in state for value in one]


def _unpack(values: Sequence[Value], like: States) -> States:
    rest = iter(values)
    return [[tuple(next(rest) for _ in one) for one in state] for state in like]
