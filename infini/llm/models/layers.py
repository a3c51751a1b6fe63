"""The layers that blocks are made of, as functions of a dictionary of weights and the name of one.

Matrices have the layout (out, in) and may be quantised.
"""

from __future__ import annotations

from typing import Any

import infini.numpy as inp
from infini import Array, lax, nn
from infini.llm.models.config import Activation, Config
from infini.quantization import QuantizedArray


def linear(
    x: Array, weights: dict[str, Any], name: str, config: Config
) -> Array:  # Any: arrays, quantised or not
    """`x` (..., in) times the matrix of that name, plus its bias where there is one."""
    found = product(x, weights[name], config)
    bias = weights.get(f"{name}_bias")
    return found if bias is None else found + bias


def product(
    x: Array, weight: Any, config: Config, dtype: Any = None
) -> Array:  # Any: an array, quantised or not; a dtype
    """`x` (..., in) times a matrix (out, in)."""
    if isinstance(weight, QuantizedArray):
        return lax.quantized_matmul(
            x, weight, preferred_element_type=dtype, activations=config.quantized_activations
        )
    # Where activations are wider than the matrix, sums and results stay so.
    return lax.dot_general(
        x.astype(weight.dtype),
        weight,
        (((x.ndim - 1,), (1,)), ((), ())),
        preferred_element_type=x.dtype if dtype is None else dtype,
    )


def embedding(table: Any, tokens: Array, dtype: Any) -> Array:  # Any: an array, quantised or not; a dtype
    """Rows of a table (vocabulary, M), as (T, M)."""
    rows = table[tokens]
    return rows.dequantize(dtype) if isinstance(rows, QuantizedArray) else rows.astype(dtype)


def norm(x: Array, weights: dict[str, Any], name: str, config: Config) -> Array:  # Any: arrays
    """The norm of that name over the last axis, computed in float32."""
    wide, weight = x.astype(inp.float32), weights[name]
    if config.norm == "layer":
        wide = wide - inp.mean(wide, axis=-1, keepdims=True)
    scale = lax.rsqrt(inp.mean(inp.square(wide), axis=-1, keepdims=True) + config.norm_epsilon)
    if config.norm == "layer":
        found, bias = wide * scale * weight.astype(inp.float32), weights.get(f"{name}_bias")
        return (found if bias is None else found + bias.astype(inp.float32)).astype(x.dtype)
    if config.is_norm_offset:
        return (wide * scale * (1.0 + weight.astype(inp.float32))).astype(x.dtype)
    return (wide * scale).astype(x.dtype) * weight.astype(x.dtype)


def activated(x: Array, kind: Activation) -> Array:
    """The activation of the feed-forward layer."""
    match kind:
        case "silu":
            return x * lax.logistic(x)
        case "gelu":
            return nn.gelu(x, approximate=False)
        case "gelu_tanh":
            return nn.gelu(x, approximate=True)
        case "relu":
            return inp.maximum(x, 0)


def capped(x: Array, cap: float | None) -> Array:
    """`cap * tanh(x / cap)`, or `x` without a cap."""
    return x if cap is None else inp.tanh(x / cap) * cap


def feed_forward(x: Array, weights: dict[str, Any], config: Config) -> Array:  # Any: arrays
    """The feed-forward layer without experts."""
    hidden = linear(x, weights, "up_proj", config)
    if config.is_gated:
        hidden = activated(linear(x, weights, "gate_proj", config), config.activation) * hidden
    else:
        hidden = activated(hidden, config.activation)
    return linear(hidden, weights, "down_proj", config)
