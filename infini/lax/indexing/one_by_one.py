"""What a combining scatter means, in other operations: for backends and dtypes without code of their own.

8-bit floats are combined in float32 and rounded once; everything else window by window, in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from infini.core import dtypes, primitive, trace
from infini.core.value import Value
from infini.lax import families, loops
from infini.lax.indexing.dimension_numbers import (
    GatherDimensionNumbers,
    ScatterDimensionNumbers,
    window_axes,
)

_FLOAT8 = (dtypes.float8_e4m3fn, dtypes.float8_e5m2)


def decompose(name: str, combine: str) -> Callable[..., list[Value]]:
    """DECOMPOSE of the scatter `name`, whose windows combine by the elementwise operation `combine`."""

    def rule(operand: Value, indices: Value, updates: Value, **attrs: Any) -> list[Value]:
        if operand.dtype in _FLOAT8:
            wide = _converted(operand, dtypes.float32), indices, _converted(updates, dtypes.float32)
            return [_converted(trace.bind1(primitive.by_name(name), *wide, **attrs), operand.dtype)]
        return [_in_order(combine, operand, indices, updates, attrs["dimension_numbers"], attrs["mode"])]

    return rule


def _converted(x: Value, dtype: Any) -> Value:  # Any: a dtype
    return trace.bind1(primitive.by_name("convert_element_type"), x, new_dtype=dtype)


def _reshaped(x: Value, *shape: int) -> Value:
    return trace.bind1(primitive.by_name("reshape"), x, shape=shape, ndim=x.ndim)


def _in_order(
    combine: str, operand: Value, indices: Value, updates: Value, numbers: ScatterDimensionNumbers, mode: str
) -> Value:
    sizes = numbers.slice_sizes(operand.shape, updates.shape)
    dn = numbers.as_gather
    window = dn.window_of(sizes)
    batch = indices.shape[:-1]
    count = families.prod(batch)
    if not count:
        return operand
    order = [d - updates.ndim for d in window_axes(dn, updates.ndim)]
    rows = trace.bind1(primitive.by_name("transpose"), updates, permutation=tuple(order))
    rows = _reshaped(rows, count, *window)
    # Places along batching dimensions become columns of the indices.
    columns = [_converted(indices, dtypes.int64)] + [
        trace.bind1(primitive.by_name("iota"), shape=(*batch, 1), dimension=where, dtype=dtypes.int64)
        for where in dn.start_indices_batching_dims
    ]
    starts = (
        columns[0] if len(columns) == 1 else trace.bind1(primitive.by_name("concatenate"), *columns, axis=-1)
    )
    starts = _reshaped(starts, count, starts.shape[-1])
    one = GatherDimensionNumbers(
        tuple(range(len(window))), tuple(sorted(dn.dropped)), dn.start_index_map + dn.operand_batching_dims
    )

    def body(i: Value, x: Value) -> Value:
        start, given = (_reshaped(_row(table, i), *table.shape[1:]) for table in (starts, rows))
        there = trace.bind1(
            primitive.by_name("gather"), x, start, dimension_numbers=one, slice_sizes=sizes, mode=mode,
            fill_value=None, unique_indices=True,
        )  # fmt: skip
        new = trace.bind1(primitive.by_name(combine), there, given)
        return trace.bind1(
            primitive.by_name("scatter"), x, start, new, dimension_numbers=one.as_scatter, mode=mode,
            unique_indices=True,
        )  # fmt: skip

    result: Value = loops.fori_loop(0, count, body, operand)
    return result


def _row(table: Value, i: Value) -> Value:
    rest = [trace.as_value(0)] * (table.ndim - 1)
    return trace.bind1(primitive.by_name("dynamic_slice"), table, i, *rest, slice_sizes=(1, *table.shape[1:]))
