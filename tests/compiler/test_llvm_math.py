"""Errors of functions in units in the last place, as their docstrings state them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from infini.core import dtypes
from infini.lax import elementwise as e
from infini.perf import accuracy
from tests.compiler import llvm_kernels as k

COUNT = 200_000
INF, NAN = math.inf, math.nan
POWERS = [
    (0, 0), (0, 2), (0, -1), (-2, 3), (-2, 2), (-2, 0.5), (INF, 2), (INF, -2), (-INF, 3), (1, NAN), (NAN, 0),
    (0.5, INF), (2, INF), (2, -INF), (-1, INF),
]  # fmt: skip


def spread(low: float, high: float) -> np.ndarray:
    """Numbers of every magnitude between two bounds, and evenly spaced ones."""
    even = np.linspace(low, high, COUNT // 2)
    largest = max(abs(low), abs(high))
    powers = np.exp(np.linspace(math.log(1e-38), math.log(largest), COUNT // 4))
    every = np.concatenate([even, powers, -powers]).astype(np.float32)
    return every[(every >= low) & (every <= high)]


def worst_ulp(op: Any, x: np.ndarray, exact: np.ndarray) -> float:
    (found,) = k.run(k.blocks(op, x.size, 4096, dtypes.float32), x)
    wanted = exact.astype(np.float32)
    unit = np.spacing(np.maximum(np.abs(wanted), np.float32(2.0**-126)))
    with np.errstate(invalid="ignore"):
        error = np.abs(found.astype(np.float64) - exact) / unit
    return float(np.nanmax(np.where(found == wanted, 0, error)))


ERF = np.vectorize(math.erf, otypes=[np.float64])
ERFC = np.vectorize(math.erfc, otypes=[np.float64])


@pytest.mark.parametrize("op, exact, low, high, bound", [
    (e.exp, np.exp, -104, 88.7, 1.3),
    (e.exp2, np.exp2, -149, 127.9, 1.5),
    (e.expm1, np.expm1, -104, 88.7, 1.5),
    (e.log, np.log, 0, 3.4e38, 0.8),
    (e.log1p, np.log1p, -0.9999999, 3.4e38, 1.6),
    (e.logistic, lambda x: 1 / (1 + np.exp(-x)), -110, 200, 2.7),
    (e.tanh, np.tanh, -20, 20, 4.3),
    (e.erf, ERF, -6, 6, 5.0),
    (e.erfc, ERFC, -5, 9.9, 5.0),
    (e.sin, np.sin, -1e4, 1e4, 1.6),
    (e.cos, np.cos, -1e4, 1e4, 1.6),
    (e.tan, np.tan, -1e4, 1e4, 3.5),
    (e.sin, np.sin, -3e38, 3e38, 1.6),
    (e.cos, np.cos, -3e38, 3e38, 1.6),
    (e.tan, np.tan, -3e38, 3e38, 3.5),
    (e.asin, np.arcsin, -1, 1, 2.5),
    (e.acos, np.arccos, -1, 1, 1.5),
    (e.atan, np.arctan, -1e3, 1e3, 2.0),
    (e.sinh, np.sinh, -89.4, 89.4, 2.5),
    (e.cosh, np.cosh, -89.4, 89.4, 2.5),
    (e.asinh, np.arcsinh, -3e38, 3e38, 2.0),
    (e.acosh, np.arccosh, 1, 3e38, 2.0),
    (e.atanh, np.arctanh, -0.9999999, 0.9999999, 2.5),
    (e.sqrt, np.sqrt, 0, 3.4e38, 0.5),
    (e.rsqrt, lambda x: 1 / np.sqrt(x), 1e-37, 3.4e38, 1.5),
    (e.cbrt, np.cbrt, -3.4e38, 3.4e38, 1.0),
], ids=lambda v: getattr(v, "__name__", str(v)))  # fmt: skip
def test_error_in_ulp(op: Any, exact: Any, low: float, high: float, bound: float) -> None:
    x = spread(low, high)
    with np.errstate(all="ignore"):
        assert worst_ulp(op, x, exact(x.astype(np.float64))) <= bound


@pytest.mark.parametrize("name, bound", [
    ("exp", 1.1), ("exp2", 1.1), ("expm1", 2), ("log", 1), ("log1p", 2), ("logistic", 2), ("sin", 1),
    ("cos", 1), ("tan", 3), ("asin", 2.5), ("acos", 1.5), ("atan", 1.5), ("sinh", 2.5), ("tanh", 3),
    ("cosh", 2.5), ("asinh", 2), ("acosh", 2), ("atanh", 2), ("cbrt", 1), ("erf", 1.5), ("erfc", 4),
    ("erf_inv", 3.5), ("lgamma", 4), ("bessel_i0e", 4),
])  # fmt: skip
def test_error_of_float64_in_ulp(name: str, bound: float) -> None:
    (function,) = (f for f in accuracy.FUNCTIONS if f.name == name)
    assert accuracy.measure(function, dtypes.float64, 300) <= bound


def test_far_arguments_of_circular_functions_in_float64() -> None:
    x = np.array([2.0**27, -(2.0**27), 1e15, -1e22, 1e300, 2.0**100, 3.0, np.inf, np.nan, 0.0] * 5)
    for op, exact in ((e.sin, np.sin), (e.cos, np.cos), (e.tan, np.tan)):
        (found,) = k.run(k.blocks(op, x.size, 50, dtypes.float64), x)
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(found, exact(x), rtol=1e-15)


def test_subnormal_results_are_kept() -> None:
    x = np.linspace(-103, -88, 64).astype(np.float32)
    (found,) = k.run(k.blocks(e.exp, 64, 64, dtypes.float32), x)
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64)).astype(np.float32), atol=3e-45, rtol=0)
    assert (found > 0).all()


@pytest.mark.parametrize(
    ("dtype", "low", "high", "least"), [("float32", -103, -86, 3e-45), ("float64", -745, -708, 1e-323)]
)
def test_small_results_of_logistic_are_kept(dtype: str, low: float, high: float, least: float) -> None:
    x = np.linspace(low, high, 64).astype(dtype)
    (found,) = k.run(k.blocks(e.logistic, 64, 64, np.dtype(dtype)), x)
    exact = np.exp(x.astype(np.longdouble)).astype(dtype)
    np.testing.assert_allclose(found, exact, rtol=8 * np.finfo(dtype).eps, atol=least)
    assert (found > 0).all()


def test_power_of_float32(rng: np.random.Generator) -> None:
    x, y = rng.uniform(0, 20, 5000).astype(np.float32), rng.uniform(-12, 12, 5000).astype(np.float32)
    (found,) = k.run(k.blocks(e.pow, 5000, 512, dtypes.float32, dtypes.float32), x, y)
    np.testing.assert_allclose(found, np.power(x.astype(np.float64), y), rtol=2e-7)


@pytest.mark.parametrize("x, y", POWERS)
def test_power_of_special_values(x: float, y: float) -> None:
    a, b = np.full(20, x, np.float32), np.full(20, y, np.float32)
    (found,) = k.run(k.blocks(e.pow, 20, 20, dtypes.float32, dtypes.float32), a, b)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(found, np.power(a, b))


def test_inverse_of_erf(rng: np.random.Generator) -> None:
    x = rng.uniform(-0.999, 0.999, 2000).astype(np.float32)
    (found,) = k.run(k.blocks(e.erf_inv, 2000, 512, dtypes.float32), x)
    np.testing.assert_allclose(ERF(found.astype(np.float64)), x, atol=3e-7)
