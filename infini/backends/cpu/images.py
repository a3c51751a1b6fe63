"""What the disk keeps of a compiled program: everything its executable needs besides the machine code of its
functions, which programs share.

A program that was compiled before starts from here: no pass runs, no text is written, LLVM generates nothing.
The key holds the fingerprint of the program, the options, the processor, the knobs that change code, and a
stamp of the compiler's own files, so an image made by another compiler is never taken.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgpack
import numpy as np

import infini
from infini.backends.cpu import objects
from infini.compiler import disk_cache
from infini.compiler.llvm.target import Target
from infini.core import config, dtypes, ir
from infini.core.backend import CompileOptions

KIND: Final = "programs"
# Folders whose files decide what a program becomes.
_DECISIVE: Final = ("core", "lax", "tile", "compiler", "backends/cpu")


@dataclass(frozen=True, slots=True)
class Code:
    """A function in an object file of the disk cache.

    Args:
        symbol: its name.
        key: of the object file.
        declares: declarations of the functions of libraries that it calls.
    """

    symbol: str
    key: str
    declares: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Image:
    """A compiled program.

    Args:
        functions: task functions it calls.
        program: its entry; None for the only task function, which takes the table itself.
        consts: constants in the order of the table.
        num_params: number of parameters.
        result_bytes: bytes of each result.
        aliases: for each result the donated parameter it lies in, or None.
        arena_bytes: bytes of its arena.
        is_bounded: whether `cost_ns` says how long it may run.
        cost_ns: estimated time on one thread.
        copied_bytes: bytes that move only because memory could not be shared.
        num_phases: phases that threads share.
        memory: the analysis of its memory.
    """

    functions: tuple[Code, ...]
    program: Code | None
    consts: tuple[np.ndarray, ...]
    num_params: int
    result_bytes: tuple[int, ...]
    aliases: tuple[int | None, ...]
    arena_bytes: int
    is_bounded: bool
    cost_ns: float
    copied_bytes: float
    num_phases: int
    memory: dict[str, int]


def key(program: ir.Program, options: CompileOptions, target: Target) -> str | None:
    """What identifies the image of a program; None when there is to be none: somebody wants to see the
    passes, or the program calls host functions.
    """
    if config.get("no_cache") or config.get("dump") or config.get("check") or _calls_host(program):
        return None
    parts = (
        program.fingerprint,
        repr(options),
        repr(config.cache_key()),
        objects.object_key("", target),
        _stamp(),
    )
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=20).hexdigest()


def read(name: str) -> Image | None:
    """The image under a key, or None."""
    content = disk_cache.read(KIND, name)
    return None if content is None else unpacked(content)


def write(name: str, image: Image) -> None:
    """Keep an image under a key, unless the compiler's files have changed since this process loaded them."""
    if _stamp_now() == _stamp():
        disk_cache.write(KIND, name, packed(image))


def _calls_host(program: ir.Program) -> bool:
    return any(
        any(isinstance(value, ir.HostFunction) for value in equation.attrs.values())
        or any(map(_calls_host, equation.programs))
        for equation in program.equations
    )


@functools.cache
def _stamp() -> str:
    """The stamp of the compiler that this process has loaded."""
    return _stamp_now()


def _stamp_now() -> str:
    """Names, sizes and times of the compiler's files."""
    root = str(Path(infini.__file__).parent)
    digest = hashlib.blake2b(infini.__version__.encode(), digest_size=20)
    for folder in _DECISIVE:
        for path, status in sorted(_sources(f"{root}/{folder}")):
            digest.update(f"{path[len(root) :]} {status[0]} {status[1]}\n".encode())
    return digest.hexdigest()


def _sources(folder: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Path, size and time of each Python file below a folder. Every process asks at its first program, and
    objects for the paths of hundreds of files take longer than the system's answers.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".py"):
                status = entry.stat()
                yield entry.path, (status.st_size, status.st_mtime_ns)
            elif entry.name != "__pycache__" and entry.is_dir():
                yield from _sources(entry.path)


def packed(image: Image) -> bytes:
    """The image as bytes, for a file."""
    fields: dict[str, Any] = {f.name: getattr(image, f.name) for f in dataclasses.fields(image)}
    fields["functions"] = [dataclasses.astuple(code) for code in image.functions]
    fields["program"] = None if image.program is None else dataclasses.astuple(image.program)
    fields["consts"] = [(x.dtype.name, x.shape, x.tobytes()) for x in image.consts]
    return bytes(msgpack.packb(fields))


def unpacked(content: bytes) -> Image | None:
    """What `packed` made bytes of; None when it is something else."""
    try:
        fields = msgpack.unpackb(content, use_list=False)
        fields["functions"] = tuple(Code(*code) for code in fields["functions"])
        fields["program"] = None if fields["program"] is None else Code(*fields["program"])
        fields["consts"] = tuple(
            np.frombuffer(data, dtypes.canonical(name)).reshape(shape)
            for name, shape, data in fields["consts"]
        )
        return Image(**fields)
    except (ValueError, TypeError, KeyError, msgpack.UnpackException):
        return None  # the checksum is right and the form is not: written by something else


_stamp()  # before the compiler is loaded
