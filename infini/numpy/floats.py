"""The parts of floating numbers, and the numbers beside them, with NumPy's names. All of them are inexact."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.value import Value
from infini.lax import elementwise as e
from infini.lax.families import bind_scalars, broadcast_to
from infini.numpy import _axes, comparison
from infini.numpy._promotion import ArrayLike, as_value, convert, inexact_operands, operands, with_weak
from infini.numpy._repeated import repeated


def _bind(op: primitive.Primitive, *values: Value) -> Value:
    return trace.bind1(op, *values)


def _select(chosen: Value, on_true: Value, on_false: Value) -> Value:
    return _bind(e.select_n_p, chosen, on_false, on_true)


@repeated()
def copysign(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Size of the first with the sign of the second, as `numpy.copysign`; minus zero counts."""
    x, y = _reals("copysign", x1, x2)
    differ = _bind(e.ne_p, comparison.signbit(x), comparison.signbit(y))
    return _select(differ, _bind(e.neg_p, x), x)


def nextafter(x: ArrayLike, y: ArrayLike, /) -> Value:
    """The number next to `x` on the way to `y`, as `numpy.nextafter`."""
    return _bind(e.nextafter_p, *_reals("nextafter", x, y))


@repeated()
def spacing(x: ArrayLike, /) -> Value:
    """Distance to the next number away from zero, with the sign of `x`, as `numpy.spacing`; NaN for
    infinities."""
    (value,) = _reals("spacing", x)
    infinite = convert(np.inf, value.dtype, value.weak)
    outside = _select(comparison.signbit(value), _bind(e.neg_p, infinite), infinite)
    return with_weak(_bind(e.sub_p, _bind(e.nextafter_p, value, outside), value), False)


@repeated()
def heaviside(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """0 below zero, `x2` at zero and 1 above, as `numpy.heaviside`; NaN stays."""
    x, y = _reals("heaviside", x1, x2)
    number = broadcast_to(bind_scalars(e.max_p, _bind(e.sign_p, x), 0), x.shape)
    return _select(bind_scalars(e.eq_p, x, 0), y, number)


def modf(x: ArrayLike, /, out: None = None) -> tuple[Value, Value]:
    """Fraction and whole part, both with the sign of `x`, as `numpy.modf`.

    Raises:
        UnsupportedError: `out` is given.
        TypeMismatchError: `x` is complex.
    """
    _axes.no_out("modf", out)
    (value,) = _reals("modf", x)
    is_negative = bind_scalars(e.lt_p, value, 0)
    whole = _select(is_negative, _bind(e.ceil_p, value), _bind(e.floor_p, value))
    return _bind(e.sub_p, value, whole), whole


def fmax(x1: ArrayLike, x2: ArrayLike) -> Value:
    """Larger of each pair, as `numpy.fmax`; NaN only where both are."""
    x, y = operands("fmax", x1, x2)
    return _select(_bind(e.or_p, comparison.greater(x, y), comparison.isnan(y)), x, y)


def fmin(x1: ArrayLike, x2: ArrayLike) -> Value:
    """Smaller of each pair, as `numpy.fmin`; NaN only where both are."""
    x, y = operands("fmin", x1, x2)
    return _select(_bind(e.or_p, comparison.less(x, y), comparison.isnan(y)), x, y)


# --- powers of two ------------------------------------------------------------------------


@repeated()
def ldexp(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """`x1 * 2**x2`, as `numpy.ldexp`: rounded at most once, also where it is subnormal.

    Args:
        x1: real numbers.
        x2: integers.

    Raises:
        TypeMismatchError: `x1` is complex, or `x2` is not of integers.
    """
    exponent = as_value("ldexp", x2)
    if exponent.dtype not in dtypes.INTEGERS | {dtypes.bool_}:
        raise errors.TypeMismatchError(
            "ldexp needs integer exponents", got=str(exponent.type), fix="convert with .astype('int32')"
        )
    (value,) = _reals("ldexp", x1)
    # The dtype is that of the numbers with integers, as for every pair.
    value, _ = inexact_operands("ldexp", value, exponent)
    wide = _widened(value)
    return convert(_scaled(wide, _bounded(exponent, wide)), value.dtype, value.weak)


def frexp(x: ArrayLike, /) -> tuple[Value, Value]:
    """Mantissa of size 1/2 to 1 and exponent of base 2, as `numpy.frexp`; the exponents are int32.

    Zero, infinities and NaN are their own mantissa, with exponent 0.
    """
    (value,) = _reals("frexp", x)
    wide = _widened(value)
    layout = _Layout(wide.dtype)
    is_small = bind_scalars(e.lt_p, _bind(e.abs_p, wide), float(layout.limits.tiny))
    normal = _select(is_small, bind_scalars(e.mul_p, wide, 2.0 ** (layout.digits + 1)), wide)
    bits = trace.bind1(e.bitcast_convert_type_p, normal, new_dtype=layout.integers)
    biased = bind_scalars(
        e.and_p, bind_scalars(e.shift_right_logical_p, bits, layout.digits), 2 * layout.bias + 1
    )
    exponent = bind_scalars(e.sub_p, convert(biased, dtypes.int32), layout.bias - 1)
    exponent = _select(is_small, bind_scalars(e.sub_p, exponent, layout.digits + 1), exponent)
    is_plain = _bind(e.and_p, bind_scalars(e.ne_p, wide, 0), _bind(e.is_finite_p, wide))
    exponent = _bind(e.select_n_p, is_plain, bind_scalars(e.mul_p, exponent, 0), exponent)
    mantissa = convert(_scaled(wide, _bind(e.neg_p, exponent)), value.dtype)
    return mantissa, with_weak(exponent, False)


class _Layout:
    """How the bits of float32 or float64 are laid out."""

    def __init__(self, dtype: np.dtype) -> None:
        self.limits = ml_dtypes.finfo(dtype)
        self.digits = self.limits.nmant
        self.bias = self.limits.maxexp - 1
        self.integers = np.dtype(f"int{dtype.itemsize * 8}")


def _bounded(exponent: Value, x: Value) -> Value:
    """Exponents as int32, within what changes a number of this dtype."""
    most = 4 * (_Layout(x.dtype).bias + 1)
    if exponent.dtype in (dtypes.int32, dtypes.int64):
        exponent = bind_scalars(e.max_p, exponent, -most)
    if exponent.dtype in dtypes.INTEGERS and exponent.dtype.itemsize >= 4:
        exponent = bind_scalars(e.min_p, exponent, most)
    return convert(exponent, dtypes.int32)


def _scaled(x: Value, exponent: Value) -> Value:
    """Times powers of two in three steps, of which only the last one leaves the normal numbers."""
    layout = _Layout(x.dtype)
    down, up = layout.digits + 2 - layout.bias, layout.bias
    for _ in range(2):
        step = bind_scalars(e.min_p, bind_scalars(e.max_p, exponent, down), up)
        # A step is taken only where one is not enough: else it would round twice.
        is_far = bind_scalars(e.gt_p, _bind(e.abs_p, exponent), layout.bias - 1)
        step = _bind(e.select_n_p, is_far, bind_scalars(e.mul_p, step, 0), step)
        x, exponent = _bind(e.mul_p, x, _power_of_two(step, layout)), _bind(e.sub_p, exponent, step)
    last = bind_scalars(e.min_p, bind_scalars(e.max_p, exponent, 1 - layout.bias), layout.bias)
    return _bind(e.mul_p, x, _power_of_two(last, layout))


def _power_of_two(exponent: Value, layout: _Layout) -> Value:
    biased = convert(bind_scalars(e.add_p, exponent, layout.bias), layout.integers)
    bits = bind_scalars(e.shift_left_p, biased, layout.digits)
    return trace.bind1(e.bitcast_convert_type_p, bits, new_dtype=layout.limits.dtype)


def _widened(x: Value) -> Value:
    # Narrower floats are scaled in float32, which holds each of them.
    return convert(x, dtypes.float32, x.weak) if x.dtype.itemsize < 4 else x


def _reals(name: str, *xs: ArrayLike) -> list[Value]:
    values = inexact_operands(name, *xs)
    if values[0].dtype in dtypes.COMPLEX:
        raise errors.TypeMismatchError(
            f"{name} takes real numbers",
            got=", ".join(str(v.type) for v in values),
            fix="use the real and imaginary parts",
        )
    return values
