"""Exponentials, logarithms, roots and trigonometry of each element, with NumPy's names. All of them are
inexact.

Inexact functions compute in the common floating dtype of their operands: integers become float32, or
float64 when they have 64 bits, and results are weak where every operand is.
"""

from __future__ import annotations

import math
from typing import Final

from infini.core import primitive, trace
from infini.core.value import Value
from infini.lax import elementwise as e
from infini.lax.families import bind_scalars
from infini.numpy._promotion import ArrayLike, convert, inexact_operands
from infini.transforms import custom

_LN2: Final = math.log(2.0)


def _bind(op: primitive.Primitive, *values: Value) -> Value:
    return trace.bind1(op, *values)


def exp(x: ArrayLike, /) -> Value:
    """Exponential; inexact."""
    return _bind(e.exp_p, *inexact_operands("exp", x))


def exp2(x: ArrayLike, /) -> Value:
    """Two to the power of each element; inexact."""
    return _bind(e.exp2_p, *inexact_operands("exp2", x))


def expm1(x: ArrayLike, /) -> Value:
    """`exp(x) - 1`, accurate near zero; inexact."""
    return _bind(e.expm1_p, *inexact_operands("expm1", x))


def log(x: ArrayLike, /) -> Value:
    """Natural logarithm; inexact."""
    return _bind(e.log_p, *inexact_operands("log", x))


def log2(x: ArrayLike, /) -> Value:
    """Logarithm to base 2; inexact."""
    (value,) = inexact_operands("log2", x)
    return bind_scalars(e.div_p, _bind(e.log_p, value), _LN2)


def log10(x: ArrayLike, /) -> Value:
    """Logarithm to base 10; inexact."""
    (value,) = inexact_operands("log10", x)
    return bind_scalars(e.mul_p, _bind(e.log_p, value), 1 / math.log(10.0))


def log1p(x: ArrayLike, /) -> Value:
    """`log(1 + x)`, accurate near zero; inexact."""
    return _bind(e.log1p_p, *inexact_operands("log1p", x))


def logaddexp(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """`log(exp(x1) + exp(x2))` without overflow, as `numpy.logaddexp`; inexact."""
    return _logaddexp(*inexact_operands("logaddexp", x1, x2))


@custom.custom_jvp
def _logaddexp(x: Value, y: Value) -> Value:
    largest, difference = _bind(e.max_p, x, y), _bind(e.sub_p, x, y)
    # The difference of two equal infinities is NaN; their sum is the result then.
    soft = _bind(
        e.add_p, largest, _bind(e.log1p_p, _bind(e.exp_p, _bind(e.neg_p, _bind(e.abs_p, difference))))
    )
    return _bind(e.select_n_p, _bind(e.ne_p, difference, difference), soft, _bind(e.add_p, x, y))


@_logaddexp.defjvp
def _logaddexp_slope(primals: tuple[Value, Value], tangents: tuple[Value, Value]) -> tuple[Value, Value]:
    # The shares of the sum are smooth, which a maximum and an absolute value are not.
    out = _logaddexp(*primals)
    shares = [_bind(e.exp_p, _bind(e.sub_p, _finite_above(x), _finite_above(out))) for x in primals]
    terms = [_bind(e.mul_p, g, share) for g, share in zip(tangents, shares, strict=True)]
    return out, _bind(e.add_p, *terms)


def _finite_above(x: Value) -> Value:
    return _bind(e.select_n_p, bind_scalars(e.eq_p, x, math.inf), x, convert(0, x.dtype))


def sqrt(x: ArrayLike, /) -> Value:
    """Square root; inexact."""
    return _bind(e.sqrt_p, *inexact_operands("sqrt", x))


def sin(x: ArrayLike, /) -> Value:
    """Sine, in radians; inexact."""
    return _bind(e.sin_p, *inexact_operands("sin", x))


def cos(x: ArrayLike, /) -> Value:
    """Cosine, in radians; inexact."""
    return _bind(e.cos_p, *inexact_operands("cos", x))


def tan(x: ArrayLike, /) -> Value:
    """Tangent, in radians; inexact."""
    return _bind(e.tan_p, *inexact_operands("tan", x))


def tanh(x: ArrayLike, /) -> Value:
    """Hyperbolic tangent; inexact."""
    return _bind(e.tanh_p, *inexact_operands("tanh", x))


def sinh(x: ArrayLike, /) -> Value:
    """Hyperbolic sine, accurate near zero; inexact."""
    return _bind(e.sinh_p, *inexact_operands("sinh", x))


def cosh(x: ArrayLike, /) -> Value:
    """Hyperbolic cosine; inexact."""
    return _bind(e.cosh_p, *inexact_operands("cosh", x))


def deg2rad(x: ArrayLike, /) -> Value:
    """Degrees as radians; inexact."""
    (value,) = inexact_operands("deg2rad", x)
    return bind_scalars(e.mul_p, value, math.pi / 180)


def rad2deg(x: ArrayLike, /) -> Value:
    """Radians as degrees; inexact."""
    (value,) = inexact_operands("rad2deg", x)
    return bind_scalars(e.mul_p, value, 180 / math.pi)


radians, degrees = deg2rad, rad2deg


def hypot(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """`sqrt(x1**2 + x2**2)` without overflow; inexact."""
    x, y = (_bind(e.abs_p, v) for v in inexact_operands("hypot", x1, x2))
    large, small = _bind(e.max_p, x, y), _bind(e.min_p, x, y)
    is_zero = bind_scalars(e.eq_p, large, 0)
    ratio = _bind(e.div_p, small, _bind(e.select_n_p, is_zero, large, convert(1, large.dtype)))
    return _bind(e.mul_p, large, _bind(e.sqrt_p, bind_scalars(e.add_p, _bind(e.mul_p, ratio, ratio), 1.0)))
