"""Memory for machine code: pages of large reservations, writable while code is put there, then executable.

Pages beside each other in the same state are one map of the system, so thousands of small pieces of code take
few of the 65,530 maps that Linux gives a process. All that a piece holds lies within 2 GiB, the reach of its
relative addresses. A forked child has its own copy, as of all private memory.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import mmap
import os
import threading
from dataclasses import dataclass, field
from typing import Any, Final

RESERVED_BYTES: Final = 64 << 20  # of a reservation
_NO_ACCESS, _WRITABLE, _EXECUTABLE = 0, mmap.PROT_READ | mmap.PROT_WRITE, mmap.PROT_READ | mmap.PROT_EXEC
_NO_RESERVE: Final = 0x4000  # MAP_NORESERVE, not among the names of `mmap`
_FAILED: Final = ctypes.c_void_p(-1).value


@functools.cache
def _system() -> Any:  # Any: foreign functions
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    library.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library


def _check(status: int) -> None:
    if status:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@dataclass(slots=True)
class _Reservation:
    """Addresses without memory, and the parts of them that are free, by their start."""

    start: int
    nbytes: int
    free: dict[int, int] = field(default_factory=dict)

    def take(self, nbytes: int) -> int | None:
        """The lowest free part that is large enough."""
        for start in sorted(self.free):
            length = self.free[start]
            if length >= nbytes:
                del self.free[start]
                if length > nbytes:
                    self.free[start + nbytes] = length - nbytes
                return start
        return None

    def give(self, start: int, nbytes: int) -> None:
        """Free a part, joined with its neighbours."""
        nbytes += self.free.pop(start + nbytes, 0)
        for other, length in self.free.items():
            if other + length == start:
                self.free[other] = length + nbytes
                return
        self.free[start] = nbytes


class _Allocator:
    """All reservations. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a collection inside may free code
        self._reservations: list[_Reservation] = []
        self.is_over = False

    def take(self, nbytes: int) -> int:
        """Pages without access."""
        with self._lock:
            for reservation in self._reservations:
                found = reservation.take(nbytes)
                if found is not None:
                    return found
            size = max(RESERVED_BYTES, nbytes)
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
            start = _system().mmap(None, size, _NO_ACCESS, flags, -1, 0)
            if start == _FAILED:
                _check(1)
            self._reservations.append(_Reservation(start, size, {start: size}))
            return self.take(nbytes)

    def give(self, start: int, nbytes: int) -> None:
        """Give pages back: their memory to the system, their addresses to the next."""
        if self.is_over:
            return
        _system().madvise(start, nbytes, mmap.MADV_DONTNEED)
        _system().mprotect(start, nbytes, _NO_ACCESS)
        with self._lock:
            next(r for r in self._reservations if r.start <= start < r.start + r.nbytes).give(start, nbytes)


_ALLOCATOR: Final = _Allocator()


@atexit.register
def _leave_code_mapped() -> None:
    """At the end workers may still run, and destructors of the interpreter call code in any order."""
    _ALLOCATOR.is_over = True


class CodePages:
    """Executable memory, and writable memory beside it. They are given back with the object.

    Args:
        code_bytes: of code and constants.
        data_bytes: of variables, which are zero.

    Raises:
        OSError: the system gives no memory, or none that can be executed.
    """

    __slots__ = ("_allocator", "_code_bytes", "_nbytes", "code", "data")

    def __init__(self, code_bytes: int, data_bytes: int) -> None:
        self._code_bytes = _pages(code_bytes)
        self._nbytes = self._code_bytes + _pages(data_bytes)
        # Held here: the names of this module are gone when the last objects of a process are.
        self._allocator = _ALLOCATOR
        self.code = self._allocator.take(self._nbytes)
        self.data = self.code + self._code_bytes
        _check(_system().mprotect(self.code, self._nbytes, _WRITABLE))

    def write(self, content: bytes | bytearray) -> None:
        """Put the code in its place, which cannot be written afterwards."""
        ctypes.memmove(self.code, bytes(content), len(content))
        _check(_system().mprotect(self.code, self._code_bytes, _EXECUTABLE))

    def __del__(self) -> None:
        if hasattr(self, "code"):
            self._allocator.give(self.code, self._nbytes)


def _pages(nbytes: int) -> int:
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
