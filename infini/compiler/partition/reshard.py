"""Moving a value from one placement to another, with as little communication as the two allow: the steps that
`moves` finds become equations of the per-device program.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from infini.compiler.partition import moves
from infini.compiler.partition.costs import Note
from infini.compiler.partition.placement import Axes, Dims, Placement, size_of
from infini.compiler.partition.strategies import Strategy
from infini.core import events, primitive, trace
from infini.core.ir import ArrayType, Equation, Var
from infini.core.machine import DEFAULT, Machine
from infini.core.mesh import AbstractMesh
from infini.core.value import Literal, Value
from infini.lax import families


class Mover:
    """Reshards values of one program under construction.

    Args:
        mesh: the mesh.
        outermost: the interpreter that stages the program itself; device indices are computed there,
            outside of loops.
        machine: what links cost.
        strategies: how operations are split that people decided about.
        window_bytes: size up to which what a loop does not change is moved before it, see `hoist`.
    """

    def __init__(
        self,
        mesh: AbstractMesh,
        outermost: trace.Interpreter,
        machine: Machine = DEFAULT,
        strategies: Mapping[str, Strategy] = MappingProxyType({}),
        window_bytes: int = 0,
    ) -> None:
        self.mesh = mesh
        self.outermost = outermost
        self.machine, self.strategies, self.window_bytes = machine, strategies, window_bytes
        self.collectives: list[Note] = []  # one for each that was inserted
        self.equation: Equation | None = None  # of the global program, the one that is being split
        self.placements: dict[Var, Placement] = {}  # of the global program, bodies included
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

    def reshard(self, x: Value, source_: Placement, target: Dims, reason: str) -> Value:
        """The local part of a value under another placement, without partial sums."""
        if source_ == Placement(target):
            return x
        for step in moves.path(self._whole(x, source_), source_, target, self.mesh, self.machine):
            x = self._take(x, step, reason)
        return x

    def price(self, type_: ArrayType, source_: Placement, target: Dims) -> float:
        """Seconds to bring an array of a global type from one placement to another."""
        if source_ == Placement(target):
            return 0.0
        return moves.seconds(type_, source_, target, self.mesh, self.machine)

    def add_up(self, x: Value, source_: Placement, target: Dims, reason: str) -> tuple[Value, Dims]:
        """Resolve partial sums; scatters them along dimensions that the target splits over their axes."""
        dims, waiting = list(source_.dims), source_.partial
        whole_ = self._whole(x, source_)
        for d, axes in enumerate(target):
            added = axes[len(dims[d]) :]
            if axes[: len(dims[d])] != dims[d]:
                continue
            while added and not (
                set(added) <= set(waiting) and whole_.shape[d] % size_of(dims[d] + added, self.mesh) == 0
            ):
                added = added[:-1]
            if added:
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

    def _whole(self, x: Value, source_: Placement) -> ArrayType:
        """The global type of a value."""
        parts = [size_of(axes, self.mesh) for axes in source_.dims]
        return x.type.update(shape=tuple(n * count for n, count in zip(x.shape, parts, strict=True)))

    def _take(self, x: Value, step: moves.Step, reason: str) -> Value:
        """One step of a path."""
        where = {"dimensions": (step.dimension - x.ndim,)}
        if step.name == "cut":
            return self._cut(x, step.axes, step.after.dims)
        if step.name in ("all_gather", "psum_scatter"):
            return self._emit(step.name, step.axes, reason, x, **where)
        if step.name == "all_to_all":
            split, concat = step.dimension - x.ndim, step.source - x.ndim
            return self._emit(step.name, step.axes, reason, x, split=split, concat=concat)
        if step.name == "ppermute":
            return self._emit(step.name, step.axes, reason, x, permutation=step.pairs)
        return self._emit(step.name, step.axes, reason, x)

    def _cut(self, x: Value, added: Axes, dims: Dims) -> Value:
        """This device's part of the dimensions that end in some of the `added` axes."""
        starts: list[Value] = [Literal(np.zeros((), np.int32), weak=False)] * x.ndim
        sizes = list(x.shape)
        for d, axes in enumerate(dims):
            own = tuple(axis for axis in axes if axis in added)
            if size_of(own, self.mesh) > 1:
                sizes[d] //= size_of(own, self.mesh)
                starts[d] = self.start(own, sizes[d])
        if tuple(sizes) == x.shape:
            return x
        return trace.bind1(primitive.by_name("dynamic_slice"), x, *starts, slice_sizes=tuple(sizes))

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
    return tuple(
        tuple(n // math.prod(mesh.shape[a] for a in axes) for n, axes in zip(t.shape, dims, strict=True))
        for t, dims in zip(types, all_dims, strict=True)
    )
