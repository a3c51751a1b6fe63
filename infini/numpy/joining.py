"""Joining and splitting arrays, with NumPy's names."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import view
from infini.numpy import _axes, manipulation
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value, convert, operands

Arrays = Any  # Any: a sequence of arrays, or an array of them
Sections = Any  # Any: an integer, or a sequence or vector of integers


def concatenate(arrays: Arrays, axis: int | None = 0, dtype: DTypeLike | None = None) -> Value:
    """Join arrays along an axis (flattened when it is None), as `numpy.concatenate`.

    Args:
        arrays: arrays whose shapes differ only along the axis; one array stands for its rows.
        axis: the axis.
        dtype: dtype of the result; that of the arrays together when absent.

    Raises:
        ValueMismatchError: there are none, one is a scalar, or there is no such axis.
        TypeMismatchError: shapes differ elsewhere.
    """
    values = _sequence("concatenate", arrays, dtype)
    if axis is None:
        values, axis = [view.reshape(x, (x.size,)) for x in values], 0
    if values[0].ndim == 0:
        raise errors.ValueMismatchError("concatenate does not take scalars", fix="use infini.numpy.stack")
    return view.concatenate(values, _axes.one("concatenate", axis, values[0].ndim))


def concat(arrays: Arrays, /, *, axis: int | None = 0) -> Value:
    """The array API's name of `concatenate`."""
    return concatenate(arrays, axis)


def _sequence(name: str, arrays: Arrays, dtype: DTypeLike | None) -> list[Value]:
    items = view.unstack(arrays) if isinstance(arrays, (Value, np.ndarray)) else arrays
    if not isinstance(items, (tuple, list)):
        raise errors.TypeMismatchError(f"{name} needs a sequence of arrays", got=type(arrays).__name__)
    if not items:
        raise errors.ValueMismatchError(f"{name} needs at least one array", got="an empty sequence")
    values = operands(name, *items)
    return values if dtype is None else [convert(x, dtypes.canonical(dtype)) for x in values]


def _items(name: str, arrays: Arrays) -> list[Value]:
    """The arrays of a sequence in their own dtypes."""
    items = view.unstack(arrays) if isinstance(arrays, (Value, np.ndarray)) else arrays
    if not isinstance(items, (tuple, list)):
        raise errors.TypeMismatchError(f"{name} needs a sequence of arrays", got=type(arrays).__name__)
    return [as_value(name, x) for x in items]


def stack(arrays: Arrays, axis: int = 0, out: None = None, dtype: DTypeLike | None = None) -> Value:
    """Join arrays of one shape along a new axis, as `numpy.stack`.

    Raises:
        ValueMismatchError: there are none, their shapes differ, or there is no such axis.
        MissingRuleError: `out` is given.
    """
    _axes.refuse_out("stack", out)
    values = _sequence("stack", arrays, dtype)
    return view.stack(values, _axes.one("stack", axis, values[0].ndim + 1))


def hstack(tup: Arrays, dtype: DTypeLike | None = None) -> Value:
    """Join along the second axis, vectors along the first."""
    values = [manipulation.atleast_1d(x) for x in _items("hstack", tup)]
    return concatenate(values, 0 if values and values[0].ndim == 1 else 1, dtype)


def vstack(tup: Arrays, dtype: DTypeLike | None = None) -> Value:
    """Join along the first axis; vectors become rows."""
    return concatenate([manipulation.atleast_2d(x) for x in _items("vstack", tup)], 0, dtype)


def dstack(tup: Arrays, dtype: DTypeLike | None = None) -> Value:
    """Join along the third axis, of size 1 where it is missing."""
    return concatenate([manipulation.atleast_3d(x) for x in _items("dstack", tup)], 2, dtype)


def column_stack(tup: Arrays) -> Value:
    """Join along the second axis; vectors become columns."""
    values = [
        x if x.ndim > 1 else manipulation.transpose(manipulation.atleast_2d(x))
        for x in _items("column_stack", tup)
    ]
    return concatenate(values, 1)


def append(arr: ArrayLike, values: ArrayLike, axis: int | None = None) -> Value:
    """`concatenate` of two arrays."""
    return concatenate([arr, values], axis)


def block(arrays: Any) -> Value:  # Any: arrays in nested lists
    """Join arrays in nested lists: the innermost along the last axis, the next along the one before, and so
    on, as `numpy.block`.

    Raises:
        ValueMismatchError: a list is empty, the depths of lists differ, or there is a tuple.
    """
    return _blocks(arrays)[0]


def _blocks(arrays: Any) -> tuple[Value, int]:  # Any: as block
    if isinstance(arrays, tuple):
        raise errors.ValueMismatchError("block takes lists, not tuples", got=repr(arrays))
    if not isinstance(arrays, list):
        return as_value("block", arrays), 1
    if not arrays:
        raise errors.ValueMismatchError("block: a list is empty")
    pairs = [_blocks(item) for item in arrays]
    depth = pairs[0][1]
    if any(other != depth for _, other in pairs):
        raise errors.ValueMismatchError("block: the depths of the nested lists differ")
    rank = max(depth, *(x.ndim for x, _ in pairs))
    values = [view.broadcast_to_rank(x, rank) for x, _ in pairs]
    return concatenate(values, -depth), depth + 1


# --- splitting ---------------------------------------------------------------------------------------


def split(ary: ArrayLike, indices_or_sections: Sections, axis: int = 0) -> list[Value]:
    """Cut an array along an axis, as `numpy.split`.

    Args:
        ary: array.
        indices_or_sections: number of equal parts, or the increasing positions of the cuts.
        axis: axis to cut.

    Raises:
        ValueMismatchError: the axis does not divide into equal parts, or a cut lies outside.
    """
    return _split("split", as_value("split", ary), indices_or_sections, axis)


def array_split(ary: ArrayLike, indices_or_sections: Sections, axis: int = 0) -> list[Value]:
    """As `split`; parts may differ in size by one."""
    return _split("array_split", as_value("array_split", ary), indices_or_sections, axis)


def hsplit(ary: ArrayLike, indices_or_sections: Sections) -> list[Value]:
    """`split` along the second axis, of vectors along the first."""
    x = as_value("hsplit", ary)
    return _split("hsplit", x, indices_or_sections, 0 if x.ndim == 1 else 1)


def vsplit(ary: ArrayLike, indices_or_sections: Sections) -> list[Value]:
    """`split` along the first axis."""
    return _split("vsplit", as_value("vsplit", ary), indices_or_sections, 0)


def dsplit(ary: ArrayLike, indices_or_sections: Sections) -> list[Value]:
    """`split` along the third axis."""
    return _split("dsplit", as_value("dsplit", ary), indices_or_sections, 2)


def _split(name: str, x: Value, where: Sections, axis: int) -> list[Value]:
    place = _axes.one(name, axis, x.ndim)
    length = x.shape[place]
    if np.ndim(where):
        cuts = _axes.integers(name, "a cut", where)
        sizes = [b - a for a, b in itertools.pairwise([0, *cuts, length])]
        if any(n < 0 for n in sizes):
            raise errors.ValueMismatchError(
                f"{name}: cuts have to increase and lie inside", got=f"{list(cuts)} along {length} elements"
            )
        return view.split(x, sizes, place)
    count = _axes.integer(name, "the number of parts", where)
    if count < 1:
        raise errors.ValueMismatchError(
            f"{name}: there have to be parts", got=str(count), expected="at least 1"
        )
    each, rest = divmod(length, count)
    if rest and name != "array_split":
        raise errors.ValueMismatchError(
            f"{name}: an axis of size {length} cannot be cut into {count} equal parts",
            got=f"{x.type}, axis {axis}",
            fix="use array_split, or give the positions of the cuts",
        )
    return view.split(x, [each + 1] * rest + [each] * (count - rest), place)


def unstack(x: ArrayLike, /, *, axis: int = 0) -> tuple[Value, ...]:
    """The parts of an array along an axis, without that axis."""
    return view.unstack(as_value("unstack", x), axis)
