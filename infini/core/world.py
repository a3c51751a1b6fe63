"""How many devices and processes there are, and which device is the default one, with JAX's names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from infini.core import backend as backend_, comm, config


def device_count(backend: str | None = None) -> int:
    """Number of devices of a platform, of all processes; the default one's when absent.

    Example:
        >>> import infini
        >>> infini.device_count("cpu") >= 1
        True
    """
    return len(backend_.devices(backend))


def local_device_count(backend: str | None = None) -> int:
    """As `device_count`, devices of this process."""
    return len(backend_.local_devices(backend))


def default_backend() -> str:
    """Platform of the default device, by JAX's name: `cpu`, `gpu`, or the name of another backend."""
    name = backend_.default_device().platform
    return "gpu" if name == "cuda" else name


def process_index() -> int:
    """Number of this process in its job, from 0."""
    return comm.processes().index


def process_count() -> int:
    """Number of processes of the job."""
    return comm.processes().count


def process_indices() -> list[int]:
    """Numbers of all processes of the job."""
    return list(range(process_count()))


@contextlib.contextmanager
def default_device(device: backend_.Device | str | None) -> Iterator[None]:
    """Within a block, put new arrays on a device.

    Args:
        device: a device, or its platform or name such as `"cuda:1"`; None picks the best there is.

    Raises:
        DeviceError: there is no such device.

    Example:
        >>> import infini
        >>> with infini.default_device(infini.devices("reference")[0]):
        ...     print(infini.default_backend())
        reference
    """
    if isinstance(device, backend_.Device):
        name = f"{device.platform}:{backend_.devices(device.platform).index(device)}"
    else:
        name = "cuda" if device == "gpu" else device or ""
    with config.config(device=name):
        backend_.default_device()
        yield
