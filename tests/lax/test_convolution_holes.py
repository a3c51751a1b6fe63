"""The lowering of convolutions whose image has holes: values, and infinite elements that are not met."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import infini as inf
from infini.core import primitive
from infini.core.ir import Attrs
from infini.lax.convolution import lowering, operation

# size, window, padding and holes along each dimension
TABLE = [
    ((5, 6), (3, 3), ((1, 2), (1, 2)), (2, 2)),
    ((5, 6), (2, 4), ((1, 0), (3, 1)), (2, 3)),
    ((4, 7), (1, 3), ((0, 2), (2, 2)), (3, 2)),  # places that meet nothing
    ((5, 6), (4, 3), ((2, 2), (-1, 1)), (2, 1)),
]


@pytest.mark.parametrize("dtype", [np.float32, np.int32], ids=["float32", "int32"])
@pytest.mark.parametrize("row", TABLE, ids=str)
def test_places_between_elements_meet_their_part_of_the_kernel(
    row: Any, dtype: Any, rng: np.random.Generator
) -> None:
    size, window, pads, holes = row
    x = rng.integers(-4, 5, (2, *size, 3)).astype(dtype)
    w = rng.integers(-4, 5, (*window, 3, 4)).astype(dtype)
    if dtype is np.float32:
        x[0, 2, 3, 1], x[1, 0, 5, 0] = np.inf, np.nan
    attrs = Attrs(
        {
            "spec": "n01c,01co->n01o", "window_strides": (1, 1), "padding": pads, "lhs_dilation": holes,
            "rhs_dilation": (1, 1), "dtype": np.dtype(dtype),
        }
    )  # fmt: skip
    found = np.asarray(inf.jit(lambda x, w: lowering.decompose(x, w, **attrs)[0])(x, w))
    # Zeros stand for elements that are not finite, which are added where they are met.
    finite = np.where(np.isfinite(x), x, 0)
    reference = operation.conv_p.rule(primitive.REFERENCE)
    wanted = reference(finite, w, **attrs)
    bad = reference((~np.isfinite(x)).astype(dtype), np.ones_like(w), **attrs)
    np.testing.assert_array_equal(np.isfinite(found), bad == 0)
    np.testing.assert_array_equal(found[bad == 0], wanted[bad == 0])
