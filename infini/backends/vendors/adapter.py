"""An adapter: the tables of a vendor, and the backend that they make.

Making one loads nothing. The first question about devices looks for the runtime; where it is there the tables
are loaded, and where there is a device what compiles programs. A process without one pays for the look and
nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from infini.backends.spmd import devices
from infini.backends.vendors.places import Places
from infini.core import backend as backend_, errors, ir, primitive
from infini.core.backend import Buffer, CompileOptions, Device

if TYPE_CHECKING:
    from infini.backends.vendors.backend import VendorBackend
    from infini.backends.vendors.comm import Collectives
    from infini.backends.vendors.driver import VendorDriver
    from infini.backends.vendors.gemm import GemmLibrary
    from infini.backends.vendors.runtime import Runtime
    from infini.backends.vendors.tables import CollectiveTable, Compiler, GemmTable, RuntimeTable
    from infini.compiler.triton.target import Target

API_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Adapter:
    """Everything that is known of a vendor's devices.

    Args:
        name: of the backend, such as `metax`; its devices are `metax:0`, `metax:1` ...
        vendor: his name, for people.
        places: where his libraries are.
        runtime: how his runtime is called.
        target: what kernels are written and compiled for; its `arch` is that of no device.
        compiler: what makes kernels.
        arch: gives the kind of processor of a device, as the compiler names it.
        collectives: his library of collectives; None where there is none.
        gemm: his BLAS, where it has cuBLAS's calls; None makes every product a kernel.
        api_version: of these tables.
    """

    name: str
    vendor: str
    places: Places
    runtime: RuntimeTable
    target: Target
    compiler: Compiler
    arch: Callable[[Runtime, int], int | str]
    collectives: CollectiveTable | None = None
    gemm: GemmTable | None = None
    api_version: int = API_VERSION


@dataclass(frozen=True, slots=True)
class Sought:
    """An adapter whose tables are loaded when there is a runtime to call by them.

    Args:
        name: of the backend.
        vendor: his name, for people.
        places: where his libraries are.
        libraries: file names of his runtime, best first.
        tables: name of the module whose `ADAPTER` is the adapter.
    """

    name: str
    vendor: str
    places: Places
    libraries: tuple[str, ...]
    tables: str


class AdapterBackend:
    """The backend of an adapter; see `core.backend.Backend`.

    Args:
        adapter: the tables, or where they are.
    """

    def __init__(self, adapter: Adapter | Sought) -> None:
        self.name, self._given = adapter.name, adapter

    @functools.cached_property
    def adapter(self) -> Adapter:
        """The tables."""
        if isinstance(self._given, Adapter):
            return self._given
        found: Adapter = importlib.import_module(self._given.tables).ADAPTER
        return found

    # --- libraries ----------------------------------------------------------------------------

    @functools.cached_property
    def _probe(self) -> tuple[Runtime | None, int, str | None]:
        """The runtime, the number of devices, and why there are none. Found once."""
        given = self._given
        if isinstance(given, Sought) and (missing := given.places.why_missing(given.libraries)) is not None:
            return None, 0, f"the runtime of {given.vendor}: {missing}"
        from infini.backends.vendors import libraries
        from infini.backends.vendors.runtime import Runtime
        from infini.backends.vendors.tables import RUNTIME_OPERATIONS

        adapter = self.adapter
        if adapter.api_version != API_VERSION:
            return (
                None,
                0,
                f"its tables are of version {adapter.api_version}; this infini takes {API_VERSION}",
            )
        library, reason = libraries.load(adapter.runtime, RUNTIME_OPERATIONS, adapter.places)
        if library is None:
            return None, 0, f"the runtime of {adapter.vendor}: {reason}"
        try:
            runtime = Runtime(adapter.vendor, adapter.runtime, library)
            count = runtime.device_count()
        except errors.DeviceError as error:
            return None, 0, f"{error.what} ({error.got}) with {library.path}; is the driver loaded?"
        if count == 0:
            return None, 0, f"{library.path} sees no device; is the driver loaded, and are devices visible?"
        return runtime, count, None

    def why_no_runtime(self) -> str | None:
        """Why the runtime gives no device: which library was looked for where, what to install."""
        return self._probe[2]

    def why_no_compiler(self) -> str | None:
        """Why kernels cannot be compiled here; None when they can."""
        return self.adapter.compiler.why_unavailable(self.adapter.target)

    @property
    def num_devices(self) -> int:
        """How many devices the runtime sees."""
        return self._probe[1]

    @property
    def runtime(self) -> Runtime:
        """The runtime.

        Raises:
            DeviceError: there is no device.
        """
        runtime, _, reason = self._probe
        if runtime is None:
            raise errors.DeviceError(f"the backend {self.name!r} has no device here", got=reason)
        return runtime

    def target(self, device: int) -> Target:
        """What kernels of a device are compiled for."""
        self.runtime.use(device)
        return dataclasses.replace(self.adapter.target, arch=self.adapter.arch(self.runtime, device))

    @functools.cached_property
    def gemm(self) -> GemmLibrary | None:
        """The vendor's library of products; None where he has none, or it is not installed."""
        table = self.adapter.gemm
        if table is None:
            return None
        from infini.backends.vendors import libraries
        from infini.backends.vendors.gemm import GemmLibrary
        from infini.backends.vendors.tables import GEMM_OPERATIONS

        library, _ = libraries.load(table, GEMM_OPERATIONS, self.adapter.places)
        return None if library is None else GemmLibrary(self.adapter.vendor, table, library)

    @functools.cached_property
    def _collectives(self) -> tuple[Collectives | None, str | None]:
        table = self.adapter.collectives
        if table is None:
            return None, f"the adapter of {self.adapter.vendor} has no library of collectives"
        from infini.backends.vendors.comm import Collectives

        return Collectives.load(self.runtime, table, self.adapter.places)

    def find_collectives(self) -> tuple[Collectives | None, str | None]:
        """The vendor's library of collectives, or why there is none."""
        return self._collectives

    def collectives(self) -> Collectives:
        """The vendor's library of collectives.

        Raises:
            DeviceError: there is none here; the message says where it was looked for.
        """
        found, reason = self._collectives
        if found is None:
            raise errors.DeviceError(f"the backend {self.name!r} has no collectives here", got=reason)
        return found

    # --- the protocol of backends -------------------------------------------------------------

    @functools.cached_property
    def programs(self) -> VendorBackend:
        """What compiles and runs programs, loaded when something is asked of it."""
        from infini.backends.vendors.backend import VendorBackend

        return VendorBackend(self)

    @functools.cached_property
    def _reason(self) -> str | None:
        reason = self.why_no_runtime()
        if reason is None and (reason := self.why_no_compiler()) is not None:
            return f"{self.num_devices} found, and no compiler for their kernels: {reason}"
        return reason

    def why_unavailable(self) -> str | None:
        """Why there is no device that can run programs: its runtime is missing, or its Triton."""
        return self._reason

    def devices(self) -> tuple[Device, ...]:
        """The devices; none when they cannot run programs. In a job of several processes one of each."""
        return devices.accelerators(self.name, 0 if self._reason else self.num_devices)

    def owns(self, device: Device) -> bool:
        """Whether this process holds the device."""
        return device.platform == self.name and devices.owns(device)

    def driver(self, number: int) -> VendorDriver:
        """What drives a device."""
        return self.programs.driver(number)  # type: ignore[return-value]  # VendorBackend makes no others

    def put(self, host: np.ndarray, device: Device) -> Buffer:
        """A copy in C order on a device."""
        return self.programs.put(host, device)

    def adopt(self, host: np.ndarray, device: Device) -> Buffer:
        """A copy: these devices do not compute on the host's memory."""
        return self.programs.put(host, device)

    def get(self, buffer: Buffer, type: ir.ArrayType) -> np.ndarray:
        """A copy of the contents on the host."""
        return self.programs.get(buffer, type)

    def copy(self, buffer: Buffer, type: ir.ArrayType, device: Device) -> Buffer:
        """A copy on a device of this backend."""
        return self.programs.copy(buffer, type, device)

    def synchronize(self, device: Device) -> None:
        """Wait for everything a device has been given."""
        self.programs.synchronize(device)

    def compile(self, program: ir.Program, options: CompileOptions) -> backend_.Executable:
        """Steps for a program; see `AcceleratorBackend.compile`."""
        return self.programs.compile(program, options)

    def route(self, program: ir.Program, op: primitive.Primitive) -> backend_.Route:
        """How `op` is computed in a program made of nothing else."""
        return self.programs.route(program, op)

    def memory_stats(self, device: Device) -> dict[str, int]:
        """Bytes in use and kept for reuse by the pool, and of the device."""
        return self.programs.memory_stats(device)
