"""Changing shapes, with NumPy's names. Dtypes and weak flags of single operands stay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors
from infini.core.value import Value, literal
from infini.lax import families, view
from infini.numpy import _axes, comparison, creation, elementwise, reductions
from infini.numpy._promotion import ArrayLike, as_value, convert


def shape(a: Any) -> tuple[int, ...]:  # Any: an array, a number, or a nested sequence of them
    """Size of each dimension."""
    return tuple(a.shape) if hasattr(a, "shape") else tuple(np.shape(a))


def ndim(a: Any) -> int:  # Any: as shape
    """Number of dimensions."""
    return len(shape(a))


def size(a: Any, axis: int | Sequence[int] | None = None) -> int:  # Any: as shape
    """Number of elements, or of those along some axes.

    Raises:
        ValueMismatchError: there is no such axis.
    """
    sizes = shape(a)
    return math.prod(sizes[d] for d in _axes.several("size", axis, len(sizes)))


def reshape(a: ArrayLike, shape: Any, order: str = "C", *, copy: bool | None = None) -> Value:
    """The same elements in another shape, as `numpy.reshape`.

    Args:
        a: array.
        shape: sizes; one of them may be -1 and is computed.
        order: `C` reads and writes the last dimension fastest, `F` the first.
        copy: accepted for NumPy's sake.

    Raises:
        TypeMismatchError: the numbers of elements differ, or more than one size is -1.
        ValueMismatchError: `order` is unknown.
        MissingRuleError: `order` is `A`, which arrays do not have.
    """
    x = as_value("reshape", a)
    sizes = _inferred(x, shape)
    if order == "F":
        return transpose(view.reshape(transpose(x), sizes[::-1]))
    if order in ("A", "K"):
        raise errors.MissingRuleError(f"reshape: arrays have no order {order!r}", expected="'C' or 'F'")
    if order != "C":
        raise errors.ValueMismatchError("reshape: unknown order", got=repr(order), expected="'C' or 'F'")
    return view.reshape(x, sizes)


def _inferred(x: Value, shape: Any) -> tuple[int, ...]:  # Any: an integer or a sequence of integers
    items = tuple(shape) if isinstance(shape, (tuple, list, np.ndarray)) and np.ndim(shape) else (shape,)
    sizes = list(_axes.integers("reshape", "a size", items)) if items else []
    unknown = [d for d, n in enumerate(sizes) if n == -1]
    known = math.prod(n for n in sizes if n != -1)
    if len(unknown) > 1 or any(n < -1 for n in sizes):
        raise errors.TypeMismatchError("reshape: only one size may be -1", got=f"{x.type} to {tuple(sizes)}")
    if unknown and known:
        sizes[unknown[0]] = x.size // known
    if math.prod(sizes) != x.size:
        raise errors.TypeMismatchError(
            "reshape: the numbers of elements differ",
            got=f"{x.type} ({x.size} elements) to {tuple(items)}",
            expected=f"sizes whose product is {x.size}",
        )
    return tuple(sizes)


def ravel(a: ArrayLike, order: str = "C") -> Value:
    """The elements in one dimension."""
    return reshape(a, -1, order) if as_value("ravel", a).size else reshape(a, (0,), order)


def resize(a: ArrayLike, new_shape: Any) -> Value:  # Any: an integer or a sequence of integers
    """As many elements as `new_shape` has, repeated from the start as often as needed, as `numpy.resize`.

    Raises:
        ValueMismatchError: a size is negative.
    """
    x = as_value("resize", a)
    sizes = _axes.integers("resize", "a size", new_shape)
    if any(n < 0 for n in sizes):
        raise errors.ValueMismatchError("resize: a size is negative", got=str(sizes))
    count = math.prod(sizes)
    if not x.size or not count:
        return creation.zeros_like(x, shape=sizes)
    return view.reshape(repeated_to(view.reshape(x, (x.size,)), count), sizes)


def repeated_to(x: Value, count: int) -> Value:
    """The first `count` elements of a vector repeated over and over."""
    times = -(-count // x.size)
    return view.slice(view.tile(x, (times,)), (0,), (count,))


# --- order of dimensions ---------------------------------------------------------------------------


def transpose(a: ArrayLike, axes: Sequence[int] | None = None) -> Value:
    """Permute dimensions (reverse them when `axes` is None), as `numpy.transpose`.

    Raises:
        ValueMismatchError: an axis does not exist.
        TypeMismatchError: `axes` is no permutation.
    """
    x = as_value("transpose", a)
    if axes is None:
        return view.transpose(x, range(x.ndim)[::-1])
    return view.transpose(x, [_axes.one("transpose", axis, x.ndim) for axis in axes])


def permute_dims(a: ArrayLike, /, axes: Sequence[int]) -> Value:
    """The array API's name of `transpose`."""
    return transpose(a, axes)


def matrix_transpose(x: ArrayLike, /) -> Value:
    """Swap the last two dimensions.

    Raises:
        ValueMismatchError: there are less than two.
    """
    value = as_value("matrix_transpose", x)
    if value.ndim < 2:
        raise errors.ValueMismatchError("matrix_transpose needs at least two dimensions", got=str(value.type))
    return swapaxes(value, -1, -2)


def swapaxes(a: ArrayLike, axis1: int, axis2: int) -> Value:
    """Swap two dimensions."""
    x = as_value("swapaxes", a)
    first, second = _axes.one("swapaxes", axis1, x.ndim), _axes.one("swapaxes", axis2, x.ndim)
    order = list(range(x.ndim))
    order[first], order[second] = second, first
    return view.transpose(x, order)


def moveaxis(a: ArrayLike, source: int | Sequence[int], destination: int | Sequence[int]) -> Value:
    """Move dimensions to other places; the others keep their order, as `numpy.moveaxis`.

    Raises:
        ValueMismatchError: source and destination are not as many different axes.
    """
    x = as_value("moveaxis", a)
    sources, places = (
        [_axes.one("moveaxis", d, x.ndim) for d in (dims if hasattr(dims, "__iter__") else [dims])]
        for dims in (source, destination)
    )
    if len(sources) != len(places) or len(set(sources)) != len(sources) or len(set(places)) != len(places):
        raise errors.ValueMismatchError(
            "moveaxis: source and destination have to be as many different axes",
            got=f"{source}, {destination}",
        )
    order = [d for d in range(x.ndim) if d not in sources]
    for place, d in sorted(zip(places, sources, strict=True)):
        order.insert(place, d)
    return view.transpose(x, order)


def rollaxis(a: ArrayLike, axis: int, start: int = 0) -> Value:
    """Move one dimension in front of the one that is at `start`, as `numpy.rollaxis`.

    Raises:
        ValueMismatchError: there is no such place.
    """
    x = as_value("rollaxis", a)
    place, before = _axes.one("rollaxis", axis, x.ndim), _axes.integer("rollaxis", "start", start)
    if not -x.ndim <= before <= x.ndim:
        raise errors.ValueMismatchError(
            "rollaxis: there is no such place",
            got=f"start={start} for {x.type}",
            expected=f"{-x.ndim} to {x.ndim}",
        )
    before += x.ndim if before < 0 else 0
    return moveaxis(x, place, before - 1 if before > place else before)


def expand_dims(a: ArrayLike, axis: int | Sequence[int]) -> Value:
    """Insert dimensions of size 1 at these places of the result, as `numpy.expand_dims`."""
    x = as_value("expand_dims", a)
    places = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    return view.expand_dims(x, [_axes.one("expand_dims", d, x.ndim + len(places)) for d in places])


def squeeze(a: ArrayLike, axis: int | Sequence[int] | None = None) -> Value:
    """Drop dimensions of size 1, all of them when `axis` is None, as `numpy.squeeze`.

    Raises:
        ValueMismatchError: a named dimension has another size.
    """
    x = as_value("squeeze", a)
    if axis is None:
        return view.squeeze(x, [d for d, n in enumerate(x.shape) if n == 1])
    return view.squeeze(x, _axes.several("squeeze", axis, x.ndim))


# --- more dimensions -------------------------------------------------------------------------------


def atleast_1d(*arys: ArrayLike) -> Any:  # Any: one array, or a list unless exactly one is given
    """Arrays with at least one dimension."""
    return _at_least("atleast_1d", 1, arys)


def atleast_2d(*arys: ArrayLike) -> Any:  # Any: as atleast_1d
    """Arrays with at least two dimensions, added on the left."""
    return _at_least("atleast_2d", 2, arys)


def atleast_3d(*arys: ArrayLike) -> Any:  # Any: as atleast_1d
    """Arrays with at least three dimensions: vectors stand along the second, matrices along the first two."""
    return _at_least("atleast_3d", 3, arys)


_ADDED = {  # by wanted and present number of dimensions, where NumPy inserts new ones
    (1, 0): (0,), (2, 0): (0, 1), (2, 1): (0,), (3, 0): (0, 1, 2), (3, 1): (0, 2), (3, 2): (2,),
}  # fmt: skip


def _at_least(name: str, count: int, arys: Sequence[ArrayLike]) -> Any:  # Any: as atleast_1d
    values = [as_value(name, a) for a in arys]
    wide = [view.expand_dims(x, _ADDED.get((count, x.ndim), ())) for x in values]
    return wide[0] if len(wide) == 1 else wide


def broadcast_to(array: ArrayLike, shape: Any) -> Value:  # Any: an integer or a sequence of integers
    """Repeat dimensions of size 1, as `numpy.broadcast_to`.

    Raises:
        ValueMismatchError: the array does not broadcast to the shape.
        TypeMismatchError: a size is negative or no integer.
    """
    x, sizes = as_value("broadcast_to", array), _axes.shape("broadcast_to", shape)
    _axes.check_broadcasts("broadcast_to", x, sizes)
    return families.broadcast_to(x, sizes)


def broadcast_shapes(*shapes: Any) -> tuple[int, ...]:  # Any: integers and sequences of integers
    """The shape that shapes broadcast to; an integer is a shape of one dimension.

    Raises:
        ValueMismatchError: they do not.
    """
    return view.broadcast_shapes(
        *(s if np.size(s) != 1 else _axes.integers("broadcast_shapes", "a size", s) for s in shapes)
    )


def broadcast_arrays(*args: ArrayLike) -> list[Value]:
    """Arrays broadcast against each other."""
    values = [as_value("broadcast_arrays", x) for x in args]
    common = broadcast_shapes(*(x.shape for x in values))
    return [families.broadcast_to(x, common) for x in values]


# --- comparison of whole arrays ---------------------------------------------------------------------


def array_equal(a1: Any, a2: Any, equal_nan: bool = False) -> Value:  # Any: as asarray
    """Whether two arrays have the same shape and elements, a boolean scalar."""
    x, y = creation.asarray(a1), creation.asarray(a2)
    if x.shape != y.shape:
        return creation.asarray(False)
    same = comparison.equal(x, y)
    if equal_nan:
        both = comparison.logical_and(comparison.isnan(x), comparison.isnan(y))
        same = comparison.logical_or(same, both)
    return reductions.all(same)


def array_equiv(a1: Any, a2: Any) -> Value:  # Any: as asarray
    """Whether two arrays are equal after broadcasting, a boolean scalar."""
    x, y = creation.asarray(a1), creation.asarray(a2)
    try:
        broadcast_shapes(x.shape, y.shape)
    except errors.ValueMismatchError:
        return creation.asarray(False)
    return reductions.all(comparison.equal(x, y))


def allclose(
    a: ArrayLike, b: ArrayLike, rtol: ArrayLike = 1e-05, atol: ArrayLike = 1e-08, equal_nan: bool = False
) -> Value:
    """Whether all elements are close, as `isclose` tells, a boolean scalar."""
    return reductions.all(comparison.isclose(a, b, rtol, atol, equal_nan))


# --- bits --------------------------------------------------------------------------------------------


def packbits(a: ArrayLike, axis: int | None = None, bitorder: str = "big") -> Value:
    """Eight booleans per byte, as `numpy.packbits`.

    Args:
        a: booleans or integers; what is not zero is a set bit. Missing bits of the last byte are zero.
        axis: axis to pack along; the flattened array when None.
        bitorder: whether the first is the highest bit (`big`) or the lowest (`little`).

    Raises:
        TypeMismatchError: `a` is neither boolean nor integer.
        ValueMismatchError: there is no such axis or order.
    """
    x, place = _bits("packbits", a, axis, bitorder)
    if x.dtype not in dtypes.INTEGERS | {dtypes.bool_}:
        raise errors.TypeMismatchError("packbits takes booleans and integers", got=str(x.type))
    flags = convert(comparison.not_equal(moveaxis(x, place, -1), 0), dtypes.uint8)
    missing = -flags.shape[-1] % 8
    flags = view.pad(flags, 0, [(0, 0, 0)] * (flags.ndim - 1) + [(0, missing, 0)])
    flags = view.reshape(flags, (*flags.shape[:-1], flags.shape[-1] // 8, 8))
    weighted = elementwise.multiply(flags, literal(_weights(bitorder), dtypes.uint8).host)
    return moveaxis(reductions.sum(weighted, -1, dtype="uint8"), -1, place)


def unpackbits(
    a: ArrayLike, axis: int | None = None, count: int | None = None, bitorder: str = "big"
) -> Value:
    """One uint8 per bit of bytes, as `numpy.unpackbits`.

    Args:
        a: array of uint8.
        axis: axis to unpack along; the flattened array when None.
        count: how many bits to return along the axis: more are zero, negative ones are left out at the end.
        bitorder: as in `packbits`.

    Raises:
        TypeMismatchError: `a` is not uint8.
        ValueMismatchError: there is no such axis or order.
    """
    x, place = _bits("unpackbits", a, axis, bitorder)
    if x.dtype != dtypes.uint8:
        raise errors.TypeMismatchError("unpackbits takes bytes", got=str(x.type), expected="uint8")
    column = view.expand_dims(moveaxis(x, place, -1), (x.ndim,))
    set_bits = comparison.bitwise_and(column, literal(_weights(bitorder), dtypes.uint8).host)
    flags = convert(comparison.not_equal(set_bits, 0), dtypes.uint8)
    flags = view.reshape(flags, (*flags.shape[:-2], flags.shape[-2] * 8))
    length = flags.shape[-1]
    if count is not None:
        wanted = count if count >= 0 else max(length + count, 0)
        flags = view.pad(flags, 0, [(0, 0, 0)] * (flags.ndim - 1) + [(0, wanted - length, 0)])
    return moveaxis(flags, -1, place)


def _bits(name: str, a: ArrayLike, axis: int | None, bitorder: str) -> tuple[Value, int]:
    x = as_value(name, a)
    if bitorder not in ("big", "little"):
        raise errors.ValueMismatchError(
            f"{name}: unknown bit order", got=repr(bitorder), expected="'big' or 'little'"
        )
    if axis is None:
        return view.reshape(x, (x.size,)), 0
    return x, _axes.one(name, axis, x.ndim)


def _weights(bitorder: str) -> np.ndarray:
    weights = 1 << np.arange(8)
    return weights[::-1] if bitorder == "big" else weights
