"""Errors of elementwise functions over every float of a dtype, against NumPy and SciPy in float64.

Where a result has 24 bits, an oracle of 53 is as good as an exact one: its own error is below 1e-8 of a unit
in the last place. `accuracy` measures float64, and says in docs/accuracy.md what was found here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np

from infini import lax
from infini.core import config, dtypes
from infini.transforms import staging

_CHUNK: Final = 1 << 18  # arguments at a time, which stay in the cache
_WIDE: Final = np.float64


@dataclass(frozen=True, slots=True)
class Function:
    """A function of one argument.

    Args:
        name: its name in lax.
        exact: the same function of float64 arrays.
        bound: largest error in float32, in units in the last place, that we state.
        low: only arguments above are tried.
        least: results below are measured in units of this number, for functions with zeros that no argument
            hits.
    """

    name: str
    exact: Callable[[np.ndarray], np.ndarray]
    bound: float
    low: float = -np.inf
    least: float = 0.0


@dataclass(frozen=True, slots=True)
class Worst:
    """What was found for a function and a dtype.

    Args:
        ulp: largest error in units in the last place of the exact result.
        argument: where.
        num_wrong: arguments for which a NaN, an infinity or the sign of a zero is wrong.
        num_arguments: how many were tried.
    """

    ulp: float
    argument: float
    num_wrong: int
    num_arguments: int


def _scipy(name: str) -> Callable[[np.ndarray], np.ndarray]:
    def function(x: np.ndarray) -> np.ndarray:
        # An oracle, which people who only compute have no need of.
        result: np.ndarray = getattr(importlib.import_module("scipy.special"), name)(x)
        return np.where((x == 0) & (result == 0), x, result)  # SciPy drops the sign of zero

    return function


def _erf_inv(x: np.ndarray) -> np.ndarray:
    inside = np.abs(x) <= 1  # SciPy takes its time over the others
    return np.where(inside, _scipy("erfinv")(np.where(inside, x, 0.0)), np.nan)


def _logistic(x: np.ndarray) -> np.ndarray:
    result: np.ndarray = 1 / (1 + np.exp(-x))
    return result


FUNCTIONS: Final = (
    Function("exp", np.exp, 1.3),
    Function("exp2", np.exp2, 1.5),
    Function("expm1", np.expm1, 1.5),
    Function("log", np.log, 0.9),
    Function("log1p", np.log1p, 1.6),
    Function("logistic", _logistic, 3.0),
    Function("sqrt", np.sqrt, 0.5),
    Function("rsqrt", lambda x: 1 / np.sqrt(x), 1.5),
    Function("cbrt", np.cbrt, 1.0),
    Function("sin", np.sin, 1.6),
    Function("cos", np.cos, 1.6),
    Function("tan", np.tan, 4.0),
    Function("asin", np.arcsin, 2.5),
    Function("acos", np.arccos, 1.5),
    Function("atan", np.arctan, 2.5),
    Function("sinh", np.sinh, 2.5),
    Function("cosh", np.cosh, 2.5),
    Function("tanh", np.tanh, 5.0),
    Function("asinh", np.arcsinh, 2.5),
    Function("acosh", np.arccosh, 2.5),
    Function("atanh", np.arctanh, 2.5),
    Function("erf", _scipy("erf"), 6.5),
    Function("erfc", _scipy("erfc"), 5.5),
    Function("erf_inv", _erf_inv, 4.0),
    Function("lgamma", _scipy("gammaln"), 6.0, low=0.0, least=1.0),
    Function("digamma", _scipy("psi"), 16.0, low=0.0, least=1.0),
    Function("bessel_i0e", _scipy("i0e"), 5.0),
    Function("bessel_i1e", _scipy("i1e"), 20.0),
)


def measure(function: Function, dtype: np.dtype, stride: int = 1) -> Worst:
    """Largest error over every bit pattern of a float dtype of at most 32 bits, on the default device.

    Args:
        function: what to measure.
        dtype: of arguments and results.
        stride: take every so manieth bit pattern.
    """
    run = staging.jit(getattr(lax, function.name))
    worst = Worst(0.0, 0.0, 0, 0)
    with np.errstate(all="ignore"), config.config(host64="keep"):
        for x in _arguments(dtype, stride):
            if function.low > -np.inf:
                x = x[x > np.asarray(function.low).astype(dtype)]
            found = np.asarray(run(x))
            worst = _worse(worst, function, x, found)
    return worst


def _arguments(dtype: np.dtype, stride: int) -> Iterator[np.ndarray]:
    bits = np.dtype(f"uint{8 * dtype.itemsize}")
    end = 1 << (8 * dtype.itemsize)
    for start in range(0, end, stride * _CHUNK):
        stop = min(end, start + stride * _CHUNK)
        yield np.arange(start, stop, stride, dtype=np.int64).astype(bits).view(dtype)


def _worse(before: Worst, function: Function, x: np.ndarray, found: np.ndarray) -> Worst:
    if not x.size:
        return before
    dtype = x.dtype
    facts = ml_dtypes.finfo(dtype)
    # Infinity counts as the number after the largest, so rounding to it too early is an error of one unit.
    beyond = float(2.0 ** int(facts.maxexp))
    exact = function.exact(x.astype(_WIDE))
    result = found.astype(_WIDE)
    is_nan = np.isnan(exact)
    wrong = is_nan != np.isnan(result)
    wrong |= (exact == 0) & (np.signbit(exact) != np.signbit(result))
    np.clip(exact, -beyond, beyond, out=exact)
    np.clip(result, -beyond, beyond, out=result)
    error = np.abs(result - exact)
    magnitude = np.clip(np.abs(exact), max(float(facts.smallest_normal), function.least), beyond / 2)
    # The power of two below a number: its exponent bits alone.
    powers = (magnitude.view(np.int64) & np.int64(0x7FF0000000000000)).view(_WIDE)
    error /= powers
    error[is_nan | wrong] = 0.0
    at = int(error.argmax())
    ulp = float(error[at]) / float(facts.eps)
    num_wrong = before.num_wrong + int(np.count_nonzero(wrong))
    count = before.num_arguments + x.size
    if ulp > before.ulp:
        return Worst(ulp, float(x[at]), num_wrong, count)
    return Worst(before.ulp, before.argument, num_wrong, count)


def table(names: Any, dtype: np.dtype, stride: int) -> Iterator[tuple[Function, Worst]]:
    """Each function, or those with a name in `names` when there are some, and what was found."""
    for function in FUNCTIONS:
        if not names or function.name in names:
            yield function, measure(function, dtype, stride)


SIXTEEN_BITS: Final = (dtypes.float16, dtypes.bfloat16)
