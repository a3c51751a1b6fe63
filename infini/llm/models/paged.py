"""Attention over a cache in blocks, and writing to it, by gathers: a placeholder for `lax.paged_attention` and
`lax.paged_update`.
"""

from __future__ import annotations

import infini.numpy as inp
from infini import Array


def paged_update(cache: Array, new: Array, slots: Array) -> Array:
    """Write (T, K, D) to slots (T,) of a cache (N, K, S, D); slots out of range are dropped."""
    size = cache.shape[2]
    return cache.at[slots // size, :, slots % size].set(new.astype(cache.dtype), mode="drop")


def paged_attention(
    query: Array,
    keys: Array,
    values: Array | None,
    block_tables: Array,
    lengths: Array,
    query_starts: Array,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    value_width: int | None = None,
) -> Array:
    """Softmax attention of queries (T, H, D) over a cache (N, K, S, D), as (T, H, E)."""
    num_tokens, num_heads, width = query.shape
    _, num_kv_heads, size, _ = keys.shape
    num_requests, blocks = block_tables.shape
    numbers = inp.arange(num_tokens)
    row = inp.sum(numbers[:, None] >= query_starts[None, 1:], axis=1)  # (T,), R in padding
    is_real = row < num_requests
    row = inp.minimum(row, num_requests - 1)
    position = lengths[row] - (query_starts[row + 1] - query_starts[row]) + numbers - query_starts[row]

    def rows(cache: Array) -> Array:
        found = inp.swapaxes(cache[block_tables], 2, 3)  # (R, B, S, K, D)
        return found.reshape(num_requests, blocks * size, num_kv_heads, cache.shape[-1])[row]

    slots = inp.arange(blocks * size)
    allowed = (slots[None] <= position[:, None]) & is_real[:, None]
    if window is not None:
        allowed = allowed & (slots[None] > position[:, None] - window)
    gathered = rows(keys)
    mixed = gathered[..., :value_width] if values is None else rows(values)
    grouped = query.reshape(num_tokens, num_kv_heads, num_heads // num_kv_heads, width)
    scores = inp.einsum("tkgd,tskd->tkgs", grouped, gathered, preferred_element_type=inp.float32)
    scores = scores * (width**-0.5 if scale is None else scale)
    if softcap is not None:
        scores = inp.tanh(scores / softcap) * softcap
    scores = inp.where(allowed[:, None, None], scores, -1e30)
    scores = inp.exp(scores - inp.max(scores, axis=-1, keepdims=True))
    scores = inp.where(allowed[:, None, None], scores, 0.0)
    scores = scores / inp.maximum(inp.sum(scores, axis=-1, keepdims=True), 1e-30)
    found = inp.einsum("tkgs,tske->tkge", scores.astype(mixed.dtype), mixed)
    return found.reshape(num_tokens, num_heads, mixed.shape[-1]).astype(query.dtype)
