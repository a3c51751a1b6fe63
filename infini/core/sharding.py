"""Meshes and placements on devices, with JAX's names: `Mesh`, `P`, `NamedSharding`. What needs no
devices is in `core.mesh`.
"""

from __future__ import annotations

import contextvars
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from infini.core import backend, errors, ir
from infini.core.mesh import (
    AbstractMesh,
    AxisEntry,
    P,
    PartitionSpec,
    entry_axes,
    shard_index,
    shard_shape,
    unreduced_axes,
)

__all__ = [
    "AbstractMesh",
    "AxisEntry",
    "Mesh",
    "NamedSharding",
    "P",
    "PartitionSpec",
    "Sharding",
    "SingleDeviceSharding",
    "current_mesh",
    "entry_axes",
    "make_mesh",
    "shard_index",
    "shard_shape",
]


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

    @functools.cached_property
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

    @functools.cached_property
    def flat_devices(self) -> tuple[backend.Device, ...]:
        """Devices in mesh order: the rank of a device is its position."""
        return tuple(self.devices.reshape(-1))

    @functools.cached_property
    def local_ranks(self) -> tuple[int, ...]:
        """Ranks of the devices that this process holds."""
        return tuple(rank for rank, d in enumerate(self.flat_devices) if d.backend.owns(d))

    def at(self, axis: str, index: int) -> Mesh:
        """The devices at one index of an axis, as a mesh without that axis.

        Devices of other processes may be all there is: then `local_ranks` is empty, and arrays of that mesh
        have no parts here.

        Args:
            axis: name of an axis.
            index: place along it, from 0.

        Raises:
            ValueMismatchError: the mesh has no such axis.
            IndexOutOfRangeError: the axis is shorter.

        Example:
            >>> import infini as inf, infini.sharding
            >>> with inf.config(device="reference", cpu_devices=4):
            ...     inf.sharding.make_mesh((2, 2), ("pp", "dp")).at("pp", 1)
            Mesh({'dp': 2})
        """
        if axis not in self.axis_names:
            raise errors.ValueMismatchError(
                f"the mesh has no axis {axis!r}", got=repr(self), expected=", ".join(self.axis_names)
            )
        if index not in range(self.shape[axis]):
            raise errors.IndexOutOfRangeError(
                f"axis {axis!r} of the mesh has no index {index}",
                got=repr(self),
                expected=f"0 to {self.shape[axis] - 1}",
            )
        number = self.axis_names.index(axis)
        devices = np.moveaxis(self.devices, number, 0)[index : index + 1]
        return Mesh(devices.reshape(devices.shape[1:]), tuple(n for n in self.axis_names if n != axis))

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

    def __enter__(self) -> Mesh:
        _entered.set((*_entered.get(), self))
        return self

    def __exit__(self, *exc: object) -> None:
        _entered.set(_entered.get()[:-1])


_entered: contextvars.ContextVar[tuple[Mesh, ...]] = contextvars.ContextVar("infini_mesh", default=())


def current_mesh() -> Mesh | None:
    """The mesh of the innermost `with mesh:` block, which gives a plain `P` its meaning."""
    entered = _entered.get()
    return entered[-1] if entered else None


def plain_state() -> list[tuple[object, str | None, object]]:
    """What holds outside every `with mesh:` block: (context variable, None, value)."""
    return [(_entered, None, ())]


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
            fix=f"run with INFINI_CPU_DEVICES={count}, or under mpirun -n {count} after "
            "infini.parallel.initialize()",
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


@functools.cache
def on_one(device: backend.Device) -> SingleDeviceSharding:
    """The placement of whole arrays on a device; always the same object, so placements compare by
    identity.
    """
    return SingleDeviceSharding(device)


@dataclass(frozen=True, slots=True)
class NamedSharding:
    """An array split over a mesh as `spec` says; dimensions beyond `spec` are whole. Along unreduced axes of
    `spec` devices hold terms, and the array is their sum.

    Raises:
        ValueMismatchError: `spec` names an axis the mesh has not, or one twice.
    """

    mesh: Mesh
    spec: PartitionSpec

    def __post_init__(self) -> None:
        used = [name for entry in self.spec for name in entry_axes(entry)]
        named = (*used, *sorted(unreduced_axes(self.spec)))
        unknown = [name for name in named if name not in self.mesh.axis_names]
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
