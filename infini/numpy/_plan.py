"""From an index taken apart to the dimension numbers and index array of one gather or scatter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infini.core import dtypes, errors, ir, trace
from infini.core.value import Literal, Value
from infini.lax import elementwise as e, indexing as lax_indexing, view
from infini.lax.families import bind_scalars, broadcast_to
from infini.numpy._index import INT32_MAX, WIDE, Index, Item, Range, wrapped
from infini.numpy._promotion import convert


@dataclass(frozen=True, slots=True)
class Plan:
    """An index as gather and scatter see it.

    Args:
        indices: start of every window, (batch..., one column per indexed dimension).
        numbers: dimension numbers to read the windows.
        slice_sizes: size of one window along each dimension of the array.
        reversed_dims: dimensions of the windows in the result that run backwards.
        shape: shape of the result without new dimensions.
        final_shape: shape of the result.
        is_unique: whether no place can occur twice.
    """

    indices: Value
    numbers: lax_indexing.GatherDimensionNumbers
    slice_sizes: ir.Shape
    reversed_dims: tuple[int, ...]
    shape: ir.Shape
    final_shape: ir.Shape
    is_unique: bool


_BLOCK = -1  # stands for the dimensions that all arrays of an index share, where parts are listed by number


def plan(index: Index) -> Plan:
    """The plan of an index.

    Raises:
        IndexBroadcastError: the arrays do not broadcast.
    """
    parts, shape = index.parts, index.structure.shape
    block = _block_shape(parts)
    batch: list[int] = []
    result: list[int] = []
    final: list[int] = []
    offset_dims: list[int] = []
    reversed_dims: list[int] = []
    places: dict[int, int] = {}  # of a part's dimensions among those of the batch
    for number in _result_order(index):
        part = None if number == _BLOCK else parts[number]
        sizes = block if number == _BLOCK else (part.size,) if isinstance(part, Range) else ()
        if isinstance(part, Range) and part.step in (1, -1):
            offset_dims.append(len(result))
            reversed_dims += [len(result)] if part.step < 0 else []
        else:
            places[number] = len(batch)
            batch.extend(sizes)
        result.extend(sizes)
        final.extend(sizes if sizes or number == _BLOCK else (1,))
    columns: dict[int, Value] = {}
    dropped: list[int] = []
    window: list[int] = []
    numbered = [(i, part) for i, part in enumerate(parts) if part is not None]
    for dimension, (number, part) in enumerate(numbered):
        length = shape[dimension]
        if isinstance(part, Range) and part.step in (1, -1):
            window.append(part.size)
            if part.size != length:
                columns[dimension] = _aligned(_as_column(part.low, length), 0, batch)
            continue
        window.append(1)
        dropped.append(dimension)
        if isinstance(part, Range):
            columns[dimension] = _aligned(_positions(part), places[number], batch)
        else:
            column = _as_column(part, length)
            columns[dimension] = _aligned(column, places[_BLOCK] + len(block) - column.ndim, batch)
    return Plan(
        _stacked(list(columns.values()), tuple(batch)),
        lax_indexing.GatherDimensionNumbers(tuple(offset_dims), tuple(dropped), tuple(columns)),
        tuple(window),
        tuple(reversed_dims),
        tuple(result),
        tuple(final),
        index.is_basic,
    )


def _stacked(columns: list[Value], batch: ir.Shape) -> Value:
    if not columns:
        return Literal(np.zeros((*batch, 0), np.int32), weak=False)
    wide = dtypes.int64 if any(c.dtype in WIDE for c in columns) else dtypes.int32
    known = [c.host.astype(wide) for c in columns if isinstance(c, Literal)]
    if len(known) == len(columns):
        return Literal(np.stack(known, -1), weak=False)
    return view.concatenate([view.expand_dims(convert(c, wide), (len(batch),)) for c in columns], len(batch))


def _block_shape(parts: Sequence[Item]) -> ir.Shape:
    arrays = [part for part in parts if isinstance(part, Value)]
    try:
        return tuple(int(n) for n in np.broadcast_shapes(*(array.shape for array in arrays)))
    except ValueError:
        raise errors.IndexBroadcastError(
            "the arrays of an index do not broadcast",
            got=", ".join(str(array.type) for array in arrays),
            expected="shapes that broadcast together",
        ) from None


def _result_order(index: Index) -> list[int]:
    """Numbers of the parts that make dimensions, in the order of the result, with the block at its place."""
    taken = [i for i, part in enumerate(index.parts) if isinstance(part, (int, Value))]
    rest = [i for i in range(len(index.parts)) if i not in taken]
    before = [i for i in rest if i < taken[0]] if taken and index.structure.is_together else []
    return [*before, _BLOCK, *(i for i in rest if i not in before)]


def _positions(part: Range) -> Value:
    wide = dtypes.int64 if part.length > INT32_MAX else dtypes.int32
    count = view.iota(wide, part.size)
    count = view.rev(count, (0,)) if part.step < 0 else count
    scaled = bind_scalars(e.mul_p, count, abs(part.step))
    return trace.bind1(e.add_p, scaled, _as_column(part.low, part.length))


def _as_column(part: int | Value | None, length: int) -> Value:
    assert part is not None, "the operands of an index have been joined"
    return part if isinstance(part, Value) else wrapped(part, length, wraps=False)


def _aligned(column: Value, place: int, batch: Sequence[int]) -> Value:
    """A column whose dimensions stand at `place` among those of the batch, repeated along the others."""
    shape = (1,) * place + column.shape + (1,) * (len(batch) - place - column.ndim)
    if isinstance(column, Literal):
        return Literal(np.broadcast_to(column.host.reshape(shape), tuple(batch)), weak=False)
    return broadcast_to(view.reshape(column, shape), tuple(batch))
