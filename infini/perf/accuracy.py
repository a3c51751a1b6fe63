"""Errors of elementwise functions in units in the last place (ulp), against mpmath in 40 digits.

`python -m infini.perf accuracy` measures and writes docs/accuracy.md. Arguments are spread evenly over a
range and over the magnitudes in it, so the largest error found is close to the largest there is; float32 is
also searched exhaustively at night, by `tests/compiler/test_llvm_math_exhaustive.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from infini import lax
from infini.core import config, dtypes
from infini.transforms import staging

Exact = Callable[[Any, Any], Any]  # Any: mpmath and its numbers, which have no types
Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Function:
    """A function to measure.

    Args:
        name: its name in lax.
        exact: the same function of mpmath's numbers, given mpmath.
        ranges: of arguments, for float32 and float64.
    """

    name: str
    exact: Exact
    ranges: tuple[Range, Range]


FUNCTIONS: Final = (
    Function("exp", lambda m, x: m.exp(x), ((-104, 88.7), (-745, 709.7))),
    Function("exp2", lambda m, x: 2**x, ((-149, 127.9), (-1074, 1023.9))),
    Function("expm1", lambda m, x: m.expm1(x), ((-104, 88.7), (-745, 709.7))),
    Function("log", lambda m, x: m.log(x), ((1e-45, 3e38), (5e-324, 1e308))),
    Function("log1p", lambda m, x: m.log1p(x), ((-0.9999999, 3e38), (-0.999999999999, 1e308))),
    Function("logistic", lambda m, x: 1 / (1 + m.exp(-x)), ((-104, 100), (-745, 100))),
    Function("sqrt", lambda m, x: m.sqrt(x), ((0, 3e38), (0, 1e308))),
    Function("rsqrt", lambda m, x: 1 / m.sqrt(x), ((1e-37, 3e38), (1e-300, 1e308))),
    Function("cbrt", lambda m, x: m.sign(x) * m.cbrt(m.fabs(x)), ((-3e38, 3e38), (-1e308, 1e308))),
    Function("sin", lambda m, x: m.sin(x), ((-1e6, 1e6), (-1e9, 1e9))),
    Function("cos", lambda m, x: m.cos(x), ((-1e6, 1e6), (-1e9, 1e9))),
    Function("tan", lambda m, x: m.tan(x), ((-1e6, 1e6), (-1e9, 1e9))),
    Function("asin", lambda m, x: m.asin(x), ((-1, 1), (-1, 1))),
    Function("acos", lambda m, x: m.acos(x), ((-1, 1), (-1, 1))),
    Function("atan", lambda m, x: m.atan(x), ((-1e3, 1e3), (-1e3, 1e3))),
    Function("sinh", lambda m, x: m.sinh(x), ((-89.4, 89.4), (-710.4, 710.4))),
    Function("cosh", lambda m, x: m.cosh(x), ((-89.4, 89.4), (-710.4, 710.4))),
    Function("tanh", lambda m, x: m.tanh(x), ((-20, 20), (-40, 40))),
    Function("asinh", lambda m, x: m.asinh(x), ((-1e38, 1e38), (-1e307, 1e307))),
    Function("acosh", lambda m, x: m.acosh(x), ((1, 1e38), (1, 1e307))),
    Function("atanh", lambda m, x: m.atanh(x), ((-0.9999999, 0.9999999), (-0.999999999999, 0.999999999999))),
    Function("erf", lambda m, x: m.erf(x), ((-6, 6), (-7, 7))),
    Function("erfc", lambda m, x: m.erfc(x), ((-5, 9.9), (-6, 26.5))),
    Function(
        "erf_inv", lambda m, x: m.erfinv(x), ((-0.9999999, 0.9999999), (-0.999999999999, 0.999999999999))
    ),
    Function(
        "lgamma", lambda m, x: m.log(m.gamma(x)) if x < 100 else m.loggamma(x), ((1e-30, 1e6), (1e-200, 1e6))
    ),
    Function("digamma", lambda m, x: m.digamma(x), ((2, 1e6), (2, 1e6))),
    Function("bessel_i0e", lambda m, x: m.besseli(0, x) * m.exp(-m.fabs(x)), ((-200, 200), (-200, 200))),
    Function("bessel_i1e", lambda m, x: m.besseli(1, x) * m.exp(-m.fabs(x)), ((-200, 200), (-200, 200))),
)


def spread(low: float, high: float, count: int, dtype: np.dtype) -> np.ndarray:
    """Numbers of a range: a quarter even, a quarter between -4 and 4, the others of every magnitude."""
    even = np.linspace(low / 2, high / 2, count // 4) * 2  # the width of a range may overflow
    central = np.linspace(-4, 4, count // 4)
    smallest = float(np.finfo(dtype).tiny)
    powers = np.exp(np.linspace(np.log(smallest), np.log(max(abs(low), abs(high))), count // 4))
    found = np.unique(np.concatenate([even, central, powers, -powers]).astype(dtype))
    return found[(found >= low) & (found <= high)]


def exactly(function: Function, x: np.ndarray) -> np.ndarray:
    """Values in extended precision, from mpmath."""
    import mpmath  # type: ignore[import-untyped]  # it has no types; needed to measure, not to compute

    def extended(number: float) -> np.longdouble:
        with mpmath.workdps(40):
            value = mpmath.re(function.exact(mpmath, mpmath.mpf(float(number))))
            head = float(value)
            return np.longdouble(head) + np.longdouble(float(value - head) if np.isfinite(head) else 0.0)

    return np.array([extended(number) for number in x])


def in_ulp(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Errors in units in the last place of the exact values; a value that rounds right has none."""
    rounded = exact.astype(found.dtype)
    unit = np.spacing(np.maximum(np.abs(rounded), np.finfo(found.dtype).tiny))
    error = np.abs(found.astype(np.longdouble) - exact) / unit
    return np.where((found == rounded) | (np.isnan(found) & np.isnan(rounded)), 0, error).astype(np.float64)


def measure(function: Function, dtype: np.dtype, count: int) -> float:
    """Largest error in ulp over about `count` arguments, on the default device."""
    low, high = function.ranges[dtype == dtypes.float64]
    x = spread(low, high, count, dtype)
    run = staging.jit(getattr(lax, function.name))
    with np.errstate(all="ignore"), config.config(host64="keep"):
        return float(in_ulp(np.asarray(run(x)), exactly(function, x)).max())


def table(functions: Sequence[Function], count: int) -> Iterator[tuple[str, float, float]]:
    """Name and largest errors in float32 and float64 of each function."""
    for function in functions:
        yield (
            function.name,
            measure(function, dtypes.float32, count),
            measure(function, dtypes.float64, count),
        )


PAGE: Final = """# Accuracy

Largest errors of elementwise functions on the CPU backend, in units in the last place (ulp) of the result,
against {digits} digits of mpmath, over arguments of every magnitude in the range given [{claim}]. A number
that rounds to nearest has an error of 0.5 at most. Written by `python -m infini.perf accuracy`.

| function | float32 | range | float64 | range |
|---|---|---|---|---|
{rows}

- Floats of 16 and 8 bits are computed in float32 and rounded once, so their errors are those of one rounding.
- `lgamma` and `digamma` are given where they are not near a zero: there the error is small against 1, not
  against the result. `tan`, `sin` and `cos` have these errors for every finite argument; beyond 2^27 the C
  library computes.
- `add sub mul div sqrt neg abs floor ceil round max min nextafter reduce_precision` and conversions are
  exact: the result is the nearest number. `rsqrt` and `reciprocal` round twice.
- `pow` of float32 is computed in float64 and rounded; that of float64 is the C library's.
- `zeta polygamma igamma igammac igamma_grad_a random_gamma_grad betainc` are series, with errors of some tens
  of epsilons of the largest term.
- Functions are exact at NaN, infinities and zeros of both signs, and right for subnormal numbers, which XLA's
  CPU backend takes for zero.
- On CUDA devices exp, log, sin, cos and erf are Triton's; other functions are the formulas of
  `infini/lax/elementwise/formulas.py`, the same that the CPU uses.

## Every float32

Ranges above are sampled, so an error between the samples may be a little larger. These are the bounds that
the tests assert, with NaN, infinities and the sign of zero right. Every bit pattern of float32 has been
looked at [C15]; `make test-night` does it again, and `bench/nightly/` says when it last did.
`python -m infini.perf accuracy --every 1` prints the worst argument of each function.

| bound in ulp | functions |
|---|---|
| 0.5 | `sqrt` |
| 0.9 to 1 | `log cbrt` |
| 1.3 to 1.6 | `exp exp2 expm1 log1p rsqrt sin cos acos` |
| 2.5 to 4 | `asin atan sinh cosh asinh acosh atanh logistic tan` |
| 4 to 6.5 | `erf_inv tanh bessel_i0e erfc erf lgamma` |
| 16 to 20 | `digamma bessel_i1e` |

`lgamma` and `digamma` are bounded for positive arguments, in units of 1 where the result is smaller. For
every float16 and bfloat16 the error of all of these is at most 0.51.
"""


def page(rows: Sequence[tuple[str, float, float]], claim: str) -> str:
    """The page of the documentation, from measured rows.

    Args:
        rows: what `table` gave.
        claim: row of docs/claims.md that says how they were measured.
    """
    ranges = {f.name: f.ranges for f in FUNCTIONS}

    def between(bounds: Range) -> str:
        return " .. ".join(f"{x:.13g}" for x in bounds)

    lines = []
    for name, single, double in rows:
        near, far = map(between, ranges[name])
        lines.append(f"| `{name}` | {single:.2f} | {near} | {double:.2f} | {far} |")
    return PAGE.format(digits=40, claim=claim, rows="\n".join(lines))
