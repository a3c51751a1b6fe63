"""Arrays from the memory of other libraries, by DLPack."""

from __future__ import annotations

from typing import Any

from infini.core import array, backend, dlpack, errors, ir, sharding as sharding_
from infini.core.array import Array


def from_dlpack(
    external_array: Any, device: backend.Device | None = None, copy: bool | None = None
) -> Array:  # Any: an object with __dlpack__
    """An array from any object that speaks DLPack (https://dmlc.github.io/dlpack); every dtype is kept.

    Args:
        external_array: array or tensor of another library.
        device: where to; the device of the tensor, or the default one for host memory, when absent.
        copy: False shares memory, which must then not be written to; otherwise elements are copied.

    Raises:
        TypeMismatchError: the object does not speak DLPack, or its dtype or device is unknown here.
        BufferExchangeError: `copy` is False and the memory cannot be shared.

    Example:
        >>> import numpy as np, infini
        >>> infini.dlpack.from_dlpack(np.arange(3))
        Array([0, 1, 2], dtype=int64)
    """
    if isinstance(external_array, Array) and not copy:
        return external_array
    imported = dlpack.Imported(external_array)
    type_ = ir.ArrayType(imported.shape, imported.dtype)
    platform = dlpack.platform_of(imported.kind)
    if platform is not None:
        sharing = dlpack.sharing_backend(platform)
        number = imported.number
        there = backend.Device(platform, number) if sharing is None else sharing.dlpack_device(number)
        return _from_device_memory(imported, type_, there, device, copy)
    target = device if device is not None else backend.default_device()
    host = imported.host()
    if copy is not False:
        return array.from_host(host, keep_dtype=True, device=device)
    if not imported.is_contiguous or dlpack.sharing_backend(target.platform) is not None:
        raise errors.BufferExchangeError(
            "this memory cannot be shared",
            got=f"{type_}, {'in' if imported.is_contiguous else 'not in'} C order, for {target}",
            expected="elements in C order, for a device that computes on host memory",
            fix="leave copy= out",
        )
    buffer = target.backend.adopt(host, target)
    return Array(type_, (buffer,), sharding_.on_one(target), committed=device is not None)


def _from_device_memory(
    imported: dlpack.Imported,
    type_: ir.ArrayType,
    source: backend.Device,
    device: backend.Device | None,
    copy: bool | None,
) -> Array:
    sharing = dlpack.sharing_backend(source.platform)
    if sharing is None or not imported.is_contiguous or (copy is False and device not in (None, source)):
        raise errors.BufferExchangeError(
            "this memory cannot be shared",
            got=f"{type_} on {source}, {'in' if imported.is_contiguous else 'not in'} C order",
            expected="elements in C order on a device of a backend that shares memory",
            fix="make it contiguous, or copy it to the CPU first",
        )
    buffer = sharing.adopt_address(imported.address, type_.nbytes, source, imported)
    if copy is not False:
        buffer = source.backend.copy(buffer, type_, source)
    found = Array(type_, (buffer,), sharding_.on_one(source))
    if device is None or device == source:
        return found
    return array.from_host(found.to_host(), keep_dtype=True, device=device)
