"""Memory of a device kept for reuse. A vendor's allocation may wait for the whole device, so what is given
back is kept by size; all that use one pool work in the order of one stream, so a block may be used again at
once.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Final

from infini.backends.vendors.runtime import Runtime
from infini.core import errors

_GRANULE: Final = 512
_LARGE: Final = 1 << 20  # sizes above this are rounded to multiples of it


class Block:
    """Memory that goes back to its pool when nobody refers to it."""

    __slots__ = ("_pool", "address", "nbytes")

    def __init__(self, pool: Pool, address: int, nbytes: int) -> None:
        self._pool, self.address, self.nbytes = pool, address, nbytes

    def __del__(self) -> None:
        self._pool.give_back(self.address, self.nbytes)


class Pool:
    """The memory of one stream of a device.

    Args:
        runtime: gives memory.
        device: where.
    """

    def __init__(self, runtime: Runtime, device: int) -> None:
        self.runtime, self.device = runtime, device
        self._free: dict[int, list[int]] = defaultdict(list)
        self.bytes_in_use = self.bytes_kept = self.peak_bytes_in_use = 0
        self._lock = threading.RLock()  # a block may be given back while this thread holds it

    def take(self, nbytes: int) -> Block:
        """A block of at least so many bytes.

        Raises:
            OutOfMemoryError: there is no memory, even after what was kept is given back.
        """
        size = -(-nbytes // _GRANULE) * _GRANULE if nbytes <= _LARGE else -(-nbytes // _LARGE) * _LARGE
        with self._lock:
            kept = self._free[size]
            if kept:
                address = kept.pop()
                self.bytes_kept -= size
            else:
                address = self._allocate(size)
            self.bytes_in_use += size
            self.peak_bytes_in_use = max(self.peak_bytes_in_use, self.bytes_in_use)
        return Block(self, address, size)

    def _allocate(self, size: int) -> int:
        self.runtime.use(self.device)
        try:
            return self.runtime.allocate(size)
        except errors.OutOfMemoryError:
            if not self.bytes_kept:
                raise
        self.release()
        return self.runtime.allocate(size)

    def give_back(self, address: int, size: int) -> None:
        """Keep a block for whoever asks next."""
        with self._lock:
            self._free[size].append(address)
            self.bytes_in_use -= size
            self.bytes_kept += size

    def release(self) -> None:
        """Give what is kept back to the device, when its work is done."""
        with self._lock:
            # Blocks that are given back meanwhile find a list of their own.
            kept, self._free = self._free, defaultdict(list)
        self.runtime.synchronize(self.device)
        for size, addresses in kept.items():
            for address in addresses:
                self.runtime.free(address)
                self.bytes_kept -= size
