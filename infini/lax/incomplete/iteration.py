"""Iteration for special functions: series and fractions go on until every element has converged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import numpy as np

from infini.core import dtypes, primitive, trace
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import families, loops, reduction
from infini.lax.cases import Case, Cases, Sample, Span, always
from infini.lax.elementwise import terms as t
from infini.lax.elementwise.number import Number, on_values

# From values of loops to those of the next turn, and where another one is needed.
Step: TypeAlias = Callable[[Number, Sequence[Number]], tuple[list[Number], Number]]

_MOST_TURNS: Final = 10_000


def repeat(
    active: Number, start: Sequence[Number | float], step: Step, limit: int = _MOST_TURNS
) -> list[Number]:
    """Repeat `step(number of the turn, values)` in the elements that are active, until none is."""
    anchor = next(x for x in start if isinstance(x, Number))
    shape, algebra, dtype = active.value.shape, anchor.algebra, anchor.dtype

    def number(value: Value) -> Number:
        return Number(value, dtype, algebra)

    def is_going(state: Sequence[Value]) -> Value:
        turn, going = state[:2]
        return t.both(t.lt(turn, limit), reduction.reduce_or(going, range(going.ndim)))

    def advance(state: Sequence[Value]) -> tuple[Value, ...]:
        turn, going, *values = state
        moved, is_unfinished = step(number(t.convert(turn, dtype)), [number(v) for v in values])
        kept = [t.where(going, new.value, old) for new, old in zip(moved, values, strict=True)]
        return t.add(turn, 1), t.both(going, is_unfinished.value), *kept

    first = trace.as_value(np.ones((), np.int32))
    values = [families.broadcast_to(anchor.like(x).value, shape) for x in start]
    found = loops.while_loop(is_going, advance, (first, active.value, *values))
    return [number(v) for v in found[2:]]


def looping(
    name: str,
    reference: Callable[..., float],
    *,
    num_operands: int,
    jvp: tuple[Callable[..., Value], ...] | None = None,
    formula: Callable[..., Number],
    cases: Cases,
) -> Primitive:
    """Declare an elementwise operation that is defined by a loop over whole arrays.

    No backend has a scalar function for it, so kernels do not hold it: it is decomposed before they are made.

    Args:
        name: name of the operation.
        reference: function of Python floats.
        num_operands: number of operands.
        jvp: one linear map per operand; absent means that there is no derivative.
        formula: definition, given operands of one shape and of at least float32.
        cases: inputs for the oracle tests.
    """
    op = families.elementwise(
        name,
        t.FLOATS,
        t.by_element(reference),
        num_operands=num_operands,
        jvp=jvp,
        decompose=decomposition(formula),
        cases=cases,
    )
    op.rules.pop(primitive.SCALAR)
    if jvp is None:
        op.rules.pop(primitive.JVP)
    return op


def decomposition(formula: Callable[..., Number]) -> Callable[..., tuple[Value]]:
    """A DECOMPOSE rule whose formula gets operands of one shape, at least float32."""

    def rule(*operands: Value) -> tuple[Value]:
        dtype = operands[0].dtype
        shape = families.loop_shape("special", [x.type for x in operands], [0] * len(operands))
        wide = [on_values(t.wide(families.broadcast_to(x, shape))) for x in operands]
        return (t.convert(formula(*wide).value, dtype),)

    return rule


def epsilon(x: Number) -> float:
    """Distance from 1 to the next number."""
    return dtypes.epsilon(x.dtype)


def examples(*spans: Span, moving: tuple[int, ...] | None = None, edges: Sequence[Span] = ()) -> Cases:
    """Examples of an operation, and of its edges."""
    cases = [Case(tuple(Sample((3, 7), span=span) for span in spans), kind="reduction", moving=moving)]
    if edges:
        operands = tuple(Sample((3, 7), span=span) for span in edges)
        cases.append(Case(operands, kind="reduction", is_smooth=False, moving=moving))
    return always(t.FLOATS, *cases)


def is_nan(*numbers: Number) -> Number:
    """Whether one of the numbers is NaN."""
    found = numbers[0].differs(numbers[0])
    for number in numbers[1:]:
        found = found | number.differs(number)
    return found
