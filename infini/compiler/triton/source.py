"""The product of the emitter: the text of one Triton function and what is needed to compile and launch it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np

from infini.core import dtypes, errors
from infini.core.ir import Shape

# Names in `tl`, and in signatures. Booleans are bytes in memory and int1 in registers; floats of 8 bits are
# held as bits, and have a name in signatures alone.
LANGUAGE_NAMES: Final[dict[np.dtype, str]] = {
    dtypes.bool_: "int1",
    dtypes.int8: "int8",
    dtypes.int16: "int16",
    dtypes.int32: "int32",
    dtypes.int64: "int64",
    dtypes.uint8: "uint8",
    dtypes.uint16: "uint16",
    dtypes.uint32: "uint32",
    dtypes.uint64: "uint64",
    dtypes.float16: "float16",
    dtypes.bfloat16: "bfloat16",
    dtypes.float32: "float32",
    dtypes.float64: "float64",
}
SIGNATURE_NAMES: Final[dict[np.dtype, str]] = {
    dtypes.bool_: "i8",
    dtypes.int8: "i8",
    dtypes.int16: "i16",
    dtypes.int32: "i32",
    dtypes.int64: "i64",
    dtypes.uint8: "u8",
    dtypes.uint16: "u16",
    dtypes.uint32: "u32",
    dtypes.uint64: "u64",
    dtypes.float16: "fp16",
    dtypes.bfloat16: "bf16",
    dtypes.float8_e4m3fn: "u8",
    dtypes.float8_e5m2: "u8",
    dtypes.float32: "fp32",
    dtypes.float64: "fp64",
}


@dataclass(frozen=True, slots=True)
class TritonSource:
    """One Triton function.

    Args:
        text: a module that holds the function, and the helpers it calls.
        function_name: the function to compile.
        signature: name and Triton type of each parameter, in order.
        constexprs: values of compile-time parameters by name.
        divisibility: parameters whose value is a multiple of 16, as every buffer's address is.
        grid: number of programs along x; one dimension, since kernels fold theirs.
        num_warps: warps of 32 threads per program.
        num_stages: loads in flight of a pipelined loop.
    """

    text: str
    function_name: str
    signature: tuple[tuple[str, str], ...]
    constexprs: tuple[tuple[str, int], ...]
    divisibility: tuple[str, ...]
    grid: tuple[int, ...]
    num_warps: int
    num_stages: int

    @property
    def key(self) -> str:
        """Hexadecimal hash of everything that decides the machine code."""
        parts = (
            self.text,
            self.function_name,
            self.signature,
            self.constexprs,
            self.divisibility,
            self.num_warps,
            self.num_stages,
        )
        return hashlib.blake2b(repr(parts).encode(), digest_size=20).hexdigest()


def language_name(dtype: np.dtype) -> str:
    """Name of a dtype in Triton's language, such as `tl.float32`.

    Raises:
        LoweringError: kernels do not compute with it.
    """
    if dtype not in LANGUAGE_NAMES:
        raise errors.LoweringError(
            f"Triton kernels do not compute with {dtypes.short(dtype)}",
            expected=", ".join(dtypes.short(d) for d in LANGUAGE_NAMES),
            fix="convert to float32 or a 16-bit float before the kernel",
        )
    return f"tl.{LANGUAGE_NAMES[dtype]}"


def padded(shape: Shape) -> Shape:
    """Shape of a tile in Triton, whose sizes are powers of two."""
    return tuple(1 << max(0, n - 1).bit_length() for n in shape)


def is_padded(shape: Shape) -> bool:
    """Whether Triton's tile is larger than the logical one."""
    return padded(shape) != shape


def literal(value: complex, dtype: np.dtype) -> str:
    """A number as a Python literal that reads back exactly."""
    if dtype == dtypes.bool_:
        return str(bool(value))
    if dtype not in dtypes.FLOATS:
        return str(int(value.real))
    number = float(value.real)
    return repr(number) if np.isfinite(number) else f'float("{number}")'
