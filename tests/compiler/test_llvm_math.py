"""Errors of the float32 functions in units in the last place, as their docstrings state them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from infini.core import dtypes
from infini.lax import elementwise as e
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


@pytest.mark.parametrize("op, exact, low, high, bound", [
    (e.exp, np.exp, -104, 88.7, 1.3),
    (e.expm1, np.expm1, -104, 88.7, 1.5),
    (e.log, np.log, 0, 3.4e38, 0.8),
    (e.log1p, np.log1p, -0.9999999, 3.4e38, 1.6),
    (e.logistic, lambda x: 1 / (1 + np.exp(-x)), -87, 200, 2.6),
    (e.tanh, np.tanh, -20, 20, 4.0),
    (e.erf, ERF, -6, 6, 5.0),
    (e.sin, np.sin, -1e4, 1e4, 1.6),
    (e.cos, np.cos, -1e4, 1e4, 1.6),
    (e.sin, np.sin, -1e9, 1e9, 1.6),
    (e.cos, np.cos, -1e9, 1e9, 1.6),
    (e.sqrt, np.sqrt, 0, 3.4e38, 0.5),
    (e.rsqrt, lambda x: 1 / np.sqrt(x), 1e-37, 3.4e38, 1.5),
], ids=lambda v: getattr(v, "__name__", str(v)))  # fmt: skip
def test_error_in_ulp(op: Any, exact: Any, low: float, high: float, bound: float) -> None:
    x = spread(low, high)
    with np.errstate(all="ignore"):
        assert worst_ulp(op, x, exact(x.astype(np.float64))) <= bound


def test_subnormal_results_are_kept() -> None:
    x = np.linspace(-103, -88, 64).astype(np.float32)
    (found,) = k.run(k.blocks(e.exp, 64, 64, dtypes.float32), x)
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64)).astype(np.float32), atol=3e-45, rtol=0)
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
