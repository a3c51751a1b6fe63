"""A feed-forward layer of several experts: which of them compute a token, and their sum.

Shapes: T tokens, M model width, k experts of a token.
References: Mixtral (arXiv:2401.04088), DeepSeek-V2 (arXiv:2405.04434), DeepSeek-V3 (arXiv:2412.19437).
"""

from __future__ import annotations

from typing import Any, Final

import infini.numpy as inp
from infini import Array, lax, shard_map
from infini.core import tree
from infini.llm.models import layers
from infini.llm.models.config import Config, Experts
from infini.sharding import AbstractMesh, P

AXIS: Final = "tp"  # name of the mesh axis along which devices share a model
_MOST: Final = 64  # rows of a tile


def feed_forward(x: Array, weights: dict[str, Any], config: Config) -> Array:  # Any: arrays
    """The layer for tokens (T, M): the chosen experts, and the one that computes every token where there is
    one.
    """
    experts = config.experts
    assert experts is not None
    chosen, amounts = route(x, weights, experts)
    compute = _mixed if experts.num_places == 1 else _mixed_apart
    found = compute(x, chosen, amounts.astype(x.dtype), weights["experts"], config)
    if experts.shared_width:
        found = found + layers.feed_forward(x, weights["shared_experts"], config)
    return found


def route(x: Array, weights: dict[str, Any], experts: Experts) -> tuple[Array, Array]:  # Any: arrays
    """Numbers of the experts of each token, and what each counts, both (T, k)."""
    products = inp.matmul(x.astype(inp.float32), weights["gate"].astype(inp.float32).T)
    if experts.scoring == "sigmoid":
        scores = lax.logistic(products)
    else:
        odds = inp.exp(products - inp.max(products, axis=-1, keepdims=True))
        scores = odds / inp.sum(odds, axis=-1, keepdims=True)
    ranked = scores + weights["correction"].astype(inp.float32) if experts.has_correction else scores
    if experts.num_groups > 1:
        ranked = inp.where(_allowed(ranked, experts), ranked, -inp.inf)
    _, chosen = lax.top_k(ranked, experts.per_token)
    amounts = inp.take_along_axis(scores, chosen, axis=-1)
    if experts.is_normalized:
        amounts = amounts / (inp.sum(amounts, axis=-1, keepdims=True) + 1e-20)
    return chosen, amounts if experts.scale == 1.0 else amounts * experts.scale


def _allowed(ranked: Array, experts: Experts) -> Array:
    """Which experts (T, E) are of the groups that a token may choose from."""
    num_tokens, count = ranked.shape
    groups = ranked.reshape(num_tokens, experts.num_groups, count // experts.num_groups)
    best, _ = lax.top_k(groups, 2 if experts.group_score == "best two" else 1)
    _, chosen = lax.top_k(inp.sum(best, axis=-1), experts.groups_per_token)
    is_in = inp.any(chosen[:, :, None] == inp.arange(experts.num_groups), axis=1)  # (T, groups)
    return inp.repeat(is_in, count // experts.num_groups, axis=1)


def _mixed_apart(
    x: Array, chosen: Array, amounts: Array, weights: dict[str, Any], config: Config
) -> Array:  # Any: arrays
    """`_mixed` where each device has some of the experts: it goes over the choices of these, and what all
    devices found is added up.
    """
    experts = config.experts
    assert experts is not None
    num_own = experts.count // experts.num_places

    def own(x: Array, chosen: Array, amounts: Array, weights: dict[str, Any]) -> Array:  # Any: arrays
        number = chosen - lax.axis_index(AXIS) * num_own
        is_own = (number >= 0) & (number < num_own)
        # Choices of others come behind all experts, where no tile is.
        found = _mixed(x, inp.where(is_own, number, num_own), amounts, weights, config)
        return lax.psum(found, AXIS)

    mesh = AbstractMesh((AXIS,), (experts.num_places,))
    # How often a loop runs differs between devices, which is not known of what it began with.
    run = shard_map(own, mesh=mesh, in_specs=(P(), P(), P(), P(AXIS)), out_specs=P(), check_vma=False)
    found: Array = run(x, chosen, amounts, weights)
    return found


def _mixed(
    x: Array, chosen: Array, amounts: Array, weights: dict[str, Any], config: Config
) -> Array:  # Any: arrays
    """For each token (T, M) the sum of what its experts (T, k) make of it, each times its amount.

    Choices are sorted by expert and cut into tiles of rows that one expert computes, and a loop goes over the
    tiles: matrices of experts that nobody chose are not read, and those of the others as stored.
    """
    count, num_chosen = weights["gate_proj"].shape[0], chosen.shape[1]
    num_rows = chosen.size
    assert config.experts is not None
    height = _tile_rows(x.shape[0], num_rows, config.experts.count)
    owners = chosen.reshape(-1)
    order = inp.argsort(owners)  # choice `order[i]` is at place i
    sizes = inp.sum(owners[:, None] == inp.arange(count), axis=0).astype(inp.int32)
    tiles = (sizes + height - 1) // height
    ends, starts = inp.cumsum(tiles), inp.cumsum(sizes) - sizes

    def add_tile(number: Array, found: Array) -> Array:
        expert = inp.sum(ends <= number)
        places = starts[expert] + (number - ends[expert] + tiles[expert]) * height + inp.arange(height)
        is_own = places < starts[expert] + sizes[expert]
        choices = order[inp.minimum(places, num_rows - 1)]
        own = tree.map(lambda plane: lax.dynamic_index_in_dim(plane, expert, 0, keepdims=False), weights)
        rows = x[choices // num_chosen]
        gate = layers.linear(rows, own, "gate_proj", config)
        hidden = layers.activated(gate, config.activation) * layers.linear(rows, own, "up_proj", config)
        made = layers.linear(hidden, own, "down_proj", config)
        return found.at[inp.where(is_own, choices, num_rows)].set(made, mode="drop")

    rows = lax.fori_loop(0, ends[-1], add_tile, inp.zeros((num_rows, x.shape[1]), x.dtype))
    return inp.sum(rows.reshape(*chosen.shape, -1) * amounts[..., None], axis=1)


def _tile_rows(num_tokens: int, num_rows: int, count: int) -> int:
    """Rows of a tile: twice what an expert gets on average, so most need one tile and few rows are padding; a
    token chooses an expert once.
    """
    share = -(-2 * num_rows // count)
    return min(1 << (share - 1).bit_length(), _MOST, num_tokens)
