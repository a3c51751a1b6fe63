"""Sorting and partitioning, with NumPy's names. NaN comes last; every sort is stable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import sorting, view
from infini.numpy import _axes, creation
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value, convert, with_weak


def _refuse(name: str, kind: Any, order: Any) -> None:  # Any: refused unless None
    if kind is not None:
        raise errors.TypeMismatchError(
            f"{name} takes no kind=", got=repr(kind), fix="pass stable=True; every sort is stable here"
        )
    if order is not None:
        raise errors.TypeMismatchError(
            f"{name} takes no order=", got=repr(order), fix="sort by several arrays with infini.numpy.lexsort"
        )


def _along(name: str, x: Value, axis: int | None) -> tuple[Value, int]:
    """The array and the axis to sort along: the flattened array when there is none."""
    if axis is None:
        return view.reshape(x, (x.size,)), 0
    return x, _axes.one(name, axis, x.ndim)


def sort(
    a: ArrayLike,
    axis: int | None = -1,
    *,
    kind: None = None,
    order: None = None,
    stable: bool = True,
    descending: bool = False,
) -> Value:
    """Sorted elements along an axis, as `numpy.sort`.

    Args:
        a: array.
        axis: axis to sort along; the flattened array when None.
        kind: accepted for NumPy's sake; only None.
        order: accepted for NumPy's sake; only None.
        stable: accepted for NumPy's sake; every sort is stable.
        descending: whether the largest comes first.

    Raises:
        TypeMismatchError: `kind` or `order` is given.
    """
    _refuse("sort", kind, order)
    x, place = _along("sort", as_value("sort", a), axis)
    ordered = sorting.sort(x, place)
    result: Value = view.rev(ordered, (place,)) if descending else ordered
    return result


def argsort(
    a: ArrayLike,
    axis: int | None = -1,
    *,
    kind: None = None,
    order: None = None,
    stable: bool = True,
    descending: bool = False,
    dtype: DTypeLike | None = None,
) -> Value:
    """Positions that sort an axis, as `numpy.argsort`; ties keep their order.

    Args:
        a: array.
        axis: axis to sort along; the flattened array when None.
        kind: accepted for NumPy's sake; only None.
        order: accepted for NumPy's sake; only None.
        stable: accepted for NumPy's sake; every sort is stable.
        descending: whether the largest comes first.
        dtype: integer dtype of the result; int32 when absent.

    Raises:
        TypeMismatchError: `kind` or `order` is given.
    """
    _refuse("argsort", kind, order)
    x, place = _along("argsort", with_weak(as_value("argsort", a), False), axis)
    target = dtypes.int32 if dtype is None else dtypes.canonical(dtype)
    positions = view.broadcasted_iota(dtypes.int32, x.shape, place)
    if descending:
        # Reversed input and output: equal elements keep their order and NaN comes first, as in JAX.
        _, found = sorting.sort([view.rev(x, (place,)), view.rev(positions, (place,))], place)
        return convert(view.rev(found, (place,)), target)
    _, found = sorting.sort([x, positions], place)
    return convert(found, target)


def lexsort(keys: ArrayLike | Sequence[ArrayLike], axis: int = -1) -> Value:
    """Positions that sort by several keys, the last one first, as `numpy.lexsort`; int32.

    Args:
        keys: arrays of one shape, or an array whose first axis counts them.
        axis: axis to sort along.

    Raises:
        TypeMismatchError: there is no key.
    """
    rows = [view.reshape(r, r.shape[1:]) for r in _rows(keys)] if _is_array(keys) else list(keys)
    values = [with_weak(as_value("lexsort", key), False) for key in rows]
    if not values:
        raise errors.TypeMismatchError("lexsort needs at least one key")
    if values[0].ndim == 0:
        return creation.zeros((), dtypes.int32)
    place = _axes.one("lexsort", axis, values[0].ndim)
    positions = view.broadcasted_iota(dtypes.int32, values[0].shape, place)
    *_, found = sorting.sort([*values[::-1], positions], place, num_keys=len(values))
    result: Value = found
    return result


def _is_array(x: object) -> bool:
    return hasattr(x, "ndim") or hasattr(x, "__infini_array__")


def _rows(keys: ArrayLike) -> list[Value]:
    x = as_value("lexsort", keys)
    return [view.slice_in_dim(x, i, i + 1) for i in range(x.shape[0])] if x.ndim else []


def sort_complex(a: ArrayLike) -> Value:
    """Elements along the last axis as complex numbers in lexicographic order, as `numpy.sort_complex`."""
    x = as_value("sort_complex", a)
    double = dtypes.float64 == x.dtype or dtypes.complex128 == x.dtype
    return sort(convert(x, dtypes.complex128 if double else dtypes.complex64))


def partition(a: ArrayLike, kth: int, axis: int = -1) -> Value:
    """Elements such that those before place `kth` along an axis are not larger than the one there, as
    `numpy.partition`. Here they are sorted.

    Raises:
        ValueMismatchError: there is no such axis or place.
    """
    x = as_value("partition", a)
    _check_place("partition", x, kth, axis)
    return sort(x, axis)


def argpartition(a: ArrayLike, kth: int, axis: int = -1) -> Value:
    """Positions that partition an axis, int32, as `numpy.argpartition`. Here they sort it.

    Raises:
        ValueMismatchError: there is no such axis or place.
    """
    x = as_value("argpartition", a)
    _check_place("argpartition", x, kth, axis)
    return argsort(x, axis)


def _check_place(name: str, x: Value, kth: int, axis: int) -> None:
    place = _axes.one(name, axis, x.ndim)
    if not -x.shape[place] <= kth < x.shape[place]:
        raise errors.ValueMismatchError(
            f"{name}: there is no place {kth}", got=f"an axis of size {x.shape[place]}"
        )
