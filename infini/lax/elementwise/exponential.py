"""Exponentials, logarithms and roots of each element."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import numpy as np

from infini.core import errors
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax.cases import Span
from infini.lax.elementwise import formulas, terms as t
from infini.lax.elementwise.number import decomposition
from infini.lax.elementwise.terms import ArrayLike
from infini.lax.families import PerElement, elementwise

_LN2 = math.log(2.0)
_MODERATE = Span(-3.0, 3.0)
_EXTREME = Span(
    -100.0, 100.0, (0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 1e-10, -1e-10, -88.0, 89.0, -104.0, 1000.0)
)
_MAGNITUDES = Span(
    0.0, 100.0, (0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 1e-30, 1e-41, 1e30, 1 - 1e-7, 1 + 1e-7)
)


class AccuracyMode(enum.Enum):
    """How exact a function has to be, as JAX asks for it."""

    HIGHEST = 1
    DEFAULT = 2


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Errors that a function may have, as JAX asks for them."""

    atol: float = 0.0
    rtol: float = 0.0
    ulps: int = 0

    def __post_init__(self) -> None:
        if self.atol < 0 or self.rtol < 0 or self.ulps < 0:
            raise errors.ValueMismatchError("tolerances are not negative", got=str(self))


Accuracy = Tolerance | AccuracyMode | None


def with_accuracy(op: Primitive, x: ArrayLike, accuracy: Accuracy) -> Value:
    """A `lax` function that takes JAX's `accuracy`. Each function has one implementation per device, with the
    errors that docs/accuracy.md states, so the wish changes nothing.

    Raises:
        ValueMismatchError: `accuracy` is no such wish.
    """
    if accuracy is not None and not isinstance(accuracy, (Tolerance, AccuracyMode)):
        raise errors.ValueMismatchError(
            f"lax.{op.name}: accuracy is not understood",
            got=repr(accuracy),
            expected="None, lax.AccuracyMode or lax.Tolerance",
        )
    return t.unary(op, x)


# --- exponentials -----------------------------------------------------------------------------

exp_p: Primitive = elementwise(
    "exp",
    t.INEXACT,
    np.exp,
    jvp=(lambda g, out, x: t.mul(g, out),),
    cost=PerElement(10.0, is_transcendental=True),
    cases=t.examples(t.INEXACT, (_MODERATE,), edges=(_EXTREME,)),
)


def exp(x: ArrayLike, *, accuracy: Accuracy = None) -> Value:
    """Exponential of each element."""
    return with_accuracy(exp_p, x, accuracy)


def _reference_exp2(x: np.ndarray) -> np.ndarray:
    return np.exp(x * _LN2) if x.dtype in t.COMPLEX else np.exp2(x)


exp2_p: Primitive = elementwise(
    "exp2",
    t.INEXACT,
    _reference_exp2,
    jvp=(lambda g, out, x: t.mul(_LN2, t.mul(g, out)),),
    decompose=decomposition(formulas.exp2),
    cost=PerElement(10.0, is_transcendental=True),
    cases=t.examples(t.INEXACT, (_MODERATE,), edges=(_EXTREME,)),
)


def exp2(x: ArrayLike, *, accuracy: Accuracy = None) -> Value:
    """Two to the power of each element."""
    return with_accuracy(exp2_p, x, accuracy)


def _decompose_expm1(x: Value) -> Value:
    # expm1(x) = (u - 1) * x / log(u) with u = exp(x); Kahan's formula. For large |x| exp(x) - 1 is exact
    # enough.
    u = t.exp(x)
    is_exact, less_one = t.eq(u, 1), t.sub(u, 1)
    near = t.mul(less_one, t.div(x, t.where(is_exact, 1, t.log(u))))
    return t.where(is_exact, x, t.where(t.gt(t.abs(x), 0.5), less_one, near))


expm1_p: Primitive = elementwise(
    "expm1",
    t.INEXACT,
    np.expm1,
    jvp=(lambda g, out, x: t.mul(g, t.add(out, 1)),),
    decompose=t.widened(_decompose_expm1),
    cost=PerElement(14.0, is_transcendental=True),
    cases=t.examples(t.INEXACT, (_MODERATE,), edges=(_EXTREME,)),
)


def expm1(x: ArrayLike, *, accuracy: Accuracy = None) -> Value:
    """`exp(x) - 1`, accurate near zero."""
    return with_accuracy(expm1_p, x, accuracy)


def _reference_logistic(x: np.ndarray) -> np.ndarray:
    if x.dtype in t.COMPLEX:
        return np.asarray(1 / (1 + np.exp(-x)))
    power = np.exp(-np.abs(x))
    return np.where(x < 0, power, np.ones_like(power)) / (1 + power)


def _decompose_logistic(x: Value) -> Value:
    # exp(x) / (1 + exp(x)) below zero, where exp(-x) would overflow before the result is 0.
    if x.dtype in t.COMPLEX:
        return t.div(1, t.add(t.exp(t.neg(x)), 1))
    power = t.exp(t.neg(t.abs(x)))
    return t.div(t.where(t.lt(x, 0), power, 1), t.add(power, 1))


logistic_p: Primitive = elementwise(
    "logistic",
    t.INEXACT,
    _reference_logistic,
    jvp=(lambda g, out, x: t.mul(g, t.mul(out, t.sub(1, out))),),
    decompose=t.widened(_decompose_logistic),
    cost=PerElement(14.0, is_transcendental=True),
    cases=t.examples(t.INEXACT, (_MODERATE,), edges=(_EXTREME,)),
)


def logistic(x: ArrayLike, *, accuracy: Accuracy = None) -> Value:
    """Sigmoid of each element, `1 / (1 + exp(-x))`."""
    return with_accuracy(logistic_p, x, accuracy)


# --- logarithms -------------------------------------------------------------------------------

log_p: Primitive = elementwise(
    "log",
    t.INEXACT,
    np.log,
    jvp=(lambda g, out, x: t.div(g, x),),
    cost=PerElement(12.0, is_transcendental=True),
    cases=t.examples(t.INEXACT, (Span(0.3, 9.0),), edges=(_MAGNITUDES,)),
)


def log(x: ArrayLike, *, accuracy: Accuracy = None) -> Value:
    """Natural logarithm of each element; NaN below zero."""
    return with_accuracy(log_p, x, accuracy)


def _decompose_log1p(x: Value) -> Value:
    # log1p(x) = log(u) * x / (u - 1) with u = 1 + x; Kahan's formula,
    # https://people.eecs.berkeley.edu/~wkahan
    u = t.add(x, 1)
    is_exact, log_u = t.eq(u, 1), t.log(u)
    scaled = t.mul(log_u, t.div(x, t.where(is_exact, 1, t.sub(u, 1))))
    return t.where(is_exact, x, t.where(t.is_finite(u), scaled, log_u))


log1p_p: Primitive = elementwise(
    "log1p",
    t.INEXACT,
    np.log1p,
    jvp=(lambda g, out, x: t.div(g, t.add(x, 1)),),
    decompose=t.widened(_decompose_log1p),
    cost=PerElement(14.0, is_transcendental=True),
    cases=t.examples(t.INEXACT, (Span(-0.7, 9.0),), edges=(_MAGNITUDES,)),
)


def log1p(x: ArrayLike, *, accuracy: Accuracy = None) -> Value:
    """`log(1 + x)`, accurate near zero."""
    return with_accuracy(log1p_p, x, accuracy)


# --- roots ------------------------------------------------------------------------------------

sqrt_p: Primitive = elementwise(
    "sqrt",
    t.INEXACT,
    np.sqrt,
    jvp=(lambda g, out, x: t.mul(g, t.div(0.5, out)),),
    cost=PerElement(5.0, is_transcendental=True),
    cases=t.examples(t.INEXACT, (Span(0.3, 4.0),), edges=(_MAGNITUDES,)),
)


def sqrt(x: ArrayLike, *, accuracy: Accuracy = None) -> Value:
    """Square root of each element; NaN below zero."""
    return with_accuracy(sqrt_p, x, accuracy)


rsqrt_p: Primitive = elementwise(
    "rsqrt",
    t.INEXACT,
    lambda x: 1 / np.sqrt(x),
    jvp=(lambda g, out, x: t.mul(g, t.mul(-0.5, t.div(out, x))),),
    cost=PerElement(6.0, is_transcendental=True),
    cases=t.examples(t.INEXACT, (Span(0.3, 4.0),), edges=(_MAGNITUDES,)),
)


def rsqrt(x: ArrayLike, *, accuracy: Accuracy = None) -> Value:
    """Reciprocal square root of each element."""
    return with_accuracy(rsqrt_p, x, accuracy)


cbrt_p: Primitive = elementwise(
    "cbrt",
    t.FLOATS,
    np.cbrt,
    jvp=(lambda g, out, x: t.mul(g, t.mul(1 / 3, t.integer_pow(out, -2))),),
    decompose=decomposition(formulas.cbrt),
    cost=PerElement(26.0, is_transcendental=True),
    cases=t.examples(t.FLOATS, (Span(0.3, 4.0),), edges=(_MAGNITUDES,)),
)


def cbrt(x: ArrayLike, *, accuracy: Accuracy = None) -> Value:
    """Cube root of each element."""
    return with_accuracy(cbrt_p, x, accuracy)
