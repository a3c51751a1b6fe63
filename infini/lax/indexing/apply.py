"""`scatter_apply`: a function applied to elements at run-time places, once for each time a place is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType
from infini.core.value import Value
from infini.lax import families, loops
from infini.lax.families import bind_scalars
from infini.lax.indexing.dimension_numbers import GatherScatterMode, ScatterDimensionNumbers
from infini.lax.indexing.gather import gather
from infini.lax.indexing.scatter import scatter, scatter_add

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers


def scatter_apply(
    operand: ArrayLike,
    scatter_indices: ArrayLike,
    func: Callable[[Value], Value],
    dimension_numbers: ScatterDimensionNumbers,
    *,
    update_shape: Sequence[int] = (),
    indices_are_sorted: bool = False,
    unique_indices: bool = False,
    mode: GatherScatterMode | str | None = None,
) -> Value:
    """A copy of `operand` with `func` applied at `scatter_indices`, as `jax.lax.scatter_apply`.

    Args:
        operand: array to copy.
        scatter_indices: integers; the last dimension holds one number per indexed dimension. `func` is
            applied as often as a place occurs.
        func: elementwise function of an array; it keeps shape and dtype.
        dimension_numbers: correspondence of dimensions.
        update_shape: shape that updates would have: that of the windows.
        indices_are_sorted: a hint, not used.
        unique_indices: a promise that no place repeats; without it there is no reverse derivative.
        mode: what happens to windows outside the array; they are dropped when absent.

    Raises:
        TypeMismatchError: shapes and dimension numbers do not fit, or `func` changes shape or dtype.
    """
    x = trace.as_value(operand)
    dn, shape = dimension_numbers, tuple(map(int, update_shape))
    sizes = dn.slice_sizes(x.shape, shape)

    def read(array: Value) -> Value:
        return gather(
            array,
            scatter_indices,
            dn.as_gather,
            sizes,
            unique_indices=unique_indices,
            mode=chosen,
            fill_value=0,
        )

    def write(op: Callable[..., Value], array: Value, updates: Value) -> Value:
        return op(array, scatter_indices, updates, dn, unique_indices=unique_indices, mode=chosen)

    chosen = GatherScatterMode.from_any(mode)
    values = read(x)
    if unique_indices:
        return write(scatter, x, _applied(func, values))
    # Every place is read once per time it is named, takes as many rounds, and ends with the same value.
    ones = families.full(ArrayType(values.shape, dtypes.int32), 1)
    counts = read(write(scatter_add, families.zeros(ArrayType(x.shape, dtypes.int32)), ones))
    if not values.size:
        return x

    def is_unfinished(carry: tuple[Value, Value]) -> Value:
        every = tuple(range(-values.ndim, 0))
        most = trace.bind1(primitive.by_name("reduce_max"), carry[0], axes=every) if every else carry[0]
        return bind_scalars(primitive.by_name("gt"), most, 0)

    def once(carry: tuple[Value, Value]) -> tuple[Value, Value]:
        left, found = carry
        applies = bind_scalars(primitive.by_name("gt"), left, 0)
        after = trace.bind1(primitive.by_name("select_n"), applies, found, _applied(func, found))
        return bind_scalars(primitive.by_name("sub"), left, 1), after

    _, values = loops.while_loop(is_unfinished, once, (counts, values))
    return write(scatter, x, values)


def _applied(func: Callable[[Value], Value], x: Value) -> Value:
    result = trace.as_value(func(x))
    if result.type != x.type:
        raise errors.TypeMismatchError(
            "scatter_apply: the function has to keep shape and dtype",
            got=f"{x.type} to {result.type}",
            expected=str(x.type),
        )
    return result.with_weak(x.weak)
