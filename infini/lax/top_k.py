"""The k largest elements along the last core dimension, with their places.

The order is the total order of IEEE 754, as in JAX: NaN is above infinity, NaN with a sign below minus
infinity, and +0 above -0. Of equal elements the first comes first.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Collection, Sequence
from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType, Attrs
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax import cases, elementwise as e, families, places, reduction, sorting, view
from infini.lax.cases import ANYTHING, Case, Sample, Span
from infini.lax.families import bind_scalars

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers


def _type(x: ArrayType, *, k: int) -> tuple[ArrayType, ...]:
    families.accept("top_k", reduction.ORDERED, [x])
    if x.ndim < 1 or not 0 <= k <= x.shape[-1]:
        raise errors.ValueMismatchError(
            "top_k: k is not between 0 and the size of the axis", got=f"k={k} of {x}"
        )
    shape = (*x.shape[:-1], k)
    return ArrayType(shape, x.dtype), ArrayType(shape, dtypes.int32)


def _ranks(x: np.ndarray) -> np.ndarray:
    """Integers in the total order of the elements."""
    if x.dtype == dtypes.bool_:
        return x.astype(np.int8)
    if x.dtype not in dtypes.FLOATS:
        return x
    bits = x.view(np.dtype(f"int{8 * x.dtype.itemsize}"))
    return np.where(bits < 0, bits ^ np.iinfo(bits.dtype).max, bits)


def _reference(x: np.ndarray, *, k: int) -> tuple[np.ndarray, np.ndarray]:
    descending = np.invert(_ranks(np.ascontiguousarray(x)))  # turns the order round without overflow
    order = np.argsort(descending, axis=-1, kind="stable")[..., :k]
    return np.take_along_axis(x, order, -1), order.astype(np.int32)


def _jvp(
    primals: Sequence[Value], tangents: Sequence[Value | None], results: Sequence[Value], *, k: int
) -> tuple[Value | None, None]:
    (g,) = tangents
    return (None if g is None else sorting.take_last(g, results[1])), None


def _place(op: Primitive, in_types: places.Types, out_types: places.Types, attrs: Attrs) -> places.Factors:
    found = places.every_dimension(op, in_types, out_types, attrs)
    outputs = tuple((*dims[:-1], places.WHOLE) for dims in found.outputs)
    return dataclasses.replace(found, outputs=outputs)


def _tail(found: places.Factors, factors: Collection[str], attrs: Attrs) -> places.Tails:
    """TAIL of top_k: the last of the total order. Of equal elements the first is taken."""
    return places.tails_along(found, factors, (-1,), _last)


def _last(dtype: np.dtype) -> Any:  # Any: a number of that dtype
    return -np.nan if dtype in dtypes.FLOATS else reduction.lowest(dtype)


def _partition(part: places.Part, x: Value) -> tuple[Value, Value]:
    """The k largest of each part, of which every device takes the k largest. Parts lie in order, so of equal
    elements the first stays the first.
    """
    last, k = x.ndim - 1, part.attrs["k"]
    factor, length = f"d{last}", x.shape[-1]
    if part.count(factor) == 1 or k == 0:
        values, found = trace.bind(top_k_p, x, k=k)
        return values, found
    kept = min(k, length)
    if kept * (x.dtype.itemsize + dtypes.int32.itemsize) >= length * x.dtype.itemsize:
        values, found = trace.bind(top_k_p, part.gather(x, factor, last), k=k)
        return values, found
    values, found = trace.bind(top_k_p, x, k=kept)
    found = trace.bind1(e.add_p, found, part.start(factor, dtypes.int32))
    values, found = (part.gather(y, factor, last) for y in (values, found))
    best, order = trace.bind(top_k_p, values, k=k)
    return best, sorting.take_last(found, order)


def _total_order(x: Value) -> Value:
    """As `_ranks`."""
    if x.dtype not in dtypes.FLOATS:
        return e.convert_element_type(x, dtypes.int32) if x.dtype == dtypes.bool_ else x
    bits = e.bitcast_convert_type(x, np.dtype(f"int{8 * x.dtype.itemsize}"))
    mask = np.iinfo(bits.dtype).max
    flipped = bind_scalars(e.xor_p, bits, families.like(int(mask), bits))
    return bind_scalars(e.select_n_p, bind_scalars(e.lt_p, bits, 0), bits, flipped)


def _decompose(x: Value, *, k: int) -> tuple[Value, Value]:
    """The first k of a sort in the reversed order."""
    descending = trace.bind1(e.not_p, _total_order(x))
    _, values, places_ = trace.bind(
        sorting.sort_p, descending, x, sorting.positions(x), num_keys=1, is_stable=True
    )
    return view.slice_in_dim(values, 0, k, axis=-1), view.slice_in_dim(places_, 0, k, axis=-1)


_SPAN: Final = Span(-4.0, 4.0, (1.5, 4.0, 4.0, 0.0, 1.5, -0.0))

top_k_p: Primitive = primitive.register(
    Primitive(
        "top_k",
        Signature((("n",),), (("k",), ("k",))),
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.JVP: _jvp,
            primitive.PLACE: _place,
            primitive.PARTITION: _partition,
            primitive.TAIL: _tail,
            primitive.DECOMPOSE: _decompose,
            primitive.COST: families.PerElement(),
            primitive.WEAK: lambda weak, attrs: (weak[0], False),
            primitive.CASES: cases.always(
                reduction.ORDERED,
                *(
                    Case(
                        (Sample(shape, span=ANYTHING if is_smooth else _SPAN),), {"k": k}, "exact", is_smooth
                    )
                    for shape, k, is_smooth in (
                        ((3, 9), 4, False),
                        ((20,), 20, True),
                        ((5,), 1, True),
                        ((2, 70), 5, False),
                        ((3, 1), 1, True),
                    )
                ),
            ),
        },
    )
)


def top_k(operand: ArrayLike, k: int, *, axis: int = -1) -> tuple[Value, Value]:
    """The k largest elements along an axis in falling order, and their places.

    Of equal elements the first comes first; NaN is larger than everything.

    Args:
        operand: array of booleans or real numbers.
        k: how many, a Python integer.
        axis: axis to search along.

    Returns:
        The elements and their places (int32), both of size k along the axis.

    Raises:
        ValueMismatchError: k is negative or larger than the axis, the axis does not exist, or the operand is
            complex.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> lax.top_k(inp.array([3.0, 1.0, 4.0]), 2)
        (Array([4., 3.], dtype=float32), Array([2, 0], dtype=int32))
    """
    x = trace.as_value(operand)
    count = operator.index(k)
    if x.dtype in dtypes.COMPLEX:
        raise errors.ValueMismatchError("lax.top_k does not take complex arrays", got=str(x.type))
    place = families.normalize_axis(axis, x.ndim)
    if not 0 <= count <= x.shape[place]:
        raise errors.ValueMismatchError(
            "lax.top_k: k is not between 0 and the size of the axis",
            got=f"k={count}, axis {axis} of {x.type}",
        )
    values, found = trace.bind(top_k_p, sorting.to_last(x, place), k=count)
    return sorting.from_last(values, place), sorting.from_last(found, place)


def approx_max_k(
    operand: ArrayLike,
    k: int,
    reduction_dimension: int = -1,
    recall_target: float = 0.95,
    reduction_input_size_override: int = -1,
    aggregate_to_topk: bool = True,
) -> tuple[Value, Value]:
    """As `top_k`, of floats. The result is exact, whatever recall is asked for.

    Args:
        operand: array of floats.
        k: how many.
        reduction_dimension: axis to search along.
        recall_target: accepted for JAX's sake; the recall is 1.
        reduction_input_size_override: accepted for JAX's sake.
        aggregate_to_topk: accepted for JAX's sake; results are always of size k.

    Raises:
        ValueMismatchError: as `top_k`, or the operand is no array of floats.
    """
    return top_k(_floats("approx_max_k", operand), k, axis=reduction_dimension)


def approx_min_k(
    operand: ArrayLike,
    k: int,
    reduction_dimension: int = -1,
    recall_target: float = 0.95,
    reduction_input_size_override: int = -1,
    aggregate_to_topk: bool = True,
) -> tuple[Value, Value]:
    """The k smallest elements in rising order, and their places; arguments as those of `approx_max_k`."""
    x = _floats("approx_min_k", operand)
    values, found = top_k(e.neg(x), k, axis=reduction_dimension)
    return e.neg(values), found


def _floats(name: str, operand: ArrayLike) -> Value:
    x = trace.as_value(operand)
    if x.dtype not in dtypes.FLOATS:
        raise errors.ValueMismatchError(f"lax.{name} takes floats", got=str(x.type))
    return x
