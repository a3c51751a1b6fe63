"""The backend over drivers: the same for every vendor, so a new one brings a driver and nothing else."""

from __future__ import annotations

import abc
import threading

import numpy as np

from infini.backends import routes
from infini.backends.accelerator.driver import DeviceBuffer, Driver
from infini.backends.accelerator.executable import AcceleratorExecutable
from infini.backends.accelerator.lower import ROUTES, has_route, lower
from infini.backends.accelerator.products import Products
from infini.compiler import choices, pipeline
from infini.compiler.passes import inline
from infini.compiler.triton.language import SIGNATURE_NEEDS
from infini.compiler.triton.source import SIGNATURE_NAMES
from infini.compiler.triton.target import GENERIC, Target
from infini.core import backend as backend_, errors, ir, primitive
from infini.core.backend import CompileOptions, Device
from infini.lax import linalg


class AcceleratorBackend(abc.ABC):
    """Devices with memory of their own, whose kernels Triton makes.

    A vendor's class says why there is no device, how many there are, and what drives one.

    Args:
        name: of the backend, and of its devices.
        target: what kernels are written for.
    """

    def __init__(self, name: str, target: Target = GENERIC) -> None:
        self.name, self._target = name, target
        self._lock = threading.Lock()  # a device has one driver, and so one order of work
        self._drivers: dict[int, Driver] = {}
        self._measuring: dict[int, Driver] = {}

    # --- what a vendor says -------------------------------------------------------------------

    @property
    def target(self) -> Target:
        """What kernels are written for. A program runs on whichever device its inputs are, so kernels use
        nothing that one of them lacks.
        """
        return self._target

    @abc.abstractmethod
    def why_unavailable(self) -> str | None:
        """Why there is no device to use; None when there is one. Asked often, so it is found once."""

    @property
    @abc.abstractmethod
    def num_devices(self) -> int:
        """How many devices there are; 0 when there is a reason why not."""

    @abc.abstractmethod
    def make_driver(self, number: int) -> Driver:
        """A driver of a device that exists."""

    # --- the protocol of backends -------------------------------------------------------------

    def devices(self) -> tuple[Device, ...]:
        """The devices."""
        return tuple(Device(self.name, i) for i in range(self.num_devices))

    def owns(self, device: Device) -> bool:
        """Whether this process holds the device."""
        return device.platform == self.name and device.process_index == 0

    def driver(self, number: int) -> Driver:
        """What drives a device.

        Raises:
            DeviceError: there is no such device.
        """
        if number not in self._drivers:
            if number >= self.num_devices:
                raise errors.DeviceError(
                    f"there is no device {self.name}:{number}",
                    got=self.why_unavailable() or f"{self.num_devices} devices",
                )
            with self._lock:
                if number not in self._drivers:
                    self._drivers[number] = self.make_driver(number)
        return self._drivers[number]

    def put(self, host: np.ndarray, device: Device) -> DeviceBuffer:
        """A copy in C order on a device."""
        return self.driver(device.id).upload(np.ascontiguousarray(host))

    def adopt(self, host: np.ndarray, device: Device) -> DeviceBuffer:
        """A copy: these devices do not compute on the host's memory."""
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
        target = self.driver(device.id)
        copied = target.duplicate(buffer)
        if device.id != buffer.device:
            # The memory that is read may be given back, or be a result that is lent.
            target.synchronize()
        return copied

    def synchronize(self, device: Device) -> None:
        """Wait for everything a device has been given."""
        self.driver(device.id).synchronize()

    def compile(self, program: ir.Program, options: CompileOptions) -> AcceleratorExecutable:
        """Steps for a program; machine code is made when it first runs.

        Raises:
            LoweringError: an operation has no route, or the program is split over a mesh, which is not built
                yet.
        """
        if options.mesh is not None:
            raise errors.LoweringError(
                f"programs over several devices of {self.name} are not built yet",
                got=str(options.mesh),
                fix="use the backend cpu",
            )
        fused = pipeline.run(program, has_route, backend=self.name)
        chooser = choices.Chooser(options)
        products = Products(chooser, self._measuring_driver if self.num_devices else None, self.target)
        block = lower(fused, products, self.target)
        return AcceleratorExecutable(self, program, fused, block, options, chooser.decisions)

    def _measuring_driver(self) -> Driver:
        """A driver of the default device with a stream of its own: what other threads start meanwhile must
        not become part of what is measured.
        """
        number = self.default_device()
        driver = self.driver(number)
        with self._lock:
            if number not in self._measuring:
                self._measuring[number] = driver.beside()
        return self._measuring[number]

    def default_device(self) -> int:
        """Number of the default device, for programs without inputs; 0 when the default is another kind."""
        device = backend_.default_device()
        return device.id if device.platform == self.name else 0

    def route(self, program: ir.Program, op: primitive.Primitive) -> backend_.Route:
        """How `op` is computed in a program made of nothing else."""
        types = [v.type for e in program.equations for v in (*e.inputs, *e.outputs)]
        needs = {SIGNATURE_NEEDS.get(SIGNATURE_NAMES.get(t.dtype, "")) for t in types}
        if any(needed is not None and not self.target.has(needed) for needed in needs):
            return "hole"
        return routes.without_program(op, has_mesh=False) or routes.compiled(
            program,
            op,
            passes=lambda program: pipeline.run(program, has_route, backend=self.name),
            has_route=has_route,
            routes=ROUTES,
            inlined=inline.CALLS,
            library=linalg.NAMES,
        )

    def memory_stats(self, device: Device) -> dict[str, int]:
        """Bytes in use and kept for reuse by the pool."""
        return self.driver(device.id).memory_stats()
