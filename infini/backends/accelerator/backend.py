"""The backend over drivers: the same for every vendor, so a new one brings a driver and nothing else."""

from __future__ import annotations

import abc
import functools
import threading
from collections.abc import Sequence
from typing import Final

import numpy as np

from infini.backends import routes
from infini.backends.accelerator.aside import Aside
from infini.backends.accelerator.driver import DeviceBuffer, Driver
from infini.backends.accelerator.exchanges import Exchanges, Ground, Here
from infini.backends.accelerator.executable import AcceleratorExecutable, Owner
from infini.backends.accelerator.groups import Found, Groups, Library, Members
from infini.backends.accelerator.lookout import Lookout
from infini.backends.accelerator.lower import ROUTES, has_route, lower
from infini.backends.accelerator.products import Products
from infini.backends.spmd import collectives, devices as spmd_devices, executable as spmd
from infini.backends.spmd.activity import WatchedComm
from infini.compiler import choices, pipeline
from infini.compiler.passes import inline
from infini.compiler.triton.language import SIGNATURE_NEEDS
from infini.compiler.triton.source import SIGNATURE_NAMES
from infini.compiler.triton.target import GENERIC, Target
from infini.core import backend as backend_, errors, ir, primitive
from infini.core.backend import CompileOptions, Device
from infini.core.comm import Comm
from infini.core.mesh import AbstractMesh
from infini.lax import linalg

_ALIGNMENT: Final = 16  # of addresses, which kernels rely on


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
        self._turn = threading.RLock()  # of programs over a mesh; a callback of one may run another
        # Numbers of devices along the axes of a mesh, put on them.
        self._places: dict[tuple[AbstractMesh, Members], dict[tuple[str, int], DeviceBuffer]] = {}

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
        """The devices: in a job of several processes one of each."""
        return spmd_devices.accelerators(self.name, self.num_devices)

    def owns(self, device: Device) -> bool:
        """Whether this process holds the device."""
        return device.platform == self.name and spmd_devices.owns(device)

    def number(self, device: Device) -> int:
        """Number of a device of this process, as the vendor counts."""
        return spmd_devices.number_here(device, self.num_devices)

    def driver(self, number: int) -> Driver:
        """What drives a device of this process.

        Args:
            number: as the vendor counts.

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
        return self.driver(self.number(device)).upload(np.ascontiguousarray(host))

    def adopt(self, host: np.ndarray, device: Device) -> DeviceBuffer:
        """A copy: these devices do not compute on the host's memory."""
        return self.put(host, device)

    def get(self, buffer: DeviceBuffer, type: ir.ArrayType) -> np.ndarray:
        """A copy of the contents on the host; waits for the work that fills them."""
        return self.driver(buffer.device).download(buffer, type)

    def copy(self, buffer: DeviceBuffer, type: ir.ArrayType, device: Device) -> DeviceBuffer:
        """A copy on a device of this backend."""
        source, number = self.driver(buffer.device), self.number(device)
        if number != buffer.device:
            # Streams of two devices are not ordered with each other.
            source.synchronize()
        target = self.driver(number)
        copied = target.duplicate(buffer)
        if number != buffer.device:
            # The memory that is read may be given back, or be a result that is lent.
            target.synchronize()
        return copied

    def synchronize(self, device: Device) -> None:
        """Wait for everything a device has been given."""
        self.driver(self.number(device)).synchronize()

    def compile(self, program: ir.Program, options: CompileOptions) -> backend_.Executable:
        """Steps for a program; machine code is made when it first runs. One for a mesh is partitioned first,
        and its pieces are compiled.

        Raises:
            LoweringError: an operation has no route.
        """
        if options.mesh is not None:
            return spmd.compile(self, program, options)
        return self.compiled_for(self, program, options)

    def compiled_for(
        self, owner: Owner, program: ir.Program, options: CompileOptions
    ) -> AcceleratorExecutable:
        """A program for one device, whose work goes to the streams of an owner.

        Args:
            owner: this backend, or the streams beside its own.
            program: the program.
            options: its options.
        """
        fused = pipeline.run(program, has_route, backend=self.name)
        chooser = choices.Chooser(options)
        products = Products(chooser, self._measuring_driver if self.num_devices else None, self.target)
        block = lower(fused, products, self.target)
        return AcceleratorExecutable(owner, program, fused, block, options, chooser.decisions)

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
        return self.number(device) if device.platform == self.name else 0

    def route(self, program: ir.Program, op: primitive.Primitive) -> backend_.Route:
        """How `op` is computed in a program made of nothing else."""
        types = [v.type for e in program.equations for v in (*e.inputs, *e.outputs)]
        needs = {SIGNATURE_NEEDS.get(SIGNATURE_NAMES.get(t.dtype, "")) for t in types}
        if any(needed is not None and not self.target.has(needed) for needed in needs):
            return "hole"
        return routes.without_program(op, has_mesh=True) or routes.compiled(
            program,
            op,
            passes=lambda program: pipeline.run(program, has_route, backend=self.name),
            has_route=has_route,
            routes=ROUTES,
            inlined=inline.CALLS,
            library=linalg.NAMES,
        )

    # --- programs over a mesh -----------------------------------------------------------------

    def load_collectives(self) -> tuple[Library | None, str | None]:
        """The vendor's library of collectives, or why there is none: then exchanges go through the host."""
        return None, None

    def identity(self, number: int) -> str:
        """What tells a device from others of its machine, whatever numbers processes have for it; nothing
        where it cannot be told.
        """
        return ""

    @functools.cached_property
    def groups(self) -> Groups:
        """The groups of devices that were made with the library of collectives."""
        return Groups(self.name, *self.load_collectives())

    @functools.cached_property
    def _aside(self) -> Aside:
        return Aside(self)

    def direct(
        self, mesh: collectives.Mesh, devices: Sequence[Device], comm: Comm, *, is_ordered: bool
    ) -> Exchanges:
        """What makes the exchanges of one run of a program; see `spmd.direct.Connects`."""
        members = tuple(devices)
        numbers = [self.number(members[rank]) for rank in mesh.local_ranks]
        here = [
            Here(rank, self.driver(number), self._aside.driver(number))
            for rank, number in zip(mesh.local_ranks, numbers, strict=True)
        ]

        def reach(group: Members) -> Found:
            return self.groups.of(group, numbers[0], self.identity)

        ground = Ground(
            devices=members,
            aside=self._aside,
            reach=reach,
            is_ordered=is_ordered,
            lookout=Lookout(comm, self.groups.check) if isinstance(comm, WatchedComm) else None,
            places=self._places.setdefault((mesh.abstract, members), {}),
            abort=self.groups.abort,
            lock=self._turn,
        )
        return Exchanges(ground, mesh.abstract, here)

    def empty(self, type_: ir.ArrayType, device: Device) -> DeviceBuffer:
        """Memory for an array, with any content."""
        return self.driver(self.number(device)).allocate(type_.nbytes)

    def row(self, buffer: DeviceBuffer, type_: ir.ArrayType, number: int) -> DeviceBuffer:
        """A row of an array, where it is; copied where kernels could not read it at its address."""
        nbytes = type_.nbytes
        address = buffer.address + number * nbytes
        if nbytes % _ALIGNMENT == 0:
            return DeviceBuffer(buffer.device, address, nbytes, buffer)
        driver = self.driver(buffer.device)
        copied = driver.allocate(nbytes)
        driver.move(address, copied.address, nbytes)
        return copied

    def put_row(self, buffer: DeviceBuffer, type_: ir.ArrayType, number: int, row: DeviceBuffer) -> None:
        """Write a row of an array."""
        nbytes = type_.nbytes
        self.driver(buffer.device).move(row.address, buffer.address + number * nbytes, nbytes)

    def memory_stats(self, device: Device) -> dict[str, int]:
        """Bytes in use and kept for reuse by the pool."""
        return self.driver(self.number(device)).memory_stats()
