"""Joining, splitting, repeating, moving and padding arrays, with NumPy's names."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import families, view
from infini.numpy import _axes, indexing, manipulation
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value, convert, operands, with_weak


def concatenate(arrays: Sequence[ArrayLike], axis: int | None = 0, dtype: DTypeLike | None = None) -> Value:
    """Join arrays along an axis (flattened when it is None), as `numpy.concatenate`.

    Raises:
        ValueMismatchError: there are none, or one is a scalar.
        TypeMismatchError: shapes differ elsewhere.
    """
    values = _sequence("concatenate", arrays, dtype)
    if axis is None:
        values, axis = [view.reshape(x, (x.size,)) for x in values], 0
    if any(x.ndim == 0 for x in values):
        raise errors.ValueMismatchError("concatenate does not take scalars", fix="use infini.numpy.stack")
    return view.concatenate(values, _axes.one("concatenate", axis, values[0].ndim))


concat = concatenate


def _sequence(name: str, arrays: Any, dtype: DTypeLike | None) -> list[Value]:  # Any: a sequence or an array
    items = unstack(arrays) if isinstance(arrays, (Value, np.ndarray)) else arrays
    if not isinstance(items, (tuple, list)):
        raise errors.TypeMismatchError(f"{name} needs a sequence of arrays", got=type(arrays).__name__)
    if not items:
        raise errors.ValueMismatchError(f"{name} needs at least one array", got="an empty sequence")
    if dtype is None:
        return operands(name, *items)
    return [convert(x, dtypes.canonical(dtype)) for x in items]


def stack(
    arrays: Sequence[ArrayLike], axis: int = 0, out: None = None, dtype: DTypeLike | None = None
) -> Value:
    """Join arrays of one shape along a new axis, as `numpy.stack`.

    Raises:
        ValueMismatchError: there are none, or their shapes differ.
    """
    values = _sequence("stack", arrays, dtype)
    if len({x.shape for x in values}) > 1:
        raise errors.ValueMismatchError(
            "stack: the arrays have different shapes",
            got=", ".join(str(x.type) for x in values),
            expected="equal shapes",
        )
    place = _axes.one("stack", axis, values[0].ndim + 1)
    return view.concatenate([view.expand_dims(x, (place,)) for x in values], place)


def hstack(tup: Sequence[ArrayLike], dtype: DTypeLike | None = None) -> Value:
    """Join along the second axis, vectors along the first."""
    values = [manipulation.atleast_1d(x) for x in tup]
    return concatenate(values, 0 if values[0].ndim == 1 else 1, dtype)


def vstack(tup: Sequence[ArrayLike], dtype: DTypeLike | None = None) -> Value:
    """Join along the first axis; vectors become rows."""
    return concatenate([manipulation.atleast_2d(x) for x in tup], 0, dtype)


def append(arr: ArrayLike, values: ArrayLike, axis: int | None = None) -> Value:
    """`concatenate` of two arrays."""
    return concatenate([arr, values], axis)


def split(ary: ArrayLike, indices_or_sections: int | Sequence[int], axis: int = 0) -> list[Value]:
    """Cut an array along an axis, as `numpy.split`.

    Args:
        ary: array.
        indices_or_sections: number of equal parts, or the positions of the cuts.
        axis: axis to cut.

    Raises:
        ValueMismatchError: the axis does not divide into equal parts.
    """
    x = as_value("split", ary)
    place = _axes.one("split", axis, x.ndim)
    length = x.shape[place]
    if isinstance(indices_or_sections, int):
        if indices_or_sections < 1 or length % indices_or_sections:
            raise errors.ValueMismatchError(
                f"split: an axis of size {length} cannot be cut into {indices_or_sections} equal parts",
                got=f"{x.type}, axis {axis}",
                fix="use array_split, or give the positions of the cuts",
            )
        step = length // indices_or_sections
        cuts = [step * i for i in range(1, indices_or_sections)]
    else:
        cuts = [min(max(c + length if c < 0 else c, 0), length) for c in map(int, indices_or_sections)]
    bounds = [0, *cuts, length]
    return [view.slice_in_dim(x, a, max(a, b), axis=place) for a, b in itertools.pairwise(bounds)]


def array_split(ary: ArrayLike, indices_or_sections: int | Sequence[int], axis: int = 0) -> list[Value]:
    """As `split`; parts may differ in size by one."""
    if not isinstance(indices_or_sections, int):
        return split(ary, indices_or_sections, axis)
    x = as_value("array_split", ary)
    each, rest = divmod(x.shape[_axes.one("array_split", axis, x.ndim)], indices_or_sections)
    sizes = [each + 1] * rest + [each] * (indices_or_sections - rest)
    return split(x, list(itertools.accumulate(sizes[:-1])), axis)


def unstack(x: ArrayLike, /, *, axis: int = 0) -> tuple[Value, ...]:
    """The parts of an array along an axis, without that axis."""
    value = as_value("unstack", x)
    place = _axes.one("unstack", axis, value.ndim)
    return tuple(
        view.squeeze(view.slice_in_dim(value, i, i + 1, axis=place), (place,))
        for i in range(value.shape[place])
    )


# --- repeating, moving, padding -------------------------------------------------------------------


def repeat(
    a: ArrayLike,
    repeats: int | Sequence[int],
    axis: int | None = None,
    *,
    total_repeat_length: int | None = None,
) -> Value:
    """Repeat each element along an axis (of the flattened array when None), as `numpy.repeat`.

    Args:
        a: array.
        repeats: how often, known while tracing: one number, or one per element of the axis.
        axis: axis to repeat along.
        total_repeat_length: size of the result along the axis; its sum when absent.

    Raises:
        TypeMismatchError: `repeats` is being traced.
    """
    x = as_value("repeat", a)
    if axis is None:
        x, axis = view.reshape(x, (x.size,)), 0
    place = _axes.one("repeat", axis, x.ndim)
    if isinstance(repeats, (int, np.integer)) and total_repeat_length is None:
        wide = view.expand_dims(x, (place + 1,))
        sizes = (*x.shape[: place + 1], int(repeats), *x.shape[place + 1 :])
        merged = (*x.shape[:place], x.shape[place] * int(repeats), *x.shape[place + 1 :])
        return view.reshape(families.broadcast_to(wide, sizes), merged)
    counts = np.broadcast_to(np.asarray(repeats), (x.shape[place],))
    positions = np.repeat(np.arange(x.shape[place]), counts)
    if total_repeat_length is not None:
        missing = max(0, total_repeat_length - len(positions))
        last = positions[-1:] if len(positions) else np.zeros(1, np.int64)
        positions = np.concatenate([positions, np.repeat(last, missing)])[:total_repeat_length]
    return indexing.take(x, positions.astype(np.int32), axis=place, mode="clip")


def tile(A: ArrayLike, reps: int | Sequence[int]) -> Value:
    """Repeat the whole array along its dimensions, as `numpy.tile`."""
    x = as_value("tile", A)
    counts = [int(reps)] if isinstance(reps, (int, np.integer)) else [int(n) for n in reps]
    ndim = max(x.ndim, len(counts))
    counts = [1] * (ndim - len(counts)) + counts
    sizes = (1,) * (ndim - x.ndim) + x.shape
    pairs = [n for size_ in sizes for n in (1, size_)]
    wide = [n for count, size_ in zip(counts, sizes, strict=True) for n in (count, size_)]
    repeated = families.broadcast_to(view.reshape(x, pairs), tuple(wide))
    return view.reshape(repeated, [count * n for count, n in zip(counts, sizes, strict=True)])


def flip(m: ArrayLike, axis: int | Sequence[int] | None = None) -> Value:
    """Reverse the order of elements along axes, all of them when None."""
    x = as_value("flip", m)
    return view.rev(x, _axes.several("flip", axis, x.ndim))


def roll(a: ArrayLike, shift: int | Sequence[int], axis: int | Sequence[int] | None = None) -> Value:
    """Shift elements along axes (of the flattened array when None); those that fall off come in again, as
    `numpy.roll`.

    Raises:
        ValueMismatchError: the numbers of shifts and axes differ.
    """
    x = as_value("roll", a)
    if axis is None:
        return view.reshape(roll(view.reshape(x, (x.size,)), shift, 0), x.shape)
    axes = [axis] if isinstance(axis, int) else list(axis)
    shifts = [shift] * len(axes) if isinstance(shift, int) else list(shift)
    if len(shifts) == 1:
        shifts = shifts * len(axes)
    if len(shifts) != len(axes):
        raise errors.ValueMismatchError("roll needs one shift, or one per axis", got=f"{shift}, {axis}")
    for distance, dimension in zip(shifts, axes, strict=True):
        place = _axes.one("roll", dimension, x.ndim)
        length = x.shape[place]
        cut = (length - operator.index(distance)) % length if length else 0
        if cut:
            parts = [view.slice_in_dim(x, cut, None, axis=place), view.slice_in_dim(x, 0, cut, axis=place)]
            x = view.concatenate(parts, place)
    return x


def pad(
    array: ArrayLike,
    pad_width: Any,  # Any: a number, a pair, or one pair per dimension
    mode: Literal["constant", "edge", "wrap", "reflect"] = "constant",
    *,
    constant_values: ArrayLike = 0,
) -> Value:
    """Add elements at the ends of dimensions, as `numpy.pad`.

    Args:
        array: array to pad.
        pad_width: elements before and after: a number for every end, a pair for every dimension, or one
            pair per dimension.
        mode: `constant`; `edge` repeats the outermost elements, `wrap` continues with the other end,
            `reflect` mirrors.
        constant_values: the constant, one scalar.

    Raises:
        ValueMismatchError: the mode is another one, or a width is negative.
    """
    x = as_value("pad", array)
    widths = [(int(low), int(high)) for low, high in np.broadcast_to(np.asarray(pad_width), (x.ndim, 2))]
    if any(low < 0 or high < 0 for low, high in widths):
        raise errors.ValueMismatchError(
            "pad: a width is negative", got=str(widths), fix="use a slice to remove elements"
        )
    if mode == "constant":
        fill = convert(constant_values, x.dtype)
        return with_weak(view.pad(x, fill, [(low, high, 0) for low, high in widths]), x.weak)
    if mode not in ("edge", "wrap", "reflect"):
        raise errors.ValueMismatchError(
            f"pad: the mode {mode!r} is not supported", expected="constant, edge, wrap or reflect"
        )
    for axis, (low, high) in enumerate(widths):
        if low or high:
            line = np.pad(np.arange(x.shape[axis], dtype=np.int32), (low, high), mode=mode)
            x = indexing.take(x, line, axis=axis, mode="clip")
    return x
