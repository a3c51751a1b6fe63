"""Incomplete gamma functions and their slopes, by series and by continued fraction.

A slope by a parameter is carried along, term by term. Formulas are those of chapter 8 of the Digital Library
of Mathematical Functions, https://dlmf.nist.gov.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from infini.core import trace
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax.cases import Span
from infini.lax.elementwise import formulas, special, terms as t
from infini.lax.elementwise.number import Number, exp, log, where
from infini.lax.elementwise.terms import ArrayLike
from infini.lax.incomplete.iteration import epsilon, examples, is_nan, looping, repeat


def _series(a: Number, x: Number, active: Number, *, with_slope: bool) -> tuple[Number, Number]:
    """S with P(a, x) = x^a exp(-x) / gamma(a + 1) S (8.11.4), and its slope in a."""
    eps = epsilon(x)

    def step(turn: Number, state: Sequence[Number]) -> tuple[list[Number], Number]:
        term, harmonic, total, slope = state
        divisor = a + turn
        term, harmonic = term * (x / divisor), harmonic + 1.0 / divisor
        change = term * harmonic
        total, slope = total + term, slope - change
        is_unfinished = change > eps * -slope if with_slope else term > eps * total
        return [term, harmonic, total, slope], is_unfinished

    _, _, total, slope = repeat(active, [a.constant(1.0), 0.0, 1.0, 0.0], step)
    return total, slope


def _fraction(a: Number, x: Number, active: Number, *, with_slope: bool) -> tuple[Number, Number]:
    """F with Q(a, x) = x^a exp(-x) / gamma(a) F (8.9.2, by Lentz's method), and the slope of log F in a."""
    eps, tiny = epsilon(x), float(np.finfo(x.dtype).tiny) / epsilon(x)
    first = x + 1.0 - a

    def step(turn: Number, state: Sequence[Number]) -> tuple[list[Number], Number]:
        up, up_slope, down, down_slope, total, slope = state
        over, under = turn * (a - turn), first + 2.0 * turn
        divisor = under + over * down
        divisor = where(abs(divisor) < tiny, tiny, divisor)
        divisor_slope = turn * down + over * down_slope - 1.0
        new_down = 1.0 / divisor
        new_down_slope = -divisor_slope * new_down * new_down
        new_up = under + over / up
        new_up = where(abs(new_up) < tiny, tiny, new_up)
        new_up_slope = turn / up - over * up_slope / (up * up) - 1.0
        factor = new_up * new_down
        change = new_up_slope / new_up + new_down_slope / new_down
        is_unfinished = abs(factor - 1.0) > eps
        if with_slope:
            is_unfinished = is_unfinished | (abs(change) > eps * abs(slope))
        return [new_up, new_up_slope, new_down, new_down_slope, total * factor, slope + change], is_unfinished

    start = [first, a.constant(-1.0), a.constant(0.0), a.constant(0.0), first, -1.0 / first]
    *_, total, slope = repeat(active, start, step)
    return 1.0 / total, -slope


def _gamma_regions(a: Number, x: Number) -> tuple[Number, Number, Number, Number]:
    """Operands with 1 in place of what is handled apart; where they are inside, and where the fraction is
    better.
    """
    is_inside = (a > 0.0) & (x > 0.0) & (a < math.inf) & (x < math.inf)
    safe_a, safe_x = where(is_inside, a, 1.0), where(is_inside, x, 1.0)
    return safe_a, safe_x, is_inside, (safe_x > 1.0) & (safe_x > safe_a)


def _gamma_density(a: Number, x: Number) -> Number:
    """x^a exp(-x) / gamma(a)."""
    return exp(a * log(x) - x - formulas.lgamma(a))


def _incomplete(a: Number, x: Number, *, is_upper: bool) -> Number:
    a_inside, x_inside, is_inside, use_fraction = _gamma_regions(a, x)
    density = _gamma_density(a_inside, x_inside)
    has_mass = is_inside & (density > 0.0)
    total, _ = _series(a_inside, x_inside, has_mass & ~use_fraction, with_slope=False)
    fraction, _ = _fraction(a_inside, x_inside, has_mass & use_fraction, with_slope=False)
    lower, upper = density * total / a_inside, density * fraction
    parts = (upper, 1.0 - lower) if is_upper else (1.0 - upper, lower)
    result = where(use_fraction, *parts)
    # All of the mass is at 0 for a = 0, none is below infinity for a = inf.
    none_below = x.equals(0.0) | a.equals(math.inf)
    all_below = x.equals(math.inf) | (a.equals(0.0) & (x > 0.0))
    result = where(none_below, 1.0 if is_upper else 0.0, result)
    result = where(all_below, 0.0 if is_upper else 1.0, result)
    is_outside = (a < 0.0) | (x < 0.0) | (a.equals(0.0) & x.equals(0.0))
    return where(is_outside | is_nan(a, x), math.nan, result)


def _slope_in_a(a: Number, x: Number, *, of_sample: bool) -> Number:
    """Slope of P(a, x) in a; of samples, divided by minus the density."""
    a_inside, x_inside, is_inside, use_fraction = _gamma_regions(a, x)
    density = _gamma_density(a_inside, x_inside)
    has_mass = is_inside if of_sample else is_inside & (density > 0.0)
    total, total_slope = _series(a_inside, x_inside, has_mass & ~use_fraction, with_slope=True)
    fraction, fraction_slope = _fraction(a_inside, x_inside, has_mass & use_fraction, with_slope=True)
    log_slope = log(x_inside) - formulas.digamma(a_inside)
    lower = (total * (log_slope - 1.0 / a_inside) + total_slope) / a_inside
    upper = fraction * (log_slope + fraction_slope)
    ratio = where(use_fraction, -upper, lower)
    result = -ratio * x_inside if of_sample else ratio * density
    result = where(x.equals(0.0), 0.0, result)
    return where((a <= 0.0) | (x < 0.0) | is_nan(a, x) | x.equals(math.inf), math.nan, result)


def _lower_gamma(a: float, x: float) -> float:
    """P(a, x) in float64: the series, or 1 less the fraction."""
    if math.isnan(a) or math.isnan(x) or a < 0 or x < 0 or a == x == 0:
        return math.nan
    if x in (0, math.inf) or a in (0, math.inf):
        return 1.0 if (a == 0 or x == math.inf) else 0.0
    if x > 1 and x > a:
        return 1 - _upper_gamma(a, x)
    term = total = 1 / a
    n = 0
    while term > total * 1e-17:
        n += 1
        term *= x / (a + n)
        total += term
    return total * math.exp(a * math.log(x) - x - math.lgamma(a))


def _upper_gamma(a: float, x: float) -> float:
    """Q(a, x) in float64, the fraction from its far end."""
    if not (x > 1 and x > a and x < math.inf):
        return 1 - _lower_gamma(a, x)
    value = 0.0
    for k in range(400, 0, -1):
        value = k * (a - k) / (x + 2 * k + 1 - a + value)
    return math.exp(a * math.log(x) - x - math.lgamma(a)) / (x + 1 - a + value) if a else 0.0


def _reference_slope(a: float, x: float) -> tuple[float, float]:
    """Slope of P(a, x) in a over the density in x, and the density, by double exponential quadrature of
    t^(a - 1) exp(-t) (log t - digamma(a)): below x, or beyond it.
    """
    s = np.arange(-6.0, 6.0, 1 / 32)
    with np.errstate(all="ignore"):
        if x > 1 and x > a:
            u = np.exp(s - np.exp(-s))
            weights = np.exp(-u + (a - 1) * np.log1p(u / x)) * u * (1 + np.exp(-s))
            terms = -weights * (np.log(x + u) - special.reference_digamma(a))
        else:
            place = -np.logaddexp(0.0, -math.pi * np.sinh(s))  # log of t / x
            rest = 1 / (1 + np.exp(math.pi * np.sinh(s)))
            weights = np.exp(a * place + x * rest) * rest * math.pi * np.cosh(s)
            terms = x * weights * (place + math.log(x) - special.reference_digamma(a))
    total = float(np.nansum(terms)) / 32
    return total, math.exp((a - 1) * math.log(x) - x - math.lgamma(a))


def _reference_grad_a(a: float, x: float) -> float:
    if math.isnan(a) or math.isnan(x) or a <= 0 or x < 0 or math.isinf(x):
        return math.nan
    if x == 0:
        return 0.0
    ratio, density = _reference_slope(a, x)
    return ratio * density


def _reference_sample_slope(a: float, x: float) -> float:
    slope = _reference_grad_a(a, x)
    return slope if math.isnan(slope) or x == 0 else -_reference_slope(a, x)[0]


_GAMMA_A = Span(0.2, 30.0, (1.0, 0.0, 2.0, 0.0, math.nan, 5.0, -1.0, 0.5, 0.5, 1.0, 10.0))
_GAMMA_X = Span(0.1, 30.0, (0.0, 2.0, math.inf, 0.0, 1.0, math.nan, 1.0, -1.0, 1e-10, 1.0, 10.0))
_GAMMA_CASES = examples(Span(0.6, 6.0), Span(0.6, 6.0), edges=(_GAMMA_A, _GAMMA_X))


def _density_term(g: Value, a: Value, x: Value) -> Value:
    power = t.mul(t.sub(a, 1), t.log(x))
    return t.mul(g, t.exp(t.sub(t.sub(power, x), t.lgamma(a))))


igamma_p: Primitive = looping(
    "igamma",
    _lower_gamma,
    num_operands=2,
    jvp=(
        lambda g, out, a, x: t.mul(g, trace.bind1(igamma_grad_a_p, a, x)),
        lambda g, out, a, x: _density_term(g, a, x),
    ),
    formula=lambda a, x: _incomplete(a, x, is_upper=False),
    cases=examples(Span(0.6, 6.0), Span(0.6, 6.0), moving=(1,), edges=(_GAMMA_A, _GAMMA_X)),
)


def igamma(a: ArrayLike, x: ArrayLike) -> Value:
    """Regularized lower incomplete gamma function P(a, x): the mass of a gamma distribution below `x`."""
    return t.binary(igamma_p, a, x)


igammac_p: Primitive = looping(
    "igammac",
    _upper_gamma,
    num_operands=2,
    jvp=(
        lambda g, out, a, x: t.neg(t.mul(g, trace.bind1(igamma_grad_a_p, a, x))),
        lambda g, out, a, x: t.neg(_density_term(g, a, x)),
    ),
    formula=lambda a, x: _incomplete(a, x, is_upper=True),
    cases=examples(Span(0.6, 6.0), Span(0.6, 6.0), moving=(1,), edges=(_GAMMA_A, _GAMMA_X)),
)


def igammac(a: ArrayLike, x: ArrayLike) -> Value:
    """Regularized upper incomplete gamma function Q(a, x) = 1 - P(a, x), accurate where that is small."""
    return t.binary(igammac_p, a, x)


igamma_grad_a_p: Primitive = looping(
    "igamma_grad_a",
    _reference_grad_a,
    num_operands=2,
    formula=lambda a, x: _slope_in_a(a, x, of_sample=False),
    cases=_GAMMA_CASES,
)


def igamma_grad_a(a: ArrayLike, x: ArrayLike) -> Value:
    """Slope of P(a, x) in `a`."""
    return t.binary(igamma_grad_a_p, a, x)


random_gamma_grad_p: Primitive = looping(
    "random_gamma_grad",
    _reference_sample_slope,
    num_operands=2,
    formula=lambda a, x: _slope_in_a(a, x, of_sample=True),
    cases=_GAMMA_CASES,
)


def random_gamma_grad(a: ArrayLike, x: ArrayLike) -> Value:
    """Slope in `a` of samples `x` of the gamma distribution with shape `a`, by implicit differentiation."""
    return t.binary(random_gamma_grad_p, a, x)
