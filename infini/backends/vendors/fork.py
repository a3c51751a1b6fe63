"""The compile step of a vendor: his fork of Triton, which takes the text of a kernel and gives a binary.

Forks are installed as the package `triton`, so there is one at most, and which one is found out. They start
from Triton 3.0 to 3.6, whose ways to describe a source differ; the number of hidden parameters is what the
fork's own description of the binary says. Nothing here launches: Triton's driver and PyTorch are not used.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import msgpack

from infini.backends.vendors.tables import Kernel
from infini.compiler import disk_cache
from infini.compiler.triton import toolchain
from infini.compiler.triton.source import TritonSource
from infini.compiler.triton.target import Target
from infini.core import errors

_FORMAT: Final = 1  # raise when the meaning of a stored entry changes


@dataclass(frozen=True, slots=True)
class TritonFork:
    """A fork of Triton.

    Args:
        install: what to install, for the user.
        scratch: what its description of a binary calls the global memory that a program needs.
        options: options for every kernel.
        facts: what to keep of its description of a binary, besides what every kernel has.
    """

    install: str
    scratch: str = "global_scratch_size"
    options: Mapping[str, Any] = field(default_factory=dict)  # Any: numbers and flags of the fork
    facts: tuple[str, ...] = ()

    def why_unavailable(self, target: Target) -> str | None:
        """Why no kernel can be compiled here: no Triton, or one for other processors."""
        if importlib.util.find_spec("triton") is None:
            return f"no Triton is installed; {self.install}"
        return _missing_target(target, self.install)

    def compile(self, source: TritonSource, target: Target) -> Kernel:
        """A kernel by the fork, or from the disk cache.

        Raises:
            LoweringError: there is no such fork here, or it refuses the source.
        """
        reason = self.why_unavailable(target)
        if reason is not None:
            raise errors.LoweringError(
                f"the kernel {source.function_name} for {target.name} cannot be compiled here",
                got=reason,
                where=source.where,
            )
        triton = importlib.import_module("triton")
        made = (target.platform, target.arch, target.warp_size, target.binary, sorted(self.options.items()))
        known = repr((source.key, *made, triton.__version__, _FORMAT))
        key = hashlib.blake2b(known.encode(), digest_size=20).hexdigest()
        stored = disk_cache.read("kernels", key)
        if stored is not None:
            fields = msgpack.unpackb(stored)
            toolchain.check_shared(source, target, fields["shared_bytes"])
            return Kernel(**{**fields, "parameters": tuple(fields["parameters"])})
        kernel = self._compile(source, target)
        disk_cache.write("kernels", key, msgpack.packb(asdict(kernel)))
        return kernel

    def _compile(self, source: TritonSource, target: Target) -> Kernel:
        compiled = toolchain.compiled(source, target, self.options)
        metadata = compiled.metadata
        # Triton 3.3 and newer pass scratch memory of the grid after the rest, and later the profiler's.
        hidden = [name for name in ("global_scratch_size", "profile_scratch_size") if hasattr(metadata, name)]
        return Kernel(
            code=compiled.asm[target.binary],
            name=metadata.name,
            parameters=tuple(kind for _, kind in source.signature if kind != "constexpr"),
            num_hidden=len(hidden),
            num_warps=metadata.num_warps,
            shared_bytes=int(metadata.shared),
            scratch_bytes=max(0, int(getattr(metadata, self.scratch, 0) or 0)),
            facts={name: getattr(metadata, name) for name in self.facts if hasattr(metadata, name)},
        )


@functools.lru_cache(maxsize=16)
def _missing_target(target: Target, install: str) -> str | None:
    triton = importlib.import_module("triton")
    found = importlib.import_module("triton.backends").backends
    platform, probe = target.platform, toolchain.place_of(target, 0)
    for name, backend in found.items():
        if name == platform or backend.compiler.supports_target(probe):
            return None
    names = ", ".join(found) or "nothing"
    return f"the installed Triton {triton.__version__} compiles for {names}, not for {platform}; {install}"
