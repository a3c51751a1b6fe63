"""Linear equations and inverses, by LU decompositions; least squares by singular values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from infini.core import errors
from infini.core.ir import ArrayType
from infini.core.value import Value
from infini.lax import elementwise as e, families, linalg as factors, view
from infini.numpy import (
    comparison,
    elementwise,
    indexing,
    matrices,
    ordering,
    positions,
    products,
    reductions,
)
from infini.numpy._promotion import ArrayLike, inexact_operands
from infini.numpy.linalg import _operands as o, norms
from infini.transforms import custom, solvers


def solve(a: ArrayLike, b: ArrayLike) -> Value:
    """Solve `a @ x = b`.

    Args:
        a: matrices (..., n, n).
        b: a vector (n,), or matrices (..., n, k); leading dimensions broadcast.

    Returns:
        `x`, like `b`. Where `a` is singular, infinities or NaN.

    Raises:
        ValueMismatchError: `a` is not square, or sizes differ.

    Example:
        >>> import infini.numpy as inp
        >>> print(inp.linalg.solve(inp.array([[2.0, 0.0], [1.0, 4.0]]), inp.array([2.0, 9.0])))
        [1. 2.]
    """
    left, right = inexact_operands("solve", a, b)
    matrix = o.square("solve", left)
    is_vector = right.ndim == 1
    columns = view.expand_dims(right, (1,)) if is_vector else right
    if right.ndim == 0 or columns.shape[-2] != matrix.shape[-1]:
        raise errors.ValueMismatchError(
            "solve: sizes do not go together",
            got=f"a {matrix.type}, b {right.type}",
            expected="a (..., n, n) with b (n,) or (..., n, k)",
        )
    loop = view.broadcast_shapes(matrix.shape[:-2], columns.shape[:-2])
    matrix = families.broadcast_to(matrix, (*loop, *matrix.shape[-2:]))
    columns = families.broadcast_to(columns, (*loop, *columns.shape[-2:]))
    found = _solved(matrix, columns)
    return view.squeeze(found, (found.ndim - 1,)) if is_vector else found


def _solved(a: Value, b: Value) -> Value:
    """The solution of equations, differentiated as such: by two more solves with the same factors."""
    if a.size == 0 or b.size == 0:
        return families.zeros(b.type)
    packed, _, order = factors.lu(e.stop_gradient(a))
    solved: Value = solvers.custom_linear_solve(
        lambda x: products.matmul(a, x),
        b,
        solve=lambda _, x: solve_factored(packed, order, x),
        transpose_solve=lambda _, x: solve_factored(packed, order, x, is_transposed=True),
    )
    return solved


def solve_factored(packed: Value, order: Value, b: Value, *, is_transposed: bool = False) -> Value:
    """Solve with the factors and the row order of `lax.linalg.lu`."""
    if is_transposed:
        # A^T = U^T L^T P, with P the rows in their order.
        inner = triangle(packed, b, is_lower=False, is_transposed=True)
        inner = triangle(packed, inner, is_lower=True, is_transposed=True)
        return rows_in(inner, _inverse_order(order))
    inner = triangle(packed, rows_in(b, order), is_lower=True)
    return triangle(packed, inner, is_lower=False)


def triangle(packed: Value, b: Value, *, is_lower: bool, is_transposed: bool = False) -> Value:
    """Solve with one of the factors of `lax.linalg.lu`, which share an array."""
    return factors.triangular_solve(
        packed, b, left_side=True, lower=is_lower, transpose_a=is_transposed, unit_diagonal=is_lower
    )


def rows_in(x: Value, order: Value) -> Value:
    """Rows in an order that each matrix has for itself."""
    return indexing.take_along_axis(x, view.expand_dims(order, (order.ndim,)), axis=-2)


def _inverse_order(order: Value) -> Value:
    return ordering.argsort(order, axis=-1)


def inv(a: ArrayLike) -> Value:
    """Inverses of square matrices.

    Args:
        a: matrices (..., n, n).

    Raises:
        ValueMismatchError: they are not square.

    Example:
        >>> import infini.numpy as inp
        >>> print(inp.linalg.inv(inp.array([[2.0, 0.0], [0.0, 4.0]])))
        [[0.5  0.  ]
         [0.   0.25]]
    """
    matrix = o.square("inv", a)
    return solve(
        matrix, families.broadcast_to(matrices.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
    )


def cond(x: ArrayLike, p: norms.Order = None) -> Value:
    """Condition number of matrices, as `numpy.linalg.cond`.

    Args:
        x: matrices (..., m, n); square ones unless `p` is None, 2 or -2.
        p: order of the norm, as for `norm`; None is 2.

    Raises:
        ValueMismatchError: `x` is not square and has to be.

    Example:
        >>> import infini.numpy as inp
        >>> print(inp.linalg.cond(inp.diag(inp.array([4.0, 2.0]))))
        2.0
    """
    value = o.matrix("cond", x)
    if p in (None, 2, -2):
        values = factors.svd(value, compute_uv=False)
        first, last = values[..., 0], values[..., -1]
        return e.div(last, first) if p == -2 else e.div(first, last)
    square = o.square("cond", value)
    found = e.mul(norms.norm(square, p, (-2, -1)), norms.norm(inv(square), p, (-2, -1)))
    # An exactly singular matrix has no inverse; its condition is infinite unless it holds NaN itself.
    is_given = reductions.any(comparison.isnan(square), (-2, -1))
    is_lost = comparison.logical_and(comparison.isnan(found), comparison.logical_not(is_given))
    return positions.where(is_lost, math.inf, found)


def pinv(
    a: ArrayLike, rtol: ArrayLike | None = None, hermitian: bool = False, *, rcond: ArrayLike | None = None
) -> Value:
    """Pseudo-inverses, as `numpy.linalg.pinv`.

    Args:
        a: matrices (..., m, n).
        rtol: singular values below this part of the largest count as zero; ten times max(m, n) times the
            dtype's epsilon when absent.
        hermitian: accepted for NumPy's sake; the result is the same.
        rcond: another name for `rtol`.

    Returns:
        Matrices (..., n, m).

    Example:
        >>> import infini.numpy as inp
        >>> print(inp.linalg.pinv(inp.array([[2.0, 0.0], [0.0, 0.0]])))
        [[0.5 0. ]
         [0.  0. ]]
    """
    del hermitian
    x = o.matrix("pinv", a)
    rtol = rcond if rtol is None else rtol
    bound = 10.0 * max(x.shape[-2:]) * o.epsilon(x.dtype) if rtol is None else rtol
    if x.size == 0:
        return families.zeros(ArrayType((*x.shape[:-2], x.shape[-1], x.shape[-2]), x.dtype))

    @custom.custom_jvp
    def inverse(x: Value) -> Value:
        u, s, vh = factors.svd(x, full_matrices=False)
        cutoff = elementwise.astype(o.inexact("pinv", bound), s.dtype)[..., None] * s[..., :1]
        scaled = positions.where(comparison.greater(s, cutoff), s, math.inf)
        return products.matmul(o.adjoint(vh), elementwise.divide(o.adjoint(u), scaled[..., None]))

    @inverse.defjvp
    def _change(primals: tuple[Value], tangents: tuple[Value]) -> tuple[Value, Value]:
        # Golub and Pereyra's derivative, for matrices of constant rank.
        (x,), (dx,) = primals, tangents
        p = inverse(x)
        ph, dxh = o.adjoint(p), o.adjoint(dx)
        first = products.matmul(products.matmul(p, dx), p)
        outer = products.matmul(products.matmul(p, ph), dxh)
        second = e.sub(outer, products.matmul(products.matmul(outer, x), p))
        inner = products.matmul(products.matmul(dxh, ph), p)
        third = e.sub(inner, products.matmul(products.matmul(p, x), inner))
        return p, e.add(e.sub(second, first), third)

    found: Value = inverse(x)
    return found


def lstsq(
    a: ArrayLike, b: ArrayLike, rcond: float | None = None, *, numpy_resid: bool = False
) -> tuple[Value, Value, Value, Value]:
    """Least squares: the `x` of least norm that makes `a @ x - b` least, as `numpy.linalg.lstsq`.

    Args:
        a: matrix (m, n).
        b: vector (m,) or matrix (m, k).
        rcond: singular values below this part of the largest count as zero; max(m, n) times the dtype's
            epsilon when absent, the epsilon when negative.
        numpy_resid: give no residuals where NumPy gives none: rank below n, or no more rows than columns. Not
            under `jit`, since the shape then depends on values.

    Returns:
        `x`, the sums of squared residuals, the rank, and the singular values of `a`.

    Raises:
        TypeMismatchError: `a` is no matrix, or `b` neither a vector nor a matrix of as many rows.

    Example:
        >>> import infini.numpy as inp
        >>> x, residuals, rank, values = inp.linalg.lstsq(inp.array([[1.0], [1.0]]), inp.array([1.0, 3.0]))
        >>> print(inp.round(x, 4), rank)
        [2.] 1
    """
    matrix, right = inexact_operands("lstsq", a, b)
    if matrix.ndim != 2 or right.ndim not in (1, 2) or right.shape[0] != matrix.shape[0]:
        raise errors.TypeMismatchError(
            "lstsq: operands do not go together",
            got=f"a {matrix.type}, b {right.type}",
            expected="a (m, n) with b (m,) or (m, k)",
        )
    rows, n = matrix.shape
    columns = right if right.ndim == 2 else view.expand_dims(right, (1,))
    epsilon = o.epsilon(matrix.dtype)
    bound = max(rows, n) * epsilon if rcond is None else epsilon if rcond < 0 else rcond
    u, s, vh = factors.svd(matrix, full_matrices=False)
    is_used = comparison.greater_equal(s, elementwise.multiply(bound, s[:1]))
    rank = reductions.sum(elementwise.astype(is_used, np.int32))
    inverse = positions.where(is_used, elementwise.divide(1, positions.where(is_used, s, 1)), 0)
    inner = elementwise.multiply(inverse[:, None], products.matmul(o.adjoint(u), columns))
    x = products.matmul(o.adjoint(vh), inner)
    if numpy_resid and (int(rank) < n or rows <= n):
        residuals = families.zeros(ArrayType((0,), s.dtype))
    else:
        gap = e.sub(columns, products.matmul(matrix, x))
        size = elementwise.abs(gap)
        residuals = reductions.sum(e.mul(size, size), 0)
    return (view.squeeze(x, (1,)) if right.ndim == 1 else x), residuals, rank, s


def tensorsolve(a: ArrayLike, b: ArrayLike, axes: Sequence[int] | None = None) -> Value:
    """Solve `tensordot(a, x, x.ndim) = b`, as `numpy.linalg.tensorsolve`."""
    left, right = inexact_operands("tensorsolve", a, b)
    if axes is not None:
        kept = [axis for axis in range(left.ndim) if axis not in axes]
        left = view.transpose(left, (*kept, *axes))
    shape = left.shape[right.ndim :]
    size = math.prod(shape)
    if size != right.size:
        raise errors.ValueMismatchError(
            "tensorsolve: the dimensions of x do not make a square matrix", got=f"{left.type}, {right.type}"
        )
    return view.reshape(solve(view.reshape(left, (size, size)), view.reshape(right, (size,))), shape)


def tensorinv(a: ArrayLike, ind: int = 2) -> Value:
    """The inverse of `x -> tensordot(a, x, ind)`, as `numpy.linalg.tensorinv`."""
    x = o.inexact("tensorinv", a)
    if ind <= 0:
        raise errors.ValueMismatchError("tensorinv: ind has to be positive", got=f"ind={ind}")
    first, second = x.shape[:ind], x.shape[ind:]
    matrix = view.reshape(x, (math.prod(first), math.prod(second)))
    return view.reshape(inv(matrix), (*second, *first))
