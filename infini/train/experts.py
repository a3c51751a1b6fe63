"""A feed-forward layer of several experts, of which a router gives every token a few (a mixture of experts).

Every name used is one JAX has too, but for `expert_layer`, which `grouped` writes out in such names; weights
have the layout (expert, out, in).

Two forms compute the same layer. Without a capacity no token is dropped: tokens are sorted by expert and
multiplied in groups. With one, an expert takes so many tokens of each sequence and no more, so every shape is
fixed, and between an array split by sequences and one split by experts lies a single exchange. Both can be
split by experts where all devices have all tokens: names say where tokens, choices and results lie.

Shapes: B sequences, T tokens, M model width, E experts, k experts of a token, C places of an expert in a
sequence, F width of an expert.
References: GShard (arXiv:2006.16668), Switch (arXiv:2101.03961), Mixtral (arXiv:2401.04088), MegaBlocks
(arXiv:2211.15841).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import infini.numpy as inp
from infini import Array, lax, vmap
from infini.ad_checkpoint import checkpoint_name
from infini.lax import expert_layer

Params: TypeAlias = dict[str, Any]  # Any: arrays, and dictionaries of them


class Routing(NamedTuple):
    """What the router says: for each token its experts (B, T, k) and their weights, and what the loss that
    balances experts is made of: the share of choices of each expert (E,), and its mean probability (E,).
    """

    experts: Array
    weights: Array
    shares: Array
    probabilities: Array


def capacity(num_tokens: int, num_experts: int, experts_per_token: int, factor: float) -> int:
    """Places of an expert in a sequence: `factor` times what it would get if all experts got as much."""
    return min(num_tokens, math.ceil(factor * num_tokens * experts_per_token / num_experts))


def route(router: Array, x: Array, experts_per_token: int, *, is_normalized: bool = True) -> Routing:
    """Choose the experts of every token.

    Args:
        router: weight (E, M).
        x: tokens (B, T, M).
        experts_per_token: how many.
        is_normalized: whether the weights of a token's experts sum to 1.
    """
    logits = inp.einsum("btm,em->bte", x, router, preferred_element_type=inp.float32)
    logits = logits - lax.stop_gradient(inp.max(logits, axis=-1, keepdims=True))
    odds = inp.exp(logits)
    probabilities = odds / inp.sum(odds, axis=-1, keepdims=True)
    weights, experts = lax.top_k(probabilities, experts_per_token)
    chosen = inp.mean(_one_hot(experts, router.shape[0]), axis=(0, 1))  # (k, E)
    if is_normalized:
        weights = weights / inp.sum(weights, axis=-1, keepdims=True)
    return Routing(experts, weights, inp.sum(chosen, axis=0), inp.mean(probabilities, axis=(0, 1)))


def dropless(weights: Params, x: Array, routing: Routing) -> Array:
    """The layer without a capacity.

    Args:
        weights: `gate_proj` and `up_proj` (E, F, M), `down_proj` (E, M, F).
        x: tokens (B, T, M).
        routing: the choices.
    """
    x = checkpoint_name(x, "tokens")
    chosen, amounts = checkpoint_name((routing.experts, routing.weights.astype(x.dtype)), "choices")
    num_chosen = chosen.shape[-1]
    found = expert_layer(
        x.reshape(-1, x.shape[-1]),
        chosen.reshape(-1, num_chosen),
        amounts.reshape(-1, num_chosen),
        weights["gate_proj"],
        weights["up_proj"],
        weights["down_proj"],
    )
    return checkpoint_name(found.reshape(x.shape), "mixed")


def with_capacity(weights: Params, x: Array, routing: Routing, num_places: int) -> Array:
    """The layer with `num_places` for each expert in each sequence. First choices are placed before second
    ones, earlier tokens before later ones; a choice that finds no place adds nothing to its token.

    Args:
        weights: as for `dropless`.
        x: tokens (B, T, M).
        routing: the choices.
        num_places: C.
    """
    batch, length, width = x.shape
    num_experts = weights["gate_proj"].shape[0]
    x = checkpoint_name(x, "tokens")
    places = _places(routing.experts, num_experts)  # (B, T, k)
    has_place = places < num_places
    # A place in a sequence has the number expert * C + place; what has none is behind all of them.
    slots = inp.where(has_place, routing.experts * num_places + places, num_experts * num_places)

    def by_place(slots: Array, amounts: Array) -> tuple[Array, Array]:
        """For every place of a sequence its token and what that counts; none and nothing in empty ones."""
        slots, token = slots.reshape(-1), inp.arange(slots.size) // slots.shape[-1]
        empty = num_experts * num_places
        of_slot = inp.full(empty, length).at[slots].set(token, mode="drop")
        return of_slot, inp.zeros(empty, x.dtype).at[slots].set(amounts.reshape(-1), mode="drop")

    def taken(rows: Array, of_slot: Array) -> Array:
        return inp.take(rows, of_slot, axis=0, mode="fill", fill_value=0)

    def mixed(rows: Array, of_slot: Array, amounts: Array) -> Array:
        """The sum that each token gets from the places that it has."""
        return inp.zeros((length, width), rows.dtype).at[of_slot].add(rows * amounts[:, None], mode="drop")

    choices = checkpoint_name((slots, routing.weights.astype(x.dtype)), "choices")
    of_slot, amounts = vmap(by_place)(*choices)  # (B, E * C)
    rows = vmap(taken)(x, of_slot).reshape(batch, num_experts, num_places, width)
    rows = checkpoint_name(inp.swapaxes(rows, 0, 1), "experts")  # (E, B, C, M)
    gate = inp.einsum("ebcm,efm->ebcf", rows, weights["gate_proj"])
    hidden = gate * lax.logistic(gate) * inp.einsum("ebcm,efm->ebcf", rows, weights["up_proj"])
    rows = checkpoint_name(inp.einsum("ebcf,emf->ebcm", hidden, weights["down_proj"]), "experts")
    rows = checkpoint_name(inp.swapaxes(rows, 0, 1), "sequences").reshape(batch, -1, width)
    return checkpoint_name(vmap(mixed)(rows, of_slot, amounts), "mixed")


def balance(routings: list[Routing]) -> Array:
    """The loss of uneven routing: E times the sum over experts of their share of choices and their mean
    probability, both over all layers (Switch, equation 4). It is k when all experts get as much.
    """
    shares = inp.mean(inp.stack([r.shares for r in routings]), axis=0)
    probabilities = inp.mean(inp.stack([r.probabilities for r in routings]), axis=0)
    return imbalance(shares, probabilities)


def imbalance(shares: Array, probabilities: Array) -> Array:
    """As `balance`, of the means over layers."""
    return shares.shape[0] * inp.sum(lax.stop_gradient(shares) * probabilities)


def _places(experts: Array, num_experts: int) -> Array:
    """For each choice (B, T, k), how many of its sequence go to the same expert before it."""
    batch, length, num_chosen = experts.shape
    in_order = inp.swapaxes(experts, 1, 2).reshape(batch, num_chosen * length)  # first choices first
    chosen = in_order[..., None] == inp.arange(num_experts)
    counts = inp.cumsum(chosen.astype(inp.int32), axis=1) - 1
    places = inp.take_along_axis(counts, in_order[..., None], axis=2)[..., 0]
    return inp.swapaxes(places.reshape(batch, num_chosen, length), 1, 2)


def _one_hot(numbers: Array, count: int) -> Array:
    return (numbers[..., None] == inp.arange(count)).astype(inp.float32)
