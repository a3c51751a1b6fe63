"""Accumulators of reductions: how they start, take a value, are joined, and what comes out.

The state is a tuple of vectors, so an argmax (value and place) is one as a sum is. 16-bit floats accumulate
in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from infini.compiler.llvm import operations, registers
from infini.compiler.llvm.builder import Function, Value
from infini.compiler.llvm.types import vector
from infini.core import dtypes
from infini.core.ir import Equation
from infini.lax import reduction

State: TypeAlias = tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Accumulator:
    """One of reduce_sum, reduce_max, reduce_min for a dtype."""

    name: str
    dtype: np.dtype

    def start(self, f: Function, lanes: int) -> State:
        """The state of nothing."""
        identity = reduction.identity_of(_PRIMITIVES[self.name], self.dtype)
        return (registers.constant(f, identity, self.dtype, lanes),)

    def step(self, f: Function, state: State, x: Value, place: Value | None, mask: Value | None) -> State:
        """The state after one more vector, of which the lanes of the mask count."""
        if mask is not None:
            x = f.select(mask, x, self.start(f, x.type.lanes)[0])
        return self.join(f, [(x,), state])

    def join(self, f: Function, states: Sequence[State]) -> State:
        """The state of several taken together, as a balanced tree."""
        values = [state[0] for state in states]
        while len(values) > 1:
            pairs = [self._combine(f, *values[i : i + 2]) for i in range(0, len(values) - 1, 2)]
            values = pairs + ([values[-1]] if len(values) % 2 else [])
        return (values[0],)

    def _combine(self, f: Function, a: Value, b: Value) -> Value:
        if self.name == "reduce_sum":
            return f.binary("fadd" if a.type.is_float else "add", a, b)
        if a.type.element == "i1":
            return f.binary("or" if self.name == "reduce_max" else "and", a, b)
        return operations.extremum(f, self.dtype, a, b, greater=self.name == "reduce_max")

    def finish(self, f: Function, state: State) -> Value:
        """The result."""
        return registers.rounded(f, state[0], self.dtype)


@dataclass(frozen=True, slots=True)
class ArgMax:
    """The first place of the largest element; NaN is larger than everything."""

    dtype: np.dtype
    index_dtype: np.dtype

    def start(self, f: Function, lanes: int) -> State:
        """Nothing seen: marked by a place of -1."""
        return registers.constant(f, 0, self.dtype, lanes), f.constant(-1, vector("i32", lanes))

    def step(self, f: Function, state: State, x: Value, place: Value | None, mask: Value | None) -> State:
        """The state after one more vector, of which the lanes of the mask count."""
        assert place is not None
        if mask is not None:
            place = f.select(mask, place, f.constant(-1, place.type))
        return self._combine(f, state, (x, place))

    def join(self, f: Function, states: Sequence[State]) -> State:
        """The state of several taken together."""
        result = states[0]
        for state in states[1:]:
            result = self._combine(f, result, state)
        return result

    def _combine(self, f: Function, a: State, b: State) -> State:
        (x, i), (y, j) = a, b
        nothing = f.constant(-1, i.type)
        if x.type.is_float:
            x_nan, y_nan = f.compare("uno", x, x), f.compare("uno", y, y)
            larger = f.binary("or", f.compare("ogt", y, x), f.binary("and", y_nan, _not(f, x_nan)))
            same = f.binary("or", f.compare("oeq", x, y), f.binary("and", x_nan, y_nan))
        else:
            larger = f.compare("sgt" if registers.is_signed(self.dtype) else "ugt", y, x)
            same = f.compare("eq", x, y)
        better = f.binary("or", larger, f.binary("and", same, f.compare("slt", j, i)))
        better = f.binary("or", better, f.compare("eq", i, nothing))
        takes = f.binary("and", better, f.compare("ne", j, nothing))
        return f.select(takes, y, x), f.select(takes, j, i)

    def finish(self, f: Function, state: State) -> Value:
        """The place in its dtype."""
        return operations.convert(f, dtypes.int32, state[1], new_dtype=self.index_dtype)


def _not(f: Function, x: Value) -> Value:
    return f.binary("xor", x, f.constant(True, x.type))


_PRIMITIVES = {p.name: p for p in (reduction.reduce_sum_p, reduction.reduce_max_p, reduction.reduce_min_p)}


def accumulator(equation: Equation) -> Accumulator | ArgMax:
    """The accumulator of a reduction."""
    dtype = equation.inputs[0].type.dtype
    if equation.op.name == "argmax":
        return ArgMax(dtype, equation.attrs["index_dtype"])
    return Accumulator(equation.op.name, dtype)


def across(f: Function, kind: Accumulator | ArgMax, state: State) -> State:
    """The state of all lanes together, halving the vector."""
    lanes = state[0].type.lanes
    while lanes > 1:
        half = lanes // 2
        low = tuple(_half(f, v, 0, half) for v in state)
        high = tuple(_half(f, v, half, half) for v in state)
        state, lanes = kind.join(f, [low, high]), half
    return state


def _half(f: Function, x: Value, start: int, count: int) -> Value:
    if count == 1:
        return f.extract(x, start)
    return f.shuffle(x, None, range(start, start + count))
