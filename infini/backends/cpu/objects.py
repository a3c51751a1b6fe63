"""Object files: compile LLVM IR, keep the result on disk, load it into this process.

The disk cache is keyed by the text, the processor and the versions that decide the machine code, so an
entry is never wrong, only missing; entries carry a checksum, are written under another name and renamed,
and a broken one is compiled again. No IR passes run: the emitters write code as it should be, and only the
code generator works on it (level 2).
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import llvmlite.binding as llvm

from infini.compiler.llvm import target as target_
from infini.compiler.llvm.target import Target
from infini.core import config, errors

EMITTER_VERSION: Final = 1  # raise when compiled code changes meaning without its text changing
_MAGIC: Final = b"infini-object-1\n"
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
    path = None if config.get("no_cache") else cache_folder() / key[:2] / f"{key}.o"
    if path is not None:
        found = _read(path)
        if found is not None:
            return found
    code = _generate(text, target, level)
    if path is not None:
        _write(path, code)
    return code


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


def cache_folder() -> Path:
    """Folder of compiled objects: the knob `cache_dir`, or the user's cache folder."""
    chosen = config.get("cache_dir")
    if chosen:
        return Path(chosen) / "objects"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "infini" / "objects"


def _read(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    start = len(_MAGIC) + _DIGEST_SIZE
    digest = hashlib.blake2b(content[start:], digest_size=_DIGEST_SIZE).digest()
    is_whole = content.startswith(_MAGIC) and content[len(_MAGIC) : start] == digest and len(content) > start
    return content[start:] if is_whole else None


def _write(path: Path, code: bytes) -> None:
    content = _MAGIC + hashlib.blake2b(code, digest_size=_DIGEST_SIZE).digest() + code
    # A cache that cannot be written (read-only home, full disk) is no reason to fail.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)


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
