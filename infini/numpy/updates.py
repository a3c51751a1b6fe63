"""Copies with other elements at an index: `x.at[index].set(y)` and its kind. Writes outside the array are
dropped, as in JAX.

A slice becomes a dynamic update slice, arrays of indices a scatter; under `jit` both happen in place when
`x` is dead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from infini.core import dtypes, errors, trace
from infini.core.value import Value
from infini.lax import elementwise as e, indexing as lax_indexing, view
from infini.lax.families import broadcast_to
from infini.numpy import _index, indexing
from infini.numpy._index import Item, Range
from infini.numpy._promotion import ArrayLike, as_value, convert, with_weak

Index = Any  # Any: integers, slices, None, Ellipsis, integer or boolean arrays, and tuples of them


class IndexUpdateHelper:
    """`x.at`: `x.at[index].set(y)` is a copy of `x` with other elements; under `jit` it is made in place
    when `x` is dead."""

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
        self,
        *,
        mode: str | None = None,
        fill_value: ArrayLike | None = None,
        indices_are_sorted: bool = False,
        unique_indices: bool = False,
    ) -> Value:
        """`x[index]`; `mode="fill"` gives `fill_value` (NaN when absent) outside the array."""
        return indexing.getitem(self.array, self.index, mode=mode, fill_value=fill_value)

    def set(
        self,
        values: ArrayLike,
        *,
        indices_are_sorted: bool = False,
        unique_indices: bool = False,
        mode: str | None = None,
    ) -> Value:
        """The array with `values` there."""
        return _update(self.array, self.index, values, None, lax_indexing.scatter_p, mode)

    def add(
        self,
        values: ArrayLike,
        *,
        indices_are_sorted: bool = False,
        unique_indices: bool = False,
        mode: str | None = None,
    ) -> Value:
        """The array with `values` added there; equal indices add up."""
        return _update(self.array, self.index, values, e.add_p, lax_indexing.scatter_add_p, mode)

    def subtract(
        self,
        values: ArrayLike,
        *,
        indices_are_sorted: bool = False,
        unique_indices: bool = False,
        mode: str | None = None,
    ) -> Value:
        """The array with `values` subtracted there; equal indices add up."""
        negative = trace.bind1(e.neg_p, _as_update(self.array, values))
        return _update(self.array, self.index, negative, e.add_p, lax_indexing.scatter_add_p, mode)

    def multiply(
        self,
        values: ArrayLike,
        *,
        indices_are_sorted: bool = False,
        unique_indices: bool = False,
        mode: str | None = None,
    ) -> Value:
        """The array multiplied by `values` there; not for arrays of indices."""
        return _update(self.array, self.index, values, e.mul_p, None, mode)

    def divide(
        self,
        values: ArrayLike,
        *,
        indices_are_sorted: bool = False,
        unique_indices: bool = False,
        mode: str | None = None,
    ) -> Value:
        """The array divided by `values` there; not for arrays of indices."""
        return _update(self.array, self.index, values, e.div_p, None, mode)

    def min(
        self,
        values: ArrayLike,
        *,
        indices_are_sorted: bool = False,
        unique_indices: bool = False,
        mode: str | None = None,
    ) -> Value:
        """The smaller of the array and `values` there; not for arrays of indices."""
        return _update(self.array, self.index, values, e.min_p, None, mode)

    def max(
        self,
        values: ArrayLike,
        *,
        indices_are_sorted: bool = False,
        unique_indices: bool = False,
        mode: str | None = None,
    ) -> Value:
        """The larger of the array and `values` there; not for arrays of indices."""
        return _update(self.array, self.index, values, e.max_p, None, mode)

    mul = multiply

    def apply(self, func: Callable[[Value], Value]) -> Value:
        """The array with `func` applied there; not for arrays of indices."""
        parts = _index.items(self.index, self.array.shape)
        _refuse_arrays("apply", parts)
        return self.set(func(indexing.getitem(self.array, self.index)))


def _as_update(x: Value, values: ArrayLike) -> Value:
    return convert(values if type(values) in (bool, int, float) else as_value("at", values), x.dtype)


def _update(
    x: Value, index: Index, values: ArrayLike, op: Any, scatter: Any, mode: str | None
) -> Value:  # Any: operations
    update = _as_update(x, values)
    masked = _masked_update(x, index, update, op)
    if masked is not None:
        return masked
    parts = _index.items(index, x.shape)
    outside = any(isinstance(p, int) and not -n <= p < n for p, n in _index.by_dimension(parts, x.shape))
    if outside and mode in (None, "drop", "fill") and _index.is_basic(parts):
        return x
    if _index.is_static(parts) and all(p.step == 1 for p in parts if isinstance(p, Range)):
        return _update_slice(x, parts, update, op)
    if scatter is None:
        _refuse_arrays("this update", parts)
        update = trace.bind1(op, indexing.getitem(x, index), update)
        scatter = lax_indexing.scatter_p
    if all(isinstance(p, Range) or p is None for p in parts):
        return _update_strided(x, parts, update, scatter)
    plan = _index.plan(parts, x.shape)
    window = view.reshape(_fitted(update, plan.final_shape), plan.shape)
    chosen = lax_indexing.GatherScatterMode.from_any(mode).value
    return trace.bind1(
        scatter, x, plan.indices, window, dimension_numbers=plan.scatter_numbers(), mode=chosen
    )


def _fitted(update: Value, shape: tuple[int, ...]) -> Value:
    """The update broadcast to the shape of the place; leading dimensions of size 1 may be missing there."""
    while update.ndim > len(shape) and update.shape[0] == 1:
        update = view.reshape(update, update.shape[1:])
    fits = update.ndim <= len(shape) and all(
        n in (1, m) for n, m in zip(update.shape[::-1], shape[::-1], strict=False)
    )
    if not fits:
        raise errors.ValueMismatchError(
            "an update does not fit the place it is written to",
            got=str(update.type),
            expected=f"a shape that broadcasts to {shape}",
        )
    return broadcast_to(update, shape)


def _masked_update(
    x: Value, index: Index, update: Value, op: Any
) -> Value | None:  # Any: an operation or None
    """A scalar written under one mask is a choice, which needs no positions and may be traced."""
    is_mask = isinstance(index, (Value, np.ndarray)) and index.dtype == dtypes.bool_
    if not is_mask or update.ndim or index.shape != x.shape[: index.ndim]:
        return None
    mask = view.reshape(trace.as_value(index), index.shape + (1,) * (x.ndim - index.ndim))
    new = update if op is None else trace.bind1(op, x, update)
    return with_weak(trace.bind1(e.select_n_p, mask, x, new), x.weak)


def _update_slice(
    x: Value, parts: tuple[Item, ...], update: Value, op: Any
) -> Value:  # Any: an operation or None
    starts, window = [], []
    for part, length in _index.by_dimension(parts, x.shape):
        starts.append(part.start if isinstance(part, Range) else _index.clamped(part, length))
        window.append(part.size if isinstance(part, Range) else 1)
    new = view.reshape(_fitted(update, _index.basic_shape(parts)), window)
    operands = [convert(start, dtypes.int32) for start in starts]
    if op is not None:
        old = trace.bind1(lax_indexing.dynamic_slice_p, x, *operands, slice_sizes=tuple(window))
        new = trace.bind1(op, old, new)
    if tuple(window) == x.shape:
        return with_weak(new, x.weak)
    return with_weak(trace.bind1(lax_indexing.dynamic_update_slice_p, x, new, *operands), x.weak)


def _update_strided(
    x: Value, parts: tuple[Item, ...], update: Value, scatter: Any
) -> Value:  # Any: an operation
    # A scatter needs an indexed dimension: index a new leading dimension of size 1 at 0.
    wide = view.expand_dims(x, (0,))
    plan = _index.plan((0, *parts), wide.shape)
    window = view.reshape(_fitted(update, _index.basic_shape(parts)), plan.shape)
    result = trace.bind1(
        scatter, wide, plan.indices, window, dimension_numbers=plan.scatter_numbers(), mode="fill"
    )
    return view.reshape(result, x.shape)


def _refuse_arrays(name: str, parts: tuple[Item, ...]) -> None:
    if not _index.is_basic(parts):
        raise errors.MissingRuleError(
            f"{name} does not take arrays of indices",
            expected="integers and slices",
            fix="for unique indices use x.at[i].set(f(x[i])); sums of equal indices are x.at[i].add",
        )
