"""How values around a product of queries and keys are described: letters for their dimensions, and a formula.

Formulas are the scores, their largest per row, and polynomials in e = exp(score - largest), its sum l per
row, the weights' cotangents w, and d, the sum of e w per row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from infini.core.ir import Equation, Var

Dims: TypeAlias = tuple[tuple[str, ...], ...]  # letters of each dimension; none where its size is 1


@dataclass(frozen=True, slots=True)
class Located:
    """An array and the letters of its dimensions."""

    var: Var
    dims: Dims

    @property
    def letters(self) -> tuple[str, ...]:
        """All letters in order."""
        return tuple(c for dim in self.dims for c in dim)


@dataclass(frozen=True, slots=True)
class Condition:
    """Where scores count: where an array of booleans is true, or false when inverted."""

    where: Located
    is_inverted: bool


@dataclass(frozen=True, slots=True)
class Scores:
    """`select(conditions, scale * product + bias, fill)`."""

    scale: float = 1.0
    bias: Located | None = None
    conditions: tuple[Condition, ...] = ()
    fill: float = 0.0


@dataclass(frozen=True, slots=True)
class Term:
    """Exponents of e, w, l and d, and the conditions outside which the term is 0."""

    e: int = 0
    w: int = 0
    l: int = 0  # noqa: E741
    d: int = 0
    conditions: frozenset[Condition] = frozenset()

    def times(self, other: Term, power: int = 1) -> Term:
        """The product with a power of another term."""
        return Term(
            self.e + power * other.e, self.w + power * other.w, self.l + power * other.l,
            self.d + power * other.d, self.conditions | other.conditions,
        )  # fmt: skip


Sum: TypeAlias = Mapping[Term, float]
Kind: TypeAlias = Literal["scores", "largest", "shifted", "sum"]
E: Final = Term(e=1)
L: Final = Term(l=1)
WEIGHTS: Final = Term(e=1, l=-1)


@dataclass(frozen=True, slots=True)
class Known:
    """What a value is: its letters, and scores, their largest, scores less the largest, or a sum of terms."""

    dims: Dims
    kind: Kind
    scores: Scores = Scores()
    sum: Sum = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Use:
    """A contraction of a known matrix with something else."""

    equation: Equation
    operand: int
    known: Known


def regrouped(dims: Dims, sizes: Mapping[str, int], shape: Sequence[int]) -> Dims | None:
    """The letters of a reshaped array; None when a dimension is cut in pieces that have no letters."""
    rest = [c for dim in dims for c in dim]
    found = []
    for size in shape:
        own, product = [], 1
        while product < size and rest:
            own.append(rest.pop(0))
            product *= sizes[own[-1]]
        if product != size:
            return None
        found.append(tuple(own))
    return None if rest else tuple(found)


def permutation(equation: Equation) -> tuple[int, ...]:
    """The permutation of a transpose, of all dimensions, counted from the left."""
    ndim, tail = equation.output.type.ndim, equation.attrs["permutation"]
    return (*range(ndim - len(tail)), *(p % ndim for p in tail))


def untransposed(dims: Dims, equation: Equation) -> Dims:
    """Letters of the operand of a transpose, from those of its result."""
    found: list[tuple[str, ...]] = [()] * len(dims)
    for place, source in enumerate(permutation(equation)):
        found[source] = dims[place]
    return tuple(found)
