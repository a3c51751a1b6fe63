"""Views that keep every element: reshape, squeeze, expand_dims, collapse, transpose, rev."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infini.core import dtypes, errors, ir, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax import families, places
from infini.lax.cases import Sample
from infini.lax.families import letters
from infini.lax.view import borders
from infini.lax.view.declare import ArrayLike, distinct, moves, sizes, view

# --- reshape -------------------------------------------------------------------------------


def _type_reshape(x: ArrayType, *, shape: ir.Shape, ndim: int) -> tuple[ArrayType, ...]:
    loop, core = x.shape[: x.ndim - ndim], x.shape[x.ndim - ndim :]
    if families.prod(core) != families.prod(shape):
        raise errors.TypeMismatchError(
            f"cannot reshape {core} into {shape}", got=str(x), expected=f"{families.prod(core)} elements"
        )
    return (x.update(shape=loop + tuple(shape)),)


reshape_p: Primitive = view(
    "reshape",
    lambda *, shape, ndim: Signature((letters(ndim),), (letters(len(shape), "r"),)),
    _type_reshape,
    lambda x, *, shape, ndim: x.reshape(x.shape[: x.ndim - ndim] + shape),
    lambda ct, x, *, shape, ndim: (
        trace.bind1(reshape_p, ct, shape=x.shape[x.ndim - ndim :], ndim=len(shape)),
    ),
    place=places.place_reshape,
    partition=places.partition_reshape,
    examples=[moves(Sample((2, 6)), shape=(3, 4), ndim=2), moves(Sample((1,)), shape=(), ndim=1)],
)


def reshape(operand: ArrayLike, new_sizes: Sequence[int], dimensions: Sequence[int] | None = None) -> Value:
    """The same elements in C order in another shape, as `jax.lax.reshape`.

    Args:
        operand: array.
        new_sizes: sizes of the result; -1 is not one, as in JAX.
        dimensions: order of the operand's dimensions to read it in; as they are when absent.

    Raises:
        TypeMismatchError: the numbers of elements differ, or `dimensions` is no permutation.
    """
    x = trace.as_value(operand)
    shape = sizes("reshape", new_sizes)
    if dimensions is not None:
        x = transpose(x, dimensions)
    return x if x.shape == shape else trace.bind1(reshape_p, x, shape=shape, ndim=x.ndim)


def squeeze(array: ArrayLike, dimensions: Sequence[int]) -> Value:
    """Drop dimensions of size 1.

    Raises:
        ValueMismatchError: one has another size, does not exist or occurs twice.
    """
    x = trace.as_value(array)
    dropped = distinct("squeeze", dimensions, x.ndim, allow_negative=True)
    if any(x.shape[d] != 1 for d in dropped):
        raise errors.ValueMismatchError(
            "squeeze: a dimension is not of size 1", got=f"{x.type}, dimensions {tuple(dimensions)}"
        )
    return reshape(x, [n for d, n in enumerate(x.shape) if d not in dropped])


def expand_dims(array: ArrayLike, dimensions: Sequence[int]) -> Value:
    """Insert dimensions of size 1 at these positions of the result.

    Raises:
        ValueMismatchError: a position does not exist or occurs twice.
    """
    x = trace.as_value(array)
    ndim = x.ndim + len(dimensions)
    added = distinct("expand_dims", dimensions, ndim, allow_negative=True)
    kept = iter(x.shape)
    return reshape(x, [1 if d in added else next(kept) for d in range(ndim)])


def collapse(operand: ArrayLike, start_dimension: int, stop_dimension: int | None = None) -> Value:
    """Merge the dimensions from `start_dimension` up to `stop_dimension` (the end when absent) into one.

    Raises:
        ValueMismatchError: the range ends before it starts.
    """
    x = trace.as_value(operand)
    start, stop, _ = slice(start_dimension, stop_dimension).indices(x.ndim)
    if stop < start:
        raise errors.ValueMismatchError(
            "collapse: the range of dimensions ends before it starts",
            got=f"{start_dimension} to {stop_dimension} of {x.type}",
        )
    return reshape(x, (*x.shape[:start], families.prod(x.shape[start:stop]), *x.shape[stop:]))


# --- transpose -----------------------------------------------------------------------------


def _signature_transpose(*, permutation: tuple[int, ...]) -> Signature:
    names = letters(len(permutation))
    return Signature((names,), (tuple(names[p] for p in permutation),))


def _full_permutation(ndim: int, permutation: tuple[int, ...]) -> tuple[int, ...]:
    return (*range(ndim - len(permutation)), *(p + ndim for p in permutation))


transpose_p: Primitive = view(
    "transpose",
    _signature_transpose,
    families.type_from_signature("transpose", _signature_transpose, dtypes.ALL, lambda x, **_: x.dtype),
    lambda x, *, permutation: x.transpose(_full_permutation(x.ndim, permutation)),
    lambda ct, x, *, permutation: (
        trace.bind1(
            transpose_p,
            ct,
            permutation=tuple(int(i) - len(permutation) for i in np.argsort(permutation)),
        ),
    ),
    place=places.every_letter(),
    examples=[moves(Sample((2, 3, 4)), permutation=p) for p in ((-1, -3, -2), (-1, -2))],
)


def transpose(operand: ArrayLike, permutation: Sequence[int]) -> Value:
    """Permute dimensions: dimension `i` of the result is dimension `permutation[i]` of the operand.

    Raises:
        TypeMismatchError: `permutation` is none.
    """
    x = trace.as_value(operand)
    order = [int(p) for p in permutation]
    if sorted(order) != list(range(x.ndim)):
        raise errors.TypeMismatchError(
            "transpose: this is not a permutation of the dimensions",
            got=f"{tuple(order)} for {x.type}",
            expected=f"the numbers from 0 to {x.ndim - 1}, in any order" if x.ndim else "nothing",
        )
    if order == list(range(x.ndim)):
        return x
    first = next(i for i, p in enumerate(order) if i != p)
    return trace.bind1(transpose_p, x, permutation=tuple(p - x.ndim for p in order[first:]))


# --- rev -----------------------------------------------------------------------------------


def _signature_rev(*, axes: tuple[int, ...]) -> Signature:
    names = letters(max((-a for a in axes), default=0))
    return Signature((names,), (names,))


rev_p: Primitive = view(
    "rev",
    _signature_rev,
    families.type_from_signature("rev", _signature_rev, dtypes.ALL, lambda x, **_: x.dtype),
    lambda x, *, axes: np.flip(x, axes),
    lambda ct, x, *, axes: (trace.bind1(rev_p, ct, axes=axes),),
    place=places.every_dimension,
    partition=borders.partition_rev,
    examples=[moves(Sample((3, 4)), axes=(-1,)), moves(Sample((3, 4)), axes=(-2, -1))],
)


def rev(operand: ArrayLike, dimensions: Sequence[int]) -> Value:
    """Reverse the order of elements along some dimensions.

    Raises:
        TypeMismatchError: one does not exist, is negative or occurs twice.
    """
    x = trace.as_value(operand)
    axes = tuple(sorted(d - x.ndim for d in distinct("rev", dimensions, x.ndim, allow_negative=False)))
    return trace.bind1(rev_p, x, axes=axes) if axes else x
