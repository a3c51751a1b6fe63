"""The rewrite: from a program over global arrays to the one that each device runs.

It walks the equations once. For each it decides how to split the factors (what the plan wants of the
results first, then what the operands have), brings the operands there, and applies the operation to the
local parts by its PARTITION rule. Sums that devices hold in parts stay so until something needs their value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infini.compiler.partition import costs, partial, placement as p, prepare, reshard, strategies
from infini.compiler.partition.factors import factors_of
from infini.compiler.partition.placement import Axes, Dims, Placement, Split
from infini.compiler.partition.propagate import Plan
from infini.core import ir, primitive, trace
from infini.core.ir import ArrayType, Equation, Program, Var
from infini.core.value import Literal, Value
from infini.lax import families
from infini.lax.places import Factors


@dataclass(frozen=True, slots=True)
class Local:
    """One device's part of a value, and how the parts make up the whole."""

    value: Value
    placement: Placement


@dataclass(frozen=True, slots=True)
class EquationPart:
    """What a PARTITION rule is told; see `lax.places.Part`."""

    op: primitive.Primitive
    attrs: ir.Attrs
    in_types: tuple[ArrayType, ...]
    out_types: tuple[ArrayType, ...]
    local_shapes: tuple[ir.Shape, ...]
    reduced: tuple[str, ...]
    split: Split
    sizes: Any  # Any: elements of each factor, as in Factors
    zeros: tuple[bool, ...]
    mover: reshard.Mover

    def start(self, factor: str, dtype: Any) -> Value | None:  # Any: a dtype
        """First index of this device along a factor; None when it is not split."""
        axes = self.split.get(factor, ())
        if not axes:
            return None
        start = self.mover.start(axes, self.sizes[factor] // p.size_of(axes, self.mover.mesh))
        if start.dtype == dtype:
            return start
        return trace.bind1(primitive.by_name("convert_element_type"), start, new_dtype=dtype)

    def is_first(self, *factors: str) -> Value | None:
        """Whether this device is the first along all of these factors; None when none is split."""
        axes = tuple(axis for factor in factors for axis in self.split.get(factor, ()))
        return (
            families.bind_scalars(primitive.by_name("eq"), self.mover.axis_index(axes), 0) if axes else None
        )

    def is_zero(self, operand: int) -> bool:
        """Whether an operand is known to be zero everywhere."""
        return self.zeros[operand]


class Block:
    """The walk over one program; bodies of loops have blocks of their own.

    Args:
        program: global program, or the body of a loop in it.
        plan: placements of the variables.
        mover: what reshards.
    """

    def __init__(self, program: Program, plan: Plan, mover: reshard.Mover) -> None:
        self.program, self.plan, self.mover = program, plan, mover
        self.env: dict[Var, Local] = {}
        self.uses = prepare.uses(program)
        self.zeros = prepare.zeros(program)
        # Parameters that something partial is added to, once, and over which axes: running sums of a loop.
        self.accumulators: dict[Var, Axes] = {}
        for var, constant in program.consts:
            self.env[var] = Local(Literal(constant.array, weak=False), Placement(p.whole(var.type.ndim)))

    def run(self, arguments: Sequence[Local]) -> list[Local]:
        """Results of the program, as they came; the caller moves them to where it wants them."""
        self.env.update(zip(self.program.params, arguments, strict=True))
        for equation in self.program.equations:
            self.mover.equation = equation
            with trace.at_line(equation.where):
                self.env.update(zip(equation.outputs, self.apply(equation), strict=True))
        self.mover.placements.update((v, local.placement) for v, local in self.env.items())
        return [self.env[v] for v in self.program.results]

    def apply(self, equation: Equation) -> list[Local]:
        """Local results of one equation."""
        structured = STRUCTURED.get(equation.op.name)
        if structured is not None:
            return structured(self, equation)
        if not equation.op.has(primitive.PLACE) and (equation.programs or equation.op.is_higher_order):
            return self._on_whole_arrays(equation)
        found = factors_of(equation)
        split = self._choose(equation, found)
        passed = self._passed(equation, split)
        operands = [
            self.operand(
                var,
                p.expand(split, dims),
                passed,
                f"{equation.op.name}, operand {number}",
                counts_once=partial.counts_once(equation, passed, self.env[var].placement.partial, number),
            )
            for number, (var, dims) in enumerate(zip(equation.inputs, found.inputs, strict=True))
        ]
        return self._compute(equation, found, split, passed, operands)

    def _choose(self, equation: Equation, found: Factors) -> Split:
        """Axes over which each factor is split: what results should be or what operands are first,
        whichever moves less.
        """
        mesh = self.mover.mesh
        planned = [
            wish
            for v, dims in zip(equation.outputs, found.outputs, strict=True)
            for wish in p.project(self.plan[v], dims, found.sizes, mesh)
        ]
        operands = sorted(
            zip(equation.inputs, found.inputs, strict=True), key=lambda pair: -pair[0].type.nbytes
        )
        given = [
            wish
            for v, dims in operands
            for wish in p.project(self.env[v].placement.dims, dims, found.sizes, mesh)
        ]
        choice = strategies.Choice(found, planned, given)
        asked = self.mover.strategies.get(equation.op.name)
        ways = strategies.COMPARED if asked is None else (asked,)
        candidates = [way.split(choice, mesh) for way in ways]
        if all(split == candidates[0] for split in candidates):
            return candidates[0]
        return min(candidates, key=lambda split: self._seconds(equation, found, split))

    def _seconds(self, equation: Equation, found: Factors, split: Split) -> float:
        """Time to bring the operands of an equation split so, to compute it, and to bring its results where
        the plan wants them.
        """
        mover = self.mover
        parts = p.size_of((axis for axes in split.values() for axis in axes), mover.mesh)
        total = costs.compute_seconds(equation, parts, mover.machine)
        for var, dims in zip(equation.inputs, found.inputs, strict=True):
            now = self.env[var].placement
            total += mover.price(var.type, Placement(now.dims), p.expand(split, dims))
        waiting = tuple(axis for name in found.reduced for axis in split.get(name, ()))
        for var, dims in zip(equation.outputs, found.outputs, strict=True):
            total += mover.price(var.type, Placement(p.expand(split, dims), waiting), self.plan[var])
        return total

    def _passed(self, equation: Equation, split: Split) -> Axes:
        """Axes over which operands may stay partial, because the equation is linear in them and nothing
        else uses them.
        """
        partials = [self.env[v].placement.partial for v in equation.inputs]
        if any(axes and self.uses[v] > 1 for v, axes in zip(equation.inputs, partials, strict=True)):
            return ()
        passed = partial.passing(equation, partials)
        used = {axis for axes in split.values() for axis in axes}
        if equation.op.name == "add":
            self._note_accumulator(equation, partials, used)
        return passed if used.isdisjoint(passed) else ()

    def _note_accumulator(self, equation: Equation, partials: Sequence[Axes], used: set[str]) -> None:
        for i, var in enumerate(equation.inputs):
            waiting = partials[1 - i]
            if var in self.program.params and self.uses[var] == 1 and waiting and used.isdisjoint(waiting):
                self.accumulators[var] = waiting

    def operand(self, var: Var, dims: Dims, passed: Axes, reason: str, *, counts_once: bool = False) -> Value:
        """The local part of an operand, split as `dims`; partial over `passed` when that is not empty."""
        local = self.env[var]
        if counts_once:
            value = self.mover.reshard(local.value, local.placement, dims, reason)
            is_first = families.bind_scalars(primitive.by_name("eq"), self.mover.axis_index(passed), 0)
            return families.bind_scalars(
                primitive.by_name("select_n"), is_first, families.like(0, value), value
            )
        if local.placement == Placement(dims):
            return local.value
        if passed and local.placement.partial == passed:
            return self.mover.reshard(local.value, Placement(local.placement.dims), dims, reason)
        if local.placement.partial and self.uses[var] > 1:
            local = self.settle(var, reason)
        return self.mover.reshard(local.value, local.placement, dims, reason)

    def settle(self, var: Var, reason: str) -> Local:
        """A value without partial sums, for every later use too."""
        local = self.env[var]
        if local.placement.partial:
            value, dims = self.mover.add_up(local.value, local.placement, self.plan[var], reason)
            local = self.env[var] = Local(value, Placement(dims))
        return local

    def _compute(
        self, equation: Equation, found: Factors, split: Split, passed: Axes, operands: Sequence[Value]
    ) -> list[Local]:
        mesh, op = self.mover.mesh, equation.op
        out_dims = [p.expand(split, dims) for dims in found.outputs]
        out_types = tuple(v.type for v in equation.outputs)
        reduced = tuple(name for name in found.reduced if split.get(name))
        if op.has(primitive.PARTITION):
            part = EquationPart(
                op=op,
                attrs=equation.attrs,
                in_types=tuple(v.type for v in equation.inputs),
                out_types=out_types,
                local_shapes=reshard.local_shapes(out_types, out_dims, mesh),
                reduced=reduced,
                split=split,
                sizes=found.sizes,
                zeros=tuple(v in self.zeros for v in equation.inputs),
                mover=self.mover,
            )
            results = op.rule(primitive.PARTITION)(part, *operands)
        else:
            results = trace.bind_attrs(op, operands, equation.attrs)
        waiting = passed
        for name in reduced:
            reducer = found.reduced[name]
            if reducer == "sum":
                waiting += split[name]
            else:
                results = [self.mover.combine(r, reducer, split[name], op.name) for r in results]
        return [Local(r, Placement(dims, waiting)) for r, dims in zip(results, out_dims, strict=True)]

    def _on_whole_arrays(self, equation: Equation) -> list[Local]:
        """An operation that says nothing about splitting runs on every device, on whole arrays."""
        operands = [
            self.operand(v, p.whole(v.type.ndim), (), f"{equation.op.name}, which cannot be split")
            for v in equation.inputs
        ]
        results = trace.bind_attrs(equation.op, operands, equation.attrs)
        return [Local(r, Placement(p.whole(r.ndim))) for r in results]


Structured = Any  # Any: functions of a Block and an Equation
STRUCTURED: dict[str, Structured] = {}


def structured(name: str) -> Any:  # Any: a decorator
    """Decorator: how a block applies the operation called `name`, one that factors cannot describe."""

    def add(function: Structured) -> Structured:
        STRUCTURED[name] = function
        return function

    return add
