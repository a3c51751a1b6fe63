"""What drives one device: the protocol between the executable, which knows steps and addresses, and a
vendor's runtime, which knows calls.

All work of a driver goes to one stream of its own, in order; memory that was given back may therefore be used
again by what is started later. Streams of two drivers are ordered by events.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from infini.compiler.triton.source import TritonSource
from infini.core.ir import ArrayType


@dataclass(slots=True, weakref_slot=True)
class DeviceBuffer:
    """Memory of a device; it goes back to the pool when the last reference goes."""

    device: int
    address: int
    nbytes: int
    memory: Any  # Any: what owns the memory, such as CuPy's pointer
    _sharers: list[weakref.ref[DeviceBuffer]] = field(default_factory=list, repr=False, compare=False)

    def alias(self) -> DeviceBuffer:
        """The same memory as another buffer: while both are there, neither is overwritten."""
        other = DeviceBuffer(self.device, self.address, self.nbytes, self.memory, self._sharers)
        self._sharers += (
            [weakref.ref(self), weakref.ref(other)] if not self._sharers else [weakref.ref(other)]
        )
        return other

    @property
    def has_aliases(self) -> bool:
        """Whether another buffer has this memory."""
        return sum(ref() is not None for ref in self._sharers) > 1


@dataclass(frozen=True, slots=True)
class Graph:
    """Recorded work, and the memory that was allocated for it alone."""

    handle: Any  # Any: the graph of the driver's runtime
    memory: tuple[DeviceBuffer, ...]


class Driver(Protocol):
    """Memory, launches and products of one device, in the order of one stream."""

    @property
    def number(self) -> int:
        """Number of the device."""

    @property
    def facts(self) -> tuple[str, ...]:
        """What decides how fast the device computes, besides the program: its name, and versions."""

    @property
    def stream_address(self) -> int:
        """The stream as other libraries of the vendor take it."""

    @property
    def has_graphs(self) -> bool:
        """Whether launches can be recorded and replayed: `capturing` and `replay` are there."""

    @property
    def gemm_library(self) -> str | None:
        """Name of the library behind `gemm`; None where there is none, and products are kernels."""

    # --- memory -------------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> DeviceBuffer:
        """Fresh memory; a buffer at address 0 for no bytes.

        Raises:
            OutOfMemoryError: there is not enough.
        """

    def upload(self, host: np.ndarray) -> DeviceBuffer:
        """A copy of a dense host array; the host's may change when this returns."""

    def fill(self, address: int, host: np.ndarray) -> None:
        """Copy a dense host array to an address of the device; waits for it."""

    def download(self, buffer: DeviceBuffer, type_: ArrayType) -> np.ndarray:
        """The contents as a host array; waits for them."""

    def read(self, address: int, dtype: np.dtype) -> np.ndarray:
        """A scalar of the device; waits for it."""

    def duplicate(self, buffer: DeviceBuffer) -> DeviceBuffer:
        """A copy of a buffer of any device of this kind on this one."""

    def move(self, source: int, target: int, nbytes: int) -> None:
        """Copy bytes between addresses of devices, in the order of the stream."""

    def synchronize(self) -> None:
        """Wait for everything that was started."""

    # --- order between streams ----------------------------------------------------------------

    def record(self) -> Any:  # Any: an event of the runtime
        """An event that happens when everything has ended that was started."""

    def wait(self, event: Any) -> None:  # Any: what `record` of a driver gave
        """Let what is started from now on wait for an event of another stream. The host does not wait."""

    def has_happened(self, event: Any) -> bool:  # Any: as above
        """Whether an event has happened. The host does not wait."""

    def discard(self, event: Any) -> None:  # Any: as above
        """Give back an event that no stream was told to wait for."""

    def memory_stats(self) -> dict[str, int]:
        """Bytes in use and kept for reuse."""

    # --- work ---------------------------------------------------------------------------------

    def function(self, source: TritonSource) -> Any:  # Any: what `launch` of the same driver takes
        """The kernel of a source, compiled and loaded once.

        Raises:
            LoweringError: it cannot be compiled for this device.
        """

    def launch(self, function: Any, grid: Sequence[int], arguments: Sequence[float]) -> None:  # Any: as above
        """Start a kernel.

        Args:
            function: what `function` gave.
            grid: number of programs along x, y and z; nothing happens when one is 0.
            arguments: an address or a number per parameter.
        """

    def gemm(self, numbers: Sequence[int], compute: int, scalar: np.dtype) -> None:
        """Start a product by the library; see `accelerator.gemm.Gemm.numbers`."""

    def beside(self) -> Driver:
        """The same device and kernels with another stream: what other threads start meanwhile is no part of
        what is recorded or measured there.
        """

    def timer(self, work: Callable[[], None], repeats: int) -> Callable[[], float]:
        """A function that runs some work on the device and gives the seconds of one run."""

    def capturing(self, captured: list[Graph]) -> contextlib.AbstractContextManager[None]:
        """Record the launches of the block instead of running them; the graph is appended to `captured`."""

    def replay(self, graph: Graph) -> None:
        """Run a recorded graph."""
