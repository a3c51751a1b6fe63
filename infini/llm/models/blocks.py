"""The decoder's block: attention and a feed-forward layer, each added to the stream. What differs between
families is in `Config`.

Shapes: T tokens, M model width, H query heads, K key-value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

from infini import Array, lax
from infini.llm.models import cache as cache_, experts, layers, rope
from infini.llm.models.batch import Batch
from infini.llm.models.config import Config
from infini.llm.models.family import Entry, Params


@dataclass(frozen=True, slots=True)
class Step:
    """What all blocks of a step share.

    Args:
        batch: its tokens.
        rotation: cosines and sines of the rotary angles of each token, (T, 1, dim / 2); None without.
    """

    batch: Batch
    rotation: tuple[Array, Array] | None


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
    query = layers.linear(x, weights, "q_proj", config).reshape(num_tokens, config.num_heads, config.head_dim)
    key = layers.linear(x, weights, "k_proj", config).reshape(
        num_tokens, config.num_kv_heads, config.head_dim
    )
    value = layers.linear(x, weights, "v_proj", config).reshape(
        num_tokens, config.num_kv_heads, config.head_dim
    )
    if config.qk_norm:
        query, key = (
            layers.norm(part, weights, f"{name}_norm", config) for part, name in ((query, "q"), (key, "k"))
        )
    if config.rope is not None and step.rotation is not None:
        query = rope.rotate(query, step.rotation, config.rope)
        key = rope.rotate(key, step.rotation, config.rope)
    entry = cache_.write(entry, step.batch.slots, key=key, value=value)
    mixed = attend(query, entry, step.batch, number, config)
    return layers.linear(mixed.reshape(num_tokens, -1), weights, "o_proj", config), entry


def attend(
    query: Array, entry: Entry, batch: Batch, number: int, config: Config, value_width: int | None = None
) -> Array:
    """Softmax attention of queries (T, H, D) over the cache, (T, H, width of values)."""
    scales = {
        f"{name}_scales": entry[f"{name}_scale"] for name in ("key", "value") if f"{name}_scale" in entry
    }
    return lax.paged_attention(
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
