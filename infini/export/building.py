"""`build`: machine code of a kernel for given types and targets, in a folder."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from infini.backends.cpu import ahead, processor
from infini.compiler.triton import launching, target as targets
from infini.compiler.triton.target import Target as GpuTarget
from infini.core import errors, ir, text
from infini.core.backend import CompileOptions
from infini.core.ir import ArrayType
from infini.export import manifest as manifest_
from infini.export.manifest import Binary, Manifest, Signature
from infini.tile import simulation
from infini.tile.binding import Bound
from infini.tile.function import KernelFunction
from infini.tile.program import Kernel, kernel_p

_OPTIONS: Final = CompileOptions()


def build(
    kernel: KernelFunction,
    signatures: Sequence[Sequence[Any]],
    targets: Sequence[str],
    folder: str | Path,
    **static: Hashable,
) -> Path:  # Any: operands of a call, or types in their place
    """Compile a kernel ahead of time, and write what running it needs.

    Args:
        kernel: the kernel.
        signatures: lists of types of operands, or of operands; one binary is made for each.
        targets: `cpu` for the processor of this machine; `cpu:x86-64-v3` for a level of x86-64, after which
            features may be added (`cpu:x86-64-v3+avxvnni`); `cuda:90` for a compute capability; `hip:gfx942`
            for a GPU of AMD.
        folder: where to write. What `build` wrote there before is replaced.
        **static: keyword arguments of the application.

    Returns:
        The folder, which `load` takes.

    Raises:
        TypeMismatchError: a signature is no list of what the kernel may be called with.
        ValueMismatchError: a target is unknown, nothing is asked for, or signatures of the same types differ
            in parameters of compilation.
        LoweringError: the kernel cannot be compiled for a target.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from infini import lax, tile
        >>> x = tile.Tensor(1)
        >>> cut = lambda x, y: (x.tile((4,)), y.tile((4,)))
        >>> twice = tile.kernel(cut, tensors=(x, tile.Tensor(shape=x.shape)))(lambda x: lax.add(x, x))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     built = tile.build(twice, [[np.ones(6, np.float32)]], ["cpu"], folder)
        ...     print(tile.load(built)(np.arange(6, dtype=np.float32)))
        [ 0.  2.  4.  6.  8. 10.]
    """
    calls = [
        simulation.bound(kernel, signature, static, f"signature {number} of build", "[[type, ...], ...]")
        for number, signature in enumerate(signatures)
    ]
    _check(kernel, calls)
    wanted = [targets] if isinstance(targets, str) else list(dict.fromkeys(targets))
    if not calls or not wanted:
        raise errors.ValueMismatchError(
            f"there is nothing to build of {kernel.name}",
            got=f"{len(calls)} signatures, {len(wanted)} targets",
            fix="give at least one of each",
        )
    makers = [(target, _maker(target)) for target in wanted]
    files: dict[str, bytes] = {}
    found, binaries = [], []
    for number, call in enumerate(calls):
        types = call.types
        program = kernel.as_program(types, **call.static)
        found.append(Signature(types, program.out_types))
        for target, make in makers:
            made = make(program)
            names = {use: f"{manifest_.digest(content)}{made.suffix}" for use, content in made.files.items()}
            files |= {names[use]: content for use, content in made.files.items()}
            binaries.append(Binary(number, target, made.kind, names, made.facts))  # type: ignore[arg-type]
    digests = {name: manifest_.digest(content) for name, content in files.items()}
    place = Path(folder)
    manifest_.write(place, Manifest(kernel.name, tuple(found), tuple(binaries), digests), files)
    return place


@dataclass(frozen=True, slots=True)
class _Made:
    """What a target made of a kernel."""

    kind: str
    suffix: str
    files: Mapping[str, bytes]
    facts: Mapping[str, Any]  # Any: what msgpack holds


_Maker = Callable[[ir.Program], _Made]  # from the program of one kernel


def _check(kernel: KernelFunction, calls: Sequence[Bound]) -> None:
    """Whether operands tell the signatures apart: a built kernel takes no parameters of compilation."""
    known: dict[tuple[ArrayType, ...], Mapping[str, Any]] = {}  # Any: hashable constants
    for call in calls:
        before = known.setdefault(call.types, call.static)
        if before != call.static:
            raise errors.ValueMismatchError(
                f"two signatures of {kernel.name} have the same types and other parameters of compilation",
                got=f"{before} and {call.static}",
                fix="build them into two folders",
            )


def _maker(target: str) -> _Maker:
    """What makes code for a target."""
    kind, _, rest = target.partition(":")
    if kind == "cpu":
        return functools.partial(_for_cpu, processor.target(rest))
    if kind == "cuda" and rest.isdigit():
        return functools.partial(_for_gpu, targets.nvidia(int(rest)))
    if kind == "hip":
        return functools.partial(_for_gpu, targets.target_of(rest))
    raise errors.ValueMismatchError(
        f"{target!r} is no target that kernels are built for",
        expected="cpu, cpu:x86-64-v3, cuda:80, cuda:90, hip:gfx942 and the like",
    )


def _for_cpu(target: Any, program: ir.Program) -> _Made:  # Any: a Target
    made = ahead.build(program, _OPTIONS, target)
    runtime = {f"runtime {kind}": code for kind, code in ahead.runtime_code(target).items()}
    facts = {
        "program": text.print_program(program, lines=False),
        "image": made.image,
        "target": dataclasses.asdict(target),
        "runtime": ahead.runtime_digest(target),
    }
    return _Made("cpu", ".o", {**made.code, **runtime}, facts)


def _for_gpu(target: GpuTarget, program: ir.Program) -> _Made:
    (equation,) = program.equations
    kernel: Kernel = equation.attrs["kernel"]
    if equation.op is not kernel_p:
        raise errors.UnsupportedError(
            f"{kernel.name} writes a result at run-time places, which takes several functions of a GPU",
            got=f"target {target.arch}",
            expected="a target whose binaries hold several functions: cpu",
            fix="call the kernel inside of jit there",
        )
    source = launching.chosen(_triton("emit").emit_triton(kernel, program.in_types, target=target), kernel)
    fields = dataclasses.asdict(_triton("compile").compile_source(source, target))
    code = fields.pop("code")
    del fields["ptx"]
    facts = {"arch": target.arch, "grid": source.grid, "binary": fields}
    return _Made(target.platform, f".{target.binary}", {"code": code}, facts)


@functools.cache
def _triton(name: str) -> Any:  # Any: a module, which may load Triton
    try:
        return importlib.import_module(f"infini.compiler.triton.{name}")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise errors.LoweringError(
            "kernels for GPUs are compiled by Triton", got="it is not installed", fix="pip install triton"
        ) from None
