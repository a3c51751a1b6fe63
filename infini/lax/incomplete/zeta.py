"""Hurwitz' zeta function by the formula of Euler and Maclaurin, and polygamma functions by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from infini.core import trace
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax.cases import Case, Sample, Span, always
from infini.lax.elementwise import formulas, special, terms as t
from infini.lax.elementwise.number import Number, exp, floor, where
from infini.lax.elementwise.terms import ArrayLike
from infini.lax.incomplete.iteration import examples, is_nan, looping, repeat

_BERNOULLI: Final = (
    1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160, -691 / 1307674368000, 1 / 74724249600,
    -3617 / 10670622842880000, 43867 / 5109094217170944000, -174611 / 802857662698291200000,
)  # fmt: skip
_NUM_TERMS: Final = 10


def _zeta(s: Number, q: Number) -> Number:
    """Sum of (q + k)^-s: the first terms, and Euler's and Maclaurin's formula for the others (25.11.5)."""
    is_whole = q.apply("round_even").equals(q)
    is_outside = (q < 0.0) & (is_whole | (q < -1000.0))
    start = where(is_outside, 1.0, q)
    exponent = -s
    total, last = start.apply("pow", exponent), start
    for _ in range(_NUM_TERMS - 1):
        last = last + 1.0
        total = total + last.apply("pow", exponent)

    def step(turn: Number, state: Sequence[Number]) -> tuple[list[Number], Number]:
        where_, sum_ = state[0] + 1.0, state[1]
        return [where_, sum_ + where_.apply("pow", exponent)], where_ < float(_NUM_TERMS)

    last, total = repeat(last < float(_NUM_TERMS), [last, total], step)
    end = last + 1.0
    power = end.apply("pow", exponent)
    tail = power * (end / (s - 1.0) + 0.5)
    factor, inverse = s / end, 1.0 / (end * end)
    for j, number in enumerate(_BERNOULLI):
        tail = tail + power * (factor * number)
        factor = factor * ((s + (2 * j + 1.0)) * (s + (2 * j + 2.0))) * inverse
    result = total + where(power.equals(0.0), 0.0, tail)
    is_even = (floor(s).equals(s)) & ((s * 0.5).apply("round_even").equals(s * 0.5))
    at_pole = (q <= 0.0) & is_whole
    result = where(at_pole, where(is_even, math.inf, s.constant(math.nan)), result)
    result = where(is_outside & ~is_whole, math.nan, result)
    result = where(s < 1.0, math.nan, where(s.equals(1.0), math.inf, result))
    return where(is_nan(s, q), math.nan, result)


def _reference_zeta(s: float, q: float) -> float:
    if math.isnan(s) or math.isnan(q) or s < 1:
        return math.nan
    if s == 1:
        return math.inf
    if q <= 0 and q == math.floor(q):
        return math.inf if s % 2 == 0 else math.nan
    if q < 0 and (s != math.floor(s) or q < -1000):
        return math.nan
    total = 0.0
    for _ in range(20):
        total += _power(q, -s)
        q += 1
    while q < 20:
        total += _power(q, -s)
        q += 1
    power = _power(q, -s)
    if power:
        total += power * (q / (s - 1) + 0.5)
        factor = s / q
        for j, number in enumerate(_BERNOULLI):
            total += power * factor * number
            factor *= (s + 2 * j + 1) * (s + 2 * j + 2) / (q * q)
    return total


def _power(x: float, y: float) -> float:
    return float(np.power(np.float64(x), np.float64(y)))


_ZETA_S = Span(1.2, 20.0, (1.0, 0.5, 2.0, 3.0, 2.0, 2.5, math.nan, 2.0, 100.0, 3.0, 2.5))
_ZETA_Q = Span(0.2, 40.0, (1.0, 1.0, 0.0, 0.0, -1.0, 0.0, 1.0, math.nan, 1.0, -0.5, -0.5))

zeta_p: Primitive = looping(
    "zeta",
    _reference_zeta,
    num_operands=2,
    jvp=(
        t.no_derivative("zeta", "x"),
        lambda g, out, s, q: t.mul(g, t.mul(t.neg(s), trace.bind1(zeta_p, t.add(s, 1), q))),
    ),
    formula=_zeta,
    cases=examples(Span(1.6, 5.0), Span(0.6, 5.0), moving=(1,), edges=(_ZETA_S, _ZETA_Q)),
)


def zeta(x: ArrayLike, q: ArrayLike) -> Value:
    """Hurwitz zeta function, the sum of `(q + k)**-x` over k = 0, 1, 2, ...; NaN for `x` below 1."""
    return t.binary(zeta_p, x, q)


def _polygamma(m: Number, x: Number) -> Number:
    order = m + 1.0
    is_odd = (m * 0.5).apply("round_even").differs(m * 0.5)
    size = exp(formulas.lgamma(order)) * _zeta(order, x)
    result = where(is_odd, size, -size)
    is_order = (m >= 0.0) & floor(m).equals(m) & (m < math.inf)
    result = where(m.equals(0.0), formulas.digamma(x), result)
    return where(is_order & ~is_nan(m, x), result, math.nan)


def _reference_polygamma(m: float, x: float) -> float:
    if math.isnan(m) or math.isnan(x) or m < 0 or m == math.inf or m != math.floor(m):
        return math.nan
    if m == 0:
        return special.reference_digamma(x)
    value = math.exp(math.lgamma(m + 1)) * _reference_zeta(m + 1, x) if m < 170 else math.inf
    return value if m % 2 else -value


_ORDERS = Span(2.0, 2.0, (0.0, 0.5, 1.0, 2.0, 1.0, 1.5, math.nan, 1.0, 3.0, 2.0, -1.0))


def _cases_of_order(m: Span, x: Span, *, is_smooth: bool) -> Case:
    return Case((Sample((3, 7), span=m), Sample((3, 7), span=x)), {}, "reduction", is_smooth, (1,))


polygamma_p: Primitive = looping(
    "polygamma",
    _reference_polygamma,
    num_operands=2,
    jvp=(
        t.no_derivative("polygamma", "m"),
        lambda g, out, m, x: t.mul(g, trace.bind1(polygamma_p, t.add(m, 1), x)),
    ),
    formula=_polygamma,
    cases=always(
        t.FLOATS,
        *(_cases_of_order(Span(m, m), Span(0.6, 5.0), is_smooth=True) for m in (1.0, 0.0, 4.0)),
        _cases_of_order(_ORDERS, _ZETA_Q, is_smooth=False),
    ),
)


def polygamma(m: ArrayLike, x: ArrayLike) -> Value:
    """The `m`-th derivative of digamma, for whole `m` from 0; NaN for others."""
    return t.binary(polygamma_p, m, x)
