"""Scatter: a copy of an array with windows written, added, multiplied, or compared at run-time places.

`KINDS` is the family as data: how a window combines with what is there. In compiled programs the copy is made
in place where the array is dead. Repeated places combine in the order of the updates, so the last one written
stays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive, RuleKey
from infini.core.value import Value
from infini.lax import cases, families
from infini.lax.cases import Case, Sample, Span
from infini.lax.indexing import derivatives, one_by_one, places
from infini.lax.indexing.dimension_numbers import (
    GatherScatterMode,
    ScatterDimensionNumbers,
    check_numbers,
    window_axes,
    window_positions,
)
from infini.lax.indexing.gather import shifted
from infini.lax.places import Reducer, alone, together

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers


@dataclass(frozen=True, slots=True)
class Kind:
    """One scatter.

    Args:
        combine: elementwise operation of what is there and the update; None overwrites.
        ufunc: the same in NumPy.
        allowed: dtypes of the array.
        reducer: how results of parts of the updates combine, where they do.
    """

    combine: str | None
    ufunc: Any  # Any: a NumPy ufunc or None
    allowed: frozenset[np.dtype]
    reducer: Reducer | None


KINDS: Final[dict[str, Kind]] = {
    "scatter": Kind(None, None, dtypes.ALL, None),
    "scatter_add": Kind("add", np.add, dtypes.NUMERIC, "sum"),
    "scatter_mul": Kind("mul", np.multiply, dtypes.NUMERIC, None),
    "scatter_min": Kind("min", np.minimum, dtypes.ALL, "min"),
    "scatter_max": Kind("max", np.maximum, dtypes.ALL, "max"),
}


# --- rules that the family shares --------------------------------------------------------------


def _type(name: str) -> Callable[..., tuple[ArrayType, ...]]:
    def rule(
        operand: ArrayType,
        indices: ArrayType,
        updates: ArrayType,
        *,
        dimension_numbers: ScatterDimensionNumbers,
        mode: str,
        unique_indices: bool,
    ) -> tuple[ArrayType, ...]:
        families.accept(name, KINDS[name].allowed, [operand])
        families.same_dtype(name)(operand, updates)
        dn = dimension_numbers
        missing = [d for d in dn.update_window_dims if not 0 <= d < updates.ndim]
        if missing or len(dn.update_window_dims) != operand.ndim - len(dn.as_gather.dropped):
            raise errors.TypeMismatchError(
                f"{name}: the dimension numbers do not fit",
                got=f"{dn}, operand {operand}, updates {updates}",
                expected="one dimension of the updates for each dimension of the operand that is not dropped",
            )
        sizes = dn.slice_sizes(operand.shape, updates.shape)
        check_numbers(name, operand, indices, dn.as_gather, sizes)
        expected = dn.as_gather.result_shape(indices.shape[:-1], sizes)
        if expected != updates.shape:
            raise errors.TypeMismatchError(
                f"{name}: the updates have another shape than the windows",
                got=str(updates),
                expected=str(updates.update(shape=expected)),
            )
        return (operand,)

    return rule


def _reference(ufunc: Any) -> Callable[..., np.ndarray]:  # Any: a NumPy ufunc or None
    def rule(
        operand: np.ndarray,
        indices: np.ndarray,
        updates: np.ndarray,
        *,
        dimension_numbers: ScatterDimensionNumbers,
        mode: str,
        unique_indices: bool,
    ) -> np.ndarray:
        dn = dimension_numbers.as_gather
        sizes = dimension_numbers.slice_sizes(operand.shape, updates.shape)
        place, inside = window_positions(indices, dn, operand.shape, sizes, mode == "clip")
        given = np.transpose(updates, window_axes(dn, updates.ndim))
        out = operand.flatten()
        with np.errstate(all="ignore"):
            if ufunc is None:
                out[place[inside]] = given[inside]
            else:
                ufunc.at(out, place[inside], given[inside])
        return out.reshape(operand.shape)

    return rule


def _batch(name: str) -> Any:  # Any: see transforms.batching
    def rule(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:
        operand, indices, updates = args
        dn: ScatterDimensionNumbers = attrs["dimension_numbers"]
        own = (shifted(dn.inserted_window_dims), shifted(dn.scatter_dims_to_operand_dims))
        batching = shifted(dn.operand_batching_dims)
        if batched[1]:
            operand, indices, updates = families.whole_batches(ctx.size, args, batched)
            moved = ScatterDimensionNumbers(
                shifted(dn.update_window_dims), *own,
                (0, *batching), (0, *shifted(dn.scatter_indices_batching_dims)),
            )  # fmt: skip
        else:
            # The batch is one more dimension of the windows.
            operand, updates = families.whole_batches(ctx.size, (operand, updates), (batched[0], batched[2]))
            moved = ScatterDimensionNumbers(
                (0, *shifted(dn.update_window_dims)), *own, batching, dn.scatter_indices_batching_dims
            )
        changed = attrs.replace(dimension_numbers=moved)
        return trace.bind(primitive.by_name(name), operand, indices, updates, **changed), (True,)

    return rule


# --- the operations -------------------------------------------------------------------------------


def _attrs(numbers: ScatterDimensionNumbers, mode: str, *, is_unique: bool = False) -> dict[str, Any]:
    return {"dimension_numbers": numbers, "mode": mode, "unique_indices": is_unique}


_ROWS = ScatterDimensionNumbers((1,), (0,), (0,))
_CELLS = ScatterDimensionNumbers((), (0, 1), (0, 1))
_BATCHED = ScatterDimensionNumbers((1,), (1,), (2, 1), (0,), (1,))
_SPAN = Span(-2, 6)  # of which some lie outside


def _cases(allowed: Collection[np.dtype], *, repeats: bool) -> cases.Cases:
    """Windows and single elements in every mode; repeated places for inexact dtypes only if `repeats`."""
    one = Case(
        (Sample((5, 3)), Sample((1, 1), dtypes.int32, _SPAN), Sample((1, 3))),
        _attrs(_ROWS, "clip", is_unique=True),
    )
    many = (
        Case(
            (Sample((5, 3)), Sample((6, 1), dtypes.int32, _SPAN), Sample((6, 3))), _attrs(_ROWS, "fill"),
            "reduction",
        ),
        Case(
            (Sample((2, 3)), Sample((7, 2), dtypes.uint8, Span(0, 3)), Sample((7,))), _attrs(_CELLS, "clip"),
            "reduction",
        ),
        Case(
            (Sample((4, 3, 5)), Sample((2, 4, 2), dtypes.int64, Span(0, 2)), Sample((2, 2, 4))),
            _attrs(_BATCHED, "promise_in_bounds"), "reduction",
        ),
    )  # fmt: skip

    def examples(dtype: np.dtype) -> tuple[Case, ...]:
        return (one, *many) if repeats or not dtypes.is_inexact(dtype) else (one,)

    return cases.Cases(frozenset(allowed), examples)


def _scatter(name: str, jvp: Any, transpose: Any = None, *, repeats: bool = True) -> Primitive:  # Any: rules
    kind = KINDS[name]
    rules: dict[RuleKey, Any] = {
        primitive.TYPE: _type(name),
        primitive.REFERENCE: _reference(kind.ufunc),
        primitive.JVP: jvp,
        primitive.BATCH: _batch(name),
        primitive.PLACE: places.place_scatter(kind.reducer),
        primitive.PARTITION: places.partition_scatter,
        primitive.TAIL: places.tail_scatter,
        primitive.WEAK: lambda weak, attrs: weak[0],
        primitive.COST: lambda types, attrs: float(types[2].size) if kind.combine is not None else 0.0,
        primitive.CASES: _cases(kind.allowed, repeats=repeats),
    }
    if transpose is not None:
        rules[primitive.TRANSPOSE] = transpose
        rules[primitive.LINEAR] = alone(0) if kind.combine == "mul" else together(0, 2)
    if kind.combine is not None:
        rules[primitive.DECOMPOSE] = one_by_one.decompose(name, kind.combine)
    return primitive.register(Primitive(name, None, rules))


scatter_p: Primitive = _scatter("scatter", derivatives.jvp_set, derivatives.transpose_set)
scatter_add_p: Primitive = _scatter("scatter_add", derivatives.jvp_add, derivatives.transpose_add)
scatter_mul_p: Primitive = _scatter(
    "scatter_mul", derivatives.jvp_mul, derivatives.transpose_mul, repeats=False
)
scatter_min_p: Primitive = _scatter("scatter_min", derivatives.jvp_extremum)
scatter_max_p: Primitive = _scatter("scatter_max", derivatives.jvp_extremum)


def _bind(
    op: Primitive, operand: ArrayLike, scatter_indices: ArrayLike, updates: ArrayLike,
    dimension_numbers: ScatterDimensionNumbers, unique_indices: bool, mode: GatherScatterMode | str | None,
) -> Value:  # fmt: skip
    x = trace.as_value(operand)
    chosen = GatherScatterMode.from_any(mode)
    return trace.bind1(
        op,
        x,
        scatter_indices,
        families.like(updates, x),
        dimension_numbers=dimension_numbers,
        mode="fill" if chosen is GatherScatterMode.ONE_HOT else chosen.value,
        unique_indices=bool(unique_indices),
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
    """A copy of `operand` with windows overwritten, as `jax.lax.scatter`; the last of equal places stays.

    Args:
        operand: array to copy.
        scatter_indices: integers; the last dimension holds one number per indexed dimension.
        updates: windows, of the dtype of `operand`.
        dimension_numbers: correspondence of dimensions.
        indices_are_sorted: a hint, not used.
        unique_indices: a promise that no two windows overlap.
        mode: what happens to windows outside the array; they are dropped when absent.

    Raises:
        TypeMismatchError: dtypes differ, or shapes and dimension numbers do not fit.
        ValueMismatchError: the indices are no integers.
    """
    return _bind(scatter_p, operand, scatter_indices, updates, dimension_numbers, unique_indices, mode)


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
    """As `scatter`, and the windows are added to what is there; equal places add up."""
    return _bind(scatter_add_p, operand, scatter_indices, updates, dimension_numbers, unique_indices, mode)


def scatter_sub(
    operand: ArrayLike,
    scatter_indices: ArrayLike,
    updates: ArrayLike,
    dimension_numbers: ScatterDimensionNumbers,
    *,
    indices_are_sorted: bool = False,
    unique_indices: bool = False,
    mode: GatherScatterMode | str | None = None,
) -> Value:
    """As `scatter`, and the windows are subtracted from what is there."""
    negative = trace.bind1(primitive.by_name("neg"), families.like(updates, trace.as_value(operand)))
    return _bind(scatter_add_p, operand, scatter_indices, negative, dimension_numbers, unique_indices, mode)


def scatter_mul(
    operand: ArrayLike,
    scatter_indices: ArrayLike,
    updates: ArrayLike,
    dimension_numbers: ScatterDimensionNumbers,
    *,
    indices_are_sorted: bool = False,
    unique_indices: bool = False,
    mode: GatherScatterMode | str | None = None,
) -> Value:
    """As `scatter`, and what is there is multiplied by the windows.

    The derivative with respect to `updates` needs `unique_indices=True`, as in JAX.
    """
    return _bind(scatter_mul_p, operand, scatter_indices, updates, dimension_numbers, unique_indices, mode)


def scatter_min(
    operand: ArrayLike,
    scatter_indices: ArrayLike,
    updates: ArrayLike,
    dimension_numbers: ScatterDimensionNumbers,
    *,
    indices_are_sorted: bool = False,
    unique_indices: bool = False,
    mode: GatherScatterMode | str | None = None,
) -> Value:
    """As `scatter`, and the smaller of what is there and the windows stays; NaN wins."""
    return _bind(scatter_min_p, operand, scatter_indices, updates, dimension_numbers, unique_indices, mode)


def scatter_max(
    operand: ArrayLike,
    scatter_indices: ArrayLike,
    updates: ArrayLike,
    dimension_numbers: ScatterDimensionNumbers,
    *,
    indices_are_sorted: bool = False,
    unique_indices: bool = False,
    mode: GatherScatterMode | str | None = None,
) -> Value:
    """As `scatter`, and the larger of what is there and the windows stays; NaN wins."""
    return _bind(scatter_max_p, operand, scatter_indices, updates, dimension_numbers, unique_indices, mode)
