"""Host memory: 64-byte aligned buffers from size-class free lists, huge pages for large ones.

A block's NumPy array is the owner of its memory, so a view that outlives its buffer keeps the memory
alive: a block goes back
to the free list only when nothing else refers to it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import mmap
import sys
import threading
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np

ALIGNMENT: Final = 64
HUGE_PAGE: Final = 2 << 20
MAX_FREE_BYTES: Final = 1 << 30
_LEAST_LENT: Final = 1 << 16  # bytes; smaller ones come from free lists of the system's library


Block: TypeAlias = tuple[np.ndarray, int]  # the owner of the memory, and an aligned address in it


class _Idle(Block):
    """A kept block that was there when another had to be made; taken and given back, it is a plain one."""


@functools.lru_cache(maxsize=4096)
def size_class(nbytes: int) -> int:
    """Bytes a block for `nbytes` really has: powers of two up to 4 KiB, then eighths of a power of two."""
    if nbytes <= ALIGNMENT:
        return ALIGNMENT
    if nbytes <= 4096:
        return 1 << (nbytes - 1).bit_length()
    step = 1 << max((nbytes - 1).bit_length() - 4, 12)
    return -(-nbytes // step) * step


def _new_block(nbytes: int) -> Block:
    if nbytes < HUGE_PAGE:
        block = np.empty(nbytes + ALIGNMENT, np.uint8)
        return block, _aligned(block, ALIGNMENT)
    mapping = mmap.mmap(-1, nbytes + HUGE_PAGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            mapping.madvise(mmap.MADV_HUGEPAGE)
    block = np.frombuffer(mapping, np.uint8)
    return block, _aligned(block, HUGE_PAGE)


def _aligned(block: np.ndarray, alignment: int) -> int:
    base = int(block.__array_interface__["data"][0])
    return -(-base // alignment) * alignment


class HostAllocator:
    """Free lists by size class, at most 1 GiB kept; `trim` returns them to the system. Safe from several
    threads.

    A block that comes back when that much is kept goes to the system. So that sizes no longer used do not
    fill the lists for ever, making a block drops those that nobody took since one was made before.
    """

    def __init__(self) -> None:
        self.free: Final[dict[int, list[Block]]] = {}
        # Bytes in use, at the peak and kept; in plain memory, where machine code counts too.
        self.counts: Final = (ctypes.c_int64 * 3)()
        # Reentrant: a collection inside `take` may run the `__del__` of a buffer, which gives its block back.
        self._lock = threading.RLock()
        self.pop: Callable[[int], Block | None] = self._pop

    def take(self, size: int) -> Block:
        """A block of a size class and its aligned address."""
        found = self.pop(size)
        if found is not None:
            return found
        if self.counts[2] + size > MAX_FREE_BYTES:
            self._drop_idle(size)
        return _new_block(size)

    def _drop_idle(self, wanted: int) -> None:
        """Free blocks that nobody took since the last time, until one of `wanted` bytes could be kept."""
        with self._lock:
            for size in sorted(self.free, reverse=True):
                blocks, taken = self.free[size], []
                with contextlib.suppress(IndexError):  # machine code takes no lock, and may take one as well
                    while True:
                        taken.append(blocks.pop())
                for block in reversed(taken):
                    if isinstance(block, _Idle) and self.counts[2] + wanted > MAX_FREE_BYTES:
                        self.counts[2] -= size
                    else:
                        blocks.append(_Idle(block))

    def _pop(self, size: int) -> Block | None:
        """A kept block, or None; it counts as used either way."""
        with self._lock:
            self.counts[0] += size
            self.counts[1] = max(self.counts[1], self.counts[0])
            blocks = self.free.get(size)
            if blocks:
                self.counts[2] -= size
                return blocks.pop()
        return None

    def give(self, block: Block | None, size: int) -> None:
        """Take back a block; None when a view still uses its memory, which is then dropped instead of
        kept.
        """
        with self._lock:
            self.counts[0] -= size
            if block is not None and self.counts[2] + size <= MAX_FREE_BYTES:
                self.free.setdefault(size, []).append(block)
                self.counts[2] += size

    def lend(self, size: int) -> None:
        """Count a block once more, which two buffers have."""
        with self._lock:
            self.counts[0] += size

    def trim(self) -> int:
        """Free every kept block; returns the bytes freed."""
        with self._lock:
            freed, self.counts[2] = self.counts[2], 0
            for blocks in self.free.values():
                blocks.clear()  # the lists stay: machine code holds them
        return freed

    def stats(self) -> dict[str, int]:
        """Bytes in use, at the peak, and kept for reuse."""
        return {
            "bytes_in_use": self.counts[0],
            "peak_bytes_in_use": self.counts[1],
            "bytes_kept": self.counts[2],
        }


HOST: Final = HostAllocator()


class HostBuffer:
    """A piece of host memory. `address` is aligned to 64 bytes unless the memory was adopted from
    elsewhere.
    """

    __slots__ = ("__weakref__", "_block", "_size", "address", "nbytes")

    def __init__(self, nbytes: int) -> None:
        self._size = size_class(nbytes)
        self._block, self.address = HOST.take(self._size)
        self.nbytes = nbytes

    @classmethod
    def adopt(cls, array: np.ndarray) -> HostBuffer:
        """A buffer over the memory of a C-contiguous array, without a copy; it is never recycled."""
        buffer = cls.__new__(cls)
        buffer._block = array
        buffer._size = 0
        buffer.nbytes = array.nbytes
        buffer.address = array.__array_interface__["data"][0]
        return buffer

    @classmethod
    def copy_of(cls, array: np.ndarray) -> HostBuffer:
        """A buffer that holds the elements of `array` in C order."""
        buffer = cls(array.nbytes)
        buffer.view(array.shape, array.dtype)[...] = array
        return buffer

    def alias(self) -> HostBuffer:
        """The same memory as another buffer: while both are there, neither is overwritten."""
        buffer = HostBuffer.__new__(HostBuffer)
        buffer._size, buffer._block = self._size, self._block
        buffer.nbytes, buffer.address = self.nbytes, self.address
        if self._size:
            HOST.lend(self._size)
        return buffer

    def view(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The memory as a writable NumPy array, without a copy."""
        if self._size == 0:
            return (
                self._block.reshape(-1).view(dtype).reshape(shape)
                if self._block.size
                else np.empty(shape, dtype)
            )
        start = self.address - self._block.__array_interface__["data"][0]
        count = int(np.prod(shape, dtype=np.int64))
        return self._block[start : start + count * dtype.itemsize].view(dtype).reshape(shape)

    @property
    def has_views(self) -> bool:
        """Whether a NumPy array other than ours may see this memory."""
        return self._size == 0 or sys.getrefcount(self._block) > _ALONE

    def __del__(self) -> None:
        if getattr(self, "_size", 0) and HOST is not None:  # None while the interpreter shuts down
            # The test of `has_views`, with the reference the expression itself holds.
            is_shared = sys.getrefcount(self._block) > _ALONE
            HOST.give(None if is_shared else (self._block, self.address), self._size)


def alias(buffer: Any) -> Any:  # Any: a buffer of some backend
    """A buffer over the memory of another, for a second array: `HostBuffer.alias` and the like. Backends that
    overwrite nothing need none.
    """
    make = getattr(buffer, "alias", None)
    return buffer if make is None else make()


class _Lent:
    """What lends the memory of a buffer to NumPy: arrays over it keep it alive, and it is kept for reuse when
    the last of them is gone.
    """

    __slots__ = ("__array_interface__", "_buffer")

    def __init__(self, buffer: HostBuffer) -> None:
        self._buffer = buffer
        self.__array_interface__ = {
            "shape": (buffer.nbytes,), "typestr": "|u1", "data": (buffer.address, False), "version": 3,
        }  # fmt: skip


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As `np.empty`, of memory that was used before where there is some: pages that the system has just given
    cost more to touch than to copy.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < _LEAST_LENT:
        return np.empty(shape, dtype)
    return np.asarray(_Lent(HostBuffer(nbytes))).view(dtype).reshape(shape)


def _references_alone() -> int:
    """What `getrefcount(buffer._block)` is when only the buffer holds its block."""
    probe = HostBuffer.__new__(HostBuffer)
    probe._size, probe._block = 0, object()  # type: ignore[assignment]  # only counted
    return sys.getrefcount(probe._block)


_ALONE: Final = _references_alone()


def install(pop: Callable[[int], Block | None], finalizer: Callable[[HostBuffer], None]) -> None:
    """Put machine code with the same meaning in the place of `HOST.pop` and `HostBuffer.__del__`. It runs
    under the interpreter lock, as they do.
    """
    HOST.pop = pop
    HostBuffer.__del__ = finalizer  # type: ignore[method-assign]  # what this function is for
