"""How far apart numbers are: in their own unit, in numbers between them, and whether that is too far."""

from __future__ import annotations

import math
from typing import Any, Final

import ml_dtypes
import numpy as np

from infini.core import dtypes

# Relative and absolute difference that is allowed, in machine epsilons: several sums in another order.
_EPSILONS: Final = 512.0
_INTEGERS_OF: Final = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}


class Tolerance:
    """How far apart two values may be."""

    def __init__(self, rtol: float | None, atol: float | None) -> None:
        self.rtol, self.atol = rtol, atol

    def differs(self, found: np.ndarray, expected: np.ndarray) -> np.ndarray:
        """Which elements differ."""
        if expected.dtype not in dtypes.FLOATS and expected.dtype not in dtypes.COMPLEX:
            return np.asarray(found != expected)
        epsilon = _EPSILONS * float(ml_dtypes.finfo(_real(expected.dtype)).eps)
        rtol = epsilon if self.rtol is None else self.rtol
        atol = epsilon if self.atol is None else self.atol
        wide = np.complex128 if expected.dtype in dtypes.COMPLEX else np.float64
        a, b = found.astype(wide), expected.astype(wide)
        is_close = np.abs(a - b) <= atol + rtol * np.abs(b)
        is_close = np.where(np.isfinite(b), is_close, a == b)
        return np.asarray(~(is_close | (np.isnan(a) & np.isnan(b))))


def _real(dtype: np.dtype) -> np.dtype:
    if dtype in dtypes.COMPLEX:
        return dtypes.float32 if dtype == dtypes.complex64 else dtypes.float64
    return dtype


def distance(found: Any, expected: Any) -> float:  # Any: NumPy scalars
    """The absolute difference of two numbers."""
    if np.issubdtype(np.asarray(found).dtype, np.complexfloating):
        return float(abs(complex(found) - complex(expected)))
    return abs(float(found) - float(expected))


def ulps(found: Any, expected: Any) -> int | None:  # Any: NumPy scalars
    """How many numbers lie between two; None when one is no number."""
    a, b = np.asarray(found), np.asarray(expected)
    if a.dtype not in dtypes.FLOATS or not (math.isfinite(float(a)) and math.isfinite(float(b))):
        return None
    return abs(_ordered(a) - _ordered(b))


def _ordered(value: np.ndarray) -> int:
    """An integer that is one apart for neighbouring floats."""
    size = value.dtype.itemsize
    bits = int(value.view(_INTEGERS_OF[size]).item())
    return bits if bits >= 0 else -(1 << (8 * size - 1)) - bits


def farthest(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest distance of elements that are numbers."""
    wide = np.complex128 if expected.dtype in dtypes.COMPLEX else np.float64
    apart = np.abs(found.astype(wide) - expected.astype(wide))
    return float(np.max(apart, initial=0.0, where=np.isfinite(apart)))
