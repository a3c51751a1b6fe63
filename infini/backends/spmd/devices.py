"""Devices of a job. Backends that compute on the host have as many per process as the knob `cpu_devices`
says, numbered over the job; of accelerators a process alone has all, and each process of a job one.
"""

from __future__ import annotations

import numpy as np

from infini.core import comm, config, ir
from infini.core.backend import Device
from infini.core.memory import HostBuffer


def host_devices(platform: str) -> tuple[Device, ...]:
    """The devices of all processes of the job."""
    count = config.get("cpu_devices")
    return tuple(
        Device(platform, process * count + i, process)
        for process in range(comm.processes().count)
        for i in range(count)
    )


def owns(device: Device) -> bool:
    """Whether this process holds a device."""
    return device.process_index == comm.processes().index


def accelerators(platform: str, num_here: int) -> tuple[Device, ...]:
    """The accelerators of all processes of the job: one of each, so that it has one order of work.

    Args:
        platform: name of the backend.
        num_here: how many this process sees.
    """
    count = comm.processes().count
    if count == 1 or num_here == 0:
        return tuple(Device(platform, number) for number in range(num_here))
    return tuple(Device(platform, process, process) for process in range(count))


def number_here(device: Device, num_here: int) -> int:
    """The number by which this process knows its accelerator: that of the process among those of its machine.
    Where a launcher shows each process one device, which has the number 0 then, that one is taken.

    Args:
        device: one that this process holds.
        num_here: how many it sees.
    """
    job = comm.processes()
    return device.id if job.count == 1 else job.host_index % num_here


class HostMemory:
    """What backends have in common whose buffers are host memory; see `core.backend.Backend`."""

    name: str

    def devices(self) -> tuple[Device, ...]:
        """The host, as often as the knob `cpu_devices` says."""
        return host_devices(self.name)

    def owns(self, device: Device) -> bool:
        """Whether this process holds the device."""
        return owns(device)

    def why_unavailable(self) -> str | None:
        """It always has a device."""
        return None

    def put(self, host: np.ndarray, device: Device) -> HostBuffer:
        """A copy in C order."""
        return HostBuffer.copy_of(host)

    def adopt(self, host: np.ndarray, device: Device) -> HostBuffer:
        """The memory of the array itself."""
        return HostBuffer.adopt(host)

    def get(self, buffer: HostBuffer, type: ir.ArrayType) -> np.ndarray:
        """The memory itself; the buffer is not reused while the array is alive."""
        return buffer.view(type.shape, type.dtype)

    def copy(self, buffer: HostBuffer, type: ir.ArrayType, device: Device) -> HostBuffer:
        """A copy of the contents."""
        return HostBuffer.copy_of(buffer.view(type.shape, type.dtype))
