"""Taking an index such as `x[1:, None, rows, ..., 0]` apart, by NumPy's rules, into what gather, scatter
and slices need.

An index without arrays is *basic*: bounds per dimension. With arrays it is *advanced*: integer arrays
broadcast together and their dimensions stand where the first of them stood, or in front when something lies
between them. Scalars count as arrays then.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from infini.core import dtypes, errors, ir, trace
from infini.core.value import Literal, Value
from infini.lax import elementwise as e, indexing as lax_indexing, view
from infini.lax.families import bind_scalars, broadcast_to
from infini.numpy._promotion import convert


@dataclass(frozen=True, slots=True)
class Range:
    """A slice of one dimension: `size` elements from `start` in steps of `step`, all inside; `length` is
    the dimension's size."""

    start: int
    size: int
    step: int
    length: int

    @property
    def is_whole(self) -> bool:
        """Whether it takes the dimension as it is."""
        return self.size == self.length and self.step == 1


Item: TypeAlias = int | Value | Range | None


def items(index: Any, shape: ir.Shape) -> tuple[Item, ...]:  # Any: whatever stands in brackets
    """The parts of an index, one or more per dimension: integers, scalar or array Values, Ranges, and None
    for new dimensions.

    Raises:
        IndexOutOfRangeError: there are more parts than dimensions, or a part is a slice with traced bounds.
        TypeMismatchError: a part is no integer, slice, None, Ellipsis or integer or boolean array.
        ConcretizationError: a boolean array is being traced.
    """
    parts = _without_masks(index if isinstance(index, tuple) else (index,), shape)
    taken = sum(part is not None and part is not Ellipsis for part in parts)
    if sum(part is Ellipsis for part in parts) > 1:
        raise errors.IndexOutOfRangeError("an index can only have one ellipsis", got=_show(index))
    if taken > len(shape):
        raise errors.IndexOutOfRangeError(
            f"too many indices: {taken} for {len(shape)} dimensions",
            got=f"shape {shape}, index {_show(index)}",
        )
    if not any(part is Ellipsis for part in parts):
        parts = [*parts, Ellipsis]
    place = next(i for i, part in enumerate(parts) if part is Ellipsis)
    parts[place : place + 1] = [slice(None)] * (len(shape) - taken)
    sizes = iter(shape)
    return tuple(None if part is None else _item(part, next(sizes)) for part in parts)


def _without_masks(parts: Sequence[Any], shape: ir.Shape) -> list[Any]:  # Any: as items
    result: list[Any] = []
    for part in parts:
        is_mask = (
            isinstance(part, (Value, np.ndarray, np.bool_)) and part.dtype == dtypes.bool_
        ) or isinstance(part, bool)
        result.extend(np.nonzero(_known_mask(part)) if is_mask else [part])
    return result


def _known_mask(mask: Any) -> np.ndarray:  # Any: boolean array
    if isinstance(mask, trace.Tracer) and mask.concrete() is None:
        raise errors.ConcretizationError(
            "a traced boolean mask cannot be an index, since the size of the result depends on it",
            got=str(mask.type),
            fix="use infini.numpy.where(mask, x, fill), or index outside jit",
        )
    host = np.asarray(mask)
    if host.ndim == 0:
        raise errors.TypeMismatchError(
            "a single boolean is no index",
            got=repr(mask),
            fix="use x[None] to add a dimension, or infini.numpy.where",
        )
    return host


def _item(part: Any, length: int) -> Item:  # Any: as items
    if isinstance(part, slice):
        try:
            start, stop, step = part.indices(length)
        except TypeError:
            raise errors.IndexOutOfRangeError(
                "the bounds of a slice have to be known",
                got=repr(part),
                expected="integers or None",
                fix="use lax.dynamic_slice for a slice of known size at a traced start",
            ) from None
        return Range(start, len(range(start, stop, step)), step, length)
    if isinstance(part, (Value, np.ndarray)) and part.dtype in dtypes.INTEGERS:
        value = trace.as_value(part)
        return value if value.ndim or not isinstance(value, Literal) else int(value.host)
    if isinstance(part, (Value, np.ndarray, list, tuple, str, float, complex, bool, np.inexact)):
        fix = (
            "wrap it in infini.numpy.asarray"
            if isinstance(part, (list, tuple))
            else "convert it to an integer first"
        )
        kind = str(part.type) if isinstance(part, Value) else f"{part!r} of type {type(part).__name__}"
        raise errors.TypeMismatchError(
            "this is not an index",
            got=kind,
            expected="integers, slices, None, ... or integer arrays",
            fix=fix,
        )
    try:
        return operator.index(part)
    except TypeError:
        raise errors.TypeMismatchError(
            "this is not an index",
            got=f"{part!r} of type {type(part).__name__}",
            expected="integers, slices, None, ...",
        ) from None


def _show(index: Any) -> str:  # Any: as items
    return ", ".join(
        str(part.type) if isinstance(part, Value) else repr(part)
        for part in (index if isinstance(index, tuple) else (index,))
    )


def is_basic(parts: Sequence[Item]) -> bool:
    """Whether no part is an array of one dimension or more."""
    return not any(isinstance(part, Value) and part.ndim for part in parts)


def is_static(parts: Sequence[Item]) -> bool:
    """Whether no part is an array at all."""
    return not any(isinstance(part, Value) for part in parts)


@dataclass(frozen=True, slots=True)
class Plan:
    """An advanced index as gather and scatter see it.

    Args:
        indices: start of every window, (batch..., one column per indexed dimension).
        columns: the indexed dimensions, in the order of the columns.
        window_dims: places of the whole dimensions in the result (without new dimensions).
        shape: shape of the result without new dimensions.
        final_shape: shape of the result.
    """

    indices: Value
    columns: tuple[int, ...]
    window_dims: tuple[int, ...]
    shape: ir.Shape
    final_shape: ir.Shape

    def gather_numbers(self) -> lax_indexing.GatherDimensionNumbers:
        """Dimension numbers to read the windows."""
        return lax_indexing.GatherDimensionNumbers(self.window_dims, self.columns, self.columns)

    def scatter_numbers(self) -> lax_indexing.ScatterDimensionNumbers:
        """Dimension numbers to write the windows."""
        return lax_indexing.ScatterDimensionNumbers(self.window_dims, self.columns, self.columns)

    def slice_sizes(self, shape: ir.Shape) -> ir.Shape:
        """Size of one window of an operand of `shape`."""
        return tuple(1 if d in self.columns else n for d, n in enumerate(shape))


_BLOCK = -1  # stands for the dimensions that all arrays of an index share, where parts are listed by number


def plan(parts: Sequence[Item], shape: ir.Shape) -> Plan:
    """The plan of an index with scalars or arrays; slices that are not whole become columns of positions.

    Args:
        parts: what `items` returned.
        shape: shape of the indexed array.

    Raises:
        IndexOutOfRangeError: the arrays do not broadcast.
    """
    block = _block_shape(parts)
    batch: list[int] = []
    result: list[int] = []
    final: list[int] = []
    window_dims: list[int] = []
    places: dict[int, int] = {}
    for number in _result_order(parts):
        part = None if number == _BLOCK else parts[number]
        sizes = block if number == _BLOCK else (part.size,) if isinstance(part, Range) else ()
        if isinstance(part, Range) and part.is_whole:
            window_dims.append(len(result))
        else:
            places[number] = len(batch)
            batch.extend(sizes)
        result.extend(sizes)
        final.extend(sizes if sizes or number == _BLOCK else (1,))
    dimensions, columns = iter(enumerate(shape)), {}
    for number, part in enumerate(parts):
        if part is None:
            continue
        dimension, length = next(dimensions)
        if isinstance(part, Range):
            if not part.is_whole:
                columns[dimension] = _aligned(_positions(part), places[number], len(batch))
        else:
            column = wrapped(part, length)
            columns[dimension] = _aligned(column, places[_BLOCK] + len(block) - column.ndim, len(batch))
    stacked = [
        view.expand_dims(broadcast_to(column, tuple(batch)), (len(batch),)) for column in columns.values()
    ]
    indices = view.concatenate(stacked, len(batch))
    return Plan(indices, tuple(columns), tuple(window_dims), tuple(result), tuple(final))


def _block_shape(parts: Sequence[Item]) -> ir.Shape:
    arrays = [part for part in parts if isinstance(part, Value)]
    try:
        return tuple(np.broadcast_shapes(*(array.shape for array in arrays)))
    except ValueError:
        raise errors.IndexOutOfRangeError(
            "the arrays of an index do not broadcast",
            got=", ".join(str(array.type) for array in arrays),
            expected="shapes that broadcast together",
        ) from None


def _result_order(parts: Sequence[Item]) -> list[int]:
    """Numbers of the parts that make dimensions, in the order of the result, with the block at its place."""
    indexed = [i for i, part in enumerate(parts) if isinstance(part, (int, Value))]
    rest = [i for i in range(len(parts)) if i not in indexed]
    is_together = indexed[-1] - indexed[0] + 1 == len(indexed)
    before = [i for i in rest if i < indexed[0]] if is_together else []
    return [*before, _BLOCK, *(i for i in rest if i not in before)]


def _positions(part: Range) -> Value:
    scaled = view.iota(dtypes.int32, part.size)
    if part.step != 1:
        scaled = bind_scalars(e.mul_p, scaled, part.step)
    return bind_scalars(e.add_p, scaled, part.start) if part.start else scaled


def wrapped(part: int | Value, length: int) -> Value:
    """An index as int32, negative numbers counted from the end."""
    if isinstance(part, int):
        return Literal(np.asarray(part + length if part < 0 else part, np.int32), weak=False)
    if isinstance(part, Literal):
        host = part.host.astype(np.int64)
        return Literal(np.where(host < 0, host + length, host).astype(np.int32), weak=False)
    wide = convert(part, dtypes.int32)
    if part.dtype in dtypes.UNSIGNED:
        return wide
    return trace.bind1(e.select_n_p, bind_scalars(e.lt_p, wide, 0), wide, bind_scalars(e.add_p, wide, length))


def _aligned(column: Value, place: int, rank: int) -> Value:
    """A column whose dimensions stand at `place` among `rank` batch dimensions."""
    return view.reshape(column, (1,) * place + column.shape + (1,) * (rank - place - column.ndim))


def whole(length: int) -> Range:
    """All of a dimension."""
    return Range(0, length, 1, length)


def basic_shape(parts: Sequence[Item]) -> ir.Shape:
    """Shape of the result of an index without arrays."""
    return tuple(
        1 if part is None else part.size for part in parts if part is None or isinstance(part, Range)
    )


def by_dimension(parts: tuple[Item, ...], shape: tuple[int, ...]) -> list[tuple[Item, int]]:
    """The parts that index a dimension, each with the size of its dimension."""
    return list(zip([part for part in parts if part is not None], shape, strict=True))


def clamped(part: Item, length: int) -> int | Value:
    """A scalar index counted from 0; Python integers are clamped here, run-time ones by the dynamic slice."""
    if isinstance(part, Value):
        return wrapped(part, length)
    assert isinstance(part, int)
    return min(max(part + length if part < 0 else part, 0), max(length - 1, 0))
