"""Complex arithmetic on pairs of real arrays: one function per elementwise operation.

Formulas for inverse functions follow W. Kahan, "Branch cuts for complex elementary functions, or much ado
about nothing's sign bit" (1987), so branch cuts and signed zeros are those of C99 and NumPy. Division is
R. Smith's ("Algorithm 116: complex division", 1962), which does not overflow where the quotient does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType, Shape
from infini.core.value import Literal, Value
from infini.lax import complex_views, families


@dataclass(frozen=True, slots=True)
class Pair:
    """A complex array as its real and its imaginary part.

    Args:
        re: real part.
        im: imaginary part.
        whole: the array itself, where it exists anyway: a parameter, or the result of a library.
    """

    re: Value
    im: Value
    whole: Value | None = None

    @property
    def shape(self) -> Shape:
        """Shape of the array."""
        return self.re.shape

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the complex array."""
        return complex_views.WHOLE[self.re.dtype]

    @property
    def type(self) -> ArrayType:
        """Type of the complex array."""
        return ArrayType(self.shape, self.dtype)


Part: TypeAlias = Value | Pair


def apply(op: str, *operands: Value | float, **attrs: object) -> Value:
    """Bind an operation; Python numbers take the dtype of the first operand that has one."""
    return families.bind_scalars(primitive.by_name(op), *operands, **attrs)


def _add(x: Value, y: Value | float) -> Value:
    return apply("add", x, y)


def _sub(x: Value | float, y: Value | float) -> Value:
    return apply("sub", x, y)


def _mul(x: Value, y: Value | float) -> Value:
    return apply("mul", x, y)


def _div(x: Value | float, y: Value) -> Value:
    return apply("div", x, y)


def _neg(x: Value) -> Value:
    return apply("neg", x)


def _square(x: Value) -> Value:
    return apply("mul", x, x)


def _where(which: Value, yes: Value | float, no: Value | float) -> Value:
    """`yes` where `which` is true."""
    anchor = yes if isinstance(yes, Value) else no
    assert isinstance(anchor, Value)
    return trace.bind1(
        primitive.by_name("select_n"), which, families.like(no, anchor), families.like(yes, anchor)
    )


def _either(which: Value, yes: Pair, no: Pair) -> Pair:
    return Pair(_where(which, yes.re, no.re), _where(which, yes.im, no.im))


def _is_nan(x: Value) -> Value:
    return apply("ne", x, x)


def _is_negative(x: Value) -> Value:
    """The sign bit, of zeros too."""
    bits = {4: dtypes.int32, 8: dtypes.int64}[x.dtype.itemsize]
    as_integer = trace.bind1(primitive.by_name("bitcast_convert_type"), x, new_dtype=bits)
    return apply("lt", as_integer, 0)


def _copy_sign(x: Value, sign: Value) -> Value:
    magnitude = apply("abs", x)
    return _where(_is_negative(sign), _neg(magnitude), magnitude)


def _number(x: complex, like: Pair) -> Pair:
    def of(part: float) -> Value:
        return Literal(np.asarray(part).astype(like.re.dtype), weak=False)

    return Pair(of(x.real), of(x.imag))


# --- arithmetic ----------------------------------------------------------------------------------


def add(x: Pair, y: Pair) -> Pair:
    """x + y"""
    return Pair(_add(x.re, y.re), _add(x.im, y.im))


def sub(x: Pair, y: Pair) -> Pair:
    """x - y"""
    return Pair(_sub(x.re, y.re), _sub(x.im, y.im))


def neg(x: Pair) -> Pair:
    """-x"""
    return Pair(_neg(x.re), _neg(x.im))


def mul(x: Pair, y: Pair) -> Pair:
    """x * y"""
    return Pair(
        _sub(_mul(x.re, y.re), _mul(x.im, y.im)),
        _add(_mul(x.re, y.im), _mul(x.im, y.re)),
    )


def square(x: Pair) -> Pair:
    """x * x"""
    return mul(x, x)


def div(x: Pair, y: Pair) -> Pair:
    """x / y, scaled by the larger part of y"""
    wide = apply("ge", apply("abs", y.re), apply("abs", y.im))
    large, small = _where(wide, y.re, y.im), _where(wide, y.im, y.re)
    is_zero = apply("eq", large, 0.0)
    ratio = _where(is_zero, families.zeros(large.type), _div(small, large))
    divisor = _add(large, _mul(small, ratio))
    first, second = _where(wide, x.re, x.im), _where(wide, x.im, x.re)
    # wide: (a + b r, b - a r) / d; otherwise: (a r + b, b r - a) / d
    re = _div(_add(first, _mul(second, ratio)), divisor)
    im = _sub(second, _mul(first, ratio))
    im = _div(_where(wide, im, _neg(im)), divisor)
    return Pair(re, im)


def conj(x: Pair) -> Pair:
    """re - i im"""
    return Pair(x.re, _neg(x.im))


def times_i(x: Pair) -> Pair:
    """i x"""
    return Pair(_neg(x.im), x.re)


def over_i(x: Pair) -> Pair:
    """x / i"""
    return Pair(x.im, _neg(x.re))


def modulus(x: Pair) -> Value:
    """sqrt(re^2 + im^2) without overflow of the squares; infinite if a part is"""
    a, b = apply("abs", x.re), apply("abs", x.im)
    large, small = apply("max", a, b), apply("min", a, b)
    ratio = _where(apply("eq", large, 0.0), families.zeros(large.type), _div(small, large))
    scaled = _mul(large, apply("sqrt", _add(_square(ratio), 1.0)))
    has_infinity = apply("or", apply("eq", a, math.inf), apply("eq", b, math.inf))
    return _where(has_infinity, families.like(math.inf, scaled), scaled)


def angle(x: Pair) -> Value:
    """argument, from -pi to pi"""
    return apply("atan2", x.im, x.re)


def sign(x: Pair) -> Pair:
    """x / |x|, and 0 at 0"""
    size = modulus(x)
    safe = _where(apply("eq", size, 0.0), 1.0, size)
    return Pair(_div(x.re, safe), _div(x.im, safe))


def is_finite(x: Pair) -> Value:
    """both parts are finite"""
    return apply("and", apply("is_finite", x.re), apply("is_finite", x.im))


def equal(x: Pair, y: Pair) -> Value:
    """both parts are equal"""
    return apply("and", apply("eq", x.re, y.re), apply("eq", x.im, y.im))


def not_equal(x: Pair, y: Pair) -> Value:
    """a part differs"""
    return apply("or", apply("ne", x.re, y.re), apply("ne", x.im, y.im))


def less(x: Pair, y: Pair) -> Value:
    """the lexicographic order"""
    tied = apply("and", apply("eq", x.re, y.re), apply("lt", x.im, y.im))
    return apply("or", apply("lt", x.re, y.re), tied)


def has_nan(x: Pair) -> Value:
    """a part is not a number"""
    return apply("or", _is_nan(x.re), _is_nan(x.im))


def maximum(x: Pair, y: Pair) -> Pair:
    """the later of two in lexicographic order; a number with a NaN wins, the first of two"""
    later = apply("or", less(x, y), apply("and", has_nan(y), apply("not", has_nan(x))))
    return _either(later, y, x)


def minimum(x: Pair, y: Pair) -> Pair:
    """the earlier of two in lexicographic order; a number with a NaN wins, the first of two"""
    earlier = apply("or", less(y, x), apply("and", has_nan(y), apply("not", has_nan(x))))
    return _either(earlier, y, x)


# --- exponentials and roots ------------------------------------------------------------------------


def exp(x: Pair) -> Pair:
    """e^re (cos im + i sin im)"""
    size = apply("exp", x.re)
    is_real = apply("eq", x.im, 0.0)
    # e^inf times the sine of 0 is 0 here, not NaN; e^-inf times the cosine of infinity is 0
    vanishes = apply("eq", size, 0.0)
    re = _where(vanishes, families.zeros(size.type), _mul(size, apply("cos", x.im)))
    im = _where(vanishes, families.zeros(size.type), _mul(size, apply("sin", x.im)))
    return Pair(_where(is_real, size, re), _where(is_real, x.im, im))


def exp2(x: Pair) -> Pair:
    """2^x"""
    return exp(Pair(_mul(x.re, math.log(2.0)), _mul(x.im, math.log(2.0))))


def expm1(x: Pair) -> Pair:
    """e^x - 1, accurate near 0"""
    half = apply("sin", _mul(x.im, 0.5))
    re = _sub(_mul(apply("expm1", x.re), apply("cos", x.im)), _mul(_square(half), 2.0))
    return Pair(re, exp(x).im)


def log(x: Pair) -> Pair:
    """log |x| + i angle; near |x| = 1 by the excess of the squares over 1"""
    a, b = apply("abs", x.re), apply("abs", x.im)
    large, small = apply("max", a, b), apply("min", a, b)
    excess = _add(_mul(_sub(large, 1.0), _add(large, 1.0)), _square(small))
    is_near = apply("lt", apply("abs", excess), 0.5)
    near = _mul(apply("log1p", _where(is_near, excess, families.zeros(excess.type))), 0.5)
    return Pair(_where(is_near, near, apply("log", modulus(x))), angle(x))


def log1p(x: Pair) -> Pair:
    """log(1 + x), accurate near 0"""
    excess = _add(_mul(x.re, _add(x.re, 2.0)), _square(x.im))
    is_near = apply("lt", apply("abs", excess), 0.5)
    near = _mul(apply("log1p", _where(is_near, excess, families.zeros(excess.type))), 0.5)
    moved = Pair(_add(x.re, 1.0), x.im)
    return Pair(_where(is_near, near, apply("log", modulus(moved))), angle(moved))


def sqrt(x: Pair) -> Pair:
    """the root with a real part that is not negative"""
    size = modulus(x)
    # halves before adding, so that nothing overflows
    root = apply("sqrt", _add(_mul(apply("abs", x.re), 0.5), _mul(size, 0.5)))
    is_zero = apply("eq", root, 0.0)
    other = _div(apply("abs", x.im), _mul(_where(is_zero, 1.0, root), 2.0))
    right = apply("ge", x.re, 0.0)
    re = _where(right, root, other)
    im = _copy_sign(_where(right, other, root), x.im)
    re, im = _where(is_zero, families.zeros(re.type), re), _where(is_zero, x.im, im)
    unbounded = apply("eq", apply("abs", x.im), math.inf)
    return Pair(_where(unbounded, families.like(math.inf, re), re), _where(unbounded, x.im, im))


def reciprocal(x: Pair) -> Pair:
    """1 / x"""
    return div(_number(1.0, x), x)


def rsqrt(x: Pair) -> Pair:
    """1 / sqrt(x)"""
    return reciprocal(sqrt(x))


def logistic(x: Pair) -> Pair:
    """1 / (1 + e^-x)"""
    return reciprocal(add(exp(neg(x)), _number(1.0, x)))


def power(x: Part, y: Part) -> Pair:
    """e^(y log x); 0 to a power with a positive real part is 0, and x to the power 0 is 1"""
    x, y = _as_pair(x, y), _as_pair(y, x)
    found = exp(mul(y, log(x)))
    base_is_zero = equal(x, _number(0.0, x))
    zero = _either(apply("gt", y.re, 0.0), _number(0.0, found), found)
    found = _either(base_is_zero, _shaped(zero, found), found)
    return _either(equal(y, _number(0.0, y)), _number(1.0, found), found)


def _as_pair(x: Part, like: Part) -> Pair:
    """A real operand of an operation that takes both kinds, in the dtype of the other's parts."""
    if isinstance(x, Pair):
        return x
    assert isinstance(like, Pair)
    found = convert(x, new_dtype=like.dtype)
    assert isinstance(found, Pair)
    return found


def atan2(y: Pair, x: Pair) -> Pair:
    """-i log((x + i y) / sqrt(x^2 + y^2))"""
    return over_i(log(div(add(x, times_i(y)), sqrt(add(square(x), square(y))))))


def _shaped(x: Pair, like: Pair) -> Pair:
    return Pair(families.broadcast_to(x.re, like.shape), families.broadcast_to(x.im, like.shape))


# --- trigonometric and hyperbolic -------------------------------------------------------------------


def sinh(x: Pair) -> Pair:
    """sinh re cos im + i cosh re sin im"""
    return Pair(_mul(apply("sinh", x.re), apply("cos", x.im)), _mul(apply("cosh", x.re), apply("sin", x.im)))


def cosh(x: Pair) -> Pair:
    """cosh re cos im + i sinh re sin im"""
    return Pair(_mul(apply("cosh", x.re), apply("cos", x.im)), _mul(apply("sinh", x.re), apply("sin", x.im)))


def tanh(x: Pair) -> Pair:
    """Kahan's CTANH; far from 0 the real part is 1 and the imaginary part vanishes"""
    is_far = apply("gt", apply("abs", x.re), 11.0 if x.re.dtype == dtypes.float32 else 22.0)
    near = _where(is_far, families.zeros(x.re.type), x.re)
    tangent = apply("tan", x.im)
    stretch = _add(_square(tangent), 1.0)
    s = apply("sinh", near)
    rho = apply("sqrt", _add(_square(s), 1.0))
    divisor = _add(_mul(stretch, _square(s)), 1.0)
    close = Pair(_div(_mul(_mul(stretch, rho), s), divisor), _div(tangent, divisor))
    fading = _mul(apply("exp", _mul(apply("abs", x.re), -2.0)), 4.0)
    far = Pair(
        _copy_sign(families.full(x.re.type, 1.0), x.re),
        _mul(_mul(apply("sin", x.im), apply("cos", x.im)), fading),
    )
    return _either(is_far, far, close)


def sin(x: Pair) -> Pair:
    """-i sinh(i x)"""
    return over_i(sinh(times_i(x)))


def cos(x: Pair) -> Pair:
    """cosh(i x)"""
    return cosh(times_i(x))


def tan(x: Pair) -> Pair:
    """-i tanh(i x)"""
    return over_i(tanh(times_i(x)))


def _roots(x: Pair) -> tuple[Pair, Pair]:
    """sqrt(1 - x) and sqrt(1 + x), keeping the sign of a zero imaginary part"""
    return sqrt(Pair(_sub(1.0, x.re), _neg(x.im))), sqrt(Pair(_add(x.re, 1.0), x.im))


def asin(x: Pair) -> Pair:
    """Kahan's CASIN"""
    minus, plus = _roots(x)
    return Pair(
        apply("atan2", x.re, mul(minus, plus).re),
        apply("asinh", mul(conj(minus), plus).im),
    )


def acos(x: Pair) -> Pair:
    """Kahan's CACOS"""
    minus, plus = _roots(x)
    return Pair(
        _mul(apply("atan2", minus.re, plus.re), 2.0),
        apply("asinh", mul(conj(plus), minus).im),
    )


def asinh(x: Pair) -> Pair:
    """-i asin(i x)"""
    return over_i(asin(times_i(x)))


def acosh(x: Pair) -> Pair:
    """Kahan's CACOSH"""
    minus, plus = sqrt(Pair(_sub(x.re, 1.0), x.im)), sqrt(Pair(_add(x.re, 1.0), x.im))
    return Pair(
        apply("asinh", mul(conj(minus), plus).re),
        _mul(apply("atan2", minus.im, plus.re), 2.0),
    )


def atanh(x: Pair) -> Pair:
    """log1p(4 |re| / ((1 - |re|)^2 + im^2)) / 4 with the sign of re, and half the angle of (1 - |x|^2, 2 im);
    close to 1 the square of the distance would vanish, and log(4 |re|) / 4 - log(distance) / 2 is as exact
    """
    size = apply("abs", x.re)
    gap = _sub(1.0, size)
    distance = modulus(Pair(gap, x.im))
    is_close = apply("lt", distance, 1e-4 if x.re.dtype == dtypes.float32 else 1e-9)
    far = _mul(apply("log1p", _div(_mul(size, 4.0), _add(_square(gap), _square(x.im)))), 0.25)
    quarter = _mul(apply("log", _where(is_close, _mul(size, 4.0), 1.0)), 0.25)
    close = _sub(quarter, _mul(apply("log", distance), 0.5))
    across = _sub(_mul(gap, _add(size, 1.0)), _square(x.im))
    return Pair(
        _copy_sign(_where(is_close, close, far), x.re),
        _mul(apply("atan2", _mul(x.im, 2.0), across), 0.5),
    )


def atan(x: Pair) -> Pair:
    """-i atanh(i x)"""
    return over_i(atanh(times_i(x)))


def _real(x: Pair) -> Value:
    return x.re


def _imag(x: Pair) -> Value:
    return x.im


def _complex(re: Value, im: Value) -> Pair:
    return Pair(re, im)


def convert(x: Part, *, new_dtype: np.dtype) -> Part:
    """To and from real arrays, and between the widths. A complex number loses its imaginary part."""
    part = complex_views.PART.get(new_dtype, new_dtype)

    def moved(y: Value) -> Value:
        return trace.bind1(primitive.by_name("convert_element_type"), y, new_dtype=part)

    if isinstance(x, Pair):
        if new_dtype == dtypes.bool_:
            return not_equal(x, _number(0.0, x))
        return Pair(moved(x.re), moved(x.im)) if new_dtype in dtypes.COMPLEX else moved(x.re)
    re = moved(x)
    return Pair(re, families.zeros(re.type))


def _conj_any(x: Part, **_: object) -> Pair:
    """JAX's conj takes real numbers too and gives complex ones."""
    return conj(x) if isinstance(x, Pair) else Pair(x, families.zeros(x.type))


def _integer_power(x: Pair, *, y: int) -> Pair:
    if y == 0:
        return Pair(families.full(x.re.type, 1.0), families.zeros(x.im.type))
    result: Pair | None = None
    base, left = x, abs(y)
    while left:
        if left & 1:
            result = base if result is None else mul(result, base)
        left >>= 1
        base = square(base) if left else base
    assert result is not None
    return reciprocal(result) if y < 0 else result


FORMULAS: Final[dict[str, Callable[..., Any]]] = {  # Any: a pair or a real array
    "abs": modulus,
    "acos": acos,
    "acosh": acosh,
    "add": add,
    "asin": asin,
    "asinh": asinh,
    "atan": atan,
    "atan2": atan2,
    "atanh": atanh,
    "complex": _complex,
    "conj": _conj_any,
    "convert_element_type": convert,
    "cos": cos,
    "cosh": cosh,
    "div": div,
    "eq": equal,
    "exp": exp,
    "exp2": exp2,
    "expm1": expm1,
    "imag": _imag,
    "integer_pow": _integer_power,
    "is_finite": is_finite,
    "log": log,
    "log1p": log1p,
    "logistic": logistic,
    "max": maximum,
    "min": minimum,
    "mul": mul,
    "ne": not_equal,
    "neg": neg,
    "pow": power,
    "real": _real,
    "reciprocal": reciprocal,
    "rsqrt": rsqrt,
    "sign": sign,
    "sin": sin,
    "sinh": sinh,
    "sqrt": sqrt,
    "square": square,
    "sub": sub,
    "tan": tan,
    "tanh": tanh,
}


def formula(name: str) -> Callable[..., Any] | None:  # Any: as above
    """The function of an elementwise operation on pairs, or None."""
    return FORMULAS.get(name)


def refuse(name: str, *types: object) -> errors.LoweringError:
    """The error for an operation that has no formula."""
    return errors.LoweringError(
        f"{name!r} of complex arrays has no route",
        got=", ".join(map(str, types)),
        expected=f"an operation with a formula on pairs ({', '.join(sorted(FORMULAS))}), or a DECOMPOSE rule",
        fix="compute with lax.real(x) and lax.imag(x)",
    )
