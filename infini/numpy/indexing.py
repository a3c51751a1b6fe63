"""Reading by index: `x[...]`, `take`, `take_along_axis`, and positions of elements.

As in JAX, `x[...]` clamps indices outside the array. A basic index becomes a slice; run outside tracing its
integers are operands of a dynamic slice, so a loop over `x[i]` compiles once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from infini.core import dtypes, errors, trace
from infini.core.value import Literal, Value
from infini.lax import elementwise as e, indexing as lax_indexing, view
from infini.lax.families import bind_scalars, broadcast_to
from infini.numpy import _axes, _index, creation
from infini.numpy._index import Item, Range
from infini.numpy._promotion import ArrayLike, as_value, convert

Index = Any  # Any: integers, slices, None, Ellipsis, integer or boolean arrays, and tuples of them


def getitem(x: Value, index: Index, *, mode: str | None = None, fill_value: ArrayLike | None = None) -> Value:
    """`x[index]`.

    Raises:
        IndexOutOfRangeError: there are too many indices, or a slice has traced bounds.
        TypeMismatchError: a part of the index is of the wrong kind.
        ConcretizationError: a boolean mask is being traced.
    """
    parts = _index.items(index, x.shape)
    if _index.is_basic(parts) and mode is None:
        return _read_basic(x, parts)
    narrow = _read_basic(
        x,
        tuple(p if isinstance(p, Range) else _index.whole(n) for p, n in _index.by_dimension(parts, x.shape)),
    )
    parts = tuple(Range(0, p.size, 1, p.size) if isinstance(p, Range) else p for p in parts)
    if all(isinstance(p, Range) or p is None for p in parts):
        return view.reshape(narrow, _index.basic_shape(parts))
    plan = _index.plan(parts, narrow.shape)
    found = lax_indexing.gather(
        narrow, plan.indices, plan.gather_numbers(), plan.slice_sizes(narrow.shape),
        mode=mode or "clip", fill_value=_fill(fill_value),
    )  # fmt: skip
    return view.reshape(found, plan.final_shape)


def _fill(fill_value: ArrayLike | None) -> Any:  # Any: a Python number or None
    return fill_value.item() if isinstance(fill_value, (Value, np.ndarray, np.generic)) else fill_value


def _read_basic(x: Value, parts: tuple[Item, ...]) -> Value:
    """An index of integers, scalars, slices and new dimensions."""
    is_eager = trace.is_eager()
    starts: list[int | Value] = []
    window: list[int] = []  # what the dynamic slice takes
    steps: list[tuple[int, int]] = []  # what is left to do with it: first element and step
    for part, length in _index.by_dimension(parts, x.shape):
        if isinstance(part, Range):
            is_plain = part.step == 1
            starts.append(part.start if is_plain else 0)
            window.append(part.size if is_plain else length)
            steps.append((0, 1) if is_plain else (part.start, part.step))
        else:
            starts.append(_index.clamped(part, length))
            window.append(1)
            steps.append((0, 1))
    result = x
    if tuple(window) != x.shape or any(isinstance(start, Value) for start in starts):
        if is_eager or not _index.is_static(parts):
            operands = [
                s if isinstance(s, Value) else Literal(np.asarray(s, np.int32), weak=False) for s in starts
            ]
            result = trace.bind1(lax_indexing.dynamic_slice_p, x, *operands, slice_sizes=tuple(window))
        else:
            stops = [int(s) + n for s, n in zip(starts, window, strict=True)]
            result = view.slice(x, starts, stops)  # type: ignore[arg-type]  # all are ints
    return view.reshape(_strided(result, parts, steps), _index.basic_shape(parts))


def _strided(x: Value, parts: tuple[Item, ...], steps: list[tuple[int, int]]) -> Value:
    """Slices in steps, backwards ones too."""
    if all(step == 1 for _, step in steps):
        return x
    start, limit, strides, backwards = [], [], [], []
    ranges = [part for part in parts if part is not None]
    for d, ((first, step), part) in enumerate(zip(steps, ranges, strict=True)):
        count = part.size if isinstance(part, Range) else 1
        low, high = (first, first + (count - 1) * step) if step > 0 else (first + (count - 1) * step, first)
        is_plain = step == 1
        start.append(0 if is_plain or not count else low)
        limit.append(x.shape[d] if is_plain else high + 1 if count else 0)
        strides.append(abs(step))
        if step < 0:
            backwards.append(d)
    return view.rev(view.slice(x, start, limit, strides), backwards)


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
        indices: integers; negative ones count from the end.
        axis: axis to read along.
        out: accepted for NumPy's sake; only None.
        mode: what indices outside give: `fill` (the default) `fill_value`, `clip` the last element, `wrap`
            those modulo the size.
        unique_indices: a hint, not used.
        indices_are_sorted: a hint, not used.
        fill_value: NaN, the smallest signed or the largest unsigned integer when absent.

    Returns:
        The shape of `a` with `indices.shape` in place of the axis.

    Raises:
        TypeMismatchError: `indices` are not integers.
    """
    x, at = as_value("take", a), _integers("take", indices)
    if axis is None:
        x, axis = view.reshape(x, (x.size,)), 0
    place = _axes.one("take", axis, x.ndim)
    if mode == "wrap":
        at = _modulo(at, x.shape[place])
    elif mode == "clip" and at.dtype in dtypes.SIGNED:
        at = bind_scalars(e.max_p, at, 0)  # here a negative index does not count from the end
    parts: list[Item] = [_index.whole(n) for n in x.shape]
    parts[place] = at
    plan = _index.plan(parts, x.shape)
    chosen = "clip" if mode == "wrap" else lax_indexing.GatherScatterMode.from_any(mode)
    found = lax_indexing.gather(
        x,
        plan.indices,
        plan.gather_numbers(),
        plan.slice_sizes(x.shape),
        mode=chosen,
        fill_value=_fill(fill_value),
    )
    return view.reshape(found, plan.final_shape)


def _integers(name: str, indices: ArrayLike) -> Value:
    at = as_value(name, creation.asarray(indices) if isinstance(indices, (list, tuple)) else indices)
    if at.dtype not in dtypes.INTEGERS:
        raise errors.TypeMismatchError(
            f"{name} needs integer indices", got=str(at.type), fix="convert them with .astype('int32')"
        )
    return at


def _modulo(at: Value, length: int) -> Value:
    wide = convert(at, dtypes.int32)
    size = convert(length, dtypes.int32)
    rest = trace.bind1(e.rem_p, wide, size)
    is_negative = trace.bind1(e.lt_p, rest, convert(0, dtypes.int32))
    return trace.bind1(e.select_n_p, is_negative, rest, trace.bind1(e.add_p, rest, size))


def take_along_axis(
    arr: ArrayLike,
    indices: ArrayLike,
    axis: int | None = -1,
    mode: str | None = None,
    fill_value: ArrayLike | None = None,
) -> Value:
    """Elements at `indices` along an axis, row by row, as `jax.numpy.take_along_axis`.

    Args:
        arr: array.
        indices: integers with as many dimensions as `arr`; the others broadcast.
        axis: axis to read along; the flattened array when None.
        mode: what indices outside give: `fill` (the default) `fill_value`, or `clip` the last element.
        fill_value: NaN, the smallest signed or the largest unsigned integer when absent.

    Raises:
        ValueMismatchError: the numbers of dimensions differ.
        TypeMismatchError: `indices` are not integers.
    """
    x, at = as_value("take_along_axis", arr), _integers("take_along_axis", indices)
    if axis is None:
        x, axis = view.reshape(x, (x.size,)), 0
    if x.ndim != at.ndim:
        raise errors.ValueMismatchError(
            "take_along_axis: array and indices have different numbers of dimensions",
            got=f"{x.type}, {at.type}",
        )
    place = _axes.one("take_along_axis", axis, x.ndim)
    length = x.shape[place]
    others = tuple(d for d in range(x.ndim) if d != place)
    try:
        common = np.broadcast_shapes(*([v.shape[d] for d in others] for v in (x, at)))
    except ValueError:
        raise errors.ValueMismatchError(
            "take_along_axis: other dimensions do not broadcast", got=f"{x.type}, {at.type}"
        ) from None
    x, at = (broadcast_to(v, (*common[:place], v.shape[place], *common[place:])) for v in (x, at))
    columns = view.expand_dims(_index.wrapped(at, length), (at.ndim,))
    numbers = lax_indexing.GatherDimensionNumbers((), (place,), (place,), others, others)
    return lax_indexing.gather(x, columns, numbers, (1,) * x.ndim, mode=mode, fill_value=_fill(fill_value))


def nonzero(a: ArrayLike) -> tuple[Value, ...]:
    """Positions of the elements that are not zero, one int32 vector per dimension; outside tracing only,
    since sizes vary.

    Raises:
        ConcretizationError: `a` is being traced.
    """
    return tuple(
        creation.asarray(found.astype(np.int32)) for found in np.nonzero(np.asarray(as_value("nonzero", a)))
    )


def flatnonzero(a: ArrayLike) -> Value:
    """Positions in the flattened array of the elements that are not zero; outside tracing only."""
    x = as_value("flatnonzero", a)
    return nonzero(view.reshape(x, (x.size,)))[0]


def argwhere(a: ArrayLike) -> Value:
    """Positions of the elements that are not zero, one row each; outside tracing only."""
    return creation.asarray(np.argwhere(np.asarray(as_value("argwhere", a))).astype(np.int32))
