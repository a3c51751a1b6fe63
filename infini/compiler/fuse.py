"""The fuser: groups of elementwise operations, views and reductions become `kernel` equations.

`grouping` says what may share a kernel; here it is decided what becomes an array and what is computed again
where it is used, and each group is pulled into nodes (`expression`) and tiled (`tiling`). Reshapes of arrays
stay equations: they cost nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from typing import Final, TypeAlias

import numpy as np

from infini.compiler import affine, assemble, cost, extents, tiling, views
from infini.compiler.assemble import Unit
from infini.compiler.expression import Compute, Domain, NotFusable, Puller, Reduce
from infini.compiler.grouping import Group, Grouping, Level, split_axes
from infini.compiler.passes import rewrite
from infini.core import config
from infini.core.ir import Equation, Program, Var
from infini.tile import program as kernel_

# Most work per element that is done twice rather than stored, by the number of large arrays it reads.
RECOMPUTE_WEIGHTS: Final = (16.0, 16.0, 8.0)

# A kernel, and the numbers that its operands and what was pulled have in the pattern it was built from.
_Known: TypeAlias = tuple[tiling.Built, tuple[int, ...], tuple[int, ...]]


def fuse(program: Program, declared: extents.Declared = ()) -> Program:
    """The program, and those inside it, with kernels in place of everything that kernels can compute.

    Args:
        program: program to fuse.
        declared: run-time extents of its parameters.
    """
    equations = tuple(
        equation
        if equation.op is kernel_.kernel_p
        else dataclasses.replace(equation, attrs=rewrite.map_programs(equation.attrs, fuse))
        for equation in program.equations
    )
    program = program.replace(equations=equations)
    return _Fuser(program, extents.bounded_dimensions(program, declared)).run()


class _Fuser:
    def __init__(self, program: Program, bounds: extents.Bounds) -> None:
        self.program, self.bounds = program, bounds
        self.no_fuse = bool(config.get("no_fuse"))
        self.grouping = Grouping(program, no_fuse=self.no_fuse)
        self.arrays: set[Var] = set()  # variables of fusable equations that are stored
        self.units: list[Unit] = []
        self.finished: dict[
            tuple[Var, ...], tuple[tiling.Built, set[Var]]
        ] = {}  # by results; with what was pulled
        self.patterns: dict[Hashable, _Known] = {}  # kernels built, by what they compute
        self.aliases: set[Var] = set()  # reshapes of arrays that kernels take instead of following the index
        self.alone: set[Var] = set()  # stored variables that have had a kernel of their own from the start

    def run(self) -> Program:
        """The fused program."""
        self._choose_arrays()
        is_done = False
        while not is_done:
            self.units = self._make_units()
            is_done = True
            for unit in self.units:
                try:
                    self._build(unit)
                except NotFusable as problem:
                    self._avoid(problem.var, unit)
                    is_done = False
                    break
        return assemble.assemble(self.grouping, self.units, self._core)

    # --- what becomes an array ------------------------------------------------------------------

    def _choose_arrays(self) -> None:
        needed = [v for e in self.program.equations if not self.grouping.is_fusable(e) for v in e.inputs]
        for var in (*needed, *self.program.results):
            self._need(self._core(var))
        if self.no_fuse:
            for equation in self.program.equations:
                if self.grouping.is_fusable(equation) and equation.op.name != "reshape":
                    self.arrays.update(equation.outputs)
            return
        self._add_crossings(self.arrays)

    def _need(self, var: Var) -> None:
        if not self.grouping.is_array(var):
            self.arrays.add(var)

    def _core(self, var: Var) -> Var:
        """The variable below reshapes, which are free for arrays."""
        while not self.grouping.is_array(var) and self.grouping.definition[var].op.name == "reshape":
            (var,) = self.grouping.definition[var].inputs
        return var

    def _is_stored(self, var: Var) -> bool:
        return var in self.arrays or var in self.aliases or self.grouping.is_array(var)

    def _crossings(self, root: Var) -> list[Var]:
        """Members of other groups that the kernel of `root` needs as arrays; the others are computed again
        there.
        """
        home = self.grouping.group_of.get(root)
        size = home.domain.size if home is not None else root.type.size
        found: list[Var] = []
        seen: set[Var] = {root}
        pending = list(self.grouping.definition[root].inputs)
        while pending:
            var = pending.pop()
            if var in seen or self._is_stored(var):
                continue
            seen.add(var)
            group = self.grouping.group_of.get(var)
            if group is not None and group is not home and not self._is_recomputed(var, group, size):
                found.append(self._core(var))
                continue
            pending += self.grouping.definition[var].inputs
        return found

    def _is_recomputed(self, var: Var, group: Group, size: int) -> bool:
        """Whether to compute a member of another group again here instead of storing it there."""
        if group.members[var] is Level.REDUCED or var.type.size * 2 < size:
            return False
        loads: set[Var] = set()
        inside: dict[Var, None] = {}
        pending = [var]
        while pending:
            v = pending.pop()
            if v in inside or v in loads:
                continue
            if self._is_stored(v) or group.members.get(v) is Level.REDUCED:
                if v.type.size * 8 > var.type.size:
                    loads.add(v)
                continue
            inside[v] = None
            pending += self.grouping.definition[v].inputs
        evaluations = self._evaluations(var, inside)
        computed = [v for v in inside if not self.grouping.is_view(v)]
        if self._is_exclusive(var, inside) and all(evaluations[v] == 1 for v in computed):
            return True
        weight = sum(evaluations[v] * cost.op_weight(self.grouping.definition[v].op) for v in computed)
        return len(loads) < len(RECOMPUTE_WEIGHTS) and weight <= RECOMPUTE_WEIGHTS[len(loads)]

    def _evaluations(self, var: Var, inside: Iterable[Var]) -> dict[Var, int]:
        """How often each of these is computed for one element of `var`. Elementwise users read an operand at
        one index and share it; each view reads it at an index of its own.
        """
        shared, apart = dict.fromkeys(inside, 0), dict.fromkeys(inside, 0)
        shared[var] = 1
        for v in sorted(shared, key=self.grouping.position.__getitem__, reverse=True):
            equation, count = self.grouping.definition[v], shared[v] + apart[v]
            for operand in shared.keys() & set(equation.inputs):
                if equation.op.name in views.RULES:
                    apart[operand] += count
                else:
                    shared[operand] = max(shared[operand], count)
        return {v: shared[v] + apart[v] for v in shared}

    def _is_exclusive(self, var: Var, inside: Iterable[Var]) -> bool:
        """Whether a member is used once and everything it needs serves it alone, so nothing is computed
        twice.
        """
        if not self._is_used_once(var):
            return False
        positions = {self.grouping.position[v] for v in inside}
        return all(
            set(self.grouping.uses.get(v, ())) <= positions
            for v in inside
            if v is not var and v in self.grouping.group_of
        )

    def _is_used_once(self, var: Var) -> bool:
        """Whether one equation reads a variable, or a view of it, at one index."""
        uses = self.grouping.uses.get(var, ())
        if len(uses) != 1:
            return False
        equation = self.program.equations[uses[0]]
        seen = equation.outputs[0]
        return self._is_used_once(seen) if self.grouping.is_view(seen) else True

    def _avoid(self, var: Var, unit: Unit) -> None:
        """Make a variable that a kernel cannot compute something it can load; failing that, take the kernel
        apart.
        """
        is_array = self.grouping.is_array(var)  # a parameter, or what another operation makes
        if not is_array and self.grouping.definition[var].op.name == "reshape" and var not in self.aliases:
            # As an array its operand has the new shape for free, however the elements are cut into
            # dimensions.
            self.aliases.add(var)
            if (core := self._core(var)) not in self.alone and not self.grouping.is_array(core):
                self._store(core)
        elif is_array or var in self.alone:
            self._dissolve(unit)
        else:
            self._store(var)

    def _store(self, var: Var) -> None:
        """Make a variable an array whose kernel does not contain what uses it."""
        self.alone.add(var)
        self.arrays.add(var)
        group = self.grouping.group_of.get(var)
        if group is not None:
            self._cut(group, var)
        self._add_crossings([var])

    def _dissolve(self, unit: Unit) -> None:
        """Give every member of a kernel that cannot be made a kernel of its own."""
        group = self.grouping.group_of[unit.roots[0][0]]
        assert len(group.members) > 1, "an equation alone is always a kernel"
        members = dict(group.members)
        for v, level in members.items():
            self.grouping.group_of[v] = Group(group.domain, {v: level})
        self.arrays.update(members)
        self._add_crossings(members)

    def _add_crossings(self, roots: Iterable[Var]) -> None:
        """Store what kernels of other groups need for some roots, the last ones first."""
        # What is stored by then decides what is computed again, so the order must not be that of a set.
        pending = sorted(roots, key=self.grouping.position.__getitem__)
        while pending:
            found = [v for v in self._crossings(pending.pop()) if v not in self.arrays]
            self.arrays.update(found)
            pending += found

    def _cut(self, group: Group, var: Var) -> None:
        """Split a group into what `var` needs and the rest."""
        needed: set[Var] = set()
        pending = [var]
        while pending:
            v = pending.pop()
            if v in needed or self.grouping.is_array(v):
                continue
            needed.add(v)
            pending += self.grouping.definition[v].inputs
        before = {v: level for v, level in group.members.items() if v in needed}
        if len(before) == len(group.members):
            return
        first = Group(group.domain, before)
        for v in before:
            del group.members[v]
            self.grouping.group_of[v] = first
        for v in before:
            uses = {o for i in self.grouping.uses.get(v, ()) for o in self.program.equations[i].outputs}
            if any(u not in before for u in uses) and not self.grouping.is_view(v):
                self.arrays.add(v)

    # --- kernels --------------------------------------------------------------------------------

    def _make_units(self) -> list[Unit]:
        by_group: dict[Group, Unit] = {}
        units = []
        for var in sorted(self.arrays, key=self.grouping.position.__getitem__):
            position = self.grouping.position[var]
            group = self.grouping.group_of.get(var)
            if group is None:
                units.append(Unit([(var, Level.FULL)], Domain(var.type.size), position))
                continue
            if group not in by_group:
                by_group[group] = Unit([], group.domain, position)
                units.append(by_group[group])
            by_group[group].roots.append((var, group.members[var]))
            by_group[group].position = position
        return units

    def _build(self, unit: Unit) -> None:
        """Pull and tile a kernel, unless that was done and nothing it computes has become an array since."""
        roots = {var for var, _ in unit.roots}
        key = tuple(var for var, _ in unit.roots)
        built, computed = self.finished.get(key, (None, set()))
        if built is not None and not any(self._is_stored(v) for v in computed - roots):
            unit.built = built
            return
        pattern, numbers = self._pattern(unit, roots)
        known = None if self.bounds else self.patterns.get(pattern)
        if known is None:
            unit.built, computed = self._built(unit, roots)
            places = tuple(numbers[v] for v in unit.built.operands)
            self.patterns[pattern] = (unit.built, places, tuple(numbers[v] for v in computed))
        else:
            variables = list(numbers)
            operands = tuple(variables[i] for i in known[1])
            unit.built = dataclasses.replace(known[0], operands=operands)
            computed = {variables[i] for i in known[2]}
        self.finished[key] = (unit.built, computed)

    def _pattern(self, unit: Unit, roots: set[Var]) -> tuple[Hashable, dict[Var, int]]:
        """What a kernel computes, in terms of numbers for variables, and these: equal layers have equal
        ones.
        """
        numbers: dict[Var, int] = {}
        steps: list[Hashable] = []

        def visit(var: Var) -> int:
            found = numbers.get(var)
            if found is not None:
                return found
            if var not in roots and self._is_stored(var):
                constant = self.grouping.constants.get(var)
                is_number = constant is not None and constant.is_scalar
                steps.append((var.type, constant if is_number else None))
            else:
                e = self.grouping.definition[var]
                inputs = tuple(map(visit, e.inputs))
                steps.append((e.op, e.attrs, e.where, inputs, e.outputs.index(var)))
            numbers[var] = len(numbers)
            return numbers[var]

        results = tuple((visit(var), level) for var, level in unit.roots)
        return (unit.domain, results, tuple(steps)), numbers

    def _built(self, unit: Unit, roots: set[Var]) -> tuple[tiling.Built, set[Var]]:
        """A kernel, pulled and tiled, and the variables it computes."""

        def definition(var: Var) -> Equation | None:
            if self._is_stored(var) and var not in roots:
                return None
            return self.grouping.definition[var]

        def constant(var: Var) -> np.ndarray | None:
            found = self.grouping.constants.get(var)
            return found.array if found is not None and found.is_scalar else None

        sizes = self._axes(unit)
        while True:
            outer, reduced, inner = split_axes(sizes, unit.domain)
            puller = Puller(definition, constant, sizes, reduced)
            axes = {Level.FULL: [*outer, *reduced, *inner], Level.REDUCED: [*outer, *inner]}
            try:
                nodes = [
                    tiling.Root(var, puller.root(var, axes[level]), tuple(axes[level]))
                    for var, level in unit.roots
                ]
                break
            except affine.SplitAxis as split:
                sizes = affine.split(sizes, split)
        built = tiling.build(nodes, sizes, reduced, self._bounded(nodes, sizes), _name(nodes))
        return built, puller.computed

    def _bounded(self, roots: Sequence[tiling.Root], sizes: Sequence[int]) -> dict[int, Var]:
        """Axes of which every result of a kernel wants only the points below one extent."""
        common: dict[int, Var] | None = None
        for root in roots:
            if not self.bounds.get(root.var):
                return {}
            index = affine.delinearize(affine.flat(root.axes, sizes), root.var.type.shape, sizes)
            mine = {
                index[d].terms[0][0]: extent
                for d, extent in self.bounds[root.var].items()
                if len(index[d].terms) == 1
            }
            common = mine if common is None else {a: e for a, e in common.items() if mine.get(a) is e}
        return common or {}

    def _axes(self, unit: Unit) -> list[int]:
        domain = unit.domain
        shapes: list[tuple[int, ...]] = [(domain.outer, domain.reduced, domain.inner)]
        shapes += [var.type.shape for var, level in unit.roots if level is Level.FULL]
        sizes = affine.refinement(shapes) or affine.refinement(shapes[:1])
        assert sizes is not None
        return sizes


def _name(roots: Sequence[tiling.Root]) -> str:
    """A name from the operations of a kernel, the characteristic ones first."""
    names: dict[str, float] = {}
    for node in tiling.nodes_of(root.node for root in roots):
        if isinstance(node, Compute):
            names[node.op.name] = max(names.get(node.op.name, 0.0), cost.op_weight(node.op))
        elif isinstance(node, Reduce):
            names[node.op.name.removeprefix("reduce_")] = 5.0
    chosen = sorted(names, key=lambda n: -names[n])[:3]
    return "_".join(n for n in names if n in chosen) or "copy"
