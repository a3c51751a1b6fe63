"""Gather, scatter-add and dynamic slices, with JAX's dimension numbers and modes.

The batch rules use the batching dimensions of the dimension numbers, so a vmapped gather is one gather.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infini.core import dtypes, errors, ir, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import families, indexing_places, places
from infini.lax.families import is_linear

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers


class GatherScatterMode(enum.Enum):
    """What happens at indices outside the array: clip them, fill (reads) or drop (writes), or promise
    there are none.
    """

    CLIP = "clip"
    FILL_OR_DROP = "fill"
    PROMISE_IN_BOUNDS = "promise_in_bounds"

    @staticmethod
    def from_any(mode: GatherScatterMode | str | None) -> GatherScatterMode:
        """The mode with this name; None means fill or drop, as in JAX."""
        if isinstance(mode, GatherScatterMode):
            return mode
        named = {
            "clip": "clip",
            "fill": "fill",
            "drop": "fill",
            "promise_in_bounds": "promise_in_bounds",
            None: "fill",
        }
        if mode not in named:
            raise errors.ValueMismatchError(
                f"{mode!r} is not a gather or scatter mode", expected="clip, fill, drop or promise_in_bounds"
            )
        return GatherScatterMode(named[mode])


@ir.attribute
@dataclass(frozen=True, slots=True)
class GatherDimensionNumbers:
    """How the dimensions of a gather correspond, as `jax.lax.GatherDimensionNumbers`."""

    offset_dims: tuple[int, ...]
    collapsed_slice_dims: tuple[int, ...]
    start_index_map: tuple[int, ...]
    operand_batching_dims: tuple[int, ...] = ()
    start_indices_batching_dims: tuple[int, ...] = ()


@ir.attribute
@dataclass(frozen=True, slots=True)
class ScatterDimensionNumbers:
    """How the dimensions of a scatter correspond, as `jax.lax.ScatterDimensionNumbers`."""

    update_window_dims: tuple[int, ...]
    inserted_window_dims: tuple[int, ...]
    scatter_dims_to_operand_dims: tuple[int, ...]
    operand_batching_dims: tuple[int, ...] = ()
    scatter_indices_batching_dims: tuple[int, ...] = ()


# --- gather --------------------------------------------------------------------------------


def _type_gather(
    operand: ArrayType,
    indices: ArrayType,
    *,
    dimension_numbers: GatherDimensionNumbers,
    slice_sizes: ir.Shape,
    mode: str,
    fill_value: complex | None,
) -> tuple[ArrayType, ...]:
    dn = dimension_numbers
    families.accept("gather (indices)", dtypes.INTEGERS, [indices])
    if len(slice_sizes) != operand.ndim or any(
        s > n for s, n in zip(slice_sizes, operand.shape, strict=True)
    ):
        raise errors.TypeMismatchError(
            "gather: slice sizes do not fit the operand", got=f"{operand}, slice_sizes {slice_sizes}"
        )
    if indices.ndim == 0 or indices.shape[-1] != len(dn.start_index_map):
        raise errors.TypeMismatchError(
            "gather: the last dimension of the indices is one number per indexed dimension",
            got=f"indices {indices}, start_index_map {dn.start_index_map}",
        )
    dropped = {*dn.collapsed_slice_dims, *dn.operand_batching_dims}
    if any(slice_sizes[d] != 1 for d in dropped):
        raise errors.TypeMismatchError(
            "gather: collapsed and batching dimensions need slices of size 1", got=str(slice_sizes)
        )
    window = iter([s for d, s in enumerate(slice_sizes) if d not in dropped])
    batch = iter(indices.shape[:-1])
    ndim = len(dn.offset_dims) + indices.ndim - 1
    shape = tuple(next(window) if d in dn.offset_dims else next(batch) for d in range(ndim))
    return (ArrayType(shape, operand.dtype),)


def _window_positions(
    indices: np.ndarray, dn: GatherDimensionNumbers, operand_shape: ir.Shape, slice_sizes: ir.Shape, mode: str
) -> tuple[list[np.ndarray], np.ndarray, tuple[int, ...]]:
    """Operand index of every element of every window, shaped (batch..., window...), and which lie inside."""
    batch = indices.shape[:-1]
    ndim = len(operand_shape)
    starts = [np.zeros(batch, np.int64) for _ in range(ndim)]
    for column, d in enumerate(dn.start_index_map):
        starts[d] = indices[..., column].astype(np.int64)
    for d, where in zip(dn.operand_batching_dims, dn.start_indices_batching_dims, strict=True):
        starts[d] = np.broadcast_to(
            np.arange(batch[where]).reshape([-1 if i == where else 1 for i in range(len(batch))]), batch
        )
    limits = [n - s for n, s in zip(operand_shape, slice_sizes, strict=True)]
    inside = np.ones(batch, bool)
    for d in range(ndim):
        if mode != "fill":
            starts[d] = np.clip(starts[d], 0, limits[d])
        inside &= (starts[d] >= 0) & (starts[d] <= limits[d])
    dropped = {*dn.collapsed_slice_dims, *dn.operand_batching_dims}
    window = tuple(s for d, s in enumerate(slice_sizes) if d not in dropped)
    offsets = np.indices(window) if window else np.zeros((0,), int)
    positions, place = [], 0
    for d in range(ndim):
        start = starts[d].reshape(batch + (1,) * len(window))
        if d in dropped:
            positions.append(np.broadcast_to(start, batch + window))
        else:
            positions.append(start + offsets[place])
            place += 1
    return positions, np.broadcast_to(inside.reshape(batch + (1,) * len(window)), batch + window), window


def _reference_gather(
    operand: np.ndarray,
    indices: np.ndarray,
    *,
    dimension_numbers: GatherDimensionNumbers,
    slice_sizes: ir.Shape,
    mode: str,
    fill_value: complex | None,
) -> np.ndarray:
    dn = dimension_numbers
    positions, inside, window = _window_positions(indices, dn, operand.shape, slice_sizes, mode)
    fill = np.asarray(families.default_fill(operand.dtype) if fill_value is None else fill_value).astype(
        operand.dtype
    )
    if operand.size:
        found = (
            operand[tuple(np.where(inside, p, 0) for p in positions)]
            if operand.ndim
            else np.broadcast_to(operand, inside.shape)
        )
        found = np.where(inside, found, fill)
    else:
        found = np.full(inside.shape, fill)
    num_batch = indices.ndim - 1
    batch_axes = [d for d in range(num_batch + len(window)) if d not in dn.offset_dims]
    return np.moveaxis(found, range(found.ndim), [*batch_axes, *dn.offset_dims]).astype(operand.dtype)


def _jvp_gather(primals: Any, tangents: Any, results: Any, **attrs: Any) -> tuple[Value | None]:
    if tangents[0] is None:
        return (None,)
    # Outside the array the value is constant, so the tangent there is zero.
    return (trace.bind1(gather_p, tangents[0], primals[1], **{**attrs, "fill_value": 0}),)


def _transpose_gather(
    ct: Value,
    operand: Any,
    indices: Any,
    *,
    dimension_numbers: GatherDimensionNumbers,
    slice_sizes: ir.Shape,
    mode: str,
    fill_value: Any,
) -> tuple[Value, None]:
    dn = dimension_numbers
    scatter_dn = ScatterDimensionNumbers(
        dn.offset_dims,
        dn.collapsed_slice_dims,
        dn.start_index_map,
        dn.operand_batching_dims,
        dn.start_indices_batching_dims,
    )
    zeros = families.zeros(ArrayType(operand.shape, ct.dtype))
    return trace.bind1(scatter_add_p, zeros, indices, ct, dimension_numbers=scatter_dn, mode=mode), None


def _shifted(dims: tuple[int, ...]) -> tuple[int, ...]:
    """Dimension numbers after a leading dimension has been added."""
    return tuple(d + 1 for d in dims)


def _batch_gather(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:  # Any: see transforms.batching
    operand, indices = args
    dn: GatherDimensionNumbers = attrs["dimension_numbers"]
    if batched == (True, False):
        moved = GatherDimensionNumbers(
            (0, *_shifted(dn.offset_dims)),
            _shifted(dn.collapsed_slice_dims),
            _shifted(dn.start_index_map),
            _shifted(dn.operand_batching_dims),
            dn.start_indices_batching_dims,
        )
        sizes = (ctx.size, *attrs["slice_sizes"])
    elif batched == (False, True):
        moved = GatherDimensionNumbers(
            _shifted(dn.offset_dims),
            dn.collapsed_slice_dims,
            dn.start_index_map,
            dn.operand_batching_dims,
            _shifted(dn.start_indices_batching_dims),
        )
        sizes = attrs["slice_sizes"]
    else:
        moved = GatherDimensionNumbers(
            _shifted(dn.offset_dims),
            _shifted(dn.collapsed_slice_dims),
            _shifted(dn.start_index_map),
            (0, *_shifted(dn.operand_batching_dims)),
            (0, *_shifted(dn.start_indices_batching_dims)),
        )
        sizes = (1, *attrs["slice_sizes"])
    changed = attrs.replace(dimension_numbers=moved, slice_sizes=sizes)
    return trace.bind(gather_p, operand, indices, **changed), (True,)


gather_p: Primitive = primitive.register(
    Primitive(
        "gather",
        None,
        {
            primitive.TYPE: _type_gather,
            primitive.REFERENCE: _reference_gather,
            primitive.JVP: _jvp_gather,
            primitive.TRANSPOSE: _transpose_gather,
            primitive.BATCH: _batch_gather,
            primitive.PLACE: indexing_places.place_gather,
            primitive.PARTITION: indexing_places.partition_gather,
            primitive.WEAK: lambda weak, attrs: weak[0],
        },
    )
)


def gather(
    operand: ArrayLike,
    start_indices: ArrayLike,
    dimension_numbers: GatherDimensionNumbers,
    slice_sizes: Sequence[int],
    *,
    mode: GatherScatterMode | str | None = None,
    fill_value: Any = None,
) -> Value:
    """Slices of `operand` at `start_indices`, as `jax.lax.gather`.

    Args:
        operand: array to read.
        start_indices: integers; the last dimension holds one number per entry of `start_index_map`.
        dimension_numbers: correspondence of dimensions.
        slice_sizes: size of each slice, one per dimension of the operand.
        mode: what happens outside the array; fill when absent.
        fill_value: what fill mode reads there; NaN or an extreme integer when absent.
    """
    chosen = GatherScatterMode.from_any(mode).value
    return trace.bind1(
        gather_p,
        operand,
        start_indices,
        dimension_numbers=dimension_numbers,
        slice_sizes=tuple(map(int, slice_sizes)),
        mode=chosen,
        fill_value=fill_value,
    )


# --- scatter-add -----------------------------------------------------------------------------


def _as_gather(dn: ScatterDimensionNumbers) -> GatherDimensionNumbers:
    return GatherDimensionNumbers(
        dn.update_window_dims,
        dn.inserted_window_dims,
        dn.scatter_dims_to_operand_dims,
        dn.operand_batching_dims,
        dn.scatter_indices_batching_dims,
    )


def scatter_slice_sizes(operand: Any, updates: Any, dn: ScatterDimensionNumbers) -> ir.Shape:
    """Size of one window of a scatter, one number per dimension of the operand."""
    dropped = {*dn.inserted_window_dims, *dn.operand_batching_dims}
    window = iter([updates.shape[d] for d in dn.update_window_dims])
    return tuple(1 if d in dropped else next(window) for d in range(len(operand.shape)))


def _type_scatter(
    operand: ArrayType,
    indices: ArrayType,
    updates: ArrayType,
    *,
    dimension_numbers: ScatterDimensionNumbers,
    mode: str,
) -> tuple[ArrayType, ...]:
    families.same_dtype("scatter")(operand, updates)
    dn = dimension_numbers
    if (
        len(dn.update_window_dims) + len(dn.inserted_window_dims) + len(dn.operand_batching_dims)
        != operand.ndim
    ):
        raise errors.TypeMismatchError(
            "scatter: dimension numbers do not fit the operand", got=f"{operand}, {dn}"
        )
    sizes = scatter_slice_sizes(operand, updates, dn)
    (gathered,) = _type_gather(
        operand, indices, dimension_numbers=_as_gather(dn), slice_sizes=sizes, mode=mode, fill_value=None
    )
    if gathered.shape != updates.shape:
        raise errors.TypeMismatchError(
            "scatter: updates have another shape than the slices", got=str(updates), expected=str(gathered)
        )
    return (operand,)


def _reference_scatter(ufunc: Any) -> Any:  # Any: a NumPy ufunc, a REFERENCE rule
    def rule(
        operand: np.ndarray, indices: np.ndarray, updates: np.ndarray, *, dimension_numbers: Any, mode: str
    ) -> np.ndarray:
        dn = _as_gather(dimension_numbers)
        sizes = scatter_slice_sizes(operand, updates, dimension_numbers)
        positions, inside, _ = _window_positions(indices, dn, operand.shape, sizes, mode)
        num_batch = indices.ndim - 1
        batch_axes = [d for d in range(updates.ndim) if d not in dn.offset_dims]
        moved = np.moveaxis(updates, [*batch_axes[:num_batch], *dn.offset_dims], range(updates.ndim))
        wide = np.float32 if operand.dtype in dtypes.FLOATS and operand.dtype.itemsize <= 2 else operand.dtype
        out = operand.astype(wide)
        target = tuple(p[inside] for p in positions)
        if ufunc is None:
            out[target] = moved[inside].astype(wide)
        else:
            ufunc.at(
                out, target if target else (), moved[inside].astype(wide) if target else moved.astype(wide)
            )
        return out.astype(operand.dtype)

    return rule


def _jvp_scatter_add(primals: Any, tangents: Any, results: Any, **attrs: Any) -> tuple[Value | None]:
    operand, indices, updates = primals
    if tangents[0] is None and tangents[2] is None:
        return (None,)
    moved = [
        families.zeros(p.type) if t is None else t
        for p, t in ((operand, tangents[0]), (updates, tangents[2]))
    ]
    return (trace.bind1(scatter_add_p, moved[0], indices, moved[1], **attrs),)


def _transpose_scatter_add(
    ct: Value,
    operand: Any,
    indices: Any,
    updates: Any,
    *,
    dimension_numbers: ScatterDimensionNumbers,
    mode: str,
) -> tuple[Value | None, None, Value | None]:
    update_ct = None
    if is_linear(updates):
        sizes = scatter_slice_sizes(operand, updates, dimension_numbers)
        update_ct = trace.bind1(
            gather_p,
            ct,
            indices,
            dimension_numbers=_as_gather(dimension_numbers),
            slice_sizes=sizes,
            mode=mode,
            fill_value=0,
        )
    return (ct if is_linear(operand) else None), None, update_ct


def _batch_scatter(name: str) -> Any:  # Any: see transforms.batching
    def rule(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:
        operand, indices, updates = families.whole_batches(ctx.size, args, batched)
        dn: ScatterDimensionNumbers = attrs["dimension_numbers"]
        moved = ScatterDimensionNumbers(
            _shifted(dn.update_window_dims),
            _shifted(dn.inserted_window_dims),
            _shifted(dn.scatter_dims_to_operand_dims),
            (0, *_shifted(dn.operand_batching_dims)),
            (0, *_shifted(dn.scatter_indices_batching_dims)),
        )
        changed = attrs.replace(dimension_numbers=moved)
        return trace.bind(primitive.by_name(name), operand, indices, updates, **changed), (True,)

    return rule


scatter_add_p: Primitive = primitive.register(
    Primitive(
        "scatter_add",
        None,
        {
            primitive.TYPE: _type_scatter,
            primitive.REFERENCE: _reference_scatter(np.add),
            primitive.JVP: _jvp_scatter_add,
            primitive.TRANSPOSE: _transpose_scatter_add,
            primitive.BATCH: _batch_scatter("scatter_add"),
            primitive.PLACE: indexing_places.place_scatter(_as_gather, scatter_slice_sizes, adds=True),
            primitive.PARTITION: indexing_places.partition_scatter,
            primitive.WEAK: lambda weak, attrs: weak[0],
        },
    )
)


def _jvp_scatter(primals: Any, tangents: Any, results: Any, **attrs: Any) -> tuple[Value | None]:
    operand, indices, updates = primals
    if tangents[0] is None and tangents[2] is None:
        return (None,)
    g_operand, g_updates = (
        families.zeros(p.type) if t is None else t
        for p, t in ((operand, tangents[0]), (updates, tangents[2]))
    )
    # Number the updates and scatter the numbers: where one comes back, its update was the last to be written,
    # and where none arrived the operand shows through. Only those tangents count.
    op = primitive.by_name
    numbers = families.bind_scalars(op("add"), _numbered(updates.shape), 1)
    nothing = families.zeros(ArrayType(operand.shape, numbers.dtype))
    written = trace.bind1(scatter_p, nothing, indices, numbers, **attrs)
    dn, mode = attrs["dimension_numbers"], attrs["mode"]
    sizes = scatter_slice_sizes(operand, updates, dn)
    found = trace.bind1(
        gather_p,
        written,
        indices,
        dimension_numbers=_as_gather(dn),
        slice_sizes=sizes,
        mode=mode,
        fill_value=0,
    )
    won = families.bind_scalars(op("eq"), found, numbers)
    kept = families.bind_scalars(op("eq"), written, 0)
    base = families.bind_scalars(op("select_n"), kept, families.like(0.0, g_operand), g_operand)
    moved = families.bind_scalars(op("select_n"), won, families.like(0.0, g_updates), g_updates)
    return (trace.bind1(scatter_add_p, base, indices, moved, **attrs),)


def _numbered(shape: ir.Shape) -> Value:
    """Consecutive int32 numbers in C order."""
    count = families.prod(shape)
    line = trace.bind1(primitive.by_name("iota"), shape=(count,), dimension=0, dtype=dtypes.int32)
    return trace.bind1(primitive.by_name("reshape"), line, shape=shape, ndim=1)


scatter_p: Primitive = primitive.register(
    Primitive(
        "scatter",
        None,
        {
            primitive.TYPE: _type_scatter,
            primitive.REFERENCE: _reference_scatter(None),
            primitive.JVP: _jvp_scatter,
            primitive.BATCH: _batch_scatter("scatter"),
            primitive.PLACE: indexing_places.place_scatter(_as_gather, scatter_slice_sizes, adds=False),
            primitive.PARTITION: indexing_places.partition_scatter,
            primitive.WEAK: lambda weak, attrs: weak[0],
        },
    )
)


def scatter_add(
    operand: ArrayLike,
    scatter_indices: ArrayLike,
    updates: ArrayLike,
    dimension_numbers: ScatterDimensionNumbers,
    *,
    indices_are_sorted: bool = False,
    unique_indices: bool = False,
    mode: GatherScatterMode | str | None = None,
) -> Value:
    """Add `updates` into a copy of `operand` at `scatter_indices`, as `jax.lax.scatter_add`.
    Deterministic.
    """
    return trace.bind1(
        scatter_add_p,
        operand,
        scatter_indices,
        families.like(updates, trace.as_value(operand)),
        dimension_numbers=dimension_numbers,
        mode=GatherScatterMode.from_any(mode).value,
    )


def scatter(
    operand: ArrayLike,
    scatter_indices: ArrayLike,
    updates: ArrayLike,
    dimension_numbers: ScatterDimensionNumbers,
    *,
    indices_are_sorted: bool = False,
    unique_indices: bool = False,
    mode: GatherScatterMode | str | None = None,
) -> Value:
    """Write `updates` into a copy of `operand` at `scatter_indices`; the last of equal indices wins."""
    return trace.bind1(
        scatter_p,
        operand,
        scatter_indices,
        families.like(updates, trace.as_value(operand)),
        dimension_numbers=dimension_numbers,
        mode=GatherScatterMode.from_any(mode).value,
    )


# --- dynamic slices --------------------------------------------------------------------------


def _clamped(starts: Sequence[np.ndarray], shape: ir.Shape, sizes: ir.Shape) -> list[int]:
    return [int(np.clip(int(s), 0, n - m)) for s, n, m in zip(starts, shape, sizes, strict=True)]


def _check_starts(name: str, operand: ArrayType, sizes: ir.Shape, starts: Sequence[ArrayType]) -> None:
    families.accept(f"{name} (start)", dtypes.INTEGERS, starts)
    bad = len(starts) != operand.ndim or len(sizes) != operand.ndim or any(s.ndim for s in starts)
    if bad or any(m > n or m < 0 for m, n in zip(sizes, operand.shape, strict=True)):
        raise errors.TypeMismatchError(
            f"{name}: one scalar start and one size within the array per dimension",
            got=f"{operand}, sizes {tuple(sizes)}, {len(starts)} starts",
        )


def _type_dynamic_slice(
    operand: ArrayType, *starts: ArrayType, slice_sizes: ir.Shape
) -> tuple[ArrayType, ...]:
    _check_starts("dynamic_slice", operand, slice_sizes, starts)
    return (operand.update(shape=tuple(slice_sizes)),)


def _reference_dynamic_slice(operand: np.ndarray, *starts: np.ndarray, slice_sizes: ir.Shape) -> np.ndarray:
    at = _clamped(starts, operand.shape, slice_sizes)
    return operand[tuple(np.s_[i : i + n] for i, n in zip(at, slice_sizes, strict=True))]


def _jvp_dynamic_slice(primals: Any, tangents: Any, results: Any, **attrs: Any) -> tuple[Value | None]:
    return (
        None if tangents[0] is None else trace.bind1(dynamic_slice_p, tangents[0], *primals[1:], **attrs),
    )


def _transpose_dynamic_slice(
    ct: Value, operand: Any, *starts: Any, slice_sizes: ir.Shape
) -> tuple[Value | None, ...]:
    zeros = families.zeros(ArrayType(operand.shape, ct.dtype))
    return (trace.bind1(dynamic_update_slice_p, zeros, ct, *starts), *(None for _ in starts))


def _batch_dynamic_slice(
    ctx: Any, args: Any, batched: Any, attrs: Any
) -> Any:  # Any: see transforms.batching
    operand, *starts = args
    sizes = attrs["slice_sizes"]
    if not any(batched[1:]):
        return trace.bind(dynamic_slice_p, operand, 0, *starts, slice_sizes=(ctx.size, *sizes)), (True,)
    limits = np.array([n - m for n, m in zip(operand.shape[batched[0] :], sizes, strict=True)])
    indices = _stacked_starts(ctx, starts, batched[1:], limits)
    dn = GatherDimensionNumbers(tuple(range(len(sizes))), (), tuple(range(len(sizes))))
    gather_attrs = ir.Attrs(
        {"dimension_numbers": dn, "slice_sizes": sizes, "mode": "clip", "fill_value": None}
    )
    return _batch_gather(ctx, (operand, indices), (batched[0], True), gather_attrs)


def _stacked_starts(ctx: Any, starts: Any, batched: Any, limits: np.ndarray) -> Value:
    columns = []
    for start, is_batched in zip(starts, batched, strict=True):
        wide = trace.bind1(primitive.by_name("convert_element_type"), start, new_dtype=dtypes.int32)
        column = wide if is_batched else families.broadcast_to(wide, (ctx.size,))
        columns.append(trace.bind1(primitive.by_name("reshape"), column, shape=(ctx.size, 1), ndim=1))
    return (
        columns[0] if len(columns) == 1 else trace.bind1(primitive.by_name("concatenate"), *columns, axis=-1)
    )


dynamic_slice_p: Primitive = primitive.register(
    Primitive(
        "dynamic_slice",
        None,
        {
            primitive.TYPE: _type_dynamic_slice,
            primitive.REFERENCE: _reference_dynamic_slice,
            primitive.JVP: _jvp_dynamic_slice,
            primitive.TRANSPOSE: _transpose_dynamic_slice,
            primitive.BATCH: _batch_dynamic_slice,
            primitive.PLACE: places.place_slice,
            primitive.PARTITION: places.partition_slice,
            primitive.WEAK: lambda weak, attrs: weak[0],
        },
    )
)


def _starts(x: Value, starts: Sequence[ArrayLike]) -> list[Value]:
    values = [trace.as_value(s) for s in (starts if isinstance(starts, (list, tuple)) else list(starts))]
    convert = primitive.by_name("convert_element_type")
    # As in JAX, negative starts count from the end.
    fixed = []
    for start, size in zip(values, x.shape, strict=True):
        host = getattr(start, "host", None)
        if host is not None:
            fixed.append(trace.as_value(int(host) + size if int(host) < 0 else int(host)))
            continue
        start = start if start.dtype == dtypes.int32 else trace.bind1(convert, start, new_dtype=dtypes.int32)
        negative = families.bind_scalars(primitive.by_name("lt"), start, 0)
        wrapped = families.bind_scalars(primitive.by_name("add"), start, size)
        fixed.append(trace.bind1(primitive.by_name("select_n"), negative, start, wrapped))
    return fixed


def dynamic_slice(
    operand: ArrayLike, start_indices: Sequence[ArrayLike], slice_sizes: Sequence[int]
) -> Value:
    """A slice of static size at run-time starts, which are clamped so that it lies inside.

    Args:
        operand: array to read.
        start_indices: one integer scalar per dimension; negative ones count from the end.
        slice_sizes: size of the slice, static.

    Raises:
        TypeMismatchError: a size is larger than its dimension.
    """
    x = trace.as_value(operand)
    return trace.bind1(
        dynamic_slice_p, x, *_starts(x, start_indices), slice_sizes=tuple(map(int, slice_sizes))
    )


def dynamic_slice_in_dim(operand: ArrayLike, start_index: ArrayLike, slice_size: int, axis: int = 0) -> Value:
    """`dynamic_slice` along one dimension."""
    x = trace.as_value(operand)
    axis = families.normalize_axis(axis, x.ndim)
    starts: list[ArrayLike] = [0] * x.ndim
    sizes = list(x.shape)
    starts[axis], sizes[axis] = start_index, slice_size
    return dynamic_slice(x, starts, sizes)


def dynamic_index_in_dim(operand: ArrayLike, index: ArrayLike, axis: int = 0, keepdims: bool = True) -> Value:
    """One index along one dimension, chosen at run time."""
    result = dynamic_slice_in_dim(operand, index, 1, axis)
    if keepdims:
        return result
    axis = families.normalize_axis(axis, result.ndim)
    shape = tuple(n for d, n in enumerate(result.shape) if d != axis)
    return trace.bind1(primitive.by_name("reshape"), result, shape=shape, ndim=result.ndim)


def _type_dynamic_update_slice(
    operand: ArrayType, update: ArrayType, *starts: ArrayType
) -> tuple[ArrayType, ...]:
    families.same_dtype("dynamic_update_slice")(operand, update)
    if update.ndim != operand.ndim:
        raise errors.TypeMismatchError("dynamic_update_slice: ranks differ", got=f"{operand}, {update}")
    _check_starts("dynamic_update_slice", operand, update.shape, starts)
    return (operand,)


def _reference_dynamic_update_slice(
    operand: np.ndarray, update: np.ndarray, *starts: np.ndarray
) -> np.ndarray:
    out = operand.copy()
    at = _clamped(starts, operand.shape, update.shape)
    out[tuple(np.s_[i : i + n] for i, n in zip(at, update.shape, strict=True))] = update
    return out


def _jvp_dynamic_update_slice(primals: Any, tangents: Any, results: Any) -> tuple[Value | None]:
    if tangents[0] is None and tangents[1] is None:
        return (None,)
    moved = [
        families.zeros(p.type) if t is None else t for p, t in zip(primals[:2], tangents[:2], strict=True)
    ]
    return (trace.bind1(dynamic_update_slice_p, *moved, *primals[2:]),)


def _transpose_dynamic_update_slice(
    ct: Value, operand: Any, update: Any, *starts: Any
) -> tuple[Value | None, ...]:
    operand_ct = update_ct = None
    if is_linear(operand):
        zeros = families.zeros(ArrayType(update.shape, ct.dtype))
        operand_ct = trace.bind1(dynamic_update_slice_p, ct, zeros, *starts)
    if is_linear(update):
        update_ct = trace.bind1(dynamic_slice_p, ct, *starts, slice_sizes=update.shape)
    return (operand_ct, update_ct, *(None for _ in starts))


def _batch_dynamic_update_slice(
    ctx: Any, args: Any, batched: Any, attrs: Any
) -> Any:  # Any: see transforms.batching
    operand, update = families.whole_batches(ctx.size, args[:2], batched[:2])
    starts = args[2:]
    if not any(batched[2:]):
        return trace.bind(dynamic_update_slice_p, operand, update, 0, *starts), (True,)
    rank = operand.ndim - 1
    indices = _stacked_starts(ctx, starts, batched[2:], np.zeros(rank))
    dn = ScatterDimensionNumbers(tuple(range(1, rank + 1)), (), tuple(range(1, rank + 1)), (0,), (0,))
    return trace.bind(scatter_p, operand, indices, update, dimension_numbers=dn, mode="clip"), (True,)


dynamic_update_slice_p: Primitive = primitive.register(
    Primitive(
        "dynamic_update_slice",
        None,
        {
            primitive.TYPE: _type_dynamic_update_slice,
            primitive.REFERENCE: _reference_dynamic_update_slice,
            primitive.JVP: _jvp_dynamic_update_slice,
            primitive.TRANSPOSE: _transpose_dynamic_update_slice,
            primitive.BATCH: _batch_dynamic_update_slice,
            primitive.PLACE: places.place_update_slice,
            primitive.WEAK: lambda weak, attrs: weak[0],
        },
    )
)


def dynamic_update_slice(operand: ArrayLike, update: ArrayLike, start_indices: Sequence[ArrayLike]) -> Value:
    """A copy of `operand` with `update` written at run-time starts; in place under `jit` when the operand
    is dead.

    Args:
        operand: array to change.
        update: array of the same rank and dtype, not larger.
        start_indices: one integer scalar per dimension; clamped so that the update lies inside.
    """
    x = trace.as_value(operand)
    return trace.bind1(dynamic_update_slice_p, x, families.like(update, x), *_starts(x, start_indices))


def dynamic_update_slice_in_dim(
    operand: ArrayLike, update: ArrayLike, start_index: ArrayLike, axis: int
) -> Value:
    """`dynamic_update_slice` along one dimension."""
    x = trace.as_value(operand)
    starts: list[ArrayLike] = [0] * x.ndim
    starts[families.normalize_axis(axis, x.ndim)] = start_index
    return dynamic_update_slice(x, update, starts)
