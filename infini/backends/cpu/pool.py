"""The thread pool: persistent native threads that claim the tasks of one phase after another.

Two kinds with one interface and the same claiming code: `native` threads park on a futex (Linux);
`portable` ones are Python threads that enter the native work loop with the interpreter lock released and
park in Python. Results never depend on the kind or on the number of threads. Memory and code are never
unmapped, because a worker may still be looking at them.

The native functions, called by compiled programs:

    void infini_begin(ptr pool, i32 wake)   this thread starts a program; with wake, workers stay awake
    void infini_phase(ptr pool, ptr function, ptr args, i64 num_tasks)   function(args, task) for every task
    void infini_end(ptr pool)

Begin and end nest. While a program of another thread runs on the pool, phases run on the calling thread
alone. Tasks run in the caller's floating-point mode, so subnormal numbers and rounding are those NumPy
would use in that thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import pathlib
import platform
import signal
import sys
import threading
import time
from typing import Final

from infini.backends.cpu import objects, runtime
from infini.compiler.llvm import target as target_
from infini.core import comm, config, errors

SPIN_US: Final = 80.0  # a worker without work waits this long before it parks
_SYMBOLS: Final = ("infini_begin", "infini_phase", "infini_end", "infini_work", "infini_pause")
_COPY: Final = 64  # pauses timed to find how long one takes


class Pool:
    """Threads that run the tasks of compiled programs.

    Args:
        num_threads: threads that compute, the calling one included.
        is_native: whether workers are native threads that park on a futex; needs Linux.

    Attributes:
        memory: address to pass as `pool` to the native functions.
        symbols: addresses of the native functions by name.
    """

    def __init__(self, num_threads: int, *, is_native: bool) -> None:
        if is_native and not sys.platform.startswith("linux"):
            raise errors.DeviceError(
                "the native thread pool needs Linux", got=sys.platform, fix="set INFINI_POOL=portable"
            )
        self.num_threads = max(1, min(num_threads, runtime.MAX_WORKERS + 1))
        self.is_native = is_native
        mapping = mmap.mmap(-1, runtime.MEMORY_BYTES)
        # Workers look at it until the process is gone, which is after the interpreter has freed its objects.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(mapping))
        self.memory = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        self.symbols = _load_runtime(is_native)
        self._work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.symbols["infini_work"])
        self._threads: list[threading.Thread] = []
        self._wake = threading.Condition()
        self._wakes = 0
        self._starts: list[ctypes.Array[ctypes.c_int64]] = []  # what native workers read when they start
        self._write32(runtime.SPIN, _spin_count(self.symbols["infini_pause"]))
        self._write_affinity()
        self._start_workers()
        _LIVE.append(self)

    def wake(self) -> None:
        """Wake portable workers; call it before a program that is worth them. Native pools wake their own."""
        if not self.is_native and self._threads:
            with self._wake:
                self._wakes += 1
                self._wake.notify_all()

    def run(self, function: int, args: int, num_tasks: int, *, wake: bool = True) -> None:
        """Run one phase as a program of its own: for tests and one-off work.

        Args:
            function: address of `void function(ptr args, i64 task)`.
            args: address handed to every task.
            num_tasks: number of tasks.
            wake: whether parked workers are woken.
        """
        if wake:
            self.wake()
        begin = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32)(self.symbols["infini_begin"])
        phase = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, ctypes.c_int64)(self.symbols["infini_phase"])
        end = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.symbols["infini_end"])
        begin(self.memory, int(wake))
        phase(self.memory, function, args, num_tasks)
        end(self.memory)

    def num_parked(self) -> int:
        """Workers that sleep at the moment."""
        return int(ctypes.c_int32.from_address(self.memory + runtime.PARKED).value)

    def stop(self) -> None:
        """End the workers; the pool then runs everything on the calling thread."""
        self._write32(runtime.STOP, 1)
        self._write32(runtime.NUM_WORKERS, 0)
        if self.is_native:
            _futex_wake(self.memory + runtime.EPOCH)
        else:
            self.wake()
            for thread in self._threads:
                thread.join()
        self._threads = []

    # --- starting -----------------------------------------------------------------------

    def _write32(self, offset: int, value: int) -> None:
        ctypes.c_int32.from_address(self.memory + offset).value = value

    def _write_affinity(self) -> None:
        if not self.is_native:
            return
        allowed = os.sched_getaffinity(0)
        is_movable = len(allowed) > 1 and max(allowed) < 1024
        self._write32(runtime.CALLER_CPU, -1 if is_movable else -2)
        for cpu in allowed if is_movable else ():
            place = ctypes.c_uint8.from_address(self.memory + runtime.CPU_MASK + cpu // 8)
            place.value |= 1 << (cpu % 8)

    def _start_workers(self) -> None:
        count = self.num_threads - 1
        for number in range(count):
            if self.is_native:
                self._start_native(number)
            else:
                thread = threading.Thread(target=self._serve, name=f"infini-{number}", daemon=True)
                self._threads.append(thread)
                thread.start()
        if self.is_native:
            ids = (ctypes.c_int32 * max(count, 1)).from_address(self.memory + runtime.KERNEL_IDS)
            while not all(ids[:count]):
                time.sleep(1e-4)
        self._write32(runtime.NUM_WORKERS, count)

    def _start_native(self, number: int) -> None:
        start = (ctypes.c_int64 * 2)(self.memory, number)
        self._starts.append(start)
        handle = ctypes.c_uint64()
        library = ctypes.CDLL(None)
        library.pthread_create.argtypes = [ctypes.c_void_p] * 4
        # A worker inherits the mask, so signals are left to the threads of Python.
        old = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            failed = library.pthread_create(
                ctypes.addressof(handle), None, self.symbols["infini_worker"], ctypes.addressof(start)
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)
        if failed:
            raise errors.DeviceError("could not start a thread of the pool", got=os.strerror(failed))
        library.pthread_detach.argtypes = [ctypes.c_uint64]
        library.pthread_detach(handle)

    def _serve(self) -> None:
        """Body of a portable worker: work natively without the interpreter lock, park in Python."""
        stop = ctypes.c_int32.from_address(self.memory + runtime.STOP)
        parked = self.memory + runtime.PARKED
        while not stop.value:
            self._work(self.memory)
            with self._wake:
                seen = self._wakes
                # Counted under the condition's lock, so increments of several workers do not meet.
                ctypes.c_int32.from_address(parked).value += 1
                while self._wakes == seen and not stop.value:
                    self._wake.wait()
                ctypes.c_int32.from_address(parked).value -= 1

    # --- fork -----------------------------------------------------------------------------

    def _after_fork(self) -> None:
        """The child has none of the workers: the pool computes alone until `shared` makes another."""
        for offset in (runtime.NUM_WORKERS, runtime.PARKED, runtime.IS_AWAKE):
            self._write32(offset, 0)
        for offset in (runtime.WORD, runtime.DONE, runtime.OWNER, runtime.DEPTH):
            ctypes.c_int64.from_address(self.memory + offset).value = 0
        self._threads = []
        self._wake = threading.Condition()


_LIVE: list[Pool] = []  # every pool of the process, because none is ever freed
_SHARED: dict[tuple[int, bool], Pool] = {}
_LOCK = threading.Lock()
_RUNTIMES: dict[bool, dict[str, int]] = {}


def shared() -> Pool:
    """The pool that the knobs `num_threads` and `pool` ask for, started at the first use and after a fork."""
    chosen = config.get("pool")
    is_native = chosen == "native" or (chosen == "auto" and sys.platform.startswith("linux"))
    key = (num_threads(), is_native)
    found = _SHARED.get(key)
    if found is None:
        with _LOCK:
            found = _SHARED.get(key)
            if found is None:
                found = _SHARED[key] = Pool(key[0], is_native=is_native)
    return found


def num_threads() -> int:
    """Threads of the pool: as the knob says, or one per core; processes of a job share those of a machine."""
    return config.get("num_threads") or max(1, num_cores() // comm.processes().num_sharing)


@functools.cache
def num_cores() -> int:
    """Physical cores this process may use; hardware threads of one core count once where the system tells."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        with (
            contextlib.suppress(OSError),
            pathlib.Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").open() as file,
        ):
            cores.add(file.read().strip())
    return len(cores) or len(allowed)


def runtime_code(target: target_.Target, *, is_native: bool) -> bytes:
    """The object file of the native functions for a processor, to be taken elsewhere."""
    return objects.compile_module(runtime.runtime_text(target, sys.platform, is_native=is_native), target)


def provide(code: bytes, *, is_native: bool) -> None:
    """Take the native functions from an object file, where nothing can compile them; when there are some
    already, these stay.
    """
    with _LOCK:
        if is_native not in _RUNTIMES:
            _link_runtime(code, is_native)


def _load_runtime(is_native: bool) -> dict[str, int]:
    if is_native not in _RUNTIMES:
        _link_runtime(runtime_code(target_.host_target(), is_native=is_native), is_native)
    return _RUNTIMES[is_native]


def _link_runtime(code: bytes, is_native: bool) -> None:
    symbols = [*_SYMBOLS, *(["infini_worker"] if is_native else [])]
    library = objects.load([code], symbols)
    _RUNTIMES[is_native] = {symbol: library[symbol] for symbol in symbols}


def _spin_count(pause: int) -> int:
    """How many pauses make `SPIN_US`; the length of one differs tenfold between processors."""
    function = ctypes.CFUNCTYPE(None, ctypes.c_int64)(pause)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        function(_COPY * 10)
        best = min(best, time.perf_counter() - start)
    return int(max(64, min(1 << 20, SPIN_US * 1e-6 / (best / (_COPY * 10)))))


def _futex_wake(address: int) -> None:
    library = ctypes.CDLL(None)
    ctypes.c_int32.from_address(address).value += 1
    number = 98 if platform.machine().startswith(("aarch64", "arm64")) else 202
    library.syscall(ctypes.c_long(number), ctypes.c_void_p(address), 129, 0x7FFFFFFF, None, None, 0)


def _after_fork_in_child() -> None:
    _SHARED.clear()
    for pool in _LIVE:
        pool._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
