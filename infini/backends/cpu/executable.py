"""A compiled program of the CPU backend: fill a table of pointers, call one native function, wrap the
results.
"""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from infini.backends.cpu import callbacks, interrupts, link, objects, pool
from infini.backends.cpu.images import Code, Image
from infini.compiler import cost
from infini.compiler.llvm import program as program_, target as target_
from infini.compiler.llvm.program import ProgramText
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.steps import Alias, Block, Group, Parameter, Phase, Place, Plan
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


@dataclass(frozen=True, slots=True)
class CallFacts:
    """What `call_path` needs to run a program.

    Args:
        entry: address of its native function.
        mode: `single` (table, null), `serial` (null, table) or `pooled` (between begin and end of the pool).
        wakes: whether it is worth waking parked workers.
        cost_ns: estimate of its time.
        tail: addresses that are the same in every call.
        aliases: for each result the donated parameter it lies in, or None.
        arena_bytes: size of its arena.
        num_inputs: number of parameters.
        donated: numbers of the donated ones.
    """

    entry: int
    mode: str
    wakes: bool
    cost_ns: float
    tail: tuple[int, ...]
    aliases: tuple[int | None, ...]
    arena_bytes: int
    num_inputs: int
    donated: tuple[int, ...]


def compiled(source: ir.Program, options: CompileOptions, target: Target, built: Built) -> CpuExecutable:
    """Machine code of a program whose steps are planned."""
    native = program_.write(built.block, built.plan, target)
    image, addresses = linked(native, built, target)
    made = CpuExecutable(source, options, target, image, addresses, lambda: built, native.callbacks)
    made.native = native
    return made


def linked(native: ProgramText, built: Built, target: Target) -> tuple[Image, dict[str, int]]:
    """The image of a text and the addresses of its functions, after compiling what is new."""
    block, plan = built.block, built.plan
    addresses = link.functions(native.functions, target)
    only = None if native.timed else _only_task(block, plan)
    program = None
    if only is None:  # one task over exactly the table needs no program around it
        address = link.program(native.name, native.text, addresses, target)
        addresses = {**addresses, native.name: address}
        program = Code(native.name, objects.object_key(native.text, target, link.PROGRAM_LEVEL))
    image = Image(
        functions=tuple(
            Code(
                task.name,
                objects.object_key(link.module_text(task, target), target),
                tuple(sorted(task.declares)),
            )
            for task in native.functions.values()
        ),
        program=program,
        consts=tuple(constant.array for constant in native.consts),
        num_params=len(block.params),
        result_bytes=tuple(v.type.nbytes for v in block.results),
        aliases=tuple(p.number if isinstance(p, Parameter) else None for p in plan.results),
        arena_bytes=plan.nbytes,
        is_bounded=native.is_bounded,
        cost_ns=native.cost_ns,
        copied_bytes=native.copied_bytes,
        num_phases=native.num_phases,
        memory=memory_analysis(block, plan),
    )
    return image, addresses


@dataclass(frozen=True, slots=True)
class Built:
    """A program on its way to machine code.

    Args:
        fused: the program in kernels.
        block: its steps.
        plan: where its variables are.
    """

    fused: ir.Program
    block: Block
    plan: Plan


class CpuExecutable:
    """A program compiled for the CPU.

    Args:
        source: the program as it was given.
        options: as given to `compile`.
        target: processor it is made for.
        image: what running it needs.
        addresses: of the functions of the image.
        build: makes its steps and their plan, which only looking at it needs.
        host_functions: what it calls back.
    """

    in_specs: tuple[tuple[AxisEntry, ...], ...] = ()
    out_specs: tuple[tuple[AxisEntry, ...], ...] = ()

    def __init__(
        self,
        source: ir.Program,
        options: CompileOptions,
        target: Target,
        image: Image,
        addresses: Mapping[str, int],
        build: Callable[[], Built],
        host_functions: Sequence[program_.HostEntry] = (),
    ) -> None:
        self.source, self.options, self.target, self.image = source, options, target, image
        self._build = build
        entry = image.functions[0] if image.program is None else image.program
        self._addresses = addresses  # which keep the code loaded
        self._entry = _Entry(addresses[entry.symbol])
        self._is_single = image.program is None
        self._consts = [HostBuffer.copy_of(array) for array in image.consts]
        self._callbacks = [callbacks.Callback(*entry) for entry in host_functions]
        tail = [buffer.address for buffer in self._consts] + [c.address for c in self._callbacks]
        size = image.num_params + len(image.result_bytes) + 1 + len(tail) + 2  # counters, interruption
        self._table_type = ctypes.c_int64 * size
        self._tail_start = image.num_params + len(image.result_bytes) + 1
        self._tail = tail
        self._tables: list[Any] = []  # Any: ctypes arrays not in use
        self._may_be_long = not image.is_bounded or image.cost_ns >= LONG_NS
        self._wakes = image.cost_ns >= WAKE_NS
        self._is_serial = image.num_phases == 0

    @functools.cached_property
    def _built(self) -> Built:
        return self._build()

    @property
    def fused(self) -> ir.Program:
        """The program in kernels."""
        return self._built.fused

    @property
    def block(self) -> Block:
        """Its steps."""
        return self._built.block

    @property
    def plan(self) -> Plan:
        """Where its variables are."""
        return self._built.plan

    @functools.cached_property
    def native(self) -> ProgramText:
        """Its text."""
        return program_.write(self.block, self.plan, self.target)

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
        for nbytes, alias in zip(self.image.result_bytes, self.image.aliases, strict=True):
            buffer = HostBuffer(nbytes) if alias is None else inputs[alias]
            table[n] = buffer.address
            outputs.append(buffer)
            n += 1
        arena = HostBuffer(self.image.arena_bytes) if self.image.arena_bytes else None
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

    def call_facts(self) -> CallFacts | None:
        """What runs it without Python; None when it needs to be watched or calls back."""
        if self._may_be_long or self._callbacks:
            return None
        mode = "single" if self._is_single else "serial" if self._is_serial else "pooled"
        entry = ctypes.cast(self._entry, ctypes.c_void_p).value
        assert entry is not None
        return CallFacts(
            entry, mode, self._wakes, self.image.cost_ns, tuple(self._tail), self.image.aliases,
            self.image.arena_bytes, self.image.num_params, self.options.donated,
        )  # fmt: skip

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
                type_ = self.source.params[i].type
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
        kernel's), `assembly` (of every kernel).

        Raises:
            ValueMismatchError: there is no such stage.
        """
        stages = {
            "program": lambda: repr(self.source),
            "kernels": lambda: repr(self.fused),
            "llvm": lambda: self.native.text,
            "tasks": lambda: "\n".join(task.text for task in self.native.functions.values()),
            "assembly": lambda: "\n".join(
                objects.assembly(link.module_text(task, self.target), self.target)
                for task in self.native.functions.values()
            ),
        }
        if stage not in stages:
            raise errors.ValueMismatchError(
                f"the cpu backend has no stage {stage!r}", expected=", ".join(stages)
            )
        return stages[stage]()

    def cost_analysis(self) -> dict[str, float]:
        """Counts of the compiled program, see `compiler.cost`."""
        return {
            **cost.analyse(self.source, self.fused),
            "copied bytes": self.image.copied_bytes,
            "phases": float(self.image.num_phases),
        }

    def memory_analysis(self) -> dict[str, int]:
        """Bytes of arguments, results, aliases and temporaries of the plan."""
        return dict(self.image.memory)

    def profile(self, inputs: Sequence[HostBuffer], calls: int = 1) -> Profile:
        """Run with a clock around every phase; phases inside loops are added up. Donated inputs are not
        overwritten. Of several calls it is the fastest: what else the machine does only adds.
        """
        return _Profiled(self).run(inputs, calls)


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
        built = Built(other.fused, other.block, other.plan)
        native = program_.write(built.block, built.plan, other.target, profile=True)
        image, addresses = linked(native, built, other.target)
        super().__init__(
            other.source, other.options, other.target, image, addresses, lambda: built, native.callbacks
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


@functools.cache
def _runtime() -> tuple[Any, Any]:  # Any: ctypes functions
    symbols = pool.shared().symbols
    return _Begin(symbols["infini_begin"]), _End(symbols["infini_end"])
