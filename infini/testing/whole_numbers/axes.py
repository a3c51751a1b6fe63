"""Makers of operations along axes: reductions, cumulative operations, sorts, windows."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from hypothesis import strategies as st

from infini import lax, numpy as inp
from infini.core import dtypes
from infini.testing.makers import Draw
from infini.testing.whole_numbers import common


def _reduce(draw: Draw, known: common.Known) -> common.Made | None:
    found = common.with_axes(draw, known, lambda var: True)
    if found is None:
        return None
    x, axes = found
    names = ["sum"] if common.is_number(x) else ["all", "any"]
    if common.is_real(x) and all(x.type.shape[a] for a in axes):
        names += ["max", "min", "prod"] if common.is_number(x) else ["max", "min"]
    name, keeps = draw(st.sampled_from(names)), draw(st.booleans())

    def apply(a: Any) -> list[Any]:
        if name == "prod":
            return [inp.prod(lax.sign(a), axis=axes, keepdims=keeps, dtype=a.dtype)]
        if name == "sum":
            # Sums of floats of 8 or 16 bits are only whole while they are small.
            a = lax.sign(a) if a.dtype in dtypes.FLOATS and a.dtype.itemsize <= 2 else a
            return [common.small(inp.sum(a, axis=axes, keepdims=keeps, dtype=a.dtype))]
        return [getattr(inp, name)(a, axis=axes, keepdims=keeps)]

    return apply, [x]


def _argument(draw: Draw, known: common.Known) -> common.Made | None:
    found = common.with_axes(draw, known, lambda var: common.is_real(var) and 0 not in var.type.shape)
    if found is None:
        return None
    x, axes = found
    op = draw(st.sampled_from((lax.argmax, lax.argmin)))
    kind = draw(st.sampled_from((dtypes.int32, dtypes.int64, dtypes.uint8)))
    return lambda a: [common.small(op(a, axes[0], kind))], [x]


def _cumulative(draw: Draw, known: common.Known) -> common.Made | None:
    found = common.with_axes(draw, known, common.is_number)
    if found is None:
        return None
    x, axes = found
    names = ("cumsum", "cummax", "cummin", "cumprod") if common.is_real(x) else ("cumsum",)
    name, reverse = draw(st.sampled_from(names)), draw(st.booleans())
    # A running sum of narrow floats rounds on its way.
    narrow = x.type.dtype in dtypes.FLOATS and x.type.dtype.itemsize == 1

    def apply(a: Any) -> list[Any]:
        if name == "cumprod":
            a = lax.sign(a)
        elif name == "cumsum" and narrow:
            a = a.astype(dtypes.float32)
        return [common.small(getattr(lax, name)(a, axes[0], reverse)).astype(x.type.dtype)]

    return apply, [x]


def _sort(draw: Draw, known: common.Known) -> common.Made | None:
    found = common.with_axes(draw, known, common.is_real)
    if found is None:
        return None
    x, axes = found
    others = [v for v in known if v.type.shape == x.type.shape and common.is_real(v)]
    operands = [x, *draw(st.lists(st.sampled_from(others), max_size=2))]
    keys = draw(st.integers(1, len(operands)))
    return lambda *xs: list(lax.sort(list(xs), axes[0], is_stable=True, num_keys=keys)), operands


def _order(draw: Draw, known: common.Known) -> common.Made | None:
    found = common.with_axes(draw, known, common.is_real_number)
    if found is None:
        return None
    x, axes = found
    size = x.type.shape[axes[0]]
    if draw(st.booleans()) or not size:
        descending = draw(st.booleans())
        return lambda a: [common.small(inp.argsort(a, axis=axes[0], descending=descending))], [x]
    count = draw(st.integers(1, size))

    def apply(a: Any) -> list[Any]:
        best, where = lax.top_k(a, count, axis=axes[0])
        return [best, common.small(where)]

    return apply, [x]


def _windows(draw: Draw, known: common.Known) -> common.Made | None:
    found = common.with_axes(draw, known, lambda var: common.is_real_number(var) and 0 not in var.type.shape)
    if found is None:
        return None
    x, _ = found
    rank = x.type.ndim
    window = tuple(draw(st.integers(1, min(3, n))) for n in x.type.shape)
    strides = tuple(draw(st.integers(1, 2)) for _ in range(rank))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(rank))
    padding = [(draw(st.integers(0, 1)), draw(st.integers(0, 1))) for _ in range(rank)]
    if any(
        (w - 1) * d + 1 > n + sum(p)
        for w, d, n, p in zip(window, dilation, x.type.shape, padding, strict=True)
    ):
        dilation = (1,) * rank
    name = draw(st.sampled_from(("add", "max", "min")))
    wide = dtypes.float32 if x.type.dtype in dtypes.FLOATS else x.type.dtype

    def apply(a: Any) -> list[Any]:
        a = a.astype(wide)
        start = {"add": 0, "max": -common.BOUND, "min": common.BOUND}[name]
        start = 0 if name == "max" and wide in dtypes.UNSIGNED else start
        init = np.asarray(start).astype(wide)
        result = lax.reduce_window(
            a, init, getattr(lax, name), window, strides, padding, window_dilation=dilation
        )
        return [common.small(result).astype(x.type.dtype)]

    return apply, [x]


MAKERS: Final[dict[str, common.Maker]] = {
    "argument": _argument,
    "cumulative": _cumulative,
    "order": _order,
    "reduce": _reduce,
    "sort": _sort,
    "windows": _windows,
}
