"""Transcendental functions of float64 as straight-line vector code.

As in `math`, every function is exact for NaN and infinities, keeps subnormal results, and states its largest
error in units in the last place, measured against 60 digits by `tests/compiler/test_llvm_math.py`.
Polynomials are those of `lax.elementwise.coefficients`; reductions follow W. Cody and W. Waite, "Software
Manual for the Elementary Functions" (1980), with fused multiply-add.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from infini.compiler.llvm.builder import Function, Value
from infini.compiler.llvm.lanes import library, where_far
from infini.lax.elementwise import coefficients

LN2_HIGH: Final = 0.6931471803691238  # the first 33 bits of ln 2
LN2_LOW: Final = 1.9082149292705877e-10
ROUND_SHIFT: Final = 6755399441055744.0  # 1.5 * 2**52: adding it rounds to an integer, left in the low bits
_SHIFT_BITS: Final = 0x4338000000000000
_HALF_PI: Final = (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591833e-33)  # pi/2 in three parts
_FAR: Final = 2.0**27


def _c(f: Function, x: Value, number: float) -> Value:
    return f.constant(number, x.type)


def _integers(f: Function, x: Value, number: int) -> Value:
    return f.constant(number, x.type.with_element("i64"))


def _neg(f: Function, x: Value) -> Value:
    return f.pure(f"fneg {x.type} {x}", x.type, x)


def _polynomial(f: Function, x: Value, coefficients: tuple[float, ...]) -> Value:
    result = _c(f, x, coefficients[0])
    for coefficient in coefficients[1:]:
        result = f.fma(result, x, _c(f, x, coefficient))
    return result


def _clamp(f: Function, x: Value, low: float, high: float) -> Value:
    x = f.select(f.compare("ogt", x, _c(f, x, high)), _c(f, x, high), x)
    return f.select(f.compare("olt", x, _c(f, x, low)), _c(f, x, low), x)


def _exp_parts(f: Function, x: Value) -> tuple[Value, Value]:
    """Integer n and r with x = n ln 2 + r and |r| <= ln(2)/2."""
    shifted = f.fma(x, _c(f, x, 1 / math.log(2)), _c(f, x, ROUND_SHIFT))
    n = f.binary("fsub", shifted, _c(f, x, ROUND_SHIFT))
    r = f.fma(n, _c(f, x, -LN2_LOW), f.fma(n, _c(f, x, -LN2_HIGH), x))
    return f.binary("sub", f.bitcast(shifted, "i64"), _integers(f, x, _SHIFT_BITS)), r


def _power_of_two(f: Function, exponent: Value) -> Value:
    biased = f.binary("add", exponent, f.constant(1023, exponent.type))
    return f.bitcast(f.binary("shl", biased, f.constant(52, exponent.type)), "double")


def _scaled(f: Function, x: Value, exponent: Value) -> Value:
    """x 2**exponent, in two halves, the second of which rounds."""
    half = f.binary("ashr", exponent, f.constant(1, exponent.type))
    rest = f.binary("sub", exponent, half)
    return f.binary("fmul", f.binary("fmul", x, _power_of_two(f, half)), _power_of_two(f, rest))


def exp_f64(f: Function, x: Value) -> Value:
    """Within 1 ulp on the whole line."""
    return _exp_of_limited(f, _clamp(f, x, -746.0, 710.0))


def _exp_of_limited(f: Function, x: Value) -> Value:
    """`exp` between -746, where it is 0, and 710, where it is infinite."""
    number, r = _exp_parts(f, x)
    p = f.fma(_polynomial(f, r, coefficients.EXP_64), f.binary("fmul", r, r), r)
    return _scaled(f, f.binary("fadd", p, _c(f, x, 1.0)), number)


def exp2_f64(f: Function, x: Value) -> Value:
    """Within 1 ulp on the whole line."""
    limited = _clamp(f, x, -1100.0, 1030.0)
    shifted = f.binary("fadd", limited, _c(f, x, ROUND_SHIFT))
    number = f.binary("sub", f.bitcast(shifted, "i64"), _integers(f, x, _SHIFT_BITS))
    r = f.binary("fsub", limited, f.binary("fsub", shifted, _c(f, x, ROUND_SHIFT)))
    r = f.binary("fmul", r, _c(f, x, math.log(2)))
    p = f.fma(_polynomial(f, r, coefficients.EXP_64), f.binary("fmul", r, r), r)
    return _scaled(f, f.binary("fadd", p, _c(f, x, 1.0)), number)


def expm1_f64(f: Function, x: Value) -> Value:
    """Within 2 ulp on the whole line."""
    number, r = _exp_parts(f, _clamp(f, x, -50.0, 710.0))
    p = f.fma(_polynomial(f, r, coefficients.EXP_64), f.binary("fmul", r, r), r)
    # exp(x) - 1 = 2 * (2**(n-1) * expm1(r) + (2**(n-1) - 1/2)); halves keep n = 1024 in range.
    scale = _power_of_two(f, f.binary("sub", number, f.constant(1, number.type)))
    halved = f.fma(p, scale, f.binary("fsub", scale, _c(f, x, 0.5)))
    is_tiny = f.compare("olt", f.intrinsic("fabs", x), _c(f, x, 1e-17))
    return f.select(is_tiny, x, f.binary("fadd", halved, halved))


def log_f64(f: Function, x: Value) -> Value:
    """Within 1 ulp on the whole line, subnormal numbers included."""
    is_small = f.compare("olt", x, _c(f, x, 2.0**-1022))
    bits = f.bitcast(f.select(is_small, f.binary("fmul", x, _c(f, x, 2.0**54)), x), "i64")
    # The mantissa is brought into [sqrt(1/2), sqrt(2)).
    offset = f.binary("sub", bits, _integers(f, x, 0x3FE6A09E667F3BCD))
    exponent = f.binary("ashr", offset, _integers(f, x, 52))
    mantissa = f.bitcast(f.binary("sub", bits, f.binary("shl", exponent, _integers(f, x, 52))), "double")
    exponent = f.select(is_small, f.binary("sub", exponent, _integers(f, x, 54)), exponent)
    n = f.convert("sitofp", exponent, x.type)
    m = f.binary("fsub", mantissa, _c(f, x, 1.0))
    s = f.binary("fdiv", m, f.binary("fadd", m, _c(f, x, 2.0)))
    z = f.binary("fmul", s, s)
    rest = f.binary("fmul", z, _polynomial(f, z, coefficients.LOG_64))
    # log(1 + m) = m - m^2/2 + s (m^2/2 + rest), whose small terms are added first.
    half_square = f.binary("fmul", f.binary("fmul", m, m), _c(f, x, 0.5))
    low = f.fma(s, f.binary("fadd", half_square, rest), f.binary("fmul", n, _c(f, x, LN2_LOW)))
    y = f.binary("fsub", m, f.binary("fsub", half_square, low))
    y = f.fma(n, _c(f, x, LN2_HIGH), y)
    y = f.select(f.compare("oeq", x, _c(f, x, 0.0)), _c(f, x, -math.inf), y)
    y = f.select(f.compare("oeq", x, _c(f, x, math.inf)), x, y)
    return f.select(f.compare("oge", x, _c(f, x, 0.0)), y, _c(f, x, math.nan))


def log1p_f64(f: Function, x: Value) -> Value:
    """Within 2 ulp: log(u) with the rounding error of u = 1 + x added back."""
    u = f.binary("fadd", x, _c(f, x, 1.0))
    is_large = f.compare("ogt", x, _c(f, x, 1.0))
    larger, smaller = f.select(is_large, x, _c(f, x, 1.0)), f.select(is_large, _c(f, x, 1.0), x)
    lost = f.binary("fsub", smaller, f.binary("fsub", u, larger))
    logarithm = log_f64(f, u)
    y = f.binary("fadd", logarithm, f.binary("fdiv", lost, u))
    at_end = f.compare("oeq", f.intrinsic("fabs", u), _c(f, x, math.inf))
    at_end = f.binary("or", at_end, f.compare("oeq", u, _c(f, x, 0.0)))
    is_tiny = f.compare("olt", f.intrinsic("fabs", x), _c(f, x, 1e-17))
    return f.select(is_tiny, x, f.select(at_end, logarithm, y))


def logistic_f64(f: Function, x: Value) -> Value:
    """1 / (1 + exp(-x)), or exp(x) / (1 + exp(x)) below zero, which does not overflow: within 2.5 ulp on the
    whole line.
    """
    one, limited = _c(f, x, 1.0), _neg(f, f.intrinsic("fabs", x))
    low = _c(f, x, -746.0)
    power = _exp_of_limited(f, f.select(f.compare("olt", limited, low), low, limited))
    is_below = f.compare("slt", f.bitcast(x, "i64"), _integers(f, x, 0))
    return f.binary("fdiv", f.select(is_below, power, one), f.binary("fadd", power, one))


# --- circular -------------------------------------------------------------------------------


def _circle(f: Function, x: Value) -> tuple[Value, Value, Value]:
    """Quadrant of x, and sine and cosine of the angle from its middle, for |x| < 2**27."""
    is_near = f.compare("olt", f.intrinsic("fabs", x), _c(f, x, _FAR))
    near = f.select(is_near, x, _c(f, x, 0.0))
    shifted = f.fma(near, _c(f, x, 2 / math.pi), _c(f, x, ROUND_SHIFT))
    n = f.binary("fsub", shifted, _c(f, x, ROUND_SHIFT))
    # The first difference is exact: both are multiples of 2**-52, and it is below 1.
    first = f.fma(n, _c(f, x, -_HALF_PI[0]), near)
    second = f.fma(n, _c(f, x, -_HALF_PI[1]), first)
    low = f.fma(n, _c(f, x, -_HALF_PI[1]), f.binary("fsub", first, second))
    low = f.fma(n, _c(f, x, -_HALF_PI[2]), low)
    z = f.binary("fmul", second, second)
    cubic = f.binary("fmul", f.binary("fmul", z, second), _polynomial(f, z, coefficients.SIN_64))
    cubic = f.fma(f.binary("fmul", z, _c(f, x, -0.5)), low, f.binary("fadd", cubic, low))
    sine = f.binary("fadd", second, cubic)
    half = f.binary("fmul", z, _c(f, x, 0.5))
    top = f.binary("fsub", _c(f, x, 1.0), half)
    lost = f.binary("fsub", f.binary("fsub", _c(f, x, 1.0), top), half)
    quartic = f.binary("fmul", f.binary("fmul", z, z), _polynomial(f, z, coefficients.COS_64))
    quartic = f.fma(_neg(f, second), low, quartic)
    cosine = f.binary("fadd", top, f.binary("fadd", lost, quartic))
    quadrant = f.binary("and", f.bitcast(shifted, "i64"), _integers(f, x, 3))
    return quadrant, sine, cosine


def _sin_or_cos(f: Function, x: Value, quarter: int) -> Value:
    quadrant, sine, cosine = _circle(f, x)
    quadrant = f.binary("add", quadrant, _integers(f, x, quarter))
    is_odd = f.compare("ne", f.binary("and", quadrant, _integers(f, x, 1)), _integers(f, x, 0))
    y = f.select(is_odd, cosine, sine)
    sign = f.binary("shl", f.binary("and", quadrant, _integers(f, x, 2)), _integers(f, x, 62))
    y = f.bitcast(f.binary("xor", f.bitcast(y, "i64"), sign), "double")
    if not quarter:  # the reduction loses the sign of zero
        y = f.select(f.compare("olt", f.intrinsic("fabs", x), _c(f, x, 1e-9)), x, y)
    return where_far(f, x, y, "cos" if quarter else "sin", _FAR)


def sin_f64(f: Function, x: Value) -> Value:
    """Within 1 ulp on the whole line."""
    return _sin_or_cos(f, x, 0)


def cos_f64(f: Function, x: Value) -> Value:
    """Within 1 ulp on the whole line."""
    return _sin_or_cos(f, x, 1)


def tan_f64(f: Function, x: Value) -> Value:
    """Within 3 ulp on the whole line."""
    quadrant, sine, cosine = _circle(f, x)
    is_odd = f.compare("ne", f.binary("and", quadrant, _integers(f, x, 1)), _integers(f, x, 0))
    y = f.binary("fdiv", f.select(is_odd, _neg(f, cosine), sine), f.select(is_odd, sine, cosine))
    y = f.select(f.compare("olt", f.intrinsic("fabs", x), _c(f, x, 1e-9)), x, y)
    return where_far(f, x, y, "tan", _FAR)


FLOAT64: Final[dict[str, Callable[..., Value]]] = {
    "exp": exp_f64,
    "exp2": exp2_f64,
    "expm1": expm1_f64,
    "log": log_f64,
    "log1p": log1p_f64,
    "logistic": logistic_f64,
    "sin": sin_f64,
    "cos": cos_f64,
    "tan": tan_f64,
    "pow": library("pow"),
    "rem": library("fmod"),
}
