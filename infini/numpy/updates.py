"""Copies with other elements at an index: `x.at[index].set(y)` and its kind. Writes outside the array are
dropped, as in JAX.

A basic index becomes a dynamic update slice, every other one a scatter; under `jit` both happen in place when
`x` is dead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors, ir, trace
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import elementwise as e, indexing as lax_indexing, view
from infini.lax.families import broadcast_to
from infini.lax.indexing import GatherScatterMode
from infini.numpy import _eager, _index, _plan, creation, elementwise, indexing
from infini.numpy._index import Index, Range
from infini.numpy._promotion import ArrayLike, as_value, convert, with_weak

IndexLike = Any  # Any: integers, slices, None, Ellipsis, integer or boolean arrays, and tuples of them


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of update: how new elements combine with those that are there.

    Args:
        combine: elementwise operation; None overwrites.
        scatter: the scatter that does it at arrays of places.
    """

    combine: Primitive | None
    scatter: Callable[..., Value]


KINDS: Final[dict[str, Kind]] = {
    "set": Kind(None, lax_indexing.scatter),
    "add": Kind(e.add_p, lax_indexing.scatter_add),
    "multiply": Kind(e.mul_p, lax_indexing.scatter_mul),
    "min": Kind(e.min_p, lax_indexing.scatter_min),
    "max": Kind(e.max_p, lax_indexing.scatter_max),
}


def _updating(kind: str, text: str) -> Callable[..., Value]:
    """A method of `IndexUpdateRef` for a kind of update; `text` says what it returns."""

    def method(
        self: IndexUpdateRef,
        values: ArrayLike,
        *,
        indices_are_sorted: bool = False,
        unique_indices: bool = False,
        mode: GatherScatterMode | str | None = None,
        wrap_negative_indices: bool = True,
    ) -> Value:
        return update(
            self.array, self.index, values, kind, mode=mode, unique_indices=unique_indices,
            wrap_negative_indices=wrap_negative_indices,
        )  # fmt: skip

    method.__doc__ = text
    method.__name__ = method.__qualname__ = kind
    return method


class IndexUpdateHelper:
    """`x.at`: `x.at[index].set(y)` is a copy of `x` with other elements; under `jit` it is made in place
    when `x` is dead."""

    __slots__ = ("array",)

    def __init__(self, array: Value) -> None:
        self.array = array

    def __getitem__(self, index: IndexLike) -> IndexUpdateRef:
        return IndexUpdateRef(self.array, index)

    def __repr__(self) -> str:
        return f"IndexUpdateHelper({self.array!r})"


@dataclass(frozen=True, slots=True, eq=False)
class IndexUpdateRef:
    """One place of an array, to be read or written, as `jax.numpy.ndarray.at`.

    The keywords of every method: `mode` says what happens outside the array (`clip` takes the nearest
    element; `fill` reads `fill_value`, `drop` writes nothing; `promise_in_bounds` promises that nothing lies
    outside; absent, reads clip and writes drop). `unique_indices` promises that no place repeats,
    `indices_are_sorted` is a hint that is not used, and without `wrap_negative_indices` negative numbers lie
    outside.
    """

    array: Value
    index: IndexLike

    def get(
        self,
        *,
        indices_are_sorted: bool = False,
        unique_indices: bool = False,
        mode: GatherScatterMode | str | None = None,
        fill_value: ArrayLike | None = None,
        wrap_negative_indices: bool = True,
    ) -> Value:
        """`x[index]`; `mode="fill"` gives `fill_value` (NaN when absent) outside the array."""
        return indexing.read(
            self.array, self.index, mode=mode, fill_value=fill_value, unique_indices=unique_indices,
            wrap_negative_indices=wrap_negative_indices,
        )  # fmt: skip

    set = _updating("set", "The array with `values` there; the last of equal places stays.")
    add = _updating("add", "The array with `values` added there; equal places add up.")
    multiply = _updating("multiply", "The array multiplied by `values` there, as often as a place occurs.")
    mul = multiply
    min = _updating("min", "The smallest of the array and `values` there.")
    max = _updating("max", "The largest of the array and `values` there.")

    def subtract(
        self,
        values: ArrayLike,
        *,
        indices_are_sorted: bool = False,
        unique_indices: bool = False,
        mode: GatherScatterMode | str | None = None,
        wrap_negative_indices: bool = True,
    ) -> Value:
        """The array with `values` subtracted there; equal places add up."""
        return update(
            self.array, self.index, values, "add", mode=mode, unique_indices=unique_indices,
            wrap_negative_indices=wrap_negative_indices, is_negated=True,
        )  # fmt: skip

    def divide(
        self,
        values: ArrayLike,
        *,
        indices_are_sorted: bool = False,
        unique_indices: bool = False,
        mode: GatherScatterMode | str | None = None,
        wrap_negative_indices: bool = True,
    ) -> Value:
        """The array divided by `values` there, as often as a place occurs; integers become floats."""
        factors = update(
            creation.ones_like(self.array), self.index, values, "multiply", mode=mode,
            unique_indices=unique_indices, wrap_negative_indices=wrap_negative_indices,
        )  # fmt: skip
        return elementwise.divide(self.array, factors)

    def power(
        self,
        values: ArrayLike,
        *,
        indices_are_sorted: bool = False,
        unique_indices: bool = False,
        mode: GatherScatterMode | str | None = None,
        wrap_negative_indices: bool = True,
    ) -> Value:
        """The array to the power of `values` there, as often as a place occurs."""
        exponents = update(
            creation.ones_like(self.array), self.index, values, "multiply", mode=mode,
            unique_indices=unique_indices, wrap_negative_indices=wrap_negative_indices,
        )  # fmt: skip
        return elementwise.power(self.array, exponents)

    def apply(
        self,
        func: Callable[[Value], Value],
        *,
        indices_are_sorted: bool = False,
        unique_indices: bool = False,
        mode: GatherScatterMode | str | None = None,
        wrap_negative_indices: bool = True,
    ) -> Value:
        """The array with the elementwise function `func` applied there, as often as a place occurs.

        Arrays of indices that may repeat have no reverse derivative here; JAX has none at all.
        """
        x = self.array
        structure, operands = _index.parse(self.index, x.shape, wraps=wrap_negative_indices)
        index = _index.join(structure, operands, wraps=wrap_negative_indices)
        chosen = GatherScatterMode.from_any(mode)
        if index.is_basic and structure.is_inside:
            return self.set(func(indexing.read(x, self.index)), wrap_negative_indices=wrap_negative_indices)
        wide = view.expand_dims(x, structure.added)
        plan = _plan.plan(index)
        applied = lax_indexing.scatter_apply(
            wide, plan.indices, func, plan.numbers.as_scatter, update_shape=plan.shape,
            unique_indices=unique_indices or plan.is_unique, mode=chosen,
        )  # fmt: skip
        return view.squeeze(applied, structure.added)


# --- updates ------------------------------------------------------------------------------------------


def _values(values: ArrayLike) -> ArrayLike:
    return creation.asarray(values) if isinstance(values, (list, tuple)) else values


def update(
    x: Value,
    index: IndexLike,
    values: ArrayLike,
    kind: str,
    *,
    mode: GatherScatterMode | str | None,
    unique_indices: bool,
    wrap_negative_indices: bool,
    is_negated: bool = False,
) -> Value:
    """The array with elements at an index updated, by the negative of `values` where `is_negated`.

    Raises:
        ValueMismatchError: the values do not broadcast to the place, or the mode does not exist.
        IndexOutOfRangeError: there are too many indices, or a slice has traced bounds.
        TypeMismatchError: a part of the index is of the wrong kind, or values are not numeric.
        NonConcreteBooleanIndexError: a boolean mask is being traced and the values are no scalar.
    """
    chosen = GatherScatterMode.from_any(mode)
    values = _values(values)
    is_number = type(values) in (bool, int, float, complex)
    y = trace.as_value(values) if is_number else as_value("at", values)
    # The sum of an integer and a fraction is rounded once, after it; a fraction that is set, before.
    common = x.dtype if kind == "set" else dtypes.promote(((x.dtype, x.weak), (y.dtype, y.weak)))[0]
    wide, new = convert(x, common, x.weak), convert(values if is_number else y, common)
    if is_negated:  # in the common dtype: unsigned values have no negative in their own
        new = elementwise.negative(new)
    result = _masked(wide, index, new, KINDS[kind].combine)
    if result is None:
        structure, operands = _index.parse(index, x.shape, wraps=wrap_negative_indices)
        static = (structure, kind, chosen, bool(unique_indices), bool(wrap_negative_indices))
        result = _eager.call(_update, static, [wide, new, *operands])
    return with_weak(convert(result, x.dtype), x.weak)


def _masked(x: Value, index: IndexLike, new: Value, combine: Primitive | None) -> Value | None:
    """A scalar written under one mask is a choice, which needs no positions and may be traced."""
    is_mask = isinstance(index, (Value, np.ndarray)) and index.dtype == dtypes.bool_ and index.ndim
    if not is_mask or new.ndim or index.shape != x.shape[: index.ndim]:
        return None
    mask = view.reshape(trace.as_value(index), index.shape + (1,) * (x.ndim - index.ndim))
    return trace.bind1(e.select_n_p, mask, x, new if combine is None else trace.bind1(combine, x, new))


def _update(
    structure: _index.Structure,
    kind: str,
    mode: GatherScatterMode,
    is_unique: bool,
    wraps: bool,
    x: Value,
    new: Value,
    *operands: Value,
) -> Value:
    index = _index.join(structure, operands, wraps=wraps)
    wide = view.expand_dims(x, structure.added) if structure.added else x
    is_window = all(part.step in (1, -1) for part in index.dimensions if isinstance(part, Range))
    if index.is_basic and is_window and (structure.is_inside or mode is GatherScatterMode.CLIP):
        return _update_window(wide, index, new, KINDS[kind].combine)
    plan = _plan.plan(index)
    placed = view.reshape(_fitted(new, plan.final_shape), plan.shape)
    if not placed.size:
        return x
    scattered = KINDS[kind].scatter(
        wide, plan.indices, view.rev(placed, plan.reversed_dims), plan.numbers.as_scatter,
        unique_indices=is_unique or plan.is_unique, mode=mode,
    )  # fmt: skip
    return view.squeeze(scattered, structure.added)


def _update_window(x: Value, index: Index, new: Value, combine: Primitive | None) -> Value:
    starts, window, _, backwards = indexing.basic_window(index)
    placed = view.rev(view.reshape(_fitted(new, index.basic_shape), window), backwards)
    operands = [_index.wrapped(start, n, wraps=False) for start, n in zip(starts, x.shape, strict=True)]
    if combine is not None:
        there = trace.bind1(lax_indexing.dynamic_slice_p, x, *operands, slice_sizes=tuple(window))
        placed = trace.bind1(combine, there, placed)
    if tuple(window) == x.shape:
        return placed
    return trace.bind1(lax_indexing.dynamic_update_slice_p, x, placed, *operands)


def _fitted(new: Value, shape: ir.Shape) -> Value:
    """New elements repeated to the shape of the place they are written to."""
    fits = new.ndim <= len(shape) and all(
        n in (1, m) for n, m in zip(new.shape[::-1], shape[::-1], strict=False)
    )
    if not fits:
        raise errors.ValueMismatchError(
            "an update does not fit the place it is written to",
            got=str(new.type),
            expected=f"a shape that broadcasts to {shape}",
        )
    return broadcast_to(new, shape)
