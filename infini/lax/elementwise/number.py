"""Numbers that formulas are written in, and the two things that formulas become: programs and machine code.

A formula is an ordinary Python function of `Number`. The DECOMPOSE rule of an operation runs it on values,
which gives the operations of the IR; an emitter runs it on registers. So a function is written once and every
backend has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from infini.core import dtypes, primitive, trace
from infini.core.value import Literal, Value
from infini.lax import families


class Algebra(Protocol):
    """What computes: it knows operations by the names they have in the IR."""

    def apply(
        self, name: str, operands: Sequence[Any], types: Sequence[np.dtype], attrs: Mapping[str, Any]
    ) -> Any:  # Any: values of the algebra
        """The result of an operation on operands of these dtypes."""

    def constant(self, number: float, dtype: np.dtype) -> Any:  # Any: a value of the algebra
        """A number of a dtype."""

    def fused(self, x: Any, y: Any, z: Any, dtype: np.dtype) -> Any:  # Any: values of the algebra
        """`x * y + z`, rounded once where that is cheap."""

    def lost(self, x: Any, y: Any, product: Any, dtype: np.dtype) -> Any:  # Any: values of the algebra
        """`x * y - product` exactly, where `product` is `x * y` rounded."""


@dataclass(frozen=True, slots=True, eq=False)
class Number:
    """A value of an algebra, with Python's arithmetic. Python numbers take the dtype of what they meet."""

    value: Any  # Any: a value of the algebra
    dtype: np.dtype
    algebra: Algebra

    def constant(self, number: float) -> Number:
        """A number of the same dtype."""
        return Number(self.algebra.constant(number, self.dtype), self.dtype, self.algebra)

    def like(self, other: Number | float) -> Number:
        """`other` as it is, or as a constant of the same dtype."""
        return other if isinstance(other, Number) else self.constant(other)

    def apply(
        self, name: str, *others: Number | float, dtype: np.dtype | None = None, **attrs: Any
    ) -> Number:
        """An operation whose first operand this is."""
        operands = [self, *(self.like(other) for other in others)]
        value = self.algebra.apply(name, [x.value for x in operands], [x.dtype for x in operands], attrs)
        return Number(value, dtype or self.dtype, self.algebra)

    def convert(self, dtype: np.dtype) -> Number:
        """The number in another dtype."""
        return self.apply("convert_element_type", dtype=dtype, new_dtype=dtype)

    def bitcast(self, dtype: np.dtype) -> Number:
        """The bits as another dtype."""
        return self.apply("bitcast_convert_type", dtype=dtype, new_dtype=dtype)

    @property
    def is_double(self) -> bool:
        """Whether this is float64."""
        return self.dtype == dtypes.float64

    def __add__(self, other: Number | float) -> Number:
        return self.apply("add", other)

    def __radd__(self, other: float) -> Number:
        return self.constant(other).apply("add", self)

    def __sub__(self, other: Number | float) -> Number:
        return self.apply("sub", other)

    def __rsub__(self, other: float) -> Number:
        return self.constant(other).apply("sub", self)

    def __mul__(self, other: Number | float) -> Number:
        return self.apply("mul", other)

    def __rmul__(self, other: float) -> Number:
        return self.constant(other).apply("mul", self)

    def __truediv__(self, other: Number | float) -> Number:
        return self.apply("div", other)

    def __rtruediv__(self, other: float) -> Number:
        return self.constant(other).apply("div", self)

    def __neg__(self) -> Number:
        return self.apply("neg")

    def __abs__(self) -> Number:
        return self.apply("abs")

    def __lt__(self, other: Number | float) -> Number:
        return self.apply("lt", other, dtype=dtypes.bool_)

    def __le__(self, other: Number | float) -> Number:
        return self.apply("le", other, dtype=dtypes.bool_)

    def __gt__(self, other: Number | float) -> Number:
        return self.apply("gt", other, dtype=dtypes.bool_)

    def __ge__(self, other: Number | float) -> Number:
        return self.apply("ge", other, dtype=dtypes.bool_)

    def equals(self, other: Number | float) -> Number:
        """Whether they are equal."""
        return self.apply("eq", other, dtype=dtypes.bool_)

    def differs(self, other: Number | float) -> Number:
        """Whether they differ; NaN differs from itself."""
        return self.apply("ne", other, dtype=dtypes.bool_)

    def __and__(self, other: Number | float) -> Number:
        return self.apply("and", other)

    def __or__(self, other: Number | float) -> Number:
        return self.apply("or", other)

    def __invert__(self) -> Number:
        return self.apply("not")


def where(condition: Number, on_true: Number | float, on_false: Number | float) -> Number:
    """`on_true` where the condition holds."""
    anchor = on_true if isinstance(on_true, Number) else on_false
    assert isinstance(anchor, Number)
    yes, no = anchor.like(on_true), anchor.like(on_false)
    return condition.apply("select_n", no, yes, dtype=anchor.dtype)


def fused(x: Number, y: Number | float, z: Number | float) -> Number:
    """`x * y + z`, rounded once where that is cheap."""
    value = x.algebra.fused(x.value, x.like(y).value, x.like(z).value, x.dtype)
    return Number(value, x.dtype, x.algebra)


def exact_product(x: Number, y: Number) -> tuple[Number, Number]:
    """`x * y` rounded, and what the rounding lost."""
    product = x * y
    return product, Number(x.algebra.lost(x.value, y.value, product.value, x.dtype), x.dtype, x.algebra)


def polynomial(x: Number, coefficients: Sequence[float]) -> Number:
    """Horner's scheme, highest power first."""
    result = x.constant(coefficients[0])
    for coefficient in coefficients[1:]:
        result = fused(result, x, coefficient)
    return result


def chebyshev(x: Number, coefficients: Sequence[float]) -> Number:
    """Clenshaw's scheme for a Chebyshev series, lowest order first."""
    double = x + x
    current, before = x.constant(0.0), x.constant(0.0)
    for coefficient in reversed(coefficients[1:]):
        current, before = fused(double, current, coefficient - before), current
    return fused(x, current, coefficients[0] - before)


def chosen(x: Number, single: Sequence[float], double: Sequence[float]) -> Sequence[float]:
    """Coefficients for the width of `x`."""
    return double if x.is_double else single


def sqrt(x: Number) -> Number:
    """Square root."""
    return x.apply("sqrt")


def exp(x: Number) -> Number:
    """Exponential."""
    return x.apply("exp")


def log(x: Number) -> Number:
    """Natural logarithm."""
    return x.apply("log")


def log1p(x: Number) -> Number:
    """`log(1 + x)`."""
    return x.apply("log1p")


def floor(x: Number) -> Number:
    """Largest integer not above."""
    return x.apply("floor")


def is_negative(x: Number) -> Number:
    """Whether the sign bit is set, that of zeros and NaN too."""
    return x.bitcast(np.dtype(f"int{x.dtype.itemsize * 8}")) < 0


def with_sign(size: Number, sign: Number) -> Number:
    """A number that is not negative, with the sign of another one."""
    return where(is_negative(sign), -size, size)


def is_infinite(x: Number) -> Number:
    """Whether it is infinite."""
    return abs(x).equals(math.inf)


# --- the algebra of programs --------------------------------------------------------------------


class Values:
    """Formulas on values give operations of the IR."""

    def apply(
        self, name: str, operands: Sequence[Any], types: Sequence[np.dtype], attrs: Mapping[str, Any]
    ) -> Value:  # Any: values
        """The operation of that name."""
        return trace.bind1(primitive.by_name(name), *operands, **attrs)

    def constant(self, number: float, dtype: np.dtype) -> Value:
        """A literal."""
        return Literal(np.asarray(number).astype(dtype), weak=False)

    def fused(self, x: Value, y: Value, z: Value, dtype: np.dtype) -> Value:
        """A product and a sum."""
        add, mul = primitive.by_name("add"), primitive.by_name("mul")
        return families.bind_scalars(add, families.bind_scalars(mul, x, y), z)

    def lost(self, x: Value, y: Value, product: Value, dtype: np.dtype) -> Value:
        """Dekker's product: halves of the factors multiply exactly."""
        a, b, p = (Number(v, dtype, self) for v in (x, y, product))
        (a0, a1), (b0, b1) = _halves(a), _halves(b)
        return (((a1 * b1 - p) + a1 * b0 + a0 * b1) + a0 * b0).value


def _halves(x: Number) -> tuple[Number, Number]:
    """Low and high half of the bits of a significand."""
    scaled = x * (134217729.0 if x.is_double else 4097.0)  # 2**27 + 1 and 2**12 + 1
    high = scaled - (scaled - x)
    return x - high, high


_VALUES = Values()


def on_values(x: Value) -> Number:
    """A value for formulas that give operations of the IR."""
    return Number(x, x.dtype, _VALUES)


def decomposition(formula: Callable[..., Number]) -> Callable[..., tuple[Value]]:
    """The DECOMPOSE rule of a formula; small floats are computed in float32 and rounded once."""

    def rule(*operands: Value) -> tuple[Value]:
        dtype = operands[0].dtype
        width = dtype if dtype.itemsize >= 4 else dtypes.float32
        found = formula(*(on_values(x).convert(width) for x in operands)).convert(dtype)
        return (found.value,)

    return rule
