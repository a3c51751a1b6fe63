"""Reading by index: `x[...]`, `take`, `take_along_axis`, and positions of elements.

As in JAX, `x[...]` clamps indices outside the array. A basic index becomes a slice, every other one a gather.
Outside of tracing an index is one program whose operands are its numbers and arrays, so a loop over `x[i]`
compiles once.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from infini.core import backend, dtypes, errors, execute, ir, trace
from infini.core.array import Array
from infini.core.value import Value
from infini.lax import elementwise as e, indexing as lax_indexing, view
from infini.lax.families import bind_scalars
from infini.lax.indexing import GatherScatterMode
from infini.numpy import _axes, _eager, _index, _plan
from infini.numpy._index import Index, Range
from infini.numpy._promotion import ArrayLike, as_value, convert

IndexLike = Any  # Any: integers, slices, None, Ellipsis, integer or boolean arrays, and tuples of them


def getitem(x: Value, index: IndexLike) -> Value:
    """`x[index]`; indices outside the array are clamped.

    Raises:
        IndexOutOfRangeError: there are too many indices, or a slice has traced bounds.
        TypeMismatchError: a part of the index is of the wrong kind.
        NonConcreteBooleanIndexError: a boolean mask is being traced.
    """
    if type(index) is int and x.ndim and trace.is_eager() and isinstance(x, Array):
        length = x.shape[0]
        if 0 < length <= _index.INT32_MAX:
            number = _eager.index_array(
                _clamped(index + length if index < 0 else index, length), backend.default_device()
            )
            (row,) = _row(x.type)([x, number])
            return row.with_weak(x.weak)
    return read(x, index)


def _clamped(number: int, length: int) -> int:
    return min(max(number, 0), max(length - 1, 0))


# At most 1024 programs, the least recently used out first.
@functools.lru_cache(maxsize=1024)
def _row(type_: ir.ArrayType) -> execute.Runner:
    """The program that takes one index along the first dimension."""

    def take_row(x: Value, i: Value) -> list[Value]:
        rest = [trace.as_value(0)] * (x.ndim - 1)
        found = trace.bind1(lax_indexing.dynamic_slice_p, x, i, *rest, slice_sizes=(1, *x.shape[1:]))
        return [view.reshape(found, x.shape[1:])]

    staged = trace.stage(take_row, [type_, ir.ArrayType((), dtypes.int32)], name="row")
    return execute.Runner(staged.program)


def read(
    x: Value,
    index: IndexLike,
    *,
    mode: GatherScatterMode | str | None = None,
    fill_value: ArrayLike | None = None,
    unique_indices: bool = False,
    wrap_negative_indices: bool = True,
) -> Value:
    """`x.at[index].get(...)`; see there."""
    chosen = GatherScatterMode.from_any("promise_in_bounds" if mode is None else mode)
    structure, operands = _index.parse(index, x.shape, wraps=wrap_negative_indices)
    fill = lax_indexing.known_fill(x.dtype, _fill_scalar(fill_value))
    static = (structure, chosen, fill, bool(unique_indices), bool(wrap_negative_indices))
    return _eager.call(_read, static, [x, *operands])


def _fill_scalar(fill_value: ArrayLike | None) -> ArrayLike | None:
    if fill_value is not None and np.ndim(fill_value):
        raise errors.ValueMismatchError(
            "fill_value has to be a scalar", got=f"an array of shape {np.shape(fill_value)}"
        )
    return fill_value


def _read(
    structure: _index.Structure,
    mode: GatherScatterMode,
    fill: Any,  # Any: a Python number or None
    is_unique: bool,
    wraps: bool,
    x: Value,
    *operands: Value,
) -> Value:
    index = _index.join(structure, operands, wraps=wraps)
    x = view.expand_dims(x, structure.added) if structure.added else x
    is_clamped = mode in (GatherScatterMode.PROMISE_IN_BOUNDS, GatherScatterMode.CLIP)
    if index.is_basic and (is_clamped or structure.is_inside):
        return read_basic(x, index)
    plan = _plan.plan(index)
    if not np.prod(plan.shape):
        return view.full_like(x, 0, shape=plan.final_shape).with_weak(x.weak)
    found = lax_indexing.gather(
        x, plan.indices, plan.numbers, plan.slice_sizes,
        unique_indices=is_unique or plan.is_unique, mode=mode, fill_value=fill,
    )  # fmt: skip
    return view.reshape(view.rev(found, plan.reversed_dims), plan.final_shape)


def read_basic(x: Value, index: Index) -> Value:
    """An index of numbers, slices and new dimensions; numbers are clamped."""
    starts, window, strides, backwards = basic_window(index)
    if any(isinstance(start, Value) for start in starts):
        wide = dtypes.int64 if any(n > _index.INT32_MAX for n in x.shape) else dtypes.int32
        operands = [convert(start, wide) for start in starts]
        x = trace.bind1(lax_indexing.dynamic_slice_p, x, *operands, slice_sizes=tuple(window))
        starts = [0] * x.ndim
    first = [_clamped(int(s), n) for s, n in zip(starts, x.shape, strict=True)]
    x = view.slice(x, first, [s + n for s, n in zip(first, window, strict=True)], strides)
    return view.reshape(view.rev(x, backwards), index.basic_shape)


def basic_window(index: Index) -> tuple[list[int | Value], list[int], list[int], list[int]]:
    """Start, size and stride of a basic index along each dimension, and the dimensions it runs backwards."""
    starts: list[int | Value] = []
    window: list[int] = []
    strides: list[int] = []
    backwards: list[int] = []
    for dimension, part in enumerate(index.dimensions):
        if isinstance(part, Range):
            assert part.low is not None, "the operands of an index have been joined"
            starts.append(part.low)
            window.append(part.span)
            strides.append(abs(part.step))
            backwards += [dimension] if part.step < 0 else []
        else:
            starts.append(part)
            window.append(1)
            strides.append(1)
    return starts, window, strides, backwards


# --- take ---------------------------------------------------------------------------------------


def take(
    a: ArrayLike,
    indices: ArrayLike,
    axis: int | None = None,
    out: None = None,
    mode: str | None = None,
    unique_indices: bool = False,
    indices_are_sorted: bool = False,
    fill_value: ArrayLike | None = None,
) -> Value:
    """Elements at `indices` along an axis (of the flattened array when None), as `jax.numpy.take`.

    Args:
        a: array.
        indices: integers; negative ones count from the end, except with `clip`.
        axis: axis to read along.
        out: accepted for NumPy's sake; only None.
        mode: what indices outside give: `fill` (the default) `fill_value`, `clip` the nearest element, `wrap`
            those modulo the size. NumPy's `raise` is not there: a compiled program cannot raise.
        unique_indices: a promise that no index repeats; the gradient is cheaper then.
        indices_are_sorted: a hint, not used.
        fill_value: NaN, the smallest signed or the largest unsigned integer, or True when absent.

    Returns:
        The shape of `a` with `indices.shape` in place of the axis.

    Raises:
        ValueMismatchError: `indices` are not integers, or the mode or axis does not exist.
        IndexOutOfRangeError: the axis has no elements and `indices` has.
        MissingRuleError: `out` is given, or the mode is `raise`.
    """
    x, at = as_value("take", a), as_value("take", indices)
    _axes.refuse_out("take", out)
    if mode not in _TAKE_MODES:
        refuse_mode("take", mode, _TAKE_MODES)
    if at.dtype == dtypes.bool_:
        at = convert(at, dtypes.int32)
    if at.dtype not in dtypes.INTEGERS:
        raise errors.ValueMismatchError(
            "take needs integer indices", got=str(at.type), fix="convert them with .astype('int32')"
        )
    place = None if axis is None else _axes.one("take", axis, x.ndim)
    length = x.size if place is None else x.shape[place]
    if not length and at.size:
        raise errors.IndexOutOfRangeError(
            "take: nothing can be taken from an axis without elements", got=str(x.type)
        )
    fill = lax_indexing.known_fill(x.dtype, _fill_scalar(fill_value))
    return _eager.call(_take, (place, mode, bool(unique_indices), fill), [x, at])


_TAKE_MODES = (None, "fill", "clip", "wrap")


def refuse_mode(name: str, mode: str | None, allowed: tuple[str | None, ...]) -> None:
    """Refuse a mode that a function does not have."""
    expected = ", ".join(str(m) for m in allowed if m is not None)
    if mode == "raise":
        raise errors.MissingRuleError(
            f"{name}: the mode 'raise' is not supported, since compiled programs cannot raise",
            expected=expected,
        )
    raise errors.ValueMismatchError(f"{name}: there is no mode {mode!r}", expected=expected)


def _take(axis: int | None, mode: str | None, is_unique: bool, fill: Any, x: Value, at: Value) -> Value:
    if axis is None:
        x, axis = view.reshape(x, (x.size,)), 0
    length = x.shape[axis]
    shape = (*x.shape[:axis], *at.shape, *x.shape[axis + 1 :])
    if not np.prod(shape):
        return view.full_like(x, 0, shape=shape).with_weak(x.weak)
    column = modulo(at, length) if mode == "wrap" else _index.wrapped(at, length, wraps=mode != "clip")
    offsets = (*range(axis), *range(axis + at.ndim, len(shape)))
    numbers = lax_indexing.GatherDimensionNumbers(offsets, (axis,), (axis,))
    return lax_indexing.gather(
        x, view.expand_dims(column, (at.ndim,)), numbers, (*x.shape[:axis], 1, *x.shape[axis + 1 :]),
        unique_indices=is_unique, mode={"wrap": "promise_in_bounds", "clip": "clip"}.get(mode or "", "fill"),
        fill_value=fill,
    )  # fmt: skip


def modulo(at: Value, length: int) -> Value:
    """Indices modulo a size, counted from 0."""
    column = _index.wrapped(at, length, wraps=False)
    rest = bind_scalars(e.rem_p, column, length)
    is_negative = bind_scalars(e.lt_p, rest, 0)
    return trace.bind1(e.select_n_p, is_negative, rest, bind_scalars(e.add_p, rest, length))


def take_along_axis(
    arr: ArrayLike,
    indices: ArrayLike,
    axis: int | None = -1,
    mode: GatherScatterMode | str | None = None,
    fill_value: ArrayLike | None = None,
    *,
    wrap_negative_indices: bool | None = None,
) -> Value:
    """Elements at `indices` along an axis, row by row, as `jax.numpy.take_along_axis`.

    Args:
        arr: array.
        indices: integers with as many dimensions as `arr`; the others broadcast.
        axis: axis to read along; the flattened array when None, and `indices` is a vector then.
        mode: what indices outside give: `fill` (the default) `fill_value`, `clip` the nearest element,
            `one_hot` zero; `promise_in_bounds` promises that there are none.
        fill_value: NaN, the smallest signed or the largest unsigned integer, or True when absent.
        wrap_negative_indices: whether negative indices count from the end; when absent they do, except with
            `promise_in_bounds`.

    Raises:
        ValueMismatchError: the numbers of dimensions differ, or other dimensions do not broadcast.
        TypeMismatchError: `indices` are not integers.
    """
    x, at = as_value("take_along_axis", arr), as_value("take_along_axis", indices)
    if at.dtype not in dtypes.INTEGERS:
        raise errors.TypeMismatchError(
            "take_along_axis needs integer indices",
            got=str(at.type),
            fix="convert them with .astype('int32')",
        )
    if axis is None:
        x, axis = view.reshape(x, (x.size,)), 0
    if x.ndim != at.ndim:
        raise errors.ValueMismatchError(
            "take_along_axis: array and indices have different numbers of dimensions",
            got=f"{x.type}, {at.type}",
        )
    place = _axes.one("take_along_axis", axis, x.ndim)
    chosen = GatherScatterMode.from_any(mode)
    wraps = chosen is not GatherScatterMode.PROMISE_IN_BOUNDS
    if wrap_negative_indices is not None:
        wraps = bool(wrap_negative_indices)
    shape = _axes.broadcast(
        "take_along_axis", at.shape, tuple(1 if d == place else n for d, n in enumerate(x.shape))
    )
    fill = lax_indexing.known_fill(x.dtype, _fill_scalar(fill_value))
    if chosen is GatherScatterMode.ONE_HOT:
        chosen, fill = GatherScatterMode.FILL_OR_DROP, 0
    return _eager.call(_take_along_axis, (place, shape, chosen, fill, wraps), [x, at])


def _take_along_axis(
    axis: int, shape: ir.Shape, mode: GatherScatterMode, fill: Any, wraps: bool, x: Value, at: Value
) -> Value:
    if not np.prod(shape) or not x.shape[axis]:
        return view.full_like(x, 0, shape=shape).with_weak(x.weak)
    column = _index.wrapped(at, x.shape[axis], wraps=wraps)
    # Dimensions of size 1 in the indices are read whole; those of size 1 in the array are dropped.
    whole = [d for d in range(x.ndim) if d != axis and at.shape[d] == 1]
    dropped = [d for d in range(x.ndim) if d != axis and at.shape[d] != 1 and x.shape[d] == 1]
    kept = [d for d in range(x.ndim) if d not in dropped]
    batched = [d for d in kept if d != axis and d not in whole]
    of_indices = [d for d in range(x.ndim) if d not in whole]
    numbers = lax_indexing.GatherDimensionNumbers(
        tuple(whole),
        (kept.index(axis),),
        (kept.index(axis),),
        tuple(kept.index(d) for d in batched),
        tuple(of_indices.index(d) for d in batched),
    )
    sizes = [x.shape[d] if d in whole else 1 for d in kept]
    column = view.reshape(column, [*(at.shape[d] for d in of_indices), 1])
    return lax_indexing.gather(view.squeeze(x, dropped), column, numbers, sizes, mode=mode, fill_value=fill)
