"""`Array`: a typed value in buffers of a backend. CPU execution is synchronous; accelerators set `ready`.

Operators and methods are installed by `infini.numpy`. Arrays copy and pickle as NumPy's do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from infini.core import backend, dtypes, errors, ir, sharding as sharding_, value


class ReadyEvent(Protocol):
    """Completion of work on an accelerator."""

    def wait(self) -> None:
        """Block until the work is done; raises what the work raised."""


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

    __slots__ = ("__weakref__", "_buffers", "committed", "ready", "sharding")

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
            raise errors.DeletedBufferError(
                f"an array of type {self.type} was used after it had been donated or deleted",
                fix="use the result that replaced it, or leave the argument out of donate_argnums",
            )
        return self._buffers

    def delete(self) -> None:
        """Release the buffers; later uses raise `DeletedBufferError`."""
        self._buffers = None

    def is_deleted(self) -> bool:
        """Whether the buffers have been donated or released."""
        return self._buffers is None

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
            if len(self.sharding.devices) > 1
            else self.sharding.devices
        )

    @property
    def is_fully_addressable(self) -> bool:
        """Whether this process holds every part."""
        return len(self.addressable_devices) == len(self.sharding.devices)

    def block_until_ready(self) -> Array:
        """Wait until the contents are there, and return the array."""
        if self.ready is not None:
            self.ready.wait()
            self.ready = None
        return self

    def with_weak(self, weak: bool) -> Array:
        """The same buffers with another weak flag."""
        if weak == self.weak:
            return self
        return Array(
            self.type, self.buffers, self.sharding, weak=weak, committed=self.committed, ready=self.ready
        )

    def to_host(self) -> np.ndarray:
        """The contents as a read-only NumPy array, without a copy when memory is shared.

        Raises:
            DeviceError: parts live in other processes.
        """
        self.block_until_ready()
        devices = self.addressable_devices
        if isinstance(self.sharding, sharding_.SingleDeviceSharding):
            host = devices[0].backend.get(self.buffers[0], self.type)
        else:
            host = self._gather(devices)
        host.flags.writeable = False
        return host

    def _gather(self, devices: tuple[backend.Device, ...]) -> np.ndarray:
        sharding = self.sharding
        assert isinstance(sharding, sharding_.NamedSharding)
        local_type = self.type.update(shape=sharding.shard_shape(self.shape))
        is_replicated = local_type.shape == self.shape
        if not is_replicated and not self.is_fully_addressable:
            raise errors.DeviceError(
                "parts of this array live in other processes",
                got=f"{self.type} with {sharding.spec!r} over {sharding.mesh!r}",
                fix="replicate it first, for example with device_put(x, NamedSharding(mesh, P()))",
            )
        if is_replicated:
            return devices[0].backend.get(self.buffers[0], local_type)
        host = np.empty(self.shape, self.dtype)
        for device, buffer in zip(devices, self.buffers, strict=True):
            rank = sharding.devices.index(device)
            index = sharding_.shard_index(self.shape, sharding.spec, sharding.mesh.abstract, rank)
            host[index] = device.backend.get(buffer, local_type)
        return host

    def __array__(
        self, dtype: Any = None, copy: bool | None = None
    ) -> np.ndarray:  # Any: as NumPy's protocol
        host = self.to_host()
        if dtype is not None and np.dtype(dtype) != host.dtype:
            return host.astype(dtype)
        return host.copy() if copy else host

    def __dlpack__(self, **options: Any) -> Any:  # Any: as the DLPack protocol
        host = self.to_host().view()
        if host.dtype not in _DLPACK_BY_NUMPY:
            raise errors.TypeMismatchError(
                f"NumPy cannot export {host.dtype.name} by DLPack",
                fix="exchange a bit view, for example x.view('uint16') for bfloat16",
            )
        host.flags.writeable = False
        return (
            host.__dlpack__(**options) if not _needs_writable(options) else host.copy().__dlpack__(**options)
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def item(self) -> Any:  # Any: a Python number
        """The only element as a Python number.

        Raises:
            ValueMismatchError: there are none or several.
        """
        if self.size != 1:
            raise errors.ValueMismatchError("item() needs an array of one element", got=str(self.type))
        return self.to_host().reshape(()).item()

    def tolist(self) -> Any:  # Any: nested lists
        """The elements as nested lists of Python numbers."""
        return self.to_host().tolist()

    def __bool__(self) -> bool:
        if self.size != 1:
            raise errors.ValueMismatchError(
                "the truth of an array with several elements is ambiguous",
                got=str(self.type),
                fix="use x.any() or x.all()",
            )
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __complex__(self) -> complex:
        return complex(self.item())

    def __index__(self) -> int:
        if self.dtype not in dtypes.INTEGERS:
            raise errors.TypeMismatchError("only integer arrays can be used as an index", got=str(self.type))
        return int(self.item())

    def __repr__(self) -> str:
        if self.is_deleted():
            return f"Array(<deleted>, {self.type})"
        if not (self.is_fully_addressable or self.sharding.shard_shape(self.shape) == self.shape):
            return f"Array(<{self.type} over {self.sharding}>)"
        host = self.to_host()
        if host.dtype not in _DLPACK_BY_NUMPY and host.dtype != dtypes.bool_:
            host = host.astype(np.float32)
        body = np.array2string(host, separator=", ", prefix="Array(")
        shape = f", shape={self.shape}" if self.size == 0 and self.shape != (0,) else ""
        return f"Array({body}{shape}, dtype={self.dtype.name}{', weak_type=True' if self.weak else ''})"

    def __str__(self) -> str:
        return str(self.to_host())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.ndim == 0 else format(str(self), spec)

    def __hash__(self) -> int:
        raise errors.TypeMismatchError(
            "arrays are not hashable",
            got=str(self.type),
            fix="use x.item() or x.tolist(), or mark the argument non-static",
        )

    def __copy__(self) -> Array:
        return self

    def __deepcopy__(self, memo: Any) -> Array:  # Any: as copy's protocol
        return from_host(self.to_host().copy(), keep_dtype=True)

    def __reduce__(self) -> Any:  # Any: as the pickle protocol
        return (
            _unpickled,
            (
                self.to_host().view(np.uint8) if self.ndim else self.to_host().tobytes(),
                self.shape,
                self.dtype.name,
                self.weak,
            ),
        )


_DLPACK_BY_NUMPY = dtypes.ALL - {dtypes.bfloat16, dtypes.float8_e4m3fn, dtypes.float8_e5m2}


def _needs_writable(options: dict[str, Any]) -> bool:  # Any: as the DLPack protocol
    version = options.get("max_version")
    return version is None or version[0] < 1


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


def from_dlpack(data: Any, *, copy: bool | None = None) -> Array:  # Any: an object with __dlpack__
    """An array from any object that speaks DLPack (https://dmlc.github.io/dlpack); 64-bit dtypes are kept.

    Args:
        data: array or tensor of another library, on the CPU.
        copy: False shares memory, which must then not be written to; otherwise the elements are copied.

    Raises:
        TypeMismatchError: the object does not speak DLPack, or NumPy cannot read its dtype or device.
    """
    if isinstance(data, Array):
        return data
    try:
        host = np.from_dlpack(data)
    except (AttributeError, BufferError, RuntimeError, TypeError) as error:
        raise errors.TypeMismatchError(
            "this object cannot be imported by DLPack",
            got=f"{type(data).__name__}: {error}",
            fix="copy to the CPU first; exchange bfloat16 as bits, for example tensor.view(torch.uint16)",
        ) from error
    if copy is False and host.flags.c_contiguous:
        target = backend.default_device()
        type_ = ir.ArrayType(tuple(host.shape), dtypes.canonical(host.dtype))
        return Array(type_, (target.backend.adopt(host, target),), sharding_.on_one(target))
    return from_host(host, keep_dtype=True)
