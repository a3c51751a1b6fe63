"""The interpreter of `vmap`: the batch dimension stands in front of the loop dimensions, so an operation
with a signature is bound again unchanged.

Operations without a signature give a BATCH rule; it runs under the parent interpreter and receives this one
as `ctx`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from infini.core import dtypes, ir, primitive, trace
from infini.core.ir import ArrayType, Program
from infini.core.value import Value
from infini.lax import families, view

Flags = tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """A mapped axis.

    Args:
        size: its size.
        name: its name for collectives, or None.
        spmd_name: axis of the mesh that sharding constraints inside split it over, or None.
    """

    size: int
    name: Hashable = None
    spmd_name: Hashable = None

    def batch_function(
        self, f: Callable[..., Sequence[Any]], args: Sequence[Value], flags: Flags
    ) -> tuple[list[Value], Flags]:
        """Apply a flat function to arguments of which the marked ones are batches: results, and which of
        them are batches.
        """
        return batch_values(f, args, flags, self)

    def named(self) -> AbstractContextManager[None]:
        """Make the name known to collectives inside the block."""
        names: list[Any] = [] if self.name is None else [(self.name, self.size)]
        return trace.named_axes(*names)


class BatchTracer(trace.Tracer):
    """One element of a batch; `batch` holds all of them along its first dimension."""

    __slots__ = ("batch",)

    def __init__(self, owner: Batching, batch: Value) -> None:
        super().__init__(owner, batch.type.update(shape=batch.shape[1:]), batch.weak)
        self.batch = batch

    @property
    def varying(self) -> trace.Varying:
        """See `trace.Tracer`."""
        return trace.varying_axes(self.batch)

    def with_weak(self, weak: bool) -> BatchTracer:
        """The same value with another weak flag, which goes with it when it leaves the transformation."""
        copy = super().with_weak(weak)
        assert isinstance(copy, BatchTracer)
        copy.batch = self.batch.with_weak(weak)
        return copy


class Batching(trace.Interpreter):
    """Apply operations to whole batches in the parent. Also the `ctx` of BATCH rules."""

    parent: trace.Interpreter
    transform = "vmap"

    def __init__(self, parent: trace.Interpreter, axis: Axis, function: str = "") -> None:
        super().__init__(parent, function)
        self.axis = axis
        self.size = axis.size
        self.axis_name = axis.name
        self.spmd_axis_name = axis.spmd_name

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
            if self.axis_name is not None and concerns_axis(attrs, self.axis_name):
                if op.name == "axis_index":
                    batch = trace.bind1(view.iota_p, shape=(self.size,), dimension=0, dtype=dtypes.int32)
                    return (BatchTracer(self, batch),)
            elif not any(flags):
                return trace.bind_attrs(op, values, attrs)
            results, out_flags = self._batch(op, values, flags, attrs)
        return tuple(BatchTracer(self, r) if b else r for r, b in zip(results, out_flags, strict=True))

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
        return batch_program(program, tuple(flags), wanted, self.axis, trace.axis_env())


def concerns_axis(attrs: ir.Attrs, name: Hashable) -> bool:
    """Whether an operation, or one in a program that it holds, is a collective over the axis `name`."""
    names = attrs.get("axes", ())
    if attrs.get("axis_name") == name or (isinstance(names, tuple) and name in names):
        return True
    held = [attrs[key] for key in attrs]
    programs = [p for x in held for p in (x if isinstance(x, tuple) else (x,)) if isinstance(p, Program)]
    return any(_mentions_axis(program, name) for program in programs)


@functools.lru_cache(maxsize=4096)
def _mentions_axis(program: Program, name: Hashable) -> bool:
    return any(concerns_axis(equation.attrs, name) for equation in program.equations)


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
    f: Callable[..., Sequence[Any]], args: Sequence[Value], flags: Flags, axis: Axis
) -> tuple[list[Value], Flags]:
    """Map a flat function over the leading dimension of the arguments marked in `flags`.

    Returns:
        The results, and which of them are batches; the others are equal for every element.
    """
    interpreter = Batching(trace.current(), axis)
    boxed = [BatchTracer(interpreter, a) if b else a for a, b in zip(args, flags, strict=True)]
    with trace.running(interpreter), axis.named():
        results = [trace.as_value(r) for r in f(*boxed)]
    pairs = [interpreter.split(r) for r in results]
    interpreter.is_closed = True
    return [x for x, _ in pairs], tuple(flag for _, flag in pairs)


@functools.lru_cache(maxsize=4096)
def batch_program(
    program: Program, flags: Flags, force: Flags, axis: Axis, axes: tuple[tuple[str, int], ...]
) -> tuple[Program, Flags]:
    """A program over a batch of the parameters marked in `flags`.

    Args:
        program: program to map.
        flags: which parameters are batched, along their first dimension.
        force: results that are batched even when they do not depend on the batch.
        axis: the mapped axis.
        axes: named axes in scope; part of the key only.

    Returns:
        The program, and which of its results are batched.
    """
    found: list[Flags] = []

    def run(*args: Value) -> Sequence[Value]:
        results, out_flags = batch_values(lambda *xs: trace.evaluate(program, xs), args, flags, axis)
        found.append(tuple(b or wish for b, wish in zip(out_flags, force, strict=True)))
        return [
            families.broadcast_to(r, (axis.size, *r.shape)) if wish and not b else r
            for r, b, wish in zip(results, out_flags, force, strict=True)
        ]

    types = [
        t.update(shape=(axis.size, *t.shape)) if b else t
        for t, b in zip(program.in_types, flags, strict=True)
    ]
    staged = trace.stage(run, types, name=f"{program.name}_vmap")
    assert not staged.captures, "a program captures nothing"
    return staged.program, found[0]
