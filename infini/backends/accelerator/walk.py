"""One run of a program: the host walks over its steps and starts what they say, at addresses of a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from infini.backends.accelerator.driver import DeviceBuffer, Driver
from infini.backends.accelerator.tasks import start
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
)
from infini.core import dtypes
from infini.core.ir import Var
from infini.lax import callbacks


@dataclass(frozen=True, slots=True)
class Frame:
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


class Walk:
    """Runs blocks on a driver."""

    def __init__(self, driver: Driver, consts: dict[int, list[DeviceBuffer]]) -> None:
        self.driver = driver
        self.consts = consts

    @property
    def device(self) -> Driver:
        """What takes the next work."""
        return self.driver

    def block(self, block: Block, plan: Plan, frame: Frame) -> None:
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
                    start(self.device, task, reads, writes, scratch)
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
            self.device.move(frame.address(copy.source), frame.address(copy.target), copy.nbytes)

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
                self.device.move(reads[operand], writes[output], step.writes[output].type.nbytes)

    def loop(
        self, step: Loop, plans: Sequence[Plan], reads: Sequence[int], writes: Sequence[int], scratch: int
    ) -> None:
        """A counted loop over slices, or one whose condition the host reads after every step."""
        if step.condition is not None:
            flag = self.driver.allocate(dtypes.bool_.itemsize)
            condition, body = self.turn(step, plans, reads, writes, scratch)
            condition(self, flag.address)
            while self.driver.read(flag.address, dtypes.bool_):
                body(self)
                condition(self, flag.address)
            return
        consts = reads[: step.num_consts]
        carry = list(writes[: step.num_carry])
        xs = reads[step.num_consts + step.num_carry :]
        x_bytes = [v.type.nbytes for v in step.body.params[step.num_consts + step.num_carry :]]
        y_bytes = [v.type.nbytes for v in step.body.results[step.num_carry :]]
        for i in reversed(range(step.length)) if step.is_reversed else range(step.length):
            slices = [x + i * n for x, n in zip(xs, x_bytes, strict=True)]
            stacked = [y + i * n for y, n in zip(writes[step.num_carry :], y_bytes, strict=True)]
            self.inner(step.body, plans[0], [*consts, *carry, *slices], [*carry, *stacked], scratch)

    def turn(
        self, step: Loop, plans: Sequence[Plan], reads: Sequence[int], writes: Sequence[int], scratch: int
    ) -> tuple[Callable[[Walk, int], None], Callable[[Walk], None]]:
        """The condition, which leaves a flag at an address, and the body of a loop with a condition."""
        assert step.condition is not None
        asked, body = step.condition, step.body
        first = step.num_condition_consts
        carry = list(writes[: step.num_carry])
        tested = [*reads[:first], *carry]
        given = [*reads[first : first + step.num_consts], *carry]
        return (
            lambda walk, flag: walk.inner(asked, plans[0], tested, [flag], scratch),
            lambda walk: walk.inner(body, plans[1], given, carry, scratch),
        )

    def branch(
        self, step: Branch, plans: Sequence[Plan], reads: Sequence[int], writes: Sequence[int], scratch: int
    ) -> None:
        """The block whose number the host reads."""
        chosen = branch_taken(self.driver, reads[0], len(step.blocks))
        self.inner(step.blocks[chosen], plans[chosen], reads[1:], writes, scratch)

    def inner(
        self, block: Block, plan: Plan, params: Sequence[int], results: Sequence[int], arena: int
    ) -> None:
        """A block inside a step."""
        own = [b.address for b in self.consts[id(block)]]
        self.block(block, plan, Frame(params, results, own, arena))

    def call(self, step: HostCall, reads: Sequence[int], writes: Sequence[int]) -> None:
        """Call a Python function with copies of the operands, and copy its results to the device."""
        arrays = []
        for var, address in zip(step.reads, reads, strict=True):
            buffer = DeviceBuffer(self.driver.number, address, var.type.nbytes, None)
            arrays.append(self.driver.download(buffer, var.type))
        results = callbacks.call_host(step.function, arrays, [v.type for v in step.writes])
        for result, address in zip(results, writes, strict=True):
            self.driver.fill(address, result)


def branch_taken(driver: Driver, address: int, num_blocks: int) -> int:
    """Number of the block to run, read from the device and kept in bounds."""
    index = int(driver.read(address, dtypes.int32))
    return min(max(index, 0), num_blocks - 1)
