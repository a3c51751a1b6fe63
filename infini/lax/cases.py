"""Inputs for the oracle tests: every operation says, per dtype, which operands and attributes to try it with.

A `Case` is one application; the tests draw its operands, run it on each backend, batch it and differentiate
it. `python -m infini.backends` types the same cases to find the route that each backend takes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from infini.core import dtypes, ir
from infini.core.ir import ArrayType

Kind = Literal["exact", "elementwise", "reduction", "contraction", "program"]


@dataclass(frozen=True, slots=True)
class Span:
    """Numbers for the oracle tests: uniform in [low, high] plus these special values."""

    low: float
    high: float
    special: tuple[float, ...] = ()


ANYTHING: Final = Span(-4.0, 4.0)


@dataclass(frozen=True, slots=True)
class Sample:
    """An operand of a case.

    Args:
        shape: its shape.
        dtype: its dtype, where that is not the one under test.
        span: what its elements are drawn from; integers are drawn from the whole numbers in it.
        made: makes the operand of what was drawn, where not every array will do: a positive definite matrix.
    """

    shape: ir.Shape
    dtype: np.dtype | None = None
    span: Span = ANYTHING
    made: Callable[[np.ndarray], np.ndarray] | None = None

    def type_in(self, dtype: np.dtype) -> ArrayType:
        """Type of the operand when `dtype` is under test."""
        return ArrayType(self.shape, self.dtype or dtype)


@dataclass(frozen=True, slots=True)
class Case:
    """One application of an operation.

    Args:
        operands: its operands.
        attrs: its attributes.
        kind: row of the table of tolerances.
        is_smooth: whether finite differences mean something here: no kinks or jumps where it is drawn.
        moving: operands that there are derivatives by; all those of the dtype under test when absent.
    """

    operands: tuple[Sample, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)  # Any: attributes are of many types
    kind: Kind = "elementwise"
    is_smooth: bool = True
    moving: tuple[int, ...] | None = None

    def types(self, dtype: np.dtype) -> tuple[ArrayType, ...]:
        """Types of the operands when `dtype` is under test."""
        return tuple(sample.type_in(dtype) for sample in self.operands)

    def draw(self, dtype: np.dtype, rng: np.random.Generator) -> list[np.ndarray]:
        """Operands of the case when `dtype` is under test."""
        drawn = [draw(s.type_in(dtype), s.span, rng) for s in self.operands]
        return [x if s.made is None else s.made(x) for s, x in zip(self.operands, drawn, strict=True)]


@dataclass(frozen=True, slots=True)
class Cases:
    """What to try an operation with: the dtypes it takes, and examples for each of them."""

    dtypes: frozenset[np.dtype]
    examples: Callable[[np.dtype], Sequence[Case]]


def always(allowed: Collection[np.dtype], *examples: Case) -> Cases:
    """The same examples for every dtype."""
    return Cases(frozenset(allowed), lambda dtype: examples)


def elementwise(
    allowed: Collection[np.dtype], spans: Sequence[Span], **attrs: Any
) -> Cases:  # Any: as in `Case`
    """A few rows of numbers from one span per operand."""
    return always(allowed, Case(tuple(Sample((3, 7), span=span) for span in spans), attrs))


def draw(type_: ArrayType, span: Span, rng: np.random.Generator) -> np.ndarray:
    """An array of a type with elements from a span, its special values first."""
    shape, dtype = type_.shape, type_.dtype
    if dtype == dtypes.bool_:
        return rng.integers(0, 2, shape).astype(bool)
    if dtype in dtypes.INTEGERS:
        bounds = np.iinfo(dtype)
        low, high = max(int(np.ceil(span.low)), bounds.min), min(int(np.floor(span.high)), bounds.max)
        return rng.integers(low, max(low, high), shape, endpoint=True).astype(dtype)
    numbers = rng.uniform(span.low, span.high, shape)
    if dtype in dtypes.COMPLEX:
        return (numbers + 1j * rng.uniform(span.low, span.high, shape)).astype(dtype)
    count = min(numbers.size, len(span.special))
    numbers.reshape(-1)[:count] = span.special[:count]
    with np.errstate(all="ignore"):  # a special value may be too large for the dtype
        return numbers.astype(dtype)
