"""Object files: compile LLVM IR, keep the result on disk, load it into this process.

The disk cache (`compiler.disk_cache`) is keyed by the text, the processor and the versions that decide the
machine code. No IR passes run: the emitters write code as it should be, and only the
code generator works on it (level 2).
"""

from __future__ import annotations

import atexit
import functools
import gc
import hashlib
import os
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import llvmlite.binding as llvm

from infini.backends.cpu import generator
from infini.compiler import disk_cache
from infini.compiler.llvm import target as target_
from infini.compiler.llvm.target import Target
from infini.core import config, errors, execute

EMITTER_VERSION: Final = 1  # raise when compiled code changes meaning without its text changing
KIND: Final = "objects"  # of entries of the disk cache
_DIGEST_SIZE: Final = 20
CODE_LEVEL: Final = 2  # effort of the code generator, LLVM's -O


def compile_module(text: str, target: Target, *, level: int = CODE_LEVEL) -> bytes:
    """The object file of a module, from the disk cache when it is there.

    Args:
        text: LLVM IR.
        target: processor to make code for.
        level: effort of the code generator; 0 for code whose speed does not matter, made ten times faster.

    Raises:
        LoweringError: LLVM refuses the text.
    """
    key = object_key(text, target, level)
    found = disk_cache.read(KIND, key)
    if found is None:
        found = generator.generate(text, target, level)
        disk_cache.write(KIND, key, found)
    return found


def stored(key: str) -> bytes | None:
    """The object file under a key of `object_key`, when it is on disk."""
    return disk_cache.read(KIND, key)


class Compilations:
    """Modules that are compiled in threads of their own from the moment they are known, while the compiler
    goes on.

    Args:
        target: processor to make code for.
        num_threads: threads that compile; with one, a module is compiled when its code is asked for.
    """

    def __init__(self, target: Target, num_threads: int) -> None:
        self.target, self.num_threads = target, num_threads
        self._knobs = {name: config.get(name) for name in ("cache_dir", "no_cache")}
        self._begun: dict[str, Future[bytes]] = {}

    def begin(self, text: str) -> None:
        """Compile a module soon."""
        if self.num_threads > 1 and text not in self._begun:
            self._begun[text] = _threads(self.num_threads).submit(self._compile, text)

    def code(self, text: str) -> bytes:
        """The object file of a module.

        Raises:
            LoweringError: LLVM refuses the text.
        """
        begun = self._begun.get(text)
        return begun.result() if begun is not None else compile_module(text, self.target)

    def _compile(self, text: str) -> bytes:
        with config.config(**self._knobs):
            return compile_module(text, self.target)


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    """Threads that compile; each has a code generator, so they are kept."""
    return ThreadPoolExecutor(count, thread_name_prefix="infini-llvm")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # the child has none of them


def object_key(text: str, target: Target, level: int = CODE_LEVEL) -> str:
    """What identifies machine code: the text and everything else that decides it."""
    parts = (
        text,
        target.triple,
        target.cpu,
        target.features,
        str(llvm.llvm_version_info),
        f"{EMITTER_VERSION}.{level}",
    )
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=_DIGEST_SIZE).hexdigest()


def assembly(text: str, target: Target) -> str:
    """What the code generator makes of a module, for people."""
    module = llvm.parse_assembly(text, llvm.create_context())
    return str(generator.new_generator(target, CODE_LEVEL).emit_assembly(module))


class Library:
    """Object files loaded together; `library[symbol]` is the address of a function.

    The code is unmapped with the library: a program that runs keeps the libraries it calls. No worker is in
    their code then, as a phase ends after its last task.

    Args:
        linker: LLVM's linker that loaded it.
        tracker: its handle of the code, with the addresses of its symbols.
        symbols: the functions that can be asked for.
        needs: what the code calls, which must stay loaded.
    """

    def __init__(
        self,
        linker: llvm.LLJIT,
        tracker: llvm.ResourceTracker,
        symbols: Iterable[str],
        needs: Mapping[str, int],
    ) -> None:
        self._tracker, self._linker, self._needs = tracker, linker, needs
        self._addresses = {symbol: int(tracker[symbol]) for symbol in symbols}
        _TRACKERS.add(tracker)

    def __getitem__(self, symbol: str) -> int:
        return self._addresses[symbol]


_TRACKERS: Final[weakref.WeakSet[llvm.ResourceTracker]] = weakref.WeakSet()
_KEPT: Final[list[Library]] = []  # for the life of the process
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
                machine = generator.new_generator(target_.host_target(), CODE_LEVEL)
                # JITLink takes one block of memory for all that an object holds. The older linker maps code
                # and constants apart, and aborts the process when the gaps it gets lie 2 GiB from each other.
                self._current = llvm.create_lljit_compiler(machine, use_jit_link=True, suppress_errors=True)
                _LINKERS.add(self._current)
            self._number += 1
            return self._current, f"library{self._number}"


_LIBRARIES_PER_LINKER: Final = 64
# Each takes two of the 65,530 maps that Linux gives a process; LLVM aborts when it gets none.
MAX_LIBRARIES: Final = 16_000
_ALL_LINKERS: Final = _Linkers()


@atexit.register
def _leave_code_mapped() -> None:
    """At the end workers may still run, and destructors of the interpreter call code in any order."""
    for item in (*_TRACKERS, *_LINKERS):
        item.detach()


def load(
    objects: Iterable[bytes],
    symbols: Sequence[str],
    externs: Mapping[str, int] | None = None,
    *,
    is_kept: bool = True,
) -> Library:
    """Load object files made for the running processor.

    Args:
        objects: object files; they may call each other's functions.
        symbols: the functions whose addresses are wanted.
        externs: addresses of functions that the objects call, besides those of the C library.
        is_kept: whether the code stays for the life of the process, and not only for that of the library.

    Raises:
        LoweringError: a function is missing.
    """
    if len(_TRACKERS) >= MAX_LIBRARIES:
        execute.clear_caches()
        gc.collect()
        if len(_TRACKERS) >= MAX_LIBRARIES:
            raise errors.LoweringError(
                "too many compiled programs are in use at once: the system maps no more code",
                got=f"{len(_TRACKERS)} libraries",
                expected=f"fewer than {MAX_LIBRARIES}",
                fix="drop jitted functions that are done with, or pass arrays of fewer different shapes",
            )
    builder = llvm.JITLibraryBuilder().add_current_process()
    for code in objects:
        builder.add_object_img(code)
    for symbol, address in (externs or {}).items():
        builder.import_symbol(symbol, address)
    for symbol in symbols:
        builder.export_symbol(symbol)
    try:
        linker, name = _ALL_LINKERS.next()
        tracker = builder.link(linker, name)
    except RuntimeError as error:
        raise errors.LoweringError("LLVM cannot link the code of a program", got=str(error)) from None
    library = Library(linker, tracker, symbols, externs or {})
    if is_kept:
        _KEPT.append(library)
    return library
