"""Attention with PyTorch's signatures: `scaled_dot_product_attention` and `MultiheadAttention`.

Shapes: N batch, H heads, L queries, S keys, E embedding, D head size.
"""

from __future__ import annotations

import math
from typing import Any

import infini.numpy as inp
from infini import random
from infini.core import dtypes, errors, trace
from infini.core.value import Value
from infini.lax.composites import attention
from infini.nn import activations, dropout as dropout_, parameters
from infini.nn.linear import Linear
from infini.nn.module import Module, field
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value
from infini.random.keys import KeyLike


def scaled_dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    attn_mask: ArrayLike | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    dropout_key: KeyLike | None = None,
) -> Value:
    """Attention with PyTorch's layout and options; `dot_product_attention` is JAX's.

    Args:
        query: (..., H, L, D).
        key: (..., H, S, D).
        value: (..., H, S, V).
        attn_mask: boolean, true where a query may look at a key, or floats added to the scores; broadcasts
            to (..., H, L, S). A query that may look at nothing gives NaN, as in PyTorch.
        dropout_p: probability of dropping a weight, when there is a `dropout_key`.
        is_causal: query l only looks at keys up to l.
        scale: factor of the scores, `1 / sqrt(D)` when absent.
        enable_gqa: there may be fewer key heads; each serves H / key heads query heads in turn.
        dropout_key: a key for dropout.

    Returns:
        (..., H, L, V) in the dtype of `query`.

    Raises:
        ValueMismatchError: a mask and `is_causal` are both given.
    """
    q, k, v = (as_value("scaled_dot_product_attention", x) for x in (query, key, value))
    if is_causal and attn_mask is not None:
        raise errors.ValueMismatchError(
            "scaled_dot_product_attention takes a mask or is_causal, not both",
            fix="make the mask causal with inp.tril",
        )
    has_dropout = dropout_p and dropout_key is not None
    if attn_mask is None and not has_dropout and q.dtype == k.dtype == v.dtype and q.dtype in dtypes.FLOATS:
        return _without_weights(q, k, v, is_causal, scale, enable_gqa)
    if enable_gqa:
        k, v = (inp.repeat(x, q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    mixed, _ = _attend(q, k, v, attn_mask, is_causal, scale, dropout_p, dropout_key)
    return mixed


def _without_weights(
    q: Value, k: Value, v: Value, is_causal: bool, scale: float | None, enable_gqa: bool
) -> Value:
    """Results alone; leading dimensions broadcast."""
    shape = q.shape
    if enable_gqa:  # (..., K, G, L, D), and keys that lack G
        q = inp.reshape(q, (*shape[:-3], k.shape[-3], shape[-3] // k.shape[-3], *shape[-2:]))
    group = "g" if enable_gqa else ""
    mixed = trace.bind1(
        attention.attention_p,
        q,
        k,
        v,
        spec=f"{group}td,sd,sv->{group}tv,{group}t",
        scale=1 / math.sqrt(shape[-1]) if scale is None else float(scale),
        band=(None, 0 if is_causal else None),
        fill=-math.inf,
        has_bias=False,
        has_mask=False,
    )
    return inp.reshape(mixed, (*mixed.shape[:-4], shape[-3], *mixed.shape[-2:])) if enable_gqa else mixed


def _attend(
    q: Value,
    k: Value,
    v: Value,
    mask: ArrayLike | None,
    is_causal: bool,
    scale: float | None,
    dropout_p: float,
    dropout_key: KeyLike | None,
) -> tuple[Value, Value]:
    """Results and weights. Scores and softmax are float32 or wider."""
    wide = q.dtype if q.dtype.itemsize >= 4 else dtypes.float32
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = inp.matmul(q, inp.swapaxes(k, -1, -2)).astype(wide) * factor
    if is_causal:
        mask = inp.tril(inp.ones(scores.shape[-2:], inp.bool_))
    if mask is not None:
        given = as_value("scaled_dot_product_attention", mask)
        is_choice = given.dtype == dtypes.bool_
        scores = inp.where(given, scores, -math.inf) if is_choice else scores + given.astype(wide)
    weights = activations.softmax(scores)
    if dropout_p and dropout_key is not None:
        weights = dropout_.dropout(weights, dropout_p, key=dropout_key)
    return inp.matmul(weights.astype(v.dtype), v), weights


class MultiheadAttention(Module):
    """Attention of several heads with projections of queries, keys, values and results.

    Args:
        embed_dim: E.
        num_heads: H, which divides E.
        dropout: probability of dropping a weight, when a key is given.
        bias: whether the projections have biases.
        add_bias_kv: learn one more key and value.
        add_zero_attn: add a key and a value of zeros.
        kdim: size of the keys, E when absent.
        vdim: size of the values, E when absent.
        batch_first: operands are (N, L, E) instead of (L, N, E).
        device: where the parameters live.
        dtype: dtype of the parameters, float32 when absent.
        key: a key for the initial values.
    """

    in_proj_weight: Value | None
    q_proj_weight: Value | None
    k_proj_weight: Value | None
    v_proj_weight: Value | None
    in_proj_bias: Value | None
    bias_k: Value | None
    bias_v: Value | None
    out_proj: Linear
    embed_dim: int = field(static=True)
    num_heads: int = field(static=True)
    dropout: float = field(static=True)
    add_zero_attn: bool = field(static=True)
    batch_first: bool = field(static=True)

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
        *,
        key: KeyLike,
    ) -> None:
        if embed_dim % num_heads:
            raise errors.ValueMismatchError(
                "MultiheadAttention: num_heads has to divide embed_dim", got=f"{num_heads}, {embed_dim}"
            )
        keys = random.split(key, 6)
        make = parameters.maker(device, dtype)
        sizes = (embed_dim, embed_dim if kdim is None else kdim, embed_dim if vdim is None else vdim)
        is_one = sizes == (embed_dim,) * 3
        separate = [
            None if is_one else make.uniform(keys[i], (embed_dim, n), math.sqrt(6 / (embed_dim + n)))
            for i, n in enumerate(sizes)
        ]
        bound = math.sqrt(6 / (4 * embed_dim))
        self.in_proj_weight = make.uniform(keys[0], (3 * embed_dim, embed_dim), bound) if is_one else None
        self.q_proj_weight, self.k_proj_weight, self.v_proj_weight = separate
        self.in_proj_bias = make.full((3 * embed_dim,), 0) if bias else None
        deviation = math.sqrt(2 / (1 + embed_dim))
        self.bias_k = make.normal(keys[3], (1, 1, embed_dim), deviation) if add_bias_kv else None
        self.bias_v = make.normal(keys[4], (1, 1, embed_dim), deviation) if add_bias_kv else None
        out = Linear(embed_dim, embed_dim, bias, device, dtype, key=keys[5])
        self.out_proj = out if out.bias is None else out.replace(bias=inp.zeros_like(out.bias))
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.add_zero_attn = add_zero_attn
        self.batch_first = batch_first

    def __call__(
        self,
        query: ArrayLike,
        key: ArrayLike,
        value: ArrayLike,
        key_padding_mask: ArrayLike | None = None,
        need_weights: bool = True,
        attn_mask: ArrayLike | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        dropout_key: KeyLike | None = None,
        training: bool | None = None,
    ) -> tuple[Value, Value | None]:
        """Attend. As in PyTorch, boolean masks are true where a query may *not* look.

        Args:
            query: (L, N, E), (N, L, E) with `batch_first`, or (L, E).
            key: the same with S instead of L.
            value: as `key`.
            key_padding_mask: (N, S), keys that nobody looks at, or floats added to the scores.
            need_weights: give the weights as well.
            attn_mask: (L, S) or (N * H, L, S).
            average_attn_weights: give the mean over the heads.
            is_causal: query l only looks at keys up to l; needs no mask here.
            dropout_key: a key for dropout.
            training: as of `Dropout`.

        Returns:
            The results, in the layout of `query`; and the weights, (N, L, S), (N, H, L, S) or without N, or
            None.
        """
        q, k, v = (as_value("MultiheadAttention", x) for x in (query, key, value))
        is_single = q.ndim == 2
        if is_single:
            q, k, v = (x[None] for x in (q, k, v))
            key_padding_mask = None if key_padding_mask is None else as_value("mask", key_padding_mask)[None]
        elif not self.batch_first:
            q, k, v = (inp.swapaxes(x, 0, 1) for x in (q, k, v))
        q, k, v = self._projected(parameters.operand("MultiheadAttention", q, self.embed_dim), k, v)
        extra = k.shape[1]
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (self._appended(x, bias) for x, bias in ((k, self.bias_k), (v, self.bias_v)))
        if self.add_zero_attn:
            k, v = (self._appended(x, inp.zeros((1, 1, self.embed_dim), x.dtype)) for x in (k, v))
        mask = self._mask(attn_mask, key_padding_mask, is_causal, q, k.shape[1] - extra, k.shape[1])
        q_heads, k_heads, v_heads = (self._split(x) for x in (q, k, v))  # (N, H, ., D)
        is_drawn = dropout_.is_drawn("MultiheadAttention", self.dropout, dropout_key, training)
        share = self.dropout if is_drawn else 0.0
        mixed, weights = _attend(q_heads, k_heads, v_heads, mask, False, None, share, dropout_key)
        merged = inp.reshape(inp.swapaxes(mixed, 1, 2), q.shape)
        result = self.out_proj(merged)
        found = None
        if need_weights:
            found = inp.mean(weights, 1) if average_attn_weights else weights
        if is_single:
            return result[0], None if found is None else found[0]
        return (result if self.batch_first else inp.swapaxes(result, 0, 1)), found

    def _projected(self, q: Value, k: Value, v: Value) -> list[Value]:
        if self.in_proj_weight is not None:
            weights = inp.split(self.in_proj_weight, 3)
        else:
            # Without the one matrix there are three.
            weights = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]  # type: ignore[list-item]
        biases = [0, 0, 0] if self.in_proj_bias is None else inp.split(self.in_proj_bias, 3)
        return [inp.matmul(x, w.T) + b for x, w, b in zip((q, k, v), weights, biases, strict=True)]

    def _appended(self, x: Value, row: Value) -> Value:
        return inp.concatenate([x, inp.broadcast_to(row, (x.shape[0], 1, self.embed_dim)).astype(x.dtype)], 1)

    def _split(self, x: Value) -> Value:
        size = self.embed_dim // self.num_heads
        return inp.swapaxes(inp.reshape(x, (*x.shape[:2], self.num_heads, size)), 1, 2)

    def _mask(
        self,
        attn_mask: ArrayLike | None,
        padding: ArrayLike | None,
        is_causal: bool,
        q: Value,
        num_extra: int,
        num_keys: int,
    ) -> Value | None:
        """What is added to the scores; None when nothing is. Keys appended here are open to all."""
        parts = []
        if is_causal and attn_mask is None:
            attn_mask = ~inp.tril(inp.ones((q.shape[1], num_keys - num_extra), inp.bool_))
        if attn_mask is not None:
            part = _added(attn_mask)
            parts.append(
                inp.reshape(part, (q.shape[0], self.num_heads, *part.shape[1:])) if part.ndim == 3 else part
            )
        if padding is not None:
            parts.append(_added(padding)[:, None, None, :])
        if not parts:
            return None
        total = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return inp.pad(total, [(0, 0)] * (total.ndim - 1) + [(0, num_extra)]) if num_extra else total


def _added(mask: ArrayLike) -> Value:
    given = as_value("MultiheadAttention", mask)
    return inp.where(given, -math.inf, 0.0) if given.dtype == dtypes.bool_ else given
