"""A run of a program recorded: graphs of device work, and between them what the host decides or computes.

Addresses are fixed while a program is recorded. A loop that runs while a condition holds becomes a part that
replays its condition, reads the flag, and replays its body; a branch records every case; a callback copies to
the host and back. What stands between two of these is one graph (design 4a.16).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from infini.backends.accelerator.driver import DeviceBuffer, Driver, Graph
from infini.backends.accelerator.walk import Frame, Walk, branch_taken
from infini.compiler.steps import Block, Branch, HostCall, Loop, Plan
from infini.core import dtypes

# Turns of a counted loop up to which a body that asks the host is recorded turn by turn.
MAX_TURNS: Final = 8


@dataclass(frozen=True, slots=True)
class While:
    """Replays a body while the flag holds that a condition leaves on the device."""

    condition: Parts
    body: Parts
    flag: DeviceBuffer

    def run(self, driver: Driver) -> None:
        """Until the flag is false."""
        while True:
            run(self.condition, driver)
            if not driver.read(self.flag.address, dtypes.bool_):
                return
            run(self.body, driver)


@dataclass(frozen=True, slots=True)
class Choice:
    """Replays the case whose number stands at an address of the device."""

    cases: tuple[Parts, ...]
    address: int

    def run(self, driver: Driver) -> None:
        """The chosen case."""
        run(self.cases[branch_taken(driver, self.address, len(self.cases))], driver)


@dataclass(frozen=True, slots=True)
class OnHost:
    """Work that is walked each time."""

    work: Callable[[Walk], None]
    consts: dict[int, list[DeviceBuffer]]

    def run(self, driver: Driver) -> None:
        """Once."""
        self.work(Walk(driver, self.consts))


Part: TypeAlias = Graph | While | Choice | OnHost
Parts: TypeAlias = tuple[Part, ...]


def run(parts: Parts, driver: Driver) -> None:
    """Replay everything in order."""
    for part in parts:
        if isinstance(part, Graph):
            driver.replay(part)
        else:
            part.run(driver)


def record(
    driver: Driver, consts: dict[int, list[DeviceBuffer]], block: Block, plan: Plan, frame: Frame
) -> Parts:
    """Record a block at fixed addresses; nothing runs.

    Args:
        driver: the device; what other threads start there meanwhile is not recorded.
        consts: constants of every block.
        block: what to record.
        plan: where its values are.
        frame: addresses of its parameters, results, constants and temporaries.
    """
    return _Recorder(driver.beside(), consts).recorded(lambda walk: walk.block(block, plan, frame))


class _Recorder(Walk):
    """A walk whose work goes into graphs. A graph is begun when there is work, and ended where the host is
    asked.
    """

    def __init__(self, driver: Driver, consts: dict[int, list[DeviceBuffer]]) -> None:
        super().__init__(driver, consts)
        self.parts: list[Part] = []
        self._graphs: list[Graph] = []
        self._open: contextlib.ExitStack | None = None

    @property
    def device(self) -> Driver:
        """The driver, while it records."""
        if self._open is None:
            self._open = contextlib.ExitStack()
            self._open.enter_context(self.driver.capturing(self._graphs))
        return self.driver

    def recorded(self, work: Callable[[Walk], None]) -> Parts:
        """What a walk starts, as parts."""
        outer, self.parts = self.parts, []
        try:
            work(self)
        finally:
            self.end()
            found, self.parts = tuple(self.parts), outer
        return found

    def end(self) -> None:
        """End the graph that is open."""
        if self._open is not None:
            opened, self._open = self._open, None
            opened.close()
            self.parts.append(self._graphs.pop())

    def loop(
        self, step: Loop, plans: Sequence[Plan], reads: Sequence[int], writes: Sequence[int], scratch: int
    ) -> None:
        """A counted loop turn by turn; one with a condition as a part of its own."""
        if step.condition is None:
            if step.length <= MAX_TURNS or not asks_host([step.body]):
                super().loop(step, plans, reads, writes, scratch)
            else:
                self.end()
                self.parts.append(
                    OnHost(lambda walk: walk.loop(step, plans, reads, writes, scratch), self.consts)
                )
            return
        self.end()
        flag = self.driver.allocate(dtypes.bool_.itemsize)
        condition, body = self.turn(step, plans, reads, writes, scratch)
        self.parts.append(
            While(
                self.recorded(lambda walk: condition(walk, flag.address)),
                self.recorded(body),
                flag,
            )
        )

    def branch(
        self, step: Branch, plans: Sequence[Plan], reads: Sequence[int], writes: Sequence[int], scratch: int
    ) -> None:
        """Every case."""
        self.end()

        def case(block: Block, plan: Plan) -> Callable[[Walk], None]:
            return lambda walk: walk.inner(block, plan, reads[1:], writes, scratch)

        cases = [self.recorded(case(*each)) for each in zip(step.blocks, plans, strict=True)]
        self.parts.append(Choice(tuple(cases), reads[0]))

    def call(self, step: HostCall, reads: Sequence[int], writes: Sequence[int]) -> None:
        """Between two graphs."""
        self.end()
        self.parts.append(OnHost(lambda walk: walk.call(step, reads, writes), self.consts))


def asks_host(blocks: Sequence[Block]) -> bool:
    """Whether the host needs a value of the device to go on, or computes one."""
    return any(
        isinstance(step, (Branch, HostCall))
        or (isinstance(step, Loop) and (step.condition is not None or asks_host([step.body])))
        for block in blocks
        for step in block.steps
    )


def graphs_of(parts: Parts) -> int:
    """How many graphs there are."""
    count = 0
    for part in parts:
        if isinstance(part, Graph):
            count += 1
        elif isinstance(part, While):
            count += graphs_of(part.condition) + graphs_of(part.body)
        elif isinstance(part, Choice):
            count += sum(map(graphs_of, part.cases))
    return count
