"""Transcendental functions of float32 as straight-line vector code; `math64` has those of float64.

Every function is exact for NaN and infinities, keeps subnormal results, and states its largest error in
units in the last place (ulp), measured against float64 by `tests/compiler/test_llvm_math.py` over the range
given. Coefficients of exp, log, sin and cos are those of Cephes (S. Moshier,
https://www.netlib.org/cephes), of tanh and erf the minimax rationals of Eigen
(https://eigen.tuxfamily.org); the code around them is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from infini.compiler.llvm import math64
from infini.compiler.llvm.builder import Function, Value
from infini.compiler.llvm.lanes import library, where_far

_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_TANH_OVER = (
    -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
    1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
_TANH_UNDER = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
_ERF_OVER = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_UNDER = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
    -1.42647390514189e-02,
)  # fmt: skip
_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)

_NEARLY_LINEAR: Final = 4e-4  # below, the cubic term of tanh and erf is less than half an ulp

LOG2_E: Final = 1.44269504088896341
LN2_HIGH: Final = 0.693359375  # its product with a small integer is exact
LN2_LOW: Final = -2.12194440e-4
ROUND_SHIFT: Final = 12582912.0  # 1.5 * 2**23: adding it rounds to an integer, which is left in the low bits


def _c(f: Function, x: Value, number: float) -> Value:
    return f.constant(number, x.type)


def _integers(f: Function, x: Value, number: int) -> Value:
    return f.constant(number, x.type.with_element(f"i{x.type.bits}"))


def polynomial(f: Function, x: Value, coefficients: Sequence[float]) -> Value:
    """Horner's scheme, highest coefficient first."""
    result = _c(f, x, coefficients[0])
    for coefficient in coefficients[1:]:
        result = f.fma(result, x, _c(f, x, coefficient))
    return result


def clamp(f: Function, x: Value, low: float, high: float) -> Value:
    """`x` limited to a range; NaN stays NaN."""
    x = f.select(f.compare("ogt", x, _c(f, x, high)), _c(f, x, high), x)
    return f.select(f.compare("olt", x, _c(f, x, low)), _c(f, x, low), x)


def _exp_parts(f: Function, x: Value) -> tuple[Value, Value, Value]:
    """Integer n, n as a float, and r with x = n ln 2 + r and |r| <= ln(2)/2."""
    shifted = f.fma(x, _c(f, x, LOG2_E), _c(f, x, ROUND_SHIFT))
    n = f.binary("fsub", shifted, _c(f, x, ROUND_SHIFT))
    r = f.fma(n, _c(f, x, -LN2_HIGH), x)
    r = f.fma(n, _c(f, x, -LN2_LOW), r)
    number = f.binary("sub", f.bitcast(shifted, "i32"), _integers(f, x, 0x4B400000))
    return number, n, r


def _power_of_two(f: Function, exponent: Value) -> Value:
    """2**exponent for exponents of normal numbers."""
    biased = f.binary("add", exponent, f.constant(127, exponent.type))
    return f.bitcast(f.binary("shl", biased, f.constant(23, exponent.type)), "float")


def _scaled(f: Function, x: Value, number: Value, n: Value) -> Value:
    """`x` times two to a whole number, which is given as an integer and as a float; rounded once."""
    if x.type.lanes == 16:  # vectors that only AVX-512 has
        symbol = "@llvm.x86.avx512.mask.scalef.ps.512"
        f.declare(f"declare {x.type} {symbol}({x.type}, {x.type}, {x.type}, i16, i32)")
        arguments = f"{x.type} {x}, {x.type} {n}, {x.type} {x}, i16 -1, i32 4"
        return f.pure(f"call {x.type} {symbol}({arguments})", x.type, x, n)
    # 2**number may be no normal number, so it is multiplied in two halves, the second of which rounds.
    half = f.binary("ashr", number, f.constant(1, number.type))
    rest = f.binary("sub", number, half)
    return f.binary("fmul", f.binary("fmul", x, _power_of_two(f, half)), _power_of_two(f, rest))


def exp_f32(f: Function, x: Value) -> Value:
    """Within 1.3 ulp on the whole line."""
    return _exp_of_limited(f, clamp(f, x, -104.0, 88.8))


def _exp_of_limited(f: Function, x: Value) -> Value:
    """`exp` between -104, where it is 0, and 88.8, where it is infinite."""
    number, n, r = _exp_parts(f, x)
    p = polynomial(f, r, _EXP)
    p = f.fma(p, f.binary("fmul", r, r), f.binary("fadd", r, _c(f, x, 1.0)))
    return _scaled(f, p, number, n)


def exp_of_nonpositive_f32(f: Function, x: Value) -> Value:
    """`exp` for x <= 0, as after subtracting a maximum: within 1.3 ulp above -87.3, 0 below."""
    low = f.compare("olt", x, _c(f, x, -87.33))
    limited = f.select(low, _c(f, x, -87.33), x)
    shifted = f.fma(limited, _c(f, x, LOG2_E), _c(f, x, ROUND_SHIFT))
    n = f.binary("fsub", shifted, _c(f, x, ROUND_SHIFT))
    r = f.fma(n, _c(f, x, -LN2_LOW), f.fma(n, _c(f, x, -LN2_HIGH), limited))
    p = polynomial(f, r, _EXP)
    p = f.fma(p, f.binary("fmul", r, r), f.binary("fadd", r, _c(f, x, 1.0)))
    exponent = f.binary("shl", f.bitcast(shifted, "i32"), _integers(f, x, 23))
    y = f.bitcast(f.binary("add", f.bitcast(p, "i32"), exponent), "float")
    return f.select(low, _c(f, x, 0.0), y)


def expm1_f32(f: Function, x: Value) -> Value:
    """Within 1.5 ulp on the whole line."""
    number, _, r = _exp_parts(f, clamp(f, x, -30.0, 88.8))
    p = f.fma(polynomial(f, r, _EXP), f.binary("fmul", r, r), r)
    # exp(x) - 1 = 2 * (2**(n-1) * expm1(r) + (2**(n-1) - 1/2)); halves keep n = 128 in range.
    scale = _power_of_two(f, f.binary("sub", number, f.constant(1, number.type)))
    halved = f.fma(p, scale, f.binary("fsub", scale, _c(f, x, 0.5)))
    result = f.binary("fadd", halved, halved)
    is_tiny = f.compare("olt", f.intrinsic("fabs", x), _c(f, x, 1e-7))
    return f.select(is_tiny, x, result)


def log_f32(f: Function, x: Value) -> Value:
    """Within 0.9 ulp on the whole line, subnormal numbers included."""
    is_small = f.compare("olt", x, _c(f, x, 2.0**-126))
    scaled = f.select(is_small, f.binary("fmul", x, _c(f, x, 2.0**23)), x)
    bits = f.bitcast(scaled, "i32")
    # The mantissa is brought into [sqrt(1/2), sqrt(2)).
    exponent = f.binary("ashr", f.binary("sub", bits, _integers(f, x, 0x3F3504F3)), _integers(f, x, 23))
    mantissa = f.bitcast(f.binary("sub", bits, f.binary("shl", exponent, _integers(f, x, 23))), "float")
    exponent = f.select(is_small, f.binary("sub", exponent, _integers(f, x, 23)), exponent)
    n = f.convert("sitofp", exponent, x.type)
    m = f.binary("fsub", mantissa, _c(f, x, 1.0))
    z = f.binary("fmul", m, m)
    y = f.binary("fmul", f.binary("fmul", m, z), polynomial(f, m, _LOG))
    y = f.fma(n, _c(f, x, LN2_LOW), y)
    y = f.fma(z, _c(f, x, -0.5), y)
    y = f.fma(n, _c(f, x, LN2_HIGH), f.binary("fadd", m, y))
    y = f.select(f.compare("oeq", x, _c(f, x, 0.0)), _c(f, x, -math.inf), y)
    y = f.select(f.compare("oeq", x, _c(f, x, math.inf)), x, y)
    return f.select(f.compare("oge", x, _c(f, x, 0.0)), y, _c(f, x, math.nan))


def log1p_f32(f: Function, x: Value) -> Value:
    """Within 1.6 ulp: log(u) with the rounding error of u = 1 + x added back."""
    u = f.binary("fadd", x, _c(f, x, 1.0))
    lost = f.binary("fsub", x, f.binary("fsub", u, _c(f, x, 1.0)))
    y = f.binary("fadd", log_f32(f, u), f.binary("fdiv", lost, u))
    at_end = f.compare("oeq", f.intrinsic("fabs", u), _c(f, x, math.inf))
    at_end = f.binary("or", at_end, f.compare("oeq", u, _c(f, x, 0.0)))
    return f.select(f.compare("oeq", x, _c(f, x, 0.0)), x, f.select(at_end, log_f32(f, u), y))


def logistic_f32(f: Function, x: Value) -> Value:
    """1 / (1 + exp(-x)), or exp(x) / (1 + exp(x)) below zero, which does not overflow: within 2.6 ulp on the
    whole line.
    """
    one, size = _c(f, x, 1.0), f.intrinsic("fabs", x)
    limited = f.pure(f"fneg {x.type} {size}", x.type, size)
    low = _c(f, x, -104.0)
    power = _exp_of_limited(f, f.select(f.compare("olt", limited, low), low, limited))
    is_below = f.compare("slt", f.bitcast(x, "i32"), _integers(f, x, 0))
    return f.binary("fdiv", f.select(is_below, power, one), f.binary("fadd", power, one))


def tanh_f32(f: Function, x: Value) -> Value:
    """Within 4 ulp on the whole line."""
    t = clamp(f, x, -7.90531110763549805, 7.90531110763549805)
    square = f.binary("fmul", t, t)
    over = f.binary("fmul", t, polynomial(f, square, _TANH_OVER))
    y = f.binary("fdiv", over, polynomial(f, square, _TANH_UNDER))
    size = f.intrinsic("fabs", x)
    y = f.select(f.compare("olt", size, _c(f, x, _NEARLY_LINEAR)), x, y)
    return f.select(f.compare("ogt", size, _c(f, x, 8.7)), f.intrinsic("copysign", _c(f, x, 1.0), x), y)


def erf_f32(f: Function, x: Value) -> Value:
    """Within 5 ulp on the whole line."""
    t = clamp(f, x, -3.832506856900711, 3.832506856900711)
    square = f.binary("fmul", t, t)
    over = f.binary("fmul", t, polynomial(f, square, _ERF_OVER))
    y = f.binary("fdiv", over, polynomial(f, square, _ERF_UNDER))
    size = f.intrinsic("fabs", x)
    linear = f.binary("fmul", x, _c(f, x, 2 / math.sqrt(math.pi)))
    y = f.select(f.compare("olt", size, _c(f, x, _NEARLY_LINEAR)), linear, y)
    return f.select(f.compare("ogt", size, _c(f, x, 3.8325)), f.intrinsic("copysign", _c(f, x, 1.0), x), y)


_FAR: Final = 2.0**28  # beyond, the reduction by pi/2 in float64 loses too much


def _circle_f32(f: Function, x: Value) -> tuple[Value, Value, Value]:
    """Quadrant of x, and sine and cosine of the angle from its middle, for |x| < 2**28."""
    # Reduced by pi/2 in float64, with pi/2 in two parts: the error is far below an ulp.
    wide = f.convert("fpext", x, x.type.with_element("double"))
    is_near = f.compare("olt", f.intrinsic("fabs", wide), f.constant(_FAR, wide.type))
    wide = f.select(is_near, wide, f.constant(0.0, wide.type))
    n = f.intrinsic("rint", f.binary("fmul", wide, f.constant(2 / math.pi, wide.type)))
    r = f.fma(n, f.constant(-math.pi / 2, wide.type), wide)
    r = f.convert("fptrunc", f.fma(n, f.constant(-6.123233995736766e-17, wide.type), r), x.type)
    quadrant = f.convert("fptosi", n, x.type.with_element("i32"))
    z = f.binary("fmul", r, r)
    sine = f.fma(f.binary("fmul", polynomial(f, z, _SIN), z), r, r)
    near_one = f.fma(z, _c(f, x, -0.5), _c(f, x, 1.0))
    cosine = f.fma(f.binary("fmul", polynomial(f, z, _COS), z), z, near_one)
    return quadrant, sine, cosine


def _sin_or_cos_f32(f: Function, x: Value, quarter: int) -> Value:
    quadrant, sine, cosine = _circle_f32(f, x)
    quadrant = f.binary("add", quadrant, _integers(f, x, quarter))
    is_odd = f.compare("ne", f.binary("and", quadrant, _integers(f, x, 1)), _integers(f, x, 0))
    y = f.select(is_odd, cosine, sine)
    sign = f.binary("shl", f.binary("and", quadrant, _integers(f, x, 2)), _integers(f, x, 30))
    y = f.bitcast(f.binary("xor", f.bitcast(y, "i32"), sign), "float")
    if not quarter:  # the reduction loses the sign of zero
        y = f.select(f.compare("olt", f.intrinsic("fabs", x), _c(f, x, 1e-4)), x, y)
    return where_far(f, x, y, "cos" if quarter else "sin", _FAR)


def sin_f32(f: Function, x: Value) -> Value:
    """Within 1.6 ulp on the whole line."""
    return _sin_or_cos_f32(f, x, 0)


def cos_f32(f: Function, x: Value) -> Value:
    """Within 1.6 ulp on the whole line."""
    return _sin_or_cos_f32(f, x, 1)


def tan_f32(f: Function, x: Value) -> Value:
    """Within 4 ulp on the whole line."""
    quadrant, sine, cosine = _circle_f32(f, x)
    is_odd = f.compare("ne", f.binary("and", quadrant, _integers(f, x, 1)), _integers(f, x, 0))
    negative = f.pure(f"fneg {x.type} {cosine}", x.type, cosine)
    y = f.binary("fdiv", f.select(is_odd, negative, sine), f.select(is_odd, sine, cosine))
    y = f.select(f.compare("olt", f.intrinsic("fabs", x), _c(f, x, 1e-4)), x, y)
    return where_far(f, x, y, "tan", _FAR)


def exp2_f32(f: Function, x: Value) -> Value:
    """Within 1.5 ulp on the whole line."""
    limited = clamp(f, x, -160.0, 140.0)
    shifted = f.binary("fadd", limited, _c(f, x, ROUND_SHIFT))
    number = f.binary("sub", f.bitcast(shifted, "i32"), _integers(f, x, 0x4B400000))
    n = f.binary("fsub", shifted, _c(f, x, ROUND_SHIFT))
    r = f.binary("fmul", f.binary("fsub", limited, n), _c(f, x, math.log(2)))
    p = f.fma(polynomial(f, r, _EXP), f.binary("fmul", r, r), f.binary("fadd", r, _c(f, x, 1.0)))
    return _scaled(f, p, number, n)


def pow_f32(f: Function, x: Value, y: Value) -> Value:
    """exp(y log |x|) in float64, within 0.6 ulp, with the signs and special values of C's `pow`."""
    double = x.type.with_element("double")
    size = f.intrinsic("fabs", x)
    logarithm = math64.log_f64(f, f.convert("fpext", size, double))
    product = f.binary("fmul", f.convert("fpext", y, double), logarithm)
    power = f.convert("fptrunc", math64.exp_f64(f, product), x.type)

    one, zero, infinity = _c(f, x, 1.0), _c(f, x, 0.0), _c(f, x, math.inf)
    is_endless = f.compare("oeq", f.intrinsic("fabs", y), infinity)
    power = f.select(f.binary("and", f.compare("oeq", size, one), is_endless), one, power)
    is_whole = f.compare("oeq", f.intrinsic("floor", y), y)
    half = f.binary("fmul", y, _c(f, x, 0.5))
    is_odd = f.binary("and", is_whole, f.compare("une", f.intrinsic("floor", half), half))
    # A negative number has whole powers only; zero and infinity have others too.
    is_below = f.compare("slt", f.bitcast(x, "i32"), _integers(f, x, 0))
    is_inside = f.binary("and", f.compare("olt", x, zero), f.compare("olt", size, infinity))
    no_power = f.binary("and", is_inside, f.compare("une", f.intrinsic("floor", y), y))
    negated = f.pure(f"fneg {x.type} {power}", x.type, power)
    power = f.select(f.binary("and", is_below, is_odd), negated, power)
    power = f.select(no_power, _c(f, x, math.nan), power)
    is_one = f.binary("or", f.compare("oeq", y, zero), f.compare("oeq", x, one))
    return f.select(is_one, one, power)


FLOAT32: Final[dict[str, Callable[..., Value]]] = {
    "exp": exp_f32,
    "expm1": expm1_f32,
    "log": log_f32,
    "log1p": log1p_f32,
    "logistic": logistic_f32,
    "tanh": tanh_f32,
    "erf": erf_f32,
    "sin": sin_f32,
    "cos": cos_f32,
    "tan": tan_f32,
    "exp2": exp2_f32,
    "pow": pow_f32,
    "rem": library("fmod"),
}
