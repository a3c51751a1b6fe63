"""Histograms in one and several dimensions, with NumPy's names."""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence
from typing import Any

from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import elementwise as e, view
from infini.lax.families import bind_scalars, broadcast_to
from infini.numpy import comparison, creation, cumulative, ranges, reductions, searching
from infini.numpy._promotion import ArrayLike, as_value, convert, inexact_operands, operands, with_weak


def histogram_bin_edges(
    a: ArrayLike,
    bins: ArrayLike = 10,
    range: ArrayLike | Sequence[ArrayLike] | None = None,
    weights: ArrayLike | None = None,
) -> Value:
    """Edges of the bins of a histogram, as `numpy.histogram_bin_edges`.

    Args:
        a: data.
        bins: number of bins of equal width, or their edges.
        range: lowest and highest edge; those of the data when absent.
        weights: accepted for NumPy's sake; not used.

    Raises:
        TypeMismatchError: `bins` is a string: no rule chooses the number of bins.
        ValueMismatchError: there is no data to take the range from.
    """
    (x,) = inexact_operands("histogram_bin_edges", a)
    if isinstance(bins, str):
        raise errors.TypeMismatchError(
            "histogram_bin_edges: no rule chooses the bins here", got=repr(bins), fix="pass their number"
        )
    if not isinstance(bins, int):
        edges = creation.asarray(bins)
        if edges.ndim:
            return with_weak(
                convert(edges, dtypes.promote(((x.dtype, False), (edges.dtype, False)))[0]), False
            )
    count = int(bins)
    if range is None:
        low, high = reductions.min(x), reductions.max(x)
    else:
        ends = [convert(as_value("histogram_bin_edges", end), x.dtype) for end in range]
        low, high = ends
    # A range of nothing gets width 1 around its only point.
    is_point = bind_scalars(e.eq_p, low, high)
    low = bind_scalars(e.select_n_p, is_point, low, bind_scalars(e.sub_p, low, 0.5))
    high = bind_scalars(e.select_n_p, is_point, high, bind_scalars(e.add_p, high, 0.5))
    return with_weak(ranges.linspace(low, high, count + 1), False)


def histogram(
    a: ArrayLike,
    bins: ArrayLike = 10,
    range: Sequence[ArrayLike] | None = None,
    weights: ArrayLike | None = None,
    density: bool | None = None,
) -> tuple[Value, Value]:
    """Counts of data in bins, and the edges of the bins, as `numpy.histogram`.

    Args:
        a: data.
        bins: number of bins of equal width, or their edges.
        range: lowest and highest edge; those of the data when absent.
        weights: what each element counts; 1 when absent.
        density: whether to divide by the total and the widths, so that the integral is 1.

    Returns:
        The counts, floats as the data, and the edges.

    Raises:
        ValueMismatchError: weights do not fit, or there is no data to take the range from.
    """
    if weights is None:
        (x,) = inexact_operands("histogram", a)
        w = broadcast_to(convert(1, x.dtype), x.shape)
    else:
        x, w = inexact_operands("histogram", a, weights)
        if x.shape != w.shape:
            raise errors.ValueMismatchError(
                "histogram: weights do not fit", got=f"{x.type} and {w.type}", expected="one shape"
            )
    edges = histogram_bin_edges(x, bins, range, weights)
    flat, w = (with_weak(view.reshape(v, (v.size,)), False) for v in (x, w))
    counts = searching.summed(_bins_of(flat, edges), w, edges.size - 1)
    if density:
        widths = cumulative.diff(edges)
        total = bind_scalars(e.mul_p, reductions.sum(counts), convert(widths, counts.dtype))
        counts = bind_scalars(e.div_p, counts, total)
    return counts, edges


def _bins_of(x: Value, edges: Value) -> Value:
    """The bin of each element, out of range for those outside; the last bin includes its right edge."""
    place = bind_scalars(e.sub_p, searching.searchsorted(edges, x, "right"), 1)
    last = view.reshape(view.slice_in_dim(edges, edges.size - 1, None), ())
    at_end = comparison.equal(x, last)
    place = bind_scalars(e.select_n_p, at_end, place, convert(edges.size - 2, dtypes.int32))
    outside = bind_scalars(e.lt_p, place, 0)
    return bind_scalars(e.select_n_p, outside, place, convert(edges.size, dtypes.int32))


def histogram2d(
    x: ArrayLike,
    y: ArrayLike,
    bins: Any = 10,  # Any: a number, edges, or one of either for each array
    range: Sequence[Any] | None = None,  # Any: None, or a lowest and a highest edge
    weights: ArrayLike | None = None,
    density: bool | None = None,
) -> tuple[Value, Value, Value]:
    """Counts of points in the plane, and the edges along both axes, as `numpy.histogram2d`.

    Args:
        x: first coordinates.
        y: second coordinates.
        bins: number of bins along both axes or edges of both, or a pair of these.
        range: for each axis the lowest and highest edge, or None.
        weights: what each point counts; 1 when absent.
        density: whether to divide by the total and the areas.
    """
    first, second = operands("histogram2d", x, y)
    if first.shape != second.shape or first.ndim != 1:
        raise errors.ValueMismatchError(
            "histogram2d takes two vectors of one size", got=f"{first.type} and {second.type}"
        )
    points = view.concatenate([view.expand_dims(v, (1,)) for v in (first, second)], 1)
    is_pair = isinstance(bins, (list, tuple)) and len(bins) == 2
    counts, edges = histogramdd(points, bins if is_pair else [bins, bins], range, weights, density)
    return counts, edges[0], edges[1]


def histogramdd(
    sample: ArrayLike,
    bins: Any = 10,  # Any: a number, or a number or edges for each dimension
    range: Sequence[Any] | None = None,  # Any: None, or a lowest and a highest edge
    weights: ArrayLike | None = None,
    density: bool | None = None,
) -> tuple[Value, list[Value]]:
    """Counts of points in several dimensions, and the edges along each, as `numpy.histogramdd`.

    Args:
        sample: points as rows.
        bins: number of bins along every dimension, or for each dimension a number or edges.
        range: for each dimension the lowest and highest edge, or None.
        weights: what each point counts; 1 when absent.
        density: whether to divide by the total and the volumes.

    Returns:
        The counts (int32, or as the weights) and the edges.

    Raises:
        ValueMismatchError: the sample is no matrix, or `bins` or `range` has not one entry per dimension.
    """
    points = as_value("histogramdd", sample)
    if points.ndim != 2:
        raise errors.ValueMismatchError("histogramdd takes points as rows", got=str(points.type))
    num_axes = points.shape[1]
    wishes = [bins] * num_axes if isinstance(bins, int) else list(bins)
    ranges = [None] * num_axes if range is None else list(range)
    if len(wishes) != num_axes or len(ranges) != num_axes:
        raise errors.ValueMismatchError(
            "histogramdd needs one entry of bins and range per dimension",
            got=f"{len(wishes)} and {len(ranges)} for {num_axes} dimensions",
        )
    columns = [
        view.reshape(view.slice_in_dim(points, d, d + 1, axis=1), (points.shape[0],))
        for d in builtins.range(num_axes)
    ]
    edges = [
        histogram_bin_edges(column, wish, limits)
        for column, wish, limits in zip(columns, wishes, ranges, strict=True)
    ]
    sizes = [edge.size - 1 for edge in edges]
    if weights is None:
        w = broadcast_to(convert(1, dtypes.int32), (points.shape[0],))
    else:
        w = with_weak(as_value("histogramdd", weights), False)
    counts = view.reshape(searching.summed(_cells(columns, edges), w, math.prod(sizes)), sizes)
    if density:
        (wide,) = inexact_operands("histogramdd", counts)
        counts = bind_scalars(e.div_p, wide, reductions.sum(wide))
        for d, edge in enumerate(edges):
            widths = convert(cumulative.diff(edge), counts.dtype)
            counts = bind_scalars(e.div_p, counts, view.broadcast_in_dim(widths, counts.shape, (d,)))
    return counts, edges


def _cells(columns: Sequence[Value], edges: Sequence[Value]) -> Value:
    """The number of the cell of each point; out of range for points outside."""
    total: Value | None = None
    is_inside: Value | None = None
    for column, edge in zip(columns, edges, strict=True):
        (x,) = inexact_operands("histogramdd", column)
        place, count = _bins_of(x, edge), edge.size - 1
        inside = bind_scalars(e.lt_p, place, count)
        total = place if total is None else bind_scalars(e.add_p, bind_scalars(e.mul_p, total, count), place)
        is_inside = inside if is_inside is None else bind_scalars(e.and_p, is_inside, inside)
    assert total is not None and is_inside is not None
    outside = math.prod([edge.size - 1 for edge in edges])
    return bind_scalars(e.select_n_p, is_inside, convert(outside, dtypes.int32), total)
