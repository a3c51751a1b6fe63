"""The CPU backend: programs become machine code by LLVM and run on a pool of native threads; buffers are host
memory.

With the knob `cpu_devices` one process looks like several devices that share memory.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from infini.backends import routes, spmd
from infini.backends.cpu import call_path, images, inspect, link
from infini.backends.cpu.executable import Built, CpuExecutable, compiled
from infini.backends.spmd import executable as spmd_executable
from infini.compiler import dump, inspection, memory, ordering, pipeline, rematerialise, steps
from infini.compiler.llvm import (
    layouts as llvm_layouts,
    linear_algebra,
    lower,
    program as program_,
    target as target_,
    together,
)
from infini.compiler.passes import inline
from infini.compiler.steps import Block, Plan
from infini.core import backend as backend_, config, errors, events, ir, primitive
from infini.core.backend import CompileOptions, Device, Executable
from infini.core.layout import AUTO, AutoLayout, Layout
from infini.core.memory import HOST, HostBuffer


class CpuBackend:
    """Compiles with LLVM, runs on threads."""

    name = "cpu"

    def devices(self) -> tuple[Device, ...]:
        """The host, as often as the knob `cpu_devices` says."""
        return spmd.host_devices(self.name)

    def owns(self, device: Device) -> bool:
        """Whether this process holds the device."""
        return spmd.owns(device)

    def why_unavailable(self) -> str | None:
        """It always has a device."""
        return None

    def put(self, host: np.ndarray, device: Device) -> HostBuffer:
        """A copy in C order."""
        return HostBuffer.copy_of(host)

    def adopt(self, host: np.ndarray, device: Device) -> HostBuffer:
        """The memory of the array itself."""
        return HostBuffer.adopt(host)

    def get(self, buffer: HostBuffer, type: ir.ArrayType) -> np.ndarray:
        """The memory itself; the buffer is not reused while the array is alive."""
        return buffer.view(type.shape, type.dtype)

    def copy(self, buffer: HostBuffer, type: ir.ArrayType, device: Device) -> HostBuffer:
        """A copy of the contents."""
        return HostBuffer.copy_of(buffer.view(type.shape, type.dtype))

    def compile(self, program: ir.Program, options: CompileOptions) -> Executable:
        """Machine code for a program; one for a mesh is partitioned first, and its pieces are compiled.

        Raises:
            LoweringError: an operation has no route.
            DonationError: `donation="require"` and a donated parameter cannot be reused.
        """
        if options.mesh is not None:
            return spmd_executable.compile(self, program, options)
        target = target_.host_target()
        key = images.key(program, options, target)
        image = images.read(key) if key is not None else None
        addresses = link.stored(image, target) if image is not None else None
        if image is not None and addresses is not None:
            return CpuExecutable(
                program, options, target, image, addresses, lambda: Built(*build(program, options, target))
            )
        recorder = dump.recorder()
        found = compiled(program, options, target, Built(*build(program, options, target, recorder)))
        if recorder is not None:
            dump.write(inspect.inspection(program, recorder, found.native, target))
        # What a compilation says about donated arrays is said every time.
        if key is not None and not unused_donations(found.block, found.plan, options):
            images.write(key, found.image)
        return found

    def inspect(self, program: ir.Program, options: CompileOptions) -> inspection.Inspection:
        """Every stage of a program, from traced to assembly."""
        recorder, target = inspection.Recorder(), target_.host_target()
        _, block, plan = build(program, options, target, recorder)
        return inspect.inspection(program, recorder, program_.write(block, plan, target), target)

    def route(self, program: ir.Program, op: primitive.Primitive) -> backend_.Route:
        """How `op` is computed in a program made of nothing else."""
        return route(program, op)

    def call_path(self) -> backend_.CallPath | None:
        """A short way for the calls of one jitted function."""
        return call_path.make()

    def preferred_layouts(
        self, program: ir.Program, layouts: Sequence[Layout | AutoLayout | None], options: CompileOptions
    ) -> tuple[Layout | None, ...]:
        """Layouts of the parameters, those that are `AUTO` chosen: panels of weights above all."""
        if options.mesh is None:
            found = _preferred(program)
        else:
            found = spmd_executable.preferred_layouts(program, options, _preferred)
        return tuple(
            best if asked is AUTO else asked  # type: ignore[misc]  # the others are layouts
            for asked, best in zip(layouts, found, strict=True)
        )

    def memory_stats(self, device: Device) -> dict[str, int]:
        """Bytes in use, at the peak and kept for reuse."""
        return HOST.stats()


def route(program: ir.Program, op: primitive.Primitive) -> backend_.Route:
    """How the CPU computes `op` in a program made of nothing else."""
    return routes.without_program(op, has_mesh=True) or routes.compiled(
        program,
        op,
        passes=lambda program: pipeline.run(program, lower.has_route, backend="cpu"),
        has_route=lower.has_route,
        routes=lower.ROUTES,
        inlined=inline.CALLS,
        library=linear_algebra.NAMES,
    )


def _preferred(program: ir.Program) -> tuple[Layout | None, ...]:
    """The best layouts of the parameters of a program on one device."""
    for step in pipeline.canonical_passes(lower.has_route, backend="cpu"):
        program = step.run(program)
    return llvm_layouts.preferred(program, target_.host_target())


def build(
    program: ir.Program,
    options: CompileOptions,
    target: target_.Target,
    observe: pipeline.Observer | None = None,
) -> tuple[ir.Program, Block, Plan]:
    """Everything but machine code: the program in kernels, its steps, and their memory."""
    fused = pipeline.run(
        program,
        lower.has_route,
        backend="cpu",
        declared=options.extents,
        reads_panels=lambda equation: lower.reads_panels(equation, target),
        takes_windows=lambda x, w, attrs: lower.takes_windows(x, w, attrs, target),
        observe=observe,
    )
    ends = memory.Ends(writable=frozenset(options.donated), is_free=True)
    block = ordering.ordered(lower.lower(fused, target), ends)
    if budget := config.get("memory_budget"):
        block = rematerialise.within(block, ends, budget)
    block = together.grouped(block, ends.writable)
    plan = memory.plan(block, ends)
    check_donation(program, block, plan, options)
    return fused, block, plan


def check_donation(program: ir.Program, block: Block, plan: Plan, options: CompileOptions) -> None:
    """Say which donated parameters no result could reuse.

    Raises:
        DonationError: there is one, and the options require donation.
    """
    unused = unused_donations(block, plan, options)
    if not unused:
        return
    reasons = [_why_unused(block, i) for i in unused]
    if options.donation == "require":
        raise errors.DonationError(
            "a donated array could not be reused",
            got="; ".join(reasons),
            expected="a result of the same size that is made when the array is no longer needed",
            fix='donate only arrays that a result replaces, or use donation="allow"',
        )
    events.emit(
        "donation-unused",
        f"donated arrays of @{program.name} could not be reused: {'; '.join(reasons)}",
        level="warning",
        parameters=tuple(unused),
    )


def unused_donations(block: Block, plan: Plan, options: CompileOptions) -> list[int]:
    """Donated parameters that no result could reuse; scalars are not worth a word."""
    return [i for i in options.donated if i not in plan.donated and block.params[i].type.size > 1]


def _why_unused(block: Block, number: int) -> str:
    param = block.params[number]
    if param in block.results:
        return f"parameter {number} ({param.type}) is itself a result and another one has its place"
    if not any(v.type.nbytes == param.type.nbytes for v in block.results):
        return f"parameter {number} ({param.type}): no result has {param.type.nbytes} bytes"
    aliases = {param}
    last: steps.Step | None = None
    for step in block.steps:
        if isinstance(step, steps.Alias):
            aliases |= {step.write} if step.read in aliases else set()
        elif aliases & set(steps.reads_of(step)):
            last = step
    if last is None:
        return f"parameter {number} ({param.type}): other donated arrays have taken the results of its size"
    name = getattr(last, "name", "host call")
    where = getattr(last, "where", None)
    return f"parameter {number} ({param.type}) is still read by {name!r}" + (f" at {where}" if where else "")


@functools.cache
def backend() -> backend_.Backend:
    """The backend of this module, for the registry."""
    return CpuBackend()
