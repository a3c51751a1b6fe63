"""Reductions that leave NaN out, with NumPy's names; of arrays that cannot hold NaN, the plain ones."""

from __future__ import annotations

import math
from typing import Any

from infini.core import dtypes, primitive, trace
from infini.core.value import Value
from infini.lax import elementwise as e, reduction
from infini.numpy import _axes, comparison, reductions
from infini.numpy._promotion import ArrayLike, Axis, DTypeLike, as_value, convert


def _filled(x: Value, number: Any) -> Value:  # Any: a number of the dtype of x
    """The array with a number in place of NaN."""
    if not dtypes.is_inexact(x.dtype):
        return x
    return trace.bind1(e.select_n_p, comparison.isnan(x), x, convert(number, x.dtype))


def nansum(
    a: ArrayLike,
    axis: Axis = None,
    dtype: DTypeLike | None = None,
    out: None = None,
    keepdims: bool = False,
    initial: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> Value:
    """`sum` in which NaN counts as 0."""
    _axes.no_out("nansum", out)
    return reductions.sum(_filled(as_value("nansum", a), 0), axis, dtype, None, keepdims, initial, where)


def nanprod(
    a: ArrayLike,
    axis: Axis = None,
    dtype: DTypeLike | None = None,
    out: None = None,
    keepdims: bool = False,
    initial: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> Value:
    """`prod` in which NaN counts as 1."""
    _axes.no_out("nanprod", out)
    return reductions.prod(_filled(as_value("nanprod", a), 1), axis, dtype, None, keepdims, initial, where)


def nanmax(
    a: ArrayLike,
    axis: Axis = None,
    out: None = None,
    keepdims: bool = False,
    initial: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> Value:
    """`max` that leaves NaN out; NaN where there is nothing else, unless `initial` is given."""
    _axes.no_out("nanmax", out)
    return _extremum("nanmax", reduction.reduce_max_p, a, axis, keepdims, initial, where)


def nanmin(
    a: ArrayLike,
    axis: Axis = None,
    out: None = None,
    keepdims: bool = False,
    initial: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> Value:
    """`min` that leaves NaN out; NaN where there is nothing else, unless `initial` is given."""
    _axes.no_out("nanmin", out)
    return _extremum("nanmin", reduction.reduce_min_p, a, axis, keepdims, initial, where)


def _extremum(
    name: str,
    op: primitive.Primitive,
    a: ArrayLike,
    axis: Axis,
    keepdims: bool,
    initial: ArrayLike | None,
    where: ArrayLike | None,
) -> Value:
    x = as_value(name, a)
    plain = reductions.max if op is reduction.reduce_max_p else reductions.min
    result = plain(_filled(x, reduction.identity_of(op, x.dtype)), axis, None, keepdims, initial, where)
    if not dtypes.is_inexact(x.dtype) or initial is not None:
        return result
    nothing = reductions.all(comparison.isnan(x), axis, keepdims=keepdims)
    return trace.bind1(e.select_n_p, nothing, result, convert(math.nan, result.dtype))


def nanmean(
    a: ArrayLike,
    axis: Axis = None,
    dtype: DTypeLike | None = None,
    out: None = None,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> Value:
    """`mean` that leaves NaN out; NaN where there is nothing else."""
    _axes.no_out("nanmean", out)
    x = as_value("nanmean", a)
    return reductions.mean(x, axis, dtype, None, keepdims, where=_numbers(x, where))


def nanvar(
    a: ArrayLike,
    axis: Axis = None,
    dtype: DTypeLike | None = None,
    out: None = None,
    ddof: float = 0,
    keepdims: bool = False,
    where: ArrayLike | None = None,
    mean: ArrayLike | None = None,
) -> Value:
    """`var` that leaves NaN out; NaN where too few numbers are left."""
    _axes.no_out("nanvar", out)
    x = as_value("nanvar", a)
    return reductions.var(x, axis, dtype, None, ddof, keepdims, where=_numbers(x, where), mean=mean)


def nanstd(
    a: ArrayLike,
    axis: Axis = None,
    dtype: DTypeLike | None = None,
    out: None = None,
    ddof: float = 0,
    keepdims: bool = False,
    where: ArrayLike | None = None,
    mean: ArrayLike | None = None,
) -> Value:
    """Square root of `nanvar`, with the same arguments."""
    _axes.no_out("nanstd", out)
    return trace.bind1(e.sqrt_p, nanvar(a, axis, dtype, None, ddof, keepdims, where, mean))


def _numbers(x: Value, where: ArrayLike | None) -> ArrayLike | None:
    """Where a reduction looks: not at NaN."""
    if not dtypes.is_inexact(x.dtype):
        return where
    found = comparison.logical_not(comparison.isnan(x))
    return found if where is None else comparison.logical_and(found, where)


def nanargmax(a: ArrayLike, axis: int | None = None, out: None = None, keepdims: bool | None = None) -> Value:
    """`argmax` that leaves NaN out; -1 where there is nothing else."""
    _axes.no_out("nanargmax", out)
    return _position("nanargmax", a, axis, bool(keepdims))


def nanargmin(a: ArrayLike, axis: int | None = None, out: None = None, keepdims: bool | None = None) -> Value:
    """`argmin` that leaves NaN out; -1 where there is nothing else."""
    _axes.no_out("nanargmin", out)
    return _position("nanargmin", a, axis, bool(keepdims))


def _position(name: str, a: ArrayLike, axis: int | None, keepdims: bool) -> Value:
    x = as_value(name, a)
    is_max = name == "nanargmax"
    farthest = reduction.lowest if is_max else reduction.highest
    plain = reductions.argmax if is_max else reductions.argmin
    result = plain(_filled(x, farthest(x.dtype)), axis, keepdims=keepdims)
    if not dtypes.is_inexact(x.dtype):
        return result
    nothing = reductions.all(comparison.isnan(x), axis, keepdims=keepdims)
    return trace.bind1(e.select_n_p, nothing, result, convert(-1, result.dtype))
