"""Views that take a part at places known while tracing: slice, split, unstack."""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import errors, ir, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax import families
from infini.lax.cases import Sample
from infini.lax.families import letters
from infini.lax.view import borders
from infini.lax.view.declare import ArrayLike, moves, view
from infini.lax.view.shapes import squeeze


def _type(x: ArrayType, *, start: ir.Shape, limit: ir.Shape, strides: ir.Shape) -> tuple[ArrayType, ...]:
    rank = len(start)
    core = x.shape[x.ndim - rank :] if rank else ()
    for s, e, k, n in zip(start, limit, strides, core, strict=True):
        if not (0 <= s <= e <= n and k >= 1):
            raise errors.TypeMismatchError(
                "slice: bounds do not lie inside the array",
                got=f"{x}, start {start}, limit {limit}, strides {strides}",
                expected="0 <= start <= limit <= size and positive strides",
            )
    sizes = tuple(-(-(e - s) // k) for s, e, k in zip(start, limit, strides, strict=True))
    return (x.update(shape=x.shape[: x.ndim - rank] + sizes),)


def _reference(x: np.ndarray, *, start: ir.Shape, limit: ir.Shape, strides: ir.Shape) -> np.ndarray:
    cuts: list[Any] = [builtins.slice(s, e, k) for s, e, k in zip(start, limit, strides, strict=True)]
    return np.asarray(x[(..., *cuts)])


def _transpose(ct: Value, x: Any, *, start: ir.Shape, limit: ir.Shape, strides: ir.Shape) -> tuple[Value]:
    core = x.shape[x.ndim - len(start) :]
    sizes = ct.shape[ct.ndim - len(start) :]
    high = tuple(
        n - s - ((m - 1) * k + 1 if m else 0) for n, s, m, k in zip(core, start, sizes, strides, strict=True)
    )
    interior = tuple(k - 1 for k in strides)
    padded = trace.bind1(
        primitive.by_name("pad"), ct, families.like(0, ct), low=start, high=high, interior=interior
    )
    return (padded,)


slice_p: Primitive = view(
    "slice",
    lambda *, start, limit, strides: Signature((letters(len(start)),), (letters(len(start), "s"),)),
    _type,
    _reference,
    _transpose,
    place=borders.place_slice,
    partition=borders.partition_slice,
    examples=[
        moves(Sample((4, 7)), start=(1, 2), limit=(4, 7), strides=(1, 2)),
        moves(Sample((9,)), start=(8,), limit=(9,), strides=(1,)),
    ],
)


def slice(  # JAX's name
    operand: ArrayLike,
    start_indices: Sequence[int],
    limit_indices: Sequence[int],
    strides: Sequence[int] | None = None,
) -> Value:
    """Elements from `start_indices` up to `limit_indices` in steps of `strides`.

    Raises:
        ValueMismatchError: there is not one start, limit and stride per dimension.
        TypeMismatchError: the bounds do not lie inside the array.
    """
    x = trace.as_value(operand)
    start, limit = tuple(map(int, start_indices)), tuple(map(int, limit_indices))
    steps = tuple(map(int, strides)) if strides is not None else (1,) * len(start)
    if not len(start) == len(limit) == len(steps) == x.ndim:
        raise errors.ValueMismatchError(
            "slice needs one start, limit and stride per dimension",
            got=f"{x.type}, start {start}, limit {limit}, strides {steps}",
        )
    if start == (0,) * x.ndim and limit == x.shape and steps == (1,) * x.ndim:
        return x
    return trace.bind1(slice_p, x, start=start, limit=limit, strides=steps)


def slice_in_dim(
    operand: ArrayLike, start_index: int | None, limit_index: int | None, stride: int = 1, axis: int = 0
) -> Value:
    """A slice along one dimension; negative bounds count from the end.

    Raises:
        TypeMismatchError: the bounds do not lie inside the array.
        ValueMismatchError: there is no such dimension.
    """
    x = trace.as_value(operand)
    axis = families.normalize_axis(axis, x.ndim)
    size = x.shape[axis]
    bounds = [
        0 if start_index is None else int(start_index),
        size if limit_index is None else int(limit_index),
    ]
    first, last = (b + size if b < 0 else b for b in bounds)
    start, limit, steps = [0] * x.ndim, list(x.shape), [1] * x.ndim
    start[axis], limit[axis], steps[axis] = first, last, int(stride)
    return slice(x, start, limit, steps)


def index_in_dim(operand: ArrayLike, index: int, axis: int = 0, keepdims: bool = True) -> Value:
    """One index along one dimension, known while tracing; the dimension stays, of size 1, if `keepdims`.

    Raises:
        IndexOutOfRangeError: the index lies outside.
    """
    x = trace.as_value(operand)
    axis = families.normalize_axis(axis, x.ndim)
    number, size = int(index), x.shape[axis]
    if not -size <= number < size:
        raise errors.IndexOutOfRangeError(
            f"index {number} lies outside dimension {axis}",
            got=str(x.type),
            expected=f"{-size} to {size - 1}" if size else "no index at all",
        )
    number %= size
    found = slice_in_dim(x, number, number + 1, axis=axis)
    return found if keepdims else squeeze(found, (axis,))


def split(operand: ArrayLike, sizes: Sequence[int], axis: int = 0) -> list[Value]:
    """Cut an array along a dimension into parts of these sizes.

    Raises:
        ValueMismatchError: a size is negative, or they do not sum to that of the dimension.
    """
    x = trace.as_value(operand)
    place, parts = families.normalize_axis(axis, x.ndim), [int(n) for n in sizes]
    if any(n < 0 for n in parts) or sum(parts) != x.shape[place]:
        raise errors.ValueMismatchError(
            "split: the sizes do not make up the dimension",
            got=f"{parts} along dimension {place} of {x.type}",
            expected=f"sizes of at least 0 that sum to {x.shape[place]}",
        )
    bounds = [0, *itertools.accumulate(parts)]
    return [slice_in_dim(x, a, b, axis=place) for a, b in itertools.pairwise(bounds)]


def unstack(x: ArrayLike, axis: int = 0) -> tuple[Value, ...]:
    """The parts of an array along a dimension, without that dimension.

    Raises:
        ValueMismatchError: there is no such dimension.
    """
    value = trace.as_value(x)
    place = families.normalize_axis(axis, value.ndim)
    return tuple(index_in_dim(value, i, place, keepdims=False) for i in range(value.shape[place]))
