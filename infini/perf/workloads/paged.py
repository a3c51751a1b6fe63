"""Attention of an engine's step: some tokens of several requests over a long cache. Infini reads keys and
values in blocks through a table; the others are given the same ones in one piece, and read no table.

Shapes: R requests of n tokens and L keys each, H query heads, K key heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import ml_dtypes
import numpy as np

from infini.perf.workload import Program, Tree, Workload, normal

BLOCK: Final = 32  # keys


def paged(
    requests: int,
    tokens: int,
    keys: int,
    *,
    heads: int = 32,
    key_heads: int = 8,
    width: int = 128,
    dtype: Any = np.float32,  # Any: a dtype
    is_quick: bool = False,
) -> Workload:
    """Requests of equal sizes, whose blocks lie in any order."""
    blocks = -(-keys // BLOCK)
    itemsize = np.dtype(dtype).itemsize

    def arguments(rng: np.random.Generator) -> tuple[Tree, ...]:
        query = normal(rng, requests, tokens, heads, width).astype(dtype)
        dense = [normal(rng, requests, blocks * BLOCK, key_heads, width).astype(dtype) for _ in range(2)]
        table = rng.permutation(requests * blocks).astype(np.int32)
        cut = [x.reshape(-1, BLOCK, key_heads, width).transpose(0, 2, 1, 3) for x in dense]
        caches = [np.empty_like(x) for x in cut]
        for cache, x in zip(caches, cut, strict=True):
            cache[table] = x
        return query, *(np.ascontiguousarray(x[:, :keys]) for x in dense), *caches, table

    def program(ns: Any) -> Program:  # Any: Namespace
        def in_blocks(
            query: Any, keys_: Any, values: Any, key_cache: Any, value_cache: Any, table: Any
        ) -> Any:
            lengths = ns.numpy.full((requests,), keys)
            starts = ns.numpy.arange(requests + 1) * tokens
            flat = query.reshape(requests * tokens, heads, width)
            tables = table.reshape(requests, blocks)
            out = ns.lax.paged_attention(flat, key_cache, value_cache, tables, lengths, starts)
            return out.reshape(query.shape)

        def in_one_piece(query: Any, keys_: Any, values: Any, *_: Any) -> Any:
            place = ns.numpy.arange(keys - tokens, keys)
            seen = (ns.numpy.arange(keys)[None, :] <= place[:, None])[None, None]
            return ns.nn.dot_product_attention(query, keys_, values, mask=seen)

        return in_blocks if ns.name == "infini" else in_one_piece

    def in_torch(torch: Any) -> Callable[..., Any]:  # Any: the module
        fused = torch.nn.functional.scaled_dot_product_attention

        def run(query: Any, keys_: Any, values: Any, *_: Any) -> Any:
            q, k, v = (x.transpose(1, 2) for x in (query, keys_, values))
            if tokens in (1, keys):
                found = fused(q, k, v, is_causal=tokens > 1, enable_gqa=True)
            else:
                place = torch.arange(keys - tokens, keys)
                seen = torch.arange(keys)[None, :] <= place[:, None]
                found = fused(q, k, v, attn_mask=seen, enable_gqa=True)
            return found.transpose(1, 2)

        return run

    pairs = requests * (tokens * (keys - tokens) + tokens * (tokens + 1) / 2)
    kind = "paged_decode" if tokens == 1 else "paged_prefill"
    name = f"{requests}x{keys}" if tokens == 1 else f"{tokens}after{keys - tokens}"
    return Workload(
        name=f"{kind}/{name}_h{heads}k{key_heads}" + ("/bf16" if itemsize == 2 else ""),
        family="paged_attention",
        arguments=arguments,
        program=program,
        torch=in_torch,
        flops=4.0 * heads * width * pairs if tokens > 1 else 0.0,
        num_bytes=2.0 * requests * keys * key_heads * width * itemsize,
        tolerance=1e-4 if itemsize == 4 else 2e-2,
        is_quick=is_quick,
    )


_BF16: Final = ml_dtypes.bfloat16
WORKLOADS: Final = (
    paged(1, 1, 4096, is_quick=True),
    paged(1, 1, 4096, dtype=_BF16, is_quick=True),
    paged(1, 1, 4096, key_heads=32),
    paged(8, 1, 1024, is_quick=True),
    paged(8, 1, 1024, dtype=_BF16),
    paged(1, 512, 512, is_quick=True),
    paged(1, 512, 512, dtype=_BF16),
    paged(1, 512, 2560),
    paged(1, 512, 2560, dtype=_BF16),
)
TINY: Final = (
    paged(2, 1, 40, heads=4, key_heads=2, width=8),
    paged(1, 9, 40, heads=4, key_heads=2, width=8),
)
