"""Arrays made of parts: in another placement, on another mesh, and of arrays on single devices."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import (
    backend,
    comm,
    config,
    dtypes,
    errors,
    execute,
    memory,
    mesh,
    sharding,
    shards,
    trace,
)
from infini.core.array import Array
from infini.core.ir import ArrayType
from infini.core.mesh import P
from infini.core.sharding import NamedSharding, SingleDeviceSharding
from infini.lax import placement


def respread(x: Array, where: NamedSharding) -> Array:
    """An array of a mesh in another placement there; its parts may lie in several processes, so a
    program moves them.
    """
    staged = trace.stage(lambda v: [placement.constrain(v, where.mesh.abstract, where.spec)], [x.type])
    options = backend.CompileOptions(mesh=where.mesh.abstract)
    (moved,) = execute.run(staged.program, [x], options, where.mesh)
    return moved.with_weak(x.weak)


def check_same(x: Array, where: NamedSharding) -> None:
    """Compare an array that every process has for itself, before it becomes one array of all of them; with
    the knob `check` only, since all of them wait for each other here.

    Raises:
        CollectiveError: the processes of the mesh have different ones.
    """
    job = comm.processes()
    owners = tuple(device.process_index for device in where.devices)
    if job.launcher is None or not where.mesh.local_ranks or len(set(owners)) == 1:
        return
    if not config.get("check"):
        return
    content = hashlib.sha256(np.ascontiguousarray(x.to_host()).tobytes())
    told = f"{x.type} {content.hexdigest()}".encode()
    found = job.launcher.comm(owners).gather_bytes(told)
    if different := sorted({owners[i] for i, other in enumerate(found) if other != found[0]}):
        raise errors.CollectiveError(
            "device_put: the processes of this job put different arrays on one mesh",
            got=f"{x.type} in process {job.index}; process {', '.join(map(str, different))} has another than "
            f"process {owners[0]}",
            expected="the whole array, equal in every process",
            fix="make it from the same seed, or with make_array_from_process_local_data of the parts",
        )


def between_meshes(x: Array, where: NamedSharding) -> Array:
    """An array of another mesh. Every part is put together from those that overlap it; what other
    processes hold is gathered first, over the mesh that it is on.

    Raises:
        DeviceError: a process of the new mesh has no device of the one that the array is on.
    """
    source = x.sharding
    assert isinstance(source, NamedSharding)
    strangers = {d.process_index for d in where.devices} - {d.process_index for d in source.devices}
    if strangers:
        raise errors.DeviceError(
            "an array cannot be moved to processes that have no device of its mesh",
            got=f"{x.type} on {source.mesh}, to processes {', '.join(map(str, sorted(strangers)))}",
            expected="a mesh over devices of the same processes",
            fix="hand it on with experimental.multihost_utils.broadcast_one_to_all",
        )
    if where.is_equivalent_to(source, x.ndim) and x.layout is None:
        return x.placed(where)
    if source.unreduced:
        x = respread(x, source.with_spec(P(*source.spec)))
    if not source.is_fully_addressable:
        x = respread(x, source.with_spec(P()))
    held = [(_bounds(s.index, x.shape), s.data.to_host()) for s in x.addressable_shards if not s.replica_id]
    if not held:  # every part that this process holds is a copy of one elsewhere
        held = [(_bounds(s.index, x.shape), s.data.to_host()) for s in x.addressable_shards[:1]]
    buffers = []
    for rank in where.mesh.local_ranks:
        device = where.mesh.flat_devices[rank]
        target = mesh.shard_index(x.shape, where.spec, where.mesh.abstract, rank)
        part = shards.padded(_assembled(held, target, x.dtype), where.shard_shape(x.shape))
        buffers.append(device.backend.put(part, device))
    return Array(x.type, buffers, where, weak=x.weak, committed=True)


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(*s.indices(n)) for s, n in zip(index, shape, strict=True))


def _assembled(
    held: Sequence[tuple[tuple[slice, ...], np.ndarray]], target: tuple[slice, ...], dtype: np.dtype
) -> np.ndarray:
    """The part `target` of an array from those parts that are held with their places."""
    part = np.empty([s.stop - s.start for s in target], dtype)
    for place, host in held:
        common = [(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(place, target, strict=True)]
        if all(low < high for low, high in common):
            to = tuple(
                slice(low - s.start, high - s.start) for (low, high), s in zip(common, target, strict=True)
            )
            of = tuple(
                slice(low - s.start, high - s.start) for (low, high), s in zip(common, place, strict=True)
            )
            part[to] = host[of]
    return part


def _within(bounds: Sequence[tuple[int, int]], place: tuple[slice, ...]) -> tuple[slice, ...]:
    """A part of an array as an index of a larger part that starts at `place`."""
    return tuple(slice(low - s.start, high - s.start) for (low, high), s in zip(bounds, place, strict=True))


def make_array_from_single_device_arrays(
    shape: Sequence[int],
    sharding_: sharding.Sharding,
    arrays: Sequence[Array],
    *,
    dtype: Any = None,
) -> Array:  # Any: a dtype
    """An array whose parts are there already, as `jax.make_array_from_single_device_arrays`. Nothing is
    copied, but for parts that are smaller than others.

    Args:
        shape: global shape.
        sharding_: how it is split.
        arrays: one array for each device of this process that holds a part, in any order.
        dtype: dtype of the parts; needed where this process holds none.

    Raises:
        TypeMismatchError: `arrays` is no list or tuple of arrays.
        ValueMismatchError: there are too few or too many arrays, on other devices, or of another shape or
            dtype.

    Example:
        >>> import infini as inf, infini.numpy as inp
        >>> mesh = inf.make_mesh((1,), ("data",))
        >>> part = inf.device_put(inp.ones(4), mesh.local_devices[0])
        >>> where = inf.NamedSharding(mesh, inf.P("data"))
        >>> inf.make_array_from_single_device_arrays((4,), where, [part]).sharding == where
        True
    """
    size = tuple(int(n) for n in shape)
    if not isinstance(arrays, (list, tuple)) or not all(isinstance(a, Array) for a in arrays):
        raise errors.TypeMismatchError(
            "make_array_from_single_device_arrays takes a list or tuple of arrays",
            got=type(arrays).__name__,
        )
    devices = [d for d in sharding_.devices if d.backend.owns(d)]
    by_device = {device: a for a in arrays for device in a.sharding.devices if len(a.devices()) == 1}
    if len(arrays) != len(devices) or set(by_device) != set(devices):
        raise errors.ValueMismatchError(
            "make_array_from_single_device_arrays needs one array on each device of this process",
            got=f"{len(arrays)} arrays on {', '.join(sorted({str(d) for a in arrays for d in a.devices()}))}",
            expected=f"{len(devices)} arrays, on {', '.join(map(str, devices))}",
        )
    if not arrays and dtype is None:
        raise errors.ValueMismatchError(
            "make_array_from_single_device_arrays cannot know the dtype where it is given no array",
            fix="pass dtype=",
        )
    kind = by_device[devices[0]].dtype if dtype is None else dtypes.canonical(dtype)
    places, room = sharding_.devices_indices_map(size), sharding_.shard_shape(size)
    for device, found in by_device.items():
        part = ArrayType(tuple(s.stop - s.start for s in _bounds(places[device], size)), kind)
        if found.type != part:
            raise errors.ValueMismatchError(
                "a part of an array has another type than it should",
                got=f"{found.type} on {device}",
                expected=f"{part}, as {ArrayType(size, kind)} is split by {sharding_}",
            )
    if isinstance(sharding_, SingleDeviceSharding):
        sharding_ = sharding.on_one(sharding_.device)
    buffers = [_in_room(by_device[device].block_until_ready(), device, room) for device in devices]
    return Array(ArrayType(size, kind), buffers, sharding_, committed=True)


def _in_room(part: Array, device: backend.Device, room: tuple[int, ...]) -> backend.Buffer:
    """The buffer of a part, copied where it is smaller than others."""
    if part.shape == room:
        return memory.alias(part.buffers[0])
    return device.backend.put(shards.padded(part.to_host(), room), device)
