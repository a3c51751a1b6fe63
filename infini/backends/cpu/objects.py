"""Object files: compile LLVM IR, keep the result on disk, load it into this process.

The disk cache (`compiler.disk_cache`) is keyed by the text, the processor and the versions that decide the
machine code. No IR passes run: the emitters write code as it should be, and only the
code generator works on it (level 2).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import importlib
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Protocol

from infini.backends.cpu import elf
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
        found = _llvm("generator").generate(text, target, level)
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
        target_.llvm_version(),
        f"{EMITTER_VERSION}.{level}",
    )
    return text_digest("\0".join(parts))


def text_digest(text: str) -> str:
    """Hexadecimal hash of a text."""
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_SIZE).hexdigest()


def assembly(text: str, target: Target) -> str:
    """What the code generator makes of a module, for people."""
    found: str = _llvm("generator").assembly(text, target, CODE_LEVEL)
    return found


# LLVM is loaded when something has to be compiled: code from the disk runs without it.


@functools.cache
def _llvm(name: str) -> Any:  # Any: a module
    return importlib.import_module(f"infini.backends.cpu.{name}")


class Loaded(Protocol):
    """Code in memory, by `elf` or `jit_link`: it goes with the object."""

    addresses: dict[str, int]


class Library:
    """Object files loaded together; `library[symbol]` is the address of a function.

    The code is unmapped with the library: a program that runs keeps the libraries it calls. No worker is in
    their code then, as a phase ends after its last task.

    Args:
        loaded: what holds the code, with the addresses of its symbols.
        needs: what the code calls, which must stay loaded.
    """

    def __init__(self, loaded: Loaded, needs: Mapping[str, int]) -> None:
        self._loaded, self._needs = loaded, needs
        _LIBRARIES.add(self)

    def __getitem__(self, symbol: str) -> int:
        return self._loaded.addresses[symbol]


_LIBRARIES: Final[weakref.WeakSet[Library]] = weakref.WeakSet()
_KEPT: Final[list[Library]] = []  # for the life of the process
# Where LLVM loads, each takes two of the 65,530 maps that Linux gives a process; it aborts when it gets none.
MAX_LIBRARIES: Final = 16_000


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
    files, needs = list(objects), externs or {}
    try:
        library = Library(_load(files, symbols, needs), needs)
    except KeyError as missing:
        raise errors.LoweringError(
            "the code of a program cannot be linked", got=f"nothing defines {missing}"
        ) from None
    except (OSError, RuntimeError) as error:
        raise errors.LoweringError("the code of a program cannot be linked", got=str(error)) from None
    if is_kept:
        _KEPT.append(library)
    return library


def _load(files: Sequence[bytes], symbols: Sequence[str], needs: Mapping[str, int]) -> Loaded:
    if elf.is_supported():
        with contextlib.suppress(elf.UnsupportedError):
            return elf.load(files, symbols, needs)
    linker = _llvm("jit_link")
    if linker.num_loaded() >= MAX_LIBRARIES:
        execute.clear_caches()
        gc.collect()
        if linker.num_loaded() >= MAX_LIBRARIES:
            raise errors.LoweringError(
                "too many compiled programs are in use at once: the system maps no more code",
                got=f"{linker.num_loaded()} libraries",
                expected=f"fewer than {MAX_LIBRARIES}",
                fix="drop jitted functions that are done with, or pass arrays of fewer different shapes",
            )
    found: Loaded = linker.load(files, symbols, needs)
    return found
