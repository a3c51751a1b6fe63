"""Eigenvalues and eigenvectors of Hermitian matrices. The operation takes and gives matrices by columns (see
`elimination`), and reads the lower triangle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType, Attrs
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax import cases, elementwise as e, families, places
from infini.lax.cases import Case, Sample
from infini.lax.linalg import matrices as m

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers
_SIGNATURE: Final = Signature((("n", "n"),), (("n",), ("n", "n")))


def _type(x: ArrayType) -> tuple[ArrayType, ...]:
    m.check_dtype("eigh", (x,))
    families.core_sizes("eigh", _SIGNATURE, (x,))
    return ArrayType(x.shape[:-1], m.REAL_OF[x.dtype]), x


def _reference(x: np.ndarray) -> list[np.ndarray]:
    return m.each(_factors, x)


def _factors(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    try:
        values, vectors = np.linalg.eigh(x.T)
    except np.linalg.LinAlgError:
        return np.full(len(x), np.nan, x.real.dtype), np.full_like(x, np.nan)
    return values, np.ascontiguousarray(vectors.T)


def _jvp(primals: Any, tangents: Any, results: Any) -> tuple[Value, Value]:  # Any: sequences of values
    # With M = V^H dA V: dw is the diagonal of M, and dV = V K with K[i, j] = M[i, j] / (w[j] - w[i]) off it.
    values, by_column = results
    vectors, change = m.turned(by_column), m.turned(tangents[0])
    inner = m.product(m.adjoint(vectors), m.product(change, vectors))
    gaps = e.sub(_wide(m.rows(values), inner), _wide(m.columns(values), inner))
    unit = families.broadcast_to(m.identity(values.shape[-1], gaps.dtype), gaps.shape)
    inverse = e.sub(e.reciprocal(e.add(gaps, unit)), unit)
    moved = m.product(vectors, e.mul(e.convert_element_type(inverse, inner.dtype), inner))
    return m.diagonal_of(m.real(inner)), m.turned(moved)


def _wide(x: Value, like: Value) -> Value:
    return families.broadcast_to(x, like.shape)


def _hermitian(x: np.ndarray) -> np.ndarray:
    """A Hermitian matrix with eigenvalues far from each other."""
    return (x + x.conj().T + np.diag(7.0 * np.arange(len(x)))).astype(x.dtype)


def _cost(types: Sequence[ArrayType], attrs: Attrs) -> float:
    """Operations, the leading terms: the tridiagonal form, its vectors by divide and conquer where nothing is
    deflated, and the reflections that turn these back.
    """
    (x,) = types
    size = x.shape[-1]
    return m.flops(x, 8 / 3 * size**3 + m.reflecting(size, size, size))


eigh_p: Primitive = primitive.register(
    Primitive(
        "eigh",
        _SIGNATURE,
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.JVP: _jvp,
            primitive.COST: _cost,
            primitive.TAIL: places.tails_of_zeros,
            primitive.CASES: cases.always(
                m.SUPPORTED,
                # As for cholesky, tangents are Hermitian: no finite differences here.
                Case((Sample((4, 4), made=_hermitian),), kind="program", is_smooth=False),
                Case((Sample((1, 1), made=_hermitian),), kind="program", is_smooth=False),
            ),
        },
    )
)


def eigh(
    x: ArrayLike,
    *,
    lower: bool = True,
    symmetrize_input: bool = True,
    sort_eigenvalues: bool = True,
    subset_by_index: tuple[int, int] | None = None,
    implementation: object = None,
) -> tuple[Value, Value]:
    """Eigenvectors and eigenvalues of Hermitian matrices.

    Args:
        x: Hermitian matrices (..., n, n).
        lower: which triangle is read when `x` is not made symmetric.
        symmetrize_input: replace `x` by `(x + x^H) / 2` first.
        sort_eigenvalues: accepted for JAX's sake; they always ascend.
        subset_by_index: first and end of a range of eigenvalues; only all of them are implemented.
        implementation: accepted for JAX's sake; without effect.

    Returns:
        Eigenvectors as the columns of matrices like `x`, and eigenvalues (..., n), ascending. NaN where
        LAPACK does not converge.

    Raises:
        TypeMismatchError: `x` is not square, or of another dtype than float32, float64 and their complex
            pairs.
        UnsupportedError: `subset_by_index` is a part.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> vectors, values = lax.linalg.eigh(inp.array([[2.0, 1.0], [1.0, 2.0]]))
        >>> print(inp.round(values, 4))
        [1. 3.]
    """
    del sort_eigenvalues, implementation
    value = m.operand("eigh", x, is_square=True)
    size = value.shape[-1]
    if subset_by_index is not None and tuple(subset_by_index) != (0, size):
        raise errors.UnsupportedError(
            "eigh of a range of eigenvalues is not implemented",
            got=f"subset_by_index={subset_by_index}",
            fix="take all of them and cut the results",
        )
    if 0 in value.shape:
        return value, families.zeros(ArrayType(value.shape[:-1], m.REAL_OF[value.dtype]))
    if symmetrize_input:
        value = m.symmetrized(value)
    elif not lower:
        value = m.adjoint(value)
    # By columns, the rows of a Hermitian matrix are conjugated; a real one is the same.
    by_column = m.turned(value) if not symmetrize_input or value.dtype in dtypes.COMPLEX else value
    values, vectors = trace.bind(eigh_p, by_column)
    return m.turned(vectors), values
