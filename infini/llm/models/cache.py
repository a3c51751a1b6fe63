"""Caches of keys and values in blocks of tokens: one dictionary of arrays per layer of the model.

`{"key": (N, K, S, D), "value": (N, K, S, E)}` for N blocks of S tokens and K key heads. In 8-bit dtypes each
token and head has a scale beside them, `key_scale` and `value_scale` (N, K, S). Attention over a compressed
cache has `key` alone, of one head: its values are the first numbers of its keys.
"""

from __future__ import annotations

from typing import Any, Final

import infini.numpy as inp
from infini import Array, lax
from infini.core import dtypes
from infini.llm.models.config import Config
from infini.llm.models.family import Cache, Entry

SCALE_DTYPE: Final = dtypes.float32
_SCALED: Final = frozenset({dtypes.int8, dtypes.float8_e4m3fn, dtypes.float8_e5m2})


def init(config: Config, num_blocks: int, block_size: int, dtype: Any = inp.float32) -> Cache:  # Any: a dtype
    """An empty cache.

    Args:
        config: sizes of the model.
        num_blocks: blocks N.
        block_size: tokens S of a block.
        dtype: of keys and values: a float, int8, float8_e4m3fn or float8_e5m2.
    """
    dtype = dtypes.canonical(dtype)
    sizes = _sizes(config)
    entry: dict[str, tuple[tuple[int, ...], Any]] = {  # Any: a dtype
        name: ((num_blocks, heads, block_size, width), dtype) for name, (heads, width) in sizes.items()
    }
    if dtype in _SCALED:
        entry |= {
            f"{name}_scale": ((num_blocks, heads, block_size), SCALE_DTYPE)
            for name, (heads, _) in sizes.items()
        }
    return [
        {name: inp.zeros(shape, kind) for name, (shape, kind) in entry.items()}
        for _ in range(config.num_layers)
    ]


def bytes_per_token(config: Config, dtype: Any = inp.float32) -> int:  # Any: a dtype
    """Bytes that one token takes in all layers of a cache.

    Example:
        >>> from infini.llm import models
        >>> tiny = models.config_from_json({"model_type": "llama", "vocab_size": 64, "hidden_size": 32,
        ...     "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4})
        >>> bytes_per_token(tiny, "float16")  # 2 layers of keys and values for 4 heads of width 8
        256
    """
    dtype = dtypes.canonical(dtype)
    scale = SCALE_DTYPE.itemsize if dtype in _SCALED else 0
    return config.num_layers * sum(
        heads * (width * dtype.itemsize + scale) for heads, width in _sizes(config).values()
    )


def write(entry: Entry, slots: Array, **new: Array) -> Entry:
    """The part of a cache that belongs to a layer with new tokens in it.

    Args:
        entry: the part.
        slots: where each token goes (T,).
        new: `key` and `value` (T, K, width).
    """
    found = dict(entry)
    for name, tokens in new.items():
        if f"{name}_scale" in entry:
            tokens, scales = lax.paged_quantize(tokens, entry[name].dtype)
            found[f"{name}_scale"] = lax.paged_update(entry[f"{name}_scale"], scales, slots)
        found[name] = lax.paged_update(entry[name], tokens, slots)
    return found


def _sizes(config: Config) -> dict[str, tuple[int, int]]:
    """Heads and width of what a layer keeps of a token."""
    if config.latent is not None:
        return {"key": (1, config.latent.rank + config.latent.rope_dim)}
    return {
        "key": (config.num_kv_heads, config.head_dim),
        "value": (config.num_kv_heads, config.head_dim),
    }
