"""Rotary embeddings with the ways to stretch them that Hugging Face's configurations name.

Runs on JAX with its imports changed, as `gpt.py` does. Shapes: T tokens, D head width.
References: rotary embeddings (arXiv:2104.09864), linear scaling (arXiv:2306.15595), YaRN and the dynamic kind
(arXiv:2309.00071), the kind of Llama 3 (arXiv:2407.21783).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import infini.numpy as inp
from infini import Array

Kind = Literal["default", "linear", "dynamic", "llama3", "yarn"]


@dataclass(frozen=True, slots=True)
class Scaling:
    """How frequencies are changed for texts longer than those a model was first trained on.

    Args:
        kind: `default`, not at all; `linear`, all are divided by `factor`; `dynamic`, the base grows with a
            text longer than `max_length`; `llama3`, slow ones are divided by `factor`; `yarn`, the same with
            another ramp in between, and attention is sharpened.
        factor: how many times longer the texts may be.
        original_length: longest text of the first training, for `llama3` and `yarn`.
        low_factor: `llama3`: waves longer than `original_length / low_factor` are divided.
        high_factor: `llama3`: waves shorter than `original_length / high_factor` stay.
        beta_fast: `yarn`: waves that turn more often in `original_length` stay.
        beta_slow: `yarn`: waves that turn less often are divided.
        is_truncated: `yarn`: whether the ends of the ramp are whole numbers.
        attention_factor: `yarn`: cosines and sines are multiplied by it.
    """

    kind: Kind = "default"
    factor: float = 1.0
    original_length: int = 0
    low_factor: float = 1.0
    high_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    is_truncated: bool = True
    attention_factor: float = 1.0


UNSCALED: Final = Scaling()


def rotation(
    positions: Array,
    *,
    head_dim: int,
    theta: float,
    scaling: Scaling,
    max_length: int,
    num_tokens: Array | int,
) -> tuple[Array, Array]:
    """Cosines and sines of the rotary angles.

    Args:
        positions: integers of shape (T,).
        head_dim: head width D, even.
        theta: base of the frequencies.
        scaling: how they are changed.
        max_length: longest sequence that the frequencies were made for; read by `dynamic` alone.
        num_tokens: length of the text so far; read by `dynamic` alone.

    Returns:
        Two float32 arrays of shape (T, D / 2).
    """
    half = head_dim // 2
    if scaling.kind == "dynamic":
        longer = inp.maximum(num_tokens, max_length) / max_length
        stretched = scaling.factor * longer - (scaling.factor - 1.0)
        base = theta * inp.asarray(stretched, dtype=inp.float32) ** (head_dim / (head_dim - 2))
        frequencies = base ** (-inp.arange(half, dtype=inp.float32) / half)
    elif scaling.kind in ("llama3", "yarn"):
        frequencies = inp.asarray(mixed(head_dim, theta, scaling), dtype=inp.float32)
    else:
        frequencies = theta ** (-inp.arange(half, dtype=inp.float32) / half)
        if scaling.kind == "linear":
            frequencies = frequencies / scaling.factor
    angles = positions[:, None].astype(inp.float32) * frequencies
    cos, sin = inp.cos(angles), inp.sin(angles)
    if scaling.attention_factor != 1.0:
        cos, sin = cos * scaling.attention_factor, sin * scaling.attention_factor
    return cos, sin


def rotate(x: Array, by: tuple[Array, Array]) -> Array:
    """Rotate the two halves of the last axis of (B, heads, T, D) by their angles."""
    cos, sin = (part.astype(x.dtype) for part in by)
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return inp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """What YaRN multiplies cosines and sines by when a configuration does not say."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def mixed(head_dim: int, theta: float, scaling: Scaling) -> list[float]:
    """Frequencies of which some stay and some are divided by the factor: those of `llama3` and `yarn`.

    Args:
        head_dim: head width D, even.
        theta: base of the frequencies.
        scaling: how they are changed.
    """
    frequencies = [theta ** (-2.0 * index / head_dim) for index in range(head_dim // 2)]
    shares = _llama3_shares(frequencies, scaling)
    if scaling.kind == "yarn":
        shares = _yarn_shares(head_dim, theta, scaling)
    return [
        frequency * (share + (1.0 - share) / scaling.factor)
        for frequency, share in zip(frequencies, shares, strict=True)
    ]


def _llama3_shares(frequencies: list[float], scaling: Scaling) -> list[float]:
    """How much of each frequency stays: none of long waves, all of short ones, a ramp in between."""
    turns = [scaling.original_length * frequency / (2.0 * math.pi) for frequency in frequencies]
    span = scaling.high_factor - scaling.low_factor
    return [min(1.0, max(0.0, (turn - scaling.low_factor) / span)) for turn in turns]


def _yarn_shares(head_dim: int, theta: float, scaling: Scaling) -> list[float]:
    """How much of each frequency stays: a ramp over their numbers."""

    def number(turns: float) -> float:
        return (
            head_dim * math.log(scaling.original_length / (turns * 2.0 * math.pi)) / (2.0 * math.log(theta))
        )

    low, high = number(scaling.beta_fast), number(scaling.beta_slow)
    if scaling.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    span = high - low if high != low else 0.001  # as the reference does, against a division by zero
    return [1.0 - min(1.0, max(0.0, (index - low) / span)) for index in range(head_dim // 2)]
