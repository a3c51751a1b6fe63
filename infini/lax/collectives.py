"""Collectives over named axes, with JAX's names. They are differentiable operations; a backend's comm
runs them.

Under `vmap(axis_name=...)` they act on the batch dimension; in partitioned programs on the devices of a
mesh axis. Sizes of the
axes are attributes, so a program types without a mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors, primitive, trace, tree
from infini.core.ir import ArrayType
from infini.core.primitive import Effect, Primitive
from infini.core.value import Value
from infini.lax import elementwise as e, families

AxisName = str | tuple[str, ...]


def _axes_of(axis_name: AxisName) -> tuple[tuple[str, ...], tuple[int, ...]]:
    names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    return names, tuple(trace.axis_size(name) for name in names)


def _alone(name: str, sizes: Sequence[int]) -> None:
    if any(size != 1 for size in sizes):
        raise errors.LoweringError(
            f"{name} over several devices needs a backend with communication",
            fix="run it in a program over a mesh",
        )


def _collective(
    name: str,
    type_rule: Callable[..., Any],
    reference: Callable[..., Any],
    transpose: Any,
    batch: Any,
    jvp: Any = None,
) -> Primitive:
    rules: dict[primitive.RuleKey, Any] = {  # Any: each key has its own kind of rule
        primitive.TYPE: type_rule,
        primitive.REFERENCE: reference,
        primitive.JVP: jvp or families.linear_jvp(name),
        primitive.BATCH: batch,
    }
    if transpose is not None:
        rules[primitive.TRANSPOSE] = transpose
    return primitive.register(Primitive(name, None, rules, effect=Effect.COLLECTIVE))


def _without(
    name: str, axes: tuple[str, ...], sizes: tuple[int, ...]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    kept = [(a, s) for a, s in zip(axes, sizes, strict=True) if a != name]
    return tuple(a for a, _ in kept), tuple(s for _, s in kept)


# --- psum and relatives ------------------------------------------------------------------------


def _all_reduce(name: str, reducer: str, transpose: Any, jvp: Any = None) -> Primitive:
    def reference(x: np.ndarray, *, axes: tuple[str, ...], sizes: tuple[int, ...]) -> np.ndarray:
        _alone(name, sizes)
        return x

    def batch(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:  # Any: see transforms.batching
        (x,), axes, sizes = args, attrs["axes"], attrs["sizes"]
        if ctx.axis_name in axes:
            axes, sizes = _without(ctx.axis_name, axes, sizes)
            if batched[0]:
                reduced = trace.bind1(primitive.by_name(reducer), x, axes=(-x.ndim,))
            elif reducer == "reduce_sum":
                reduced = families.bind_scalars(e.mul_p, x, ctx.size)
            else:
                reduced = x
            result = (
                trace.bind1(primitive.by_name(name), reduced, axes=axes, sizes=sizes) if axes else reduced
            )
            return (result,), (False,)
        return trace.bind(primitive.by_name(name), x, **attrs), batched

    return _collective(name, lambda x, *, axes, sizes: (x,), reference, transpose, batch, jvp)


psum_p: Primitive = _all_reduce(
    "psum", "reduce_sum", lambda ct, x, *, axes, sizes: (trace.bind1(psum_p, ct, axes=axes, sizes=sizes),)
)
pmax_p: Primitive = _all_reduce("pmax", "reduce_max", None, families.no_jvp)
pmin_p: Primitive = _all_reduce("pmin", "reduce_min", None, families.no_jvp)


def _tree_collective(op: Primitive, x: Any, axis_name: AxisName) -> Any:  # Any: pytrees
    axes, sizes = _axes_of(axis_name)
    return tree.map(lambda leaf: trace.bind1(op, leaf, axes=axes, sizes=sizes), x)


def psum(x: Any, axis_name: AxisName) -> Any:  # Any: pytrees
    """Sum over the members of a named axis; booleans count as int32. A Python number is multiplied by the
    size of the axis.

    Raises:
        UnboundAxisError: no enclosing transformation names the axis.
    """
    axes, sizes = _axes_of(axis_name)

    def one(leaf: Any) -> Any:  # Any: numbers and arrays
        if type(leaf) in (bool, int, float):
            return leaf * families.prod(sizes)
        value = trace.as_value(leaf)
        if value.dtype == dtypes.bool_:
            value = trace.bind1(e.convert_element_type_p, value, new_dtype=dtypes.int32)
        return trace.bind1(psum_p, value, axes=axes, sizes=sizes)

    return tree.map(one, x)


def pmean(x: Any, axis_name: AxisName) -> Any:  # Any: pytrees
    """Mean over the members of a named axis; integers and booleans become floats."""
    count = families.prod(_axes_of(axis_name)[1])

    def one(leaf: Any) -> Any:  # Any: numbers and arrays
        if type(leaf) in (int, float):
            return leaf / count
        total = trace.as_value(leaf)
        if not dtypes.is_inexact(total.dtype):
            total = trace.bind1(e.convert_element_type_p, total, new_dtype=dtypes.float32)
        return families.bind_scalars(e.div_p, total, count)

    return tree.map(one, psum(x, axis_name))


def pmax(x: Any, axis_name: AxisName) -> Any:  # Any: pytrees
    """Maximum over the members of a named axis."""
    return _tree_collective(pmax_p, x, axis_name)


def pmin(x: Any, axis_name: AxisName) -> Any:  # Any: pytrees
    """Minimum over the members of a named axis."""
    return _tree_collective(pmin_p, x, axis_name)


# --- all_gather and psum_scatter ---------------------------------------------------------------


def _type_all_gather(x: ArrayType, *, axis_name: str, size: int, dimension: int) -> tuple[ArrayType, ...]:
    shape = list(x.shape)
    shape[dimension] *= size
    return (x.update(shape=tuple(shape)),)


def _type_psum_scatter(x: ArrayType, *, axis_name: str, size: int, dimension: int) -> tuple[ArrayType, ...]:
    shape = list(x.shape)
    if shape[dimension] % size:
        raise errors.TypeMismatchError(
            f"psum_scatter: the dimension does not divide into {size} parts", got=str(x)
        )
    shape[dimension] //= size
    return (x.update(shape=tuple(shape)),)


def _reference_alone(name: str) -> Any:  # Any: a rule
    def reference(x: np.ndarray, *, axis_name: str, size: int, **_: object) -> np.ndarray:
        _alone(name, [size])
        return x

    return reference


def _batch_all_gather(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:  # Any: see transforms.batching
    (x,), dimension = args, attrs["dimension"]
    if ctx.axis_name != attrs["axis_name"]:
        return trace.bind(all_gather_p, x, **attrs), batched
    if not batched[0]:
        x = families.broadcast_to(x, (ctx.size, *x.shape))
    # (size, ..., n, ...) -> (..., size * n, ...)
    rank = x.ndim - 1
    at = rank + dimension
    order = (*range(1, at + 1), 0, *range(at + 1, rank + 1))
    moved = trace.bind1(primitive.by_name("transpose"), x, permutation=tuple(p - x.ndim for p in order))
    shape = (*x.shape[1 : at + 1], ctx.size * x.shape[at + 1], *x.shape[at + 2 :])
    return trace.bind(primitive.by_name("reshape"), moved, shape=shape, ndim=moved.ndim), (False,)


all_gather_p: Primitive = _collective(
    "all_gather",
    _type_all_gather,
    _reference_alone("all_gather"),
    lambda ct, x, **attrs: (trace.bind1(psum_scatter_p, ct, **attrs),),
    _batch_all_gather,
)


def _batch_psum_scatter(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:  # Any: see transforms.batching
    (x,), dimension, size = args, attrs["dimension"], ctx.size
    if ctx.axis_name != attrs["axis_name"]:
        return trace.bind(psum_scatter_p, x, **attrs), batched
    total = (
        trace.bind1(primitive.by_name("reduce_sum"), x, axes=(-x.ndim,))
        if batched[0]
        else families.bind_scalars(e.mul_p, x, size)
    )
    at = total.ndim + dimension
    shape = (*total.shape[:at], size, total.shape[at] // size, *total.shape[at + 1 :])
    parts = trace.bind1(primitive.by_name("reshape"), total, shape=shape, ndim=total.ndim)
    order = (at, *(d for d in range(parts.ndim) if d != at))
    return trace.bind(
        primitive.by_name("transpose"), parts, permutation=tuple(p - parts.ndim for p in order)
    ), (True,)


psum_scatter_p: Primitive = _collective(
    "psum_scatter",
    _type_psum_scatter,
    _reference_alone("psum_scatter"),
    lambda ct, x, **attrs: (trace.bind1(all_gather_p, ct, **attrs),),
    _batch_psum_scatter,
)


def all_gather(x: Any, axis_name: str, *, axis: int = 0, tiled: bool = False) -> Any:  # Any: pytrees
    """Arrays of every member of a named axis: stacked along a fresh dimension `axis`, or joined along it
    when `tiled`.
    """
    size = trace.axis_size(axis_name)

    def one(leaf: Any) -> Value:
        value = trace.as_value(leaf)
        if not tiled:
            at = families.normalize_axis(axis, value.ndim + 1)
            shape = (*value.shape[:at], 1, *value.shape[at:])
            value = trace.bind1(primitive.by_name("reshape"), value, shape=shape, ndim=value.ndim)
        else:
            at = families.normalize_axis(axis, value.ndim)
        return trace.bind1(all_gather_p, value, axis_name=axis_name, size=size, dimension=at - value.ndim)

    return tree.map(one, x)


def psum_scatter(
    x: Any, axis_name: str, *, scatter_dimension: int = 0, tiled: bool = False
) -> Any:  # Any: pytrees
    """Sum over a named axis of which each member keeps its part along `scatter_dimension`."""
    size = trace.axis_size(axis_name)

    def one(leaf: Any) -> Value:
        value = trace.as_value(leaf)
        at = families.normalize_axis(scatter_dimension, value.ndim)
        part = trace.bind1(psum_scatter_p, value, axis_name=axis_name, size=size, dimension=at - value.ndim)
        if tiled:
            return part
        if value.shape[at] != size:
            raise errors.TypeMismatchError(
                "psum_scatter without tiled=True needs a scattered dimension of the size of the axis",
                got=f"{value.type}, axis of size {size}",
            )
        shape = tuple(n for d, n in enumerate(part.shape) if d != at)
        return trace.bind1(primitive.by_name("reshape"), part, shape=shape, ndim=part.ndim)

    return tree.map(one, x)


# --- ppermute and all_to_all ---------------------------------------------------------------------


def _batch_ppermute(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:  # Any: see transforms.batching
    (x,) = args
    if ctx.axis_name != attrs["axis_name"]:
        return trace.bind(ppermute_p, x, **attrs), batched
    if len(attrs["permutation"]) != ctx.size:
        raise errors.ValueMismatchError(
            "ppermute over an axis of vmap needs a whole permutation",
            got=f"{len(attrs['permutation'])} pairs for an axis of size {ctx.size}",
            fix="name a source for every member; multiply by zero where nothing should arrive",
        )
    if not batched[0]:
        x = families.broadcast_to(x, (ctx.size, *x.shape))
    source = {target: origin for origin, target in attrs["permutation"]}
    zero = families.zeros(x.type.update(shape=(1, *x.shape[1:])))
    rank = x.ndim
    rows = []
    for target in range(ctx.size):
        origin = source.get(target)
        if origin is None:
            rows.append(zero)
            continue
        start = (origin, *(0,) * (rank - 1))
        rows.append(
            trace.bind1(
                primitive.by_name("slice"),
                x,
                start=start,
                limit=(origin + 1, *x.shape[1:]),
                strides=(1,) * rank,
            )
        )
    return trace.bind(primitive.by_name("concatenate"), *rows, axis=-rank), (True,)


def _reference_ppermute(x: np.ndarray, *, axis_name: str, size: int, permutation: Any) -> np.ndarray:
    _alone("ppermute", [size])
    return x if (0, 0) in permutation else np.zeros_like(x)


ppermute_p: Primitive = _collective(
    "ppermute",
    lambda x, **_: (x,),
    _reference_ppermute,
    lambda ct, x, *, axis_name, size, permutation: (
        trace.bind1(
            ppermute_p, ct, axis_name=axis_name, size=size, permutation=tuple((b, a) for a, b in permutation)
        ),
    ),
    _batch_ppermute,
)


def ppermute(x: Any, axis_name: str, perm: Sequence[tuple[int, int]]) -> Any:  # Any: pytrees
    """Send along (source, destination) pairs of a named axis; members that receive nothing get zeros.

    Raises:
        ValueMismatchError: a source or destination occurs twice or is out of range.
    """
    size = trace.axis_size(axis_name)
    pairs = tuple((int(a), int(b)) for a, b in perm)
    for column in zip(*pairs, strict=True):
        if len(set(column)) != len(column) or not all(0 <= i < size for i in column):
            raise errors.ValueMismatchError(
                f"this is not a permutation of an axis of size {size}", got=str(pairs)
            )
    return tree.map(
        lambda leaf: trace.bind1(ppermute_p, leaf, axis_name=axis_name, size=size, permutation=pairs), x
    )


def _type_all_to_all(
    x: ArrayType, *, axis_name: str, size: int, split: int, concat: int
) -> tuple[ArrayType, ...]:
    shape = list(x.shape)
    if shape[split] % size:
        raise errors.TypeMismatchError(
            f"all_to_all: the split dimension does not divide into {size} parts", got=str(x)
        )
    shape[split] //= size
    shape[concat] *= size
    return (x.update(shape=tuple(shape)),)


def _batch_all_to_all(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:  # Any: see transforms.batching
    (x,), split, concat, size = args, attrs["split"], attrs["concat"], ctx.size
    if ctx.axis_name != attrs["axis_name"]:
        return trace.bind(all_to_all_p, x, **attrs), batched
    if not batched[0]:
        x = families.broadcast_to(x, (size, *x.shape))
    # (members, ..., size * n at split, ...): part j of member i goes to member j, joined along concat in
    # the order of i.
    rank = x.ndim - 1
    at = 1 + rank + split
    cut = (*x.shape[:at], size, x.shape[at] // size, *x.shape[at + 1 :])
    parts = trace.bind1(primitive.by_name("reshape"), x, shape=cut, ndim=x.ndim)
    rest = [d for d in range(1, parts.ndim) if d != at]
    join = rest[rank + concat]
    order = [at]
    for d in rest:
        order += [0, d] if d == join else [d]
    moved = trace.bind1(
        primitive.by_name("transpose"), parts, permutation=tuple(p - parts.ndim for p in order)
    )
    shape = list(x.shape)
    shape[at] //= size
    shape[1 + rank + concat] *= size
    return trace.bind(primitive.by_name("reshape"), moved, shape=tuple(shape), ndim=moved.ndim), (True,)


all_to_all_p: Primitive = _collective(
    "all_to_all",
    _type_all_to_all,
    _reference_alone("all_to_all"),
    lambda ct, x, *, axis_name, size, split, concat: (
        trace.bind1(all_to_all_p, ct, axis_name=axis_name, size=size, split=concat, concat=split),
    ),
    _batch_all_to_all,
)


def all_to_all(
    x: Any, axis_name: str, split_axis: int, concat_axis: int, *, tiled: bool = False
) -> Any:  # Any: pytrees
    """Cut along `split_axis`, send part j to member j, and join what arrives along `concat_axis` when
    `tiled`. Otherwise `split_axis` has the size of the named axis and disappears, and what arrives is stacked
    along a fresh dimension `concat_axis`.

    Raises:
        TypeMismatchError: the dimension of `split_axis` does not divide into the members.
        ValueMismatchError: without `tiled`, it has another size than the named axis.
    """
    size = trace.axis_size(axis_name)

    def tiles(value: Value, split: int, concat: int) -> Value:
        return trace.bind1(
            all_to_all_p,
            value,
            axis_name=axis_name,
            size=size,
            split=split - value.ndim,
            concat=concat - value.ndim,
        )

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
        shape = (*value.shape[:at], 1, *value.shape[at:])
        split += at <= split
        opened = trace.bind1(primitive.by_name("reshape"), value, shape=shape, ndim=value.ndim)
        parts = tiles(opened, split, at)
        kept = tuple(n for d, n in enumerate(parts.shape) if d != split)
        return trace.bind1(primitive.by_name("reshape"), parts, shape=kept, ndim=parts.ndim)

    return tree.map(one, x)


def pswapaxes(x: Any, axis_name: str, axis: int) -> Any:  # Any: pytrees
    """Swap a named axis with a dimension of its size: member i gets part i of every member."""
    return all_to_all(x, axis_name, axis, axis)


def pshuffle(x: Any, axis_name: str, perm: Sequence[int]) -> Any:  # Any: pytrees
    """Member i gets what member `perm[i]` has.

    Raises:
        ValueMismatchError: `perm` does not name every member once.
    """
    size = trace.axis_size(axis_name)
    if sorted(perm) != list(range(size)):
        raise errors.ValueMismatchError(
            f"this is not a permutation of an axis of size {size}", got=str(list(perm))
        )
    return ppermute(x, axis_name, [(source, target) for target, source in enumerate(perm)])


# --- axis_index ----------------------------------------------------------------------------------


def _reference_axis_index(*, axis_name: str, size: int) -> np.ndarray:
    _alone("axis_index", [size])
    return np.zeros((), np.int32)


axis_index_p: Primitive = primitive.register(
    Primitive(
        "axis_index",
        None,
        {
            primitive.TYPE: lambda *, axis_name, size: (ArrayType((), dtypes.int32),),
            primitive.REFERENCE: _reference_axis_index,
            primitive.JVP: families.no_jvp,
        },
    )
)


def axis_index(axis_name: AxisName) -> Value:
    """Index of this member along a named axis, int32; several names count in row-major order."""
    axes, sizes = _axes_of(axis_name)
    result: Value | None = None
    for name, size in zip(axes, sizes, strict=True):
        own = trace.bind1(axis_index_p, axis_name=name, size=size)
        result = own if result is None else e.add(e.mul(result, size), own)
    assert result is not None
    return result


def axis_size(axis_name: AxisName) -> int:
    """Number of members of a named axis."""
    return families.prod(_axes_of(axis_name)[1])
