"""One device of a vendor as the executable wants it: an `accelerator.Driver` over the runtime's table.

Everything goes to one stream. Copies from the host wait, since the host's memory is not the driver's; copies
on the device do not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

import numpy as np

from infini.backends.accelerator.driver import DeviceBuffer, Graph
from infini.backends.vendors.adapter import AdapterBackend
from infini.backends.vendors.pool import Pool
from infini.backends.vendors.tables import Kernel
from infini.compiler.triton.source import TritonSource, pack
from infini.core import errors
from infini.core.ir import ArrayType

_MOST_EVENTS: Final = 4096  # that wait to be given back


@dataclasses.dataclass(frozen=True, slots=True)
class Function:
    """A kernel loaded on a device.

    Args:
        handle: of the runtime.
        kernel: its binary and how to launch it.
    """

    handle: int
    kernel: Kernel


class VendorDriver:
    """Memory, launches and products of one device.

    Args:
        card: the vendor's adapter, with its libraries.
        number: the device.
        functions: kernels that are loaded there already.
    """

    has_graphs = False

    def __init__(
        self, card: AdapterBackend, number: int, functions: dict[str, Function] | None = None
    ) -> None:
        self.card, self.number, self.runtime = card, number, card.runtime
        self.runtime.use(number)
        self.target = card.target(number)
        self.stream = self.runtime.stream_create()
        self.pool = Pool(self.runtime, number)
        self._functions = {} if functions is None else functions
        self._loading = threading.Lock()
        self._waited: list[int] = []  # events that the stream waits for, given back when it has done so

    @property
    def stream_address(self) -> int:
        """The stream."""
        return self.stream

    @property
    def facts(self) -> tuple[str, ...]:
        """The device and the library of products."""
        library = self.card.gemm
        return (
            f"{self.runtime.name(self.number)} ({self.target.arch})",
            f"products by {library.name if library else 'kernels'}",
        )

    @property
    def gemm_library(self) -> str | None:
        """Name of the vendor's library of products."""
        return self.card.gemm.name if self.card.gemm else None

    def beside(self) -> VendorDriver:
        """The same device and kernels with another stream, and memory of its own."""
        return VendorDriver(self.card, self.number, self._functions)

    # --- memory -------------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> DeviceBuffer:
        """Memory of the pool; none at all for no bytes.

        Raises:
            OutOfMemoryError: there is not enough.
        """
        if nbytes == 0:
            return DeviceBuffer(self.number, 0, 0, None)
        block = self.pool.take(nbytes)
        return DeviceBuffer(self.number, block.address, nbytes, block)

    def upload(self, host: np.ndarray) -> DeviceBuffer:
        """A copy of a dense host array."""
        buffer = self.allocate(host.nbytes)
        self.fill(buffer.address, host)
        return buffer

    def fill(self, address: int, host: np.ndarray) -> None:
        """Copy a dense host array to an address of the device; waits for it."""
        self.runtime.use(self.number)
        source = host.__array_interface__["data"][0]
        self.runtime.copy_async(address, source, host.nbytes, "h2d", self.stream)
        if host.nbytes:
            self._finish()

    def download(self, buffer: DeviceBuffer, type_: ArrayType) -> np.ndarray:
        """The contents as a host array; waits for them."""
        host = np.empty(type_.shape, type_.dtype)
        if host.nbytes:
            self.runtime.use(self.number)
            target = host.__array_interface__["data"][0]
            self.runtime.copy_async(target, buffer.address, host.nbytes, "d2h", self.stream)
            self._finish()
        return host

    def read(self, address: int, dtype: np.dtype) -> np.ndarray:
        """A scalar of the device; waits for it."""
        return self.download(DeviceBuffer(self.number, address, dtype.itemsize, None), ArrayType((), dtype))

    def duplicate(self, buffer: DeviceBuffer) -> DeviceBuffer:
        """A copy of a buffer on this device. From another device, which has to be done with it, the bytes go
        through the host: not all of them can read each other's memory.
        """
        copied = self.allocate(buffer.nbytes)
        if buffer.device == self.number:
            self.move(buffer.address, copied.address, buffer.nbytes)
        elif buffer.nbytes:
            host = np.empty(buffer.nbytes, np.uint8)
            self.runtime.use(buffer.device)
            self.runtime.copy(host.ctypes.data, buffer.address, host.nbytes, "d2h")
            self.fill(copied.address, host)
        return copied

    def move(self, source: int, target: int, nbytes: int) -> None:
        """Copy bytes of the device, in the order of the stream."""
        if nbytes and source != target:
            self.runtime.use(self.number)
            self.runtime.copy_async(target, source, nbytes, "d2d", self.stream)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self.runtime.use(self.number)
        self._finish()

    def _finish(self) -> None:
        """Wait for the stream, then give back the events that it has waited for."""
        waited, self._waited = self._waited, []
        self.runtime.stream_synchronize(self.stream)
        for event in waited:
            self.runtime.event_destroy(event)

    def record(self) -> int:
        """An event of the stream."""
        self.runtime.use(self.number)
        event = self.runtime.event_create()
        self.runtime.event_record(event, self.stream)
        return event

    def wait(self, event: int) -> None:
        """Let the stream wait for an event; each is waited for once."""
        self.runtime.use(self.number)
        self.runtime.stream_wait_event(self.stream, event)
        self._waited.append(event)
        if len(self._waited) > _MOST_EVENTS:
            self._finish()

    def has_happened(self, event: int) -> bool:
        """Whether an event has happened."""
        self.runtime.use(self.number)
        return self.runtime.event_query(event)

    def discard(self, event: int) -> None:
        """Destroy an event."""
        self.runtime.use(self.number)
        self.runtime.event_destroy(event)

    def memory_stats(self) -> dict[str, int]:
        """Bytes of the pool, and of the device where the runtime says so."""
        pool = self.pool
        found = {
            "bytes_in_use": pool.bytes_in_use,
            "peak_bytes_in_use": pool.peak_bytes_in_use,
            "bytes_kept": pool.bytes_kept,
        }
        self.runtime.use(self.number)
        info = self.runtime.memory_info()
        return found if info is None else {**found, "bytes_free": info[0], "bytes_limit": info[1]}

    # --- kernels ------------------------------------------------------------------------------

    def function(self, source: TritonSource) -> Function:
        """The kernel of a source, compiled and loaded once per device.

        Raises:
            LoweringError: the vendor's Triton is not here, or refuses it.
        """
        found = self._functions.get(source.key)
        if found is None:
            with self._loading:
                found = self._functions.get(source.key)
                if found is None:
                    found = self._functions[source.key] = self._load(source)
        return found

    def _load(self, source: TritonSource) -> Function:
        kernel = self.card.adapter.compiler.compile(source, self.target)
        self.runtime.use(self.number)
        return Function(self.runtime.load(kernel), kernel)

    def launch(self, function: Function, grid: Sequence[int], arguments: Sequence[float]) -> None:
        """Start a kernel."""
        if 0 in grid:
            return
        kernel, (x, y, z) = function.kernel, (*grid, 1, 1)[:3]
        values = zip(kernel.parameters, arguments, strict=True)
        packed = [pack(kind, value).tobytes() for kind, value in values]
        scratch = self.allocate(kernel.scratch_bytes * x * y * z)
        self.runtime.use(self.number)
        block = (self.target.warp_size * kernel.num_warps, 1, 1)
        self.runtime.launch(
            function.handle,
            kernel,
            (x, y, z),
            packed,
            block=block,
            scratch=scratch.address,
            stream=self.stream,
        )

    # --- products -----------------------------------------------------------------------------

    def gemm(self, numbers: Sequence[int], compute: int, scalar: np.dtype) -> None:
        """A product by the vendor's library.

        Raises:
            UnsupportedError: there is none.
        """
        if self.card.gemm is None:
            raise errors.UnsupportedError(f"{self.card.name} has no library for products")
        self.card.gemm.start(self, numbers, compute, scalar)

    # --- measuring and graphs -----------------------------------------------------------------

    def timer(self, work: Callable[[], None], repeats: int) -> Callable[[], float]:
        """A function that runs some work and gives the seconds of one run, by events of the stream."""
        runtime = self.runtime

        def measure() -> float:
            runtime.use(self.number)
            start, end = runtime.event_create(), runtime.event_create()
            try:
                runtime.event_record(start, self.stream)
                for _ in range(repeats):
                    work()
                runtime.event_record(end, self.stream)
                runtime.event_synchronize(end)
                return runtime.event_elapsed_ms(start, end) / 1e3 / repeats
            finally:
                runtime.event_destroy(start)
                runtime.event_destroy(end)

        return measure

    def capturing(self, captured: list[Graph]) -> contextlib.AbstractContextManager[None]:
        """Not offered: `has_graphs` says so."""
        self._refuse_graphs()

    def replay(self, graph: Graph) -> None:
        """Not offered: `has_graphs` says so."""
        self._refuse_graphs()

    def _refuse_graphs(self) -> NoReturn:
        raise errors.UnsupportedError(f"the driver of {self.card.name} records no graphs")
