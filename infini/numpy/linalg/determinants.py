"""Determinants by LU decompositions, with derivatives at singular matrices, too."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from infini.core import errors
from infini.core.value import Value
from infini.lax import elementwise as e, families, linalg as factors, view
from infini.numpy import (
    comparison,
    elementwise,
    matrices,
    positions,
    products,
    reductions,
    transcendental,
)
from infini.numpy._promotion import ArrayLike
from infini.numpy.linalg import _operands as o, solving
from infini.transforms import custom


class SlogdetResult(NamedTuple):
    """Sign and logarithm of the absolute value of determinants."""

    sign: Value
    logabsdet: Value


def det(a: ArrayLike) -> Value:
    """Determinants of square matrices.

    Args:
        a: matrices (..., n, n).

    Returns:
        Determinants (...). Their derivative exists everywhere; that of second order is NaN at a singular
        matrix of more than 3 rows, as in JAX.

    Raises:
        ValueMismatchError: they are not square.

    Example:
        >>> import infini.numpy as inp
        >>> print(inp.linalg.det(inp.array([[1.0, 2.0], [3.0, 4.0]])))
        -2.0
    """
    x = o.square("det", a)
    size = x.shape[-1]
    if size == 0:
        return reductions.prod(x, (-2, -1))
    if size == 1:
        return view.reshape(x, x.shape[:-2])
    if size == 2:
        return e.sub(e.mul(x[..., 0, 0], x[..., 1, 1]), e.mul(x[..., 0, 1], x[..., 1, 0]))
    if size == 3:
        rows = [x[..., i, :] for i in range(3)]
        return reductions.sum(e.mul(rows[0], products.cross(rows[1], rows[2])), -1)
    found: Value = _determinant(x)
    return found


@custom.custom_jvp
def _determinant(x: Value) -> Value:
    packed, pivots, _ = factors.lu(x)
    return e.mul(reductions.prod(_diagonal(packed), -1), _parity(pivots, x.dtype))


@_determinant.defjvp
def _determinant_jvp(primals: tuple[Value], tangents: tuple[Value]) -> tuple[Value, Value]:
    """The sum of the products of the elements' tangents and cofactors (Jacobi's formula)."""
    (x,), (change,) = primals, tangents
    packed, pivots, order = factors.lu(x)
    parity = _parity(pivots, x.dtype)
    determinant = e.mul(reductions.prod(_diagonal(packed), -1), parity)
    cofactors = e.mul(o.turned(_adjugate(packed, order)), parity[..., None, None])
    return determinant, reductions.sum(e.mul(cofactors, change), (-2, -1))


def _adjugate(packed: Value, order: Value) -> Value:
    """The transposed cofactors of a matrix, but for their sign, which is that of the order of the rows; it is
    `det(A) A^-1` where there is an inverse.

    With A[order] = L U, it is adj(U) L^-1 P. Let p be the place of the diagonal d of U that is least, U' a
    matrix with another number s there, and D the product of the others: U is U' with a change of rank one, so
    adj(U) = D (d[p] U'^-1 + s (s - d[p]) w z^T), w and z^T being column and row p of U'^-1. Where d[p] is far
    from zero s is d[p] and the second term is none. A second zero makes D zero, and the rest has only to be
    finite.
    """
    diagonal = _diagonal(packed)
    count, dtype = packed.shape[-1], packed.dtype
    size = elementwise.abs(diagonal)
    largest = reductions.max(size, -1, keepdims=True)
    place = reductions.argmin(size, -1)[..., None]
    is_least = comparison.equal(place, np.arange(count, dtype=np.int32))
    is_small = comparison.less_equal(size, e.mul(largest, o.epsilon(dtype)))
    other = elementwise.astype(positions.where(comparison.equal(largest, 0), 1, largest), dtype)
    is_replaced = comparison.logical_or(
        comparison.logical_and(is_least, is_small), comparison.equal(diagonal, 0)
    )
    replaced = positions.where(is_replaced, other, diagonal)
    unit = matrices.eye(count, dtype=dtype)
    upper = positions.where(comparison.not_equal(unit, 0), replaced[..., None, :], packed)

    identity = families.broadcast_to(unit, packed.shape)
    inverse = solving.triangle(packed, solving.rows_in(identity, order), is_lower=True)
    inverse = solving.triangle(upper, inverse, is_lower=False)
    chosen = elementwise.astype(is_least, dtype)
    column = solving.triangle(upper, chosen[..., None], is_lower=False)
    row = products.matmul(chosen[..., None, :], inverse)

    d, s = (reductions.sum(e.mul(chosen, x), -1)[..., None, None] for x in (diagonal, replaced))
    rest = reductions.prod(positions.where(is_least, 1, diagonal), -1)[..., None, None]
    second = e.mul(e.mul(s, e.sub(s, d)), products.matmul(column, row))
    return e.mul(rest, e.add(e.mul(d, inverse), second))


def _diagonal(packed: Value) -> Value:
    return products.diagonal(packed, 0, -2, -1)


def _parity(pivots: Value, dtype: np.dtype) -> Value:
    """1 or -1 by the number of rows that were exchanged."""
    moved = comparison.not_equal(pivots, np.arange(pivots.shape[-1], dtype=np.int32))
    count = reductions.sum(elementwise.astype(moved, np.int32), -1)
    sign = elementwise.subtract(1, elementwise.multiply(2, elementwise.remainder(count, 2)))
    return elementwise.astype(sign, dtype)


def slogdet(a: ArrayLike, *, method: str | None = None) -> SlogdetResult:
    """Sign and logarithm of the absolute value of determinants, which do not overflow.

    Args:
        a: matrices (..., n, n).
        method: `"lu"`, the default, or `"qr"`, which computes the same by the same decomposition here.

    Returns:
        `sign`, 0 where the matrix is singular, and `logabsdet`, then `-inf`.

    Raises:
        ValueMismatchError: they are not square, or there is no such method.

    Example:
        >>> import infini.numpy as inp
        >>> print(inp.linalg.slogdet(inp.array([[1.0, 2.0], [3.0, 4.0]])).sign)
        -1.0
    """
    if method not in (None, "lu", "qr"):
        raise errors.ValueMismatchError("slogdet: no such method", got=repr(method), expected="'lu' or 'qr'")
    x = o.square("slogdet", a)
    packed, pivots, _ = factors.lu(x)
    diagonal = _diagonal(packed)
    size = elementwise.abs(diagonal)
    sign = e.mul(reductions.prod(elementwise.sign(diagonal), -1), _parity(pivots, x.dtype))
    return SlogdetResult(sign, reductions.sum(transcendental.log(size), -1))
