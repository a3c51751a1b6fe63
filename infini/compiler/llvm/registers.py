"""How elements of each dtype look in memory and in registers, and the way between.

In registers bool is i1 and the 16-bit floats are float32 that is rounded after every operation, so results
equal those of an interpreter that computes in float32 and rounds. In memory bool is a byte and a 16-bit
float its bits.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from infini.compiler.llvm.builder import Function, Value
from infini.compiler.llvm.types import Type, vector
from infini.core import dtypes, errors

_REGISTER: Final = {
    dtypes.bool_: "i1",
    dtypes.float16: "float",
    dtypes.bfloat16: "float",
    dtypes.float32: "float",
    dtypes.float64: "double",
} | {d: f"i{d.itemsize * 8}" for d in dtypes.INTEGERS}

_MEMORY: Final = _REGISTER | {dtypes.bool_: "i8", dtypes.float16: "i16", dtypes.bfloat16: "i16"}

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
    return x


def widen_bfloat16(f: Function, bits: Value) -> Value:
    """float32 of the bits of bfloat16."""
    wide = f.convert("zext", bits, bits.type.with_element("i32"))
    return f.bitcast(f.binary("shl", wide, f.constant(16, wide.type)), "float")


def rounded(f: Function, x: Value, dtype: np.dtype) -> Value:
    """A float32 rounded to the nearest number of a 16-bit float, ties to even; other dtypes as they are."""
    if dtype == dtypes.float16:
        return f.convert("fpext", f.convert("fptrunc", x, x.type.with_element("half")), x.type)
    if dtype == dtypes.bfloat16:
        bits = f.bitcast(x, "i32")
        last = f.binary("and", f.binary("lshr", bits, f.constant(16, bits.type)), f.constant(1, bits.type))
        moved = f.binary("add", f.binary("add", bits, f.constant(0x7FFF, bits.type)), last)
        kept = f.bitcast(f.binary("and", moved, f.constant(-0x10000, bits.type)), "float")
        return f.select(f.compare("uno", x, x), f.constant(float("nan"), x.type), kept)
    return x


def load(f: Function, pointer: Value, dtype: np.dtype, lanes: int, *, is_invariant: bool = False) -> Value:
    """Consecutive elements from memory."""
    return from_memory(
        f, f.load(pointer, vector(memory_element(dtype), lanes), is_invariant=is_invariant), dtype
    )


def masked_load(f: Function, pointer: Value, dtype: np.dtype, mask: Value, fill: complex) -> Value:
    """Consecutive elements in the lanes of a mask, `fill` in the others."""
    type_ = vector(memory_element(dtype), mask.type.lanes)
    bits = np.asarray(fill).astype(dtype)
    if dtype in (dtypes.bool_, dtypes.float16, dtypes.bfloat16):
        bits = bits.view(np.dtype(f"int{8 * dtype.itemsize}"))
    return from_memory(f, f.masked_load(pointer, mask, f.constant(bits.item(), type_)), dtype)


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
