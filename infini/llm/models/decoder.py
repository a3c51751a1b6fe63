"""The decoder: tokens of all requests of a step through all blocks, as pure functions.

Everything that differs between families is in `Config`, or in a family's own block. Layers are unrolled, and
equal ones share their kernels.

Shapes: T tokens, M model width, H query heads, K key-value heads, D head width, L tokens whose logits are
wanted, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import infini.numpy as inp
from infini import Array
from infini.llm.models import cache as cache_, experts, layers, paged, registry, rope
from infini.llm.models.batch import Batch
from infini.llm.models.config import Config
from infini.llm.models.family import Cache, Entry, Params


@dataclass(frozen=True, slots=True)
class Step:
    """What all blocks of a step share.

    Args:
        batch: its tokens.
        rotation: cosines and sines of the rotary angles of each token, (T, 1, dim / 2); None without.
    """

    batch: Batch
    rotation: tuple[Array, Array] | None


def forward(params: Params, cache: Cache, batch: Batch, config: Config) -> tuple[Array, Cache]:
    """What the last block gives for every token, and the cache with the new tokens in it.

    Args:
        params: weights, as `checkpoints.load` gives them.
        cache: as `init_cache` makes it; donate it, and it is updated in place.
        batch: the tokens of this step.
        config: sizes; a static argument.

    Returns:
        Array (T, M) for `logits`, and the cache.
    """
    own = registry.family_named(config.family).block or block
    dtype = params["norm"].dtype
    x = layers.embedding(params["embed_tokens"], batch.tokens, dtype)
    if config.embedding_scale != 1.0:
        x = x * config.embedding_scale
    rotation = None
    if config.rope is None:
        x = x + layers.embedding(params["embed_positions"], batch.positions, dtype)
    else:
        rotation = rope.rotation(
            batch.positions,
            config.rope,
            max_length=config.max_length,
            served_length=config.served_length or config.max_length,
            dtype=dtype,
        )
    step = Step(batch, rotation)
    after = []
    for number, (layer, before) in enumerate(zip(params["layers"], cache, strict=True)):
        x, entry = own(layer, before, x, step, number, config)
        after.append(entry)
    return x, after


def logits(params: Params, hidden: Array, config: Config) -> Array:
    """Logits of the token after each.

    Args:
        params: weights.
        hidden: rows of what `forward` gives (L, M), usually `hidden[batch.last]`.
        config: sizes.

    Returns:
        float32 (L, V).
    """
    x = layers.norm(hidden, params, "norm", config)
    table = params["embed_tokens"] if config.tie_embeddings else params["lm_head"]
    found = layers.product(x, table, inp.float32)
    if config.head_bias:
        found = found + params["lm_head_bias"].astype(inp.float32)
    if config.logits_scale != 1.0:
        found = found * config.logits_scale
    return layers.capped(found, config.logits_cap)


def block(
    layer: Params, entry: Entry, x: Array, step: Step, number: int, config: Config
) -> tuple[Array, Entry]:
    """One block: attention and a feed-forward layer, each added to the stream (T, M).

    Returns:
        The stream, and this block's part of the cache with the new tokens in it.
    """
    mixed, entry = attention(
        layer["self_attn"], entry, layers.norm(x, layer, "attention_norm", config), step, number, config
    )
    x = x + _of_layer(mixed, layer, "attention_output_norm", config)
    return feed_forward(layer, x, number, config), entry


def feed_forward(layer: Params, x: Array, number: int, config: Config) -> Array:
    """The second half of a block: its feed-forward layer, with experts or without, added to the stream."""
    inner = layers.norm(x, layer, "mlp_norm", config)
    compute = experts.feed_forward if config.has_experts(number) else layers.feed_forward
    return x + _of_layer(compute(inner, layer["mlp"], config), layer, "mlp_output_norm", config)


def attention(
    weights: Params, entry: Entry, x: Array, step: Step, number: int, config: Config
) -> tuple[Array, Entry]:
    """Attention of every token (T, M) to those before it in its sequence."""
    num_tokens = x.shape[0]
    query = layers.linear(x, weights, "q_proj").reshape(num_tokens, config.num_heads, config.head_dim)
    key = layers.linear(x, weights, "k_proj").reshape(num_tokens, config.num_kv_heads, config.head_dim)
    value = layers.linear(x, weights, "v_proj").reshape(num_tokens, config.num_kv_heads, config.head_dim)
    if config.qk_norm:
        query, key = (layers.norm(part, weights, f"{name}_norm", config) for part, name in ((query, "q"), (key, "k")))
    if config.rope is not None and step.rotation is not None:
        query = rope.rotate(query, step.rotation, config.rope)
        key = rope.rotate(key, step.rotation, config.rope)
    entry = cache_.write(entry, step.batch.slots, key=key, value=value)
    mixed = attend(query, entry, step.batch, number, config)
    return layers.linear(mixed.reshape(num_tokens, -1), weights, "o_proj"), entry


def attend(
    query: Array, entry: Entry, batch: Batch, number: int, config: Config, value_width: int | None = None
) -> Array:
    """Softmax attention of queries (T, H, D) over the cache, (T, H, width of values)."""
    scales = {f"{name}_scales": entry[f"{name}_scale"] for name in ("key", "value") if f"{name}_scale" in entry}
    return paged.paged_attention(
        query,
        entry["key"],
        entry.get("value"),
        batch.block_tables,
        batch.lengths,
        batch.query_starts,
        scale=config.attention_scale,
        window=config.window_of(number),
        softcap=config.attention_cap,
        value_width=value_width,
        **scales,
    )


def _of_layer(x: Array, layer: Params, name: str, config: Config) -> Array:
    """What a layer adds to the stream."""
    if config.has_output_norms:
        x = layers.norm(x, layer, name, config)
    return x if config.residual_scale == 1.0 else x * config.residual_scale
