"""Quantiles, percentiles and medians, with NumPy's names and all of its methods.

Elements are sorted; each method says at which place between two of them a quantile lies. Methods: R. J.
Hyndman and Y. Fan, "Sample quantiles in statistical packages" (1996), under NumPy's names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from infini.core import dtypes, errors, trace
from infini.core.value import Value
from infini.lax import cumulative, elementwise as e, sorting, view
from infini.lax.families import bind_scalars, broadcast_to
from infini.numpy import _axes, comparison, reductions
from infini.numpy._promotion import ArrayLike, Axis, as_value, convert, inexact_operands


@dataclass(frozen=True, slots=True)
class Method:
    """Where a quantile lies among n sorted elements.

    Args:
        place: the place of the quantile `q` of `n` elements, counted from 0 and not limited yet.
        weight: how much of the element above counts, from the place below and the fraction beyond it; the
            fraction itself when absent.
    """

    place: Callable[[Value, Value], Value]
    weight: Callable[[Value, Value], Value] | None = None


def _between(low: float, high: float) -> Callable[[Value, Value], Value]:
    """n q + low + q (1 - low - high) - 1, the family of continuous methods."""

    def place(n: Value, q: Value) -> Value:
        grown = bind_scalars(e.mul_p, q, bind_scalars(e.add_p, n, 1.0 - low - high))
        return bind_scalars(e.add_p, grown, low - 1.0)

    return place


def _steps(shift: float) -> Callable[[Value, Value], Value]:
    """n q - 1 - shift: methods that take elements as they are."""
    return lambda n, q: bind_scalars(e.sub_p, bind_scalars(e.mul_p, n, q), 1.0 + shift)


def _where(condition: Value, yes: float, no: float, like: Value) -> Value:
    return bind_scalars(
        e.select_n_p, condition, convert(no, like.dtype), broadcast_to(convert(yes, like.dtype), like.shape)
    )


def _is_even(x: Value) -> Value:
    return bind_scalars(e.eq_p, bind_scalars(e.mul_p, e.floor(bind_scalars(e.mul_p, x, 0.5)), 2.0), x)


def _nearest(low: Value, fraction: Value) -> Value:
    """Half goes to the even place."""
    tie = bind_scalars(e.and_p, bind_scalars(e.eq_p, fraction, 0.5), _is_even(low))
    stays = bind_scalars(e.or_p, bind_scalars(e.lt_p, fraction, 0.5), tie)
    return _where(stays, 0.0, 1.0, fraction)


def _closest(low: Value, fraction: Value) -> Value:
    stays = bind_scalars(e.and_p, bind_scalars(e.eq_p, fraction, 0.0), _is_even(low))
    return _where(stays, 0.0, 1.0, fraction)


METHODS: Final[Mapping[str, Method]] = {
    "inverted_cdf": Method(_steps(0.0), lambda low, f: _where(bind_scalars(e.gt_p, f, 0.0), 1.0, 0.0, f)),
    "averaged_inverted_cdf": Method(
        _steps(0.0), lambda low, f: _where(bind_scalars(e.gt_p, f, 0.0), 1.0, 0.5, f)
    ),
    "closest_observation": Method(_steps(0.5), _closest),
    "interpolated_inverted_cdf": Method(_between(0.0, 1.0)),
    "hazen": Method(_between(0.5, 0.5)),
    "weibull": Method(_between(0.0, 0.0)),
    "linear": Method(_between(1.0, 1.0)),
    "median_unbiased": Method(_between(1 / 3, 1 / 3)),
    "normal_unbiased": Method(_between(3 / 8, 3 / 8)),
    "lower": Method(_between(1.0, 1.0), lambda low, f: bind_scalars(e.mul_p, f, 0.0)),
    "higher": Method(_between(1.0, 1.0), lambda low, f: _where(bind_scalars(e.gt_p, f, 0.0), 1.0, 0.0, f)),
    "midpoint": Method(_between(1.0, 1.0), lambda low, f: _where(bind_scalars(e.gt_p, f, 0.0), 0.5, 0.0, f)),
    "nearest": Method(_between(1.0, 1.0), _nearest),
}


# --- functions ------------------------------------------------------------------------------------


def quantile(
    a: ArrayLike,
    q: ArrayLike,
    axis: Axis = None,
    out: None = None,
    overwrite_input: bool = False,
    method: str = "linear",
    keepdims: bool = False,
    *,
    weights: ArrayLike | None = None,
) -> Value:
    """Quantiles over axes, as `numpy.quantile`; inexact; NaN wins.

    Args:
        a: array of real numbers.
        q: number or vector of numbers from 0 to 1.
        axis: axes to reduce; all of them when None.
        out: accepted for NumPy's sake; only None.
        overwrite_input: accepted for NumPy's sake; only False.
        method: one of NumPy's thirteen.
        keepdims: keep the reduced axes with size 1.
        weights: weights of the elements, of the shape of `a` or along its axis; for the method
            `inverted_cdf` only.

    Returns:
        The quantiles; those of a vector `q` along a new first axis.

    Raises:
        ValueMismatchError: `q` has more than one dimension, the array is complex, an axis is empty, there is
            no such method, or an argument is given that is not offered.
        UnsupportedError: weights are given for another method.
    """
    return _quantile("quantile", a, q, axis, out, overwrite_input, method, keepdims, weights, skips_nan=False)


def nanquantile(
    a: ArrayLike,
    q: ArrayLike,
    axis: Axis = None,
    out: None = None,
    overwrite_input: bool = False,
    method: str = "linear",
    keepdims: bool = False,
    *,
    weights: ArrayLike | None = None,
) -> Value:
    """`quantile` that leaves NaN out; NaN where there is nothing else."""
    return _quantile(
        "nanquantile", a, q, axis, out, overwrite_input, method, keepdims, weights, skips_nan=True
    )


def percentile(
    a: ArrayLike,
    q: ArrayLike,
    axis: Axis = None,
    out: None = None,
    overwrite_input: bool = False,
    method: str = "linear",
    keepdims: bool = False,
    *,
    weights: ArrayLike | None = None,
) -> Value:
    """As `quantile`, with `q` from 0 to 100."""
    return _quantile(
        "percentile",
        a,
        _hundredths(q),
        axis,
        out,
        overwrite_input,
        method,
        keepdims,
        weights,
        skips_nan=False,
    )


def nanpercentile(
    a: ArrayLike,
    q: ArrayLike,
    axis: Axis = None,
    out: None = None,
    overwrite_input: bool = False,
    method: str = "linear",
    keepdims: bool = False,
    *,
    weights: ArrayLike | None = None,
) -> Value:
    """As `nanquantile`, with `q` from 0 to 100."""
    return _quantile(
        "nanpercentile", a, _hundredths(q), axis, out, overwrite_input, method, keepdims, weights,
        skips_nan=True,
    )  # fmt: skip


def _hundredths(q: ArrayLike) -> Value:
    (value,) = inexact_operands("percentile", q)
    return bind_scalars(e.div_p, value, 100.0)


def median(
    a: ArrayLike,
    axis: Axis = None,
    out: None = None,
    overwrite_input: bool = False,
    keepdims: bool = False,
) -> Value:
    """Middle element, or the mean of the two middle ones, over axes; inexact; NaN wins."""
    return _quantile(
        "median", a, 0.5, axis, out, overwrite_input, "midpoint", keepdims, None, skips_nan=False
    )


def nanmedian(
    a: ArrayLike,
    axis: Axis = None,
    out: None = None,
    overwrite_input: bool = False,
    keepdims: bool = False,
) -> Value:
    """`median` that leaves NaN out; NaN where there is nothing else."""
    return _quantile(
        "nanmedian", a, 0.5, axis, out, overwrite_input, "midpoint", keepdims, None, skips_nan=True
    )


# --- the computation ------------------------------------------------------------------------------


def _quantile(
    name: str,
    a: ArrayLike,
    q: ArrayLike,
    axis: Axis,
    out: Any,  # Any: refused unless None
    overwrite_input: bool,
    method: str,
    keepdims: bool,
    weights: ArrayLike | None,
    *,
    skips_nan: bool,
) -> Value:
    if out is not None or overwrite_input:
        raise errors.ValueMismatchError(
            f"{name} takes neither out= nor overwrite_input=", fix="use the array that is returned"
        )
    if method not in METHODS:
        raise errors.ValueMismatchError(f"{name}: there is no method {method!r}", expected=", ".join(METHODS))
    if weights is not None and method != "inverted_cdf":
        raise errors.UnsupportedError(
            f"{name}: the method {method!r} takes no weights", expected="method='inverted_cdf'"
        )
    (x,) = inexact_operands(name, a)
    (wish,) = inexact_operands(name, q)
    if x.dtype in dtypes.COMPLEX or wish.ndim > 1:
        raise errors.ValueMismatchError(
            f"{name} takes real numbers, and a number or vector of quantiles",
            got=f"{x.type}, q {wish.type}",
        )
    axes = _axes.several(name, axis, x.ndim)
    line = _as_lines(x, axes)
    if line.shape[-1] == 0:
        raise errors.ValueMismatchError(
            f"{name} of an empty axis has no value", got=str(x.type), expected="at least one element"
        )
    compute = reductions.wide(x.dtype)
    line = convert(line, compute)
    asked = view.reshape(convert(wish, compute), (wish.size,))
    if weights is None:
        found = _of_sorted(sorting.sort(line), asked, METHODS[method], skips_nan)
    else:
        w = convert(_as_lines(_fitted_weights(name, x, weights, axes), axes), compute)
        found = _weighted(line, w, asked, skips_nan)
    result = view.transpose(found, [found.ndim - 1, *range(found.ndim - 1)])
    kept = [1 if d in axes else n for d, n in enumerate(x.shape) if keepdims or d not in axes]
    return convert(view.reshape(result, [*wish.shape, *kept]), x.dtype)


def _as_lines(x: Value, axes: tuple[int, ...]) -> Value:
    """The axes as one, behind all others."""
    kept = [d for d in range(x.ndim) if d not in axes]
    moved = view.transpose(x, [*kept, *axes])
    return view.reshape(moved, [*(x.shape[d] for d in kept), math.prod(x.shape[d] for d in axes)])


def _of_sorted(line: Value, q: Value, method: Method, skips_nan: bool) -> Value:
    """Quantiles of sorted lines, NaN last, along the last axis."""
    size = line.shape[-1]
    is_nan = comparison.isnan(line)
    if skips_nan:
        numbers = reductions.sum(comparison.logical_not(is_nan), -1, dtype=line.dtype, keepdims=True)
        has_value = bind_scalars(e.gt_p, numbers, 0.0)
    else:
        numbers = convert(size, line.dtype)
        has_value = comparison.logical_not(view.slice_in_dim(is_nan, size - 1, None, axis=-1))
    last = bind_scalars(e.max_p, bind_scalars(e.sub_p, numbers, 1.0), 0.0)
    place = method.place(numbers, q)
    is_before = bind_scalars(e.lt_p, place, 0.0)
    place = bind_scalars(e.max_p, bind_scalars(e.min_p, place, last), 0.0)
    low = e.floor(place)
    fraction = bind_scalars(e.sub_p, place, low)
    weight = fraction if method.weight is None else method.weight(low, fraction)
    weight = bind_scalars(e.select_n_p, is_before, weight, convert(0, weight.dtype))
    # A weight of the method may point beyond the last element.
    high = bind_scalars(e.min_p, bind_scalars(e.add_p, low, 1.0), last)
    shape = (*line.shape[:-1], q.size)
    below, above = (_elements(line, broadcast_to(at, shape)) for at in (low, high))
    result = _mixed(below, above, broadcast_to(weight, shape))
    is_asked = bind_scalars(e.eq_p, q, q)
    valid = bind_scalars(e.and_p, has_value, is_asked)
    return bind_scalars(e.select_n_p, valid, convert(math.nan, line.dtype), result)


def _elements(line: Value, at: Value) -> Value:
    return sorting.take_last(line, convert(at, dtypes.int32))


def _mixed(below: Value, above: Value, weight: Value) -> Value:
    """Between two elements; those with weight 0 do not count, so infinite ones do no harm."""
    rest = bind_scalars(e.sub_p, 1.0, weight)
    mixed = bind_scalars(e.add_p, bind_scalars(e.mul_p, below, rest), bind_scalars(e.mul_p, above, weight))
    mixed = bind_scalars(e.select_n_p, bind_scalars(e.eq_p, weight, 0.0), mixed, below)
    return bind_scalars(e.select_n_p, bind_scalars(e.eq_p, weight, 1.0), mixed, above)


def _fitted_weights(name: str, x: Value, weights: ArrayLike, axes: tuple[int, ...]) -> Value:
    w = as_value(name, weights)
    if w.shape == x.shape:
        return w
    if w.shape != tuple(x.shape[d] for d in axes):
        raise errors.ValueMismatchError(
            f"{name}: the weights do not fit",
            got=f"{x.type}, weights {w.type}",
            expected=f"{x.shape} or {tuple(x.shape[d] for d in axes)}",
        )
    return view.broadcast_in_dim(w, x.shape, axes)


def _weighted(line: Value, w: Value, q: Value, skips_nan: bool) -> Value:
    """The first element at which the share of the weights reaches each quantile."""
    is_nan = comparison.isnan(line)
    if skips_nan:
        w = bind_scalars(e.select_n_p, is_nan, w, 0.0)
    ordered, moved = sorting.sort((line, w), num_keys=1)
    total = reductions.sum(w, -1, keepdims=True)
    share = bind_scalars(e.div_p, trace.bind1(cumulative.cumsum_p, moved, axis=-1, reverse=False), total)
    is_before = bind_scalars(e.lt_p, view.expand_dims(share, (share.ndim - 1,)), view.reshape(q, (q.size, 1)))
    at = reductions.sum(is_before, -1)
    at = bind_scalars(e.min_p, at, line.shape[-1] - 1)
    found = sorting.take_last(ordered, at)
    if skips_nan:
        has_value = comparison.logical_not(reductions.all(is_nan, -1, keepdims=True))
    else:
        has_value = comparison.logical_not(reductions.any(is_nan, -1, keepdims=True))
    return bind_scalars(e.select_n_p, has_value, convert(math.nan, line.dtype), found)
