"""Polynomials as vectors of coefficients, highest power first, with NumPy's names."""

from __future__ import annotations

from infini.core import errors
from infini.core.value import Value
from infini.lax import loops, view
from infini.numpy import _axes, choosing, convolving, elementwise, joining, linalg
from infini.numpy._promotion import ArrayLike, as_value, convert, inexact_operands, operands


def polyval(p: ArrayLike, x: ArrayLike, *, unroll: int = 16) -> Value:
    """The polynomial at each element, by Horner's scheme, as `numpy.polyval`.

    Args:
        p: coefficients (n, ...); more than one dimension broadcasts against `x`.
        x: where.
        unroll: number of steps that are one piece of the loop.

    Example:
        >>> import infini.numpy as inp
        >>> inp.polyval(inp.asarray([3.0, 0.0, 1.0]), 2.0)
        Array(13., dtype=float32)
    """
    coefficients, at = operands("polyval", p, x)
    if not coefficients.ndim:
        raise errors.ValueMismatchError("polyval takes coefficients in an array", got=str(coefficients.type))
    shape = _axes.broadcast("polyval", coefficients.shape[1:], at.shape)
    start = view.full(shape, 0, at.dtype)

    def step(value: Value, coefficient: Value) -> tuple[Value, None]:
        return value * at + coefficient, None

    if coefficients.shape[0] <= unroll:
        value = start
        for k in range(coefficients.shape[0]):
            value, _ = step(value, coefficients[k])
        return value
    value, _ = loops.scan(step, start, convert(coefficients, at.dtype), unroll=unroll)
    assert isinstance(value, Value), "the carry is one array"
    return value


def polyadd(a1: ArrayLike, a2: ArrayLike) -> Value:
    """Sum of two polynomials, as `numpy.polyadd`."""
    return elementwise.add(*_aligned("polyadd", a1, a2))


def polysub(a1: ArrayLike, a2: ArrayLike) -> Value:
    """Difference of two polynomials, as `numpy.polysub`."""
    return elementwise.subtract(*_aligned("polysub", a1, a2))


def polymul(a1: ArrayLike, a2: ArrayLike, *, trim_leading_zeros: bool = False) -> Value:
    """Product of two polynomials, as `numpy.polymul`; inexact.

    Args:
        a1: coefficients (n,).
        a2: coefficients (m,).
        trim_leading_zeros: drop zeros in front first, so that the size depends on the numbers.
    """
    x, y = _vectors("polymul", *inexact_operands("polymul", a1, a2))
    if trim_leading_zeros:
        x, y = _trimmed(x), _trimmed(y)
    x, y = (view.full((1,), 0, v.dtype) if not v.size else v for v in (x, y))
    return convolving.convolve(x, y)


def polydiv(u: ArrayLike, v: ArrayLike, *, trim_leading_zeros: bool = False) -> tuple[Value, Value]:
    """Quotient and rest of two polynomials, as `numpy.polydiv`; inexact.

    Args:
        u: dividend (n,).
        v: divisor (m,), whose first coefficient is not zero.
        trim_leading_zeros: drop zeros in front of the rest, whose size depends on the numbers then.
    """
    dividend, divisor = _vectors("polydiv", *inexact_operands("polydiv", u, v))
    if not divisor.size:
        raise errors.ValueMismatchError("polydiv: the divisor has no coefficients", got=str(divisor.type))
    quotient = []
    rest = dividend
    num_steps = max(dividend.size - divisor.size + 1, 0)
    for k in range(num_steps):
        factor = rest[k] / divisor[0]
        quotient.append(factor)
        rest = rest.at[k : k + divisor.size].add(-factor * divisor)
    result = joining.stack(quotient) if quotient else view.full((1,), 0, dividend.dtype)
    if trim_leading_zeros:
        kept = _trimmed(rest)
        rest = kept if kept.size else rest[rest.size - 1 :]
    return convert(result, dividend.dtype), convert(rest, dividend.dtype)


def polyder(p: ArrayLike, m: int = 1) -> Value:
    """The `m`-th derivative of a polynomial, as `numpy.polyder`; inexact.

    Raises:
        ValueMismatchError: `m` is negative, or `p` no vector.
    """
    order = _order("polyder", m)
    (value,) = _vectors("polyder", *inexact_operands("polyder", p))
    for _ in range(order):
        if value.size <= 1:
            return convert(value[:0], value.dtype)
        powers = view.rev(view.iota(value.dtype, value.size), (0,))
        value = (value * powers)[:-1]
    return value


def polyint(p: ArrayLike, m: int = 1, k: ArrayLike | None = None) -> Value:
    """The `m`-th integral of a polynomial, as `numpy.polyint`; inexact.

    Args:
        p: coefficients (n,).
        m: how often to integrate.
        k: constants of integration (m,), or one for all of them; zeros when absent.

    Raises:
        ValueMismatchError: `m` is negative, `p` no vector, or there are not `m` constants.
    """
    order = _order("polyint", m)
    value, constants = inexact_operands("polyint", p, 0 if k is None else k)
    (value,) = _vectors("polyint", value)
    flat = view.reshape(constants, (constants.size,))
    if flat.size == 1:
        flat = view.broadcast_in_dim(view.reshape(flat, ()), (order,), ())
    if flat.size != order:
        raise errors.ValueMismatchError(
            "polyint needs one constant for each integral", got=str(flat.size), expected=str(order)
        )
    for step in range(order):
        powers = view.rev(view.iota(value.dtype, value.size), (0,))
        value = view.concatenate([value / (powers + 1), convert(flat[step : step + 1], value.dtype)], 0)
    return value


def poly(seq_of_zeros: ArrayLike) -> Value:
    """The polynomial with these zeros and first coefficient 1, as `numpy.poly`; inexact.

    Args:
        seq_of_zeros: zeros (n,), or a matrix (n, n), whose characteristic polynomial is meant; it is complex.

    Raises:
        ValueMismatchError: it is neither a vector nor a square matrix with elements.
    """
    (zeros,) = inexact_operands("poly", seq_of_zeros)
    if zeros.ndim == 2 and zeros.shape[0] == zeros.shape[1] and zeros.size:
        zeros = linalg.eigvals(zeros)
    if zeros.ndim > 1:
        raise errors.ValueMismatchError(
            "poly takes a vector of zeros or a square matrix", got=str(zeros.type), expected="(n,) or (n, n)"
        )
    if not zeros.size:
        return view.full((), 1, zeros.dtype)
    zeros = view.reshape(zeros, (zeros.size,))
    result = view.full((1,), 1, zeros.dtype)
    for k in range(zeros.size):
        shifted = view.pad(result, convert(0, zeros.dtype), [(1, 0, 0)])
        result = view.pad(result, convert(0, zeros.dtype), [(0, 1, 0)]) - zeros[k] * shifted
    return result


def _aligned(name: str, *xs: ArrayLike) -> list[Value]:
    values = _vectors(name, *operands(name, *xs))
    size = max(v.size for v in values)
    return [view.pad(v, convert(0, v.dtype, v.weak), [(size - v.size, 0, 0)]) for v in values]


def _vectors(name: str, *values: Value) -> list[Value]:
    if any(v.ndim != 1 for v in values):
        raise errors.ValueMismatchError(
            f"{name} takes vectors of coefficients", got=", ".join(str(v.type) for v in values)
        )
    return [as_value(name, v) for v in values]


def _trimmed(x: Value) -> Value:
    return choosing.trim_zeros(x, "f")


def _order(name: str, m: int) -> int:
    order = _axes.integer(name, "m", m)
    if order < 0:
        raise errors.ValueMismatchError(f"{name}: the order is negative", got=str(order))
    return order
