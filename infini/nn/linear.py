"""Affine maps and tables: Linear, Bilinear, Embedding, with PyTorch's layouts and initial values."""

from __future__ import annotations

import math
from typing import Any

import infini.numpy as inp
from infini import random
from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax.quantized import QuantizedArray, quantized_matmul
from infini.nn import parameters
from infini.nn.module import Module, field
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value
from infini.random.keys import KeyLike


class Linear(Module):
    """`x @ weight.T + bias` over the last dimension.

    The weight may be a `QuantizedArray`, as `nn.quantize` makes it.

    Args:
        in_features: size of the last dimension of `x`.
        out_features: size of the last dimension of the result.
        bias: whether there is a bias.
        device: where the parameters live.
        dtype: dtype of the parameters, float32 when absent.
        key: a key for the initial values, uniform within `1 / sqrt(in_features)` of zero.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import nn, random
        >>> layer = nn.Linear(3, 2, key=random.key(0))
        >>> layer(inp.ones((5, 3))).shape
        (5, 2)
        >>> layer
        Linear(weight=f32[2,3], bias=f32[2], in_features=3, out_features=2)
    """

    weight: Value | QuantizedArray
    bias: Value | None
    in_features: int = field(static=True)
    out_features: int = field(static=True)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
        *,
        key: KeyLike,
    ) -> None:
        first, second = random.split(key)
        bound = 1 / math.sqrt(in_features) if in_features else 0.0
        make = parameters.maker(device, dtype)
        self.weight = make.uniform(first, (out_features, in_features), bound)
        self.bias = make.uniform(second, (out_features,), bound) if bias else None
        self.in_features = in_features
        self.out_features = out_features

    def __call__(self, x: ArrayLike) -> Value:
        """Map (..., in_features) to (..., out_features)."""
        value = parameters.operand("Linear", x, self.weight.shape[-1])
        if isinstance(self.weight, QuantizedArray):
            dtype = inp.promote_types(value.dtype, self.weight.dtype)
            result = quantized_matmul(value.astype(dtype), self.weight)
        else:
            result = inp.matmul(value, inp.swapaxes(self.weight, -1, -2))
        return result if self.bias is None else result + self.bias


class Bilinear(Module):
    """`x1 @ weight[k] @ x2 + bias[k]` for each output k.

    Args:
        in1_features: size of the last dimension of `x1`.
        in2_features: size of the last dimension of `x2`.
        out_features: size of the last dimension of the result.
        bias: whether there is a bias.
        device: where the parameters live.
        dtype: dtype of the parameters, float32 when absent.
        key: a key for the initial values, uniform within `1 / sqrt(in1_features)` of zero.
    """

    weight: Value
    bias: Value | None
    in1_features: int = field(static=True)
    in2_features: int = field(static=True)
    out_features: int = field(static=True)

    def __init__(
        self,
        in1_features: int,
        in2_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
        *,
        key: KeyLike,
    ) -> None:
        first, second = random.split(key)
        bound = 1 / math.sqrt(in1_features)
        make = parameters.maker(device, dtype)
        self.weight = make.uniform(first, (out_features, in1_features, in2_features), bound)
        self.bias = make.uniform(second, (out_features,), bound) if bias else None
        self.in1_features = in1_features
        self.in2_features = in2_features
        self.out_features = out_features

    def __call__(self, x1: ArrayLike, x2: ArrayLike) -> Value:
        """Map (..., in1_features) and (..., in2_features) to (..., out_features)."""
        first = parameters.operand("Bilinear", x1, self.in1_features)
        second = parameters.operand("Bilinear", x2, self.in2_features)
        result = inp.einsum("...i,oij,...j->...o", first, self.weight, second)
        return result if self.bias is None else result + self.bias


class Embedding(Module):
    """Rows of a table by integers.

    Args:
        num_embeddings: number of rows.
        embedding_dim: size of a row.
        padding_idx: a row that starts at zero and gets no derivative; negative numbers count from the end.
        max_norm: rows that are longer are scaled down to this norm when they are read. PyTorch changes
            the table; here it stays.
        norm_type: exponent of that norm.
        device: where the parameters live.
        dtype: dtype of the parameters, float32 when absent.
        key: a key for the initial values, standard normal.
    """

    weight: Value
    num_embeddings: int = field(static=True)
    embedding_dim: int = field(static=True)
    padding_idx: int | None = field(static=True)
    max_norm: float | None = field(static=True)
    norm_type: float = field(static=True)

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
        *,
        key: KeyLike,
    ) -> None:
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise errors.ValueMismatchError(
                "Embedding: padding_idx is no row of the table",
                got=str(padding_idx),
                expected=f"{-num_embeddings} to {num_embeddings - 1}",
            )
        table = parameters.maker(device, dtype).normal(key, (num_embeddings, embedding_dim))
        self.padding_idx = None if padding_idx is None else padding_idx % num_embeddings
        self.weight = table if self.padding_idx is None else table.at[self.padding_idx].set(0)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.max_norm = max_norm
        self.norm_type = norm_type

    def __call__(self, input: ArrayLike) -> Value:  # noqa: A002  # PyTorch's name
        """Map integers (...) to rows (..., embedding_dim)."""
        indices = as_value("Embedding", input)
        if indices.dtype not in dtypes.INTEGERS:
            raise errors.TypeMismatchError("Embedding takes integers", got=str(indices.type))
        rows = inp.take(self.weight, indices, axis=0)
        if self.max_norm is not None:
            powers = inp.power(inp.abs(rows), self.norm_type)
            norms = inp.power(inp.sum(powers, -1, keepdims=True), 1 / self.norm_type)
            rows = inp.where(norms > self.max_norm, rows * (self.max_norm / (norms + 1e-7)), rows)
        if self.padding_idx is not None:
            is_padding = (indices == self.padding_idx)[..., None]
            rows = inp.where(is_padding, parameters.constant(rows), rows)
        return rows
