"""Exponentials, logarithms, roots and trigonometry of each element, with NumPy's names. All of them are
inexact.

Inexact functions compute in the common floating dtype of their operands: integers become float32, or
float64 when they have 64 bits, and results are weak where every operand is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Final

from infini.core import dtypes, errors, primitive, trace
from infini.core.value import Value
from infini.lax import elementwise as e
from infini.lax.families import bind_scalars, broadcast_to
from infini.numpy._promotion import ArrayLike, convert, inexact_operands, with_weak
from infini.numpy._repeated import repeated
from infini.transforms import custom

_LN2: Final = math.log(2.0)


def _bind(op: primitive.Primitive, *values: Value) -> Value:
    return trace.bind1(op, *values)


@repeated()
def exp(x: ArrayLike, /) -> Value:
    """Exponential; inexact."""
    return _bind(e.exp_p, *inexact_operands("exp", x))


@repeated()
def exp2(x: ArrayLike, /) -> Value:
    """Two to the power of each element; inexact."""
    return _bind(e.exp2_p, *inexact_operands("exp2", x))


@repeated()
def expm1(x: ArrayLike, /) -> Value:
    """`exp(x) - 1`, accurate near zero; inexact."""
    return _bind(e.expm1_p, *inexact_operands("expm1", x))


@repeated()
def log(x: ArrayLike, /) -> Value:
    """Natural logarithm; inexact."""
    return _bind(e.log_p, *inexact_operands("log", x))


@repeated()
def log2(x: ArrayLike, /) -> Value:
    """Logarithm to base 2; inexact."""
    (value,) = inexact_operands("log2", x)
    return _by_part(lambda part: bind_scalars(e.div_p, part, _LN2), with_weak(_bind(e.log_p, value), False))


@repeated()
def log10(x: ArrayLike, /) -> Value:
    """Logarithm to base 10; inexact."""
    (value,) = inexact_operands("log10", x)
    return _by_part(
        lambda part: bind_scalars(e.mul_p, part, 1 / math.log(10.0)), with_weak(_bind(e.log_p, value), False)
    )


def _by_part(function: Callable[[Value], Value], x: Value) -> Value:
    # A complex product with a real number would make NaN of an infinite part and a zero.
    if x.dtype not in dtypes.COMPLEX:
        return function(x)
    parts = (function(_bind(part_p, x)) for part_p in (e.real_p, e.imag_p))
    return _bind(e.complex_p, *parts)


@repeated()
def log1p(x: ArrayLike, /) -> Value:
    """`log(1 + x)`, accurate near zero; inexact."""
    return _bind(e.log1p_p, *inexact_operands("log1p", x))


@repeated()
def logaddexp(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """`log(exp(x1) + exp(x2))` without overflow, as `numpy.logaddexp`; inexact."""
    x, y = inexact_operands("logaddexp", x1, x2)
    return _complex_logaddexp(x, y) if x.dtype in dtypes.COMPLEX else _logaddexp(x, y)


def _complex_logaddexp(x: Value, y: Value) -> Value:
    is_larger = _bind(e.ge_p, _bind(e.real_p, x), _bind(e.real_p, y))
    large, small = _bind(e.select_n_p, is_larger, y, x), _bind(e.select_n_p, is_larger, x, y)
    soft = _bind(e.add_p, large, _bind(e.log1p_p, _bind(e.exp_p, _bind(e.sub_p, small, large))))
    # The imaginary part is an angle, between -pi and pi.
    turns = bind_scalars(e.div_p, bind_scalars(e.add_p, _bind(e.imag_p, soft), math.pi), 2 * math.pi)
    excess = bind_scalars(e.mul_p, _bind(e.floor_p, turns), 2 * math.pi)
    return _bind(e.complex_p, _bind(e.real_p, soft), _bind(e.sub_p, _bind(e.imag_p, soft), excess))


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


@repeated()
def sqrt(x: ArrayLike, /) -> Value:
    """Square root; inexact."""
    return _bind(e.sqrt_p, *inexact_operands("sqrt", x))


@repeated()
def sin(x: ArrayLike, /) -> Value:
    """Sine, in radians; inexact."""
    return _bind(e.sin_p, *inexact_operands("sin", x))


@repeated()
def cos(x: ArrayLike, /) -> Value:
    """Cosine, in radians; inexact."""
    return _bind(e.cos_p, *inexact_operands("cos", x))


@repeated()
def tan(x: ArrayLike, /) -> Value:
    """Tangent, in radians; inexact."""
    return _bind(e.tan_p, *inexact_operands("tan", x))


@repeated()
def tanh(x: ArrayLike, /) -> Value:
    """Hyperbolic tangent; inexact."""
    return _bind(e.tanh_p, *inexact_operands("tanh", x))


@repeated()
def sinh(x: ArrayLike, /) -> Value:
    """Hyperbolic sine, accurate near zero; inexact."""
    return _bind(e.sinh_p, *inexact_operands("sinh", x))


@repeated()
def cosh(x: ArrayLike, /) -> Value:
    """Hyperbolic cosine; inexact."""
    return _bind(e.cosh_p, *inexact_operands("cosh", x))


@repeated()
def deg2rad(x: ArrayLike, /) -> Value:
    """Degrees as radians; inexact."""
    (value,) = inexact_operands("deg2rad", x)
    return bind_scalars(e.mul_p, value, math.pi / 180)


@repeated()
def rad2deg(x: ArrayLike, /) -> Value:
    """Radians as degrees; inexact."""
    (value,) = inexact_operands("rad2deg", x)
    return bind_scalars(e.mul_p, value, 180 / math.pi)


radians, degrees = deg2rad, rad2deg


@repeated()
def hypot(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """`sqrt(x1**2 + x2**2)` without overflow; inexact.

    Raises:
        TypeMismatchError: an operand is complex.
    """
    operands = inexact_operands("hypot", x1, x2)
    if operands[0].dtype in dtypes.COMPLEX:
        raise errors.TypeMismatchError(
            "hypot takes real numbers", got=str(operands[0].type), fix="pass the absolute values"
        )
    x, y = (_bind(e.abs_p, v) for v in operands)
    large, small = _bind(e.max_p, x, y), _bind(e.min_p, x, y)
    is_zero = bind_scalars(e.eq_p, large, 0)
    ratio = _bind(e.div_p, small, _bind(e.select_n_p, is_zero, large, convert(1, large.dtype, large.weak)))
    return _bind(e.mul_p, large, _bind(e.sqrt_p, bind_scalars(e.add_p, _bind(e.mul_p, ratio, ratio), 1.0)))


@repeated()
def logaddexp2(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """`log2(2**x1 + 2**x2)` without overflow, as `numpy.logaddexp2`; inexact."""
    x, y = (bind_scalars(e.mul_p, v, _LN2) for v in inexact_operands("logaddexp2", x1, x2))
    if x.dtype in dtypes.COMPLEX:
        return _by_part(lambda part: bind_scalars(e.div_p, part, _LN2), _complex_logaddexp(x, y))
    return bind_scalars(e.div_p, _logaddexp(x, y), _LN2)


@repeated()
def cbrt(x: ArrayLike, /) -> Value:
    """Cube root, also of negative numbers; inexact."""
    return _bind(e.cbrt_p, *inexact_operands("cbrt", x))


@repeated()
def asin(x: ArrayLike, /) -> Value:
    """Angle whose sine is each element, between -pi/2 and pi/2; inexact."""
    return _bind(e.asin_p, *inexact_operands("asin", x))


@repeated()
def acos(x: ArrayLike, /) -> Value:
    """Angle whose cosine is each element, between 0 and pi; inexact."""
    return _bind(e.acos_p, *inexact_operands("acos", x))


@repeated()
def atan(x: ArrayLike, /) -> Value:
    """Angle whose tangent is each element, between -pi/2 and pi/2; inexact."""
    return _bind(e.atan_p, *inexact_operands("atan", x))


@repeated()
def atan2(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Angle of the point with height `x1` and width `x2`, between -pi and pi, as `numpy.arctan2`; inexact."""
    return _bind(e.atan2_p, *inexact_operands("atan2", x1, x2))


@repeated()
def asinh(x: ArrayLike, /) -> Value:
    """Inverse of the hyperbolic sine; inexact."""
    return _bind(e.asinh_p, *inexact_operands("asinh", x))


@repeated()
def acosh(x: ArrayLike, /) -> Value:
    """Inverse of the hyperbolic cosine, at least 0; inexact."""
    return _bind(e.acosh_p, *inexact_operands("acosh", x))


@repeated()
def atanh(x: ArrayLike, /) -> Value:
    """Inverse of the hyperbolic tangent; inexact."""
    return _bind(e.atanh_p, *inexact_operands("atanh", x))


arcsin, arccos, arctan, arctan2 = asin, acos, atan, atan2
arcsinh, arccosh, arctanh = asinh, acosh, atanh


@repeated()
def sinc(x: ArrayLike, /) -> Value:
    """`sin(pi x) / (pi x)`, 1 at zero, as `numpy.sinc`; inexact. All its derivatives at zero are exact."""
    (value,) = inexact_operands("sinc", x)
    angle = bind_scalars(e.mul_p, value, math.pi)
    is_zero = bind_scalars(e.eq_p, angle, 0)
    safe = _bind(e.select_n_p, is_zero, angle, convert(1, angle.dtype, angle.weak))
    return _bind(e.select_n_p, is_zero, _bind(e.div_p, _bind(e.sin_p, safe), safe), _sinc_at_zero(0)(angle))


# At most 64 functions, the least recently used out first: one for each order of derivative.
@functools.lru_cache(maxsize=64)
def _sinc_at_zero(order: int) -> Callable[[Value], Value]:
    """A function that is the `order`-th derivative of sin(x) / x at zero wherever it is called, and whose
    derivative is the next one."""
    # sin(x) / x is the sum of (-1)^n x^2n / (2n + 1)!.
    number = (0.0, 1.0, 0.0, -1.0)[(order + 1) % 4] / (order + 1)

    def constant(x: Value) -> Value:
        return broadcast_to(convert(number, x.dtype, x.weak), x.shape)

    result = custom.custom_jvp(constant)

    @result.defjvp
    def slope(primals: tuple[Value], tangents: tuple[Value]) -> tuple[Value, Value]:
        return result(*primals), _bind(e.mul_p, tangents[0], _sinc_at_zero(order + 1)(*primals))

    return result


def i0(x: ArrayLike) -> Value:
    """Modified Bessel function of the first kind and order 0, as `numpy.i0`; inexact.

    Raises:
        TypeMismatchError: `x` is complex.
    """
    (value,) = inexact_operands("i0", x)
    if value.dtype in dtypes.COMPLEX:
        raise errors.TypeMismatchError("i0 takes real numbers", got=str(value.type))
    return _i0(value)


@custom.custom_jvp
def _i0(x: Value) -> Value:
    return _bind(e.mul_p, _bind(e.exp_p, _bind(e.abs_p, x)), _bind(e.bessel_i0e_p, x))


@_i0.defjvp
def _i0_slope(primals: tuple[Value], tangents: tuple[Value]) -> tuple[Value, Value]:
    # The absolute value and its slope cancel here, so that all orders are smooth at zero.
    (x,) = primals
    slope = _bind(e.mul_p, _bind(e.exp_p, _bind(e.abs_p, x)), _bind(e.bessel_i1e_p, x))
    return _i0(x), _bind(e.mul_p, tangents[0], slope)
