"""Which equations become one kernel: a walk in program order that lets each join the kernel of its operands.

A group has a `Domain`; its variables are *full* (one element per point) or *reduced* (one per point of the
other axes). Views are never members: they are index maps, inlined wherever they are used. Equations over at
most one large array that cost little are *cheap*: they too are inlined everywhere. A union of groups must not
make a cycle through equations outside.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from infini.compiler import affine, cost, expression, views
from infini.compiler.expression import Domain
from infini.core import dtypes, primitive
from infini.core.ir import Equation, Program, Shape, Var

CHEAP_WEIGHT: Final = 6.0
MAX_MEMBERS: Final = 96
MAX_COLUMN_TILE: Final = 1 << 15  # elements of a column tile that is kept while its reductions are used
MAX_JOINED: Final = 3  # arrays that a kernel joins element by element; more are copied one after another
_UNSUPPORTED: Final = dtypes.COMPLEX


class Level(enum.Enum):
    """How the elements of a variable lie in the domain of its group."""

    FULL = "full"
    REDUCED = "reduced"


@dataclass(eq=False, slots=True)
class Group:
    """Equations on their way to one kernel."""

    domain: Domain
    members: dict[Var, Level] = field(default_factory=dict)
    mask: int = 0  # its equations, as bits
    ancestors: int = 0  # equations it depends on, as bits
    producers: set[int] = field(default_factory=set)  # equations outside whose arrays it uses
    shapes: set[Shape] = field(default_factory=set)  # of its members, as cuts of the whole domain


class Grouping:
    """The walk, and what it found: `group_of` and `cheap`; every other variable is an array."""

    def __init__(self, program: Program, *, no_fuse: bool = False) -> None:
        self.program = program
        self.no_fuse = no_fuse
        self.definition: dict[Var, Equation] = {}
        self.position: dict[Var, int] = {}
        self.uses: dict[Var, list[int]] = {}
        self.group_of: dict[Var, Group] = {}
        self.groups: dict[Group, None] = {}  # in the order they were begun
        self.cheap: dict[Var, float] = {}
        self.ancestors: dict[int, int] = {}  # of equations that are no member of a group
        self.fusable = {v for e in program.equations if is_fusable(e) for v in e.outputs}
        self.constants = dict(program.consts)
        for i, equation in enumerate(program.equations):
            for var in equation.inputs:
                self.uses.setdefault(var, []).append(i)
            for output in equation.outputs:
                self.position[output] = i
        for i, equation in enumerate(program.equations):
            self._place(i, equation)
            for output in equation.outputs:
                self.definition[output] = equation

    # --- classes of variables -----------------------------------------------------------------

    def is_array(self, var: Var) -> bool:
        """Whether a variable is stored whatever is fused: parameters, constants and results of other
        operations.
        """
        return var not in self.fusable

    def is_fusable(self, equation: Equation) -> bool:
        """Whether kernels compute an equation of the program."""
        return bool(equation.outputs) and equation.outputs[0] in self.fusable

    def is_view(self, var: Var) -> bool:
        """Whether a variable is an index map of others."""
        return var in self.fusable and self.definition[var].op.name in views.PLAIN

    def leaves(self, var: Var) -> Iterator[Var]:
        """The arrays and members of groups that a variable is computed from when views and cheap ones are
        inlined.
        """
        if self.is_array(var) or var in self.group_of:
            yield var
            return
        for operand in self.definition[var].inputs:
            yield from self.leaves(operand)

    # --- the walk -----------------------------------------------------------------------------

    def _place(self, number: int, equation: Equation) -> None:
        if not self.is_fusable(equation):
            self._set_ancestors(number, equation)
            return
        if equation.op.name in views.PLAIN or equation.op.name == "iota":
            if equation.op.name == "iota":
                self.cheap[equation.output] = 1.0
            return
        if equation.op.name in expression.REDUCTIONS:
            self._place_reduction(number, equation)
        else:
            self._place_elementwise(number, equation)

    def _set_ancestors(self, number: int, equation: Equation) -> None:
        self.ancestors[number] = self._ancestors_of(self._producers(equation.inputs))

    def _producers(self, inputs: Iterable[Var]) -> set[int]:
        """Equations whose results are used through views and cheap equations."""
        return {self.position[leaf] for v in inputs for leaf in self.leaves(v) if leaf in self.position}

    def _ancestors_of(self, producers: Iterable[int]) -> int:
        found = 0
        for p in producers:
            found |= 1 << p | self._ancestors_at(p)
        return found

    def _ancestors_at(self, number: int) -> int:
        output = self.program.equations[number].outputs
        group = self.group_of.get(output[0]) if output else None
        return group.ancestors | group.mask if group is not None else self.ancestors.get(number, 0)

    def _place_elementwise(self, number: int, equation: Equation) -> None:
        output = equation.outputs[0]
        leaves = list(dict.fromkeys(leaf for v in equation.inputs for leaf in self.leaves(v)))
        grouped = [leaf for leaf in leaves if leaf in self.group_of]
        candidates = list(dict.fromkeys(self.group_of[leaf] for leaf in reversed(grouped)))
        for chosen in self._unions(candidates):
            level = self._level(equation, chosen)
            if level is not None and self._join(number, equation, chosen, level):
                return
        weight = self._cheap_weight(equation, leaves)
        if weight <= CHEAP_WEIGHT and not self.no_fuse:
            self.cheap.update((v, weight) for v in equation.outputs)
            return
        is_placed = self._join(number, equation, [], Level.FULL, Domain(output.type.size))
        assert is_placed, "an equation alone is always a kernel"

    def _cheap_weight(self, equation: Equation, leaves: Sequence[Var]) -> float:
        size = equation.outputs[0].type.size
        large = sum(leaf.type.size * 8 > size for leaf in leaves if leaf.type.size > 1)
        if large > 1:
            return math.inf
        own = cost.op_weight(equation.op)
        return own + sum(self.cheap.get(v, 0.0) for x in equation.inputs for v in self._through_views(x))

    def _through_views(self, var: Var) -> Iterator[Var]:
        if self.is_view(var):
            for operand in self.definition[var].inputs:
                yield from self._through_views(operand)
        else:
            yield var

    def _unions(self, candidates: list[Group]) -> Iterator[list[Group]]:
        """Sets of groups to try, all of them first."""
        if len(candidates) > 1:
            yield candidates
        for group in candidates:
            yield [group]

    def _level(self, equation: Equation, groups: list[Group]) -> Level | None:
        """Level at which an elementwise equation fits the union of some groups, if it does."""
        domain = _united([g.domain for g in groups])
        # A pad or concatenation reads its operands at other indices than its own.
        if domain is None or self.no_fuse or equation.op.name in views.RULES:
            return None
        size = equation.outputs[0].type.size
        members = [v for x in equation.inputs for v in self._through_views(x) if self._group(v) in groups]
        if size == domain.size:
            level = Level.FULL
        elif domain.reduced > 1 and size == domain.outer * domain.inner:
            level = Level.REDUCED
        else:
            return None
        if not members or not all(
            self._fits(x, equation.outputs[0], groups, domain, level) for x in equation.inputs
        ):
            return None
        uses_reduced = level is Level.FULL and any(self._group_level(v) is Level.REDUCED for v in members)
        if uses_reduced and domain.inner > 1 and min(domain.inner, 64) * domain.reduced > MAX_COLUMN_TILE:
            return None
        return level

    def _group(self, var: Var) -> Group | None:
        return self.group_of.get(var)

    def _group_level(self, var: Var) -> Level:
        return self.group_of[var].members[var]

    def _fits(self, operand: Var, output: Var, groups: list[Group], domain: Domain, level: Level) -> bool:
        """Whether every member that an operand reaches through views lies in the domain as its level says."""
        reached = [v for v in self.leaves(operand) if self._group(v) in groups]
        if not reached:
            return True
        if operand.type.size == output.type.size and self._only_reshapes(operand):
            return self._group_level(reached[0]) is level
        return level is Level.FULL and self._reaches(operand, output, set(reached), domain)

    def _reaches(self, operand: Var, output: Var, members: set[Var], domain: Domain) -> bool:
        """Follow index maps from a point of the domain to each member, and compare with where it lies."""
        sizes = affine.refinement([output.type.shape, (domain.outer, domain.reduced, domain.inner)])
        while sizes is not None:
            try:
                return self._reaches_over(sizes, operand, output, members, domain)
            except affine.SplitAxis as split:
                sizes = affine.split(sizes, split)
            except affine.NotAffine:
                return False
        return False

    def _reaches_over(
        self, sizes: list[int], operand: Var, output: Var, members: set[Var], domain: Domain
    ) -> bool:
        outer, reduced, inner = split_axes(sizes, domain)
        everything = [*outer, *reduced, *inner]
        expected = {
            Level.FULL: affine.flat(everything, sizes),
            Level.REDUCED: affine.flat([*outer, *inner], sizes),
        }

        def follow(var: Var, index: affine.IndexMap) -> bool:
            if var in members:
                return affine.linearize(index, var.type.shape) == expected[self._group_level(var)]
            if self.is_array(var) or var in self.group_of:
                return True
            equation = self.definition[var]
            if equation.op.name in views.RULES:
                pieces = views.pieces(equation, index, sizes)
                return all(follow(p.operand, p.index) for p in pieces)
            shape = equation.outputs[0].type.shape
            return all(follow(x, views.operand_index(index, x.type.shape, shape)) for x in equation.inputs)

        start = affine.delinearize(expected[Level.FULL], output.type.shape, sizes)
        return follow(operand, views.operand_index(start, operand.type.shape, output.type.shape))

    def _only_reshapes(self, var: Var) -> bool:
        while self.is_view(var):
            if self.definition[var].op.name != "reshape":
                return False
            var = self.definition[var].inputs[0]
        return var in self.group_of

    # --- reductions ---------------------------------------------------------------------------

    def _place_reduction(self, number: int, equation: Equation) -> None:
        domain = reduction_domain(equation)
        assert domain is not None, "reductions over scattered axes are decomposed before"
        groups = list(
            dict.fromkeys(self.group_of[v] for v in self.leaves(equation.inputs[0]) if v in self.group_of)
        )
        if len(groups) == 1 and not self.no_fuse:
            united = _united([groups[0].domain, domain])
            if (
                united == domain
                and self._fits(equation.inputs[0], equation.inputs[0], groups, domain, Level.FULL)
                and self._join(number, equation, groups, Level.REDUCED, domain)
            ):
                return
        is_placed = self._join(number, equation, [], Level.REDUCED, domain)
        assert is_placed, "an equation alone is always a kernel"

    # --- unions -------------------------------------------------------------------------------

    def _join(
        self, number: int, equation: Equation, groups: list[Group], level: Level, domain: Domain | None = None
    ) -> bool:
        """Make an equation a member of the union of some groups, unless that makes a cycle or too large a
        kernel.
        """
        mask = 1 << number
        producers = self._producers(equation.inputs)
        for group in groups:
            mask |= group.mask
            producers |= group.producers
        # A group apart from one it depends on reads that one at another index, so they cannot be one kernel.
        if any(other.mask >> p & 1 for group in groups for p in group.producers for other in groups):
            return False
        producers = {p for p in producers if not mask >> p & 1}
        if sum(len(g.members) for g in groups) >= MAX_MEMBERS:
            return False
        united = domain or _united([g.domain for g in groups])
        assert united is not None, "groups of one kernel have one domain"
        shapes: set[Shape] = {(united.outer, united.reduced, united.inner)}.union(*(g.shapes for g in groups))
        shapes.update(whole_shape(output.type.shape, united, level) for output in equation.outputs)
        if affine.refinement(list(shapes)) is None:
            return False
        if any(self._ancestors_at(p) & mask for p in producers):
            return False
        target = groups[0] if groups else Group(Domain(0))
        for group in groups[1:]:
            target.members.update(group.members)
            self.group_of.update((v, target) for v in group.members)
            del self.groups[group]
        before = target.ancestors
        self.groups[target] = None
        target.domain, target.shapes = united, shapes
        target.mask, target.producers = mask, producers
        target.ancestors = self._ancestors_of(producers)
        for output in equation.outputs:
            target.members[output] = level
            self.group_of[output] = target
        if groups and (target.ancestors & ~before or len(groups) > 1):
            self._propagate(target)
        return True

    def _propagate(self, changed: Group) -> None:
        """Whatever depends on a part of a group depends on all that the group depends on."""
        added = changed.ancestors | changed.mask
        # Only later equations depend on those of the group.
        first = (changed.mask & -changed.mask).bit_length() - 1
        for number in reversed(self.ancestors):
            if number < first:
                break
            if self.ancestors[number] & changed.mask:
                self.ancestors[number] |= added
        for group in self.groups:
            if group is not changed and group.ancestors & changed.mask:
                group.ancestors |= added


def whole_shape(shape: Shape, domain: Domain, level: Level) -> Shape:
    """A shape of the whole domain that cuts it where a member's shape does."""
    if level is Level.FULL or domain.reduced == 1:
        return shape
    cut = next((k for k in range(len(shape) + 1) if math.prod(shape[:k]) == domain.outer), None)
    return (*shape, domain.reduced) if cut is None else (*shape[:cut], domain.reduced, *shape[cut:])


def is_fusable(equation: Equation) -> bool:
    """Whether kernels can compute an equation: elementwise operations, views and reductions."""
    op = equation.op
    if any(v.type.size == 0 or v.type.dtype in _UNSUPPORTED for v in (*equation.inputs, *equation.outputs)):
        return False
    if op.name in views.RULES:
        is_sparse = op.name == "pad" and any(equation.attrs["interior"])
        return not is_sparse and not (op.name == "concatenate" and len(equation.inputs) > MAX_JOINED)
    if op.name in expression.REDUCTIONS:
        return reduction_domain(equation) is not None
    return op.name == "iota" or op.has(primitive.SCALAR)


def is_reduction(equation: Equation) -> bool:
    """Whether the pass `reductions` makes of an equation what kernels can compute."""
    variables = (*equation.inputs, *equation.outputs)
    return equation.op.name in expression.REDUCTIONS and all(
        v.type.dtype not in _UNSUPPORTED for v in variables
    )


def reduction_domain(equation: Equation) -> Domain | None:
    """Domain of a reduction over adjacent dimensions; None when the axes are scattered."""
    shape = equation.inputs[0].type.shape
    dims = sorted(a + len(shape) for a in expression.reduced_axes(equation) if shape[a] != 1)
    between = [d for d in range(dims[0], dims[-1] + 1) if shape[d] != 1] if dims else []
    if not dims or dims != between:
        return None
    return Domain(
        math.prod(shape[: dims[0]]), math.prod(shape[d] for d in dims), math.prod(shape[dims[-1] + 1 :])
    )


def _united(domains: Sequence[Domain]) -> Domain | None:
    """One domain for several: the same points, at most one way to reduce them."""
    split = {d for d in domains if d.reduced > 1}
    if len(split) > 1 or len({d.size for d in domains}) > 1:
        return None
    return split.pop() if split else domains[0]


def split_axes(sizes: Sequence[int], domain: Domain) -> tuple[list[int], list[int], list[int]]:
    """The axes of a domain that are left of the reduced ones, reduced, and right of them."""
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    limits = (domain.size // domain.outer if domain.outer else 1, domain.inner)
    step = math.prod(sizes)
    for a, size in enumerate(sizes):
        step //= size
        parts[0 if step >= limits[0] else 1 if step >= limits[1] else 2].append(a)
    return parts
