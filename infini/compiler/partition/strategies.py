"""The ways in which an equation may be split, as data: each proposes axes for the factors, and `local` takes
the one that costs least, or the one that the user names for an operation.

    infini.shard(f, mesh=mesh, strategies={"dot": "contracted", "attention": "ring"})

What factors cannot describe, because one axis splits two of them, is a `Form`: it writes the equation for one
device itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from infini.compiler.partition import placement as p
from infini.compiler.partition.placement import Axes, Split
from infini.core import errors
from infini.core.ir import Equation
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


# --- forms ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Form:
    """A way to compute an equation on parts that has its own communication.

    Args:
        name: what users call it.
        why_not: why it does not compute an equation under a split of its factors; None when it does.
        seconds: what it costs.
        emit: the local results of the equation; None when it is computed as factors say. All three take the
            block, the equation and the split.
    """

    name: str
    why_not: Callable[[Any, Equation, Split], str | None]  # Any: a Block, which is built on this module
    seconds: Callable[[Any, Equation, Split], float]
    emit: Callable[[Any, Equation, Split], list[Any] | None]


@dataclass(frozen=True, slots=True)
class Family:
    """Operations that are computed in one of several forms.

    Args:
        name: what users call them together.
        forms: the forms; the first computes every equation.
        is_met: whether an equation under a split is one that the forms are for; others are left to factors.
    """

    name: str
    forms: tuple[Form, ...]
    is_met: Callable[[Any, Equation, Split], bool]  # Any: a Block


FAMILIES: dict[str, Family] = {}  # by the name of an operation; filled by the modules that have forms


def family(ops: Sequence[str], found: Family) -> None:
    """Say that operations are computed in forms."""
    FAMILIES.update(dict.fromkeys(ops, found))


def asked(op: str, given: Mapping[str, str]) -> str | None:
    """What is asked for an operation, under its name or that of its family."""
    found = FAMILIES.get(op)
    return given.get(op, None if found is None else given.get(found.name))


def chosen_form(block: Any, equation: Equation, split: Split) -> Form | None:  # Any: a Block
    """The form in which an equation is computed: the one that is asked for if it can be, else the cheapest;
    None where factors describe it. Why is noted, for people to read.
    """
    found = FAMILIES.get(equation.op.name)
    name = asked(equation.op.name, block.mover.strategies)
    if found is None or name in BY_NAME or not found.is_met(block, equation, split):
        return None
    reasons = {form.name: form.why_not(block, equation, split) for form in found.forms}
    fitting = [form for form in found.forms if reasons[form.name] is None]
    if name is None:
        chosen = min(fitting, key=lambda form: form.seconds(block, equation, split))
        others = [f"not {other}: {reason}" for other, reason in reasons.items() if reason is not None]
        why = "; ".join(["the cheapest", *others])
    else:
        chosen = next((form for form in fitting if form.name == name), found.forms[0])
        why = "as asked" if chosen.name == name else f"not {name}: {reasons[name]}"
    block.mover.forms[equation.outputs[0]] = f"{found.name} by {chosen.name}, {why}"
    return chosen


def named(strategies: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The strategies and forms that are asked for, by the name of the operation.

    Raises:
        ValueMismatchError: there is no strategy of a name.
    """
    for op, name in strategies:
        found = FAMILIES.get(op)
        known = [*BY_NAME, *(form.name for form in (found.forms if found else ()))]
        if name not in known:
            raise errors.ValueMismatchError(
                f"there is no strategy called {name!r}",
                got=f"{op!r}: {name!r}",
                expected=f"one of {', '.join(map(repr, known))}",
                fix="see infini.compiler.partition.strategies for what each does",
            )
    return dict(strategies)
