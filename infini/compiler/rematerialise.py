"""Fewer bytes for more work: what is cheap to compute is computed again instead of being kept over the peak.

A temporary that is alive at the peak of a block and not read there is made again before its next reader, when
the phase that makes it is cheap and everything that it reads is still there then. Products, loops and host
calls are never repeated. Nothing changes a result: the same phase runs twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from infini.compiler import memory, steps as steps_
from infini.compiler.memory import Ends
from infini.compiler.steps import Alias, Block, Branch, Loop, Phase, Step
from infini.core.ir import Var

NS_PER_BYTE: Final = 0.5  # most time for a byte of a result that is cheap
MAX_TIMES: Final = 512  # phases that are repeated in one block


def within(block: Block, ends: Ends, budget: int) -> Block:
    """The block with phases repeated until its temporaries fit into a budget, or as near to it as that goes.

    Args:
        block: steps in their final order.
        ends: where results may and must be.
        budget: bytes of temporaries.
    """
    best, best_peak = block, _Lives(block, ends).peak()[0]
    for _ in range(MAX_TIMES):
        lives = _Lives(block, ends)
        peak, at = lives.peak()
        if peak < best_peak:
            best, best_peak = block, peak
        choice = lives.choice(at) if peak > budget else None
        if choice is None:
            break
        block = lives.repeated(*choice)
    return best


@dataclass(eq=False, slots=True)
class _Life:
    """Memory, under whatever names, and the steps that use it."""

    nbytes: int
    maker: int | None
    reads: list[int] = field(default_factory=list)
    is_temporary: bool = True

    @property
    def last(self) -> int:
        """The last step that reads it."""
        return self.reads[-1] if self.reads else -1


class _Lives:
    def __init__(self, block: Block, ends: Ends) -> None:
        self.block, self.ends = block, ends
        self.lives: dict[Var, _Life] = {}
        for i, var in enumerate(block.params):
            self.lives[var] = _Life(var.type.nbytes, None, is_temporary=False)
            if i not in ends.writable:
                self.lives[var].reads = [len(block.steps)]  # it stays as it is
        for var, _ in block.consts:
            self.lives[var] = _Life(var.type.nbytes, None, [len(block.steps)], is_temporary=False)
        for number, step in enumerate(block.steps):
            if isinstance(step, Alias):
                self.lives[step.write] = self.lives[step.read]
                continue
            for life in dict.fromkeys(self.lives[v] for v in steps_.reads_of(step)):
                life.reads = sorted([*life.reads, number])
            for var in steps_.writes_of(step):
                self.lives[var] = _Life(var.type.nbytes, number)
        for var in block.results:
            self.lives[var].is_temporary = False
            self.lives[var].reads.append(len(block.steps))

    def peak(self) -> tuple[int, int]:
        """Most bytes of temporaries alive at once, and the step at which they are."""
        change = [0] * (len(self.block.steps) + 1)
        for life in dict.fromkeys(self.lives.values()):
            if life.is_temporary and life.maker is not None:
                change[life.maker] += steps_.align(life.nbytes)
                change[max(life.last, life.maker) + 1] -= steps_.align(life.nbytes)
        alive, found = 0, (0, 0)
        for number, step in enumerate(self.block.steps):
            alive += change[number]
            here = alive + _scratch(step) - self._replaced(number, step)
            found = max(found, (here, -number))
        return found[0], -found[1]

    def _replaced(self, number: int, step: Step) -> int:
        """Bytes that outputs save by taking the memory of operands that die."""
        if not isinstance(step, Phase):
            return 0
        pairs = (*step.must_share, *step.in_place)
        taken = dict.fromkeys(self.lives[step.reads[operand]] for operand, _ in pairs)
        saved = sum(life.nbytes for life in taken if life.is_temporary and life.last == number)
        made = sum(v.type.nbytes for v in step.writes if self.lives[v].is_temporary)
        return min(saved, made)

    def choice(self, at: int) -> tuple[int, int] | None:
        """The phase that is worth repeating after a step, because of the bytes it makes, and what it comes
        before.
        """
        found: tuple[int, int, int] | None = None
        for life in dict.fromkeys(self.lives.values()):
            following = next((n for n in life.reads if n > at), None)
            if life.maker is None or following is None or not self._is_idle(life, at, following):
                continue
            freed = self._freed(life.maker, at, following)
            if freed and (found is None or freed > found[0]):
                found = (freed, life.maker, following)
        return None if found is None else found[1:]

    def _is_idle(self, life: _Life, at: int, following: int) -> bool:
        """Whether a temporary made before a step is not read from there to another one, but later."""
        is_kept = life.is_temporary and life.maker is not None and life.maker < at and life.last >= following
        return is_kept and not any(at <= n < following for n in life.reads)

    def _freed(self, maker: int, at: int, following: int) -> int:
        """Bytes that need not be kept when a phase is repeated; 0 when it should not be."""
        step = self.block.steps[maker]
        if not isinstance(step, Phase) or step.is_product or len(step.tasks) != 1:
            return 0
        if step.must_share or step.scratch_bytes:
            return 0
        freed = sum(v.type.nbytes for v in step.writes if self._is_idle(self.lives[v], at, following))
        others = sum(v.type.nbytes for v in step.writes) - freed
        if step.tasks[0].cost_ns > NS_PER_BYTE * freed or others > freed // 8:
            return 0
        return freed if all(self.lives[v].last >= following for v in step.reads) else 0

    def repeated(self, maker: int, following: int) -> Block:
        """The block in which a phase runs again before a step, for all that read its results from then on."""
        step = self.block.steps[maker]
        assert isinstance(step, Phase), "only phases are repeated"
        renamed = {v: Var(v.type) for v in step.writes}
        again: list[Step] = [dataclasses.replace(step, writes=tuple(renamed.values()))]
        for earlier in self.block.steps[:following]:
            if isinstance(earlier, Alias) and earlier.read in renamed:
                renamed[earlier.write] = Var(earlier.write.type)
                again.append(Alias(renamed[earlier.read], renamed[earlier.write]))
        # What is a result, or is read in between, is still there.
        kept = {v for v in renamed if not self.lives[v].is_temporary}
        renamed = {v: fresh for v, fresh in renamed.items() if v not in kept}
        after = [_with_reads(s, renamed) for s in self.block.steps[following:]]
        return dataclasses.replace(self.block, steps=(*self.block.steps[:following], *again, *after))


def _with_reads(step: Step, renamed: dict[Var, Var]) -> Step:
    if isinstance(step, Alias):
        return Alias(renamed.get(step.read, step.read), step.write)
    if isinstance(step, steps_.Group):
        return step
    return dataclasses.replace(step, reads=tuple(renamed.get(v, v) for v in step.reads))


def _scratch(step: Step) -> int:
    """Bytes that a step needs meanwhile."""
    if isinstance(step, Loop):
        inner: Sequence[Block] = (step.body,) if step.condition is None else (step.condition, step.body)
    else:
        inner = step.blocks if isinstance(step, Branch) else ()
    if inner:
        return max(memory.plan(block).nbytes for block in inner)
    return step.scratch_bytes if isinstance(step, Phase) else 0
