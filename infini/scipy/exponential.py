"""The exponential of matrices by scaling and squaring.

Source: N. J. Higham, "The scaling and squaring method for the matrix exponential revisited" (2005): the
degrees of the Pade approximant and the norms up to which its error is below half a unit of the last place.
"""

from __future__ import annotations

import math
from typing import Final

import infini.numpy as inp
from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import cond, loops, view
from infini.numpy import linalg
from infini.numpy._promotion import ArrayLike, inexact_operands

_LARGEST_NORM: Final = {7: 3.925724783138660, 13: 5.371920351148152}


def expm(A: ArrayLike, *, upper_triangular: bool = False, max_squarings: int = 16) -> Value:
    """The exponential of square matrices.

    Args:
        A: matrices (..., n, n).
        upper_triangular: whether all of them are; without effect.
        max_squarings: how often to square at most; 2.5 + log2 of the norm are needed.

    Returns:
        Matrices like `A`; NaN where more squarings were needed.

    Raises:
        ValueMismatchError: they are not square.

    Example:
        >>> import infini.numpy as inp
        >>> from infini.scipy import linalg
        >>> print(linalg.expm(inp.array([[0.0, 1.0], [0.0, 0.0]])))
        [[1. 1.]
         [0. 1.]]
    """
    del upper_triangular
    (value,) = inexact_operands("expm", A)
    if value.ndim < 2 or value.shape[-1] != value.shape[-2]:
        raise errors.ValueMismatchError(
            "expm needs square matrices", got=str(value.type), expected="shape (..., n, n)"
        )
    degree = 13 if value.dtype in (dtypes.float64, dtypes.complex128) else 7
    norms = inp.max(inp.sum(inp.abs(value), -2, keepdims=True), -1, keepdims=True)
    needed = inp.maximum(inp.ceil(inp.log2(norms / _LARGEST_NORM[degree])), 0.0)
    scaled = value * inp.exp2(-inp.minimum(needed, float(max_squarings))).astype(value.dtype)
    found = _pade(scaled, degree)

    def step(carry: Value, i: Value) -> tuple[Value, None]:
        is_needed = i < needed

        def squared(x: Value) -> Value:
            # A square that is not wanted may overflow, so it is not taken of the matrix itself.
            safe = inp.where(is_needed, x, 0)
            return inp.where(is_needed, inp.matmul(safe, safe), x)

        found: Value = cond(inp.any(is_needed), squared, lambda x: x, carry)
        return found, None

    if value.size:
        found, _ = loops.scan(step, found, view.iota(norms.dtype, max_squarings))
    return inp.where(needed <= max_squarings, found, inp.nan)


def _pade(x: Value, degree: int) -> Value:
    """The Pade approximant of a degree: even and odd powers apart, then one equation."""
    weights = [
        float(math.factorial(2 * degree - k) * math.comb(degree, k)) / math.factorial(degree)
        for k in range(degree + 1)
    ]
    unit = inp.eye(x.shape[-1], dtype=x.dtype)
    square = inp.matmul(x, x)
    even, odd = weights[-2] * unit, weights[-1] * unit
    for k in range(degree - 3, -1, -2):
        even = inp.matmul(square, even) + weights[k] * unit
        odd = inp.matmul(square, odd) + weights[k + 1] * unit
    odd = inp.matmul(x, odd)
    return linalg.solve(even - odd, even + odd)
