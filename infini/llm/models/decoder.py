"""The decoder: tokens of all requests of a step through all blocks, as pure functions.

Layers are unrolled, and equal ones share their kernels.

Shapes: T tokens, M model width, L tokens whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

import infini.numpy as inp
from infini import Array
from infini.llm.models import blocks, layers, registry, rope
from infini.llm.models.batch import Batch
from infini.llm.models.config import Config
from infini.llm.models.family import Cache, Params


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
    own = registry.family_named(config.family).block or blocks.block
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
    step = blocks.Step(batch, rotation)
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
    found = layers.product(x, table, config, inp.float32)
    if config.head_bias:
        found = found + params["lm_head_bias"].astype(inp.float32)
    if config.logits_scale != 1.0:
        found = found * config.logits_scale
    return layers.capped(found, config.logits_cap)
