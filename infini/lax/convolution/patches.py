"""The patches that a convolution sees, and convolutions with a kernel of its own at every place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import errors, trace
from infini.core.ir import ArrayType
from infini.core.value import Literal, Value
from infini.lax import (
    contraction,
    contraction_dtypes,
    elementwise as e,
    families,
    precision as precision_,
    view,
)
from infini.lax.convolution import dimension_numbers as numbers_
from infini.lax.convolution.dimension_numbers import ConvGeneralDilatedDimensionNumbers
from infini.lax.convolution.functions import Padding, geometry_of
from infini.lax.windows import padding as padding_, unfolding

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers


def conv_general_dilated_patches(
    lhs: ArrayLike,
    filter_shape: Sequence[int],
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: ConvGeneralDilatedDimensionNumbers = None,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Value:
    """The windows that a convolution multiplies by its kernel, as features of the result.

    Elements are moved and not computed with, so they are exact.

    Args:
        lhs: array of n + 2 dimensions.
        filter_shape: n integers, size of the windows.
        window_strides: n integers, distance of neighbouring windows.
        padding: as for `conv_general_dilated`.
        lhs_dilation: n integers, distance of neighbouring elements of `lhs`.
        rhs_dilation: n integers, distance of neighbouring elements of a window.
        dimension_numbers: as for `conv_general_dilated`; those of the kernel order `filter_shape`.
        precision: accepted for JAX's sake.
        preferred_element_type: dtype of the result; that of `lhs` when absent.

    Returns:
        Features c * prod(filter_shape), those of `lhs` most significant, and one place per window.

    Raises:
        ValueMismatchError: sizes, strides or paddings do not go together.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> lax.conv_general_dilated_patches(inp.ones((1, 3, 8, 8)), (2, 2), (2, 2), "VALID").shape
        (1, 12, 4, 4)
    """
    name = "conv_general_dilated_patches"
    x = trace.as_value(lhs)
    precision_.canonical(precision)
    rank = x.ndim - 2
    window = padding_.sizes(name, "filter_shape", filter_shape, rank)
    numbers = numbers_.conv_dimension_numbers(x.shape, (1, 1, *window), dimension_numbers)
    geometry = geometry_of(x, window, numbers, window_strides, padding, lhs_dilation, rhs_dilation)
    x = view.transpose(x, numbers.lhs_spec)
    lines = padding_.lines(
        x.shape[2:], window, geometry.strides, geometry.pads, geometry.lhs_dilation, geometry.rhs_dilation
    )
    batch, features = x.shape[:2]
    counts = [line.count for line in lines]
    if 0 in (batch, features, *counts):
        found = families.zeros(ArrayType((batch, features * families.prod(window), *counts), x.dtype))
    else:
        zero = Literal(np.zeros((), x.dtype), weak=False)
        config = [(n.low, n.reach - n.base - n.low, n.base_dilation - 1) for n in lines]
        x = view.pad(x, zero, [(0, 0, 0), (0, 0, 0), *config])
        axes = range(2, 2 + rank)
        found = unfolding.unfold(x, axes, window, geometry.strides, geometry.rhs_dilation) if rank else x
        order = [0, 1, *range(2 + rank, 2 + 2 * rank), *axes]
        found = view.reshape(view.transpose(found, order), (batch, features * families.prod(window), *counts))
    back = [numbers.out_spec.index(d) for d in range(x.ndim)]
    result = contraction_dtypes.preferred(name, x.dtype, preferred_element_type)
    return e.convert_element_type(view.transpose(found, back), result)


def conv_general_dilated_local(
    lhs: ArrayLike,
    rhs: ArrayLike,
    window_strides: Sequence[int],
    padding: Padding,
    filter_shape: Sequence[int],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: ConvGeneralDilatedDimensionNumbers = None,
    precision: precision_.PrecisionLike = None,
) -> Value:
    """A convolution with a kernel of its own at every place of the result: a locally connected layer.

    Args:
        lhs: array of n + 2 dimensions.
        rhs: kernels: output features, the features of `conv_general_dilated_patches`, and one for every
            place.
        window_strides: n integers, distance of neighbouring windows.
        padding: as for `conv_general_dilated`.
        filter_shape: n integers, size of the windows.
        lhs_dilation: n integers, distance of neighbouring elements of `lhs`.
        rhs_dilation: n integers, distance of neighbouring elements of a window.
        dimension_numbers: as for `conv_general_dilated`.
        precision: see `Precision`.

    Returns:
        The result, with dimensions as `dimension_numbers` says.

    Raises:
        ValueMismatchError: sizes, strides or paddings do not go together.
        TypeMismatchError: `rhs` has no kernel for every place.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> kernels = inp.ones((4, 12, 4, 4))
        >>> lax.conv_general_dilated_local(inp.ones((1, 3, 8, 8)), kernels, (2, 2), "VALID", (2, 2)).shape
        (1, 4, 4, 4)
    """
    x, w = trace.as_value(lhs), trace.as_value(rhs)
    if isinstance(precision_.canonical(precision), (precision_.DotAlgorithm, precision_.DotAlgorithmPreset)):
        raise errors.ValueMismatchError(
            "conv_general_dilated_local takes no algorithm", got=repr(precision), expected="a lax.Precision"
        )
    patches = conv_general_dilated_patches(
        x, filter_shape, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers
    )
    numbers = numbers_.conv_dimension_numbers(x.shape, (1, 1, *filter_shape), dimension_numbers)
    out, kernel = numbers.out_spec, numbers.rhs_spec
    pairs = sorted(zip(out[2:], kernel[2:], strict=True))
    batch = tuple(a for a, _ in pairs), tuple(b for _, b in pairs)
    found = contraction.dot_general(patches, w, (((out[1],), (kernel[1],)), batch), precision)
    # Places in the order of the result, then batch, then features.
    have = [*batch[0], out[0], out[1]]
    return view.transpose(found, [have.index(d) for d in range(x.ndim)])
