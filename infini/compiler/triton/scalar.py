"""Elementwise operations as Triton expressions.

Rules get operand expressions whose small floats were widened to float32; the caller rounds the result once,
as the oracle does; `small_floats` says how. Only names of Triton 3.0's `tl` are used, so what that language
lacks (tanh, rounding, fmod, pow) is a helper below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from infini.compiler.triton import small_floats
from infini.compiler.triton.source import language_name, literal
from infini.core import dtypes, ir

Rule = Callable[..., str]  # rule(*operand expressions, dtypes=of the operands, attrs=...) -> expression


def _remainder(name: str, divided: str, bits: int, steps: int) -> str:
    """Text of the exact remainder of floats, with the dividend's sign.

    The dividend becomes smaller than the divisor times 2^(bits k) for one k after the other, down to 0; a
    divisor that this makes infinite takes nothing away. Each quotient has fewer bits than the significand,
    and a division that rounds correctly gives its whole part or one more, so what is left after the product
    is exact, and one correction makes it the remainder. Three times `steps` are more than two floats need.

    Args:
        name: of the function.
        divided: expression of a division of `r` by `s` that rounds correctly.
        bits: of a step's quotient.
        steps: steps whose factors one float holds.
    """
    return f"""\
@triton.jit
def {name}(x, y):
    b, r = tl.broadcast(tl.abs(y), tl.abs(x))
    for part in range(0, 3):
        near = tl.where(part < 2, {2.0 ** (bits * steps)!r}, 1.0)
        far = tl.where(part < 1, {2.0 ** (bits * steps)!r}, 1.0)
        scale = {2.0 ** (bits * (steps - 1))!r}
        for _ in range(0, {steps}):
            s = b * near * far * scale
            rest = tl.fma(-tl.floor({divided}), s, r)
            rest = tl.where(rest < 0.0, rest + s, rest)
            r = tl.where(r >= s, rest, r)
            scale = scale * {2.0**-bits!r}
    r = tl.where(b == b, r, b)
    r = tl.where(x < 0.0, -r, r)
    return tl.where((x == 0.0) & (r == 0.0), x, r)
"""


# Triton functions that expressions call; the emitter puts those in use at the head of the text.
HELPERS: Final[dict[str, str]] = small_floats.HELPERS | {
    "max_with_nan": """\
@triton.jit
def max_with_nan(x, y):
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)
""",
    "min_with_nan": """\
@triton.jit
def min_with_nan(x, y):
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)
""",
    # Functions of two elements, for reductions and scans.
    "plus": """\
@triton.jit
def plus(x, y):
    return x + y
""",
    "times": """\
@triton.jit
def times(x, y):
    return x * y
""",
    "larger": """\
@triton.jit
def larger(x, y):
    return tl.maximum(x, y)
""",
    "smaller": """\
@triton.jit
def smaller(x, y):
    return tl.minimum(x, y)
""",
    "both_bits": """\
@triton.jit
def both_bits(x, y):
    return x & y
""",
    "either_bits": """\
@triton.jit
def either_bits(x, y):
    return x | y
""",
    "unequal_bits": """\
@triton.jit
def unequal_bits(x, y):
    return x ^ y
""",
    # Of pairs (m, s) that stand for m + log(s); equal m, infinite ones too, need no scaling.
    "join_log_sums": """\
@triton.jit
def join_log_sums(m, s, n, t):
    factor = tl.exp(tl.where(m == n, 0.0, -tl.abs(m - n)))
    joined = tl.where(m > n, s + t * factor, t + s * factor)
    return tl.maximum(m, n, propagate_nan=tl.PropagateNan.ALL), joined
""",
    # Below 0.625 the odd polynomial of https://www.netlib.org/cephes (tanhf), at most 2 ulp there;
    # above it 1 - 2 / (exp(2 |x|) + 1).
    "tanh": """\
@triton.jit
def tanh(x):
    z = x * x
    p = -5.70498872745e-3 * z + 2.06390887954e-2
    p = p * z - 5.37397155531e-2
    p = p * z + 1.33314422036e-1
    p = p * z - 3.33332819422e-1
    near = p * z * x + x
    far = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(x)) + 1.0)
    far = tl.where(x < 0.0, -far, far)
    return tl.where(tl.abs(x) < 0.625, near, far)
""",
    # Through expm1 by Kahan's formula, for float64, whose accuracy the polynomial does not reach.
    "tanh_through_expm1": """\
@triton.jit
def tanh_through_expm1(x):
    y = -2.0 * tl.abs(x)
    u = tl.exp(y)
    is_one = u == 1.0
    shrunk = (u - 1.0) * (y / tl.where(is_one, -1.0, tl.log(u)))
    shrunk = tl.where(is_one, y, tl.where(u == 0.0, -1.0, shrunk))
    result = -shrunk / (shrunk + 2.0)
    return tl.where(x < 0.0, -result, result)
""",
    # Adding and taking away 2^23 rounds to even; larger numbers are whole already.
    "round_even": """\
@triton.jit
def round_even(x):
    size = tl.abs(x)
    rounded = (size + 8388608.0) - 8388608.0
    return tl.where(size < 8388608.0, tl.where(x < 0.0, -rounded, rounded), x)
""",
    "round_even_64": """\
@triton.jit
def round_even_64(x):
    size = tl.abs(x)
    rounded = (size + 4503599627370496.0) - 4503599627370496.0
    return tl.where(size < 4503599627370496.0, tl.where(x < 0.0, -rounded, rounded), x)
""",
    "float_rem": _remainder("float_rem", "tl.div_rn(r, s)", 22, 5),
    "float_rem_64": _remainder("float_rem_64", "r / s", 51, 20),
    "float_pow": """\
@triton.jit
def float_pow(x, y):
    size = tl.exp2(y * tl.log2(tl.abs(x)))
    size = tl.where((y == 0.0) | (x == 1.0) | ((x == -1.0) & (y == y)), 1.0, size)
    is_whole = tl.floor(y) == y
    is_odd = is_whole & (tl.floor(y * 0.5) * 2.0 != y)
    is_below = (x < 0.0) | ((x == 0.0) & (1.0 / x < 0.0))
    is_real = is_whole | (x == 0.0) | (x == -float("inf"))
    below = tl.where(is_real, tl.where(is_odd, -size, size), float("nan"))
    return tl.where(is_below & (y != 0.0), below, size)
""",
}


def expression(name: str, operands: Sequence[str], types: Sequence[np.dtype], attrs: ir.Attrs) -> str | None:
    """The expression of an operation, or None when there is no rule for these dtypes.

    Args:
        name: name of the operation.
        operands: expressions of the operands.
        types: their dtypes.
        attrs: attributes of the operation.
    """
    rule = RULES.get(name)
    return None if rule is None else rule(*operands, types=tuple(types), attrs=attrs)


# Operations whose rules take a number for any operand, which gets the dtype of the others.
_TAKE_NUMBERS: Final = frozenset({
    "add", "sub", "mul", "max", "min", "and", "or", "xor", "eq", "ne", "lt", "le", "gt", "ge", "select_n",
})  # fmt: skip
_SHIFTS: Final = frozenset({"shift_left", "shift_right_logical", "shift_right_arithmetic"})
_SMALLEST_NORMAL: Final = 2.0**-126


def plain_number(value: complex, dtype: np.dtype) -> str:
    """A number as a literal that means the same beside a tile of this dtype as a typed constant does; empty
    when there is none: elsewhere Triton would widen the tile, or round the number.
    """
    if dtype in (dtypes.int32, dtypes.uint32):
        return literal(value, dtype)
    if dtype not in dtypes.FLOATS or dtype.itemsize > 4:
        return ""
    number = float(value.real)
    return (
        literal(number, dtype) if number == 0 or abs(number) >= _SMALLEST_NORMAL or number != number else ""
    )


def value_of(number: str) -> float:
    """The value of a number as `plain_number` writes it."""
    return float(number.removeprefix('float("').removesuffix('")'))


def takes_number(name: str, position: int, number: str, dtype: np.dtype) -> bool:
    """Whether the rule of an operation takes a number in the place of an operand of this dtype."""
    if name in _TAKE_NUMBERS:
        return name != "select_n" or position > 0
    if name in _SHIFTS:
        return position == 1 and 0 <= int(number) < dtype.itemsize * 8
    if dtype in dtypes.INTEGERS:
        return name in ("div", "rem") and position == 1 and _divides_plainly(number, dtype)
    return name == "div"


def number(value: complex, dtype: np.dtype) -> str:
    """A number of a dtype, as arithmetic takes it: small floats in float32."""
    name = language_name(dtype) if is_wide(dtype) else "tl.float32"
    return plain_number(value, dtype) or f"tl.full((), {literal(value, dtype)}, {name})"


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+", text) is not None


def _infix(symbol: str) -> Rule:
    return lambda x, y, **_: f"({x} {symbol} {y})"


def _compare(symbol: str) -> Rule:
    def rule(x: str, y: str, *, types: Sequence[np.dtype], attrs: ir.Attrs) -> str:
        if types[0] == dtypes.bool_:
            x, y = f"{x}.to(tl.int32)", f"{y}.to(tl.int32)"
        return f"({x} {symbol} {y})"

    return rule


def _call(name: str) -> Rule:
    return lambda *operands, **_: f"{name}({', '.join(operands)})"


def _is_double(types: Sequence[np.dtype]) -> bool:
    return types[0] == dtypes.float64


def _div(x: str, y: str, *, types: Sequence[np.dtype], attrs: ir.Attrs) -> str:
    if types[0] in dtypes.INTEGERS and _divides_plainly(y, types[0]):
        return f"({x} // {y})"
    if types[0] in dtypes.INTEGERS:
        one = literal(1, types[0])
        name = language_name(types[0])
        minus_one = f"tl.full((), {np.array(-1).astype(types[0])}, {name})"
        return f"tl.where({y} == 0, {minus_one}, {x} // tl.where({y} == 0, {one}, {y}).to({name}))"
    return f"({x} / {y})" if types[0] != dtypes.float32 else f"tl.div_rn({x}, {y})"


def _divides_plainly(y: str, dtype: np.dtype) -> bool:
    """Whether a divisor is a number for which Triton's division is ours; unsigned ones stay typed, which
    Triton's division needs."""
    return _is_number(y) and int(y) > 0 and dtype == dtypes.int32


def _rem(x: str, y: str, *, types: Sequence[np.dtype], attrs: ir.Attrs) -> str:
    if types[0] in dtypes.INTEGERS and _divides_plainly(y, types[0]):
        return f"({x} % {y})"
    if types[0] in dtypes.INTEGERS:
        return f"tl.where({y} == 0, {x}, {x} % tl.where({y} == 0, 1, {y}).to({language_name(types[0])}))"
    return f"float_rem{'_64' if types[0] == dtypes.float64 else ''}({x}, {y})"


def _extremum(name: str, helper: str, symbol: str) -> Rule:
    def rule(x: str, y: str, *, types: Sequence[np.dtype], attrs: ir.Attrs) -> str:
        if types[0] == dtypes.bool_:
            return f"({x} {symbol} {y})"
        return f"{helper}({x}, {y})" if types[0] in dtypes.FLOATS else f"tl.{name}({x}, {y})"

    return rule


def _sign(x: str, *, types: Sequence[np.dtype], attrs: ir.Attrs) -> str:
    if types[0] in dtypes.FLOATS:
        return f"tl.where({x} > 0.0, 1.0, tl.where({x} < 0.0, -1.0, {x}))"
    if types[0] in dtypes.UNSIGNED:
        return f"({x} != 0).to({language_name(types[0])})"
    return f"(({x} > 0).to({language_name(types[0])}) - ({x} < 0).to({language_name(types[0])}))"


def _abs(x: str, *, types: Sequence[np.dtype], attrs: ir.Attrs) -> str:
    return x if types[0] in dtypes.UNSIGNED else f"tl.abs({x})"


def _not(x: str, *, types: Sequence[np.dtype], attrs: ir.Attrs) -> str:
    return f"({x} == 0)" if types[0] == dtypes.bool_ else f"(~{x})"


def _shift(symbol: str) -> Rule:
    def rule(x: str, y: str, *, types: Sequence[np.dtype], attrs: ir.Attrs) -> str:
        bits = types[0].itemsize * 8
        unsigned = f"tl.uint{bits}"
        if _is_number(y) and 0 <= int(y) < bits and not _is_number(x):
            if types[0] not in dtypes.SIGNED or symbol == "<<":
                return f"({x} {symbol} {y})"
            name = language_name(types[0])
            return f"({x}.to({unsigned}, bitcast=True) {symbol} {y}).to({name}, bitcast=True)"
        safe = f"({y} & {bits - 1})"
        raw = f"{x}.to({unsigned}, bitcast=True)" if types[0] in dtypes.SIGNED else x
        shifted = f"({raw} {symbol} {safe}).to({unsigned})"
        if types[0] in dtypes.SIGNED:
            shifted = f"{shifted}.to({language_name(types[0])}, bitcast=True)"
        inside = f"({y} >= 0) & ({y} < {bits})" if types[0] in dtypes.SIGNED else f"{y} < {bits}"
        return f"tl.where({inside}, {shifted}, tl.full((), 0, {language_name(types[0])}))"

    return rule


def _shift_arithmetic(x: str, y: str, *, types: Sequence[np.dtype], attrs: ir.Attrs) -> str:
    bits = types[0].itemsize * 8
    if _is_number(y) and 0 <= int(y) < bits and types[0] in dtypes.SIGNED and not _is_number(x):
        return f"({x} >> {y})"
    inside = f"({y} >= 0) & ({y} < {bits})" if types[0] in dtypes.SIGNED else f"{y} < {bits}"
    amount = f"tl.where({inside}, {y}, {bits - 1})"
    if types[0] in dtypes.SIGNED:
        return f"({x} >> {amount}.to({language_name(types[0])}))"
    signed = language_name(np.dtype(f"int{bits}"))
    shifted = f"({x}.to({signed}, bitcast=True) >> {amount}.to({signed}))"
    return f"{shifted}.to({signed}).to({language_name(types[0])}, bitcast=True)"


def _convert(x: str, *, types: Sequence[np.dtype], attrs: ir.Attrs) -> str:
    source, target = types[0], attrs["new_dtype"]
    if target == dtypes.bool_:
        return f"({x} != 0)"
    if not is_wide(source) and target == dtypes.float32:  # the caller has widened it
        return x
    if not is_wide(target):  # the caller rounds
        return f"{x}.to(tl.float32)" if is_wide(source) and source != dtypes.float32 else x
    name = language_name(target)
    if source in dtypes.FLOATS and target in dtypes.INTEGERS:
        return _saturated(x, target)
    if source == dtypes.bool_ and target in dtypes.INTEGERS:
        return f"{x}.to(tl.int32).to({name})"
    return f"{x}.to({name})"


def _saturated(x: str, target: np.dtype) -> str:
    """Float to integer: towards zero, saturating, NaN to 0."""
    bounds, name = np.iinfo(target), language_name(target)
    low, high = float(bounds.min), float(bounds.max)
    if target.itemsize < 4:
        inside = f"tl.minimum(tl.maximum(tl.where({x} == {x}, {x}, 0.0), {low!r}), {high!r})"
        return f"{inside}.to(tl.int32).to({name})"
    full = f"tl.full((), {{}}, {name})"
    inside = f"tl.where(({x} > {low!r}) & ({x} < {high!r}), {x}, 0.0).to({name})"
    upper = f"tl.where({x} >= {high!r}, {full.format(bounds.max)}, {inside})"
    return f"tl.where({x} <= {low!r}, {full.format(bounds.min)}, {upper})"


def _bitcast(x: str, *, types: Sequence[np.dtype], attrs: ir.Attrs) -> str:
    source, target = small_floats.storage_name(types[0]), small_floats.storage_name(attrs["new_dtype"])
    return x if source == target else f"{x}.to({target}, bitcast=True)"


def _by_width(narrow: str, wide: str) -> Rule:
    def rule(*operands: str, types: Sequence[np.dtype], attrs: ir.Attrs) -> str:
        return f"{wide if _is_double(types) else narrow}({', '.join(operands)})"

    return rule


def _sqrt(x: str, *, types: Sequence[np.dtype], attrs: ir.Attrs) -> str:
    return f"tl.sqrt_rn({x})" if types[0] == dtypes.float32 else f"tl.sqrt({x})"


def _pow(x: str, y: str, *, types: Sequence[np.dtype], attrs: ir.Attrs) -> str:
    width = "tl.float64" if _is_double(types) else "tl.float32"
    return f"float_pow({x}, {y}.to({width}))" if types[1] in dtypes.INTEGERS else f"float_pow({x}, {y})"


RULES: Final[dict[str, Rule]] = {
    "add": _infix("+"),
    "sub": _infix("-"),
    "mul": _infix("*"),
    "neg": lambda x, **_: f"(-{x})",
    "div": _div,
    "rem": _rem,
    "max": _extremum("maximum", "max_with_nan", "|"),
    "min": _extremum("minimum", "min_with_nan", "&"),
    "abs": _abs,
    "sign": _sign,
    "floor": _call("tl.floor"),
    "ceil": _call("tl.ceil"),
    "round_even": _by_width("round_even", "round_even_64"),
    "is_finite": lambda x, **_: f'(tl.abs({x}) < float("inf"))',
    "exp": _call("tl.exp"),
    "exp2": _call("tl.exp2"),
    "log": _call("tl.log"),
    "sin": _call("tl.sin"),
    "cos": _call("tl.cos"),
    "tanh": _by_width("tanh", "tanh_through_expm1"),
    "sqrt": _sqrt,
    "rsqrt": _call("tl.rsqrt"),
    "erf": _call("tl.erf"),
    "pow": _pow,
    "and": _infix("&"),
    "or": _infix("|"),
    "xor": _infix("^"),
    "not": _not,
    "shift_left": _shift("<<"),
    "shift_right_logical": _shift(">>"),
    "shift_right_arithmetic": _shift_arithmetic,
    "eq": _compare("=="),
    "ne": _compare("!="),
    "lt": _compare("<"),
    "le": _compare("<="),
    "gt": _compare(">"),
    "ge": _compare(">="),
    "select_n": lambda which, on_false, on_true, **_: f"tl.where({which}, {on_true}, {on_false})",
    "convert_element_type": _convert,
    "bitcast_convert_type": _bitcast,
}
# Operations that move bits and compute nothing: their small floats are not widened.
BITWISE: Final = frozenset({"select_n", "bitcast_convert_type"})


def is_wide(dtype: Any) -> bool:  # Any: a dtype
    """Whether expressions compute with this dtype as it is; small floats are widened to float32."""
    return dtype not in dtypes.FLOATS or dtype.itemsize >= 4
