"""Which tokens of a row are candidates, and drawing one of them.

Every setting but typical sampling keeps the tokens above some logit, so a row's candidates are known by one
number, the lowest logit that stays. It is searched for by halving, between the bit patterns of floats: no
row is sorted. One of the candidates is drawn by going through running sums of their weights.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

import infini.numpy as inp
from infini import Array, lax
from infini.llm.sampling import state as state_
from infini.llm.sampling.state import Features

_BLOCK = 256  # tokens that are summed together before blocks are


class _Weights(NamedTuple):
    """Unnormalised probabilities (R, V) of a row's candidates, the largest is 1; and where a row is greedy."""

    weights: Array
    is_greedy: Array  # (R, 1)


def draw(logits: Array, scales: Array, numbers: Array, uniforms: Array, features: Features) -> Array:
    """One token of each row.

    Args:
        logits: float32 (R, V), -inf for what may not come.
        scales: `State.scales`.
        numbers: `State.numbers`.
        uniforms: float32 (R, 2) in [0, 1).
        features: whether there is typical sampling.

    Returns:
        int32 (R,).
    """
    weights, is_greedy = _weights(logits, scales, numbers, features)
    drawn = draw_by_weight(weights, uniforms)
    return inp.where(is_greedy[:, 0], inp.argmax(logits, axis=-1).astype(inp.int32), drawn)


def probabilities(logits: Array, scales: Array, numbers: Array, features: Features) -> Array:
    """Probabilities (R, V) with which `draw` takes a token."""
    weights, is_greedy = _weights(logits, scales, numbers, features)
    likeliest = inp.argmax(logits, axis=-1).astype(inp.int32)
    is_likeliest = inp.arange(logits.shape[-1], dtype=inp.int32) == likeliest[:, None]
    return inp.where(
        is_greedy, is_likeliest.astype(inp.float32), weights / inp.sum(weights, axis=-1, keepdims=True)
    )


def draw_by_weight(weights: Array, uniforms: Array) -> Array:
    """A token of each row with a probability in proportion to its weight.

    The first number chooses a block of tokens, the second one in it, so a float32 is fine enough for large
    vocabularies and running sums are short.

    Args:
        weights: float32 (R, V), at least 0.
        uniforms: float32 (R, 2) in [0, 1).

    Returns:
        int32 (R,); a token of weight 0 only in a row that has no other.
    """
    num_rows, length = weights.shape
    num_blocks = -(-length // _BLOCK)
    padded = inp.pad(weights, ((0, 0), (0, num_blocks * _BLOCK - length)))
    blocks = padded.reshape(num_rows, num_blocks, _BLOCK)
    block = _place(inp.sum(blocks, axis=-1), uniforms[:, :1])
    inner = inp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * _BLOCK + _place(inner, uniforms[:, 1:])


def _place(weights: Array, uniform: Array) -> Array:
    """The first place (R,) of a row whose running sum is above a share (R, 1) of the whole."""
    sums = inp.cumsum(weights, axis=-1)
    place = inp.sum(sums <= uniform * sums[:, -1:], axis=-1, dtype=inp.int32)
    # Rounding may give the whole sum itself: then the last place with a weight is meant.
    last = inp.max(inp.where(weights > 0, inp.arange(weights.shape[-1], dtype=inp.int32), 0), axis=-1)
    return inp.minimum(place, last)


def _weights(logits: Array, scales: Array, numbers: Array, features: Features) -> _Weights:
    temperature = scales[:, state_.TEMPERATURE, None]
    is_greedy = temperature == 0.0
    largest = inp.max(logits, axis=-1, keepdims=True)
    # Distances from the likeliest token: never negative, so that their bit patterns are in their order.
    distances = (largest - logits) / inp.where(is_greedy, 1.0, temperature)
    limit = _limit(distances, scales, numbers)
    weights = inp.where(distances <= limit, inp.exp(-distances), 0.0)
    if features.is_typical:
        weights = _typical(weights, distances, scales[:, state_.TYPICAL_P, None])
    return _Weights(weights, is_greedy)


def _limit(distances: Array, scales: Array, numbers: Array) -> Array:
    """The largest distance (R, 1) that min-p, top-k and top-p leave, one after the other."""
    is_greedy = scales[:, state_.TEMPERATURE, None] == 0.0
    min_p = scales[:, state_.MIN_P, None]
    limit = inp.where(min_p > 0, -inp.log(min_p), np.inf)
    top_k = numbers[:, state_.TOP_K, None].astype(inp.int32)
    has_top_k = (top_k > 0) & ~is_greedy
    near = inp.where(distances <= limit, distances, np.inf)
    by_count = _search(near, inp.ones_like(near), top_k.astype(inp.float32), has_top_k)
    limit = inp.where(has_top_k, inp.minimum(limit, by_count), limit)
    top_p = scales[:, state_.TOP_P, None]
    has_top_p = (top_p < 1.0) & ~is_greedy
    weights = inp.where(distances <= limit, inp.exp(-distances), 0.0)
    wanted = top_p * inp.sum(weights, axis=-1, keepdims=True)
    by_mass = _search(distances, weights, wanted, has_top_p)
    return inp.where(has_top_p, inp.minimum(limit, by_mass), limit)


def _search(order: Array, weights: Array, wanted: Array, is_wanted: Array) -> Array:
    """The smallest number (R, 1) such that the places up to it in `order` (R, V) weigh at least `wanted`.

    Bit patterns of floats that are not negative are in the order of the floats, so 31 halvings find it
    exactly. Nothing is searched for when no row wants it.
    """
    low = inp.full(is_wanted.shape, -1, inp.int32)  # always below the answer
    high = inp.full(is_wanted.shape, 0x7F800000, inp.int32)  # infinity

    def halve(bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        value = lax.bitcast_convert_type(middle, inp.float32)
        reached = inp.sum(inp.where(order <= value, weights, 0.0), axis=-1, keepdims=True) >= wanted
        return inp.where(reached, low, middle), inp.where(reached, middle, high)

    def is_open(bounds: tuple[Array, Array]) -> Array:
        low, high = bounds
        return inp.any(is_wanted & (high - low > 1))

    _, high = lax.while_loop(is_open, halve, (low, high))
    return lax.bitcast_convert_type(high, inp.float32)


def _typical(weights: Array, distances: Array, typical_p: Array) -> Array:
    """Weights (R, V) of the tokens whose information is nearest to the entropy, up to a share of the whole."""
    total = inp.sum(weights, axis=-1, keepdims=True)
    # Information is distance + log(total); both terms have the same constant, which falls out.
    entropy = inp.sum(weights * inp.where(weights > 0, distances, 0.0), axis=-1, keepdims=True) / total
    strangeness = inp.where(weights > 0, inp.abs(distances - entropy), np.inf)
    is_wanted = typical_p < 1.0
    limit = _search(strangeness, weights, typical_p * total, is_wanted)
    return inp.where(is_wanted & (strangeness > limit), 0.0, weights)
