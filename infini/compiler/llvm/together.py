"""Independent phases that follow each other become one: the threads meet once instead of once per phase.

The update of a tree of parameters is the case in mind: as many kernels as leaves, most of them too small to
keep every thread busy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from infini.compiler import steps as steps_
from infini.compiler.llvm.kernels import ALONE_NS
from infini.compiler.steps import Alias, Block, Branch, Loop, Phase, Step
from infini.core.ir import Var

MAX_MEMBERS: Final = 1024
MAX_CLOSED: Final = 4  # groups back that a small phase may join
# More memory that phases may take because operands of one are not free for the results of the next.
MAX_EXTRA_BYTES: Final = 1 << 17
# More that they may need meanwhile, as products do that pack their operands at the same time.
MAX_EXTRA_SCRATCH_BYTES: Final = 1 << 20


def grouped(block: Block, writable: Collection[int]) -> Block:
    """The block with groups of phases, and so the blocks inside it.

    Args:
        block: steps in their final order.
        writable: parameters that may be overwritten once they are dead.
    """
    return _Grouper(block, writable).run()


def _inside(step: Step) -> Step:
    if isinstance(step, Loop):
        body = grouped(step.body, range(step.num_consts, len(step.body.params)))
        condition = None if step.condition is None else grouped(step.condition, ())
        return dataclasses.replace(step, body=body, condition=condition)
    if isinstance(step, Branch):
        blocks = tuple(grouped(block, range(len(block.params))) for block in step.blocks)
        return dataclasses.replace(step, blocks=blocks)
    return step


@dataclass(slots=True)
class _Open:
    """A group that may still grow. Memory is named by the first variable that had it."""

    members: list[Phase] = field(default_factory=list)
    aliases: list[Alias] = field(default_factory=list)  # of what the members write
    made: set[Var] = field(default_factory=set)  # by the members, and its aliases
    read: set[Var] = field(default_factory=set)
    overwritten: set[Var] = field(default_factory=set)  # what outputs of members may replace
    spare: int = 0  # bytes that die here and that no output replaces
    scratch: int = 0  # bytes that the members need meanwhile
    since: set[Var] = field(default_factory=set)  # what is made in it and behind it, once it is closed
    moved: int = 0  # bytes that are made here and not where they come in the program

    def steps(self) -> list[Step]:
        """The steps it becomes: as they are when one thread alone is as fast."""
        cost_ns = sum(task.cost_ns for phase in self.members for task in phase.tasks)
        is_group = len(self.members) > 1 and cost_ns >= ALONE_NS
        members = [steps_.group(self.members)] if is_group else self.members
        return [*members, *self.aliases]


class _Grouper:
    def __init__(self, block: Block, writable: Collection[int]) -> None:
        self.block = block
        self.given = {v for i, v in enumerate(block.params) if i not in writable}  # memory to leave alone
        self.given.update(v for v, _ in block.consts)
        self.origin: dict[Var, Var] = {}  # of aliases: the variable that had the memory first
        self.last: dict[Var, int] = {}  # the step that reads memory last
        self.open = _Open()
        self.closed: list[_Open] = []  # the last ones, which small phases may still join

    def run(self) -> Block:
        """The block with groups."""
        end = len(self.block.steps)
        for number, step in enumerate(self.block.steps):
            if isinstance(step, Alias):
                self.origin[step.write] = self._first(step.read)
            else:
                self.last.update((self._first(v), number) for v in steps_.reads_of(step))
        self.last.update((self._first(v), end) for v in self.block.results)
        found: list[Step | _Open] = []
        for number, step in enumerate(self.block.steps):
            earlier = None
            if isinstance(step, Alias):
                if step.read in self.open.made:
                    self.open.aliases.append(step)
                    self.open.made.add(step.write)
                else:
                    found.append(step)
            elif isinstance(step, Phase) and step.tasks and not step.must_share:
                earlier = self._earlier(number, step)
                if earlier is not None:
                    self._add(number, step, earlier)
                    earlier.moved += self._fresh(number, step)
                else:
                    if not self._fits(number, step):
                        found.append(self._close())
                    self._add(number, step, self.open)
            else:
                found += [self._close(), _inside(step)]
                self.closed = []
            for group in self.closed:
                group.since.update(steps_.writes_of(step))
        found.append(self._close())
        steps = (step for part in found for step in (part.steps() if isinstance(part, _Open) else (part,)))
        return dataclasses.replace(self.block, steps=tuple(steps))

    def _close(self) -> _Open:
        closed, self.open = self.open, _Open()
        closed.since = set(closed.made)
        self.closed = [*self.closed[1 - MAX_CLOSED :], closed] if closed.members else self.closed
        return closed

    def _earlier(self, number: int, step: Phase) -> _Open | None:
        """The first closed group that a phase may join: a phase that needs nothing made since, overwrites
        nothing and makes little. Results stay where they are: they may replace parameters that are read until
        then.
        """
        end = len(self.block.steps)
        if len(step.tasks) > 1 or step.scratch_bytes or self._overwritten(number, step):
            return None
        if any(self.last.get(v, number) == end for v in step.writes):
            return None
        nbytes, reads = self._fresh(number, step), self._reads(step)
        for group in self.closed:
            is_small = group.moved + nbytes <= MAX_EXTRA_BYTES and len(group.members) < MAX_MEMBERS
            if is_small and group.since.isdisjoint(step.reads) and not reads & group.overwritten:
                return group
        return None

    def _first(self, var: Var) -> Var:
        return self.origin.get(var, var)

    def _fits(self, number: int, step: Phase) -> bool:
        if len(self.open.members) >= MAX_MEMBERS or any(v in self.open.made for v in step.reads):
            return False
        # An operand that is overwritten where it is must not be read by another phase of the group.
        if self._overwritten(number, step) & self.open.read or self._reads(step) & self.open.overwritten:
            return False
        if min(self.open.scratch, step.scratch_bytes) > MAX_EXTRA_SCRATCH_BYTES:
            return False
        return min(self.open.spare, self._fresh(number, step)) <= MAX_EXTRA_BYTES

    def _add(self, number: int, step: Phase, group: _Open) -> None:
        group.members.append(step)
        group.made.update(step.writes)
        overwritten = self._overwritten(number, step)
        group.read |= self._reads(step)
        group.overwritten |= overwritten
        dying = {v for v in self._reads(step) if self.last[v] == number and v not in self.block.params}
        group.spare += sum(v.type.nbytes for v in dying - self.given - overwritten)
        group.scratch += step.scratch_bytes

    def _reads(self, step: Phase) -> set[Var]:
        return set(map(self._first, step.reads))

    def _overwritten(self, number: int, step: Phase) -> set[Var]:
        """Memory that ends with a step and that its outputs may take."""
        operands = {self._first(step.reads[i]) for i, _ in step.in_place}
        return {v for v in operands if self.last[v] == number and v not in self.given}

    def _fresh(self, number: int, step: Phase) -> int:
        """Bytes of temporaries that a step allocates."""
        end = len(self.block.steps)
        made = sum(v.type.nbytes for v in step.writes if self.last.get(v, number) != end)
        replaced = sum(v.type.nbytes for v in self._overwritten(number, step))
        return step.scratch_bytes + max(0, made - replaced)
