"""Programs that were compiled ahead of time, for processors that need not be this one: making them, and
running them without the compiler.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infini.backends.cpu import elf, images, link, objects, pool, processor, runtime
from infini.backends.cpu.executable import Built, CpuExecutable
from infini.compiler.llvm.target import Target
from infini.core import errors, ir
from infini.core.backend import CompileOptions


@dataclass(frozen=True, slots=True)
class Ahead:
    """A program in machine code.

    Args:
        target: processor it is for.
        image: what running it needs, as `images.packed` writes it.
        code: object files by the keys in the image.
    """

    target: Target
    image: bytes
    code: Mapping[str, bytes]


def build(program: ir.Program, options: CompileOptions, target: Target) -> Ahead:
    """Compile a program.

    Raises:
        LoweringError: an operation has no route, or calls the host.
    """
    image, code = _compiler().ahead_of_time(program, options, target)
    return Ahead(target, images.packed(image), code)


def load(program: ir.Program, options: CompileOptions, ahead: Ahead) -> CpuExecutable:
    """The executable of a program that was built from it.

    Raises:
        DeviceError: this processor lacks what the code needs, or nothing here can load it.
        LoweringError: the code is incomplete.
    """
    absent = processor.missing(ahead.target)
    if absent:
        raise errors.DeviceError(
            f"machine code for {ahead.target.cpu} does not run on this processor",
            got=f"without {', '.join(absent)}",
            fix="build for this processor, or for a level that it has, such as x86-64-v3",
        )
    require_loader()
    image = images.unpacked(ahead.image)
    addresses = link.stored(image, ahead.code.get) if image is not None else None
    if image is None or addresses is None:
        raise errors.LoweringError("machine code is incomplete", fix="build it again")
    target = ahead.target
    return CpuExecutable(
        program, options, target, image, addresses,
        build=lambda: Built(*_compiler().build(program, options, target)),
    )  # fmt: skip


def require_loader() -> None:
    """Check that machine code can be loaded.

    Raises:
        DeviceError: only LLVM's linker could, and it is not installed.
    """
    if not elf.is_supported() and importlib.util.find_spec("llvmlite") is None:
        raise errors.DeviceError(
            "machine code is loaded without a compiler on Linux with x86-64 only",
            got=f"{sys.platform}, and no llvmlite",
            fix="pip install llvmlite, whose linker is used elsewhere",
        )


# --- what programs call --------------------------------------------------------------------------


def runtime_code(target: Target) -> dict[str, bytes]:
    """Object files of the native functions of the thread pool, by the kind of pool."""
    return {kind: pool.runtime_code(target, is_native=is_native) for kind, is_native in _kinds()}


def runtime_digest(target: Target) -> str:
    """What identifies the native functions of this version of infini, whatever LLVM makes of them."""
    texts = [runtime.runtime_text(target, sys.platform, is_native=is_native) for _, is_native in _kinds()]
    return objects.text_digest("\0".join(texts))


def provide_runtime(code: Mapping[str, bytes]) -> None:
    """Take these functions for the pool, unless it has some."""
    for kind, is_native in _kinds():
        pool.provide(code[kind], is_native=is_native)


def _kinds() -> list[tuple[str, bool]]:
    native = [("native", True)] if sys.platform.startswith("linux") else []
    return [*native, ("portable", False)]


@functools.cache
def _compiler() -> Any:  # Any: a module, which loads the whole compiler
    return importlib.import_module("infini.backends.cpu.compiling")
