"""Codes to numbers in NumPy: the definition that the programs in `codes` are tested against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infini.lax.quantized import arrangement
from infini.lax.quantized.scheme import Scheme


def dequantize(planes: Sequence[np.ndarray], scheme: Scheme) -> np.ndarray:
    """The numbers (..., N, K) of planes as float32."""
    if scheme.rows > 1:
        planes = arrangement.plain_host(planes, scheme)
    if scheme.part:
        return _of_parts(planes, scheme)
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


def rounded(x: np.ndarray) -> np.ndarray:
    """Activations (..., K) as whole numbers up to 127 times a scale per 32 neighbours, as float32."""
    wide = x.astype(np.float32)
    found = np.empty_like(wide)
    for start in range(0, x.shape[-1], 32):
        group = wide[..., start : start + 32]
        scale = np.abs(group).max(-1, keepdims=True) / np.float32(127)
        inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
        inverse[~np.isfinite(inverse)] = 0
        found[..., start : start + 32] = np.rint(group * inverse) * scale
    return found


def _codes(blocks: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return np.ascontiguousarray(blocks).view(np.int8)
    low = blocks if bits == 4 else blocks[..., 4:]
    codes = np.concatenate([low & 15, low >> 4], axis=-1)
    if bits == 4:
        return codes
    return codes | np.unpackbits(blocks[..., :4], axis=-1, bitorder="little") << 4


# --- groups that are cut into parts -----------------------------------------------------------


def _of_parts(planes: Sequence[np.ndarray], scheme: Scheme) -> np.ndarray:
    blocks, scales, *minima, sub_scales = planes
    factors, offsets = _sub_scales(sub_scales, scheme)
    codes = _codes_of_parts(blocks, scheme).astype(np.float32)
    numbers = codes.reshape(*codes.shape[:-1], -1, scheme.part) - np.float32(scheme.center)
    numbers = numbers * (scales.astype(np.float32)[..., None] * factors)[..., None]
    if minima:
        numbers = numbers - (minima[0].astype(np.float32)[..., None] * offsets)[..., None]
    return numbers.reshape(*blocks.shape[:-2], -1)


def _codes_of_parts(blocks: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Codes (..., G, 256)."""

    def parts(x: np.ndarray, width: int, bits: int) -> np.ndarray:
        """Runs of `width` bytes as their first parts, then their second ones ..."""
        runs = x.reshape(*x.shape[:-1], -1, 1, width)
        shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(-1, 1)
        return (runs >> shifts & (1 << bits) - 1).reshape(*x.shape[:-1], -1)

    match scheme.bits:
        case 2:
            return parts(blocks, 32, 2)
        case 3:
            return parts(blocks[..., 32:], 32, 2) | parts(blocks[..., :32], 32, 1) << 2
        case 4:
            return parts(blocks, 32, 4)
        case 5:
            return parts(blocks[..., 32:], 32, 4) | parts(blocks[..., :32], 32, 1) << 4
    return parts(blocks[..., :128], 64, 4) | parts(blocks[..., 128:], 32, 2) << 4


def _sub_scales(x: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """Sub-scales and sub-minima, float32 (..., G, parts)."""
    if scheme.bits == 6:
        factors = offsets = np.ascontiguousarray(x).view(np.int8)
    elif scheme.bits == 2:
        factors, offsets = x & 15, x >> 4
    elif scheme.bits == 3:
        low = np.concatenate([x[..., :8] & 15, x[..., :8] >> 4], -1)
        high = np.concatenate([x[..., 8:] >> shift & 3 for shift in (0, 2, 4, 6)], -1)
        factors = offsets = (low | high << 4).astype(np.int8) - 32
    else:
        first, second, both = x[..., :4], x[..., 4:8], x[..., 8:]
        factors = np.concatenate([first & 63, both & 15 | first >> 2 & 48], -1)
        offsets = np.concatenate([second & 63, both >> 4 | second >> 2 & 48], -1)
    return factors.astype(np.float32), offsets.astype(np.float32)
