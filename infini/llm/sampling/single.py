"""Choosing the next token from logits, as a pure function that can be jitted.

References: nucleus sampling (arXiv:1904.09751); the Gumbel-max trick, by `random.categorical`.
"""

from __future__ import annotations

from dataclasses import dataclass

import infini.numpy as inp
from infini import Array, random
from infini.core import errors


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose; hashable, so it can be a static argument.

    Args:
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: only the likeliest `top_k` tokens are candidates; 0 means all.
        top_p: only the likeliest tokens that together have at least this probability are; 1 means all.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0.0:
            raise errors.ValueMismatchError("the temperature must be at least 0", got=repr(self.temperature))
        if self.top_k < 0:
            raise errors.ValueMismatchError(
                "top_k must be at least 0", got=repr(self.top_k), fix="use 0 for all tokens"
            )
        if not 0.0 < self.top_p <= 1.0:
            raise errors.ValueMismatchError(
                "top_p must lie in (0, 1]", got=repr(self.top_p), fix="use 1 for all tokens"
            )


def sample(logits: Array, key: Array, sampling: Sampling) -> Array:
    """The next token of each row.

    Args:
        logits: float32 of shape (B, vocabulary).
        key: random key; not read at temperature 0.
        sampling: how to choose.

    Returns:
        int32 of shape (B,).
    """
    if sampling.temperature == 0.0:
        return inp.argmax(logits, axis=-1).astype(inp.int32)
    logits = logits / sampling.temperature
    floor = _smallest_candidate(logits, sampling)
    if floor is not None:
        logits = inp.where(logits >= floor, logits, -inp.inf)
    return random.categorical(key, logits, axis=-1).astype(inp.int32)


def _smallest_candidate(logits: Array, sampling: Sampling) -> Array | None:
    """Logit (B, 1) of the last token that `top_k` and `top_p` leave; equal logits stay together."""
    vocab_size = logits.shape[-1]
    top_k = min(sampling.top_k or vocab_size, vocab_size)
    if top_k == vocab_size and sampling.top_p == 1.0:
        return None
    falling = -inp.sort(-logits, axis=-1)[:, :top_k]
    if sampling.top_p == 1.0:
        return falling[:, -1:]
    weights = inp.exp(falling - falling[:, :1])
    shares = weights / inp.sum(weights, axis=-1, keepdims=True)
    # A token stays when those before it have less than top_p, so the first always does.
    is_in = inp.cumsum(shares, axis=-1) - shares < sampling.top_p
    return inp.min(inp.where(is_in, falling, inp.inf), axis=-1, keepdims=True)
