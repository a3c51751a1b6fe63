"""A stand-in for CuPy whose device memory is host memory: launches are checked, recorded, and run by Triton's
interpreter.

It has the names that `infini.backends.cuda.driver` uses and nothing else. Memory is filled with junk when it
is allocated, and poisoned when its last reference goes, so that reading what nothing wrote shows, and so does
use after free. A machine that `compiles` makes cubins of what it is given and holds launches against their
own tables of parameters. Inside a capture, work is recorded and runs when the
graph is launched.

A machine that is lazy does nothing before somebody waits for it, and then no more than that needs: work of a
stream that nobody was told to wait for has not been done, and shows. Memory that is given back is poisoned
where a pool may give it out again: in the order of its stream, when memory is next allocated for that.
"""

from __future__ import annotations

import bisect
import collections
import ctypes
import dataclasses
import functools
import importlib.machinery
import sys
import threading
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from infini.compiler.triton import compile as compile_, interpret
from infini.compiler.triton.source import TritonSource, parameter_bytes
from infini.compiler.triton.target import Target
from infini.core import dtypes
from tests.backends import cubin_parameters

_JUNK = 0xCD  # of memory that nothing was written to
_POISON = 0xFF  # of memory that was given back: NaN in every float, -1 in every integer
_FREED_BYTES = 64 << 20  # that are kept poisoned
_FIRST_STREAM = 7
_GEMM_DTYPES = {0: dtypes.float32, 1: dtypes.float64, 2: dtypes.float16, 14: dtypes.bfloat16}

_compile_source = compile_.compile_source  # tests put a machine's in its place


def memory_at(address: int, nbytes: int) -> np.ndarray:
    """Bytes at an address."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


class OutOfMemoryError(MemoryError):
    """What CuPy raises, with its arguments; it is no CUDA error."""

    def __init__(self, size: int, total: int, limit: int) -> None:
        super().__init__(f"{size:,} bytes do not fit beside {total:,} of at most {limit:,}")


class Memory:
    """Memory of a device, at an address such as CuPy's pool gives."""

    def __init__(self, nbytes: int, device: int) -> None:
        self.nbytes, self.device = nbytes, device
        self.block = np.full(nbytes + 256, _JUNK, np.uint8)
        self.ptr = -(-self.block.__array_interface__["data"][0] // 256) * 256


class Item:
    """Work in the queue of a stream."""

    def __init__(self, work: Callable[[], None], stream: int) -> None:
        self.work, self.stream = work, stream
        self.has_begun = self.is_done = False


class Machine:
    """What the fake devices have been asked to do."""

    def __init__(self) -> None:
        self.sources: dict[bytes, TritonSource] = {}
        self.events: list[tuple[Any, ...]] = []
        self.recordings: dict[int, list[Callable[[], None]]] = {}  # by the address of a capturing stream
        self.num_streams = 0
        self.cublas_stream = 0
        self.shared_limits: dict[str, int] = {}
        self.shared_bytes = 0
        self.scratch_bytes = 0
        self.has_cublas = True
        self.limit_bytes = sys.maxsize  # of memory in use at once
        self.bytes_in_use = 0
        self._freed: collections.deque[np.ndarray] = collections.deque()
        self._freed_bytes = 0
        self.compiles = False
        self.targets: list[Target] = []  # that were compiled for
        self.capabilities = ("90", "90")  # of the devices
        self.shared_limit_bytes = 227 << 10
        self.cubins: dict[bytes, compile_.Cubin] = {}
        self.now_ms = 0.0  # the device's clock, which events read
        # Milliseconds that a product (kind "gemm") or a kernel ("launch", with its grid) takes.
        self.cost_ms: Callable[[str, tuple[int, ...]], float] = lambda kind, size: 1.0
        self.is_lazy = False
        self.device_of_stream: dict[int, int] = {}
        self.nccl: Any = None  # Any: a module, see `fake_nccl`
        self.bus_ids: dict[int, str] = {}  # of devices that are said to be at another place than they are
        self._queues: dict[int, collections.deque[Item]] = {}
        self._given_back: dict[int, list[np.ndarray]] = {}  # by the stream that may use it again
        self._here = threading.local()  # devices and streams that a thread has made current
        self._addresses: list[int] = []  # of memory in use, in order
        self._in_use: dict[int, tuple[int, int]] = {}  # bytes and device by address

    def count(self, kind: str) -> int:
        """How many events of a kind there were."""
        return sum(event[0] == kind for event in self.events)

    def do(self, work: Callable[[], None], stream: int, took_ms: float = 1.0) -> None:
        """Run work now, or record it where its stream is being captured; the clock goes on when it runs."""

        def run() -> None:
            work()
            self.now_ms += took_ms

        if stream in self.recordings:
            self.recordings[stream].append(run)
        else:
            self.push(run, stream)

    # --- streams --------------------------------------------------------------------------------

    def push(self, work: Callable[[], None], stream: int) -> Item:
        """Give a stream work; done at once by a machine that is not lazy."""
        item = Item(work, stream)
        self.push_item(item)
        return item

    def push_item(self, item: Item) -> None:
        """As `push`."""
        if self.is_lazy:
            self._queues.setdefault(item.stream, collections.deque()).append(item)
        else:
            self._perform(item)

    def _perform(self, item: Item) -> None:
        item.has_begun = True
        item.work()
        item.is_done = True

    def reach(self, item: Item) -> None:
        """Do what stands before an item in its stream."""
        queue = self._queues.get(item.stream)
        while not item.has_begun and queue and queue[0] is not item:
            self._perform(queue.popleft())

    def finish(self, item: Item) -> None:
        """Do an item, and what stands before it."""
        self.reach(item)
        if not item.has_begun:
            assert self._queues[item.stream].popleft() is item
            self._perform(item)
        assert item.is_done, "a stream waits for itself"

    def drain(self, stream: int) -> None:
        """Do all work of a stream."""
        queue = self._queues.get(stream)
        while queue:
            self._perform(queue.popleft())

    @property
    def here(self) -> list[int]:
        """Numbers of the devices that this thread has entered, the current one last."""
        return self._here.__dict__.setdefault("devices", [0])

    @property
    def streams(self) -> list[int]:
        """Streams that this thread has entered, the current one last."""
        return self._here.__dict__.setdefault("streams", [0])

    # --- memory ---------------------------------------------------------------------------------

    def check(self, address: int, nbytes: int, device: int) -> None:
        """Refuse memory that is not in use, or another device's."""
        place = bisect.bisect_right(self._addresses, address) - 1
        assert place >= 0, f"{address:#x} is no memory of a device"
        start = self._addresses[place]
        size, owner = self._in_use[start]
        assert address + nbytes <= start + size, f"{nbytes} bytes at {address:#x} are not all in use"
        assert owner == device, f"device {device} is given memory of device {owner}"

    def alloc(self, nbytes: int) -> Memory:
        """Memory full of junk, which counts until its last reference goes."""
        if self.bytes_in_use + nbytes > self.limit_bytes:
            raise OutOfMemoryError(nbytes, self.bytes_in_use, self.limit_bytes)
        stream = self.streams[-1]
        for block in self._given_back.pop(stream, ()):  # a pool might give it out now
            self.push(functools.partial(self._poison, block), stream)
        found = Memory(nbytes, self.here[-1])
        self.bytes_in_use += nbytes
        bisect.insort(self._addresses, found.ptr)
        self._in_use[found.ptr] = (nbytes, found.device)
        weakref.finalize(found, self._free, found.block, found.ptr, nbytes, stream).atexit = False
        return found

    def _free(self, block: np.ndarray, address: int, nbytes: int, stream: int) -> None:
        self.bytes_in_use -= nbytes
        self._addresses.remove(address)
        del self._in_use[address]
        if self.is_lazy:
            self._given_back.setdefault(stream, []).append(block)
        else:
            self._poison(block)

    def _poison(self, block: np.ndarray) -> None:
        """Poison what nobody holds any more, and keep it for a while, so that who still reads it finds that
        and not what the host put there next.
        """
        block[...] = _POISON
        self._freed.append(block)
        self._freed_bytes += block.nbytes
        while self._freed_bytes > _FREED_BYTES:
            self._freed_bytes -= self._freed.popleft().nbytes

    def compile_source(
        self, source: TritonSource, target: Target, *, driver_version: int = 0
    ) -> compile_.Cubin:
        """A cubin that names its source."""
        code = source.key.encode()
        self.targets.append(target)
        self.sources[code] = source
        if self.compiles:
            made = _compile_source(source, target, driver_version=driver_version)
            self.cubins[code] = made
            return dataclasses.replace(made, code=code)
        return compile_.Cubin(
            code=code,
            ptx="",
            function_name=source.function_name,
            parameters=tuple(kind for _, kind in source.signature),
            shared_bytes=self.shared_bytes,
            num_warps=source.num_warps,
            scratch_bytes=self.scratch_bytes,
            scratch_alignment=128,
            profile_bytes=0,
        )

    def install(self, monkeypatch: Any) -> Machine:  # Any: pytest's fixture
        """Put the stand-ins where infini finds CuPy and the compiler, until the test ends."""
        for name, module in self.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(compile_, "compile_source", self.compile_source)
        return self

    def drop(self) -> None:
        """Forget what nobody has waited for: a test has ended."""
        self._queues.clear()

    def modules(self) -> dict[str, types.ModuleType]:
        """The modules to put into `sys.modules`."""
        cupy = _module("cupy")
        cupy.__version__ = "14.2.0"
        cupy.cuda = _Cuda(self)
        cupy.get_default_memory_pool = lambda: types.SimpleNamespace(
            used_bytes=lambda: 256, total_bytes=lambda: 1024
        )
        cublas, driver = _module("cupy_backends.cuda.libs.cublas"), _module("cupy_backends.cuda.api.driver")
        cublas.setStream = self._set_stream
        cublas.getVersion = lambda handle: 130100
        cublas.gemmStridedBatchedEx = self._gemm
        driver.funcSetAttribute = self._set_attribute
        found = {"cupy": cupy, "cupy.cuda": cupy.cuda, "cupy_backends.cuda.api.driver": driver}
        for name in (
            "cupy_backends",
            "cupy_backends.cuda",
            "cupy_backends.cuda.api",
            "cupy_backends.cuda.libs",
        ):
            found[name] = _module(name)
        if self.has_cublas:
            found["cupy_backends.cuda.libs.cublas"] = cublas
        return found

    def _set_attribute(self, function: str, attribute: int, value: int) -> None:
        assert attribute == 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self.shared_limits[function] = value

    def _set_stream(self, handle: int, stream: int) -> None:
        self.cublas_stream = stream

    def _gemm(self, handle: int, ta: int, tb: int, m: int, n: int, k: int, alpha: int, *rest: int) -> None:
        a, a_type, lda, a_step, b, b_type, ldb, b_step, beta, c, c_type, ldc, c_step, count, compute, _ = rest
        self.events.append(("gemm", m, n, k, count))
        scalar = np.float64 if compute == 70 else np.float32
        assert memory_at(alpha, np.dtype(scalar).itemsize).view(scalar) == 1
        assert memory_at(beta, np.dtype(scalar).itemsize).view(scalar) == 0

        def matrix(address: int, type_: int, rows: int, columns: int, leading: int) -> np.ndarray:
            dtype = _GEMM_DTYPES[type_]
            assert leading >= rows
            size = leading * (columns - 1) + rows
            flat = memory_at(address, size * dtype.itemsize).view(dtype)
            strides = (dtype.itemsize, leading * dtype.itemsize)
            return np.lib.stride_tricks.as_strided(flat, (rows, columns), strides)

        def work() -> None:
            for i in range(count):
                at = [
                    p + i * s * _GEMM_DTYPES[t].itemsize
                    for p, s, t in ((a, a_step, a_type), (b, b_step, b_type), (c, c_step, c_type))
                ]
                left = matrix(at[0], a_type, *((k, m) if ta else (m, k)), lda)
                right = matrix(at[1], b_type, *((n, k) if tb else (k, n)), ldb)
                left, right = (left.T if ta else left), (right.T if tb else right)
                out = matrix(at[2], c_type, m, n, ldc)
                out[...] = (left.astype(scalar) @ right.astype(scalar)).astype(out.dtype)

        self.do(work, self.cublas_stream, self.cost_ms("gemm", (m, n, k)))


class _Cuda:
    def __init__(self, machine: Machine) -> None:
        self.is_available = lambda: True
        self.runtime = _Runtime(machine)
        self.Device = lambda number: _Device(machine, number)
        self.Stream = lambda non_blocking: _Stream(machine, non_blocking)
        self.alloc = machine.alloc
        self.memory = types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
        self.function = types.SimpleNamespace(Module=lambda: _Module(machine))
        self.device = types.SimpleNamespace(get_cublas_handle=lambda: 1)
        self.Event = lambda disable_timing=False: _Event(machine)
        self.nccl = machine.nccl or types.SimpleNamespace(available=False)
        self.get_elapsed_time = lambda start, end: end.now_ms - start.now_ms


class _Runtime:
    memcpyHostToDevice, memcpyDeviceToHost, memcpyDeviceToDevice = 1, 2, 3  # noqa: N815  # CuPy's names

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def memGetInfo(self) -> tuple[int, int]:
        return 4096, 8192

    def getDeviceCount(self) -> int:
        return len(self.machine.capabilities)

    def deviceGetAttribute(self, attribute: int, number: int) -> int:
        assert attribute == 97  # cudaDevAttrMaxSharedMemoryPerBlockOptin
        return self.machine.shared_limit_bytes

    def getDeviceProperties(self, number: int) -> dict[str, Any]:
        return {"name": b"A stand-in"}

    def deviceGetPCIBusId(self, number: int) -> str:
        return self.machine.bus_ids.get(number, f"0000:{number:02x}:00.0")

    def driverGetVersion(self) -> int:
        return 13000

    def memcpyAsync(self, target: int, source: int, nbytes: int, kind: int, stream: int) -> None:
        assert stream >= _FIRST_STREAM and nbytes > 0
        self.machine.events.append(("copy", kind, nbytes))
        self.machine.do(lambda: ctypes.memmove(target, source, nbytes), stream)


class _Device:
    def __init__(self, machine: Machine, number: int) -> None:
        self.machine, self.number = machine, number
        self.compute_capability = machine.capabilities[number]

    def __enter__(self) -> _Device:
        self.machine.here.append(self.number)
        return self

    def __exit__(self, *_: object) -> None:
        self.machine.here.pop()


class _Stream:
    def __init__(self, machine: Machine, non_blocking: bool) -> None:
        assert non_blocking
        self.machine = machine
        self.ptr = _FIRST_STREAM + machine.num_streams
        machine.device_of_stream[self.ptr] = machine.here[-1]
        machine.num_streams += 1

    def __enter__(self) -> _Stream:
        self.machine.streams.append(self.ptr)
        return self

    def __exit__(self, *_: object) -> None:
        self.machine.streams.pop()

    def synchronize(self) -> None:
        assert self.ptr not in self.machine.recordings, "a capture cannot wait"
        self.machine.drain(self.ptr)

    def wait_event(self, event: _Event) -> None:
        assert self.ptr not in self.machine.recordings, "a capture is of one stream"
        assert event.item is not None, "the event was recorded"
        item = event.item
        self.machine.events.append(("wait", self.ptr, item.stream))
        self.machine.push(lambda: self.machine.finish(item), self.ptr)

    def begin_capture(self) -> None:
        self.machine.recordings[self.ptr] = []

    def end_capture(self) -> Any:
        work = self.machine.recordings.pop(self.ptr)
        self.machine.events.append(("capture", len(work)))

        def launch(stream: _Stream) -> None:
            self.machine.events.append(("replay",))
            for each in work:
                self.machine.push(each, stream.ptr)

        return types.SimpleNamespace(launch=launch)


class _Event:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.item: Item | None = None

    def record(self, stream: _Stream) -> None:
        assert stream.ptr >= _FIRST_STREAM
        assert self.machine.device_of_stream[stream.ptr] == self.machine.here[-1]

        def happen() -> None:
            self.now_ms = self.machine.now_ms

        self.machine.events.append(("record", stream.ptr))
        self.item = self.machine.push(happen, stream.ptr)

    @property
    def done(self) -> bool:
        return self.item is None or self.item.is_done

    def synchronize(self) -> None:
        if self.item is not None:
            self.machine.finish(self.item)


class _Module:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def load(self, code: bytes) -> None:
        self.source = self.machine.sources[code]

    def get_function(self, name: str) -> Any:
        assert name == self.source.function_name
        return _Function(self.machine, self.source)


class _Function:
    def __init__(self, machine: Machine, source: TritonSource) -> None:
        self.machine, self.source = machine, source
        self.ptr = source.function_name

    def check(self, cubin: compile_.Cubin, block: Sequence[int], arguments: Sequence[Any]) -> None:
        """Hold a launch against what the cubin says: its block, and as many parameters, each as wide, one
        after another as C's rules align them.
        """
        table = cubin_parameters.table_of(cubin.code, cubin.function_name)
        assert tuple(block) == table.block
        assert len(arguments) == len(table.parameters), "as many parameters as the cubin has"
        end = 0
        for argument, parameter in zip(arguments, table.parameters, strict=True):
            assert argument.nbytes == parameter.nbytes, f"{argument.nbytes} bytes for {parameter}"
            end += -end % parameter.nbytes
            assert parameter.offset == end, f"{parameter} does not follow {end} bytes"
            end += parameter.nbytes
        assert end == table.nbytes, f"{end} bytes for {table.nbytes}"

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[Any],
        *,
        shared_mem: int,
        stream: Any,
    ) -> None:
        kinds = [kind for _, kind in self.source.signature]
        assert len(arguments) == len(kinds) + 2, "two hidden pointers follow the parameters"
        for kind, argument in zip([*kinds, "*", "*"], arguments, strict=True):
            expected = parameter_bytes(kind)
            assert argument.nbytes == expected, f"{kind} is packed as {argument.nbytes} bytes"
        cubin = self.machine.cubins.get(self.source.key.encode())
        shared_bytes, scratch_bytes = self.machine.shared_bytes, self.machine.scratch_bytes
        if cubin is not None:
            self.check(cubin, block, arguments)
            shared_bytes, scratch_bytes = cubin.shared_bytes, cubin.scratch_bytes
        # Kernels of one text share their code and may have other grids; a wrong grid gives wrong numbers.
        assert len(grid) == 3 and tuple(block) == (32 * self.source.num_warps, 1, 1)
        launched = dataclasses.replace(self.source, grid=tuple(grid))
        assert stream.ptr >= _FIRST_STREAM and shared_mem == shared_bytes
        assert (int(arguments[-2]) != 0) == (scratch_bytes > 0)
        self.machine.events.append(("launch", self.source.function_name, tuple(grid)))
        addresses = [int(a) for a in arguments[: len(kinds)]]
        device = self.machine.here[-1]
        assert self.machine.device_of_stream[stream.ptr] == device
        for kind, address in zip(kinds, addresses, strict=True):
            if kind.startswith("*") and address:
                self.machine.check(address, 1, device)
        took_ms = self.machine.cost_ms("launch", tuple(grid))
        self.machine.do(lambda: interpret.launch(launched, addresses), stream.ptr, took_ms)


def _module(name: str) -> Any:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    return module
