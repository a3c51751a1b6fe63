"""Reading and updating by index: `x[...]`, `x.at[...]`, `take`, `take_along_axis`.

As in JAX, reads outside the array are clamped and writes there are dropped. A basic index becomes a slice; run outside tracing
its integers are operands of a dynamic slice, so a loop over `x[i]` compiles once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from infini.core import dtypes, errors, trace
from infini.core.value import Literal, Value
from infini.lax import elementwise as e
from infini.lax import indexing as lax_indexing
from infini.lax import view
from infini.lax.families import broadcast_to
from infini.numpy import _axes, _index, creation
from infini.numpy._index import Item, Range
from infini.numpy._promotion import ArrayLike, as_value, convert, with_weak

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
    narrow = _read_basic(x, tuple(p if isinstance(p, Range) else _whole(n) for p, n in _by_dimension(parts, x.shape)))
    parts = tuple(Range(0, p.size, 1, p.size) if isinstance(p, Range) else p for p in parts)
    if all(isinstance(p, Range) or p is None for p in parts):
        return view.reshape(narrow, tuple(1 if p is None else p.size for p in parts if p is None or isinstance(p, Range)))
    plan = _index.plan(parts, narrow.shape)
    found = lax_indexing.gather(
        narrow, plan.indices, plan.gather_numbers(), plan.slice_sizes(narrow.shape),
        mode=mode or "clip", fill_value=_fill(fill_value),
    )  # fmt: skip
    return view.reshape(found, plan.final_shape)


def _fill(fill_value: ArrayLike | None) -> Any:  # Any: a Python number or None
    return fill_value.item() if isinstance(fill_value, (Value, np.ndarray, np.generic)) else fill_value


def _whole(length: int) -> Range:
    return Range(0, length, 1, length)


def _by_dimension(parts: tuple[Item, ...], shape: tuple[int, ...]) -> list[tuple[Item, int]]:
    return list(zip([part for part in parts if part is not None], shape, strict=True))


def _read_basic(x: Value, parts: tuple[Item, ...]) -> Value:
    """An index of integers, scalars, slices and new dimensions."""
    is_eager = trace.is_eager()
    starts: list[int | Value] = []
    window: list[int] = []  # what the dynamic slice takes
    steps: list[tuple[int, int]] = []  # what is left to do with it: first element and step
    for part, length in _by_dimension(parts, x.shape):
        if isinstance(part, Range):
            is_plain = part.step == 1
            starts.append(part.start if is_plain else 0)
            window.append(part.size if is_plain else length)
            steps.append((0, 1) if is_plain else (part.start, part.step))
        else:
            starts.append(_clamped(part, length))
            window.append(1)
            steps.append((0, 1))
    result = x
    if tuple(window) != x.shape or any(isinstance(start, Value) for start in starts):
        if is_eager or not _index.is_static(parts):
            operands = [s if isinstance(s, Value) else Literal(np.asarray(s, np.int32), weak=False) for s in starts]
            result = trace.bind1(lax_indexing.dynamic_slice_p, x, *operands, slice_sizes=tuple(window))
        else:
            stops = [int(s) + n for s, n in zip(starts, window, strict=True)]  # type: ignore[arg-type]  # all are ints
            result = view.slice(x, starts, stops)  # type: ignore[arg-type]  # all are ints
    result = _strided(result, parts, steps)
    shape = tuple(1 if p is None else p.size for p in parts if p is None or isinstance(p, Range))
    return view.reshape(result, shape)


def _clamped(part: Item, length: int) -> int | Value:
    """A scalar index counted from 0; Python integers are clamped here, run-time ones by the dynamic slice."""
    if isinstance(part, Value):
        return _index.wrapped(part, length)
    assert isinstance(part, int)
    return min(max(part + length if part < 0 else part, 0), max(length - 1, 0))


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


# --- updates ------------------------------------------------------------------------------------


class IndexUpdateHelper:
    """`x.at`: `x.at[index].set(y)` is a copy of `x` with other elements; under `jit` it is made in place when `x` is dead."""

    __slots__ = ("array",)

    def __init__(self, array: Value) -> None:
        self.array = array

    def __getitem__(self, index: Index) -> IndexUpdateRef:
        return IndexUpdateRef(self.array, index)

    def __repr__(self) -> str:
        return f"IndexUpdateHelper({self.array!r})"


@dataclass(frozen=True, slots=True, eq=False)
class IndexUpdateRef:
    """One place of an array, to be read or written. Writes outside the array are dropped."""

    array: Value
    index: Index

    def get(
        self, *, mode: str | None = None, fill_value: ArrayLike | None = None, indices_are_sorted: bool = False,
        unique_indices: bool = False,
    ) -> Value:  # fmt: skip
        """`x[index]`; `mode="fill"` gives `fill_value` (NaN when absent) outside the array."""
        return getitem(self.array, self.index, mode=mode, fill_value=fill_value)

    def set(
        self, values: ArrayLike, *, indices_are_sorted: bool = False, unique_indices: bool = False, mode: str | None = None
    ) -> Value:
        """The array with `values` there."""
        return _update(self.array, self.index, values, None, lax_indexing.scatter_p, mode)

    def add(
        self, values: ArrayLike, *, indices_are_sorted: bool = False, unique_indices: bool = False, mode: str | None = None
    ) -> Value:
        """The array with `values` added there; equal indices add up."""
        return _update(self.array, self.index, values, e.add_p, lax_indexing.scatter_add_p, mode)

    def subtract(
        self, values: ArrayLike, *, indices_are_sorted: bool = False, unique_indices: bool = False, mode: str | None = None
    ) -> Value:
        """The array with `values` subtracted there; equal indices add up."""
        negative = trace.bind1(e.neg_p, _as_update(self.array, values))
        return _update(self.array, self.index, negative, e.add_p, lax_indexing.scatter_add_p, mode)

    def multiply(
        self, values: ArrayLike, *, indices_are_sorted: bool = False, unique_indices: bool = False, mode: str | None = None
    ) -> Value:
        """The array multiplied by `values` there; not for arrays of indices."""
        return _update(self.array, self.index, values, e.mul_p, None, mode)

    def divide(
        self, values: ArrayLike, *, indices_are_sorted: bool = False, unique_indices: bool = False, mode: str | None = None
    ) -> Value:
        """The array divided by `values` there; not for arrays of indices."""
        return _update(self.array, self.index, values, e.div_p, None, mode)

    def min(
        self, values: ArrayLike, *, indices_are_sorted: bool = False, unique_indices: bool = False, mode: str | None = None
    ) -> Value:
        """The smaller of the array and `values` there; not for arrays of indices."""
        return _update(self.array, self.index, values, e.min_p, None, mode)

    def max(
        self, values: ArrayLike, *, indices_are_sorted: bool = False, unique_indices: bool = False, mode: str | None = None
    ) -> Value:
        """The larger of the array and `values` there; not for arrays of indices."""
        return _update(self.array, self.index, values, e.max_p, None, mode)

    mul = multiply

    def apply(self, func: Callable[[Value], Value]) -> Value:
        """The array with `func` applied there; not for arrays of indices."""
        parts = _index.items(self.index, self.array.shape)
        _refuse_arrays("apply", parts)
        return self.set(func(getitem(self.array, self.index)))


def _as_update(x: Value, values: ArrayLike) -> Value:
    return convert(values if type(values) in (bool, int, float) else as_value("at", values), x.dtype)


def _update(x: Value, index: Index, values: ArrayLike, op: Any, scatter: Any, mode: str | None) -> Value:  # Any: operations
    update = _as_update(x, values)
    masked = _masked_update(x, index, update, op)
    if masked is not None:
        return masked
    parts = _index.items(index, x.shape)
    outside = any(isinstance(p, int) and not -n <= p < n for p, n in _by_dimension(parts, x.shape))
    if outside and mode in (None, "drop", "fill") and _index.is_basic(parts):
        return x
    if _index.is_static(parts) and all(p.step == 1 for p in parts if isinstance(p, Range)):
        return _update_slice(x, parts, update, op)
    if scatter is None:
        _refuse_arrays("this update", parts)
        update = trace.bind1(op, getitem(x, index), update)
        scatter = lax_indexing.scatter_p
    if all(isinstance(p, Range) or p is None for p in parts):
        return _update_strided(x, parts, update, scatter)
    plan = _index.plan(parts, x.shape)
    window = view.reshape(_fitted(update, plan.final_shape), plan.shape)
    chosen = lax_indexing.GatherScatterMode.from_any(mode).value
    return trace.bind1(scatter, x, plan.indices, window, dimension_numbers=plan.scatter_numbers(), mode=chosen)


def _fitted(update: Value, shape: tuple[int, ...]) -> Value:
    """The update broadcast to the shape of the place; leading dimensions of size 1 may be missing there."""
    while update.ndim > len(shape) and update.shape[0] == 1:
        update = view.reshape(update, update.shape[1:])
    fits = update.ndim <= len(shape) and all(
        n in (1, m) for n, m in zip(update.shape[::-1], shape[::-1], strict=False)
    )
    if not fits:
        raise errors.ValueMismatchError(
            "an update does not fit the place it is written to", got=str(update.type), expected=f"a shape that broadcasts to {shape}"
        )
    return broadcast_to(update, shape)


def _masked_update(x: Value, index: Index, update: Value, op: Any) -> Value | None:  # Any: an operation or None
    """A scalar written under one mask is a choice, which needs no positions and may be traced."""
    is_mask = isinstance(index, (Value, np.ndarray)) and index.dtype == dtypes.bool_
    if not is_mask or update.ndim or index.shape != x.shape[: index.ndim]:
        return None
    mask = view.reshape(trace.as_value(index), index.shape + (1,) * (x.ndim - index.ndim))
    new = update if op is None else trace.bind1(op, x, update)
    return with_weak(trace.bind1(e.select_n_p, mask, x, new), x.weak)


def _update_slice(x: Value, parts: tuple[Item, ...], update: Value, op: Any) -> Value:  # Any: an operation or None
    starts, window, shape = [], [], []
    for part, length in _by_dimension(parts, x.shape):
        starts.append(part.start if isinstance(part, Range) else _clamped(part, length))
        window.append(part.size if isinstance(part, Range) else 1)
    shape = [1 if p is None else p.size for p in parts if p is None or isinstance(p, Range)]
    new = view.reshape(_fitted(update, tuple(shape)), window)
    operands = [s if isinstance(s, Value) else Literal(np.asarray(s, np.int32), weak=False) for s in starts]
    if op is not None:
        old = trace.bind1(lax_indexing.dynamic_slice_p, x, *operands, slice_sizes=tuple(window))
        new = trace.bind1(op, old, new)
    if tuple(window) == x.shape:
        return with_weak(new, x.weak)
    return with_weak(trace.bind1(lax_indexing.dynamic_update_slice_p, x, new, *operands), x.weak)


def _update_strided(x: Value, parts: tuple[Item, ...], update: Value, scatter: Any) -> Value:  # Any: an operation
    # A scatter needs an indexed dimension: index a new leading dimension of size 1 at 0.
    wide = view.expand_dims(x, (0,))
    shape = tuple(1 if p is None else p.size for p in parts if p is None or isinstance(p, Range))
    plan = _index.plan((0, *parts), wide.shape)
    window = view.reshape(_fitted(update, shape), plan.shape)
    result = trace.bind1(scatter, wide, plan.indices, window, dimension_numbers=plan.scatter_numbers(), mode="fill")
    return view.reshape(result, x.shape)


def _refuse_arrays(name: str, parts: tuple[Item, ...]) -> None:
    if not _index.is_basic(parts):
        raise errors.MissingRuleError(
            f"{name} does not take arrays of indices",
            expected="integers and slices",
            fix="where the indices are unique, use x.at[i].set(f(x[i])); sums of equal indices are x.at[i].add",
        )


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
        mode: what indices outside give: `fill` (the default) `fill_value`, `clip` the last element, `wrap` those modulo the size.
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
    parts: list[Item] = [_whole(n) for n in x.shape]
    parts[place] = at
    plan = _index.plan(parts, x.shape)
    chosen = "clip" if mode == "wrap" else lax_indexing.GatherScatterMode.from_any(mode)
    found = lax_indexing.gather(
        x, plan.indices, plan.gather_numbers(), plan.slice_sizes(x.shape), mode=chosen, fill_value=_fill(fill_value)
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
    arr: ArrayLike, indices: ArrayLike, axis: int | None = -1, mode: str | None = None, fill_value: ArrayLike | None = None
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
            "take_along_axis: array and indices have different numbers of dimensions", got=f"{x.type}, {at.type}"
        )
    place = _axes.one("take_along_axis", axis, x.ndim)
    length = x.shape[place]
    others = tuple(d for d in range(x.ndim) if d != place)
    try:
        common = np.broadcast_shapes(*([v.shape[d] for d in others] for v in (x, at)))
    except ValueError:
        raise errors.ValueMismatchError("take_along_axis: other dimensions do not broadcast", got=f"{x.type}, {at.type}") from None
    x, at = (broadcast_to(v, (*common[:place], v.shape[place], *common[place:])) for v in (x, at))
    columns = view.expand_dims(_index.wrapped(at, length), (at.ndim,))
    numbers = lax_indexing.GatherDimensionNumbers((), (place,), (place,), others, others)
    return lax_indexing.gather(x, columns, numbers, (1,) * x.ndim, mode=mode, fill_value=_fill(fill_value))


def nonzero(a: ArrayLike) -> tuple[Value, ...]:
    """Positions of the elements that are not zero, one int32 vector per dimension; outside tracing only, since sizes vary.

    Raises:
        ConcretizationError: `a` is being traced.
    """
    return tuple(creation.asarray(found.astype(np.int32)) for found in np.nonzero(np.asarray(as_value("nonzero", a))))


def flatnonzero(a: ArrayLike) -> Value:
    """Positions in the flattened array of the elements that are not zero; outside tracing only."""
    x = as_value("flatnonzero", a)
    return nonzero(view.reshape(x, (x.size,)))[0]


def argwhere(a: ArrayLike) -> Value:
    """Positions of the elements that are not zero, one row each; outside tracing only."""
    return creation.asarray(np.argwhere(np.asarray(as_value("argwhere", a))).astype(np.int32))
