"""Pooling over one to three dimensions, with PyTorch's constructors: maxima and means of windows, and of as
many parts as asked for.

Shapes: N batch, C channels, then the spatial dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

import infini.numpy as inp
from infini import lax
from infini.core import errors
from infini.core.value import Value
from infini.nn.convolution import Sizes, batched, per_dimension
from infini.nn.module import Module, field
from infini.numpy._promotion import ArrayLike


def _geometry(pool: Any, shape: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:  # Any: a pool
    """Number of windows and places added at both ends, per spatial dimension."""
    counts, pads = [], []
    dilations = getattr(pool, "dilation", (1,) * pool.num_dims)
    for n, k, s, p, d in zip(shape, pool.kernel_size, pool.stride, pool.padding, dilations, strict=True):
        length, width = n + 2 * p, d * (k - 1) + 1
        count = (length - width + (s - 1 if pool.ceil_mode else 0)) // s + 1
        if pool.ceil_mode and (count - 1) * s >= n + p:
            count -= 1  # a window that starts behind the operand is left out
        if count < 1:
            raise errors.ValueMismatchError(
                f"{type(pool).__name__}: a window is larger than the operand", got=f"size {n}, window {width}"
            )
        counts.append(count)
        pads.append((p, max((count - 1) * s + width - n - p, 0)))
    return counts, pads


def _reduced(pool: Any, x: Any, start: Any, operation: Any, pads: list[tuple[int, int]]) -> Any:
    """One result per window. Any: a pool; arrays or pairs of them, numbers, and a function of both."""
    dilations = getattr(pool, "dilation", (1,) * pool.num_dims)
    return lax.reduce_window(
        x, start, operation, (1, 1, *pool.kernel_size), (1, 1, *pool.stride), [(0, 0), (0, 0), *pads],
        window_dilation=(1, 1, *dilations),
    )  # fmt: skip


def _check_padding(name: str, kernel: tuple[int, ...], padding: tuple[int, ...]) -> None:
    if any(2 * p > k for k, p in zip(kernel, padding, strict=True)):
        raise errors.ValueMismatchError(
            f"{name}: padding is at most half of the window", got=f"padding={padding}, kernel_size={kernel}"
        )


class MaxPool(Module):
    """The largest element of each window; `MaxPool1d`, `MaxPool2d` and `MaxPool3d` are this one for their
    number of dimensions.

    Args:
        kernel_size: sizes of a window.
        stride: distance of neighbouring windows, `kernel_size` when absent.
        padding: places added at both ends, which are never the largest.
        dilation: distance of neighbouring elements of a window.
        return_indices: give the place of each maximum in the flattened spatial dimensions as well.
        ceil_mode: keep a last window that is not full.
    """

    num_dims: ClassVar[int] = 2

    kernel_size: tuple[int, ...] = field(static=True)
    stride: tuple[int, ...] = field(static=True)
    padding: tuple[int, ...] = field(static=True)
    dilation: tuple[int, ...] = field(static=True)
    return_indices: bool = field(static=True)
    ceil_mode: bool = field(static=True)

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        dilation: Sizes = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        name, count = type(self).__name__, self.num_dims
        self.kernel_size = per_dimension(name, "kernel_size", kernel_size, count)
        self.stride = per_dimension(name, "stride", kernel_size if stride is None else stride, count)
        self.padding = per_dimension(name, "padding", padding, count)
        self.dilation = per_dimension(name, "dilation", dilation, count)
        _check_padding(name, self.kernel_size, self.padding)
        self.return_indices = return_indices
        self.ceil_mode = ceil_mode

    def __call__(self, x: ArrayLike) -> Any:  # Any: an array, or a pair
        """Map (N, C, ...) or (C, ...) to one element per window, and with `return_indices` its place."""
        value, is_single = batched(type(self).__name__, x, None, self.num_dims)
        _, pads = _geometry(self, value.shape[2:])
        lowest = -math.inf if inp.issubdtype(value.dtype, inp.floating) else int(inp.iinfo(value.dtype).min)
        if not self.return_indices:
            found = _reduced(self, value, lowest, lax.max, pads)
            return found[0] if is_single else found
        size = math.prod(value.shape[2:])
        places = inp.broadcast_to(inp.reshape(inp.arange(size), value.shape[2:]), value.shape)
        start = (inp.asarray(lowest, value.dtype), inp.asarray(size, inp.int32))
        found, at = _reduced(self, (value, places), start, _first_largest, pads)
        return (found[0], at[0]) if is_single else (found, at)


def _first_largest(x: tuple[Value, Value], y: tuple[Value, Value]) -> tuple[Value, Value]:
    is_first = (x[0] > y[0]) | ((x[0] == y[0]) & (x[1] < y[1]))
    return inp.where(is_first, x[0], y[0]), inp.where(is_first, x[1], y[1])


# A second level of inheritance: three constructors with the same arguments would say less.


class MaxPool1d(MaxPool):
    """`MaxPool` of (N, C, L)."""

    num_dims = 1


class MaxPool2d(MaxPool):
    """`MaxPool` of (N, C, H, W)."""

    num_dims = 2


class MaxPool3d(MaxPool):
    """`MaxPool` of (N, C, D, H, W)."""

    num_dims = 3


class AvgPool(Module):
    """The mean of each window; `AvgPool1d`, `AvgPool2d` and `AvgPool3d` are this one for their number of
    dimensions.

    Args:
        kernel_size: sizes of a window.
        stride: distance of neighbouring windows, `kernel_size` when absent.
        padding: zeros added at both ends.
        ceil_mode: keep a last window that is not full.
        count_include_pad: added zeros count in the mean.
        divisor_override: divide sums by this number.
    """

    num_dims: ClassVar[int] = 2

    kernel_size: tuple[int, ...] = field(static=True)
    stride: tuple[int, ...] = field(static=True)
    padding: tuple[int, ...] = field(static=True)
    ceil_mode: bool = field(static=True)
    count_include_pad: bool = field(static=True)
    divisor_override: int | None = field(static=True)

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        name, count = type(self).__name__, self.num_dims
        self.kernel_size = per_dimension(name, "kernel_size", kernel_size, count)
        self.stride = per_dimension(name, "stride", kernel_size if stride is None else stride, count)
        self.padding = per_dimension(name, "padding", padding, count)
        _check_padding(name, self.kernel_size, self.padding)
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad
        self.divisor_override = divisor_override

    def __call__(self, x: ArrayLike) -> Value:
        """Map (N, C, ...) or (C, ...) to one element per window."""
        value, is_single = batched(type(self).__name__, x, None, self.num_dims)
        counts, pads = _geometry(self, value.shape[2:])
        total = _reduced(self, value, 0.0, lax.add, pads)
        found = total / inp.asarray(self._divisors(value.shape[2:], counts), total.dtype)
        return found[0] if is_single else found

    def _divisors(self, shape: Sequence[int], counts: Sequence[int]) -> np.ndarray:
        """How many elements count, per window."""
        if self.divisor_override is not None:
            return np.asarray(self.divisor_override, np.float32)  # broadcasts
        found = np.ones((1,) * len(counts))
        for axis, (n, k, s, p, count) in enumerate(
            zip(shape, self.kernel_size, self.stride, self.padding, counts, strict=True)
        ):
            start = np.arange(count) * s - p
            stop = np.minimum(start + k, n + p)
            if not self.count_include_pad:
                start, stop = np.maximum(start, 0), np.minimum(stop, n)
            found = found * np.reshape(stop - start, [-1 if d == axis else 1 for d in range(len(counts))])
        return found


class AvgPool1d(AvgPool):
    """`AvgPool` of (N, C, L)."""

    num_dims = 1


class AvgPool2d(AvgPool):
    """`AvgPool` of (N, C, H, W)."""

    num_dims = 2


class AvgPool3d(AvgPool):
    """`AvgPool` of (N, C, D, H, W)."""

    num_dims = 3


def _parts(n: int, count: int) -> list[tuple[int, int]]:
    """Start and end of each of `count` parts of n elements, which may overlap by one."""
    return [(i * n // count, -(-(i + 1) * n // count)) for i in range(count)]


def _output_size(name: str, given: Any, count: int) -> tuple[int | None, ...]:  # Any: as of the classes below
    sizes = tuple(given) if isinstance(given, (tuple, list)) else (given,) * count
    if len(sizes) != count or not all(n is None or n > 0 for n in sizes):
        raise errors.ValueMismatchError(
            f"{name}: output_size is one integer, or one per spatial dimension",
            got=str(sizes),
            expected=f"{count} integers above 0; None keeps a size",
        )
    return sizes


class AdaptiveAvgPool(Module):
    """The means of as many parts as asked for; `AdaptiveAvgPool1d`, `AdaptiveAvgPool2d` and
    `AdaptiveAvgPool3d` are this one for their number of dimensions.

    Args:
        output_size: number of parts per spatial dimension; None keeps a size.
    """

    num_dims: ClassVar[int] = 2

    output_size: tuple[int | None, ...] = field(static=True)

    def __init__(self, output_size: int | Sequence[int | None] | None) -> None:
        self.output_size = _output_size(type(self).__name__, output_size, self.num_dims)

    def __call__(self, x: ArrayLike) -> Value:
        """Map (N, C, ...) or (C, ...) to `output_size`."""
        value, is_single = batched(type(self).__name__, x, None, self.num_dims)
        for axis, count in enumerate(self.output_size, 2):
            n = value.shape[axis]
            if count is not None and count != n:
                shares = np.zeros((n, count))
                for i, (start, stop) in enumerate(_parts(n, count)):
                    shares[start:stop, i] = 1 / (stop - start)
                means = inp.moveaxis(value, axis, -1) @ inp.asarray(shares, value.dtype)
                value = inp.moveaxis(means, -1, axis)
        return value[0] if is_single else value


class AdaptiveMaxPool(Module):
    """The maxima of as many parts as asked for; `AdaptiveMaxPool1d`, `AdaptiveMaxPool2d` and
    `AdaptiveMaxPool3d` are this one for their number of dimensions.

    Args:
        output_size: number of parts per spatial dimension; None keeps a size.
    """

    num_dims: ClassVar[int] = 2

    output_size: tuple[int | None, ...] = field(static=True)

    def __init__(self, output_size: int | Sequence[int | None] | None) -> None:
        self.output_size = _output_size(type(self).__name__, output_size, self.num_dims)

    def __call__(self, x: ArrayLike) -> Value:
        """Map (N, C, ...) or (C, ...) to `output_size`."""
        value, is_single = batched(type(self).__name__, x, None, self.num_dims)
        for axis, count in enumerate(self.output_size, 2):
            n = value.shape[axis]
            if count is not None and count != n:
                parts = [inp.max(inp.take(value, np.arange(*part), axis), axis) for part in _parts(n, count)]
                value = inp.stack(parts, axis)
        return value[0] if is_single else value


class AdaptiveAvgPool1d(AdaptiveAvgPool):
    """`AdaptiveAvgPool` of (N, C, L)."""

    num_dims = 1


class AdaptiveAvgPool2d(AdaptiveAvgPool):
    """`AdaptiveAvgPool` of (N, C, H, W)."""

    num_dims = 2


class AdaptiveAvgPool3d(AdaptiveAvgPool):
    """`AdaptiveAvgPool` of (N, C, D, H, W)."""

    num_dims = 3


class AdaptiveMaxPool1d(AdaptiveMaxPool):
    """`AdaptiveMaxPool` of (N, C, L)."""

    num_dims = 1


class AdaptiveMaxPool2d(AdaptiveMaxPool):
    """`AdaptiveMaxPool` of (N, C, H, W)."""

    num_dims = 2


class AdaptiveMaxPool3d(AdaptiveMaxPool):
    """`AdaptiveMaxPool` of (N, C, D, H, W)."""

    num_dims = 3
