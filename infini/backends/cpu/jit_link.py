"""Loading object files by LLVM's ORC with JITLink, where `elf` does not."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import llvmlite.binding as llvm

from infini.backends.cpu import generator
from infini.compiler.llvm import target as target_

_LIBRARIES_PER_LINKER: Final = 64


class Loaded:
    """Code in memory, which goes with the object.

    Args:
        linker: LLVM's linker that loaded it.
        tracker: its handle of the code, with the addresses of its symbols.
        addresses: of the symbols that other code may use.
    """

    __slots__ = ("addresses", "linker", "tracker")

    def __init__(self, linker: llvm.LLJIT, tracker: llvm.ResourceTracker, addresses: dict[str, int]) -> None:
        self.tracker, self.linker, self.addresses = tracker, linker, addresses
        _TRACKERS.add(tracker)


_TRACKERS: Final[weakref.WeakSet[llvm.ResourceTracker]] = weakref.WeakSet()
_LINKERS: Final[weakref.WeakSet[llvm.LLJIT]] = weakref.WeakSet()


class _Linkers:
    """LLVM's linkers: one for every library takes five times the time; one for all never forgets the names
    of libraries that are gone (9 kB each). So each serves some libraries, and goes with the last of them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number = 0
        self._current: llvm.LLJIT | None = None

    def next(self) -> tuple[llvm.LLJIT, str]:
        """A linker, and a name for one more library."""
        with self._lock:
            if self._current is None or self._number % _LIBRARIES_PER_LINKER == 0:
                machine = generator.new_generator(target_.host_target(), level=0)  # it generates nothing
                # JITLink takes one block of memory for all that an object holds. The older linker maps code
                # and constants apart, and aborts the process when the gaps it gets lie 2 GiB from each other.
                self._current = llvm.create_lljit_compiler(machine, use_jit_link=True, suppress_errors=True)
                _LINKERS.add(self._current)
            self._number += 1
            return self._current, f"library{self._number}"


_ALL_LINKERS: Final = _Linkers()


@atexit.register
def _leave_code_mapped() -> None:
    """At the end workers may still run, and destructors of the interpreter call code in any order."""
    for item in (*_TRACKERS, *_LINKERS):
        item.detach()


def num_loaded() -> int:
    """Libraries that are loaded now."""
    return len(_TRACKERS)


def load(objects: Iterable[bytes], symbols: Sequence[str], externs: Mapping[str, int]) -> Loaded:
    """As `elf.load`.

    Raises:
        RuntimeError: nothing defines a symbol.
    """
    builder = llvm.JITLibraryBuilder().add_current_process()
    for code in objects:
        builder.add_object_img(code)
    for symbol, address in externs.items():
        builder.import_symbol(symbol, address)
    for symbol in symbols:
        builder.export_symbol(symbol)
    linker, name = _ALL_LINKERS.next()
    tracker = builder.link(linker, name)
    return Loaded(linker, tracker, {symbol: int(tracker[symbol]) for symbol in symbols})
