"""A compiled program of the CPU backend: fill a table of pointers, call one native function, wrap the
results.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from infini.backends.cpu import callbacks, interrupts, pool
from infini.backends.cpu.images import Image
from infini.core import events, ir
from infini.core.backend import CompileOptions, Device
from infini.core.memory import HostBuffer
from infini.core.mesh import AxisEntry

if TYPE_CHECKING:
    from infini.backends.cpu.profiling import Profile
    from infini.compiler.llvm.program import HostEntry, ProgramText
    from infini.compiler.llvm.target import Target
    from infini.compiler.steps import Block, Plan

WAKE_NS: Final = 200_000.0  # a program that is worth waking parked workers
LONG_NS: Final = 20e6  # a program that people may want to interrupt

_Entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
_Begin = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32)
_End = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


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
        *,
        build: Callable[[], Built],
        host_functions: Sequence[HostEntry] = (),
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

    @property
    def reused(self) -> frozenset[int]:
        """Numbers of the donated parameters whose memory a result has."""
        return frozenset(number for number in self.image.aliases if number is not None)

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
        return _looking().text_of(self)

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
        kernel's), `assembly` (of every kernel), `triton` (what a GPU would get).

        Raises:
            ValueMismatchError: there is no such stage.
        """
        return _looking().text(self, stage)

    def cost_analysis(self) -> dict[str, float]:
        """Counts of the compiled program, see `compiler.cost`."""
        return _looking().cost_analysis(self)

    def memory_analysis(self) -> dict[str, int]:
        """Bytes of arguments, results, aliases and temporaries of the plan."""
        return dict(self.image.memory)

    def profile(self, inputs: Sequence[HostBuffer], calls: int = 1) -> Profile:
        """Run with a clock around every phase; phases inside loops are added up. Donated inputs are not
        overwritten. Of several calls it is the fastest: what else the machine does only adds.
        """
        return _looking().Profiled(self).run(inputs, calls)


@functools.cache
def _looking() -> Any:  # Any: a module
    """`profiling`, and the compiler with it, which running a program from the disk does not need."""
    return importlib.import_module("infini.backends.cpu.profiling")


@functools.cache
def _runtime() -> tuple[Any, Any]:  # Any: ctypes functions
    symbols = pool.shared().symbols
    return _Begin(symbols["infini_begin"]), _End(symbols["infini_end"])
