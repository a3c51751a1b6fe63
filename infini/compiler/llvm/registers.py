"""How elements of each dtype look in memory and in registers, and the way between.

In registers bool is i1 and the floats of 16 and 8 bits are float32 that is rounded after every operation, so
results equal those of an interpreter that computes in float32 and rounds. In memory bool is a byte and a
small float its bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from infini.compiler.llvm.builder import Function, Value
from infini.compiler.llvm.types import Type, vector
from infini.core import dtypes, errors

_REGISTER: Final = {
    dtypes.bool_: "i1",
    dtypes.float16: "float",
    dtypes.bfloat16: "float",
    dtypes.float8_e4m3fn: "float",
    dtypes.float8_e5m2: "float",
    dtypes.float32: "float",
    dtypes.float64: "double",
} | {d: f"i{d.itemsize * 8}" for d in dtypes.INTEGERS}

_MEMORY: Final = _REGISTER | {
    dtypes.bool_: "i8",
    dtypes.float16: "i16",
    dtypes.bfloat16: "i16",
    dtypes.float8_e4m3fn: "i8",
    dtypes.float8_e5m2: "i8",
}

SUPPORTED: Final = frozenset(_REGISTER)


def register_type(dtype: np.dtype, lanes: int = 1) -> Type:
    """Type of elements in registers.

    Raises:
        LoweringError: the CPU backend has no form for this dtype.
    """
    return vector(_lookup(_REGISTER, dtype), lanes)


def memory_element(dtype: np.dtype) -> str:
    """LLVM's name of an element in memory."""
    return _lookup(_MEMORY, dtype)


def _lookup(table: dict[np.dtype, str], dtype: np.dtype) -> str:
    if dtype not in table:
        raise errors.LoweringError(
            f"the LLVM emitter does not compute with {dtypes.short(dtype)}",
            expected=", ".join(sorted(dtypes.short(d) for d in table)),
            fix="convert to one of these first",
        )
    return table[dtype]


def is_signed(dtype: np.dtype) -> bool:
    """Whether integers of this dtype have a sign."""
    return dtype in dtypes.SIGNED


def constant(f: Function, number: complex | bool, dtype: np.dtype, lanes: int = 1) -> Value:
    """A number in register form, converted as NumPy converts it."""
    return f.constant(np.asarray(number).astype(dtype).item(), register_type(dtype, lanes))


def from_memory(f: Function, x: Value, dtype: np.dtype) -> Value:
    """Register form of a loaded value."""
    if dtype == dtypes.bool_:
        return f.compare("ne", x, f.constant(0, x.type))
    if dtype == dtypes.bfloat16:
        return widen_bfloat16(f, x)
    if dtype == dtypes.float16:
        return f.convert("fpext", f.bitcast(x, "half"), x.type.with_element("float"))
    if dtype in _BYTES:
        return _widen_byte(f, x, _BYTES[dtype])
    return x


def to_memory(f: Function, x: Value, dtype: np.dtype) -> Value:
    """Memory form of a value in registers."""
    if dtype == dtypes.bool_:
        return f.convert("zext", x, x.type.with_element("i8"))
    if dtype == dtypes.bfloat16:
        bits = f.bitcast(x, "i32")
        return f.convert(
            "trunc", f.binary("lshr", bits, f.constant(16, bits.type)), x.type.with_element("i16")
        )
    if dtype == dtypes.float16:
        return f.bitcast(f.convert("fptrunc", x, x.type.with_element("half")), "i16")
    if dtype in _BYTES:
        return _narrow_byte(f, x, _BYTES[dtype])
    return x


def widen_bfloat16(f: Function, bits: Value) -> Value:
    """float32 of the bits of bfloat16."""
    wide = f.convert("zext", bits, bits.type.with_element("i32"))
    return f.bitcast(f.binary("shl", wide, f.constant(16, wide.type)), "float")


def rounded(f: Function, x: Value, dtype: np.dtype, *, is_of_rounded: bool = False) -> Value:
    """A float32 rounded to the nearest number of a small float, ties to even; other dtypes as they are.

    `is_of_rounded` says that it was computed from such numbers. A NaN that the processor hands on from one,
    or makes, has nothing in its lower half, so rounding to bfloat16 leaves it alone without a test.
    """
    if dtype == dtypes.float16:
        return f.convert("fpext", f.convert("fptrunc", x, x.type.with_element("half")), x.type)
    if dtype == dtypes.bfloat16:
        bits = f.bitcast(x, "i32")
        last = f.binary("and", bits, f.constant(0x10000, bits.type))
        is_odd = f.compare("ne", last, f.constant(0, bits.type))
        half = f.select(is_odd, f.constant(0x8000, bits.type), f.constant(0x7FFF, bits.type))
        moved = f.binary("add", bits, half)
        kept = f.bitcast(f.binary("and", moved, f.constant(-0x10000, bits.type)), "float")
        if is_of_rounded:
            return kept
        return f.select(f.compare("uno", x, x), f.constant(float("nan"), x.type), kept)
    if dtype in _BYTES:
        return _rounded_byte(f, x, _BYTES[dtype])
    return x


# --- floats of a byte ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Byte:
    """A float of 8 bits.

    Args:
        mantissa: bits of mantissa.
        bias: of the exponent.
        largest: largest finite number.
        special: smallest code, without its sign, that is no finite number.
    """

    mantissa: int
    bias: int
    largest: float
    special: int

    @property
    def has_infinities(self) -> bool:
        """Whether the codes from `special` on start with infinity; otherwise there is NaN only."""
        return self.special < 0x7F


_BYTES: Final = {
    dtypes.float8_e4m3fn: _Byte(3, 7, 448.0, 0x7F),
    dtypes.float8_e5m2: _Byte(2, 15, 57344.0, 0x7C),
}


def _widen_byte(f: Function, x: Value, byte: _Byte) -> Value:
    """float32 of the bits: the exponent is moved into place and its bias mended by a product, which is exact
    for subnormal numbers too.
    """
    wide = f.convert("zext", x, x.type.with_element("i32"))

    def word(number: int) -> Value:
        return f.constant(number, wide.type)

    code = f.binary("and", wide, word(0x7F))
    moved = f.binary("shl", code, word(23 - byte.mantissa))
    number = f.bitcast(moved, "float")
    number = f.bitcast(f.binary("fmul", number, f.constant(2.0 ** (127 - byte.bias), number.type)), "i32")
    infinite = f.binary("or", moved, word(0x7F800000 if byte.has_infinities else 0x7FC00000))
    size = f.select(f.compare("uge", code, word(byte.special)), infinite, number)
    sign = f.binary("shl", f.binary("and", wide, word(0x80)), word(24))
    return f.bitcast(f.binary("or", size, sign), "float")


def _narrow_byte(f: Function, x: Value, byte: _Byte) -> Value:
    """The bits of a float32 that has been rounded to a number of the format."""
    bits = f.bitcast(x, "i32")

    def word(number: int) -> Value:
        return f.constant(number, bits.type)

    size = f.binary("and", bits, word(0x7FFFFFFF))
    scaled = f.binary("fmul", f.bitcast(size, "float"), f.constant(2.0 ** (byte.bias - 127), x.type))
    code = f.binary("lshr", f.bitcast(scaled, "i32"), word(23 - byte.mantissa))
    kept = f.binary("and", f.binary("lshr", bits, word(23 - byte.mantissa)), word(0x7F))
    is_special = f.compare("uge", size, word(0x7F800000))
    code = f.select(is_special, kept if byte.has_infinities else word(byte.special), code)
    sign = f.binary("and", f.binary("lshr", bits, word(24)), word(0x80))
    return f.convert("trunc", f.binary("or", code, sign), x.type.with_element("i8"))


def _rounded_byte(f: Function, x: Value, byte: _Byte) -> Value:
    """To nearest, ties to even; too large becomes infinite, or NaN where there are no infinities."""
    bits = f.bitcast(x, "i32")

    def word(number: int) -> Value:
        return f.constant(number, bits.type)

    def number(value: float) -> Value:
        return f.constant(value, x.type)

    dropped = 23 - byte.mantissa
    size = f.binary("and", bits, word(0x7FFFFFFF))
    last = f.binary("and", f.binary("lshr", size, word(dropped)), word(1))
    moved = f.binary("add", f.binary("add", size, word((1 << (dropped - 1)) - 1)), last)
    normal = f.bitcast(f.binary("and", moved, word(-1 << dropped)), "float")
    # Below the normal numbers the format is as fine as this sum is, which therefore rounds as it should.
    raised = number(2.0 ** (24 - byte.bias - byte.mantissa))
    positive = f.bitcast(size, "float")
    tiny = f.binary("fsub", f.binary("fadd", positive, raised), raised)
    kept = f.select(f.compare("olt", positive, number(2.0 ** (1 - byte.bias))), tiny, normal)
    beyond = number(float("inf") if byte.has_infinities else float("nan"))
    kept = f.select(f.compare("ogt", kept, number(byte.largest)), beyond, kept)
    kept = f.select(f.compare("uno", x, x), number(float("nan")), kept)
    sign = f.binary("and", bits, word(-0x80000000))
    return f.bitcast(f.binary("or", f.bitcast(kept, "i32"), sign), "float")


def load(f: Function, pointer: Value, dtype: np.dtype, lanes: int, *, is_invariant: bool = False) -> Value:
    """Consecutive elements from memory."""
    return from_memory(
        f, f.load(pointer, vector(memory_element(dtype), lanes), is_invariant=is_invariant), dtype
    )


def masked_load(f: Function, pointer: Value, dtype: np.dtype, mask: Value, fill: complex) -> Value:
    """Consecutive elements in the lanes of a mask, `fill` in the others."""
    return from_memory(f, f.masked_load(pointer, mask, in_memory(f, fill, dtype, mask.type.lanes)), dtype)


def in_memory(f: Function, number: complex, dtype: np.dtype, lanes: int) -> Value:
    """A constant as memory holds it, in every lane."""
    type_ = vector(memory_element(dtype), lanes)
    bits = np.asarray(number).astype(dtype)
    if type_.element != register_type(dtype).element:
        bits = bits.view(np.dtype(f"int{8 * dtype.itemsize}"))
    return f.constant(bits.item(), type_)


def store(f: Function, x: Value, pointer: Value, dtype: np.dtype, mask: Value | None = None) -> None:
    """Store consecutive elements, those in the lanes of a mask if there is one."""
    bits = to_memory(f, x, dtype)
    if mask is None:
        f.store(bits, pointer)
    elif bits.type.lanes > 1:
        f.masked_store(bits, pointer, mask)
    else:
        with f.when(mask):
            f.store(bits, pointer)
