"""Devices of backends that compute on the host: as many per process as the knob `cpu_devices` says,
numbered over the job.
"""

from __future__ import annotations

from infini.core import comm, config
from infini.core.backend import Device


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
