"""How the body of a kernel is cut into passes over tiles.

A pass is one loop nest over a shape. Elementwise operations and views are never passes: they are evaluated
at the index where they are needed. Reductions, and values that are read at another index than they are
made, end a pass; values that are dear and needed by several passes are kept in a buffer by the first, cheap
ones are computed again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from infini.compiler import expression, table_rows, views
from infini.compiler.expression import REDUCTIONS
from infini.compiler.llvm import operations
from infini.core import errors, ir
from infini.core.ir import Equation, Program, Var

VIEWS: Final = frozenset(
    {"broadcast_in_dim", "reshape", "transpose", "slice", "dynamic_slice", "rev", "iota"}
)
BLOCKS: Final = frozenset({"dot", "scan"})  # operations that read whole buffers and write one
KEEP_WEIGHT: Final = 12  # instructions above which a value needed by two passes is kept
KEEP_BYTES: Final = 1 << 18  # of one kept value; larger ones are always computed again


@dataclass(slots=True)
class Pass:
    """One loop nest.

    Args:
        level: passes of a level need results of lower levels only.
        space: shape of the nest.
        axes: dimensions of the space that its reductions run over, from 0; None while it has none.
        reductions: equations accumulated in it.
        kept: values it writes to buffers.
        stores: numbers of the kernel's results it stores.
        block: the equation, when the pass is one of BLOCKS.
    """

    level: int
    space: ir.Shape
    axes: frozenset[int] | None = None
    reductions: list[Equation] = field(default_factory=list)
    kept: list[Var] = field(default_factory=list)
    stores: list[int] = field(default_factory=list)
    block: Equation | None = None

    def roots(self, body: Program) -> list[Var]:
        """The values it evaluates."""
        found = [equation.inputs[0] for equation in self.reductions] + list(self.kept)
        return found + [body.results[i] for i in self.stores]


@dataclass(slots=True)
class Schedule:
    """Passes in order, who defines each variable, and the weight of each pass per element."""

    body: Program
    passes: list[Pass]
    definitions: dict[Var, Equation]
    weights: list[int]


def has_code(equation: Equation) -> bool:
    """Whether the emitter has code for an equation inside a kernel."""
    return equation.op.name in operations.NAMES | REDUCTIONS | VIEWS | BLOCKS or table_rows.is_rows(equation)


def is_plain_reshape(equation: Equation) -> bool:
    """Whether every group of dimensions that a reshape joins or splits joins, so its index is affine."""
    return all(len(group_in) <= 1 for group_in, _ in reshape_groups(equation))


def reshape_groups(equation: Equation) -> list[tuple[list[int], list[int]]]:
    """Dimensions of operand and result (of size above 1) that hold the same elements, group by group."""
    return views.matching(equation.inputs[0].type.shape, equation.output.type.shape)


def make_schedule(body: Program) -> Schedule:
    """Cut a body into passes.

    Raises:
        LoweringError: it has an operation that kernels cannot hold.
    """
    definitions = {v: equation for equation in body.equations for v in equation.outputs}
    needed = _needed(body, definitions)
    forced = _forced(body, definitions, needed)
    ready = _ready_levels(body, forced)
    passes: list[Pass] = []
    for equation in body.equations:
        if not needed.intersection(equation.outputs):
            continue
        if equation.op.name in REDUCTIONS:
            operand = equation.inputs[0]
            _join(passes, ready[operand], operand.type.shape, _reduced_axes(equation)).reductions.append(
                equation
            )
        elif equation.op.name in BLOCKS:
            level = max(ready[v] + (v in forced) for v in equation.inputs)
            passes.append(Pass(level, equation.outputs[0].type.shape, block=equation))
    values = [*body.params, *(v for e in body.equations for v in e.outputs)]
    for var in values:
        if var in forced and var in needed and not _is_block_output(var, definitions):
            _join(passes, ready[var], var.type.shape, None).kept.append(var)
    for number, var in enumerate(body.results):
        _join(passes, ready[var] + (var in forced), var.type.shape, None).stores.append(number)
    passes.sort(key=_order)
    _keep_dear_values(body, passes, definitions, forced)
    kept = {v for p in passes for v in p.kept}
    weights = [_weight(p.roots(body), definitions, kept - set(p.kept)) for p in passes]
    return Schedule(body, passes, definitions, weights)


def _order(p: Pass) -> tuple[int, bool, int]:
    """Within a level, what overwrites an operand follows larger passes, which read it broadcast."""
    return (p.level, bool(p.stores), -math.prod(p.space))


def _is_block_output(var: Var, definitions: dict[Var, Equation]) -> bool:
    return var in definitions and definitions[var].op.name in BLOCKS


def _needed(body: Program, definitions: dict[Var, Equation]) -> set[Var]:
    """Variables that some result depends on."""
    found: set[Var] = set()
    pending = list(body.results)
    while pending:
        var = pending.pop()
        if var not in found:
            found.add(var)
            if var in definitions:
                pending.extend(definitions[var].inputs)
    return found


def _forced(body: Program, definitions: dict[Var, Equation], needed: set[Var]) -> set[Var]:
    """Variables that have to be in a buffer, because they are read at another index or as a whole."""
    forced: set[Var] = set()
    for equation in body.equations:
        if not needed.intersection(equation.outputs):
            continue
        name = equation.op.name
        if not has_code(equation):
            raise errors.LoweringError(
                f"the LLVM emitter has no code for {name!r} in a kernel",
                expected="elementwise operations, views, reductions, dot, scan and rows by their numbers",
                fix="keep the operation outside of kernels",
                where=equation.where,
            )
        if name == "reshape" and not is_plain_reshape(equation):
            forced.update(equation.inputs)
        if name in BLOCKS:  # which read tiles of arrays where they are
            forced.update(v for v in equation.inputs if v in definitions and definitions[v].op.name != "iota")
    return forced


def _ready_levels(body: Program, forced: set[Var]) -> dict[Var, int]:
    """The level of the first pass in which a variable can be evaluated."""
    ready = dict.fromkeys((*body.params, *(v for v, _ in body.consts)), 0)
    for equation in body.equations:
        level = max((ready[v] + (v in forced) for v in equation.inputs), default=0)
        if equation.op.name in REDUCTIONS or equation.op.name in BLOCKS:
            level += 1
        for var in equation.outputs:
            # What a block wrote is in a buffer already, so forcing it costs no further level.
            ready[var] = level - (var in forced and equation.op.name in BLOCKS)
    return ready


def _reduced_axes(equation: Equation) -> frozenset[int]:
    rank = equation.inputs[0].type.ndim
    return frozenset(axis % rank for axis in expression.reduced_axes(equation))


def _join(passes: list[Pass], level: int, space: ir.Shape, axes: frozenset[int] | None) -> Pass:
    """The pass of that level and shape, made if there is none; reductions in it run over the same axes."""
    for found in passes:
        is_like = found.block is None and found.level == level and found.space == space
        if is_like and (axes is None or found.axes is None or axes == found.axes):
            found.axes = found.axes if axes is None else axes
            return found
    passes.append(Pass(level, space, axes))
    return passes[-1]


def _inline_users(roots: Iterable[Var], definitions: dict[Var, Equation], kept: set[Var]) -> set[Var]:
    """Variables that evaluating the roots computes inline."""
    found: set[Var] = set()
    pending = list(roots)
    while pending:
        var = pending.pop()
        if var in found or var not in definitions:
            continue
        equation = definitions[var]
        if equation.op.name in REDUCTIONS or equation.op.name in BLOCKS:
            continue
        found.add(var)
        pending.extend(v for v in equation.inputs if v not in kept)
    return found


def _weight(roots: Sequence[Var], definitions: dict[Var, Equation], kept: set[Var]) -> int:
    """Rough number of instructions to evaluate the roots at one index of the largest of them."""
    inline = _inline_users([v for v in roots if v not in kept], definitions, kept)
    size = max([v.type.size for v in roots], default=1)
    total = 0.0
    for var in inline:
        equation = definitions[var]
        if equation.op.name in operations.NAMES:
            # What is smaller than the nest leaves its inner loops.
            total += operations.weight(equation.op.name, equation.inputs[0].type.dtype) * min(
                1.0, var.type.size / max(size, 1)
            )
    return round(total)


def read_params(p: Pass, plan: Schedule) -> set[Var]:
    """Parameters of the body that a pass reads from their arrays."""
    kept = {v for other in plan.passes if other.level < p.level for v in other.kept}
    roots = [v for v in p.roots(plan.body) if v not in kept] if p.block is None else list(p.block.inputs)
    inline = _inline_users(roots, plan.definitions, kept)
    used = {v for var in inline for v in plan.definitions[var].inputs} | set(roots)
    return used & set(plan.body.params)


def moved_params(p: Pass, plan: Schedule) -> set[Var]:
    """Parameters that a pass reads at another index than the one it is at."""
    kept = {v for other in plan.passes if other.level < p.level for v in other.kept}
    params = set(plan.body.params)
    found: set[Var] = set()
    if p.block is not None:
        return params & set(p.block.inputs)
    seen: set[tuple[Var, bool]] = set()
    pending = [(v, False) for v in p.roots(plan.body)]
    while pending:
        var, is_moved = pending.pop()
        if (var, is_moved) in seen:
            continue
        seen.add((var, is_moved))
        if var in params:
            found |= {var} if is_moved else set()
            continue
        equation = plan.definitions.get(var)
        if equation is None or var in kept or equation.op.name in REDUCTIONS | BLOCKS:
            continue
        shape = var.type.shape
        pending += [
            (v, is_moved or equation.op.name in VIEWS | {"gather"} or v.type.shape != shape)
            for v in equation.inputs
        ]
    return found


def _keep_dear_values(
    body: Program, passes: list[Pass], definitions: dict[Var, Equation], forced: set[Var]
) -> None:
    """Add to each pass the values that it keeps for later ones."""
    kept = set(forced)
    users = [_inline_users(p.roots(body), definitions, kept) for p in passes]
    count: dict[Var, int] = {}
    for inline in users:
        for var in inline:
            count[var] = count.get(var, 0) + 1
    shared = {var for var, n in count.items() if n > 1}
    consumers: dict[Var, int] = {}
    for equation in body.equations:
        if shared.intersection(equation.outputs):
            for var in set(equation.inputs) & shared:
                consumers[var] = consumers.get(var, 0) + 1
    for equation in body.equations:
        for var in equation.outputs:
            if var not in shared or var in kept or consumers.get(var, 0) == 1 or var.type.nbytes > KEEP_BYTES:
                continue
            first = next(p for p, inline in zip(passes, users, strict=True) if var in inline)
            if first.space == var.type.shape and _weight([var], definitions, kept) >= KEEP_WEIGHT:
                first.kept.append(var)
                kept.add(var)
