"""Linear algebra with `jax.scipy.linalg`'s names, where SciPy differs from NumPy."""

from __future__ import annotations

from typing import Any

from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import linalg as factors
from infini.numpy import linalg, manipulation
from infini.numpy._promotion import ArrayLike, inexact_operands
from infini.numpy.linalg import det as det, inv as inv, solving


def cholesky(
    a: ArrayLike, lower: bool = False, overwrite_a: bool = False, check_finite: bool = True
) -> Value:
    """The Cholesky factor, the upper one unless `lower`; the other arguments are without effect.

    Example:
        >>> import infini.numpy as inp
        >>> from infini.scipy import linalg
        >>> print(linalg.cholesky(inp.array([[4.0, 2.0], [2.0, 5.0]]), lower=True))
        [[2. 0.]
         [1. 2.]]
    """
    del overwrite_a, check_finite
    return linalg.cholesky(a, upper=not lower)


def cho_factor(
    a: ArrayLike, lower: bool = False, overwrite_a: bool = False, check_finite: bool = True
) -> tuple[Value, bool]:
    """`cholesky` with the flag that `cho_solve` wants."""
    return cholesky(a, lower, overwrite_a, check_finite), lower


def cho_solve(
    c_and_lower: tuple[ArrayLike, bool], b: ArrayLike, overwrite_b: bool = False, check_finite: bool = True
) -> Value:
    """Solve equations with the factor of `cho_factor`."""
    del overwrite_b, check_finite
    factor, is_lower = c_and_lower
    inner = solve_triangular(factor, b, trans=0 if is_lower else 2, lower=is_lower)
    return solve_triangular(factor, inner, trans=2 if is_lower else 0, lower=is_lower)


def solve_triangular(
    a: ArrayLike,
    b: ArrayLike,
    trans: int | str = 0,
    lower: bool = False,
    unit_diagonal: bool = False,
    overwrite_b: bool = False,
    debug: Any = None,
    check_finite: bool = True,
) -> Value:
    """Solve `op(a) @ x = b` for a triangular matrix.

    Args:
        a: matrix (n, n).
        b: vector (n,) or matrix (n, k).
        trans: 0 or `"N"` for `a`, 1 or `"T"` for its transpose, 2 or `"C"` for the conjugate transpose.
        lower: whether the lower triangle is read.
        unit_diagonal: take ones for the diagonal.
        overwrite_b: without effect.
        debug: without effect.
        check_finite: without effect.

    Raises:
        ValueMismatchError: there is no such `trans`.
    """
    del overwrite_b, debug, check_finite
    if trans not in (0, 1, 2, "N", "T", "C"):
        raise errors.ValueMismatchError(
            "solve_triangular: no such trans", got=repr(trans), expected="0, 1 or 2"
        )
    matrix, right = inexact_operands("solve_triangular", a, b)
    return factors.triangular_solve(
        matrix,
        right,
        left_side=True,
        lower=lower,
        transpose_a=trans not in (0, "N"),
        conjugate_a=trans in (2, "C"),
        unit_diagonal=unit_diagonal,
    )


def solve(
    a: ArrayLike,
    b: ArrayLike,
    lower: bool = False,
    overwrite_a: bool = False,
    overwrite_b: bool = False,
    debug: bool = False,
    check_finite: bool = True,
    assume_a: str = "gen",
) -> Value:
    """Solve `a @ x = b`; with `assume_a="pos"` by a Cholesky factor.

    Raises:
        ValueMismatchError: `assume_a` is neither `gen`, `sym`, `her` nor `pos`.
    """
    del overwrite_a, overwrite_b, debug, check_finite
    if assume_a not in ("gen", "sym", "her", "pos"):
        raise errors.ValueMismatchError("solve: no such assume_a", got=repr(assume_a))
    if assume_a != "pos":
        return linalg.solve(a, b)
    return cho_solve(cho_factor(a, lower), b)


def lu_factor(a: ArrayLike, overwrite_a: bool = False, check_finite: bool = True) -> tuple[Value, Value]:
    """The packed factors of an LU decomposition, and its pivots."""
    del overwrite_a, check_finite
    packed, pivots, _ = factors.lu(*inexact_operands("lu_factor", a))
    return packed, pivots


def lu_solve(
    lu_and_piv: tuple[Value, ArrayLike],
    b: ArrayLike,
    trans: int = 0,
    overwrite_b: bool = False,
    check_finite: bool = True,
) -> Value:
    """Solve equations with the factors of `lu_factor`; `trans` as for `solve_triangular`."""
    del overwrite_b, check_finite
    packed, right = inexact_operands("lu_solve", lu_and_piv[0], b)
    order = factors.lu_pivots_to_permutation(lu_and_piv[1], packed.shape[-1])
    columns = manipulation.expand_dims(right, -1) if right.ndim == 1 else right
    is_complex = trans == 2 and packed.dtype in dtypes.COMPLEX
    packed = packed.conj() if is_complex else packed
    found = solving.solve_factored(packed, order, columns, is_transposed=trans != 0)
    return manipulation.squeeze(found, -1) if right.ndim == 1 else found
