"""Circular and hyperbolic functions and their inverses, of each element; angles are in radians."""

from __future__ import annotations

import numpy as np

from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax.cases import Span
from infini.lax.elementwise import formulas, terms as t
from infini.lax.elementwise.exponential import Accuracy, with_accuracy
from infini.lax.elementwise.number import decomposition
from infini.lax.elementwise.terms import ArrayLike
from infini.lax.families import PerElement, elementwise

_ANGLES = Span(-3.0, 3.0)
_FAR_ANGLES = Span(
    -1e4, 1e4, (0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, np.pi / 2, np.pi, 1e-10, 1e-30, -1e-30, 40.0, 1e6)
)
_EXTREME = Span(
    -90.0,
    90.0,
    (0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 1e-10, 1e-30, -1e-30, 89.4, -89.4, 1000.0, 10.0),
)
_INSIDE = Span(-0.9, 0.9)
_INSIDE_EDGES = Span(
    -1.0, 1.0, (0.0, -0.0, 1.0, -1.0, np.nan, 1.5, -1.5, np.inf, 1e-10, 1e-30, 0.5, 1 - 1e-7)
)
_REALS = Span(-3.0, 3.0)
_REAL_EDGES = Span(
    -50.0,
    50.0,
    (0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 1e-10, 1e-30, -1e-30, 1e10, -1e10, 1e30, -1e30),
)


# --- circular ---------------------------------------------------------------------------------

sin_p: Primitive = elementwise(
    "sin",
    t.INEXACT,
    np.sin,
    jvp=(lambda g, out, x: t.mul(g, t.cos(x)),),
    cost=PerElement(16.0, is_transcendental=True),
    cases=t.examples(t.INEXACT, (_ANGLES,), edges=(_FAR_ANGLES,)),
)


def sin(x: ArrayLike, *, accuracy: Accuracy = None) -> Value:
    """Sine of each element."""
    return with_accuracy(sin_p, x, accuracy)


cos_p: Primitive = elementwise(
    "cos",
    t.INEXACT,
    np.cos,
    jvp=(lambda g, out, x: t.neg(t.mul(g, t.sin(x))),),
    cost=PerElement(16.0, is_transcendental=True),
    cases=t.examples(t.INEXACT, (_ANGLES,), edges=(_FAR_ANGLES,)),
)


def cos(x: ArrayLike, *, accuracy: Accuracy = None) -> Value:
    """Cosine of each element."""
    return with_accuracy(cos_p, x, accuracy)


tan_p: Primitive = elementwise(
    "tan",
    t.INEXACT,
    np.tan,
    jvp=(lambda g, out, x: t.mul(g, t.add(1, t.square(out))),),
    decompose=t.widened(lambda x: t.div(t.sin(x), t.cos(x))),
    cost=PerElement(20.0, is_transcendental=True),
    cases=t.examples(t.INEXACT, (Span(-1.2, 1.2),), edges=(_FAR_ANGLES,)),
)


def tan(x: ArrayLike, *, accuracy: Accuracy = None) -> Value:
    """Tangent of each element."""
    return with_accuracy(tan_p, x, accuracy)


asin_p: Primitive = elementwise(
    "asin",
    t.INEXACT,
    np.arcsin,
    jvp=(lambda g, out, x: t.mul(g, t.rsqrt(t.sub(1, t.square(x)))),),
    decompose=decomposition(formulas.asin),
    cost=PerElement(14.0, is_transcendental=True),
    cases=t.examples(t.INEXACT, (_INSIDE,), edges=(_INSIDE_EDGES,)),
)


def asin(x: ArrayLike) -> Value:
    """Angle whose sine is each element, between -pi/2 and pi/2; NaN beyond -1 and 1."""
    return t.unary(asin_p, x)


acos_p: Primitive = elementwise(
    "acos",
    t.INEXACT,
    np.arccos,
    jvp=(lambda g, out, x: t.neg(t.mul(g, t.rsqrt(t.sub(1, t.square(x))))),),
    decompose=decomposition(formulas.acos),
    cost=PerElement(14.0, is_transcendental=True),
    cases=t.examples(t.INEXACT, (_INSIDE,), edges=(_INSIDE_EDGES,)),
)


def acos(x: ArrayLike) -> Value:
    """Angle whose cosine is each element, between 0 and pi; NaN beyond -1 and 1."""
    return t.unary(acos_p, x)


atan_p: Primitive = elementwise(
    "atan",
    t.INEXACT,
    np.arctan,
    jvp=(lambda g, out, x: t.div(g, t.add(1, t.square(x))),),
    decompose=decomposition(formulas.atan),
    cost=PerElement(14.0, is_transcendental=True),
    cases=t.examples(t.INEXACT, (_REALS,), edges=(_REAL_EDGES,)),
)


def atan(x: ArrayLike) -> Value:
    """Angle whose tangent is each element, between -pi/2 and pi/2."""
    return t.unary(atan_p, x)


def _reference_atan2(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.dtype in t.COMPLEX:
        return (-1j * np.log((y + 1j * x) / np.sqrt(x * x + y * y))).astype(x.dtype)
    return np.arctan2(x, y)


atan2_p: Primitive = elementwise(
    "atan2",
    t.INEXACT,
    _reference_atan2,
    num_operands=2,
    jvp=(
        lambda g, out, x, y: t.mul(g, t.div(y, t.add(t.square(x), t.square(y)))),
        lambda g, out, x, y: t.mul(g, t.div(t.neg(x), t.add(t.square(x), t.square(y)))),
    ),
    decompose=decomposition(formulas.atan2),
    cost=PerElement(20.0, is_transcendental=True),
    cases=t.examples(t.INEXACT, (t.POSITIVE, Span(-4.0, -0.1))),
)


def atan2(x: ArrayLike, y: ArrayLike) -> Value:
    """Angle of the point with ordinate `x` and abscissa `y`, between -pi and pi: the arc tangent of `x / y`
    in the quadrant of the signs.
    """
    return t.binary(atan2_p, x, y)


# --- hyperbolic -------------------------------------------------------------------------------

sinh_p: Primitive = elementwise(
    "sinh",
    t.INEXACT,
    np.sinh,
    jvp=(lambda g, out, x: t.mul(g, t.cosh(x)),),
    decompose=decomposition(formulas.sinh),
    cost=PerElement(20.0, is_transcendental=True),
    cases=t.examples(t.INEXACT, (_REALS,), edges=(_EXTREME,)),
)


def sinh(x: ArrayLike) -> Value:
    """Hyperbolic sine of each element."""
    return t.unary(sinh_p, x)


cosh_p: Primitive = elementwise(
    "cosh",
    t.INEXACT,
    np.cosh,
    jvp=(lambda g, out, x: t.mul(g, t.sinh(x)),),
    decompose=decomposition(formulas.cosh),
    cost=PerElement(20.0, is_transcendental=True),
    cases=t.examples(t.INEXACT, (_REALS,), edges=(_EXTREME,)),
)


def cosh(x: ArrayLike) -> Value:
    """Hyperbolic cosine of each element."""
    return t.unary(cosh_p, x)


tanh_p: Primitive = elementwise(
    "tanh",
    t.INEXACT,
    np.tanh,
    jvp=(lambda g, out, x: t.mul(t.add(g, t.mul(g, out)), t.sub(1, out)),),
    decompose=decomposition(formulas.tanh),
    cost=PerElement(14.0, is_transcendental=True),
    cases=t.examples(t.INEXACT, (_REALS,), edges=(_EXTREME,)),
)


def tanh(x: ArrayLike, *, accuracy: Accuracy = None) -> Value:
    """Hyperbolic tangent of each element."""
    return with_accuracy(tanh_p, x, accuracy)


asinh_p: Primitive = elementwise(
    "asinh",
    t.INEXACT,
    np.arcsinh,
    jvp=(lambda g, out, x: t.mul(g, t.rsqrt(t.add(t.square(x), 1))),),
    decompose=decomposition(formulas.asinh),
    cost=PerElement(30.0, is_transcendental=True),
    cases=t.examples(t.INEXACT, (_REALS,), edges=(_REAL_EDGES,)),
)


def asinh(x: ArrayLike) -> Value:
    """Inverse of `sinh`."""
    return t.unary(asinh_p, x)


acosh_p: Primitive = elementwise(
    "acosh",
    t.INEXACT,
    np.arccosh,
    jvp=(lambda g, out, x: t.mul(g, t.rsqrt(t.sub(t.square(x), 1))),),
    decompose=decomposition(formulas.acosh),
    cost=PerElement(30.0, is_transcendental=True),
    cases=t.examples(t.INEXACT, (Span(1.3, 9.0),), edges=(_REAL_EDGES,)),
)


def acosh(x: ArrayLike) -> Value:
    """Inverse of `cosh`, not negative; NaN below 1."""
    return t.unary(acosh_p, x)


atanh_p: Primitive = elementwise(
    "atanh",
    t.INEXACT,
    np.arctanh,
    jvp=(lambda g, out, x: t.mul(t.div(1, t.add(1, x)), t.div(g, t.sub(1, x))),),
    decompose=decomposition(formulas.atanh),
    cost=PerElement(20.0, is_transcendental=True),
    cases=t.examples(t.INEXACT, (_INSIDE,), edges=(_INSIDE_EDGES,)),
)


def atanh(x: ArrayLike) -> Value:
    """Inverse of `tanh`; infinite at -1 and 1, NaN beyond."""
    return t.unary(atanh_p, x)
