"""A feed-forward layer of several experts: which of them compute a token, and their sum.

References: Mixtral (arXiv:2401.04088), DeepSeek-V2 (arXiv:2405.04434), DeepSeek-V3 (arXiv:2412.19437).
"""

from __future__ import annotations

from typing import Any

import infini.numpy as inp
from infini import Array, lax
from infini.llm.models import layers
from infini.llm.models.config import Config, Experts
from infini.quantization import QuantizedArray


def feed_forward(x: Array, weights: dict[str, Any], config: Config) -> Array:  # Any: arrays
    """The layer for tokens (T, M): the chosen experts, and the one that computes every token where there is
    one.
    """
    experts = config.experts
    assert experts is not None
    chosen, amounts = route(x, weights, experts)
    found = _mixed(x, chosen, amounts.astype(x.dtype), weights["experts"])
    if experts.shared_width:
        found = found + layers.feed_forward(x, weights["shared_experts"], config)
    return found


def route(x: Array, weights: dict[str, Any], experts: Experts) -> tuple[Array, Array]:  # Any: arrays
    """Numbers of the experts of each token, and what each counts, both (T, k)."""
    products = layers.product(x.astype(inp.float32), weights["gate"])
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


def _mixed(x: Array, chosen: Array, amounts: Array, weights: dict[str, Any]) -> Array:  # Any: arrays
    gate, up, down = (_plain(weights[name], x) for name in ("gate_proj", "up_proj", "down_proj"))
    return lax.expert_layer(x, chosen, amounts, gate, up, down)


def _plain(weight: Any, x: Array) -> Array:  # Any: an array, quantised or not
    return weight.dequantize(x.dtype) if isinstance(weight, QuantizedArray) else weight.astype(x.dtype)
