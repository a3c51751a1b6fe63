"""NVIDIA GPUs: memory, streams and launches by CuPy, kernels by Triton compiled ahead of time, products by
cuBLAS.

A program becomes the same steps and the same memory plan as on the CPU; `executable` walks them on the host,
or replays them as a CUDA graph. What has run on hardware and what has not is said in `docs/design` and by
`bench/gpu.sh`: this code is tested with a stand-in for CuPy whose launches go through Triton's interpreter.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence

import numpy as np

from infini.backends import routes
from infini.backends.cuda.driver import DeviceBuffer, Driver, Runtime, load_runtime
from infini.backends.cuda.executable import CudaExecutable, default_device
from infini.backends.cuda.lower import ROUTES, has_route, lower
from infini.backends.cuda.products import Products
from infini.compiler import choices, pipeline
from infini.compiler.passes import inline
from infini.core import backend as backend_, errors, ir, primitive
from infini.core.backend import CompileOptions, Device

_INSTALL = "pip install 'infini[cuda12]' or 'infini[cuda13]', by the version of the driver"


class CudaBackend:
    """The GPUs that CuPy sees."""

    name = "cuda"

    def __init__(self) -> None:
        self._drivers: dict[int, Driver] = {}
        self._measuring: dict[int, Driver] = {}

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

    def devices(self) -> tuple[Device, ...]:
        """The GPUs."""
        runtime, _ = self._probe
        return () if runtime is None else tuple(Device(self.name, i) for i in range(runtime.num_devices))

    def owns(self, device: Device) -> bool:
        """Whether this process holds the device."""
        return device.platform == self.name and device.process_index == 0

    def driver(self, number: int) -> Driver:
        """What drives a device.

        Raises:
            DeviceError: there is no such device.
        """
        runtime, reason = self._probe
        if runtime is None or number >= runtime.num_devices:
            raise errors.DeviceError(f"there is no device cuda:{number}", got=reason)
        if number not in self._drivers:
            self._drivers[number] = Driver(runtime, number)
        return self._drivers[number]

    def put(self, host: np.ndarray, device: Device) -> DeviceBuffer:
        """A copy in C order on a device."""
        return self.driver(device.id).upload(np.ascontiguousarray(host))

    def adopt(self, host: np.ndarray, device: Device) -> DeviceBuffer:
        """A copy: a GPU does not compute on the host's memory."""
        return self.put(host, device)

    def get(self, buffer: DeviceBuffer, type: ir.ArrayType) -> np.ndarray:
        """A copy of the contents on the host; waits for the work that fills them."""
        return self.driver(buffer.device).download(buffer, type)

    def copy(self, buffer: DeviceBuffer, type: ir.ArrayType, device: Device) -> DeviceBuffer:
        """A copy on a device of this backend."""
        source = self.driver(buffer.device)
        if device.id != buffer.device:
            # Streams of two devices are not ordered with each other.
            source.synchronize()
        return self.driver(device.id).duplicate(buffer)

    dlpack_kind = 2  # kDLCUDA

    def address(self, buffer: DeviceBuffer) -> int:
        """Address of a buffer in device memory, once the work that fills it is done."""
        self.driver(buffer.device).synchronize()
        return buffer.address

    def adopt_address(self, address: int, nbytes: int, device: Device, owner: object) -> DeviceBuffer:
        """A buffer over memory of another library, which its stream has filled."""
        self.driver(device.id).synchronize()
        return DeviceBuffer(device.id, address, nbytes, owner)

    def synchronize(self, device: Device) -> None:
        """Wait for everything a device has been given."""
        self.driver(device.id).synchronize()

    def compile(self, program: ir.Program, options: CompileOptions) -> CudaExecutable:
        """Steps for a program; machine code is made when it first runs.

        Raises:
            LoweringError: an operation has no route, or the program is split over a mesh, which is not built
                yet.
        """
        if options.mesh is not None:
            raise errors.LoweringError(
                "programs over several GPUs are not built yet",
                got=str(options.mesh),
                fix="use the backend cpu",
            )
        fused = pipeline.run(program, has_route, backend=self.name)
        chooser = choices.Chooser(options)
        has_device = self._probe[0] is not None
        products = Products(chooser, self._measuring_driver if has_device else None)
        block = lower(fused, products)
        return CudaExecutable(self.driver, program, fused, block, options, chooser.decisions)

    def _measuring_driver(self) -> Driver:
        """A driver of the default device with a stream of its own: what other threads start meanwhile must
        not become part of what is measured.
        """
        number = default_device()
        if number not in self._measuring:
            self._measuring[number] = self.driver(number).beside()
        return self._measuring[number]

    def route(self, program: ir.Program, op: primitive.Primitive) -> backend_.Route:
        """How `op` is computed in a program made of nothing else."""
        return routes.without_program(op, has_mesh=False) or routes.compiled(
            program,
            op,
            passes=lambda program: pipeline.run(program, has_route, backend=self.name),
            has_route=has_route,
            routes=ROUTES,
            inlined=inline.CALLS,
        )

    def memory_stats(self, device: Device) -> dict[str, int]:
        """Bytes in use and kept for reuse by CuPy's pool."""
        return self.driver(device.id).memory_stats()


@functools.cache
def backend() -> backend_.Backend:
    """The backend of this module, for the registry."""
    return CudaBackend()


__all__: Sequence[str] = ("CudaBackend", "backend")
