"""Matrices of a pattern: identity, triangles, diagonals, powers."""

from __future__ import annotations

from typing import Any

import numpy as np

from infini.core import dtypes, errors, trace
from infini.core.value import Literal, Value
from infini.lax import elementwise as e, families, view
from infini.numpy import _axes, elementwise, products, updates
from infini.numpy._placement import placed
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value, convert, with_weak
from infini.numpy.manipulation import repeated_to


def _size(name: str, argument: str, size: Any) -> int:  # Any: an integer, known while tracing
    found = _axes.integer(name, argument, size)
    if found < 0:
        raise errors.ValueMismatchError(
            f"{name}: {argument} is negative", got=str(found), expected="at least 0"
        )
    return found


def _compared(rows: int, columns: int, k: ArrayLike, op: Any) -> Value:  # Any: a comparison
    """`row + k op column` at every place of a matrix."""
    row = view.broadcasted_iota(dtypes.int32, (rows, 1), 0)
    column = view.broadcasted_iota(dtypes.int32, (1, columns), 1)
    shift = convert(k, dtypes.int32)
    shifted = row if isinstance(k, int) and k == 0 else trace.bind1(e.add_p, row, shift)
    return families.broadcast_to(trace.bind1(op, shifted, column), (rows, columns))


def eye(
    N: int, M: int | None = None, k: ArrayLike = 0, dtype: DTypeLike | None = None, *, device: Any = None
) -> Value:  # Any: a device or a sharding
    """A matrix with ones on the `k`-th diagonal, as `numpy.eye`.

    Args:
        N: number of rows.
        M: number of columns, as many as rows when absent.
        k: which diagonal; positive ones lie above the main one.
        dtype: dtype of the result, float32 when absent.
        device: device or sharding of the result.

    Raises:
        ValueMismatchError: a size is negative.
        TypeMismatchError: a size is no integer.
    """
    rows = _size("eye", "N", N)
    columns = rows if M is None else _size("eye", "M", M)
    target = dtypes.float32 if dtype is None else dtypes.canonical(dtype)
    return placed(convert(_compared(rows, columns, k, e.eq_p), target), device)


def identity(n: int, dtype: DTypeLike | None = None) -> Value:
    """The identity matrix."""
    return eye(n, dtype=dtype)


def tri(N: int, M: int | None = None, k: int = 0, dtype: DTypeLike | None = None) -> Value:
    """A matrix with ones on and below the `k`-th diagonal, as `numpy.tri`."""
    rows = _size("tri", "N", N)
    columns = rows if M is None else _size("tri", "M", M)
    target = dtypes.float32 if dtype is None else dtypes.canonical(dtype)
    return convert(_compared(rows, columns, k, e.ge_p), target)


def _triangle(name: str, m: ArrayLike, k: int, is_lower: bool) -> Value:
    x = as_value(name, m)
    if x.ndim < 2:
        raise errors.ValueMismatchError(
            f"{name} needs at least two dimensions", got=str(x.type), fix="use x[None, :] to add a dimension"
        )
    keep = _compared(x.shape[-2], x.shape[-1], k if is_lower else k - 1, e.ge_p)
    nothing = Literal(np.zeros((), x.dtype), weak=x.weak)
    cases = (nothing, x) if is_lower else (x, nothing)
    return with_weak(trace.bind1(e.select_n_p, keep, *cases), x.weak)


def tril(m: ArrayLike, k: int = 0) -> Value:
    """`m` with zeros above the `k`-th diagonal of its last two dimensions, as `numpy.tril`."""
    return _triangle("tril", m, k, is_lower=True)


def triu(m: ArrayLike, k: int = 0) -> Value:
    """`m` with zeros below the `k`-th diagonal of its last two dimensions, as `numpy.triu`."""
    return _triangle("triu", m, k, is_lower=False)


def diag(v: ArrayLike, k: int = 0) -> Value:
    """The `k`-th diagonal of a matrix, or the matrix with a vector on its `k`-th diagonal, as `numpy.diag`.

    Raises:
        ValueMismatchError: `v` is neither a vector nor a matrix.
    """
    x, shift = as_value("diag", v), _axes.integer("diag", "k", k)
    if x.ndim == 2:
        return products.diagonal(x, shift)
    if x.ndim != 1:
        raise errors.ValueMismatchError("diag takes vectors and matrices", got=str(x.type))
    n = x.shape[0] + abs(shift)
    column = view.pad(x, families.like(0, x), [(max(0, -shift), max(0, shift), 0)])
    places = _compared(n, n, shift, e.eq_p)
    nothing = Literal(np.zeros((), x.dtype), weak=x.weak)
    return with_weak(trace.bind1(e.select_n_p, places, nothing, view.expand_dims(column, (1,))), x.weak)


def diagflat(v: ArrayLike, k: int = 0) -> Value:
    """The matrix with the flattened array on its `k`-th diagonal, as `numpy.diagflat`."""
    x = as_value("diagflat", v)
    return with_weak(diag(view.reshape(x, (x.size,)), k), False)


def fill_diagonal(a: ArrayLike, val: ArrayLike, wrap: bool = False, *, inplace: bool = True) -> Value:
    """A copy of `a` with other elements on its diagonal, as `jax.numpy.fill_diagonal`.

    Args:
        a: array of two dimensions, or of more that are equal.
        val: scalar, or values that are repeated as often as needed.
        wrap: NumPy's continuation in tall matrices; only False.
        inplace: has to be False: arrays cannot be changed.

    Raises:
        MissingRuleError: `inplace` or `wrap` is true.
        ValueMismatchError: `a` has less than two dimensions, or more than two that differ.
    """
    if inplace or wrap:
        raise errors.MissingRuleError(
            "fill_diagonal cannot change an array, nor wrap",
            got=f"inplace={inplace}, wrap={wrap}",
            fix="pass inplace=False and use the result",
        )
    x, values = as_value("fill_diagonal", a), as_value("fill_diagonal", val)
    if x.ndim < 2 or (x.ndim > 2 and len(set(x.shape)) > 1):
        raise errors.ValueMismatchError(
            "fill_diagonal needs two dimensions, or more of equal size", got=str(x.type)
        )
    n = min(x.shape)
    places = (view.iota(dtypes.int32, n),) * x.ndim
    written = values if not values.ndim else repeated_to(values, n)
    return updates.IndexUpdateRef(x, places).set(written)


def vander(x: ArrayLike, N: int | None = None, increasing: bool = False) -> Value:
    """Powers of a vector as columns, from the highest unless `increasing`, as `numpy.vander`.

    Raises:
        ValueMismatchError: `x` is no vector, or `N` is negative.
    """
    value = as_value("vander", x)
    if value.ndim != 1:
        raise errors.ValueMismatchError("vander takes a vector", got=str(value.type))
    count = value.shape[0] if N is None else _size("vander", "N", N)
    powers = view.iota(value.dtype, count)
    powers = powers if increasing else view.rev(powers, (0,))
    return elementwise.power(view.expand_dims(value, (1,)), view.expand_dims(powers, (0,)))
