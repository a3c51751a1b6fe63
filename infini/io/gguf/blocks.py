"""Taking blocks of bytes apart: what the layouts of ggml's types have in common.

Blocks are uint8 (n, bytes), and every function takes the part of the bytes that it is about.
"""

from __future__ import annotations

import numpy as np


def part(b: np.ndarray) -> np.ndarray:
    """The bytes in one piece, so that they can be seen as larger numbers."""
    return np.ascontiguousarray(b)


def half(b: np.ndarray, at: int) -> np.ndarray:
    """The float16 at byte `at` of each block, as float32 (n, 1)."""
    return part(b[:, at : at + 2]).view("<f2").astype(np.float32)


def nibbles(b: np.ndarray) -> np.ndarray:
    """The low halves of all bytes and then the high halves: (n, 2 * bytes)."""
    return np.concatenate([b & np.uint8(15), b >> np.uint8(4)], axis=1)


def bits(b: np.ndarray, width: int, run: int) -> np.ndarray:
    """Codes of `width` bits: from each run of bytes its lowest bits, then the next ones, and so on.

    Args:
        b: bytes (n, runs * run).
        width: 1, 2 or 4.
        run: bytes in a run.

    Returns:
        uint8 (n, runs * run * 8 / width).
    """
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    codes = b.reshape(len(b), -1, 1, run) >> shifts
    codes &= np.uint8((1 << width) - 1)
    return codes.reshape(len(b), -1)


def k_scales(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight scales and eight minima of 6 bits from 12 bytes, as Q4_K and Q5_K keep them: uint8 (n, 8) each.

    The first four of both have a byte of their own; its two high bits belong to one of the last four, whose
    low halves share the last four bytes.
    """
    first, second, third = b[:, :4], b[:, 4:8], b[:, 8:12]
    low, two = np.uint8(0x3F), np.uint8(0x30)
    scales = np.concatenate([first & low, third & np.uint8(15) | first >> np.uint8(2) & two], axis=1)
    minima = np.concatenate([second & low, third >> np.uint8(4) | second >> np.uint8(2) & two], axis=1)
    return scales, minima


def pack_k_scales(scales: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """The 12 bytes that `k_scales` reads."""
    high = lambda x: (x[:, 4:] >> np.uint8(4)) << np.uint8(6)  # noqa: E731
    return np.concatenate(
        [
            scales[:, :4] | high(scales),
            minima[:, :4] | high(minima),
            scales[:, 4:] & np.uint8(15) | minima[:, 4:] << np.uint8(4),
        ],
        axis=1,
    )


def pack(codes: np.ndarray, width: int, run: int) -> np.ndarray:
    """The bytes that `bits` reads: uint8 (n, codes * width / 8)."""
    parts = codes.reshape(len(codes), -1, 8 // width, run)
    found = parts[:, :, 0].copy()
    for i in range(1, 8 // width):
        found |= parts[:, :, i] << np.uint8(i * width)
    return found.reshape(len(codes), -1)
