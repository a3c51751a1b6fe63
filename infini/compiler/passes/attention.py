"""Attention found as a pattern: `softmax(scale * q k^T + bias, masked) v` and its gradient, as users write
them and differentiation derives them, become the primitives of `lax.composites.attention`.

The weights are then no array any more, neither kept for the gradient nor computed by it. `attention_region`
says what each value is; here the contractions that enclose a region are matched, and the program without
the region is put together. It is taken only when the scores are really gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from infini.compiler.passes import attention_masks, attention_staging, dead_code, rewrite
from infini.compiler.passes.attention_region import Region, Table
from infini.compiler.passes.attention_terms import WEIGHTS, Dims, Located, Scores, Term, Use, permutation
from infini.core import dtypes, ir
from infini.core.ir import Equation, Program, Var
from infini.lax import contraction, view

FEWEST: int = 8  # queries or keys; with fewer a matrix of weights is nothing to avoid

HasRoute = Callable[[Equation], bool]


def find(program: Program, has_route: HasRoute) -> Program:
    """The program, and those inside it, with the attention that a backend has kernels for."""
    inner = [
        Equation(
            x.op,
            x.inputs,
            rewrite.map_programs(x.attrs, lambda p: find(p, has_route)),
            x.outputs,
            x.where,
            x.via,
        )
        if x.programs
        else x
        for x in program.equations
    ]
    program = program.replace(equations=tuple(inner))
    table = Table(program)
    matches = []
    for equation in program.equations:
        if equation.op.name == "dot" and _is_candidate(equation):
            region = Region(table, equation)
            region.run()
            found = _Match.of(region)
            if found is not None:
                matches.append(found)
    # First without the sums of the rows; with them where something else uses them; and not at all where
    # something needs the scores themselves.
    keeps = {match.region.product.output: False for match in matches}
    while keeps:
        changes = []
        for match in matches:
            product = match.region.product.output
            change = match.change(keeps[product], has_route) if product in keeps else None
            if change is None:
                keeps.pop(product, None)
            else:
                changes.append(change)
        changed = dead_code.eliminate_dead(_assembled(table, changes))
        made = {v for x in changed.equations for v in x.outputs}
        alive = [product for product in keeps if product in made]
        if not alive:
            return changed
        for product in alive:
            if keeps[product]:
                del keeps[product]
            else:
                keeps[product] = True
    return program


def _is_candidate(equation: Equation) -> bool:
    shape = equation.output.type.shape
    return len(shape) >= 2 and min(shape) > 1 and equation.output.type.dtype in dtypes.FLOATS


@dataclass(frozen=True, slots=True)
class _Side:
    """A contraction with a matrix of the region: the other operand, and the letters of the result."""

    other: Located
    result: tuple[str, ...]
    equation: Equation


@dataclass(slots=True)
class _Match:
    """The parts of one attention."""

    region: Region
    query: Located
    key: Located
    value: Located
    scores: Scores
    batch: frozenset[str]  # letters that queries, keys and values have
    rows: tuple[str, ...]
    query_letter: str
    cotangent: Located | None = None
    outs: list[_Side] = field(default_factory=list)
    to_query: list[_Side] = field(default_factory=list)
    to_key: list[_Side] = field(default_factory=list)
    to_value: list[_Side] = field(default_factory=list)

    # --- what the region is ----------------------------------------------------------------------

    @classmethod
    def of(cls, region: Region) -> _Match | None:
        """The match of a region, if it is attention."""
        if not region.key or not region.largest or not (region.contractions or region.change):
            return None
        table, sizes, product = region.table, region.sizes, region.product
        sides = _product_sides(region)
        if sides is None:
            return None
        query, key = (table.located(var, dims, sizes) for var, dims in sides)
        batch = frozenset(key.letters) - {region.key, "d"}
        free = [c for c in region.known[product.output].dims if c[0] not in {*batch, region.key}]
        if not free or frozenset(key.letters) - {region.key} > frozenset(query.letters):
            return None
        first = region.known[region.largest[0]]
        rows = tuple(c for dim in first.dims for c in dim)
        query_letter = max(free, key=lambda c: sizes[c[0]])[0]
        if min(sizes[query_letter], sizes[region.key]) < FEWEST or set(rows) != set(query.letters) - {"d"}:
            return None
        found = cls(region, query, key, key, first.scores, batch, rows, query_letter)
        values = [*found._sort_uses(), *found._changed()]
        if not values or any(v != values[0] for v in values):
            return None
        found.value = values[0]
        types = [x.var.type.dtype for x in (found.query, found.key, found.value)]
        fits = set(found.value.letters) == batch | {region.key, "v"} and len(set(types)) == 1
        return found if fits and types[0] in dtypes.FLOATS and not math.isnan(found.scores.fill) else None

    def _sort_uses(self) -> list[Located]:
        """Sort the contractions with weights and with their cotangents; the values among their operands."""
        values = []
        for use in self.region.contractions:
            is_weights = _is_close(use.known.sum, {WEIGHTS: 1.0})
            if not is_weights and not self._is_change(use):
                continue
            side = _side(self.region, use, is_weights)
            if side is None:
                continue
            contracted = set(self.rows) | {self.region.key}
            contracted -= set(side.result)
            if contracted == {self.region.key}:
                if is_weights:
                    values.append(side.other)
                    self.outs.append(side)
                else:
                    self.to_query.append(side)
            elif contracted == set(self.rows) - self.batch:
                (self.to_value if is_weights else self.to_key).append(side)
        return values

    def _is_change(self, use: Use) -> bool:
        """Whether a matrix is the cotangent of the product: scale * weights * (w - d / l)."""
        conditions = frozenset(self.scores.conditions)
        wanted = {
            Term(e=1, w=1, l=-1, conditions=conditions): self.scores.scale,
            Term(e=1, l=-2, d=1, conditions=conditions): -self.scores.scale,
        }
        return _is_close(use.known.sum, wanted)

    def _changed(self) -> list[Located]:
        """The values, and meanwhile the cotangent, of the contraction that is w."""
        region = self.region
        if region.change is None:
            return []
        equation, dims = region.change
        a, b, out = contraction.parse_spec(equation.attrs["spec"])
        if len(out) != len(dims):
            return []
        names = dict(zip(out, dims, strict=True))
        depth = set(a) & set(b) - set(out)
        if len(depth) != 1:
            return []
        names[depth.pop()] = ("v",)
        located = []
        for letters, var in zip((a, b), equation.inputs, strict=True):
            if len(letters) != var.type.ndim or any(c not in names for c in letters):
                return []
            own = tuple(names[c] for c in letters)
            region.sizes["v"] = var.type.shape[own.index(("v",))]
            located.append(region.table.located(var, own, region.sizes))
        has_key = [region.key in x.letters for x in located]
        if sum(has_key) != 1:
            return []
        self.cotangent = located[has_key.index(False)]
        if set(self.cotangent.letters) != {*self.rows, "v"}:
            self.cotangent = None
            return []
        return [located[has_key.index(True)]]

    # --- what stands for it -------------------------------------------------------------------------

    def change(self, keeps_sums: bool, has_route: HasRoute) -> _Change | None:
        """Equations for attention, and what they replace; the gradient is found whenever there is one."""
        region, table = self.region, self.region.table
        band, conditions = attention_masks.split(
            region, self.scores.conditions, self.query_letter, region.key
        )
        # Matrices that are not what they should be keep the scores alive, which is noticed at the end.
        gradients = [
            (i, side)
            for i, (sides, other, like) in enumerate(
                (
                    (self.to_query, self.key, self.query),
                    (self.to_key, self.query, self.key),
                    (self.to_value, self.cotangent, self.value),
                )
            )
            for side in sides
            if self.cotangent is not None and side.other == other and set(side.result) == set(like.letters)
        ]
        out = None
        if self.outs:
            out = _folded(table, self.outs[0])
        located = [self.query, self.key, self.value, *([self.scores.bias] if self.scores.bias else [])]
        located += [c.where for c in conditions]
        layout = attention_staging.Layout(
            operands=tuple((x.dims, x.var.type) for x in located),
            is_inverted=tuple(c.is_inverted for c in conditions),
            has_bias=self.scores.bias is not None,
            sizes=tuple(region.sizes.items()),
            rows=self.rows,
            query=self.query_letter,
            key=region.key,
            out=(*self.rows, "v") if out is None else out[1],
            scale=self.scores.scale,
            band=band,
            fill=self.scores.fill if self.scores.conditions else attention_staging.NO_FILL,
            keeps_sums=keeps_sums or bool(gradients),
        )
        program = attention_staging.forward(layout)
        if not _has_routes(program, has_route):
            return None
        change = _Change(table, region.product)
        place = max(table.index.get(x.var, -1) for x in located)
        found = change.add(program, [x.var for x in located], place)
        if out is not None and not change.replace(out[0], found[0], place):
            return None
        if layout.keeps_sums:
            for variables, value in ((region.largest, found[1]), (region.total, found[2])):
                for var in variables:
                    if tuple(c for dim in region.known[var].dims for c in dim) == self.rows:
                        change.replace(var, value, place)
        if gradients:
            assert self.cotangent is not None
            ct = self.cotangent
            folded = [_folded(table, side) for _, side in gradients]
            targets = tuple(
                attention_staging.Target(i, letters, var.type)
                for (i, _), (var, letters) in zip(gradients, folded, strict=True)
            )
            program = attention_staging.backward(layout, (ct.dims, ct.var.type), targets)
            if not _has_routes(program, has_route):
                return None
            place = max(place, table.index.get(ct.var, -1))
            values = change.add(program, [*(x.var for x in located), ct.var, *found], place)
            if not all(
                change.replace(var, value, place) for (var, _), value in zip(folded, values, strict=True)
            ):
                return None
        return change


def _has_routes(program: Program, has_route: HasRoute) -> bool:
    return all(has_route(x) for x in program.equations if x.op.name.startswith("attention"))


class _Change:
    """Equations to add to a program, by the place after which they come, and variables to replace."""

    def __init__(self, table: Table, product: Equation) -> None:
        self.table, self.product = table, product
        self.added: dict[int, list[Equation]] = {}
        self.replacements: dict[Var, Var] = {}

    def add(self, program: Program, arguments: Sequence[Var], place: int) -> tuple[Var, ...]:
        """Add the equations of a program; its results."""
        builder = ir.Builder()
        results = ir.inline(builder, program, arguments)
        names = {}
        known = {constant: var for var, constant in self.table.constants.items()}
        for constant, var in builder.consts.items():
            names[var] = known.get(constant, var)
            self.table.constants.setdefault(names[var], constant)
        where = self.product.where
        self.added.setdefault(place, []).extend(
            Equation(x.op, tuple(names.get(v, v) for v in x.inputs), x.attrs, x.outputs, where, "attention")
            for x in builder.equations
        )
        return results

    def replace(self, var: Var, value: Var, place: int) -> bool:
        """Replace a variable by another with the same elements in the same order."""
        if var.type.dtype != value.type.dtype or var.type.size != value.type.size:
            return False
        if var.type != value.type:
            builder = ir.Builder()
            value = builder.emit1(view.reshape_p, (value,), shape=var.type.shape, ndim=value.type.ndim)
            self.added.setdefault(place, []).extend(builder.equations)
        self.replacements[var] = value
        return True


# --- matching contractions ----------------------------------------------------------------------------


def _product_sides(region: Region) -> tuple[tuple[Var, Dims], tuple[Var, Dims]] | None:
    """Queries and keys with their letters."""
    product = region.product
    a, b, out = contraction.parse_spec(product.attrs["spec"])
    depth = set(a) & set(b) - set(out)
    names = {c: (f"x{i}",) for i, c in enumerate(out)}
    if len(depth) != 1 or set(a + b) - set(out) != depth:
        return None
    names[depth.pop()] = ("d",)
    found: list[tuple[Var, Dims]] = []
    for letters, var in zip((a, b), product.inputs, strict=True):
        dims = tuple(names[c] for c in letters)
        if len(dims) != var.type.ndim:
            return None
        region.sizes["d"] = var.type.shape[dims.index(("d",))]
        found.append((var, dims))
    has_key = [(region.key,) in dims for _, dims in found]
    if sum(has_key) != 1:
        return None
    return found[has_key.index(False)], found[has_key.index(True)]


def _side(region: Region, use: Use, is_weights: bool) -> _Side | None:
    """The other operand of a contraction, and the letters of its result."""
    equation = use.equation
    specs = contraction.parse_spec(equation.attrs["spec"])
    own, other = specs[use.operand], specs[1 - use.operand]
    var = equation.inputs[1 - use.operand]
    if len(own) != len(use.known.dims) or len(other) != var.type.ndim:
        return None
    if len(specs[2]) != equation.output.type.ndim:
        return None
    names = dict(zip(own, use.known.dims, strict=True))
    free = [c for c in other if c not in names]
    if len(free) != 1 or free[0] not in specs[2]:
        return None
    # The free letter is the width of the values where weights meet values or cotangents.
    width = "v" if is_weights else "d"
    names[free[0]] = (width,)
    size = var.type.shape[other.index(free[0])]
    if region.sizes.setdefault(width, size) != size:
        return None
    dims = tuple(names[c] for c in other)
    located = region.table.located(var, dims, region.sizes)
    return _Side(located, tuple(x for c in specs[2] for x in names[c]), equation)


def _is_close(found: object, wanted: dict[Term, float]) -> bool:
    assert isinstance(found, dict)
    terms = {t: c for t, c in found.items() if c}
    return terms.keys() == wanted.keys() and all(
        math.isclose(c, wanted[t], rel_tol=1e-6) for t, c in terms.items()
    )


# --- putting a program together -----------------------------------------------------------------------


def _folded(table: Table, side: _Side) -> tuple[Var, tuple[str, ...]]:
    """What to replace by a result, and its letters: a transpose that alone uses it is part of it."""
    var, letters = side.equation.output, side.result
    uses = table.uses.get(var, [])
    if len(uses) == 1 and var not in table.program.results and len(letters) == var.type.ndim:
        user = table.program.equations[uses[0]]
        if user.op.name == "transpose":
            return user.output, tuple(letters[p] for p in permutation(user))
    return var, letters


def _assembled(table: Table, changes: Sequence[_Change]) -> Program:
    """The program with more equations and other variables, everything made before its use."""
    program = table.program
    replacements = {var: value for change in changes for var, value in change.replacements.items()}

    def added(place: int) -> Iterator[Equation]:
        for change in changes:
            yield from change.added.get(place, ())

    every = [*added(-1)]
    places = {place for change in changes for place in change.added}
    for i, equation in enumerate(program.equations):
        every.append(equation)
        if i in places:
            every += added(i)

    def final(var: Var) -> Var:
        while var in replacements:
            var = replacements[var]
        return var

    moved = [
        Equation(x.op, tuple(map(final, x.inputs)), x.attrs, x.outputs, x.where, x.via)
        if any(v in replacements for v in x.inputs)
        else x
        for x in every
    ]
    results = tuple(map(final, program.results))
    return program.replace(
        equations=tuple(_sorted(moved)), results=results, consts=tuple(table.constants.items())
    )


def _sorted(equations: Sequence[Equation]) -> list[Equation]:
    """The equations in their order, each after those that make its operands."""
    makers = {v: i for i, x in enumerate(equations) for v in x.outputs}
    done = [False] * len(equations)
    found: list[Equation] = []
    for start in range(len(equations)):
        stack = [start]
        while stack:
            i = stack[-1]
            if done[i]:
                stack.pop()
                continue
            needed = [makers[v] for v in equations[i].inputs if v in makers and not done[makers[v]]]
            if needed:
                stack += reversed(needed)
                continue
            done[i] = True
            found.append(equations[i])
            stack.pop()
    return found
