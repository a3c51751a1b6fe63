"""Zeros of polynomials, and polynomials through points, with NumPy's names: what needs `numpy.linalg`."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors, trace
from infini.core.value import Value
from infini.lax import view
from infini.numpy import (
    _axes,
    comparison,
    linalg,
    matrices,
    ordering,
    positions,
    products,
    rearranging,
    reductions,
    transcendental,
)
from infini.numpy._promotion import ArrayLike, constant, inexact_operands, operands

_WIDE: Final = frozenset({dtypes.float64, dtypes.complex128})


def roots(p: ArrayLike, *, strip_zeros: bool = True) -> Value:
    """The zeros of a polynomial, as `numpy.roots`.

    Args:
        p: coefficients (n,), highest power first.
        strip_zeros: leave out zeros in front, so that the size of the result depends on the numbers; not
            under `jit`. Otherwise there are always n - 1 zeros, of which those that do not exist are NaN.

    Returns:
        Complex numbers, also when all zeros are real.

    Raises:
        ValueMismatchError: `p` is no vector.
        ConcretizationError: `p` is being traced, and zeros are to be left out.

    Example:
        >>> import infini.numpy as inp
        >>> print(inp.round(inp.roots(inp.array([1.0, 0.0, 4.0])).imag, 3))
        [ 2. -2.]
    """
    (value,) = inexact_operands("roots", p)
    value = view.reshape(value, (1,)) if not value.ndim else value
    if value.ndim != 1:
        raise errors.ValueMismatchError("roots takes a vector of coefficients", got=str(value.type))
    if value.size < 2:
        return _no_numbers(value)
    is_zero = comparison.equal(value, 0)
    num_missing = positions.where(reductions.all(is_zero), value.size, reductions.argmin(is_zero))
    if strip_zeros:
        if isinstance(num_missing, trace.Tracer) and num_missing.concrete() is None:
            raise errors.ConcretizationError(
                "roots: how many zeros there are depends on numbers that are being traced",
                got=f"a value of type {value.type}",
                fix="pass strip_zeros=False, which gives NaN for those that are not there",
            )
        value = value[int(num_missing) :]
        return _zeros_of(value) if value.size > 1 else _no_numbers(value)
    # With the leading zeros at the end, each is a zero of the polynomial at 0.
    value = positions.where(reductions.all(is_zero), 1, value)
    found = _zeros_of(rearranging.roll(value, -num_missing))
    found = found[ordering.argsort(comparison.equal(found, 0), stable=True)]
    is_there = comparison.less(view.iota(dtypes.int32, found.size), found.size - num_missing)
    return positions.where(is_there, found, complex(np.nan, np.nan))


def _no_numbers(like: Value) -> Value:
    return view.full((0,), 0, dtypes.complex128 if like.dtype in _WIDE else dtypes.complex64)


def _zeros_of(p: Value) -> Value:
    """The eigenvalues of the companion matrix."""
    below = matrices.diag(view.full((p.size - 2,), 1, p.dtype), -1)
    return linalg.eigvals(below.at[0, :].set(-p[1:] / p[0]))


def polyfit(
    x: ArrayLike,
    y: ArrayLike,
    deg: int,
    rcond: float | None = None,
    full: bool = False,
    w: ArrayLike | None = None,
    cov: bool | str = False,
) -> Any:  # Any: an array, or a tuple of arrays
    """The polynomial of a degree with least squared distance from points, as `numpy.polyfit`.

    Args:
        x: where (m,).
        y: what (m,), or several polynomials at once (m, k).
        deg: degree.
        rcond: singular values below this part of the largest count as zero; m times the dtype's epsilon when
            absent.
        full: give coefficients, sums of squared residuals, rank, singular values and `rcond`.
        w: weights (m,) of the distances, before they are squared.
        cov: give the covariance of the coefficients too, scaled so that residuals have the variance that
            they show; `"unscaled"` leaves that out.

    Returns:
        Coefficients (deg + 1,) or (deg + 1, k), highest power first.

    Raises:
        ValueMismatchError: the degree is negative, or there are too few points for a covariance.
        TypeMismatchError: operands do not go together.

    Example:
        >>> import infini.numpy as inp
        >>> x = inp.array([0.0, 1.0, 2.0, 3.0])
        >>> print(inp.round(inp.polyfit(x, 3 * x**2 + 1, 2), 3) + 0)
        [3. 0. 1.]
    """
    order = _axes.integer("polyfit", "deg", deg) + 1
    if order < 1:
        raise errors.ValueMismatchError("polyfit: the degree is negative", got=str(deg))
    points, values = inexact_operands("polyfit", x, y)
    if points.ndim != 1 or not points.size or values.ndim not in (1, 2) or values.shape[0] != points.size:
        raise errors.TypeMismatchError(
            "polyfit: operands do not go together",
            got=f"x {points.type}, y {values.type}",
            expected="x (m,) with y (m,) or (m, k), and at least one point",
        )
    bound = points.size * float(np.finfo(points.dtype).eps) if rcond is None else float(rcond)
    powers = matrices.vander(points, order)
    if w is not None:
        powers, values = _weighted(powers, values, w)
    # Columns of norm 1 make the matrix as regular as scaling can.
    scale = transcendental.sqrt(reductions.sum(powers * powers, 0))
    powers = powers / scale
    found, residuals, rank, singular = linalg.lstsq(powers, values, bound)
    found = found / (scale if found.ndim == 1 else scale[:, None])
    if full:
        return found, residuals, rank, singular, constant(bound, dtypes.float32, (), weak=True)
    if not cov:
        return found
    base = linalg.inv(products.matmul(powers.T, powers)) / products.outer(scale, scale)
    if cov == "unscaled":
        return found, base if values.ndim == 1 else base[:, :, None]
    if points.size <= order:
        raise errors.ValueMismatchError(
            "polyfit: no covariance of so few points",
            got=f"{points.size} points, {order} coefficients",
            expected="more points than coefficients",
            fix='pass cov="unscaled"',
        )
    variance = residuals / (points.size - order)
    return found, base * variance if values.ndim == 1 else base[:, :, None] * variance


def _weighted(powers: Value, values: Value, w: ArrayLike) -> tuple[Value, Value]:
    (weights,) = inexact_operands("polyfit", w)
    if weights.ndim != 1 or weights.size != values.shape[0]:
        raise errors.TypeMismatchError(
            "polyfit needs one weight for each point", got=str(weights.type), expected=f"({values.shape[0]},)"
        )
    powers, values, weights = operands("polyfit", powers, values, weights)
    column = weights[:, None]
    return powers * column, values * (column if values.ndim == 2 else weights)
