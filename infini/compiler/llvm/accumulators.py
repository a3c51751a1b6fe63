"""Accumulators of reductions: how they start, take a value, are joined, and what comes out.

The state is a tuple of vectors, so an argmax (value and place) is one as a sum is. The small floats
accumulate in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from infini.compiler.llvm import operations, registers
from infini.compiler.llvm.builder import Function, Value
from infini.compiler.llvm.types import vector
from infini.core import dtypes, primitive
from infini.core.ir import Equation
from infini.lax import positions, reduction

State: TypeAlias = tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Accumulator:
    """A reduction by an operation on two elements, for a dtype."""

    op: primitive.Primitive
    dtype: np.dtype

    @property
    def rounds(self) -> bool:
        """Whether the order of its steps changes the result."""
        return self.dtype in dtypes.FLOATS and reduction.MONOIDS[self.op.name].name in ("add", "mul")

    def start(self, f: Function, lanes: int) -> State:
        """The state of nothing."""
        return (registers.constant(f, reduction.identity_of(self.op, self.dtype), self.dtype, lanes),)

    def step(self, f: Function, state: State, x: Value, place: Value | None, mask: Value | None) -> State:
        """The state after one more vector, of which the lanes of the mask count."""
        if mask is not None:
            x = f.select(mask, x, self.start(f, x.type.lanes)[0])
        return self.join(f, (x,), state)

    def join(self, f: Function, a: State, b: State) -> State:
        """The state of two taken together."""
        return (combine(f, self.op, self.dtype, a[0], b[0]),)

    def finish(self, f: Function, state: State) -> Value:
        """The result."""
        return registers.rounded(f, state[0], self.dtype)


def combine(f: Function, op: primitive.Primitive, dtype: np.dtype, a: Value, b: Value) -> Value:
    """What a reduction does with two values in registers, without rounding to a small float."""
    join = reduction.MONOIDS[op.name].name
    if a.type.element == "i1" and join in ("max", "min"):
        return f.binary("or" if join == "max" else "and", a, b)
    # Registers of the small floats are float32, and only the result is rounded.
    wide = dtypes.float32 if a.type.element == "float" else dtype
    return operations.emit(f, join, [wide, wide], wide, [a, b], {})


@dataclass(frozen=True, slots=True)
class Position:
    """The first place of the extremum; NaN beats everything.

    A place of -1 means that nothing has beaten the number it starts from, the farthest of the dtype: if so
    for every lane, all elements are that number, and the first of them is the result.
    """

    dtype: np.dtype
    index_dtype: np.dtype
    is_max: bool

    @property
    def rounds(self) -> bool:
        """Whether the order of its steps changes the result."""
        return False

    def start(self, f: Function, lanes: int) -> State:
        """The state of nothing."""
        farthest = reduction.lowest(self.dtype) if self.is_max else reduction.highest(self.dtype)
        return registers.constant(f, farthest, self.dtype, lanes), f.constant(-1, vector("i32", lanes))

    def step(self, f: Function, state: State, x: Value, place: Value | None, mask: Value | None) -> State:
        """The state after one more vector, of which the lanes of the mask count. Places grow from step to
        step, so equal elements change nothing."""
        assert place is not None
        best, where = state
        takes = self._beats(f, x, best)
        if mask is not None:
            takes = f.binary("and", takes, mask)
        return f.select(takes, x, best), f.select(takes, place, where)

    def _beats(self, f: Function, x: Value, best: Value) -> Value:
        if not x.type.is_float:
            sign = "s" if registers.is_signed(self.dtype) else "u"
            return f.compare(f"{sign}{'gt' if self.is_max else 'lt'}", x, best)
        # True for NaN too, unless NaN has been seen before.
        unordered = f.compare("ugt" if self.is_max else "ult", x, best)
        return f.binary("and", unordered, f.compare("ord", best, best))

    def join(self, f: Function, a: State, b: State) -> State:
        """The state of two taken together."""
        (x, i), (y, j) = a, b
        same = f.compare("oeq" if x.type.is_float else "eq", x, y)
        if x.type.is_float:
            both_nan = f.binary("and", f.compare("uno", x, x), f.compare("uno", y, y))
            same = f.binary("or", same, both_nan)
        # Unsigned, so that no place is behind every place.
        earlier = f.binary("and", same, f.compare("ult", j, i))
        takes = f.binary("or", self._beats(f, y, x), earlier)
        return f.select(takes, y, x), f.select(takes, j, i)

    def finish(self, f: Function, state: State) -> Value:
        """The place in its dtype."""
        zero = f.constant(0, state[1].type)
        place = f.select(f.compare("slt", state[1], zero), zero, state[1])
        return operations.convert(f, dtypes.int32, place, new_dtype=self.index_dtype)


def accumulator(equation: Equation) -> Accumulator | Position:
    """The accumulator of a reduction."""
    dtype = equation.inputs[0].type.dtype
    if equation.op.name in positions.NAMES:
        return Position(dtype, equation.attrs["index_dtype"], equation.op.name == "argmax")
    return Accumulator(equation.op, dtype)


class Joins(Protocol):
    """What joins states: an accumulator."""

    def join(self, f: Function, a: State, b: State) -> State:
        """The state of two taken together."""


def across(f: Function, kind: Joins, state: State) -> State:
    """The state of all lanes together, halving the vector."""
    lanes = state[0].type.lanes
    while lanes > 1:
        half = lanes // 2
        low = tuple(_half(f, v, 0, half) for v in state)
        high = tuple(_half(f, v, half, half) for v in state)
        state, lanes = kind.join(f, low, high), half
    return state


def tree(f: Function, kind: Joins, states: Sequence[State]) -> State:
    """The state of several taken together, as a balanced tree."""
    rest = list(states)
    while len(rest) > 1:
        pairs = [kind.join(f, *rest[i : i + 2]) for i in range(0, len(rest) - 1, 2)]
        rest = pairs + ([rest[-1]] if len(rest) % 2 else [])
    return rest[0]


def _half(f: Function, x: Value, start: int, count: int) -> Value:
    if count == 1:
        return f.extract(x, start)
    return f.shuffle(x, None, range(start, start + count))
