"""Sums, products, quotients, powers and extrema."""

from __future__ import annotations

from typing import Any

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import families, places
from infini.lax.cases import ANYTHING, Case, Cases, Sample, Span
from infini.lax.elementwise import terms as t
from infini.lax.elementwise.terms import ArrayLike
from infini.lax.families import PerElement, elementwise, is_linear

_NONZERO = Span(0.5, 4.0)
_WORDS = Span(-1e9, 1e9)
_MEETS_EQUALS = Span(-4.0, 4.0, (1.0, np.nan, 2.0, np.inf, -np.inf, 0.0))
_EQUALS = Span(-4.0, 4.0, (1.0, 3.0, np.nan, 2.0, np.inf, 1.0))

# --- sums and products ------------------------------------------------------------------------

add_p: Primitive = elementwise(
    "add",
    t.NUMERIC,
    np.add,
    num_operands=2,
    jvp=(lambda g, *_: g, lambda g, *_: g),
    transpose=lambda ct, x, y: (ct if is_linear(x) else None, ct if is_linear(y) else None),
    extra={primitive.LINEAR: places.together(0, 1)},
)


def add(x: ArrayLike, y: ArrayLike) -> Value:
    """Sum of each pair of elements, `x + y`."""
    return t.binary(add_p, x, y)


neg_p: Primitive = elementwise(
    "neg", t.NUMERIC, np.negative, jvp=(lambda g, *_: t.neg(g),), transpose=lambda ct, x: (t.neg(ct),)
)


def neg(x: ArrayLike) -> Value:
    """Negative of each element, `-x`."""
    return t.unary(neg_p, x)


sub_p: Primitive = elementwise(
    "sub",
    t.NUMERIC,
    np.subtract,
    num_operands=2,
    jvp=(lambda g, *_: g, lambda g, *_: t.neg(g)),
    transpose=lambda ct, x, y: (ct if is_linear(x) else None, t.neg(ct) if is_linear(y) else None),
    extra={primitive.LINEAR: places.together(0, 1)},
)


def sub(x: ArrayLike, y: ArrayLike) -> Value:
    """Difference of each pair of elements, `x - y`."""
    return t.binary(sub_p, x, y)


mul_p: Primitive = elementwise(
    "mul",
    t.NUMERIC,
    np.multiply,
    num_operands=2,
    jvp=(lambda g, out, x, y: t.mul(g, y), lambda g, out, x, y: t.mul(x, g)),
    transpose=lambda ct, x, y: (
        t.mul(ct, y) if is_linear(x) else None,
        t.mul(x, ct) if is_linear(y) else None,
    ),
    extra={primitive.LINEAR: places.alone(0, 1)},
)


def mul(x: ArrayLike, y: ArrayLike, *, out_dtype: Any = None) -> Value:  # Any: what names a dtype
    """Product of each pair of elements, `x * y`.

    Args:
        x: first factors.
        y: second factors.
        out_dtype: dtype to multiply in and to return; that of the operands when absent.
    """
    if out_dtype is None:
        return t.binary(mul_p, x, y)
    target = dtypes.canonical(out_dtype)
    return t.binary(mul_p, *(t.convert(trace.as_value(v), target) for v in (x, y)))


def _reference_mulhi(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    product = x.astype(object) * y.astype(object)  # whole numbers of any size
    return np.asarray(product >> (x.dtype.itemsize * 8), object).astype(x.dtype)


def _decompose_mulhi(x: Value, y: Value) -> tuple[Value]:
    bits, is_signed = x.dtype.itemsize * 8, x.dtype in dtypes.SIGNED
    if bits < 64:
        wide = np.dtype(f"{'int' if is_signed else 'uint'}{bits * 2}")
        product = t.mul(t.convert(x, wide), t.convert(y, wide))
        shift = primitive.by_name("shift_right_arithmetic" if is_signed else "shift_right_logical")
        return (t.convert(families.bind_scalars(shift, product, bits), x.dtype),)
    # Schoolbook multiplication of halves; a negative number stands for itself plus 2**64.
    word, low = dtypes.uint64, 0xFFFFFFFF
    a, b = t.convert(x, word), t.convert(y, word)
    (a0, a1), (b0, b1) = ((t.both(v, low), t.shift_right(v, 32)) for v in (a, b))
    middle = t.add(t.mul(a1, b0), t.shift_right(t.mul(a0, b0), 32))
    carried = t.add(t.mul(a0, b1), t.both(middle, low))
    high = t.add(t.add(t.mul(a1, b1), t.shift_right(middle, 32)), t.shift_right(carried, 32))
    if is_signed:
        high = t.sub(high, t.where(t.lt(x, 0), b, 0))
        high = t.sub(high, t.where(t.lt(y, 0), a, 0))
    return (t.convert(high, x.dtype),)


mulhi_p: Primitive = elementwise(
    "mulhi",
    t.INTEGERS,
    _reference_mulhi,
    num_operands=2,
    decompose=_decompose_mulhi,
    cases=(_WORDS, _WORDS),
)


def mulhi(x: ArrayLike, y: ArrayLike, /) -> Value:
    """Upper half of the product of two integers, which has twice their bits."""
    return t.binary(mulhi_p, x, y)


# --- quotients --------------------------------------------------------------------------------


def _reference_div(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.dtype not in dtypes.INTEGERS:
        return np.divide(x, y)
    safe = np.where(y == 0, 1, y).astype(x.dtype)  # division by zero gives -1, as XLA does
    quotient = np.floor_divide(x, safe)
    if x.dtype in dtypes.SIGNED:  # towards zero
        is_below = (np.remainder(x, safe) != 0) & ((x < 0) != (safe < 0))
        quotient = quotient + is_below.astype(x.dtype)
    return np.where(y == 0, np.array(-1).astype(x.dtype), quotient).astype(x.dtype)


div_p: Primitive = elementwise(
    "div",
    t.NUMERIC,
    _reference_div,
    num_operands=2,
    jvp=(
        lambda g, out, x, y: t.div(g, y),
        lambda g, out, x, y: t.mul(g, t.neg(t.div(out, y))),
    ),
    transpose=lambda ct, x, y: (t.div(ct, y), None),
    # Quotients of integers are cut off.
    extra={primitive.LINEAR: lambda types, *_: places.alone(0) if dtypes.is_inexact(types[0].dtype) else ()},
    cost=PerElement(4.0),
    cases=t.examples(t.NUMERIC, (ANYTHING, _NONZERO), edges=(t.EDGES, t.OTHER_EDGES)),
)


def div(x: ArrayLike, y: ArrayLike) -> Value:
    """Quotient of each pair of elements; integers are divided towards zero, by zero they give -1."""
    return t.binary(div_p, x, y)


def _reference_rem(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.dtype in dtypes.INTEGERS:
        return np.where(y == 0, x, np.fmod(x, np.where(y == 0, 1, y))).astype(x.dtype)
    return np.fmod(x, y)


def _truncated_quotient(x: Value, y: Value) -> Value:
    quotient = t.div(x, y)
    return t.mul(t.sign(quotient), t.floor(t.abs(quotient)))


rem_p: Primitive = elementwise(
    "rem",
    t.REAL,
    _reference_rem,
    num_operands=2,
    jvp=(lambda g, *_: g, lambda g, out, x, y: t.mul(t.neg(g), _truncated_quotient(x, y))),
    cost=PerElement(8.0),
    cases=t.examples(t.REAL, (Span(5.1, 5.9), Span(2.0, 2.5)), edges=(t.EDGES, t.OTHER_EDGES)),
)


def rem(x: ArrayLike, y: ArrayLike) -> Value:
    """Remainder with the sign of `x`, as C's `fmod`; that of an integer by zero is `x`."""
    return t.binary(rem_p, x, y)


# --- powers -----------------------------------------------------------------------------------


def _type_pow(x: ArrayType, y: ArrayType) -> tuple[ArrayType, ...]:
    families.accept("pow", t.INEXACT, [x])
    if y.dtype not in t.INTEGERS:
        families.same_dtype("pow")(x, y)
    return (ArrayType(families.loop_shape("pow", [x, y], [0, 0]), x.dtype),)


def _pow_slope(g: Value, out: Value, x: Value, y: Value) -> Value:
    if y.dtype not in t.INTEGERS:
        return t.mul(g, t.mul(y, t.pow(x, t.sub(y, 1))))
    # A whole exponent of 0 has slope 0 everywhere, at a base of 0 too.
    is_zero = t.eq(y, 0)
    factor = t.convert(t.one_for_zero(y), x.dtype)
    return t.mul(g, t.where(is_zero, 0, t.mul(factor, t.pow(x, t.sub(y, 1)))))


def _cases_pow(dtype: np.dtype) -> list[Case]:
    whole = Span(-3.0, 3.0, (0.0, 1.0, 2.0))
    return [
        Case((Sample((3, 7), span=t.POSITIVE), Sample((3, 7), span=ANYTHING))),
        Case((Sample((3, 7), span=_NONZERO), Sample((3, 7), dtypes.int32, whole))),
    ]


pow_p: Primitive = elementwise(
    "pow",
    t.INEXACT,
    lambda x, y: np.power(x, y.astype(x.dtype)),
    num_operands=2,
    type=_type_pow,
    jvp=(_pow_slope, lambda g, out, x, y: t.mul(g, t.mul(t.log(t.one_for_zero(x)), out))),
    cost=PerElement(40.0, is_transcendental=True),
    cases=Cases(t.INEXACT, _cases_pow),
)


def pow(x: ArrayLike, y: ArrayLike) -> Value:
    """`x` to the power `y`.

    Args:
        x: floats or complex numbers.
        y: of the dtype of `x`, or integers. A Python integer becomes repeated multiplication.

    Raises:
        TypeMismatchError: the dtypes do not go together.
    """
    if type(y) is int:
        return integer_pow(x, y)
    return t.binary(pow_p, x, y)


def _type_integer_pow(x: ArrayType, *, y: int) -> tuple[ArrayType, ...]:
    families.accept("integer_pow", t.NUMERIC, [x])
    if y < 0 and x.dtype in t.INTEGERS:
        raise errors.TypeMismatchError(
            "integers have no negative powers", got=f"{x} to the power {y}", fix="convert to a float first"
        )
    return (x,)


def _reference_integer_pow(x: np.ndarray, *, y: int) -> np.ndarray:
    result, square, left = None, x, np.abs(y)
    while left:
        if left & 1:
            result = square if result is None else result * square
        left >>= 1
        if left:
            square = square * square
    if result is None:
        return np.ones_like(x)
    return np.divide(1, result, dtype=x.dtype) if y < 0 else result


def _decompose_integer_pow(x: Value, *, y: int) -> Value:
    result: Value | None = None
    square, left = x, -y if y < 0 else y
    while left:
        if left & 1:
            result = square if result is None else t.mul(result, square)
        left >>= 1
        if left:
            square = t.mul(square, square)
    if result is None:
        return families.full(x.type, 1)
    return t.div(1, result) if y < 0 else result


def _slope_integer_pow(g: Value, out: Value, x: Value, *, y: int) -> Value:
    if y == 0:
        return families.zeros(g.type)
    return g if y == 1 else t.mul(g, t.mul(y, x if y == 2 else t.integer_pow(x, y - 1)))


def _cases_integer_pow(dtype: np.dtype) -> list[Case]:
    operand = Sample((3, 7), span=_NONZERO)
    powers = (3, 2, 1, 0) if dtype in t.INTEGERS else (3, 2, 1, 0, -1, -2, 7)
    return [Case((operand,), {"y": power}) for power in powers]


integer_pow_p: Primitive = elementwise(
    "integer_pow",
    t.NUMERIC,
    _reference_integer_pow,
    type=_type_integer_pow,
    jvp=(_slope_integer_pow,),
    decompose=lambda x, *, y: (
        t.widened(_decompose_integer_pow)(x, y=y)
        if x.dtype in t.INEXACT
        else (_decompose_integer_pow(x, y=y),)
    ),
    cost=PerElement(2.0),
    cases=Cases(t.NUMERIC, _cases_integer_pow),
)


def integer_pow(x: ArrayLike, y: int) -> Value:
    """`x` to a whole power, by repeated squaring.

    Args:
        x: array of any numeric dtype.
        y: the power, a Python integer.

    Raises:
        TypeMismatchError: `x` are integers and the power is negative.
    """
    return trace.bind1(integer_pow_p, x, y=int(y))


def square(x: ArrayLike) -> Value:
    """Square of each element."""
    operand = trace.as_value(x)
    families.accept("square", t.NUMERIC, [operand.type])
    return integer_pow(operand, 2)


def reciprocal(x: ArrayLike) -> Value:
    """`1 / x` of floats and complex numbers.

    Raises:
        TypeMismatchError: `x` are integers.
    """
    return integer_pow(x, -1)


# --- extrema ----------------------------------------------------------------------------------


def _winner(x: Value, y: Value, out: Value, g: Value) -> Value:
    """JAX's subgradient of max and min: the winner takes all, a tie is split in two."""
    one, half, zero = (families.like(number, g) for number in (1.0, 0.5, 0.0))
    return t.mul(g, t.where(t.eq(x, out), t.where(t.eq(y, out), half, one), zero))


max_p: Primitive = elementwise(
    "max",
    dtypes.ALL,
    np.maximum,
    num_operands=2,
    jvp=(lambda g, out, x, y: _winner(x, y, out, g), lambda g, out, x, y: _winner(y, x, out, g)),
    cases=t.examples(dtypes.ALL, (ANYTHING, ANYTHING), edges=(_MEETS_EQUALS, _EQUALS)),
)


def max(x: ArrayLike, y: ArrayLike) -> Value:
    """Larger of each pair of elements; NaN wins. Complex numbers compare by real, then by imaginary part."""
    return t.binary(max_p, x, y)


min_p: Primitive = elementwise(
    "min",
    dtypes.ALL,
    np.minimum,
    num_operands=2,
    jvp=(lambda g, out, x, y: _winner(x, y, out, g), lambda g, out, x, y: _winner(y, x, out, g)),
    cases=t.examples(dtypes.ALL, (ANYTHING, ANYTHING), edges=(_MEETS_EQUALS, _EQUALS)),
)


def min(x: ArrayLike, y: ArrayLike) -> Value:
    """Smaller of each pair of elements; NaN wins. Complex numbers compare by real, then by imaginary part."""
    return t.binary(min_p, x, y)
