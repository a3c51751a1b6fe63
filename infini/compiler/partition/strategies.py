"""The ways in which an equation may be split, as data: each proposes axes for the factors, and `local` takes
the one that costs least, or the one that the user names for an operation.

    infini.shard(f, mesh=mesh, strategies={"dot": "contracted"})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from infini.compiler.partition import placement as p
from infini.compiler.partition.placement import Axes, Split
from infini.core import errors
from infini.core.mesh import AbstractMesh
from infini.lax.places import Factors

Wishes: TypeAlias = Sequence[tuple[str, Axes]]


@dataclass(frozen=True, slots=True)
class Choice:
    """What is known when an equation is to be split.

    Args:
        factors: its factors.
        planned: how the plan wants the results split.
        given: how the operands are split, the largest first.
    """

    factors: Factors
    planned: Wishes
    given: Wishes


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to split an equation.

    Args:
        name: what users call it.
        wishes: splits of factors, the most important first; what an earlier one excludes is left out.
    """

    name: str
    wishes: Callable[[Choice], Wishes]

    def split(self, choice: Choice, mesh: AbstractMesh) -> Split:
        """The split that follows from the wishes."""
        found: Split = {}
        p.merge(found, self.wishes(choice))
        return p.contiguous(found, choice.factors, mesh)


def _reduced_first(choice: Choice) -> Wishes:
    return sorted([*choice.given, *choice.planned], key=lambda wish: wish[0] not in choice.factors.reduced)


RESULTS: Final = Strategy(
    "results", lambda choice: [*choice.planned, *p.leading_first(choice.given, choice.factors)]
)
OPERANDS: Final = Strategy("operands", lambda choice: [*choice.given, *choice.planned])
CONTRACTED: Final = Strategy("contracted", _reduced_first)
WHOLE: Final = Strategy("whole", lambda choice: [])

# What may be asked for by name: split as the results should be; as the operands are; along what is summed, so
# that weights stay and activations move; or not at all.
BY_NAME: Final[Mapping[str, Strategy]] = {s.name: s for s in (RESULTS, OPERANDS, CONTRACTED, WHOLE)}
# What is compared when nothing is asked for. The other two are never silently better: a person who splits a
# weight over the axis of the batch wants it gathered.
COMPARED: Final = (RESULTS, OPERANDS)


def named(strategies: Sequence[tuple[str, str]]) -> dict[str, Strategy]:
    """The strategies that are asked for, by the name of the operation.

    Raises:
        ValueMismatchError: there is no strategy of a name.
    """
    for op, name in strategies:
        if name not in BY_NAME:
            raise errors.ValueMismatchError(
                f"there is no strategy called {name!r}",
                got=f"{op!r}: {name!r}",
                expected=f"one of {', '.join(map(repr, BY_NAME))}",
                fix="see infini.compiler.partition.strategies for what each does",
            )
    return {op: BY_NAME[name] for op, name in strategies}
