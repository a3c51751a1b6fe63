"""Ctrl-C during a native program: its loops end, and KeyboardInterrupt is raised.

Python runs handlers of signals between instructions of the main thread, and there are none while that thread
is in native code. But C writes the number of each signal to a pipe at once: a thread that reads it sets the
flag that loops look at. Programs of other threads and without loops run to their end.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_flag: Final = ctypes.c_int32(0)  # read by the program of the main thread
_never: Final = ctypes.c_int32(0)  # read by those of other threads, and by short ones
NEVER: Final = ctypes.addressof(_never)


class _Watcher:
    """The pipe, and the thread at its end."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.write_end, False)
        self.is_armed = False
        threading.Thread(target=self._watch, name="infini-interrupts", daemon=True).start()

    def _watch(self) -> None:
        while True:
            if signal.SIGINT in os.read(self.read_end, 64) and self.is_armed:
                _flag.value = 1


@functools.cache
def _watcher() -> _Watcher:
    return _Watcher()


def _forget_watcher() -> None:
    """The child of a fork has the pipe of its parent, and no thread."""
    _watcher.cache_clear()


os.register_at_fork(after_in_child=_forget_watcher)


@contextmanager
def watching() -> Iterator[int]:
    """Run a long program inside the block; gives the address of the flag that its loops have to read.

    Raises:
        KeyboardInterrupt: the program was ended by Ctrl-C.
    """
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_default or threading.current_thread() is not threading.main_thread():
        # Whoever handles signals in another way decides what they mean, after the program.
        yield NEVER
        return
    watcher = _watcher()
    before = signal.set_wakeup_fd(watcher.write_end, warn_on_full_buffer=False)
    if before not in (-1, watcher.write_end):
        signal.set_wakeup_fd(before)
        yield NEVER
        return
    _flag.value, watcher.is_armed = 0, True
    try:
        yield ctypes.addressof(_flag)
        if _flag.value:
            raise KeyboardInterrupt
    finally:
        watcher.is_armed, _flag.value = False, 0
        signal.set_wakeup_fd(before)
