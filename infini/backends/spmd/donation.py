"""Whether the memory of donated parameters of a program for a mesh was of use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from infini.backends.spmd import steps as s
from infini.core import backend as backend_, errors, events
from infini.core.backend import CompileOptions, Executable
from infini.core.ir import Equation, Var

_EXPECTED: Final = "a result of the same size that is made when the array is no longer needed"


def check(schedule: s.Schedule, options: CompileOptions, pieces: Mapping[int, Executable]) -> None:
    """Say which donated parameters were of no use.

    One is of use when a piece leaves a result in its memory, when it is a result itself, or when it is freed
    before a result of its size is made.

    Args:
        schedule: the whole program.
        options: its options.
        pieces: executables by id of the piece.

    Raises:
        DonationError: there is one, and the options require donation.
    """
    program = schedule.program
    made = _made(schedule)
    reasons = {}
    for i in options.donated:
        param = program.params[i]
        if param.type.size <= 1 or (param in program.results and schedule.takes(i)):
            continue
        number = max((k for k, step in enumerate(schedule.steps) if param in step.inputs), default=-1)
        if number >= 0 and _is_reused(schedule.steps[number], schedule.given[number], param, pieces):
            continue
        later = next((key for key in made if key[0] > number and key[1] == param.type.nbytes), None)
        if later is None:
            reasons[i] = f"parameter {i} ({param.type}){_why(schedule, number, param)}"
            continue
        made[later] -= 1
        made += Counter()  # less those that are taken
    if not reasons or options.donation == "offer":
        return
    if options.donation == "require":
        raise errors.DonationError(
            "a donated array could not be reused",
            got="; ".join(reasons.values()),
            expected=_EXPECTED,
            fix='donate only arrays that a result replaces, or use donation="allow"',
        )
    events.emit(
        "donation-unused",
        f"donated arrays of @{program.name} could not be reused: {'; '.join(reasons.values())}",
        level="warning",
        parameters=tuple(reasons),
    )


def _made(schedule: s.Schedule) -> Counter[tuple[int, int]]:
    """How many results are made by each step, by its number and their bytes."""
    made_by = {v: k for k, step in enumerate(schedule.steps) for v in step.outputs}
    return Counter(
        (len(schedule.steps) if i in schedule.shared else made_by.get(v, -1), v.type.nbytes)
        for i, v in enumerate(schedule.program.results)
    )


def _is_reused(step: s.Step, given: frozenset[Var], param: Var, pieces: Mapping[int, Executable]) -> bool:
    """Whether the last step that reads a parameter leaves something in its memory."""
    if param not in given:
        return False
    if not isinstance(step, s.Piece):  # a carry is overwritten in every turn
        return isinstance(step, s.Structured)
    executable = pieces[id(step)]
    if not isinstance(executable, backend_.Reuses) or step.inputs.index(param) in executable.reused:
        return True
    # Where every result of its size lies in memory that was given, such as that of gradients, none is new.
    alike = [step.inputs[i] for i in executable.reused if step.inputs[i].type.nbytes == param.type.nbytes]
    return 0 < sum(v.type.nbytes == param.type.nbytes for v in step.outputs) <= len(alike)


def _why(schedule: s.Schedule, number: int, param: Var) -> str:
    if not any(v.type.nbytes == param.type.nbytes for v in schedule.program.results):
        return f": no result has {param.type.nbytes} bytes on a device"
    if number < 0:
        return ": other donated arrays have taken the results of its size"
    step = schedule.steps[number]
    equation: Equation
    if isinstance(step, s.Piece):
        equation = [e for e in step.program.equations if param in e.inputs][-1]
    else:
        equation = step.equation
    return f" is still read by {equation.op.name!r}" + (f" at {equation.where}" if equation.where else "")
