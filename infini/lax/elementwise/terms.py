"""Operations as rules use them: operands broadcast, and Python numbers take the dtype of what they meet.

Rules of one operation name others, so operations are looked up by name when a rule runs and no module of this
folder needs another one to declare its own. The checks that make `lax.*` functions strict live here too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import families
from infini.lax.cases import Case, Cases, Sample, Span, always

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers

FLOATS: Final = dtypes.FLOATS
COMPLEX: Final = dtypes.COMPLEX
INEXACT: Final = dtypes.INEXACT
INTEGERS: Final = dtypes.INTEGERS
REAL: Final = dtypes.INTEGERS | dtypes.FLOATS
NUMERIC: Final = dtypes.NUMERIC
BITS: Final = dtypes.INTEGERS | {dtypes.bool_}
ORDERED: Final = REAL | {dtypes.bool_}

_PYTHON: Final = (bool, int, float, complex)

POSITIVE: Final = Span(0.1, 4.0)
UNIT: Final = Span(-0.95, 0.95)
# Where functions have their edges, and what these meet in operations of two operands.
EDGES: Final = Span(
    -4.0, 4.0, (0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 0.5, -2.0, 3.0, 1e-30, -1e-30, 1e30, -1e30)
)
OTHER_EDGES: Final = Span(
    -4.0, 4.0, (2.0, 1.0, -np.inf, 0.5, 1.0, -0.0, 0.0, -3.0, np.inf, np.nan, 1e-30, 3.0, 1e-30, -2.0)
)


def examples(
    allowed: Collection[np.dtype], spans: Sequence[Span], *, edges: Sequence[Span] | None = None
) -> Cases:
    """Examples of an operation: one where finite differences mean something, and its edges."""
    chosen = (EDGES, OTHER_EDGES)[: len(spans)] if edges is None else edges
    smooth, special = (tuple(Sample((3, 7), span=span) for span in group) for group in (spans, chosen))
    return always(allowed, Case(smooth), Case(special, is_smooth=False))


def no_derivative(name: str, operand: str) -> Callable[..., Value]:
    """The linear map of an operand that there is no derivative by."""

    def rule(*_: object, **__: object) -> Value:
        raise errors.MissingRuleError(
            f"lax.{name} has no derivative by {operand}",
            fix=f"wrap {operand} in lax.stop_gradient, or give the function a rule with custom_jvp",
        )

    return rule


def by_element(function: Callable[..., float]) -> Callable[..., np.ndarray]:
    """A function of Python floats on arrays."""
    vectorised = np.vectorize(function, otypes=[np.float64])

    def rule(*operands: np.ndarray) -> np.ndarray:
        dtype = operands[0].dtype
        return np.asarray(vectorised(*(x.astype(np.float64) for x in operands))).astype(dtype)

    return rule


# --- functions from operations --------------------------------------------------------------


def unary(op: Primitive, x: ArrayLike) -> Value:
    """A `lax` function of one operand."""
    return trace.bind1(op, x)


def binary(op: Primitive, x: ArrayLike, y: ArrayLike) -> Value:
    """A `lax` function of two operands: of equal rank or scalars, and of one dtype.

    Raises:
        TypeMismatchError: they are not.
    """
    return nary(op, x, y)


def nary(op: Primitive, *operands: ArrayLike) -> Value:
    """As `binary`, for any number of operands."""
    values = adapted(*operands)
    check_ranks(op.name, values)
    return trace.bind1(op, *values)


def adapted(*operands: ArrayLike) -> list[Value]:
    """Operands as values: Python numbers in the dtype of the first operand that has one, unless that loses
    their kind.
    """
    given = [x if type(x) in _PYTHON else trace.as_value(x) for x in operands]
    anchor = next((x for x in given if isinstance(x, Value)), None)
    return [
        families.like(x, anchor) if anchor is not None and _is_kept(x, anchor) else trace.as_value(x)
        for x in given
    ]


def _is_kept(x: object, anchor: Value) -> bool:
    if isinstance(x, Value):
        return True
    if type(x) is int:
        return anchor.dtype != dtypes.bool_
    if type(x) is float:
        return anchor.dtype in INEXACT
    return type(x) is complex and anchor.dtype in COMPLEX


def check_ranks(name: str, operands: Sequence[Value]) -> None:
    """What makes `lax` stricter than the operations: operands have equal ranks, or are scalars.

    Raises:
        TypeMismatchError: they have not.
    """
    if len({x.ndim for x in operands if x.ndim}) > 1:
        raise errors.TypeMismatchError(
            f"lax.{name} needs operands of equal shape",
            got=", ".join(str(x.type) for x in operands),
            expected="equal shapes, or scalars",
            fix=f"use infini.numpy, which broadcasts, or lax.broadcast_in_dim before lax.{name}",
        )


# --- operations inside rules ----------------------------------------------------------------


def _operation(name: str) -> Callable[..., Value]:
    def apply(*operands: object, **attrs: object) -> Value:
        return families.bind_scalars(primitive.by_name(name), *operands, **attrs)

    return apply


add, sub, mul, div = _operation("add"), _operation("sub"), _operation("mul"), _operation("div")
neg, abs, sign, rem = _operation("neg"), _operation("abs"), _operation("sign"), _operation("rem")
max, min, pow = _operation("max"), _operation("min"), _operation("pow")
floor, round_even, is_finite = _operation("floor"), _operation("round_even"), _operation("is_finite")
sqrt, rsqrt, exp, log = _operation("sqrt"), _operation("rsqrt"), _operation("exp"), _operation("log")
log1p, expm1, logistic = _operation("log1p"), _operation("expm1"), _operation("logistic")
sin, cos, tan, tanh = _operation("sin"), _operation("cos"), _operation("tan"), _operation("tanh")
sinh, cosh, atan = _operation("sinh"), _operation("cosh"), _operation("atan")
eq, ne, lt, le = _operation("eq"), _operation("ne"), _operation("lt"), _operation("le")
gt, ge = _operation("gt"), _operation("ge")
both, either, invert = _operation("and"), _operation("or"), _operation("not")
real, imag, complex_, conj = _operation("real"), _operation("imag"), _operation("complex"), _operation("conj")
lgamma = _operation("lgamma")
digamma, polygamma = _operation("digamma"), _operation("polygamma")
bessel_i0e, bessel_i1e = _operation("bessel_i0e"), _operation("bessel_i1e")
shift_left, shift_right = _operation("shift_left"), _operation("shift_right_logical")


def where(which: Value, on_true: object, on_false: object) -> Value:
    """`on_true` where `which` holds; a Python number takes the dtype of the other choice."""
    anchor = on_true if isinstance(on_true, Value) else on_false
    assert isinstance(anchor, Value)
    choices = (families.like(x, anchor) for x in (on_false, on_true))
    return trace.bind1(primitive.by_name("select_n"), which, *choices)


def convert(x: Value, dtype: Any) -> Value:  # Any: a dtype
    """`x` in another dtype."""
    if x.dtype == dtype:
        return x
    return trace.bind1(primitive.by_name("convert_element_type"), x, new_dtype=dtype)


def bitcast(x: Value, dtype: Any) -> Value:  # Any: a dtype
    """The bits of `x` as another dtype of the same width."""
    return trace.bind1(primitive.by_name("bitcast_convert_type"), x, new_dtype=dtype)


def integer_pow(x: Value, y: int) -> Value:
    """`x` to a whole power."""
    return trace.bind1(primitive.by_name("integer_pow"), x, y=y)


def square(x: Value) -> Value:
    """`x * x`."""
    return integer_pow(x, 2)


def is_nan(x: Value) -> Value:
    """Whether elements are NaN."""
    return ne(x, x)


def one_for_zero(x: Value) -> Value:
    """`x` with ones for zeros."""
    return where(eq(x, 0), 1, x)


def polynomial(x: Value, coefficients: Sequence[float]) -> Value:
    """Horner's scheme, highest coefficient first."""
    result = families.like(coefficients[0], x)
    for coefficient in coefficients[1:]:
        result = add(mul(result, x), coefficient)
    return result


def wide(x: Value) -> Value:
    """Small floats as float32; others as they are."""
    return convert(x, dtypes.float32) if x.dtype in FLOATS and x.dtype.itemsize < 4 else x


def widened(formula: Callable[..., Value]) -> Callable[..., tuple[Value]]:
    """A DECOMPOSE rule that computes small floats in float32 and rounds once, as REFERENCE rules do."""

    def rule(*operands: Value, **attrs: object) -> tuple[Value]:
        dtype = next(x.dtype for x in operands if x.dtype in INEXACT)
        return (convert(formula(*map(wide, operands), **attrs), dtype),)

    return rule
