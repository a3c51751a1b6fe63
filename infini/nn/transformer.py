"""PyTorch's transformer layers, with its constructors and keys. As there, boolean masks are true where a
query may *not* look.

Shapes: N batch, S source tokens, T target tokens, E model size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from infini import random
from infini.core import errors
from infini.core.value import Value
from infini.nn import activations
from infini.nn.containers import ModuleList
from infini.nn.dropout import Dropout
from infini.nn.linear import Linear
from infini.nn.module import Module, field
from infini.nn.multihead import MultiheadAttention
from infini.nn.normalization import LayerNorm
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value
from infini.random.keys import KeyLike

Activation = str | Callable[[Value], Value]


def _activation(name: Activation) -> Callable[[Value], Value]:
    if callable(name):
        return name
    if name == "relu":
        return activations.relu
    if name == "gelu":
        return _exact_gelu
    raise errors.ValueMismatchError(
        "unknown activation", got=repr(name), expected="'relu', 'gelu' or a function"
    )


def _exact_gelu(x: Value) -> Value:
    return activations.gelu(x, approximate=False)


def _split(key: KeyLike | None, count: int) -> list[Any]:  # Any: keys, or None
    return [None] * count if key is None else list(random.split(key, count))


class TransformerEncoderLayer(Module):
    """Self-attention and an MLP, each with a residual and a LayerNorm.

    Args:
        d_model: E.
        nhead: number of heads, which divides E.
        dim_feedforward: size inside the MLP.
        dropout: probability of dropping an element, when a key is given.
        activation: `relu`, `gelu`, or a function.
        layer_norm_eps: added to variances.
        batch_first: operands are (N, S, E) instead of (S, N, E).
        norm_first: norms stand before attention and MLP, not behind the residuals.
        bias: whether there are biases.
        device: where the parameters live.
        dtype: dtype of the parameters, float32 when absent.
        key: a key for the initial values.
    """

    self_attn: MultiheadAttention
    linear1: Linear
    linear2: Linear
    norm1: LayerNorm
    norm2: LayerNorm
    drop: Dropout
    activation: Callable[[Value], Value] = field(static=True)
    norm_first: bool = field(static=True)

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
        *,
        key: KeyLike,
    ) -> None:
        keys = random.split(key, 3)
        self.self_attn = MultiheadAttention(
            d_model, nhead, dropout, bias, batch_first=batch_first, device=device, dtype=dtype, key=keys[0]
        )
        self.linear1 = Linear(d_model, dim_feedforward, bias, device, dtype, key=keys[1])
        self.linear2 = Linear(dim_feedforward, d_model, bias, device, dtype, key=keys[2])
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias, device=device, dtype=dtype)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias, device=device, dtype=dtype)
        self.drop = Dropout(dropout)
        self.activation = _activation(activation)
        self.norm_first = norm_first

    def __call__(
        self,
        src: ArrayLike,
        src_mask: ArrayLike | None = None,
        src_key_padding_mask: ArrayLike | None = None,
        is_causal: bool = False,
        *,
        key: KeyLike | None = None,
        training: bool | None = None,
    ) -> Value:
        """An array of the shape of `src`; masks as of `MultiheadAttention`, `training` as of `Dropout`."""
        keys = _split(key, 4)

        def attend(x: Value) -> Value:
            found, _ = self.self_attn(
                x, x, x, src_key_padding_mask, False, src_mask, is_causal=is_causal, dropout_key=keys[0],
                training=training,
            )  # fmt: skip
            return self.drop(found, key=keys[1], training=training)

        def feed(x: Value) -> Value:
            inner = self.drop(self.activation(self.linear1(x)), key=keys[2], training=training)
            return self.drop(self.linear2(inner), key=keys[3], training=training)

        return _residuals(as_value("TransformerEncoderLayer", src), self.norm_first, [
            (self.norm1, attend), (self.norm2, feed),
        ])  # fmt: skip


def _residuals(x: Value, norm_first: bool, parts: list[tuple[LayerNorm, Callable[[Value], Value]]]) -> Value:
    for norm, part in parts:
        x = x + part(norm(x)) if norm_first else norm(x + part(x))
    return x


class TransformerDecoderLayer(Module):
    """Self-attention, attention to a memory, and an MLP, each with a residual and a LayerNorm.

    Args:
        d_model: E.
        nhead: number of heads, which divides E.
        dim_feedforward: size inside the MLP.
        dropout: probability of dropping an element, when a key is given.
        activation: `relu`, `gelu`, or a function.
        layer_norm_eps: added to variances.
        batch_first: operands are (N, T, E) instead of (T, N, E).
        norm_first: norms stand before attention and MLP, not behind the residuals.
        bias: whether there are biases.
        device: where the parameters live.
        dtype: dtype of the parameters, float32 when absent.
        key: a key for the initial values.
    """

    self_attn: MultiheadAttention
    multihead_attn: MultiheadAttention
    linear1: Linear
    linear2: Linear
    norm1: LayerNorm
    norm2: LayerNorm
    norm3: LayerNorm
    drop: Dropout
    activation: Callable[[Value], Value] = field(static=True)
    norm_first: bool = field(static=True)

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
        *,
        key: KeyLike,
    ) -> None:
        keys = random.split(key, 4)
        self.self_attn, self.multihead_attn = (
            MultiheadAttention(
                d_model, nhead, dropout, bias, batch_first=batch_first, device=device, dtype=dtype, key=one
            )
            for one in (keys[0], keys[1])
        )
        self.linear1 = Linear(d_model, dim_feedforward, bias, device, dtype, key=keys[2])
        self.linear2 = Linear(dim_feedforward, d_model, bias, device, dtype, key=keys[3])
        self.norm1, self.norm2, self.norm3 = (
            LayerNorm(d_model, layer_norm_eps, bias=bias, device=device, dtype=dtype) for _ in range(3)
        )
        self.drop = Dropout(dropout)
        self.activation = _activation(activation)
        self.norm_first = norm_first

    def __call__(
        self,
        tgt: ArrayLike,
        memory: ArrayLike,
        tgt_mask: ArrayLike | None = None,
        memory_mask: ArrayLike | None = None,
        tgt_key_padding_mask: ArrayLike | None = None,
        memory_key_padding_mask: ArrayLike | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
        *,
        key: KeyLike | None = None,
        training: bool | None = None,
    ) -> Value:
        """An array of the shape of `tgt`; masks as of `MultiheadAttention`, `training` as of `Dropout`."""
        keys = _split(key, 6)

        def attend(x: Value) -> Value:
            found, _ = self.self_attn(
                x, x, x, tgt_key_padding_mask, False, tgt_mask, is_causal=tgt_is_causal, dropout_key=keys[0],
                training=training,
            )  # fmt: skip
            return self.drop(found, key=keys[1], training=training)

        def look(x: Value) -> Value:
            found, _ = self.multihead_attn(
                x, memory, memory, memory_key_padding_mask, False, memory_mask, is_causal=memory_is_causal,
                dropout_key=keys[2], training=training,
            )  # fmt: skip
            return self.drop(found, key=keys[3], training=training)

        def feed(x: Value) -> Value:
            inner = self.drop(self.activation(self.linear1(x)), key=keys[4], training=training)
            return self.drop(self.linear2(inner), key=keys[5], training=training)

        return _residuals(as_value("TransformerDecoderLayer", tgt), self.norm_first, [
            (self.norm1, attend), (self.norm2, look), (self.norm3, feed),
        ])  # fmt: skip


class TransformerEncoder(Module):
    """Encoder layers on top of each other.

    Args:
        encoder_layer: function from a key to a layer; each layer gets a key of its own. (PyTorch copies one
            layer, so that all of them start equal.)
        num_layers: how many.
        norm: a norm behind the last layer.
        key: a key for the initial values.
    """

    layers: ModuleList
    norm: LayerNorm | None

    def __init__(
        self,
        encoder_layer: Callable[[KeyLike], TransformerEncoderLayer],
        num_layers: int,
        norm: LayerNorm | None = None,
        *,
        key: KeyLike,
    ) -> None:
        self.layers = ModuleList(encoder_layer(one) for one in random.split(key, num_layers))
        self.norm = norm

    def __call__(
        self,
        src: ArrayLike,
        mask: ArrayLike | None = None,
        src_key_padding_mask: ArrayLike | None = None,
        is_causal: bool = False,
        *,
        key: KeyLike | None = None,
        training: bool | None = None,
    ) -> Value:
        """An array of the shape of `src`; masks as of `MultiheadAttention`, `training` as of `Dropout`."""
        x = as_value("TransformerEncoder", src)
        for layer, one in zip(self.layers, _split(key, len(self.layers)), strict=True):
            x = layer(  # type: ignore[operator]  # layers are called
                x, mask, src_key_padding_mask, is_causal, key=one, training=training
            )
        return x if self.norm is None else self.norm(x)


class TransformerDecoder(Module):
    """Decoder layers on top of each other.

    Args:
        decoder_layer: function from a key to a layer; each layer gets a key of its own.
        num_layers: how many.
        norm: a norm behind the last layer.
        key: a key for the initial values.
    """

    layers: ModuleList
    norm: LayerNorm | None

    def __init__(
        self,
        decoder_layer: Callable[[KeyLike], TransformerDecoderLayer],
        num_layers: int,
        norm: LayerNorm | None = None,
        *,
        key: KeyLike,
    ) -> None:
        self.layers = ModuleList(decoder_layer(one) for one in random.split(key, num_layers))
        self.norm = norm

    def __call__(
        self,
        tgt: ArrayLike,
        memory: ArrayLike,
        tgt_mask: ArrayLike | None = None,
        memory_mask: ArrayLike | None = None,
        tgt_key_padding_mask: ArrayLike | None = None,
        memory_key_padding_mask: ArrayLike | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
        *,
        key: KeyLike | None = None,
        training: bool | None = None,
    ) -> Value:
        """An array of the shape of `tgt`; masks as of `MultiheadAttention`, `training` as of `Dropout`."""
        x = as_value("TransformerDecoder", tgt)
        for layer, one in zip(self.layers, _split(key, len(self.layers)), strict=True):
            x = layer(  # type: ignore[operator]  # layers are called
                x, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask,
                tgt_is_causal, memory_is_causal, key=one, training=training,
            )  # fmt: skip
        return x if self.norm is None else self.norm(x)
