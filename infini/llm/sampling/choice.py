"""Which tokens of a row are candidates, and drawing one of them.

Every setting but typical sampling keeps the tokens up to some distance from the likeliest one, so a row's
candidates are known by one number, its limit. It is found among the few likeliest tokens, and only in rows
where these are not enough by halving an interval over the whole row; nothing is sorted. Weights are whole
numbers in float64, so sums are exact: a row gives the same token alone and beside others, on every way here
and with any number of threads. Letters: R rows, V tokens, K likeliest tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import infini.numpy as inp
from infini import Array, lax
from infini.llm.sampling import rows as rows_
from infini.llm.sampling.features import Features

NUM_CANDIDATES = 256  # K: limits beyond the so many likeliest tokens are searched for
_BLOCK = 256  # tokens that are summed together before blocks are
_INFINITY = 0x7F800000  # bit pattern
_BITS = 52  # of a sum that is exact in float64


class _Settings(NamedTuple):
    """Columns (R, 1) of `State.scales` and `State.numbers`."""

    temperature: Array  # 1 where the likeliest token is taken
    is_greedy: Array
    top_k: Array  # 0: all
    top_p: Array  # 1: all
    min_p: Array
    typical_p: Array

    @property
    def is_filtered(self) -> Array:
        """Rows in which some tokens are no candidates."""
        return ~self.is_greedy & ((self.top_k > 0) | (self.top_p < 1.0) | (self.min_p > 0.0))


def _settings(scales: Array, numbers: Array) -> _Settings:
    temperature, top_p, min_p, typical_p = (
        scales[:, column, None] for column in (rows_.TEMPERATURE, rows_.TOP_P, rows_.MIN_P, rows_.TYPICAL_P)
    )
    is_greedy = temperature == 0.0
    top_k = numbers[:, rows_.TOP_K, None].astype(inp.int32)
    return _Settings(inp.where(is_greedy, 1.0, temperature), is_greedy, top_k, top_p, min_p, typical_p)


def draw(logits: Array, scales: Array, numbers: Array, uniforms: Array, features: Features) -> Array:
    """One token of each row.

    Args:
        logits: float32 (R, V), -inf for what may not come.
        scales: `State.scales`.
        numbers: `State.numbers`.
        uniforms: float64 (R,) in [0, 1).
        features: whether there is typical sampling.

    Returns:
        int32 (R,).
    """
    settings = _settings(scales, numbers)
    drawn = lax.cond(inp.any(settings.is_filtered), _draw_filtered, _draw_plain, logits, settings, uniforms)
    if not features.is_typical:
        return drawn
    # Rows that do not ask for it are drawn as in programs that do not offer it.
    is_typical = ~settings.is_greedy[:, 0] & (settings.typical_p[:, 0] < 1.0)
    typical = lax.cond(
        inp.any(is_typical),
        lambda: draw_by_weight(_weights(logits, settings, features), uniforms),
        lambda: drawn,
    )
    return inp.where(is_typical, typical, drawn)


def probabilities(logits: Array, scales: Array, numbers: Array, features: Features) -> Array:
    """Probabilities float32 (R, V) with which `draw` takes a token."""
    settings = _settings(scales, numbers)
    weights = _weights(logits, settings, features)
    total = inp.sum(weights, axis=-1, keepdims=True)
    is_likeliest = inp.arange(logits.shape[-1], dtype=inp.int32) == _likeliest(logits)[:, None]
    shares = (weights / total).astype(inp.float32)
    return inp.where(settings.is_greedy, is_likeliest.astype(inp.float32), shares)


def whole(weights: Array, length: int) -> Array:
    """Weights in [0, 1] as whole numbers in float64, of which `length` have an exact sum."""
    scale = 2.0 ** (_BITS - math.ceil(math.log2(max(length, 2))))
    return inp.floor(weights.astype(inp.float64) * scale)


def draw_by_weight(weights: Array, uniforms: Array) -> Array:
    """A token of each row with a probability in proportion to its weight.

    Args:
        weights: float64 (R, V), whole numbers (`whole`).
        uniforms: float64 (R,) in [0, 1).

    Returns:
        int32 (R,); a token of weight 0 only in a row that has no other.
    """
    return _drawn(lambda part, _: part, weights, weights.shape[-1], uniforms)


def _drawn(weigh: Callable[[Array, int], Array], rows: Array, length: int, uniforms: Array) -> Array:
    """A place of each row in proportion to its weight, without an array of all weights.

    Args:
        weigh: whole weights of a part of `rows`, which has so many dimensions more than they.
        rows: (R, V).
        length: V.
        uniforms: float64 (R,).
    """
    num_blocks = length // _BLOCK
    sums = []
    if num_blocks:
        blocks = rows[:, : num_blocks * _BLOCK].reshape(-1, num_blocks, _BLOCK)
        sums.append(inp.sum(weigh(blocks, 1), axis=-1))
    if length % _BLOCK:
        sums.append(inp.sum(weigh(rows[:, num_blocks * _BLOCK :], 0), axis=-1, keepdims=True))
    at, rest = _place(inp.concatenate(sums, axis=-1) if len(sums) > 1 else sums[0], uniforms[:, None])
    places = at[:, None] * _BLOCK + inp.arange(_BLOCK, dtype=inp.int32)
    inner = weigh(inp.take_along_axis(rows, inp.minimum(places, length - 1), axis=-1), 0)
    found = at * _BLOCK + _place_of(inp.where(places < length, inner, 0.0), rest)
    return inp.minimum(found, length - 1)


def _likeliest(logits: Array) -> Array:
    return inp.argmax(logits, axis=-1).astype(inp.int32)


def _place(weights: Array, uniforms: Array) -> tuple[Array, Array]:
    """Where (R,) a share (R, 1) of the sum of a row falls, and how far (R, 1) it reaches into that place."""
    sums = inp.cumsum(weights, axis=-1)
    target = inp.floor(uniforms * sums[:, -1:])
    place = inp.sum(sums <= target, axis=-1, dtype=inp.int32)
    before = inp.where(place > 0, _at(sums, inp.maximum(place - 1, 0)), 0.0)
    return inp.minimum(place, weights.shape[-1] - 1), target - before[:, None]


def _place_of(weights: Array, target: Array) -> Array:
    """The first place (R,) at which running sums of a row exceed a number (R, 1)."""
    place = inp.sum(inp.cumsum(weights, axis=-1) <= target, axis=-1, dtype=inp.int32)
    return inp.minimum(place, weights.shape[-1] - 1)


def _at(rows: Array, places: Array) -> Array:
    return inp.take_along_axis(rows, places[:, None], axis=-1)[:, 0]


def _weigh(logits: Array, largest: Array, settings: _Settings, limit: Array, length: int) -> Array:
    """Whole weights (R, N) of logits up to the limit; the largest logit of the row has the largest."""
    distances = (largest - logits) / settings.temperature
    return inp.where(distances <= limit, whole(inp.exp(-distances), length), 0.0)


def _draw_plain(logits: Array, settings: _Settings, uniforms: Array) -> Array:
    """All tokens are candidates."""
    # As an operation of its own, for the maximum would be computed again where weights are.
    largest, first = lax.top_k(logits, 1)
    likeliest = first[:, 0]
    drawn = _draw_far(logits, largest, settings, inp.full_like(largest, np.inf), uniforms)
    return inp.where(settings.is_greedy[:, 0], likeliest, drawn).astype(inp.int32)


def _draw_filtered(logits: Array, settings: _Settings, uniforms: Array) -> Array:
    """Rows whose candidates are among the likeliest tokens are drawn from these, the others from all."""
    length = logits.shape[-1]
    near, tokens = lax.top_k(logits, min(NUM_CANDIDATES, length))
    largest = near[:, :1]
    distances = (largest - near) / settings.temperature
    limit = _limit(logits, largest, distances, settings)
    is_near = (limit < distances[:, -1:])[:, 0] | settings.is_greedy[:, 0]
    weights = _weigh(near, largest, settings, limit, length)
    place, _ = _place(weights, uniforms[:, None])
    from_near = _at(tokens, inp.where(settings.is_greedy[:, 0], 0, place))
    from_all = lax.cond(
        inp.all(is_near),
        lambda *_: inp.zeros_like(from_near),
        _draw_far,
        logits,
        largest,
        settings,
        limit,
        uniforms,
    )
    return inp.where(is_near, from_near, from_all).astype(inp.int32)


def _draw_far(logits: Array, largest: Array, settings: _Settings, limit: Array, uniforms: Array) -> Array:
    """A token of each row up to its limit."""
    length = logits.shape[-1]

    def weigh(part: Array, num_more: int) -> Array:
        wide = (..., *[None] * num_more)
        spread = _Settings(*(column[wide] for column in settings))
        return _weigh(part, largest[wide], spread, limit[wide], length)

    return _drawn(weigh, logits, length, uniforms)


def _weights(logits: Array, settings: _Settings, features: Features) -> Array:
    """Whole weights (R, V) of the candidates, 0 for the other tokens."""
    length = logits.shape[-1]
    near, _ = lax.top_k(logits, min(NUM_CANDIDATES, length))
    largest = near[:, :1]
    limit = _limit(logits, largest, (largest - near) / settings.temperature, settings)
    weights = _weigh(logits, largest, settings, limit, length)
    if features.is_typical:
        distances = (largest - logits) / settings.temperature
        weights = _typical(weights, distances, settings.typical_p)
    return weights


def _limit(logits: Array, largest: Array, near: Array, settings: _Settings) -> Array:
    """The largest distance (R, 1) that min-p, top-k and top-p leave.

    Args:
        logits: (R, V).
        largest: (R, 1), the largest of each row.
        near: distances (R, K) of the likeliest tokens, rising.
        settings: of the rows.
    """
    length, num_near = logits.shape[-1], near.shape[-1]
    far = near[:, -1:]
    has_top_k, has_top_p = settings.top_k > 0, settings.top_p < 1.0
    limit = inp.where(settings.min_p > 0, -inp.log(settings.min_p), np.inf)

    by_count = _at(near, inp.clip(settings.top_k[:, 0], 1, num_near) - 1)[:, None]
    is_open = has_top_k & (settings.top_k > num_near) & (far < limit) & ~settings.is_greedy
    count = functools.partial(_search, logits, largest, settings.temperature, is_open, is_count=True)
    by_count = _if_any(is_open, lambda: count(settings.top_k.astype(inp.float64)), by_count)
    limit = inp.where(has_top_k, inp.minimum(limit, by_count), limit)

    weights = inp.where(near <= limit, whole(inp.exp(-near), length), 0.0)
    sums = inp.cumsum(weights, axis=-1)
    is_wide = has_top_p & ~(limit < far) & ~settings.is_greedy
    total = _if_any(
        is_wide,
        lambda: inp.sum(_weigh(logits, largest, settings, limit, length), axis=-1, keepdims=True),
        sums[:, -1:],
    )
    wanted = settings.top_p.astype(inp.float64) * total
    by_mass = _at(near, inp.minimum(inp.sum(sums < wanted, axis=-1, dtype=inp.int32), num_near - 1))[:, None]
    is_open = is_wide & (sums[:, -1:] < wanted)
    mass = functools.partial(_search, logits, largest, settings.temperature, is_open, is_count=False)
    by_mass = _if_any(is_open, lambda: mass(wanted), by_mass)
    return inp.where(has_top_p, inp.minimum(limit, by_mass), limit)


def _if_any(is_wanted: Array, compute: Callable[[], Array], otherwise: Array) -> Array:
    """What `compute` gives in the rows (R, 1) that want it; it is not computed when none does."""
    return lax.cond(inp.any(is_wanted), lambda: inp.where(is_wanted, compute(), otherwise), lambda: otherwise)


def _search(
    logits: Array, largest: Array, temperature: Array, is_wanted: Array, wanted: Array, *, is_count: bool
) -> Array:
    """The smallest distance (R, 1) up to which a row has `wanted` tokens, or weight.

    Rows are searched one after the other, so that a row stays in a near cache for all passes.
    """
    length = logits.shape[-1]

    def of_row(row: tuple[Array, Array, Array, Array, Array]) -> Array:
        logits, largest, temperature, is_wanted, wanted = row
        distances = (largest - logits) / temperature
        weights = inp.ones_like(distances) if is_count else whole(inp.exp(-distances), length)
        return _halved(distances, weights, wanted, is_wanted)

    return lax.map(of_row, (logits, largest, temperature, is_wanted, wanted))


def _halved(order: Array, weights: Array, wanted: Array, is_wanted: Array) -> Array:
    """The smallest number (1,) such that the places of `order` (V,) up to it weigh at least `wanted` (1,).

    Bit patterns of floats that are not negative are in the order of the floats, so halving an interval of
    whole numbers finds it exactly.
    """
    low = inp.full(wanted.shape, -1, inp.int32)  # always below the answer
    high = inp.full(wanted.shape, _INFINITY, inp.int32)

    def halve(bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        value = lax.bitcast_convert_type(middle, inp.float32)
        reached = inp.sum(inp.where(order <= value, weights, 0.0), keepdims=True) >= wanted
        return inp.where(reached, low, middle), inp.where(reached, middle, high)

    def is_open(bounds: tuple[Array, Array]) -> Array:
        low, high = bounds
        return (is_wanted & (high - low > 1))[0]

    _, high = lax.while_loop(is_open, halve, (low, high))
    return lax.bitcast_convert_type(high, inp.float32)


def _typical(weights: Array, distances: Array, typical_p: Array) -> Array:
    """Weights (R, V) of the tokens whose information is nearest to the entropy, up to a share of all."""
    total = inp.sum(weights, axis=-1, keepdims=True)
    # Information is distance + log(total): both sides of the difference have that constant. A product of a
    # weight and its distance is below 1, so its sums are exact, too.
    information = inp.floor(weights * inp.where(weights > 0, distances, 0.0))
    entropy = (inp.sum(information, axis=-1, keepdims=True) / total).astype(inp.float32)
    strangeness = inp.where(weights > 0, inp.abs(distances - entropy), np.inf)
    is_wanted = typical_p < 1.0
    limit = lax.map(
        lambda row: _halved(*row), (strangeness, weights, typical_p.astype(inp.float64) * total, is_wanted)
    )
    return inp.where(is_wanted & (strangeness > limit), 0.0, weights)
