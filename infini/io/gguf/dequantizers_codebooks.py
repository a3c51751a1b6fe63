"""Blocks of ggml's types with codebooks (IQ*) to numbers in float32, as `dequantizers` has it for the others.

A code of these types names a row of 4 or 8 magnitudes; signs are stored beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from infini.io.gguf import codebooks
from infini.io.gguf.blocks import bits, half, part

Blocks = np.ndarray

_HALF: Final = np.float32(0.5)
_QUARTER: Final = np.float32(0.25)
_DELTA: Final = np.float32(0.125)

# Levels of IQ4_NL and IQ4_XS.
_LEVELS: Final = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)  # fmt: skip


def _signed(scale: np.ndarray, rows: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """scale (n, groups) times rows of magnitudes and their signs, both (n, groups, numbers of a group)."""
    found = rows.reshape(len(scale), scale.shape[1], -1)
    found *= scale[:, :, None]
    found *= signs.reshape(found.shape)
    return found.reshape(len(scale), -1)


def _words(b: Blocks) -> np.ndarray:
    return part(b).view("<u4")


def _signs_of_words(words: np.ndarray) -> np.ndarray:
    """Four times seven bits, each naming eight signs: (n, groups, 4, 8)."""
    shifts = np.arange(0, 28, 7, dtype=np.uint32)
    return codebooks.EVEN_SIGNS[words[..., None] >> shifts & np.uint32(127)]


def _iq2_xxs(b: Blocks) -> np.ndarray:
    words = _words(b[:, 2:]).reshape(-1, 8, 2)
    scale = half(b, 0) * (_HALF + (words[..., 1] >> np.uint32(28)).astype(np.float32)) * _QUARTER
    codes = part(words[..., 0]).view(np.uint8)  # (n, 32)
    return _signed(scale, codebooks.iq2_xxs()[codes], _signs_of_words(words[..., 1]))


def _scales_of_16(b: Blocks, at: int) -> np.ndarray:
    """Scales of 16 groups of 16 from 8 bytes: IQ2_XS and IQ2_S."""
    return half(b, 0) * (_HALF + bits(b[:, at : at + 8], 4, 1).astype(np.float32)) * _QUARTER


def _iq2_xs(b: Blocks) -> np.ndarray:
    codes = part(b[:, 2:66]).view("<u2")
    rows = codebooks.iq2_xs()[codes & np.uint16(511)]
    return _signed(_scales_of_16(b, 66), rows, codebooks.EVEN_SIGNS[codes >> np.uint16(9)])


def _iq2_s(b: Blocks) -> np.ndarray:
    codes = b[:, 2:34] | bits(b[:, 66:74], 2, 1).astype(np.uint16) << np.uint16(8)
    return _signed(_scales_of_16(b, 74), codebooks.iq2_s()[codes], codebooks.SIGNS[b[:, 34:66]])


def _iq3_xxs(b: Blocks) -> np.ndarray:
    words = _words(b[:, 66:98])
    scale = half(b, 0) * (_HALF + (words >> np.uint32(28)).astype(np.float32)) * _HALF
    return _signed(scale, codebooks.iq3_xxs()[b[:, 2:66]], _signs_of_words(words))


def _iq3_s(b: Blocks) -> np.ndarray:
    codes = b[:, 2:66] | bits(b[:, 66:74], 1, 1).astype(np.uint16) << np.uint16(8)
    scale = half(b, 0) * (np.float32(1) + np.float32(2) * bits(b[:, 106:110], 4, 1).astype(np.float32))
    return _signed(scale, codebooks.iq3_s()[codes], codebooks.SIGNS[b[:, 74:106]])


def _moved(scale: np.ndarray, rows: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """scale (n, groups) times rows that are moved by delta (n, rows): IQ1_S and IQ1_M."""
    rows += delta[:, :, None]
    found = rows.reshape(len(scale), scale.shape[1], -1)
    found *= scale[:, :, None]
    return found.reshape(len(scale), -1)


def _iq1_s(b: Blocks) -> np.ndarray:
    high = part(b[:, 34:50]).view(
        "<u2"
    )  # (n, 8): four times three bits of codes, three of the scale, the sign
    three = high[..., None] >> np.array([0, 3, 6, 9], np.uint16) & np.uint16(7)
    codes = b[:, 2:34] | three.reshape(-1, 32) << np.uint16(8)
    scale = half(b, 0) * (np.uint16(2) * (high >> np.uint16(12) & np.uint16(7)) + np.uint16(1)).astype(
        np.float32
    )
    delta = np.where(high & np.uint16(0x8000), -_DELTA, _DELTA)
    return _moved(scale, codebooks.iq1()[codes], np.repeat(delta, 4, axis=1))


def _iq1_m(b: Blocks) -> np.ndarray:
    packed = part(b[:, 48:56]).view("<u2")  # (n, 4): four times three bits of scales, four of the float16
    whole = packed >> np.uint16(12) << np.array([0, 4, 8, 12], np.uint16)
    super_scale = np.bitwise_or.reduce(whole, axis=1, keepdims=True).view(np.float16).astype(np.float32)
    scales = (packed[..., None] >> np.array([0, 3, 6, 9], np.uint16) & np.uint16(7)).reshape(-1, 16)
    high = bits(b[:, 32:48], 4, 1)  # (n, 32): three bits of the code and the sign
    codes = b[:, :32] | (high & np.uint8(7)).astype(np.uint16) << np.uint16(8)
    scale = super_scale * (np.uint16(2) * scales + np.uint16(1)).astype(np.float32)
    return _moved(scale, codebooks.iq1()[codes], np.where(high & np.uint8(8), -_DELTA, _DELTA))


def _iq4_nl(b: Blocks) -> np.ndarray:
    return half(b, 0) * _LEVELS[bits(b[:, 2:], 4, 16)]


def _iq4_xs(b: Blocks) -> np.ndarray:
    high = part(b[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & np.uint16(3)
    scales = bits(b[:, 4:8], 4, 1) | high.astype(np.uint8) << np.uint8(4)
    scale = half(b, 0) * (scales.astype(np.int8) - np.int8(32)).astype(np.float32)
    levels = _LEVELS[bits(b[:, 8:], 4, 16)].reshape(-1, 8, 32)
    return (scale[:, :, None] * levels).reshape(-1, 256)


DEQUANTIZERS: Final[dict[str, Callable[[Blocks], np.ndarray]]] = {
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ2_S": _iq2_s,
    "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
    "IQ1_S": _iq1_s,
    "IQ1_M": _iq1_m,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
