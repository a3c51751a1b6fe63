"""Arrays on their way between the ranks of a pipeline.

Ranks have meshes of one shape, and a message goes between equal coordinates of them: every device sends its
part to one device. In one process that is a copy; between processes it is a message of `core.comm`, which
does not wait, since two ranks may send to each other before either receives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from infini.core import comm as comm_, errors
from infini.core.array import Array
from infini.core.sharding import Mesh, NamedSharding
from infini.parallel.stages import Message


class Transport:
    """Messages of one pipeline.

    Args:
        meshes: the devices of each rank.

    Raises:
        DeviceError: this process holds some of the ranks, neither one nor all, or none.
    """

    def __init__(self, meshes: Sequence[Mesh]) -> None:
        self.meshes = tuple(meshes)
        self.ranks = tuple(rank for rank, mesh in enumerate(meshes) if mesh.local_ranks)
        job = comm_.processes()
        owners = {device.process_index for mesh in meshes for device in mesh.flat_devices}
        # Processes of the pipeline, in an order that all of them find.
        self._owners = tuple(sorted(owners))
        self._check(job)
        self._comm: comm_.Comm | None = None
        if len(self._owners) > 1:
            assert job.launcher is not None, "devices of other processes exist in a job only"
            # Its own, since exchanges inside stages may be made by another thread.
            self._comm = job.launcher.comm(self._owners).duplicate()
        self._index = self._owners.index(job.index)
        self._sending: list[comm_.Pending] = []

    def _check(self, job: comm_.Processes) -> None:
        if job.index not in self._owners:
            raise errors.DeviceError(
                "this process holds no device of the pipeline's mesh",
                got=f"process {job.index} of {job.count}, a mesh of the processes {self._owners}",
                fix="make the mesh of all devices, or call the pipeline in its processes only",
            )
        is_even = len({self.meshes[rank].local_ranks for rank in self.ranks}) == 1
        if len(self.ranks) not in (1, len(self.meshes)) or not is_even:
            raise errors.DeviceError(
                "a process holds devices of one rank of a pipeline, or the same of all ranks",
                got=f"process {job.index} with devices of the ranks {self.ranks} of {len(self.meshes)}",
                fix="order the devices of the mesh so that those of one process lie along another axis, or "
                "start one process per device",
            )

    @property
    def is_distributed(self) -> bool:
        """Whether ranks of the pipeline are in other processes."""
        return len(self.ranks) < len(self.meshes)

    def moved(self, arrays: Sequence[Array], rank: int) -> list[Array]:
        """Copies on the devices of another rank of this process."""
        target = self.meshes[rank]
        devices = [target.flat_devices[i] for i in target.local_ranks]
        found = []
        for array in arrays:
            array.block_until_ready()
            part = array.type.update(shape=array.sharding.shard_shape(array.shape))
            buffers = [d.backend.copy(b, part, d) for b, d in zip(array.buffers, devices, strict=True)]
            assert isinstance(array.sharding, NamedSharding)
            where = NamedSharding(target, array.sharding.spec)
            found.append(Array(array.type, buffers, where, committed=True))
        return found

    def send(self, arrays: Sequence[Array], rank: int, tag: int) -> None:
        """Send arrays to a rank of other processes; the call does not wait for it."""
        assert self._comm is not None
        target = self.meshes[rank]
        for array in arrays:
            array.block_until_ready()
            part = array.type.update(shape=array.sharding.shard_shape(array.shape))
            for buffer, i in zip(array.buffers, self._here.local_ranks, strict=True):
                host = self._here.flat_devices[i].backend.get(buffer, part)
                there = self._owners.index(target.flat_devices[i].process_index)
                self._sending.append(self._comm.start_send(host, self._index, there, tag))

    def receive(self, message: Message, rank: int, tag: int) -> list[Array]:
        """Wait for arrays of a rank of other processes."""
        assert self._comm is not None
        source, here, found = self.meshes[rank], self._here, []
        for type_, spec in zip(message.types, message.specs, strict=True):
            sharding, buffers = NamedSharding(here, spec), []
            shape = sharding.shard_shape(type_.shape)
            for i in here.local_ranks:
                there = self._owners.index(source.flat_devices[i].process_index)
                host = self._comm.recv(shape, type_.dtype, there, self._index, tag)
                device = here.flat_devices[i]
                buffers.append(device.backend.put(host, device))
            found.append(Array(type_, buffers, sharding, committed=True))
        return found

    def finish(self) -> None:
        """Wait until everything that was sent has left."""
        for message in self._sending:
            message.wait()
        self._sending.clear()

    def everywhere(self, content: bytes) -> list[bytes]:
        """What the processes of each rank give, for all: one per rank, that of its first device."""
        assert self._comm is not None
        found = self._comm.gather_bytes(content)
        return [found[self._owners.index(mesh.flat_devices[0].process_index)] for mesh in self.meshes]

    @property
    def _here(self) -> Mesh:
        return self.meshes[self.ranks[0]]


def local_nbytes(array: Array) -> int:
    """Bytes of the part that one device holds."""
    return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
