"""NVIDIA GPUs: memory, streams and launches by CuPy, kernels by Triton compiled ahead of time, products by
cuBLAS.

A program becomes the same steps and the same memory plan as on the CPU; `accelerator.executable` walks them
on the host, or replays them as a CUDA graph. What has run on hardware and what has not is said in
`docs/design` and by `bench/gpu.sh`: this code is tested with a stand-in for CuPy whose launches go through
Triton's interpreter.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Sequence

from infini.backends.accelerator.backend import AcceleratorBackend
from infini.backends.accelerator.driver import DeviceBuffer
from infini.backends.cuda.driver import Driver, Runtime, load_runtime, target_of
from infini.backends.cuda.nccl import Nccl
from infini.compiler.triton.target import GENERIC, MIN_CAPABILITY, Target
from infini.core import backend as backend_, errors
from infini.core.backend import Device

_INSTALL = "pip install 'infini[cuda12]' or 'infini[cuda13]', by the version of the driver"


class CudaBackend(AcceleratorBackend):
    """The GPUs that CuPy sees."""

    def __init__(self) -> None:
        super().__init__("cuda")

    @functools.cached_property
    def _probe(self) -> tuple[Runtime | None, str | None]:
        """What loads CuPy, or why that is not possible. Found once; finding it needs no driver. Triton is
        asked for when something is compiled: kernels that were built ahead of time run without it.
        """
        if importlib.util.find_spec("cupy") is None:
            return None, f"cupy is not installed; {_INSTALL}"
        return load_runtime()

    def why_unavailable(self) -> str | None:
        """Why there is no GPU to use; None when there is one."""
        return self._probe[1]

    @property
    def num_devices(self) -> int:
        """How many GPUs CuPy sees."""
        runtime, _ = self._probe
        return 0 if runtime is None else runtime.num_devices

    @functools.cached_property
    def target(self) -> Target:
        """What all of the GPUs have that kernels are compiled for: of several kinds, the oldest one's arch,
        and what none of them lacks.
        """
        runtime, _ = self._probe
        if runtime is None:
            return GENERIC
        every = [target_of(runtime, number) for number in range(runtime.num_devices)]
        found = [target for target in every if int(target.arch) >= MIN_CAPABILITY] or every
        return dataclasses.replace(
            min(found, key=lambda target: int(target.arch)),
            shared_bytes=min(target.shared_bytes for target in found),
            capabilities=frozenset.intersection(*(target.capabilities for target in found)),
        )

    def make_driver(self, number: int) -> Driver:
        """A driver by CuPy.

        Raises:
            DeviceError: there is no GPU.
        """
        runtime, reason = self._probe
        if runtime is None:
            raise errors.DeviceError(f"there is no device cuda:{number}", got=reason)
        return Driver(runtime, number)

    def load_collectives(self) -> tuple[Nccl | None, str | None]:
        """NCCL, through CuPy."""
        runtime, reason = self._probe
        return (None, reason) if runtime is None else Nccl.load(runtime.cupy)

    def identity(self, number: int) -> str:
        """Where the GPU is on the bus of its machine."""
        runtime, _ = self._probe
        return "" if runtime is None else str(runtime.cupy.cuda.runtime.deviceGetPCIBusId(number))

    dlpack_kind = 2  # kDLCUDA

    def dlpack_number(self, device: Device) -> int:
        """CUDA's number of a GPU in this process."""
        return self.number(device)

    def dlpack_device(self, number: int) -> Device:
        """The GPU with a number of CUDA in this process."""
        mine = (device for device in self.devices() if self.owns(device) and self.number(device) == number)
        return next(mine, Device(self.name, number))

    def address(self, buffer: DeviceBuffer) -> int:
        """Address of a buffer in device memory, once the work that fills it is done."""
        self.driver(buffer.device).synchronize()
        return buffer.address

    def adopt_address(self, address: int, nbytes: int, device: Device, owner: object) -> DeviceBuffer:
        """A buffer over memory of another library, which its stream has filled."""
        self.driver(self.number(device)).synchronize()
        return DeviceBuffer(self.number(device), address, nbytes, owner)


@functools.cache
def backend() -> backend_.Backend:
    """The backend of this module, for the registry."""
    return CudaBackend()


__all__: Sequence[str] = ("CudaBackend", "backend")
