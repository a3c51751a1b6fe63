"""Meshes and placements on devices, with JAX's names: `Mesh`, `P`, `NamedSharding`. What needs no
devices is in `core.mesh`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from infini.core import backend, errors, ir
from infini.core.mesh import (
    AbstractMesh,
    AxisEntry,
    AxisType,
    P,
    PartitionSpec,
    axis_types_of,
    entry_axes,
    is_whole,
    shard_index,
    shard_shape,
    unreduced_axes,
)

__all__ = [
    "AbstractMesh",
    "AxisEntry",
    "AxisType",
    "Mesh",
    "NamedSharding",
    "P",
    "PartitionSpec",
    "Sharding",
    "SingleDeviceSharding",
    "current_abstract_mesh",
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
        axis_types: accepted for JAX's sake: `Explicit` axes act as `Auto` ones. Meshes that differ in
            nothing else are equal.

    Raises:
        ValueMismatchError: the numbers of axes, names and types differ, a name or a device occurs twice, or
            there are no devices.
        DeviceError: the devices are of several platforms.
    """

    devices: np.ndarray
    axis_names: tuple[str, ...]
    axis_types: tuple[AxisType, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "devices", np.asarray(self.devices, dtype=object))
        names = (self.axis_names,) if isinstance(self.axis_names, str) else tuple(self.axis_names)
        object.__setattr__(self, "axis_names", names)
        platforms = sorted({str(getattr(device, "platform", "")) for device in self.devices.flat})
        if len(platforms) > 1:
            raise errors.DeviceError(
                "the devices of a mesh are of one kind", got=", ".join(platforms), fix="make a mesh of each"
            )
        if len(names) != self.devices.ndim or len(set(names)) != len(names):
            raise errors.ValueMismatchError(
                "a mesh needs one distinct name per axis",
                got=f"devices of shape {self.devices.shape}, names {names}",
                fix="make_mesh((4, 2), ('dp', 'tp')) takes devices and arranges them",
            )
        twice = [device for device, count in Counter(self.devices.flat).items() if count > 1]
        if twice or (names and not self.devices.size):
            raise errors.ValueMismatchError(
                "a mesh has each device once, and at least one along each axis",
                got=f"{twice[0]} several times" if twice else f"devices of shape {self.devices.shape}",
            )
        object.__setattr__(self, "axis_types", axis_types_of(names, self.axis_types))

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

    @property
    def abstract_mesh(self) -> AbstractMesh:
        """The mesh without its devices, with the types of its axes."""
        return AbstractMesh(self.axis_names, self.axis_sizes, self.axis_types)

    @property
    def axis_sizes(self) -> tuple[int, ...]:
        """Size of each axis."""
        return self.abstract.axis_sizes

    @property
    def shape_tuple(self) -> tuple[tuple[str, int], ...]:
        """Pairs of name and size."""
        return self.abstract.shape_tuple

    @property
    def empty(self) -> bool:
        """Whether it has no axes."""
        return self.devices.ndim == 0

    @property
    def device_ids(self) -> np.ndarray:
        """Numbers of the devices, in the shape of the mesh."""
        ids = np.array([device.id for device in self.flat_devices], np.int64)
        return ids.reshape(self.devices.shape)

    @property
    def local_devices(self) -> list[backend.Device]:
        """The devices that this process holds, in mesh order."""
        return [self.flat_devices[rank] for rank in self.local_ranks]

    @property
    def is_multi_process(self) -> bool:
        """Whether other processes hold some of the devices."""
        return len(self.local_ranks) != self.size

    @property
    def local_mesh(self) -> Mesh:
        """The block of the mesh that this process holds.

        Raises:
            DeviceError: what it holds is no block.
        """
        if not self.is_multi_process:
            return self
        places = np.argwhere(np.isin(np.arange(self.size).reshape(self.devices.shape), self.local_ranks))
        index = np.ix_(*(np.unique(column) for column in places.T))
        block = self.devices[index]
        if block.size != len(self.local_ranks):
            raise errors.DeviceError(
                "the devices of this process are no block of the mesh",
                got=f"numbers {self.local_ranks} of {self}",
                fix="order the devices of the mesh so that those of a process stand together",
            )
        return Mesh(block, self.axis_names, self.axis_types)

    def update(
        self,
        devices: np.ndarray | None = None,
        axis_names: Sequence[str] | None = None,
        axis_types: Sequence[AxisType] | None = None,
    ) -> Mesh:
        """The same mesh with some parts replaced."""
        return Mesh(
            self.devices if devices is None else devices,
            self.axis_names if axis_names is None else tuple(axis_names),
            self.axis_types if axis_types is None else tuple(axis_types),
        )

    @functools.cached_property
    def flat_devices(self) -> tuple[backend.Device, ...]:
        """Devices in mesh order: the rank of a device is its position."""
        return tuple(device for device in self.devices.reshape(-1) if device is not None)

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
            ...     inf.sharding.make_mesh((2, 2), ("pp", "dp")).at("pp", 1).shape
            {'dp': 2}
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
        if self.empty:
            return "Mesh(axis_sizes=(), axis_names=())"
        return (
            f"Mesh(axis_sizes={self.axis_sizes}, axis_names={self.axis_names}, axis_types={self.axis_types})"
        )

    def __str__(self) -> str:
        return repr(self.abstract_mesh).removeprefix("Abstract") if self.axis_names else "Mesh()"

    def __enter__(self) -> Mesh:
        _entered.set((*_entered.get(), self))
        return self

    def __exit__(self, *exc: object) -> None:
        _entered.set(_entered.get()[:-1])


Entered: TypeAlias = tuple[Mesh | AbstractMesh, ...]
_entered: contextvars.ContextVar[Entered] = contextvars.ContextVar("infini_mesh", default=())


def current_mesh() -> Mesh | None:
    """The innermost mesh of `set_mesh` and `with mesh:`, which gives a plain `P` its meaning."""
    return next((mesh for mesh in reversed(_entered.get()) if isinstance(mesh, Mesh)), None)


def current_abstract_mesh() -> AbstractMesh | None:
    """The innermost mesh there is, with or without devices."""
    entered = _entered.get()
    return entered[-1].abstract_mesh if entered else None


def meshes_in_scope() -> Entered:
    """The meshes that are set, innermost last; part of the key of every traced program."""
    return _entered.get()


def replace_meshes(entered: Entered) -> Entered:
    """Set the meshes of this thread; returns those that were set before."""
    before = _entered.get()
    _entered.set(entered)
    return before


# Meshes that were named while a function is traced: programs have their axes, and not their devices.
_named: contextvars.ContextVar[list[Mesh] | None] = contextvars.ContextVar("infini_named", default=None)


def name_mesh(mesh: Mesh) -> None:
    """Remember the devices of a mesh that the function that is being traced names."""
    named = _named.get()
    if named is not None:
        named.append(mesh)


@contextlib.contextmanager
def named_meshes() -> Iterator[list[Mesh]]:
    """A list of the meshes that are named within a block; outer blocks get them as well."""
    outer, own = _named.get(), list[Mesh]()
    token = _named.set(own)
    try:
        yield own
    finally:
        _named.reset(token)
        if outer is not None:
            outer.extend(own)


def plain_state() -> list[tuple[object, str | None, object]]:
    """What holds outside every mesh: (context variable, None, value)."""
    return [(_entered, None, ())]


def make_mesh(
    axis_shapes: Sequence[int],
    axis_names: Sequence[str],
    axis_types: Sequence[AxisType] | None = None,
    *,
    devices: Sequence[backend.Device] | None = None,
) -> Mesh:
    """A mesh of the first devices there are.

    Args:
        axis_shapes: size of each axis.
        axis_names: name of each axis.
        axis_types: types of the axes; `Explicit`, as in JAX, when absent. They act as `Auto` ones.
        devices: devices to take from; all devices of the default backend when absent.

    Raises:
        DeviceError: there are too few devices.
        ValueMismatchError: sizes are no positive numbers, names no names, or not as many.
    """
    axis_shapes, axis_names = _checked_axes(axis_shapes, axis_names)
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
    types = (AxisType.Explicit,) * len(axis_names) if axis_types is None else tuple(axis_types)
    return Mesh(array.reshape(axis_shapes), tuple(axis_names), types)


def _checked_axes(sizes: Any, names: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:  # Any: from a user
    found = (names,) if isinstance(names, str) else tuple(names) if isinstance(names, Iterable) else ()
    counts = tuple(sizes) if isinstance(sizes, Iterable) else ()
    is_good = all(isinstance(n, int | np.integer) and n > 0 for n in counts) and len(counts) == len(found)
    if not is_good or not isinstance(sizes, Iterable):
        raise errors.ValueMismatchError(
            "make_mesh needs the sizes of the axes, then as many names",
            got=f"sizes {sizes!r}, names {names!r}",
            expected="positive numbers and strings",
            fix="make_mesh((4, 2), ('dp', 'tp'))",
        )
    return tuple(int(n) for n in counts), found


Index: TypeAlias = tuple[slice, ...]


class Placed:
    """What all placements of arrays have. They differ in `devices`, `shard_shape` and `index_of`."""

    __slots__ = ()

    @property
    def devices(self) -> tuple[backend.Device, ...]:
        """Devices in rank order."""
        raise NotImplementedError("placements have their own")

    def shard_shape(self, shape: ir.Shape) -> ir.Shape:
        """Shape of what each device has room for; `index_of` is the part that is there."""
        raise NotImplementedError("placements have their own")

    def is_whole(self, shape: ir.Shape) -> bool:
        """Whether every device holds all elements of an array of this shape."""
        raise NotImplementedError("placements have their own")

    def index_of(self, shape: ir.Shape, rank: int) -> Index:
        """The part that device number `rank` holds; a whole dimension is `slice(None)`."""
        raise NotImplementedError("placements have their own")

    @property
    def device_set(self) -> frozenset[backend.Device]:
        """The devices that hold a part."""
        return frozenset(self.devices)

    @property
    def num_devices(self) -> int:
        """How many devices hold a part."""
        return len(self.devices)

    @property
    def addressable_devices(self) -> frozenset[backend.Device]:
        """The devices of this process that hold a part."""
        return frozenset(d for d in self.devices if d.backend.owns(d))

    @property
    def has_addressable_devices(self) -> bool:
        """Whether this process holds a part."""
        return bool(self.addressable_devices)

    @property
    def is_fully_addressable(self) -> bool:
        """Whether this process holds every part."""
        return self.addressable_devices == self.device_set

    @property
    def memory_kind(self) -> str:
        """Devices have one kind of memory."""
        return "device"

    def with_memory_kind(self, kind: str) -> Any:  # Any: the class of self
        """The same placement in another kind of memory of the devices.

        Raises:
            UnsupportedError: it is another kind than `device`.
        """
        if kind != self.memory_kind:
            raise errors.UnsupportedError(
                "devices have one kind of memory", got=f"memory_kind={kind!r}", expected="'device'",
                fix="keep what should lie on the host as NumPy arrays",
            )  # fmt: skip
        return self

    def devices_indices_map(self, global_shape: Sequence[int]) -> dict[backend.Device, Index]:
        """Which part of an array of this shape each device holds.

        Raises:
            ValueMismatchError: the placement does not fit the shape.
        """
        shape = tuple(global_shape)
        return {device: self.index_of(shape, rank) for rank, device in enumerate(self.devices)}

    def addressable_devices_indices_map(self, global_shape: Sequence[int]) -> dict[backend.Device, Index]:
        """As `devices_indices_map`, for the devices of this process."""
        local = self.addressable_devices
        return {d: index for d, index in self.devices_indices_map(global_shape).items() if d in local}

    def check_compatible_aval(self, aval_shape: Sequence[int]) -> None:
        """Refuse a shape that the placement does not fit.

        Raises:
            ValueMismatchError: it has too few dimensions.
        """
        self.shard_shape(tuple(aval_shape))

    @property
    def unreduced(self) -> frozenset[str]:
        """Axes over which the parts still have to be added."""
        return frozenset()

    def parts(self, ndim: int) -> tuple[tuple[int, ...], ...]:
        """Into how many parts each dimension is cut, then for every rank the numbers of its parts."""
        raise NotImplementedError("placements have their own")

    def is_equivalent_to(self, other: Placed, ndim: int) -> bool:
        """Whether two placements put the same parts of arrays of `ndim` dimensions on the same devices."""
        is_alike = self.devices == other.devices and self.unreduced == other.unreduced
        return is_alike and self.parts(ndim) == other.parts(ndim)


@dataclass(frozen=True, slots=True, repr=False)
class SingleDeviceSharding(Placed):
    """The whole array on one device."""

    device: backend.Device

    def __repr__(self) -> str:
        return f"SingleDeviceSharding(device={self.device!r}, memory_kind={self.memory_kind})"

    @property
    def devices(self) -> tuple[backend.Device, ...]:
        """Devices in rank order."""
        return (self.device,)

    @property
    def is_fully_replicated(self) -> bool:
        """Whether every device holds the whole array."""
        return True

    def shard_shape(self, shape: ir.Shape) -> ir.Shape:
        """Shape of the part each device holds."""
        return tuple(shape)

    def is_whole(self, shape: ir.Shape) -> bool:
        """The device holds all elements."""
        return True

    def index_of(self, shape: ir.Shape, rank: int) -> Index:
        """The whole array."""
        return (slice(None),) * len(shape)

    def parts(self, ndim: int) -> tuple[tuple[int, ...], ...]:
        """See `Placed.parts`."""
        return ((1,) * ndim, (0,) * ndim)


@functools.cache
def on_one(device: backend.Device) -> SingleDeviceSharding:
    """The placement of whole arrays on a device; always the same object, so placements compare by
    identity.
    """
    return SingleDeviceSharding(device)


def make_single_device_sharding(
    device: backend.Device, *, memory_kind: str | None = None
) -> SingleDeviceSharding:
    """The placement of whole arrays on a device, as `jax.sharding.make_single_device_sharding`."""
    found = on_one(device)
    return found if memory_kind is None else found.with_memory_kind(memory_kind)


@dataclass(frozen=True, slots=True, repr=False)
class NamedSharding(Placed):
    """An array split over a mesh as `spec` says; dimensions beyond `spec` are whole. Along unreduced axes of
    `spec` devices hold terms, and the array is their sum.

    Raises:
        ValueMismatchError: `spec` names an axis the mesh has not, or one twice.
    """

    mesh: Mesh
    spec: PartitionSpec

    def __post_init__(self) -> None:
        if not isinstance(self.mesh, Mesh | AbstractMesh):
            raise errors.TypeMismatchError(
                "NamedSharding needs a mesh of devices first",
                got=f"{self.mesh!r} of type {type(self.mesh).__name__}",
                expected="a Mesh",
                fix="make one: make_mesh((4, 2), ('dp', 'tp'))",
            )
        if not isinstance(self.spec, tuple):
            raise errors.TypeMismatchError(
                f"{self.spec!r} is no placement", got=type(self.spec).__name__, expected="a P",
                fix=f"P({self.spec!r})",
            )  # fmt: skip
        used = self._used
        named = (*used, *sorted(unreduced_axes(self.spec)))
        unknown = [name for name in named if name not in self.mesh.axis_names]
        twice = [name for name in dict.fromkeys(used) if used.count(name) > 1]
        if unknown or twice:
            what = (
                f"the mesh has no axis {unknown[0]!r}" if unknown else f"axis {twice[0]!r} stands there twice"
            )
            raise errors.ValueMismatchError(
                f"{self.spec!r} does not fit the mesh: {what}",
                got=f"{self.mesh}",
                expected=f"axes among {', '.join(map(repr, self.mesh.axis_names))}, each at most once",
                fix="change the placement, or the names of the axes in make_mesh",
            )

    def __repr__(self) -> str:
        return f"NamedSharding(mesh={self.mesh}, spec={self.spec!r}, memory_kind={self.memory_kind})"

    @property
    def _used(self) -> list[str]:
        return [name for entry in self.spec for name in entry_axes(entry)]

    @property
    def devices(self) -> tuple[backend.Device, ...]:
        """Devices in rank order."""
        return self.mesh.flat_devices

    @property
    def is_fully_replicated(self) -> bool:
        """Whether every device holds the whole array."""
        return all(self.mesh.shape[name] == 1 for name in (*self._used, *self.unreduced))

    @property
    def unreduced(self) -> frozenset[str]:
        """Axes over which the parts still have to be added."""
        return unreduced_axes(self.spec)

    @property
    def replicated_axes(self) -> frozenset[str]:
        """Axes of the mesh along which devices hold the same."""
        return frozenset(self.mesh.axis_names) - frozenset(self._used) - self.unreduced

    def shard_shape(self, shape: ir.Shape) -> ir.Shape:
        """Shape of what each device has room for, equal on all; the last parts of a dimension that its axes
        do not divide are smaller, see `index_of`.

        Raises:
            ValueMismatchError: the spec has more entries than the shape.
        """
        return shard_shape(tuple(shape), self.spec, self.mesh.abstract)

    def is_whole(self, shape: ir.Shape) -> bool:
        """Whether every device holds all elements of an array of this shape; of terms it holds its own."""
        return is_whole(tuple(shape), self.spec, self.mesh.abstract)

    def index_of(self, shape: ir.Shape, rank: int) -> Index:
        """The part that device number `rank` holds; a whole dimension is `slice(None)`."""
        index = shard_index(shape, self.spec, self.mesh.abstract, rank)
        return tuple(
            slice(None) if s.start == 0 and s.stop == n else s for s, n in zip(index, shape, strict=True)
        )

    def parts(self, ndim: int) -> tuple[tuple[int, ...], ...]:
        """See `Placed.parts`."""
        mesh = self.mesh.abstract
        counts = tuple(mesh.size_of(entry) for entry in self.spec) + (1,) * (ndim - len(self.spec))
        starts = (shard_index(counts, self.spec, mesh, rank) for rank in range(mesh.size))
        return (counts, *(tuple(s.start for s in index) for index in starts))

    def with_spec(self, spec: PartitionSpec | Sequence[AxisEntry]) -> NamedSharding:
        """The same mesh with another spec."""
        return NamedSharding(self.mesh, spec if isinstance(spec, PartitionSpec) else PartitionSpec(*spec))

    def update(self, *, mesh: Mesh | None = None, spec: PartitionSpec | None = None) -> NamedSharding:
        """The same placement with another mesh or spec."""
        found = NamedSharding(self.mesh if mesh is None else mesh, self.spec)
        return found if spec is None else found.with_spec(spec)


Sharding: TypeAlias = SingleDeviceSharding | NamedSharding
