"""Arrays that lie against pages which nobody may touch: reading before or behind them ends the process."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any, Final

import numpy as np

import infini.numpy as inp

_PRIVATE_ANONYMOUS: Final = 0x22  # of Linux
_LINE: Final = 64  # arrays begin at a multiple of this
_held: Final[list[Any]] = []  # Any: memory, which stays until the process ends


def fenced(x: np.ndarray, *, at_end: bool) -> Any:
    """A copy of an array as one of infini's over the same memory: with a forbidden page right before it, or
    behind it as close as its alignment allows.
    """
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    page = mmap.PAGESIZE
    nbytes = -(-max(x.nbytes, 1) // page) * page
    start = libc.mmap(None, nbytes + 2 * page, mmap.PROT_READ | mmap.PROT_WRITE, _PRIVATE_ANONYMOUS, -1, 0)
    for fence in (start, start + page + nbytes):
        assert libc.mprotect(fence, page, 0) == 0
    offset = (nbytes - x.nbytes) // _LINE * _LINE if at_end else 0
    _held.append((ctypes.c_char * x.nbytes).from_address(start + page + offset))
    there = np.frombuffer(_held[-1], x.dtype).reshape(x.shape)
    there[...] = x
    there.flags.writeable = False
    return inp.from_dlpack(there, copy=False)
