"""Views that join arrays: concatenate, stack, tile."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import cases, families, places
from infini.lax.cases import Sample
from infini.lax.families import is_linear, linear_jvp
from infini.lax.view import borders
from infini.lax.view.broadcasting import broadcast_in_dim
from infini.lax.view.declare import ArrayLike, moves
from infini.lax.view.shapes import expand_dims, reshape
from infini.lax.view.slices import slice_p, unstack


def _type(*types: ArrayType, axis: int) -> tuple[ArrayType, ...]:
    families.same_dtype("concatenate")(*types)
    first = types[0]
    for t in types:
        same = t.ndim == first.ndim and all(
            n == m for i, (n, m) in enumerate(zip(t.shape, first.shape, strict=False)) if i - t.ndim != axis
        )
        if not same or t.ndim < -axis:
            raise errors.TypeMismatchError(
                "concatenate: shapes differ outside the joined dimension", got=", ".join(map(str, types))
            )
    shape = list(first.shape)
    shape[axis] = sum(t.shape[axis] for t in types)
    return (first.update(shape=tuple(shape)),)


def _transpose(ct: Value, *operands: Any, axis: int) -> tuple[Value | None, ...]:
    stops = list(itertools.accumulate(x.shape[axis] for x in operands))
    parts = []
    for x, stop in zip(operands, stops, strict=True):
        start, limit = [0] * ct.ndim, list(ct.shape)
        start[axis], limit[axis] = stop - x.shape[axis], stop
        rank = -axis
        parts.append(
            trace.bind1(
                slice_p, ct, start=tuple(start[-rank:]), limit=tuple(limit[-rank:]), strides=(1,) * rank
            )
            if is_linear(x)
            else None
        )
    return tuple(parts)


def _batch(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:  # Any: see transforms.batching
    size = ctx.size
    moved = families.whole_batches(size, args, batched)
    return trace.bind(concatenate_p, *moved, **attrs), (True,)


concatenate_p: Primitive = primitive.register(
    Primitive(
        "concatenate",
        None,
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: lambda *xs, axis: np.concatenate(xs, axis=axis),
            primitive.JVP: lambda primals, tangents, results, **attrs: linear_jvp(
                "concatenate", len(primals)
            )(primals, tangents, results, **attrs),
            primitive.TRANSPOSE: _transpose,
            primitive.BATCH: _batch,
            primitive.LINEAR: lambda types, *_: places.together(*range(len(types))),
            primitive.PLACE: borders.place_concatenate,
            primitive.PARTITION: borders.partition_concatenate,
            primitive.TAIL: places.tails_through,
            primitive.CASES: cases.always(
                dtypes.ALL,
                moves(Sample((2, 3)), Sample((2, 1)), Sample((2, 4)), axis=-1),
                moves(Sample((1, 3)), Sample((2, 3)), axis=-2),
            ),
        },
    )
)


def concatenate(operands: Any, dimension: int) -> Value:  # Any: a sequence of arrays, or an array of them
    """Join arrays along a dimension.

    Args:
        operands: arrays of one dtype whose shapes differ only along the dimension; an array stands for its
            parts along its first dimension.
        dimension: number from 0.

    Raises:
        ValueMismatchError: there are none.
        TypeMismatchError: shapes or dtypes differ elsewhere, or there is no such dimension.
    """
    values = list(unstack(operands)) if hasattr(operands, "ndim") else [trace.as_value(x) for x in operands]
    if not values:
        raise errors.ValueMismatchError("concatenate needs at least one array", got="none")
    ndim = values[0].ndim
    if not 0 <= dimension < ndim:
        raise errors.TypeMismatchError(
            "concatenate: there is no such dimension",
            got=f"dimension {dimension} of {', '.join(str(x.type) for x in values)}",
        )
    return values[0] if len(values) == 1 else trace.bind1(concatenate_p, *values, axis=dimension - ndim)


def stack(operands: Sequence[ArrayLike], axis: int = 0) -> Value:
    """Join arrays of one shape along a new dimension.

    Raises:
        ValueMismatchError: there are none, their shapes differ, or there is no such dimension.
        TypeMismatchError: their dtypes differ.
    """
    values = [trace.as_value(x) for x in operands]
    if not values or any(x.shape != values[0].shape for x in values):
        raise errors.ValueMismatchError(
            "stack needs arrays of one shape", got=", ".join(str(x.type) for x in values) or "none"
        )
    families.same_dtype("stack")(*(x.type for x in values))
    place = families.normalize_axis(axis, values[0].ndim + 1)
    return concatenate([expand_dims(x, (place,)) for x in values], place)


def tile(operand: ArrayLike, reps: Sequence[int]) -> Value:
    """Repeat a whole array along its dimensions.

    Args:
        operand: array.
        reps: how often along each dimension.

    Raises:
        TypeMismatchError: there is not one number per dimension, or one is negative.
    """
    x, counts = trace.as_value(operand), tuple(int(n) for n in reps)
    if len(counts) != x.ndim or any(n < 0 for n in counts):
        raise errors.TypeMismatchError(
            "tile needs one count per dimension",
            got=f"{counts} for {x.type}",
            expected="counts of at least 0",
        )
    pairs = [n for pair in zip(counts, x.shape, strict=True) for n in pair]
    repeated = broadcast_in_dim(x, pairs, range(1, 2 * x.ndim, 2))
    return reshape(repeated, [n * m for n, m in zip(counts, x.shape, strict=True)])
