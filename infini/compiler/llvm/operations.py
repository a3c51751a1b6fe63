"""What each elementwise operation is in LLVM: one table entry per operation, from register values to a
register value.

Entries are given values in the register form of `registers` and the dtype of the first operand. `weight` is
a rough number of instructions, used to choose unrolling, tasks, and what is worth keeping.
"""

from __future__ import annotations

import math as pymath
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from infini.compiler.llvm import math, math64, registers
from infini.compiler.llvm.builder import Function, Value
from infini.compiler.llvm.types import vector
from infini.core import dtypes, errors
from infini.lax.elementwise import formulas
from infini.lax.elementwise.number import Number

Emitter: TypeAlias = Callable[..., Value]  # (f, dtype, *operands, **attrs) -> value


def _arithmetic(float_op: str, int_op: str) -> Emitter:
    return lambda f, dtype, a, b: f.binary(float_op if a.type.is_float else int_op, a, b)


def _neg(f: Function, dtype: np.dtype, x: Value) -> Value:
    if x.type.is_float:
        return f.pure(f"fneg {x.type} {x}", x.type, x)
    return f.binary("sub", f.constant(0, x.type), x)


def _guarded_division(op: str) -> Emitter:
    """Integers towards zero; by zero the quotient is -1 and the remainder `x`, as in XLA."""

    def emit(f: Function, dtype: np.dtype, a: Value, b: Value) -> Value:
        zero, one, all_ones = (f.constant(n, a.type) for n in (0, 1, -1))
        by_zero = f.compare("eq", b, zero)
        unsafe = by_zero
        signed = registers.is_signed(dtype)
        if signed:  # the smallest number divided by -1 would trap
            by_minus_one = f.compare("eq", b, all_ones)
            unsafe = f.binary("or", by_zero, by_minus_one)
        safe = f.select(unsafe, one, b)
        result = f.binary(f"{'s' if signed else 'u'}{op}", a, safe)
        if signed:
            result = f.select(by_minus_one, f.binary("sub", zero, a) if op == "div" else zero, result)
        return f.select(by_zero, all_ones if op == "div" else a, result)

    return emit


_integer_div, _integer_rem = _guarded_division("div"), _guarded_division("rem")


def _div(f: Function, dtype: np.dtype, a: Value, b: Value) -> Value:
    return f.binary("fdiv", a, b) if a.type.is_float else _integer_div(f, dtype, a, b)


def _rem(f: Function, dtype: np.dtype, a: Value, b: Value) -> Value:
    return _transcendental("rem")(f, dtype, a, b) if a.type.is_float else _integer_rem(f, dtype, a, b)


def extremum(f: Function, dtype: np.dtype, a: Value, b: Value, *, greater: bool) -> Value:
    """Larger or smaller of two; NaN wins."""
    if a.type.is_float:
        better = f.select(f.compare("ogt" if greater else "olt", a, b), a, b)  # b when unordered
        return f.select(f.compare("uno", a, a), a, better)
    predicate = ("s" if registers.is_signed(dtype) else "u") + ("gt" if greater else "lt")
    return f.select(f.compare(predicate, a, b), a, b)


def _abs(f: Function, dtype: np.dtype, x: Value) -> Value:
    if x.type.is_float:
        return f.intrinsic("fabs", x)
    if not registers.is_signed(dtype):
        return x
    return f.select(f.compare("slt", x, f.constant(0, x.type)), _neg(f, dtype, x), x)


def _sign(f: Function, dtype: np.dtype, x: Value) -> Value:
    zero, one = f.constant(0, x.type), f.constant(1, x.type)
    if not x.type.is_float and not registers.is_signed(dtype):
        return f.select(f.compare("ne", x, zero), one, zero)
    less, greater = ("olt", "ogt") if x.type.is_float else ("slt", "sgt")
    below = f.select(f.compare(less, x, zero), f.constant(-1, x.type), x)  # zero and NaN stay
    return f.select(f.compare(greater, x, zero), one, below)


def _transcendental(name: str) -> Emitter:
    """A function with vector code for float32 and for float64; small floats are float32 here."""

    def emit(f: Function, dtype: np.dtype, *operands: Value) -> Value:
        table = math64.FLOAT64 if operands[0].type.element == "double" else math.FLOAT32
        return table[name](f, *operands)

    return emit


class _Registers:
    """Formulas on registers give instructions."""

    def __init__(self, f: Function, lanes: int) -> None:
        self.f = f
        self.lanes = lanes

    def apply(
        self, name: str, operands: Sequence[Value], types: Sequence[np.dtype], attrs: Mapping[str, Any]
    ) -> Value:  # Any: attributes are of many types
        """The operation of that name."""
        return _TABLE[name][0](self.f, types[0], *operands, **attrs)

    def constant(self, number: float, dtype: np.dtype) -> Value:
        """A literal in every lane."""
        return registers.constant(self.f, number, dtype, self.lanes)

    def fused(self, x: Value, y: Value, z: Value, dtype: np.dtype) -> Value:
        """One instruction."""
        return self.f.fma(x, y, z)

    def lost(self, x: Value, y: Value, product: Value, dtype: np.dtype) -> Value:
        """One instruction."""
        return self.f.fma(x, y, _neg(self.f, dtype, product))


def _formula(single: Callable[..., Number], double: Callable[..., Number] | None = None) -> Emitter:
    """An operation by its formula, or by one for each width."""

    def emit(f: Function, dtype: np.dtype, *operands: Value) -> Value:
        type_ = operands[0].type
        is_double = type_.element == "double"
        algebra, width = _Registers(f, type_.lanes), dtypes.float64 if is_double else dtypes.float32
        formula = double or single if is_double else single
        return formula(*(Number(x, width, algebra) for x in operands)).value

    return emit


def _by_width(single: Emitter, double: Emitter) -> Emitter:
    return lambda f, dtype, *operands: (double if operands[0].type.element == "double" else single)(
        f, dtype, *operands
    )


def _rsqrt(f: Function, dtype: np.dtype, x: Value) -> Value:
    return f.binary("fdiv", f.constant(1.0, x.type), f.intrinsic("sqrt", x))


def _integer_pow(f: Function, dtype: np.dtype, x: Value, *, y: int) -> Value:
    multiply = "fmul" if x.type.is_float else "mul"
    result: Value | None = None
    square, left = x, -y if y < 0 else y
    while left:
        if left & 1:
            result = square if result is None else f.binary(multiply, result, square)
        left >>= 1
        if left:
            square = f.binary(multiply, square, square)
    one = f.constant(1, x.type)
    if result is None:
        return one
    return f.binary("fdiv", one, result) if y < 0 else result


def _comparison(float_predicate: str, order: str) -> Emitter:
    def emit(f: Function, dtype: np.dtype, a: Value, b: Value) -> Value:
        if a.type.is_float:
            return f.compare(float_predicate, a, b)
        sign = "" if order in ("eq", "ne") else "s" if registers.is_signed(dtype) else "u"
        return f.compare(sign + order, a, b)

    return emit


def _shift(op: str) -> Emitter:
    def emit(f: Function, dtype: np.dtype, a: Value, b: Value) -> Value:
        inside = f.compare("ult", b, f.constant(a.type.bits, a.type))
        amount = f.select(inside, b, f.constant(0, a.type))
        return f.select(inside, f.binary(op, a, amount), f.constant(0, a.type))

    return emit


def _shift_right_arithmetic(f: Function, dtype: np.dtype, a: Value, b: Value) -> Value:
    largest = f.constant(a.type.bits - 1, a.type)
    return f.binary("ashr", a, f.select(f.compare("ult", b, largest), b, largest))


def _not(f: Function, dtype: np.dtype, x: Value) -> Value:
    return f.binary("xor", x, f.constant(-1 if x.type.element != "i1" else True, x.type))


def convert(f: Function, source: np.dtype, x: Value, *, new_dtype: np.dtype) -> Value:
    """Convert between dtypes as `lax.convert_element_type` does: floats to integers towards zero,
    saturating, NaN to 0."""
    target = registers.register_type(new_dtype, x.type.lanes)
    if source == new_dtype:
        return x
    if new_dtype == dtypes.bool_:
        return f.compare("une" if x.type.is_float else "ne", x, f.constant(0, x.type))
    if x.type.is_float and target.is_float:
        op = "fpext" if target.bits > x.type.bits else "fptrunc"
        return registers.rounded(f, f.convert(op, x, target), new_dtype)
    if target.is_float:
        op = "sitofp" if registers.is_signed(source) else "uitofp"
        return registers.rounded(f, f.convert(op, x, target), new_dtype)
    if x.type.is_float:
        return _saturating(f, x, new_dtype)
    if target.bits <= x.type.bits:
        return f.convert("trunc", x, target) if target.bits < x.type.bits else x
    return f.convert("sext" if registers.is_signed(source) else "zext", x, target)


def _saturating(f: Function, x: Value, new_dtype: np.dtype) -> Value:
    target = registers.register_type(new_dtype, x.type.lanes)
    lanes = "" if x.type.lanes == 1 else f"v{x.type.lanes}"
    name = "fptosi" if registers.is_signed(new_dtype) else "fptoui"
    symbol = f"@llvm.{name}.sat.{lanes}{target.element}.{lanes}f{x.type.bits}"
    f.declare(f"declare {target} {symbol}({x.type})")
    return f.pure(f"call {target} {symbol}({x.type} {x})", target, x)


def _bitcast(f: Function, source: np.dtype, x: Value, *, new_dtype: np.dtype) -> Value:
    if source == new_dtype:
        return x
    bits = registers.to_memory(f, x, source)
    return registers.from_memory(f, f.bitcast(bits, registers.memory_element(new_dtype)), new_dtype)


def _clamp(f: Function, dtype: np.dtype, low: Value, x: Value, high: Value) -> Value:
    raised = extremum(f, dtype, x, low, greater=True)
    return extremum(f, dtype, raised, high, greater=False)


def _count_leading_zeros(f: Function, dtype: np.dtype, x: Value) -> Value:
    lanes = "" if x.type.lanes == 1 else f"v{x.type.lanes}"
    symbol = f"@llvm.ctlz.{lanes}{x.type.element}"
    f.declare(f"declare {x.type} {symbol}({x.type}, i1)")
    return f.pure(f"call {x.type} {symbol}({x.type} {x}, i1 false)", x.type, x)


def _mulhi(f: Function, dtype: np.dtype, a: Value, b: Value) -> Value:
    bits = a.type.bits
    wide = vector(f"i{2 * bits}", a.type.lanes)
    extend, shift = ("sext", "ashr") if registers.is_signed(dtype) else ("zext", "lshr")
    product = f.binary("mul", f.convert(extend, a, wide), f.convert(extend, b, wide))
    return f.convert("trunc", f.binary(shift, product, f.constant(bits, wide)), a.type)


def _is_finite(f: Function, dtype: np.dtype, x: Value) -> Value:
    return f.compare("olt", f.intrinsic("fabs", x), f.constant(pymath.inf, x.type))


def _intrinsic(name: str) -> Emitter:
    return lambda f, dtype, x: f.intrinsic(name, x)


# name: (emitter, weight)
_TABLE: Final[dict[str, tuple[Emitter, int]]] = {
    "add": (_arithmetic("fadd", "add"), 1),
    "sub": (_arithmetic("fsub", "sub"), 1),
    "mul": (_arithmetic("fmul", "mul"), 1),
    "neg": (_neg, 1),
    "div": (_div, 8),
    "rem": (_rem, 100),
    "max": (lambda f, dtype, a, b: extremum(f, dtype, a, b, greater=True), 3),
    "min": (lambda f, dtype, a, b: extremum(f, dtype, a, b, greater=False), 3),
    "abs": (_abs, 1),
    "sign": (_sign, 4),
    "floor": (_intrinsic("floor"), 1),
    "ceil": (_intrinsic("ceil"), 1),
    "round_even": (_intrinsic("roundeven"), 1),
    "is_finite": (_is_finite, 2),
    "round_away": (_intrinsic("round"), 2),
    "exp": (_transcendental("exp"), 22),
    "exp2": (_transcendental("exp2"), 20),
    "log": (_transcendental("log"), 28),
    "log1p": (_transcendental("log1p"), 45),
    "expm1": (_transcendental("expm1"), 22),
    "logistic": (_transcendental("logistic"), 30),
    "sin": (_transcendental("sin"), 45),
    "cos": (_transcendental("cos"), 45),
    "tan": (_transcendental("tan"), 60),
    "asin": (_formula(formulas.asin), 45),
    "acos": (_formula(formulas.acos), 45),
    "atan": (_formula(formulas.atan), 40),
    "atan2": (_formula(formulas.atan2), 60),
    "sinh": (_formula(formulas.sinh), 70),
    "cosh": (_formula(formulas.cosh), 60),
    "tanh": (_by_width(_transcendental("tanh"), _formula(formulas.tanh)), 28),
    "asinh": (_formula(formulas.asinh), 100),
    "acosh": (_formula(formulas.acosh), 100),
    "atanh": (_formula(formulas.atanh), 60),
    "sqrt": (_intrinsic("sqrt"), 10),
    "rsqrt": (_rsqrt, 18),
    "cbrt": (_formula(formulas.cbrt), 80),
    "erf": (_by_width(_transcendental("erf"), _formula(formulas.erf)), 28),
    "erfc": (_formula(formulas.erfc), 70),
    "erf_inv": (_formula(formulas.erf_inv), 80),
    "lgamma": (_formula(formulas.lgamma), 220),
    "digamma": (_formula(formulas.digamma), 250),
    "bessel_i0e": (_formula(formulas.bessel_i0e), 110),
    "bessel_i1e": (_formula(formulas.bessel_i1e), 110),
    "pow": (_transcendental("pow"), 140),
    "integer_pow": (_integer_pow, 4),
    "clamp": (_clamp, 6),
    "mulhi": (_mulhi, 6),
    "population_count": (_intrinsic("ctpop"), 3),
    "clz": (_count_leading_zeros, 3),
    "and": (lambda f, dtype, a, b: f.binary("and", a, b), 1),
    "or": (lambda f, dtype, a, b: f.binary("or", a, b), 1),
    "xor": (lambda f, dtype, a, b: f.binary("xor", a, b), 1),
    "not": (_not, 1),
    "shift_left": (_shift("shl"), 4),
    "shift_right_logical": (_shift("lshr"), 4),
    "shift_right_arithmetic": (_shift_right_arithmetic, 3),
    "eq": (_comparison("oeq", "eq"), 1),
    "ne": (_comparison("une", "ne"), 1),
    "lt": (_comparison("olt", "lt"), 1),
    "le": (_comparison("ole", "le"), 1),
    "gt": (_comparison("ogt", "gt"), 1),
    "ge": (_comparison("oge", "ge"), 1),
    "select_n": (lambda f, dtype, which, on_false, on_true: f.select(which, on_true, on_false), 1),
    "convert_element_type": (convert, 2),
    "bitcast_convert_type": (_bitcast, 1),
}

_BY_LANE: Final = frozenset({"pow", "rem"})  # calls of the C library in float64
_LONG: Final = 20
_ROUNDING: Final = {1: 14, 2: 4}  # instructions to round a float32 to a float of so many bytes

# Operations whose result on small floats needs no rounding, because it is one of them or has been rounded.
_EXACT: Final = frozenset(
    {"neg", "max", "min", "clamp", "abs", "sign", "floor", "ceil", "round_even", "round_away", "select_n",
     "convert_element_type", "bitcast_convert_type"}
)  # fmt: skip

NAMES: Final = frozenset(_TABLE)


def weight(name: str, dtype: np.dtype) -> int:
    """Rough number of instructions of an operation per vector."""
    cost = _TABLE[name][1]
    if dtype == dtypes.float64 and name in _BY_LANE:
        return 400
    if not dtypes.is_float(dtype) and name in ("div", "rem"):
        return 100
    if dtype == dtypes.float64 and cost > _LONG:
        return 2 * cost  # longer polynomials
    is_rounded = dtypes.is_float(dtype) and name not in _EXACT
    return cost + (_ROUNDING.get(dtype.itemsize, 0) if is_rounded else 0)


def emit(
    f: Function,
    name: str,
    operand_dtypes: Sequence[np.dtype],
    out_dtype: np.dtype,
    operands: Sequence[Value],
    attrs: Mapping[str, Any],  # Any: attributes are of many types
) -> Value:
    """The result of an elementwise operation.

    Raises:
        LoweringError: there is no entry for it.
    """
    if name not in _TABLE:
        raise errors.LoweringError(
            f"the LLVM emitter has no code for {name!r}", expected=", ".join(sorted(_TABLE))
        )
    if name == "pow" and operand_dtypes[1] in dtypes.INTEGERS:  # a whole exponent counts as it is, unrounded
        width = operand_dtypes[0] if operand_dtypes[0] == dtypes.float64 else dtypes.float32
        operands = (operands[0], convert(f, operand_dtypes[1], operands[1], new_dtype=width))
    result = _TABLE[name][0](f, operand_dtypes[0], *operands, **attrs)
    if name in _EXACT:
        return result
    is_of_rounded = all(dtype == out_dtype for dtype in operand_dtypes)
    return registers.rounded(f, result, out_dtype, is_of_rounded=is_of_rounded)
