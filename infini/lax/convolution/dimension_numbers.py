"""Which dimension of a convolution's operands is what: JAX's dimension numbers."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from infini.core import errors


class ConvDimensionNumbers(NamedTuple):
    """Dimension numbers in canonical form, as `jax.lax.ConvDimensionNumbers`.

    Attributes:
        lhs_spec: dimensions of the left operand in the order batch, feature, spatial ones.
        rhs_spec: dimensions of the kernel in the order output feature, input feature, spatial ones.
        out_spec: dimensions of the result in the order batch, feature, spatial ones.
    """

    lhs_spec: tuple[int, ...]
    rhs_spec: tuple[int, ...]
    out_spec: tuple[int, ...]


ConvGeneralDilatedDimensionNumbers: TypeAlias = tuple[str, str, str] | ConvDimensionNumbers | None


def conv_dimension_numbers(
    lhs_shape: Sequence[int], rhs_shape: Sequence[int], dimension_numbers: ConvGeneralDilatedDimensionNumbers
) -> ConvDimensionNumbers:
    """Dimension numbers in their canonical form, as `jax.lax.conv_dimension_numbers`.

    Args:
        lhs_shape: shape of the left operand.
        rhs_shape: shape of the kernel.
        dimension_numbers: None for batch, feature, spatial dimensions in this order; three strings such as
            `("NHWC", "HWIO", "NHWC")`; or what this function gives.

    Raises:
        TypeMismatchError: they do not fit the shapes, or name dimensions wrongly.
    """
    if isinstance(dimension_numbers, ConvDimensionNumbers):
        return dimension_numbers
    if len(lhs_shape) != len(rhs_shape):
        raise errors.TypeMismatchError(
            "a convolution needs operands of equal rank",
            got=f"shapes {tuple(lhs_shape)} and {tuple(rhs_shape)}",
        )
    if dimension_numbers is None:
        order = tuple(range(len(lhs_shape)))
        return ConvDimensionNumbers(order, order, order)
    if not isinstance(dimension_numbers, (list, tuple)) or len(dimension_numbers) != 3:
        raise errors.TypeMismatchError(
            "dimension_numbers of a convolution are three strings",
            got=repr(dimension_numbers),
            expected="such as ('NHWC', 'HWIO', 'NHWC'), None, or ConvDimensionNumbers",
        )
    for i, text in enumerate(dimension_numbers):
        if not isinstance(text, str) or len(text) != len(lhs_shape):
            raise errors.TypeMismatchError(
                f"dimension_numbers[{i}] of a convolution needs one character per dimension",
                got=f"{text!r} for shapes {tuple(lhs_shape)} and {tuple(rhs_shape)}",
            )
    return ConvDimensionNumbers(*conv_general_permutations(dimension_numbers))


def conv_general_permutations(
    dimension_numbers: Sequence[str],
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The dimensions that three strings name, in canonical order, as `jax.lax.conv_general_permutations`.

    Raises:
        TypeMismatchError: a string has no batch or feature character, repeats one, or has another set of
            spatial ones.
    """
    ends = ("NC", "OI", "NC")
    for i, (text, pair) in enumerate(zip(dimension_numbers, ends, strict=True)):
        if any(text.count(c) != 1 for c in pair) or len(set(text)) != len(text):
            raise errors.TypeMismatchError(
                f"dimension_numbers[{i}] of a convolution needs {pair[0]!r} and {pair[1]!r} once each, "
                "and no character twice",
                got=repr(text),
            )
    spatial = [set(text) - set(pair) for text, pair in zip(dimension_numbers, ends, strict=True)]
    if not spatial[0] == spatial[1] == spatial[2]:
        raise errors.TypeMismatchError(
            "dimension_numbers of a convolution need the same spatial characters",
            got=str(tuple(dimension_numbers)),
        )
    order = [c for c in dimension_numbers[1] if c in spatial[1]]
    lhs, rhs, out = (
        tuple(text.index(c) for c in (*pair, *order))
        for text, pair in zip(dimension_numbers, ends, strict=True)
    )
    return lhs, rhs, out


def letters(numbers: ConvDimensionNumbers) -> tuple[str, str, str]:
    """Characters of the three arrays as in a spec, without groups.

    Raises:
        ValueMismatchError: there are more than ten spatial dimensions.
    """
    rank = len(numbers.lhs_spec) - 2
    if rank > len(string.digits):
        raise errors.ValueMismatchError(
            "a convolution has at most ten spatial dimensions", got=f"{rank} spatial dimensions"
        )

    def placed(order: Sequence[int], names: str) -> str:
        found = [""] * len(order)
        for position, name in zip(order, names + string.digits, strict=False):
            found[position] = name
        return "".join(found)

    return placed(numbers.lhs_spec, "nc"), placed(numbers.rhs_spec, "oc"), placed(numbers.out_spec, "no")
