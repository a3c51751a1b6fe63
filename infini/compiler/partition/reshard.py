"""Moving a value from one placement to another, with as little communication as the two allow: the steps that
`moves` finds become equations of the per-device program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from infini.compiler.partition import moves
from infini.compiler.partition.costs import Note
from infini.compiler.partition.placement import Axes, Dims, Placement, size_of
from infini.core import dtypes, events, mesh as mesh_, primitive, shards, trace
from infini.core.ir import ArrayType, Equation, Shape, Var
from infini.core.machine import DEFAULT, Machine
from infini.core.mesh import AbstractMesh
from infini.core.value import Literal, Value
from infini.lax import families, neighbours


class Mover:
    """Reshards values of one program under construction.

    Args:
        mesh: the mesh.
        outermost: the interpreter that stages the program itself; device indices are computed there,
            outside of loops.
        machine: what links cost.
        strategies: how operations are split that people decided about, by the names in `strategies`.
        window_bytes: size up to which what a loop does not change is moved before it, see `hoist`.
    """

    def __init__(
        self,
        mesh: AbstractMesh,
        outermost: trace.Interpreter,
        machine: Machine = DEFAULT,
        strategies: Mapping[str, str] = MappingProxyType({}),
        window_bytes: int = 0,
    ) -> None:
        self.mesh = mesh
        self.outermost = outermost
        self.machine, self.strategies, self.window_bytes = machine, strategies, window_bytes
        self.collectives: list[Note] = []  # one for each that was inserted
        self.equation: Equation | None = None  # of the global program, the one that is being split
        self.placements: dict[Var, Placement] = {}  # of the global program, bodies included
        self.forms: dict[Var, str] = {}  # in which form an equation is computed and why, by its first result
        self._indices: dict[Axes, Value] = {}

    def axis_index(self, axes: Axes) -> Value:
        """Index of this device along some axes, int32, the first axis most significant."""
        if axes not in self._indices:
            with trace.running(self.outermost):
                self._indices[axes] = self._new_index(axes)
        return self._indices[axes]

    def _new_index(self, axes: Axes) -> Value:
        if not axes:  # one device
            return trace.as_value(np.int32(0))
        if len(axes) == 1:
            return trace.bind1(
                primitive.by_name("axis_index"), axis_name=axes[0], size=self.mesh.shape[axes[0]]
            )
        major, minor = self.axis_index(axes[:-1]), self.axis_index(axes[-1:])
        scaled = families.bind_scalars(primitive.by_name("mul"), major, self.mesh.shape[axes[-1]])
        return trace.bind1(primitive.by_name("add"), scaled, minor)

    def start(self, axes: Axes, size: int) -> Value:
        """First index of this device's part of a dimension whose parts have `size` elements."""
        return families.bind_scalars(primitive.by_name("mul"), self.axis_index(axes), size)

    def reshard(self, x: Value, source_: Placement, target: Dims, reason: str, shape: Shape) -> Value:
        """The local part of a value of a global shape under another placement, without partial sums."""
        if source_ == Placement(target):
            return x
        state = source_
        for step in moves.path(x.type.update(shape=shape), source_, target, self.mesh, self.machine):
            x, state = self._take(x, step, state, reason, shape), step.after
        return x

    def price(self, type_: ArrayType, source_: Placement, target: Dims) -> float:
        """Seconds to bring an array of a global type from one placement to another."""
        if source_ == Placement(target):
            return 0.0
        return moves.seconds(type_, source_, target, self.mesh, self.machine)

    def add_up(
        self, x: Value, source_: Placement, target: Dims, reason: str, shape: Shape
    ) -> tuple[Value, Dims]:
        """Resolve partial sums; scatters them along dimensions that the target splits over their axes."""
        dims, waiting = list(source_.dims), source_.partial
        for d, axes in enumerate(target):
            added = axes[len(dims[d]) :]
            if axes[: len(dims[d])] != dims[d]:
                continue
            while added and not (
                set(added) <= set(waiting)
                and moves.may_cut(shape[d], dims[d], dims[d] + added, axes, self.mesh)
            ):
                added = added[:-1]
            if added:
                x = self._with_room(x, d, shape[d], dims[d], dims[d] + added)
                x = self._emit("psum_scatter", added, reason, x, dimensions=(d - x.ndim,))
                dims[d] += added
                waiting = tuple(axis for axis in waiting if axis not in added)
        return self.combine(x, "sum", waiting, reason), tuple(dims)

    def combine(self, x: Value, reducer: str, axes: Axes, reason: str) -> Value:
        """Sum, maximum or minimum over devices."""
        return self._emit(f"p{reducer}", axes, reason, x)

    def permute(self, x: Value, axes: Axes, pairs: Sequence[tuple[int, int]], reason: str) -> Value:
        """What devices along some axes send each other by (source, destination) pairs; zeros elsewhere."""
        return self._emit("ppermute", axes, reason, x, permutation=tuple(pairs))

    def filled(self, x: Value, d: int, size: int, axes: Axes, fill: Any) -> Value:  # Any: a number
        """A part with `fill` behind the end of a dimension of `size` elements that is split over axes."""
        room = x.shape[d]
        start, iota = self.start(axes, room), primitive.by_name("iota")
        left = families.bind_scalars(primitive.by_name("sub"), families.like(size, start), start)
        line = trace.bind1(iota, shape=(room, *[1] * (x.ndim - 1 - d)), dimension=0, dtype=dtypes.int32)
        is_inside = trace.bind1(primitive.by_name("lt"), line, left)
        return families.bind_scalars(primitive.by_name("select_n"), is_inside, families.like(fill, x), x)

    def _take(self, x: Value, step: moves.Step, now: Placement, reason: str, shape: Shape) -> Value:
        """One step of a path. A dimension that is split gets a tail first, where its parts do not fill it;
        one that is joined loses it.
        """
        d, after = step.dimension, step.after.dims
        if step.name == "cut":
            return self._cut(x, now.dims, after, shape)
        if step.name == "all_gather":
            return self._without_tail(
                self._emit(step.name, step.axes, reason, x, dimensions=(d - x.ndim,)), d, shape
            )
        if step.name == "psum_scatter":
            x = self._with_room(x, d, shape[d], now.dims[d], after[d])
            return self._emit(step.name, step.axes, reason, x, dimensions=(d - x.ndim,))
        if step.name == "all_to_all":
            x = self._with_room(x, d, shape[d], now.dims[d], after[d])
            split, concat = d - x.ndim, step.source - x.ndim
            x = self._emit(step.name, step.axes, reason, x, split=split, concat=concat)
            return self._without_tail(x, step.source, shape)
        if step.name == "ppermute":
            return self._emit(step.name, step.axes, reason, x, permutation=step.pairs)
        return self._emit(step.name, step.axes, reason, x)

    def _cut(self, x: Value, before: Dims, after: Dims, shape: Shape) -> Value:
        """This device's part of the dimensions that are split further."""
        starts: list[Value] = [Literal(np.zeros((), np.int32), weak=False)] * x.ndim
        for d, (axes, longer) in enumerate(zip(before, after, strict=True)):
            own = longer[len(axes) :]
            if size_of(own, self.mesh) > 1:
                x = self._with_room(x, d, shape[d], axes, longer)
                starts[d] = self.start(own, x.shape[d] // size_of(own, self.mesh))
        sizes = tuple(
            n // size_of(longer[len(axes) :], self.mesh)
            for n, axes, longer in zip(x.shape, before, after, strict=True)
        )
        if sizes == x.shape:
            return x
        return trace.bind1(primitive.by_name("dynamic_slice"), x, *starts, slice_sizes=sizes)

    def _with_room(self, x: Value, d: int, size: int, before: Axes, after: Axes) -> Value:
        """A part with as many elements along a dimension as its own parts have room for, when it is split
        further.
        """
        count = size_of(after, self.mesh)
        room = mesh_.part_size(size, count) * (count // size_of(before, self.mesh))
        return neighbours.pad(x, d, 0, room - x.shape[d], families.like(shards.filler(x.dtype), x))

    def _without_tail(self, x: Value, d: int, shape: Shape) -> Value:
        """A dimension that was joined, without what is behind its end. Parts of a part need no more room than
        it has, so what is too long is whole.
        """
        return x if x.shape[d] <= shape[d] else neighbours.cut(x, d, 0, shape[d])

    def _emit(
        self, name: str, axes: Axes, reason: str, x: Value, **attrs: Any
    ) -> Value:  # Any: attributes by op
        """A collective; none over axes of one device."""
        if size_of(axes, self.mesh) == 1:
            return x
        sizes = tuple(self.mesh.shape[axis] for axis in axes)
        result = trace.bind1(primitive.by_name(name), x, axes=axes, sizes=sizes, **attrs)
        assert isinstance(result, trace.StagedTracer), "the partitioner stages"
        where = trace.user_line()
        self.collectives.append(Note(result.variable, reason, where, x.type.nbytes, self.equation))
        if name in ("all_gather", "all_to_all", "ppermute"):
            nbytes = x.type.nbytes
            events.emit(
                "reshard",
                f"{name} of {nbytes} bytes over {', '.join(axes)} for {reason} at {where}",
                level="debug", nbytes=nbytes, axes=axes, reason=reason, where=where,
            )  # fmt: skip
        return result


def local_shapes(
    types: Sequence[ArrayType], all_dims: Sequence[Dims], mesh: AbstractMesh
) -> tuple[tuple[int, ...], ...]:
    """Shapes of the parts of some arrays."""
    return tuple(mesh_.shard_shape(t.shape, dims, mesh) for t, dims in zip(types, all_dims, strict=True))
