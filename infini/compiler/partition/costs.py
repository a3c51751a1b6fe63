"""What communication and computation cost: bytes of collectives in rings, seconds on a `Machine`, and the
list of the collectives that a per-device program makes.

A prediction is a count: `collectives` reads the program that runs, with the trips of its loops, so what
`testing.CountingComm` counts while it runs is what stands here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from infini.compiler import cost
from infini.compiler.partition.placement import Axes
from infini.core import source
from infini.core.ir import Equation, Program, Var
from infini.core.machine import Machine
from infini.core.mesh import AbstractMesh

REDUCTIONS: Final = frozenset({"psum", "pmax", "pmin"})
COLLECTIVES: Final = REDUCTIONS | {"all_gather", "psum_scatter", "all_to_all", "ppermute"}


@dataclass(frozen=True, slots=True)
class Collective:
    """A collective of a per-device program.

    Args:
        name: its operation.
        axes: the mesh axes it is over.
        nbytes: bytes that each device gives.
        wire_bytes: bytes that each device sends, in a ring.
        times: how often it runs; None when that depends on values, inside `while` and `cond`.
        reason: what it is for.
        where: the line of the user that caused it.
        num_operands: arrays that travel together.
    """

    name: str
    axes: Axes
    nbytes: int
    wire_bytes: int
    times: int | None
    reason: str
    where: source.Where | None
    num_operands: int = 1


@dataclass(frozen=True, slots=True)
class Note:
    """Why a collective was inserted.

    Args:
        result: what it makes.
        reason: what that is for.
        where: the line of the user.
        nbytes: bytes that each device gives.
        equation: the equation of the global program that needs it, if one does.
    """

    result: Var
    reason: str
    where: source.Where | None
    nbytes: int
    equation: Equation | None = None


def wire_bytes(name: str, nbytes: float, num_members: int) -> float:
    """Bytes that each member sends when each gives `nbytes` to a collective in a ring."""
    if num_members == 1:
        return 0
    if name in REDUCTIONS:
        return 2 * nbytes * (num_members - 1) / num_members
    if name == "all_gather":
        return nbytes * (num_members - 1)
    if name == "ppermute":
        return nbytes
    return nbytes * (num_members - 1) / num_members


def num_messages(name: str, num_members: int) -> int:
    """Messages that a member sends one after another, each of which waits for the one before."""
    if num_members == 1:
        return 0
    return {"ppermute": 1, "all_to_all": 1}.get(name, (2 if name in REDUCTIONS else 1) * (num_members - 1))


def seconds(name: str, axes: Axes, nbytes: float, mesh: AbstractMesh, machine: Machine) -> float:
    """Time of a collective to which each device gives `nbytes`."""
    num_members = mesh.size_of(axes)
    if num_members == 1:
        return 0.0
    link = machine.link_of(axes)
    latency = machine.start_s + num_messages(name, num_members) * link.latency_s
    return latency + wire_bytes(name, nbytes, num_members) / link.bytes_per_s


def compute_seconds(equation: Equation, num_parts: int, machine: Machine) -> float:
    """Time of an equation of which each device computes one of `num_parts` equal parts."""
    operations = sum(cost.work(equation).values())
    moved = sum(cost.traffic(equation))
    return max(operations / machine.flops_per_s, moved / machine.memory_bytes_per_s) / num_parts


def collectives(program: Program, mesh: AbstractMesh, notes: Mapping[Var, Note]) -> tuple[Collective, ...]:
    """The collectives of a per-device program in program order, those of bodies included.

    Args:
        program: per-device program.
        mesh: its mesh.
        notes: why results of collectives are there; what a user wrote has none.
    """
    return tuple(found for _, found in walk(program, mesh, notes))


def walk(
    program: Program, mesh: AbstractMesh, notes: Mapping[Var, Note], times: int | None = 1
) -> Iterator[tuple[Equation, Collective]]:
    """`collectives`, each with its equation, inside something that runs so often."""
    for equation in program.equations:
        name = equation.op.name
        if name in COLLECTIVES:
            yield equation, _collective(equation, mesh, notes, times)
            continue
        inside = times
        if name == "scan":
            inside = None if times is None else times * equation.attrs["length"]
        elif name in ("while", "cond"):
            inside = None
        for body in equation.programs:
            yield from walk(body, mesh, notes, inside)


def _collective(
    equation: Equation, mesh: AbstractMesh, notes: Mapping[Var, Note], times: int | None
) -> Collective:
    axes = equation.attrs["axes"]
    nbytes = sum(v.type.nbytes for v in equation.inputs)
    found = [notes[v] for v in equation.outputs if v in notes]
    reasons = dict.fromkeys(note.reason for note in found) or {f"lax.{equation.op.name}": None}
    first, *others = reasons
    return Collective(
        equation.op.name,
        axes,
        nbytes,
        round(wire_bytes(equation.op.name, nbytes, mesh.size_of(axes))),
        times,
        f"{first} and {len(others)} more" if others else first,
        next((note.where for note in found if note.where is not None), equation.where),
        len(equation.inputs),
    )
