"""Gather: windows of an array at run-time places, as `jax.lax.gather`.

The batch rule uses batching dimensions, so a vmapped gather is one gather.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors, ir, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive
from infini.core.value import Literal, Value
from infini.lax import cases, families, view
from infini.lax.cases import Case, Sample, Span
from infini.lax.indexing import places
from infini.lax.indexing.dimension_numbers import (
    GatherDimensionNumbers,
    GatherScatterMode,
    check_numbers,
    window_axes,
    window_positions,
)

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers


def _type(
    operand: ArrayType,
    indices: ArrayType,
    *,
    dimension_numbers: GatherDimensionNumbers,
    slice_sizes: ir.Shape,
    mode: str,
    fill_value: complex | None,
    unique_indices: bool,
) -> tuple[ArrayType, ...]:
    check_numbers("gather", operand, indices, dimension_numbers, slice_sizes)
    return (operand.update(shape=dimension_numbers.result_shape(indices.shape[:-1], slice_sizes)),)


def fill_of(dtype: np.dtype, fill_value: complex | None) -> np.ndarray:
    """What a gather in fill mode reads outside the array, as a scalar."""
    chosen = families.default_fill(dtype) if fill_value is None else fill_value
    return np.asarray(chosen).astype(dtype)


def _reference(
    operand: np.ndarray,
    indices: np.ndarray,
    *,
    dimension_numbers: GatherDimensionNumbers,
    slice_sizes: ir.Shape,
    mode: str,
    fill_value: complex | None,
    unique_indices: bool,
) -> np.ndarray:
    dn = dimension_numbers
    place, inside = window_positions(indices, dn, operand.shape, slice_sizes, mode != "fill")
    found = np.where(inside, operand.reshape(-1)[place], fill_of(operand.dtype, fill_value))
    return np.moveaxis(found.astype(operand.dtype), range(found.ndim), window_axes(dn, found.ndim))


def _jvp(primals: Any, tangents: Any, results: Any, **attrs: Any) -> tuple[Value | None]:
    if tangents[0] is None:
        return (None,)
    # Outside the array the value is constant, so the tangent there is zero.
    fill = 0 if attrs["mode"] == "fill" else None
    return (trace.bind1(gather_p, tangents[0], primals[1], **{**attrs, "fill_value": fill}),)


def _transpose(ct: Value, operand: Any, indices: Any, **attrs: Any) -> tuple[Value, None]:
    scattered = trace.bind1(
        primitive.by_name("scatter_add"),
        families.zeros(ArrayType(operand.shape, ct.dtype)),
        indices,
        ct,
        dimension_numbers=attrs["dimension_numbers"].as_scatter,
        mode=attrs["mode"],
        unique_indices=attrs["unique_indices"],
    )
    return scattered, None


def shifted(dims: tuple[int, ...]) -> tuple[int, ...]:
    """Dimension numbers after a leading dimension has been added."""
    return tuple(d + 1 for d in dims)


def batch_gather(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:  # Any: see transforms.batching
    """BATCH of gather: a batched operand alone makes larger windows, batched indices more of them."""
    operand, indices = args
    dn: GatherDimensionNumbers = attrs["dimension_numbers"]
    sizes = attrs["slice_sizes"]
    if batched == (True, False):
        dn = GatherDimensionNumbers(
            (0, *shifted(dn.offset_dims)),
            shifted(dn.collapsed_slice_dims),
            shifted(dn.start_index_map),
            shifted(dn.operand_batching_dims),
            dn.start_indices_batching_dims,
        )
        sizes = (ctx.size, *sizes)
    elif batched == (False, True):
        dn = GatherDimensionNumbers(
            shifted(dn.offset_dims),
            dn.collapsed_slice_dims,
            dn.start_index_map,
            dn.operand_batching_dims,
            shifted(dn.start_indices_batching_dims),
        )
    else:
        dn = GatherDimensionNumbers(
            shifted(dn.offset_dims),
            shifted(dn.collapsed_slice_dims),
            shifted(dn.start_index_map),
            (0, *shifted(dn.operand_batching_dims)),
            (0, *shifted(dn.start_indices_batching_dims)),
        )
        sizes = (min(ctx.size, 1), *sizes)
    is_unique = attrs["unique_indices"] and batched[0]
    changed = attrs.replace(dimension_numbers=dn, slice_sizes=sizes, unique_indices=is_unique)
    return trace.bind(gather_p, operand, indices, **changed), (True,)


def _case(*operands: Sample, numbers: GatherDimensionNumbers, sizes: ir.Shape, mode: str = "fill") -> Case:
    attrs = {
        "dimension_numbers": numbers,
        "slice_sizes": sizes,
        "mode": mode,
        "fill_value": 0 if mode == "fill" else None,
        "unique_indices": False,
    }
    return Case(operands, attrs, "exact")


_ROWS = GatherDimensionNumbers((1,), (0,), (0,))
_PLACES = Span(-2, 6)  # of which some lie outside

gather_p: Primitive = primitive.register(
    Primitive(
        "gather",
        None,
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.JVP: _jvp,
            primitive.TRANSPOSE: _transpose,
            primitive.BATCH: batch_gather,
            primitive.LINEAR: places.linear_gather,
            primitive.PLACE: places.place_gather,
            primitive.PARTITION: places.partition_gather,
            primitive.TAIL: places.tail_gather,
            primitive.WEAK: lambda weak, attrs: weak[0],
            primitive.CASES: cases.always(
                dtypes.ALL,
                _case(
                    Sample((5, 3)), Sample((4, 1), dtypes.int32, _PLACES), numbers=_ROWS, sizes=(1, 3)
                ),
                _case(
                    Sample((5, 3)), Sample((4, 1), dtypes.uint8, Span(0, 6)), numbers=_ROWS, sizes=(1, 3),
                    mode="clip",
                ),
                _case(
                    Sample((4, 3, 5)), Sample((2, 4, 2), dtypes.int64, Span(0, 2)),
                    numbers=GatherDimensionNumbers((1,), (1,), (2, 1), (0,), (1,)), sizes=(1, 1, 2),
                    mode="promise_in_bounds",
                ),
            ),
        },
    )
)  # fmt: skip


def gather(
    operand: ArrayLike,
    start_indices: ArrayLike,
    dimension_numbers: GatherDimensionNumbers,
    slice_sizes: Sequence[int],
    *,
    unique_indices: bool = False,
    indices_are_sorted: bool = False,
    mode: GatherScatterMode | str | None = None,
    fill_value: ArrayLike | None = None,
) -> Value:
    """Windows of `operand` at `start_indices`, as `jax.lax.gather`.

    Args:
        operand: array to read.
        start_indices: integers; the last dimension holds one number per entry of `start_index_map`.
        dimension_numbers: correspondence of dimensions.
        slice_sizes: size of each window, one per dimension of the operand.
        unique_indices: a promise that no two windows overlap; the gradient is cheaper then.
        indices_are_sorted: a hint, not used.
        mode: what happens to windows outside the array; a promise that there are none when absent.
        fill_value: what fill mode reads there, a number; NaN, an extreme integer or True when absent.

    Returns:
        An array of the dtype of `operand`; its shape follows from the dimension numbers.

    Raises:
        TypeMismatchError: dimension numbers or sizes do not fit, or `fill_value` is no known number.
        ValueMismatchError: the indices are no integers.
    """
    x = trace.as_value(operand)
    chosen = GatherScatterMode.from_any("promise_in_bounds" if mode is None else mode)
    return trace.bind1(
        gather_p,
        x,
        start_indices,
        dimension_numbers=dimension_numbers,
        slice_sizes=tuple(map(int, slice_sizes)),
        mode=chosen.value,
        fill_value=known_fill(x.dtype, fill_value) if chosen is GatherScatterMode.FILL_OR_DROP else None,
        unique_indices=bool(unique_indices),
    )


def known_fill(dtype: np.dtype, fill_value: ArrayLike | None) -> Any:  # Any: a Python number or None
    """A fill value as an attribute; None stands for the default, NaN among inexact numbers.

    Raises:
        TypeMismatchError: it is being traced, or is not a number.
    """
    if fill_value is None:
        return None
    value = trace.as_value(fill_value)
    if value.ndim or isinstance(value, trace.Tracer):
        raise errors.TypeMismatchError(
            "a fill value has to be a number known while tracing",
            got=str(value.type),
            fix="use mode='clip' and infini.numpy.where",
        )
    host = value.host if isinstance(value, Literal) else np.asarray(value)
    number = host.astype(dtype)
    # NaN differs from itself, which would make every program a new one.
    return None if dtypes.is_inexact(dtype) and number != number else number.item()


def index_take(src: ArrayLike, idxs: Sequence[ArrayLike], axes: Sequence[int]) -> Value:
    """Elements (or slices) of `src` at one vector of indices per axis, as `jax.lax.index_take`.

    Args:
        src: array to read.
        idxs: integer vectors of one length, one per axis; each counts modulo the size of its axis.
        axes: the indexed dimensions, which the result lacks; its first dimension runs over the vectors.

    Returns:
        An array of shape (length, other dimensions of `src`...).
    """
    x = trace.as_value(src)
    columns = []
    for vector, axis in zip(idxs, axes, strict=True):
        index = trace.as_value(vector)
        rest = families.bind_scalars(primitive.by_name("rem"), index, x.shape[axis])
        negative = families.bind_scalars(primitive.by_name("lt"), rest, 0)
        moved = families.bind_scalars(primitive.by_name("add"), rest, x.shape[axis])
        wrapped = trace.bind1(primitive.by_name("select_n"), negative, rest, moved)
        columns.append(view.expand_dims(wrapped, (1,)))
    others = [d for d in range(x.ndim) if d not in axes]
    numbers = GatherDimensionNumbers(tuple(range(1, len(others) + 1)), tuple(sorted(axes)), tuple(axes))
    sizes = [1 if d in axes else n for d, n in enumerate(x.shape)]
    return gather(x, view.concatenate(columns, 1), numbers, sizes)
