"""The order of the steps of a block: close to program order, but kind to memory.

Two things move a step. What reads memory that another step could overwrite (a donated parameter, the carry of
a loop, the operand of an update) comes before that step. And a step that frees at least as much as it
allocates runs as soon as it can, as the update of a parameter does when its gradient is there; it is left in
its place when the peak of live bytes would not be lower.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from infini.compiler import steps as steps_
from infini.compiler.memory import Ends
from infini.compiler.steps import Alias, Block, Branch, HostCall, Loop, Phase, Step
from infini.core.ir import Var


def ordered(block: Block, ends: Ends | None = None) -> Block:
    """The block with its steps, and those of the blocks inside it, in an order that lets memory be reused.

    Args:
        block: steps in an order that makes everything before its use.
        ends: where results may and must be, as for `memory.plan`.
    """
    found = dataclasses.replace(block, steps=tuple(map(_inside, block.steps)))
    return dataclasses.replace(found, steps=_Order(found, ends or Ends()).steps())


def _inside(step: Step) -> Step:
    if isinstance(step, Loop):
        carry = {i: step.num_consts + i for i in range(step.num_carry)}
        body = ordered(step.body, Ends(carry, writable=frozenset(carry.values())))
        condition = None if step.condition is None else ordered(step.condition)
        return dataclasses.replace(step, body=body, condition=condition)
    if isinstance(step, Branch):
        return dataclasses.replace(step, blocks=tuple(map(ordered, step.blocks)))
    return step


def overwrites(step: Step) -> Iterator[tuple[int, int]]:
    """Pairs (operand, output) of a step that may share memory."""
    if isinstance(step, Phase):
        yield from step.must_share
        yield from step.in_place
    elif isinstance(step, Loop):
        first = step.num_condition_consts + step.num_consts
        yield from ((first + i, i) for i in range(step.num_carry))


@dataclass(eq=False, slots=True)
class _Memory:
    """Variables that are names for the same memory, with the steps that use it."""

    nbytes: int
    maker: int | None = None
    parameter: int | None = None
    readers: list[int] = field(default_factory=list)
    results: list[int] = field(default_factory=list)
    is_kept: bool = False  # it belongs to the caller, whatever the order


class _Order:
    def __init__(self, block: Block, ends: Ends) -> None:
        self.block, self.ends = block, ends
        self.memory = _memories(block)
        self.read = [list(dict.fromkeys(self.memory[v] for v in steps_.reads_of(s))) for s in block.steps]
        self.needs: list[set[int]] = [set() for _ in block.steps]
        self.before: list[int] = []  # every step that must come before a step, as a set of bits

    def steps(self) -> tuple[Step, ...]:
        """The steps in the order found."""
        self._dependencies()
        waiting, given = self._keep_what_can_be_overwritten()
        self.before = self._all_before()
        # First what is made in place: else another parameter may take the result that belongs there.
        waiting = [m for m in waiting if not self._let_be_overwritten(self._made_in_place(m), m, given)]
        for memory in waiting:
            self._let_be_overwritten(self._made_elsewhere(memory), memory, given)
        self._let_updates_come_last()
        plain, early = self._sorted(is_early=False), self._sorted(is_early=True)
        chosen = early if self._peak(early) < self._peak(plain) else plain
        return tuple(self.block.steps[number] for number in chosen)

    # --- what comes before what -------------------------------------------------------------------

    def _dependencies(self) -> None:
        """What each step needs, and in program order the readers of what it may overwrite."""
        maker: dict[Var, int] = {}
        last_effect: int | None = None
        for number, step in enumerate(self.block.steps):
            needs = self.needs[number]
            needs |= {maker[v] for v in steps_.reads_of(step) if v in maker}
            if _has_effect(step):
                needs |= {last_effect} if last_effect is not None else set()
                last_effect = number
            maker.update((v, number) for v in steps_.writes_of(step))
            for memory in self._overwritable(step):
                needs |= {reader for reader in memory.readers if reader < number}

    def _overwritable(self, step: Step) -> list[_Memory]:
        reads = steps_.reads_of(step)
        found = dict.fromkeys(self.memory[reads[operand]] for operand, _ in overwrites(step))
        return [m for m in found if m.maker is not None or m.parameter in self.ends.writable]

    def _all_before(self) -> list[int]:
        """Every step before each, while all of them come earlier in program order."""
        found: list[int] = []
        for needs in self.needs:
            bits = 0
            for need in needs:
                bits |= 1 << need | found[need]
            found.append(bits)
        return found

    def _put_before(self, first: int, second: int) -> None:
        """Make a step wait for another."""
        if self.before[second] >> first & 1:
            return
        self.needs[second].add(first)
        added = 1 << first | self.before[first]
        for number, before in enumerate(self.before):
            if number == second or before >> second & 1:
                self.before[number] = before | added

    def _can_precede(self, first: int, second: int) -> bool:
        return first != second and not self.before[first] >> second & 1

    def _let_updates_come_last(self) -> None:
        """What starts as a copy of its operand waits for the other readers of that, wherever they are."""
        for number, step in enumerate(self.block.steps):
            if isinstance(step, Loop) or (isinstance(step, Phase) and step.must_share):
                for memory in self._overwritable(step):
                    readers = [reader for reader in memory.readers if reader != number]
                    if not memory.results and all(self._can_precede(reader, number) for reader in readers):
                        for reader in readers:
                            self._put_before(reader, number)

    # --- parameters that a result may replace -----------------------------------------------------

    def _keep_what_can_be_overwritten(self) -> tuple[list[_Memory], set[_Memory]]:
        """Let the maker of a result that replaces a parameter in place wait for the other readers of it,
        where program order does; the parameters for which it does not, and the results that are taken.
        """
        given: set[_Memory] = set()
        waiting: list[_Memory] = []
        for number in sorted(self.ends.writable):
            memory = self.memory[self.block.params[number]]
            for target in self._made_in_place(memory):
                last = max((r for r in memory.readers if r != target.maker), default=-1)
                if target not in given and target.maker is not None and last < target.maker:
                    given.add(target)
                    self.needs[target.maker] |= {r for r in memory.readers if r != target.maker}
                    break
            else:
                waiting.append(memory)
        return waiting, given

    def _let_be_overwritten(self, targets: Sequence[_Memory], memory: _Memory, given: set[_Memory]) -> bool:
        """Put the readers of a parameter before the maker of a result that may take its memory; of one that
        they precede already, if there is such. Says whether a result was found.
        """
        last = max(memory.readers, default=-1)
        for target in sorted(targets, key=lambda m: m.maker is not None and m.maker < last):
            assert target.maker is not None, "only what a step makes replaces a parameter"
            readers = [r for r in memory.readers if r != target.maker]
            if target not in given and all(self._can_precede(r, target.maker) for r in readers):
                given.add(target)
                for reader in readers:
                    self._put_before(reader, target.maker)
                return True
        return False

    def _made_in_place(self, memory: _Memory) -> list[_Memory]:
        """Memories of results that a step which reads a parameter may leave where that is."""
        found: dict[_Memory, None] = {}
        for number in memory.readers:
            step = self.block.steps[number]
            reads, writes = steps_.reads_of(step), steps_.writes_of(step)
            found.update(
                (self.memory[writes[output]], None)
                for operand, output in overwrites(step)
                if self.memory[reads[operand]] is memory
            )
        return self._replacing(memory, found)

    def _made_elsewhere(self, memory: _Memory) -> list[_Memory]:
        """Memories of results of other steps that may be left where a parameter is."""
        found = dict.fromkeys(self.memory[v] for v in self.block.results)
        return self._replacing(memory, (m for m in found if m.maker not in memory.readers))

    def _replacing(self, memory: _Memory, found: Iterable[_Memory]) -> list[_Memory]:
        """Those that may and fit."""
        assert memory.parameter is not None, "a parameter is replaced"
        if memory.results:
            return []
        return [
            m
            for m in found
            if m.maker is not None
            and m.nbytes == memory.nbytes
            and any(self.ends.allows(k, memory.parameter) for k in m.results)
        ]

    # --- the order ----------------------------------------------------------------------------------

    def _sorted(self, *, is_early: bool) -> list[int]:
        """Steps in program order as far as they may; early, those that allocate nothing come first."""
        missing = [len(needs) for needs in self.needs]
        users: list[list[int]] = [[] for _ in missing]
        for number, needs in enumerate(self.needs):
            for need in needs:
                users[need].append(number)
        readers = {m: len(m.readers) for m in self.memory.values()}
        ready: list[tuple[bool, int]] = []
        waiting: set[int] = set()

        def add(number: int) -> None:
            waiting.add(number)
            heapq.heappush(ready, (not is_early or self._change(number, readers) > 0, number))

        for number, count in enumerate(missing):
            if count == 0:
                add(number)
        found: list[int] = []
        while ready:
            _, number = heapq.heappop(ready)
            if number not in waiting:
                continue
            waiting.discard(number)
            found.append(number)
            for memory in self.read[number]:
                readers[memory] -= 1
                if readers[memory] == 1 and is_early:  # whoever reads it last frees it
                    for reader in waiting.intersection(memory.readers):
                        add(reader)
            for user in users[number]:
                missing[user] -= 1
                if missing[user] == 0:
                    add(user)
        assert len(found) == len(self.needs), "steps wait for each other in a cycle"
        return found

    def _change(self, number: int, readers: dict[_Memory, int]) -> int:
        """Bytes that are alive after a step and were not before."""
        freed = sum(m.nbytes for m in self.read[number] if readers[m] == 1 and not m.is_kept)
        return self._made(number) - freed

    def _made(self, number: int) -> int:
        step = self.block.steps[number]
        if isinstance(step, Alias):
            return 0
        return sum(m.nbytes for m in (self.memory[v] for v in steps_.writes_of(step)) if not m.is_kept)

    def _peak(self, order: Sequence[int]) -> int:
        """Most bytes of temporaries alive at once; an output that replaces an operand counts once."""
        readers = {m: len(m.readers) for m in self.memory.values()}
        alive = peak = 0
        for number in order:
            step = self.block.steps[number]
            made = self._made(number)
            dying = [m for m in self.read[number] if readers[m] == 1 and not m.is_kept]
            reads = steps_.reads_of(step)
            replaced = {self.memory[reads[i]] for i, _ in overwrites(step)}.intersection(dying)
            scratch = step.scratch_bytes if isinstance(step, Phase) else 0
            peak = max(peak, alive + scratch + max(0, made - sum(m.nbytes for m in replaced)))
            alive += made - sum(m.nbytes for m in dying)
            for memory in self.read[number]:
                readers[memory] -= 1
        return peak


def _memories(block: Block) -> dict[Var, _Memory]:
    """The memory of every variable."""
    found: dict[Var, _Memory] = {}
    for i, param in enumerate(block.params):
        found[param] = _Memory(param.type.nbytes, None, i, is_kept=True)
    for var, _ in block.consts:
        found[var] = _Memory(var.type.nbytes, is_kept=True)
    for number, step in enumerate(block.steps):
        for memory in dict.fromkeys(found[v] for v in steps_.reads_of(step)):
            memory.readers.append(number)
        if isinstance(step, Alias):
            found[step.write] = found[step.read]
            continue
        found.update((v, _Memory(v.type.nbytes, number)) for v in steps_.writes_of(step))
    for k, var in enumerate(block.results):
        found[var].results.append(k)
        found[var].is_kept = True
    return found


def _has_effect(step: Step) -> bool:
    """Whether the host sees when a step runs."""
    if isinstance(step, Loop):
        inner: tuple[Block, ...] = (step.body,) if step.condition is None else (step.condition, step.body)
    else:
        inner = step.blocks if isinstance(step, Branch) else ()
    return isinstance(step, HostCall) or any(_has_effect(s) for block in inner for s in block.steps)
