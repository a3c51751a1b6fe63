"""`lax.reduce`: a reduction by any associative function of two elements, of one array or of several together.

A function that is one known operation becomes that reduction. Others are traced on scalars once and applied
to whole arrays of neighbours, level by level, so the result is a tree of ordinary operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from infini.core import dtypes, errors, ir, primitive, trace, tree
from infini.core.ir import Program
from infini.core.value import Value
from infini.lax import computations, families, reduction, view


def reduce(
    operands: Any, init_values: Any, computation: Callable[[Any, Any], Any], dimensions: Sequence[int]
) -> Any:  # Any: pytrees of arrays, of scalars, and of results
    """Reduce arrays over some dimensions by a function of two elements.

    Args:
        operands: array, or pytree of arrays of one shape that are reduced together.
        init_values: scalar to start from, of the operand's dtype if it is no Python number; a pytree of them
            for several operands.
        computation: associative function `(x, y) -> z` of scalars, or of pytrees of scalars.
        dimensions: dimensions to reduce, not negative.

    Returns:
        The reduced array, or the pytree of them.

    Raises:
        ValueMismatchError: trees differ, an initial value is no scalar, or a dimension does not exist.
        TypeMismatchError: shapes or dtypes do not go together.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> lax.reduce(inp.arange(6.0).reshape(2, 3), 0.0, lax.add, (1,))
        Array([ 3., 12.], dtype=float32)
    """
    leaves, treedef = tree.flatten(operands)
    starts, start_tree = tree.flatten(init_values)
    if treedef != start_tree:
        raise errors.ValueMismatchError(
            "lax.reduce: operands and init_values have different structure",
            got=f"{treedef} and {start_tree}",
            expected="one initial value for each operand",
        )
    if not leaves:
        return operands
    arrays = [trace.as_value(x) for x in leaves]
    initial = [_in_dtype_of(x, start) for start, x in zip(starts, arrays, strict=True)]
    _check_operands(arrays, initial)
    axes = reduction.check_axes("reduce", dimensions, arrays[0].ndim)
    staged = computations.stage("lax.reduce", computation, treedef, [x.dtype for x in arrays])
    known = _monoid(staged.program) if len(arrays) == 1 else None
    reduced = _tree(staged, arrays, axes) if known is None else [trace.bind1(known, arrays[0], axes=axes)]
    if reduced:
        initial = computations.apply("lax.reduce", staged, initial, reduced)
    results = [families.broadcast_to(x, _kept_shape(arrays[0], axes)) for x in initial]
    return tree.unflatten(treedef, results)


def _in_dtype_of(x: Value, start: Any) -> Value:  # Any: arrays, NumPy arrays and Python numbers
    """An initial value; a Python number takes the dtype of its operand where that holds such numbers."""
    value = trace.as_value(start)
    fits = value.weak and dtypes.promote(((x.dtype, False), (value.dtype, True)))[0] == x.dtype
    return families.like(start, x) if fits else value


def _check_operands(arrays: Sequence[Value], initial: Sequence[Value]) -> None:
    if any(x.ndim for x in initial):
        raise errors.ValueMismatchError(
            "lax.reduce: an initial value is no scalar", got=", ".join(str(x.type) for x in initial)
        )
    if any(x.shape != arrays[0].shape for x in arrays):
        raise errors.TypeMismatchError(
            "lax.reduce needs operands of one shape", got=", ".join(str(x.type) for x in arrays)
        )
    if any(x.dtype != start.dtype for x, start in zip(arrays, initial, strict=True)):
        raise errors.TypeMismatchError(
            "lax.reduce: an initial value has another dtype than its operand",
            got=f"{', '.join(str(x.type) for x in arrays)} with {', '.join(str(x.type) for x in initial)}",
            fix="give the initial value in the dtype of its operand, such as 0.0 for floats",
        )


def _monoid(program: Program) -> primitive.Primitive | None:
    """The reduction by a program that applies one operation to its two parameters."""
    join = computations.operation_of(program)
    name = next((n for n, op in reduction.MONOIDS.items() if op is join), None)
    return None if name is None else primitive.by_name(name)


def _kept_shape(x: Value, axes: tuple[int, ...]) -> ir.Shape:
    return tuple(n for d, n in enumerate(x.shape) if d - x.ndim not in axes)


def _tree(staged: trace.Staged, arrays: Sequence[Value], axes: tuple[int, ...]) -> list[Value]:
    """The operands reduced by combining neighbours, level by level; nothing when there are no elements."""
    lines = [reduction.as_line(x, axes) for x in arrays]
    while lines[0].shape[-1] > 1:
        count = lines[0].shape[-1]
        even = count - count % 2
        pairs = [[view.slice_in_dim(x, start, even, stride=2, axis=-1) for x in lines] for start in (0, 1)]
        found = computations.apply("lax.reduce", staged, *pairs)
        if count % 2:
            found = [
                view.concatenate([y, view.slice_in_dim(x, even, None, axis=-1)], x.ndim - 1)
                for x, y in zip(lines, found, strict=True)
            ]
        lines = found
    if lines[0].shape[-1] == 0:
        return []
    return [view.reshape(x, x.shape[:-1]) for x in lines]
