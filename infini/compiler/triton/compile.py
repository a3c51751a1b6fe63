"""Ahead-of-time compilation of Triton sources to machine code, without a GPU and without PyTorch. Imported
only where it is used.

Compiled for sm_80, sm_90 and gfx942 here; below compute capability 8.0 Triton's products are slow and
nothing is promised. The code and what a launch needs to know are kept in the disk cache as one msgpack
file, under a key of our own: Triton's cache holds absolute paths and cannot be moved.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import msgpack
import triton

from infini.compiler import disk_cache
from infini.compiler.triton import toolchain
from infini.compiler.triton.source import TritonSource
from infini.compiler.triton.target import MIN_CAPABILITY, Target, nvidia
from infini.core import errors

_FORMAT: Final = 2  # raise when the meaning of a stored entry changes
# Drivers of CUDA 12 refuse what the assembler of CUDA 13 makes; Triton brings both and picks by capability.
_CUDA_13: Final = 13000
_ASSEMBLY: Final = {"cuda": "ptx", "hip": "amdgcn"}


@dataclass(frozen=True, slots=True)
class Cubin:
    """Machine code of one kernel and how to launch it.

    Args:
        code: the binary: a cubin, or what the target has.
        ptx: its assembly: PTX, or what the target has.
        function_name: symbol of the kernel in `code`.
        parameters: Triton types of the parameters, compile-time ones left out; two hidden pointers follow
            them.
        shared_bytes: dynamic shared memory.
        num_warps: warps per program.
        scratch_bytes: global scratch memory per program.
        scratch_alignment: alignment of that memory.
        profile_bytes: scratch memory of Triton's profiler per program.
    """

    code: bytes
    ptx: str
    function_name: str
    parameters: tuple[str, ...]
    shared_bytes: int
    num_warps: int
    scratch_bytes: int
    scratch_alignment: int
    profile_bytes: int


def compile_source(source: TritonSource, target: Target | int, *, driver_version: int = 0) -> Cubin:
    """Machine code of a Triton source.

    Args:
        source: what `emit_triton` gave.
        target: what to compile for; a number is a compute capability times ten, such as 80 or 90.
        driver_version: CUDA version of the driver as its API gives it, such as 12040; 0 when nothing will be
            launched here.

    Raises:
        LoweringError: Triton or its assembler refuses the source, the kernel needs more than the target has,
            or the capability is below 8.0.
    """
    target = nvidia(target) if isinstance(target, int) else target
    capability = target.arch if isinstance(target.arch, int) and target.platform == "cuda" else MIN_CAPABILITY
    if capability < MIN_CAPABILITY:
        raise errors.LoweringError(
            f"the kernel {source.function_name} needs compute capability 8.0, not {capability / 10}",
            expected="an Ampere GPU or a later one",
            where=source.where,
        )
    assembler = _assembler(capability, driver_version)
    parts = (source.key, target.platform, target.arch, triton.__version__, assembler, _FORMAT)
    key = hashlib.blake2b(repr(parts).encode(), digest_size=20).hexdigest()
    stored = disk_cache.read("cubins", key)
    if stored is not None:
        fields = msgpack.unpackb(stored)
        toolchain.check_shared(source, target, fields["shared_bytes"])
        return Cubin(**{**fields, "parameters": tuple(fields["parameters"])})
    cubin = _compile(source, target, assembler)
    disk_cache.write("cubins", key, msgpack.packb(asdict(cubin)))
    return cubin


def _compile(source: TritonSource, target: Target, assembler: str) -> Cubin:
    with _environment({"TRITON_PTXAS_BLACKWELL_PATH": assembler} if assembler else {}):
        compiled = toolchain.compiled(source, target)
    metadata = compiled.metadata
    if _field(metadata, "num_ctas", 1) != 1:
        raise errors.LoweringError(
            f"the kernel {source.function_name} needs a cluster launch",
            got=f"{metadata.num_ctas} blocks",
            where=source.where,
        )
    return Cubin(
        code=compiled.asm[target.binary],
        ptx=compiled.asm[_ASSEMBLY[target.platform]],
        function_name=metadata.name,
        parameters=tuple(kind for _, kind in source.signature if kind != "constexpr"),
        shared_bytes=metadata.shared,
        num_warps=metadata.num_warps,
        scratch_bytes=_field(metadata, "global_scratch_size", 0),
        scratch_alignment=_field(metadata, "global_scratch_align", 1),
        profile_bytes=_field(metadata, "profile_scratch_size", 0),
    )


def _field(
    metadata: Any, name: str, default: int
) -> int:  # Any: Triton's metadata, whose fields differ between versions
    return int(getattr(metadata, name, default) or default)


def _assembler(capability: int, driver_version: int) -> str:
    """Path of the assembler to use instead of Triton's choice; empty to leave it."""
    if capability < 90 or not 0 < driver_version < _CUDA_13 or "TRITON_PTXAS_BLACKWELL_PATH" in os.environ:
        return ""
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    return str(bundled) if bundled.exists() else ""


@contextmanager
def _environment(changes: Mapping[str, str]) -> Any:  # Any: a generator
    previous = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
