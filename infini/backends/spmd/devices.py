"""Devices and memory of backends that compute on the host: as many devices per process as the knob
`cpu_devices` says, numbered over the job.
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
