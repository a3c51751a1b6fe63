"""The CPU backend: programs become machine code by LLVM and run on a pool of native threads; buffers are host
memory.

With the knob `cpu_devices` one process looks like several devices that share memory.
"""

from __future__ import annotations

import functools

import numpy as np

from infini.backends import routes, spmd
from infini.backends.cpu.executable import CpuExecutable
from infini.backends.spmd import executable as spmd_executable
from infini.compiler import memory, pipeline, steps
from infini.compiler.llvm import lower, target as target_
from infini.compiler.passes import inline
from infini.compiler.steps import Block, Plan
from infini.core import backend as backend_, errors, events, ir, primitive
from infini.core.backend import CompileOptions, Device, Executable
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
        fused, block, plan = build(program, options, target_.host_target())
        return CpuExecutable(program, fused, block, plan, options, target_.host_target())

    def route(self, program: ir.Program, op: primitive.Primitive) -> backend_.Route:
        """How `op` is computed in a program made of nothing else."""
        return route(program, op)

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
    )


def build(
    program: ir.Program, options: CompileOptions, target: target_.Target
) -> tuple[ir.Program, Block, Plan]:
    """Everything but machine code: the program in kernels, its steps, and their memory."""
    fused = pipeline.run(program, lower.has_route, backend="cpu", declared=options.extents)
    block = lower.lower(fused, target)
    donated = frozenset(options.donated)
    plan = memory.plan(block, memory.Ends(writable=donated, is_free=True))
    check_donation(program, block, plan, options)
    return fused, block, plan


def check_donation(program: ir.Program, block: Block, plan: Plan, options: CompileOptions) -> None:
    """Say which donated parameters no result could reuse; scalars are not worth a word.

    Raises:
        DonationError: there is one, and the options require donation.
    """
    unused = [i for i in options.donated if i not in plan.donated and block.params[i].type.size > 1]
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
