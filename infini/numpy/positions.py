"""Positions of elements: where they are not zero, and between flat and multi-dimensional places.

How many positions there are depends on the data. `size=` fixes it, which tracing needs: what is missing is
filled up, what is too much is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors, ir, trace
from infini.core.value import Value
from infini.lax import cumulative, elementwise as e, indexing as lax_indexing, view
from infini.lax.families import bind_scalars, zeros
from infini.numpy import _axes, _eager, comparison, creation, elementwise, manipulation, reductions
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value, convert, result_type


def nonzero(
    a: ArrayLike, *, size: int | None = None, fill_value: Any = None
) -> tuple[Value, ...]:  # Any: a number, or one per dimension
    """Positions of the elements that are not zero, one int32 vector per dimension, as `jax.numpy.nonzero`.

    Args:
        a: array of at least one dimension.
        size: how many positions to return; as many as there are when absent, which is found on the host.
        fill_value: what stands for missing positions, zero when absent; one number, or one per dimension.

    Raises:
        ValueMismatchError: `a` is a scalar, or the fill values are no scalars.
        ConcretizationError: `a` is being traced and no size is given.
    """
    x = as_value("nonzero", a)
    if x.ndim == 0:
        raise errors.ValueMismatchError(
            "nonzero does not take scalars", got=str(x.type), fix="use infini.numpy.atleast_1d(x).nonzero()"
        )
    fills = fill_value if isinstance(fill_value, tuple) else (fill_value,) * x.ndim
    if len(fills) != x.ndim or any(np.ndim(fill) for fill in fills):
        raise errors.ValueMismatchError(
            "nonzero: fill_value has to be a number, or one per dimension", got=repr(fill_value)
        )
    if size is None:
        if isinstance(x, trace.Tracer) and x.concrete() is None:
            raise errors.ConcretizationError(
                "how many elements are not zero is not known while tracing",
                got=str(x.type),
                fix="pass size=, the number of positions to return",
            )
        found = np.nonzero(np.asarray(x))
        return tuple(creation.asarray(places.astype(np.int32)) for places in found)
    count = _axes.integer("nonzero", "size", size)
    flat = _eager.call(_flat_nonzero, (count,), [x])
    strides = [math.prod(x.shape[d + 1 :]) for d in range(x.ndim)]
    places = [
        bind_scalars(e.rem_p, bind_scalars(e.div_p, flat, max(stride, 1)), max(n, 1))
        for stride, n in zip(strides, x.shape, strict=True)
    ]
    if fill_value is None:
        return tuple(places)
    total = reductions.count_nonzero(x)
    is_missing = bind_scalars(e.ge_p, view.iota(dtypes.int32, count), convert(total, dtypes.int32))
    return tuple(comparison.where(is_missing, fill, place) for fill, place in zip(fills, places, strict=True))


def _flat_nonzero(size: int, x: Value) -> Value:
    """Positions in the flattened array: the count of elements before each says where its number goes."""
    if not x.size or not size:
        return zeros(ir.ArrayType((size,), dtypes.int32))
    flags = x if x.dtype == dtypes.bool_ else bind_scalars(e.ne_p, x, 0)
    ones = convert(view.reshape(flags, (x.size,)), dtypes.int32)
    before = trace.bind1(e.sub_p, cumulative.cumsum(ones), ones)
    target = trace.bind1(e.select_n_p, bind_scalars(e.gt_p, ones, 0), convert(size, dtypes.int32), before)
    numbers = lax_indexing.ScatterDimensionNumbers((), (0,), (0,))
    return lax_indexing.scatter(
        zeros(ir.ArrayType((size,), dtypes.int32)), view.expand_dims(target, (1,)),
        view.iota(dtypes.int32, x.size), numbers, mode="drop",
    )  # fmt: skip


def flatnonzero(a: ArrayLike, *, size: int | None = None, fill_value: Any = None) -> Value:
    """Positions in the flattened array of the elements that are not zero; see `nonzero`."""
    x = as_value("flatnonzero", a)
    return nonzero(view.reshape(x, (x.size,)), size=size, fill_value=fill_value)[0]


def argwhere(a: ArrayLike, *, size: int | None = None, fill_value: ArrayLike | None = None) -> Value:
    """Positions of the elements that are not zero, one row each; see `nonzero`."""
    x = as_value("argwhere", a)
    columns = nonzero(manipulation.atleast_1d(x), size=size, fill_value=fill_value)
    rows = view.stack([convert(column, dtypes.int32) for column in columns], 1)
    return view.reshape(view.slice_in_dim(rows, 0, x.ndim, axis=1), (rows.shape[0], x.ndim))


def where(
    condition: ArrayLike,
    x: ArrayLike | None = None,
    y: ArrayLike | None = None,
    /,
    *,
    size: int | None = None,
    fill_value: Any = None,
) -> Any:  # Any: an array, or a tuple of positions; the fill value as in nonzero
    """Elements of `x` where `condition` holds, of `y` elsewhere; with `condition` alone, `nonzero` of it.

    Args:
        condition: booleans; numbers count as true unless they are zero.
        x: values where it holds.
        y: values elsewhere.
        size: see `nonzero`; only with `condition` alone.
        fill_value: see `nonzero`; only with `condition` alone.

    Raises:
        TypeMismatchError: only one of `x` and `y` is given.
        ValueMismatchError: `size` is given with them, or shapes do not broadcast.
    """
    if x is None and y is None:
        return nonzero(condition, size=size, fill_value=fill_value)
    if x is None or y is None:
        raise errors.TypeMismatchError("where takes both x and y, or neither", got="one of them")
    if size is not None or fill_value is not None:
        raise errors.ValueMismatchError("where with three operands takes neither size nor fill_value")
    _axes.broadcast("where", *(np.shape(operand) for operand in (condition, x, y)))
    return comparison.where(condition, x, y)


# --- flat and multi-dimensional places --------------------------------------------------------------


def unravel_index(indices: ArrayLike, shape: Any) -> tuple[Value, ...]:  # Any: a size or a sequence of sizes
    """Places in an array of `shape` of places in the flattened one, as `jax.numpy.unravel_index`.

    Args:
        indices: integers; negative ones count from the end, those outside give the nearest place.
        shape: the shape.

    Raises:
        ValueMismatchError: the shape is no sequence of sizes.
    """
    place = as_value("unravel_index", indices)
    sizes = _axes.integers("unravel_index", "a size", shape)
    found: list[Value] = []
    for size in reversed(sizes):
        quotient, rest = elementwise.divmod(place, size)
        found.append(rest)
        place = quotient
    is_above = comparison.greater(place, 0)
    is_below = comparison.less(place, -1 if place.dtype in dtypes.SIGNED else 0)
    return tuple(
        comparison.where(is_above, size - 1, comparison.where(is_below, 0, rest))
        for size, rest in zip(sizes, reversed(found), strict=True)
    )


def ravel_multi_index(
    multi_index: Sequence[ArrayLike],
    dims: Sequence[int],
    mode: str = "raise",
    order: str = "C",
    *,
    dtype: DTypeLike | None = None,
) -> Value:
    """Places in the flattened array of places in one of shape `dims`, as `jax.numpy.ravel_multi_index`.

    Args:
        multi_index: one integer array per dimension.
        dims: the shape.
        mode: what happens to places outside: `raise` an error (outside tracing only), `clip` to the nearest,
            `wrap` around, or `ignore`.
        order: `C` when the last dimension varies fastest, `F` when the first does.
        dtype: integer dtype of the result.

    Raises:
        ValueMismatchError: a place lies outside with `raise`, the dtype is too small or no integer, or mode
            or order does not exist.
        TypeMismatchError: the indices are no integers.
        ConcretizationError: they are being traced with `raise`.
    """
    sizes = _axes.integers("ravel_multi_index", "a size", dims)
    if len(multi_index) != len(sizes):
        raise errors.ValueMismatchError(
            "ravel_multi_index needs one array per dimension", got=f"{len(multi_index)} for {sizes}"
        )
    places = [as_value("ravel_multi_index", i) for i in multi_index]
    target = result_type(int, *places) if dtype is None else dtypes.canonical(dtype)
    if target not in dtypes.INTEGERS or math.prod(sizes) - 1 > np.iinfo(target).max:
        raise errors.ValueMismatchError(
            "ravel_multi_index: the dtype cannot hold the places", got=f"{target} for shape {sizes}"
        )
    if any(place.dtype not in dtypes.INTEGERS for place in places):
        raise errors.TypeMismatchError(
            "ravel_multi_index needs integers", got=", ".join(str(p.type) for p in places)
        )
    if mode not in ("raise", "clip", "wrap", "ignore") or order not in ("C", "F"):
        raise errors.ValueMismatchError(
            "ravel_multi_index: unknown mode or order", got=f"{mode!r}, {order!r}",
            expected="raise, clip, wrap or ignore; C or F",
        )  # fmt: skip
    total = convert(0, target)
    weight = 1
    pairs = list(zip(places, sizes, strict=True))
    for place, size in pairs if order == "F" else reversed(pairs):
        column = convert(_inside(place, size, mode), target)
        total = trace.bind1(e.add_p, total, bind_scalars(e.mul_p, column, weight))
        weight *= size
    return total


def _inside(place: Value, size: int, mode: str) -> Value:
    if mode == "raise":
        host = np.asarray(place)
        if host.size and (int(host.min()) < 0 or int(host.max()) >= size):
            raise errors.ValueMismatchError(
                "ravel_multi_index: a place lies outside", got=f"{host.min()} to {host.max()}",
                expected=f"0 to {size - 1}", fix="use mode='clip' or mode='wrap'",
            )  # fmt: skip
        return place
    if mode == "clip":
        return elementwise.clip(place, 0, size - 1)
    return elementwise.remainder(place, size) if mode == "wrap" else place


# --- places of patterns in matrices ------------------------------------------------------------------


def diag_indices(n: int, ndim: int = 2) -> tuple[Value, ...]:
    """Places of the main diagonal of an array of `ndim` dimensions of size `n`.

    Raises:
        ValueMismatchError: a number is negative.
    """
    size, count = _axes.integer("diag_indices", "n", n), _axes.integer("diag_indices", "ndim", ndim)
    if size < 0 or count < 0:
        raise errors.ValueMismatchError("diag_indices: a number is negative", got=f"n={n}, ndim={ndim}")
    return (creation.asarray(view.iota(dtypes.int32, size)),) * count


def diag_indices_from(arr: ArrayLike) -> tuple[Value, ...]:
    """Places of the main diagonal of an array of equal dimensions.

    Raises:
        ValueMismatchError: it has less than two dimensions, or they differ.
    """
    x = as_value("diag_indices_from", arr)
    if x.ndim < 2 or len(set(x.shape)) > 1:
        raise errors.ValueMismatchError(
            "diag_indices_from needs at least two dimensions of equal size", got=str(x.type)
        )
    return diag_indices(x.shape[0], x.ndim)


def tril_indices(n: int, k: int = 0, m: int | None = None) -> tuple[Value, Value]:
    """Places on and below the `k`-th diagonal of a matrix of `n` rows and `m` columns (`n` when absent)."""
    return _triangle(np.tril_indices, n, k, m)


def triu_indices(n: int, k: int = 0, m: int | None = None) -> tuple[Value, Value]:
    """Places on and above the `k`-th diagonal of a matrix of `n` rows and `m` columns (`n` when absent)."""
    return _triangle(np.triu_indices, n, k, m)


def _triangle(find: Callable[..., Any], n: int, k: int, m: int | None) -> tuple[Value, Value]:  # Any: NumPy's
    size, shift = (_axes.integer("tril_indices", *argument) for argument in (("n", n), ("k", k)))
    rows, columns = find(size, shift, None if m is None else _axes.integer("tril_indices", "m", m))
    return creation.asarray(rows.astype(np.int32)), creation.asarray(columns.astype(np.int32))


def tril_indices_from(arr: ArrayLike, k: int = 0) -> tuple[Value, Value]:
    """Places on and below the `k`-th diagonal of a matrix."""
    rows, columns = _matrix_shape("tril_indices_from", arr)
    return tril_indices(rows, k, columns)


def triu_indices_from(arr: ArrayLike, k: int = 0) -> tuple[Value, Value]:
    """Places on and above the `k`-th diagonal of a matrix."""
    rows, columns = _matrix_shape("triu_indices_from", arr)
    return triu_indices(rows, k, columns)


def _matrix_shape(name: str, arr: ArrayLike) -> tuple[int, int]:
    x = as_value(name, arr)
    if x.ndim != 2:
        raise errors.ValueMismatchError(f"{name} takes a matrix", got=str(x.type))
    return x.shape[0], x.shape[1]


def mask_indices(
    n: int, mask_func: Callable[[Value, int], Value], k: int = 0, *, size: int | None = None
) -> tuple[Value, ...]:
    """Places where a function such as `triu` keeps a matrix of ones, as `jax.numpy.mask_indices`."""
    return nonzero(mask_func(creation.ones((n, n)), k), size=size)
