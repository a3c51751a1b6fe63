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
import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import msgpack

from infini.backends.vendors.tables import Kernel
from infini.compiler import disk_cache
from infini.compiler.triton.module import load_module
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
        return _missing_target(target.platform, target.warp_size, self.install)

    def compile(self, source: TritonSource, target: Target) -> Kernel:
        """A kernel by the fork, or from the disk cache.

        Raises:
            LoweringError: there is no such fork here, or it refuses the source.
        """
        reason = self.why_unavailable(target)
        if reason is not None:
            raise errors.LoweringError(f"kernels for {target.name} cannot be compiled here", got=reason)
        triton = importlib.import_module("triton")
        made = (target.platform, target.arch, target.warp_size, target.binary, sorted(self.options.items()))
        known = repr((source.key, *made, triton.__version__, _FORMAT))
        key = hashlib.blake2b(known.encode(), digest_size=20).hexdigest()
        stored = disk_cache.read("kernels", key)
        if stored is not None:
            fields = msgpack.unpackb(stored)
            return Kernel(**{**fields, "parameters": tuple(fields["parameters"])})
        kernel = self._compile(triton, source, target)
        disk_cache.write("kernels", key, msgpack.packb(asdict(kernel)))
        return kernel

    def _compile(self, triton: Any, source: TritonSource, target: Target) -> Kernel:
        place = _gpu_target()(target.platform, target.arch, target.warp_size)
        # Fusing a product and a sum into one rounding is wanted; its default differs between versions.
        options = {"num_warps": source.num_warps, "num_stages": source.num_stages, "enable_fp_fusion": True}
        options |= self.options
        try:
            compiled = triton.compile(_described(triton, source), target=place, options=options)
        except Exception as error:  # passes and assemblers of forks fail in ways of their own
            raise errors.LoweringError(
                f"Triton for {target.name} refuses the kernel {source.function_name}", got=str(error)
            ) from error
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
def _missing_target(platform: str, warp: int, install: str) -> str | None:
    triton = importlib.import_module("triton")
    found = importlib.import_module("triton.backends").backends
    probe = _gpu_target()(platform, 0, warp)
    for name, backend in found.items():
        if name == platform or backend.compiler.supports_target(probe):
            return None
    names = ", ".join(found) or "nothing"
    return f"the installed Triton {triton.__version__} compiles for {names}, not for {platform}; {install}"


def _gpu_target() -> Any:  # Any: Triton has no types
    return importlib.import_module("triton.backends.compiler").GPUTarget


def _described(triton: Any, source: TritonSource) -> Any:  # Any: as above
    """The source as this version of Triton wants it described."""
    function = load_module(source.text)[source.function_name]
    described = importlib.import_module("triton.compiler").ASTSource
    signature, constants = dict(source.signature), dict(source.constexprs)
    names = list(signature)
    divisible = [names.index(name) for name in source.divisibility]
    parameters = inspect.signature(described.__init__).parameters
    if "constexprs" in parameters:  # Triton 3.3 and newer
        attrs: Any = {(i,): [["tt.divisibility", 16]] for i in divisible}
        return described(function, signature=signature, constexprs=constants, attrs=attrs)
    module = importlib.import_module("triton.backends.compiler")
    if hasattr(module, "AttrsDescriptor"):  # Triton 3.2
        attrs = module.AttrsDescriptor.from_dict(
            {"arg_properties": {"tt.divisibility": divisible}, "cls": "AttrsDescriptor"}
        )
        return described(function, signature=signature, constants=constants, attrs=attrs)
    module = importlib.import_module("triton.compiler.compiler")
    attrs = module.AttrsDescriptor(divisible_by_16=set(divisible), equal_to_1=set())
    numbered = {i: kind for i, kind in enumerate(signature.values()) if names[i] not in constants}
    values = {names.index(name): value for name, value in constants.items()}
    return described(function, signature=numbered, constants=values, attrs=attrs)
