"""Programs on a device: the host walks the steps and launches; from the second call on a captured graph is
replayed where possible.

Addresses come from the memory plan: one arena per call, results where the plan puts them, donated parameters
in place. A loop that runs while a condition holds, a branch and a callback read from the device, so programs
with one are not captured.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from infini.backends.accelerator.driver import DeviceBuffer, Driver, Graph
from infini.backends.accelerator.tasks import Launch, Task, start
from infini.compiler import choices as choices_, memory, ordering
from infini.compiler.memory import Ends
from infini.compiler.steps import (
    Alias,
    Block,
    Branch,
    Const,
    HostCall,
    Loop,
    Parameter,
    Phase,
    Place,
    Plan,
    Result,
    Step,
)
from infini.compiler.triton import texts
from infini.core import backend as backend_, dtypes, errors, ir
from infini.core.backend import CompileOptions
from infini.core.ir import Var
from infini.lax import callbacks

# Inputs up to this size are copied into a graph's own memory; larger ones must keep their address (design
# 4a.16).
MAX_COPIED_BYTES: Final = 1 << 20
MAX_GRAPHS: Final = 4
# Fewer tasks than this are launched faster than a graph and its copies are.
MIN_TASKS: Final = 4


@dataclass(frozen=True, slots=True)
class _Frame:
    """Addresses of one run of a block."""

    params: Sequence[int]
    results: Sequence[int]
    consts: Sequence[int]
    arena: int

    def address(self, place: Place) -> int:
        """Where a place of the plan is."""
        if isinstance(place, Parameter):
            return self.params[place.number]
        if isinstance(place, Result):
            return self.results[place.number]
        return self.consts[place.number] if isinstance(place, Const) else self.arena + place.offset


@dataclass(frozen=True, slots=True)
class _Captured:
    """A graph and the memory that it uses."""

    graph: Graph
    inputs: dict[int, DeviceBuffer]  # copies of small inputs, by number
    results: dict[int, DeviceBuffer]  # by number
    arena: DeviceBuffer
    consts: dict[int, list[DeviceBuffer]]


class Owner(Protocol):
    """The backend of an executable."""

    name: str

    def driver(self, number: int) -> Driver:
        """What drives a device."""

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
        self.can_capture = self.num_tasks >= MIN_TASKS and not _reads_back(block)
        self.num_captures = 0
        self.num_replays = 0
        self._graphs: dict[tuple[int, ...], _Captured] = {}
        # Between the copies into the memory of a graph and those out of it, no other thread may use it.
        self._graphs_lock = threading.Lock()
        self._consts: dict[int, dict[int, list[DeviceBuffer]]] = {}  # by device, then block
        self._ran_on: set[int] = set()
        unused = set(options.donated) - self.plan.donated
        if options.donation == "require" and unused:
            raise errors.DonationError(
                f"donated parameters {sorted(unused)} cannot be reused for a result",
                got=", ".join(str(program.params[i].type) for i in sorted(unused)),
                expected="a result of the same size that is computed after their last use",
            )

    def __call__(self, inputs: Sequence[DeviceBuffer]) -> tuple[DeviceBuffer, ...]:
        """Run on the device of the inputs; the results are ready in the order of its stream."""
        number = inputs[0].device if inputs else self.owner.default_device()
        driver = self.driver(number)
        if self.can_capture and driver.has_graphs and number in self._ran_on:
            with self._graphs_lock:
                captured = self._captured(driver, inputs)
                if captured is not None:
                    return self._replay(driver, captured, inputs)
        self._ran_on.add(number)
        results = {k: driver.allocate(n) for k, n in self._given_results()}
        arena = driver.allocate(self.plan.nbytes)
        consts = self._constants(driver)
        self._run(driver, [b.address for b in inputs], results, arena, consts)
        return self._collect(inputs, results)

    def run_spmd(
        self, inputs: Sequence[Sequence[DeviceBuffer]], devices: Sequence[backend_.Device]
    ) -> list[tuple[DeviceBuffer, ...]]:
        """Programs for a mesh are refused when they are compiled.

        Raises:
            LoweringError: always.
        """
        raise errors.LoweringError(
            f"programs over several devices of {self.owner.name} are not built yet",
            got=f"{len(devices)} devices",
        )

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

    def _run(
        self,
        driver: Driver,
        params: Sequence[int],
        results: dict[int, DeviceBuffer],
        arena: DeviceBuffer,
        consts: dict[int, list[DeviceBuffer]],
    ) -> None:
        given = [results[k].address if k in results else 0 for k in range(len(self.block.results))]
        own = [b.address for b in consts[id(self.block)]]
        _Walk(driver, consts).block(self.block, self.plan, _Frame(params, given, own, arena.address))

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

    # --- graphs -------------------------------------------------------------------------------

    def _captured(self, driver: Driver, inputs: Sequence[DeviceBuffer]) -> _Captured | None:
        """The graph for these addresses; None when there are enough graphs already."""
        key = (driver.number, *(b.address for b in inputs if b.nbytes > MAX_COPIED_BYTES))
        found = self._graphs.get(key)
        if found is None and len(self._graphs) < MAX_GRAPHS:
            found = self._graphs[key] = self._capture(driver, inputs)
        return found

    def _capture(self, driver: Driver, inputs: Sequence[DeviceBuffer]) -> _Captured:
        own = {i: driver.allocate(b.nbytes) for i, b in enumerate(inputs) if b.nbytes <= MAX_COPIED_BYTES}
        results = {k: driver.allocate(n) for k, n in self._given_results()}
        arena, consts = driver.allocate(self.plan.nbytes), self._constants(driver)
        params = [own[i].address if i in own else b.address for i, b in enumerate(inputs)]
        graphs: list[Graph] = []
        recorder = driver.beside()
        with recorder.capturing(graphs):
            self._run(recorder, params, results, arena, consts)
        self.num_captures += 1
        return _Captured(graphs[0], own, results, arena, consts)

    def _replay(
        self, driver: Driver, captured: _Captured, inputs: Sequence[DeviceBuffer]
    ) -> tuple[DeviceBuffer, ...]:
        for i, buffer in captured.inputs.items():
            driver.move(inputs[i].address, buffer.address, buffer.nbytes)
        driver.replay(captured.graph)
        self.num_replays += 1
        found = []
        for k, place in enumerate(self.plan.results):
            if isinstance(place, Parameter):
                mine = captured.inputs.get(place.number)
                found.append(inputs[place.number] if mine is None else driver.duplicate(mine))
            else:
                found.append(driver.duplicate(captured.results[k]))
        return tuple(found)


class _Walk:
    """Runs blocks on a driver."""

    def __init__(self, driver: Driver, consts: dict[int, list[DeviceBuffer]]) -> None:
        self.driver = driver
        self.consts = consts

    def block(self, block: Block, plan: Plan, frame: _Frame) -> None:
        """Run the steps, then bring the results where they belong."""

        def at(var: Var) -> int:
            return frame.address(plan.places[var])

        for number, step in enumerate(block.steps):
            scratch = frame.address(plan.scratch[number]) if number in plan.scratch else 0
            if isinstance(step, Alias):
                continue
            reads, writes = [at(v) for v in step.reads], [at(v) for v in step.writes]
            if isinstance(step, Phase):
                self.start_updates(step, step.must_share, plan.shared.get(number, frozenset()), reads, writes)
                for task in step.tasks:
                    start(self.driver, task, reads, writes, scratch)
            elif isinstance(step, Loop):
                first = step.num_condition_consts + step.num_consts
                pairs = tuple((first + i, i) for i in range(step.num_carry))
                self.start_updates(step, pairs, plan.shared.get(number, frozenset()), reads, writes)
                self.loop(step, plan.inner[number], reads, writes, scratch)
            elif isinstance(step, Branch):
                self.branch(step, plan.inner[number], reads, writes, scratch)
            else:
                assert isinstance(step, HostCall), "phases are grouped on the CPU only"
                self.call(step, reads, writes)
        for copy in plan.copies:
            self.driver.move(frame.address(copy.source), frame.address(copy.target), copy.nbytes)

    def start_updates(
        self,
        step: Phase | Loop,
        pairs: Sequence[tuple[int, int]],
        shared: frozenset[tuple[int, int]],
        reads: Sequence[int],
        writes: Sequence[int],
    ) -> None:
        """Copy operands that outputs continue, where the two do not share memory."""
        for operand, output in pairs:
            if (operand, output) not in shared:
                self.driver.move(reads[operand], writes[output], step.writes[output].type.nbytes)

    def loop(
        self, step: Loop, plans: Sequence[Plan], reads: Sequence[int], writes: Sequence[int], scratch: int
    ) -> None:
        """A counted loop over slices, or one whose condition the host reads after every step."""
        first = step.num_condition_consts
        consts = reads[first : first + step.num_consts]
        carry = list(writes[: step.num_carry])
        xs = reads[first + step.num_consts + step.num_carry :]
        if step.condition is not None:
            condition = [*reads[:first], *carry]
            while self.holds(step.condition, plans[0], condition, scratch):
                self.inner(step.body, plans[1], [*consts, *carry], carry, scratch)
            return
        x_bytes = [v.type.nbytes for v in step.body.params[step.num_consts + step.num_carry :]]
        y_bytes = [v.type.nbytes for v in step.body.results[step.num_carry :]]
        for i in reversed(range(step.length)) if step.is_reversed else range(step.length):
            slices = [x + i * n for x, n in zip(xs, x_bytes, strict=True)]
            stacked = [y + i * n for y, n in zip(writes[step.num_carry :], y_bytes, strict=True)]
            self.inner(step.body, plans[0], [*consts, *carry, *slices], [*carry, *stacked], scratch)

    def holds(self, block: Block, plan: Plan, params: Sequence[int], scratch: int) -> bool:
        """The condition of a loop, read by the host."""
        flag = self.driver.allocate(dtypes.bool_.itemsize)
        self.inner(block, plan, params, [flag.address], scratch)
        return bool(self.driver.read(flag.address, dtypes.bool_))

    def branch(
        self, step: Branch, plans: Sequence[Plan], reads: Sequence[int], writes: Sequence[int], scratch: int
    ) -> None:
        """The block whose number the host reads."""
        index = int(self.driver.read(reads[0], dtypes.int32))
        chosen = min(max(index, 0), len(step.blocks) - 1)
        self.inner(step.blocks[chosen], plans[chosen], reads[1:], writes, scratch)

    def inner(
        self, block: Block, plan: Plan, params: Sequence[int], results: Sequence[int], arena: int
    ) -> None:
        """A block inside a step."""
        own = [b.address for b in self.consts[id(block)]]
        self.block(block, plan, _Frame(params, results, own, arena))

    def call(self, step: HostCall, reads: Sequence[int], writes: Sequence[int]) -> None:
        """Call a Python function with copies of the operands, and copy its results to the device."""
        arrays = []
        for var, address in zip(step.reads, reads, strict=True):
            buffer = DeviceBuffer(self.driver.number, address, var.type.nbytes, None)
            arrays.append(self.driver.download(buffer, var.type))
        results = callbacks.call_host(step.function, arrays, [v.type for v in step.writes])
        for result, address in zip(results, writes, strict=True):
            self.driver.fill(address, result)


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


def _reads_back(block: Block) -> bool:
    """Whether the host needs a value of the device to go on."""
    steps = [step for each in _blocks(block) for step in each.steps]
    return any(
        isinstance(step, (Branch, HostCall)) or (isinstance(step, Loop) and step.condition is not None)
        for step in steps
    )
