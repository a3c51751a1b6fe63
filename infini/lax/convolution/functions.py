"""The functions of `jax.lax` that convolve: each checks its arguments, and all become `conv`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from infini.core import dtypes, errors, trace
from infini.core.value import Value
from infini.lax import contraction, contraction_dtypes, elementwise as e, precision as precision_, view
from infini.lax.convolution import dimension_numbers as numbers_
from infini.lax.convolution.dimension_numbers import ConvDimensionNumbers, ConvGeneralDilatedDimensionNumbers
from infini.lax.convolution.operation import conv_p
from infini.lax.windows import padding as padding_
from infini.lax.windows.padding import Pads

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers
Padding: TypeAlias = str | Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Steps and paddings per spatial dimension, checked."""

    strides: tuple[int, ...]
    pads: Pads
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]


def conv_general_dilated(
    lhs: ArrayLike,
    rhs: ArrayLike,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: ConvGeneralDilatedDimensionNumbers = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: precision_.PrecisionLike = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> Value:
    """Convolution over any number of spatial dimensions, as `jax.lax.conv_general_dilated`.

    What machine learning calls a convolution: the kernel is not reversed. 16- and 8-bit floats accumulate in
    float32.

    Args:
        lhs: array of n + 2 dimensions: batch, features, and n spatial ones.
        rhs: kernel of n + 2 dimensions: output features, input features of a group, and n spatial ones.
        window_strides: n integers, distance of neighbouring windows.
        padding: `SAME`, `SAME_LOWER`, `VALID`, or n pairs (low, high) of places added at the ends of the
            spatial dimensions; negative ones are removed.
        lhs_dilation: n integers, distance of neighbouring elements of `lhs`; 1 when absent.
        rhs_dilation: n integers, distance of neighbouring elements of the kernel; 1 when absent.
        dimension_numbers: see `conv_dimension_numbers`; when absent `("NCHW", "OIHW", "NCHW")`, for two
            spatial dimensions.
        feature_group_count: number of groups of features that are convolved apart.
        batch_group_count: number of groups of the batch, each with its own output features.
        precision: see `Precision`.
        preferred_element_type: dtype of the result; that of the operands when absent.
        out_sharding: placement of the result.

    Returns:
        The result, with dimensions as `dimension_numbers` says.

    Raises:
        ValueMismatchError: sizes, groups, strides or paddings do not go together.
        TypeMismatchError: ranks or dtypes do not.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> lax.conv_general_dilated(inp.ones((1, 3, 8, 8)), inp.ones((4, 3, 3, 3)), (2, 2), "SAME").shape
        (1, 4, 4, 4)
    """
    x, w = trace.as_value(lhs), trace.as_value(rhs)
    numbers = numbers_.conv_dimension_numbers(x.shape, w.shape, dimension_numbers)
    _check_operands(x, w, numbers, feature_group_count, batch_group_count)
    contraction.check_out_sharding("conv_general_dilated", out_sharding)
    wanted = precision_.canonical(precision)
    result = contraction_dtypes.preferred("conv_general_dilated", x.dtype, preferred_element_type)
    _check_preferred(x.dtype, result)
    window = [w.shape[d] for d in numbers.rhs_spec[2:]]
    geometry = geometry_of(x, window, numbers, window_strides, padding, lhs_dilation, rhs_dilation)
    operand, total = contraction_dtypes.working(x.dtype, result)
    if x.dtype not in dtypes.FLOATS:
        x, w = e.convert_element_type(x, operand), e.convert_element_type(w, operand)
    first, second, sum_dtype = precision_.types_of(wanted, x.dtype, w.dtype)
    x, w = e.convert_element_type(x, first), e.convert_element_type(w, second)
    groups = (feature_group_count, batch_group_count)
    found = _grouped(x, w, numbers, groups, geometry, sum_dtype or total)
    return contraction.placed(e.convert_element_type(found, result), out_sharding)


def _check_operands(
    x: Value, w: Value, numbers: ConvDimensionNumbers, feature_groups: int, batch_groups: int
) -> None:
    name = "conv_general_dilated"
    if not x.ndim == w.ndim == len(numbers.lhs_spec) or x.ndim < 2:
        raise errors.ValueMismatchError(
            f"{name} needs operands of equal rank, at least 2", got=f"{x.type}, {w.type}, {numbers}"
        )
    if x.dtype != w.dtype:
        raise errors.TypeMismatchError(
            f"{name} needs operands of one dtype",
            got=f"{x.type}, {w.type}",
            fix="convert one with .astype(...)",
        )
    batch, features = (x.shape[d] for d in numbers.lhs_spec[:2])
    out, inner = (w.shape[d] for d in numbers.rhs_spec[:2])
    for argument, count, divided in (
        (
            "feature_group_count",
            feature_groups,
            (("features of lhs", features), ("output features of rhs", out)),
        ),
        ("batch_group_count", batch_groups, (("batch of lhs", batch), ("output features of rhs", out))),
    ):
        if count < 1:
            raise errors.ValueMismatchError(f"{name}: {argument} must be positive", got=f"{argument}={count}")
        for what, size in divided:
            if size % count:
                raise errors.ValueMismatchError(
                    f"{name}: {argument} must divide the {what}", got=f"{argument}={count}, {what}: {size}"
                )
    if features // feature_groups != inner:
        raise errors.ValueMismatchError(
            f"{name}: input features of the kernel are not those of a group of lhs",
            got=f"{x.type} and {w.type} with {numbers}: {features} // {feature_groups} and {inner}",
            expected="features of lhs // feature_group_count == input features of rhs",
        )
    if feature_groups > 1 and batch_groups > 1:
        raise errors.ValueMismatchError(
            f"{name}: at most one of feature_group_count and batch_group_count may be more than 1",
            got=f"{feature_groups} and {batch_groups}",
        )


def _check_preferred(natural: np.dtype, result: np.dtype) -> None:
    """JAX's table of dtypes that a convolution may result in."""
    if natural == result:
        return
    kinds = (dtypes.INTEGERS, dtypes.FLOATS, dtypes.COMPLEX)
    same_kind = any(natural in kind and result in kind for kind in kinds)
    loses_sign = natural in dtypes.SIGNED and result in dtypes.UNSIGNED
    is_allowed = (same_kind and not loses_sign) or (natural in dtypes.INTEGERS and result in dtypes.FLOATS)
    if not is_allowed or result.itemsize < natural.itemsize:
        raise errors.TypeMismatchError(
            "conv_general_dilated: operands and preferred_element_type do not go together",
            got=f"operands of {dtypes.short(natural)}, preferred_element_type={dtypes.short(result)}",
            expected="a dtype of the same kind, or floats for integers, of no fewer bits",
        )


def geometry_of(
    x: Value, window: Sequence[int], numbers: ConvDimensionNumbers, window_strides: Sequence[int],
    padding: Padding, lhs_dilation: Sequence[int] | None, rhs_dilation: Sequence[int] | None,
) -> Geometry:  # fmt: skip
    """Steps and paddings of a convolution by a kernel of spatial shape `window`.

    Raises:
        ValueMismatchError: an entry is missing or too small.
        TypeMismatchError: there is another number of paddings than of spatial dimensions.
    """
    name, rank = "conv_general_dilated", x.ndim - 2
    strides = padding_.sizes(name, "window_strides", window_strides, rank)
    base = padding_.sizes(name, "lhs_dilation", (1,) * rank if lhs_dilation is None else lhs_dilation, rank)
    hole = padding_.sizes(name, "rhs_dilation", (1,) * rank if rhs_dilation is None else rhs_dilation, rank)
    image = [x.shape[d] for d in numbers.lhs_spec[2:]]
    kernel = padding_.sizes(name, "the spatial shape of rhs", window, rank)
    extents = [padding_.dilated(n, d) for n, d in zip(kernel, hole, strict=True)]
    if not isinstance(padding, str):
        pads = padding_.explicit(name, padding)
    elif any(n != 1 for n in base):
        raise errors.ValueMismatchError(
            f"{name} does not know what a padding by name means when lhs is dilated",
            got=f"padding={padding!r}, lhs_dilation={base}",
            fix="give pairs of integers, or use conv_transpose",
        )
    else:
        pads = tuple(padding_.padtype_to_pads(image, extents, strides, padding))
    if len(pads) != rank:
        raise errors.TypeMismatchError(
            f"{name}: padding needs one pair per spatial dimension", got=f"{pads}", expected=f"{rank} pairs"
        )
    for size, step, (low, high) in zip(image, base, pads, strict=True):
        if padding_.dilated(size, step) + low + high < 0:
            raise errors.ValueMismatchError(
                f"{name}: negative padding removes more than there is", got=f"padding={pads} for {x.type}"
            )
    return Geometry(strides, pads, base, hole)


def _grouped(
    x: Value, w: Value, numbers: ConvDimensionNumbers, groups: tuple[int, int], geometry: Geometry,
    dtype: np.dtype,
) -> Value:  # fmt: skip
    """Groups become a letter of all three arrays, beside the one they divide."""
    lhs, rhs, out = numbers_.letters(numbers)
    count = max(groups)
    if count > 1:
        x, lhs = _split(x, lhs, "c" if groups[0] > 1 else "n", count)
        w, rhs = _split(w, rhs, "o", count)
        out = out.replace("o", "go")
    found = trace.bind1(
        conv_p, x, w, spec=f"{lhs},{rhs}->{out}", window_strides=geometry.strides, padding=geometry.pads,
        lhs_dilation=geometry.lhs_dilation, rhs_dilation=geometry.rhs_dilation, dtype=dtype,
    )  # fmt: skip
    if count == 1:
        return found
    at = out.index("g")
    shape = found.shape
    return view.reshape(found, (*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]))


def _split(x: Value, letters: str, letter: str, count: int) -> tuple[Value, str]:
    at = letters.index(letter)
    shape = (*x.shape[:at], count, x.shape[at] // count, *x.shape[at + 1 :])
    return view.reshape(x, shape), letters.replace(letter, f"g{letter}")


def conv(
    lhs: ArrayLike,
    rhs: ArrayLike,
    window_strides: Sequence[int],
    padding: str,
    precision: precision_.PrecisionLike = None,
    preferred_element_type: Any = None,
) -> Value:
    """`conv_general_dilated` with batch and features in front and no dilation, as `jax.lax.conv`."""
    return conv_general_dilated(
        lhs, rhs, window_strides, padding, precision=precision, preferred_element_type=preferred_element_type
    )


def conv_with_general_padding(
    lhs: ArrayLike,
    rhs: ArrayLike,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None,
    rhs_dilation: Sequence[int] | None,
    precision: precision_.PrecisionLike = None,
    preferred_element_type: Any = None,
) -> Value:
    """`conv_general_dilated` with batch and features in front, as `jax.lax.conv_with_general_padding`."""
    return conv_general_dilated(
        lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, precision=precision,
        preferred_element_type=preferred_element_type,
    )  # fmt: skip
