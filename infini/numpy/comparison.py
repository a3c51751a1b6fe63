"""Comparisons, logic, bits and choice, with NumPy's names. Comparisons and logic give booleans."""

from __future__ import annotations

import math
from collections.abc import Callable

import ml_dtypes
import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.value import Value
from infini.lax import elementwise as e
from infini.lax.families import bind_scalars
from infini.numpy._promotion import (
    ArrayLike,
    as_value,
    constant,
    convert,
    inexact_operands,
    operands,
    with_weak,
)
from infini.numpy._repeated import repeated


def _compare(name: str, op: primitive.Primitive, x1: ArrayLike, x2: ArrayLike) -> Value:
    x, y = operands(name, x1, x2)
    if x.dtype not in dtypes.COMPLEX or op in (e.eq_p, e.ne_p):
        return trace.bind1(op, x, y)
    # Complex numbers are in the order of their real parts, and where those are equal of the imaginary ones.
    (x_real, y_real), (x_imag, y_imag) = ([trace.bind1(p, v) for v in (x, y)] for p in (e.real_p, e.imag_p))
    return trace.bind1(
        e.select_n_p,
        trace.bind1(e.eq_p, x_real, y_real),
        trace.bind1(op, x_real, y_real),
        trace.bind1(op, x_imag, y_imag),
    )


@repeated()
def equal(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Whether elements are equal; NaN is not equal to itself."""
    return _compare("equal", e.eq_p, x1, x2)


@repeated()
def not_equal(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Whether elements differ."""
    return _compare("not_equal", e.ne_p, x1, x2)


@repeated()
def less(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Whether `x1 < x2`."""
    return _compare("less", e.lt_p, x1, x2)


@repeated()
def less_equal(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Whether `x1 <= x2`."""
    return _compare("less_equal", e.le_p, x1, x2)


@repeated()
def greater(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Whether `x1 > x2`."""
    return _compare("greater", e.gt_p, x1, x2)


@repeated()
def greater_equal(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Whether `x1 >= x2`."""
    return _compare("greater_equal", e.ge_p, x1, x2)


def as_bool(name: str, x: ArrayLike) -> Value:
    """Whether each element is not zero."""
    value = as_value(name, x)
    return value if value.dtype == dtypes.bool_ else bind_scalars(e.ne_p, value, 0)


@repeated()
def logical_and(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Whether both elements are true."""
    return trace.bind1(e.and_p, as_bool("logical_and", x1), as_bool("logical_and", x2))


@repeated()
def logical_or(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Whether an element of the two is true."""
    return trace.bind1(e.or_p, as_bool("logical_or", x1), as_bool("logical_or", x2))


@repeated()
def logical_xor(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Whether exactly one element of the two is true."""
    return trace.bind1(e.xor_p, as_bool("logical_xor", x1), as_bool("logical_xor", x2))


@repeated()
def logical_not(x: ArrayLike, /) -> Value:
    """Whether each element is false."""
    return trace.bind1(e.not_p, as_bool("logical_not", x))


def _bitwise(name: str, op: primitive.Primitive, *xs: ArrayLike) -> Value:
    values = operands(name, *xs)
    if values[0].dtype not in dtypes.INTEGERS | {dtypes.bool_}:
        raise errors.TypeMismatchError(
            f"{name} needs integers or booleans",
            got=", ".join(str(v.type) for v in values),
            fix="convert with .astype(...), or use lax.bitcast_convert_type for the bits of floats",
        )
    return trace.bind1(op, *values)


@repeated()
def bitwise_and(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Bits set in both, as `numpy.bitwise_and`."""
    return _bitwise("bitwise_and", e.and_p, x1, x2)


@repeated()
def bitwise_or(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Bits set in either, as `numpy.bitwise_or`."""
    return _bitwise("bitwise_or", e.or_p, x1, x2)


@repeated()
def bitwise_xor(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Bits set in exactly one, as `numpy.bitwise_xor`."""
    return _bitwise("bitwise_xor", e.xor_p, x1, x2)


@repeated()
def bitwise_not(x: ArrayLike, /) -> Value:
    """Every bit flipped, as `numpy.invert`; of booleans, their negation."""
    return _bitwise("bitwise_not", e.not_p, x)


invert = bitwise_invert = bitwise_not


@repeated()
def left_shift(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Bits moved up by `x2`, as `numpy.left_shift`."""
    return _bitwise("left_shift", e.shift_left_p, x1, x2)


@repeated()
def right_shift(x1: ArrayLike, x2: ArrayLike, /) -> Value:
    """Bits moved down by `x2`, as `numpy.right_shift`; signed integers keep their sign."""
    x, y = operands("right_shift", x1, x2)
    if x.dtype not in dtypes.SIGNED:
        return _bitwise("right_shift", e.shift_right_logical_p, x, y)
    # For negative x, ~(~x >> y) fills with ones.
    is_negative = bind_scalars(e.lt_p, x, 0)
    folded = trace.bind1(e.select_n_p, is_negative, x, trace.bind1(e.not_p, x))
    shifted = trace.bind1(e.shift_right_logical_p, folded, y)
    return trace.bind1(e.select_n_p, is_negative, shifted, trace.bind1(e.not_p, shifted))


bitwise_left_shift, bitwise_right_shift = left_shift, right_shift


# --- choice and classes of numbers ----------------------------------------------------------


def where(condition: ArrayLike, x: ArrayLike, y: ArrayLike) -> Value:
    """Elements of `x` where `condition` holds, of `y` elsewhere; all three broadcast.

    Args:
        condition: boolean, or numbers of which those that are not zero count as true.
        x: elements where it holds.
        y: elements where it does not.

    Returns:
        The common dtype of `x` and `y`. The one-argument form gives shapes that depend on data: use
        `nonzero` outside tracing.
    """
    chosen, on_true, on_false = as_bool("where", condition), *operands("where", x, y)
    return trace.bind1(e.select_n_p, chosen, on_false, on_true)


@repeated()
def isnan(x: ArrayLike, /) -> Value:
    """Whether each element is NaN."""
    value = as_value("isnan", x)
    if not dtypes.is_inexact(value.dtype):
        return _nothing(value, False)
    return trace.bind1(e.ne_p, value, value)


@repeated()
def isinf(x: ArrayLike, /) -> Value:
    """Whether each element is infinite."""
    value = as_value("isinf", x)
    if not dtypes.is_inexact(value.dtype):
        return _nothing(value, False)
    if value.dtype in dtypes.COMPLEX:
        return trace.bind1(e.or_p, *(isinf(trace.bind1(part_p, value)) for part_p in (e.real_p, e.imag_p)))
    return bind_scalars(e.eq_p, trace.bind1(e.abs_p, value), math.inf)


@repeated()
def isfinite(x: ArrayLike, /) -> Value:
    """Whether each element is neither infinite nor NaN."""
    value = as_value("isfinite", x)
    if value.dtype in dtypes.COMPLEX:
        parts = (trace.bind1(part_p, value) for part_p in (e.real_p, e.imag_p))
        return trace.bind1(e.and_p, *(trace.bind1(e.is_finite_p, part) for part in parts))
    return trace.bind1(e.is_finite_p, value) if dtypes.is_inexact(value.dtype) else _nothing(value, True)


@repeated()
def isposinf(x: ArrayLike, /) -> Value:
    """Whether each element is plus infinity."""
    value = _real("isposinf", x)
    return equal(value, math.inf) if dtypes.is_inexact(value.dtype) else _nothing(value, False)


@repeated()
def isneginf(x: ArrayLike, /) -> Value:
    """Whether each element is minus infinity."""
    value = _real("isneginf", x)
    return equal(value, -math.inf) if dtypes.is_inexact(value.dtype) else _nothing(value, False)


@repeated()
def signbit(x: ArrayLike, /) -> Value:
    """Whether the sign of each element is negative; minus zero counts."""
    value = _real("signbit", x)
    if not dtypes.is_inexact(value.dtype):
        return less(value, 0)
    bits = trace.bind1(e.bitcast_convert_type_p, value, new_dtype=np.dtype(f"int{value.dtype.itemsize * 8}"))
    return bind_scalars(e.lt_p, bits, 0)


def _real(name: str, x: ArrayLike) -> Value:
    value = as_value(name, x)
    if value.dtype in dtypes.COMPLEX:
        raise errors.TypeMismatchError(
            f"{name} takes real numbers", got=str(value.type), fix="use the real and imaginary parts"
        )
    return value


def _nothing(x: Value, answer: bool) -> Value:
    return constant(answer, dtypes.bool_, x.shape)


def nan_to_num(
    x: ArrayLike,
    copy: bool = True,
    nan: ArrayLike = 0.0,
    posinf: ArrayLike | None = None,
    neginf: ArrayLike | None = None,
) -> Value:
    """`x` with numbers in place of NaN and infinities (the largest finite ones when absent), as
    `numpy.nan_to_num`."""
    value = as_value("nan_to_num", x)
    if not dtypes.is_inexact(value.dtype):
        return value
    if value.dtype in dtypes.COMPLEX:
        parts = (trace.bind1(part_p, value) for part_p in (e.real_p, e.imag_p))
        changed = (nan_to_num(part, copy, nan, posinf, neginf) for part in parts)
        return with_weak(trace.bind1(e.complex_p, *changed), value.weak)
    largest = float(ml_dtypes.finfo(value.dtype).max)
    cases = (
        (isnan(value), nan),
        (equal(value, math.inf), largest if posinf is None else posinf),
        (equal(value, -math.inf), -largest if neginf is None else neginf),
    )
    result = value
    for holds, replacement in cases:
        result = trace.bind1(e.select_n_p, holds, result, convert(replacement, value.dtype, value.weak))
    return result


def isclose(
    a: ArrayLike, b: ArrayLike, rtol: ArrayLike = 1e-05, atol: ArrayLike = 1e-08, equal_nan: bool = False
) -> Value:
    """Whether `|a - b| <= atol + rtol * |b|`, as `numpy.isclose`."""
    x, y = operands("isclose", a, b)
    if not dtypes.is_inexact(x.dtype):
        x, y = inexact_operands("isclose", x, y)
    bind: Callable[..., Value] = trace.bind1
    bound = bind_scalars(e.add_p, bind_scalars(e.mul_p, bind(e.abs_p, y), rtol), atol)
    is_near = bind(e.le_p, bind(e.abs_p, bind(e.sub_p, x, y)), bound)
    both_finite = bind(e.and_p, isfinite(x), isfinite(y))
    result = bind(e.or_p, bind(e.and_p, is_near, both_finite), bind(e.eq_p, x, y))
    if equal_nan:
        result = bind(e.or_p, result, bind(e.and_p, bind(e.ne_p, x, x), bind(e.ne_p, y, y)))
    return result
