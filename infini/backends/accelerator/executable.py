"""Programs on a device: the host walks the steps and launches; from the second call on a captured graph is
replayed where possible.

Addresses come from the memory plan: one arena per call, results where the plan puts them, donated parameters
in place. A recording (`recording`) keeps its addresses: inputs that are always at the same one stay there,
small ones that move are copied, and large results are memory of the recording, lent to the caller until he
lets it go.
"""

from __future__ import annotations

import operator
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from infini.backends.accelerator import recording
from infini.backends.accelerator.driver import DeviceBuffer, Driver
from infini.backends.accelerator.tasks import Launch, Task
from infini.backends.accelerator.walk import Frame, Walk
from infini.compiler import choices as choices_, memory, ordering
from infini.compiler.memory import Ends
from infini.compiler.steps import Block, Branch, HostCall, Loop, Parameter, Phase, Result, Step
from infini.compiler.triton import texts
from infini.core import backend as backend_, errors, ir
from infini.core.backend import CompileOptions

# Inputs up to this size may be copied into a recording's own memory; larger ones must keep their address
# (design 4a.16). Results up to this size are copied out of it.
MAX_COPIED_BYTES: Final = 1 << 20
MAX_GRAPHS: Final = 4  # recordings of a program
# Fewer tasks than this are launched faster than a graph and its copies are.
MIN_TASKS: Final = 4
# How often inputs that stood still may turn out to move, before all small ones are copied.
MAX_SURPRISES: Final = 2


@dataclass(slots=True, eq=False)
class _Results:
    """Memory for the results of recordings; a large one is lent to the caller."""

    buffers: dict[int, DeviceBuffer]  # by number
    lent: dict[int, weakref.ref[DeviceBuffer]] = field(default_factory=dict)

    def is_free(self) -> bool:
        """Whether nobody holds what was lent."""
        return all(reference() is None for reference in self.lent.values())

    def taken(self, driver: Driver, number: int) -> DeviceBuffer:
        """A result for the caller."""
        own = self.buffers[number]
        if own.nbytes <= MAX_COPIED_BYTES:
            return driver.duplicate(own)
        lent = DeviceBuffer(own.device, own.address, own.nbytes, own.memory)
        self.lent[number] = weakref.ref(lent)
        return lent


@dataclass(frozen=True, slots=True)
class _Recorded:
    """What is replayed, and the memory that it uses."""

    parts: recording.Parts
    inputs: dict[int, DeviceBuffer]  # copies of small inputs that move, by number
    results: _Results
    arena: DeviceBuffer
    consts: dict[int, list[DeviceBuffer]]


class Owner(Protocol):
    """The backend of an executable."""

    name: str

    def driver(self, number: int) -> Driver:
        """What drives a device."""

    def number(self, device: backend_.Device) -> int:
        """Number of a device in this process."""

    def owns(self, device: backend_.Device) -> bool:
        """Whether this process holds a device."""

    def default_device(self) -> int:
        """Number of the device of programs without inputs."""


class AcceleratorExecutable:
    """A compiled program; see `core.backend.Executable`."""

    in_specs: tuple[Any, ...] = ()  # Any: programs for a mesh have them
    out_specs: tuple[Any, ...] = ()

    def __init__(
        self,
        owner: Owner,
        program: ir.Program,
        fused: ir.Program,
        block: Block,
        options: CompileOptions,
        decisions: tuple[choices_.Decision, ...] = (),
    ) -> None:
        self.owner, self.driver = owner, owner.driver
        self.decisions = decisions
        self.choices = tuple((decision.choice.key, decision.winner) for decision in decisions)
        ends = Ends(writable=frozenset(options.donated), is_free=True)
        block = ordering.ordered(block, ends)
        self.program, self.fused, self.block, self.options = program, fused, block, options
        self.plan = memory.plan(block, ends)
        self.num_tasks = sum(1 for _ in tasks_of(block))
        self.can_capture = self.num_tasks >= MIN_TASKS
        self.num_captures = 0
        self.num_replays = 0
        self._recordings: dict[tuple[int, int, tuple[int, ...]], _Recorded] = {}
        # Between the copies into the memory of a recording and those out of it, no other thread may use it.
        self._lock = threading.Lock()
        # A callback may call the same program, so nobody waits for one that has some.
        self._may_wait = not any(isinstance(step, HostCall) for each in _blocks(block) for step in each.steps)
        self._results: dict[int, list[_Results]] = {}  # by device
        self._arenas: dict[int, DeviceBuffer] = {}  # of the recordings of a device, which run in turn
        self._consts: dict[int, dict[int, list[DeviceBuffer]]] = {}  # by device, then block
        self._small = {i for i, t in enumerate(program.in_types) if t.nbytes <= MAX_COPIED_BYTES}
        self._moving: set[int] = set()  # small inputs that were seen at several addresses
        self._num_surprises = 0
        self._standing = _picker(range(len(program.params)))  # takes those that are not moving
        self._addresses: dict[int, tuple[int, ...]] = {}  # of these in the last call, by device
        unused = set(options.donated) - self.plan.donated
        if options.donation == "require" and unused:
            raise errors.DonationError(
                f"donated parameters {sorted(unused)} cannot be reused for a result",
                got=", ".join(str(program.params[i].type) for i in sorted(unused)),
                expected="a result of the same size that is computed after their last use",
            )

    def __call__(self, inputs: Sequence[DeviceBuffer]) -> tuple[DeviceBuffer, ...]:
        """Run on the device of the inputs; the results are ready in the order of its stream."""
        return self._run(inputs, inputs[0].device if inputs else self.owner.default_device())

    def run_on(self, inputs: Sequence[DeviceBuffer], device: backend_.Device) -> tuple[DeviceBuffer, ...]:
        """Run on a device, which has the inputs."""
        return self._run(inputs, self.owner.number(device))

    def _owned(self, driver: Driver, inputs: Sequence[DeviceBuffer]) -> list[DeviceBuffer]:
        """Inputs of which the donated ones may be overwritten: those in whose memory another array is are
        copied.
        """
        owned = list(inputs)
        for i in self.options.donated:
            if inputs[i].has_aliases:
                owned[i] = driver.duplicate(inputs[i])
        return owned

    def _run(self, inputs: Sequence[DeviceBuffer], number: int) -> tuple[DeviceBuffer, ...]:
        driver = self.driver(number)
        if self.options.donated:
            inputs = self._owned(driver, inputs)
        if self.can_capture and driver.has_graphs and self._lock.acquire(blocking=self._may_wait):
            try:
                recorded = self._recorded(driver, inputs)
                if recorded is not None:
                    return self._replay(driver, recorded, inputs)
            finally:
                self._lock.release()
        results = {k: driver.allocate(n) for k, n in self._given_results()}
        arena = driver.allocate(self.plan.nbytes)
        consts = self._constants(driver)
        frame = self._frame([b.address for b in inputs], results, arena, consts)
        Walk(driver, consts).block(self.block, self.plan, frame)
        return self._collect(inputs, results)

    def run_spmd(
        self, inputs: Sequence[Sequence[DeviceBuffer]], devices: Sequence[backend_.Device]
    ) -> list[tuple[DeviceBuffer, ...]]:
        """Run on several devices: a program that was not compiled for a mesh talks to nobody."""
        here = [device for device in devices if self.owner.owns(device)]
        return [self.run_on(row, device) for row, device in zip(inputs, here, strict=True)]

    def text(self, stage: str) -> str:
        """Text of a stage: `program`, `kernels`, `choices` (what was measured, and taken) or `triton`.

        Raises:
            ValueMismatchError: there is no such stage.
        """
        if stage == "program":
            return repr(self.program)
        if stage == "kernels":
            return repr(self.fused)
        if stage == "choices":
            return choices_.describe(self.decisions)
        if stage == "triton":
            sources = (t.source if isinstance(t, Launch) else t.kernel for t in tasks_of(self.block))
            return "\n\n".join(dict.fromkeys(texts.with_launch(source) for source in sources))
        raise errors.ValueMismatchError(
            f"the {self.owner.name} backend has no stage {stage!r}",
            expected="program, kernels, choices, triton",
        )

    def cost_analysis(self) -> dict[str, float]:
        """Kernels and products of one run, bodies of loops counted once; choices; graphs captured and
        replayed.
        """
        return {
            "kernels": float(self.num_tasks),
            "choices": float(len(self.choices)),
            "graphs captured": float(self.num_captures),
            "graphs replayed": float(self.num_replays),
        }

    def memory_analysis(self) -> dict[str, int]:
        """Bytes of arguments, results, temporaries and donated arguments of the plan."""
        types = self.program.in_types
        return {
            "argument bytes": sum(t.nbytes for t in types),
            "output bytes": sum(t.nbytes for t in self.program.out_types),
            "temporary bytes": self.plan.nbytes,
            "alias bytes": sum(types[i].nbytes for i in self.plan.donated),
        }

    # --- one run ------------------------------------------------------------------------------

    def _given_results(self) -> Iterator[tuple[int, int]]:
        """Number and bytes of the results that need memory of their own."""
        for k, place in enumerate(self.plan.results):
            if isinstance(place, Result):
                yield k, self.block.results[k].type.nbytes

    def _frame(
        self,
        params: Sequence[int],
        results: dict[int, DeviceBuffer],
        arena: DeviceBuffer,
        consts: dict[int, list[DeviceBuffer]],
    ) -> Frame:
        given = [results[k].address if k in results else 0 for k in range(len(self.block.results))]
        own = [b.address for b in consts[id(self.block)]]
        return Frame(params, given, own, arena.address)

    def _collect(
        self, inputs: Sequence[DeviceBuffer], results: dict[int, DeviceBuffer]
    ) -> tuple[DeviceBuffer, ...]:
        return tuple(
            inputs[place.number] if isinstance(place, Parameter) else results[k]
            for k, place in enumerate(self.plan.results)
        )

    def _constants(self, driver: Driver) -> dict[int, list[DeviceBuffer]]:
        """Constants of every block, put on the device once."""
        if driver.number not in self._consts:
            self._consts[driver.number] = {
                id(block): [driver.upload(constant.array) for _, constant in block.consts]
                for block in _blocks(self.block)
            }
        return self._consts[driver.number]

    # --- recordings ---------------------------------------------------------------------------

    def _recorded(self, driver: Driver, inputs: Sequence[DeviceBuffer]) -> _Recorded | None:
        """The recording for these addresses; None in the first call on a device, or when there are enough."""
        every = [b.address for b in inputs]
        addresses, before = self._standing(every), self._addresses.get(driver.number)
        self._addresses[driver.number] = addresses
        if before is None:
            return None
        if addresses != before:
            addresses = self._look_again(driver, every, before)
        free = [results for results in self._results.setdefault(driver.number, []) if results.is_free()]
        for results in free:
            found = self._recordings.get((driver.number, id(results), addresses))
            if found is not None:
                return found
        if len(self._recordings) >= MAX_GRAPHS:
            return None
        results = free[0] if free else _Results({k: driver.allocate(n) for k, n in self._given_results()})
        found = self._record(driver, inputs, results)
        if not free:
            self._results[driver.number].append(results)
        self._recordings[driver.number, id(results), addresses] = found
        return found

    def _look_again(self, driver: Driver, every: Sequence[int], before: Sequence[int]) -> tuple[int, ...]:
        """The addresses that count, after some were not those of the last call."""
        standing = [i for i in range(len(every)) if i not in self._moving]
        moved = {i for i, old in zip(standing, before, strict=True) if every[i] != old} & self._small
        if moved:
            self._num_surprises += 1
            self._moving |= self._small if self._num_surprises > MAX_SURPRISES else moved
            self._standing = _picker([i for i in standing if i not in self._moving])
            self._recordings.clear()
            # The inputs of other devices are compared anew.
            self._addresses = {driver.number: self._standing(every)}
        return self._addresses[driver.number]

    def _record(self, driver: Driver, inputs: Sequence[DeviceBuffer], results: _Results) -> _Recorded:
        own = {i: driver.allocate(self.program.in_types[i].nbytes) for i in sorted(self._moving)}
        if driver.number not in self._arenas:
            self._arenas[driver.number] = driver.allocate(self.plan.nbytes)
        arena, consts = self._arenas[driver.number], self._constants(driver)
        params = [own[i].address if i in own else b.address for i, b in enumerate(inputs)]
        frame = self._frame(params, results.buffers, arena, consts)
        # Loading a kernel cannot be recorded, and those of a branch that was never taken are not loaded yet.
        for task in tasks_of(self.block):
            if isinstance(task, Launch) or task.library is None or driver.gemm_library is None:
                driver.function(task.source if isinstance(task, Launch) else task.kernel)
        parts = recording.record(driver, consts, self.block, self.plan, frame)
        self.num_captures += recording.graphs_of(parts)
        return _Recorded(parts, own, results, arena, consts)

    def _replay(
        self, driver: Driver, recorded: _Recorded, inputs: Sequence[DeviceBuffer]
    ) -> tuple[DeviceBuffer, ...]:
        for i, buffer in recorded.inputs.items():
            driver.move(inputs[i].address, buffer.address, self.program.in_types[i].nbytes)
        recording.run(recorded.parts, driver)
        self.num_replays += 1
        found = []
        for k, place in enumerate(self.plan.results):
            if isinstance(place, Parameter):
                mine = recorded.inputs.get(place.number)
                found.append(inputs[place.number] if mine is None else driver.duplicate(mine))
            else:
                found.append(recorded.results.taken(driver, k))
        return tuple(found)


def _picker(numbers: Sequence[int]) -> Callable[[Sequence[int]], tuple[int, ...]]:
    """A function that takes the items of these numbers, at the speed of C when there are several."""
    if len(numbers) > 1:
        return operator.itemgetter(*numbers)
    return lambda items: tuple(items[i] for i in numbers)


def _inner_blocks(step: Step) -> tuple[Block, ...]:
    if isinstance(step, Loop):
        return (step.body,) if step.condition is None else (step.condition, step.body)
    return step.blocks if isinstance(step, Branch) else ()


def _blocks(block: Block) -> Iterator[Block]:
    yield block
    for step in block.steps:
        for inner in _inner_blocks(step):
            yield from _blocks(inner)


def tasks_of(block: Block) -> Iterator[Task]:
    """Everything that a block and those inside it start."""
    for each in _blocks(block):
        for step in each.steps:
            if isinstance(step, Phase):
                yield from step.tasks
