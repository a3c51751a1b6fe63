"""Functions as formulas of simpler ones, for float32 and float64; errors are measured in docs/accuracy.md.

Each is exact for NaN, infinities and zeros of both signs, and right for subnormal numbers. What a formula
takes for
granted: arithmetic, comparison, sqrt, floor, exp, log, log1p, expm1, sin, cos and, in float64, nothing else.
"""

from __future__ import annotations

import math

from infini.core import dtypes
from infini.lax.elementwise import coefficients as c
from infini.lax.elementwise.number import (
    Number,
    chebyshev,
    chosen,
    exact_product,
    exp,
    floor,
    fused,
    is_infinite,
    is_negative,
    log,
    log1p,
    polynomial,
    sqrt,
    where,
    with_sign,
)

# The half pi that the dtype cannot hold.
_HALF_PI = {4: (math.pi / 2, -4.371139000186241e-08), 8: (math.pi / 2, 6.123233995736766e-17)}


# --- trigonometric ------------------------------------------------------------------------------


def _half_pi(x: Number, size: Number | None) -> Number:
    """pi/2 less a size, with the part of pi/2 that rounding loses."""
    high, low = _HALF_PI[x.dtype.itemsize]
    return high - (size - low) if size is not None else x.constant(high)


def atan(x: Number) -> Number:
    """Reduced to |x| <= tan(pi/8) by atan(x) = pi/4 + atan((x - 1) / (x + 1)) = pi/2 - atan(1 / x)."""
    size = abs(x)
    is_large, is_middle = size > math.tan(3 * math.pi / 8), size > math.tan(math.pi / 8)
    over = where(is_large, -1.0, where(is_middle, size - 1, size))
    under = where(is_large, size, where(is_middle, size + 1, 1.0))
    y = over / under
    z = y * y
    near = fused(y * z, polynomial(z, chosen(x, c.ATAN_32, c.ATAN_64)), y)
    high, low = _HALF_PI[x.dtype.itemsize]
    base = where(is_large, high, where(is_middle, x.constant(high / 2), 0.0))
    rest = where(is_large, low, where(is_middle, x.constant(low / 2), 0.0))
    return with_sign(base + (near + rest), x)


def atan2(y: Number, x: Number) -> Number:
    """The angle of the quotient of smaller by larger size, mirrored into the quadrant of the signs."""
    height, width = abs(y), abs(x)
    is_steep = height > width
    small, large = where(is_steep, width, height), where(is_steep, height, width)
    # Two zeros make no angle, two infinities half a right one.
    ratio = where(small.equals(large), where(large.equals(0.0), large, 1.0), small / large)
    angle = atan(ratio)
    angle = where(is_steep, _half_pi(x, angle), angle)
    high, low = _HALF_PI[x.dtype.itemsize]
    angle = where(is_negative(x), 2 * high - (angle - 2 * low), angle)
    is_nan = x.differs(x) | y.differs(y)
    return where(is_nan, math.nan, with_sign(angle, y))


def _asin_near(x: Number, z: Number) -> Number:
    """asin(x) for |x| <= 1/2 and z = x^2."""
    return fused(x * z, polynomial(z, chosen(x, c.ASIN_32, c.ASIN_64)), x)


def asin(x: Number) -> Number:
    """Beyond 1/2 as pi/2 - 2 asin(sqrt((1 - |x|) / 2))."""
    size = abs(x)
    is_far = size > 0.5
    z = where(is_far, (1 - size) * 0.5, size * size)
    near = _asin_near(where(is_far, sqrt(z), size), z)
    return with_sign(where(is_far, _half_pi(x, near + near), near), x)


def acos(x: Number) -> Number:
    """2 asin(sqrt((1 - |x|) / 2)) beyond 1/2, pi/2 - asin(x) before."""
    size = abs(x)
    is_far = size > 0.5
    z = where(is_far, (1 - size) * 0.5, size * size)
    near = _asin_near(where(is_far, sqrt(z), x), z)
    high, low = _HALF_PI[x.dtype.itemsize]
    twice = near + near
    far = where(x < 0, 2 * high - (twice - 2 * low), twice)
    return where(is_far, far, high - (near - low))


# --- hyperbolic ---------------------------------------------------------------------------------


def _halved_exp(size: Number) -> Number:
    """exp(size) / 2, which overflows later than exp(size)."""
    root = exp(size * 0.5)
    return (root * 0.5) * root


def sinh(x: Number) -> Number:
    """A polynomial below 1, exponentials above."""
    size = abs(x)
    z = x * x
    near = fused(x * z, polynomial(z, chosen(x, c.SINH_32, c.SINH_64)), x)
    is_huge = size > (700.0 if x.is_double else 85.0)
    half = exp(where(is_huge, 0.0, size)) * 0.5
    far = where(is_huge, _halved_exp(size), half - 0.25 / half)
    return where(size < 1.0, near, with_sign(far, x))


def cosh(x: Number) -> Number:
    """exp(x) / 2 + exp(-x) / 2."""
    size = abs(x)
    is_huge = size > (700.0 if x.is_double else 85.0)
    half = exp(where(is_huge, 0.0, size)) * 0.5
    return where(is_huge, _halved_exp(size), half + 0.25 / half)


def tanh(x: Number) -> Number:
    """expm1(2 x) / (expm1(2 x) + 2), for float64."""
    u = (-2.0 * abs(x)).apply("expm1")
    return with_sign(-u / (u + 2.0), x)


def asinh(x: Number) -> Number:
    """log1p(|x| + x^2 / (1 + sqrt(1 + x^2))); log(2 |x|) where the square would overflow."""
    size = abs(x)
    is_huge = size > (1e150 if x.is_double else 1e18)
    y = where(is_huge, 1.0, size)
    square = y * y
    near = log1p(y + square / (1.0 + sqrt(1.0 + square)))
    far = log(size) + math.log(2.0)
    return with_sign(where(is_huge, far, near), x)


def acosh(x: Number) -> Number:
    """log1p(t + sqrt(2 t + t^2)) with t = x - 1; log(2 x) where the square would overflow."""
    is_huge = x > (1e150 if x.is_double else 1e18)
    t = where(is_huge, 1.0, x - 1.0)
    near = log1p(t + sqrt(2.0 * t + t * t))
    return where(x < 1.0, math.nan, where(is_huge, log(x) + math.log(2.0), near))


def atanh(x: Number) -> Number:
    """log1p(2 |x| / (1 - |x|)) / 2."""
    size = abs(x)
    return with_sign(0.5 * log1p((size + size) / (1.0 - size)), x)


def cbrt(x: Number) -> Number:
    """exp(log(|x|) / 3) and a step of Newton's towards y^3 = |x|."""
    size = abs(x)
    y = exp(log(size) * (1 / 3))
    y = y - (y - size / (y * y)) * (1 / 3)
    is_plain = (size > 0.0) & (size < math.inf)
    return where(is_plain, with_sign(y, x), x)


def power_of_two(exponent: Number, like: Number) -> Number:
    """2^exponent for whole exponents of normal numbers, from the bits."""
    bias, mantissa = (1023, 52) if like.is_double else (127, 23)
    return (exponent + bias).apply("shift_left", mantissa).bitcast(like.dtype)


def exp2(x: Number) -> Number:
    """exp(r ln 2) 2^n with n whole and |r| <= 1/2, the power of two in two halves for subnormal results."""
    end = 1100.0 if x.is_double else 160.0
    limited = where(x > end, end, where(x < -end, -end, x))
    n = limited.apply("round_even")
    whole = n.convert(dtypes.int64 if x.is_double else dtypes.int32)
    half = whole.apply("shift_right_arithmetic", 1)
    power = exp((limited - n) * math.log(2.0))
    return power * power_of_two(half, x) * power_of_two(whole - half, x)


# --- error functions ----------------------------------------------------------------------------


def _erf_near(x: Number) -> Number:
    return x * polynomial(x * x, chosen(x, c.ERF_32, c.ERF_64))


def _erfc_far(x: Number) -> Number:
    """erfc(x) for x >= 0: exp(-x^2) times a smooth function; what squaring loses is put back."""
    t = (x - 3.0) / (x + 3.0)
    smooth = polynomial(t, chosen(x, c.ERFC_32, c.ERFC_64)) / (1.0 + 2.0 * x)
    square, lost = exact_product(x, x)
    return exp(-square) * fused(smooth, -lost, smooth)


def _limited(x: Number) -> Number:
    """|x|, at most what erfc underflows at; NaN stays."""
    size, end = abs(x), 27.5 if x.is_double else 11.0
    return where(size > end, end, size)


def erf(x: Number) -> Number:
    """A polynomial below 1, 1 - erfc(|x|) above."""
    far = with_sign(1.0 - _erfc_far(_limited(x)), x)
    return where(abs(x) < 1.0, _erf_near(x), far)


def erfc(x: Number) -> Number:
    """exp(-x^2) times a smooth function of x >= 0; 2 - erfc(-x) below 0."""
    tail = _erfc_far(_limited(x))
    near = 1.0 - _erf_near(x)
    return where((x > -1.0) & (x < 0.5), near, where(x < 0.0, 2.0 - tail, tail))


# Inverse error function of float32, M. Giles, "Approximating the erfinv function" (GPU Computing Gems, 2011).
_ERFINV_CENTRAL = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087,
    -0.00125372503, -0.00417768164, 0.246640727, 1.50140941,
)  # fmt: skip
_ERFINV_TAIL = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773,
    -0.0076224613, 0.00943887047, 1.00167406, 2.83297682,
)  # fmt: skip


def erf_inv(x: Number) -> Number:
    """Giles' polynomials; in float64 a guess, and two of Halley's steps towards erfc(y) = 1 - |x|."""
    size = abs(x)
    w = -log((1.0 - size) * (1.0 + size))
    is_central = w < 5.0
    near = polynomial(w - 2.5, _ERFINV_CENTRAL)
    far = polynomial(sqrt(w) - 3.0, _ERFINV_TAIL)
    y = where(is_central, near, far) * size
    if x.is_double:
        y = _refined_erf_inv(size, w, y)
    y = where(size.equals(1.0), math.inf, where(size > 1.0, math.nan, y))
    return with_sign(y, x)


def _refined_erf_inv(size: Number, w: Number, y: Number) -> Number:
    # Beyond Giles' range: Winitzki's approximation, good to 0.4 %.
    a, half = 2 / (math.pi * 0.147), w * 0.5
    b = a - half
    rough = sqrt(sqrt(b * b + w * (1 / 0.147)) - b)
    y = where(w > 15.0, rough, y)
    for _ in range(2):
        is_near = size < 0.5
        error = where(is_near, _erf_near(y) - size, (1.0 - size) - _erfc_far(y))
        step = error * (math.sqrt(math.pi) / 2) * exp(y * y)
        y = y - step / (1.0 + y * step)
    return y


# --- gamma functions ----------------------------------------------------------------------------


def _sin_pi(x: Number) -> tuple[Number, Number]:
    """sin(pi f) and cos(pi f) for the distance f of x to the nearest whole number, with its sign."""
    f = x - x.apply("round_even")
    return (f * math.pi).apply("sin"), (f * math.pi).apply("cos")


def lgamma(x: Number) -> Number:
    """log |gamma(x)|: a polynomial about 2, to which recurrences lead, Stirling's series from 8, reflection
    below 0.
    """
    size = abs(x)
    is_far = size >= 8.0
    y = where(is_far, 8.0, size)
    # Up by one below 1.5, by two below 0.5; down by ones from 2.5.
    product = where(y < 0.5, y * (y + 1.0), where(y < 1.5, y, 1.0))
    t = where(y < 0.5, y, where(y < 1.5, y - 1.0, y - 2.0))
    down = x.constant(1.0)
    for _ in range(6):
        is_above = t > 0.5
        down = where(is_above, down * (t + 1.0), down)
        t = where(is_above, t - 1.0, t)
    argument = where(is_far, size, product / down)
    logarithm = log(argument)
    near = fused(t, polynomial(t, chosen(x, c.LGAMMA_32, c.LGAMMA_64)), -logarithm)
    inverse = 1.0 / size
    series = inverse * polynomial(inverse * inverse, chosen(x, c.STIRLING_32, c.STIRLING_64))
    far = (size - 0.5) * (logarithm - 1.0) + (series + (0.5 * math.log(2 * math.pi) - 0.5))
    positive = where(size.equals(math.inf), math.inf, where(is_far, far, near))
    sine = abs(_sin_pi(size)[0])
    below = math.log(math.pi) - log(size * sine) - positive
    is_whole = floor(x).equals(x)
    below = where(is_whole | is_infinite(x), math.inf, below)
    return where(x.equals(0.0), math.inf, where(x < 0.0, below, positive))


def digamma(x: Number) -> Number:
    """The slope of log gamma: its asymptotic series from 8, to which recurrences lead, reflection below 0."""
    is_below = x < 0.5
    y = where(is_below, 1.0 - x, x)
    total = x.constant(0.0)
    for _ in range(8):
        is_near = y < 8.0
        total = where(is_near, total - 1.0 / y, total)
        y = where(is_near, y + 1.0, y)
    inverse = 1.0 / y
    w = inverse * inverse
    series = w * polynomial(w, chosen(x, c.DIGAMMA_32, c.DIGAMMA_64))
    result = where(is_infinite(y), y, (log(y) - 0.5 * inverse - series) + total)
    sine, cosine = _sin_pi(x)
    reflected = result - math.pi * cosine / sine
    is_pole = (x <= 0.0) & floor(x).equals(x)
    return where(is_pole, math.nan, where(is_below, reflected, result))


# --- Bessel functions ---------------------------------------------------------------------------


def _bessel_parts(x: Number) -> tuple[Number, Number, Number]:
    size = abs(x)
    near = where(size > 8.0, 8.0, size)
    far = where(size < 8.0, 8.0, size)
    return size, near * 0.25 - 1.0, far


def bessel_i0e(x: Number) -> Number:
    """exp(-|x|) I0(x): Chebyshev series up to 8 and beyond."""
    size, near, far = _bessel_parts(x)
    inner = chebyshev(near, chosen(x, c.I0_NEAR_32, c.I0_NEAR_64))
    outer = chebyshev(16.0 / far - 1.0, chosen(x, c.I0_FAR_32, c.I0_FAR_64)) / sqrt(far)
    return where(size <= 8.0, inner, outer)


def bessel_i1e(x: Number) -> Number:
    """exp(-|x|) I1(x): Chebyshev series up to 8 and beyond."""
    size, near, far = _bessel_parts(x)
    inner = size * chebyshev(near, chosen(x, c.I1_NEAR_32, c.I1_NEAR_64))
    outer = chebyshev(16.0 / far - 1.0, chosen(x, c.I1_FAR_32, c.I1_FAR_64)) / sqrt(far)
    return with_sign(where(size <= 8.0, inner, outer), x)
