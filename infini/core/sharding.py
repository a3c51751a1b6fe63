"""Meshes and placements, with JAX's names: `Mesh`, `P`, `NamedSharding`.

A mesh is an array of devices with named axes; a `P` says for each dimension of an array over which mesh
axes it is split.
Programs hold the abstract mesh only (names and sizes), so they do not depend on devices.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from infini.core import backend, errors, ir

AxisEntry: TypeAlias = str | tuple[str, ...] | None


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


@ir.attribute
@dataclass(frozen=True, slots=True)
class AbstractMesh:
    """Names and sizes of mesh axes, without devices."""

    axis_names: tuple[str, ...]
    axis_sizes: tuple[int, ...]

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


@dataclass(frozen=True, eq=False)
class Mesh:
    """Devices in an array with named axes.

    Args:
        devices: array of devices; its rank is the number of axes.
        axis_names: one name per axis.

    Raises:
        ValueMismatchError: the numbers of axes and names differ, or a name occurs twice.
    """

    devices: np.ndarray
    axis_names: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "devices", np.asarray(self.devices, dtype=object))
        names = (self.axis_names,) if isinstance(self.axis_names, str) else tuple(self.axis_names)
        object.__setattr__(self, "axis_names", names)
        if len(names) != self.devices.ndim or len(set(names)) != len(names):
            raise errors.ValueMismatchError(
                "a mesh needs one distinct name per axis",
                got=f"devices of shape {self.devices.shape}, names {names}",
            )

    @property
    def abstract(self) -> AbstractMesh:
        """The mesh without its devices."""
        return AbstractMesh(self.axis_names, tuple(int(n) for n in self.devices.shape))

    @property
    def shape(self) -> dict[str, int]:
        """Sizes by name."""
        return self.abstract.shape

    @property
    def size(self) -> int:
        """Number of devices."""
        return int(self.devices.size)

    @property
    def flat_devices(self) -> tuple[backend.Device, ...]:
        """Devices in mesh order: the rank of a device is its position."""
        return tuple(self.devices.reshape(-1))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Mesh)
            and self.axis_names == other.axis_names
            and self.devices.shape == other.devices.shape
            and self.flat_devices == other.flat_devices
        )

    def __hash__(self) -> int:
        return hash((self.axis_names, self.devices.shape, self.flat_devices))

    def __repr__(self) -> str:
        axes = ", ".join(f"{name!r}: {size}" for name, size in self.shape.items())
        return f"Mesh({{{axes}}})"

    @contextlib.contextmanager
    def _entered(self) -> Iterator[Mesh]:
        yield self

    def __enter__(self) -> Mesh:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


def make_mesh(
    axis_shapes: Sequence[int], axis_names: Sequence[str], *, devices: Sequence[backend.Device] | None = None
) -> Mesh:
    """A mesh of the first devices there are.

    Args:
        axis_shapes: size of each axis.
        axis_names: name of each axis.
        devices: devices to take from; all devices of the default backend when absent.

    Raises:
        DeviceError: there are too few devices.
    """
    pool = list(devices if devices is not None else backend.devices())
    count = math.prod(axis_shapes)
    if count > len(pool):
        raise errors.DeviceError(
            f"a mesh of shape {tuple(axis_shapes)} needs {count} devices",
            got=f"{len(pool)} devices",
            fix=f"run with INFINI_CPU_DEVICES={count}, or under mpirun -n {count}",
        )
    array = np.empty(count, dtype=object)
    array[:] = pool[:count]
    return Mesh(array.reshape(tuple(axis_shapes)), tuple(axis_names))


@dataclass(frozen=True, slots=True)
class SingleDeviceSharding:
    """The whole array on one device."""

    device: backend.Device

    @property
    def device_set(self) -> frozenset[backend.Device]:
        """The devices that hold a part."""
        return frozenset({self.device})

    @property
    def devices(self) -> tuple[backend.Device, ...]:
        """Devices in rank order."""
        return (self.device,)

    def shard_shape(self, shape: ir.Shape) -> ir.Shape:
        """Shape of the part each device holds."""
        return shape


@dataclass(frozen=True, slots=True)
class NamedSharding:
    """An array split over a mesh as `spec` says; dimensions beyond `spec` are whole.

    Raises:
        ValueMismatchError: `spec` names an axis the mesh has not, or one twice.
    """

    mesh: Mesh
    spec: PartitionSpec

    def __post_init__(self) -> None:
        used = [name for entry in self.spec for name in entry_axes(entry)]
        unknown = [name for name in used if name not in self.mesh.axis_names]
        if unknown or len(set(used)) != len(used):
            raise errors.ValueMismatchError(
                f"{self.spec!r} does not fit the mesh",
                got=f"{self.mesh!r}",
                expected="axis names of the mesh, each at most once",
            )

    @property
    def device_set(self) -> frozenset[backend.Device]:
        """The devices that hold a part."""
        return frozenset(self.mesh.flat_devices)

    @property
    def devices(self) -> tuple[backend.Device, ...]:
        """Devices in rank order."""
        return self.mesh.flat_devices

    def shard_shape(self, shape: ir.Shape) -> ir.Shape:
        """Shape of the part each device holds.

        Raises:
            ValueMismatchError: a dimension does not divide into equal parts.
        """
        return shard_shape(shape, self.spec, self.mesh.abstract)


Sharding: TypeAlias = SingleDeviceSharding | NamedSharding


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
    coordinates = dict(zip(mesh.axis_names, np.unravel_index(rank, mesh.axis_sizes), strict=True))
    local = shard_shape(shape, spec, mesh)
    starts = []
    for dimension, size in enumerate(local):
        index = 0
        for name in entry_axes(spec[dimension] if dimension < len(spec) else None):
            index = index * mesh.shape[name] + int(coordinates[name])
        starts.append(index * size)
    return tuple(slice(start, start + size) for start, size in zip(starts, local, strict=True))
