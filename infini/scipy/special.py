"""Special functions with `jax.scipy.special`'s names, over the operations of `lax`; integers become
floats."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import infini.numpy as inp
from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import elementwise as e, incomplete
from infini.numpy._promotion import ArrayLike, Axis, as_value, convert, inexact_operands
from infini.scipy import sums
from infini.scipy.normal_quantiles import ndtri as ndtri
from infini.scipy.sums import logsumexp as logsumexp
from infini.transforms import custom


def _operands(name: str, *args: ArrayLike) -> list[Value]:
    values = inexact_operands(name, *args)
    if len(values) == 1:
        return values
    return list(inp.broadcast_arrays(*values))


def _unary(name: str, op: Any, x: ArrayLike) -> Value:  # Any: a function of lax
    (value,) = _operands(name, x)
    found: Value = op(value)
    return found


def erf(x: ArrayLike) -> Value:
    """The error function.

    Example:
        >>> from infini.scipy import special
        >>> print(special.erf(0.0))
        0.0
    """
    return _unary("erf", e.erf, x)


def erfc(x: ArrayLike) -> Value:
    """One minus the error function."""
    return _unary("erfc", e.erfc, x)


def erfinv(x: ArrayLike) -> Value:
    """The inverse of the error function."""
    return _unary("erfinv", e.erf_inv, x)


def gammaln(x: ArrayLike) -> Value:
    """Logarithm of the absolute value of the gamma function.

    Example:
        >>> from infini.scipy import special
        >>> print(special.gammaln(2.0))
        0.0
    """
    return _unary("gammaln", e.lgamma, x)


def loggamma(x: ArrayLike) -> Value:
    """As `gammaln`; NaN for zero and below, where the gamma function is negative or its logarithm complex."""
    (value,) = _operands("loggamma", x)
    return inp.where(inp.less_equal(value, 0), math.nan, e.lgamma(value))


def digamma(x: ArrayLike) -> Value:
    """Derivative of `gammaln`."""
    return _unary("digamma", e.digamma, x)


def polygamma(n: ArrayLike, x: ArrayLike) -> Value:
    """Derivatives of `digamma`, of the order `n`.

    Raises:
        ValueMismatchError: `n` is not of an integer dtype.
    """
    given = as_value("polygamma", n)
    if given.dtype not in dtypes.INTEGERS:
        raise errors.ValueMismatchError("polygamma needs an integer order", got=str(given.type))
    order, value = _operands("polygamma", given, x)
    return incomplete.polygamma(order, value)


def zeta(x: ArrayLike, q: ArrayLike | None = None) -> Value:
    """Hurwitz's zeta function: the sum of `(k + q) ** -x`.

    Raises:
        UnsupportedError: `q` is absent: Riemann's own is not there.
    """
    if q is None:
        raise errors.UnsupportedError("zeta needs q", fix="give q=1 for Riemann's zeta function")
    power, start = _operands("zeta", x, q)
    return incomplete.zeta(power, start)


def gammainc(a: ArrayLike, x: ArrayLike) -> Value:
    """The regularised lower incomplete gamma function."""
    return incomplete.igamma(*_operands("gammainc", a, x))


def gammaincc(a: ArrayLike, x: ArrayLike) -> Value:
    """The regularised upper incomplete gamma function."""
    return incomplete.igammac(*_operands("gammaincc", a, x))


def betainc(a: ArrayLike, b: ArrayLike, x: ArrayLike) -> Value:
    """The regularised incomplete beta function."""
    return incomplete.betainc(*_operands("betainc", a, b, x))


def betaln(a: ArrayLike, b: ArrayLike) -> Value:
    """Logarithm of the absolute value of the beta function."""
    x, y = _operands("betaln", a, b)
    return e.sub(e.add(e.lgamma(x), e.lgamma(y)), e.lgamma(e.add(x, y)))


def gammasgn(x: ArrayLike) -> Value:
    """Sign of the gamma function: 1 or -1, and NaN at negative whole numbers."""
    (value,) = _operands("gammasgn", x)
    floor = e.floor(value)
    is_below = inp.less(value, 0)
    is_odd = inp.not_equal(inp.remainder(floor, 2), 0)
    is_negative = inp.logical_or(
        inp.logical_and(is_below, is_odd), inp.logical_and(inp.equal(value, 0), inp.signbit(value))
    )
    is_pole = inp.logical_and(is_below, inp.equal(value, floor))
    signs = inp.where(is_negative, -1.0, 1.0)
    return convert(inp.where(is_pole, math.nan, signs), value.dtype)


def gamma(x: ArrayLike) -> Value:
    """The gamma function.

    Example:
        >>> import infini.numpy as inp
        >>> from infini.scipy import special
        >>> print(inp.round(special.gamma(5.0), 3))
        24.0
    """
    (value,) = _operands("gamma", x)
    return e.mul(gammasgn(value), e.exp(e.lgamma(value)))


def beta(a: ArrayLike, b: ArrayLike) -> Value:
    """The beta function."""
    x, y = _operands("beta", a, b)
    sign = e.mul(e.mul(gammasgn(x), gammasgn(y)), gammasgn(e.add(x, y)))
    return e.mul(sign, e.exp(betaln(x, y)))


def factorial(n: ArrayLike, exact: bool = False) -> Value:
    """`n!` as a float; zero for negative numbers.

    Raises:
        UnsupportedError: `exact`.
    """
    if exact:
        raise errors.UnsupportedError("factorial is a float here", fix="use exact=False")
    (value,) = _operands("factorial", n)
    return inp.where(
        inp.less(value, 0), convert(0, value.dtype), e.exp(e.lgamma(e.add(value, convert(1, value.dtype))))
    )


def multigammaln(a: ArrayLike, d: ArrayLike) -> Value:
    """Logarithm of the multivariate gamma function of `d` dimensions, a known integer."""
    (value,) = _operands("multigammaln", a)
    size = int(np.asarray(d))
    steps = inp.arange(size, dtype=value.dtype) / 2
    constant = 0.25 * size * (size - 1) * math.log(math.pi)
    total = inp.sum(e.lgamma(inp.subtract(inp.expand_dims(value, -1), steps)), -1)
    return inp.add(total, constant)


def expit(x: ArrayLike) -> Value:
    """`1 / (1 + exp(-x))`."""
    return _unary("expit", e.logistic, x)


def logit(x: ArrayLike) -> Value:
    """The inverse of `expit`."""
    (value,) = _operands("logit", x)
    return e.log(e.div(value, inp.subtract(1, value)))


@custom.custom_jvp
def _xlogy(x: Value, y: Value) -> Value:
    is_zero = inp.equal(x, 0)
    return inp.where(is_zero, inp.zeros_like(x), inp.multiply(x, inp.log(inp.where(is_zero, 1, y))))


@_xlogy.defjvp
def _xlogy_slope(primals: tuple[Value, Value], tangents: tuple[Value, Value]) -> tuple[Value, Value]:
    (x, y), (dx, dy) = primals, tangents
    return _xlogy(x, y), inp.add(inp.multiply(dx, inp.log(y)), inp.multiply(dy, inp.divide(x, y)))


def xlogy(x: ArrayLike, y: ArrayLike) -> Value:
    """`x * log(y)`, zero where `x` is zero."""
    found: Value = _xlogy(*_operands("xlogy", x, y))
    return found


@custom.custom_jvp
def _xlog1py(x: Value, y: Value) -> Value:
    is_zero = inp.equal(x, 0)
    return inp.where(is_zero, inp.zeros_like(x), inp.multiply(x, inp.log1p(inp.where(is_zero, 0, y))))


@_xlog1py.defjvp
def _xlog1py_slope(primals: tuple[Value, Value], tangents: tuple[Value, Value]) -> tuple[Value, Value]:
    (x, y), (dx, dy) = primals, tangents
    slope = inp.add(inp.multiply(dx, inp.log1p(y)), inp.multiply(dy, inp.divide(x, inp.add(1, y))))
    return _xlog1py(x, y), slope


def xlog1py(x: ArrayLike, y: ArrayLike) -> Value:
    """`x * log1p(y)`, zero where `x` is zero."""
    found: Value = _xlog1py(*_operands("xlog1py", x, y))
    return found


@custom.custom_jvp
def _entr(x: Value) -> Value:
    return inp.where(inp.less(x, 0), -math.inf, inp.negative(xlogy(x, x)))


@_entr.defjvp
def _entr_slope(primals: tuple[Value], tangents: tuple[Value]) -> tuple[Value, Value]:
    (x,), (dx,) = primals, tangents
    return _entr(x), inp.negative(inp.multiply(dx, inp.add(inp.log(x), 1)))


def entr(x: ArrayLike) -> Value:
    """`-x * log(x)`, zero at zero and minus infinity below it."""
    found: Value = _entr(*_operands("entr", x))
    return found


def rel_entr(p: ArrayLike, q: ArrayLike) -> Value:
    """`p * log(p / q)`, zero where `p` is zero and `q` is not negative, infinite where they have no sense."""
    x, y = _operands("rel_entr", p, q)
    both = inp.logical_and(inp.greater(x, 0), inp.greater(y, 0))
    none = inp.logical_and(inp.equal(x, 0), inp.greater_equal(y, 0))
    safe_x, safe_y = inp.where(both, x, 1), inp.where(both, y, 1)
    found = inp.subtract(xlogy(safe_x, safe_x), xlogy(safe_x, safe_y))
    return convert(inp.where(both, found, inp.where(none, 0.0, math.inf)), x.dtype)


def kl_div(p: ArrayLike, q: ArrayLike) -> Value:
    """`rel_entr(p, q) - p + q`."""
    x, y = _operands("kl_div", p, q)
    return inp.add(inp.subtract(rel_entr(x, y), x), y)


def i0e(x: ArrayLike) -> Value:
    """Modified Bessel function of order 0, times `exp(-abs(x))`."""
    return _unary("i0e", e.bessel_i0e, x)


def i0(x: ArrayLike) -> Value:
    """Modified Bessel function of order 0."""
    (value,) = _operands("i0", x)
    return e.mul(e.exp(e.abs(value)), e.bessel_i0e(value))


def i1e(x: ArrayLike) -> Value:
    """Modified Bessel function of order 1, times `exp(-abs(x))`."""
    return _unary("i1e", e.bessel_i1e, x)


def i1(x: ArrayLike) -> Value:
    """Modified Bessel function of order 1."""
    (value,) = _operands("i1", x)
    return e.mul(e.exp(e.abs(value)), e.bessel_i1e(value))


def ndtr(x: ArrayLike) -> Value:
    """Distribution function of the standard normal distribution."""
    (value,) = _operands("ndtr", x)
    return e.mul(e.erfc(e.mul(value, -math.sqrt(0.5))), 0.5)


_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


@custom.custom_jvp
def _log_ndtr(x: Value) -> Value:
    # Far below, x^2 / 2 and a series in 1 / x^2; far above, the small other side; between them as it is.
    low, high = (-20.0, 8.0) if x.dtype == dtypes.float64 else (-10.0, 5.0)
    far = inp.minimum(x, low)
    square = e.mul(far, far)
    series, term = inp.ones_like(x), inp.ones_like(x)
    for k in range(1, 8, 2):
        term = e.neg(e.div(e.mul(term, float(k)), square))
        series = e.add(series, term)
    below = inp.subtract(e.sub(e.log(series), e.log(e.neg(far))), inp.add(e.mul(square, 0.5), _HALF_LOG_2PI))
    above = e.neg(ndtr(e.neg(inp.maximum(x, high))))
    middle = e.log(ndtr(inp.clip(x, low, high)))
    return inp.where(inp.greater(x, high), above, inp.where(inp.greater(x, low), middle, below))


@_log_ndtr.defjvp
def _log_ndtr_slope(primals: tuple[Value], tangents: tuple[Value]) -> tuple[Value, Value]:
    (x,), (dx,) = primals, tangents
    found = _log_ndtr(x)
    slope = inp.exp(inp.subtract(inp.subtract(inp.multiply(inp.square(x), -0.5), found), _HALF_LOG_2PI))
    return found, inp.multiply(dx, slope)


def log_ndtr(x: ArrayLike, series_order: int = 3) -> Value:
    """Logarithm of `ndtr`, exact far out too.

    Args:
        x: array.
        series_order: accepted for JAX's sake; without effect.
    """
    del series_order
    found: Value = _log_ndtr(*_operands("log_ndtr", x))
    return found


def softmax(x: ArrayLike, /, *, axis: Axis = None) -> Value:
    """`exp(x) / sum(exp(x))` over axes, all of them when None."""
    return sums.softmax(x, axis)


def log_softmax(x: ArrayLike, /, *, axis: Axis = None) -> Value:
    """Logarithm of `softmax`."""
    return sums.log_softmax(x, axis)
