"""Views that repeat elements, and arrays made of one number or of counted ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors, ir, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive, Signature
from infini.core.value import Literal, Value
from infini.lax import cases, families, placement, places
from infini.lax.cases import Sample
from infini.lax.families import letters
from infini.lax.view.declare import ArrayLike, moves, sizes, view
from infini.lax.view.shapes import expand_dims, reshape

# --- broadcast_in_dim ------------------------------------------------------------------------


def _signature(*, shape: ir.Shape, dims: tuple[int, ...]) -> Signature:
    names = letters(len(shape))
    return Signature((tuple(names[d] for d in dims),), (names,))


def _type(x: ArrayType, *, shape: ir.Shape, dims: tuple[int, ...]) -> tuple[ArrayType, ...]:
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


def _reference(x: np.ndarray, *, shape: ir.Shape, dims: tuple[int, ...]) -> np.ndarray:
    loop = x.shape[: x.ndim - len(dims)]
    core = [1] * len(shape)
    for d, n in zip(dims, x.shape[len(loop) :], strict=True):
        core[d] = n
    return np.broadcast_to(x.reshape(loop + tuple(core)), loop + tuple(shape))


def _transpose(ct: Value, x: Any, *, shape: ir.Shape, dims: tuple[int, ...]) -> tuple[Value]:
    added = tuple(d for d in range(-len(shape), 0) if d not in dims)
    return (trace.bind1(primitive.by_name("reduce_sum"), ct, axes=added) if added else ct,)


broadcast_in_dim_p: Primitive = view(
    "broadcast_in_dim",
    _signature,
    _type,
    _reference,
    _transpose,
    place=places.every_letter(),
    partition=places.partition_broadcast,
    examples=[
        moves(Sample((3,)), shape=(2, 3, 4), dims=(-2,)),
        moves(Sample(()), shape=(5,), dims=()),
    ],
)


def broadcast_in_dim(operand: ArrayLike, shape: Sequence[int], broadcast_dimensions: Sequence[int]) -> Value:
    """Repeat an array along added dimensions and those of size 1, as `jax.lax.broadcast_in_dim`.

    Args:
        operand: array to repeat.
        shape: shape of the result.
        broadcast_dimensions: dimension of the result for each dimension of the operand, increasing.

    Raises:
        TypeMismatchError: a size is neither 1 nor that of the result, or the dimensions are not increasing.
    """
    x = trace.as_value(operand)
    out = sizes("broadcast_in_dim", shape)
    dims = [int(d) for d in broadcast_dimensions]
    is_increasing = all(0 <= d < len(out) for d in dims) and dims == sorted(set(dims))
    if len(dims) != x.ndim or not is_increasing:
        raise errors.TypeMismatchError(
            "broadcast_in_dim needs increasing dimensions of the result, one per dimension of the operand",
            got=f"{x.type} to {out}, broadcast_dimensions {tuple(dims)}",
        )
    kept = [(d, n) for d, n in zip(dims, x.shape, strict=True) if n == out[d]]
    if any(n not in (1, out[d]) for d, n in zip(dims, x.shape, strict=True)):
        raise errors.TypeMismatchError(
            f"cannot broadcast {x.type} to {out}",
            got=f"broadcast_dimensions {tuple(dims)}",
            expected="sizes of 1, or those of the result",
        )
    x = reshape(x, [n for _, n in kept])
    if len(kept) == len(out):
        return x
    return trace.bind1(broadcast_in_dim_p, x, shape=out, dims=tuple(d - len(out) for d, _ in kept))


def broadcast(operand: ArrayLike, sizes: Sequence[int]) -> Value:
    """Repeat an array along leading dimensions of these sizes."""
    x = trace.as_value(operand)
    return broadcast_in_dim(x, (*sizes, *x.shape), range(len(sizes), len(sizes) + x.ndim))


def broadcast_to_rank(x: ArrayLike, rank: int) -> Value:
    """Add leading dimensions of size 1 until there are `rank`; an array with more stays as it is."""
    value = trace.as_value(x)
    return expand_dims(value, range(rank - value.ndim)) if rank > value.ndim else value


def broadcast_like(arr: ArrayLike, like_arr: ArrayLike) -> Value:
    """Repeat `arr` by NumPy's rule until it has the shape of `like_arr`.

    Raises:
        ValueMismatchError: it does not broadcast to that shape.
    """
    x, shape = trace.as_value(arr), trace.as_value(like_arr).shape
    if broadcast_shapes(x.shape, shape) != shape:
        raise errors.ValueMismatchError(
            "broadcast_like: the array is the larger one", got=f"{x.type}, {shape}"
        )
    return families.broadcast_to(x, shape)


def broadcast_shapes(*shapes: Sequence[int]) -> ir.Shape:
    """The shape that shapes broadcast to by NumPy's rule.

    Raises:
        ValueMismatchError: they do not.

    Example:
        >>> from infini import lax
        >>> lax.broadcast_shapes((2, 1), (3,))
        (2, 3)
    """
    try:
        return tuple(int(n) for n in np.broadcast_shapes(*(tuple(s) for s in shapes)))
    except ValueError:
        raise errors.ValueMismatchError(
            "shapes do not broadcast",
            got=", ".join(map(str, shapes)),
            expected="sizes that are equal or 1, from the right",
        ) from None


# --- filled arrays ---------------------------------------------------------------------------


def full(
    shape: Sequence[int], fill_value: ArrayLike, dtype: Any = None, *, sharding: Any = None
) -> Value:  # Any: a dtype or its name; a NamedSharding or P
    """An array with one value everywhere, as `jax.lax.full`.

    Args:
        shape: shape of the result.
        fill_value: scalar.
        dtype: dtype of the result; that of the scalar when absent, and weak where that is.
        sharding: how the result is split over a mesh.

    Raises:
        TypeMismatchError: the value is no scalar, or a size is negative.
    """
    scalar = trace.as_value(fill_value)
    out = sizes("full", shape)
    if scalar.ndim:
        raise errors.TypeMismatchError("full takes a scalar", got=str(scalar.type), expected="shape ()")
    if dtype is not None:
        target = dtypes.canonical(dtype)
        if scalar.dtype != target:
            scalar = trace.bind1(primitive.by_name("convert_element_type"), scalar, new_dtype=target)
        scalar = scalar.with_weak(False)
    filled = families.broadcast_to(scalar, out)
    filled = trace.to_array(filled) if isinstance(filled, Literal) else filled
    return filled if sharding is None else placement.with_sharding_constraint(filled, sharding)


def full_like(
    x: Any,
    fill_value: ArrayLike,
    dtype: Any = None,
    shape: Sequence[int] | None = None,
    sharding: Any = None,
) -> Value:  # Any: an array or anything with shape and dtype; a dtype or its name; a NamedSharding or P
    """An array with one value everywhere, like `x` where shape and dtype are not given."""
    like = x if hasattr(x, "shape") and hasattr(x, "dtype") else trace.as_value(x)
    out = like.shape if shape is None else shape
    filled = full(out, fill_value, like.dtype if dtype is None else dtype, sharding=sharding)
    return filled.with_weak(dtype is None and bool(getattr(like, "weak", False)))


def empty(shape: Sequence[int], dtype: Any) -> Value:  # Any: a dtype or its name
    """An array of zeros: infini has no uninitialised arrays."""
    return full(shape, 0, dtype)


# --- iota ------------------------------------------------------------------------------------


def _type_iota(*, shape: ir.Shape, dimension: int, dtype: np.dtype) -> tuple[ArrayType, ...]:
    families.accept("iota", dtypes.NUMERIC, [ArrayType(tuple(shape), dtype)])
    return (ArrayType(tuple(shape), dtype),)


def _reference_iota(*, shape: ir.Shape, dimension: int, dtype: np.dtype) -> np.ndarray:
    line = np.arange(shape[dimension]).astype(dtype)
    return np.broadcast_to(line.reshape([-1 if i == dimension else 1 for i in range(len(shape))]), shape)


iota_p: Primitive = primitive.register(
    Primitive(
        "iota",
        lambda *, shape, dimension, dtype: Signature((), (letters(len(shape)),)),
        {
            primitive.TYPE: _type_iota,
            primitive.REFERENCE: _reference_iota,
            primitive.PLACE: places.place_iota,
            primitive.PARTITION: places.partition_iota,
            primitive.TAIL: places.tails_through,
            primitive.JVP: families.no_jvp,
            primitive.CASES: cases.Cases(
                dtypes.NUMERIC, lambda dtype: [moves(shape=(3, 4), dimension=d, dtype=dtype) for d in (0, 1)]
            ),
        },
    )
)


def broadcasted_iota(dtype: Any, shape: Sequence[int], dimension: int) -> Value:  # Any: a dtype or its name
    """Numbers from 0 along one dimension, repeated along the others.

    Raises:
        TypeMismatchError: a size is negative, or the dtype is bool.
        ValueMismatchError: there is no such dimension.
    """
    out = sizes("iota", shape)
    if not 0 <= int(dimension) < len(out):
        raise errors.ValueMismatchError(
            "iota: there is no such dimension", got=f"dimension {dimension} of shape {out}"
        )
    return trace.bind1(iota_p, shape=out, dimension=int(dimension), dtype=dtypes.canonical(dtype))


def iota(dtype: Any, size: int) -> Value:  # Any: a dtype or its name
    """Numbers from 0 to `size` - 1."""
    return broadcasted_iota(dtype, (size,), 0)
