"""The incomplete beta function, by its continued fraction (https://dlmf.nist.gov/8.17)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax.cases import Span
from infini.lax.elementwise import formulas, terms as t
from infini.lax.elementwise.number import Number, exp, log, log1p, where
from infini.lax.elementwise.terms import ArrayLike
from infini.lax.incomplete.iteration import epsilon, examples, is_nan, looping, repeat


def _beta_fraction(a: Number, b: Number, x: Number, active: Number) -> Number:
    """I with I_x(a, b) = x^a (1 - x)^b / (a B(a, b)) I (8.17.22, by Lentz's method)."""
    eps, tiny = epsilon(x), float(np.finfo(x.dtype).tiny) / epsilon(x)

    def lentz(over: Number, up: Number, down: Number) -> tuple[Number, Number]:
        new_down = 1.0 + over * down
        new_up = 1.0 + over / up
        new_down = 1.0 / where(abs(new_down) < tiny, tiny, new_down)
        return where(abs(new_up) < tiny, tiny, new_up), new_down

    def step(turn: Number, state: Sequence[Number]) -> tuple[list[Number], Number]:
        up, down, total = state
        m, even = turn, a + 2.0 * turn
        up, down = lentz(m * (b - m) * x / ((even - 1.0) * even), up, down)
        total = total * (up * down)
        up, down = lentz(-(a + m) * (a + b + m) * x / (even * (even + 1.0)), up, down)
        factor = up * down
        return [up, down, total * factor], abs(factor - 1.0) > eps

    up, down = lentz(-(a + b) * x / (a + 1.0), x.constant(1.0), x.constant(0.0))
    *_, total = repeat(active, [up, down, up * down], step)
    return 1.0 / total


def _incomplete_beta(a: Number, b: Number, x: Number) -> Number:
    is_outside = (a < 0.0) | (b < 0.0) | (x < 0.0) | (x > 1.0) | is_nan(a, b, x)
    at_zero = a.equals(0.0) | b.equals(math.inf)  # all of the mass is at 0
    at_one = b.equals(0.0) | a.equals(math.inf)
    is_inside = (x > 0.0) & (x < 1.0) & ~(is_outside | at_zero | at_one)
    a_in, b_in, x_in = where(is_inside, a, 1.0), where(is_inside, b, 1.0), where(is_inside, x, 0.25)
    # The fraction converges fast up to the mean; beyond, the other tail is computed (8.17.4).
    is_near = x_in < (a_in + 1.0) / (a_in + b_in + 2.0)
    first, second = where(is_near, a_in, b_in), where(is_near, b_in, a_in)
    rest = 1.0 - x_in
    place, log_rest = where(is_near, x_in, rest), where(is_near, log1p(-x_in), log(x_in))
    log_beta = formulas.lgamma(first) + formulas.lgamma(second) - formulas.lgamma(first + second)
    density = exp(first * where(is_near, log(x_in), log1p(-x_in)) + second * log_rest - log_beta)
    tail = density * _beta_fraction(first, second, place, is_inside & (density > 0.0)) / first
    result = where(is_near, tail, 1.0 - tail)
    is_zero = (at_one & (x < 1.0)) | x.equals(0.0)
    is_one = (at_zero & (x > 0.0)) | x.equals(1.0)
    result = where(is_one, 1.0, where(is_zero, 0.0, result))
    return where(is_outside | (at_zero & at_one), math.nan, result)


def _reference_betainc(a: float, b: float, x: float) -> float:
    if any(map(math.isnan, (a, b, x))) or a < 0 or b < 0 or not 0 <= x <= 1:
        return math.nan
    at_zero, at_one = a == 0 or b == math.inf, b == 0 or a == math.inf
    if at_zero and at_one:
        return math.nan
    if x in (0, 1) or at_zero or at_one:
        return 1.0 if x == 1 or (at_zero and x > 0) else 0.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _reference_betainc(b, a, 1 - x)
    value = 0.0
    for m in range(300, 0, -1):
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        value = even / (1 + odd / (1 + value))
    first = 1 - (a + b) * x / (a + 1) / (1 + value)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta) / (a * first)


def _beta_density(g: Value, a: Value, b: Value, x: Value) -> Value:
    log_beta = t.sub(t.add(t.lgamma(a), t.lgamma(b)), t.lgamma(t.add(a, b)))
    power = t.add(t.mul(t.sub(b, 1), t.log1p(t.neg(x))), t.mul(t.sub(a, 1), t.log(x)))
    return t.mul(g, t.exp(t.sub(power, log_beta)))


betainc_p: Primitive = looping(
    "regularized_incomplete_beta",
    _reference_betainc,
    num_operands=3,
    jvp=(
        t.no_derivative("betainc", "a"),
        t.no_derivative("betainc", "b"),
        lambda g, out, a, b, x: _beta_density(g, a, b, x),
    ),
    formula=_incomplete_beta,
    cases=examples(
        Span(0.6, 5.0),
        Span(0.6, 5.0),
        Span(0.1, 0.9),
        moving=(2,),
        edges=(
            Span(0.2, 20.0, (0.0, 1.0, math.inf, 2.0, math.nan, 1.0, -1.0)),
            Span(0.2, 20.0, (1.0, 0.0, 2.0, math.inf, 1.0, math.nan, 1.0)),
            Span(0.0, 1.0, (0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.0, 1.0, -0.5, 1.5, math.nan)),
        ),
    ),
)


def betainc(a: ArrayLike, b: ArrayLike, x: ArrayLike) -> Value:
    """Regularized incomplete beta function I_x(a, b): the mass of a beta distribution below `x`."""
    return t.nary(betainc_p, a, b, x)
