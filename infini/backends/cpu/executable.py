"""A compiled program of the CPU backend: fill a table of pointers, call one native function, wrap the
results.
"""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from infini.backends.cpu import callbacks, interrupts, link, objects, pool
from infini.compiler import cost
from infini.compiler.llvm import program as program_, target as target_
from infini.compiler.llvm.program import ProgramText
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.steps import Alias, Block, Parameter, Phase, Place, Plan
from infini.core import errors, events, ir
from infini.core.backend import CompileOptions, Device
from infini.core.memory import HostBuffer
from infini.core.mesh import AxisEntry
from infini.core.source import Where

WAKE_NS: Final = 200_000.0  # a program that is worth waking parked workers
LONG_NS: Final = 20e6  # a program that people may want to interrupt

_Entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
_Begin = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32)
_End = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """Time of one phase of a profiled program, all its runs together."""

    name: str
    where: Where | None
    ns: float
    estimate_ns: float


class CpuExecutable:
    """A program compiled for the CPU.

    Args:
        source: the program as it was given.
        fused: the program in kernels.
        block: its steps.
        plan: where its variables are.
        options: as given to `compile`.
        target: processor it is made for.
    """

    in_specs: tuple[tuple[AxisEntry, ...], ...] = ()
    out_specs: tuple[tuple[AxisEntry, ...], ...] = ()

    def __init__(
        self,
        source: ir.Program,
        fused: ir.Program,
        block: Block,
        plan: Plan,
        options: CompileOptions,
        target: Target,
    ) -> None:
        self.source, self.fused, self.block, self.plan = source, fused, block, plan
        self.options, self.target = options, target
        self.native = program_.write(block, plan, target)
        self._result_bytes = [v.type.nbytes for v in block.results]
        self._aliases = [p.number if isinstance(p, Parameter) else None for p in plan.results]
        self._num_params = len(block.params)
        self._load(self.native)

    def _load(self, native: ProgramText) -> None:
        externs = link.functions(native.functions, self.target)
        only = None if native.timed else _only_task(self.block, self.plan)
        if only is not None:
            # One task over exactly the table: it needs no program around it.
            self._entry = _Entry(externs[only.name])
        else:
            self._entry = _Entry(link.program(native.name, native.text, externs, self.target))
        self._is_single = only is not None
        self._consts = [HostBuffer.copy_of(constant.array) for constant in native.consts]
        self._callbacks = [callbacks.Callback(*entry) for entry in native.callbacks]
        tail = [buffer.address for buffer in self._consts] + [c.address for c in self._callbacks]
        size = self._num_params + len(self._result_bytes) + 1 + len(tail) + 2  # counters, interruption
        self._table_type = ctypes.c_int64 * size
        self._tail_start = self._num_params + len(self._result_bytes) + 1
        self._tail = tail
        self._tables: list[Any] = []  # Any: ctypes arrays not in use
        self._may_be_long = not native.is_bounded or native.cost_ns >= LONG_NS
        self._wakes = native.cost_ns >= WAKE_NS
        self._is_serial = all(task.num_tasks <= 1 for task in native.functions.values())

    # --- running --------------------------------------------------------------------------------

    def __call__(self, inputs: Sequence[HostBuffer]) -> tuple[HostBuffer, ...]:
        """Run; donated inputs are overwritten or handed back as results."""
        table = self._tables.pop() if self._tables else self._new_table()
        inputs = self._owned(inputs) if self.options.donated else inputs
        n = 0
        for buffer in inputs:
            table[n] = buffer.address
            n += 1
        outputs = []
        for nbytes, alias in zip(self._result_bytes, self._aliases, strict=True):
            buffer = HostBuffer(nbytes) if alias is None else inputs[alias]
            table[n] = buffer.address
            outputs.append(buffer)
            n += 1
        arena = HostBuffer(self.plan.nbytes) if self.plan.nbytes else None
        table[n] = arena.address if arena is not None else 0
        if self._may_be_long:
            with interrupts.watching() as flag:
                table[len(table) - 1] = flag
                self._run(table)
        else:
            self._run(table)
        self._tables.append(table)
        if self._callbacks:
            callbacks.raise_failure()
        return tuple(outputs)

    def _new_table(self) -> Any:  # Any: a ctypes array
        table = self._table_type()
        for i, address in enumerate(self._tail, self._tail_start):
            table[i] = address
        table[len(table) - 1] = interrupts.NEVER
        return table

    def _owned(self, inputs: Sequence[HostBuffer]) -> list[HostBuffer]:
        """Inputs of which the donated ones may be overwritten: those that the host sees are copied (design
        4a.9).
        """
        owned = list(inputs)
        for i in self.options.donated:
            if inputs[i].has_views:
                type_ = self.block.params[i].type
                events.emit(
                    "donation-copied", f"a donated array of type {type_} is visible to NumPy and was copied"
                )
                owned[i] = HostBuffer.copy_of(inputs[i].view(type_.shape, type_.dtype))
        return owned

    def _run(self, table: Any) -> None:  # Any: a ctypes array
        if self._is_single:
            self._entry(ctypes.addressof(table), None)
            return
        if self._is_serial:
            self._entry(None, ctypes.addressof(table))
            return
        threads = pool.shared()
        if self._wakes:
            threads.wake()
        begin, end = _runtime()
        begin(threads.memory, int(self._wakes))
        try:
            self._entry(threads.memory, ctypes.addressof(table))
        finally:
            end(threads.memory)

    def run_spmd(
        self, inputs: Sequence[Sequence[HostBuffer]], devices: Sequence[Device]
    ) -> list[tuple[HostBuffer, ...]]:
        """Run on several devices, one after another: a program that was not compiled for a mesh talks to
        nobody.
        """
        return [self(row) for row in inputs]

    # --- looking at it --------------------------------------------------------------------------

    def text(self, stage: str) -> str:
        """Text of a stage: `program`, `kernels`, `llvm` (the whole program's module), `tasks` (every
        kernel's).

        Raises:
            ValueMismatchError: there is no such stage.
        """
        stages = {
            "program": lambda: repr(self.source),
            "kernels": lambda: repr(self.fused),
            "llvm": lambda: self.native.text,
            "tasks": lambda: "\n".join(task.text for task in self.native.functions.values()),
        }
        if stage not in stages:
            raise errors.ValueMismatchError(
                f"the cpu backend has no stage {stage!r}", expected=", ".join(stages)
            )
        return stages[stage]()

    def cost_analysis(self) -> dict[str, float]:
        """Counts of the compiled program, see `compiler.cost`."""
        return {**cost.analyse(self.source, self.fused), "copied bytes": self.native.copied_bytes}

    def memory_analysis(self) -> dict[str, int]:
        """Bytes of arguments, results, aliases and temporaries of the plan."""
        return memory_analysis(self.block, self.plan)

    def profile(self, inputs: Sequence[HostBuffer]) -> list[PhaseTime]:
        """Run once with a clock around every phase; phases inside loops are added up. Donated inputs are not
        overwritten.
        """
        return _Profiled(self).run(inputs)


def _only_task(block: Block, plan: Plan) -> TaskFunction | None:
    """The task function whose arguments are the parameters and results in order, when the program is nothing
    else.
    """
    phases = [step for step in block.steps if not isinstance(step, Alias)]
    if len(phases) != 1 or plan.copies or plan.scratch:
        return None
    (phase,) = phases
    if (
        not isinstance(phase, Phase)
        or phase.must_share
        or len(phase.tasks) != 1
        or phase.tasks[0].num_tasks != 1
    ):
        return None
    # A result in the memory of a donated parameter is the same address in two entries of the table.
    given: list[Place] = [*(Parameter(i) for i in range(len(block.params))), *plan.results]
    found = [plan.places[v] for v in (*phase.reads, *phase.writes)]
    task: TaskFunction = phase.tasks[0]
    return task if found == given else None


def memory_analysis(block: Block, plan: Plan) -> dict[str, int]:
    """Bytes of arguments, results, aliases and temporaries of a plan."""
    arguments = sum(v.type.nbytes for v in block.params)
    outputs = sum(v.type.nbytes for v in block.results)
    aliased = sum(
        v.type.nbytes for v, p in zip(block.results, plan.results, strict=True) if isinstance(p, Parameter)
    )
    return {
        "argument bytes": arguments,
        "output bytes": outputs,
        "alias bytes": aliased,
        "temp bytes": plan.nbytes,
        "peak bytes": arguments + outputs - aliased + plan.nbytes,
    }


class _Profiled(CpuExecutable):
    """The same program with counters."""

    def __init__(self, other: CpuExecutable) -> None:
        super().__init__(other.source, other.fused, other.block, other.plan, other.options, other.target)
        self.native = program_.write(other.block, other.plan, other.target, profile=True)
        self._counters = (ctypes.c_int64 * (len(self.native.timed) + 1))()
        self._load(self.native)
        self._tail = [*self._tail, ctypes.addressof(self._counters)]

    def run(self, inputs: Sequence[HostBuffer]) -> list[PhaseTime]:
        """Times of the second of two runs; cycles become time by the length of that run."""
        copies = [
            HostBuffer.copy_of(b.view(v.type.shape, v.type.dtype))
            for b, v in zip(inputs, self.block.params, strict=True)
        ]
        self(
            [
                HostBuffer.copy_of(b.view(v.type.shape, v.type.dtype))
                for b, v in zip(copies, self.block.params, strict=True)
            ]
        )
        ctypes.memset(self._counters, 0, ctypes.sizeof(self._counters))
        rate = _cycles_per_ns()
        self(copies)
        return [
            PhaseTime(timed.name, timed.where, ticks / rate, timed.cost_ns)
            for timed, ticks in zip(self.native.timed, self._counters, strict=False)
        ]


@functools.cache
def _cycles_per_ns() -> float:
    """Speed of the counter that profiles read."""
    text = (
        "declare i64 @llvm.readcyclecounter()\n"
        "define i64 @infini_cycles() nounwind {\n"
        "  %now = call i64 @llvm.readcyclecounter()\n  ret i64 %now\n}\n"
    )
    library = objects.load([objects.compile_module(text, target_.host_target())])
    read = ctypes.CFUNCTYPE(ctypes.c_int64)(library["infini_cycles"])
    first, start = read(), time.perf_counter_ns()
    while time.perf_counter_ns() - start < 5_000_000:
        pass
    return float(read() - first) / (time.perf_counter_ns() - start)


@functools.cache
def _runtime() -> tuple[Any, Any]:  # Any: ctypes functions
    symbols = pool.shared().symbols
    return _Begin(symbols["infini_begin"]), _End(symbols["infini_end"])
