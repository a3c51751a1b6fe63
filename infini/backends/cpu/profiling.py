"""Looking at a compiled program of the CPU backend: its text, its cost, and the time of every phase."""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass

from infini.backends.cpu import compiling, link, objects
from infini.backends.cpu.executable import Built, CpuExecutable
from infini.compiler import cost
from infini.compiler.llvm import program as program_, target as target_
from infini.compiler.llvm.program import ProgramText
from infini.compiler.steps import Group, Phase
from infini.compiler.triton import texts
from infini.core import errors
from infini.core.memory import HostBuffer
from infini.core.source import Where


def text_of(executable: CpuExecutable) -> ProgramText:
    """The text of the functions of a program."""
    return program_.write(executable.block, executable.plan, executable.target)


def text(executable: CpuExecutable, stage: str) -> str:
    """Text of a stage; see `CpuExecutable.text`.

    Raises:
        ValueMismatchError: there is no such stage.
    """
    functions = executable.native.functions if stage in ("tasks", "assembly") else {}
    stages = {
        "program": lambda: repr(executable.source),
        "kernels": lambda: repr(executable.fused),
        "llvm": lambda: executable.native.text,
        "tasks": lambda: "\n".join(task.text for task in functions.values()),
        "assembly": lambda: "\n".join(
            objects.assembly(link.module_text(task, executable.target), executable.target)
            for task in functions.values()
        ),
        "triton": lambda: texts.joined(executable.source),
    }
    if stage not in stages:
        raise errors.ValueMismatchError(f"the cpu backend has no stage {stage!r}", expected=", ".join(stages))
    return stages[stage]()


def cost_analysis(executable: CpuExecutable) -> dict[str, float]:
    """Counts of a compiled program, see `compiler.cost`."""
    return {
        **cost.analyse(executable.source, executable.fused, executable.block),
        "copied bytes": executable.image.copied_bytes,
        "phases": float(executable.image.num_phases),
    }


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """Time of one phase of a profiled program, all its runs together.

    Args:
        name: what it computes, for people.
        where: the user's line.
        ns: time on the clock.
        estimate_ns: what the compiler expected of one run on one thread.
        runs: how often it ran; more than once inside a loop.
        step: the phase itself; None for a copy of memory that could not be shared.
        nbytes: bytes of such a copy.
    """

    name: str
    where: Where | None
    ns: float
    estimate_ns: float
    runs: int = 1
    step: Phase | Group | None = None
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Profile:
    """One call of a program with a clock around every phase."""

    phases: tuple[PhaseTime, ...]
    wall_ns: float  # from the arrays to the results


class Profiled(CpuExecutable):
    """The same program with counters."""

    def __init__(self, other: CpuExecutable) -> None:
        built = Built(other.fused, other.block, other.plan)
        native = program_.write(built.block, built.plan, other.target, profile=True)
        image, addresses = compiling.linked(native, built, link.compilations(other.target))
        super().__init__(
            other.source,
            other.options,
            other.target,
            image,
            addresses,
            build=lambda: built,
            host_functions=native.callbacks,
        )
        self.native = native
        self._counters = (ctypes.c_int64 * (2 * len(native.timed) + 1))()
        self._tail = [*self._tail, ctypes.addressof(self._counters)]

    def run(self, inputs: Sequence[HostBuffer], calls: int) -> Profile:
        """The fastest call, after one that is not counted."""
        self(self._kept(inputs))
        found = [self._timed_call(self._kept(inputs)) for _ in range(calls)]
        return min(found, key=lambda profile: profile.wall_ns)

    def _kept(self, inputs: Sequence[HostBuffer]) -> list[HostBuffer]:
        """Inputs with copies in place of the donated ones."""
        kept = list(inputs)
        for i in self.options.donated:
            type_ = self.block.params[i].type
            kept[i] = HostBuffer.copy_of(inputs[i].view(type_.shape, type_.dtype))
        return kept

    def _timed_call(self, inputs: Sequence[HostBuffer]) -> Profile:
        rate = _cycles_per_ns()
        ctypes.memset(self._counters, 0, ctypes.sizeof(self._counters))
        started = time.perf_counter_ns()
        self(inputs)
        wall_ns = time.perf_counter_ns() - started
        phases = tuple(
            PhaseTime(
                timed.name, timed.where, self._counters[2 * n] / rate, timed.cost_ns,
                self._counters[2 * n + 1], timed.step, timed.nbytes,
            )
            for n, timed in enumerate(self.native.timed)
        )  # fmt: skip
        return Profile(phases, float(wall_ns))


@functools.cache
def _cycles_per_ns() -> float:
    """Speed of the counter that profiles read."""
    text = (
        "declare i64 @llvm.readcyclecounter()\n"
        "define i64 @infini_cycles() nounwind {\n"
        "  %now = call i64 @llvm.readcyclecounter()\n  ret i64 %now\n}\n"
    )
    library = objects.load([objects.compile_module(text, target_.host_target())], ["infini_cycles"])
    read = ctypes.CFUNCTYPE(ctypes.c_int64)(library["infini_cycles"])
    first, start = read(), time.perf_counter_ns()
    while time.perf_counter_ns() - start < 5_000_000:
        pass
    return float(read() - first) / (time.perf_counter_ns() - start)
