"""`associative_scan`: every running combination, in a logarithmic number of steps.

Neighbours are combined in pairs, the scan of the pairs is found the same way, and the elements between them
follow by one combination more. Source: Blelloch, Prefix sums and their applications, 1990.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from infini.core import errors, trace, tree
from infini.core.value import Value
from infini.lax import families, loop_bodies, view


def associative_scan(
    fn: Callable[[Any, Any], Any], elems: Any, reverse: bool = False, axis: int = 0
) -> Any:  # Any: pytrees
    """Running combinations of slices along an axis, as `jax.lax.associative_scan`.

    Args:
        fn: associative function of two pytrees like `elems`; it is given several slices at once, so it must
            work elementwise along `axis`.
        elems: pytree of arrays of equal size along `axis`.
        reverse: combine from the last slice to the first: `fn(fn(last, last but one), ...)`.
        axis: the axis.

    Returns:
        A tree like `elems`: slice `i` combines the slices up to `i`.

    Raises:
        TypeMismatchError: `fn` is no function, or returns another structure.
        ValueMismatchError: sizes along `axis` differ, or there is no such axis.

    Complexity:
        About 2 n combinations of slices in 2 log2(n) calls of `fn`.

    Example:
        >>> import infini as inf, infini.numpy as inp
        >>> inf.lax.associative_scan(inp.add, inp.arange(4))
        Array([0, 1, 3, 6], dtype=int32)
    """
    loop_bodies.require_functions("associative_scan", fn)
    leaves, treedef = tree.flatten(elems)
    values = [trace.as_value(x) for x in leaves]
    axes = [families.normalize_axis(axis, x.ndim) for x in values]
    sizes = {x.shape[a] for x, a in zip(values, axes, strict=True)}
    if len(sizes) > 1:
        raise errors.ValueMismatchError(
            "associative_scan needs arrays of one size along the axis",
            got=", ".join(str(x.type) for x in values),
        )

    def combine(first: Sequence[Value], second: Sequence[Value]) -> list[Value]:
        found, out_tree = tree.flatten(fn(tree.unflatten(treedef, first), tree.unflatten(treedef, second)))
        if out_tree != treedef:
            raise errors.TypeMismatchError(
                "the function of associative_scan must return the structure of its arguments",
                got=str(out_tree),
                expected=str(treedef),
            )
        return [trace.as_value(x) for x in found]

    def turned(items: Sequence[Value]) -> list[Value]:
        return [view.rev(x, (a,)) for x, a in zip(items, axes, strict=True)] if reverse else list(items)

    size = sizes.pop() if sizes else 0
    if size < 2:
        return tree.unflatten(treedef, [trace.to_array(x) if trace.is_eager() else x for x in values])
    return tree.unflatten(treedef, turned(_scan(combine, turned(values), axes, size)))


def _scan(
    combine: Callable[[Sequence[Value], Sequence[Value]], list[Value]],
    values: Sequence[Value],
    axes: Sequence[int],
    size: int,
) -> list[Value]:
    if size == 1:
        return list(values)

    def rows(items: Sequence[Value], start: int, stop: int, step: int = 1) -> list[Value]:
        return [view.slice_in_dim(x, start, stop, step, a) for x, a in zip(items, axes, strict=True)]

    half = size // 2
    pairs = combine(rows(values, 0, 2 * half - 1, 2), rows(values, 1, 2 * half, 2))
    # Results 1, 3, 5 ... are the scan of the pairs; results 2, 4, 6 ... need one element more.
    odd = _scan(combine, pairs, axes, half)
    even = rows(values, 0, 1)
    if size > 2:
        num_between = (size - 1) // 2
        between = combine(rows(odd, 0, num_between), rows(values, 2, size, 2))
        even = [
            view.concatenate([first, rest], a) for first, rest, a in zip(even, between, axes, strict=True)
        ]
    return [_interleaved(x, y, a, size) for x, y, a in zip(even, odd, axes, strict=True)]


def _interleaved(even: Value, odd: Value, axis: int, size: int) -> Value:
    """Slices of two arrays in turn; `even` has as many as `odd`, or one more."""
    count = odd.shape[axis]
    paired = view.slice_in_dim(even, 0, count, 1, axis)
    shape = list(odd.shape)
    shape.insert(axis + 1, 1)
    both = view.concatenate([view.reshape(paired, shape), view.reshape(odd, shape)], axis + 1)
    flat = [*odd.shape[:axis], 2 * count, *odd.shape[axis + 1 :]]
    joined = view.reshape(both, flat)
    if 2 * count == size:
        return joined
    return view.concatenate([joined, view.slice_in_dim(even, count, count + 1, 1, axis)], axis)
