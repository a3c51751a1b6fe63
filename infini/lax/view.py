"""Operations that move elements without computing: reshape, transpose, broadcast, slice, pad,
concatenate, rev, iota.

Attributes describe core dimensions only and count axes from the right, so `vmap` re-binds the same operation.
"""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors, ir, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive, Signature
from infini.core.value import Literal, Value
from infini.lax import families, places
from infini.lax.families import is_linear, letters, linear_jvp

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers


def _view(
    name: str, signature: Any, type: Any, reference: Any, transpose: Any, place: Any, partition: Any = None
) -> Primitive:  # Any: rules by kind
    splitting = {primitive.PLACE: place} | ({primitive.PARTITION: partition} if partition else {})
    return primitive.register(
        Primitive(
            name,
            signature,
            {
                primitive.TYPE: type,
                primitive.REFERENCE: reference,
                primitive.JVP: linear_jvp(name),
                primitive.TRANSPOSE: transpose,
                primitive.CASES: (frozenset(dtypes.ALL), (families.ANYTHING,)),
                **splitting,
            },
        )
    )


# --- reshape -------------------------------------------------------------------------------


def _type_reshape(x: ArrayType, *, shape: ir.Shape, ndim: int) -> tuple[ArrayType, ...]:
    loop, core = x.shape[: x.ndim - ndim], x.shape[x.ndim - ndim :]
    if families.prod(core) != families.prod(shape):
        raise errors.TypeMismatchError(
            f"cannot reshape {core} into {shape}", got=str(x), expected=f"{families.prod(core)} elements"
        )
    return (x.update(shape=loop + tuple(shape)),)


reshape_p: Primitive = _view(
    "reshape",
    lambda *, shape, ndim: Signature((letters(ndim),), (letters(len(shape), "r"),)),
    _type_reshape,
    lambda x, *, shape, ndim: x.reshape(x.shape[: x.ndim - ndim] + shape),
    lambda ct, x, *, shape, ndim: (
        trace.bind1(reshape_p, ct, shape=x.shape[x.ndim - ndim :], ndim=len(shape)),
    ),
    place=places.place_reshape,
    partition=places.partition_reshape,
)


def reshape(operand: ArrayLike, new_sizes: Sequence[int], dimensions: None = None) -> Value:
    """The same elements in C order in another shape.

    Raises:
        TypeMismatchError: the numbers of elements differ.
    """
    x = trace.as_value(operand)
    shape = tuple(int(n) for n in new_sizes)
    return x if x.shape == shape else trace.bind1(reshape_p, x, shape=shape, ndim=x.ndim)


def squeeze(array: ArrayLike, dimensions: Sequence[int]) -> Value:
    """Drop dimensions of size 1.

    Raises:
        ValueMismatchError: one has another size.
    """
    x = trace.as_value(array)
    dropped = {families.normalize_axis(d, x.ndim) for d in dimensions}
    if any(x.shape[d] != 1 for d in dropped):
        raise errors.ValueMismatchError(
            "squeeze: a dimension is not of size 1", got=f"{x.type}, dimensions {tuple(dimensions)}"
        )
    return reshape(x, [n for d, n in enumerate(x.shape) if d not in dropped])


def expand_dims(array: ArrayLike, dimensions: Sequence[int]) -> Value:
    """Insert dimensions of size 1 at these positions of the result."""
    x = trace.as_value(array)
    ndim = x.ndim + len(dimensions)
    added = {families.normalize_axis(d, ndim) for d in dimensions}
    sizes = iter(x.shape)
    return reshape(x, [1 if d in added else next(sizes) for d in range(ndim)])


# --- transpose -----------------------------------------------------------------------------


def _signature_transpose(*, permutation: tuple[int, ...]) -> Signature:
    names = letters(len(permutation))
    return Signature((names,), (tuple(names[p] for p in permutation),))


def _full_permutation(ndim: int, permutation: tuple[int, ...]) -> tuple[int, ...]:
    return (*range(ndim - len(permutation)), *(p + ndim for p in permutation))


transpose_p: Primitive = _view(
    "transpose",
    _signature_transpose,
    families.type_from_signature("transpose", _signature_transpose, dtypes.ALL, lambda x, **_: x.dtype),
    lambda x, *, permutation: x.transpose(_full_permutation(x.ndim, permutation)),
    lambda ct, x, *, permutation: (
        trace.bind1(
            transpose_p,
            ct,
            permutation=tuple(int(i) - len(permutation) for i in np.argsort(permutation)),
        ),
    ),
    place=places.every_letter(),
)


def transpose(operand: ArrayLike, permutation: Sequence[int]) -> Value:
    """Permute dimensions: dimension `i` of the result is dimension `permutation[i]` of the operand.

    Raises:
        ValueMismatchError: `permutation` is none.
    """
    x = trace.as_value(operand)
    order = [families.normalize_axis(int(p), x.ndim) for p in permutation]
    if sorted(order) != list(range(x.ndim)):
        raise errors.ValueMismatchError(
            "transpose: this is not a permutation", got=f"{tuple(permutation)} for {x.type}"
        )
    if order == list(range(x.ndim)):
        return x
    first = next(i for i, p in enumerate(order) if i != p)
    return trace.bind1(transpose_p, x, permutation=tuple(p - x.ndim for p in order[first:]))


# --- broadcast_in_dim ------------------------------------------------------------------------


def _signature_broadcast(*, shape: ir.Shape, dims: tuple[int, ...]) -> Signature:
    names = letters(len(shape))
    return Signature((tuple(names[d] for d in dims),), (names,))


def _type_broadcast(x: ArrayType, *, shape: ir.Shape, dims: tuple[int, ...]) -> tuple[ArrayType, ...]:
    core = x.shape[x.ndim - len(dims) :] if dims else ()
    if (
        x.ndim < len(dims)
        or any(shape[d] != n for d, n in zip(dims, core, strict=True))
        or list(dims) != sorted(set(dims))
    ):
        raise errors.TypeMismatchError(
            f"cannot broadcast {x} to {shape}",
            got=f"dimensions {dims}",
            expected="increasing dimensions of equal size",
        )
    return (x.update(shape=x.shape[: x.ndim - len(dims)] + tuple(shape)),)


def _reference_broadcast(x: np.ndarray, *, shape: ir.Shape, dims: tuple[int, ...]) -> np.ndarray:
    loop = x.shape[: x.ndim - len(dims)]
    core = [1] * len(shape)
    for d, n in zip(dims, x.shape[len(loop) :], strict=True):
        core[d] = n
    return np.broadcast_to(x.reshape(loop + tuple(core)), loop + tuple(shape))


def _transpose_broadcast(ct: Value, x: Any, *, shape: ir.Shape, dims: tuple[int, ...]) -> tuple[Value]:
    added = tuple(d for d in range(-len(shape), 0) if d not in dims)
    return (trace.bind1(primitive.by_name("reduce_sum"), ct, axes=added) if added else ct,)


broadcast_in_dim_p: Primitive = _view(
    "broadcast_in_dim",
    _signature_broadcast,
    _type_broadcast,
    _reference_broadcast,
    _transpose_broadcast,
    place=places.every_letter(),
    partition=places.partition_broadcast,
)


def broadcast_in_dim(operand: ArrayLike, shape: Sequence[int], broadcast_dimensions: Sequence[int]) -> Value:
    """Repeat an array along added dimensions and those of size 1, as `jax.lax.broadcast_in_dim`.

    Args:
        operand: array to repeat.
        shape: shape of the result.
        broadcast_dimensions: dimension of the result for each dimension of the operand, increasing.

    Raises:
        TypeMismatchError: a size is neither 1 nor that of the result.
    """
    x = trace.as_value(operand)
    out = tuple(int(n) for n in shape)
    if len(broadcast_dimensions) != x.ndim:
        raise errors.TypeMismatchError(
            "broadcast_in_dim needs one result dimension per operand dimension",
            got=f"{x.type}, broadcast_dimensions {tuple(broadcast_dimensions)}",
        )
    dims = [families.normalize_axis(d, len(out)) for d in broadcast_dimensions]
    kept = [(d, n) for d, n in zip(dims, x.shape, strict=True) if n == out[d]]
    if any(n not in (1, out[d]) for d, n in zip(dims, x.shape, strict=True)):
        raise errors.TypeMismatchError(f"cannot broadcast {x.type} to {out}", got=f"dimensions {tuple(dims)}")
    x = reshape(x, [n for _, n in kept])
    if len(kept) == len(out):
        return x
    return trace.bind1(broadcast_in_dim_p, x, shape=out, dims=tuple(d - len(out) for d, _ in kept))


def broadcast(operand: ArrayLike, sizes: Sequence[int]) -> Value:
    """Add leading dimensions of these sizes."""
    x = trace.as_value(operand)
    return broadcast_in_dim(x, (*sizes, *x.shape), range(len(sizes), len(sizes) + x.ndim))


def full(shape: Sequence[int], fill_value: ArrayLike, dtype: Any = None) -> Value:
    """An array with one value everywhere."""
    scalar = trace.as_value(fill_value)
    target = scalar.dtype if dtype is None else dtypes.canonical(dtype)
    if scalar.dtype != target:
        scalar = trace.bind1(primitive.by_name("convert_element_type"), scalar, new_dtype=target)
    filled = families.broadcast_to(scalar, tuple(int(n) for n in shape))
    return trace.to_array(filled) if isinstance(filled, Literal) else filled


# --- slice ---------------------------------------------------------------------------------


def _type_slice(
    x: ArrayType, *, start: ir.Shape, limit: ir.Shape, strides: ir.Shape
) -> tuple[ArrayType, ...]:
    rank = len(start)
    core = x.shape[x.ndim - rank :] if rank else ()
    for s, e, k, n in zip(start, limit, strides, core, strict=True):
        if not (0 <= s <= e <= n and k >= 1):
            raise errors.TypeMismatchError(
                "slice: bounds do not lie inside the array",
                got=f"{x}, start {start}, limit {limit}, strides {strides}",
            )
    sizes = tuple(-(-(e - s) // k) for s, e, k in zip(start, limit, strides, strict=True))
    return (x.update(shape=x.shape[: x.ndim - rank] + sizes),)


def _reference_slice(x: np.ndarray, *, start: ir.Shape, limit: ir.Shape, strides: ir.Shape) -> np.ndarray:
    places: tuple[Any, ...] = (
        ...,
        *(builtins.slice(s, e, k) for s, e, k in zip(start, limit, strides, strict=True)),
    )
    return np.asarray(x[places])


def _transpose_slice(
    ct: Value, x: Any, *, start: ir.Shape, limit: ir.Shape, strides: ir.Shape
) -> tuple[Value]:
    core = x.shape[x.ndim - len(start) :]
    sizes = ct.shape[ct.ndim - len(start) :]
    high = tuple(
        n - s - ((m - 1) * k + 1 if m else 0) for n, s, m, k in zip(core, start, sizes, strides, strict=True)
    )
    interior = tuple(k - 1 for k in strides)
    return (trace.bind1(pad_p, ct, families.like(0, ct), low=start, high=high, interior=interior),)


slice_p: Primitive = _view(
    "slice",
    lambda *, start, limit, strides: Signature((letters(len(start)),), (letters(len(start), "s"),)),
    _type_slice,
    _reference_slice,
    _transpose_slice,
    place=places.place_slice,
    partition=places.partition_slice,
)


def slice(  # JAX's name
    operand: ArrayLike,
    start_indices: Sequence[int],
    limit_indices: Sequence[int],
    strides: Sequence[int] | None = None,
) -> Value:
    """Elements from `start_indices` up to `limit_indices` in steps of `strides`.

    Raises:
        TypeMismatchError: the bounds do not lie inside the array.
    """
    x = trace.as_value(operand)
    start, limit = tuple(map(int, start_indices)), tuple(map(int, limit_indices))
    steps = tuple(map(int, strides)) if strides is not None else (1,) * len(start)
    if not len(start) == len(limit) == len(steps) == x.ndim:
        raise errors.TypeMismatchError(
            "slice needs one start, limit and stride per dimension", got=str(x.type)
        )
    if start == (0,) * x.ndim and limit == x.shape and steps == (1,) * x.ndim:
        return x
    return trace.bind1(slice_p, x, start=start, limit=limit, strides=steps)


def slice_in_dim(
    operand: ArrayLike, start_index: int | None, limit_index: int | None, stride: int = 1, axis: int = 0
) -> Value:
    """A slice along one dimension; negative bounds count from the end."""
    x = trace.as_value(operand)
    axis = families.normalize_axis(axis, x.ndim)
    size = x.shape[axis]
    bound = [0 if start_index is None else start_index, size if limit_index is None else limit_index]
    bound = [b + size if b < 0 else b for b in bound]
    start, limit, steps = [0] * x.ndim, list(x.shape), [1] * x.ndim
    start[axis], limit[axis], steps[axis] = bound[0], bound[1], stride
    return slice(x, start, limit, steps)


# --- pad -----------------------------------------------------------------------------------


def _type_pad(
    x: ArrayType, fill: ArrayType, *, low: ir.Shape, high: ir.Shape, interior: ir.Shape
) -> tuple[ArrayType, ...]:
    families.same_dtype("pad")(x, fill)
    rank = len(low)
    core = x.shape[x.ndim - rank :] if rank else ()
    sizes = tuple(
        lo + hi + n + max(n - 1, 0) * inner
        for lo, hi, inner, n in zip(low, high, interior, core, strict=True)
    )
    if any(n < 0 for n in sizes) or any(i < 0 for i in interior):
        raise errors.TypeMismatchError(
            "pad: the result would have a negative size", got=f"{x}, low {low}, high {high}"
        )
    return (x.update(shape=x.shape[: x.ndim - rank] + sizes),)


def _reference_pad(
    x: np.ndarray, fill: np.ndarray, *, low: ir.Shape, high: ir.Shape, interior: ir.Shape
) -> np.ndarray:
    rank = len(low)
    (result_type,) = _type_pad(
        ArrayType(x.shape, x.dtype), ArrayType((), x.dtype), low=low, high=high, interior=interior
    )
    out = np.full(result_type.shape, fill.reshape(()), x.dtype)
    source: list[Any] = [np.s_[:]] * (x.ndim - rank)
    target: list[Any] = [np.s_[:]] * (x.ndim - rank)
    for lo, inner, n, m in zip(
        low, interior, x.shape[x.ndim - rank :], out.shape[x.ndim - rank :], strict=True
    ):
        step = inner + 1
        first = max(0, -(lo // step)) if lo < 0 else 0
        last = min(n, (m - 1 - lo) // step + 1) if m else first
        source.append(np.s_[first : max(first, last)])
        target.append(
            np.s_[lo + first * step : lo + max(first, last - 1) * step + 1 : step]
            if last > first
            else np.s_[0:0]
        )
    out[tuple(target)] = x[tuple(source)]
    return out


def _transpose_pad(
    ct: Value, x: Any, fill: Any, *, low: ir.Shape, high: ir.Shape, interior: ir.Shape
) -> tuple[Value | None, Value | None]:
    negative_low, negative_high = tuple(-n for n in low), tuple(-n for n in high)
    cropped = trace.bind1(
        pad_p, ct, families.like(0, ct), low=negative_low, high=negative_high, interior=(0,) * len(low)
    )
    core = cropped.shape[cropped.ndim - len(low) :]
    x_ct = trace.bind1(
        slice_p, cropped, start=(0,) * len(low), limit=core, strides=tuple(n + 1 for n in interior)
    )
    total = trace.bind1(primitive.by_name("reduce_sum"), ct, axes=tuple(range(-ct.ndim, 0)))
    inside = trace.bind1(primitive.by_name("reduce_sum"), x_ct, axes=tuple(range(-x_ct.ndim, 0)))
    fill_ct = trace.bind1(primitive.by_name("sub"), total, inside) if is_linear(fill) else None
    return x_ct if is_linear(x) else None, fill_ct


pad_p: Primitive = primitive.register(
    Primitive(
        "pad",
        lambda *, low, high, interior: Signature((letters(len(low)), ()), (letters(len(low), "p"),)),
        {
            primitive.TYPE: _type_pad,
            primitive.REFERENCE: _reference_pad,
            primitive.JVP: linear_jvp("pad", num_linear=2),
            primitive.TRANSPOSE: _transpose_pad,
            primitive.PLACE: places.place_pad,
            primitive.CASES: (frozenset(dtypes.ALL), (families.ANYTHING, families.ANYTHING)),
        },
    )
)


def pad(
    operand: ArrayLike, padding_value: ArrayLike, padding_config: Sequence[tuple[int, int, int]]
) -> Value:
    """Add elements before, after and between; negative numbers remove them.

    Args:
        operand: array to pad.
        padding_value: scalar of the same dtype.
        padding_config: (low, high, interior) per dimension.

    Raises:
        TypeMismatchError: a size would be negative, or the dtypes differ.
    """
    x = trace.as_value(operand)
    low, high, interior = (tuple(int(c[i]) for c in padding_config) for i in range(3))
    if len(low) != x.ndim:
        raise errors.TypeMismatchError("pad needs one (low, high, interior) per dimension", got=str(x.type))
    return trace.bind1(pad_p, x, families.like(padding_value, x), low=low, high=high, interior=interior)


# --- concatenate -----------------------------------------------------------------------------


def _type_concatenate(*types: ArrayType, axis: int) -> tuple[ArrayType, ...]:
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


def _transpose_concatenate(ct: Value, *operands: Any, axis: int) -> tuple[Value | None, ...]:
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


def _batch_concatenate(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:  # Any: see transforms.batching
    size = ctx.size
    moved = families.whole_batches(size, args, batched)
    return trace.bind(concatenate_p, *moved, **attrs), (True,)


concatenate_p: Primitive = primitive.register(
    Primitive(
        "concatenate",
        None,
        {
            primitive.TYPE: _type_concatenate,
            primitive.REFERENCE: lambda *xs, axis: np.concatenate(xs, axis=axis),
            primitive.JVP: lambda primals, tangents, results, **attrs: linear_jvp(
                "concatenate", len(primals)
            )(primals, tangents, results, **attrs),
            primitive.TRANSPOSE: _transpose_concatenate,
            primitive.BATCH: _batch_concatenate,
            primitive.PLACE: places.place_axes,
            primitive.CASES: (frozenset(dtypes.ALL), (families.ANYTHING, families.ANYTHING)),
        },
    )
)


def concatenate(operands: Sequence[ArrayLike], dimension: int) -> Value:
    """Join arrays along a dimension.

    Raises:
        TypeMismatchError: there are none, or shapes or dtypes differ elsewhere.
    """
    values = [trace.as_value(x) for x in operands]
    if not values:
        raise errors.TypeMismatchError("concatenate needs at least one array")
    axis = families.normalize_axis(dimension, values[0].ndim) - values[0].ndim
    return values[0] if len(values) == 1 else trace.bind1(concatenate_p, *values, axis=axis)


# --- rev and iota ----------------------------------------------------------------------------


def _signature_rev(*, axes: tuple[int, ...]) -> Signature:
    names = letters(max((-a for a in axes), default=0))
    return Signature((names,), (names,))


rev_p: Primitive = _view(
    "rev",
    _signature_rev,
    families.type_from_signature("rev", _signature_rev, dtypes.ALL, lambda x, **_: x.dtype),
    lambda x, *, axes: np.flip(x, axes),
    lambda ct, x, *, axes: (trace.bind1(rev_p, ct, axes=axes),),
    place=places.place_axes,
)


def rev(operand: ArrayLike, dimensions: Sequence[int]) -> Value:
    """Reverse the order of elements along some dimensions."""
    x = trace.as_value(operand)
    axes = tuple(sorted(families.normalize_axis(d, x.ndim) - x.ndim for d in dimensions))
    return trace.bind1(rev_p, x, axes=axes) if axes else x


def _reference_iota(*, shape: ir.Shape, dimension: int, dtype: np.dtype) -> np.ndarray:
    line = np.arange(shape[dimension]).astype(dtype)
    return np.broadcast_to(line.reshape([-1 if i == dimension else 1 for i in range(len(shape))]), shape)


iota_p: Primitive = primitive.register(
    Primitive(
        "iota",
        lambda *, shape, dimension, dtype: Signature((), (letters(len(shape)),)),
        {
            primitive.TYPE: lambda *, shape, dimension, dtype: (ArrayType(tuple(shape), dtype),),
            primitive.REFERENCE: _reference_iota,
            primitive.PLACE: places.place_iota,
            primitive.PARTITION: places.partition_iota,
            primitive.JVP: families.no_jvp,
            primitive.CASES: (frozenset(dtypes.NUMERIC), ()),
        },
    )
)


def broadcasted_iota(dtype: Any, shape: Sequence[int], dimension: int) -> Value:
    """Numbers from 0 along one dimension, repeated along the others."""
    sizes = tuple(int(n) for n in shape)
    axis = families.normalize_axis(dimension, len(sizes))
    return trace.bind1(iota_p, shape=sizes, dimension=axis, dtype=dtypes.canonical(dtype))


def iota(dtype: Any, size: int) -> Value:
    """Numbers from 0 to `size` - 1."""
    return broadcasted_iota(dtype, (size,), 0)
