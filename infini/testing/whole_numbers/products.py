"""Makers of sums of products: contractions and convolutions."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from hypothesis import strategies as st

from infini import lax
from infini.core import dtypes
from infini.testing.makers import Draw
from infini.testing.whole_numbers import common

_MAX_PRODUCTS: Final = 2_000_000


def _dot(draw: Draw, known: common.Known) -> common.Made | None:
    x = common.pick(draw, known, lambda var: common.is_number(var) and bool(var.type.ndim))
    if x is None:
        return None
    y = common.pick(draw, known, lambda var: var.type.dtype == x.type.dtype and bool(var.type.ndim))
    assert y is not None
    left, right = list(range(x.type.ndim)), list(range(y.type.ndim))
    pairs = []
    for _ in range(draw(st.integers(0, 3))):
        equal = [(i, j) for i in left for j in right if x.type.shape[i] == y.type.shape[j]]
        if not equal:
            break
        i, j = draw(st.sampled_from(equal))
        pairs.append((i, j))
        left.remove(i)
        right.remove(j)
    batch = pairs[: draw(st.integers(0, len(pairs)))]
    contracted = pairs[len(batch) :]
    products = x.type.size * math.prod(y.type.shape[j] for j in right)
    outputs = math.prod([x.type.shape[i] for i in left + [i for i, _ in batch]]) * math.prod(
        y.type.shape[j] for j in right
    )
    if products > _MAX_PRODUCTS or outputs > common.MAX_ELEMENTS:
        return None
    if len(left) + len(right) + len(batch) > 5:
        return None
    numbers = (
        ([i for i, _ in contracted], [j for _, j in contracted]),
        ([i for i, _ in batch], [j for _, j in batch]),
    )
    dtype = x.type.dtype
    preferred: np.dtype | None = None
    if dtype in dtypes.FLOATS:
        preferred = draw(st.sampled_from((dtype, dtypes.float32))) if dtype != dtypes.float64 else None
    elif dtype == dtypes.int8:
        preferred = draw(st.sampled_from((None, dtypes.int32)))
    return lambda a, b: [common.small(lax.dot_general(a, b, numbers, preferred_element_type=preferred))], [
        x,
        y,
    ]


_CONVOLVED: Final = (
    dtypes.float32,
    dtypes.float64,
    dtypes.float16,
    dtypes.bfloat16,
    dtypes.int32,
    dtypes.int8,
)
_ORDERS: Final = {
    1: (("NCH", "OIH", "NCH"), ("NHC", "HIO", "NHC")),
    2: (("NCHW", "OIHW", "NCHW"), ("NHWC", "HWIO", "NHWC"), ("CNHW", "IOHW", "NHWC")),
}


def _convolution(draw: Draw, known: common.Known) -> common.Made | None:
    x = common.pick(draw, known, lambda var: var.type.dtype in _CONVOLVED)
    if x is None:
        return None
    y = common.pick(draw, known, lambda var: var.type.dtype == x.type.dtype)
    assert y is not None
    rank = draw(st.integers(1, 2))
    orders = draw(st.sampled_from(_ORDERS[rank]))
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    each_in, each_out = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    sizes = [draw(st.integers(3, 17 if rank == 2 else 65)) for _ in range(rank)]
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    named = {"N": draw(st.integers(1, 3)), "C": groups * each_in, "O": groups * each_out, "I": each_in}
    named |= dict(zip("HW", sizes, strict=False))
    image = tuple(named[c] for c in orders[0])
    named |= dict(zip("HW", kernel, strict=False))
    filters = tuple(named[c] for c in orders[1])
    strides, window = ([draw(st.integers(1, 2)) for _ in range(rank)] for _ in range(2))
    base = [draw(st.sampled_from((1, 1, 2))) for _ in range(rank)]
    padding = [(draw(st.integers(0, 3)), draw(st.integers(0, 2))) for _ in range(rank)]
    wide = dtypes.float32 if x.type.dtype in dtypes.FLOATS and x.type.dtype.itemsize < 4 else None

    def apply(a: Any, b: Any) -> list[Any]:
        result = lax.conv_general_dilated(
            common.of_shape(a, image), common.of_shape(b, filters), strides, padding, base, window, orders,
            feature_group_count=groups, preferred_element_type=wide,
        )  # fmt: skip
        return [common.small(result)]

    return apply, [x, y]


MAKERS: Final[dict[str, common.Maker]] = {
    "convolution": _convolution,
    "dot": _dot,
}
