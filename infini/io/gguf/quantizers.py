"""Numbers to blocks of ggml's types, by several threads.

Q4_0 to Q8_0, TQ1_0, TQ2_0 and MXFP4 are defined by what the package `gguf` makes, and are the same bytes.
Types whose scales are searched for are in `quantizers_k`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from infini.core import errors
from infini.io.gguf import parallel, quantizers_k
from infini.io.gguf.blocks import pack
from infini.io.gguf.types import TensorType, type_of


def quantize(x: np.ndarray, type: TensorType | str) -> np.ndarray:
    """The bytes of a tensor.

    Args:
        x: floats (..., numbers of a row).
        type: what to store them as.

    Returns:
        uint8 (..., bytes of a row).

    Raises:
        UnsupportedError: nothing makes blocks of this type.
        ValueMismatchError: rows are not made of whole blocks.

    Example:
        >>> quantize(np.ones((2, 64), np.float32), "Q4_0").shape
        (2, 36)
    """
    found = type_of(type)
    row = found.row_nbytes(x.shape[-1])
    if found.dtype is not None:
        with np.errstate(over="ignore"):  # what is too large for a float16 is infinite
            return np.ascontiguousarray(x.astype(found.dtype)).view(np.uint8).reshape(*x.shape[:-1], row)
    fn = QUANTIZERS.get(found.name)
    if fn is None:
        raise errors.UnsupportedError(
            f"nothing quantises to {found}",
            expected=", ".join(["F32", "F16", "BF16", *QUANTIZERS]),
            fix="choose one of these types",
        )
    blocks = np.ascontiguousarray(x).reshape(-1, found.block_size)
    out = np.empty((len(blocks), found.block_nbytes), np.uint8)
    convert = lambda b: fn(b.astype(np.float32, copy=False))  # noqa: E731
    return parallel.over_blocks(convert, blocks, out, size=found.block_size).reshape(*x.shape[:-1], row)


def can_quantize(type: TensorType | str) -> bool:
    """Whether `quantize` makes this type."""
    found = type_of(type)
    return found.dtype is not None or found.name in QUANTIZERS


def _half(x: np.ndarray) -> np.ndarray:
    """Bytes (n, 2) of float16 of numbers (n, 1)."""
    return x.astype("<f2").view(np.uint8)


def _inverse(scale: np.ndarray) -> np.ndarray:
    """1 / scale, and 0 for 0."""
    return np.where(scale == 0, np.float32(0), np.float32(1) / scale)


def _extreme(x: np.ndarray) -> np.ndarray:
    """The number farthest from zero, with its sign: (n, 1)."""
    return np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)


def _codes(x: np.ndarray, top: int) -> np.ndarray:
    return x.astype(np.uint8).clip(0, top)


def _symmetric(x: np.ndarray, half_range: int) -> tuple[np.ndarray, np.ndarray]:
    scale = _extreme(x) / np.float32(-half_range)
    codes = _codes(x * _inverse(scale) + np.float32(half_range + 0.5), 2 * half_range - 1)
    return _half(scale), codes


def _with_minimum(x: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    low = x.min(axis=1, keepdims=True)
    scale = (x.max(axis=1, keepdims=True) - low) / np.float32(top)
    return _half(scale), _half(low), _codes((x - low) * _inverse(scale) + np.float32(0.5), top)


def _fifth_bits(codes: np.ndarray) -> np.ndarray:
    return np.packbits(codes >> np.uint8(4), axis=1, bitorder="little")


def _low_halves(codes: np.ndarray) -> np.ndarray:
    return pack(codes & np.uint8(15), 4, 16)


def _q4_0(x: np.ndarray) -> np.ndarray:
    scale, codes = _symmetric(x, 8)
    return np.concatenate([scale, pack(codes, 4, 16)], axis=1)


def _q4_1(x: np.ndarray) -> np.ndarray:
    scale, low, codes = _with_minimum(x, 15)
    return np.concatenate([scale, low, pack(codes, 4, 16)], axis=1)


def _q5_0(x: np.ndarray) -> np.ndarray:
    scale, codes = _symmetric(x, 16)
    return np.concatenate([scale, _fifth_bits(codes), _low_halves(codes)], axis=1)


def _q5_1(x: np.ndarray) -> np.ndarray:
    scale, low, codes = _with_minimum(x, 31)
    return np.concatenate([scale, low, _fifth_bits(codes), _low_halves(codes)], axis=1)


def _rounded(x: np.ndarray) -> np.ndarray:
    """Nearest whole numbers as int8; halves go away from zero.

    Adding the largest float below a half, and cutting, would round 0.49999997 wrongly; twice the rest is
    exact.
    """
    size = np.abs(x)
    whole = np.floor(size)
    return np.copysign(whole + np.floor(2 * (size - whole)), x).astype(np.int8)


def _q8_0(x: np.ndarray) -> np.ndarray:
    scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    return np.concatenate([_half(scale), _rounded(x * _inverse(scale)).view(np.uint8)], axis=1)


def _ternary(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = np.abs(x).max(axis=1, keepdims=True)
    return _half(scale), (_rounded(x * _inverse(scale)) + np.int8(1)).view(np.uint8)


def _fractions(digits: np.ndarray, count: int) -> np.ndarray:
    """`count` digits of base 3 in a byte, as a fraction of 256 rounded up: what `dequantize` takes apart."""
    powers = np.array([81, 27, 9, 3, 1][:count], np.uint16)[:, None]
    whole = (digits.reshape(len(digits), count, -1) * powers).sum(axis=1, dtype=np.uint16)
    return ((whole * np.uint16(256) + np.uint16(242)) // np.uint16(243)).astype(np.uint8)


def _tq1_0(x: np.ndarray) -> np.ndarray:
    scale, digits = _ternary(x)
    parts = [
        _fractions(digits[:, :160], 5),
        _fractions(digits[:, 160:240], 5),
        _fractions(digits[:, 240:], 4),
    ]
    return np.concatenate([*parts, scale], axis=1)


def _tq2_0(x: np.ndarray) -> np.ndarray:
    scale, digits = _ternary(x)
    return np.concatenate([pack(digits, 2, 32), scale], axis=1)


QUANTIZERS: Final[dict[str, Callable[[np.ndarray], np.ndarray]]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
    **quantizers_k.QUANTIZERS,
}
