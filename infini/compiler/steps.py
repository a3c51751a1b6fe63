"""What a backend with one flat memory runs: blocks of steps over variables, before and after memory is
planned.

A step says which variables it reads and writes, which outputs may take the memory of which operands, and what
memory it needs meanwhile. The planner asks nothing else, so it serves every such backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from infini.core import ir
from infini.core.ir import Equation, Var
from infini.core.source import Where


@dataclass(frozen=True, slots=True, eq=False)
class Phase:
    """Parallel work: task functions run one after another over the same arguments.

    Args:
        name: for people.
        tasks: native functions, backend specific.
        reads: operands in the order of the arguments.
        writes: outputs in the order of the arguments, after the operands.
        in_place: pairs (operand, output) that may share memory.
        must_share: pairs (operand, output) of which the output starts as a copy of the operand.
        scratch_bytes: memory needed while it runs.
        where: the user's line.
        parts: the equations it computes, where it is more than one.
        is_product: whether it is a matrix product, which is never computed twice to save memory.
    """

    name: str
    tasks: tuple[Any, ...]  # Any: backend specific
    reads: tuple[Var, ...]
    writes: tuple[Var, ...]
    in_place: tuple[tuple[int, int], ...] = ()
    must_share: tuple[tuple[int, int], ...] = ()
    scratch_bytes: int = 0
    where: Where | None = None
    parts: tuple[Equation, ...] = ()
    is_product: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Phases that do not depend on each other, run as one: their first task functions together, then their
    second ones, and so on.

    Args:
        phases: phases whose outputs do not start as copies.
        reads: operands of all phases in order.
        writes: outputs of all phases in order.
    """

    phases: tuple[Phase, ...]
    reads: tuple[Var, ...]
    writes: tuple[Var, ...]

    @property
    def name(self) -> str:
        """What most of the phases are called, or else the longest one."""
        names = [phase.name for phase in self.phases]

        def weight(phase: Phase) -> tuple[int, float]:
            return names.count(phase.name), sum(task.cost_ns for task in phase.tasks)

        return f"{len(names)} x {max(self.phases, key=weight).name}"

    @property
    def where(self) -> Where | None:
        """The user's line of the first phase."""
        return self.phases[0].where

    @property
    def in_place(self) -> tuple[tuple[int, int], ...]:
        """Pairs (operand, output) that may share memory, numbered in the group."""
        found: list[tuple[int, int]] = []
        reads = writes = 0
        for phase in self.phases:
            found += [(reads + i, writes + j) for i, j in phase.in_place]
            reads, writes = reads + len(phase.reads), writes + len(phase.writes)
        return tuple(found)

    @property
    def scratch_bytes(self) -> int:
        """Memory that all phases need at once."""
        return sum(align(phase.scratch_bytes) for phase in self.phases)


def group(phases: Sequence[Phase]) -> Group:
    """A group of phases."""
    reads = tuple(v for phase in phases for v in phase.reads)
    return Group(tuple(phases), reads, tuple(v for phase in phases for v in phase.writes))


@dataclass(frozen=True, slots=True, eq=False)
class Alias:
    """The output is the operand under another type; no work."""

    read: Var
    write: Var


@dataclass(frozen=True, slots=True, eq=False)
class Loop:
    """A counted loop (`condition` is None) or one that runs while a condition holds.

    Operands are the constants of the condition, those of the body, the carry, then arrays that the body takes
    slice by slice; outputs are the carry, then arrays that the body fills slice by slice. Body parameters:
    constants, carry, slices.
    """

    name: str
    condition: Block | None
    body: Block
    reads: tuple[Var, ...]
    writes: tuple[Var, ...]
    num_condition_consts: int
    num_consts: int
    num_carry: int
    length: int = 0
    is_reversed: bool = False
    where: Where | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """One of several blocks, chosen by the int32 scalar that is the first operand; the number is clamped."""

    name: str
    blocks: tuple[Block, ...]
    reads: tuple[Var, ...]
    writes: tuple[Var, ...]
    where: Where | None = None


@dataclass(frozen=True, slots=True, eq=False)
class HostCall:
    """A call of a Python function with the operands; its results are copied out."""

    function: ir.HostFunction
    reads: tuple[Var, ...]
    writes: tuple[Var, ...] = ()
    where: Where | None = None


Step: TypeAlias = Phase | Group | Alias | Loop | Branch | HostCall


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Steps with parameters, constants and results."""

    params: tuple[Var, ...]
    consts: tuple[tuple[Var, ir.Constant], ...]
    steps: tuple[Step, ...]
    results: tuple[Var, ...]


def reads_of(step: Step) -> tuple[Var, ...]:
    """Variables a step reads."""
    return (step.read,) if isinstance(step, Alias) else step.reads


def writes_of(step: Step) -> tuple[Var, ...]:
    """Variables a step makes."""
    return (step.write,) if isinstance(step, Alias) else step.writes


# --- where the planner puts things ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parameter:
    """The memory of a parameter of the block."""

    number: int


@dataclass(frozen=True, slots=True)
class Result:
    """Memory that the caller gives for a result of the block."""

    number: int


@dataclass(frozen=True, slots=True)
class Const:
    """The memory of a constant of the block."""

    number: int


@dataclass(frozen=True, slots=True)
class Temporary:
    """Bytes of the arena of the block from `offset` on."""

    offset: int


Place: TypeAlias = Parameter | Result | Const | Temporary


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """Bytes to move after the last step of a block."""

    source: Place
    target: Place
    nbytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Memory of a block.

    Args:
        places: of every variable of the block.
        scratch: place of the memory that a step needs meanwhile, by number of the step: scratch, or the arena
            of its blocks.
        inner: plans of the blocks of a step, by number of the step: condition and body of a loop, branches.
        shared: outputs of a step that start in the memory of an operand, as (operand, output); other outputs
            that continue an operand are copied first.
        copies: moves after the last step, in order.
        results: where each result is in the end.
        nbytes: size of the arena.
        donated: parameters whose memory a result has taken.
    """

    places: dict[Var, Place]
    scratch: dict[int, Temporary]
    inner: dict[int, tuple[Plan, ...]]
    shared: dict[int, frozenset[tuple[int, int]]]
    copies: tuple[Copy, ...]
    results: tuple[Place, ...]
    nbytes: int
    donated: frozenset[int] = field(default=frozenset())


def align(nbytes: int, alignment: int = 64) -> int:
    """The next multiple of the alignment."""
    return -(-nbytes // alignment) * alignment
