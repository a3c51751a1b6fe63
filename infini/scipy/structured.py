"""Matrices made of a few numbers: `jax.scipy.linalg`'s `toeplitz`, `block_diag` and their like. Vectors are
the last dimension; others are a batch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import infini.numpy as inp
from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import view
from infini.numpy import _axes
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value, convert, inexact_operands, operands


def block_diag(*arrs: ArrayLike) -> Value:
    """A matrix with these ones along its diagonal.

    Args:
        *arrs: matrices; vectors count as one row, numbers as one element.

    Raises:
        ValueMismatchError: one has more than two dimensions.

    Example:
        >>> import infini.numpy as inp
        >>> from infini.scipy import linalg
        >>> print(linalg.block_diag(inp.ones((1, 2)), inp.full((1, 1), 3.0)))
        [[1. 1. 0.]
         [0. 0. 3.]]
    """
    values = operands("block_diag", *(arrs or (inp.zeros((1, 0)),)))
    wrong = [str(v.type) for v in values if v.ndim > 2]
    if wrong:
        raise errors.ValueMismatchError("block_diag takes matrices", got=", ".join(wrong))
    blocks = [inp.atleast_2d(v) for v in values]
    width = sum(block.shape[1] for block in blocks)
    rows, start = [], 0
    for block in blocks:
        after = width - start - block.shape[1]
        rows.append(view.pad(block, convert(0, block.dtype), [(0, 0, 0), (start, after, 0)]))
        start += block.shape[1]
    return view.concatenate(rows, 0)


def toeplitz(c: ArrayLike, r: ArrayLike | None = None) -> Value:
    """Matrices with one number along each diagonal.

    Args:
        c: first column (..., m).
        r: first row (..., n), whose first element is ignored; the conjugate of `c` when absent.

    Returns:
        Matrices (..., m, n).

    Example:
        >>> import infini.numpy as inp
        >>> from infini.scipy import linalg
        >>> print(linalg.toeplitz(inp.array([1, 2]), inp.array([1, 7, 8])))
        [[1 7 8]
         [2 1 7]]
    """
    column = as_value("toeplitz", c)
    row = inp.conj(column) if r is None else as_value("toeplitz", r)
    column, row = _vectors("toeplitz", inp.atleast_1d(column), inp.atleast_1d(row))
    m, n = column.shape[-1], row.shape[-1]
    if not m or not n:
        return view.full((*column.shape[:-1], m, n), 0, column.dtype)
    line = inp.concatenate([inp.flip(column, -1), row[..., 1:]], -1)
    return _picked(line, _numbers(n, 0) - _numbers(m, 1) + (m - 1))


def hankel(c: ArrayLike, r: ArrayLike | None = None) -> Value:
    """Matrices with one number along each diagonal from the lower left.

    Args:
        c: first column (..., m).
        r: last row (..., n), whose first element is ignored; zeros when absent.

    Returns:
        Matrices (..., m, n).

    Raises:
        ValueMismatchError: one is a number.
    """
    column = as_value("hankel", c)
    row = inp.zeros_like(column) if r is None else as_value("hankel", r)
    if not column.ndim or not row.ndim:
        raise errors.ValueMismatchError("hankel takes vectors", got=f"{column.type}, {row.type}")
    column, row = _vectors("hankel", column, row)
    m, n = column.shape[-1], row.shape[-1]
    if not m or not n:
        return view.full((*column.shape[:-1], m, n), 0, column.dtype)
    line = inp.concatenate([column, row[..., 1:]], -1)
    return _picked(line, _numbers(n, 0) + _numbers(m, 1))


def circulant(c: ArrayLike) -> Value:
    """Matrices (..., n, n) whose columns are the first one (..., n), each shifted by one more."""
    column = inp.atleast_1d(as_value("circulant", c))
    n = column.shape[-1]
    return _picked(column, (_numbers(n, 1) - _numbers(n, 0)) % max(n, 1))


def companion(a: ArrayLike) -> Value:
    """Matrices whose eigenvalues are the zeros of polynomials.

    Args:
        a: coefficients (..., n), highest power first.

    Returns:
        Matrices (..., n - 1, n - 1).

    Raises:
        ValueMismatchError: there are fewer than two coefficients.
    """
    (value,) = inexact_operands("companion", a)
    value = inp.atleast_1d(value)
    size = value.shape[-1] - 1
    if size < 1:
        raise errors.ValueMismatchError("companion needs two coefficients or more", got=str(value.type))
    first = -value[..., 1:] / value[..., :1]
    below = inp.broadcast_to(inp.eye(size - 1, size, dtype=first.dtype), (*first.shape[:-1], size - 1, size))
    return inp.concatenate([first[..., None, :], below], -2)


def convolution_matrix(a: ArrayLike, n: int, mode: str = "full") -> Value:
    """Matrices whose product with a vector (n,) is its convolution with `a` (..., m), as `numpy.convolve`'s.

    Raises:
        ValueMismatchError: `n` is not positive, `a` has no elements, or there is no such mode.
    """
    size = _axes.integer("convolution_matrix", "n", n)
    value = as_value("convolution_matrix", a)
    if size <= 0 or not value.ndim or not value.shape[-1]:
        raise errors.ValueMismatchError(
            "convolution_matrix needs a vector with elements and a positive size", got=f"{value.type}, n={n}"
        )
    if mode not in ("full", "valid", "same"):
        raise errors.ValueMismatchError(
            "convolution_matrix: no such mode", got=repr(mode), expected="'full', 'same' or 'valid'"
        )
    m = value.shape[-1]
    zeros = inp.zeros_like(value, shape=(*value.shape[:-1], size - 1))
    whole = toeplitz(
        inp.concatenate([value, zeros], -1),
        inp.concatenate([value[..., :1], zeros], -1),
    )
    cut = 0 if mode == "full" else min(size, m) - 1
    start = cut // 2 if mode == "same" else cut
    stop = m + size - 1 - (cut - start if mode == "same" else cut)
    return whole[..., start:stop, :]


def hilbert(n: int) -> Value:
    """The Hilbert matrix: `1 / (i + j + 1)`."""
    size = _axes.integer("hilbert", "n", n)
    row = view.iota(dtypes.float32, size)
    return 1 / (row[:, None] + row + 1)


def pascal(n: int, kind: str | None = None) -> Value:
    """A matrix of binomial coefficients, in float32.

    Args:
        n: its size.
        kind: `"symmetric"` (default) for `C(i + j, i)`, `"lower"` for `C(i, j)`, `"upper"` for its transpose.

    Raises:
        ValueMismatchError: there is no such kind.
    """
    size = _axes.integer("pascal", "n", n)
    if kind not in (None, "symmetric", "lower", "upper"):
        raise errors.ValueMismatchError(
            "pascal: no such kind", got=repr(kind), expected="'symmetric', 'lower' or 'upper'"
        )
    lower = np.array([[math.comb(i, j) for j in range(size)] for i in range(size)], np.float64)
    chosen = {"lower": lower, "upper": lower.T}.get(kind or "", lower @ lower.T)
    return inp.asarray(chosen.reshape(size, size).astype(np.float32))


def hadamard(n: int, dtype: DTypeLike = int) -> Value:
    """A matrix of ones and minus ones with orthogonal rows, by Sylvester's construction.

    Raises:
        ValueMismatchError: `n` is no power of two.
    """
    size = _axes.integer("hadamard", "n", n)
    if size < 1 or size & (size - 1):
        raise errors.ValueMismatchError("hadamard: the size is no power of two", got=str(n))
    found = inp.ones((1, 1), dtype)
    while found.shape[0] < size:
        found = inp.block([[found, found], [found, -found]])
    return found


def dft(n: int, scale: str | None = None, *, dtype: DTypeLike | None = None) -> Value:
    """The matrix of the discrete Fourier transform, `exp(-2 pi i j k / n)`; `numpy.fft.fft` is faster.

    Args:
        n: its size.
        scale: `"sqrtn"` divides by the root of `n`, `"n"` by `n`.
        dtype: a complex one; complex64 when absent.

    Raises:
        ValueMismatchError: there is no such scale, or the dtype is not complex.
    """
    size = _axes.integer("dft", "n", n)
    if scale not in (None, "sqrtn", "n"):
        raise errors.ValueMismatchError(
            "dft: no such scale", got=repr(scale), expected="None, 'sqrtn' or 'n'"
        )
    chosen = dtypes.complex64 if dtype is None else dtypes.canonical(dtype)
    if chosen not in dtypes.COMPLEX:
        raise errors.ValueMismatchError("dft is a complex matrix", got=f"dtype={chosen}")
    # The product is taken modulo n while it is a whole number, so large matrices are as exact as small ones.
    numbers = np.arange(size)
    angles = -2 * np.pi * (np.outer(numbers, numbers) % max(size, 1)) / max(size, 1)
    divisor = {"sqrtn": math.sqrt(size), "n": float(size)}.get(scale or "", 1.0)
    return inp.asarray(np.exp(1j * angles) / divisor, dtype=chosen)


def _numbers(size: int, axis: int) -> Value:
    """0, 1, ... along a row (axis 0) or a column (axis 1)."""
    row = view.iota(dtypes.int32, size)
    return row[:, None] if axis else row


def _picked(line: Value, places: Value) -> Value:
    found: Any = inp.take(line, places, axis=-1)
    return found


def _vectors(name: str, *values: Value) -> list[Value]:
    """Vectors of one dtype with the same batch."""
    found = operands(name, *values)
    batch = _axes.broadcast(name, *(v.shape[:-1] for v in found))
    return [inp.broadcast_to(v, (*batch, v.shape[-1])) for v in found]
