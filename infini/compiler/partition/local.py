"""The rewrite: from a program over global arrays to the one that each device runs.

It walks the equations once. For each it decides how to split the factors (what the plan wants of the
results first, then what the operands have), brings the operands there, and applies the operation to the
local parts by its PARTITION rule. Sums that devices hold in parts stay so until something needs their value.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infini.compiler.partition import costs, partial, placement as p, prepare, reshard, strategies
from infini.compiler.partition.placement import Axes, Dims, Placement, Split
from infini.compiler.partition.propagate import Plan
from infini.core import ir, primitive, trace
from infini.core.ir import ArrayType, Equation, Program, Var
from infini.core.mesh import part_size
from infini.core.value import Literal, Value
from infini.lax import families
from infini.lax.places import Factors


@dataclass(frozen=True, slots=True)
class Local:
    """One device's part of a value, and how the parts make up the whole.

    Args:
        value: the part.
        placement: where the parts are, and over which axes they are terms of a sum.
        shape: shape of the whole.
        rest: what is added once that sum is taken, split as the parts. Terms that are whole wait here for
            further terms that are partial, so one sum over devices is enough for all of them.
    """

    value: Value
    placement: Placement
    shape: ir.Shape
    rest: Value | None = None


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
        start = self.mover.start(axes, part_size(self.sizes[factor], p.size_of(axes, self.mover.mesh)))
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

    def count(self, factor: str) -> int:
        """Number of parts of a factor."""
        return p.size_of(self.split.get(factor, ()), self.mover.mesh)

    def has_tail(self, factor: str) -> bool:
        """Whether parts of a factor differ in size."""
        return bool(self.sizes[factor] % self.count(factor))

    def index(self, factor: str) -> Value:
        """Which of the parts of a split factor this device has."""
        return self.mover.axis_index(self.split[factor])

    def gather(self, x: Value, factor: str, axis: int) -> Value:
        """The parts of an array joined along an axis."""
        axis = axis % x.ndim
        now = Placement(_along(x.ndim, {axis: self.split[factor]}))
        shape = _joined(x.shape, axis, self.count(factor))
        return self.mover.reshard(x, now, p.whole(x.ndim), self._reason, shape)

    def exchange(self, x: Value, factor: str, split: int, concat: int, *, is_back: bool = False) -> Value:
        """Move the axes of a factor from one dimension to another, the least significant first."""
        axes = self.split[factor]
        shape = _joined(x.shape, (split if is_back else concat) % x.ndim, self.count(factor))
        steps = []
        for taken in range(len(axes) + 1):
            kept, moved = axes[: len(axes) - taken], axes[len(axes) - taken :]
            steps.append(_along(x.ndim, {concat % x.ndim: kept, split % x.ndim: tuple(reversed(moved))}))
        for now, then in itertools.pairwise(reversed(steps) if is_back else steps):
            x = self.mover.reshard(x, Placement(now), then, self._reason, shape)
        return x

    def permute(self, x: Value, factor: str, pairs: Sequence[tuple[int, int]]) -> Value:
        """What arrives by (source, destination) pairs of parts."""
        return self.mover.permute(x, self.split[factor], pairs, self._reason)

    @property
    def _reason(self) -> str:
        return f"{self.op.name} along a split dimension"


def _joined(shape: ir.Shape, axis: int, count: int) -> ir.Shape:
    """The shape of `count` parts joined along an axis."""
    return (*shape[:axis], shape[axis] * count, *shape[axis + 1 :])


def _along(ndim: int, axes: dict[int, Axes]) -> Dims:
    return tuple(axes.get(d, ()) for d in range(ndim))


class Block:
    """The walk over one program; bodies of loops have blocks of their own.

    Args:
        program: global program, or the body of a loop in it.
        plan: placements of the variables.
        mover: what reshards.
        is_body: whether the program is the body of a loop or a branch.
        constants: parameters that a loop does not change.
        turns: how often a loop runs the program.
    """

    def __init__(  # what a body is told
        self,
        program: Program,
        plan: Plan,
        mover: reshard.Mover,
        *,
        is_body: bool = False,
        constants: Sequence[Var] = (),
        turns: int = 1,
    ) -> None:
        self.constants, self.turns = frozenset(constants), max(1, turns)
        self.program, self.plan, self.mover = program, plan, mover
        self.env: dict[Var, Local] = {}
        self.uses = prepare.uses(program)
        self.zeros = prepare.zeros(program)
        # Operands that were brought elsewhere and are kept there for later uses.
        self.kept: dict[tuple[Var, Dims], Value] = {}
        # Where sums may go instead of where the plan has them, if that moves less.
        self.sums: dict[Var, Dims] = {}
        self.only_users = partial.only_users(program, self.uses)
        # A loop may go on adding to what its body returns.
        self.returned = {v for v in program.results if self.uses[v] == 1} if is_body else set()
        for var, constant in program.consts:
            literal, shape = Literal(constant.array, weak=False), var.type.shape
            self.env[var] = Local(literal, Placement(p.whole(len(shape))), shape)

    def run(self, arguments: Sequence[Local]) -> list[Local]:
        """Results of the program, as they came; the caller moves them to where it wants them."""
        self.env.update(zip(self.program.params, arguments, strict=True))
        outer = self.mover.equation
        for equation in self.program.equations:
            self.mover.equation = equation
            with trace.at_line(equation.where):
                self.env.update(zip(equation.outputs, self.apply(equation), strict=True))
        self.mover.equation = outer
        self.mover.placements.update((v, local.placement) for v, local in self.env.items())
        return [self.env[v] for v in self.program.results]

    def apply(self, equation: Equation) -> list[Local]:
        """Local results of one equation."""
        structured = STRUCTURED.get(equation.op.name)
        if structured is not None:
            return structured(self, equation)
        if not equation.op.has(primitive.PLACE) and (equation.programs or equation.op.is_higher_order):
            return self._on_whole_arrays(equation)
        found = self.plan.factors(equation)
        # What others use too is summed over devices for all of them, before this decides how to split it.
        for number, var in enumerate(equation.inputs):
            if self.uses[var] > 1:
                self.settle(var, f"{equation.op.name}, operand {number}")
        split = self._choose(equation, found)
        form = strategies.chosen_form(self, equation, split)
        written: list[Local] | None = None if form is None else form.emit(self, equation, split)
        if written is not None:
            return written
        whole = self._without_terms(equation, split)
        if (waiting := self._waits(equation, whole)) is not None:
            return [waiting]
        passed = self._passed(equation, found, whole)
        split = whole if passed else split
        operands = [
            self.operand(var, p.expand(split, dims), passed, f"{equation.op.name}, operand {number}")
            for number, (var, dims) in enumerate(zip(equation.inputs, found.inputs, strict=True))
        ]
        if any(self._has_tail(found, split, name) for name in split):
            operands = [self._filled(x, found, split, number) for number, x in enumerate(operands)]
        return self._compute(equation, found, split, passed, operands)

    def _has_tail(self, found: Factors, split: Split, factor: str) -> bool:
        """Whether parts of a factor differ in size; of factors that are no whole dimensions they never do."""
        count = p.size_of(split.get(factor, ()), self.mover.mesh)
        return factor in found.tails and bool(found.sizes[factor] % count)

    def _filled(self, x: Value, found: Factors, split: Split, operand: int) -> Value:
        """The local part of an operand, whose tails do not matter to what is made of it. They hold anything,
        NaN as well, so they are replaced and not multiplied by zero.
        """
        for d, names in enumerate(found.inputs[operand]):
            for name in names:
                if self._has_tail(found, split, name) and (fill := found.tails[name][operand]) is not None:
                    x = self.mover.filled(x, d, found.sizes[name], split[name], fill(x.dtype))
        return x

    def _choose(self, equation: Equation, found: Factors) -> Split:
        """Axes over which each factor is split: what results should be or what operands are first,
        whichever moves less.
        """
        mesh = self.mover.mesh
        planned = [
            wish
            for v, dims in zip(equation.outputs, found.outputs, strict=True)
            for wish in p.project(self.plan[v], dims, found, mesh)
        ]
        operands = sorted(
            zip(equation.inputs, found.inputs, strict=True), key=lambda pair: -pair[0].type.nbytes
        )
        given = [
            wish for v, dims in operands for wish in p.project(self.env[v].placement.dims, dims, found, mesh)
        ]
        choice = strategies.Choice(found, planned, given)
        asked = strategies.BY_NAME.get(strategies.asked(equation.op.name, self.mover.strategies) or "")
        ways = strategies.COMPARED if asked is None else (asked,)
        candidates = [way.split(choice, mesh) for way in ways]
        if all(split == candidates[0] for split in candidates):
            return candidates[0]
        return min(candidates, key=lambda split: self.seconds(equation, found, split))

    def _without_terms(self, equation: Equation, split: Split) -> Split:
        """The split of an addition whose operands are both terms of a sum over devices: none over those axes,
        so that they are scattered together when they have met.
        """
        given = {self.env[v].placement.partial for v in equation.inputs}
        if equation.op.name not in partial.SUMS or len(given) != 1:
            return split
        (waiting,) = given
        kept = {}
        for factor, axes in split.items():
            first = next((i for i, axis in enumerate(axes) if axis in waiting), len(axes))
            kept[factor] = axes[:first]
        return kept

    def seconds(self, equation: Equation, found: Factors, split: Split) -> float:
        """Time to bring the operands of an equation split so, to compute it, and to bring its results where
        the plan wants them.
        """
        mover = self.mover
        parts = p.size_of((axis for axes in split.values() for axis in axes), mover.mesh)
        total = costs.compute_seconds(equation, parts, mover.machine)
        for var, dims in zip(equation.inputs, found.inputs, strict=True):
            now, then = self.env[var].placement, p.expand(split, dims)
            price = mover.price(var.type, Placement(now.dims), then)
            # What a loop does not change moves once, before it, see `hoist`.
            is_once = (
                var in self.constants
                and p.local_type(var.type, then, mover.mesh).nbytes <= mover.window_bytes
            )
            total += price / self.turns if is_once else price
        for var, dims in zip(equation.outputs, found.outputs, strict=True):
            waiting = tuple(axis for name in p.lacking(found, dims) for axis in split.get(name, ()))
            total += mover.price(var.type, Placement(p.expand(split, dims), waiting), self.plan[var])
        return total

    def _passed(self, equation: Equation, found: Factors, split: Split) -> Axes:
        """Axes over which operands may stay partial, because the equation is linear in them and nothing
        else uses them.
        """
        locals_ = [self.env[v] for v in equation.inputs]
        partials = [local.placement.partial for local in locals_]
        if not any(partials) or any(local.rest is not None for local in locals_):
            return ()
        passed = partial.passing(equation, found.linear, partials, self.zeros)
        return passed if _is_free(split, passed) else ()

    def _waits(self, equation: Equation, split: Split) -> Local | None:
        """A sum of partial and whole terms that should wait: both kinds are added up, apart."""
        if equation.op.name not in partial.SUMS:
            return None
        locals_ = [self.env[v] for v in equation.inputs]
        given = [local.placement.partial for local in locals_]
        passed = given[0] or given[1]
        is_mixed = not all(given) or any(local.rest is not None for local in locals_)
        if not passed or not is_mixed or any(axes not in ((), passed) for axes in given):
            return None
        is_term, is_worth_it = self._use(equation.output)
        if not is_term and not is_worth_it and not all(given):
            return None
        shape = equation.output.type.shape
        if not _is_free(split, passed) or any(
            axes and v.type.shape != shape for v, axes in zip(equation.inputs, given, strict=True)
        ):
            return None
        found = self.plan.factors(equation)
        values: list[Value | None] = []
        rests: list[Value | None] = []
        for number, (var, dims) in enumerate(zip(equation.inputs, found.inputs, strict=True)):
            target, reason = p.expand(split, dims), f"{equation.op.name}, operand {number}"
            local = self.env[var]
            if local.placement.partial:
                now = Placement(local.placement.dims)
                values.append(self.mover.reshard(local.value, now, target, reason, shape))
                rest = local.rest
                rests.append(None if rest is None else self.mover.reshard(rest, now, target, reason, shape))
            else:
                values.append(None)
                rests.append(None if var in self.zeros else self.operand(var, target, (), reason))
        value, whole = _sum(equation.op, values), _sum(equation.op, rests)
        assert value is not None, "one operand is partial"
        if whole is not None:
            whole = families.broadcast_to(whole, value.shape)
        placement = Placement(p.expand(split, found.outputs[0]), passed)
        if whole is None or is_term or not is_worth_it:
            return Local(value, placement, shape, whole)
        total = trace.bind1(primitive.by_name("add"), value, self._once(whole, passed))
        return Local(total, placement, shape)

    def _use(self, var: Var) -> tuple[bool, bool]:
        """Whether a sum is a term of another one and nothing else, and whether there is less to add later."""
        user = self.only_users.get(var)
        if user is None:
            return var in self.returned, False
        if user.op.name in partial.SUMS:
            return True, False
        is_small = var.type.size <= partial.SMALL
        return False, is_small or (
            len(user.outputs) == 1 and partial.shrinks(user, self.plan.factors(user).linear, var)
        )

    def operand(self, var: Var, dims: Dims, passed: Axes, reason: str) -> Value:
        """The local part of an operand, split as `dims`; partial over `passed` when that is not empty."""
        local = self.env[var]
        if local.placement == Placement(dims):
            return local.value
        if var in self.zeros:
            return families.zeros(p.local_type(var.type, dims, self.mover.mesh))
        if passed and local.placement.partial == passed:
            now = Placement(local.placement.dims)
            return self.mover.reshard(local.value, now, dims, reason, local.shape)
        if self.uses[var] > 1:
            local = self.settle(var, reason)
        return self.moved(local, Placement(dims), reason)

    def settle(self, var: Var, reason: str) -> Local:
        """A value without partial sums, for every later use too."""
        local = self.env[var]
        if local.placement.partial:
            now, shape = local.placement, local.shape
            value, dims = self.mover.add_up(local.value, now, self.summed(var, now), reason, shape)
            if local.rest is not None:
                rest = self.mover.reshard(local.rest, Placement(now.dims), dims, reason, shape)
                value = trace.bind1(primitive.by_name("add"), value, rest)
            local = self.env[var] = Local(value, Placement(dims), shape)
        return local

    def summed(self, var: Var, now: Placement) -> Dims:
        """Where a sum over devices goes that is `now` there."""
        planned, other = self.plan[var], self.sums.get(var)
        if other is None or other == planned:
            return planned
        before, after = (self.mover.price(var.type, now, dims) for dims in (planned, other))
        return other if after < before else planned

    def scattered(self, var: Var, local: Local, reason: str) -> Local:
        """A value whose terms are added up as far as that leaves fewer elements on each device: over axes
        that split it where it goes. Others go on waiting.
        """
        dims, waiting = local.placement.dims, local.placement.partial
        wanted = self.summed(var, local.placement) if waiting else dims
        ends = tuple(
            axis
            for axis in waiting
            if any(then == (*now, axis) for now, then in zip(dims, wanted, strict=True))
        )
        stays = tuple(axis for axis in waiting if axis not in ends)
        value, after = self.mover.add_up(local.value, Placement(dims, ends), wanted, reason, local.shape)
        if local.rest is not None:
            rest = self.mover.reshard(local.rest, Placement(dims), after, reason, local.shape)
            value = trace.bind1(primitive.by_name("add"), value, self._once(rest, stays))
        return Local(value, Placement(after, stays), local.shape)

    def moved(self, local: Local, target: Placement, reason: str) -> Value:
        """The local part of a value under another placement. Over axes along which only the target is
        partial, the first device has the whole value and the others zero.
        """
        dims, waiting = local.placement.dims, local.placement.partial
        stays = tuple(axis for axis in waiting if axis in target.partial)
        starts = tuple(axis for axis in target.partial if axis not in waiting)
        ends = tuple(axis for axis in waiting if axis not in target.partial)
        value = self.mover.reshard(local.value, Placement(dims, ends), target.dims, reason, local.shape)
        if local.rest is not None:
            rest = self.mover.reshard(local.rest, Placement(dims), target.dims, reason, local.shape)
            value = trace.bind1(primitive.by_name("add"), value, self._once(rest, stays))
        return self._once(value, starts)

    def _once(self, x: Value, axes: Axes) -> Value:
        """A value on the first device along some axes, zero on the others."""
        if not axes:
            return x
        is_first = families.bind_scalars(primitive.by_name("eq"), self.mover.axis_index(axes), 0)
        return families.bind_scalars(primitive.by_name("select_n"), is_first, families.like(0, x), x)

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
        locals_ = []
        for result, type_, names, dims in zip(results, out_types, found.outputs, out_dims, strict=True):
            waiting = passed
            for name in p.lacking(found, names):
                reducer, axes = found.reduced[name], split.get(name, ())
                if reducer == "sum":
                    waiting += axes
                else:
                    result = self.mover.combine(result, reducer, axes, op.name)
            locals_.append(Local(result, Placement(dims, waiting), type_.shape))
        return locals_

    def _on_whole_arrays(self, equation: Equation) -> list[Local]:
        """An operation that says nothing about splitting runs on every device, on whole arrays."""
        operands = [
            self.operand(v, p.whole(v.type.ndim), (), f"{equation.op.name}, which cannot be split")
            for v in equation.inputs
        ]
        results = trace.bind_attrs(equation.op, operands, equation.attrs)
        return [Local(r, Placement(p.whole(r.ndim)), r.shape) for r in results]


def _is_free(split: Split, axes: Axes) -> bool:
    """Whether none of some axes splits a factor."""
    return all(set(axes).isdisjoint(used) for used in split.values())


def _sum(op: primitive.Primitive, terms: Sequence[Value | None]) -> Value | None:
    """The sum or difference of two terms, of which one or both may be missing."""
    first, second = terms
    if second is None:
        return first
    if first is None:
        return second if op.name == "add" else trace.bind1(primitive.by_name("neg"), second)
    return trace.bind1(op, first, second)


Structured = Any  # Any: functions of a Block and an Equation
STRUCTURED: dict[str, Structured] = {}


def structured(name: str) -> Any:  # Any: a decorator
    """Decorator: how a block applies the operation called `name`, one that factors cannot describe."""

    def add(function: Structured) -> Structured:
        STRUCTURED[name] = function
        return function

    return add
