"""Elements chosen by conditions, by numbers, or by place; and copies with others put in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors, trace
from infini.core.value import Value
from infini.lax import view
from infini.numpy import (
    _axes,
    _eager,
    comparison,
    elementwise,
    grids,
    indexing,
    joining,
    manipulation,
    ordering,
    positions,
    updates,
)  # fmt: skip
from infini.numpy._promotion import ArrayLike, as_value, convert, operands, with_weak


def compress(
    condition: ArrayLike,
    a: ArrayLike,
    axis: int | None = None,
    *,
    size: int | None = None,
    fill_value: ArrayLike = 0,
    out: None = None,
) -> Value:
    """The slices along an axis (of the flattened array when None) where a condition holds, as
    `jax.numpy.compress`.

    Args:
        condition: a vector; what is not zero holds. It may be shorter than the axis.
        a: array.
        axis: axis of the slices.
        size: how many slices to return, which tracing needs; as many as hold when absent.
        fill_value: what stands for missing slices.
        out: accepted for NumPy's sake; only None.

    Raises:
        ValueMismatchError: the condition is no vector or holds beyond the axis, or `size` is larger than it.
        ConcretizationError: the condition is being traced and no size is given.
    """
    flags, x = as_value("compress", condition), as_value("compress", a)
    _axes.refuse_out("compress", out)
    if flags.ndim != 1:
        raise errors.ValueMismatchError("compress: the condition has to be a vector", got=str(flags.type))
    if axis is None:
        x, axis = view.reshape(x, (x.size,)), 0
    place = _axes.one("compress", axis, x.ndim)
    length = x.shape[place]
    if flags.size > length:
        beyond = view.slice(flags, (length,), (flags.size,))
        is_known = not isinstance(flags, trace.Tracer) or flags.concrete() is not None
        if size is None and is_known and np.asarray(beyond).any():
            raise errors.ValueMismatchError(
                "compress: the condition holds beyond the axis", got=f"{flags.type} for {length} slices"
            )
        flags = view.slice(flags, (0,), (length,))
    if size is None:
        return indexing.take(x, positions.flatnonzero(flags), axis=place)
    count = _axes.integer("compress", "size", size)
    if not 0 <= count <= length:
        raise errors.ValueMismatchError(
            "compress: size has to be that of the axis or less", got=str(size), expected=f"0 to {length}"
        )
    at = positions.flatnonzero(flags, size=count, fill_value=length)
    found = indexing.take(x, at, axis=place, mode="clip")
    is_missing = view.reshape(
        comparison.equal(at, length), [count if d == place else 1 for d in range(x.ndim)]
    )
    return comparison.where(is_missing, convert(as_value("compress", fill_value), x.dtype), found)


def extract(
    condition: ArrayLike, arr: ArrayLike, *, size: int | None = None, fill_value: ArrayLike = 0
) -> Value:
    """The elements where a condition holds, in one dimension; `compress` of both flattened."""
    flags, x = as_value("extract", condition), as_value("extract", arr)
    return compress(
        view.reshape(flags, (flags.size,)), view.reshape(x, (x.size,)), size=size, fill_value=fill_value
    )


def choose(
    a: ArrayLike, choices: Any, out: None = None, mode: str = "raise"
) -> Value:  # Any: a sequence of arrays, or an array of them
    """From several arrays the elements of the one whose number `a` gives, as `numpy.choose`.

    Args:
        a: integers.
        choices: arrays that broadcast with `a`.
        out: accepted for NumPy's sake; only None.
        mode: what happens to numbers outside: `raise` an error (outside tracing only), `wrap` or `clip`.

    Raises:
        ValueMismatchError: `a` is no integer, a number lies outside with `raise`, or there is no such mode.
        ConcretizationError: `a` is being traced with `raise`.
    """
    _axes.refuse_out("choose", out)
    number = as_value("choose", a)
    items = list(view.unstack(choices)) if isinstance(choices, (Value, np.ndarray)) else list(choices)
    values = operands("choose", *items)
    if number.dtype not in dtypes.INTEGERS:
        raise errors.ValueMismatchError("choose needs integers", got=str(number.type))
    if mode == "raise":
        host = np.asarray(number)
        if host.size and (host.min() < 0 or host.max() >= len(values)):
            raise errors.ValueMismatchError(
                "choose: a number lies outside", got=f"{host.min()} to {host.max()} of {len(values)} choices",
                fix="use mode='clip' or mode='wrap'",
            )  # fmt: skip
    elif mode == "wrap":
        number = elementwise.remainder(number, len(values))
    elif mode == "clip":
        number = elementwise.clip(number, 0, len(values) - 1)
    else:
        raise errors.ValueMismatchError(f"choose: there is no mode {mode!r}", expected="raise, wrap or clip")
    number, *values = manipulation.broadcast_arrays(number, *values)
    stacked = view.stack(values)
    found = indexing.take_along_axis(stacked, view.expand_dims(number, (0,)), 0, mode="clip")
    return with_weak(view.squeeze(found, (0,)), False)


def select(condlist: Sequence[ArrayLike], choicelist: Sequence[ArrayLike], default: ArrayLike = 0) -> Value:
    """Elements of the array whose condition is the first to hold, as `numpy.select`.

    Args:
        condlist: conditions; what is not zero holds.
        choicelist: as many arrays.
        default: elements where no condition holds.

    Raises:
        ValueMismatchError: the lists are empty or differ in length.
    """
    if len(condlist) != len(choicelist) or not len(condlist):
        raise errors.ValueMismatchError(
            "select needs as many arrays as conditions, and at least one",
            got=f"{len(condlist)} conditions, {len(choicelist)} arrays",
        )
    result, *values = operands("select", default, *choicelist)
    for condition, value in zip(reversed(condlist), reversed(values), strict=True):
        result = comparison.where(condition, value, result)
    return result


# --- copies with other elements --------------------------------------------------------------------


def _refuse_inplace(name: str, inplace: bool) -> None:
    if inplace:
        raise errors.ValueMismatchError(
            f"{name} cannot change an array", got="inplace=True", fix="pass inplace=False and use the result"
        )


def put(
    a: ArrayLike, ind: ArrayLike, v: ArrayLike, mode: str | None = None, *, inplace: bool = True
) -> Value:
    """A copy of `a` with elements at places of the flattened array, as `jax.numpy.put`.

    Args:
        a: array.
        ind: integer places.
        v: values, repeated or cut to as many as places.
        mode: what happens to places outside: they take the nearest when absent or with `clip`, and count
            modulo the size with `wrap`.
        inplace: has to be False.

    Raises:
        ValueMismatchError: `inplace` is true, or there is no such mode.
        MissingRuleError: the mode is `raise`.
    """
    _refuse_inplace("put", inplace)
    x, at, values = (as_value("put", operand) for operand in (a, ind, v))
    if mode not in (None, "clip", "wrap"):
        indexing.refuse_mode("put", mode, ("clip", "wrap"))
    if not x.size or not at.size or not values.size:
        return x
    at = view.reshape(at, (at.size,))
    if mode == "clip":
        at = elementwise.clip(at, 0, x.size - 1)
    elif mode == "wrap":
        at = elementwise.remainder(at, x.size)
    places = positions.unravel_index(at, x.shape)
    written = manipulation.repeated_to(view.reshape(values, (values.size,)), at.size)
    return updates.IndexUpdateRef(x, places).set(written)


def place(arr: ArrayLike, mask: ArrayLike, vals: ArrayLike, *, inplace: bool = True) -> Value:
    """A copy of `arr` with `vals` one after another where a mask holds, as `jax.numpy.place`.

    Args:
        arr: array.
        mask: as many elements; what is not zero holds.
        vals: values, repeated as often as needed.
        inplace: has to be False.

    Raises:
        ValueMismatchError: `inplace` is true, the sizes differ, or there are no values.
    """
    x, flags, values = (as_value("place", operand) for operand in (arr, mask, vals))
    _refuse_inplace("place", inplace)
    if x.size != flags.size or not values.size:
        raise errors.ValueMismatchError(
            "place needs a mask of the size of the array, and values",
            got=f"{x.type}, {flags.type}, {values.type}",
        )
    if not x.size:
        return x
    at = positions.flatnonzero(flags, size=x.size, fill_value=x.size)
    written = manipulation.repeated_to(view.reshape(values, (values.size,)), x.size)
    flat = updates.IndexUpdateRef(view.reshape(x, (x.size,)), at).set(written, mode="drop")
    return view.reshape(flat, x.shape)


def put_along_axis(
    arr: ArrayLike,
    indices: ArrayLike,
    values: ArrayLike,
    axis: int | None,
    inplace: bool = True,
    *,
    mode: str | None = None,
) -> Value:
    """A copy of `arr` with `values` at `indices` along an axis, row by row, as `jax.numpy.put_along_axis`.

    Args:
        arr: array.
        indices: integers with as many dimensions as `arr`; the others broadcast.
        values: what to write; broadcasts to `indices`.
        axis: axis to write along; the flattened array when None.
        inplace: has to be False.
        mode: what happens to places outside, as in `x.at[...]`; they are dropped when absent.

    Raises:
        ValueMismatchError: `inplace` is true, numbers of dimensions differ, or values do not broadcast.
    """
    _refuse_inplace("put_along_axis", inplace)
    x, at, written = (as_value("put_along_axis", operand) for operand in (arr, indices, values))
    shape = x.shape
    if axis is None:
        x, axis = view.reshape(x, (x.size,)), 0
    if x.ndim != at.ndim:
        raise errors.ValueMismatchError(
            "put_along_axis: array and indices have different numbers of dimensions",
            got=f"{x.type}, {at.type}",
        )
    along = _axes.one("put_along_axis", axis, x.ndim)
    _axes.check_broadcasts("put_along_axis", written, at.shape)
    index = list(grids.indices(x.shape, sparse=True))
    index[along] = at
    changed = updates.IndexUpdateRef(x, tuple(index)).set(
        manipulation.broadcast_to(written, at.shape), mode=mode
    )
    return view.reshape(changed, shape)


def insert(arr: ArrayLike, obj: Any, values: ArrayLike, axis: int | None = None) -> Value:
    """A copy of `arr` with values inserted before some places along an axis, as `numpy.insert`.

    Args:
        arr: array.
        obj: place, vector of places, or slice; places count in `arr`.
        values: what to insert, in the dtype of `arr`.
        axis: axis; the flattened array when None.

    Raises:
        ValueMismatchError: places are no integers or no vector, or there is no such axis.
    """  # Any: an integer, a vector of integers, or a slice
    x, new = as_value("insert", arr), as_value("insert", values)
    if axis is None:
        x, axis = view.reshape(x, (x.size,)), 0
    along = _axes.one("insert", axis, x.ndim)
    length = x.shape[along]
    at = as_value(
        "insert", np.arange(*obj.indices(length), dtype=np.int32) if isinstance(obj, slice) else obj
    )
    if at.ndim > 1 or (at.dtype not in dtypes.INTEGERS and at.size):
        raise errors.ValueMismatchError(
            "insert: places have to be an integer or a vector of them", got=str(at.type)
        )
    at = convert(at, dtypes.int32)
    new = view.broadcast_to_rank(convert(new, x.dtype), x.ndim)
    if at.size == 1:
        if at.ndim == 0:
            new = manipulation.moveaxis(new, 0, along)
        at = manipulation.broadcast_to(view.reshape(at, (1,)), (new.shape[along],))
    count = max(at.shape[0], new.shape[along])
    at = manipulation.broadcast_to(at, (count,))
    at = elementwise.clip(
        comparison.where(comparison.less(at, 0), elementwise.add(at, length), at), 0, length
    )
    origin = _eager.call(_origin_after_insertion, (length,), [at])
    shape = tuple(count if d == along else n for d, n in enumerate(x.shape))
    joined = joining.concatenate([x, manipulation.broadcast_to(new, shape)], along)
    return indexing.take(joined, origin, axis=along, mode="clip")


def _origin_after_insertion(length: int, at: Value) -> Value:
    """For each place after insertion the place before, or `length` and more for the values in their order."""
    count = at.size
    # Where each value comes to stand: the places in order, moved by the values before.
    order = ordering.argsort(at, stable=True)
    numbers = view.iota(dtypes.int32, count)
    target = updates.IndexUpdateRef(at, order).add(numbers)
    is_old = updates.IndexUpdateRef(view.full((length + count,), True), target).set(False)
    source = positions.flatnonzero(is_old, size=length)
    nothing = view.full((length + count,), 0, dtypes.int32)
    origin = updates.IndexUpdateRef(nothing, source).set(view.iota(dtypes.int32, length))
    return updates.IndexUpdateRef(origin, target).set(elementwise.add(numbers, length))


def delete(
    arr: ArrayLike, obj: Any, axis: int | None = None, *, assume_unique_indices: bool = False
) -> Value:
    """A copy of `arr` without some places along an axis, as `jax.numpy.delete`.

    Args:
        arr: array.
        obj: place, vector of places or of booleans, or slice.
        axis: axis; the flattened array when None.
        assume_unique_indices: a promise that no place repeats, which tracing needs.

    Raises:
        ValueMismatchError: a place is outside or no integer, a mask has another length, or there is no such
            axis.
        ConcretizationError: the places are being traced without the promise.
    """  # Any: an integer, a vector, or a slice
    x = as_value("delete", arr)
    if axis is None:
        x, axis = view.reshape(x, (x.size,)), 0
    along = _axes.one("delete", axis, x.ndim)
    length = x.shape[along]
    if isinstance(obj, slice):
        obj = np.arange(*obj.indices(length), dtype=np.int32)
    at = as_value("delete", obj)
    is_traced = isinstance(at, trace.Tracer) and at.concrete() is None
    if is_traced and assume_unique_indices and at.dtype in dtypes.INTEGERS:
        kept = updates.IndexUpdateRef(manipulation.broadcast_to(True, (length,)), at).set(False)
        return indexing.take(x, positions.flatnonzero(kept, size=length - at.size), axis=along, mode="clip")
    if is_traced:
        raise errors.ConcretizationError(
            "delete: which places go is not known while tracing, nor how many",
            got=str(at.type),
            fix="pass assume_unique_indices=True if no place repeats",
        )
    gone = np.asarray(at)
    if gone.dtype == bool and gone.shape != (length,):
        raise errors.ValueMismatchError(
            "delete: the mask has another length", got=f"{at.type} for {length} places"
        )
    is_outside = not gone.ndim and gone.dtype != bool and not -length <= gone < length
    if is_outside or (gone.dtype != bool and at.dtype not in dtypes.INTEGERS):
        raise errors.ValueMismatchError("delete: places have to be integers and lie inside", got=repr(obj))
    mask = np.ones(length, bool)
    if gone.dtype == bool:
        mask = ~gone
    else:
        gone = gone.reshape(-1)
        mask[gone[(gone >= -length) & (gone < length)]] = False
    return indexing.take(x, np.flatnonzero(mask).astype(np.int32), axis=along, mode="clip")


def trim_zeros(filt: ArrayLike, trim: str = "fb", axis: int | Sequence[int] | None = None) -> Value:
    """An array without the zeros at its ends, as `numpy.trim_zeros`; outside tracing only, since sizes vary.

    Args:
        filt: array.
        trim: which ends: `f` the front, `b` the back.
        axis: axes to trim, all of them when None.

    Raises:
        ConcretizationError: the array is being traced.
    """
    x = as_value("trim_zeros", filt)
    flags = np.asarray(x) != 0
    for along in _axes.several("trim_zeros", axis, x.ndim):
        others = tuple(d for d in range(x.ndim) if d != along)
        found = np.flatnonzero(flags.any(axis=others))
        first = int(found[0]) if found.size and "f" in trim.lower() else 0
        last = int(found[-1]) + 1 if found.size and "b" in trim.lower() else flags.shape[along]
        if not found.size and set(trim.lower()) & {"f", "b"}:
            first = last = 0
        flags = flags.take(range(first, last), axis=along)
        x = view.slice_in_dim(x, first, last, axis=along)
    return x
