"""One GPU through CuPy: the only file that imports it, and only when a device is asked for.

All work of a device goes to one stream, so memory of the pool can be given back while kernels still use it.
Launches pack the parameters by the types of the Triton signature, then two pointers that Triton adds: global
and profiling scratch memory. Written against CuPy 14 and Triton 3.6 to 3.9.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from infini.backends.accelerator.driver import DeviceBuffer, Graph
from infini.compiler.triton.source import TritonSource, pack
from infini.compiler.triton.target import Target, nvidia
from infini.core import errors
from infini.core.ir import ArrayType

_WARP: Final = 32
# Dynamic shared memory a kernel may have without asking, and the attribute by which it asks for more.
_DEFAULT_SHARED_BYTES: Final = 48 << 10
_MAX_DYNAMIC_SHARED_SIZE: Final = 8
_MAX_SHARED_BYTES: Final = 97  # attribute of a device: the most that a kernel may ask for


@dataclass(frozen=True, slots=True)
class Runtime:
    """CuPy, and what it says about this machine."""

    cupy: Any  # Any: a module without types
    num_devices: int
    driver_version: int


def load_runtime() -> tuple[Runtime | None, str | None]:
    """CuPy with a usable device, or why there is none. `is_available` is asked first: it fails nowhere."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        return None, f"cupy cannot be loaded: {error}"
    if not cupy.cuda.is_available():
        version = cupy.cuda.runtime.driverGetVersion()
        found = f"its CUDA version is {version}" if version else "no NVIDIA driver was found"
        return None, f"cupy sees no GPU ({found}); install a driver that fits cupy {cupy.__version__}"
    count = cupy.cuda.runtime.getDeviceCount()
    return Runtime(cupy, count, cupy.cuda.runtime.driverGetVersion()), None


def target_of(runtime: Runtime, number: int) -> Target:
    """What kernels of a device are compiled for: its capability, and the shared memory that it says it has.

    Args:
        runtime: CuPy.
        number: the device.
    """
    device, api = runtime.cupy.cuda.Device(number), runtime.cupy.cuda.runtime
    shared_bytes = int(api.deviceGetAttribute(_MAX_SHARED_BYTES, number))
    return dataclasses.replace(nvidia(int(device.compute_capability)), shared_bytes=shared_bytes)


class Binary(Protocol):
    """Machine code of a kernel and how to launch it, see `compiler.triton.compile.Cubin`."""

    @property
    def code(self) -> bytes: ...
    @property
    def function_name(self) -> str: ...
    @property
    def parameters(self) -> tuple[str, ...]: ...
    @property
    def shared_bytes(self) -> int: ...
    @property
    def num_warps(self) -> int: ...
    @property
    def scratch_bytes(self) -> int: ...
    @property
    def scratch_alignment(self) -> int: ...
    @property
    def profile_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Function:
    """A kernel loaded on a device."""

    handle: Any  # Any: CuPy's function
    parameters: tuple[str, ...]
    threads: int
    shared_bytes: int
    scratch_bytes: int
    scratch_alignment: int


class Driver:
    """Memory, launches, products and graphs of one device.

    Args:
        runtime: CuPy.
        number: the device.
        functions: kernels that are loaded there already, by the keys of their sources.
    """

    def __init__(self, runtime: Runtime, number: int, functions: dict[str, Function] | None = None) -> None:
        self.runtime = runtime
        self.cupy = runtime.cupy
        self.number = number
        self.driver_version = runtime.driver_version
        self.device = self.cupy.cuda.Device(number)
        self.capability = int(self.device.compute_capability)
        self.target = target_of(runtime, number)
        # They live as long as the process.
        self._functions: dict[str, Function] = {} if functions is None else functions
        self._recorded: list[DeviceBuffer] | None = None  # memory of the kernels that are being recorded
        self._cublas: Any = None  # Any: CuPy's module
        with self.device:
            self.stream = self.cupy.cuda.Stream(non_blocking=True)

    def beside(self) -> Driver:
        """The same device and kernels with another stream: what other threads start meanwhile is no part of
        what is recorded or measured there.
        """
        return Driver(self.runtime, self.number, self._functions)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the device and its stream current, so that the pool orders memory by it."""
        with self.device, self.stream:
            yield

    @functools.cached_property
    def facts(self) -> tuple[str, ...]:
        """What decides how fast the device computes, besides the program: its name, and versions."""
        properties = self.cupy.cuda.runtime.getDeviceProperties(self.number)
        library = self.cublas()
        with self.device:
            version = library and library.getVersion(self.cupy.cuda.device.get_cublas_handle())
        return (
            f"{properties['name'].decode()} ({self.capability / 10})",
            f"driver {self.driver_version}",
            f"cublas {version}",
            f"cupy {self.cupy.__version__}",
            f"triton {importlib.metadata.version('triton')}",
        )

    has_graphs = True

    @property
    def stream_address(self) -> int:
        """Address of the stream."""
        return int(self.stream.ptr)

    @property
    def gemm_library(self) -> str | None:
        """cuBLAS, when it is installed."""
        return "cublas" if self.cublas() is not None else None

    # --- memory -------------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> DeviceBuffer:
        """Fresh memory; none at all for no bytes.

        Raises:
            OutOfMemoryError: there is not enough, even after CuPy's pool has given back what it kept.
        """
        if nbytes == 0:
            return DeviceBuffer(self.number, 0, 0, None)
        try:
            with self.current():
                memory = self.cupy.cuda.alloc(nbytes)
        except self.cupy.cuda.memory.OutOfMemoryError as error:
            raise errors.OutOfMemoryError(
                f"cuda:{self.number} has less memory left than was asked for",
                got=f"{nbytes} bytes wanted; {error}",
                fix="use smaller batches, or free arrays that are no longer needed",
            ) from error
        return DeviceBuffer(self.number, int(memory.ptr), nbytes, memory)

    def upload(self, host: np.ndarray) -> DeviceBuffer:
        """A copy of a dense host array."""
        buffer = self.allocate(host.nbytes)
        if buffer.nbytes:
            self._copy(host.__array_interface__["data"][0], buffer.address, host.nbytes, "memcpyHostToDevice")
            self.synchronize()
        return buffer

    def fill(self, address: int, host: np.ndarray) -> None:
        """Copy a dense host array to an address of the device."""
        if host.nbytes:
            self._copy(host.__array_interface__["data"][0], address, host.nbytes, "memcpyHostToDevice")
            self.synchronize()

    def download(self, buffer: DeviceBuffer, type_: ArrayType) -> np.ndarray:
        """The contents as a host array."""
        host = np.empty(type_.shape, type_.dtype)
        if host.nbytes:
            self._copy(buffer.address, host.__array_interface__["data"][0], host.nbytes, "memcpyDeviceToHost")
            self.synchronize()
        return host

    def duplicate(self, buffer: DeviceBuffer) -> DeviceBuffer:
        """A copy of a buffer of any device on this one."""
        copied = self.allocate(buffer.nbytes)
        self.move(buffer.address, copied.address, buffer.nbytes)
        return copied

    def move(self, source: int, target: int, nbytes: int) -> None:
        """Copy bytes between addresses of devices, in the order of the stream."""
        if nbytes and source != target:
            self._copy(source, target, nbytes, "memcpyDeviceToDevice")

    def read(self, address: int, dtype: np.dtype) -> np.ndarray:
        """A scalar of the device; waits for it."""
        return self.download(DeviceBuffer(self.number, address, dtype.itemsize, None), ArrayType((), dtype))

    def _copy(self, source: int, target: int, nbytes: int, kind: str) -> None:
        runtime = self.cupy.cuda.runtime
        with self.device:
            runtime.memcpyAsync(target, source, nbytes, getattr(runtime, kind), self.stream.ptr)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self.stream.synchronize()

    def record(self) -> Any:  # Any: an event of CuPy
        """An event of the stream, without a time."""
        with self.device:
            event = self.cupy.cuda.Event(disable_timing=True)
            event.record(self.stream)
        return event

    def wait(self, event: Any) -> None:  # Any: an event of CuPy
        """Let the stream wait for an event."""
        with self.device:
            self.stream.wait_event(event)

    def has_happened(self, event: Any) -> bool:  # Any: an event of CuPy
        """Whether an event has happened."""
        with self.device:
            return bool(event.done)

    def discard(self, event: Any) -> None:  # Any: an event of CuPy
        """Nothing: it is given back with its last reference."""

    def memory_stats(self) -> dict[str, int]:
        """Bytes in use and kept by the pool, and of the device."""
        with self.device:
            pool = self.cupy.get_default_memory_pool()
            used, total = pool.used_bytes(), pool.total_bytes()
            free, limit = self.cupy.cuda.runtime.memGetInfo()
        kept = total - used
        return {"bytes_in_use": used, "bytes_kept": kept, "bytes_free": free + kept, "bytes_limit": limit}

    # --- kernels ------------------------------------------------------------------------------

    def function(self, source: TritonSource) -> Function:
        """The kernel of a source, compiled and loaded once per device."""
        found = self._functions.get(source.key)
        if found is None:
            found = self._functions[source.key] = self._load(source)
        return found

    def _load(self, source: TritonSource) -> Function:
        if importlib.util.find_spec("triton") is None:
            raise errors.LoweringError(
                f"the kernel {source.function_name} cannot be compiled",
                got="triton is not installed",
                fix="pip install triton, or run kernels that tile.build has made",
                where=source.where,
            )
        # Triton is loaded when a kernel is first needed.
        from infini.compiler.triton import compile as compile_

        return self.load(compile_.compile_source(source, self.target, driver_version=self.driver_version))

    def load(self, cubin: Binary) -> Function:
        """A kernel that is compiled already.

        Raises:
            LoweringError: it was compiled to be profiled.
        """
        if cubin.profile_bytes:
            raise errors.LoweringError(
                "kernels with Triton's profiler cannot be launched", got=cubin.function_name
            )
        with self.device:
            module = self.cupy.cuda.function.Module()
            module.load(cubin.code)
            handle = module.get_function(cubin.function_name)
            if cubin.shared_bytes > _DEFAULT_SHARED_BYTES:
                api = importlib.import_module("cupy_backends.cuda.api.driver")
                api.funcSetAttribute(handle.ptr, _MAX_DYNAMIC_SHARED_SIZE, cubin.shared_bytes)
        return Function(
            handle,
            cubin.parameters,
            _WARP * cubin.num_warps,
            cubin.shared_bytes,
            cubin.scratch_bytes,
            cubin.scratch_alignment,
        )

    def launch(self, function: Function, grid: Sequence[int], arguments: Sequence[float]) -> None:
        """Start a kernel.

        Args:
            function: the kernel.
            grid: number of programs along x, y and z; nothing happens when one is 0.
            arguments: an address or a number per parameter.
        """
        if 0 in grid:
            return
        sizes = (*grid, 1, 1)[:3]
        scratch = 0
        if function.scratch_bytes:
            padding = function.scratch_alignment
            memory = self.allocate(function.scratch_bytes * sizes[0] * sizes[1] * sizes[2] + padding)
            scratch = -(-memory.address // padding) * padding
            if self._recorded is not None:
                self._recorded.append(memory)
        packed = [pack(kind, value) for kind, value in zip(function.parameters, arguments, strict=True)]
        packed += [np.uint64(scratch), np.uint64(0)]
        with self.current():
            function.handle(
                sizes, (function.threads, 1, 1), packed, shared_mem=function.shared_bytes, stream=self.stream
            )

    # --- products -----------------------------------------------------------------------------

    def cublas(self) -> Any:  # Any: CuPy's module
        """CuPy's cuBLAS; None when the library is not installed."""
        if self._cublas is None:
            try:
                self._cublas = importlib.import_module("cupy_backends.cuda.libs.cublas")
            except ImportError:
                self._cublas = False
        return self._cublas or None

    def gemm(self, numbers: Sequence[int], compute: int, scalar: np.dtype) -> None:
        """`gemmStridedBatchedEx` on this device's stream.

        Args:
            numbers: transposes, sizes, then address, type, leading dimension and stride of each operand and
                the result, and the number of products.
            compute: type to compute in.
            scalar: dtype of the factors 1 and 0.
        """
        transpose_a, transpose_b, m, n, k, *rest, count = numbers
        a, b, c = rest[:4], rest[4:8], rest[8:]
        one, zero = np.ones((), scalar), np.zeros((), scalar)
        library = self.cublas()
        with self.current():
            handle = self.cupy.cuda.device.get_cublas_handle()
            library.setStream(handle, self.stream.ptr)
            library.gemmStridedBatchedEx(
                handle, transpose_a, transpose_b, m, n, k, one.ctypes.data, *a, *b, zero.ctypes.data, *c,
                count, compute, -1,
            )  # fmt: skip

    # --- graphs -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def capturing(self, captured: list[Graph]) -> Iterator[None]:
        """Record the launches of the block instead of running them; the graph is appended to `captured`. No
        other thread may use this driver meanwhile: see `beside`.
        """
        recorded: list[DeviceBuffer] = []
        self._recorded = recorded
        with self.current():
            self.stream.begin_capture()
            try:
                yield
            finally:
                graph = self.stream.end_capture()
                self._recorded = None
        captured.append(Graph(graph, tuple(recorded)))

    def timer(self, work: Callable[[], None], repeats: int) -> Callable[[], float]:
        """A function that runs some work on the device and gives the seconds of one run.

        Args:
            work: starts the work; it is called here, and what it starts is recorded.
            repeats: runs of one measurement, as one graph, so that the host's time does not count.
        """
        graphs: list[Graph] = []
        with self.capturing(graphs):
            for _ in range(repeats):
                work()
        events = self.cupy.cuda

        def measure() -> float:
            with self.current():
                begin, end = events.Event(), events.Event()
                begin.record(self.stream)
                graphs[0].handle.launch(self.stream)
                end.record(self.stream)
            end.synchronize()
            return float(events.get_elapsed_time(begin, end)) / 1e3 / repeats

        return measure

    def replay(self, graph: Graph) -> None:
        """Run a recorded graph."""
        with self.current():
            graph.handle.launch(self.stream)
