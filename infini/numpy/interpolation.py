"""Values between samples, and angles without jumps, with NumPy's names."""

from __future__ import annotations

import math

from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import view
from infini.numpy import (
    _axes,
    comparison,
    cumulative,
    elementwise,
    indexing,
    ordering,
    positions,
    searching,
)
from infini.numpy._promotion import ArrayLike, convert, inexact_operands, operands, result_type


def interp(
    x: ArrayLike,
    xp: ArrayLike,
    fp: ArrayLike,
    left: ArrayLike | str | None = None,
    right: ArrayLike | str | None = None,
    period: ArrayLike | None = None,
) -> Value:
    """Values on the straight lines between samples, as `jax.numpy.interp`; inexact.

    Args:
        x: where, of any shape.
        xp: where the samples are (n,), in rising order unless there is a `period`.
        fp: the samples (n,).
        left: value below all of `xp`, or `extrapolate`; the first sample when absent.
        right: value above all of `xp`, or `extrapolate`; the last sample when absent.
        period: period of the places; `left` and `right` are without effect then.

    Raises:
        ValueMismatchError: `xp` and `fp` are no vectors of one size, or a word is another one.

    Example:
        >>> import infini.numpy as inp
        >>> inp.interp(inp.asarray([0.5, 3.0]), inp.asarray([0.0, 1.0]), inp.asarray([2.0, 4.0]))
        Array([3., 4.], dtype=float32)
    """
    at, places = inexact_operands("interp", x, xp)
    # The values may be complex where the places are not.
    (values,) = inexact_operands("interp", fp)
    if places.ndim != 1 or places.shape != values.shape or not places.size:
        raise errors.ValueMismatchError(
            "interp needs samples and their places as vectors of one size",
            got=f"xp of type {places.type}, fp of type {values.type}",
        )
    for name, word in (("left", left), ("right", right)):
        if isinstance(word, str) and word != "extrapolate":
            raise errors.ValueMismatchError(
                f"interp: there is no such {name}", got=repr(word), expected="a number or 'extrapolate'"
            )
    if period is not None:
        at, places, values = _periodic(at, places, values, period)
    upper = elementwise.clip(searching.searchsorted(places, at, side="right"), 1, places.size - 1)
    low_place, high_place = indexing.take(places, upper - 1), indexing.take(places, upper)
    low, high = indexing.take(values, upper - 1), indexing.take(values, upper)
    width = high_place - low_place
    is_one_place = elementwise.abs(width) <= dtypes.epsilon(width.dtype) ** 2
    slope = (high - low) / positions.where(is_one_place, 1, width)
    result = positions.where(is_one_place, low, low + (at - low_place) * slope)
    if period is not None:
        return result
    if not isinstance(left, str):
        result = positions.where(at < places[0], values[0] if left is None else left, result)
    if not isinstance(right, str):
        result = positions.where(at > places[-1], values[-1] if right is None else right, result)
    return result


def _periodic(at: Value, places: Value, values: Value, period: ArrayLike) -> tuple[Value, Value, Value]:
    length = elementwise.abs(period)
    at, places = elementwise.remainder(at, length), elementwise.remainder(places, length)
    order = ordering.argsort(places)
    places, values = indexing.take(places, order), indexing.take(values, order)
    places = view.concatenate([places[-1:] - length, places, places[:1] + length], 0)
    return at, places, view.concatenate([values[-1:], values, values[:1]], 0)


def unwrap(
    p: ArrayLike, discont: ArrayLike | None = None, axis: int = -1, period: ArrayLike = 2 * math.pi
) -> Value:
    """Angles along an axis with whole periods added so that no step is longer than half of one, as
    `numpy.unwrap`; whole numbers stay whole when the period is.

    Args:
        p: angles.
        discont: shortest step that is changed; half a period when absent or less.
        axis: the axis.
        period: length of a turn.
    """
    (angles,) = operands("unwrap", p)
    is_whole = not dtypes.is_inexact(result_type(angles, period))
    if not is_whole:
        (angles,) = inexact_operands("unwrap", angles)
    along = _axes.one("unwrap", axis, angles.ndim)
    if not angles.shape[along]:
        return angles
    half = period // 2 if is_whole else period / 2
    shortest = period / 2 if discont is None else discont
    steps = cumulative.diff(angles, axis=along)
    folded = elementwise.mod(steps + half, period) - half
    is_at_edge = comparison.logical_and(comparison.equal(folded, -half), steps > 0)
    if is_whole:  # an odd period has no edge that is as far in both directions
        is_at_edge = comparison.logical_and(is_at_edge, comparison.equal(period % 2, 0))
    folded = positions.where(is_at_edge, half, folded)
    change = positions.where(elementwise.abs(steps) < shortest, 0, folded - steps)
    first = [(0, 0, 0)] * angles.ndim
    first[along] = (1, 0, 0)
    total = convert(cumulative.cumsum(change, axis=along), angles.dtype)
    return angles + view.pad(total, elementwise.astype(0, total.dtype), first)
