"""Polynomials by their coefficients, with NumPy's names."""

from __future__ import annotations

from infini.core import errors
from infini.core.value import Value
from infini.lax import elementwise as e, families, loops
from infini.numpy import _axes
from infini.numpy._promotion import ArrayLike, operands


def polyval(p: ArrayLike, x: ArrayLike, *, unroll: int = 16) -> Value:
    """A polynomial at some points by Horner's rule, as `numpy.polyval`.

    Args:
        p: coefficients (n, ...), that of the highest power first. Further dimensions broadcast with `x`.
        x: points.
        unroll: steps that are written out together.

    Returns:
        Values, of the shape that `x` and the further dimensions of `p` broadcast to.

    Raises:
        ValueMismatchError: `p` is a scalar, or shapes do not broadcast.

    Example:
        >>> import infini.numpy as inp
        >>> inp.polyval(inp.asarray([2, 5, 1]), 3)
        Array(34, dtype=int32)
    """
    coefficients, points = operands("polyval", p, x)
    if coefficients.ndim == 0:
        raise errors.ValueMismatchError(
            "polyval needs a sequence of coefficients", got=str(coefficients.type), expected="(n, ...)"
        )
    shape = _axes.broadcast("polyval", coefficients.shape[1:], points.shape)
    start = families.zeros(points.type.update(shape=shape))

    def step(total: Value, coefficient: Value) -> tuple[Value, None]:
        product = families.bind_scalars(e.mul_p, total, points)
        return families.bind_scalars(e.add_p, product, coefficient), None

    found, _ = loops.scan(step, start, coefficients, unroll=unroll)
    value: Value = found
    return value
