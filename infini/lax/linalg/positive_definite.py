"""The Cholesky factor of positive definite matrices: the operation reads the lower triangle, and gives a
triangle of NaN for a matrix that is not positive definite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from infini.core import primitive, trace
from infini.core.ir import ArrayType, Attrs
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax import cases, elementwise as e, families, places
from infini.lax.cases import Case, Sample
from infini.lax.linalg import matrices as m, triangular

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers
_SIGNATURE: Final = Signature((("n", "n"),), (("n", "n"),))


def _type(x: ArrayType) -> tuple[ArrayType, ...]:
    m.check_dtype("cholesky", (x,))
    families.core_sizes("cholesky", _SIGNATURE, (x,))
    return (x,)


def _reference(x: np.ndarray) -> np.ndarray:
    (found,) = m.each(lambda a: (_factor(a),), x)
    return found


def _factor(x: np.ndarray) -> np.ndarray:
    try:
        return np.linalg.cholesky(x)
    except np.linalg.LinAlgError:
        return np.tril(np.full_like(x, np.nan))


def _jvp(primals: Any, tangents: Any, results: Any) -> tuple[Value]:  # Any: sequences of values
    # L^-1 dA L^-H = X + X^H with X = L^-1 dL, which is lower triangular.
    (change,), (factor,) = tangents, results
    inner = triangular.solve(factor, change, is_left=False, is_lower=True, is_adjoint=True)
    inner = triangular.solve(factor, inner, is_left=True, is_lower=True)
    halved = e.sub(m.lower(inner), e.mul(m.diagonal(inner), 0.5))
    return (m.product(factor, halved),)


def _positive(x: np.ndarray) -> np.ndarray:
    """A well conditioned positive definite matrix made of any one."""
    return (x @ x.conj().T + 3 * np.eye(len(x))).astype(x.dtype)


def _cost(types: Sequence[ArrayType], attrs: Attrs) -> float:
    """Operations of the factorisation, the leading term."""
    (x,) = types
    return m.flops(x, x.shape[-1] ** 3 / 3)


cholesky_p: Primitive = primitive.register(
    Primitive(
        "cholesky",
        _SIGNATURE,
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.JVP: _jvp,
            primitive.COST: _cost,
            primitive.TAIL: places.tails_of_zeros,
            primitive.CASES: cases.always(
                m.SUPPORTED,
                # The tangents of a function that reads a triangle are symmetric: no finite differences here.
                Case((Sample((4, 4), made=_positive),), kind="program", is_smooth=False),
                Case((Sample((1, 1), made=_positive),), kind="program", is_smooth=False),
                Case((Sample((40, 40), made=_positive),), kind="program", is_smooth=False),
                Case((Sample((3, 3)),), kind="program", is_smooth=False),
            ),
        },
    )
)


def cholesky(x: ArrayLike, *, symmetrize_input: bool = True) -> Value:
    """The lower triangular `L` with `x = L @ L^H`.

    Args:
        x: positive definite matrices (..., n, n).
        symmetrize_input: replace `x` by `(x + x^H) / 2` first, which also makes its derivative right for
            tangents that are not symmetric; else the lower triangle is read.

    Returns:
        Matrices like `x`; NaN where `x` is not positive definite.

    Raises:
        TypeMismatchError: `x` is not square, or of another dtype than float32, float64 and their complex
            pairs.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> print(lax.linalg.cholesky(inp.array([[4.0, 2.0], [2.0, 5.0]])))
        [[2. 0.]
         [1. 2.]]
    """
    value = m.operand("cholesky", x, is_square=True)
    return trace.bind1(cholesky_p, m.symmetrized(value) if symmetrize_input else value)
