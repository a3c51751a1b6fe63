"""Dynamic slices: blocks of static size at run-time starts, read or written; starts are clamped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors, ir, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive
from infini.core.value import Literal, Value
from infini.lax import cases, families, places
from infini.lax.cases import Case, Sample, Span
from infini.lax.families import bind_scalars, is_linear
from infini.lax.indexing.dimension_numbers import GatherDimensionNumbers, ScatterDimensionNumbers
from infini.lax.indexing.gather import batch_gather
from infini.lax.indexing.places import partition_update_slice
from infini.lax.indexing.scatter import scatter_p

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers


def _clamped(starts: Sequence[np.ndarray], shape: ir.Shape, sizes: ir.Shape) -> tuple[slice, ...]:
    first = [min(max(int(s), 0), n - m) for s, n, m in zip(starts, shape, sizes, strict=True)]
    return tuple(np.s_[i : i + m] for i, m in zip(first, sizes, strict=True))


def _check(name: str, operand: ArrayType, sizes: ir.Shape, starts: Sequence[ArrayType]) -> None:
    families.accept(f"{name} (start)", dtypes.INTEGERS, starts)
    counts = len(starts) == operand.ndim and len(sizes) == operand.ndim
    if not counts or any(s.ndim for s in starts):
        raise errors.TypeMismatchError(
            f"{name} needs one scalar start and one size per dimension",
            got=f"{operand}, {len(starts)} starts {', '.join(map(str, starts))}, sizes {tuple(sizes)}",
        )
    if any(not 0 <= m <= n for m, n in zip(sizes, operand.shape, strict=True)):
        raise errors.TypeMismatchError(
            f"{name}: a size is negative or larger than its dimension", got=f"{operand}, sizes {tuple(sizes)}"
        )


# --- dynamic_slice -----------------------------------------------------------------------------


def _type_slice(operand: ArrayType, *starts: ArrayType, slice_sizes: ir.Shape) -> tuple[ArrayType, ...]:
    _check("dynamic_slice", operand, slice_sizes, starts)
    return (operand.update(shape=tuple(slice_sizes)),)


def _jvp_slice(primals: Any, tangents: Any, results: Any, **attrs: Any) -> tuple[Value | None]:
    if tangents[0] is None:
        return (None,)
    return (trace.bind1(dynamic_slice_p, tangents[0], *primals[1:], **attrs),)


def _transpose_slice(
    ct: Value, operand: Any, *starts: Any, slice_sizes: ir.Shape
) -> tuple[Value | None, ...]:
    zeros = families.zeros(ArrayType(operand.shape, ct.dtype))
    return (trace.bind1(dynamic_update_slice_p, zeros, ct, *starts), *(None for _ in starts))


def _batch_slice(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:  # Any: see transforms.batching
    operand, *starts = args
    sizes = attrs["slice_sizes"]
    if not any(batched[1:]):
        return trace.bind(dynamic_slice_p, operand, 0, *starts, slice_sizes=(ctx.size, *sizes)), (True,)
    every = tuple(range(len(sizes)))
    gathered = {
        "dimension_numbers": GatherDimensionNumbers(every, (), every),
        "slice_sizes": sizes,
        "mode": "clip",
        "fill_value": None,
        "unique_indices": True,
    }
    indices = _stacked(ctx, starts, batched[1:])
    return batch_gather(ctx, (operand, indices), (batched[0], True), ir.Attrs(gathered))


def _stacked(ctx: Any, starts: Any, batched: Any) -> Value:
    """Starts as rows of indices, one per element of the batch."""
    wide = dtypes.int64 if any(s.dtype in _WIDE for s in starts) else dtypes.int32
    columns = []
    for start, is_batched in zip(starts, batched, strict=True):
        converted = trace.bind1(primitive.by_name("convert_element_type"), start, new_dtype=wide)
        column = converted if is_batched else families.broadcast_to(converted, (ctx.size,))
        columns.append(trace.bind1(primitive.by_name("reshape"), column, shape=(ctx.size, 1), ndim=1))
    if len(columns) == 1:
        return columns[0]
    return trace.bind1(primitive.by_name("concatenate"), *columns, axis=-1)


_WIDE = (dtypes.int64, dtypes.uint32, dtypes.uint64)
_START = Sample((), dtypes.int32, Span(-1, 4))


dynamic_slice_p: Primitive = primitive.register(
    Primitive(
        "dynamic_slice",
        None,
        {
            primitive.TYPE: _type_slice,
            primitive.REFERENCE: lambda x, *starts, slice_sizes: x[_clamped(starts, x.shape, slice_sizes)],
            primitive.JVP: _jvp_slice,
            primitive.TRANSPOSE: _transpose_slice,
            primitive.BATCH: _batch_slice,
            primitive.LINEAR: places.alone(0),
            primitive.PLACE: places.place_dynamic_slice,
            primitive.PARTITION: places.partition_dynamic_slice,
            primitive.TAIL: places.tails_through,
            primitive.WEAK: lambda weak, attrs: weak[0],
            primitive.CASES: cases.always(
                dtypes.ALL,
                Case((Sample((4, 5)), _START, _START), {"slice_sizes": (2, 3)}, "exact"),
                Case(
                    (Sample((6,)), Sample((), dtypes.uint8, Span(0, 9))), {"slice_sizes": (4,)}, "exact"
                ),
            ),
        },
    )
)  # fmt: skip


def wrapped_starts(
    shape: ir.Shape, starts: ArrayLike, allow_negative_indices: bool | Sequence[bool] = True
) -> list[Value]:
    """Starts as scalars counted from 0: negative ones count from the end where that is allowed.

    Args:
        shape: shape of the array.
        starts: one integer scalar per dimension, or a vector of them.
        allow_negative_indices: for all dimensions, or for each; without it negative starts are clamped to 0.

    Raises:
        ValueMismatchError: there are more or fewer starts than dimensions, or a known start is negative where
            that is not allowed.
        TypeMismatchError: a start is no integer.
    """
    values = [trace.as_value(s) for s in (starts if isinstance(starts, (list, tuple)) else list(starts))]
    flags = (
        [allow_negative_indices] * len(shape)
        if isinstance(allow_negative_indices, bool)
        else list(allow_negative_indices)
    )
    if not len(values) == len(shape) == len(flags):
        raise errors.ValueMismatchError(
            "a dynamic slice needs one start per dimension",
            got=f"{len(values)} starts for shape {shape}, allow_negative_indices={allow_negative_indices!r}",
        )
    families.accept("dynamic_slice (start)", dtypes.INTEGERS, [v.type for v in values])
    return [
        _wrapped(start, size) if wraps else _unwrapped(start)
        for start, size, wraps in zip(values, shape, flags, strict=True)
    ]


def _unwrapped(start: Value) -> Value:
    if isinstance(start, Literal) and int(start.host) < 0:
        raise errors.ValueMismatchError(
            "a start is negative", got=f"{int(start.host)} with allow_negative_indices=False",
            expected="a start of at least 0",
        )  # fmt: skip
    return start


def _wrapped(start: Value, size: int) -> Value:
    if isinstance(start, Literal) and not start.ndim:
        number = int(start.host)
        return trace.as_value(number + size if number < 0 else number)
    if start.dtype in dtypes.UNSIGNED:
        return start
    wide = start.dtype if start.dtype in _WIDE else dtypes.int32
    if start.dtype != wide:
        start = trace.bind1(primitive.by_name("convert_element_type"), start, new_dtype=wide)
    negative = bind_scalars(primitive.by_name("lt"), start, 0)
    moved = bind_scalars(primitive.by_name("add"), start, size)
    return trace.bind1(primitive.by_name("select_n"), negative, start, moved)


def dynamic_slice(
    operand: ArrayLike,
    start_indices: Sequence[ArrayLike],
    slice_sizes: Sequence[int],
    *,
    allow_negative_indices: bool | Sequence[bool] = True,
) -> Value:
    """A block of static size at run-time starts, which are clamped so that it lies inside.

    Args:
        operand: array to read.
        start_indices: one integer scalar per dimension, or a vector of them.
        slice_sizes: size of the block, static.
        allow_negative_indices: whether negative starts count from the end, for all dimensions or for each.

    Raises:
        ValueMismatchError: a start is missing.
        TypeMismatchError: a size is larger than its dimension, or a start is no integer.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> lax.dynamic_slice(inp.arange(5), (7,), (2,)).tolist()
        [3, 4]
    """
    x = trace.as_value(operand)
    starts = wrapped_starts(x.shape, start_indices, allow_negative_indices)
    return trace.bind1(dynamic_slice_p, x, *starts, slice_sizes=tuple(map(int, slice_sizes)))


def _in_dim(x: Value, start: ArrayLike, axis: int) -> tuple[int, list[ArrayLike]]:
    place = families.normalize_axis(axis, x.ndim)
    starts: list[ArrayLike] = [0] * x.ndim
    starts[place] = start
    return place, starts


def dynamic_slice_in_dim(
    operand: ArrayLike,
    start_index: ArrayLike,
    slice_size: int,
    axis: int = 0,
    *,
    allow_negative_indices: bool = True,
) -> Value:
    """`dynamic_slice` along one dimension; the others are taken whole."""
    x = trace.as_value(operand)
    place, starts = _in_dim(x, start_index, axis)
    sizes = [int(slice_size) if d == place else n for d, n in enumerate(x.shape)]
    return dynamic_slice(x, starts, sizes, allow_negative_indices=allow_negative_indices)


def dynamic_index_in_dim(
    operand: ArrayLike,
    index: ArrayLike,
    axis: int = 0,
    keepdims: bool = True,
    *,
    allow_negative_indices: bool = True,
) -> Value:
    """One index along one dimension, chosen at run time; the dimension stays, of size 1, if `keepdims`."""
    result = dynamic_slice_in_dim(operand, index, 1, axis, allow_negative_indices=allow_negative_indices)
    if keepdims:
        return result
    place = families.normalize_axis(axis, result.ndim)
    shape = tuple(n for d, n in enumerate(result.shape) if d != place)
    return trace.bind1(primitive.by_name("reshape"), result, shape=shape, ndim=result.ndim)


# --- dynamic_update_slice -----------------------------------------------------------------------


def _type_update(operand: ArrayType, update: ArrayType, *starts: ArrayType) -> tuple[ArrayType, ...]:
    families.same_dtype("dynamic_update_slice")(operand, update)
    if update.ndim != operand.ndim:
        raise errors.TypeMismatchError("dynamic_update_slice: ranks differ", got=f"{operand}, {update}")
    _check("dynamic_update_slice", operand, update.shape, starts)
    return (operand,)


def _reference_update(operand: np.ndarray, update: np.ndarray, *starts: np.ndarray) -> np.ndarray:
    out = operand.copy()
    out[_clamped(starts, operand.shape, update.shape)] = update
    return out


def _jvp_update(primals: Any, tangents: Any, results: Any) -> tuple[Value | None]:
    if tangents[0] is None and tangents[1] is None:
        return (None,)
    moved = families.filled(tangents[:2], [p.type for p in primals[:2]])
    return (trace.bind1(dynamic_update_slice_p, *moved, *primals[2:]),)


def _transpose_update(ct: Value, operand: Any, update: Any, *starts: Any) -> tuple[Value | None, ...]:
    operand_ct = update_ct = None
    if is_linear(operand):
        zeros = families.zeros(ArrayType(update.shape, ct.dtype))
        operand_ct = trace.bind1(dynamic_update_slice_p, ct, zeros, *starts)
    if is_linear(update):
        update_ct = trace.bind1(dynamic_slice_p, ct, *starts, slice_sizes=update.shape)
    return (operand_ct, update_ct, *(None for _ in starts))


def _batch_update(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:  # Any: see transforms.batching
    operand, update = families.whole_batches(ctx.size, args[:2], batched[:2])
    starts = args[2:]
    if not any(batched[2:]):
        return trace.bind(dynamic_update_slice_p, operand, update, 0, *starts), (True,)
    every = tuple(range(1, operand.ndim))
    dn = ScatterDimensionNumbers(every, (), every, (0,), (0,))
    indices = _stacked(ctx, starts, batched[2:])
    scattered = trace.bind(
        scatter_p, operand, indices, update, dimension_numbers=dn, mode="clip", unique_indices=True
    )
    return scattered, (True,)


dynamic_update_slice_p: Primitive = primitive.register(
    Primitive(
        "dynamic_update_slice",
        None,
        {
            primitive.TYPE: _type_update,
            primitive.REFERENCE: _reference_update,
            primitive.JVP: _jvp_update,
            primitive.TRANSPOSE: _transpose_update,
            primitive.BATCH: _batch_update,
            primitive.LINEAR: places.together(0, 1),
            primitive.PLACE: places.place_update_slice,
            primitive.PARTITION: partition_update_slice,
            primitive.TAIL: places.tails_through,
            primitive.WEAK: lambda weak, attrs: weak[0],
            primitive.CASES: cases.always(
                dtypes.ALL,
                Case((Sample((4, 5)), Sample((2, 3)), _START, _START), {}, "exact"),
                Case((Sample((6,)), Sample((4,)), Sample((), dtypes.uint8, Span(0, 9))), {}, "exact"),
            ),
        },
    )
)


def dynamic_update_slice(
    operand: ArrayLike,
    update: ArrayLike,
    start_indices: Sequence[ArrayLike],
    *,
    allow_negative_indices: bool | Sequence[bool] = True,
) -> Value:
    """A copy of `operand` with `update` written at run-time starts; in place under `jit` when the operand
    is dead.

    Args:
        operand: array to change.
        update: array of the same rank and dtype, not larger.
        start_indices: one integer scalar per dimension, or a vector of them; clamped so that the update lies
            inside.
        allow_negative_indices: whether negative starts count from the end, for all dimensions or for each.

    Raises:
        TypeMismatchError: dtypes or ranks differ, or the update is larger than the array.
    """
    x = trace.as_value(operand)
    starts = wrapped_starts(x.shape, start_indices, allow_negative_indices)
    return trace.bind1(dynamic_update_slice_p, x, families.like(update, x), *starts)


def dynamic_update_slice_in_dim(
    operand: ArrayLike,
    update: ArrayLike,
    start_index: ArrayLike,
    axis: int,
    *,
    allow_negative_indices: bool = True,
) -> Value:
    """`dynamic_update_slice` along one dimension."""
    x = trace.as_value(operand)
    _, starts = _in_dim(x, start_index, axis)
    return dynamic_update_slice(x, update, starts, allow_negative_indices=allow_negative_indices)


def dynamic_update_index_in_dim(
    operand: ArrayLike,
    update: ArrayLike,
    index: ArrayLike,
    axis: int,
    *,
    allow_negative_indices: bool = True,
) -> Value:
    """A copy of `operand` with one index along one dimension overwritten.

    Args:
        operand: array to change.
        update: what to write; it may lack the dimension.
        index: integer scalar, clamped.
        axis: the dimension.
        allow_negative_indices: whether a negative index counts from the end.
    """
    x = trace.as_value(operand)
    place = families.normalize_axis(axis, x.ndim)
    y = families.like(update, x)
    if y.ndim != x.ndim:
        if y.ndim != x.ndim - 1:
            raise errors.TypeMismatchError(
                "dynamic_update_index_in_dim: the update has neither the rank of the array nor one less",
                got=f"{x.type}, {y.type}",
            )
        y = trace.bind1(
            primitive.by_name("reshape"), y, shape=(*y.shape[:place], 1, *y.shape[place:]), ndim=y.ndim
        )
    return dynamic_update_slice_in_dim(x, y, index, place, allow_negative_indices=allow_negative_indices)
