"""How gather and scatter are split over devices.

Batch dimensions and whole windows are split as they are. An indexed dimension (the rows of an embedding
table) is split too: each device shifts the indices by the first row it holds and reads or writes those
that it has; parts of a gather add up.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from infini.core import dtypes, primitive, trace
from infini.core.ir import Attrs, Shape
from infini.core.value import Value
from infini.lax import families, reduction
from infini.lax.families import bind_scalars
from infini.lax.places import WHOLE, Dimension, Factors, Linear, Part, Reducer, Tails, Types, alone, zero

Numbers = Any  # Any: the dimension numbers of a gather, or of a scatter seen as one


def _factors_of(
    operand: Shape, num_batch: int, sizes: Shape, numbers: Numbers, clips: bool
) -> tuple[list[Dimension], list[Dimension]]:
    """Factors of the operand (`b` batch, `w` window, `v` indexed) and of the dimensions of a window."""
    batching = dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True))
    found: list[Dimension] = []
    window: list[Dimension] = []
    for d, (size, total) in enumerate(zip(sizes, operand, strict=True)):
        if d in batching:
            found.append((f"b{batching[d]}",))
        elif d in numbers.collapsed_slice_dims:
            found.append((f"v{d}",) if d in numbers.start_index_map else WHOLE)
        else:
            is_whole = size == total and (clips or d not in numbers.start_index_map)
            found.append((f"w{d}",) if is_whole else WHOLE)
            window.append(found[-1])
    return found, window


def _interleave(
    ndim: int, offset_dims: Sequence[int], window: Sequence[Dimension], batch: Sequence[Dimension]
) -> tuple[Dimension, ...]:
    windows, batches = iter(window), iter(batch)
    return tuple(next(windows) if d in offset_dims else next(batches) for d in range(ndim))


def place_gather(op: primitive.Primitive, in_types: Types, out_types: Types, attrs: Attrs) -> Factors:
    """PLACE of gather."""
    operand, indices = in_types
    numbers = attrs["dimension_numbers"]
    own, window = _factors_of(
        operand.shape, indices.ndim - 1, attrs["slice_sizes"], numbers, attrs["mode"] != "fill"
    )
    batch: list[Dimension] = [(f"b{i}",) for i in range(indices.ndim - 1)]
    out = _interleave(out_types[0].ndim, numbers.offset_dims, window, batch)
    sizes = {name: n for (name, *_), n in zip([d or ("",) for d in own], operand.shape, strict=True) if name}
    sizes.update((f"b{i}", n) for i, n in enumerate(indices.shape[:-1]))
    return Factors(
        (tuple(own), (*batch, WHOLE)), (out,), sizes, {name: "sum" for name in sizes if name.startswith("v")}
    )


def tail_gather(found: Factors, factors: Collection[str], attrs: Attrs) -> Tails:
    """TAIL of gather: rows behind the last one are never read. Indices have to be ones that there are."""
    return {
        name: (None, zero if (name,) in found.inputs[1] else None)
        for name in sorted(factors)
        if name.startswith("v") or all((name,) in dims for dims in found.outputs)
    }


def linear_gather(in_types: Types, out_types: Types, attrs: Attrs) -> Linear:
    """LINEAR of gather: what is filled in is no sum of terms, but for zero."""
    return alone(0) if attrs["mode"] != "fill" or attrs["fill_value"] == 0 else ()


def partition_gather(part: Part, operand: Value, indices: Value) -> tuple[Value]:
    """PARTITION of gather: read the rows this device has, zero for the others."""
    attrs, numbers = part.attrs, part.attrs["dimension_numbers"]
    whole = part.in_types[0].shape
    slice_sizes = tuple(
        local if size == n and size > 1 else size
        for size, n, local in zip(attrs["slice_sizes"], whole, operand.shape, strict=True)
    )
    starts = _starts(part, numbers.start_index_map)
    tails = [d for d in starts if part.has_tail(f"v{d}")]
    if not starts:
        return (trace.bind1(part.op, operand, indices, **attrs.replace(slice_sizes=slice_sizes)),)
    clips = attrs["mode"] != "fill"
    shifted, inside = _shifted(indices, numbers.start_index_map, starts, whole, clips, tails)
    local = attrs.replace(slice_sizes=slice_sizes, mode="fill", fill_value=0)
    found = trace.bind1(part.op, operand, shifted, **local)
    if attrs["mode"] != "fill" or attrs["fill_value"] == 0:
        return (found,)
    # What lies outside the whole array is filled once, by the first device.
    is_first = part.is_first(*(f"v{d}" for d in starts))
    assert is_first is not None
    is_later = trace.bind1(primitive.by_name("not"), is_first)
    keeps = trace.bind1(primitive.by_name("or"), inside, is_later)
    shape = tuple(1 if d in numbers.offset_dims else n for d, n in enumerate(found.shape))
    keeps = trace.bind1(primitive.by_name("reshape"), keeps, shape=shape, ndim=keeps.ndim)
    fill = families.default_fill(found.dtype) if attrs["fill_value"] is None else attrs["fill_value"]
    return (trace.bind1(primitive.by_name("select_n"), keeps, families.like(fill, found), found),)


def partition_update_slice(part: Part, operand: Value, update: Value, *starts: Value) -> tuple[Value]:
    """PARTITION of dynamic_update_slice: along a split dimension of which the update is one row, the device
    that has the row writes it, and the others what is there.
    """
    inside, local = None, list(starts)
    for d, (size, rows) in enumerate(zip(part.in_types[0].shape, part.in_types[1].shape, strict=True)):
        first = part.start(f"d{d}", dtypes.int64) if rows != size else None
        if first is None:
            continue
        place = starts[d]
        if place.dtype == dtypes.uint64:  # which has numbers that would become negative
            place = bind_scalars(primitive.by_name("min"), place, size - 1)
        place = trace.bind1(primitive.by_name("convert_element_type"), place, new_dtype=dtypes.int64)
        place = bind_scalars(primitive.by_name("max"), place, 0)
        place = bind_scalars(primitive.by_name("min"), place, size - 1)
        place = trace.bind1(primitive.by_name("sub"), place, first)
        low = bind_scalars(primitive.by_name("ge"), place, 0)
        high = bind_scalars(primitive.by_name("lt"), place, operand.shape[d])
        own = trace.bind1(primitive.by_name("and"), low, high)
        inside = own if inside is None else trace.bind1(primitive.by_name("and"), inside, own)
        local[d] = place
    if inside is not None:
        before = trace.bind1(primitive.by_name("dynamic_slice"), operand, *local, slice_sizes=update.shape)
        update = trace.bind1(primitive.by_name("select_n"), inside, before, update)
    return (trace.bind1(part.op, operand, update, *local),)


def _starts(part: Part, indexed: Sequence[int]) -> dict[int, Value]:
    """First row of this device for each indexed dimension that is split."""
    found = {d: part.start(f"v{d}", dtypes.int32) for d in indexed}
    return {d: start for d, start in found.items() if start is not None}


def _shifted(
    indices: Value, indexed: Sequence[int], starts: dict[int, Value], shape: Shape, clips: bool,
    tails: Collection[int] = (),
) -> tuple[Value, Value]:  # fmt: skip
    """Indices relative to the rows of this device, and which lay inside the whole array. Where parts have
    tails, the others point out of each of them.
    """
    columns, inside = [], None
    convert, reshape = primitive.by_name("convert_element_type"), primitive.by_name("reshape")
    rank = indices.ndim
    wide = dtypes.int64 if indices.dtype in (dtypes.int64, dtypes.uint32, dtypes.uint64) else dtypes.int32
    for number, d in enumerate(indexed):
        cut = (0,) * (rank - 1)
        column = trace.bind1(
            primitive.by_name("slice"),
            indices,
            start=(*cut, number),
            limit=(*indices.shape[:-1], number + 1),
            strides=(1,) * rank,
        )
        column = column if column.dtype == wide else trace.bind1(convert, column, new_dtype=wide)
        if d in starts:
            low = bind_scalars(primitive.by_name("ge"), column, 0)
            within = trace.bind1(
                primitive.by_name("and"), low, bind_scalars(primitive.by_name("lt"), column, shape[d])
            )
            inside = within if inside is None else trace.bind1(primitive.by_name("and"), inside, within)
            if clips:
                column = bind_scalars(primitive.by_name("max"), column, 0)
                column = bind_scalars(primitive.by_name("min"), column, shape[d] - 1)
            elif d in tails:
                column = bind_scalars(
                    primitive.by_name("select_n"), within, families.like(-1, column), column
                )
            start = starts[d] if wide == dtypes.int32 else trace.bind1(convert, starts[d], new_dtype=wide)
            column = trace.bind1(primitive.by_name("sub"), column, start)
        columns.append(column)
    assert inside is not None, "a split dimension is indexed"
    joined = (
        columns[0] if len(columns) == 1 else trace.bind1(primitive.by_name("concatenate"), *columns, axis=-1)
    )
    return joined, trace.bind1(reshape, inside, shape=indices.shape[:-1], ndim=rank)


def place_scatter(reducer: Reducer | None) -> Any:  # Any: a PLACE rule
    """PLACE of a scatter. The batch may be split where results of its parts combine by `reducer`."""

    def rule(op: primitive.Primitive, in_types: Types, out_types: Types, attrs: Attrs) -> Factors:
        operand, indices, updates = in_types
        numbers = attrs["dimension_numbers"].as_gather
        cut = attrs["dimension_numbers"].slice_sizes(operand.shape, updates.shape)
        own, window = _factors_of(operand.shape, indices.ndim - 1, cut, numbers, attrs["mode"] == "clip")
        kept = {name for d in own for name in d}
        batch = [(f"b{i}",) if reducer or f"b{i}" in kept else WHOLE for i in range(indices.ndim - 1)]
        moved = _interleave(updates.ndim, numbers.offset_dims, window, batch)
        sizes = {
            name: n for (name, *_), n in zip([d or ("",) for d in own], operand.shape, strict=True) if name
        }
        sizes.update((f"b{i}", n) for i, n in enumerate(indices.shape[:-1]))
        reduced = {name: reducer for (name,) in filter(None, batch) if reducer and name not in kept}
        return Factors((tuple(own), (*batch, WHOLE), moved), (tuple(own),), sizes, reduced)

    return rule


def tail_scatter(found: Factors, factors: Collection[str], attrs: Attrs) -> Tails:
    """TAIL of every scatter: what is behind the last window writes nothing new to the first row."""
    fills = {None: None, "sum": zero, "max": reduction.lowest, "min": reduction.highest}
    return {
        name: (None, zero if (name,) in found.inputs[1] else None, fills[found.reduced.get(name)])
        for name in sorted(factors)
    }


def partition_scatter(part: Part, operand: Value, indices: Value, updates: Value) -> tuple[Value]:
    """PARTITION of every scatter: write the rows this device has. What was there counts once in a sum."""
    attrs, numbers = part.attrs, part.attrs["dimension_numbers"]
    indexed = numbers.scatter_dims_to_operand_dims
    starts = _starts(part, indexed)
    if starts:
        indices, _ = _shifted(indices, indexed, starts, part.in_types[0].shape, attrs["mode"] == "clip")
        attrs = attrs.replace(mode="fill")
    if any(part.has_tail(f"b{i}") for i in range(indices.ndim - 1)):
        attrs = attrs.replace(unique_indices=False)  # those of tails are equal
    counts_once = part.is_first(*part.reduced) if part.op.name == "scatter_add" else None
    if counts_once is not None and not part.is_zero(0):
        operand = bind_scalars(primitive.by_name("select_n"), counts_once, families.like(0, operand), operand)
    return (trace.bind1(part.op, operand, indices, updates, **attrs),)
