"""Rotary position embedding (arXiv:2104.09864), in both layouts, for a part of the head, and with the scaling
of LLaMA 3.1.

Shapes: B batch, T tokens, N heads, H head size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

import infini.numpy as inp
from infini.core import dtypes, errors
from infini.core.value import Value
from infini.nn.module import Module, field
from infini.numpy._promotion import ArrayLike, as_value


@dataclass(frozen=True, slots=True)
class RotaryScaling:
    """How frequencies are slowed down for texts longer than those of training.

    Args:
        factor: longest wavelengths become this much longer.
        low_freq_factor: wavelengths above `original_max_position_embeddings` over this number are scaled
            fully.
        high_freq_factor: wavelengths below the same over this number stay. None for both scales all
            wavelengths, which is linear interpolation.
        original_max_position_embeddings: length of the texts of training.
    """

    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int = 8192


class RotaryEmbedding(Module):
    """Rotates pairs of elements of each head by angles that grow with the position.

    Args:
        dim: how many elements of a head are rotated, an even number; the others stay.
        base: the wavelength grows from 2 pi to 2 pi times this over the pairs.
        interleaved: pairs are neighbours (GPT-J, Meta's LLaMA); otherwise they are half of `dim` apart
            (Hugging Face's LLaMA, GPT-NeoX).
        scaling: how frequencies are slowed down.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import nn
        >>> rope = nn.RotaryEmbedding(8)
        >>> rope(inp.ones((1, 5, 2, 8)), inp.arange(5)).shape
        (1, 5, 2, 8)
    """

    dim: int = field(static=True)
    base: float = field(static=True)
    interleaved: bool = field(static=True)
    scaling: RotaryScaling | None = field(static=True)

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        interleaved: bool = False,
        scaling: RotaryScaling | None = None,
    ) -> None:
        if dim % 2:
            raise errors.ValueMismatchError("RotaryEmbedding: dim has to be even", got=str(dim))
        self.dim = dim
        self.base = base
        self.interleaved = interleaved
        self.scaling = scaling

    def frequencies(self) -> np.ndarray:
        """Radians per position of each pair, (dim / 2,)."""
        plain = self.base ** -(np.arange(0, self.dim, 2) / self.dim)
        scaling = self.scaling
        if scaling is None:
            return plain.astype(np.float32)
        if scaling.low_freq_factor is None or scaling.high_freq_factor is None:
            return (plain / scaling.factor).astype(np.float32)
        turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        share = np.clip((turns - low) / (high - low), 0, 1)
        return ((1 - share) * plain / scaling.factor + share * plain).astype(np.float32)

    def __call__(self, x: ArrayLike, positions: ArrayLike) -> Value:
        """Rotate queries or keys.

        Args:
            x: (..., T, N, H).
            positions: integers, (T,) or (..., T).

        Returns:
            An array of the shape and dtype of `x`; angles are float32.
        """
        value, places = as_value("RotaryEmbedding", x), as_value("RotaryEmbedding", positions)
        angles = places.astype(dtypes.float32)[..., None] * self.frequencies()  # (..., T, dim / 2)
        cosine, sine = inp.cos(angles)[..., None, :], inp.sin(angles)[..., None, :]
        rotated, rest = value[..., : self.dim].astype(dtypes.float32), value[..., self.dim :]
        if self.interleaved:
            pairs = inp.reshape(rotated, (*rotated.shape[:-1], self.dim // 2, 2))
            first, second = pairs[..., 0], pairs[..., 1]
        else:
            first, second = rotated[..., : self.dim // 2], rotated[..., self.dim // 2 :]
        parts = [first * cosine - second * sine, second * cosine + first * sine]
        if self.interleaved:
            turned = inp.reshape(inp.stack(parts, -1), rotated.shape)
        else:
            turned = inp.concatenate(parts, -1)
        turned = turned.astype(value.dtype)
        return turned if not rest.shape[-1] else inp.concatenate([turned, rest], -1)
