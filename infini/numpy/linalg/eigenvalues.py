"""Eigenvalues and eigenvectors of matrices of any kind, with NumPy's names; those of Hermitian ones are in
`decompositions`."""

from __future__ import annotations

from typing import NamedTuple

from infini.core.value import Value
from infini.lax import linalg as factors
from infini.numpy._promotion import ArrayLike
from infini.numpy.linalg import _operands as o


class EigResult(NamedTuple):
    """Eigenvalues and eigenvectors of matrices."""

    eigenvalues: Value
    eigenvectors: Value


def eig(a: ArrayLike) -> EigResult:
    """Eigenvalues and right eigenvectors of square matrices, as `numpy.linalg.eig`.

    Args:
        a: matrices (..., n, n).

    Returns:
        `eigenvalues` (..., n), in no order, and `eigenvectors` (..., n, n), one of norm 1 per column;
        complex even when all are real. NaN where LAPACK does not converge.

    Raises:
        TypeMismatchError: `a` is no matrix.
        ValueMismatchError: they are not square.
        UnsupportedError: a derivative of the vectors; `lax.linalg.eig` has one on request.

    Example:
        >>> import infini.numpy as inp
        >>> print(inp.linalg.eig(inp.array([[0.0, 1.0], [-1.0, 0.0]])).eigenvalues)
        [0.+1.j 0.-1.j]
    """
    values, vectors = factors.eig(o.square("eig", o.matrix("eig", a)), compute_left_eigenvectors=False)
    return EigResult(values, vectors)


def eigvals(a: ArrayLike) -> Value:
    """The eigenvalues of `eig`; these have a derivative where they differ.

    Example:
        >>> import infini.numpy as inp
        >>> print(inp.linalg.eigvals(inp.array([[1.0, 2.0], [0.0, 3.0]])).real)
        [1. 3.]
    """
    return factors.eig(
        o.square("eigvals", o.matrix("eigvals", a)),
        compute_left_eigenvectors=False,
        compute_right_eigenvectors=False,
    )[0]
