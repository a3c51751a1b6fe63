"""Blocks of ggml's types to numbers in float32.

One function per type: it takes whole blocks, uint8 (n, bytes of a block), and gives their numbers, float32
(n, numbers of a block). Products and sums are made in ggml's order, so that results are the same bit by
bit. The layouts of blocks are facts of https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h;
types of codebooks are in `dequantizers_codebooks`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from infini.core import errors
from infini.io.gguf import dequantizers_codebooks as codebooks, parallel
from infini.io.gguf.blocks import bits, half, k_scales, nibbles, part
from infini.io.gguf.types import TensorType, type_of

Blocks = np.ndarray


def dequantize(data: np.ndarray, type: TensorType | str) -> np.ndarray:
    """Numbers of a tensor, by several threads.

    Args:
        data: uint8 (..., bytes of a row), as `GGUFTensor.data` gives them.
        type: what they mean.

    Returns:
        float32 (..., numbers of a row).

    Raises:
        UnsupportedError: nothing reads numbers of this type.
        TypeMismatchError: these are no bytes, or rows are not made of whole blocks.

    Example:
        >>> from infini.io import gguf
        >>> x = np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, 256)
        >>> bool(abs(gguf.dequantize(gguf.quantize(x, "Q6_K"), "Q6_K") - x).max() < 0.03)
        True
    """
    found = type_of(type)
    if data.dtype != np.uint8 or not data.ndim or data.shape[-1] % found.block_nbytes:
        raise errors.TypeMismatchError(
            f"these are not the bytes of rows of {found}",
            got=f"{data.dtype}{data.shape}",
            expected=f"uint8 with a last dimension that {found.block_nbytes} divides",
        )
    shape = (*data.shape[:-1], data.shape[-1] // found.block_nbytes * found.block_size)
    if found.dtype is not None:
        if found.dtype.kind in "iu":
            raise _unsupported(found)
        return np.ascontiguousarray(data).view(found.dtype).astype(np.float32).reshape(shape)
    fn = DEQUANTIZERS.get(found.name)
    if fn is None:
        raise _unsupported(found)
    blocks = np.ascontiguousarray(data).reshape(-1, found.block_nbytes)
    out = np.empty((len(blocks), found.block_size), np.float32)
    return parallel.over_blocks(fn, blocks, out, size=found.block_size).reshape(shape)


def _unsupported(found: TensorType) -> errors.UnsupportedError:
    return errors.UnsupportedError(
        f"tensors of type {found} are not turned into floats",
        expected=", ".join(["F32", "F16", "BF16", "F64", *DEQUANTIZERS]),
        fix="whole numbers are read with GGUFTensor.numpy(); Q8_1 and Q8_K are no types of files",
    )


def _q4_0(b: Blocks) -> np.ndarray:
    return half(b, 0) * (nibbles(b[:, 2:]).astype(np.int8) - np.int8(8)).astype(np.float32)


def _q4_1(b: Blocks) -> np.ndarray:
    return half(b, 0) * nibbles(b[:, 4:]).astype(np.float32) + half(b, 2)


def _fifth_bits(b: Blocks) -> np.ndarray:
    """The bits of 4 bytes, number i at bit i, in their place above four others."""
    return np.unpackbits(np.ascontiguousarray(b), axis=1, bitorder="little") << np.uint8(4)


def _q5_0(b: Blocks) -> np.ndarray:
    codes = (nibbles(b[:, 6:]) | _fifth_bits(b[:, 2:6])).astype(np.int8) - np.int8(16)
    return half(b, 0) * codes.astype(np.float32)


def _q5_1(b: Blocks) -> np.ndarray:
    codes = nibbles(b[:, 8:]) | _fifth_bits(b[:, 4:8])
    return half(b, 0) * codes.astype(np.float32) + half(b, 2)


def _q8_0(b: Blocks) -> np.ndarray:
    return b[:, 2:].view(np.int8).astype(np.float32) * half(b, 0)


def _q1_0(b: Blocks) -> np.ndarray:
    ones = np.unpackbits(np.ascontiguousarray(b[:, 2:]), axis=1, bitorder="little")
    scale = half(b, 0)
    return np.where(ones == 1, scale, -scale)


def _q2_0(b: Blocks) -> np.ndarray:
    codes = np.stack([b[:, 2:] >> np.uint8(s) & np.uint8(3) for s in (0, 2, 4, 6)], axis=-1)
    return (codes.reshape(len(b), 64).astype(np.float32) - np.float32(1)) * half(b, 0)


def _scaled(scale: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Groups of codes (n, groups, numbers) times their scales (n, groups)."""
    return (scale[:, :, None] * codes.astype(np.float32)).reshape(len(codes), -1)


def _q2_k(b: Blocks) -> np.ndarray:
    scales, codes = b[:, :16], bits(b[:, 16:80], 2, 32).reshape(-1, 16, 16)
    scale = half(b, 80) * (scales & np.uint8(15)).astype(np.float32)
    minimum = half(b, 82) * (scales >> np.uint8(4)).astype(np.float32)
    return (scale[:, :, None] * codes.astype(np.float32) - minimum[:, :, None]).reshape(-1, 256)


def _q3_k(b: Blocks) -> np.ndarray:
    low = bits(b[:, 32:96], 2, 32)
    # A third bit that is not set takes four away.
    high = (bits(b[:, :32], 1, 32) ^ np.uint8(1)) << np.uint8(2)
    codes = (low.astype(np.int8) - high.astype(np.int8)).reshape(-1, 16, 16)
    # Sixteen scales of 6 bits: 8 bytes with two low halves each, then 4 bytes with four pairs of high bits.
    scales = bits(b[:, 96:104], 4, 8) | bits(b[:, 104:108], 2, 4) << np.uint8(4)
    return _scaled(half(b, 108) * (scales.astype(np.int8) - np.int8(32)).astype(np.float32), codes)


def _k_with_minima(b: Blocks, codes: np.ndarray) -> np.ndarray:
    """Q4_K and Q5_K: eight groups of 32 with a scale and a minimum of 6 bits."""
    scales, minima = k_scales(b[:, 4:16])
    scale = half(b, 0) * scales.astype(np.float32)
    minimum = half(b, 2) * minima.astype(np.float32)
    found = scale[:, :, None] * codes.reshape(-1, 8, 32).astype(np.float32)
    found -= minimum[:, :, None]
    return found.reshape(-1, 256)


def _q4_k(b: Blocks) -> np.ndarray:
    return _k_with_minima(b, bits(b[:, 16:], 4, 32))


def _q5_k(b: Blocks) -> np.ndarray:
    return _k_with_minima(b, bits(b[:, 48:], 4, 32) | bits(b[:, 16:48], 1, 32) << np.uint8(4))


def _q6_k(b: Blocks) -> np.ndarray:
    codes = bits(b[:, :128], 4, 64) | bits(b[:, 128:192], 2, 32) << np.uint8(4)
    scale = half(b, 208) * b[:, 192:208].view(np.int8).astype(np.float32)
    return _scaled(scale, (codes.astype(np.int8) - np.int8(32)).reshape(-1, 16, 16))


_POWERS: Final = np.array([1, 3, 9, 27, 81], np.uint8)


def _ternary(b: Blocks, count: int) -> np.ndarray:
    """`count` digits of base 3 of each byte, the first digits of all bytes first. A byte is a fraction of
    256.
    """
    shifted = part(b)[:, None, :] * _POWERS[:count, None]  # wraps around: what is above the digit falls away
    return (shifted.astype(np.uint16) * np.uint16(3) >> np.uint16(8)).reshape(len(b), -1)


def _tq1_0(b: Blocks) -> np.ndarray:
    digits = np.concatenate(
        [_ternary(b[:, :32], 5), _ternary(b[:, 32:48], 5), _ternary(b[:, 48:52], 4)], axis=1
    )
    return half(b, 52) * (digits.astype(np.float32) - np.float32(1))


def _tq2_0(b: Blocks) -> np.ndarray:
    return half(b, 64) * (bits(b[:, :64], 2, 32).astype(np.float32) - np.float32(1))


# Twice the numbers of float4 (e2m1): https://www.opencompute.org/documents/ocp-microscaling-formats-
# mx-v1-0-spec-final-pdf
_E2M1: Final = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def _halves_of_powers() -> np.ndarray:
    """Half of 2 ** (byte - 127), the scales of MXFP4; the first two are subnormal."""
    exponents = np.arange(256, dtype=np.uint32)
    normal = np.maximum(exponents, 1) - 1 << np.uint32(23)
    return np.where(exponents < 2, np.uint32(0x00200000) << np.minimum(exponents, 1), normal).view(np.float32)


def _halves_of_e4m3() -> np.ndarray:
    """Half of an unsigned float of 4 and 3 bits, the scales of NVFP4; 127 means nothing and counts as 0."""
    byte = np.arange(256)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    number = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    return np.where((byte == 0) | (byte == 127), 0, number / 2).astype(np.float32)


_MX_SCALES: Final = _halves_of_powers()
_NV_SCALES: Final = _halves_of_e4m3()


def _mxfp4(b: Blocks) -> np.ndarray:
    return _MX_SCALES[b[:, :1]] * _E2M1[nibbles(b[:, 1:])]


def _nvfp4(b: Blocks) -> np.ndarray:
    codes = bits(b[:, 4:], 4, 8).reshape(-1, 4, 16)
    return (_NV_SCALES[b[:, :4]][:, :, None] * _E2M1[codes]).reshape(-1, 64)


DEQUANTIZERS: Final[dict[str, Callable[[Blocks], np.ndarray]]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
    "MXFP4": _mxfp4,
    "NVFP4": _nvfp4,
    "Q1_0": _q1_0,
    "Q2_0": _q2_0,
    **codebooks.DEQUANTIZERS,
}
