"""Changing shapes, joining, splitting, repeating and ordering, with NumPy's names. Dtypes and weak flags of
single operands stay."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import errors
from infini.core.value import Value
from infini.lax import families, view
from infini.numpy import _axes, comparison, creation, reductions
from infini.numpy._promotion import ArrayLike, as_value


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
            "moveaxis: source and destination have to be as many different axes",
            got=f"{source}, {destination}",
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
    axes = (
        tuple(d for d, n in enumerate(x.shape) if n == 1)
        if axis is None
        else _axes.several("squeeze", axis, x.ndim)
    )
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
