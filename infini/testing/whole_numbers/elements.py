"""Makers of operations on elements: arithmetic, bits, comparisons, choices, conversions."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from hypothesis import strategies as st

from infini import lax, numpy as inp
from infini.core import dtypes
from infini.testing.makers import Draw
from infini.testing.whole_numbers import common


def _arithmetic(draw: Draw, known: common.Known) -> common.Made | None:
    x = common.pick(draw, known, common.is_number)
    if x is None:
        return None
    y = common.pick(draw, known, lambda var: common.broadcasts(var, x))
    assert y is not None
    ordered = ("max", "min") if common.is_real(x) else ()
    op = getattr(lax, draw(st.sampled_from(("add", "sub", "mul", *ordered))))
    return lambda a, b: [common.small(op(*inp.broadcast_arrays(a, b)))], [x, y]


def _unary(draw: Draw, known: common.Known) -> common.Made | None:
    x = common.pick(draw, known, common.is_real_number)
    if x is None:
        return None
    names = ["neg", "abs", "sign", "square"]
    if x.type.dtype in dtypes.FLOATS:
        names += ["floor", "ceil", "round_even"]
    else:
        names += ["bitwise_not", "population_count", "clz"]
    if x.type.dtype in dtypes.UNSIGNED:
        names.remove("abs")
    op = getattr(lax, draw(st.sampled_from(names)))
    return lambda a: [common.small(op(a))], [x]


def _bits(draw: Draw, known: common.Known) -> common.Made | None:
    x = common.pick(draw, known, lambda var: var.type.dtype in dtypes.INTEGERS or not common.is_number(var))
    if x is None:
        return None
    y = common.pick(draw, known, lambda var: common.broadcasts(var, x))
    assert y is not None
    names = ["bitwise_and", "bitwise_or", "bitwise_xor"]
    if common.is_number(x):
        names += ["left_shift", "right_shift", "floor_divide", "remainder"]
    name = draw(st.sampled_from(names))

    def apply(a: Any, b: Any) -> list[Any]:
        if name.endswith("shift"):
            b = b & 3
        if name in ("floor_divide", "remainder"):
            b = inp.where(b == 0, inp.ones_like(b), b)
        return [common.small(getattr(inp, name)(a, b))]

    return apply, [x, y]


def _compare(draw: Draw, known: common.Known) -> common.Made | None:
    x = common.pick(draw, known)
    assert x is not None
    y = common.pick(draw, known, lambda var: common.broadcasts(var, x))
    assert y is not None
    names = ("equal", "not_equal", "less", "greater_equal") if common.is_real(x) else ("equal", "not_equal")
    op = getattr(inp, draw(st.sampled_from(names)))
    return lambda a, b: [op(a, b)], [x, y]


def _select(draw: Draw, known: common.Known) -> common.Made | None:
    which = common.pick(draw, known, lambda var: not common.is_number(var))
    x = common.pick(draw, known)
    if which is None or x is None:
        return None
    y = common.pick(draw, known, lambda var: common.broadcasts(var, x))
    assert y is not None
    try:
        whole = np.broadcast_shapes(which.type.shape, x.type.shape, y.type.shape)
    except ValueError:
        return None
    if math.prod(whole) > common.MAX_ELEMENTS:
        return None
    return lambda w, a, b: [inp.where(w, a, b)], [which, x, y]


def _convert(draw: Draw, known: common.Known) -> common.Made | None:
    x = common.pick(draw, known)
    assert x is not None
    dtype = draw(st.sampled_from(common.DTYPES if common.is_real(x) else tuple(dtypes.COMPLEX)))
    negative = x.type.dtype in dtypes.FLOATS and dtype in dtypes.UNSIGNED
    # What a negative float is as an unsigned number is for every processor to choose.
    return lambda a: [(inp.abs(a) if negative else a).astype(dtype)], [x]


def _parts(draw: Draw, known: common.Known) -> common.Made | None:
    x = common.pick(draw, known, lambda var: not common.is_real(var))
    if x is None:
        return None
    op = draw(st.sampled_from((lax.real, lax.imag, lax.conj)))
    return lambda a: [op(a)], [x]


def _random(draw: Draw, known: common.Known) -> common.Made | None:
    x = common.pick(draw, known, lambda var: var.type.dtype == dtypes.uint32)
    if x is None:
        return None
    key = np.uint32(draw(st.integers(0, 2**32 - 1)))

    def apply(a: Any) -> list[Any]:
        return [y & np.uint32(7) for y in lax.threefry2x32(inp.full_like(a, key), a, a, a + np.uint32(1))]

    return apply, [x]


MAKERS: Final[dict[str, common.Maker]] = {
    "arithmetic": _arithmetic,
    "bits": _bits,
    "compare": _compare,
    "convert": _convert,
    "parts": _parts,
    "random": _random,
    "select": _select,
    "unary": _unary,
}
