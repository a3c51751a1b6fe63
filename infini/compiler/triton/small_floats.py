"""Floats of 16 and of 8 bits in tiles: how they are held, and the way to float32 and back.

Those of 8 bits are held as their bits and converted by integer arithmetic, so they need no processor that
knows them. The functions that expressions call are in `HELPERS`; the emitter puts those in use at the head of
the text.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from infini.compiler.triton.source import language_name
from infini.core import dtypes


def _float_bits(number: float) -> int:
    return int(np.float32(number).view(np.int32))


def _byte_helpers(name: str, mantissa: int, bias: int, special: int, nan: int) -> dict[str, str]:
    """Functions between a float of 8 bits and float32.

    Args:
        name: of the format.
        mantissa: its bits of mantissa.
        bias: of its exponent.
        special: the code that numbers too large become: infinity, or NaN where there is none.
        nan: the code of NaN.
    """
    dropped, smallest = 23 - mantissa, 2.0 ** (1 - bias)
    # The sum with this number has the unit of the subnormal numbers, so it rounds as they need.
    raised = 2.0 ** (24 - bias - mantissa)
    infinite = 0x7F800000 if special < nan else 0x7FC00000
    widen = f"""\
@triton.jit
def widen_{name}(x):
    code = (x & 0x7F).to(tl.int32)
    sign = (x & 0x80).to(tl.int32) << 24
    normal = (code << {dropped}) + {(127 - bias) << 23}
    tiny = (code.to(tl.float32) * {smallest / 2**mantissa!r}).to(tl.int32, bitcast=True)
    size = tl.where(code < {1 << mantissa}, tiny, normal)
    size = tl.where(code >= {special}, {infinite} | (code << {dropped}), size)
    return (size | sign).to(tl.float32, bitcast=True)
"""
    narrow = f"""\
@triton.jit
def narrow_{name}(x):
    bits = x.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    sign = (bits >> 24) & 0x80
    moved = size + {(1 << (dropped - 1)) - 1} + ((size >> {dropped}) & 1)
    normal = (moved >> {dropped}) - {(127 - bias) << mantissa}
    raised = size.to(tl.float32, bitcast=True) + {raised!r}
    tiny = raised.to(tl.int32, bitcast=True) - {_float_bits(raised)}
    code = tl.where(size < {_float_bits(smallest)}, tiny, normal)
    code = tl.where(code > {special}, {special}, code)
    code = tl.where(size > 0x7F800000, {nan}, code)
    return (code | sign).to(tl.uint8)
"""
    return {f"widen_{name}": widen, f"narrow_{name}": narrow}


HELPERS: Final = _byte_helpers("e4m3fn", 3, 7, 0x7F, 0x7F) | _byte_helpers("e5m2", 2, 15, 0x7C, 0x7E)

_BYTES: Final = {dtypes.float8_e4m3fn: "e4m3fn", dtypes.float8_e5m2: "e5m2"}


def storage_name(dtype: np.dtype) -> str:
    """Name of a dtype as tiles hold it: floats of 8 bits are held as their bits."""
    return "tl.uint8" if dtype in _BYTES else language_name(dtype)


def widened(text: str, dtype: np.dtype) -> str:
    """A tile of a small float as float32."""
    return f"widen_{_BYTES[dtype]}({text})" if dtype in _BYTES else f"{text}.to(tl.float32)"


def narrowed(text: str, dtype: np.dtype) -> str:
    """A float32 rounded to a small float, as tiles hold it."""
    return f"narrow_{_BYTES[dtype]}({text})" if dtype in _BYTES else f"{text}.to({language_name(dtype)})"
