"""Moving a value from one placement to another, with as little communication as the two allow.

Partial sums become sums (`psum`) or, when the target splits a dimension over their axis, parts of sums
(`psum_scatter`). Then dimensions are cut where the target is finer (free), exchanged where an axis
changes its dimension (`all_to_all`), and gathered where the target is coarser.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infini.compiler.partition.placement import Axes, Dims, Placement, size_of
from infini.core import events, primitive, source, trace
from infini.core.ir import ArrayType
from infini.core.mesh import AbstractMesh
from infini.core.value import Literal, Value
from infini.lax import families


@dataclass(frozen=True, slots=True)
class Collective:
    """A collective that the partitioner inserted: what each device gives, and for which line of the user."""

    name: str
    axes: Axes
    nbytes: int
    reason: str
    where: source.Where | None


class Mover:
    """Reshards values of one program under construction.

    Args:
        mesh: the mesh.
        outermost: the interpreter that stages the program itself; device indices are computed there,
            outside of loops.
    """

    def __init__(self, mesh: AbstractMesh, outermost: trace.Interpreter) -> None:
        self.mesh = mesh
        self.outermost = outermost
        self.collectives: list[Collective] = []
        self._indices: dict[Axes, Value] = {}

    def axis_index(self, axes: Axes) -> Value:
        """Index of this device along some axes, int32, the first axis most significant."""
        if axes not in self._indices:
            with trace.running(self.outermost):
                self._indices[axes] = self._new_index(axes)
        return self._indices[axes]

    def _new_index(self, axes: Axes) -> Value:
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
        x, dims = self.add_up(x, source_, target, reason)
        while dims != target:
            x, dims = (
                self._cut(x, dims, target)
                or self._exchange(x, dims, target, reason)
                or self._gather(x, dims, target, reason)
            )
        return x

    def add_up(self, x: Value, source_: Placement, target: Dims, reason: str) -> tuple[Value, Dims]:
        """Resolve partial sums; scatters them along dimensions that the target splits over their axis
        next.
        """
        dims, summed = list(source_.dims), []
        for axis in source_.partial:
            at = next((d for d, axes in enumerate(target) if axes == (*dims[d], axis)), None)
            if at is None or x.shape[at] % self.mesh.shape[axis]:
                summed.append(axis)
                continue
            x = self._emit("psum_scatter", (axis,), reason, x, dimensions=(at - x.ndim,))
            dims[at] = (*dims[at], axis)
        return self.combine(x, "sum", tuple(summed), reason), tuple(dims)

    def combine(self, x: Value, reducer: str, axes: Axes, reason: str) -> Value:
        """Sum, maximum or minimum over devices."""
        if not axes:
            return x
        op = primitive.by_name(f"p{reducer}")
        self._record(op.name, axes, x, reason)
        return trace.bind1(op, x, axes=axes, sizes=tuple(self.mesh.shape[a] for a in axes))

    def _cut(self, x: Value, dims: Dims, target: Dims) -> tuple[Value, Dims] | None:
        """Keep this device's part of every dimension that the target splits further over free axes."""
        used = {axis for axes in dims for axis in axes}
        finer = list(dims)
        for d, (now, then) in enumerate(zip(dims, target, strict=True)):
            added = then[len(now) :]
            if then[: len(now)] == now and added and used.isdisjoint(added):
                finer[d] = then
        if tuple(finer) == dims:
            return None
        starts: list[Value] = [Literal(np.zeros((), np.int32), weak=False)] * x.ndim
        sizes = list(x.shape)
        for d, (now, then) in enumerate(zip(dims, finer, strict=True)):
            if now != then:
                added = then[len(now) :]
                sizes[d] //= size_of(added, self.mesh)
                starts[d] = self.start(added, sizes[d])
        cut = trace.bind1(primitive.by_name("dynamic_slice"), x, *starts, slice_sizes=tuple(sizes))
        return cut, tuple(finer)

    def _exchange(self, x: Value, dims: Dims, target: Dims, reason: str) -> tuple[Value, Dims] | None:
        """Move one axis from the end of one dimension to the end of another."""
        for source_, (now, then) in enumerate(zip(dims, target, strict=True)):
            if not now or then[: len(now)] == now:
                continue
            axis = now[-1]
            to = next((d for d, axes in enumerate(target) if d != source_ and axes == (*dims[d], axis)), None)
            if to is None or x.shape[to] % self.mesh.shape[axis]:
                continue
            moved = self._emit("all_to_all", (axis,), reason, x, split=to - x.ndim, concat=source_ - x.ndim)
            after = list(dims)
            after[source_], after[to] = now[:-1], (*dims[to], axis)
            return moved, tuple(after)
        return None

    def _gather(self, x: Value, dims: Dims, target: Dims, reason: str) -> tuple[Value, Dims]:
        """Join the parts of one dimension along its least significant axis."""
        at = next(
            d for d, (now, then) in enumerate(zip(dims, target, strict=True)) if then[: len(now)] != now
        )
        gathered = self._emit("all_gather", dims[at][-1:], reason, x, dimensions=(at - x.ndim,))
        after = list(dims)
        after[at] = dims[at][:-1]
        return gathered, tuple(after)

    def _emit(
        self, name: str, axes: Axes, reason: str, x: Value, **attrs: Any
    ) -> Value:  # Any: attributes by op
        self._record(name, axes, x, reason)
        sizes = tuple(self.mesh.shape[axis] for axis in axes)
        return trace.bind1(primitive.by_name(name), x, axes=axes, sizes=sizes, **attrs)

    def _record(self, name: str, axes: Axes, x: Value, reason: str) -> None:
        found = Collective(name, axes, x.type.nbytes, reason, trace.user_line())
        self.collectives.append(found)
        if name in ("all_gather", "all_to_all"):
            events.emit(
                "reshard",
                f"{name} of {found.nbytes} bytes over {', '.join(axes)} for {reason} at {found.where}",
                level="debug", nbytes=found.nbytes, axes=axes, reason=reason, where=found.where,
            )  # fmt: skip


def traffic(type_: ArrayType, source_: Placement, target: Dims, mesh: AbstractMesh) -> float:
    """About how many bytes each device sends when a value of `type_` is resharded by `Mover`, in rings."""
    dims, total = list(source_.dims), 0.0
    nbytes = type_.nbytes / math.prod(size_of(axes, mesh) for axes in dims)
    for axis in source_.partial:
        share = nbytes * (1 - 1 / mesh.shape[axis])
        at = next((d for d, axes in enumerate(target) if axes == (*dims[d], axis)), None)
        total += share if at is not None else 2 * share
        if at is not None:
            dims[at] = (*dims[at], axis)
            nbytes /= mesh.shape[axis]
    kept = {axis for now, then in zip(dims, target, strict=True) if then[: len(now)] == now for axis in now}
    for axes in dims:
        for axis in axes:
            if axis in kept:
                continue
            moves_on = any(axis in then for then in target)
            total += nbytes * (1 - 1 / mesh.shape[axis]) if moves_on else nbytes * (mesh.shape[axis] - 1)
    return total


def local_shapes(
    types: Sequence[ArrayType], all_dims: Sequence[Dims], mesh: AbstractMesh
) -> tuple[tuple[int, ...], ...]:
    """Shapes of the parts of some arrays."""
    return tuple(
        tuple(n // math.prod(mesh.shape[a] for a in axes) for n, axes in zip(t.shape, dims, strict=True))
        for t, dims in zip(types, all_dims, strict=True)
    )
