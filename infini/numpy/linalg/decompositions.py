"""Decompositions with NumPy's names, over the operations of `lax.linalg`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from infini.core import errors
from infini.core.value import Value
from infini.lax import linalg as factors
from infini.numpy import comparison, elementwise, indexing, ordering, positions, reductions
from infini.numpy._promotion import ArrayLike
from infini.numpy.linalg import _operands as o


class EighResult(NamedTuple):
    """Eigenvalues and eigenvectors of Hermitian matrices."""

    eigenvalues: Value
    eigenvectors: Value


class QRResult(NamedTuple):
    """The factors of a QR decomposition."""

    Q: Value
    R: Value


class SVDResult(NamedTuple):
    """The factors of a singular value decomposition."""

    U: Value
    S: Value
    Vh: Value


def cholesky(a: ArrayLike, *, upper: bool = False, symmetrize_input: bool = True) -> Value:
    """The triangular `L` with `a = L @ L^H`, or `U` with `a = U^H @ U`.

    Args:
        a: positive definite matrices (..., n, n).
        upper: give the upper triangle.
        symmetrize_input: see `lax.linalg.cholesky`.

    Returns:
        Matrices like `a`; NaN where `a` is not positive definite.

    Raises:
        ValueMismatchError: they are not square.

    Example:
        >>> import infini.numpy as inp
        >>> print(inp.linalg.cholesky(inp.array([[4.0, 2.0], [2.0, 5.0]]), upper=True))
        [[2. 1.]
         [0. 2.]]
    """
    found = factors.cholesky(o.square("cholesky", a), symmetrize_input=symmetrize_input)
    return o.adjoint(found) if upper else found


def qr(a: ArrayLike, mode: str = "reduced") -> Any:  # Any: an array, or two
    """The QR decomposition `a = Q @ R`.

    Args:
        a: matrices (..., m, n).
        mode: `"reduced"` for min(m, n) columns of `Q`, `"complete"` for m, `"r"` for `R` alone.

    Returns:
        `Q` and `R`, or `R`.

    Raises:
        ValueMismatchError: there is no such mode.

    Example:
        >>> import infini.numpy as inp
        >>> q, r = inp.linalg.qr(inp.array([[0.0, 1.0], [2.0, 3.0]]))
        >>> print(inp.round(q @ r, 4))
        [[0. 1.]
         [2. 3.]]
    """
    x = o.matrix("qr", a)
    if mode not in ("reduced", "complete", "r", "full"):
        raise errors.ValueMismatchError(
            "qr: no such mode", got=repr(mode), expected="'reduced', 'complete' or 'r'"
        )
    q, r = factors.qr(x, full_matrices=mode in ("complete", "full"))
    return r if mode == "r" else QRResult(q, r)


def eigh(a: ArrayLike, UPLO: str | None = None, symmetrize_input: bool = True) -> EighResult:
    """Eigenvalues, ascending, and eigenvectors of Hermitian matrices.

    Args:
        a: Hermitian matrices (..., n, n).
        UPLO: `"L"` or `"U"`, the triangle that is read when `a` is not made symmetric.
        symmetrize_input: replace `a` by `(a + a^H) / 2` first.

    Returns:
        `eigenvalues` (..., n), real, and `eigenvectors` (..., n, n), one per column.

    Raises:
        ValueMismatchError: they are not square, or `UPLO` is another text.

    Example:
        >>> import infini.numpy as inp
        >>> print(inp.round(inp.linalg.eigh(inp.array([[2.0, 1.0], [1.0, 2.0]])).eigenvalues, 4))
        [1. 3.]
    """
    if UPLO not in (None, "L", "U"):
        raise errors.ValueMismatchError("eigh: no such UPLO", got=repr(UPLO), expected="None, 'L' or 'U'")
    x = o.square("eigh", a)
    vectors, values = factors.eigh(x, lower=UPLO != "U", symmetrize_input=symmetrize_input)
    return EighResult(values, vectors)


def eigvalsh(a: ArrayLike, UPLO: str | None = "L", *, symmetrize_input: bool = True) -> Value:
    """The eigenvalues of `eigh`, ascending."""
    return eigh(a, UPLO, symmetrize_input).eigenvalues


def svd(
    a: ArrayLike,
    full_matrices: bool = True,
    compute_uv: bool = True,
    hermitian: bool = False,
    subset_by_index: tuple[int, int] | None = None,
) -> Any:  # Any: an array, or three
    """The singular value decomposition `a = (U * S) @ Vh`.

    Args:
        a: matrices (..., m, n).
        full_matrices: give square `U` and `Vh`.
        compute_uv: give `U` and `Vh` too.
        hermitian: `a` is Hermitian, so its eigenvectors do.
        subset_by_index: see `lax.linalg.svd`.

    Returns:
        `U`, `S` descending, `Vh`; without `compute_uv` only `S`.

    Example:
        >>> import infini.numpy as inp
        >>> print(inp.linalg.svd(inp.array([[3.0, 0.0], [0.0, 4.0]])).S)
        [4. 3.]
    """
    x = o.matrix("svd", a)
    if hermitian:
        return _of_hermitian(x, compute_uv)
    found = factors.svd(
        x, full_matrices=full_matrices, compute_uv=compute_uv, subset_by_index=subset_by_index
    )
    return SVDResult(*found) if compute_uv else found


def _of_hermitian(x: Value, compute_uv: bool) -> Any:  # Any: as of `svd`
    values, vectors = eigh(x)
    size = elementwise.abs(values)
    if not compute_uv:
        return ordering.sort(size, axis=-1, descending=True)
    order = ordering.argsort(size, axis=-1, descending=True)
    sign = positions.where(comparison.less(values, 0), -1, 1)
    u = indexing.take_along_axis(vectors, order[..., None, :], axis=-1)
    signed = elementwise.multiply(vectors, elementwise.astype(sign, x.dtype)[..., None, :])
    v = indexing.take_along_axis(signed, order[..., None, :], axis=-1)
    return SVDResult(u, indexing.take_along_axis(size, order, axis=-1), o.adjoint(v))


def svdvals(x: ArrayLike, /) -> Value:
    """Singular values, descending."""
    found: Value = svd(x, compute_uv=False)
    return found


def matrix_rank(
    M: ArrayLike, rtol: ArrayLike | None = None, *, hermitian: bool = False, tol: ArrayLike | None = None
) -> Value:
    """The number of singular values above a bound.

    Args:
        M: matrices (..., m, n), or a vector.
        rtol: the bound, as in JAX one for the values themselves; max(m, n) times the dtype's epsilon times
            the largest value when absent.
        hermitian: take the absolute eigenvalues.
        tol: another name for `rtol`.

    Returns:
        Ranks (...), int32.

    Example:
        >>> import infini.numpy as inp
        >>> print(inp.linalg.matrix_rank(inp.ones((3, 3))))
        1
    """
    x = o.inexact("matrix_rank", M)
    if x.ndim < 2:
        return elementwise.astype(reductions.any(comparison.not_equal(x, 0)), np.int32)
    values = svd(x, compute_uv=False, hermitian=hermitian)
    given = rtol if tol is None else tol
    if given is None:
        largest = reductions.max(values, -1, keepdims=True)
        bound: Any = elementwise.multiply(largest, max(x.shape[-2:]) * o.epsilon(values.dtype))
    else:
        bound = o.inexact("matrix_rank", given)[..., None]
    above = comparison.greater(values, bound)
    return reductions.sum(elementwise.astype(above, np.int32), -1)
