"""Sums, means, extrema and their positions over axes, with NumPy's names and JAX's dtypes. Results are never
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
from infini.lax import elementwise as e, positions, reduction, view
from infini.lax.families import bind_scalars, broadcast_to
from infini.numpy import _axes, comparison, creation
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
from infini.numpy._repeated import repeated

_PART = {dtypes.complex64: dtypes.float32, dtypes.complex128: dtypes.float64}


@repeated("axis", "dtype", "out", "keepdims", "promote_integers")
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
    _axes.no_out("sum", out)
    x = _widened("sum", a, dtype, promote_integers)
    result = _reduce("sum", reduction.reduce_sum_p, x, axis, keepdims, where)
    return result if initial is None else bind_scalars(e.add_p, result, convert(initial, result.dtype))


@repeated("axis", "dtype", "out", "keepdims", "promote_integers")
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
    """Product over axes, as `numpy.prod`; arguments as those of `sum`."""
    _axes.no_out("prod", out)
    x = _widened("prod", a, dtype, promote_integers)
    result = _reduce("prod", reduction.reduce_prod_p, x, axis, keepdims, where)
    return result if initial is None else bind_scalars(e.mul_p, result, convert(initial, result.dtype))


def _widened(name: str, a: ArrayLike, dtype: DTypeLike | None, promote_integers: bool) -> Value:
    x = as_value(name, a)
    target = widened(x.dtype, promote_integers) if dtype is None else dtypes.canonical(dtype)
    return convert(x, dtypes.int32 if target == dtypes.bool_ else target)


def widened(dtype: np.dtype, promote_integers: bool = True) -> np.dtype:
    """The dtype sums of `dtype` have: small integers and booleans become 32 bits wide."""
    if dtype == dtypes.bool_ or (promote_integers and dtype.itemsize < 4 and dtype in dtypes.INTEGERS):
        return dtypes.uint32 if dtype in dtypes.UNSIGNED else dtypes.int32
    return dtype


def _masked(x: Value, where: ArrayLike | None, neutral: Any) -> Value:  # Any: a number of the dtype of x
    if where is None:
        return x
    return trace.bind1(e.select_n_p, comparison.as_bool("where", where), convert(neutral, x.dtype), x)


def _reduce(
    name: str, op: primitive.Primitive, x: Value, axis: Axis, keepdims: bool, where: ArrayLike | None
) -> Value:
    x = _masked(x, where, reduction.identity_of(op, x.dtype))
    axes = _axes.several(name, axis, x.ndim)
    result = trace.bind1(op, x, axes=tuple(a - x.ndim for a in axes)) if axes else x
    if keepdims and axes:
        result = view.reshape(result, [1 if d in axes else n for d, n in enumerate(x.shape)])
    return with_weak(result, False)


# --- extrema ------------------------------------------------------------------------------------


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
    result = _reduce(name, op, x, axis, keepdims, where)
    return result if initial is None else trace.bind1(pair, result, convert(initial, result.dtype))


@repeated("axis", "out", "keepdims")
def max(
    a: ArrayLike,
    axis: Axis = None,
    out: None = None,
    keepdims: bool = False,
    initial: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> Value:
    """Maximum over axes, as `numpy.max`; NaN wins.

    Args:
        a: array.
        axis: axes to reduce; all of them when None.
        out: accepted for NumPy's sake; only None.
        keepdims: keep the reduced axes with size 1.
        initial: number that takes part too.
        where: boolean array that broadcasts with `a`; other elements are left out; needs `initial`.

    Raises:
        ValueMismatchError: a reduced axis is empty, or `where` is given, and `initial` is not.
    """
    _axes.no_out("max", out)
    return _extremum("max", reduction.reduce_max_p, e.max_p, a, axis, keepdims, initial, where)


@repeated("axis", "out", "keepdims")
def min(
    a: ArrayLike,
    axis: Axis = None,
    out: None = None,
    keepdims: bool = False,
    initial: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> Value:
    """Minimum over axes, as `numpy.min`; NaN wins. Arguments as those of `max`."""
    _axes.no_out("min", out)
    return _extremum("min", reduction.reduce_min_p, e.min_p, a, axis, keepdims, initial, where)


amax, amin = max, min


def ptp(a: ArrayLike, axis: Axis = None, out: None = None, keepdims: bool = False) -> Value:
    """Difference of maximum and minimum over axes, as `numpy.ptp`."""
    _axes.no_out("ptp", out)
    return bind_scalars(e.sub_p, max(a, axis, keepdims=keepdims), min(a, axis, keepdims=keepdims))


# --- truth --------------------------------------------------------------------------------------


@repeated("axis", "out", "keepdims")
def all(
    a: ArrayLike,
    axis: Axis = None,
    out: None = None,
    keepdims: bool = False,
    *,
    where: ArrayLike | None = None,
) -> Value:
    """Whether every element over axes is true; true of nothing."""
    _axes.no_out("all", out)
    return _reduce("all", reduction.reduce_and_p, comparison.as_bool("all", a), axis, keepdims, where)


@repeated("axis", "out", "keepdims")
def any(
    a: ArrayLike,
    axis: Axis = None,
    out: None = None,
    keepdims: bool = False,
    *,
    where: ArrayLike | None = None,
) -> Value:
    """Whether an element over axes is true; false of nothing."""
    _axes.no_out("any", out)
    return _reduce("any", reduction.reduce_or_p, comparison.as_bool("any", a), axis, keepdims, where)


def count_nonzero(a: ArrayLike, axis: Axis = None, keepdims: bool = False) -> Value:
    """How many elements over axes are not zero, int32."""
    return sum(comparison.as_bool("count_nonzero", a), axis, keepdims=keepdims)


# --- means --------------------------------------------------------------------------------------


def wide(dtype: np.dtype) -> np.dtype:
    """The dtype means of `dtype` are computed in."""
    return dtypes.float32 if dtype in dtypes.FLOATS and dtype.itemsize < 4 else dtype


def count_of(
    x: Value, where: ArrayLike | None, axis: Axis, keepdims: bool
) -> Any:  # Any: a number, or an array of counts
    """How many elements a mean is over."""
    axes = _axes.several("count", axis, x.ndim)
    if where is None:
        return math.prod(x.shape[d] for d in axes)
    chosen = broadcast_to(comparison.as_bool("where", where), x.shape)
    return sum(chosen, axis, dtype=_PART.get(x.dtype, x.dtype), keepdims=keepdims)


def _over_count(total: Value, count: Any) -> Value:  # Any: as in `count_of`
    return bind_scalars(e.div_p, total, convert(count, total.dtype) if isinstance(count, Value) else count)


@repeated("axis", "dtype", "out", "keepdims")
def mean(
    a: ArrayLike,
    axis: Axis = None,
    dtype: DTypeLike | None = None,
    out: None = None,
    keepdims: bool = False,
    *,
    where: ArrayLike | None = None,
) -> Value:
    """Arithmetic mean over axes, as `numpy.mean`; inexact unless `dtype` says otherwise."""
    _axes.no_out("mean", out)
    x = as_value("mean", a)
    target = to_inexact(x.dtype) if dtype is None else dtypes.canonical(dtype)
    x = convert(x, wide(to_inexact(target)))
    total = sum(x, axis, keepdims=keepdims, where=where)
    return convert(_over_count(total, count_of(x, where, axis, keepdims)), target)


def average(
    a: ArrayLike,
    axis: Axis = None,
    weights: ArrayLike | None = None,
    returned: bool = False,
    keepdims: bool = False,
) -> Any:  # Any: the mean, or a pair with the sum of the weights
    """Weighted mean over axes, as `numpy.average`.

    Args:
        a: array.
        axis: axes to reduce; all of them when None.
        weights: as many as elements, or a vector along one axis; all 1 when absent.
        returned: also return the sum of the weights, in the shape of the mean.
        keepdims: keep the reduced axes with size 1.

    Raises:
        ValueMismatchError: shapes of `a` and `weights` differ and no one axis is given along which they fit.
    """
    if weights is None:
        result = mean(a, axis, keepdims=keepdims)
        value = as_value("average", a)
        count: Any = count_of(value, None, axis, keepdims)
        total = creation.full(result.shape, count, result.dtype)
    else:
        x, w = inexact_operands("average", a, weights)
        w = _weights_along(x, w, axis)
        total = sum(w, axis, keepdims=keepdims)
        result = bind_scalars(e.div_p, sum(bind_scalars(e.mul_p, x, w), axis, keepdims=keepdims), total)
    return (result, with_weak(total, False)) if returned else result


def _weights_along(x: Value, w: Value, axis: Axis) -> Value:
    if w.shape == x.shape:
        return w
    if axis is None:
        raise errors.ValueMismatchError(
            "average: weights of another shape need an axis",
            got=f"{x.type} and weights {w.type}",
            fix="pass axis=, the axis that the weights belong to",
        )
    axes = _axes.several("average", axis, x.ndim)
    if w.shape != tuple(x.shape[d] for d in axes):
        raise errors.ValueMismatchError(
            "average: the weights do not fit the axis",
            got=f"{x.type}, axis {axis}, weights {w.type}",
            expected=str(tuple(x.shape[d] for d in axes)),
        )
    return view.broadcast_in_dim(w, x.shape, axes)


def var(
    a: ArrayLike,
    axis: Axis = None,
    dtype: DTypeLike | None = None,
    out: None = None,
    ddof: float = 0,
    keepdims: bool = False,
    *,
    where: ArrayLike | None = None,
    mean: ArrayLike | None = None,
    correction: float | None = None,
) -> Value:
    """Variance over axes, as `numpy.var`; real and inexact.

    Args:
        a: array.
        axis: axes to reduce; all of them when None.
        dtype: dtype of the result; a float when absent.
        out: accepted for NumPy's sake; only None.
        ddof: the divisor is the number of elements less `ddof`; NaN when nothing is left of it.
        keepdims: keep the reduced axes with size 1.
        where: boolean array that broadcasts with `a`; other elements are left out.
        mean: the mean where it is known, with the reduced axes kept.
        correction: the array API's name of `ddof`.

    Raises:
        ValueMismatchError: both `ddof` and `correction` are given, or the dtype is real and `a` is not.
    """
    _axes.no_out("var", out)
    x = as_value("var", a)
    compute, target = _variance_dtypes(x.dtype, dtype)
    if correction is not None and ddof:
        raise errors.ValueMismatchError(
            "var takes ddof or correction, not both", got=f"ddof={ddof}, correction={correction}"
        )
    x = convert(x, compute)
    center = _mean_of(x, axis, where) if mean is None else convert(mean, compute)
    total = sum(squared_size(bind_scalars(e.sub_p, x, center)), axis, keepdims=keepdims, where=where)
    less = ddof if correction is None else correction
    return convert(over_freedom(total, count_of(x, where, axis, keepdims), less), target)


def _mean_of(x: Value, axis: Axis, where: ArrayLike | None) -> Value:
    return mean(x, axis, keepdims=True, where=where)


def _variance_dtypes(dtype: np.dtype, wish: DTypeLike | None) -> tuple[np.dtype, np.dtype]:
    """The dtype to compute in, and that of the result."""
    own = to_inexact(dtype)
    asked = own if wish is None else to_inexact(dtypes.canonical(wish))
    if own in dtypes.COMPLEX and asked not in dtypes.COMPLEX:
        raise errors.ValueMismatchError(
            "var of complex numbers takes no real dtype",
            got=f"dtype={asked.name}",
            fix="leave dtype out and convert the result",
        )
    compute = wide(dtypes.promote(((own, False), (asked, False)))[0])
    return compute, _PART.get(asked, asked)


def squared_size(x: Value) -> Value:
    """Squares of absolute values, real."""
    if x.dtype not in dtypes.COMPLEX:
        return bind_scalars(e.mul_p, x, x)
    parts = (e.real(x), e.imag(x))
    return bind_scalars(e.add_p, *(bind_scalars(e.mul_p, part, part) for part in parts))


def over_freedom(total: Value, count: Any, less: float) -> Value:  # Any: as in `count_of`
    """A sum divided by a count less `less`; NaN where that is not positive."""
    if not isinstance(count, Value):
        return bind_scalars(e.div_p, total, count - less if count > less else math.nan)
    freedom = bind_scalars(e.sub_p, convert(count, total.dtype), less)
    positive = bind_scalars(
        e.select_n_p, bind_scalars(e.gt_p, freedom, 0), convert(math.nan, total.dtype), freedom
    )
    return bind_scalars(e.div_p, total, positive)


def std(
    a: ArrayLike,
    axis: Axis = None,
    dtype: DTypeLike | None = None,
    out: None = None,
    ddof: float = 0,
    keepdims: bool = False,
    *,
    where: ArrayLike | None = None,
    mean: ArrayLike | None = None,
    correction: float | None = None,
) -> Value:
    """Square root of `var`, with the same arguments."""
    _axes.no_out("std", out)
    variance = var(a, axis, dtype, None, ddof, keepdims, where=where, mean=mean, correction=correction)
    return trace.bind1(e.sqrt_p, variance)


# --- positions ----------------------------------------------------------------------------------


def _position(op: primitive.Primitive, x: Value, axis: int | None, keepdims: bool) -> Value:
    if axis is None:
        line, place = view.reshape(x, (x.size,)), 0
    else:
        line, place = x, _axes.one(op.name, axis, x.ndim)
    if line.shape[place] == 0:
        raise errors.ValueMismatchError(
            f"{op.name} of an empty axis has no value", got=str(x.type), expected="at least one element"
        )
    found = trace.bind1(op, line, axis=place - line.ndim, index_dtype=dtypes.int32)
    if keepdims:
        found = view.reshape(found, [1 if axis is None or d == place else n for d, n in enumerate(x.shape)])
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
        TypeMismatchError: the array is complex.
    """
    _axes.no_out("argmax", out)
    return _position(positions.argmax_p, as_value("argmax", a), axis, bool(keepdims))


def argmin(a: ArrayLike, axis: int | None = None, out: None = None, keepdims: bool | None = None) -> Value:
    """Position of the smallest element, int32; the first of equal ones; NaN counts as smallest. Arguments as
    those of `argmax`."""
    _axes.no_out("argmin", out)
    return _position(positions.argmin_p, as_value("argmin", a), axis, bool(keepdims))
