"""`vmap`, and `lax.map`, which maps one element or one batch after another."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from infini.core import errors, trace, tree
from infini.core.value import Value
from infini.lax import families, loops, view
from infini.transforms import flat as flat_
from infini.transforms.batch_tracing import Axis, Batching, BatchTracer


def vmap(
    fun: Callable[..., Any],
    in_axes: Any = 0,
    out_axes: Any = 0,
    axis_name: Hashable | None = None,
    axis_size: int | None = None,
    spmd_axis_name: Hashable | None = None,
) -> Callable[..., Any]:  # Any: functions of pytrees
    """Map a function over an axis of its arguments, as `jax.vmap`.

    Args:
        fun: function of arrays and pytrees of arrays.
        in_axes: axis of each argument to map over: an int, None for arguments that stay whole, or a tree
            prefix of these. Arguments passed by name are mapped over their first axis.
        out_axes: where the mapped axis appears in the results, likewise; None for results that do not depend
            on it.
        axis_name: name of the axis, for collectives such as `lax.psum` inside `fun`.
        axis_size: size of the axis; needed when no argument is mapped.
        spmd_axis_name: axis of the mesh over which sharding constraints inside `fun` split the mapped axis.

    Returns:
        The mapped function.

    Raises:
        TypeMismatchError: `fun` is no function, or axes are no integers.
        ValueMismatchError: nothing is mapped, sizes differ, or axes do not match the arguments.

    Example:
        >>> import infini as inf, infini.numpy as inp
        >>> inf.vmap(lambda x: x.sum())(inp.ones((2, 3)))
        Array([3., 3.], dtype=float32)
    """
    if not callable(fun):
        raise errors.TypeMismatchError("vmap needs a function", got=repr(fun))
    axes_tree = tuple(in_axes) if isinstance(in_axes, list) else in_axes
    _check_axes(axes_tree, "in_axes")
    _check_axes(out_axes, "out_axes")

    @functools.wraps(fun)
    def mapped(*args: Any, **kwargs: Any) -> Any:
        if isinstance(axes_tree, tuple) and len(axes_tree) != len(args):
            raise errors.ValueMismatchError(
                "vmap: in_axes must have one entry per positional argument",
                got=f"{len(axes_tree)} entries for {len(args)} arguments",
            )
        axes = _axes_by_leaf(axes_tree, args, "in_axes")
        leaves, treedef = tree.flatten((args, kwargs))
        axes += [0] * (len(leaves) - len(axes))
        axis = Axis(_batch_size(leaves, axes, axis_size), axis_name, spmd_axis_name)
        f = flat_.FlatFunction(fun, treedef)
        interpreter = Batching(trace.current(), axis, f.__name__)
        boxed = [_boxed(interpreter, x, a) for x, a in zip(leaves, axes, strict=True)]
        with trace.running(interpreter), axis.named():
            results = f(*boxed)
        assert f.out_tree is not None
        out = _results(interpreter, f, results, out_axes)
        interpreter.is_closed = True
        return tree.unflatten(f.out_tree, flat_.finished(out))

    return mapped


def _boxed(
    interpreter: Batching, x: Any, axis: int | None
) -> Any:  # Any: leaves; float0 arrays are no values
    if flat_.is_float0(x):
        return x if axis is None else x[(slice(None),) * (axis % x.ndim) + (0,)]
    (value,) = flat_.values([x], "arguments of vmap")
    return value if axis is None else BatchTracer(interpreter, _move(value, axis, 0))


def _results(
    interpreter: Batching, f: flat_.FlatFunction, results: Sequence[Value], out_axes: Any
) -> list[Any]:
    assert f.out_tree is not None
    every = f.out_holes.fill(results)
    targets = _axes_by_leaf(out_axes, tree.unflatten(f.out_tree, list(range(len(every)))), "out_axes")
    out: list[Any] = []
    for result, target in zip(every, targets, strict=True):
        if flat_.is_float0(result):
            shape = list(result.shape)
            if target is not None:
                shape.insert(target % (len(shape) + 1), interpreter.size)
            out.append(flat_.float0_zeros(tuple(shape)))
        else:
            out.append(_out(interpreter, result, target))
    return out


def _check_axes(axes: Any, what: str) -> None:  # Any: what the user gave
    for axis in tree.leaves(axes, is_leaf=lambda x: x is None):
        if axis is not None and (isinstance(axis, bool) or not hasattr(axis, "__index__")):
            raise errors.TypeMismatchError(
                f"vmap: {what} must be made of integers and None",
                got=repr(axes),
                expected="an int, None, or a tree prefix of these",
            )


def _axes_by_leaf(axes: Any, args: Any, what: str) -> list[int | None]:
    """One axis per leaf from a prefix tree of axes, where None means not mapped."""
    if axes is None or (not isinstance(axes, (tuple, list, dict)) and hasattr(axes, "__index__")):
        number = None if axes is None else operator.index(axes)
        return [number] * len(tree.leaves(args))
    try:
        # None is a leaf among axes.
        prefix, prefix_tree = tree.flatten(axes, is_leaf=lambda x: x is None)
        subtrees = prefix_tree.flatten_up_to(args)
    except ValueError as error:
        raise errors.ValueMismatchError(
            f"vmap: {what} does not match the {'arguments' if what == 'in_axes' else 'results'}",
            got=f"{what}={axes!r} for a tree {tree.structure(args)}",
            expected="an int, None, or a tree prefix of it made of these",
        ) from error
    result: list[int | None] = []
    for axis, subtree in zip(prefix, subtrees, strict=True):
        result += [None if axis is None else operator.index(axis)] * len(tree.leaves(subtree))
    return result


def _out(interpreter: Batching, result: Value, axis: int | None) -> Value:
    if axis is None:
        value, is_batched = interpreter.split(result)
        if is_batched:
            raise errors.ValueMismatchError(
                "vmap: a result with out_axes=None depends on the mapped axis",
                got=str(result.type),
                fix="use out_axes=0",
            )
        return value
    full = interpreter.full(result)
    return _move(full, 0, families.normalize_axis(axis, full.ndim))


def _batch_size(leaves: Sequence[Any], axes: Sequence[int | None], axis_size: Any) -> int:
    found: dict[int, str] = {}
    for x, axis in zip(leaves, axes, strict=True):
        if axis is None:
            continue
        type_ = x if flat_.is_float0(x) else flat_.values([x], "arguments of vmap")[0].type
        if not -type_.ndim <= axis < type_.ndim:
            raise errors.ValueMismatchError(
                f"vmap: axis {axis} does not exist",
                got=f"an argument of type {type_}",
                fix="pass in_axes=None for it",
            )
        found.setdefault(type_.shape[axis], f"{type_} axis {axis}")
    if axis_size is not None:
        try:
            found.setdefault(operator.index(axis_size), "axis_size")
        except TypeError as error:
            raise errors.TypeMismatchError(
                "vmap: axis_size must be an integer", got=repr(axis_size)
            ) from error
    if len(found) != 1:
        raise errors.ValueMismatchError(
            "vmap needs one size for the mapped axis"
            if found
            else "vmap maps nothing: no argument, or every in_axes is None",
            got="; ".join(f"size {size} of {where}" for size, where in found.items()) or "no mapped argument",
            fix="map arguments of equal size, or pass axis_size=",
        )
    return next(iter(found))


def _move(x: Value, source: int, target: int) -> Value:
    source = families.normalize_axis(source, x.ndim)
    if source == target:
        return x
    order = [d for d in range(x.ndim) if d != source]
    order.insert(target, source)
    return view.transpose(x, order)


# --- lax.map --------------------------------------------------------------------------------------


def map(  # noqa: A001  # JAX's name
    f: Callable[..., Any], xs: Any, *, batch_size: int | None = None
) -> Any:  # Any: pytrees
    """Apply `f` to each slice of `xs` along the leading dimension and stack the results, as `jax.lax.map`.

    Args:
        f: function of one slice.
        xs: pytree of arrays with equal leading dimensions.
        batch_size: how many slices are computed at once, with `vmap`; one after another when absent. The
            last ones are a smaller batch when it does not divide the number of slices.

    Returns:
        The stacked results.

    Raises:
        ValueMismatchError: leading dimensions differ.
    """
    if batch_size is None:
        _, ys = loops.scan(lambda _, x: ((), f(x)), (), xs)
        return ys
    leaves, treedef = tree.flatten(xs)
    values = [trace.as_value(x) for x in leaves]
    count = values[0].shape[0] if values and values[0].ndim else 0
    num_batches = count // batch_size if batch_size else 0
    in_batches = num_batches * batch_size

    def rows(start: int, stop: int) -> list[Value]:
        return [view.slice_in_dim(x, start, stop) for x in values]

    parts = []
    if num_batches:
        folded = [view.reshape(x, (num_batches, batch_size, *x.shape[1:])) for x in rows(0, in_batches)]
        found = map(vmap(f), tree.unflatten(treedef, folded))
        parts.append(tree.map(lambda y: view.reshape(y, (in_batches, *y.shape[2:])), found))
    if in_batches < count or not parts:
        parts.append(vmap(f)(tree.unflatten(treedef, rows(in_batches, count))))
    return parts[0] if len(parts) == 1 else tree.map(lambda *ys: view.concatenate(ys, 0), *parts)
