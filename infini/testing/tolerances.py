"""The one table of tolerances: by dtype of the result and class of operation. A test that loosens it says
why.

Bounds are in units of the dtype's machine epsilon, so one row serves every width.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import ml_dtypes
import numpy as np

from infini.core import dtypes

Kind = Literal["exact", "elementwise", "reduction", "contraction", "program"]

# How many epsilons of relative and absolute error each class may have.
EPSILONS: Final[dict[Kind, float]] = {
    "exact": 0.0,  # moves, integers, comparisons, random bits
    "elementwise": 8.0,  # one function of each element
    "reduction": 32.0,  # sums in another order
    "contraction": 64.0,  # sums of products in another order
    "program": 512.0,  # several of these in a row, such as a loss and its gradient
}


def tolerance(dtype: np.dtype, kind: Kind) -> float:
    """Relative and absolute error allowed in results of `dtype`."""
    if dtype in dtypes.COMPLEX:
        dtype = dtypes.float32 if dtype == dtypes.complex64 else dtypes.float64
    return EPSILONS[kind] * float(ml_dtypes.finfo(dtype).eps) if dtype in dtypes.FLOATS else 0.0


def assert_close(
    actual: Any, expected: Any, kind: Kind = "elementwise"
) -> None:  # Any: arrays of any library
    """Assert that two arrays have the same shape and, within the table's tolerance for the dtype of
    `actual`, elements.

    Args:
        actual: array under test.
        expected: the oracle's array.
        kind: class of the operation.
    """
    found, wanted = np.asarray(actual), np.asarray(expected)
    assert found.shape == wanted.shape, f"shape {found.shape}, expected {wanted.shape}"
    bound = tolerance(found.dtype, kind)
    wide = np.complex128 if found.dtype in dtypes.COMPLEX else np.float64
    if bound == 0 and found.dtype == wanted.dtype:
        # NumPy knows the NaN of its own floats only; float64 holds every small float.
        is_float = found.dtype in dtypes.FLOATS
        np.testing.assert_array_equal(
            found.astype(wide) if is_float else found, wanted.astype(wide) if is_float else wanted
        )
    else:
        np.testing.assert_allclose(found.astype(wide), wanted.astype(wide), rtol=bound, atol=bound)
