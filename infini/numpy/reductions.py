"""Sums, means, extrema and running sums over axes, with NumPy's names and JAX's dtypes. Results are never
weak, as JAX's.

16-bit floats are summed in float32 and rounded once.
"""

from __future__ import annotations

import builtins
import math
from typing import Any

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.value import Value
from infini.lax import elementwise as e, reduction, sorting, view
from infini.lax.families import bind_scalars, broadcast_to
from infini.numpy import _axes, comparison
from infini.numpy._promotion import (
    ArrayLike,
    Axis,
    DTypeLike,
    as_value,
    convert,
    inexact_operands,
    to_inexact,
    with_weak,
)


def sum(
    a: ArrayLike,
    axis: Axis = None,
    dtype: DTypeLike | None = None,
    out: None = None,
    keepdims: bool = False,
    initial: ArrayLike | None = None,
    where: ArrayLike | None = None,
    promote_integers: bool = True,
) -> Value:
    """Sum over axes, as `numpy.sum`.

    Args:
        a: array to sum.
        axis: axes to sum over; all of them when None.
        dtype: dtype of the result; when absent, that of `a`, with integers of fewer than 32 bits and
            booleans widened to 32.
        out: accepted for NumPy's sake; only None.
        keepdims: keep the reduced axes with size 1.
        initial: number to start from.
        where: boolean array that broadcasts with `a`; other elements are left out.
        promote_integers: whether small integers are widened.
    """
    x = _widened("sum", a, dtype, promote_integers)
    result = _reduce("sum", reduction.reduce_sum_p, x, axis, keepdims, where, 0)
    return result if initial is None else bind_scalars(e.add_p, result, convert(initial, result.dtype))


def prod(
    a: ArrayLike,
    axis: Axis = None,
    dtype: DTypeLike | None = None,
    out: None = None,
    keepdims: bool = False,
    initial: ArrayLike | None = None,
    where: ArrayLike | None = None,
    promote_integers: bool = True,
) -> Value:
    """Product over axes, as `numpy.prod`; multiplied in pairs, so rounding grows with the logarithm of the
    count only."""
    x = _masked(_widened("prod", a, dtype, promote_integers), where, 1)
    axes = _axes.several("prod", axis, x.ndim)
    kept = [d for d in range(x.ndim) if d not in axes]
    count = math.prod(x.shape[d] for d in axes)
    line = view.reshape(view.transpose(x, [*kept, *axes]), [*(x.shape[d] for d in kept), count])
    while line.shape[-1] > 1:
        half, is_odd = builtins.divmod(line.shape[-1], 2)
        pairs = trace.bind1(
            e.mul_p,
            view.slice_in_dim(line, 0, half, axis=-1),
            view.slice_in_dim(line, half, 2 * half, axis=-1),
        )
        line = (
            view.concatenate([pairs, view.slice_in_dim(line, 2 * half, None, axis=-1)], -1)
            if is_odd
            else pairs
        )
    result = convert(1, x.dtype) if count == 0 else line
    shape = tuple(1 if d in axes else n for d, n in enumerate(x.shape) if keepdims or d not in axes)
    result = broadcast_to(result, shape) if count == 0 else view.reshape(result, shape)
    return result if initial is None else bind_scalars(e.mul_p, result, convert(initial, result.dtype))


def _widened(name: str, a: ArrayLike, dtype: DTypeLike | None, promote_integers: bool) -> Value:
    x = as_value(name, a)
    target = x.dtype if dtype is None else dtypes.canonical(dtype)
    if dtype is None and promote_integers and x.dtype.itemsize < 4 and not dtypes.is_inexact(x.dtype):
        target = dtypes.uint32 if x.dtype in dtypes.UNSIGNED else dtypes.int32
    return convert(x, dtypes.int32 if target == dtypes.bool_ else target)


def _masked(x: Value, where: ArrayLike | None, neutral: Any) -> Value:  # Any: a number of the dtype of x
    if where is None:
        return x
    return trace.bind1(e.select_n_p, comparison.as_bool("where", where), convert(neutral, x.dtype), x)


def _reduce(
    name: str,
    op: primitive.Primitive,
    x: Value,
    axis: Axis,
    keepdims: bool,
    where: ArrayLike | None,
    neutral: Any,
) -> Value:  # Any: a number of the dtype of x
    x = _masked(x, where, neutral)
    axes = _axes.several(name, axis, x.ndim)
    result = trace.bind1(op, x, axes=tuple(a - x.ndim for a in axes)) if axes else x
    if keepdims and axes:
        result = view.reshape(result, [1 if d in axes else n for d, n in enumerate(x.shape)])
    return with_weak(result, False)


def _extremum(
    name: str,
    op: primitive.Primitive,
    pair: primitive.Primitive,
    a: ArrayLike,
    axis: Axis,
    keepdims: bool,
    initial: ArrayLike | None,
    where: ArrayLike | None,
) -> Value:
    x = with_weak(as_value(name, a), False)
    axes = _axes.several(name, axis, x.ndim)
    if initial is None and (where is not None or builtins.any(x.shape[d] == 0 for d in axes)):
        raise errors.ValueMismatchError(
            f"{name} of nothing has no value",
            got=f"{x.type}, axis {axis}" + (", where=..." if where is not None else ""),
            fix="pass initial=, the value of an empty reduction",
        )
    result = _reduce(name, op, x, axis, keepdims, where, reduction.identity_of(op, x.dtype))
    return result if initial is None else trace.bind1(pair, result, convert(initial, result.dtype))


def max(
    a: ArrayLike,
    axis: Axis = None,
    out: None = None,
    keepdims: bool = False,
    initial: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> Value:
    """Maximum over axes, as `numpy.max`; NaN wins.

    Raises:
        ValueMismatchError: a reduced axis is empty and `initial` is not given.
    """
    return _extremum("max", reduction.reduce_max_p, e.max_p, a, axis, keepdims, initial, where)


def min(
    a: ArrayLike,
    axis: Axis = None,
    out: None = None,
    keepdims: bool = False,
    initial: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> Value:
    """Minimum over axes, as `numpy.min`; NaN wins.

    Raises:
        ValueMismatchError: a reduced axis is empty and `initial` is not given.
    """
    return _extremum("min", reduction.reduce_min_p, e.min_p, a, axis, keepdims, initial, where)


amax, amin = max, min


def ptp(a: ArrayLike, axis: Axis = None, out: None = None, keepdims: bool = False) -> Value:
    """Difference of maximum and minimum over axes, as `numpy.ptp`."""
    return bind_scalars(e.sub_p, max(a, axis, keepdims=keepdims), min(a, axis, keepdims=keepdims))


def all(
    a: ArrayLike,
    axis: Axis = None,
    out: None = None,
    keepdims: bool = False,
    *,
    where: ArrayLike | None = None,
) -> Value:
    """Whether every element over axes is true; true of nothing."""
    return _reduce("all", reduction.reduce_min_p, comparison.as_bool("all", a), axis, keepdims, where, True)


def any(
    a: ArrayLike,
    axis: Axis = None,
    out: None = None,
    keepdims: bool = False,
    *,
    where: ArrayLike | None = None,
) -> Value:
    """Whether an element over axes is true; false of nothing."""
    return _reduce("any", reduction.reduce_max_p, comparison.as_bool("any", a), axis, keepdims, where, False)


def count_nonzero(a: ArrayLike, axis: Axis = None, keepdims: bool = False) -> Value:
    """How many elements over axes are not zero, int32."""
    return sum(comparison.as_bool("count_nonzero", a), axis, keepdims=keepdims)


# --- means ------------------------------------------------------------------------------------


def _wide(dtype: np.dtype) -> np.dtype:
    """The dtype means of `dtype` are computed in."""
    return dtypes.float32 if dtype in dtypes.FLOATS and dtype.itemsize < 4 else dtype


def _count(
    x: Value, axes: tuple[int, ...], where: ArrayLike | None, axis: Axis, keepdims: bool
) -> Any:  # Any: number or array
    if where is None:
        return math.prod(x.shape[d] for d in axes)
    chosen = broadcast_to(comparison.as_bool("where", where), x.shape)
    return sum(chosen, axis, dtype=x.dtype, keepdims=keepdims)


def mean(
    a: ArrayLike,
    axis: Axis = None,
    dtype: DTypeLike | None = None,
    out: None = None,
    keepdims: bool = False,
    *,
    where: ArrayLike | None = None,
) -> Value:
    """Arithmetic mean over axes, as `numpy.mean`; inexact."""
    x = as_value("mean", a)
    target = to_inexact(x.dtype) if dtype is None else dtypes.canonical(dtype)
    wide = convert(x, _wide(target))
    axes = _axes.several("mean", axis, x.ndim)
    total = sum(wide, axis, keepdims=keepdims, where=where)
    return convert(bind_scalars(e.div_p, total, _count(wide, axes, where, axis, keepdims)), target)


def var(
    a: ArrayLike,
    axis: Axis = None,
    dtype: DTypeLike | None = None,
    out: None = None,
    ddof: float = 0,
    keepdims: bool = False,
    *,
    where: ArrayLike | None = None,
    correction: float | None = None,
) -> Value:
    """Variance over axes, as `numpy.var`; inexact.

    Args:
        a: array.
        axis: axes to reduce; all of them when None.
        dtype: dtype of the result; a float when absent.
        out: accepted for NumPy's sake; only None.
        ddof: the divisor is the number of elements less `ddof`.
        keepdims: keep the reduced axes with size 1.
        where: boolean array that broadcasts with `a`; other elements are left out.
        correction: the array API's name of `ddof`.
    """
    x = as_value("var", a)
    target = to_inexact(x.dtype) if dtype is None else dtypes.canonical(dtype)
    wide = convert(x, _wide(target))
    axes = _axes.several("var", axis, x.ndim)
    center = mean(wide, axis, keepdims=True, where=where)
    offset = trace.bind1(e.sub_p, wide, center)
    total = sum(trace.bind1(e.mul_p, offset, offset), axis, keepdims=keepdims, where=where)
    count = _count(wide, axes, where, axis, keepdims)
    less = ddof if correction is None else correction
    divisor = (
        bind_scalars(e.sub_p, count, less) if isinstance(count, Value) else builtins.max(count - less, 0)
    )
    return convert(bind_scalars(e.div_p, total, divisor), target)


def std(
    a: ArrayLike,
    axis: Axis = None,
    dtype: DTypeLike | None = None,
    out: None = None,
    ddof: float = 0,
    keepdims: bool = False,
    *,
    where: ArrayLike | None = None,
    correction: float | None = None,
) -> Value:
    """Square root of `var`, with the same arguments."""
    return trace.bind1(e.sqrt_p, var(a, axis, dtype, out, ddof, keepdims, where=where, correction=correction))


# --- positions --------------------------------------------------------------------------------


def _position(name: str, x: Value, axis: int | None, keepdims: bool) -> Value:
    shape = tuple(1 for _ in x.shape) if axis is None else None
    if axis is None:
        line, place = view.reshape(x, (x.size,)), 0
    else:
        line, place = x, _axes.one(name, axis, x.ndim)
    if line.shape[place] == 0:
        raise errors.ValueMismatchError(
            f"{name} of an empty axis has no value", got=str(x.type), expected="at least one element"
        )
    found = trace.bind1(reduction.argmax_p, line, axis=place - line.ndim, index_dtype=dtypes.int32)
    if keepdims:
        found = view.reshape(found, shape or [1 if d == place else n for d, n in enumerate(x.shape)])
    return with_weak(found, False)


def argmax(a: ArrayLike, axis: int | None = None, out: None = None, keepdims: bool | None = None) -> Value:
    """Position of the largest element, int32; the first of equal ones; NaN counts as largest.

    Args:
        a: array.
        axis: axis to search along; the flattened array when None.
        out: accepted for NumPy's sake; only None.
        keepdims: keep the axis with size 1.

    Raises:
        ValueMismatchError: the axis is empty.
    """
    return _position("argmax", as_value("argmax", a), axis, bool(keepdims))


def argmin(a: ArrayLike, axis: int | None = None, out: None = None, keepdims: bool | None = None) -> Value:
    """Position of the smallest element, int32; the first of equal ones; NaN counts as smallest."""
    x = as_value("argmin", a)
    # Flipping the bits of an integer reverses the order without overflow.
    reverse = e.neg_p if dtypes.is_inexact(x.dtype) else e.not_p
    return _position("argmin", trace.bind1(reverse, x), axis, bool(keepdims))


# --- running sums -----------------------------------------------------------------------------


def _running(name: str, op: primitive.Primitive, x: Value, axis: int | None, neutral: int) -> Value:
    """Inclusive scan by doubling: log2(n) steps, each adding the line shifted by a power of two."""
    if axis is None:
        x, axis = view.reshape(x, (x.size,)), 0
    place, distance = _axes.one(name, axis, x.ndim), 1
    while distance < x.shape[place]:
        shift = [(0, 0, 0)] * x.ndim
        shift[place] = (distance, -distance, 0)
        x = trace.bind1(op, x, view.pad(x, convert(neutral, x.dtype), shift))
        distance *= 2
    return x


def cumsum(a: ArrayLike, axis: int | None = None, dtype: DTypeLike | None = None, out: None = None) -> Value:
    """Running sums along an axis (of the flattened array when None), as `numpy.cumsum`.

    Booleans are counted in int32; other dtypes stay. Sums are formed in pairs, so rounding grows with the
    logarithm of the length.
    """
    return _cumulative("cumsum", e.add_p, a, axis, dtype, 0)


def cumprod(a: ArrayLike, axis: int | None = None, dtype: DTypeLike | None = None, out: None = None) -> Value:
    """Running products along an axis (of the flattened array when None), as `numpy.cumprod`."""
    return _cumulative("cumprod", e.mul_p, a, axis, dtype, 1)


def _cumulative(
    name: str, op: primitive.Primitive, a: ArrayLike, axis: int | None, dtype: DTypeLike | None, neutral: int
) -> Value:
    x = as_value(name, a)
    target = x.dtype if dtype is None else dtypes.canonical(dtype)
    target = dtypes.int32 if target == dtypes.bool_ else target
    return convert(_running(name, op, convert(x, _wide(target)), axis, neutral), target)


def median(a: ArrayLike, axis: int | None = None, keepdims: bool = False) -> Value:
    """Middle element, or the mean of the two middle ones, along an axis; inexact; NaN wins."""
    (x,) = inexact_operands("median", a)
    flat = view.reshape(x, (x.size,)) if axis is None else x
    place = _axes.one("median", 0 if axis is None else axis, flat.ndim)
    ordered = sorting.sort(flat, place)
    count = ordered.shape[place]
    middle = view.slice_in_dim(ordered, (count - 1) // 2, count // 2 + 1, axis=place)
    result = mean(middle, place, keepdims=True)
    has_nan = any(comparison.isnan(flat), place, keepdims=True)
    result = trace.bind1(e.select_n_p, has_nan, result, convert(float("nan"), result.dtype))
    shape = [1 if axis is None or d == place else n for d, n in enumerate(x.shape)]
    if not keepdims:
        shape = [] if axis is None else [n for d, n in enumerate(x.shape) if d != place]
    return view.reshape(result, shape)
