"""Repeating, turning and shifting elements, with NumPy's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors, ir, trace
from infini.core.value import Value
from infini.lax import cumulative, elementwise as e, families, indexing as lax_indexing, view
from infini.lax.families import bind_scalars
from infini.numpy import _axes, indexing, manipulation
from infini.numpy._promotion import ArrayLike, as_value, convert


def repeat(
    a: ArrayLike,
    repeats: ArrayLike,
    axis: int | None = None,
    *,
    total_repeat_length: int | None = None,
) -> Value:
    """Repeat each element along an axis (of the flattened array when None), as `jax.numpy.repeat`.

    Args:
        a: array.
        repeats: how often: one number, or one per element of the axis.
        axis: axis to repeat along.
        total_repeat_length: size of the result along the axis; needed when `repeats` is being traced. What is
            missing repeats the last element, what is too much is left out.

    Raises:
        ConcretizationError: `repeats` is being traced and no length is given.
        ValueMismatchError: there are more or fewer numbers than elements.
        TypeMismatchError: `repeats` is no integer, or negative.
    """
    x = as_value("repeat", a)
    if axis is None:
        x, axis = view.reshape(x, (x.size,)), 0
    place = _axes.one("repeat", axis, x.ndim)
    if isinstance(repeats, (int, np.integer)) and total_repeat_length is None:
        return _each(x, int(repeats), place)
    counts = as_value("repeat", repeats)
    length = x.shape[place]
    if counts.dtype not in dtypes.INTEGERS:
        raise errors.TypeMismatchError("repeat takes whole numbers", got=str(counts.type))
    if counts.ndim > 1 or (counts.ndim and counts.shape[0] not in (1, length)):
        raise errors.ValueMismatchError(
            "repeat needs one number, or one per element", got=f"{counts.type} for {length} elements"
        )
    counts = families.broadcast_to(view.reshape(counts, (counts.size,)), (length,))
    if isinstance(counts, trace.Tracer) and counts.concrete() is None:
        if total_repeat_length is None:
            raise errors.ConcretizationError(
                "how often elements repeat is not known while tracing",
                got=str(counts.type),
                fix="pass total_repeat_length=, the size of the result",
            )
        positions: ArrayLike = _sources(counts, total_repeat_length)
    else:
        positions = _known_sources(np.asarray(counts), length, total_repeat_length)
    return indexing.take(x, positions, axis=place, mode="clip")


def _each(x: Value, count: int, place: int) -> Value:
    if count < 0:
        raise errors.TypeMismatchError("repeat: a count is negative", got=str(count))
    wide = view.expand_dims(x, (place + 1,))
    sizes = (*x.shape[: place + 1], count, *x.shape[place + 1 :])
    merged = (*x.shape[:place], x.shape[place] * count, *x.shape[place + 1 :])
    return view.reshape(families.broadcast_to(wide, sizes), merged)


def _known_sources(counts: np.ndarray, length: int, total: int | None) -> np.ndarray:
    if (counts < 0).any():
        raise errors.TypeMismatchError("repeat: a count is negative", got=str(counts))
    positions = np.repeat(np.arange(length, dtype=np.int32), counts)
    if total is None:
        return positions
    missing = max(0, total - len(positions))
    return np.concatenate([positions, np.full(missing, length - 1, np.int32)])[:total]


def _sources(counts: Value, total: int) -> Value:
    """Which element stands at each place: as many as have started by then, less one."""
    wide = convert(counts, dtypes.int32)
    starts = trace.bind1(e.sub_p, cumulative.cumsum(wide), wide)
    nothing = families.zeros(ir.ArrayType((total,), dtypes.int32))
    ones = families.full(ir.ArrayType(wide.shape, dtypes.int32), 1)
    numbers = lax_indexing.ScatterDimensionNumbers((), (0,), (0,))
    started = lax_indexing.scatter_add(nothing, view.expand_dims(starts, (1,)), ones, numbers, mode="drop")
    return bind_scalars(e.sub_p, cumulative.cumsum(started), 1)


def tile(A: ArrayLike, reps: Any) -> Value:  # Any: an integer or a sequence of integers
    """Repeat the whole array along its dimensions, as `numpy.tile`.

    Raises:
        TypeMismatchError: a count is negative or no integer.
    """
    x = as_value("tile", A)
    counts = list(_axes.integers("tile", "a count", reps)) if np.size(reps) else []
    counts = [1] * (x.ndim - len(counts)) + counts
    return view.tile(view.broadcast_to_rank(x, len(counts)), counts)


# --- turning ------------------------------------------------------------------------------------------


def flip(m: ArrayLike, axis: int | Sequence[int] | None = None) -> Value:
    """Reverse the order of elements along axes, all of them when None."""
    x = as_value("flip", m)
    return view.rev(x, _axes.several("flip", axis, x.ndim))


def fliplr(m: ArrayLike) -> Value:
    """Reverse the order along the second axis.

    Raises:
        ValueMismatchError: there is none.
    """
    return flip(m, 1)


def flipud(m: ArrayLike) -> Value:
    """Reverse the order along the first axis."""
    return flip(m, 0)


def rot90(m: ArrayLike, k: int = 1, axes: tuple[int, int] = (0, 1)) -> Value:
    """Turn the plane of two axes by `k` quarters, from the first towards the second, as `numpy.rot90`.

    Raises:
        ValueMismatchError: the axes are the same or do not exist, or there are less than two dimensions.
    """
    x = as_value("rot90", m)
    if x.ndim < 2:
        raise errors.ValueMismatchError("rot90 needs at least two dimensions", got=str(x.type))
    first, second = (_axes.one("rot90", axis, x.ndim) for axis in axes)
    if first == second:
        raise errors.ValueMismatchError("rot90 needs two different axes", got=str(axes))
    quarters = k % 4
    if quarters == 0:
        return x
    if quarters == 2:
        return flip(x, (first, second))
    if quarters == 1:
        return manipulation.swapaxes(flip(x, second), first, second)
    return flip(manipulation.swapaxes(x, first, second), second)


# --- shifting -----------------------------------------------------------------------------------------


def roll(a: ArrayLike, shift: ArrayLike | Sequence[int], axis: int | Sequence[int] | None = None) -> Value:
    """Shift elements along axes (of the flattened array when None); those that fall off come in again, as
    `numpy.roll`.

    Args:
        a: array.
        shift: how far, one number or one per axis; it may be traced.
        axis: axis or axes.

    Raises:
        ValueMismatchError: the numbers of shifts and axes differ.
    """
    x = as_value("roll", a)
    if axis is None:
        return view.reshape(roll(view.reshape(x, (x.size,)), shift, 0), x.shape)
    axes: list[Any] = list(axis) if isinstance(axis, (tuple, list)) else [axis]
    is_known = not isinstance(shift, trace.Tracer) or shift.concrete() is not None
    distances: Any = np.asarray(shift) if is_known else shift
    if distances.ndim > 1 or (
        distances.ndim and 1 not in (len(axes), len(distances)) and len(axes) != len(distances)
    ):
        raise errors.ValueMismatchError("roll needs one shift, or one per axis", got=f"{shift}, {axis}")
    count = max(len(axes), distances.size if distances.ndim else 1)
    for i in range(count):
        distance = distances if not distances.ndim else distances[i if len(distances) > 1 else 0]
        place = _axes.one("roll", axes[i if len(axes) > 1 else 0], x.ndim)
        x = _rolled(x, distance, place)
    return x


def _rolled(x: Value, distance: Any, place: int) -> Value:  # Any: a known number, or a traced one
    length = x.shape[place]
    if not length:
        return x
    if not isinstance(distance, Value):
        cut = -int(distance) % length
        parts = [view.slice_in_dim(x, cut, None, axis=place), view.slice_in_dim(x, 0, cut, axis=place)]
        return view.concatenate(parts, place) if cut else x
    # Twice the array has every rotation of it as a slice.
    start = indexing.modulo(trace.bind1(e.neg_p, convert(distance, dtypes.int32)), length)
    twice = view.concatenate([x, x], place)
    return lax_indexing.dynamic_slice_in_dim(twice, start, length, place)
