"""Initial values of parameters: functions of a key, a shape and a dtype, with JAX's names and numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

import infini.numpy as inp
from infini import random
from infini.core import dtypes, errors
from infini.core.value import Value
from infini.numpy._promotion import DTypeLike, convert
from infini.random.keys import KeyLike
from infini.random.streams import Placement, placed

Initializer: TypeAlias = Callable[..., Value]  # (key, shape, dtype=float32) -> array
Axes: TypeAlias = int | Sequence[int]


def _dtype(dtype: DTypeLike | None) -> np.dtype:
    return dtypes.float32 if dtype is None else dtypes.canonical(dtype)


def _times(x: Value, factor: float) -> Value:
    return inp.multiply(x, convert(factor, x.dtype))


def zeros(
    key: KeyLike, shape: Any, dtype: DTypeLike | None = None, out_sharding: Placement = None
) -> Value:  # Any: sizes
    """Zeros; the key is not used."""
    return placed(inp.zeros(shape, _dtype(dtype)), out_sharding)


def ones(
    key: KeyLike, shape: Any, dtype: DTypeLike | None = None, out_sharding: Placement = None
) -> Value:  # Any: sizes
    """Ones; the key is not used."""
    return placed(inp.ones(shape, _dtype(dtype)), out_sharding)


def constant(value: float, dtype: DTypeLike | None = None) -> Initializer:
    """One value everywhere."""

    def init(
        key: KeyLike, shape: Any, dtype: DTypeLike | None = dtype, out_sharding: Placement = None
    ) -> Value:  # Any: sizes
        return placed(inp.full(shape, value, _dtype(dtype)), out_sharding)

    return init


def uniform(scale: float = 1e-2, dtype: DTypeLike | None = None) -> Initializer:
    """Uniform in [0, scale)."""

    def init(
        key: KeyLike, shape: Any, dtype: DTypeLike | None = dtype, out_sharding: Placement = None
    ) -> Value:  # Any: sizes
        return placed(_times(random.uniform(key, shape, _dtype(dtype)), scale), out_sharding)

    return init


def normal(stddev: float = 1e-2, dtype: DTypeLike | None = None) -> Initializer:
    """Normal of mean 0 and this standard deviation."""

    def init(
        key: KeyLike, shape: Any, dtype: DTypeLike | None = dtype, out_sharding: Placement = None
    ) -> Value:  # Any: sizes
        return placed(_times(random.normal(key, shape, _dtype(dtype)), stddev), out_sharding)

    return init


def truncated_normal(
    stddev: float = 1e-2, dtype: DTypeLike | None = None, lower: float = -2.0, upper: float = 2.0
) -> Initializer:
    """Normal cut to [lower, upper], times `stddev`."""

    def init(
        key: KeyLike, shape: Any, dtype: DTypeLike | None = dtype, out_sharding: Placement = None
    ) -> Value:  # Any: sizes
        return placed(
            _times(random.truncated_normal(key, lower, upper, shape, _dtype(dtype)), stddev), out_sharding
        )

    return init


# Standard deviation of a standard normal cut to [-2, 2], by which draws are divided to restore the variance.
_STDDEV_OF_CUT = 0.87962566103423978


def variance_scaling(
    scale: float,
    mode: Literal["fan_in", "fan_out", "fan_avg", "fan_geo_avg"],
    distribution: Literal["truncated_normal", "normal", "uniform"],
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    dtype: DTypeLike | None = None,
) -> Initializer:
    """Random values whose variance is `scale` divided by a number of connections.

    Args:
        scale: factor of the variance, positive.
        mode: which number divides: inputs, outputs, or their arithmetic or geometric mean.
        distribution: shape of the distribution.
        in_axis: axes that count inputs.
        out_axis: axes that count outputs.
        batch_axis: axes that are left out of both counts; all other axes are the receptive field and
            multiply both.
        dtype: dtype when the initializer is given none.

    Raises:
        ValueMismatchError: `mode` or `distribution` is unknown.

    Source: K. He et al., https://arxiv.org/abs/1502.01852; X. Glorot and Y. Bengio, AISTATS 2010.
    """
    if mode not in ("fan_in", "fan_out", "fan_avg", "fan_geo_avg"):
        raise errors.ValueMismatchError(
            "variance_scaling: unknown mode",
            got=repr(mode),
            expected="fan_in, fan_out, fan_avg or fan_geo_avg",
        )
    if distribution not in ("truncated_normal", "normal", "uniform"):
        raise errors.ValueMismatchError(
            "variance_scaling: unknown distribution",
            got=repr(distribution),
            expected="truncated_normal, normal or uniform",
        )

    def init(
        key: KeyLike, shape: Any, dtype: DTypeLike | None = dtype, out_sharding: Placement = None
    ) -> Value:  # Any: sizes
        sizes, target = tuple(shape), _dtype(dtype)
        fan_in, fan_out = _fans(sizes, in_axis, out_axis, batch_axis)
        connections = {
            "fan_in": fan_in,
            "fan_out": fan_out,
            "fan_avg": (fan_in + fan_out) / 2,
            "fan_geo_avg": math.sqrt(fan_in * fan_out),
        }[mode]
        variance = np.asarray(scale / connections).astype(target)
        if distribution == "uniform":
            factor = np.sqrt(np.asarray(3).astype(target) * variance)
            return placed(
                inp.multiply(random.uniform(key, sizes, target, -1), factor.astype(target)), out_sharding
            )
        deviation = np.sqrt(variance).astype(target)
        if distribution == "normal":
            return placed(inp.multiply(random.normal(key, sizes, target), deviation), out_sharding)
        restored = (deviation / np.asarray(_STDDEV_OF_CUT).astype(target)).astype(target)
        return placed(
            inp.multiply(random.truncated_normal(key, -2, 2, sizes, target), restored), out_sharding
        )

    return init


def _fans(shape: tuple[int, ...], in_axis: Axes, out_axis: Axes, batch_axis: Axes) -> tuple[float, float]:
    """Numbers of inputs and outputs of one unit."""
    if len(shape) < 2:
        raise errors.ValueMismatchError(
            "variance scaling needs at least two dimensions",
            got=f"shape {shape}",
            fix="use initializers.normal for vectors",
        )
    inputs, outputs, batch = (
        math.prod(shape[a] for a in ((axes,) if isinstance(axes, int) else axes))
        for axes in (in_axis, out_axis, batch_axis)
    )
    field = math.prod(shape) / inputs / outputs / batch
    return inputs * field, outputs * field


def glorot_uniform(
    in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = (), dtype: DTypeLike | None = None
) -> Initializer:
    """Variance 1 over the mean of inputs and outputs, uniform."""
    return variance_scaling(1.0, "fan_avg", "uniform", in_axis, out_axis, batch_axis, dtype)


def glorot_normal(
    in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = (), dtype: DTypeLike | None = None
) -> Initializer:
    """Variance 1 over the mean of inputs and outputs, normal cut at two deviations."""
    return variance_scaling(1.0, "fan_avg", "truncated_normal", in_axis, out_axis, batch_axis, dtype)


def lecun_uniform(
    in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = (), dtype: DTypeLike | None = None
) -> Initializer:
    """Variance 1 over the inputs, uniform."""
    return variance_scaling(1.0, "fan_in", "uniform", in_axis, out_axis, batch_axis, dtype)


def lecun_normal(
    in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = (), dtype: DTypeLike | None = None
) -> Initializer:
    """Variance 1 over the inputs, normal cut at two deviations."""
    return variance_scaling(1.0, "fan_in", "truncated_normal", in_axis, out_axis, batch_axis, dtype)


def he_uniform(
    in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = (), dtype: DTypeLike | None = None
) -> Initializer:
    """Variance 2 over the inputs, uniform."""
    return variance_scaling(2.0, "fan_in", "uniform", in_axis, out_axis, batch_axis, dtype)


def he_normal(
    in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = (), dtype: DTypeLike | None = None
) -> Initializer:
    """Variance 2 over the inputs, normal cut at two deviations."""
    return variance_scaling(2.0, "fan_in", "truncated_normal", in_axis, out_axis, batch_axis, dtype)


def orthogonal(scale: float = 1.0, column_axis: int = -1, dtype: DTypeLike | None = None) -> Initializer:
    """Orthonormal rows or columns, whichever are fewer, times `scale`.

    Args:
        scale: factor of the result.
        column_axis: the axis that counts as columns; the others together are rows.
        dtype: float32 when absent.

    Raises:
        ValueMismatchError: the shape has fewer than two dimensions.

    Example:
        >>> from infini import nn, random
        >>> nn.initializers.orthogonal()(random.key(0), (4, 3)).shape
        (4, 3)
    """

    def init(
        key: KeyLike, shape: Any, dtype: DTypeLike | None = dtype, out_sharding: Placement = None
    ) -> Value:  # Any: sizes
        sizes = tuple(shape)
        if len(sizes) < 2:
            raise errors.ValueMismatchError(
                "an orthogonal initializer needs at least two dimensions", got=f"shape {sizes}"
            )
        columns = sizes[column_axis]
        rows = math.prod(sizes) // columns
        samples = random.normal(key, (max(rows, columns), min(rows, columns)), _dtype(dtype))
        q, r = inp.linalg.qr(samples)
        q = inp.multiply(q, inp.sign(inp.diag(r)))
        matrix = q if rows >= columns else q.T
        others = list(sizes)
        del others[column_axis]
        found = inp.moveaxis(inp.reshape(matrix, (*others, columns)), -1, column_axis)
        return placed(_times(found, scale), out_sharding)

    return init


def delta_orthogonal(
    scale: float = 1.0, column_axis: int = -1, dtype: DTypeLike | None = None
) -> Initializer:
    """Zero but for the middle of a convolution's window, which is `orthogonal`.

    Args:
        scale: factor of the result.
        column_axis: as for `orthogonal`.
        dtype: float32 when absent.

    Raises:
        ValueMismatchError: the shape has not 3 to 5 dimensions, or fewer outputs than inputs.
    """

    def init(
        key: KeyLike, shape: Any, dtype: DTypeLike | None = dtype, out_sharding: Placement = None
    ) -> Value:  # Any: sizes
        sizes = tuple(shape)
        if len(sizes) not in (3, 4, 5) or sizes[-1] < sizes[-2]:
            raise errors.ValueMismatchError(
                "a delta-orthogonal initializer needs a window, inputs, and at least as many outputs",
                got=f"shape {sizes}",
                expected="(width, inputs, outputs) with up to three sizes of the window",
            )
        matrix = orthogonal(scale, column_axis, dtype)(key, sizes[-2:])
        middle = tuple((n - 1) // 2 for n in sizes[:-2])
        return placed(inp.zeros(sizes, _dtype(dtype)).at[middle].set(matrix), out_sharding)

    return init


xavier_uniform, xavier_normal = glorot_uniform, glorot_normal
kaiming_uniform, kaiming_normal = he_uniform, he_normal
