"""Collectives that move parts of arrays between the members of named axes: gather, scatter, exchange,
permute.

Several axes are one group, whose members are counted with the first axis most significant. Under
`vmap(axis_name=...)` one of them may be the batch: the others then act before or after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from infini.core import errors, primitive, trace, tree
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import collectives, elementwise as e, families
from infini.lax.collectives import Axes, AxisName, axes_of

Names = tuple[str, ...]
Sizes = tuple[int, ...]


def _reference_alone(name: str) -> Any:  # Any: a rule
    def reference(*xs: np.ndarray, sizes: Sizes, **_: object) -> tuple[np.ndarray, ...]:
        collectives.refuse_several(name, sizes)
        return xs

    return reference


def _reshape(x: Value, shape: Sequence[int]) -> Value:
    return trace.bind1(primitive.by_name("reshape"), x, shape=tuple(shape), ndim=x.ndim)


def _transpose(x: Value, order: Sequence[int]) -> Value:
    return trace.bind1(primitive.by_name("transpose"), x, permutation=tuple(p - x.ndim for p in order))


def _whole_batch(x: Value, size: int, is_batched: bool) -> Value:
    return x if is_batched else families.broadcast_to(x, (size, *x.shape))


def _each(one: Callable[[Any, Value, bool, int, Any], Value]) -> Callable[..., Any]:
    """BATCH over an axis of vmap, operand by operand: `one(ctx, x, is_batched, dimension, attrs)`."""

    def rule(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:  # Any: see transforms.batching
        items = zip(args, batched, attrs["dimensions"], strict=True)
        return [one(ctx, x, is_batched, dimension, attrs) for x, is_batched, dimension in items]

    return rule


# --- all_gather and psum_scatter ---------------------------------------------------------------


def _type_all_gather(
    *xs: ArrayType, axes: Names, sizes: Sizes, dimensions: tuple[int, ...]
) -> tuple[ArrayType, ...]:
    found = []
    for x, dimension in zip(xs, dimensions, strict=True):
        shape = list(x.shape)
        shape[dimension] *= families.prod(sizes)
        found.append(x.update(shape=tuple(shape)))
    return tuple(found)


def _type_psum_scatter(
    *xs: ArrayType, axes: Names, sizes: Sizes, dimensions: tuple[int, ...]
) -> tuple[ArrayType, ...]:
    found = []
    for x, dimension in zip(xs, dimensions, strict=True):
        shape, size = list(x.shape), families.prod(sizes)
        if shape[dimension] % size:
            raise errors.TypeMismatchError(
                f"psum_scatter: the dimension does not divide into {size} parts", got=str(x)
            )
        shape[dimension] //= size
        found.append(x.update(shape=tuple(shape)))
    return tuple(found)


def _along(op_name: str, x: Value, axes: Axes, dimension: int) -> Value:
    """A gather or scatter over some axes; nothing over none."""
    names, sizes = axes
    if not names:
        return x
    return trace.bind1(primitive.by_name(op_name), x, axes=names, sizes=sizes, dimensions=(dimension,))


def _gather_over_batch(ctx: Any, x: Value, is_batched: bool, dimension: int, attrs: Any) -> Value:
    before, after = collectives.around(ctx.axis_name, attrs["axes"], attrs["sizes"])
    x = _whole_batch(_along("all_gather", x, after, dimension), ctx.size, is_batched)
    # (size, ..., n, ...) -> (..., size * n, ...)
    rank = x.ndim - 1
    at = rank + dimension
    moved = _transpose(x, (*range(1, at + 1), 0, *range(at + 1, rank + 1)))
    joined = _reshape(moved, (*x.shape[1 : at + 1], ctx.size * x.shape[at + 1], *x.shape[at + 2 :]))
    return _along("all_gather", joined, before, dimension)


def _batch_all_gather(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:  # Any: see transforms.batching
    if ctx.axis_name not in attrs["axes"]:
        return trace.bind(all_gather_p, *args, **attrs), batched
    return _each(_gather_over_batch)(ctx, args, batched, attrs), (False,) * len(args)


all_gather_p: Primitive = collectives.declare(
    "all_gather",
    _type_all_gather,
    _reference_alone("all_gather"),
    collectives.transposed("psum_scatter"),
    _batch_all_gather,
)


def _scatter_over_batch(ctx: Any, x: Value, is_batched: bool, dimension: int, attrs: Any) -> Value:
    before, after = collectives.around(ctx.axis_name, attrs["axes"], attrs["sizes"])
    x = _along("psum_scatter", x, before, dimension)
    total = (
        trace.bind1(primitive.by_name("reduce_sum"), x, axes=(-x.ndim,))
        if is_batched
        else families.bind_scalars(e.mul_p, x, ctx.size)
    )
    at = total.ndim + dimension
    shape = (*total.shape[:at], ctx.size, total.shape[at] // ctx.size, *total.shape[at + 1 :])
    parts = _reshape(total, shape)
    rows = _transpose(parts, (at, *(d for d in range(parts.ndim) if d != at)))
    return _along("psum_scatter", rows, after, dimension)


def _batch_psum_scatter(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:  # Any: see transforms.batching
    if ctx.axis_name not in attrs["axes"]:
        return trace.bind(psum_scatter_p, *args, **attrs), batched
    return _each(_scatter_over_batch)(ctx, args, batched, attrs), (True,) * len(args)


psum_scatter_p: Primitive = collectives.declare(
    "psum_scatter",
    _type_psum_scatter,
    _reference_alone("psum_scatter"),
    collectives.transposed("all_gather"),
    _batch_psum_scatter,
)


def all_gather(x: Any, axis_name: AxisName, *, axis: int = 0, tiled: bool = False) -> Any:  # Any: pytrees
    """Arrays of every member of a named axis, or of several: stacked along a fresh dimension `axis`, or
    joined along it when `tiled`.
    """
    axes, sizes = axes_of(axis_name)

    def one(leaf: Any) -> Value:
        value = trace.as_value(leaf)
        if not tiled:
            at = families.normalize_axis(axis, value.ndim + 1)
            value = _reshape(value, (*value.shape[:at], 1, *value.shape[at:]))
        else:
            at = families.normalize_axis(axis, value.ndim)
        return trace.bind1(all_gather_p, value, axes=axes, sizes=sizes, dimensions=(at - value.ndim,))

    return tree.map(one, x)


def psum_scatter(
    x: Any, axis_name: AxisName, *, scatter_dimension: int = 0, tiled: bool = False
) -> Any:  # Any: pytrees
    """Sum over a named axis, or several, of which each member keeps its part along `scatter_dimension`."""
    axes, sizes = axes_of(axis_name)
    size = families.prod(sizes)

    def one(leaf: Any) -> Value:
        value = trace.as_value(leaf)
        at = families.normalize_axis(scatter_dimension, value.ndim)
        part = trace.bind1(psum_scatter_p, value, axes=axes, sizes=sizes, dimensions=(at - value.ndim,))
        if tiled:
            return part
        if value.shape[at] != size:
            raise errors.TypeMismatchError(
                "psum_scatter without tiled=True needs a scattered dimension of the size of the axis",
                got=f"{value.type}, axis of size {size}",
            )
        return _reshape(part, [n for d, n in enumerate(part.shape) if d != at])

    return tree.map(one, x)


# --- ppermute ------------------------------------------------------------------------------------


def _batch_ppermute(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:  # Any: see transforms.batching
    if ctx.axis_name not in attrs["axes"]:
        return trace.bind(ppermute_p, *args, **attrs), batched
    if len(attrs["axes"]) != 1:
        raise errors.LoweringError(
            "ppermute over several axes cannot have one of them under vmap",
            got=f"axes {attrs['axes']}, vmap over {ctx.axis_name!r}",
            fix="use one vmap over all of these members, or shard_map over a mesh with these axes",
        )
    if len(attrs["permutation"]) != ctx.size:
        raise errors.ValueMismatchError(
            "ppermute over an axis of vmap needs a whole permutation",
            got=f"{len(attrs['permutation'])} pairs for an axis of size {ctx.size}",
            fix="name a source for every member; multiply by zero where nothing should arrive",
        )
    source = {target: origin for origin, target in attrs["permutation"]}
    results = []
    for x, is_batched in zip(args, batched, strict=True):
        rows, whole = [], _whole_batch(x, ctx.size, is_batched)
        for target in range(ctx.size):
            start = (source[target], *(0,) * (whole.ndim - 1))
            limit = (source[target] + 1, *whole.shape[1:])
            rows.append(
                trace.bind1(
                    primitive.by_name("slice"), whole, start=start, limit=limit, strides=(1,) * whole.ndim
                )
            )
        results.append(trace.bind1(primitive.by_name("concatenate"), *rows, axis=-whole.ndim))
    return results, (True,) * len(args)


def _reference_ppermute(*xs: np.ndarray, axes: Names, sizes: Sizes, permutation: Any) -> Any:
    collectives.refuse_several("ppermute", sizes)
    return xs if (0, 0) in permutation else tuple(np.zeros_like(x) for x in xs)


def _backwards(*, permutation: Any, **attrs: Any) -> dict[str, Any]:
    return {**attrs, "permutation": tuple((b, a) for a, b in permutation)}


ppermute_p: Primitive = collectives.declare(
    "ppermute",
    lambda *xs, **_: xs,
    _reference_ppermute,
    collectives.transposed("ppermute", _backwards),
    _batch_ppermute,
)


def ppermute(x: Any, axis_name: AxisName, perm: Sequence[tuple[int, int]]) -> Any:  # Any: pytrees
    """Send along (source, destination) pairs of a named axis; members that receive nothing get zeros. The
    members of several axes are counted with the first axis most significant.

    Raises:
        ValueMismatchError: a source or destination occurs twice or is out of range.
    """
    axes, sizes = axes_of(axis_name)
    size, pairs = families.prod(sizes), tuple((int(a), int(b)) for a, b in perm)
    for column in zip(*pairs, strict=True):
        if len(set(column)) != len(column) or not all(0 <= i < size for i in column):
            raise errors.ValueMismatchError(
                f"this is not a permutation of an axis of size {size}", got=str(pairs)
            )
    return tree.map(lambda leaf: trace.bind1(ppermute_p, leaf, axes=axes, sizes=sizes, permutation=pairs), x)


def pshuffle(x: Any, axis_name: AxisName, perm: Sequence[int]) -> Any:  # Any: pytrees
    """Member i gets what member `perm[i]` has.

    Raises:
        ValueMismatchError: `perm` does not name every member once.
    """
    size = collectives.axis_size(axis_name)
    if sorted(perm) != list(range(size)):
        raise errors.ValueMismatchError(
            f"this is not a permutation of an axis of size {size}", got=str(list(perm))
        )
    return ppermute(x, axis_name, [(source, target) for target, source in enumerate(perm)])


# --- all_to_all ----------------------------------------------------------------------------------


def _type_all_to_all(
    x: ArrayType, *, axes: Names, sizes: Sizes, split: int, concat: int
) -> tuple[ArrayType, ...]:
    shape, size = list(x.shape), families.prod(sizes)
    if shape[split] % size:
        raise errors.TypeMismatchError(
            f"all_to_all: the split dimension does not divide into {size} parts", got=str(x)
        )
    shape[split] //= size
    shape[concat] *= size
    return (x.update(shape=tuple(shape)),)


def _swap_with(x: Value, axes: Axes, at: int) -> Value:
    """Each member gives part i of dimension `at` to member i, and stacks there what arrives."""
    names, sizes = axes
    if not names:
        return x
    where = at - x.ndim
    return trace.bind1(all_to_all_p, x, axes=names, sizes=sizes, split=where, concat=where)


def _batch_all_to_all(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:  # Any: see transforms.batching
    if ctx.axis_name not in attrs["axes"]:
        return trace.bind(all_to_all_p, *args, **attrs), batched
    before, after = collectives.around(ctx.axis_name, attrs["axes"], attrs["sizes"])
    x = _whole_batch(args[0], ctx.size, batched[0])
    # The split dimension is opened into one for each group of axes and the rest:
    # (members, ..., before, own, after, rest, ...). Parts change places with members in each of them.
    count = ctx.size * families.prod(before[1]) * families.prod(after[1])
    at, join = x.ndim + attrs["split"], x.ndim + attrs["concat"]
    opened = (families.prod(before[1]), ctx.size, families.prod(after[1]), x.shape[at] // count)
    parts = _reshape(x, (*x.shape[:at], *opened, *x.shape[at + 1 :]))
    own = at + 1
    order = list(range(parts.ndim))
    order[0], order[own] = own, 0
    parts = _swap_with(_swap_with(_transpose(parts, order), before, at), after, at + 2)
    # What arrived is joined in front of the dimension `concat`, in the order of the members.
    join_at = join + 3 if join >= at else join
    rest = [d for d in range(parts.ndim) if d not in (at, own, at + 2)]
    position = rest.index(join_at)
    moved = _transpose(parts, [*rest[:position], at, own, at + 2, *rest[position:]])
    shape = list(x.shape)
    shape[at] //= count
    shape[join] *= count
    return (_reshape(moved, shape),), (True,)


def _exchanged_back(*, split: int, concat: int, **attrs: Any) -> dict[str, Any]:
    return {**attrs, "split": concat, "concat": split}


all_to_all_p: Primitive = collectives.declare(
    "all_to_all",
    _type_all_to_all,
    _reference_alone("all_to_all"),
    collectives.transposed("all_to_all", _exchanged_back),
    _batch_all_to_all,
)


def all_to_all(
    x: Any, axis_name: AxisName, split_axis: int, concat_axis: int, *, tiled: bool = False
) -> Any:  # Any: pytrees
    """Cut along `split_axis`, send part j to member j, and join what arrives along `concat_axis` when
    `tiled`. Otherwise `split_axis` has the size of the named axis and disappears, and what arrives is stacked
    along a fresh dimension `concat_axis`.

    Raises:
        TypeMismatchError: the dimension of `split_axis` does not divide into the members.
        ValueMismatchError: without `tiled`, it has another size than the named axis.
    """
    axes, sizes = axes_of(axis_name)
    size = families.prod(sizes)

    def tiles(value: Value, split: int, concat: int) -> Value:
        where = {"split": split - value.ndim, "concat": concat - value.ndim}
        return trace.bind1(all_to_all_p, value, axes=axes, sizes=sizes, **where)

    def one(leaf: Any) -> Value:
        value = trace.as_value(leaf)
        split = families.normalize_axis(split_axis, value.ndim)
        concat = families.normalize_axis(concat_axis, value.ndim)
        if tiled:
            return tiles(value, split, concat)
        if value.shape[split] != size:
            raise errors.ValueMismatchError(
                "all_to_all without tiled=True needs a split dimension of the size of the axis",
                got=f"{value.type}, axis of size {size}",
            )
        if split == concat:
            return tiles(value, split, concat)
        at = concat + (split < concat)  # where the fresh dimension stands while that of split is there
        split += at <= split
        parts = tiles(_reshape(value, (*value.shape[:at], 1, *value.shape[at:])), split, at)
        return _reshape(parts, [n for d, n in enumerate(parts.shape) if d != split])

    return tree.map(one, x)


def pswapaxes(x: Any, axis_name: AxisName, axis: int) -> Any:  # Any: pytrees
    """Swap a named axis with a dimension of its size: member i gets part i of every member."""
    return all_to_all(x, axis_name, axis, axis)
