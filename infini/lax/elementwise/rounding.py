"""Size, sign and neighbours of each element: abs, sign, rounding to whole numbers and to fewer bits."""

from __future__ import annotations

import enum

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import families
from infini.lax.cases import ANYTHING, Case, Sample, Span, always
from infini.lax.elementwise import terms as t
from infini.lax.elementwise.complex_numbers import part_dtype
from infini.lax.elementwise.terms import ArrayLike
from infini.lax.families import elementwise

_SIZED = Span(0.2, 4.0)
_HALVES = Span(
    -1e3, 1e3, (0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997, -0.0, np.inf, -np.inf, np.nan, 1e30, 8388609.0)
)
_WHOLE_CASES = always(
    t.FLOATS, *(Case((Sample((3, 7), span=s),), kind="exact", is_smooth=False) for s in (ANYTHING, _HALVES))
)


# --- size and sign ----------------------------------------------------------------------------


def _slope_of_abs(g: Value, out: Value, x: Value) -> Value:
    if x.dtype not in t.COMPLEX:
        return t.where(t.ge(x, 0), g, t.neg(g))
    size = t.one_for_zero(t.convert(out, x.dtype))
    return t.real(t.mul(g, t.div(t.conj(x), size)))


abs_p: Primitive = elementwise(
    "abs",
    t.NUMERIC,
    np.abs,
    dtype=part_dtype,
    jvp=(_slope_of_abs,),
    cases=t.examples(t.NUMERIC, (_SIZED,)),
)


def abs(x: ArrayLike) -> Value:
    """Absolute value of each element; real for complex numbers.

    Raises:
        TypeMismatchError: `x` is unsigned, as in JAX.
    """
    operand = trace.as_value(x)
    families.accept("abs", dtypes.SIGNED | t.INEXACT, [operand.type])
    return trace.bind1(abs_p, operand)


sign_p: Primitive = elementwise("sign", t.NUMERIC, np.sign, cases=t.examples(t.NUMERIC, (ANYTHING,)))


def sign(x: ArrayLike) -> Value:
    """-1, 0 or 1 by the sign of each element, `x / abs(x)` of complex numbers; zeros and NaN stay."""
    return t.unary(sign_p, x)


# --- whole numbers ----------------------------------------------------------------------------

floor_p: Primitive = elementwise("floor", t.FLOATS, np.floor, cases=_WHOLE_CASES)


def floor(x: ArrayLike) -> Value:
    """Largest integer not above each element."""
    return t.unary(floor_p, x)


ceil_p: Primitive = elementwise("ceil", t.FLOATS, np.ceil, cases=_WHOLE_CASES)


def ceil(x: ArrayLike) -> Value:
    """Smallest integer not below each element."""
    return t.unary(ceil_p, x)


class RoundingMethod(enum.Enum):
    """What `round` does half way between two integers."""

    AWAY_FROM_ZERO = 0
    TO_NEAREST_EVEN = 1


round_even_p: Primitive = elementwise("round_even", t.FLOATS, np.rint, cases=_WHOLE_CASES)


def round_even(x: ArrayLike) -> Value:
    """Nearest integer of each element, ties to even (IEEE 754 roundTiesToEven)."""
    return t.unary(round_even_p, x)


def _reference_round_away(x: np.ndarray) -> np.ndarray:
    whole = np.trunc(x)
    return np.where(np.abs(x - whole) >= 0.5, whole + np.sign(x), whole).astype(x.dtype)


def _decompose_round_away(x: Value) -> tuple[Value]:
    size = t.abs(x)
    down = t.floor(size)
    rounded = t.where(t.ge(t.sub(size, down), 0.5), t.add(down, 1), down)
    return (t.where(t.lt(x, 0), t.neg(rounded), t.where(t.eq(x, 0), x, rounded)),)


round_away_p: Primitive = elementwise(
    "round_away", t.FLOATS, _reference_round_away, decompose=_decompose_round_away, cases=_WHOLE_CASES
)


def round(x: ArrayLike, rounding_method: RoundingMethod = RoundingMethod.AWAY_FROM_ZERO) -> Value:
    """Nearest integer of each element.

    Args:
        x: floats.
        rounding_method: what happens half way between two integers; in JAX's lax that is away from zero, in
            `infini.numpy.round` to even.
    """
    method, operand = RoundingMethod(rounding_method), trace.as_value(x)
    families.accept("round", t.FLOATS, [operand.type])
    return t.unary(round_away_p if method is RoundingMethod.AWAY_FROM_ZERO else round_even_p, operand)


is_finite_p: Primitive = elementwise(
    "is_finite", t.FLOATS, np.isfinite, dtype=dtypes.bool_, cases=t.examples(t.FLOATS, (ANYTHING,))
)


def is_finite(x: ArrayLike) -> Value:
    """Whether each element is neither infinite nor NaN."""
    return t.unary(is_finite_p, x)


# --- bits of floats ---------------------------------------------------------------------------


def _word(dtype: np.dtype) -> np.dtype:
    return np.dtype(f"int{dtype.itemsize * 8}")


def _decompose_nextafter(x: Value, y: Value) -> tuple[Value]:
    # Floats of one sign are ordered as their bits are, so a neighbour is one away.
    word = _word(x.dtype)
    from_zero, towards = t.bitcast(x, word), t.bitcast(y, word)
    smallest = t.either(t.both(towards, int(np.iinfo(word).min)), 1)
    is_away = t.eq(t.lt(x, y), t.gt(x, 0))
    moved = t.where(t.eq(x, 0), smallest, t.add(from_zero, t.where(is_away, families.like(1, from_zero), -1)))
    result = t.where(t.eq(x, y), y, t.bitcast(moved, x.dtype))
    return (t.where(t.either(t.is_nan(x), t.is_nan(y)), np.nan, result),)


def _reference_nextafter(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # ml_dtypes gives the neighbours of small floats.
    with np.errstate(all="ignore"):
        return np.asarray(np.nextafter(x, y)).astype(x.dtype)


nextafter_p: Primitive = elementwise(
    "nextafter",
    t.FLOATS,
    _reference_nextafter,
    num_operands=2,
    jvp=(t.no_derivative("nextafter", "x1"), t.no_derivative("nextafter", "x2")),  # as in JAX
    decompose=_decompose_nextafter,
    cases=always(
        t.FLOATS,
        Case(
            (Sample((3, 7), span=t.EDGES), Sample((3, 7), span=t.OTHER_EDGES)),
            kind="exact",
            is_smooth=False,
            moving=(),
        ),
    ),
    extra={primitive.REFERENCE: _reference_nextafter},
)


# Defined on the bits of its dtype, so not as functions are, in float32; as in JAX, there is no derivative.
# Defined on the bits of its dtype, so not as functions are, in float32.
nextafter_p.rules.pop(primitive.SCALAR)


def nextafter(x1: ArrayLike, x2: ArrayLike) -> Value:
    """The next number after `x1` on the way to `x2`; `x2` where they are equal."""
    return t.binary(nextafter_p, x1, x2)


# Bits of exponent and of mantissa.
_FORMATS = {
    dtypes.float8_e4m3fn: (4, 3),
    dtypes.float8_e5m2: (5, 2),
    dtypes.float16: (5, 10),
    dtypes.bfloat16: (8, 7),
    dtypes.float32: (8, 23),
    dtypes.float64: (11, 52),
}


def _type_reduce_precision(x: ArrayType, *, exponent_bits: int, mantissa_bits: int) -> tuple[ArrayType, ...]:
    families.accept("reduce_precision", t.FLOATS, [x])
    if exponent_bits < 1 or mantissa_bits < 0:
        raise errors.ValueMismatchError(
            "reduce_precision needs a format with bits",
            got=f"{exponent_bits} bits of exponent and {mantissa_bits} of mantissa",
            expected="at least 1 bit of exponent and 0 of mantissa",
        )
    return (x,)


def _decompose_reduce_precision(x: Value, *, exponent_bits: int, mantissa_bits: int) -> tuple[Value]:
    if x.dtype.itemsize == 1:  # float8_e4m3fn has no infinities to become
        kept = exponent_bits if exponent_bits < _FORMATS[x.dtype][0] else 8
        (wide,) = _decompose_reduce_precision(
            t.convert(x, dtypes.float32), exponent_bits=kept, mantissa_bits=mantissa_bits
        )
        return (t.convert(wide, x.dtype),)
    exponent, mantissa = _FORMATS[x.dtype]
    word = np.dtype(f"uint{x.dtype.itemsize * 8}")
    sign_bit, exponent_mask = 1 << (exponent + mantissa), ((1 << exponent) - 1) << mantissa
    bits = t.bitcast(x, word)
    sign_bits, size = t.both(bits, sign_bit), t.both(bits, sign_bit - 1)
    if mantissa_bits < mantissa:  # to nearest, ties to even, on the bits, which carries into the exponent
        dropped = mantissa - mantissa_bits
        last = t.both(t.shift_right(size, dropped), 1)
        size = t.add(size, t.add(last, (1 << (dropped - 1)) - 1))
        size = t.both(size, (sign_bit - 1) - ((1 << dropped) - 1))
    if exponent_bits < exponent:  # too large becomes infinite; what would be subnormal becomes zero
        bias, narrow_bias = (1 << (exponent - 1)) - 1, (1 << (exponent_bits - 1)) - 1
        found = t.shift_right(size, mantissa)
        size = t.where(t.gt(found, bias + narrow_bias), families.like(exponent_mask, size), size)
        size = t.where(t.le(found, bias - narrow_bias), families.like(0, size), size)
    return (t.where(t.is_nan(x), x, t.bitcast(t.either(size, sign_bits), x.dtype)),)


def _reference_reduce_precision(x: np.ndarray, *, exponent_bits: int, mantissa_bits: int) -> np.ndarray:
    """By arithmetic in extended precision, where scaling by powers of two is exact."""
    is_byte = x.dtype.itemsize == 1
    exponent, mantissa = _FORMATS[dtypes.float32 if is_byte else x.dtype]
    if is_byte and exponent_bits >= _FORMATS[x.dtype][0]:
        exponent_bits = exponent
    with np.errstate(all="ignore"):
        wide = x.astype(np.longdouble)
        fraction, power = np.frexp(np.where(np.isfinite(wide), wide, 0))  # 0.5 <= |fraction| < 1
        smallest = 2 - (1 << (exponent - 1)) + 1  # power of the smallest normal number
        kept = np.maximum(power, smallest) - 1 - np.minimum(mantissa, mantissa_bits)
        rounded = np.ldexp(np.rint(np.ldexp(fraction, power - kept)), kept)
        if exponent_bits < exponent:
            bias = (1 << (exponent_bits - 1)) - 1
            size = np.abs(rounded)
            limit = np.ldexp(np.longdouble(1), bias + 1)
            rounded = np.where(size >= limit, np.copysign(np.inf, wide), rounded)
            rounded = np.where(size < np.ldexp(np.longdouble(1), 1 - bias), np.copysign(0, wide), rounded)
        result = np.where(np.isfinite(wide), np.copysign(rounded, wide), wide)
        return result.astype(np.float64).astype(x.dtype)


reduce_precision_p: Primitive = elementwise(
    "reduce_precision",
    t.FLOATS,
    _reference_reduce_precision,
    type=_type_reduce_precision,
    jvp=(lambda g, out, x, **attrs: trace.bind1(reduce_precision_p, g, **attrs),),
    transpose=lambda ct, x, **attrs: (trace.bind1(reduce_precision_p, ct, **attrs),),
    decompose=_decompose_reduce_precision,
    cases=always(
        t.FLOATS,
        *(
            Case(
                (Sample((3, 7), span=t.EDGES),),
                {"exponent_bits": exponent, "mantissa_bits": mantissa},
                kind="exact",
                is_smooth=False,
            )
            for exponent, mantissa in ((8, 23), (8, 7), (5, 10), (4, 3))
        ),
    ),
    extra={
        primitive.REFERENCE: _reference_reduce_precision,
        primitive.LINEAR: (),  # each term would be rounded
    },
)


reduce_precision_p.rules.pop(primitive.SCALAR)  # defined on the bits of its dtype, as `nextafter`


def reduce_precision(operand: ArrayLike, exponent_bits: int, mantissa_bits: int) -> Value:
    """Round to what a float format with fewer bits holds; the dtype stays.

    Numbers round to nearest, ties to even; what is too large becomes infinite, what would be subnormal in the
    narrower format becomes zero. Derivatives are rounded in the same way.

    Args:
        operand: floats.
        exponent_bits: bits of exponent to keep, at least 1.
        mantissa_bits: bits of mantissa to keep, at least 0.

    Raises:
        ValueMismatchError: there are fewer bits than that.

    Example:
        >>> from infini import lax
        >>> lax.reduce_precision(1.23456, exponent_bits=5, mantissa_bits=3).item()
        1.25
    """
    return trace.bind1(
        reduce_precision_p, operand, exponent_bits=int(exponent_bits), mantissa_bits=int(mantissa_bits)
    )
