"""Sorting along the last core dimension: several operands move together, ordered by the first `num_keys`
of them. NaN comes last, zeros of both signs are equal, complex numbers are ordered lexicographically.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType, Attrs
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import cases, families, indexing, neighbours, places, reduction
from infini.lax.cases import Case, Sample, Span

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers
_TIED: Final = Span(-4.0, 4.0, (0.0, 1.5, -0.0, float("nan"), 1.5))


def _type(*types: ArrayType, num_keys: int, is_stable: bool) -> tuple[ArrayType, ...]:
    families.accept("sort", dtypes.ALL, types)
    if any(t.ndim < 1 for t in types) or any(t.shape != types[0].shape for t in types):
        raise errors.TypeMismatchError(
            "sort needs operands of one shape with a dimension", got=", ".join(map(str, types))
        )
    return types


def _numbers(x: np.ndarray) -> list[np.ndarray]:
    """Arrays of numbers that NumPy orders as the elements, the most significant first."""
    if x.dtype in dtypes.COMPLEX:
        return [x.real, x.imag]
    return [x.astype(np.float32) if x.dtype in dtypes.FLOATS and x.dtype.itemsize <= 2 else x]


def _reference(*xs: np.ndarray, num_keys: int, is_stable: bool) -> tuple[np.ndarray, ...]:
    keys = [key for x in xs[:num_keys] for key in _numbers(x)]
    order = np.lexsort(keys[::-1], axis=-1)
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
    *_, order = trace.bind(sort_p, *primals, positions(primals[0]), num_keys=num_keys, is_stable=is_stable)
    return tuple(None if t is None else take_last(t, order) for t in tangents)


def positions(x: Value) -> Value:
    """The place of each element along the last dimension, int32."""
    return trace.bind1(primitive.by_name("iota"), shape=x.shape, dimension=x.ndim - 1, dtype=dtypes.int32)


def take_last(x: Value, order: Value) -> Value:
    """`x[..., order]` row by row along the last dimension, indices in bounds."""
    if 0 in order.shape:
        return families.zeros(ArrayType(order.shape, x.dtype))
    batch = tuple(range(x.ndim - 1))
    indices = trace.bind1(primitive.by_name("reshape"), order, shape=(*order.shape, 1), ndim=order.ndim)
    numbers = indexing.GatherDimensionNumbers((), (x.ndim - 1,), (x.ndim - 1,), batch, batch)
    return indexing.gather(x, indices, numbers, (1,) * x.ndim, mode="promise_in_bounds")


def _batch(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:  # Any: see transforms.batching
    moved = families.whole_batches(ctx.size, args, batched)
    return trace.bind(sort_p, *moved, **attrs), (True,) * len(args)


def _last(dtype: np.dtype) -> Any:  # Any: a number of that dtype
    """What nothing is sorted behind."""
    if dtype in dtypes.COMPLEX:
        return complex(np.nan, np.nan)
    return np.nan if dtype in dtypes.FLOATS else reduction.highest(dtype)


def _tail(found: places.Factors, factors: Collection[str], attrs: Attrs) -> places.Tails:
    """TAIL of a sort: it stays at the end."""
    num_keys = attrs["num_keys"]
    fills = [_last] * num_keys + [None] * (len(found.inputs) - num_keys)
    return places.tails_along(found, factors, (-1,), *fills)


def _partition(part: places.Part, *xs: Value) -> tuple[Value, ...]:
    """Whole rows on each device while they are sorted, where there are rows enough; else whole arrays."""
    last = xs[0].ndim - 1
    factor, length = f"d{last}", xs[0].shape[-1]
    count = part.count(factor)
    if count == 1:
        return trace.bind(sort_p, *xs, **part.attrs)
    # Where the last element of an order occurs, the tail goes behind it.
    attrs = part.attrs.replace(is_stable=part.attrs["is_stable"] or part.has_tail(factor))
    rows = next((d for d in range(last) if xs[0].shape[d] and xs[0].shape[d] % count == 0), None)
    if rows is None:
        whole = [part.gather(x, factor, last) for x in xs]
        start = neighbours.by_device(part, factor, [i * length for i in range(count)])
        found = trace.bind(sort_p, *whole, **attrs)
        return tuple(neighbours.cut(x, last, start, length) for x in found)
    moved = [part.exchange(x, factor, rows, last) for x in xs]
    found = trace.bind(sort_p, *moved, **attrs)
    return tuple(part.exchange(x, factor, rows, last, is_back=True) for x in found)


def _cost(types: Sequence[ArrayType], attrs: Attrs) -> float:
    """Comparisons of a sort by merging."""
    length = types[0].shape[-1]
    return float(types[0].size * max(length - 1, 0).bit_length() * attrs["num_keys"])


def _case(*operands: Sample, num_keys: int = 1, is_smooth: bool = True) -> Case:
    return Case(operands, {"num_keys": num_keys, "is_stable": True}, "exact", is_smooth)


sort_p: Primitive = primitive.register(
    Primitive(
        "sort",
        None,
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.JVP: _jvp,
            primitive.BATCH: _batch,
            primitive.PLACE: places.every_dimension,
            primitive.PARTITION: _partition,
            primitive.TAIL: _tail,
            primitive.COST: _cost,
            primitive.CASES: cases.always(
                dtypes.ALL,
                _case(Sample((3, 9))),
                _case(Sample((21,), span=_TIED), Sample((21,), dtypes.float32), is_smooth=False),
                _case(Sample((2, 1))),
                _case(
                    Sample((40,), dtypes.int8, Span(0, 2)),
                    Sample((40,)),
                    Sample((40,), dtypes.int32),
                    num_keys=2,
                ),
                _case(Sample((300,), span=_TIED), is_smooth=False),
            ),
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
        TypeMismatchError: shapes differ, or there is no operand.
        ValueMismatchError: the dimension does not exist, or `num_keys` is not between 1 and the number of
            operands.
    """
    is_many = isinstance(operand, (tuple, list))
    values = [trace.as_value(x) for x in (operand if is_many else [operand])]
    if not values:
        raise errors.TypeMismatchError("lax.sort needs at least one operand")
    if not 1 <= num_keys <= len(values):
        raise errors.ValueMismatchError(
            "lax.sort: num_keys is not between 1 and the number of operands", got=str(num_keys)
        )
    if any(x.shape != values[0].shape for x in values):
        raise errors.TypeMismatchError(
            "lax.sort needs operands of one shape", got=", ".join(str(x.type) for x in values)
        )
    axis = families.normalize_axis(dimension, values[0].ndim)
    moved = [to_last(x, axis) for x in values]
    results = tuple(from_last(x, axis) for x in trace.bind(sort_p, *moved, num_keys=num_keys, is_stable=True))
    return results if is_many else results[0]


def to_last(x: Value, axis: int) -> Value:
    """The array with one dimension, counted from 0, moved to the end."""
    if axis == x.ndim - 1:
        return x
    order = (*range(axis + 1 - x.ndim, 0), axis - x.ndim)
    return trace.bind1(primitive.by_name("transpose"), x, permutation=order)


def from_last(x: Value, axis: int) -> Value:
    """The inverse of `to_last`."""
    if axis == x.ndim - 1:
        return x
    order = (-1, *range(axis - x.ndim, -1))
    return trace.bind1(primitive.by_name("transpose"), x, permutation=order)


def sort_key_val(
    keys: ArrayLike, values: ArrayLike, dimension: int = -1, is_stable: bool = True
) -> tuple[Value, Value]:
    """Sort `keys` along a dimension, and `values` with them.

    Args:
        keys: array to sort.
        values: array of the same shape.
        dimension: dimension to sort along.
        is_stable: accepted for JAX's sake; infini's sort is always stable.

    Raises:
        TypeMismatchError: shapes differ.
    """
    first, second = sort((keys, values), dimension, is_stable, num_keys=1)
    return first, second
