"""Splits without devices: partition specs, abstract meshes, and which part of an array a rank holds.
Imports `ir` only.

A mesh is an array of devices with named axes; a `P` says for each dimension of an array over which mesh
axes it is split. Programs hold the abstract mesh only (names and sizes), so they do not depend on devices.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np

from infini.core import errors, ir


@ir.attribute
@dataclass(frozen=True, slots=True)
class Unconstrained:
    """The entry of a `P` for a dimension that the partitioner may split as it likes."""

    def __repr__(self) -> str:
        return "P.UNCONSTRAINED"


UNCONSTRAINED: Final = Unconstrained()
AxisEntry: TypeAlias = str | tuple[str, ...] | Unconstrained | None
Spec: TypeAlias = tuple[AxisEntry, ...]


class PartitionSpec(tuple):  # type: ignore[type-arg]  # entries are AxisEntry
    """For each dimension: None (whole), an axis name, or several names, most significant first.

    `P.UNCONSTRAINED` leaves a dimension to the partitioner. Along the axes of `unreduced`, devices hold
    terms: the array is their sum, which is not taken yet.

    Args:
        *entries: one per dimension; dimensions beyond them are whole.
        unreduced: axes over which the parts have to be added.

    Raises:
        ValueMismatchError: an axis splits a dimension and is unreduced.
        TypeMismatchError: an entry is none of these.

    Example:
        >>> from infini.sharding import P
        >>> P("data", None), P("model", unreduced={"data"})
        (P('data', None), P('model', unreduced={'data'}))
    """

    UNCONSTRAINED = UNCONSTRAINED
    unreduced: frozenset[str]

    def __new__(cls, *entries: AxisEntry, unreduced: Collection[str] = ()) -> PartitionSpec:
        spec = super().__new__(cls, tuple(tuple(e) if isinstance(e, list) else e for e in entries))
        for entry in spec:
            names = entry if isinstance(entry, tuple) else () if entry is None else (entry,)
            if not isinstance(entry, Unconstrained) and not all(isinstance(name, str) for name in names):
                raise errors.TypeMismatchError(
                    f"an entry of P names no axis: {entry!r}",
                    got=f"P({', '.join(map(repr, entries))})",
                    expected="for each dimension the name of an axis, several in a tuple, None, or "
                    "P.UNCONSTRAINED",
                )
        spec.unreduced = frozenset((unreduced,) if isinstance(unreduced, str) else unreduced)
        both = sorted(spec.unreduced.intersection([a for e in spec for a in entry_axes(e)]))
        if both:
            raise errors.ValueMismatchError(
                f"axis {both[0]!r} splits a dimension and is unreduced",
                got=repr(spec),
                expected="an axis either splits a dimension or holds terms of a sum",
            )
        return spec

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, tuple):
            return NotImplemented
        return tuple.__eq__(self, other) and self.unreduced == unreduced_axes(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((tuple(self), self.unreduced)) if self.unreduced else tuple.__hash__(self)

    def __repr__(self) -> str:
        waiting = ", ".join(map(repr, sorted(self.unreduced)))
        return f"P({', '.join([*map(repr, self), *([f'unreduced={{{waiting}}}'] if waiting else [])])})"

    def __reduce__(self) -> tuple[Any, ...]:  # Any: as the pickle protocol
        return (_partition_spec, (tuple(self), tuple(sorted(self.unreduced))))


def _partition_spec(entries: Spec, unreduced: tuple[str, ...]) -> PartitionSpec:
    return PartitionSpec(*entries, unreduced=unreduced)


P = PartitionSpec


def unreduced_axes(spec: object) -> frozenset[str]:
    """Axes over which the parts of an array placed so have to be added; none for plain tuples."""
    return spec.unreduced if isinstance(spec, PartitionSpec) else frozenset()


def as_p(spec: Sequence[AxisEntry]) -> PartitionSpec:
    """A spec as a `P`."""
    return spec if isinstance(spec, PartitionSpec) else PartitionSpec(*spec)


def entry_axes(entry: AxisEntry) -> tuple[str, ...]:
    """Axis names of one entry of a `P`, most significant first; none of one that is unconstrained."""
    if entry is None or isinstance(entry, Unconstrained):
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def trim(spec: Sequence[AxisEntry]) -> Spec:
    """A spec without entries for whole dimensions at its end, so that equal splits are equal specs. A `P`
    with unreduced axes stays one.
    """
    entries = tuple(spec)
    while entries and entries[-1] in (None, ()):
        entries = entries[:-1]
    waiting = unreduced_axes(spec)
    return PartitionSpec(*entries, unreduced=waiting) if waiting else entries


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

    def groups(self, axes: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        """Ranks that differ along these axes only, in the order of their index there, the first axis most
        significant.
        """
        return _groups(self, axes)

    def coordinates(self, rank: int) -> dict[str, int]:
        """Index along each axis of device number `rank` in mesh order."""
        index = np.unravel_index(rank, self.axis_sizes) if self.axis_sizes else ()
        return dict(zip(self.axis_names, map(int, index), strict=True))


@functools.lru_cache(maxsize=1024)
def _groups(mesh: AbstractMesh, axes: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    found: dict[tuple[int, ...], list[tuple[tuple[int, ...], int]]] = {}
    for rank in range(mesh.size):
        at = mesh.coordinates(rank)
        rest = tuple(i for name, i in at.items() if name not in axes)
        found.setdefault(rest, []).append((tuple(at[name] for name in axes), rank))
    return tuple(tuple(rank for _, rank in sorted(members)) for members in found.values())


def part_size(size: int, count: int) -> int:
    """Elements that each of `count` devices has room for along a dimension. Where `count` does not divide the
    dimension, the last parts hold fewer, or none.
    """
    return -(-size // count)


def splits_well(size: int, count: int) -> bool:
    """Whether so many parts of a dimension leave at most an eighth of their room empty."""
    return 8 * part_size(size, count) * count <= 9 * size


def nests(size: int, count: int, further: int) -> bool:
    """Whether each of `count` parts of a dimension, cut further, gives the parts of one cut."""
    return part_size(size, count) == further * part_size(size, count * further)


def part_counts(shape: ir.Shape, spec: Sequence[AxisEntry], mesh: AbstractMesh) -> tuple[int, ...]:
    """Into how many parts each dimension is cut.

    Raises:
        ValueMismatchError: `spec` is longer than the shape.
    """
    if len(spec) > len(shape):
        raise errors.ValueMismatchError(
            f"P{tuple(spec)} has more entries than the array has dimensions", got=f"shape {shape}"
        )
    return (*map(mesh.size_of, spec), *[1] * (len(shape) - len(spec)))


def shard_shape(shape: ir.Shape, spec: Sequence[AxisEntry], mesh: AbstractMesh) -> ir.Shape:
    """Shape of what each device has room for of an array of `shape` split as `spec` says. It is equal on all
    devices; `shard_index` is the part that is there.

    Raises:
        ValueMismatchError: `spec` is longer than the shape.
    """
    counts = part_counts(shape, spec, mesh)
    return tuple(part_size(size, count) for size, count in zip(shape, counts, strict=True))


def check_even(shape: ir.Shape, spec: Sequence[AxisEntry], mesh: AbstractMesh) -> None:
    """Refuse a split into parts of different sizes, where each device computes with its own.

    Raises:
        ValueMismatchError: `spec` is longer than the shape, or a dimension does not divide into equal parts.
    """
    counts = part_counts(shape, spec, mesh)
    for dimension, (size, count) in enumerate(zip(shape, counts, strict=True)):
        if size % count:
            raise errors.ValueMismatchError(
                f"dimension {dimension} of size {size} cannot be split into {count} equal parts",
                got=f"shape {shape}, P{tuple(spec)}, axes {mesh.shape}",
                fix="choose a size that the axis divides, or leave the dimension whole",
            )


def is_whole(shape: ir.Shape, spec: Sequence[AxisEntry], mesh: AbstractMesh) -> bool:
    """Whether every device holds the whole array."""
    counts = part_counts(shape, spec, mesh)
    return all(count == 1 or size == 0 for size, count in zip(shape, counts, strict=True))


def shard_index(
    shape: ir.Shape, spec: Sequence[AxisEntry], mesh: AbstractMesh, rank: int
) -> tuple[slice, ...]:
    """The part of an array of `shape` that device number `rank` (in mesh order) holds, which may be empty."""
    coordinates = mesh.coordinates(rank)
    found = []
    for dimension, (size, part) in enumerate(zip(shape, shard_shape(shape, spec, mesh), strict=True)):
        index = 0
        for name in entry_axes(spec[dimension] if dimension < len(spec) else None):
            index = index * mesh.shape[name] + coordinates[name]
        found.append(slice(min(index * part, size), min((index + 1) * part, size)))
    return tuple(found)
