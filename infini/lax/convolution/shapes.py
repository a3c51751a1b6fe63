"""Shapes of results of convolutions, before there are arrays; JAX's names."""

from __future__ import annotations

from collections.abc import Sequence

from infini.core import errors
from infini.core.ir import Shape
from infini.lax.convolution import dimension_numbers as numbers_
from infini.lax.convolution.functions import Padding
from infini.lax.convolution.transposed import transposed_padding
from infini.lax.windows import padding as padding_


def conv_shape_tuple(
    lhs_shape: Sequence[int],
    rhs_shape: Sequence[int],
    strides: Sequence[int],
    pads: Padding,
    batch_group_count: int = 1,
) -> Shape:
    """Shape of a convolution with batch and features in front.

    Args:
        lhs_shape: batch, features, spatial dimensions.
        rhs_shape: output features, input features, spatial dimensions.
        strides: distance of neighbouring windows.
        pads: padding by name or as pairs.
        batch_group_count: number of groups of the batch.

    Raises:
        TypeMismatchError: there is another number of pairs than of spatial dimensions.
        ValueMismatchError: negative padding removes more than there is.
    """
    image, kernel = tuple(lhs_shape)[2:], tuple(rhs_shape)[2:]
    if isinstance(pads, str):
        pads = padding_.padtype_to_pads(image, kernel, strides, pads)
    if len(pads) != len(image):
        raise errors.TypeMismatchError(
            "a convolution needs one pair of padding per spatial dimension",
            got=str(pads),
            expected=f"{len(image)} pairs",
        )
    ends = [n + low + high for n, (low, high) in zip(image, pads, strict=True)]
    if any(n < 0 for n in ends):
        raise errors.ValueMismatchError(
            "a convolution's negative padding removes more than there is", got=f"{pads} for {image}"
        )
    counts = [padding_.num_windows(n, k, s) for n, k, s in zip(ends, kernel, strides, strict=True)]
    return (lhs_shape[0] // batch_group_count, rhs_shape[0], *counts)


def conv_general_shape_tuple(
    lhs_shape: Sequence[int],
    rhs_shape: Sequence[int],
    window_strides: Sequence[int],
    padding: Padding,
    dimension_numbers: Sequence[str],
) -> Shape:
    """As `conv_shape_tuple`, with dimensions as three strings say."""
    lhs, rhs, out = numbers_.conv_general_permutations(dimension_numbers)
    found = conv_shape_tuple(
        [lhs_shape[d] for d in lhs], [rhs_shape[d] for d in rhs], window_strides, padding
    )
    return tuple(found[out.index(d)] for d in range(len(out)))


def conv_transpose_shape_tuple(
    lhs_shape: Sequence[int],
    rhs_shape: Sequence[int],
    window_strides: Sequence[int],
    padding: Padding,
    dimension_numbers: Sequence[str],
) -> Shape:
    """Shape of `conv_transpose`, with dimensions as three strings say."""
    lhs, rhs, out = numbers_.conv_general_permutations(dimension_numbers)
    image, kernel = [lhs_shape[d] for d in lhs], [rhs_shape[d] for d in rhs]
    pads = (
        [transposed_padding(k, s, padding) for k, s in zip(kernel[2:], window_strides, strict=True)]
        if isinstance(padding, str)
        else padding
    )
    found = (
        image[0],
        kernel[0],
        *(
            (n - 1) * s - k + 2 + low + high
            for n, k, s, (low, high) in zip(image[2:], kernel[2:], window_strides, pads, strict=True)
        ),
    )
    return tuple(found[out.index(d)] for d in range(len(out)))
