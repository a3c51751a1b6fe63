"""A decoder of LLaMA's family as pure functions of (params, tokens), with the names of Hugging Face's files.

Every name used is one JAX has too: with its imports changed this file runs on JAX, which is how it is
tested. Weights have the layout (out, in); rotary embeddings pair the first half of a head with its second.

Shapes: B sequences, T tokens, S slots of the cache, M model width, H query heads, K key-value heads,
G = H / K, D head width.
References: LLaMA (arXiv:2302.13971), rotary embeddings (arXiv:2104.09864), grouped queries
(arXiv:2305.13245), SwiGLU (arXiv:2002.05202), RMSNorm (arXiv:1910.07467).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import infini.numpy as inp
from infini import Array, lax, random

Params: TypeAlias = dict[str, Any]  # Any: arrays, and dictionaries and lists of them
Cache: TypeAlias = list[dict[str, Array]]


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes of the model; hashable, so it can be a static argument.

    Args:
        vocab_size: number of token ids.
        hidden_size: model width M.
        intermediate_size: width of the feed-forward layer.
        num_layers: number of blocks.
        num_heads: query heads H.
        num_kv_heads: key-value heads K, a divisor of H.
        head_dim: head width D, even.
        max_length: longest sequence the model was made for.
        rope_theta: base of the rotary frequencies.
        norm_epsilon: added to the mean square in RMSNorm.
        tie_embeddings: whether the output projection is the embedding table.
    """

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    max_length: int = 512
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5
    tie_embeddings: bool = False


def init(key: Array, config: Config) -> Params:
    """Random parameters: normal of deviation 0.02, less for projections onto the residual stream.

    Args:
        key: a key of `random.key` or `random.PRNGKey`.
        config: sizes.

    Returns:
        float32 arrays under the names of Hugging Face's LLaMA, `layers` as a list.
    """
    keys = iter(random.split(key, 7 * config.num_layers + 2))
    width, hidden = config.hidden_size, config.intermediate_size
    query_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    residual = 0.02 / (2 * config.num_layers) ** 0.5

    def normal(rows: int, columns: int, deviation: float = 0.02) -> Array:
        return random.normal(next(keys), (rows, columns)) * deviation

    def layer() -> Params:
        return {
            "input_layernorm": inp.ones(width),
            "self_attn": {
                "q_proj": normal(query_width, width),
                "k_proj": normal(kv_width, width),
                "v_proj": normal(kv_width, width),
                "o_proj": normal(width, query_width, residual),
            },
            "post_attention_layernorm": inp.ones(width),
            "mlp": {
                "gate_proj": normal(hidden, width),
                "up_proj": normal(hidden, width),
                "down_proj": normal(width, hidden, residual),
            },
        }

    params = {
        "embed_tokens": normal(config.vocab_size, width),
        "layers": [layer() for _ in range(config.num_layers)],
        "norm": inp.ones(width),
    }
    if not config.tie_embeddings:
        params["lm_head"] = normal(config.vocab_size, width)
    return params


def forward(params: Params, tokens: Array, config: Config) -> Array:
    """Logits for the token after each token.

    Args:
        params: as `init` makes them.
        tokens: integers of shape (B, T).
        config: sizes.

    Returns:
        float32 of shape (B, T, vocabulary).
    """
    length = tokens.shape[1]
    positions = inp.arange(length)
    rotation = _rotation(positions, config)
    allowed = positions[:, None] >= positions[None, :]  # (T, T)
    x = params["embed_tokens"][tokens]  # (B, T, M)
    for layer in params["layers"]:
        query, key, value = _project(layer, x, rotation, config)
        x = _finish(layer, x, _attend(query, key, value, allowed), config)
    return _logits(params, x, config)


def loss(params: Params, windows: Array, config: Config) -> Array:
    """Mean cross-entropy of each token given those before it, in nats.

    Args:
        params: as `init` makes them.
        windows: integers of shape (B, T + 1).
        config: sizes.
    """
    logits = forward(params, windows[:, :-1], config)
    return inp.mean(cross_entropy(logits, windows[:, 1:]))


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Minus the log-probability of each target, in float32.

    Args:
        logits: floats of shape (..., vocabulary).
        targets: integers of shape (...).
    """
    logits = logits.astype(inp.float32)
    largest = lax.stop_gradient(inp.max(logits, axis=-1, keepdims=True))
    shifted = logits - largest
    normalizer = inp.log(inp.sum(inp.exp(shifted), axis=-1))
    chosen = inp.take_along_axis(shifted, targets[..., None], axis=-1)[..., 0]
    return normalizer - chosen


def init_cache(
    config: Config, batch_size: int, num_slots: int, dtype: Any = inp.float32
) -> Cache:  # Any: a dtype
    """An empty cache of keys and values for `num_slots` tokens."""
    shape = (batch_size, config.num_kv_heads, num_slots, config.head_dim)
    return [
        {"key": inp.zeros(shape, dtype), "value": inp.zeros(shape, dtype)} for _ in range(config.num_layers)
    ]


def forward_cached(
    params: Params, cache: Cache, tokens: Array, start: Array | int, config: Config
) -> tuple[Array, Cache]:
    """Logits for new tokens that follow those in the cache, and the cache with the new ones in it.

    Slots beyond `start + T` are neither read nor changed, so a prompt may be padded at its end.

    Args:
        params: as `init` makes them.
        cache: as `init_cache` makes it; donate it, and it is updated in place.
        tokens: integers of shape (B, T).
        start: number of tokens before them, at most S - T.
        config: sizes.

    Returns:
        Logits, float32 of shape (B, T, vocabulary), and the cache.
    """
    positions = start + inp.arange(tokens.shape[1])
    slots = inp.arange(cache[0]["key"].shape[2])
    rotation = _rotation(positions, config)
    allowed = positions[:, None] >= slots[None, :]  # (T, S)
    x = params["embed_tokens"][tokens]  # (B, T, M)
    after = []
    for layer, before in zip(params["layers"], cache, strict=True):
        query, key, value = _project(layer, x, rotation, config)
        entry = {
            "key": lax.dynamic_update_slice(before["key"], key, (0, 0, start, 0)),
            "value": lax.dynamic_update_slice(before["value"], value, (0, 0, start, 0)),
        }
        after.append(entry)
        x = _finish(layer, x, _attend(query, entry["key"], entry["value"], allowed), config)
    return _logits(params, x, config), after


def _project(
    layer: Params, x: Array, rotation: tuple[Array, Array], config: Config
) -> tuple[Array, Array, Array]:
    """Queries (B, H, T, D), keys and values (B, K, T, D) of a block."""
    weights = layer["self_attn"]
    x = _rms_norm(x, layer["input_layernorm"], config)
    query = _heads(_linear(x, weights["q_proj"]), config)
    key = _heads(_linear(x, weights["k_proj"]), config)
    value = _heads(_linear(x, weights["v_proj"]), config)
    return _rotate(query, rotation), _rotate(key, rotation), value


def _attend(query: Array, key: Array, value: Array, allowed: Array) -> Array:
    """Softmax attention of (B, H, T, D) over (B, K, S, D) where `allowed` (T, S), as (B, T, H * D)."""
    batch, num_heads, length, head_dim = query.shape
    num_kv_heads = key.shape[1]
    grouped = query.reshape(batch, num_kv_heads, num_heads // num_kv_heads, length, head_dim)
    scores = inp.einsum("bkgtd,bksd->bkgts", grouped, key).astype(inp.float32) * head_dim**-0.5
    scores = inp.where(allowed, scores, -1e30)
    scores = inp.exp(scores - lax.stop_gradient(inp.max(scores, axis=-1, keepdims=True)))
    weights = (scores / inp.sum(scores, axis=-1, keepdims=True)).astype(value.dtype)
    mixed = inp.einsum("bkgts,bksd->btkgd", weights, value)
    return mixed.reshape(batch, length, num_heads * head_dim)


def _finish(layer: Params, x: Array, mixed: Array, config: Config) -> Array:
    """The rest of a block after attention: output projection, feed-forward, and their residual additions."""
    x = x + _linear(mixed, layer["self_attn"]["o_proj"])
    weights = layer["mlp"]
    inner = _rms_norm(x, layer["post_attention_layernorm"], config)
    gate = _linear(inner, weights["gate_proj"])
    hidden = gate * lax.logistic(gate) * _linear(inner, weights["up_proj"])
    return x + _linear(hidden, weights["down_proj"])


def _logits(params: Params, x: Array, config: Config) -> Array:
    x = _rms_norm(x, params["norm"], config)
    table = params["embed_tokens"] if config.tie_embeddings else params["lm_head"]
    return _linear(x, table).astype(inp.float32)


def _linear(x: Array, weight: Array) -> Array:
    """`x` (..., in) times `weight` (out, in)."""
    return lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())))


def _rms_norm(x: Array, weight: Array, config: Config) -> Array:
    wide = x.astype(inp.float32)
    scale = lax.rsqrt(inp.mean(inp.square(wide), axis=-1, keepdims=True) + config.norm_epsilon)
    return (wide * scale).astype(x.dtype) * weight


def _heads(x: Array, config: Config) -> Array:
    """(B, T, heads * D) as (B, heads, T, D)."""
    batch, length, width = x.shape
    return inp.swapaxes(x.reshape(batch, length, width // config.head_dim, config.head_dim), 1, 2)


def _rotation(positions: Array, config: Config) -> tuple[Array, Array]:
    """Cosines and sines (T, D / 2) of the rotary angles."""
    half = config.head_dim // 2
    frequencies = config.rope_theta ** (-inp.arange(half, dtype=inp.float32) / half)
    angles = positions[:, None].astype(inp.float32) * frequencies
    return inp.cos(angles), inp.sin(angles)


def _rotate(x: Array, rotation: tuple[Array, Array]) -> Array:
    """Rotate the two halves of the last axis of (B, heads, T, D) by their angles."""
    cos, sin = (part.astype(x.dtype) for part in rotation)
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return inp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
