"""What a schedule is made of: pieces without communication, exchanges between them, loops around both.

An exchange is one step where nothing can be computed meanwhile. Otherwise it is begun by one step and awaited
by a later one; what it reads is neither freed nor overwritten between the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

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
class Start:
    """A collective begins, and goes on beside the steps that follow."""

    equation: Equation

    @property
    def inputs(self) -> tuple[Var, ...]:
        """What it reads."""
        return self.equation.inputs

    @property
    def outputs(self) -> tuple[Var, ...]:
        """Nothing yet."""
        return ()


@dataclass(frozen=True, slots=True, eq=False)
class Wait:
    """A collective that was begun before ends here."""

    equation: Equation

    @property
    def inputs(self) -> tuple[Var, ...]:
        """What it read: it was needed until now."""
        return self.equation.inputs

    @property
    def outputs(self) -> tuple[Var, ...]:
        """What it made."""
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


Step: TypeAlias = Piece | Exchange | Start | Wait | Structured


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """Steps in order, and what becomes of the memory of variables.

    Args:
        program: what is computed.
        steps: the steps.
        dead: after each step the variables that nothing reads any more.
        given: for each step the variables whose memory it may take: they are dead after it, and nobody
            outside the schedule knows their memory.
        shared: numbers of the results whose memory others know too, or will write. They are copied.
    """

    program: Program
    steps: tuple[Step, ...]
    dead: tuple[tuple[Var, ...], ...]
    given: tuple[frozenset[Var], ...]
    shared: frozenset[int]

    @property
    def consts(self) -> tuple[tuple[Var, Constant], ...]:
        """Constants of the program; pieces have copies of those they use."""
        return self.program.consts

    def takes(self, number: int) -> bool:
        """Whether the memory of a parameter is taken by a step, or is that of a result."""
        param = self.program.params[number]
        is_result = any(v is param for i, v in enumerate(self.program.results) if i not in self.shared)
        return is_result or any(param in given for given in self.given)

    def __str__(self) -> str:
        return text(self)


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
        if isinstance(step, Exchange | Start) and step.equation.op.name != "axis_index":
            attrs = step.equation.attrs
            axes = attrs["axes"] if "axes" in attrs else (attrs["axis_name"],)
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


def count(schedule: Schedule) -> dict[str, int]:
    """How many pieces, and how many of each collective, loops counted once."""
    found: dict[str, int] = {}
    for step in schedule.steps:
        if isinstance(step, Wait):
            continue
        name = "pieces" if isinstance(step, Piece) else step.equation.op.name
        found[name] = found.get(name, 0) + 1
        for body in step.bodies if isinstance(step, Structured) else ():
            for key, number in count(body).items():
                found[key] = found.get(key, 0) + number
    return found


def text(schedule: Schedule, indent: str = "") -> str:
    """The steps, one a line, with what they make. Variables are numbered in the order of the program."""
    numbers: dict[Var, str] = {v: f"p{i}" for i, v in enumerate(schedule.program.params)}
    numbers |= {v: f"c{i}" for i, (v, _) in enumerate(schedule.consts)}
    for equation in schedule.program.equations:
        numbers |= {v: f"v{len(numbers) + i}" for i, v in enumerate(equation.outputs)}
    lines = []
    for step in schedule.steps:
        kind, reads = type(step).__name__.lower(), " ".join(numbers[v] for v in step.inputs)
        if isinstance(step, Piece):
            kind = f"piece of {len(step.program.equations)}"
        elif isinstance(step, Structured):
            kind = step.equation.op.name
        else:
            kind = f"{kind} {step.equation.op.name}"
        makes = " ".join(f"{numbers[v]}:{v.type}" for v in step.outputs)
        lines.append(f"{indent}{kind}({reads})" + (f" -> {makes}" if makes else ""))
        if isinstance(step, Structured):
            lines += [text(body, indent + "    ") for body in step.bodies]
    return "\n".join(lines)
