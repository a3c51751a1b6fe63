"""Parts of decoder models: grouped-query attention with rotary embedding and a cache, the gated MLP, and the
block of LLaMA, with the keys of Hugging Face's checkpoints; attention and MLP of GPT-2, with llm.c's.

Shapes: B batch, T new tokens, S slots of the cache, M model size, N heads, K key heads, H head size.
"""

from __future__ import annotations

from typing import Any

import infini.numpy as inp
from infini import random
from infini.core import errors
from infini.core.value import Value
from infini.lax.indexing import dynamic_update_slice
from infini.nn import activations, attention, parameters
from infini.nn.linear import Linear
from infini.nn.module import Module, field
from infini.nn.normalization import RMSNorm
from infini.nn.rotary import RotaryEmbedding
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value
from infini.random.keys import KeyLike


class KVCache(Module):
    """Keys and values of the tokens so far.

    Args:
        batch_size: B.
        num_slots: S, how many tokens it has room for.
        num_kv_heads: K.
        head_dim: H.
        dtype: dtype of keys and values, float32 when absent.
    """

    key: Value
    value: Value
    length: Value

    def __init__(
        self,
        batch_size: int,
        num_slots: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: DTypeLike | None = None,
    ) -> None:
        shape = (batch_size, num_slots, num_kv_heads, head_dim)
        self.key = inp.zeros(shape, dtype)
        self.value = inp.zeros(shape, dtype)
        self.length = inp.zeros((), inp.int32)

    def append(self, key: Value, value: Value) -> KVCache:
        """The cache with new tokens behind the others; in place where it is donated.

        Args:
            key: (B, T, K, H).
            value: (B, T, K, H).

        There has to be room for T tokens; the length may be traced, so this is not checked.
        """
        start = (0, self.length, 0, 0)
        return self.replace(
            key=dynamic_update_slice(self.key, key.astype(self.key.dtype), start),
            value=dynamic_update_slice(self.value, value.astype(self.value.dtype), start),
            length=self.length + key.shape[1],
        )


class GroupedQueryAttention(Module):
    """Causal attention in which several query heads share a key head, with rotary embedding and a cache.

    Args:
        hidden_size: M.
        num_heads: N.
        num_kv_heads: K, which divides N; N when absent.
        head_dim: H, M / N when absent.
        bias: whether the projections have biases.
        rope: rotation of queries and keys; none when absent.
        device: where the parameters live.
        dtype: dtype of the parameters, float32 when absent.
        key: a key for the initial values.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import nn, random
        >>> layer = nn.GroupedQueryAttention(32, 4, 2, rope=nn.RotaryEmbedding(8), key=random.key(0))
        >>> x = random.normal(random.key(1), (1, 6, 32))
        >>> whole = layer(x)
        >>> start, cache = layer(x[:, :5], cache=nn.KVCache(1, 8, 2, 8))
        >>> last, cache = layer(x[:, 5:], cache=cache)
        >>> bool(inp.allclose(whole[:, 5:], last, atol=1e-5))
        True
    """

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    rope: RotaryEmbedding | None
    num_heads: int = field(static=True)
    num_kv_heads: int = field(static=True)
    head_dim: int = field(static=True)

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = False,
        rope: RotaryEmbedding | None = None,
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
        *,
        key: KeyLike,
    ) -> None:
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.head_dim = hidden_size // num_heads if head_dim is None else head_dim
        if num_heads % self.num_kv_heads:
            raise errors.ValueMismatchError(
                "GroupedQueryAttention: num_kv_heads has to divide num_heads",
                got=f"{self.num_kv_heads}, {num_heads}",
            )
        keys = random.split(key, 4)
        queries, shared = num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = Linear(hidden_size, queries, bias, device, dtype, key=keys[0])
        self.k_proj = Linear(hidden_size, shared, bias, device, dtype, key=keys[1])
        self.v_proj = Linear(hidden_size, shared, bias, device, dtype, key=keys[2])
        self.o_proj = Linear(queries, hidden_size, bias, device, dtype, key=keys[3])
        self.rope = rope

    def __call__(
        self,
        x: ArrayLike,
        positions: ArrayLike | None = None,
        *,
        mask: ArrayLike | None = None,
        is_causal: bool = True,
        cache: KVCache | None = None,
    ) -> Any:  # Any: an array, or a pair of it and the cache
        """Attend to the tokens up to each one.

        Args:
            x: (B, T, M).
            positions: integers, (T,) or (B, T); they count on from the cache when absent.
            mask: boolean, true where a query may look; broadcasts to (B, N, T, T or S).
            is_causal: tokens only look at those before them; without a cache only it can be turned off.
            cache: tokens before these.

        Returns:
            (B, T, M); with a cache, the pair of that and the cache with these tokens.
        """
        value = as_value("GroupedQueryAttention", x)
        batch, tokens = value.shape[:2]
        query = inp.reshape(self.q_proj(value), (batch, tokens, self.num_heads, self.head_dim))
        key, mixed = (
            inp.reshape(layer(value), (batch, tokens, self.num_kv_heads, self.head_dim))
            for layer in (self.k_proj, self.v_proj)
        )
        own = inp.arange(tokens) if cache is None else cache.length + inp.arange(tokens)
        if self.rope is not None:
            places = own if positions is None else positions
            query, key = self.rope(query, places), self.rope(key, places)
        if cache is None:
            found = attention.dot_product_attention(query, key, mixed, mask=mask, is_causal=is_causal)
            return self.o_proj(inp.reshape(found, (batch, tokens, -1)))
        cache = cache.append(key, mixed)
        allowed = inp.arange(cache.key.shape[1])[None, :] <= own[:, None]  # (T, S)
        if mask is not None:
            allowed = allowed & as_value("GroupedQueryAttention", mask)
        kept, values = (a.astype(query.dtype) for a in (cache.key, cache.value))
        wide_mask = allowed if allowed.ndim == 4 else inp.reshape(allowed, (1, 1, *allowed.shape[-2:]))
        found = attention.dot_product_attention(query, kept, values, mask=wide_mask)
        return self.o_proj(inp.reshape(found, (batch, tokens, -1))), cache


class SwiGLU(Module):
    """`down(silu(gate(x)) * up(x))`, the MLP of LLaMA.

    Args:
        hidden_size: size of the last dimension of operand and result.
        intermediate_size: size in between.
        bias: whether the maps have biases.
        device: where the parameters live.
        dtype: dtype of the parameters, float32 when absent.
        key: a key for the initial values.
    """

    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        bias: bool = False,
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
        *,
        key: KeyLike,
    ) -> None:
        keys = random.split(key, 3)
        self.gate_proj = Linear(hidden_size, intermediate_size, bias, device, dtype, key=keys[0])
        self.up_proj = Linear(hidden_size, intermediate_size, bias, device, dtype, key=keys[1])
        self.down_proj = Linear(intermediate_size, hidden_size, bias, device, dtype, key=keys[2])

    def __call__(self, x: ArrayLike) -> Value:
        """An array of the shape of `x`."""
        return self.down_proj(activations.silu(self.gate_proj(x)) * self.up_proj(x))


class TransformerBlock(Module):
    """A block of LLaMA: attention and MLP, each behind an RMSNorm and with a residual.

    Args:
        hidden_size: M.
        intermediate_size: size inside the MLP.
        num_heads: N.
        num_kv_heads: K, N when absent.
        head_dim: H, M / N when absent.
        rope: rotation of queries and keys; over the whole head with base 10000 when absent.
        norm_eps: added to the mean square in the norms.
        bias: whether projections have biases.
        device: where the parameters live.
        dtype: dtype of the parameters, float32 when absent.
        key: a key for the initial values.
    """

    input_layernorm: RMSNorm
    self_attn: GroupedQueryAttention
    post_attention_layernorm: RMSNorm
    mlp: SwiGLU

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        rope: RotaryEmbedding | None = None,
        norm_eps: float = 1e-6,
        bias: bool = False,
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
        *,
        key: KeyLike,
    ) -> None:
        first, second = random.split(key)
        rotation = rope or RotaryEmbedding(hidden_size // num_heads if head_dim is None else head_dim)
        self.input_layernorm = RMSNorm(hidden_size, norm_eps, device=device, dtype=dtype)
        self.self_attn = GroupedQueryAttention(
            hidden_size, num_heads, num_kv_heads, head_dim, bias, rotation, device, dtype, key=first
        )
        self.post_attention_layernorm = RMSNorm(hidden_size, norm_eps, device=device, dtype=dtype)
        self.mlp = SwiGLU(hidden_size, intermediate_size, bias, device, dtype, key=second)

    def __call__(
        self,
        x: ArrayLike,
        positions: ArrayLike | None = None,
        *,
        mask: ArrayLike | None = None,
        cache: KVCache | None = None,
    ) -> Any:  # Any: an array, or a pair of it and the cache
        """As `GroupedQueryAttention`: (B, T, M), with a cache the pair of that and the cache."""
        value = parameters.operand("TransformerBlock", x)
        found = self.self_attn(self.input_layernorm(value), positions, mask=mask, cache=cache)
        mixed, after = found if cache is not None else (found, None)
        value = value + mixed
        value = value + self.mlp(self.post_attention_layernorm(value))
        return value if cache is None else (value, after)


class CausalSelfAttention(Module):
    """Causal attention of GPT-2: one projection for queries, keys and values.

    Args:
        hidden_size: M.
        num_heads: N, which divides M.
        bias: whether the projections have biases.
        device: where the parameters live.
        dtype: dtype of the parameters, float32 when absent.
        key: a key for the initial values.
    """

    c_attn: Linear
    c_proj: Linear
    num_heads: int = field(static=True)

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        bias: bool = True,
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
        *,
        key: KeyLike,
    ) -> None:
        if hidden_size % num_heads:
            raise errors.ValueMismatchError(
                "CausalSelfAttention: num_heads has to divide hidden_size", got=f"{num_heads}, {hidden_size}"
            )
        first, second = random.split(key)
        self.c_attn = Linear(hidden_size, 3 * hidden_size, bias, device, dtype, key=first)
        self.c_proj = Linear(hidden_size, hidden_size, bias, device, dtype, key=second)
        self.num_heads = num_heads

    def __call__(self, x: ArrayLike) -> Value:
        """Map (B, T, M) to (B, T, M)."""
        value = as_value("CausalSelfAttention", x)
        batch, tokens, size = value.shape
        shape = (batch, tokens, self.num_heads, size // self.num_heads)
        query, key, mixed = (inp.reshape(part, shape) for part in inp.split(self.c_attn(value), 3, -1))
        found = attention.dot_product_attention(query, key, mixed, is_causal=True)
        return self.c_proj(inp.reshape(found, value.shape))


class MLP(Module):
    """The MLP of GPT-2: two linear maps with a GELU by tanh between them.

    Args:
        hidden_size: size of the last dimension of operand and result.
        intermediate_size: size in between, four times as much when absent.
        bias: whether the maps have biases.
        device: where the parameters live.
        dtype: dtype of the parameters, float32 when absent.
        key: a key for the initial values.
    """

    c_fc: Linear
    c_proj: Linear

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int | None = None,
        bias: bool = True,
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
        *,
        key: KeyLike,
    ) -> None:
        first, second = random.split(key)
        inner = 4 * hidden_size if intermediate_size is None else intermediate_size
        self.c_fc = Linear(hidden_size, inner, bias, device, dtype, key=first)
        self.c_proj = Linear(inner, hidden_size, bias, device, dtype, key=second)

    def __call__(self, x: ArrayLike) -> Value:
        """An array of the shape of `x`."""
        return self.c_proj(activations.gelu(self.c_fc(x)))
