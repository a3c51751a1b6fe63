"""Distinct elements and sets, with NumPy's names.

How many elements a result has depends on the data; `size=` fixes it, which tracing needs: what is missing is
filled up, what is too much is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from infini.core import dtypes, errors, trace
from infini.core.value import Value
from infini.lax import cumulative, elementwise as e, sorting, view
from infini.lax.families import bind_scalars, broadcast_to
from infini.numpy import _axes, comparison, creation, reductions, searching, updates
from infini.numpy._promotion import ArrayLike, as_value, convert, operands, with_weak

_FEW: Final = 64  # elements to look among up to which every pair is compared


class UniqueAllResult(NamedTuple):
    """Distinct elements, where each is first, which each element is, and how often each occurs."""

    values: Value
    indices: Value
    inverse_indices: Value
    counts: Value


class UniqueCountsResult(NamedTuple):
    """Distinct elements, and how often each occurs."""

    values: Value
    counts: Value


class UniqueInverseResult(NamedTuple):
    """Distinct elements, and which of them each element is."""

    values: Value
    inverse_indices: Value


# --- distinct elements ----------------------------------------------------------------------------


def unique(
    ar: ArrayLike,
    return_index: bool = False,
    return_inverse: bool = False,
    return_counts: bool = False,
    axis: int | None = None,
    *,
    equal_nan: bool = True,
    size: int | None = None,
    fill_value: ArrayLike | None = None,
    sorted: bool = True,
) -> Any:  # Any: an array, or a tuple of them
    """Distinct elements, or slices along an axis, in order, as `numpy.unique`.

    Args:
        ar: array.
        return_index: also return where each is first.
        return_inverse: also return which of them each element is, in the shape of `ar`.
        return_counts: also return how often each occurs.
        axis: axis whose slices are compared; elements of the flattened array when None.
        equal_nan: whether all NaNs are one.
        size: number of results, needed while tracing; when there are fewer, they are filled up.
        fill_value: what to fill up with; the first result when absent. Positions are filled up with the
            first, counts with 0.
        sorted: accepted for the array API's sake; results are always sorted.

    Raises:
        ConcretizationError: the array is being traced and `size` is absent.
        ValueMismatchError: the axis does not exist, or there is nothing to fill up with.
    """
    value = as_value("unique", ar)
    found = _unique(value, axis, equal_nan, size, fill_value)
    shape = value.shape if axis is None else (value.shape[_axes.one("unique", axis, value.ndim)],)
    chosen = [found.values]
    if return_index:
        chosen.append(found.indices)
    if return_inverse:
        chosen.append(view.reshape(found.inverse_indices, shape))
    if return_counts:
        chosen.append(found.counts)
    return chosen[0] if len(chosen) == 1 else tuple(chosen)


def unique_all(
    x: ArrayLike, /, *, size: int | None = None, fill_value: ArrayLike | None = None
) -> UniqueAllResult:
    """Everything `unique` gives; NaNs differ, as the array API has it."""
    value = as_value("unique_all", x)
    found = _unique(value, None, False, size, fill_value)
    return found._replace(inverse_indices=view.reshape(found.inverse_indices, value.shape))


def unique_counts(
    x: ArrayLike, /, *, size: int | None = None, fill_value: ArrayLike | None = None
) -> UniqueCountsResult:
    """Distinct elements and how often each occurs; NaNs differ."""
    found = unique_all(x, size=size, fill_value=fill_value)
    return UniqueCountsResult(found.values, found.counts)


def unique_inverse(
    x: ArrayLike, /, *, size: int | None = None, fill_value: ArrayLike | None = None
) -> UniqueInverseResult:
    """Distinct elements and which of them each element is; NaNs differ."""
    found = unique_all(x, size=size, fill_value=fill_value)
    return UniqueInverseResult(found.values, found.inverse_indices)


def unique_values(x: ArrayLike, /, *, size: int | None = None, fill_value: ArrayLike | None = None) -> Value:
    """Distinct elements; NaNs differ."""
    return unique_all(x, size=size, fill_value=fill_value).values


def _unique(
    x: Value, axis: int | None, equal_nan: bool, size: int | None, fill_value: ArrayLike | None
) -> UniqueAllResult:
    if axis is None:
        rows, place = view.reshape(x, (x.size, 1)), 0
    else:
        place = _axes.one("unique", axis, x.ndim)
        front = view.transpose(x, [place, *(d for d in range(x.ndim) if d != place)])
        rows = view.reshape(front, (front.shape[0], math.prod(front.shape[1:])))
    count = rows.shape[0]
    if count == 0 and size and fill_value is None:
        raise errors.ValueMismatchError(
            "unique: nothing to fill the result up with", got=f"{x.type}, size={size}", fix="pass fill_value="
        )
    order, is_first = _ordered(rows, equal_nan)
    number = bind_scalars(e.sub_p, _running_count(is_first), 1)  # of the group of each sorted row
    length = _length("unique", is_first, size)
    starts = _where_true(is_first, length)
    exists = bind_scalars(e.lt_p, view.iota(dtypes.int32, length), reductions.sum(is_first))
    indices = sorting.take_last(order, starts) if count else order
    values = _rows_at(rows, indices)
    if fill_value is not None:
        full = (length, rows.shape[1])
        filler = broadcast_to(convert(as_value("unique", fill_value), rows.dtype), full)
        mask = broadcast_to(view.reshape(exists, (length, 1)), full)
        values = bind_scalars(e.select_n_p, mask, filler, values) if count else filler
    shape = (length,) if axis is None else (length, *(n for d, n in enumerate(x.shape) if d != place))
    values = view.reshape(values, shape)
    if axis is not None:
        values = view.transpose(values, [*range(1, place + 1), 0, *range(place + 1, x.ndim)])
    inverse = order if count == 0 else updates.IndexUpdateHelper(order)[order].set(number)
    counts = searching.summed(number, broadcast_to(convert(1, dtypes.int32), (count,)), length)
    return UniqueAllResult(values, indices, inverse, counts)


def _ordered(rows: Value, equal_nan: bool) -> tuple[Value, Value]:
    """Positions that sort rows, and whether each sorted row differs from the one before."""
    count, width = rows.shape
    positions = view.iota(dtypes.int32, count)
    if width == 0 or count == 0:
        return positions, comparison.equal(positions, 0)
    columns = [view.reshape(view.slice_in_dim(rows, d, d + 1, axis=1), (count,)) for d in range(width)]
    *ordered, order = sorting.sort([*columns, positions], num_keys=width)
    differs: Value | None = None
    for column in ordered:
        now, before = view.slice_in_dim(column, 1, None), view.slice_in_dim(column, 0, count - 1)
        mine = bind_scalars(e.ne_p, now, before)
        if equal_nan and dtypes.is_inexact(column.dtype):
            both = bind_scalars(e.and_p, comparison.isnan(now), comparison.isnan(before))
            mine = bind_scalars(e.and_p, mine, comparison.logical_not(both))
        differs = mine if differs is None else bind_scalars(e.or_p, differs, mine)
    assert differs is not None
    return order, view.concatenate([broadcast_to(convert(True, dtypes.bool_), (1,)), differs], 0)


def _running_count(flags: Value) -> Value:
    return trace.bind1(cumulative.cumsum_p, convert(flags, dtypes.int32), axis=-1, reverse=False)


def _length(name: str, flags: Value, size: int | None) -> int:
    """How many are true, or the size that is asked for."""
    return _axes.known_size(name, reductions.sum(flags), "size") if size is None else int(size)


def _where_true(flags: Value, length: int) -> Value:
    """The first `length` places of a vector that are true; 0 where there are fewer."""
    zeros = broadcast_to(convert(0, dtypes.int32), (length,))
    if flags.size == 0 or length == 0:
        return zeros
    to = bind_scalars(e.sub_p, _running_count(flags), 1)
    to = bind_scalars(e.select_n_p, flags, convert(length, dtypes.int32), to)
    return updates.IndexUpdateHelper(zeros)[to].set(view.iota(dtypes.int32, flags.size), mode="drop")


def _rows_at(rows: Value, at: Value) -> Value:
    """Rows at some places; of no rows there are none."""
    if rows.shape[0] == 0:
        return view.reshape(rows, (0, rows.shape[1]))
    columns = view.transpose(rows, (1, 0))
    wanted = broadcast_to(at, (rows.shape[1], at.size))
    return view.transpose(sorting.take_last(columns, wanted), (1, 0))


# --- sets -------------------------------------------------------------------------------------------


def union1d(
    ar1: ArrayLike, ar2: ArrayLike, *, size: int | None = None, fill_value: ArrayLike | None = None
) -> Value:
    """Elements of either array, in order and each once, as `numpy.union1d`."""
    both = _flat(operands("union1d", ar1, ar2))
    result: Value = unique(view.concatenate(both, 0), size=size, fill_value=fill_value)
    return result


def _flat(values: Sequence[Value]) -> list[Value]:
    return [with_weak(view.reshape(v, (v.size,)), False) for v in values]


@dataclass(frozen=True, slots=True)
class _Groups:
    """Equal elements of two vectors, in order.

    Args:
        values: the elements of both, sorted.
        starts: whether each begins a group.
        positions: where each came from, the second vector counted on from the first.
        number: the group of each.
        in_first: for each group how many of it are in the first vector.
        in_second: the same for the second.
    """

    values: Value
    starts: Value
    positions: Value
    number: Value
    in_first: Value
    in_second: Value


def _grouped(first: Value, second: Value) -> _Groups:
    both = view.concatenate([first, second], 0)
    order, starts = _ordered(view.reshape(both, (both.size, 1)), equal_nan=False)
    number = bind_scalars(e.sub_p, _running_count(starts), 1)
    is_first = convert(bind_scalars(e.lt_p, order, first.size), dtypes.int32)
    others = bind_scalars(e.sub_p, 1, is_first)
    return _Groups(
        sorting.take_last(both, order) if both.size else both,
        starts,
        order,
        number,
        searching.summed(number, is_first, both.size),
        searching.summed(number, others, both.size),
    )


def _chosen(
    name: str, groups: _Groups, wanted: Value, size: int | None, fill_value: ArrayLike | None
) -> tuple[Value, Value, Value]:
    """Elements of the groups that are wanted, the groups, and whether each result is one of them."""
    length = _length(name, wanted, size)
    numbers = _where_true(wanted, length)
    starts = _where_true(groups.starts, groups.starts.size)
    exists = bind_scalars(e.lt_p, view.iota(dtypes.int32, length), reductions.sum(wanted))
    if groups.values.size == 0 or length == 0:
        filler = convert(0 if fill_value is None else fill_value, groups.values.dtype)
        return broadcast_to(filler, (length,)), numbers, exists
    values = sorting.take_last(groups.values, sorting.take_last(starts, numbers))
    if fill_value is not None:
        filler = broadcast_to(convert(as_value(name, fill_value), values.dtype), values.shape)
        values = bind_scalars(e.select_n_p, exists, filler, values)
    else:
        first = broadcast_to(view.reshape(view.slice_in_dim(values, 0, 1), ()), values.shape)
        values = bind_scalars(e.select_n_p, exists, first, values)
    return values, numbers, exists


def intersect1d(
    ar1: ArrayLike,
    ar2: ArrayLike,
    assume_unique: bool = False,
    return_indices: bool = False,
    *,
    size: int | None = None,
    fill_value: ArrayLike | None = None,
) -> Any:  # Any: an array, or that and two arrays of positions
    """Elements of both arrays, in order and each once, as `numpy.intersect1d`.

    Args:
        ar1: array, flattened.
        ar2: array, flattened.
        assume_unique: accepted for NumPy's sake; repetitions do no harm.
        return_indices: also return where each is first in both arrays.
        size: number of results, needed while tracing; when there are fewer, they are filled up.
        fill_value: what to fill up with; the first result when absent. Positions are filled up with the size
            of their array.
    """
    first, second = _flat(operands("intersect1d", ar1, ar2))
    groups = _grouped(first, second)
    wanted = bind_scalars(
        e.and_p, bind_scalars(e.gt_p, groups.in_first, 0), bind_scalars(e.gt_p, groups.in_second, 0)
    )
    values, numbers, exists = _chosen("intersect1d", groups, wanted, size, fill_value)
    if not return_indices:
        return values
    # Sorting is stable: a group begins with the first of the first vector, and then comes the other.
    starts = _where_true(groups.starts, groups.starts.size)
    places = []
    for skipped, offset, limit in ((None, 0, first.size), (groups.in_first, first.size, second.size)):
        at = sorting.take_last(starts, numbers)
        if skipped is not None:
            at = bind_scalars(e.add_p, at, sorting.take_last(skipped, numbers))
        found = bind_scalars(e.sub_p, sorting.take_last(groups.positions, at), offset)
        outside = broadcast_to(convert(limit, dtypes.int32), found.shape)
        places.append(bind_scalars(e.select_n_p, exists, outside, found))
    return (values, *places)


def setxor1d(
    ar1: ArrayLike,
    ar2: ArrayLike,
    assume_unique: bool = False,
    *,
    size: int | None = None,
    fill_value: ArrayLike | None = None,
) -> Value:
    """Elements of one of the arrays only, in order and each once, as `numpy.setxor1d`; arguments as those of
    `intersect1d`."""
    first, second = _flat(operands("setxor1d", ar1, ar2))
    groups = _grouped(first, second)
    wanted = bind_scalars(
        e.ne_p, bind_scalars(e.gt_p, groups.in_first, 0), bind_scalars(e.gt_p, groups.in_second, 0)
    )
    return _chosen("setxor1d", groups, wanted, size, fill_value)[0]


def setdiff1d(
    ar1: ArrayLike,
    ar2: ArrayLike,
    assume_unique: bool = False,
    *,
    size: int | None = None,
    fill_value: ArrayLike | None = None,
) -> Value:
    """Elements of the first array that are not in the second, as `numpy.setdiff1d`: in order and each once,
    or as they stand when `assume_unique` holds. Other arguments as those of `intersect1d`."""
    first, second = _flat(operands("setdiff1d", ar1, ar2))
    if not assume_unique:
        groups = _grouped(first, second)
        wanted = bind_scalars(
            e.and_p, bind_scalars(e.gt_p, groups.in_first, 0), bind_scalars(e.eq_p, groups.in_second, 0)
        )
        return _chosen("setdiff1d", groups, wanted, size, fill_value)[0]
    kept = comparison.logical_not(isin(first, second))
    length = _length("setdiff1d", kept, size)
    filler = convert(0 if fill_value is None else fill_value, first.dtype)
    if first.size == 0:
        return broadcast_to(filler, (length,))
    found = sorting.take_last(first, _where_true(kept, length))
    exists = bind_scalars(e.lt_p, view.iota(dtypes.int32, length), reductions.sum(kept))
    return bind_scalars(e.select_n_p, exists, broadcast_to(filler, found.shape), found)


def isin(
    element: ArrayLike,
    test_elements: ArrayLike,
    assume_unique: bool = False,
    invert: bool = False,
    *,
    method: str = "auto",
) -> Value:
    """Whether each element is among others, as `numpy.isin`.

    Args:
        element: elements to look for.
        test_elements: elements to look among, flattened.
        assume_unique: accepted for NumPy's sake; not used.
        invert: whether to tell where it is not.
        method: `compare_all` compares every pair, `binary_search` and `sort` search the sorted elements;
            `auto` chooses.

    Raises:
        ValueMismatchError: there is no such method.
    """
    if method not in ("auto", "compare_all", "binary_search", "sort"):
        raise errors.ValueMismatchError(
            f"isin: there is no method {method!r}", expected="auto, compare_all, binary_search, sort"
        )
    x, among = operands("isin", element, test_elements)
    among = view.reshape(among, (among.size,))
    if among.size == 0 or x.size == 0:
        found = creation.zeros(x.shape, dtypes.bool_)
    elif method == "compare_all" or x.dtype in dtypes.COMPLEX or (method == "auto" and among.size <= _FEW):
        pairs = bind_scalars(e.eq_p, among, view.expand_dims(x, (x.ndim,)))
        found = reductions.any(pairs, -1)
    else:
        ordered = sorting.sort(among)
        place = searching.searchsorted(ordered, x, method="sort" if method == "sort" else "scan")
        at = bind_scalars(e.min_p, place, among.size - 1)
        there = view.reshape(sorting.take_last(ordered, view.reshape(at, (at.size,))), x.shape)
        found = bind_scalars(e.eq_p, there, x)
    found = with_weak(found, False)
    return comparison.logical_not(found) if invert else found
