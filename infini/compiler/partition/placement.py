"""How a value is spread over a mesh: which axes split each dimension, and over which axes its parts
still have to be added.

Placements of the arrays of one equation are compared through factors (`lax.places`): `project` reads off
which axes split each factor, `expand` says what a split of the factors means for an array.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from infini.core import mesh as mesh_
from infini.core.ir import ArrayType
from infini.core.mesh import AbstractMesh, AxisEntry
from infini.lax.places import Dimension, Factors

Axes: TypeAlias = tuple[str, ...]  # most significant first
Dims: TypeAlias = tuple[Axes, ...]  # one entry per dimension
Split: TypeAlias = dict[str, Axes]  # axes over which each factor is split


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the parts of one value are.

    Args:
        dims: the axes that split each dimension.
        partial: axes over which the value is the sum of what devices hold.
    """

    dims: Dims
    partial: Axes = ()

    @property
    def axes(self) -> frozenset[str]:
        """Every axis that is used."""
        return frozenset(self.partial).union(*self.dims)

    def __str__(self) -> str:
        spec = repr(mesh_.P(*to_spec(self.dims)))
        return f"{spec} + partial over {', '.join(self.partial)}" if self.partial else spec


@dataclass(frozen=True, slots=True)
class Asked:
    """What people ask of one value.

    Args:
        dims: the axes that split each dimension.
        open: dimensions that the partitioner may split further.
        partial: axes over which the parts stay terms of a sum.
    """

    dims: Dims
    open: frozenset[int] = frozenset()
    partial: Axes = ()


def whole(ndim: int) -> Dims:
    """An array that every device holds."""
    return ((),) * ndim


def from_spec(spec: Sequence[AxisEntry], ndim: int) -> Dims:
    """Axes per dimension from a `P`."""
    found = tuple(mesh_.entry_axes(entry) for entry in spec)
    return found + ((),) * (ndim - len(found))


def asked(spec: Sequence[AxisEntry], ndim: int, mesh: AbstractMesh) -> Asked:
    """What a `P` asks for."""
    is_open = {i for i, entry in enumerate(spec) if isinstance(entry, mesh_.Unconstrained)}
    waiting = mesh_.unreduced_axes(spec)
    partial = tuple(axis for axis in mesh.axis_names if axis in waiting)
    return Asked(from_spec(spec, ndim), frozenset(is_open), partial)


def to_spec(dims: Dims, partial: Axes = ()) -> tuple[AxisEntry, ...]:
    """A `P` from axes per dimension, and those over which parts have to be added."""
    entries = tuple(None if not axes else axes[0] if len(axes) == 1 else axes for axes in dims)
    return mesh_.trim(mesh_.P(*entries, unreduced=partial))


def local_type(type_: ArrayType, dims: Dims, mesh: AbstractMesh) -> ArrayType:
    """Type of the part that one device holds."""
    return type_.update(shape=mesh_.shard_shape(type_.shape, dims, mesh))


def size_of(axes: Iterable[str], mesh: AbstractMesh) -> int:
    """Number of parts that some axes make."""
    return math.prod(mesh.shape[name] for name in axes)


def project(
    dims: Dims, factors: Sequence[Dimension], found: Factors, mesh: AbstractMesh
) -> Iterator[tuple[str, Axes]]:
    """The axes that split each factor of an array, one of some equation; what does not fit a factor is left
    out.
    """
    for axes, names in zip(dims, factors, strict=True):
        remaining = axes
        for name in names:
            if name in found.tails:  # the whole dimension, in parts of any size
                if remaining:
                    yield name, remaining
                break
            room, taken = found.sizes[name], 0
            for axis in remaining:
                if room % mesh.shape[axis]:
                    break
                room, taken = room // mesh.shape[axis], taken + 1
            if taken:
                yield name, remaining[:taken]
            remaining = remaining[taken:]
            if room != 1 or not remaining:
                break


def expand(split: Mapping[str, Axes], factors: Sequence[Dimension]) -> Dims:
    """Axes per dimension of an array from those of its factors."""
    return tuple(sum((split.get(name, ()) for name in names), ()) for names in factors)


def lacking(factors: Factors, result: Sequence[Dimension]) -> list[str]:
    """The reduced factors that one of the results lacks, so that its parts combine."""
    own = {name for names in result for name in names}
    return [name for name in factors.reduced if name not in own]


def merge(split: Split, found: Iterable[tuple[str, Axes]]) -> None:
    """Add splits of factors over axes that no factor uses yet, as far as that goes; a factor that is split
    already may be split further.
    """
    used = {axis for axes in split.values() for axis in axes}
    for name, axes in found:
        now = split.get(name, ())
        added = tuple(itertools.takewhile(lambda axis: axis not in used, axes[len(now) :]))
        if added and axes[: len(now)] == now:
            split[name] = now + added
            used.update(added)


def leading_first(found: Iterable[tuple[str, Axes]], factors: Factors) -> list[tuple[str, Axes]]:
    """Splits of factors in the order in which they deserve an axis: leading dimensions of results, then
    reduced factors.

    With the batch in front, as everyone writes it, this keeps activations split by batch and gathers
    weights instead.
    """
    order: dict[str, int] = {}
    for dims in factors.outputs:
        for name in (name for names in dims for name in names):
            order.setdefault(name, len(order))
    return sorted(found, key=lambda item: order.get(item[0], len(order)))


def contiguous(split: Split, factors: Factors, mesh: AbstractMesh) -> Split:
    """The splits under which every device holds a contiguous piece of every dimension.

    A minor factor of a dimension may be split only when the factors before it are split completely.
    """
    kept = dict(split)
    is_stable = False
    while not is_stable:
        is_stable = True
        for names in (d for dims in factors.inputs + factors.outputs for d in dims):
            is_complete = True
            for name in names:
                if name in kept and not is_complete:
                    del kept[name]
                    is_stable = False
                is_complete &= size_of(kept.get(name, ()), mesh) == factors.sizes[name]
    return kept
