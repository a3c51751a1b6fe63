"""Triton as a compiler, whichever version or fork of it is installed as the package `triton`.

Versions from 3.0 on describe a source in three ways; here is the one place that knows them. Passes and
assemblers fail in ways of their own, so whatever is raised becomes one error that names the kernel. Triton is
loaded by the first call, and neither its driver nor PyTorch is used.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from infini.compiler.triton.module import load_module
from infini.compiler.triton.source import TritonSource
from infini.compiler.triton.target import Target
from infini.core import errors


def compiled(
    source: TritonSource,
    target: Target,
    options: Mapping[str, Any] | None = None,  # Any: numbers and flags of a fork
) -> Any:  # Any: Triton has no types
    """What Triton makes of a source: an object with `asm`, the binary under `target.binary` among it, and
    `metadata`, whose fields differ between versions.

    Args:
        source: what `emit_triton` gave.
        target: what to compile for.
        options: options besides the source's own.

    Raises:
        LoweringError: Triton, one of its passes or its assembler fails, or makes no binary of that name.
    """
    triton = importlib.import_module("triton")
    # Fusing a product and a sum into one rounding is wanted; its default differs between versions.
    asked = {"num_warps": source.num_warps, "num_stages": source.num_stages, "enable_fp_fusion": True}
    place, described = place_of(target), _described(source, target)
    try:
        made = triton.compile(described, target=place, options={**asked, **(options or {})})
    except Exception as error:  # passes and assemblers fail in ways of their own
        raise _refused(source, target, f"{type(error).__name__}: {error}") from error
    if target.binary not in made.asm:
        raise _refused(source, target, f"{', '.join(made.asm)}, and no {target.binary}")
    check_shared(source, target, int(made.metadata.shared))
    return made


def check_shared(source: TritonSource, target: Target, shared_bytes: int) -> None:
    """Check that a kernel needs no more shared memory than a target has.

    Raises:
        LoweringError: it needs more.
    """
    if shared_bytes > target.shared_bytes:
        raise errors.LoweringError(
            f"the kernel {source.function_name} needs more shared memory than {target.name} has",
            got=f"{shared_bytes} bytes",
            expected=f"at most {target.shared_bytes}",
            fix="choose smaller blocks, or fewer stages",
            where=source.where,
        )


def place_of(target: Target, arch: int | str | None = None) -> Any:  # Any: as above
    """A target as Triton names it.

    Args:
        target: the target.
        arch: another processor of its family.
    """
    described = importlib.import_module("triton.backends.compiler").GPUTarget
    return described(target.platform, target.arch if arch is None else arch, target.warp_size)


def _refused(source: TritonSource, target: Target, said: str) -> errors.LoweringError:
    version = importlib.import_module("triton").__version__
    return errors.LoweringError(
        f"Triton {version} for {target.name} refuses the kernel {source.function_name}",
        got=said,
        expected=f"a {target.binary}",
        fix="INFINI_DUMP=triton prints the kernel; other sizes of blocks may pass, and a report helps",
        where=source.where,
    )


def _described(source: TritonSource, target: Target) -> Any:  # Any: as above
    """The source as this version of Triton wants it described."""
    try:
        function = load_module(source.text)[source.function_name]
    except SyntaxError as error:  # a mistake of ours, or of whoever wrote the text
        raise _refused(source, target, f"SyntaxError: {error}") from error
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
