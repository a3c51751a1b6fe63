"""Arithmetic and mathematical functions of each element, with NumPy's names, broadcasting and JAX's
promotion.

Each function promotes its operands and binds the operation, which broadcasts by itself. Unless a docstring
says otherwise the result has the common dtype of the operands; functions marked *inexact* give floats for
integers.
"""

from __future__ import annotations

from infini.core import dtypes, errors, primitive, trace
from infini.core.value import Literal, Value
from infini.lax import elementwise as e
from infini.lax.families import bind_scalars
from infini.numpy import _axes, creation
from infini.numpy._promotion import (
    ArrayLike,
    DTypeLike,
    as_value,
    convert,
    inexact_operands,
    numeric_operands,
    operands,
    with_weak,
)
from infini.numpy._repeated import repeated


def _bind(op: primitive.Primitive, *values: Value) -> Value:
    return trace.bind1(op, *values)


# --- arithmetic ---------------------------------------------------------------------------


@repeated()
def add(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Sum, as `numpy.add`; of booleans, their or."""
    x, y = operands("add", x1, x2)
    return _bind(e.or_p if x.dtype == dtypes.bool_ else e.add_p, x, y)


@repeated()
def subtract(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Difference, as `numpy.subtract`; not for two booleans."""
    return _bind(e.sub_p, *operands("subtract", x1, x2))


@repeated()
def multiply(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Product, as `numpy.multiply`; of booleans, their and."""
    x, y = operands("multiply", x1, x2)
    return _bind(e.and_p if x.dtype == dtypes.bool_ else e.mul_p, x, y)


@repeated()
def true_divide(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Quotient, as `numpy.true_divide`; inexact."""
    return _bind(e.div_p, *inexact_operands("true_divide", x1, x2))


divide = true_divide


@repeated()
def floor_divide(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Quotient rounded down, as `numpy.floor_divide`; integer division by zero gives what the device
    gives."""
    x, y = numeric_operands("floor_divide", x1, x2)
    if x.dtype in dtypes.UNSIGNED:
        return _bind(e.div_p, x, y)
    if x.dtype in dtypes.SIGNED:
        quotient, rest = _bind(e.div_p, x, y), _bind(e.rem_p, x, y)
        differ = _bind(e.ne_p, _bind(e.sign_p, x), _bind(e.sign_p, y))
        is_below = _bind(e.and_p, differ, bind_scalars(e.ne_p, rest, 0))
        return _bind(e.select_n_p, is_below, quotient, bind_scalars(e.sub_p, quotient, 1))
    return _float_divmod(x, y)[0]


@repeated()
def remainder(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Remainder with the sign of the divisor, as `numpy.remainder`; of integers by zero it is 0."""
    x, y = numeric_operands("remainder", x1, x2)
    y = _without_zero(y)
    rest = _bind(e.rem_p, x, y)
    if x.dtype in dtypes.UNSIGNED:
        return rest
    is_off = _bind(e.and_p, _signs_differ(rest, y), bind_scalars(e.ne_p, rest, 0))
    return _bind(e.select_n_p, is_off, rest, _bind(e.add_p, rest, y))


mod = remainder


@repeated()
def fmod(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Remainder with the sign of the dividend, as `numpy.fmod`; of integers by zero it is 0."""
    x, y = numeric_operands("fmod", x1, x2)
    return _bind(e.rem_p, x, _without_zero(y))


def divmod(x1: ArrayLike, x2: ArrayLike, /) -> tuple[Value, Value]:
    """Pair of `floor_divide` and `remainder`."""
    x, y = numeric_operands("divmod", x1, x2)
    if x.dtype in dtypes.INTEGERS:
        return floor_divide(x, y), remainder(x, y)
    return _float_divmod(x, y)


def _without_zero(divisor: Value) -> Value:
    """1 in place of 0 where integers are divided."""
    if divisor.dtype not in dtypes.INTEGERS or _is_known_nonzero(divisor):
        return divisor
    one = convert(1, divisor.dtype, divisor.weak)
    return _bind(e.select_n_p, bind_scalars(e.eq_p, divisor, 0), divisor, one)


def _is_known_nonzero(x: Value) -> bool:
    return isinstance(x, Literal) and bool((x.host != 0).all())


def _signs_differ(x: Value, y: Value) -> Value:
    return _bind(e.ne_p, bind_scalars(e.lt_p, x, 0), bind_scalars(e.lt_p, y, 0))


def _float_divmod(x: Value, y: Value) -> tuple[Value, Value]:
    # x - rest is a multiple of y up to rounding, so the quotient is rounded to the nearest integer.
    rest = _bind(e.rem_p, x, y)
    quotient = _bind(e.div_p, _bind(e.sub_p, x, rest), y)
    is_off = _bind(e.and_p, _signs_differ(rest, y), bind_scalars(e.ne_p, rest, 0))
    quotient = _bind(e.select_n_p, is_off, quotient, bind_scalars(e.sub_p, quotient, 1))
    by_zero = bind_scalars(e.eq_p, y, 0)
    whole = _bind(e.select_n_p, by_zero, _bind(e.round_even_p, quotient), _bind(e.div_p, x, y))
    return whole, _bind(e.select_n_p, is_off, rest, _bind(e.add_p, rest, y))


def power(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """`x1` to the power `x2`, as `numpy.power`.

    A Python integer becomes repeated multiplication; integer arrays to integer arrays multiply by the bits
    of the exponent.

    Raises:
        TypeMismatchError: an integer to a negative Python integer.
    """
    if type(x2) is int:
        return _static_power(as_value("power", x1), x2)
    x, y = numeric_operands("power", x1, x2)
    if x.dtype in dtypes.INTEGERS:
        return _integer_power(x, y)
    is_weak = x.weak and not (hasattr(x2, "dtype") and x2.dtype in dtypes.INTEGERS)
    return with_weak(_bind(e.pow_p, x, y), is_weak)


pow = power


def _static_power(base: Value, exponent: int) -> Value:
    (x,) = numeric_operands("power", base)
    if exponent == 0:
        return creation.full_like(x, 1)
    if x.dtype in dtypes.INTEGERS and exponent < 0:
        raise errors.TypeMismatchError(
            "power: integers have no negative integer powers",
            got=f"{x.type} ** {exponent}",
            fix="convert to float first, for example with .astype('float32')",
        )
    return with_weak(e.integer_pow(x, exponent), x.weak)


def _integer_power(x: Value, y: Value) -> Value:
    bits = x.dtype.itemsize * 8
    result: Value = convert(1, x.dtype, x.weak)
    for bit in range(bits - (x.dtype in dtypes.SIGNED)):  # overflow wraps, as in every integer product
        is_set = bind_scalars(e.ne_p, bind_scalars(e.and_p, y, 1 << bit), 0)
        result = _bind(e.select_n_p, is_set, result, _bind(e.mul_p, result, x))
        x = _bind(e.mul_p, x, x)
    return result


@repeated()
def float_power(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """`x1` to the power `x2`, computed in floats; inexact."""
    return _bind(e.pow_p, *inexact_operands("float_power", x1, x2))


@repeated()
def negative(x: ArrayLike, /) -> Value:
    """Negative of each element, as `numpy.negative`."""
    return _bind(e.neg_p, as_value("negative", x))


def positive(x: ArrayLike, /) -> Value:
    """The same elements."""
    return as_value("positive", x)


@repeated()
def reciprocal(x: ArrayLike, /) -> Value:
    """One over each element; inexact."""
    (value,) = inexact_operands("reciprocal", x)
    return bind_scalars(e.div_p, convert(1, value.dtype, value.weak), value)


@repeated()
def square(x: ArrayLike, /) -> Value:
    """Each element times itself."""
    (value,) = numeric_operands("square", x)
    return _bind(e.mul_p, value, value)


@repeated()
def abs(x: ArrayLike, /) -> Value:
    """Absolute value, as `numpy.abs`; booleans and unsigned integers stay as they are."""
    value = as_value("abs", x)
    return value if value.dtype in dtypes.UNSIGNED | {dtypes.bool_} else _bind(e.abs_p, value)


absolute = abs


@repeated()
def fabs(x: ArrayLike, /) -> Value:
    """Absolute value of real numbers, as `numpy.fabs`; inexact."""
    return _bind(e.abs_p, *_real_operands("fabs", *inexact_operands("fabs", x)))


@repeated()
def sign(x: ArrayLike, /) -> Value:
    """-1, 0 or 1 by the sign of each element; NaN stays NaN. Not for booleans."""
    return _bind(e.sign_p, *operands("sign", x))


@repeated()
def maximum(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Larger of each pair, as `numpy.maximum`; NaN wins."""
    return _bind(e.max_p, *operands("maximum", x1, x2))


@repeated()
def minimum(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Smaller of each pair, as `numpy.minimum`; NaN wins."""
    return _bind(e.min_p, *operands("minimum", x1, x2))


def clip(arr: ArrayLike, /, min: ArrayLike | None = None, max: ArrayLike | None = None) -> Value:
    """`arr` limited to the range from `min` to `max`, as `numpy.clip`; a bound of None does not limit.

    Raises:
        TypeMismatchError: a complex number is given, which has no order.
    """
    result: ArrayLike = as_value("clip", arr)
    _real_operands("clip", *(as_value("clip", v) for v in (result, min, max) if v is not None))
    if min is not None:
        result = maximum(min, result)
    if max is not None:
        result = minimum(max, result)
    return result


def _real_operands(name: str, *values: Value) -> tuple[Value, ...]:
    if any(v.dtype in dtypes.COMPLEX for v in values):
        raise errors.TypeMismatchError(
            f"{name} takes real numbers",
            got=", ".join(str(v.type) for v in values),
            fix="use the real and imaginary parts, or the absolute value",
        )
    return values


# --- rounding -----------------------------------------------------------------------------


def _round_with(name: str, op: primitive.Primitive, x: ArrayLike) -> Value:
    value = as_value(name, x)
    return _bind(op, value) if dtypes.is_inexact(value.dtype) else value


@repeated()
def floor(x: ArrayLike, /) -> Value:
    """Largest integer not above each element; integers stay as they are."""
    return _round_with("floor", e.floor_p, x)


@repeated()
def ceil(x: ArrayLike, /) -> Value:
    """Smallest integer not below each element; integers stay as they are."""
    return _round_with("ceil", e.ceil_p, x)


@repeated()
def rint(x: ArrayLike, /) -> Value:
    """Nearest integer, ties to even, of each part of complex numbers; inexact."""
    (value,) = inexact_operands("rint", x)
    return with_weak(round(value), False)


@repeated()
def trunc(x: ArrayLike, /) -> Value:
    """Each element without its fraction; integers stay as they are."""
    (value,) = _real_operands("trunc", as_value("trunc", x))
    if not dtypes.is_inexact(value.dtype):
        return value
    return _bind(
        e.select_n_p, bind_scalars(e.lt_p, value, 0), _bind(e.floor_p, value), _bind(e.ceil_p, value)
    )


def round(a: ArrayLike, decimals: int = 0, out: None = None) -> Value:
    """Round to `decimals` digits, ties to even, as `numpy.round`.

    Raises:
        ValueMismatchError: integers to negative `decimals`.
        TypeMismatchError: `a` is boolean.
        UnsupportedError: `out` is given.
    """
    _axes.no_out("round", out)
    value = as_value("round", a)
    if value.dtype in dtypes.COMPLEX:
        parts = (round(_bind(part_p, value), decimals) for part_p in (e.real_p, e.imag_p))
        return with_weak(_bind(e.complex_p, *parts), value.weak)
    if value.dtype == dtypes.bool_:
        raise errors.TypeMismatchError("round does not take booleans", got=str(value.type))
    if not dtypes.is_inexact(value.dtype):
        if decimals < 0:
            raise errors.ValueMismatchError(
                "round: integers cannot be rounded to tens", got=f"{value.type}, decimals {decimals}"
            )
        return value
    if decimals == 0:
        return _bind(e.round_even_p, value)
    # 16-bit floats are scaled in float32, where ten to a small power is exact enough.
    wide = convert(value, dtypes.float32, value.weak) if value.dtype.itemsize < 4 else value
    largest = 308 if value.dtype == dtypes.float64 else 38  # power of ten that there is
    if not -largest <= decimals <= largest:
        return value if decimals > 0 else bind_scalars(e.mul_p, value, 0)
    scale = float(10**decimals)
    scaled = bind_scalars(e.div_p, _bind(e.round_even_p, bind_scalars(e.mul_p, wide, scale)), scale)
    return convert(scaled, value.dtype, value.weak)


around = round


def astype(x: ArrayLike, dtype: DTypeLike | None, /, *, copy: bool = False) -> Value:
    """`x` in another dtype, never weak; floats become integers towards zero."""
    value = as_value("astype", x)
    return convert(value, dtypes.float32 if dtype is None else dtypes.canonical(dtype))
