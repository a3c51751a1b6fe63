"""Error functions, gamma functions and Bessel functions of each element.

Their NumPy definitions are formulas of their own, in float64, so they check the ones that backends use.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from infini.core import dtypes
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax.cases import Span
from infini.lax.elementwise import formulas, terms as t
from infini.lax.elementwise.number import decomposition
from infini.lax.elementwise.terms import ArrayLike
from infini.lax.families import PerElement, elementwise

_REALS = Span(-3.0, 3.0)
_EDGES = Span(
    -12.0, 12.0, (0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 1e-10, 1e-30, 1e-40, 27.0, -27.0, 0.5)
)
_INSIDE_EDGES = Span(
    -1.0, 1.0, (0.0, -0.0, 1.0, -1.0, np.nan, 1.5, -1.5, np.inf, 1e-10, 1e-30, 0.5, 1 - 1e-7)
)
_GAMMA_EDGES = Span(
    -20.0, 60.0, (0.0, 1.0, 2.0, -1.0, -7.0, np.inf, np.nan, 0.5, 1.5, 2.5, 8.0, 1e-10, 1e6, 1e30, -0.5, -2.5)
)


# --- error functions --------------------------------------------------------------------------


def _gaussian(factor: float, g: Value, x: Value) -> Value:
    return t.mul(factor, t.mul(g, t.exp(t.neg(t.square(x)))))


erf_p: Primitive = elementwise(
    "erf",
    t.FLOATS,
    t.by_element(math.erf),
    jvp=(lambda g, out, x: _gaussian(2 / math.sqrt(math.pi), g, x),),
    decompose=decomposition(formulas.erf),
    cost=PerElement(16.0, is_transcendental=True),
    cases=t.examples(t.FLOATS, (_REALS,), edges=(_EDGES,)),
)


def erf(x: ArrayLike) -> Value:
    """Gauss error function of each element."""
    return t.unary(erf_p, x)


erfc_p: Primitive = elementwise(
    "erfc",
    t.FLOATS,
    t.by_element(math.erfc),
    jvp=(lambda g, out, x: _gaussian(-2 / math.sqrt(math.pi), g, x),),
    decompose=decomposition(formulas.erfc),
    cost=PerElement(24.0, is_transcendental=True),
    cases=t.examples(t.FLOATS, (_REALS,), edges=(_EDGES,)),
)


def erfc(x: ArrayLike) -> Value:
    """Complement of the error function, `1 - erf(x)`, accurate where that is small."""
    return t.unary(erfc_p, x)


def _erf_inv(x: float) -> float:
    """Newton's method on erfc from a rough guess."""
    size = abs(x)
    if math.isnan(x) or size > 1:
        return math.nan
    if size in (0, 1):
        return x * math.inf if size else x
    logarithm, a = math.log1p(-size) + math.log1p(size), 2 / (math.pi * 0.147)
    half = a + logarithm / 2
    y = (
        math.sqrt(math.sqrt(half * half - logarithm / 0.147) - half)
        if size > 1e-3
        else size * math.sqrt(math.pi) / 2
    )
    for _ in range(4):
        error = math.erf(y) - size if size < 0.5 else (1 - size) - math.erfc(y)
        step = error * math.sqrt(math.pi) / 2 * math.exp(y * y)
        y -= step / (1 + y * step)
    return math.copysign(y, x)


erf_inv_p: Primitive = elementwise(
    "erf_inv",
    t.FLOATS,
    t.by_element(_erf_inv),
    jvp=(lambda g, out, x: t.mul(math.sqrt(math.pi) / 2, t.mul(g, t.exp(t.square(out)))),),
    decompose=decomposition(formulas.erf_inv),
    cost=PerElement(30.0, is_transcendental=True),
    cases=t.examples(t.FLOATS, (Span(-0.9, 0.9),), edges=(_INSIDE_EDGES,)),
)


def erf_inv(x: ArrayLike) -> Value:
    """Inverse of `erf`: infinite at -1 and 1, NaN beyond."""
    return t.unary(erf_inv_p, x)


# --- gamma functions --------------------------------------------------------------------------


def _lgamma(x: float) -> float:
    if math.isinf(x) or (x <= 0 and x == math.floor(x)):
        return math.inf
    return math.lgamma(x)


lgamma_p: Primitive = elementwise(
    "lgamma",
    t.FLOATS,
    t.by_element(_lgamma),
    jvp=(lambda g, out, x: t.mul(g, t.digamma(x)),),
    decompose=decomposition(formulas.lgamma),
    cost=PerElement(70.0, is_transcendental=True),
    cases=t.examples(t.FLOATS, (Span(0.4, 12.0),), edges=(_GAMMA_EDGES,)),
)


def lgamma(x: ArrayLike) -> Value:
    """Logarithm of the size of the gamma function; infinite at 0, -1, -2, ..."""
    return t.unary(lgamma_p, x)


# B(2k) / (2k), k = 1, 2, ...: the asymptotic series of digamma.
_BERNOULLI = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12, -3617 / 8160)


def reference_digamma(x: float) -> float:
    """digamma in float64: its asymptotic series from 12, recurrence and reflection below."""
    if math.isnan(x) or x == math.inf:
        return x
    if x == -math.inf or (x <= 0 and x == math.floor(x)):
        return math.nan
    if x < 0.5:
        fraction = x - round(x)
        return reference_digamma(1 - x) - math.pi / math.tan(math.pi * fraction)
    total = 0.0
    while x < 12:
        total -= 1 / x
        x += 1
    series = sum(b * x ** (-2 * k) for k, b in enumerate(_BERNOULLI, start=1))
    return total + math.log(x) - 0.5 / x - series


digamma_p: Primitive = elementwise(
    "digamma",
    t.FLOATS,
    t.by_element(reference_digamma),
    jvp=(lambda g, out, x: t.mul(g, t.polygamma(1.0, x)),),
    decompose=decomposition(formulas.digamma),
    cost=PerElement(80.0, is_transcendental=True),
    cases=t.examples(t.FLOATS, (Span(0.4, 12.0),), edges=(_GAMMA_EDGES,)),
)


def digamma(x: ArrayLike) -> Value:
    """Slope of `lgamma`; NaN at 0, -1, -2, ..."""
    return t.unary(digamma_p, x)


# --- Bessel functions -------------------------------------------------------------------------


def _bessel(order: int) -> Callable[[float], float]:
    """exp(-|x|) I_n(x) by the trapezoid rule on its integral, which converges like the Fourier series it is;
    by the asymptotic series for large arguments.
    """

    def function(x: float) -> float:
        size = abs(x)
        if math.isnan(x) or math.isinf(x):
            return x if math.isnan(x) else 0.0
        if size > 700:
            mu, term, total = 4 * order * order, 1.0, 1.0
            for k in range(1, 12):
                term *= -(mu - (2 * k - 1) ** 2) / (8 * size * k)
                total += term
            result = total / math.sqrt(2 * math.pi * size)
        else:
            count = 256
            angles = [math.pi * (i + 0.5) / count for i in range(count)]
            result = sum(math.exp(size * (math.cos(a) - 1)) * math.cos(order * a) for a in angles) / count
            if order and size < 0.1:  # the sum cancels
                result = math.exp(-size) * size / 2 * (1 + size**2 / 8 + size**4 / 192 + size**6 / 9216)
        return math.copysign(result, x) if order else result

    return function


bessel_i0e_p: Primitive = elementwise(
    "bessel_i0e",
    t.FLOATS,
    t.by_element(_bessel(0)),
    jvp=(lambda g, out, x: t.mul(g, t.sub(t.bessel_i1e(x), t.mul(t.sign(x), out))),),
    decompose=decomposition(formulas.bessel_i0e),
    cost=PerElement(36.0, is_transcendental=True),
    cases=t.examples(t.FLOATS, (Span(0.5, 9.0),), edges=(_EDGES,)),
)


def bessel_i0e(x: ArrayLike) -> Value:
    """Modified Bessel function of order 0 times `exp(-|x|)`."""
    return t.unary(bessel_i0e_p, x)


def _slope_i1e(g: Value, out: Value, x: Value) -> Value:
    # i0(x) - i1(x) / x, scaled; the quotient is 1/2 at 0.
    eps = dtypes.epsilon(x.dtype)
    is_far = t.gt(t.abs(x), eps)
    safe = t.where(is_far, x, eps)
    slope = t.sub(t.bessel_i0e(safe), t.mul(out, t.add(t.sign(safe), t.div(1, safe))))
    return t.mul(g, t.where(is_far, slope, 0.5))


bessel_i1e_p: Primitive = elementwise(
    "bessel_i1e",
    t.FLOATS,
    t.by_element(_bessel(1)),
    jvp=(_slope_i1e,),
    decompose=decomposition(formulas.bessel_i1e),
    cost=PerElement(36.0, is_transcendental=True),
    cases=t.examples(t.FLOATS, (Span(0.5, 9.0),), edges=(_EDGES,)),
)


def bessel_i1e(x: ArrayLike) -> Value:
    """Modified Bessel function of order 1 times `exp(-|x|)`."""
    return t.unary(bessel_i1e_p, x)
