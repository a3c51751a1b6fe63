"""Linear algebra with `jax.scipy.linalg`'s names, where SciPy differs from NumPy."""

from __future__ import annotations

from typing import Any

import infini.numpy as inp
from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import linalg as factors
from infini.numpy import linalg, manipulation
from infini.numpy._promotion import ArrayLike, inexact_operands
from infini.numpy.linalg import det as det, inv as inv, solving
from infini.scipy.exponential import expm as expm
from infini.scipy.structured import (
    block_diag as block_diag,
    circulant as circulant,
    companion as companion,
    convolution_matrix as convolution_matrix,
    dft as dft,
    hadamard as hadamard,
    hankel as hankel,
    hilbert as hilbert,
    pascal as pascal,
    toeplitz as toeplitz,
)


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


def lu(
    a: ArrayLike, permute_l: bool = False, overwrite_a: bool = False, check_finite: bool = True
) -> tuple[Value, Value] | tuple[Value, Value, Value]:
    """The LU decomposition `a = P @ L @ U`.

    Args:
        a: matrices (..., m, n).
        permute_l: give `P @ L` as one matrix.
        overwrite_a: without effect.
        check_finite: without effect.

    Returns:
        `P` (..., m, m), `L` (..., m, min(m, n)) and `U` (..., min(m, n), n); with `permute_l` two matrices.

    Raises:
        TypeMismatchError: `a` is no matrix.
    """
    del overwrite_a, check_finite
    packed, _, order = factors.lu(*inexact_operands("lu", a))
    m, n = packed.shape[-2:]
    count = min(m, n)
    lower = inp.tril(packed[..., :count], -1) + inp.eye(m, count, dtype=packed.dtype)
    upper = inp.triu(packed[..., :count, :])
    rows = inp.argsort(order, -1)
    if permute_l:
        return inp.take_along_axis(lower, rows[..., None], -2), upper
    permutation = inp.equal(rows[..., :, None], inp.arange(m, dtype=rows.dtype))
    return permutation.astype(packed.real.dtype), lower, upper


def qr(
    a: ArrayLike,
    overwrite_a: bool = False,
    lwork: Any = None,
    mode: str = "full",
    pivoting: bool = False,
    check_finite: bool = True,
) -> tuple[Value, ...]:
    """The QR decomposition `a = Q @ R`.

    Args:
        a: matrices (..., m, n).
        overwrite_a: without effect.
        lwork: without effect.
        mode: `"full"` for square `Q`, `"economic"` for min(m, n) columns of it, `"r"` for `R` alone, in a
            tuple.
        pivoting: exchange columns; not implemented.
        check_finite: without effect.

    Raises:
        UnsupportedError: `pivoting` is asked for.
        ValueMismatchError: there is no such mode.
    """
    del overwrite_a, lwork, check_finite
    if pivoting:
        raise errors.UnsupportedError("qr with exchanged columns is not implemented", got="pivoting=True")
    if mode not in ("full", "economic", "r"):
        raise errors.ValueMismatchError(
            "qr: no such mode", got=repr(mode), expected="'full', 'economic' or 'r'"
        )
    q, r = factors.qr(*inexact_operands("qr", a), full_matrices=mode != "economic")
    return (r,) if mode == "r" else (q, r)


def svd(
    a: ArrayLike,
    full_matrices: bool = True,
    compute_uv: bool = True,
    overwrite_a: bool = False,
    check_finite: bool = True,
    lapack_driver: str = "gesdd",
) -> Any:  # Any: an array, or three
    """The singular value decomposition, as `numpy.linalg.svd`; the other arguments are without effect."""
    del overwrite_a, check_finite, lapack_driver
    return factors.svd(*inexact_operands("svd", a), full_matrices=full_matrices, compute_uv=compute_uv)


def eigh(
    a: ArrayLike,
    b: ArrayLike | None = None,
    lower: bool = True,
    eigvals_only: bool = False,
    overwrite_a: bool = False,
    overwrite_b: bool = False,
    turbo: bool = True,
    eigvals: None = None,
    type: int = 1,
    check_finite: bool = True,
) -> Any:  # Any: an array, or two
    """Eigenvalues and eigenvectors of Hermitian matrices.

    Args:
        a: Hermitian matrices (..., n, n).
        b: matrices of a generalised problem; not implemented.
        lower: which triangle is read.
        eigvals_only: give the values alone.
        overwrite_a: without effect.
        overwrite_b: without effect.
        turbo: without effect.
        eigvals: a range of values; not implemented.
        type: kind of generalised problem; only 1.
        check_finite: without effect.

    Returns:
        Values (..., n), ascending, and vectors as columns (..., n, n).

    Raises:
        UnsupportedError: what is not implemented is asked for.
    """
    del overwrite_a, overwrite_b, turbo, check_finite
    if b is not None or eigvals is not None or type != 1:
        raise errors.UnsupportedError(
            "eigh of a generalised problem, or of a range of eigenvalues, is not implemented",
            got=f"b={'None' if b is None else 'given'}, eigvals={eigvals}, type={type}",
            fix="multiply by the inverse of a Cholesky factor of b from both sides first",
        )
    vectors, values = factors.eigh(*inexact_operands("eigh", a), lower=lower, symmetrize_input=True)
    return values if eigvals_only else (values, vectors)
