"""`vmap`: the batch dimension stands in front of the loop dimensions, so an operation with a signature is
bound again unchanged.

Operations without a signature give a BATCH rule; it runs under the parent interpreter and receives this
one as `ctx`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from infini.core import dtypes, errors, ir, primitive, trace, tree
from infini.core.ir import ArrayType, Program
from infini.core.value import Value
from infini.lax import families, view
from infini.transforms import flat as flat_

Flags = tuple[bool, ...]


class BatchTracer(trace.Tracer):
    """One element of a batch; `batch` holds all of them along its first dimension."""

    __slots__ = ("batch",)

    def __init__(self, owner: Batching, batch: Value) -> None:
        super().__init__(owner, batch.type.update(shape=batch.shape[1:]), batch.weak)
        self.batch = batch


class Batching(trace.Interpreter):
    """Apply operations to whole batches in the parent. Also the `ctx` of BATCH rules."""

    parent: trace.Interpreter
    transform = "vmap"

    def __init__(self, parent: trace.Interpreter, size: int, axis_name: Hashable = None) -> None:
        super().__init__(parent)
        self.size = size
        self.axis_name = axis_name

    def split(self, x: Value) -> tuple[Value, bool]:
        """The whole batch and True, or a value that is the same for every element and False."""
        if isinstance(x, BatchTracer) and x.owner is self:
            return x.batch, True
        return x, False

    def full(self, x: Value) -> Value:
        """The whole batch, made by repetition when `x` is the same for every element."""
        batch, is_batched = self.split(x)
        return batch if is_batched else families.broadcast_to(batch, (self.size, *batch.shape))

    def process(
        self,
        op: primitive.Primitive,
        args: Sequence[Value],
        attrs: ir.Attrs,
        out_types: tuple[ArrayType, ...],
    ) -> tuple[Value, ...]:
        """Batched results."""
        pairs = [self.split(a) for a in args]
        values, flags = [v for v, _ in pairs], tuple(b for _, b in pairs)
        with trace.running(self.parent):
            if self.axis_name is not None and self._concerns_axis(attrs):
                if op.name == "axis_index":
                    batch = trace.bind1(view.iota_p, shape=(self.size,), dimension=0, dtype=dtypes.int32)
                    return (BatchTracer(self, batch),)
            elif not any(flags):
                return trace.bind_attrs(op, values, attrs)
            results, out_flags = self._batch(op, values, flags, attrs)
        return tuple(BatchTracer(self, r) if b else r for r, b in zip(results, out_flags, strict=True))

    def _concerns_axis(self, attrs: ir.Attrs) -> bool:
        names = attrs.get("axes", ())
        return attrs.get("axis_name") == self.axis_name or (
            isinstance(names, tuple) and self.axis_name in names
        )

    def _batch(
        self, op: primitive.Primitive, values: list[Value], flags: Flags, attrs: ir.Attrs
    ) -> tuple[Sequence[Value], Sequence[bool]]:
        if op.has(primitive.BATCH):
            return op.rule(primitive.BATCH)(self, values, flags, attrs)
        signature = op.signature_for(attrs)
        if signature is None:
            op.rule(primitive.BATCH)  # raises, and says what is missing
        assert signature is not None
        aligned = align_loops(values, flags, [len(letters) for letters in signature.inputs])
        results = trace.bind_attrs(op, aligned, attrs)
        return results, (True,) * len(results)

    def batch_program(
        self, program: Program, flags: Flags, force: bool | Flags = False
    ) -> tuple[Program, Flags]:
        """See `batch_program`."""
        wanted = (force,) * len(program.results) if isinstance(force, bool) else force
        return batch_program(program, tuple(flags), wanted, self.size, self.axis_name, trace.axis_env())

    def batch_function(
        self, f: Callable[..., Sequence[Value]], args: Sequence[Value], size: int, axis_name: Hashable
    ) -> list[Value]:
        """Apply a flat function to arguments that are all batched; every result is."""
        return batch_values(f, args, (True,) * len(args), size, axis_name)


def align_loops(values: Sequence[Value], flags: Flags, core_ranks: Sequence[int]) -> list[Value]:
    """Insert dimensions of size 1 behind the batch dimension, so that loop dimensions of operands line up."""
    loops = max(v.ndim - b - rank for v, b, rank in zip(values, flags, core_ranks, strict=True))
    aligned = []
    for value, is_batched, rank in zip(values, flags, core_ranks, strict=True):
        missing = loops - (value.ndim - 1 - rank) if is_batched else 0
        if missing:
            shape = (value.shape[0], *(1,) * missing, *value.shape[1:])
            value = trace.bind1(view.reshape_p, value, shape=shape, ndim=value.ndim)
        aligned.append(value)
    return aligned


def batch_values(
    f: Callable[..., Sequence[Any]], args: Sequence[Value], flags: Flags, size: int, axis_name: Hashable
) -> list[Value]:
    """Map a flat function over the leading dimension of the arguments marked in `flags`; every result is
    batched.
    """
    interpreter = Batching(trace.current(), size, axis_name)
    boxed = [BatchTracer(interpreter, a) if b else a for a, b in zip(args, flags, strict=True)]
    named = ((str(axis_name), size),) if axis_name is not None else ()
    with trace.running(interpreter), trace.named_axes(*named):
        results = [trace.as_value(r) for r in f(*boxed)]
    full = [interpreter.full(r) for r in results]
    interpreter.is_closed = True
    return full


@functools.lru_cache(maxsize=4096)
def batch_program(
    program: Program,
    flags: Flags,
    force: Flags,
    size: int,
    axis_name: Hashable,
    axes: tuple[tuple[str, int], ...],
) -> tuple[Program, Flags]:
    """A program over a batch of the parameters marked in `flags`.

    Args:
        program: program to map.
        flags: which parameters are batched, along their first dimension.
        force: results that are batched even when they do not depend on the batch.
        size: size of the batch.
        axis_name: name of the batch axis for collectives, or None.
        axes: named axes in scope; part of the key only.

    Returns:
        The program, and which of its results are batched.
    """
    found: list[Flags] = []

    def run(*args: Value) -> Sequence[Value]:
        interpreter = Batching(trace.current(), size, axis_name)
        boxed = [BatchTracer(interpreter, a) if b else a for a, b in zip(args, flags, strict=True)]
        with trace.running(interpreter):
            results = trace.evaluate(program, boxed)
        pairs = [interpreter.split(r) for r in results]
        found.append(tuple(b or wish for (_, b), wish in zip(pairs, force, strict=True)))
        return [
            interpreter.full(r) if wish else v for r, (v, _), wish in zip(results, pairs, force, strict=True)
        ]

    types = [
        t.update(shape=(size, *t.shape)) if b else t for t, b in zip(program.in_types, flags, strict=True)
    ]
    staged = trace.stage(run, types, name=f"{program.name}_vmap")
    assert not staged.captures, "a program captures nothing"
    return staged.program, found[0]


def _axes_by_leaf(axes: Any, args: Any, treedef: tree.PyTreeDef, what: str) -> list[int | None]:
    """One axis per leaf from a prefix tree of axes, where None means not mapped."""
    if axes is None or isinstance(axes, int):
        return [axes] * treedef.num_leaves
    result: list[int | None] = []

    def spread(axis: Any, subtree: Any) -> None:
        count = len(tree.leaves(subtree))
        result.extend([axis] * count)

    try:
        # None is a leaf among axes.
        prefix, prefix_tree = tree.flatten(axes, is_leaf=lambda x: x is None)
        subtrees = prefix_tree.flatten_up_to(args)
    except ValueError as error:
        raise errors.ValueMismatchError(
            f"vmap: {what} does not match the arguments",
            got=f"{what}={axes!r} for a tree {treedef}",
            expected="an int, None, or a tree prefix of the arguments made of these",
        ) from error
    for axis, subtree in zip(prefix, subtrees, strict=True):
        spread(axis, subtree)
    return result


def vmap(
    fun: Callable[..., Any],
    in_axes: Any = 0,
    out_axes: Any = 0,
    axis_name: Hashable | None = None,
    axis_size: int | None = None,
) -> Callable[..., Any]:  # Any: functions of pytrees
    """Map a function over an axis of its arguments, as `jax.vmap`.

    Args:
        fun: function of arrays and pytrees of arrays.
        in_axes: axis of each argument to map over: an int, None for arguments that stay whole, or a tree
            prefix of these.
        out_axes: where the mapped axis appears in the results, likewise.
        axis_name: name of the axis, for collectives such as `lax.psum` inside `fun`.
        axis_size: size of the axis; needed when no argument is mapped.

    Returns:
        The mapped function.

    Raises:
        ValueMismatchError: nothing is mapped, sizes differ, or axes do not match the arguments.

    Example:
        >>> import infini as inf, infini.numpy as inp
        >>> inf.vmap(lambda x: x.sum())(inp.ones((2, 3)))
        Array([3., 3.], dtype=float32)
    """

    @functools.wraps(fun)
    def mapped(*args: Any, **kwargs: Any) -> Any:
        leaves, treedef = tree.flatten((args, kwargs))
        values = [trace.as_value(x) for x in leaves]
        axes_tree = tuple(in_axes) if isinstance(in_axes, list) else in_axes
        if isinstance(axes_tree, tuple) and len(axes_tree) != len(args):
            raise errors.ValueMismatchError(
                "vmap: in_axes must have one entry per positional argument",
                got=f"{len(axes_tree)} entries for {len(args)} arguments",
            )
        axes = _axes_by_leaf(axes_tree, args, tree.structure(args), "in_axes")
        axes += [0] * (len(values) - len(axes))
        size = _batch_size(values, axes, axis_size)
        flags = tuple(axis is not None for axis in axes)
        moved = [v if axis is None else _move(v, axis, 0) for v, axis in zip(values, axes, strict=True)]
        out_trees: list[tree.PyTreeDef] = []

        def flat(*flat_args: Value) -> Sequence[Any]:
            inner_args, inner_kwargs = tree.unflatten(treedef, flat_args)
            results, out_tree = tree.flatten(fun(*inner_args, **inner_kwargs))
            out_trees.append(out_tree)
            return results

        interpreter = Batching(trace.current(), size, axis_name)
        boxed = [BatchTracer(interpreter, a) if b else a for a, b in zip(moved, flags, strict=True)]
        named = ((str(axis_name), size),) if axis_name is not None else ()
        with trace.running(interpreter), trace.named_axes(*named):
            results = [trace.as_value(r) for r in flat(*boxed)]
        dummy = tree.unflatten(out_trees[0], list(range(len(results))))
        targets = _axes_by_leaf(out_axes, dummy, out_trees[0], "out_axes")
        out = [_out(interpreter, r, axis) for r, axis in zip(results, targets, strict=True)]
        interpreter.is_closed = True
        return tree.unflatten(out_trees[0], flat_.finished(out))

    return mapped


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


def _batch_size(values: Sequence[Value], axes: Sequence[int | None], axis_size: int | None) -> int:
    sizes = set() if axis_size is None else {int(axis_size)}
    for value, axis in zip(values, axes, strict=True):
        if axis is None:
            continue
        if not -value.ndim <= axis < value.ndim:
            raise errors.ValueMismatchError(
                f"vmap: axis {axis} does not exist",
                got=f"an argument of type {value.type}",
                fix="pass in_axes=None for it",
            )
        sizes.add(value.shape[axis])
    if len(sizes) != 1:
        shapes = ", ".join(f"{v.type} axis {a}" for v, a in zip(values, axes, strict=True) if a is not None)
        raise errors.ValueMismatchError(
            "vmap needs one size for the mapped axis"
            if sizes
            else "vmap maps nothing: every in_axes is None",
            got=shapes or "no mapped argument",
            fix="map arguments of equal size, or pass axis_size=",
        )
    return sizes.pop()


def _move(x: Value, source: int, target: int) -> Value:
    source = families.normalize_axis(source, x.ndim)
    if source == target:
        return x
    order = [d for d in range(x.ndim) if d != source]
    order.insert(target, source)
    return view.transpose(x, order)
