"""Changing shapes, joining, splitting, repeating and ordering, with NumPy's names. Dtypes and weak flags of single operands stay."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import families, view
from infini.numpy import _axes, comparison, creation, indexing, reductions
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value, convert, operands, with_weak


def shape(a: ArrayLike) -> tuple[int, ...]:
    """Size of each dimension."""
    return as_value("shape", a).shape


def ndim(a: ArrayLike) -> int:
    """Number of dimensions."""
    return as_value("ndim", a).ndim


def size(a: ArrayLike, axis: int | None = None) -> int:
    """Number of elements, or the size of one axis."""
    x = as_value("size", a)
    return x.size if axis is None else x.shape[_axes.one("size", axis, x.ndim)]


def reshape(a: ArrayLike, shape: Any, order: str = "C", *, copy: bool | None = None) -> Value:
    """The same elements in another shape, as `numpy.reshape`.

    Args:
        a: array.
        shape: sizes; one of them may be -1 and is computed.
        order: `C` reads and writes the last dimension fastest, `F` the first.
        copy: accepted for NumPy's sake.

    Raises:
        TypeMismatchError: the numbers of elements differ.
        ValueMismatchError: more than one size is -1, or `order` is unknown.
    """
    x = as_value("reshape", a)
    sizes = _inferred(x, shape)
    if order == "F":
        backwards = view.reshape(transpose(x), sizes[::-1])
        return transpose(backwards)
    if order != "C":
        raise errors.ValueMismatchError("reshape: unknown order", got=repr(order), expected="'C' or 'F'")
    return view.reshape(x, sizes)


def _inferred(x: Value, shape: Any) -> tuple[int, ...]:  # Any: an integer or a sequence of integers
    items = shape if isinstance(shape, (tuple, list)) else (shape,)
    try:
        sizes = [operator.index(n) for n in items]
    except TypeError as error:
        if isinstance(error, errors.InfiniError):
            raise
        raise errors.TypeMismatchError("reshape: a shape has to be integers", got=repr(shape)) from None
    unknown = [d for d, n in enumerate(sizes) if n == -1]
    known = math.prod(n for n in sizes if n != -1)
    if len(unknown) > 1 or any(n < -1 for n in sizes):
        raise errors.ValueMismatchError("reshape: only one size may be -1", got=f"{x.type} to {tuple(sizes)}")
    if unknown:
        sizes[unknown[0]] = x.size // known if known else 0
    if math.prod(sizes) != x.size:
        raise errors.TypeMismatchError(
            "reshape: the numbers of elements differ",
            got=f"{x.type} ({x.size} elements) to {tuple(items)}",
            expected=f"sizes whose product is {x.size}",
        )
    return tuple(sizes)


def ravel(a: ArrayLike, order: str = "C") -> Value:
    """The elements in one dimension."""
    return reshape(a, -1, order)


def transpose(a: ArrayLike, axes: Sequence[int] | None = None) -> Value:
    """Permute dimensions (reverse them when `axes` is None), as `numpy.transpose`.

    Raises:
        ValueMismatchError: `axes` is no permutation.
    """
    x = as_value("transpose", a)
    return view.transpose(x, range(x.ndim)[::-1] if axes is None else axes)


def permute_dims(a: ArrayLike, axes: Sequence[int]) -> Value:
    """The array API's name of `transpose`."""
    return transpose(a, axes)


def matrix_transpose(x: ArrayLike, /) -> Value:
    """Swap the last two dimensions."""
    return swapaxes(x, -1, -2)


def swapaxes(a: ArrayLike, axis1: int, axis2: int) -> Value:
    """Swap two dimensions."""
    x = as_value("swapaxes", a)
    first, second = _axes.one("swapaxes", axis1, x.ndim), _axes.one("swapaxes", axis2, x.ndim)
    order = list(range(x.ndim))
    order[first], order[second] = second, first
    return view.transpose(x, order)


def moveaxis(a: ArrayLike, source: int | Sequence[int], destination: int | Sequence[int]) -> Value:
    """Move dimensions to other places; the others keep their order, as `numpy.moveaxis`."""
    x = as_value("moveaxis", a)
    sources, places = (
        [_axes.one("moveaxis", d, x.ndim) for d in ([dims] if isinstance(dims, int) else dims)]
        for dims in (source, destination)
    )
    if len(sources) != len(places) or len(set(sources)) != len(sources) or len(set(places)) != len(places):
        raise errors.ValueMismatchError(
            "moveaxis: source and destination have to be as many different axes", got=f"{source}, {destination}"
        )
    order = [d for d in range(x.ndim) if d not in sources]
    for place, d in sorted(zip(places, sources, strict=True)):
        order.insert(place, d)
    return view.transpose(x, order)


def expand_dims(a: ArrayLike, axis: int | Sequence[int]) -> Value:
    """Insert dimensions of size 1 at these places of the result, as `numpy.expand_dims`."""
    return view.expand_dims(as_value("expand_dims", a), (axis,) if isinstance(axis, int) else tuple(axis))


def squeeze(a: ArrayLike, axis: int | Sequence[int] | None = None) -> Value:
    """Drop dimensions of size 1, all of them when `axis` is None, as `numpy.squeeze`.

    Raises:
        ValueMismatchError: a named dimension has another size.
    """
    x = as_value("squeeze", a)
    axes = tuple(d for d, n in enumerate(x.shape) if n == 1) if axis is None else _axes.several("squeeze", axis, x.ndim)
    return view.squeeze(x, axes)


def atleast_1d(*arys: ArrayLike) -> Any:  # Any: one array, or a list when several are given
    """Arrays with at least one dimension."""
    return _at_least("atleast_1d", 1, arys)


def atleast_2d(*arys: ArrayLike) -> Any:  # Any: one array, or a list when several are given
    """Arrays with at least two dimensions, added on the left."""
    return _at_least("atleast_2d", 2, arys)


def _at_least(name: str, count: int, arys: Sequence[ArrayLike]) -> Any:  # Any: as atleast_1d
    values = [as_value(name, a) for a in arys]
    wide = [view.expand_dims(x, tuple(range(max(0, count - x.ndim)))) for x in values]
    return wide[0] if len(wide) == 1 else wide


def broadcast_to(array: ArrayLike, shape: Any) -> Value:
    """Repeat dimensions of size 1, as `numpy.broadcast_to`.

    Raises:
        ValueMismatchError: the shape does not broadcast.
    """
    x, sizes = as_value("broadcast_to", array), _axes.shape("broadcast_to", shape)
    _axes.check_broadcasts("broadcast_to", x, sizes)
    return families.broadcast_to(x, sizes)


def broadcast_shapes(*shapes: Any) -> tuple[int, ...]:
    """The shape that shapes broadcast to.

    Raises:
        ValueMismatchError: they do not.
    """
    try:
        return tuple(np.broadcast_shapes(*shapes))
    except ValueError:
        raise errors.ValueMismatchError("shapes do not broadcast", got=", ".join(map(str, shapes))) from None


def broadcast_arrays(*args: ArrayLike) -> list[Value]:
    """Arrays broadcast against each other."""
    values = [as_value("broadcast_arrays", x) for x in args]
    common = broadcast_shapes(*(x.shape for x in values))
    return [families.broadcast_to(x, common) for x in values]


# --- joining and splitting ----------------------------------------------------------------------


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
    items = list(arrays) if isinstance(arrays, (Value, np.ndarray)) else arrays
    if not isinstance(items, (tuple, list)):
        raise errors.TypeMismatchError(f"{name} needs a sequence of arrays", got=type(arrays).__name__)
    if not items:
        raise errors.ValueMismatchError(f"{name} needs at least one array", got="an empty sequence")
    if dtype is None:
        return operands(name, *items)
    return [convert(x, dtypes.canonical(dtype)) for x in items]


def stack(arrays: Sequence[ArrayLike], axis: int = 0, out: None = None, dtype: DTypeLike | None = None) -> Value:
    """Join arrays of one shape along a new axis, as `numpy.stack`.

    Raises:
        ValueMismatchError: there are none, or their shapes differ.
    """
    values = _sequence("stack", arrays, dtype)
    if len({x.shape for x in values}) > 1:
        raise errors.ValueMismatchError(
            "stack: the arrays have different shapes", got=", ".join(str(x.type) for x in values), expected="equal shapes"
        )
    place = _axes.one("stack", axis, values[0].ndim + 1)
    return view.concatenate([view.expand_dims(x, (place,)) for x in values], place)


def hstack(tup: Sequence[ArrayLike], dtype: DTypeLike | None = None) -> Value:
    """Join along the second axis, vectors along the first."""
    values = [atleast_1d(x) for x in tup]
    return concatenate(values, 0 if values[0].ndim == 1 else 1, dtype)


def vstack(tup: Sequence[ArrayLike], dtype: DTypeLike | None = None) -> Value:
    """Join along the first axis; vectors become rows."""
    return concatenate([atleast_2d(x) for x in tup], 0, dtype)


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
        view.squeeze(view.slice_in_dim(value, i, i + 1, axis=place), (place,)) for i in range(value.shape[place])
    )


# --- repeating, moving, padding -------------------------------------------------------------------


def repeat(
    a: ArrayLike, repeats: int | Sequence[int], axis: int | None = None, *, total_repeat_length: int | None = None
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
    """Shift elements along axes (of the flattened array when None); those that fall off come in again, as `numpy.roll`.

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
        pad_width: elements before and after: a number for every end, a pair for every dimension, or one pair per dimension.
        mode: `constant`; `edge` repeats the outermost elements, `wrap` continues with the other end, `reflect` mirrors.
        constant_values: the constant, one scalar.

    Raises:
        ValueMismatchError: the mode is another one, or a width is negative.
    """
    x = as_value("pad", array)
    widths = [(int(low), int(high)) for low, high in np.broadcast_to(np.asarray(pad_width), (x.ndim, 2))]
    if any(low < 0 or high < 0 for low, high in widths):
        raise errors.ValueMismatchError("pad: a width is negative", got=str(widths), fix="use a slice to remove elements")
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


# --- comparison of whole arrays ---------------------------------------------------------------------


def array_equal(a1: ArrayLike, a2: ArrayLike, equal_nan: bool = False) -> Value:
    """Whether two arrays have the same shape and elements, a boolean scalar."""
    x, y = as_value("array_equal", a1), as_value("array_equal", a2)
    if x.shape != y.shape:
        return creation.asarray(False)
    same = comparison.equal(x, y)
    if equal_nan:
        both = comparison.logical_and(comparison.isnan(x), comparison.isnan(y))
        same = comparison.logical_or(same, both)
    return reductions.all(same)


def allclose(
    a: ArrayLike, b: ArrayLike, rtol: ArrayLike = 1e-05, atol: ArrayLike = 1e-08, equal_nan: bool = False
) -> Value:
    """Whether all elements are close, as `isclose` tells, a boolean scalar."""
    return reductions.all(comparison.isclose(a, b, rtol, atol, equal_nan))
