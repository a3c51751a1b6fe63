"""Object files: compile LLVM IR, keep the result on disk, load it into this process.

The disk cache (`compiler.disk_cache`) is keyed by the text, the processor and the versions that decide the
machine code. No IR passes run: the emitters write code as it should be, and only the
code generator works on it (level 2).
"""

from __future__ import annotations

import atexit
import hashlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import llvmlite.binding as llvm

from infini.compiler import disk_cache
from infini.compiler.llvm import target as target_
from infini.compiler.llvm.target import Target
from infini.core import config, errors

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
        found = _generate(text, target, level)
        disk_cache.write(KIND, key, found)
    return found


def stored(key: str) -> bytes | None:
    """The object file under a key of `object_key`, when it is on disk."""
    return disk_cache.read(KIND, key)


def compile_modules(texts: Sequence[str], target: Target, num_threads: int = 1) -> list[bytes]:
    """The object files of several modules, compiled in parallel."""
    if num_threads <= 1 or len(texts) <= 1:
        return [compile_module(text, target) for text in texts]
    folder = config.get("cache_dir"), config.get("no_cache")

    def one(text: str) -> bytes:
        with config.config(cache_dir=folder[0], no_cache=folder[1]):
            return compile_module(text, target)

    with ThreadPoolExecutor(min(num_threads, len(texts))) as threads:
        return list(threads.map(one, texts))


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


class _Compilers(threading.local):
    """One LLVM context and one code generator per Python thread and processor: neither may be shared."""

    def __init__(self) -> None:
        self.machines: dict[tuple[Target, int], llvm.TargetMachine] = {}

    def machine(self, target: Target, level: int) -> llvm.TargetMachine:
        if (target, level) not in self.machines:
            self.machines[target, level] = new_machine(target, level)
        return self.machines[target, level]


_COMPILERS = _Compilers()


def new_machine(target: Target, level: int = CODE_LEVEL) -> llvm.TargetMachine:
    """A code generator for a processor."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=level, reloc="pic", codemodel="default"
    )


def _generate(text: str, target: Target, level: int) -> bytes:
    context = llvm.create_context()
    try:
        module = llvm.parse_assembly(text, context)
    except RuntimeError as error:
        raise errors.LoweringError("LLVM refuses the text of a kernel", got=str(error)) from None
    return bytes(_COMPILERS.machine(target, level).emit_object(module))


class Library:
    """Object files loaded together; `library[symbol]` is the address of a function.

    The code is never unmapped: a worker may be in it, and compiled programs keep addresses.
    """

    def __init__(self, engine: llvm.ExecutionEngine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        _ENGINES.append(engine)

    def __getitem__(self, symbol: str) -> int:
        if symbol not in self._addresses:
            address = int(self._engine.get_function_address(symbol))
            if not address:
                raise KeyError(f"no loaded object defines {symbol!r}")
            self._addresses[symbol] = address
        return self._addresses[symbol]


_ENGINES: Final[list[llvm.ExecutionEngine]] = []  # kept for the life of the process, see Library


@atexit.register
def _leave_code_mapped() -> None:
    for engine in _ENGINES:
        engine.detach()


def load(objects: Iterable[bytes], externs: Mapping[str, int] | None = None) -> Library:
    """Load object files made for the running processor.

    Args:
        objects: object files; they may call each other's functions.
        externs: addresses of functions that the objects call, besides those of the C library.
    """
    target = target_.host_target()
    for name, address in (externs or {}).items():
        llvm.add_symbol(name, address)
    empty = llvm.parse_assembly(f'target triple = "{target.triple}"\n', llvm.create_context())
    engine = llvm.create_mcjit_compiler(empty, new_machine(target))
    for code in objects:
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return Library(engine)
