"""Makers of operations that move elements: views, joins, gathers, scatters and slices at computed
places."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from hypothesis import strategies as st

from infini import lax, numpy as inp
from infini.core import dtypes
from infini.core.ir import Var
from infini.testing.makers import Draw
from infini.testing.whole_numbers import common


def _view(draw: Draw, known: common.Known) -> common.Made | None:
    x = common.pick(draw, known, lambda var: bool(var.type.ndim))
    if x is None:
        return None
    shape, rank = x.type.shape, x.type.ndim
    kind = draw(
        st.sampled_from(("transpose", "reshape", "slice", "reverse", "pad", "broadcast", "roll", "squeeze"))
    )
    if kind == "transpose":
        order = tuple(draw(st.permutations(range(rank))))
        return lambda a: [inp.transpose(a, order)], [x]
    if kind == "reshape":
        divisors = [n for n in range(1, x.type.size + 1) if x.type.size % n == 0][:64] or [1]
        first = draw(st.sampled_from(divisors))
        new = draw(
            st.sampled_from([(x.type.size,), (first, x.type.size // first), (x.type.size // first, 1, first)])
        )
        return lambda a: [inp.reshape(a, new)], [x]
    if kind == "slice":
        starts = [draw(st.integers(0, max(n - 1, 0))) for n in shape]
        stops = [draw(st.integers(s, n)) for s, n in zip(starts, shape, strict=True)]
        steps = [draw(st.integers(1, 3)) for _ in shape]
        cut = tuple(slice(*item) for item in zip(starts, stops, steps, strict=True))
        return lambda a: [a[cut]], [x]
    if kind == "reverse":
        axes = tuple(draw(st.sets(st.integers(0, rank - 1), min_size=1)))
        return lambda a: [inp.flip(a, axes)], [x]
    if kind == "pad":
        widths = [
            (draw(st.integers(-1, 2)), draw(st.integers(-1, 2)), draw(st.integers(0, 1))) for _ in shape
        ]
        if any(
            n + (n - 1) * w[2] + w[0] + w[1] < 0 or n + min(w[0], 0) + min(w[1], 0) < 0
            for n, w in zip(shape, widths, strict=True)
        ):
            return None
        return lambda a: [lax.pad(a, np.ones((), a.dtype), widths)], [x]
    if kind == "broadcast":
        count = draw(st.sampled_from((1, 2, 7)))
        place = draw(st.integers(0, rank))
        whole = (*shape[:place], count, *shape[place:])
        return lambda a: [inp.broadcast_to(inp.expand_dims(a, place), whole)], [x]
    if kind == "roll":
        steps_ = draw(st.integers(-9, 9))
        axis = draw(st.integers(0, rank - 1))
        return lambda a: [inp.roll(a, steps_, axis)], [x]
    return lambda a: [inp.squeeze(a, tuple(i for i, n in enumerate(shape) if n == 1))], [x]


def _join(draw: Draw, known: common.Known) -> common.Made | None:
    found = common.with_axes(draw, known, lambda var: True)
    if found is None:
        return None
    x, (axis, *_) = found

    def fits(v: Var) -> bool:
        return (
            v.type.dtype == x.type.dtype
            and v.type.ndim == x.type.ndim
            and all(
                m == n for i, (m, n) in enumerate(zip(v.type.shape, x.type.shape, strict=True)) if i != axis
            )
        )

    pieces = draw(st.lists(st.sampled_from([v for v in known if fits(v)]), min_size=1, max_size=3))
    return lambda *xs: [inp.concatenate(xs, axis)], [x, *pieces]


def _rows(draw: Draw, size: int) -> np.ndarray:
    """A few places along an axis; some lie outside."""
    shape = draw(st.sampled_from(((1,), (3,), (2, 3), (9,))))
    count = math.prod(shape)
    return np.array(
        draw(st.lists(st.integers(-size - 1, size + 1), min_size=count, max_size=count)), np.int32
    ).reshape(shape)


_GATHER_MODES: Final = ("fill", "clip", "wrap")
_SCATTER_MODES: Final = ("drop", "clip")


def _take(draw: Draw, known: common.Known) -> common.Made | None:
    found = common.with_axes(draw, known, lambda var: 0 not in var.type.shape)
    if found is None:
        return None
    x, (axis, *_) = found
    mode = draw(st.sampled_from(_GATHER_MODES))
    indices = common.pick(draw, known, lambda v: v.type.dtype == dtypes.int32 and v.type.size <= 64)
    fill = np.ones((), x.type.dtype)
    if indices is not None and draw(st.booleans()):
        if indices.type.size * x.type.size > common.MAX_ELEMENTS:
            return None
        return lambda a, i: [inp.take(a, i, axis, mode=mode, fill_value=fill)], [x, indices]
    rows = _rows(draw, x.type.shape[axis])
    return lambda a: [inp.take(a, rows, axis, mode=mode, fill_value=fill)], [x]


def _take_along(draw: Draw, known: common.Known) -> common.Made | None:
    found = common.with_axes(draw, known, lambda var: common.is_real(var) and 0 not in var.type.shape)
    if found is None:
        return None
    x, (axis, *_) = found
    return lambda a: [inp.take_along_axis(a, inp.argsort(a, axis=axis), axis)], [x]


def _points(draw: Draw, known: common.Known) -> common.Made | None:
    """Elements at pairs of indices, with the axes between them or before them."""
    x = common.pick(draw, known, lambda v: v.type.ndim >= 2 and 0 not in v.type.shape)
    if x is None:
        return None
    a, b = sorted(draw(st.permutations(range(x.type.ndim)))[:2])
    rows, columns = _rows(draw, x.type.shape[a]), _rows(draw, x.type.shape[b])
    if rows.shape != columns.shape:
        return None
    index: list[Any] = [slice(None)] * x.type.ndim
    index[a], index[b] = rows, columns
    return lambda z: [z.at[tuple(index)].get(mode="fill", fill_value=1)], [x]


def _put(draw: Draw, known: common.Known) -> common.Made | None:
    found = common.with_axes(draw, known, lambda var: common.is_number(var) and 0 not in var.type.shape)
    if found is None:
        return None
    x, (axis, *_) = found
    rows = _rows(draw, x.type.shape[axis])
    ordered = ("max", "min") if common.is_real(x) else ()
    how, mode = draw(st.sampled_from(("set", "add", *ordered))), draw(st.sampled_from(_SCATTER_MODES))
    y = common.pick(draw, known, lambda v: v.type.dtype == x.type.dtype)
    assert y is not None
    index = (*[slice(None)] * axis, rows)
    shape = (*x.type.shape[:axis], *rows.shape, *x.type.shape[axis + 1 :])
    if math.prod(shape) > common.MAX_ELEMENTS:
        return None

    def apply(a: Any, b: Any) -> list[Any]:
        return [common.small(getattr(a.at[index], how)(common.of_shape(b, shape), mode=mode))]

    return apply, [x, y]


def _count(draw: Draw, known: common.Known) -> common.Made | None:
    """Sums of elements with the same index, an index that is computed."""
    x = common.pick(draw, known, lambda v: common.is_real_number(v) and bool(v.type.size))
    if x is None:
        return None
    count = draw(st.sampled_from((1, 5, 17)))

    def apply(a: Any) -> list[Any]:
        where = inp.ravel(a).astype(dtypes.int32)
        return [common.small(inp.zeros(count, dtypes.int32).at[where].add(1, mode="drop"))]

    return apply, [x]


def scalars(draw: Draw, known: common.Known, count: int) -> list[Any]:
    """Starts: known scalars or drawn numbers."""
    found = [v for v in known if v.type.dtype == dtypes.int32 and not v.type.ndim]
    return [draw(st.sampled_from([*found, draw(st.integers(-2, 4))])) for _ in range(count)]


def _dynamic_slice(draw: Draw, known: common.Known) -> common.Made | None:
    x = common.pick(draw, known)
    assert x is not None
    sizes = [draw(st.integers(0, n)) for n in x.type.shape]
    starts = scalars(draw, known, x.type.ndim)
    variables = [s for s in starts if isinstance(s, Var)]

    def apply(a: Any, *given: Any) -> list[Any]:
        each = iter(given)
        return [lax.dynamic_slice(a, [next(each) if isinstance(s, Var) else s for s in starts], sizes)]

    return apply, [x, *variables]


def _dynamic_update(draw: Draw, known: common.Known) -> common.Made | None:
    x = common.pick(draw, known)
    assert x is not None

    def fits(v: Var) -> bool:
        return v.type.dtype == x.type.dtype and v.type.ndim == x.type.ndim and all(
            n <= m for n, m in zip(v.type.shape, x.type.shape, strict=True)
        )  # fmt: skip

    update = common.pick(draw, known, fits)
    assert update is not None
    starts = scalars(draw, known, x.type.ndim)
    variables = [s for s in starts if isinstance(s, Var)]

    def apply(a: Any, b: Any, *given: Any) -> list[Any]:
        each = iter(given)
        return [lax.dynamic_update_slice(a, b, [next(each) if isinstance(s, Var) else s for s in starts])]

    return apply, [x, update, *variables]


MAKERS: Final[dict[str, common.Maker]] = {
    "count": _count,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update": _dynamic_update,
    "join": _join,
    "points": _points,
    "put": _put,
    "take": _take,
    "take_along": _take_along,
    "view": _view,
}
