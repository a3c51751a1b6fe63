"""A per-device program cut at its collectives, by a list scheduler.

Equations run in the order of the number of exchanges that they depend on, then in that of the program, so
independent work is not cut apart. A reduction begins as soon as its operand is there and a bucket is full,
and is awaited where its result is read. A gather of a parameter begins as late as it can: one window of bytes
before the equations that read it. Devices that run the same schedule meet in the same order, and nothing
blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from infini.backends.spmd import order
from infini.backends.spmd.steps import (
    Exchange as Exchange,
    Piece as Piece,
    Schedule as Schedule,
    Start as Start,
    Step as Step,
    Structured as Structured,
    Wait as Wait,
    always_meets as always_meets,
    communicates as communicates,
    count as count,
    text as text,
)
from infini.core import ir
from infini.core.ir import Equation, Program, Var


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is communicated at once.

    Args:
        first_bucket_bytes: reductions that are ready begin when they have this many bytes; smaller than the
            others, so that communication begins early.
        bucket_bytes: the same for the buckets after the first.
        window_bytes: gathers of parameters that begin together; the next ones begin when these are there.
    """

    first_bucket_bytes: int = 1 << 20
    bucket_bytes: int = 25 << 20
    window_bytes: int = 25 << 20


DEFAULT: Final = Limits()


def cut(program: Program, donated: Iterable[int] = (), limits: Limits = DEFAULT) -> Schedule:
    """The schedule of a per-device program.

    Args:
        program: the program.
        donated: numbers of the parameters whose memory may be overwritten.
        limits: how much is communicated at once.
    """
    steps = _without_idle_waits(_Scheduler(program, donated, limits).run())
    dead = _dead_after(program, steps)
    own = {program.params[i] for i in donated}
    own |= {v for step in steps for v in _own_outputs(step)}
    given = []
    for number, (step, after) in enumerate(zip(steps, dead, strict=True)):
        times = Counter(step.inputs)
        given.append(frozenset(v for v in after if v in own and times[v] == 1))
        if isinstance(step, Structured):  # its bodies depend on what they may take
            steps[number] = _structured(step.equation, given[-1], limits)
    seen: set[Var] = set()
    shared = set()
    for i, v in enumerate(program.results):
        if v not in own or v in seen:
            shared.add(i)
        seen.add(v)
    return Schedule(program, tuple(steps), dead, tuple(given), frozenset(shared))


def _own_outputs(step: Step) -> Sequence[Var]:
    """Outputs in memory that the walk made for them alone. That of exchanges is their comm's, and may be the
    same on several devices; stacked results of a scan are plain host memory.
    """
    if isinstance(step, Piece):
        return step.outputs
    if isinstance(step, Structured):
        attrs = step.equation.attrs
        return step.outputs[: attrs["num_carry"]] if step.equation.op.name == "scan" else step.outputs
    return ()


def _structured(equation: Equation, given: frozenset[Var], limits: Limits) -> Structured:
    """A loop or branch. Carries are always overwritten: a loop copies those that it was not given."""
    attrs, op = equation.attrs, equation.op.name
    bodies = []
    for program in equation.programs:
        donated: Iterable[int] = ()
        if op == "scan":
            donated = range(attrs["num_consts"], attrs["num_consts"] + attrs["num_carry"])
        elif op == "while" and program is attrs["body"]:
            donated = range(attrs["num_body_consts"], len(program.params))
        elif op == "cond":
            donated = [i for i, v in enumerate(equation.inputs[1:]) if v in given]
        bodies.append(cut(program, donated, limits))
    return Structured(equation, tuple(bodies))


# --- the steps -----------------------------------------------------------------------------------


class _Scheduler:
    """Goes through the equations in order, and keeps what is ready, begun and awaited."""

    def __init__(self, program: Program, donated: Iterable[int], limits: Limits) -> None:
        self.program, self.limits = program, limits
        self.late = order.Late(program)
        self.equations = order.ordered(program, self.late)
        self.steps: list[Step] = []
        self.piece: list[Equation] = []
        self.is_done: set[int] = set()  # ids of equations in a step or in the piece
        self.there = {*program.params, *(v for v, _ in program.consts)}
        self.made_by = {v: equation for equation in program.equations for v in equation.outputs}
        self.pending: list[Equation] = []  # ready, and waiting for a bucket to fill
        self.pending_bytes = 0
        self.flying: list[Equation] = []  # begun, in that order
        self.group_of: dict[int, int] = {}  # those that began together, by id of the equation
        self.num_groups = self.num_buckets = 0
        self.gathers = [e for e in self.equations if id(e) in self.late.gathers]
        # Exchanges other than those, by what they still wait for.
        self.missing: dict[int, set[Var]] = {}
        self.readers: dict[Var, list[Equation]] = {}

    def run(self) -> list[Step]:
        """The steps."""
        for equation in self.equations:
            if self._is_eager(equation):
                self.missing[id(equation)] = {v for v in equation.inputs if v not in self.there}
                for v in self.missing[id(equation)]:
                    self.readers.setdefault(v, []).append(equation)
        for equation in self.equations:
            if equation.op.name == "axis_index":
                self.steps.append(Exchange(equation))
                self._made(equation)
            elif self._is_eager(equation) and not self.missing[id(equation)]:
                self._ready(equation)
        self._cut()
        for equation in self.equations:
            if id(equation) not in self.is_done:
                self._take(equation)
        self._bring(self.program.results)
        for equation in self.equations:  # what nothing reads
            if equation in self.late:
                self._bring(equation.outputs)
        self._cut()
        self._wait(len(self.flying))
        return self.steps

    def _is_eager(self, equation: Equation) -> bool:
        return (
            id(equation) not in self.late.gathers
            and equation.op.name != "axis_index"
            and not equation.programs
            and communicates(equation)
        )

    def _take(self, equation: Equation) -> None:
        if equation in self.late:
            return  # its reader asks for it
        self._bring(equation.inputs)
        if self._is_eager(equation):
            return  # it is ready now, or was before
        if equation.programs and communicates(equation):
            self._cut()
            self.steps.append(Structured(equation, ()))
        else:
            self.piece.append(equation)
        self._made(equation)
        limits = self.limits
        bucket_bytes = limits.bucket_bytes if self.num_buckets else limits.first_bucket_bytes
        if self.pending and self.pending_bytes >= bucket_bytes:
            self._cut()

    def _bring(self, variables: Sequence[Var]) -> None:
        """Have variables there: await exchanges, and compute what is late."""
        chain = self._late_before(variables)
        self._demand([*(v for equation in chain for v in equation.inputs), *variables])
        self._compute(chain)

    def _late_before(self, variables: Iterable[Var]) -> list[Equation]:
        """Late equations other than gathers that make variables, in order."""
        found: dict[int, Equation] = {}

        def visit(v: Var) -> None:
            if v not in self.there and id(self.made_by[v]) in self.late.others:
                for read in self.made_by[v].inputs:
                    visit(read)
                found[id(self.made_by[v])] = self.made_by[v]

        for v in variables:
            visit(v)
        return list(found.values())

    def _compute(self, chain: Iterable[Equation]) -> None:
        for equation in chain:
            if id(equation) not in self.is_done:
                self.piece.append(equation)
                self._made(equation)

    def _made(self, equation: Equation) -> None:
        """The outputs of an equation are there: exchanges may have become ready."""
        self.is_done.add(id(equation))
        self.there.update(equation.outputs)
        for v in equation.outputs:
            for reader in self.readers.pop(v, ()):
                self.missing[id(reader)].discard(v)
                if not self.missing[id(reader)]:
                    self._ready(reader)

    def _ready(self, exchange: Equation) -> None:
        self.pending.append(exchange)
        self.pending_bytes += _nbytes(exchange)

    def _demand(self, variables: Iterable[Var]) -> None:
        """Await the exchanges that make variables."""
        missing = {id(self.made_by[v]) for v in variables if v not in self.there}
        asked = missing - self.late.others
        if not asked:
            return
        gathers = asked & self.late.gathers
        wanted = gathers - self.group_of.keys()
        groups: list[list[Equation]] = []
        taken: set[int] = set()
        while not wanted <= taken:
            groups.append(self._next_gathers(taken))
            assert groups[-1], "the operands of a gather are there when its result is read"
            taken.update(map(id, groups[-1]))
        ahead: list[Equation] = []
        if gathers and not self._are_ahead(gathers):  # the next window begins when this one is there
            ahead = self._next_gathers(taken)
        self._cut()
        for group in groups:
            self._begin(group)
        last = max(self.group_of[number] for number in asked)
        self._wait(sum(self.group_of[id(e)] <= last for e in self.flying))
        self._begin(ahead)
        # The piece is empty: what has become ready with that travels beside what is computed next, as the
        # next block of a ring does.
        if self.pending_bytes >= self.limits.first_bucket_bytes:
            self._cut()

    def _are_ahead(self, gathers: set[int]) -> bool:
        """Whether gathers that begin after these were begun already."""
        if not gathers <= self.group_of.keys():
            return False
        last = max(self.group_of[number] for number in gathers)
        return any(id(e) in self.late.gathers and self.group_of[id(e)] > last for e in self.flying)

    def _next_gathers(self, taken: set[int]) -> list[Equation]:
        """The next gathers in order that fill a window, at least one where their operands are there."""
        found: list[Equation] = []
        nbytes = 0
        for gather in self.gathers:
            if id(gather) in self.group_of or id(gather) in taken:
                continue
            nbytes += _nbytes(gather)
            if (found and nbytes > self.limits.window_bytes) or not self._prepare(gather):
                break
            found.append(gather)
        return found

    def _prepare(self, gather: Equation) -> bool:
        """Compute the operand of a gather, unless that has to wait for something."""
        chain = self._late_before(gather.inputs)
        made = {v for equation in chain for v in equation.outputs} | self.there
        is_ready = all(v in made for equation in (*chain, gather) for v in equation.inputs)
        if is_ready:
            self._compute(chain)
        return is_ready

    def _cut(self) -> None:
        """End the piece, and begin all exchanges that are ready."""
        if self.piece:
            self.steps.append(_piece(self.program, self.piece))
            self.piece = []
        if self.pending:
            self.num_buckets += 1
            self._begin(self.pending)
            self.pending, self.pending_bytes = [], 0

    def _begin(self, equations: Sequence[Equation]) -> None:
        self.steps += [Start(equation) for equation in equations]
        self.flying += equations
        self.group_of |= {id(equation): self.num_groups for equation in equations}
        self.num_groups += 1

    def _wait(self, number: int) -> None:
        """Await the first exchanges that were begun: those begun later do not end before them."""
        ended, self.flying = self.flying[:number], self.flying[number:]
        for equation in ended:
            self.steps.append(Wait(equation))
            self._made(equation)


def _nbytes(equation: Equation) -> int:
    return sum(v.type.nbytes for v in equation.outputs)


def _without_idle_waits(steps: list[Step]) -> list[Step]:
    """Exchanges that nothing is computed beside, as one step each."""
    at: dict[int, int] = {}  # begun since something was computed: where, by id of the equation
    found: list[Step | None] = []
    for step in steps:
        if isinstance(step, Wait) and id(step.equation) in at:
            found[at.pop(id(step.equation))] = Exchange(step.equation)
            continue
        if isinstance(step, Start):
            at[id(step.equation)] = len(found)
        elif isinstance(step, Piece | Structured):
            at.clear()
        found.append(step)
    return [step for step in found if step is not None]


def _piece(program: Program, equations: list[Equation]) -> Piece:
    made = {v for equation in equations for v in equation.outputs}
    read = dict.fromkeys(v for equation in equations for v in equation.inputs)
    consts = tuple((v, constant) for v, constant in program.consts if v in read)
    known = {v for v, _ in consts}
    inputs = tuple(v for v in read if v not in made and v not in known)
    mine = set(map(id, equations))
    elsewhere = {v for e in program.equations if id(e) not in mine for v in e.inputs} | set(program.results)
    outputs = tuple(v for e in equations for v in e.outputs if v in elsewhere)
    return Piece(ir.Program(inputs, tuple(equations), outputs, consts, program.name), inputs, outputs)


def _dead_after(program: Program, steps: list[Step]) -> tuple[tuple[Var, ...], ...]:
    alive, found = set(program.results) | {v for v, _ in program.consts}, []
    for step in reversed(steps):
        touched = dict.fromkeys((*step.inputs, *step.outputs))
        found.append(tuple(v for v in touched if v not in alive))
        alive.update(touched)
    return tuple(reversed(found))
