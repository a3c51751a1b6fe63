"""What the emitters share of sorting: the bits by which floats are told from NaN."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np


def largest_bits(dtype: np.dtype) -> int:
    """Bits of infinity, or of the largest number of a float that has none; those of a NaN are larger."""
    largest = np.asarray(np.inf).astype(dtype)
    if np.isnan(largest.astype(np.float64)):
        limits: Any = ml_dtypes.finfo  # Any: ml_dtypes has no types
        largest = np.asarray(limits(dtype).max).astype(dtype)
    return int(largest.view(np.dtype(f"uint{8 * dtype.itemsize}")))
