"""Splits without devices: partition specs, abstract meshes, and which part of an array a rank holds.
Imports `ir` only.

A mesh is an array of devices with named axes; a `P` says for each dimension of an array over which mesh
axes it is split. Programs hold the abstract mesh only (names and sizes), so they do not depend on devices.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from infini.core import errors, ir

AxisEntry: TypeAlias = str | tuple[str, ...] | None
Spec: TypeAlias = tuple[AxisEntry, ...]


class PartitionSpec(tuple):  # type: ignore[type-arg]  # entries are AxisEntry
    """For each dimension: None (whole), an axis name, or several names, most significant first.

    Example:
        >>> from infini.sharding import P
        >>> P("data", None)
        P('data', None)
    """

    def __new__(cls, *entries: AxisEntry) -> PartitionSpec:
        return super().__new__(cls, tuple(tuple(e) if isinstance(e, list) else e for e in entries))

    def __repr__(self) -> str:
        return f"P({', '.join(map(repr, self))})"

    def __reduce__(self) -> tuple[Any, ...]:  # Any: as the pickle protocol
        return (PartitionSpec, tuple(self))


P = PartitionSpec


def entry_axes(entry: AxisEntry) -> tuple[str, ...]:
    """Axis names of one entry of a `P`, most significant first."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def trim(spec: Sequence[AxisEntry]) -> Spec:
    """A spec without entries for whole dimensions at its end, so that equal splits are equal specs."""
    entries = tuple(spec)
    while entries and not entry_axes(entries[-1]):
        entries = entries[:-1]
    return entries


class AxisType(enum.Enum):
    """Who splits values along an axis: the partitioner (`Auto`; `Explicit` is accepted and means the same),
    or the program itself (`Manual`, inside `shard_map`).
    """

    Auto = enum.auto()
    Explicit = enum.auto()
    Manual = enum.auto()

    def __repr__(self) -> str:
        return self.name


def axis_types_of(names: Sequence[str], types: Any) -> tuple[AxisType, ...]:  # Any: one type or several
    """One type per axis; `Auto` for all when nothing is given.

    Raises:
        ValueMismatchError: the numbers of names and types differ, or something is no type.
    """
    given = (types,) * len(names) if isinstance(types, AxisType) else tuple(types or ())
    found = given or (AxisType.Auto,) * len(names)
    if len(found) != len(names) or not all(isinstance(kind, AxisType) for kind in found):
        raise errors.ValueMismatchError(
            "a mesh needs one AxisType per axis", got=f"axis_types={types!r} for the axes {tuple(names)}"
        )
    return found


@ir.attribute
@dataclass(frozen=True, slots=True, repr=False)
class AbstractMesh:
    """Names and sizes of mesh axes, without devices.

    Args:
        axis_names: names; or sizes, as in JAX, which writes them first.
        axis_sizes: sizes; or names.
        axis_types: who splits along each axis; no part of equality, as programs do not depend on it.

    Raises:
        ValueMismatchError: the numbers of names, sizes and types differ.
    """

    axis_names: tuple[str, ...]
    axis_sizes: tuple[int, ...]
    axis_types: tuple[AxisType, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        names, sizes = tuple(self.axis_names), tuple(self.axis_sizes)
        if names and not isinstance(names[0], str):
            names, sizes = sizes, names
        if len(names) != len(sizes):
            raise errors.ValueMismatchError("a mesh needs one size per axis", got=f"{names} and {sizes}")
        object.__setattr__(self, "axis_names", names)
        object.__setattr__(self, "axis_sizes", sizes)
        object.__setattr__(self, "axis_types", axis_types_of(names, self.axis_types))

    def __repr__(self) -> str:
        axes = [f"{name!r}: {size}" for name, size in self.shape_tuple]
        types = ", ".join(map(repr, self.axis_types)) + "," * (len(axes) == 1)
        return f"AbstractMesh({', '.join(axes) or '()'}, axis_types=({types}))"

    @property
    def shape_tuple(self) -> tuple[tuple[str, int], ...]:
        """Pairs of name and size."""
        return tuple(zip(self.axis_names, self.axis_sizes, strict=True))

    @property
    def empty(self) -> bool:
        """Whether it has no axes."""
        return not self.axis_names

    @property
    def abstract_mesh(self) -> AbstractMesh:
        """Itself, as `Mesh` has its abstract mesh."""
        return self

    @property
    def manual_axes(self) -> tuple[str, ...]:
        """Axes along which the running program splits by itself."""
        return self._axes_of(AxisType.Manual)

    @property
    def auto_axes(self) -> tuple[str, ...]:
        """Axes of type `Auto`."""
        return self._axes_of(AxisType.Auto)

    @property
    def explicit_axes(self) -> tuple[str, ...]:
        """Axes of type `Explicit`."""
        return self._axes_of(AxisType.Explicit)

    @property
    def are_all_axes_manual(self) -> bool:
        """Whether every axis is of type `Manual`."""
        return self.manual_axes == self.axis_names

    @property
    def are_all_axes_auto(self) -> bool:
        """Whether every axis is of type `Auto`."""
        return self.auto_axes == self.axis_names

    @property
    def are_all_axes_explicit(self) -> bool:
        """Whether every axis is of type `Explicit`."""
        return self.explicit_axes == self.axis_names

    def _axes_of(self, kind: AxisType) -> tuple[str, ...]:
        return tuple(n for n, found in zip(self.axis_names, self.axis_types, strict=True) if found is kind)

    def update_axis_types(self, types: Mapping[str, AxisType]) -> AbstractMesh:
        """The same mesh with other types of some axes, given by name."""
        given = [types.get(n, old) for n, old in zip(self.axis_names, self.axis_types, strict=True)]
        return AbstractMesh(self.axis_names, self.axis_sizes, tuple(given))

    @property
    def shape(self) -> dict[str, int]:
        """Sizes by name."""
        return dict(zip(self.axis_names, self.axis_sizes, strict=True))

    @property
    def size(self) -> int:
        """Number of devices."""
        return math.prod(self.axis_sizes)

    def size_of(self, entry: AxisEntry) -> int:
        """Number of parts that one entry of a `P` makes."""
        return math.prod(self.shape[name] for name in entry_axes(entry))

    def coordinates(self, rank: int) -> dict[str, int]:
        """Index along each axis of device number `rank` in mesh order."""
        index = np.unravel_index(rank, self.axis_sizes) if self.axis_sizes else ()
        return dict(zip(self.axis_names, map(int, index), strict=True))


def shard_shape(shape: ir.Shape, spec: Sequence[AxisEntry], mesh: AbstractMesh) -> ir.Shape:
    """Shape of one part of an array of `shape` split as `spec` says.

    Raises:
        ValueMismatchError: `spec` is longer than the shape, or a dimension does not divide into equal parts.
    """
    if len(spec) > len(shape):
        raise errors.ValueMismatchError(
            f"P{tuple(spec)} has more entries than the array has dimensions", got=f"shape {shape}"
        )
    parts = [mesh.size_of(entry) for entry in spec] + [1] * (len(shape) - len(spec))
    for dimension, (size, count) in enumerate(zip(shape, parts, strict=True)):
        if size % count:
            raise errors.ValueMismatchError(
                f"dimension {dimension} of size {size} cannot be split into {count} equal parts",
                got=f"shape {shape}, P{tuple(spec)}, axes {mesh.shape}",
                fix="choose a size that the axis divides, or leave the dimension whole",
            )
    return tuple(size // count for size, count in zip(shape, parts, strict=True))


def shard_index(
    shape: ir.Shape, spec: Sequence[AxisEntry], mesh: AbstractMesh, rank: int
) -> tuple[slice, ...]:
    """The part of an array of `shape` that device number `rank` (in mesh order) holds."""
    coordinates = mesh.coordinates(rank)
    local = shard_shape(shape, spec, mesh)
    starts = []
    for dimension, size in enumerate(local):
        index = 0
        for name in entry_axes(spec[dimension] if dimension < len(spec) else None):
            index = index * mesh.shape[name] + coordinates[name]
        starts.append(index * size)
    return tuple(slice(start, start + size) for start, size in zip(starts, local, strict=True))
