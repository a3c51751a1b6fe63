"""Normalisation: LayerNorm, RMSNorm, GroupNorm, BatchNorm, with PyTorch's constructors and keys.

Statistics of 16-bit operands are computed in float32. A BatchNorm's running statistics are no part of the
module: they are passed in and given back, see `BatchNorm`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import infini.numpy as inp
from infini import lax
from infini.core import dtypes, errors
from infini.core.value import Value
from infini.nn import parameters
from infini.nn.module import Module, State, field
from infini.numpy._promotion import ArrayLike, DTypeLike


def _wide(x: Value) -> Value:
    return x.astype(dtypes.float32) if x.dtype.itemsize < 4 else x


def _normalized(x: Value, axes: tuple[int, ...], eps: float) -> Value:
    center = inp.mean(x, axes, keepdims=True)
    offset = x - center
    return offset / inp.sqrt(inp.mean(inp.square(offset), axes, keepdims=True) + eps)


class LayerNorm(Module):
    """Mean 0 and variance 1 over the last dimensions, then scale and shift.

    Args:
        normalized_shape: sizes of the last dimensions, or that of the last one.
        eps: added to the variance.
        elementwise_affine: whether there are `weight` and `bias`.
        bias: whether there is a `bias`.
        device: where the parameters live.
        dtype: dtype of the parameters, float32 when absent.
    """

    weight: Value | None
    bias: Value | None
    normalized_shape: tuple[int, ...] = field(static=True)
    eps: float = field(static=True)

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
    ) -> None:
        make = parameters.maker(device, dtype)
        self.normalized_shape = _sizes(normalized_shape)
        self.weight = make.full(self.normalized_shape, 1) if elementwise_affine else None
        self.bias = make.full(self.normalized_shape, 0) if elementwise_affine and bias else None
        self.eps = eps

    def __call__(self, x: ArrayLike) -> Value:
        """An array of the shape and dtype of `x`."""
        value = _checked("LayerNorm", x, self.normalized_shape)
        axes = tuple(range(value.ndim - len(self.normalized_shape), value.ndim))
        result = _normalized(_wide(value), axes, self.eps)
        return _affine(result, self.weight, self.bias).astype(value.dtype)


class RMSNorm(Module):
    """Root mean square 1 over the last dimensions, then scale.

    Args:
        normalized_shape: sizes of the last dimensions, or that of the last one.
        eps: added to the mean square; the machine epsilon of the operand when absent, as in PyTorch.
        elementwise_affine: whether there is a `weight`.
        device: where the parameters live.
        dtype: dtype of the parameters, float32 when absent.
    """

    weight: Value | None
    normalized_shape: tuple[int, ...] = field(static=True)
    eps: float | None = field(static=True)

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
    ) -> None:
        self.normalized_shape = _sizes(normalized_shape)
        make = parameters.maker(device, dtype)
        self.weight = make.full(self.normalized_shape, 1) if elementwise_affine else None
        self.eps = eps

    def __call__(self, x: ArrayLike) -> Value:
        """An array of the shape and dtype of `x`."""
        value = _checked("RMSNorm", x, self.normalized_shape)
        size = math.prod(self.normalized_shape)
        weight = inp.ones(size, value.dtype) if self.weight is None else self.weight.reshape(size)
        dtype = inp.promote_types(value.dtype, weight.dtype)
        rows = value.reshape(*value.shape[: value.ndim - len(self.normalized_shape)], size).astype(dtype)
        eps = float(inp.finfo(_wide(value).dtype).eps) if self.eps is None else self.eps
        return lax.rms_norm(rows, weight.astype(dtype), eps).reshape(value.shape).astype(value.dtype)


class GroupNorm(Module):
    """Mean 0 and variance 1 over groups of channels of (N, C, ...), then scale and shift per channel.

    Args:
        num_groups: number of groups, which divides `num_channels`.
        num_channels: C.
        eps: added to the variance.
        affine: whether there are `weight` and `bias`.
        device: where the parameters live.
        dtype: dtype of the parameters, float32 when absent.
    """

    weight: Value | None
    bias: Value | None
    num_groups: int = field(static=True)
    num_channels: int = field(static=True)
    eps: float = field(static=True)

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
    ) -> None:
        if num_channels % num_groups:
            raise errors.ValueMismatchError(
                "GroupNorm: num_groups has to divide num_channels", got=f"{num_groups}, {num_channels}"
            )
        make = parameters.maker(device, dtype)
        self.weight = make.full((num_channels,), 1) if affine else None
        self.bias = make.full((num_channels,), 0) if affine else None
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.eps = eps

    def __call__(self, x: ArrayLike) -> Value:
        """An array of the shape and dtype of `x`."""
        value = parameters.operand("GroupNorm", x, self.num_channels, 1)
        grouped = inp.reshape(_wide(value), (value.shape[0], self.num_groups, -1))
        result = inp.reshape(_normalized(grouped, (2,), self.eps), value.shape)
        return _per_channel(result, self.weight, self.bias).astype(value.dtype)


class BatchNorm(Module):
    """Mean 0 and variance 1 over everything but the channels of (N, C, ...), then scale and shift per
    channel. `BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` are this one with a check of dimensions.

    The running statistics are a dictionary that the caller keeps: `state = norm.initial_state()` (or
    `nn.initial_state(model)` for a whole model), then `y, state = norm(x, state, training=True)`.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: weight of a batch in the running statistics; None weighs all batches equally.
        affine: whether there are `weight` and `bias`.
        track_running_stats: without it, the statistics are always those of the batch.
        device: where the parameters live.
        dtype: dtype of the parameters, float32 when absent.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import nn
        >>> norm = nn.BatchNorm1d(2)
        >>> x = inp.asarray([[1.0, 2.0], [3.0, 6.0]])
        >>> y, state = norm(x, norm.initial_state(), training=True)
        >>> state["running_mean"].tolist()
        [0.20000000298023224, 0.4000000059604645]
    """

    weight: Value | None
    bias: Value | None
    num_features: int = field(static=True)
    eps: float = field(static=True)
    momentum: float | None = field(static=True)
    track_running_stats: bool = field(static=True)

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
    ) -> None:
        make = parameters.maker(device, dtype)
        self.weight = make.full((num_features,), 1) if affine else None
        self.bias = make.full((num_features,), 0) if affine else None
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.track_running_stats = track_running_stats

    def initial_state(self) -> State:
        """Running mean, running variance and number of batches before the first one."""
        if not self.track_running_stats:
            return {}
        return {
            "running_mean": inp.zeros(self.num_features, inp.float32),
            "running_var": inp.ones(self.num_features, inp.float32),
            "num_batches_tracked": inp.zeros((), inp.int32),
        }

    def __call__(self, x: ArrayLike, state: State, *, training: bool) -> tuple[Value, State]:
        """Normalise by the statistics of the batch while training, by the running ones otherwise.

        Args:
            x: (N, C, ...).
            state: running statistics.
            training: whether the batch counts.

        Returns:
            An array of the shape and dtype of `x`, and the running statistics after this batch.
        """
        value = self._checked(x)
        wide = _wide(value)
        axes = (0, *range(2, value.ndim))
        if training or not self.track_running_stats:
            center, spread = inp.mean(wide, axes), inp.var(wide, axes)
            after = (
                self._updated(state, center, spread, math.prod(value.shape[d] for d in axes))
                if state
                else state
            )
        else:
            center, spread, after = state["running_mean"], state["running_var"], state
        broad = (self.num_features, *(1,) * (value.ndim - 2))
        offset = wide - inp.reshape(center, broad)
        result = offset / inp.sqrt(inp.reshape(spread, broad) + self.eps)
        return _per_channel(result, self.weight, self.bias).astype(value.dtype), after

    def _updated(self, state: State, center: Value, spread: Value, count: int) -> State:
        batches = state["num_batches_tracked"] + 1
        share = 1 / batches.astype(inp.float32) if self.momentum is None else self.momentum
        # The running variance is that of the population, so it is corrected for the mean.
        corrected = spread * (count / max(count - 1, 1))
        mean, variance = state["running_mean"], state["running_var"]
        return {
            "running_mean": parameters.constant(mean + share * (center - mean)),
            "running_var": parameters.constant(variance + share * (corrected - variance)),
            "num_batches_tracked": batches,
        }

    def _checked(self, x: ArrayLike) -> Value:
        return parameters.operand(type(self).__name__, x, self.num_features, 1)


# A second level of inheritance: three constructors with the same eight arguments would say less.


class BatchNorm1d(BatchNorm):
    """`BatchNorm` of (N, C) or (N, C, L)."""

    def _checked(self, x: ArrayLike) -> Value:
        return _with_dims("BatchNorm1d", super()._checked(x), (2, 3))


class BatchNorm2d(BatchNorm):
    """`BatchNorm` of (N, C, H, W)."""

    def _checked(self, x: ArrayLike) -> Value:
        return _with_dims("BatchNorm2d", super()._checked(x), (4,))


class BatchNorm3d(BatchNorm):
    """`BatchNorm` of (N, C, D, H, W)."""

    def _checked(self, x: ArrayLike) -> Value:
        return _with_dims("BatchNorm3d", super()._checked(x), (5,))


def _with_dims(name: str, x: Value, counts: tuple[int, ...]) -> Value:
    if x.ndim not in counts:
        raise errors.TypeMismatchError(
            f"{name}: the operand has another number of dimensions",
            got=str(x.type),
            expected=" or ".join(map(str, counts)),
        )
    return x


def _sizes(shape: int | Sequence[int]) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)


def _checked(name: str, x: ArrayLike, sizes: tuple[int, ...]) -> Value:
    value = parameters.operand(name, x)
    if value.shape[value.ndim - len(sizes) :] != sizes or value.ndim < len(sizes):
        raise errors.TypeMismatchError(
            f"{name}: the last dimensions are not normalized_shape", got=str(value.type), expected=str(sizes)
        )
    return value


def _affine(x: Value, weight: Value | None, bias: Value | None) -> Value:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _per_channel(x: Value, weight: Value | None, bias: Value | None) -> Value:
    broad = (-1, *(1,) * (x.ndim - 2))
    return _affine(x, *(None if p is None else inp.reshape(p, broad) for p in (weight, bias)))
