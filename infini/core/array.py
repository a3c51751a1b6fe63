"""`Array`: a typed value in buffers of a backend. CPU execution is synchronous; accelerators set `ready`.

Operators and methods are installed by `infini.numpy`. Arrays copy and pickle as NumPy's do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from infini.core import (
    backend,
    dlpack,
    dtypes,
    errors,
    formats,
    ir,
    layout as layout_,
    memory as memory_,
    mesh as mesh_,
    representation,
    sharding as sharding_,
    shards,
    value,
)


class ReadyEvent(Protocol):
    """Completion of work on an accelerator."""

    def wait(self) -> None:
        """Block until the work is done; raises what the work raised."""


@dataclass(frozen=True, slots=True)
class Arranged:
    """Buffers with the layout of what is in them; None is row-major."""

    layout: layout_.Layout | None
    buffers: tuple[backend.Buffer, ...]

    def host(self, number: int, part: ir.ArrayType, device: backend.Device) -> np.ndarray:
        """The logical contents of one buffer, which holds an array of type `part`; a view where that can
        be.
        """
        if self.layout is None:
            return device.backend.get(self.buffers[number], part)
        physical = layout_.physical_type(self.layout, part)
        return layout_.logical_host(
            self.layout, part.shape, device.backend.get(self.buffers[number], physical)
        )


class Array(value.Value):
    """An array on one or more devices. Made by `infini.numpy`, `device_put` and running programs, not by
    its constructor.

    Args:
        type: global shape and dtype.
        buffers: one per addressable device, in the order of `sharding.devices`.
        sharding: which part lives where.
        weak: whether the dtype yields to others, as a Python scalar's does.
        committed: whether the placement was asked for; uncommitted values follow others (design 4a.13).
        ready: event of the work that fills the buffers; None when it is done.
    """

    __slots__ = ("__weakref__", "_arranged", "_buffers", "committed", "ready", "sharding")
    _arranged: Arranged | None  # unset unless `_buffers` is None

    def __init__(
        self,
        type: ir.ArrayType,
        buffers: Sequence[backend.Buffer],
        sharding: sharding_.Sharding,
        *,
        weak: bool = False,
        committed: bool = False,
        ready: ReadyEvent | None = None,
    ) -> None:
        self.type = type
        self._buffers: tuple[backend.Buffer, ...] | None = tuple(buffers)
        self.sharding = sharding
        self.weak = weak
        self.committed = committed
        self.ready = ready

    @property
    def buffers(self) -> tuple[backend.Buffer, ...]:
        """The device buffers.

        Raises:
            DeletedBufferError: the array was donated or deleted.
        """
        if self._buffers is None:
            return self._row_major_buffers()
        return self._buffers

    # An array whose memory is not row-major has no `_buffers` but `_arranged`, so nothing is asked of the
    # others, and whoever does not know of layouts gets row-major copies.

    @classmethod
    def arranged(
        cls,
        type: ir.ArrayType,
        memory: Arranged,
        sharding: sharding_.Sharding,
        *,
        weak: bool = False,
        committed: bool = False,
    ) -> Array:
        """An array whose memory is in a layout.

        Args:
            type: global shape and dtype; the layout does not change it.
            memory: buffers and their layout.
            sharding: which part lives where; every part has the layout.
            weak: as for any array.
            committed: as for any array.
        """
        array = cls(type, (), sharding, weak=weak, committed=committed)
        array._buffers, array._arranged = None, memory
        return array

    @property
    def memory(self) -> Arranged:
        """The buffers as they are, with their layout (None: row-major).

        Raises:
            DeletedBufferError: the array was donated or deleted.
        """
        found = self._arrangement
        return found if found is not None else Arranged(None, self.buffers)

    @property
    def layout(self) -> layout_.Layout | None:
        """The layout of the memory, None for row-major; a deleted array has none."""
        if self._buffers is not None:
            return None
        found: Arranged | None = getattr(self, "_arranged", None)
        return None if found is None else found.layout

    @property
    def format(self) -> formats.Format:
        """How it lies in memory, and where."""
        return formats.Format(layout_.shown(self.layout, self.ndim), self.sharding)

    @property
    def _arrangement(self) -> Arranged | None:
        found: Arranged | None = getattr(self, "_arranged", None) if self._buffers is None else None
        return found

    def _row_major_buffers(self) -> tuple[backend.Buffer, ...]:
        found = self._arrangement
        if found is None:
            raise errors.DeletedBufferError(
                f"an array of type {self.type} was used after it had been donated or deleted",
                fix="use the result that replaced it, or leave the argument out of donate_argnums",
            )
        part = self.type.update(shape=self.sharding.shard_shape(self.shape))
        devices = self.addressable_devices
        return tuple(
            d.backend.put(found.host(i, part, d), d) for i, d in enumerate(devices)
        )  # fmt: skip

    def delete(self) -> None:
        """Release the buffers; later uses raise `DeletedBufferError`."""
        self._buffers = self._arranged = None

    def is_deleted(self) -> bool:
        """Whether the buffers have been donated or released."""
        return self._buffers is None and self._arrangement is None

    @property
    def device(self) -> backend.Device | sharding_.Sharding:
        """The device, or the sharding of an array on several."""
        return (
            self.sharding.device
            if isinstance(self.sharding, sharding_.SingleDeviceSharding)
            else self.sharding
        )

    def devices(self) -> set[backend.Device]:
        """The devices that hold a part."""
        return set(self.sharding.device_set)

    @property
    def addressable_devices(self) -> tuple[backend.Device, ...]:
        """Devices of this process that hold a part, in the order of `buffers`."""
        return (
            tuple(d for d in self.sharding.devices if d.backend.owns(d))
            if len(self.sharding.devices) > 1 or self._buffers == ()
            else self.sharding.devices
        )

    @property
    def is_fully_addressable(self) -> bool:
        """Whether this process holds every part."""
        return len(self.addressable_devices) == len(self.sharding.devices)

    @property
    def is_fully_replicated(self) -> bool:
        """Whether every device holds the whole array."""
        return self.sharding.is_whole(self.shape) and not self._waiting

    @property
    def _waiting(self) -> frozenset[str]:
        """Axes over which the parts are terms of a sum."""
        place = self.sharding
        return mesh_.unreduced_axes(place.spec) if isinstance(place, sharding_.NamedSharding) else frozenset()

    @property
    def addressable_shards(self) -> list[shards.Shard[Array]]:
        """The parts that this process holds, one per device, in the order of `buffers`."""
        return [shard for shard in self.global_shards if shard.is_addressable]

    @property
    def global_shards(self) -> list[shards.Shard[Array]]:
        """The parts of all processes; those of others have no data here."""
        buffers = zip(self.addressable_devices, self.block_until_ready().buffers, strict=True)
        parts = {device: self._part(device, buffer) for device, buffer in buffers}
        return shards.of(self.shape, self.sharding, parts)

    def _part(self, device: backend.Device, buffer: backend.Buffer) -> Array:
        """The part on a device as an array; a copy where the buffer has a tail."""
        room = self.type.update(shape=self.sharding.shard_shape(self.shape))
        index = self.sharding.index_of(self.shape, self.sharding.devices.index(device))
        part = room.update(
            shape=tuple(len(range(*s.indices(n))) for s, n in zip(index, self.shape, strict=True))
        )
        if part == room:
            own = memory_.alias(buffer)
        else:
            held = shards.trimmed(device.backend.get(buffer, room), index)
            own = device.backend.put(np.ascontiguousarray(held), device)
        return Array(part, (own,), sharding_.on_one(device), weak=self.weak, committed=True)

    def addressable_data(self, index: int) -> Array:
        """The part on the device number `index` among those of this process."""
        return self.addressable_shards[index].data

    def on_device_size_in_bytes(self) -> int:
        """Bytes of all parts, wherever they are."""
        part = self.type.update(shape=self.sharding.shard_shape(self.shape))
        return len(self.sharding.devices) * layout_.size_in_bytes(self.layout, part)

    def unsafe_buffer_pointer(self) -> int:
        """Address of the only buffer, in the memory of its device.

        Raises:
            ValueMismatchError: there are several buffers, or the backend has no addresses.
        """
        buffers = self.block_until_ready().memory.buffers
        address = getattr(buffers[0], "address", None)
        if len(buffers) != 1 or address is None:
            raise errors.ValueMismatchError(
                "this array has no single address", got=f"{self.type} on {self.device}"
            )
        return int(address)

    def is_ready(self) -> bool:
        """Whether the contents are there, so that reading them does not wait."""
        return self.ready is None

    def copy_to_host_async(self) -> None:
        """Start copying to the host; the copy itself is made when the contents are asked for."""

    def to_device(self, device: backend.Device, *, stream: None = None) -> Array:
        """The array on a device, as the Array API standard; `infini.device_put` takes placements, too.

        Raises:
            TypeMismatchError: `device` is no device.
        """
        if self.devices() == {device}:
            return self
        if not isinstance(device, backend.Device):
            raise errors.TypeMismatchError(
                "to_device takes a device",
                got=f"{device!r} of type {type(device).__name__}",
                expected="one of infini.devices()",
                fix="use infini.device_put for a sharding",
            )
        return from_host(self.to_host(), keep_dtype=True, device=device, weak=self.weak)

    def block_until_ready(self) -> Array:
        """Wait until the contents are there, and return the array."""
        if self.ready is not None:
            self.ready.wait()
            self.ready = None
        return self

    def placed(self, where: sharding_.Sharding) -> Array:
        """The same contents, which lie there already, as another array that may be donated and deleted by
        itself.
        """
        kept = self.memory
        buffers = tuple([memory_.alias(buffer) for buffer in kept.buffers])
        if kept.layout is not None:
            own = Arranged(kept.layout, buffers)
            return Array.arranged(self.type, own, where, weak=self.weak, committed=True)
        return Array(self.type, buffers, where, weak=self.weak, committed=True, ready=self.ready)

    def with_weak(self, weak: bool) -> Array:
        """The same buffers with another weak flag."""
        if weak == self.weak:
            return self
        if self._arrangement is not None:
            return Array.arranged(
                self.type, self.memory, self.sharding, weak=weak, committed=self.committed
            )  # fmt: skip
        return Array(
            self.type, self.buffers, self.sharding, weak=weak, committed=self.committed, ready=self.ready
        )

    def to_host(self) -> np.ndarray:
        """The contents as a read-only NumPy array, without a copy when memory is shared. Terms of a sum that
        has not been taken are added up.

        Raises:
            DeviceError: parts live in other processes.
        """
        self.block_until_ready()
        devices = self.addressable_devices
        if isinstance(self.sharding, sharding_.SingleDeviceSharding):
            host = self.memory.host(0, self.type, devices[0])
        else:
            host = self._gather(devices)
        host.flags.writeable = False
        return host

    def _gather(self, devices: tuple[backend.Device, ...]) -> np.ndarray:
        sharding = self.sharding
        assert isinstance(sharding, sharding_.NamedSharding)
        local_type = self.type.update(shape=sharding.shard_shape(self.shape))
        is_replicated = self.is_fully_replicated
        if not devices or (not is_replicated and not self.is_fully_addressable):
            raise errors.DeviceError(
                "parts of this array live in other processes",
                got=f"{self.type} with {sharding.spec!r} over {sharding.mesh!r}",
                fix="replicate it first, for example with device_put(x, NamedSharding(mesh, P()))",
            )
        if is_replicated:
            return self.memory.host(0, local_type, devices[0])
        host, memory = np.zeros(self.shape, self.dtype), self.memory
        seen: set[tuple[int, ...]] = set()
        names = sorted(self._waiting.union(*map(sharding_.entry_axes, sharding.spec)))
        for i, device in enumerate(devices):
            rank = sharding.devices.index(device)
            coordinates = sharding.mesh.abstract.coordinates(rank)
            place = tuple(coordinates[name] for name in names)
            if place in seen:
                continue
            seen.add(place)
            index = sharding_.shard_index(self.shape, sharding.spec, sharding.mesh.abstract, rank)
            part = shards.trimmed(memory.host(i, local_type, device), index)
            host[index] = host[index] + part if self._waiting else part
        return host

    def __array__(
        self, dtype: Any = None, copy: bool | None = None
    ) -> np.ndarray:  # Any: as NumPy's protocol
        target = self.dtype if dtype is None else np.dtype(dtype)
        if copy is False and (target != self.dtype or not self._is_host_memory()):
            raise errors.ValueMismatchError(
                "this array cannot become a NumPy array without a copy",
                got=f"{self.type} on {self.device}, as {target.name}",
                fix="leave copy=False out, for example by np.asarray(x)",
            )
        host = self.to_host()
        if target != self.dtype:
            return host.astype(target)
        return host.copy() if copy else host

    def _is_host_memory(self) -> bool:
        """Whether NumPy can look at the contents where they are."""
        if self.layout is not None and self.layout.tile:
            return False
        if not isinstance(self.sharding, sharding_.SingleDeviceSharding):
            return False
        return dlpack.sharing_backend(self.sharding.device.platform) is None

    def __buffer__(self, flags: int) -> memoryview:
        # Called by memoryview() and bytes() since Python 3.12; 3.11 knows no such method of a Python class.
        return memoryview(self.to_host())  # type: ignore[arg-type]  # NumPy declares the method from 3.12

    def __bytes__(self) -> bytes:
        # Of an integer Python makes as many zeros; of anything else its memory.
        is_number = self.ndim == 0 and self.dtype in dtypes.INTEGERS
        return bytes(int(self)) if is_number else self.tobytes()

    def __dlpack__(
        self,
        *,
        stream: Any = None,  # Any: as the protocol; the contents are complete, so every stream may read
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:  # Any: a capsule
        here = self.__dlpack_device__()
        there = here if dl_device is None else (int(dl_device[0]), int(dl_device[1]))
        is_moved = there != here or self.layout is not None
        if there not in (here, (dlpack.CPU, 0)) or (copy is False and is_moved):
            raise errors.BufferExchangeError(
                "this array cannot be exported to that device" + (" without a copy" if copy is False else ""),
                got=f"{self.type} on {self.device}, for device {there}",
                fix="move it with infini.device_put first",
            )
        # A consumer of before version 1 cannot be told that it must not write.
        is_writable = max_version is None or max_version[0] < 1
        if is_writable and copy is False:
            raise errors.BufferExchangeError(
                "an array cannot be exported without a copy to a consumer that might write to it",
                got=f"max_version={max_version}",
                expected="max_version of at least (1, 0), or a copy",
            )
        memory = self._memory(there, copy=bool(copy) or is_writable)
        return dlpack.export(memory, max_version)

    def _memory(self, there: tuple[int, int], *, copy: bool) -> dlpack.Memory:
        """The elements on a device, for DLPack; a copy is the consumer's own."""
        if there[0] == dlpack.CPU:
            host = np.array(self.to_host(), order="C") if copy else np.asarray(self.to_host(), order="C")
            address = host.__array_interface__["data"][0]
            return dlpack.Memory(address, self.type, host, is_read_only=not copy)
        (device,) = self.sharding.devices
        sharing = dlpack.sharing_backend(device.platform)
        assert sharing is not None
        buffer = self.block_until_ready().buffers[0]
        if copy:
            buffer = device.backend.copy(buffer, self.type, device)
        return dlpack.Memory(sharing.address(buffer), self.type, buffer, *there, is_read_only=not copy)

    def __dlpack_device__(self) -> tuple[int, int]:
        if isinstance(self.sharding, sharding_.SingleDeviceSharding):
            sharing = dlpack.sharing_backend(self.sharding.device.platform)
            if sharing is not None:
                return sharing.dlpack_kind, sharing.dlpack_number(self.sharding.device)
        return dlpack.CPU, 0

    def item(self, *index: int) -> Any:  # Any: a Python number
        """An element as a Python number.

        Args:
            *index: which, as in `numpy.ndarray.item`; nothing for the only one.

        Raises:
            ValueMismatchError: there are none or several.
        """
        if index:
            return self.to_host().item(*index)
        if self.size != 1:
            raise errors.ValueMismatchError("item() needs an array of one element", got=str(self.type))
        return self.to_host().reshape(()).item()

    def tolist(self) -> Any:  # Any: nested lists
        """The elements as nested lists of Python numbers."""
        return self.to_host().tolist()

    def tobytes(self, order: str = "C") -> bytes:
        """The bytes of the elements, as `numpy.ndarray.tobytes`."""
        return self.to_host().tobytes(order)  # type: ignore[arg-type]  # NumPy names the orders it takes

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ambiguous(self.type)
        return bool(self.item())

    def _scalar(self) -> Any:  # Any: a Python number
        if self.ndim:
            raise errors.TypeMismatchError(
                "only arrays without dimensions become Python numbers",
                got=str(self.type),
                fix="use x.item() for an array of one element, x.tolist() for several",
            )
        return self.item()

    def __int__(self) -> int:
        return int(self._scalar())

    def __float__(self) -> float:
        return float(self._scalar())

    def __complex__(self) -> complex:
        return complex(self._scalar())

    def __index__(self) -> int:
        if self.dtype not in dtypes.INTEGERS or self.ndim:
            raise errors.TypeMismatchError(
                "only integer arrays without dimensions can be used as an index", got=str(self.type)
            )
        return int(self.item())

    def __repr__(self) -> str:
        if self.is_deleted():
            return f"Array(<deleted>, {self.type})"
        if not self.addressable_devices or not (self.is_fully_addressable or self.is_fully_replicated):
            return f"Array(<{self.type} over {self.sharding}>)"
        return representation.of(self.to_host(), self.weak)

    def __str__(self) -> str:
        return str(self.to_host())

    def __format__(self, spec: str) -> str:
        if self.ndim and spec:
            raise errors.TypeMismatchError(
                f"an array cannot be formatted as {spec!r}",
                got=str(self.type),
                fix="format its elements, or use np.printoptions for the whole array",
            )
        return str(self) if self.ndim else format(self.item(), spec)

    def __hash__(self) -> int:
        raise errors.TypeMismatchError(
            "arrays are not hashable",
            got=str(self.type),
            fix="use x.item() or x.tolist(), or mark the argument non-static",
        )

    def __copy__(self) -> Array:
        return self

    def __deepcopy__(self, memo: Any) -> Array:  # Any: as copy's protocol
        devices, parts = self.addressable_devices, self.block_until_ready().buffers
        part = self.type.update(shape=self.sharding.shard_shape(self.shape))
        copies = [d.backend.copy(buffer, part, d) for d, buffer in zip(devices, parts, strict=True)]
        return Array(self.type, copies, self.sharding, weak=self.weak, committed=self.committed)

    def __reduce__(self) -> Any:  # Any: as the pickle protocol
        return (
            _unpickled,
            (
                np.asarray(self.to_host(), order="C").view(np.uint8) if self.ndim else self.tobytes(),
                self.shape,
                self.dtype.name,
                self.weak,
            ),
        )


def ambiguous(type_: ir.ArrayType) -> errors.ValueMismatchError:
    """The error for an array of several elements, or of none, that decides a condition."""
    return errors.ValueMismatchError(
        "the truth of an array that has not one element is ambiguous",
        got=str(type_),
        fix="use x.any() or x.all(); for x > 0 and x < 1 write (x > 0) & (x < 1)",
    )


def _unpickled(
    data: Any, shape: ir.Shape, dtype: str, weak: bool
) -> Array:  # Any: bytes or an array of bytes
    raw = np.frombuffer(
        bytes(data) if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes(),
        dtypes.canonical(dtype),
    )
    return from_host(raw.reshape(shape), keep_dtype=True).with_weak(weak)


def from_host(
    data: object,
    *,
    dtype: np.dtype | None = None,
    keep_dtype: bool = False,
    device: backend.Device | None = None,
    weak: bool | None = None,
) -> Array:
    """An array with a copy of host data on one device.

    Args:
        data: number, nested sequence of numbers, or NumPy array.
        dtype: dtype to convert to; 64-bit data become the 32-bit default when absent.
        keep_dtype: keep the dtype of the data, 64 bits too.
        device: where to; the result is committed when given.
        weak: weak flag; when absent, Python scalars are weak and everything else is not.

    Raises:
        TypeMismatchError: the data are not numeric.
        OutOfRangeError: an integer does not fit.
    """
    if keep_dtype and dtype is None:
        dtype = dtypes.canonical(np.asarray(data).dtype)
    item = value.literal(data, dtype)
    return materialize(item if weak is None else value.Literal(item.host, weak=weak), device)


def shared(host: np.ndarray, device: backend.Device | None = None) -> Array:
    """An array over host memory that nobody writes while the array is there, such as a mapped file; a copy
    on devices that do not compute on host memory.

    Args:
        host: C-contiguous; its dtype is kept.
        device: where to; the result is committed when given.
    """
    target = device if device is not None else backend.default_device()
    buffer = target.backend.adopt(host, target)
    type_ = ir.ArrayType(host.shape, host.dtype)
    return Array(type_, (buffer,), sharding_.on_one(target), committed=device is not None)


def materialize(item: value.Literal, device: backend.Device | None = None) -> Array:
    """A literal as an array on a device."""
    target = device if device is not None else backend.default_device()
    buffer = target.backend.put(item.host, target)
    return Array(
        item.type,
        (buffer,),
        sharding_.on_one(target),
        weak=item.weak,
        committed=device is not None,
    )
