"""Elementwise operations: one block each. Imports core and the family helpers only.

The function carries the documentation, the declaration beside it the rules. `lax.*` functions need equal
shapes and dtypes
(Python numbers adapt); the operations themselves broadcast, which only `vmap` and `infini.numpy` use.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from infini.core import dtypes, errors, primitive, trace, tree
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import families
from infini.lax.families import ANYTHING, Span, bind_scalars, elementwise, is_linear

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers
FLOATS = dtypes.FLOATS
INEXACT = dtypes.INEXACT
REAL = dtypes.INTEGERS | dtypes.FLOATS
NUMERIC = dtypes.NUMERIC
BITS = dtypes.INTEGERS | {dtypes.bool_}
POSITIVE = Span(0.1, 4.0)
UNIT = Span(-0.95, 0.95)


def _unary(op: primitive.Primitive, x: ArrayLike) -> Value:
    return trace.bind1(op, x)


def _binary(op: primitive.Primitive, x: ArrayLike, y: ArrayLike) -> Value:
    families.check_equal_shapes(op.name, x, y)
    return bind_scalars(op, x, y)


# --- arithmetic ---------------------------------------------------------------------------

add_p: Primitive = elementwise(
    "add",
    NUMERIC,
    np.add,
    num_operands=2,
    jvp=(lambda g, *_: g, lambda g, *_: g),
    transpose=lambda ct, x, y: (ct if is_linear(x) else None, ct if is_linear(y) else None),
)


def add(x: ArrayLike, y: ArrayLike) -> Value:
    """Sum of each pair of elements, `x + y`."""
    return _binary(add_p, x, y)


neg_p: Primitive = elementwise(
    "neg", NUMERIC, np.negative, jvp=(lambda g, *_: neg(g),), transpose=lambda ct, x: (neg(ct),)
)


def neg(x: ArrayLike) -> Value:
    """Negative of each element, `-x`."""
    return _unary(neg_p, x)


sub_p: Primitive = elementwise(
    "sub",
    NUMERIC,
    np.subtract,
    num_operands=2,
    jvp=(lambda g, *_: g, lambda g, *_: neg(g)),
    transpose=lambda ct, x, y: (ct if is_linear(x) else None, neg(ct) if is_linear(y) else None),
)


def sub(x: ArrayLike, y: ArrayLike) -> Value:
    """Difference of each pair of elements, `x - y`."""
    return _binary(sub_p, x, y)


mul_p: Primitive = elementwise(
    "mul",
    NUMERIC,
    np.multiply,
    num_operands=2,
    jvp=(lambda g, out, x, y: bind_scalars(mul_p, g, y), lambda g, out, x, y: bind_scalars(mul_p, x, g)),
    transpose=lambda ct, x, y: (
        bind_scalars(mul_p, ct, y) if is_linear(x) else None,
        bind_scalars(mul_p, x, ct) if is_linear(y) else None,
    ),
)


def mul(x: ArrayLike, y: ArrayLike) -> Value:
    """Product of each pair of elements, `x * y`."""
    return _binary(mul_p, x, y)


def _reference_div(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.dtype in dtypes.INTEGERS:  # towards zero; division by zero gives -1, as XLA does
        safe = np.where(y == 0, 1, y)
        quotient = (
            np.floor_divide(np.abs(x), np.abs(safe)) if x.dtype in dtypes.SIGNED else np.floor_divide(x, safe)
        )
        signed = np.where((x < 0) != (safe < 0), -quotient, quotient)
        return np.where(y == 0, np.array(-1).astype(x.dtype), signed).astype(x.dtype)
    return np.divide(x, y)


div_p: Primitive = elementwise(
    "div",
    NUMERIC,
    _reference_div,
    num_operands=2,
    jvp=(
        lambda g, out, x, y: bind_scalars(div_p, g, y),
        lambda g, out, x, y: bind_scalars(mul_p, neg(bind_scalars(div_p, out, y)), g),
    ),
    transpose=lambda ct, x, y: (bind_scalars(div_p, ct, y), None),
    cases=(ANYTHING, POSITIVE),
)


def div(x: ArrayLike, y: ArrayLike) -> Value:
    """Quotient of each pair of elements; integers are divided towards zero."""
    return _binary(div_p, x, y)


def _reference_rem(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.dtype in dtypes.INTEGERS:
        return np.where(y == 0, x, np.fmod(x, np.where(y == 0, 1, y))).astype(x.dtype)
    return np.fmod(x, y)


rem_p: Primitive = elementwise(
    "rem",
    REAL,
    _reference_rem,
    num_operands=2,
    jvp=(
        lambda g, *_: g,
        lambda g, out, x, y: bind_scalars(mul_p, neg(g), _truncate(bind_scalars(div_p, x, y))),
    ),
    cases=(ANYTHING, POSITIVE),
)


def rem(x: ArrayLike, y: ArrayLike) -> Value:
    """Remainder with the sign of `x`, as C's `fmod`."""
    return _binary(rem_p, x, y)


def _truncate(x: Value) -> Value:
    return bind_scalars(select_n_p, bind_scalars(lt_p, x, 0), floor(x), ceil(x))


def _winner(x: Value, y: Value, out: Value, g: Value) -> Value:
    """JAX's subgradient of max and min: the winner takes all, a tie is split in two."""
    alone = bind_scalars(select_n_p, bind_scalars(eq_p, y, out), families.like(1.0, g), families.like(0.5, g))
    weight = bind_scalars(select_n_p, bind_scalars(eq_p, x, out), families.like(0.0, g), alone)
    return bind_scalars(mul_p, g, weight)


max_p: Primitive = elementwise(
    "max",
    REAL | {dtypes.bool_},
    np.maximum,
    num_operands=2,
    jvp=(
        lambda g, out, x, y: _winner(x, y, out, g),
        lambda g, out, x, y: _winner(y, x, out, g),
    ),
)


def max(x: ArrayLike, y: ArrayLike) -> Value:
    """Larger of each pair of elements; NaN wins."""
    return _binary(max_p, x, y)


min_p: Primitive = elementwise(
    "min",
    REAL | {dtypes.bool_},
    np.minimum,
    num_operands=2,
    jvp=(
        lambda g, out, x, y: _winner(x, y, out, g),
        lambda g, out, x, y: _winner(y, x, out, g),
    ),
)


def min(x: ArrayLike, y: ArrayLike) -> Value:
    """Smaller of each pair of elements; NaN wins."""
    return _binary(min_p, x, y)


abs_p: Primitive = elementwise(
    "abs",
    REAL,
    np.abs,
    jvp=(lambda g, out, x: bind_scalars(select_n_p, bind_scalars(ge_p, x, 0), neg(g), g),),
)


def abs(x: ArrayLike) -> Value:
    """Absolute value of each element."""
    return _unary(abs_p, x)


sign_p: Primitive = elementwise("sign", REAL, np.sign)


def sign(x: ArrayLike) -> Value:
    """-1, 0 or 1 by the sign of each element; NaN stays NaN."""
    return _unary(sign_p, x)


floor_p: Primitive = elementwise("floor", FLOATS, np.floor)


def floor(x: ArrayLike) -> Value:
    """Largest integer not above each element."""
    return _unary(floor_p, x)


ceil_p: Primitive = elementwise("ceil", FLOATS, np.ceil)


def ceil(x: ArrayLike) -> Value:
    """Smallest integer not below each element."""
    return _unary(ceil_p, x)


round_even_p: Primitive = elementwise("round_even", FLOATS, np.rint)


def round_even(x: ArrayLike) -> Value:
    """Nearest integer of each element, ties to even (IEEE 754 roundTiesToEven)."""
    return _unary(round_even_p, x)


is_finite_p: Primitive = elementwise("is_finite", FLOATS, np.isfinite, dtype=dtypes.bool_)


def is_finite(x: ArrayLike) -> Value:
    """Whether each element is neither infinite nor NaN."""
    return _unary(is_finite_p, x)


# --- exponentials and friends ---------------------------------------------------------------

exp_p: Primitive = elementwise(
    "exp", FLOATS, np.exp, jvp=(lambda g, out, x: bind_scalars(mul_p, g, out),), cases=(Span(-20.0, 20.0),)
)


def exp(x: ArrayLike) -> Value:
    """Exponential of each element."""
    return _unary(exp_p, x)


log_p: Primitive = elementwise(
    "log", FLOATS, np.log, jvp=(lambda g, out, x: bind_scalars(div_p, g, x),), cases=(Span(1e-3, 100.0),)
)


def log(x: ArrayLike) -> Value:
    """Natural logarithm of each element; NaN below zero."""
    return _unary(log_p, x)


def _decompose_log1p(x: Value) -> tuple[Value]:
    # log1p(x) = log(u) * x / (u - 1) with u = 1 + x; Kahan's formula, https://people.eecs.berkeley.edu/~wkahan
    u = bind_scalars(add_p, x, 1.0)
    exact = bind_scalars(eq_p, u, 1.0)
    shifted = bind_scalars(sub_p, u, 1.0)
    safe = bind_scalars(select_n_p, exact, shifted, families.like(1.0, x))
    log_u = log(u)
    scaled = bind_scalars(mul_p, log_u, bind_scalars(div_p, x, safe))
    finite = bind_scalars(select_n_p, is_finite(u), log_u, scaled)
    return (bind_scalars(select_n_p, exact, finite, x),)


log1p_p: Primitive = elementwise(
    "log1p",
    FLOATS,
    np.log1p,
    jvp=(lambda g, out, x: bind_scalars(div_p, g, bind_scalars(add_p, x, 1.0)),),
    decompose=_decompose_log1p,
    cases=(Span(-0.9, 10.0),),
)


def log1p(x: ArrayLike) -> Value:
    """`log(1 + x)`, accurate near zero."""
    return _unary(log1p_p, x)


def _decompose_expm1(x: Value) -> tuple[Value]:
    # expm1(x) = (u - 1) * x / log(u) with u = exp(x); Kahan's formula. For large |x| exp(x) - 1 is exact
    # enough.
    u = exp(x)
    exact = bind_scalars(eq_p, u, 1.0)
    less_one = bind_scalars(sub_p, u, 1.0)
    far = bind_scalars(gt_p, abs(x), 0.5)
    divisor = bind_scalars(select_n_p, exact, log(u), families.like(1.0, x))
    near = bind_scalars(mul_p, less_one, bind_scalars(div_p, x, divisor))
    return (bind_scalars(select_n_p, exact, bind_scalars(select_n_p, far, near, less_one), x),)


expm1_p: Primitive = elementwise(
    "expm1",
    FLOATS,
    np.expm1,
    jvp=(lambda g, out, x: bind_scalars(mul_p, g, bind_scalars(add_p, out, 1.0)),),
    decompose=_decompose_expm1,
)


def expm1(x: ArrayLike) -> Value:
    """`exp(x) - 1`, accurate near zero."""
    return _unary(expm1_p, x)


tanh_p: Primitive = elementwise(
    "tanh",
    FLOATS,
    np.tanh,
    jvp=(lambda g, out, x: bind_scalars(mul_p, g, bind_scalars(sub_p, 1.0, bind_scalars(mul_p, out, out))),),
)


def tanh(x: ArrayLike) -> Value:
    """Hyperbolic tangent of each element."""
    return _unary(tanh_p, x)


logistic_p: Primitive = elementwise(
    "logistic",
    FLOATS,
    lambda x: 1 / (1 + np.exp(-x)),
    jvp=(lambda g, out, x: bind_scalars(mul_p, g, bind_scalars(mul_p, out, bind_scalars(sub_p, 1.0, out))),),
    decompose=lambda x: (bind_scalars(div_p, 1.0, bind_scalars(add_p, exp(neg(x)), 1.0)),),
    cases=(Span(-20.0, 20.0),),
)


def logistic(x: ArrayLike) -> Value:
    """Sigmoid of each element, `1 / (1 + exp(-x))`."""
    return _unary(logistic_p, x)


sin_p: Primitive = elementwise("sin", FLOATS, np.sin, jvp=(lambda g, out, x: bind_scalars(mul_p, g, cos(x)),))


def sin(x: ArrayLike) -> Value:
    """Sine of each element, in radians."""
    return _unary(sin_p, x)


cos_p: Primitive = elementwise(
    "cos", FLOATS, np.cos, jvp=(lambda g, out, x: bind_scalars(mul_p, g, neg(sin(x))),)
)


def cos(x: ArrayLike) -> Value:
    """Cosine of each element, in radians."""
    return _unary(cos_p, x)


sqrt_p: Primitive = elementwise(
    "sqrt",
    FLOATS,
    np.sqrt,
    jvp=(lambda g, out, x: bind_scalars(mul_p, g, bind_scalars(div_p, 0.5, out)),),
    cases=(POSITIVE,),
)


def sqrt(x: ArrayLike) -> Value:
    """Square root of each element; NaN below zero."""
    return _unary(sqrt_p, x)


rsqrt_p: Primitive = elementwise(
    "rsqrt",
    FLOATS,
    lambda x: 1 / np.sqrt(x),
    jvp=(lambda g, out, x: bind_scalars(mul_p, g, bind_scalars(mul_p, -0.5, bind_scalars(div_p, out, x))),),
    cases=(POSITIVE,),
)


def rsqrt(x: ArrayLike) -> Value:
    """Reciprocal square root of each element."""
    return _unary(rsqrt_p, x)


def _reference_erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[np.float64])(x.astype(np.float64)).astype(x.dtype)


erf_p: Primitive = elementwise(
    "erf",
    FLOATS,
    _reference_erf,
    jvp=(
        lambda g, out, x: bind_scalars(
            mul_p, g, bind_scalars(mul_p, 2 / math.sqrt(math.pi), exp(neg(bind_scalars(mul_p, x, x))))
        ),
    ),
)


def erf(x: ArrayLike) -> Value:
    """Gauss error function of each element."""
    return _unary(erf_p, x)


# Single-precision inverse error function, M. Giles, "Approximating the erfinv function" (GPU Computing
# Gems, 2011).
_ERFINV_CENTRAL = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
_ERFINV_TAIL = (
    -0.000200214257,
    0.000100950558,
    0.00134934322,
    -0.00367342844,
    0.00573950773,
    -0.0076224613,
    0.00943887047,
    1.00167406,
    2.83297682,
)


def _decompose_erf_inv(x: Value) -> tuple[Value]:
    w = neg(log1p(neg(bind_scalars(mul_p, x, x))))
    central = bind_scalars(lt_p, w, 5.0)
    w = bind_scalars(select_n_p, central, bind_scalars(sub_p, sqrt(w), 3.0), bind_scalars(sub_p, w, 2.5))
    pick = [
        bind_scalars(select_n_p, central, families.like(tail, x), families.like(middle, x))
        for middle, tail in zip(_ERFINV_CENTRAL, _ERFINV_TAIL, strict=True)
    ]
    p = pick[0]
    for coefficient in pick[1:]:
        p = bind_scalars(add_p, coefficient, bind_scalars(mul_p, p, w))
    at_end = bind_scalars(eq_p, abs(x), 1.0)
    return (bind_scalars(select_n_p, at_end, bind_scalars(mul_p, p, x), bind_scalars(mul_p, x, math.inf)),)


def _reference_erf_inv(x: np.ndarray) -> np.ndarray:
    w = -np.log1p(-x * x)
    central = w < 5
    w = np.where(central, w - np.float32(2.5), np.sqrt(w) - np.float32(3.0)).astype(x.dtype)
    p = np.where(central, np.float32(_ERFINV_CENTRAL[0]), np.float32(_ERFINV_TAIL[0])).astype(x.dtype)
    for middle, tail in zip(_ERFINV_CENTRAL[1:], _ERFINV_TAIL[1:], strict=True):
        p = (np.where(central, np.float32(middle), np.float32(tail)) + p * w).astype(x.dtype)
    return np.where(np.abs(x) == 1, x * np.inf, p * x).astype(x.dtype)


erf_inv_p: Primitive = elementwise(
    "erf_inv",
    frozenset({dtypes.float32, dtypes.bfloat16, dtypes.float16}),
    _reference_erf_inv,
    jvp=(
        lambda g, out, x: bind_scalars(
            mul_p, g, bind_scalars(mul_p, math.sqrt(math.pi) / 2, exp(bind_scalars(mul_p, out, out)))
        ),
    ),
    decompose=_decompose_erf_inv,
    cases=(UNIT,),
)


def erf_inv(x: ArrayLike) -> Value:
    """Inverse of `erf`, for elements between -1 and 1."""
    return _unary(erf_inv_p, x)


def _one_for_zero(x: Value) -> Value:
    return bind_scalars(select_n_p, bind_scalars(eq_p, x, 0.0), x, families.like(1.0, x))


def _less_one(y: Value) -> Value:
    """`y - 1`, and 1 for an exponent of 0, whose derivative is 0 even at a base of 0."""
    is_zero = bind_scalars(eq_p, y, 0.0)
    return bind_scalars(select_n_p, is_zero, bind_scalars(sub_p, y, 1.0), families.like(1.0, y))


pow_p: Primitive = elementwise(
    "pow",
    FLOATS,
    np.power,
    num_operands=2,
    jvp=(
        lambda g, out, x, y: bind_scalars(
            mul_p, g, bind_scalars(mul_p, y, bind_scalars(pow_p, x, _less_one(y)))
        ),
        lambda g, out, x, y: bind_scalars(mul_p, g, bind_scalars(mul_p, out, log(_one_for_zero(x)))),
    ),
    decompose=lambda x, y: (exp(bind_scalars(mul_p, y, log(x))),),
    cases=(POSITIVE, ANYTHING),
)


def pow(x: ArrayLike, y: ArrayLike) -> Value:
    """`x` to the power `y`; a Python integer `y` becomes repeated multiplication."""
    if type(y) is int:
        return integer_pow(x, y)
    return _binary(pow_p, x, y)


def integer_pow(x: ArrayLike, y: int) -> Value:
    """`x` to an integer power, by repeated squaring."""
    x = trace.as_value(x)
    if y == 0:
        return families.full(x.type, 1)
    if y < 0:
        return bind_scalars(div_p, 1, integer_pow(x, -y))
    result: Value | None = None
    while y:
        if y & 1:
            result = x if result is None else bind_scalars(mul_p, result, x)
        y >>= 1
        if y:
            x = bind_scalars(mul_p, x, x)
    assert result is not None
    return result


def square(x: ArrayLike) -> Value:
    """Square of each element."""
    return integer_pow(x, 2)


# --- bits ---------------------------------------------------------------------------------

and_p: Primitive = elementwise("and", BITS, np.bitwise_and, num_operands=2)
or_p: Primitive = elementwise("or", BITS, np.bitwise_or, num_operands=2)
xor_p: Primitive = elementwise("xor", BITS, np.bitwise_xor, num_operands=2)
not_p: Primitive = elementwise("not", BITS, np.invert)


def bitwise_and(x: ArrayLike, y: ArrayLike) -> Value:
    """Bitwise or logical and."""
    return _binary(and_p, x, y)


def bitwise_or(x: ArrayLike, y: ArrayLike) -> Value:
    """Bitwise or logical or."""
    return _binary(or_p, x, y)


def bitwise_xor(x: ArrayLike, y: ArrayLike) -> Value:
    """Bitwise or logical exclusive or."""
    return _binary(xor_p, x, y)


def bitwise_not(x: ArrayLike) -> Value:
    """Bitwise or logical negation."""
    return _unary(not_p, x)


def _shift(np_shift: Any) -> Any:  # Any: ufuncs
    def rule(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        bits = x.dtype.itemsize * 8
        inside = (y >= 0) & (y < bits)
        return np.where(inside, np_shift(x, np.where(inside, y, 0).astype(x.dtype)), 0).astype(x.dtype)

    return rule


def _logical_right(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    unsigned = np.dtype(f"uint{x.dtype.itemsize * 8}")
    return np.right_shift(x.view(unsigned), y.astype(unsigned)).view(x.dtype)


shift_left_p: Primitive = elementwise(
    "shift_left", dtypes.INTEGERS, _shift(np.left_shift), num_operands=2, cases=(ANYTHING, Span(0, 7))
)
shift_right_logical_p: Primitive = elementwise(
    "shift_right_logical",
    dtypes.INTEGERS,
    _shift(_logical_right),
    num_operands=2,
    cases=(ANYTHING, Span(0, 7)),
)


def shift_left(x: ArrayLike, y: ArrayLike) -> Value:
    """Shift bits left; 0 when `y` is not between 0 and the number of bits."""
    return _binary(shift_left_p, x, y)


def shift_right_logical(x: ArrayLike, y: ArrayLike) -> Value:
    """Shift bits right, filling with zeros; 0 when `y` is not between 0 and the number of bits."""
    return _binary(shift_right_logical_p, x, y)


# --- comparison and choice ------------------------------------------------------------------

eq_p: Primitive = elementwise("eq", dtypes.ALL, np.equal, num_operands=2, dtype=dtypes.bool_)
ne_p: Primitive = elementwise("ne", dtypes.ALL, np.not_equal, num_operands=2, dtype=dtypes.bool_)
lt_p: Primitive = elementwise("lt", REAL | {dtypes.bool_}, np.less, num_operands=2, dtype=dtypes.bool_)
le_p: Primitive = elementwise("le", REAL | {dtypes.bool_}, np.less_equal, num_operands=2, dtype=dtypes.bool_)
gt_p: Primitive = elementwise("gt", REAL | {dtypes.bool_}, np.greater, num_operands=2, dtype=dtypes.bool_)
ge_p: Primitive = elementwise(
    "ge", REAL | {dtypes.bool_}, np.greater_equal, num_operands=2, dtype=dtypes.bool_
)


def eq(x: ArrayLike, y: ArrayLike) -> Value:
    """Whether elements are equal."""
    return _binary(eq_p, x, y)


def ne(x: ArrayLike, y: ArrayLike) -> Value:
    """Whether elements differ."""
    return _binary(ne_p, x, y)


def lt(x: ArrayLike, y: ArrayLike) -> Value:
    """Whether `x < y`."""
    return _binary(lt_p, x, y)


def le(x: ArrayLike, y: ArrayLike) -> Value:
    """Whether `x <= y`."""
    return _binary(le_p, x, y)


def gt(x: ArrayLike, y: ArrayLike) -> Value:
    """Whether `x > y`."""
    return _binary(gt_p, x, y)


def ge(x: ArrayLike, y: ArrayLike) -> Value:
    """Whether `x >= y`."""
    return _binary(ge_p, x, y)


def _type_select(which: ArrayType, on_false: ArrayType, on_true: ArrayType) -> tuple[ArrayType, ...]:
    families.accept("select_n", {dtypes.bool_}, [which])
    dtype = families.same_dtype("select_n")(on_false, on_true)
    return (ArrayType(families.loop_shape("select_n", [which, on_false, on_true], [0, 0, 0]), dtype),)


def _reference_select(which: np.ndarray, on_false: np.ndarray, on_true: np.ndarray) -> np.ndarray:
    return np.where(which, on_true, on_false)


select_n_p: Primitive = elementwise(
    "select_n",
    dtypes.ALL,
    _reference_select,
    num_operands=3,
    type=_type_select,
    jvp=(
        None,
        lambda g, out, which, f, t: bind_scalars(select_n_p, which, g, families.like(0, g)),
        lambda g, out, which, f, t: bind_scalars(select_n_p, which, families.like(0, g), g),
    ),
    transpose=lambda ct, which, on_false, on_true: (
        None,
        bind_scalars(select_n_p, which, ct, families.like(0, ct)) if is_linear(on_false) else None,
        bind_scalars(select_n_p, which, families.like(0, ct), ct) if is_linear(on_true) else None,
    ),
    extra={primitive.WEAK: lambda weak, attrs: weak[1] and weak[2]},
)


def select_n(which: ArrayLike, *cases: ArrayLike) -> Value:
    """Choose by a boolean: `cases[0]` where it is false, `cases[1]` where it is true.

    Raises:
        TypeMismatchError: there are not two cases, or `which` is not boolean.
    """
    if len(cases) != 2:
        raise errors.TypeMismatchError("select_n takes two cases", got=f"{len(cases)}")
    families.check_equal_shapes("select_n", which, *cases)
    values = [c for c in cases if isinstance(c, Value)] or [trace.as_value(cases[0])]
    return trace.bind1(select_n_p, which, *(families.like(c, values[0]) for c in cases))


def select(pred: ArrayLike, on_true: ArrayLike, on_false: ArrayLike) -> Value:
    """Elements of `on_true` where `pred` holds, of `on_false` elsewhere."""
    return select_n(pred, on_false, on_true)


def clamp(min: ArrayLike, x: ArrayLike, max: ArrayLike) -> Value:
    """`x` limited to the range from `min` to `max`."""
    return bind_scalars(min_p, bind_scalars(max_p, x, min), families.like(max, trace.as_value(x)))


# --- conversion -----------------------------------------------------------------------------


def _reference_convert(x: np.ndarray, *, new_dtype: np.dtype) -> np.ndarray:
    with np.errstate(all="ignore"):
        if (
            new_dtype in dtypes.INTEGERS and x.dtype in dtypes.FLOATS
        ):  # saturating, NaN becomes 0, as XLA does
            bounds = np.iinfo(new_dtype)
            wide = np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=bounds.max, neginf=bounds.min)
            whole = np.trunc(wide)
            result = np.clip(whole, float(bounds.min), float(bounds.max)).astype(new_dtype)
            result = np.where(whole >= float(bounds.max), np.array(bounds.max, new_dtype), result)
            return np.where(whole <= float(bounds.min), np.array(bounds.min, new_dtype), result).astype(
                new_dtype
            )
        if new_dtype == dtypes.bool_:
            return np.asarray(x != 0)
        return x.astype(new_dtype)


def _type_convert(x: ArrayType, *, new_dtype: np.dtype) -> tuple[ArrayType, ...]:
    return (x.update(dtype=new_dtype),)


convert_element_type_p: Primitive = elementwise(
    "convert_element_type",
    dtypes.ALL,
    _reference_convert,
    type=_type_convert,
    extra={primitive.REFERENCE: _reference_convert, primitive.WEAK: lambda weak, attrs: False},
)


def _jvp_convert(primals: Any, tangents: Any, results: Any, *, new_dtype: np.dtype) -> tuple[Value | None]:
    if tangents[0] is None or not dtypes.is_inexact(new_dtype):
        return (None,)
    return (trace.bind1(convert_element_type_p, tangents[0], new_dtype=new_dtype),)


convert_element_type_p.rules[primitive.JVP] = _jvp_convert
convert_element_type_p.rules[primitive.TRANSPOSE] = lambda ct, x, *, new_dtype: (
    trace.bind1(convert_element_type_p, ct, new_dtype=x.dtype),
)


def convert_element_type(operand: ArrayLike, new_dtype: Any) -> Value:
    """`operand` in another dtype; floats become integers towards zero and saturate, NaN becomes 0."""
    x = trace.as_value(operand)
    target = dtypes.canonical(new_dtype)
    if x.dtype == target:
        return x.with_weak(False) if x.weak else x
    return trace.bind1(convert_element_type_p, x, new_dtype=target)


def _reference_bitcast(x: np.ndarray, *, new_dtype: np.dtype) -> np.ndarray:
    return np.ascontiguousarray(x).reshape(x.shape).view(new_dtype)


def _type_bitcast(x: ArrayType, *, new_dtype: np.dtype) -> tuple[ArrayType, ...]:
    if x.dtype.itemsize != new_dtype.itemsize:
        raise errors.TypeMismatchError(
            "bitcast_convert_type needs dtypes of equal width", got=f"{x} to {dtypes.short(new_dtype)}"
        )
    return (x.update(dtype=new_dtype),)


bitcast_convert_type_p: Primitive = elementwise(
    "bitcast_convert_type",
    dtypes.ALL - {dtypes.bool_},
    _reference_bitcast,
    type=_type_bitcast,
    extra={primitive.REFERENCE: _reference_bitcast, primitive.WEAK: lambda weak, attrs: False},
)


def bitcast_convert_type(operand: ArrayLike, new_dtype: Any) -> Value:
    """The same bits read as another dtype of the same width.

    Raises:
        TypeMismatchError: the widths differ.
    """
    return trace.bind1(bitcast_convert_type_p, operand, new_dtype=dtypes.canonical(new_dtype))


# --- stop_gradient --------------------------------------------------------------------------


stop_gradient_p: Primitive = elementwise(
    "stop_gradient",
    dtypes.ALL,
    lambda x: x,
    decompose=lambda x: (x,),
    extra={primitive.REFERENCE: lambda x: x},
)


def stop_gradient(x: Any) -> Any:  # Any: pytrees
    """The same values, treated as constants by every derivative."""
    return tree.map(_stopped, x)


def _stopped(leaf: ArrayLike) -> Value:
    operand = trace.as_value(leaf)
    return trace.bind1(stop_gradient_p, operand) if dtypes.is_inexact(operand.dtype) else operand
