"""No device at all: the whole CPU compiler pipeline runs, programs do not. For counting kernels, bytes and
copies in tests.

Results are buffers of zeros, so programs of any size run in the time it takes to make them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from infini.backends.cpu import compiling
from infini.backends.spmd import devices, executable as spmd_executable
from infini.compiler import cost
from infini.compiler.llvm import program as program_, target as target_
from infini.core import backend as backend_, errors, ir, primitive
from infini.core.backend import CompileOptions, Device, Executable
from infini.core.memory import HostBuffer
from infini.core.mesh import AxisEntry


class NullExecutable:
    """A compiled program that computes nothing."""

    in_specs: tuple[tuple[AxisEntry, ...], ...] = ()
    out_specs: tuple[tuple[AxisEntry, ...], ...] = ()

    def __init__(self, program: ir.Program, options: CompileOptions) -> None:
        target = target_.host_target()
        self.program, self.options = program, options
        self.fused, self.block, self.plan = compiling.build(program, options, target)
        self.native = program_.write(self.block, self.plan, target)

    @property
    def reused(self) -> frozenset[int]:
        """Numbers of the donated parameters whose memory a result would have."""
        return self.plan.donated

    def __call__(self, inputs: Sequence[HostBuffer]) -> tuple[HostBuffer, ...]:
        """Buffers of zeros."""
        return tuple(HostBuffer.copy_of(np.zeros(v.type.shape, v.type.dtype)) for v in self.program.results)

    def run_spmd(
        self, inputs: Sequence[Sequence[HostBuffer]], devices: Sequence[Device]
    ) -> list[tuple[HostBuffer, ...]]:
        """Buffers of zeros for every device."""
        return [self(row) for row in inputs]

    def text(self, stage: str) -> str:
        """Text of a stage: `program`, `kernels` or `llvm`.

        Raises:
            ValueMismatchError: there is no such stage.
        """
        stages = {
            "program": lambda: repr(self.program),
            "kernels": lambda: repr(self.fused),
            "llvm": lambda: self.native.text,
        }
        if stage not in stages:
            raise errors.ValueMismatchError(
                f"the null backend has no stage {stage!r}", expected=", ".join(stages)
            )
        return stages[stage]()

    def cost_analysis(self) -> dict[str, float]:
        """Counts of the compiled program, see `compiler.cost`."""
        return {
            **cost.analyse(self.program, self.fused),
            "copied bytes": self.native.copied_bytes,
            "phases": float(self.native.num_phases),
        }

    def memory_analysis(self) -> dict[str, int]:
        """Bytes of arguments, results, aliases and temporaries of the plan."""
        return compiling.memory_analysis(self.block, self.plan)


class NullBackend(devices.HostMemory):
    """Compiles for the CPU and runs nothing."""

    name = "null"

    def compile(self, program: ir.Program, options: CompileOptions) -> Executable:
        """Everything but machine code.

        Raises:
            LoweringError: an operation has no route.
            DonationError: `donation="require"` and a donated parameter cannot be reused.
        """
        if options.mesh is not None:
            return spmd_executable.compile(self, program, options)
        return NullExecutable(program, options)

    def route(self, program: ir.Program, op: primitive.Primitive) -> backend_.Route:
        """How the CPU computes `op` in a program made of nothing else."""
        return compiling.route(program, op)

    def memory_stats(self, device: Device) -> dict[str, int]:
        """Nothing is counted."""
        return {"bytes_in_use": 0, "peak_bytes_in_use": 0, "bytes_kept": 0}


@functools.cache
def backend() -> backend_.Backend:
    """The backend of this module, for the registry."""
    return NullBackend()
