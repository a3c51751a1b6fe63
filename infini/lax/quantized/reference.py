"""Codes to numbers in NumPy: the definition that the programs in `codes` are tested against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infini.lax.quantized.scheme import Scheme


def dequantize(planes: Sequence[np.ndarray], scheme: Scheme) -> np.ndarray:
    """The numbers (..., N, K) of planes as float32."""
    blocks, scales, *beside = planes
    numbers = _codes(blocks, scheme.bits).astype(np.float32)
    wide = scales.astype(np.float32)[..., None]
    if scheme.beside == "minimum":
        numbers = numbers * wide + beside[0].astype(np.float32)[..., None]
    elif scheme.beside == "zero_point":
        numbers = (numbers - beside[0].astype(np.float32)[..., None]) * wide
    else:
        numbers = (numbers - np.float32(scheme.center)) * wide
    return numbers.reshape(*numbers.shape[:-2], -1)


def _codes(blocks: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return np.ascontiguousarray(blocks).view(np.int8)
    low = blocks if bits == 4 else blocks[..., 4:]
    codes = np.concatenate([low & 15, low >> 4], axis=-1)
    if bits == 4:
        return codes
    return codes | np.unpackbits(blocks[..., :4], axis=-1, bitorder="little") << 4
