"""The CPU backend: programs become machine code by LLVM and run on a pool of native threads; buffers are host
memory.

With the knob `cpu_devices` one process looks like several devices that share memory.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from infini.backends.cpu import call_path, images, link
from infini.backends.cpu.executable import Built, CpuExecutable
from infini.backends.spmd import devices
from infini.compiler.llvm import target as targets
from infini.core import backend as backend_, ir, primitive
from infini.core.backend import CompileOptions, Device, Executable
from infini.core.layout import AutoLayout, Layout
from infini.core.memory import HOST

if TYPE_CHECKING:
    from infini.compiler.inspection import Inspection


class CpuBackend(devices.HostMemory):
    """Compiles with LLVM, runs on threads."""

    name = "cpu"

    def compile(self, program: ir.Program, options: CompileOptions) -> Executable:
        """Machine code for a program; one for a mesh is partitioned first, and its pieces are compiled.

        Raises:
            LoweringError: an operation has no route.
            DonationError: `donation="require"` and a donated parameter cannot be reused.
        """
        if options.mesh is not None:
            made_of_pieces: Executable = _partitioner().compile(self, program, options)
            return made_of_pieces
        target = targets.host_target()
        key = images.key(program, options, target)
        image = images.read(key) if key is not None else None
        addresses = link.stored(image) if image is not None else None
        if image is not None and addresses is not None:
            return CpuExecutable(
                program, options, target, image, addresses,
                build=lambda: Built(*_compiler().build(program, options, target)),
            )  # fmt: skip
        made: CpuExecutable = _compiler().compiled(program, options, target, key)
        return made

    def inspect(self, program: ir.Program, options: CompileOptions) -> Inspection:
        """Every stage of a program, from traced to assembly."""
        found: Inspection = _compiler().inspected(program, options, targets.host_target())
        return found

    def route(self, program: ir.Program, op: primitive.Primitive) -> backend_.Route:
        """How `op` is computed in a program made of nothing else."""
        found: backend_.Route = _compiler().route(program, op)
        return found

    def call_path(self) -> backend_.CallPath | None:
        """A short way for the calls of one jitted function."""
        return call_path.make()

    def preferred_layouts(
        self, program: ir.Program, layouts: Sequence[Layout | AutoLayout | None], options: CompileOptions
    ) -> tuple[Layout | None, ...]:
        """Layouts of the parameters, those that are `AUTO` chosen: panels of weights above all."""
        if options.mesh is None:
            found = _compiler().preferred(program)
        else:
            found = _partitioner().preferred_layouts(program, options, _compiler().preferred)
        return tuple(
            best if isinstance(asked, AutoLayout) else asked
            for asked, best in zip(layouts, found, strict=True)
        )

    def memory_stats(self, device: Device) -> dict[str, int]:
        """Bytes in use, at the peak and kept for reuse."""
        return HOST.stats()


# The compiler is loaded when something has to be compiled: a program from the disk runs without it.


@functools.cache
def _compiler() -> Any:  # Any: a module
    return importlib.import_module("infini.backends.cpu.compiling")


@functools.cache
def _partitioner() -> Any:  # Any: a module
    return importlib.import_module("infini.backends.spmd.executable")


@functools.cache
def backend() -> backend_.Backend:
    """The backend of this module, for the registry."""
    return CpuBackend()
