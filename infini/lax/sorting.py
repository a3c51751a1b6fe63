"""Sorting along the last core dimension: several operands move together, ordered by the first `num_keys`
of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import families, indexing, places

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers


def _type(*types: ArrayType, num_keys: int, is_stable: bool) -> tuple[ArrayType, ...]:
    families.accept("sort", dtypes.ALL - dtypes.COMPLEX, types[:num_keys])
    if any(t.ndim < 1 for t in types) or any(t.shape != types[0].shape for t in types):
        raise errors.TypeMismatchError(
            "sort needs operands of one shape with a dimension", got=", ".join(map(str, types))
        )
    return types


def _total_order(x: np.ndarray) -> np.ndarray:
    """Numbers whose order is that of the elements with NaN last and zeros equal."""
    return x.astype(np.float32) if x.dtype in dtypes.FLOATS and x.dtype.itemsize <= 2 else x


def _reference(*xs: np.ndarray, num_keys: int, is_stable: bool) -> tuple[np.ndarray, ...]:
    order = np.lexsort([_total_order(x) for x in reversed(xs[:num_keys])], axis=-1)
    return tuple(np.take_along_axis(x, order, -1) for x in xs)


def _jvp(
    primals: Sequence[Value],
    tangents: Sequence[Value | None],
    results: Sequence[Value],
    *,
    num_keys: int,
    is_stable: bool,
) -> tuple[Value | None, ...]:
    # Carry the positions along, then let every tangent follow them.
    x = primals[0]
    positions = trace.bind1(
        primitive.by_name("iota"), shape=x.shape, dimension=x.ndim - 1, dtype=dtypes.int32
    )
    *_, order = trace.bind(sort_p, *primals, positions, num_keys=num_keys, is_stable=is_stable)
    return tuple(None if t is None else take_last(t, order) for t in tangents)


def take_last(x: Value, order: Value) -> Value:
    """`x[..., order]` row by row along the last dimension, indices in bounds."""

    batch = tuple(range(x.ndim - 1))
    indices = trace.bind1(primitive.by_name("reshape"), order, shape=(*order.shape, 1), ndim=order.ndim)
    numbers = indexing.GatherDimensionNumbers((), (x.ndim - 1,), (x.ndim - 1,), batch, batch)
    return indexing.gather(x, indices, numbers, (1,) * x.ndim, mode="promise_in_bounds")


def _batch(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:  # Any: see transforms.batching
    moved = families.whole_batches(ctx.size, args, batched)
    return trace.bind(sort_p, *moved, **attrs), (True,) * len(args)


sort_p: Primitive = primitive.register(
    Primitive(
        "sort",
        None,
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.JVP: _jvp,
            primitive.BATCH: _batch,
            primitive.PLACE: places.place_axes,
            primitive.CASES: (frozenset(dtypes.ALL - dtypes.COMPLEX), (families.ANYTHING,)),
        },
    )
)


def sort(
    operand: ArrayLike | Sequence[ArrayLike], dimension: int = -1, is_stable: bool = True, num_keys: int = 1
) -> Any:  # Any: one array, or a tuple when several are given
    """Sort along a dimension; several operands move together. NaN comes last, zeros of both signs are equal.

    Args:
        operand: array, or arrays of one shape.
        dimension: dimension to sort along.
        is_stable: accepted for JAX's sake; infini's sort is always stable.
        num_keys: how many of the operands decide the order, most significant first.

    Raises:
        TypeMismatchError: shapes differ.
        ValueMismatchError: `num_keys` is not between 1 and the number of operands.
    """
    is_many = isinstance(operand, (tuple, list))
    values = [trace.as_value(x) for x in (operand if is_many else [operand])]
    if not 1 <= num_keys <= len(values):
        raise errors.ValueMismatchError(
            "sort: num_keys is not between 1 and the number of operands", got=str(num_keys)
        )
    axis = families.normalize_axis(dimension, values[0].ndim)
    swap = (
        None
        if axis == values[0].ndim - 1
        else (-1, *range(axis + 1 - values[0].ndim, -1), axis - values[0].ndim)
    )
    transpose = primitive.by_name("transpose")
    if swap is not None:
        values = [trace.bind1(transpose, x, permutation=swap) for x in values]
    results = trace.bind(sort_p, *values, num_keys=num_keys, is_stable=True)
    if swap is not None:
        results = tuple(trace.bind1(transpose, x, permutation=swap) for x in results)
    return results if is_many else results[0]
