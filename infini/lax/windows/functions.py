"""`reduce_window`: windows reduced by any function, under JAX's name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors, primitive, trace, tree
from infini.core.array import Array
from infini.core.ir import ArrayType, Shape
from infini.core.primitive import Primitive
from infini.core.value import Literal, Value
from infini.lax import computations, elementwise as e, families, reduction
from infini.lax.windows import folds, padding as padding_, reductions as windows_
from infini.lax.windows.folds import Parts
from infini.lax.windows.padding import Line

MAX_PLACES: Final = 32  # places of a window that an unknown function joins one after another

# By the operation on two elements: the one on windows, where it is an operation of its own.
_WINDOWED: Final = {
    "add": windows_.reduce_window_sum_p,
    "max": windows_.reduce_window_max_p,
    "min": windows_.reduce_window_min_p,
}


def reduce_window(
    operand: Any,
    init_value: Any,
    computation: Callable[[Any, Any], Any],
    window_dimensions: Sequence[int],
    window_strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    base_dilation: Sequence[int] | None = None,
    window_dilation: Sequence[int] | None = None,
) -> Any:  # Any: pytrees of arrays, of scalars, and of results
    """Reduce every window of an array, or of several together, as `jax.lax.reduce_window`.

    Args:
        operand: array, or pytree of arrays of one shape.
        init_value: scalar to start from, or a pytree of them.
        computation: associative function `(x, y) -> z` of scalars, or of pytrees of scalars.
        window_dimensions: size of a window along every dimension.
        window_strides: distance of neighbouring windows; 1 when absent.
        padding: `SAME`, `SAME_LOWER`, `VALID`, or one pair (low, high) per dimension. Windows ignore what
            lies in the padding.
        base_dilation: distance of neighbouring elements of the operand; 1 when absent.
        window_dilation: distance of neighbouring elements of a window; 1 when absent.

    Returns:
        One element per window, or the pytree of these. Sums and extrema are differentiable any number of
        times; of equal extrema the first counts.

    Raises:
        ValueMismatchError: trees differ, or sizes, strides or paddings do not go together.
        TypeMismatchError: shapes or dtypes do not.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> lax.reduce_window(inp.arange(6.0), 0.0, lax.add, (3,), (1,))
        Array([ 3.,  6.,  9., 12.], dtype=float32)
    """
    leaves, treedef = tree.flatten(operand)
    starts, start_tree = tree.flatten(init_value)
    if treedef != start_tree or not leaves:
        raise errors.ValueMismatchError(
            "reduce_window needs operands and as many initial values, in the same structure",
            got=f"{treedef} and {start_tree}",
        )
    arrays, initial = [trace.as_value(x) for x in leaves], [trace.as_value(x) for x in starts]
    lines = _lines(
        arrays[0].shape, window_dimensions, window_strides, padding, base_dilation, window_dilation
    )
    if any(x.shape != arrays[0].shape for x in arrays):
        raise errors.TypeMismatchError(
            "reduce_window needs operands of one shape", got=", ".join(str(x.type) for x in arrays)
        )
    initial = [_start(x, start) for x, start in zip(arrays, initial, strict=True)]
    staged = computations.stage("reduce_window", computation, treedef, [x.dtype for x in arrays])
    join = computations.operation_of(staged.program) if len(arrays) == 1 else None
    reduce = next((n for n, op in reduction.MONOIDS.items() if op is join), None)
    if reduce is not None:
        return tree.unflatten(treedef, [_known(primitive.by_name(reduce), arrays[0], initial[0], lines)])
    return tree.unflatten(treedef, _unknown(staged, arrays, initial, lines))


def reduce_window_shape_tuple(
    operand_shape: Sequence[int],
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    base_dilation: Sequence[int] | None = None,
    window_dilation: Sequence[int] | None = None,
) -> Shape:
    """Shape of a reduction over windows, as `jax.lax.reduce_window_shape_tuple`."""
    ones = (1,) * len(operand_shape)
    lines = padding_.lines(
        operand_shape,
        window_dimensions,
        window_strides,
        padding,
        base_dilation or ones,
        window_dilation or ones,
    )
    return tuple(line.count for line in lines)


def _lines(
    shape: Shape, window_dimensions: Sequence[int], window_strides: Sequence[int] | None,
    padding: str | Sequence[tuple[int, int]], base_dilation: Sequence[int] | None,
    window_dilation: Sequence[int] | None,
) -> list[Line]:  # fmt: skip
    """How windows lie along each dimension, checked."""
    name, rank = "reduce_window", len(shape)
    if len(window_dimensions) != rank:
        raise errors.TypeMismatchError(
            "reduce_window: window_dimensions needs one entry per dimension of the operand",
            got=f"window_dimensions={tuple(window_dimensions)} for an operand of shape {shape}",
        )
    ones = (1,) * rank
    windows = padding_.sizes(name, "window_dimensions", window_dimensions, rank)
    strides, base, hole = (
        padding_.sizes(name, argument, ones if given is None else given, rank, error=errors.TypeMismatchError)
        for argument, given in (
            ("window_strides", window_strides),
            ("base_dilation", base_dilation),
            ("window_dilation", window_dilation),
        )
    )
    if isinstance(padding, str):
        extents = [padding_.dilated(n, d) for n, d in zip(windows, hole, strict=True)]
        pads = tuple(padding_.padtype_to_pads(shape, extents, strides, padding))
    else:
        pads = padding_.explicit(name, padding)
    if len(pads) != rank:
        raise errors.ValueMismatchError(
            "reduce_window: padding needs one pair per dimension", got=str(pads), expected=f"{rank} pairs"
        )
    return padding_.lines(shape, windows, strides, pads, base, hole)


def _start(x: Value, start: Value) -> Value:
    """An initial value in the dtype of its operand."""
    if start.ndim:
        raise errors.TypeMismatchError("reduce_window: an initial value is no scalar", got=str(start.type))
    if start.dtype == x.dtype:
        return start
    if not (start.weak and (start.dtype in dtypes.FLOATS) <= dtypes.is_inexact(x.dtype)):
        raise errors.TypeMismatchError(
            "reduce_window: an initial value has another dtype than its operand",
            got=f"{start.type} for {x.type}",
            fix="give the initial value in the dtype of its operand",
        )
    return e.convert_element_type(start, x.dtype)


def _known(reduce: Primitive, x: Value, start: Value, lines: Sequence[Line]) -> Value:
    """A reduction by one operation."""
    join = reduction.MONOIDS[reduce.name]
    # Extrema of complex numbers are ordered by parts and have no derivative, hence no operation.
    is_ordered = join.name == "add" or x.dtype in reduction.ORDERED
    own = _WINDOWED.get(join.name) if is_ordered else None
    if own is not None:
        # Dimensions in front without windows are loops.
        used = next((i for i, line in enumerate(lines) if not line.is_trivial), len(lines))
        found = trace.bind1(own, x, **windows_.attributes(lines[used:]))
    else:
        found = windows_.fold(reduce, x, lines)
    if _is_number(start, reduction.identity_of(reduce, x.dtype)):
        return found
    return trace.bind1(join, found, start)


def _is_number(x: Value, number: Any) -> bool:  # Any: a number
    """Whether a scalar is known to be a number."""
    if isinstance(x, Literal):
        host = x.host
    elif isinstance(x, Array):
        host = x.to_host()
    else:
        return False
    return bool(host == np.asarray(number).astype(host.dtype))


def _unknown(
    staged: trace.Staged, arrays: Sequence[Value], initial: Sequence[Value], lines: Sequence[Line]
) -> list[Value]:
    """A reduction by a function about which nothing is known but that it is associative."""
    shape = tuple(line.count for line in lines)
    if 0 in shape or 0 in arrays[0].shape:
        return [families.broadcast_to(start, shape) for start in initial]

    def apply(left: Sequence[Value], right: Sequence[Value]) -> Parts:
        return tuple(computations.apply("reduce_window", staged, left, right))

    has_outside = any(line.low > 0 or line.high > 0 or line.base_dilation > 1 for line in lines)
    fills = tuple(Literal(np.zeros((), x.dtype), weak=False) for x in arrays)
    if not has_outside:
        return list(_folded(apply, tuple(arrays), fills, tuple(initial), lines))
    # Beside the elements goes whether there is one; what lies outside changes nothing.
    is_element = families.full(ArrayType(arrays[0].shape, np.dtype(bool)), True)
    true, false = (Literal(np.asarray(flag), weak=False) for flag in (True, False))

    def join(left: Parts, right: Parts) -> Parts:
        joined = apply(left[1:], right[1:])
        both = trace.bind1(e.and_p, left[0], right[0])
        parts = [
            _where(both, z, _where(left[0], x, y))
            for x, y, z in zip(left[1:], right[1:], joined, strict=True)
        ]
        return (trace.bind1(e.or_p, left[0], right[0]), *parts)

    found = _folded(join, (is_element, *arrays), (false, *fills), (true, *initial), lines)
    return list(found[1:])


def _where(which: Value, yes: Value, no: Value) -> Value:
    return trace.bind1(e.select_n_p, which, no, yes)


def _folded(
    join: Callable[[Parts, Parts], Parts], parts: Parts, fills: Parts, initial: Parts, lines: Sequence[Line]
) -> Parts:
    """Every window joined to the initial values: in order when it is small, as XLA does, else as a tree."""
    shape = tuple(line.count for line in lines)
    total = tuple(families.broadcast_to(start, shape) for start in initial)
    if math.prod(line.window for line in lines) > MAX_PLACES:
        return join(total, folds.fold(folds.Monoid(join, fills), parts, lines))
    config = [(0, 0, line.base_dilation - 1) for line in lines]
    dense = folds.padded(fills, parts, config)
    plain = [dataclasses.replace(line, size=line.base, base_dilation=1) for line in lines]
    dense = folds.filled(fills, dense, plain)
    for offsets in folds.places(plain):
        total = join(total, tuple(folds.place(x, plain, offsets) for x in dense))
    return total
