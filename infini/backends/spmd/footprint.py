"""How much memory a device needs at once to run a schedule: what is alive across its steps, and what each
piece needs while it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from infini.backends.spmd import schedule as s
from infini.core.backend import Executable
from infini.core.ir import Var


def peak_bytes(schedule: s.Schedule, pieces: Mapping[int, Executable], donated: Iterable[int] = ()) -> int:
    """The most bytes that are alive at once, arguments and results included.

    Arguments that are not donated stay until the end. A message of several arrays is a copy of them, on both
    sides.

    Args:
        schedule: what runs.
        pieces: executables of its pieces, by id; their plans say what they need besides.
        donated: numbers of the parameters that are freed when nothing reads them any more.
    """
    params = schedule.program.params
    kept = {v for i, v in enumerate(params) if i not in set(donated)}
    alive = {v: v.type.nbytes for v in (*params, *(v for v, _ in schedule.consts))}
    return _peak(schedule, pieces, alive, kept)


def _peak(
    schedule: s.Schedule, pieces: Mapping[int, Executable], alive: dict[Var, int], kept: set[Var]
) -> int:
    most = sum(alive.values())
    for step, dead in zip(schedule.steps, schedule.dead, strict=True):
        alive.update((v, v.type.nbytes) for v in step.outputs)
        most = max(most, sum(alive.values()) + _besides(step, pieces))
        for v in dead:
            if v not in kept:
                alive.pop(v, None)
    return most


def _besides(step: s.Step, pieces: Mapping[int, Executable]) -> int:
    """Bytes that a step needs while it runs, beside its operands and results."""
    if isinstance(step, s.Piece):
        found = pieces[id(step)].memory_analysis()
        return found.get("temp bytes", found.get("temporary bytes", 0))
    if isinstance(step, s.Structured):
        return max((_of_body(body, pieces) for body in step.bodies), default=0)
    if len(step.inputs) > 1 and step.outputs:
        return sum(v.type.nbytes for v in (*step.inputs, *step.outputs))
    return 0


def _of_body(body: s.Schedule, pieces: Mapping[int, Executable]) -> int:
    """What one turn of a loop needs: its constants are those outside, carries and rows are its own."""
    alive = {v: v.type.nbytes for v, _ in body.consts}
    return _peak(body, pieces, alive, set())
