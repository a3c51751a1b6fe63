"""What cumulative operations accumulate: how a state starts, takes in elements, is joined, and is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from infini.compiler.llvm import accumulators, operations, registers
from infini.compiler.llvm.builder import Function, Value
from infini.core import dtypes, primitive
from infini.lax import reduction

State: TypeAlias = tuple[Value, ...]


class Kind(Protocol):
    """What is accumulated."""

    def start(self, f: Function, lanes: int) -> State:
        """The state of nothing."""

    def element(self, f: Function, x: Value) -> State:
        """The state of one element per lane."""

    def join(self, f: Function, a: State, b: State) -> State:
        """The state of two together."""

    def finish(self, f: Function, state: State) -> Value:
        """The result, not rounded yet."""


@dataclass(frozen=True, slots=True)
class Monoid:
    """Sums, products and extrema."""

    op: primitive.Primitive
    dtype: np.dtype

    def start(self, f: Function, lanes: int) -> State:
        """The neutral element."""
        return (registers.constant(f, reduction.identity_of(self.op, self.dtype), self.dtype, lanes),)

    def element(self, f: Function, x: Value) -> State:
        """The element."""
        return (x,)

    def join(self, f: Function, a: State, b: State) -> State:
        """The operation."""
        return (accumulators.combine(f, self.op, self.dtype, a[0], b[0]),)

    def finish(self, f: Function, state: State) -> Value:
        """The state."""
        return state[0]


@dataclass(frozen=True, slots=True)
class LogSumExp:
    """The largest element m, and the sum of exp(x - m): nothing overflows, and log is taken once."""

    dtype: np.dtype

    def start(self, f: Function, lanes: int) -> State:
        """Minus infinity, and no terms."""
        numbers = (-math.inf, 0.0)
        low, none = (registers.constant(f, number, self._wide, lanes) for number in numbers)
        return low, none

    def element(self, f: Function, x: Value) -> State:
        """The element and one term."""
        return x, f.constant(1.0, x.type)

    def join(self, f: Function, a: State, b: State) -> State:
        """The sum with the smaller maximum is scaled to the larger."""
        wide = self._wide
        largest = operations.emit(f, "max", [wide, wide], wide, [a[0], b[0]], {})
        # Equal maxima, infinite ones too, need no scaling.
        same = f.compare("oeq", a[0], b[0])
        distance = operations.emit(f, "abs", [wide], wide, [f.binary("fsub", a[0], b[0])], {})
        minus = f.pure(f"fneg {distance.type} {distance}", distance.type, distance)
        factor = f.select(
            same, f.constant(1.0, minus.type), operations.emit(f, "exp", [wide], wide, [minus], {})
        )
        first_is_larger = f.compare("ogt", a[0], b[0])
        kept, scaled = f.select(first_is_larger, a[1], b[1]), f.select(first_is_larger, b[1], a[1])
        return largest, f.fma(scaled, factor, kept)

    def finish(self, f: Function, state: State) -> Value:
        """m + log(sum)."""
        return f.binary("fadd", state[0], operations.emit(f, "log", [self._wide], self._wide, [state[1]], {}))

    @property
    def _wide(self) -> np.dtype:
        return dtypes.float64 if self.dtype == dtypes.float64 else dtypes.float32
