"""Attention over keys in blocks beside PyTorch's `scaled_dot_product_attention` and JAX's
`dot_product_attention` over the same keys in one piece.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import infini as inf
import infini.numpy as inp
from infini import lax

REQUESTS = [(1, 700), (4, 90), (20, 20), (30, 100), (1, 1)]  # tokens and keys
TOKENS, SIZE = 64, 16
HEADS = [(8, 2, 64), (4, 4, 128), (6, 1, 40)]  # of queries, of keys, and their width
DTYPES = {"float32": (torch.float32, 3e-5), "bfloat16": (torch.bfloat16, 2e-2)}


def draw(heads: int, key_heads: int, width: int, dtype: str) -> tuple[list[Any], list[Any]]:
    """Operands of infini, and for each request its queries, keys and values for the peers."""
    rng = np.random.default_rng([heads, key_heads, width])
    lengths = np.array([n for _, n in REQUESTS])
    counts = np.array([n for n, _ in REQUESTS])
    blocks = -(-lengths // SIZE)
    order = rng.permutation(blocks.sum())
    tables = np.zeros((len(REQUESTS), blocks.max()), np.int32)
    shape = (blocks.sum(), key_heads, SIZE, width)
    query, keys, values = (
        np.asarray(inp.asarray(rng.normal(size=s).astype(np.float32), dtype))
        for s in ((TOKENS, heads, width), shape, shape)
    )
    starts = np.concatenate([[0], np.cumsum(counts)])
    peers = []
    for r, (count, length) in enumerate(REQUESTS):
        own = order[blocks[:r].sum() :][: blocks[r]]
        tables[r, : blocks[r]] = own
        flat = [x[own].transpose(0, 2, 1, 3).reshape(-1, key_heads, width)[:length] for x in (keys, values)]
        peers.append(
            [query[starts[r] : starts[r] + count].astype(np.float32), *(x.astype(np.float32) for x in flat)]
        )
    return [inp.asarray(x) for x in (query, keys, values, tables, lengths, starts)], peers


def seen(count: int, length: int, window: int | None) -> np.ndarray:
    distance = np.arange(length - count, length)[:, None] - np.arange(length)
    return (distance >= 0) & (distance < (window or length))


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
def test_requests_agree_with_torch(heads: tuple[int, int, int], dtype: str, window: int | None) -> None:
    operands, peers = draw(*heads, dtype)
    found = np.asarray(inf.jit(lambda *x: lax.paged_attention(*x, window=window))(*operands)).astype(
        np.float32
    )
    kind, limit = DTYPES[dtype]
    at = 0
    for query, keys, values in peers:
        q, k, v = (torch.tensor(x).to(kind).transpose(0, 1)[None] for x in (query, keys, values))
        mask = torch.tensor(seen(len(query), len(keys), window))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        expected = out[0].transpose(0, 1).float().numpy()
        np.testing.assert_allclose(found[at : at + len(query)], expected, atol=limit, rtol=limit)
        at += len(query)
    assert not found[at:].any()


@pytest.mark.parametrize("heads", HEADS[:1])
def test_requests_agree_with_jax(heads: tuple[int, int, int]) -> None:
    operands, peers = draw(*heads, "float32")
    found = np.asarray(inf.jit(lax.paged_attention)(*operands))
    at = 0
    for query, keys, values in peers:
        mask = jnp.asarray(seen(len(query), len(keys), None))[None, None]
        out = jax.nn.dot_product_attention(query[None], keys[None], values[None], mask=mask)
        np.testing.assert_allclose(found[at : at + len(query)], np.asarray(out)[0], atol=3e-5)
        at += len(query)
