"""Where the coefficients of our functions come from: Chebyshev interpolation in 60 digits.

`python -m tools.fit_polynomials` prints `infini/lax/elementwise/coefficients.py`. An interpolant at Chebyshev
nodes is within a factor of about two of the best polynomial of its degree; the number of terms is chosen so
that the error, printed beside each table relative to the function, is below half a unit in the last place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import mpmath  # type: ignore[import-untyped]  # it has no types
from mpmath import mp, mpf

mp.dps = 60
Real = Any  # Any: mpmath has no types
_TINY: Final = mpf(10) ** -26

HEAD: Final = '''"""Coefficients: of polynomials highest power first, of Chebyshev series lowest first.

Written by `python -m tools.fit_polynomials`, which says how; do not edit. Names end in the width. Errors are
the largest ones of the approximation, relative to the function, before rounding.
"""

from __future__ import annotations

from typing import Final
'''


@dataclass(frozen=True)
class Fit:
    """One table: `function` on [low, high], whose error counts times `weight`."""

    name: str
    meaning: str
    function: Callable[[Real], Real]
    low: Real
    high: Real
    terms: tuple[int, int]  # for float32, 0 where it needs none, and for float64
    weight: Callable[[Real], Real] = lambda z: mpf(1)
    is_series: bool = False


def odd(function: Callable[[Real], Real]) -> Callable[[Real], Real]:
    """P with f(x) = x + x z P(z), z = x^2, for an odd function of slope 1 at 0."""

    def rest(z: Real) -> Real:
        z = max(z, _TINY)
        x = mpmath.sqrt(z)
        return (function(x) / x - 1) / z

    return rest


def _erf(z: Real) -> Real:
    x = mpmath.sqrt(max(z, _TINY))
    return mpmath.erf(x) / x


ERFC_CENTRE: Final = 3


def _scaled_erfc(t: Real) -> Real:
    if t >= 1 - _TINY:
        return 2 / mpmath.sqrt(mpmath.pi)
    x = ERFC_CENTRE * (1 + t) / (1 - t)
    if x < 60:
        return mpmath.exp(x * x) * mpmath.erfc(x) * (1 + 2 * x)
    series = sum((-1) ** k * mpmath.fac2(2 * k - 1) / (2 * x * x) ** k for k in range(25))
    return series / (mpmath.sqrt(mpmath.pi) * x) * (1 + 2 * x)


def _lgamma(t: Real) -> Real:
    return 1 - mpmath.euler if abs(t) < _TINY else mpmath.loggamma(2 + t) / t


def _stirling(w: Real) -> Real:
    if w < mpf(10) ** -20:
        return mpf(1) / 12 - w / 360
    x = 1 / mpmath.sqrt(w)
    with mp.workdps(90):
        plain = (x - mpf(1) / 2) * mpmath.log(x) - x + mpmath.log(2 * mpmath.pi) / 2
        return (mpmath.loggamma(x) - plain) * x


def _digamma(w: Real) -> Real:
    if w < mpf(10) ** -16:
        return mpf(1) / 12 - w / 120
    x = 1 / mpmath.sqrt(w)
    with mp.workdps(90):
        return (mpmath.log(x) - 1 / (2 * x) - mpmath.digamma(x)) * x * x


def _bessel_near(order: int) -> Callable[[Real], Real]:
    def function(y: Real) -> Real:
        x = 4 * (y + 1)
        if order and x < _TINY:
            return mpf(1) / 2
        return mpmath.besseli(order, x) * mpmath.exp(-x) / (x if order else 1)

    return function


def _bessel_far(order: int) -> Callable[[Real], Real]:
    def function(y: Real) -> Real:
        if y <= -1 + _TINY:
            return 1 / mpmath.sqrt(2 * mpmath.pi)
        x = 16 / (y + 1)
        return mpmath.besseli(order, x) * mpmath.exp(-x) * mpmath.sqrt(x)

    return function


def _exp(r: Real) -> Real:
    return mpf(1) / 2 if abs(r) < _TINY else (mpmath.exp(r) - 1 - r) / (r * r)


def _cos(z: Real) -> Real:
    z = max(z, _TINY)
    return (mpmath.cos(mpmath.sqrt(z)) - 1 + z / 2) / (z * z)


def _log(z: Real) -> Real:
    z = max(z, _TINY)
    x = mpmath.sqrt(z)
    return (2 * mpmath.atanh(x) / x - 2) / z


_HALF_LN2 = mpmath.log(2) / 2
_EIGHTH = (mpmath.sqrt(2) - 1) ** 2  # tan(pi/8) squared
_QUARTER = (mpmath.pi / 4) ** 2
_LOG_END = ((mpmath.sqrt(2) - 1) / (mpmath.sqrt(2) + 1)) ** 2

FITS: Final = (
    Fit(
        "ATAN",
        "atan(x) = x + x z P(z), z = x^2, for |x| <= tan(pi/8)",
        odd(mpmath.atan),
        0,
        _EIGHTH,
        (5, 12),
        lambda z: z,
    ),
    Fit(
        "ASIN",
        "asin(x) = x + x z P(z), z = x^2, for |x| <= 1/2",
        odd(mpmath.asin),
        0,
        mpf(1) / 4,
        (6, 14),
        lambda z: z,
    ),
    Fit("SINH", "sinh(x) = x + x z P(z), z = x^2, for |x| <= 1", odd(mpmath.sinh), 0, 1, (4, 8), lambda z: z),
    Fit("ERF", "erf(x) = x P(x^2) for |x| <= 1", _erf, 0, 1, (7, 13)),
    Fit(
        "ERFC",
        "(1 + 2 x) exp(x^2) erfc(x) = P(t), t = (x - 3) / (x + 3), for x >= 0",
        _scaled_erfc,
        -1,
        1,
        (13, 27),
    ),
    Fit("LGAMMA", "log gamma(2 + t) = t P(t) for |t| <= 1/2", _lgamma, mpf(-1) / 2, mpf(1) / 2, (9, 19)),
    Fit(
        "STIRLING",
        "log gamma(x) = (x - 1/2) log(x) - x + log(2 pi)/2 + P(1 / x^2) / x for x >= 8",
        _stirling,
        0,
        mpf(1) / 64,
        (3, 7),
        mpmath.sqrt,
    ),
    Fit(
        "DIGAMMA",
        "digamma(x) = log(x) - 1/(2 x) - w P(w), w = 1 / x^2, for x >= 8",
        _digamma,
        0,
        mpf(1) / 64,
        (3, 7),
        lambda w: w,
    ),
    Fit(
        "I0_NEAR",
        "exp(-x) I0(x) for 0 <= x <= 8, in x/4 - 1",
        _bessel_near(0),
        -1,
        1,
        (17, 30),
        is_series=True,
    ),
    Fit(
        "I0_FAR",
        "exp(-x) I0(x) sqrt(x) for x >= 8, in 16/x - 1",
        _bessel_far(0),
        -1,
        1,
        (7, 25),
        is_series=True,
    ),
    Fit(
        "I1_NEAR",
        "exp(-x) I1(x) / x for 0 <= x <= 8, in x/4 - 1",
        _bessel_near(1),
        -1,
        1,
        (17, 30),
        is_series=True,
    ),
    Fit(
        "I1_FAR",
        "exp(-x) I1(x) sqrt(x) for x >= 8, in 16/x - 1",
        _bessel_far(1),
        -1,
        1,
        (7, 25),
        is_series=True,
    ),
    Fit(
        "EXP",
        "exp(r) = 1 + r + r^2 P(r) for |r| <= ln(2)/2",
        _exp,
        -_HALF_LN2,
        _HALF_LN2,
        (0, 11),
        lambda r: r * r,
    ),
    Fit(
        "SIN",
        "sin(x) = x + x z P(z), z = x^2, for |x| <= pi/4",
        odd(mpmath.sin),
        0,
        _QUARTER,
        (0, 7),
        lambda z: z,
    ),
    Fit(
        "COS",
        "cos(x) = 1 - z/2 + z^2 P(z), z = x^2, for |x| <= pi/4",
        _cos,
        0,
        _QUARTER,
        (0, 7),
        lambda z: z * z,
    ),
    Fit(
        "LOG",
        "log(m) = 2 s + s z P(z), s = (m - 1) / (m + 1), z = s^2, for 1/sqrt(2) <= m <= sqrt(2)",
        _log,
        0,
        _LOG_END,
        (0, 8),
        lambda z: z,
    ),
)


def chebyshev(fit: Fit, count: int) -> list[Real]:
    """Coefficients of the interpolating Chebyshev series, lowest first."""
    nodes = [mpmath.cos(mpmath.pi * (2 * i + 1) / (2 * count)) for i in range(count)]
    centre, half = (mpf(fit.high) + fit.low) / 2, (mpf(fit.high) - fit.low) / 2
    values = [fit.function(centre + half * node) for node in nodes]
    angles = [mpmath.pi * (2 * i + 1) / (2 * count) for i in range(count)]
    samples = list(zip(values, angles, strict=True))
    found = [2 * sum(v * mpmath.cos(j * a) for v, a in samples) / count for j in range(count)]
    found[0] /= 2
    return found


def monomials(fit: Fit, series: Sequence[Real]) -> list[Real]:
    """The series as a polynomial, highest power first."""
    slope = 2 / (mpf(fit.high) - fit.low)
    shift = -(mpf(fit.high) + fit.low) / (mpf(fit.high) - fit.low)

    def times(p: list[Real], a: Real, b: Real) -> list[Real]:  # p(x) (a x + b), lowest power first
        return [b * low + a * high for low, high in zip([*p, mpf(0)], [mpf(0), *p], strict=True)]

    def plus(p: Sequence[Real], q: Sequence[Real], factor: Real) -> list[Real]:
        size = max(len(p), len(q))
        return [(p[i] if i < len(p) else 0) + factor * (q[i] if i < len(q) else 0) for i in range(size)]

    before, current = [mpf(1)], [shift, slope]
    total = plus([series[0]], current, series[1])
    for coefficient in series[2:]:
        before, current = current, plus(times(current, 2 * slope, 2 * shift), before, -1)
        total = plus(total, current, coefficient)
    return total[::-1]


def largest_error(fit: Fit, series: Sequence[Real]) -> Real:
    """Largest difference from the function on a grid, times the weight."""
    worst = mpf(0)
    for i in range(300):
        y = mpf(2 * i + 1) / 300 - 1
        z = (mpf(fit.high) + fit.low) / 2 + (mpf(fit.high) - fit.low) / 2 * y
        found = sum(c * mpmath.chebyt(j, y) for j, c in enumerate(series))
        worst = max(worst, abs((found - fit.function(z)) * fit.weight(z)))
    return worst


def tables() -> Iterator[str]:
    """The lines of the file."""
    yield HEAD
    for fit in FITS:
        yield f"# {fit.meaning}"
        for width, count, digits in ((32, fit.terms[0], 10), (64, fit.terms[1], 17)):
            if not count:
                continue
            series = chebyshev(fit, count)
            numbers = series if fit.is_series else monomials(fit, series)
            yield f"{fit.name}_{width}: Final = (  # error {mpmath.nstr(largest_error(fit, series), 2)}"
            yield from (f"    {mpmath.nstr(x, digits, strip_zeros=False)}," for x in numbers)
            yield ")"


if __name__ == "__main__":
    print("\n".join(tables()))
