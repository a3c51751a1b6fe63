"""Loops over a mesh: scan and while.

A carry has one placement, that of the plan, before, during and after its loop. It may hold terms of a sum all
the way: then a loop that adds up gradients sums them over devices once, when it is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from infini.compiler.partition import structured as s
from infini.compiler.partition.local import Block, Local, structured
from infini.compiler.partition.placement import Axes, Dims, Placement
from infini.compiler.partition.structured import Attempt
from infini.core import trace
from infini.core.ir import Equation, Program, Var
from infini.core.value import Value

_UNKNOWN_TURNS: Final = 2  # of a while loop: what is done once costs less than what is done in every turn


@dataclass(frozen=True, slots=True)
class _Loop:
    """The body of a loop and what is around it.

    Args:
        block: the program around.
        name: the operation.
        body: parameters are constants, then the carry, then rows.
        operands: for each parameter what it is outside of the loop.
        outputs: the carry, then stacked rows.
        num_consts: number of constants.
        num_carry: number of carries.
        turns: how often the body runs.
        is_read: for each carry whether something else than the body reads it in every turn.
    """

    block: Block
    name: str
    body: Program
    operands: Sequence[Var]
    outputs: Sequence[Var]
    num_consts: int
    num_carry: int
    turns: int
    is_read: Sequence[bool]

    @property
    def inside(self) -> list[Dims]:
        """Placements of the parameters of the body."""
        return [self.block.plan[v] for v in self.body.params]

    @property
    def carry(self) -> slice:
        """Where the carry is among the parameters."""
        return slice(self.num_consts, self.num_consts + self.num_carry)

    def outside(self, index: int) -> Dims:
        """Placement of an operand: rows have one more dimension, which is whole."""
        dims = self.inside[index]
        return dims if index < self.carry.stop else ((), *dims)

    def choose(self) -> Attempt:
        """The body with whatever may stay terms of a sum."""
        nothing = ((),) * len(self.body.params), ()
        return s.cheapest(
            self.block,
            self._attempt,
            (
                lambda best: (self._with_carry(best), ()),
                lambda best: (self._with_operands(best), ()),
                lambda best: (self._with_carry(best), ()),
            ),
            nothing,
        )

    def _attempt(self, entered: tuple[Axes, ...], _: tuple[Axes, ...]) -> Attempt:
        block, inside = self.block, self.inside
        targets = [Placement(*x) for x in zip(inside[self.carry], entered[self.carry], strict=True)]
        staged: list[trace.Staged] = []
        leaving: list[Placement] = []
        offered: list[Axes] = []

        def finish(inner: Block, found: list[Local]) -> list[Value]:
            carried = found[: self.num_carry]
            stacked = zip(inner.program.results[self.num_carry :], found[self.num_carry :], strict=True)
            rows = [inner.scattered(var, local, "a row of scan") for var, local in stacked]
            offered.extend(local.placement.partial for local in carried)
            leaving.extend([*targets, *(row.placement for row in rows)])
            reason = f"the carry of {self.name}"
            return [
                *(inner.moved(x, to, reason) for x, to in zip(carried, targets, strict=True)),
                *(row.value for row in rows),
            ]

        placed = [Placement(*item) for item in zip(inside, entered, strict=True)]
        constants = self.body.params[: self.num_consts]

        def stage() -> None:
            staged.append(s.stage_body(block, self.body, placed, finish, constants, self.turns))

        inserted = s.recorded(block, stage)
        cost = self.turns * float(inserted.nbytes)
        cost += s.waiting_bytes(block, self.operands, entered)
        stacked = [*leaving[: self.num_carry], *(_stacked(to) for to in leaving[self.num_carry :])]
        cost += sum(
            s.local_bytes(block, v, to) for v, to in zip(self.outputs, stacked, strict=True) if to.partial
        )
        return Attempt(tuple(staged), entered, tuple(stacked), tuple(offered), inserted, cost)

    def _with_carry(self, best: Attempt) -> tuple[Axes, ...]:
        """Carries as terms: those to which terms are added, and those that begin as terms."""
        inside = self.inside[self.carry]
        begins = s.entering(self.block, self.operands[self.carry], inside)
        found = list(best.entering)
        for i, (before, after, is_read) in enumerate(zip(begins, best.offered, self.is_read, strict=True)):
            if not is_read:
                found[self.num_consts + i] = s.apart(inside[i], after) or before
        return tuple(found)

    def _with_operands(self, best: Attempt) -> tuple[Axes, ...]:
        """Constants and rows as terms."""
        given, found = s.entering(self.block, self.operands, self.inside), list(best.entering)
        for i, axes in enumerate(given):
            if not self.carry.start <= i < self.carry.stop:
                found[i] = axes
        return tuple(found)

    def enter(self, chosen: Attempt) -> list[Value]:
        """The operands of the loop."""
        return [
            s.enter(self.block, v, self.outside(i), axes, self.name)
            for i, (v, axes) in enumerate(zip(self.operands, chosen.entering, strict=True))
        ]


def _stacked(row: Placement) -> Placement:
    return Placement(((), *row.dims), row.partial)


@structured("scan")
def _scan(block: Block, equation: Equation) -> list[Local]:
    attrs = equation.attrs
    num_consts, num_carry = attrs["num_consts"], attrs["num_carry"]
    loop = _Loop(
        block, "scan", attrs["body"], equation.inputs, equation.outputs, num_consts, num_carry,
        attrs["length"], (False,) * num_carry,
    )  # fmt: skip
    chosen = loop.choose()
    operands = loop.enter(chosen)
    (staged,) = chosen.staged
    changed = attrs.replace(body=staged.program, num_consts=len(staged.captures) + num_consts)
    results = trace.bind(equation.op, *staged.captures, *operands, **changed)
    return [
        Local(r, placement, v.type.shape)
        for r, placement, v in zip(results, chosen.leaving, equation.outputs, strict=True)
    ]


@structured("while")
def _while(block: Block, equation: Equation) -> list[Local]:
    attrs = equation.attrs
    condition, body = attrs["cond"], attrs["body"]
    first, second = attrs["num_cond_consts"], attrs["num_body_consts"]
    reads = {v for e in condition.equations for v in e.inputs} | set(condition.results)
    loop = _Loop(
        block, "while", body, equation.inputs[first:], equation.outputs, second, len(body.params) - second,
        _UNKNOWN_TURNS, tuple(v in reads for v in condition.params[first:]),
    )  # fmt: skip
    chosen = loop.choose()
    consts = [block.plan[v] for v in condition.params[:first]]
    known = [
        block.operand(v, dims, (), "while") for v, dims in zip(equation.inputs[:first], consts, strict=True)
    ]
    operands = loop.enter(chosen)

    def predicate(inner: Block, found: list[Local]) -> list[Value]:
        return [inner.moved(x, Placement(()), "the condition of while") for x in found]

    placed = [*map(Placement, consts), *chosen.leaving]
    decides = s.stage_body(block, condition, placed, predicate)
    (staged,) = chosen.staged
    results = trace.bind(
        equation.op, *decides.captures, *known, *staged.captures, *operands,
        cond=decides.program, body=staged.program,
        num_cond_consts=len(decides.captures) + first, num_body_consts=len(staged.captures) + second,
    )  # fmt: skip
    return [
        Local(r, placement, v.type.shape)
        for r, placement, v in zip(results, chosen.leaving, equation.outputs, strict=True)
    ]
