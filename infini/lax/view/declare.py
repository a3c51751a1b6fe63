"""What the operations that move elements share: their declaration, shapes and dimensions as arguments.

Attributes describe core dimensions only and count axes from the right, so `vmap` re-binds the same operation.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from infini.core import dtypes, errors, ir, primitive
from infini.core.primitive import Primitive
from infini.lax import cases, places
from infini.lax.cases import Case, Sample
from infini.lax.families import linear_jvp

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers


def view(
    name: str,
    signature: Any,
    type: Any,
    reference: Any,
    transpose: Any,
    place: Any,
    examples: Sequence[Case],
    partition: Any = None,
) -> Primitive:  # Any: rules by kind
    """Declare an operation that moves the elements of one array."""
    splitting = {primitive.PLACE: place}
    if partition:  # which moves tails as it moves elements
        splitting |= {primitive.PARTITION: partition, primitive.TAIL: places.tails_through}
    return primitive.register(
        Primitive(
            name,
            signature,
            {
                primitive.TYPE: type,
                primitive.REFERENCE: reference,
                primitive.JVP: linear_jvp(name),
                primitive.TRANSPOSE: transpose,
                primitive.CASES: cases.always(dtypes.ALL, *examples),
                **splitting,
            },
        )
    )


def moves(*operands: Sample, **attrs: Any) -> Case:  # Any: attributes are of many types
    """A case whose results are equal to the bit."""
    return Case(operands, attrs, "exact")


def sizes(name: str, shape: Any) -> ir.Shape:  # Any: an integer or a sequence of integers
    """A shape as a tuple of numbers.

    Raises:
        TypeMismatchError: a size is negative or no integer.
        ConcretizationError: a size is being traced.
    """
    given = (
        tuple(shape) if hasattr(shape, "__iter__") and not hasattr(shape, "__infini_array__") else (shape,)
    )
    try:
        found = tuple(operator.index(n) for n in given)
    except TypeError as error:
        if isinstance(error, errors.InfiniError):
            raise
        found = (-1,)
    if any(n < 0 for n in found):
        raise errors.TypeMismatchError(
            f"{name}: a shape is made of integers that are not negative", got=repr(shape)
        )
    return found


def distinct(name: str, dims: Sequence[int], ndim: int, *, allow_negative: bool) -> tuple[int, ...]:
    """Dimensions as different numbers from 0.

    Raises:
        ValueMismatchError: one does not exist or occurs twice, where negative ones are allowed.
        TypeMismatchError: the same where they are not; JAX makes this difference.
    """
    numbers = tuple(operator.index(d) for d in dims)
    lowest = -ndim if allow_negative else 0
    if any(not lowest <= d < ndim for d in numbers) or len({d % max(ndim, 1) for d in numbers}) < len(
        numbers
    ):
        kind = errors.ValueMismatchError if allow_negative else errors.TypeMismatchError
        raise kind(
            f"{name}: these are not different dimensions of an array",
            got=f"{numbers} for {ndim} dimensions",
            expected=f"different numbers from {lowest} to {ndim - 1}" if ndim else "none",
        )
    return tuple(d % ndim for d in numbers)
