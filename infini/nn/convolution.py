"""Convolutions and their transposes over one to three dimensions, with PyTorch's constructors and keys.

Shapes: N batch, C channels, then the spatial dimensions. Kernels are (outputs, inputs / groups, ...), those
of the transposed ones (inputs, outputs / groups, ...).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import infini.numpy as inp
from infini import lax, random
from infini.core import errors
from infini.core.value import Value
from infini.nn import parameters
from infini.nn.module import Module, field
from infini.numpy._promotion import ArrayLike, DTypeLike
from infini.random.keys import KeyLike

Sizes = int | Sequence[int]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
_PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
_LETTERS = {1: "W", 2: "HW", 3: "DHW"}


def per_dimension(name: str, option: str, value: Sizes, count: int) -> tuple[int, ...]:
    """An option as one integer per spatial dimension.

    Raises:
        ValueMismatchError: there is another number of them.
    """
    found = (value,) * count if isinstance(value, int) else tuple(value)
    if len(found) != count:
        raise errors.ValueMismatchError(
            f"{name}: {option} is one integer, or one per spatial dimension",
            got=str(found),
            expected=f"{count} integers",
        )
    return found


def batched(name: str, x: ArrayLike, channels: int | None, count: int) -> tuple[Value, bool]:
    """The operand with a batch dimension, and whether it had none.

    Raises:
        TypeMismatchError: it has another number of dimensions, or of channels.
    """
    value = parameters.operand(name, x)
    if value.ndim not in (count + 1, count + 2) or (
        channels is not None and value.shape[-count - 1] != channels
    ):
        wanted = "C" if channels is None else str(channels)
        raise errors.TypeMismatchError(
            f"{name}: the operand has another shape",
            got=str(value.type),
            expected=f"(N, {wanted}, ...) or ({wanted}, ...) with {count} spatial dimensions",
        )
    is_single = value.ndim == count + 1
    return (value[None] if is_single else value), is_single


def _numbers(count: int) -> tuple[str, str, str]:
    letters = _LETTERS[count]
    return f"NC{letters}", f"OI{letters}", f"NC{letters}"


class Conv(Module):
    """A convolution; `Conv1d`, `Conv2d` and `Conv3d` are this one for their number of dimensions.

    Args:
        in_channels: channels of the operand.
        out_channels: channels of the result.
        kernel_size: sizes of the kernel.
        stride: distance of neighbouring windows.
        padding: places added at both ends of each dimension; `valid` adds none, `same` as many as keep the
            size.
        dilation: distance of neighbouring elements of the kernel.
        groups: number of groups of channels that are convolved apart.
        bias: whether there is a bias.
        padding_mode: what the added places hold.
        device: where the parameters live.
        dtype: dtype of the parameters, float32 when absent.
        key: a key for the initial values, uniform within `1 / sqrt(inputs of one output)` of zero.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import nn, random
        >>> layer = nn.Conv2d(3, 8, 3, padding="same", key=random.key(0))
        >>> layer(inp.ones((1, 3, 5, 5))).shape
        (1, 8, 5, 5)
    """

    num_dims: ClassVar[int] = 2

    weight: Value
    bias: Value | None
    in_channels: int = field(static=True)
    out_channels: int = field(static=True)
    kernel_size: tuple[int, ...] = field(static=True)
    stride: tuple[int, ...] = field(static=True)
    padding: tuple[tuple[int, int], ...] = field(static=True)
    dilation: tuple[int, ...] = field(static=True)
    groups: int = field(static=True)
    padding_mode: PaddingMode = field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | Literal["valid", "same"] = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
        *,
        key: KeyLike,
    ) -> None:
        name, count = type(self).__name__, self.num_dims
        _check_groups(name, in_channels, out_channels, groups)
        if padding_mode != "zeros" and padding_mode not in _PAD_MODES:
            raise errors.ValueMismatchError(
                f"{name}: unknown padding_mode",
                got=repr(padding_mode),
                expected="zeros, reflect, replicate or circular",
            )
        self.kernel_size = per_dimension(name, "kernel_size", kernel_size, count)
        self.stride = per_dimension(name, "stride", stride, count)
        self.dilation = per_dimension(name, "dilation", dilation, count)
        self.padding = _pads(name, padding, self.kernel_size, self.stride, self.dilation)
        first, second = random.split(key)
        fan_in = in_channels // groups * math.prod(self.kernel_size)
        bound, make = 1 / math.sqrt(fan_in), parameters.maker(device, dtype)
        self.weight = make.uniform(first, (out_channels, in_channels // groups, *self.kernel_size), bound)
        self.bias = make.uniform(second, (out_channels,), bound) if bias else None
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.groups = groups
        self.padding_mode = padding_mode

    def __call__(self, x: ArrayLike) -> Value:
        """Map (N, C, ...) or (C, ...) to the same with `out_channels`."""
        value, is_single = batched(type(self).__name__, x, self.in_channels, self.num_dims)
        pads = self.padding
        if self.padding_mode != "zeros":
            value = inp.pad(value, [(0, 0), (0, 0), *pads], mode=_PAD_MODES[self.padding_mode])
            pads = ((0, 0),) * self.num_dims
        result = lax.conv_general_dilated(
            value, self.weight, self.stride, pads, rhs_dilation=self.dilation,
            dimension_numbers=_numbers(self.num_dims), feature_group_count=self.groups,
        )  # fmt: skip
        return _finished(result, self.bias, is_single)


def _finished(result: Value, bias: Value | None, is_single: bool) -> Value:
    if bias is not None:
        result = result + inp.reshape(bias, (-1, *(1,) * (result.ndim - 2)))
    return result[0] if is_single else result


def _check_groups(name: str, in_channels: int, out_channels: int, groups: int) -> None:
    if groups < 1 or in_channels % groups or out_channels % groups:
        raise errors.ValueMismatchError(
            f"{name}: groups has to divide both numbers of channels",
            got=f"in_channels={in_channels}, out_channels={out_channels}, groups={groups}",
        )


def _pads(
    name: str,
    padding: Sizes | str,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[tuple[int, int], ...]:
    if not isinstance(padding, str):
        return tuple((n, n) for n in per_dimension(name, "padding", padding, len(kernel)))
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding != "same" or any(n != 1 for n in stride):
        raise errors.ValueMismatchError(
            f"{name}: this padding does not go with these strides",
            got=f"padding={padding!r}, stride={stride}",
            expected="'valid', or 'same' with a stride of 1, or integers",
        )
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)


# A second level of inheritance: three constructors with the same eleven arguments would say less.


class Conv1d(Conv):
    """`Conv` of (N, C, L)."""

    num_dims = 1


class Conv2d(Conv):
    """`Conv` of (N, C, H, W)."""

    num_dims = 2


class Conv3d(Conv):
    """`Conv` of (N, C, D, H, W)."""

    num_dims = 3


class ConvTranspose(Module):
    """The transpose of a convolution, which enlarges; `ConvTranspose1d`, `ConvTranspose2d` and
    `ConvTranspose3d` are this one for their number of dimensions.

    Args:
        in_channels: channels of the operand.
        out_channels: channels of the result.
        kernel_size: sizes of the kernel.
        stride: how far apart neighbouring elements of the operand are put.
        padding: places taken off both ends of each dimension of the result.
        output_padding: places added at the far end of each dimension of the result.
        groups: number of groups of channels that are convolved apart.
        bias: whether there is a bias.
        dilation: distance of neighbouring elements of the kernel.
        padding_mode: only `zeros`, as in PyTorch.
        device: where the parameters live.
        dtype: dtype of the parameters, float32 when absent.
        key: a key for the initial values, uniform as in PyTorch.
    """

    num_dims: ClassVar[int] = 2

    weight: Value
    bias: Value | None
    in_channels: int = field(static=True)
    out_channels: int = field(static=True)
    kernel_size: tuple[int, ...] = field(static=True)
    stride: tuple[int, ...] = field(static=True)
    padding: tuple[int, ...] = field(static=True)
    output_padding: tuple[int, ...] = field(static=True)
    groups: int = field(static=True)
    dilation: tuple[int, ...] = field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Sizes = 1,
        padding_mode: Literal["zeros"] = "zeros",
        device: Any = None,  # Any: as of device_put
        dtype: DTypeLike | None = None,
        *,
        key: KeyLike,
    ) -> None:
        name, count = type(self).__name__, self.num_dims
        _check_groups(name, in_channels, out_channels, groups)
        if padding_mode != "zeros":
            raise errors.ValueMismatchError(
                f"{name} has one padding_mode", got=repr(padding_mode), expected="'zeros'"
            )
        self.kernel_size = per_dimension(name, "kernel_size", kernel_size, count)
        self.stride = per_dimension(name, "stride", stride, count)
        self.padding = per_dimension(name, "padding", padding, count)
        self.output_padding = per_dimension(name, "output_padding", output_padding, count)
        self.dilation = per_dimension(name, "dilation", dilation, count)
        first, second = random.split(key)
        fan_in = out_channels // groups * math.prod(self.kernel_size)
        bound, make = 1 / math.sqrt(fan_in), parameters.maker(device, dtype)
        self.weight = make.uniform(first, (in_channels, out_channels // groups, *self.kernel_size), bound)
        self.bias = make.uniform(second, (out_channels,), bound) if bias else None
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.groups = groups

    def __call__(self, x: ArrayLike) -> Value:
        """Map (N, C, ...) or (C, ...) to the same with `out_channels`."""
        value, is_single = batched(type(self).__name__, x, self.in_channels, self.num_dims)
        spatial = tuple(range(2, 2 + self.num_dims))
        pads = [
            (d * (k - 1) - p, d * (k - 1) - p + extra)
            for k, d, p, extra in zip(
                self.kernel_size, self.dilation, self.padding, self.output_padding, strict=True
            )
        ]
        result = lax.conv_general_dilated(
            value, self._kernel(spatial), (1,) * self.num_dims, pads, lhs_dilation=self.stride,
            rhs_dilation=self.dilation, dimension_numbers=_numbers(self.num_dims),
            feature_group_count=self.groups,
        )  # fmt: skip
        return _finished(result, self.bias, is_single)

    def _kernel(self, spatial: tuple[int, ...]) -> Value:
        """The kernel of the convolution that this is: turned around, inputs and outputs exchanged."""
        inputs, outputs, *sizes = self.weight.shape
        grouped = inp.reshape(self.weight, (self.groups, inputs // self.groups, outputs, *sizes))
        turned = inp.reshape(inp.swapaxes(grouped, 1, 2), (self.groups * outputs, -1, *sizes))
        return inp.flip(turned, spatial)


class ConvTranspose1d(ConvTranspose):
    """`ConvTranspose` of (N, C, L)."""

    num_dims = 1


class ConvTranspose2d(ConvTranspose):
    """`ConvTranspose` of (N, C, H, W)."""

    num_dims = 2


class ConvTranspose3d(ConvTranspose):
    """`ConvTranspose` of (N, C, D, H, W)."""

    num_dims = 3
