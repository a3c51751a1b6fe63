"""`conv_transpose`: convolution with fractional strides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from infini.core import errors, trace
from infini.core.value import Value
from infini.lax import precision as precision_, view
from infini.lax.convolution import dimension_numbers as numbers_
from infini.lax.convolution.dimension_numbers import ConvGeneralDilatedDimensionNumbers
from infini.lax.convolution.functions import Padding, conv_general_dilated
from infini.lax.windows import padding as padding_

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers

_DEFAULTS: Final = {
    2: ("NC", "IO", "NC"),
    3: ("NHC", "HIO", "NHC"),
    4: ("NHWC", "HWIO", "NHWC"),
    5: ("NHWDC", "HWDIO", "NHWDC"),
}


def conv_transpose(
    lhs: ArrayLike,
    rhs: ArrayLike,
    strides: Sequence[int],
    padding: Padding,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: ConvGeneralDilatedDimensionNumbers = None,
    transpose_kernel: bool = False,
    precision: precision_.PrecisionLike = None,
    preferred_element_type: Any = None,
    use_consistent_padding: bool = False,
) -> Value:
    """Convolution with fractional strides, as `jax.lax.conv_transpose`.

    Args:
        lhs: array of n + 2 dimensions.
        rhs: kernel of n + 2 dimensions.
        strides: n integers: how many results there are for every element of `lhs`.
        padding: `SAME` or `VALID`, that of the convolution this undoes, or n pairs of places added to the
            dilated `lhs`.
        rhs_dilation: n integers, distance of neighbouring elements of the kernel.
        dimension_numbers: as for `conv_general_dilated`; batch first and features last when absent.
        transpose_kernel: whether to reverse the kernel and exchange its features, which makes this the
            gradient of the convolution by the same kernel.
        precision: see `Precision`.
        preferred_element_type: dtype of the result; that of the operands when absent.
        use_consistent_padding: whether pairs of `padding` are those of the convolution this undoes as well.

    Raises:
        ValueMismatchError: sizes, strides or paddings do not go together.
        TypeMismatchError: ranks or dtypes do not.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> lax.conv_transpose(inp.ones((1, 5, 5, 8)), inp.ones((2, 2, 8, 4)), (2, 2), "SAME").shape
        (1, 10, 10, 4)
    """
    x, w = trace.as_value(lhs), trace.as_value(rhs)
    if x.ndim != w.ndim or x.ndim < 2:
        raise errors.ValueMismatchError(
            "conv_transpose needs operands of equal rank, at least 2", got=f"{x.type}, {w.type}"
        )
    if dimension_numbers is None:
        if x.ndim not in _DEFAULTS:
            raise errors.ValueMismatchError(
                "conv_transpose has no default dimension_numbers for more than three spatial dimensions",
                got=str(x.type),
                fix="give dimension_numbers",
            )
        dimension_numbers = _DEFAULTS[x.ndim]
    numbers = numbers_.conv_dimension_numbers(x.shape, w.shape, dimension_numbers)
    rank = x.ndim - 2
    hole = (1,) * rank if rhs_dilation is None else tuple(rhs_dilation)
    kernel = [w.shape[d] for d in numbers.rhs_spec[2:]]
    pads: Padding = padding
    if use_consistent_padding or (isinstance(padding, str) and padding in ("SAME", "VALID")):
        each: list[Any] = [padding] * rank if isinstance(padding, str) else list(padding)
        extents = [padding_.dilated(n, d) for n, d in zip(kernel, hole, strict=True)]
        pads = [transposed_padding(k, s, p) for k, s, p in zip(extents, strides, each, strict=True)]
    if transpose_kernel:
        w = view.rev(w, numbers.rhs_spec[2:])
        order = list(range(w.ndim))
        out, inner = numbers.rhs_spec[:2]
        order[out], order[inner] = inner, out
        w = view.transpose(w, order)
    return conv_general_dilated(
        x, w, (1,) * rank, pads, strides, hole, numbers, precision=precision,
        preferred_element_type=preferred_element_type,
    )  # fmt: skip


def transposed_padding(extent: int, stride: int, padding: str | tuple[int, int]) -> tuple[int, int]:
    """Padding along one dimension of the convolution that undoes one with this padding."""
    if padding == "SAME":
        total = extent + stride - 2
        low = extent - 1 if stride > extent - 1 else -(-total // 2)
        return low, total - low
    if padding == "VALID":
        return extent - 1, stride - 1 + max(extent - stride, 0)
    if isinstance(padding, str):
        raise padding_.UnknownPaddingError(
            "conv_transpose: there is no padding of this name",
            got=repr(padding),
            expected="'SAME' or 'VALID'",
        )
    low, high = padding
    return extent - low - 1, extent - high - 1
