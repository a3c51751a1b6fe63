"""A per-device program cut at its collectives: pieces without communication, exchanges between them,
loops around both.

Everything that needs the same number of exchanges before it goes into one piece, so independent work is
not cut apart and exchanges of one stage follow each other. Devices that run the same schedule meet in
the same order, and nothing blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from infini.core import ir
from infini.core.ir import Constant, Equation, Program, Var
from infini.core.primitive import Effect


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A program that a backend compiles as a whole."""

    program: Program
    inputs: tuple[Var, ...]
    outputs: tuple[Var, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Exchange:
    """A collective, or the index of a device."""

    equation: Equation

    @property
    def inputs(self) -> tuple[Var, ...]:
        """What it reads."""
        return self.equation.inputs

    @property
    def outputs(self) -> tuple[Var, ...]:
        """What it makes."""
        return self.equation.outputs


@dataclass(frozen=True, slots=True, eq=False)
class Structured:
    """A loop or branch with communication inside; each body is a schedule, in the order of
    `equation.programs`.
    """

    equation: Equation
    bodies: tuple[Schedule, ...]

    @property
    def inputs(self) -> tuple[Var, ...]:
        """What it reads."""
        return self.equation.inputs

    @property
    def outputs(self) -> tuple[Var, ...]:
        """What it makes."""
        return self.equation.outputs


Step: TypeAlias = Piece | Exchange | Structured


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """Steps in order, and after each the variables that nothing reads any more."""

    program: Program
    steps: tuple[Step, ...]
    dead: tuple[tuple[Var, ...], ...]

    @property
    def consts(self) -> tuple[tuple[Var, Constant], ...]:
        """Constants of the program; pieces have copies of those they use."""
        return self.program.consts


def communicates(equation: Equation) -> bool:
    """Whether running an equation needs other devices, or depends on which device it is."""
    if equation.op.name == "axis_index" or equation.op.effect_for(equation.attrs) is Effect.COLLECTIVE:
        return True
    return any(communicates(inner) for program in equation.programs for inner in program.equations)


def always_meets(schedule: Schedule, sizes: Mapping[str, int]) -> bool:
    """Whether every run of a schedule has devices of several processes wait for each other.

    Args:
        schedule: the schedule.
        sizes: sizes of the axes of the mesh.
    """
    for step in schedule.steps:
        if isinstance(step, Exchange) and step.equation.op.name != "axis_index":
            attrs = step.equation.attrs
            axes = attrs["axes"] if "axes" in attrs else attrs["axis_name"]
            axes = (axes,) if isinstance(axes, str) else axes
            if any(sizes[axis] > 1 for axis in axes):
                return True
        if (
            isinstance(step, Structured)
            and step.equation.op.name == "scan"
            and step.equation.attrs["length"] > 0
            and always_meets(step.bodies[0], sizes)
        ):
            return True
    return False


def cut(program: Program) -> Schedule:
    """The schedule of a per-device program."""
    level: dict[Var, int] = {}
    inside: dict[int, list[Equation]] = {}
    between: dict[int, list[Equation]] = {}
    latest_effect = 0
    for equation in program.equations:
        stage = max((level.get(v, 0) for v in equation.inputs), default=0)
        is_exchange = communicates(equation)
        if equation.effect.is_ordered and not is_exchange:
            stage = latest_effect = max(stage, latest_effect)
        (between if is_exchange else inside).setdefault(stage, []).append(equation)
        level.update((v, stage + is_exchange) for v in equation.outputs)
    steps: list[Step] = []
    for stage in range(max([*inside, *between], default=-1) + 1):
        if stage in inside:
            steps.append(_piece(program, inside[stage]))
        steps += [_between(equation) for equation in between.get(stage, ())]
    return Schedule(program, tuple(steps), _dead_after(program, steps))


def _between(equation: Equation) -> Step:
    if not equation.programs:
        return Exchange(equation)
    return Structured(equation, tuple(cut(inner) for inner in equation.programs))


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


def count(schedule: Schedule) -> dict[str, int]:
    """How many pieces, and how many of each collective, loops counted once."""
    found: dict[str, int] = {}
    for step in schedule.steps:
        name = "pieces" if isinstance(step, Piece) else step.equation.op.name
        found[name] = found.get(name, 0) + 1
        for body in step.bodies if isinstance(step, Structured) else ():
            for key, number in count(body).items():
                found[key] = found.get(key, 0) + number
    return found
