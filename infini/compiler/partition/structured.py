"""Operations that factors cannot describe: constraints, branches, shard_map, barriers, host calls. Loops are
in `loops`.

Bodies become local programs of their own, by `stage_body`. What is a sum over devices may enter a body as
terms and leave it as terms; a body is staged once without such, and again where it pays (`cheapest`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from infini.compiler.partition import placement as p, prepare
from infini.compiler.partition.costs import Note
from infini.compiler.partition.local import Block, Local, structured
from infini.compiler.partition.placement import Asked, Axes, Dims, Placement
from infini.compiler.partition.propagate import Plan, fixed_placements
from infini.compiler.partition.reshard import Mover
from infini.core import dtypes, primitive, trace
from infini.core.ir import ArrayType, Equation, Program, Var
from infini.core.mesh import AbstractMesh
from infini.core.value import Value
from infini.lax import families
from infini.lax.cond import cond_p, unify_captures


@structured("sharding_constraint")
def _constraint(block: Block, equation: Equation) -> list[Local]:
    var, dims = equation.inputs[0], block.plan[equation.output]
    target = Placement(dims, block.plan.fixed[equation.output].partial)
    if target.partial:
        # Terms over further axes are summed with these, when there are fewer elements on each device.
        further = apart(dims, block.env[var].placement.partial) if block.uses[var] == 1 else ()
        target = Placement(dims, tuple(dict.fromkeys((*further, *target.partial))))
        wanted = [block.plan[v] for v in _made_of(block.program, equation.output)]
        block.sums[equation.output] = next((then for then in wanted if then != dims), dims)
        return [Local(block.moved(block.env[var], target, "a sharding constraint"), target, var.type.shape)]
    return [Local(block.operand(var, dims, (), "a sharding constraint"), target, var.type.shape)]


def _made_of(program: Program, var: Var) -> Iterator[Var]:
    """What is made of a value element by element, in which a sum that was not taken may go where it goes."""
    for equation in program.equations:
        if var in equation.inputs:
            signature = equation.op.signature
            if isinstance(signature, primitive.Signature) and not signature.letters:
                yield from (v for v in equation.outputs if v.type.shape == var.type.shape)


@structured("optimization_barrier")
def _barrier(block: Block, equation: Equation) -> list[Local]:
    """Sums go on waiting, where nothing else wants them."""
    reason = equation.op.name
    locals_ = [
        _folded(block, block.env[v]) if block.uses[v] == 1 else block.settle(v, reason)
        for v in equation.inputs
    ]
    values = trace.bind_attrs(equation.op, [local.value for local in locals_], equation.attrs)
    return [Local(value, local.placement, local.shape) for value, local in zip(values, locals_, strict=True)]


def _folded(block: Block, local: Local) -> Local:
    """A value without whole terms beside its partial ones."""
    if local.rest is None:
        return local
    return Local(block.moved(local, local.placement, "a term of a sum"), local.placement, local.shape)


@structured("shard_map")
def _shard_map(block: Block, equation: Equation) -> list[Local]:
    attrs = equation.attrs
    if attrs.get("axes"):
        return _partly_manual(block, equation)
    specs = [p.from_spec(s, v.type.ndim) for s, v in zip(attrs["in_specs"], equation.inputs, strict=True)]
    operands = [
        block.operand(v, dims, (), "shard_map") for v, dims in zip(equation.inputs, specs, strict=True)
    ]
    results = trace.evaluate(attrs["body"], operands)
    return [
        Local(r, Placement(block.plan[v]), v.type.shape)
        for r, v in zip(results, equation.outputs, strict=True)
    ]


def _partly_manual(block: Block, equation: Equation) -> list[Local]:
    """A body that is per-device along some axes: it is partitioned over the others, inside each part."""
    attrs, outer = equation.attrs, block.mover.mesh
    kept = [name for name in outer.axis_names if name not in attrs["axes"]]
    mesh = AbstractMesh(tuple(kept), tuple(outer.shape[name] for name in kept))
    body = prepare.prepare(attrs["body"])
    fixed = fixed_placements(body, mesh)
    operands = []
    for var, param, spec in zip(equation.inputs, body.params, attrs["in_specs"], strict=True):
        given = p.from_spec(spec, var.type.ndim)
        # Each part stays split over the other axes as the whole was, where that divides it.
        now = block.env[var].placement.dims
        rest = tuple(
            axes if size % p.size_of(axes, mesh) == 0 else ()
            for axes, size in zip(
                (tuple(a for a in d if a in kept) for d in now), param.type.shape, strict=True
            )
        )
        both = tuple(mine + others for mine, others in zip(given, rest, strict=True))
        operands.append(Local(block.operand(var, both, (), "shard_map"), Placement(rest), param.type.shape))
        fixed[param] = Asked(rest)
    plan = Plan(mesh, fixed)
    plan.run(body)
    over = block.mover
    mover = Mover(mesh, over.outermost, over.machine, over.strategies, over.window_bytes)
    mover.collectives, mover.placements, mover.forms = over.collectives, over.placements, over.forms
    inner = Block(body, plan, mover)
    results = []
    for local, var, spec in zip(inner.run(operands), equation.outputs, attrs["out_specs"], strict=True):
        given = p.from_spec(spec, var.type.ndim)
        # Parts of a part are parts of the whole where they are equal.
        dims = tuple(
            axes if size % p.size_of(axes, mesh) == 0 or not mine else ()
            for axes, mine, size in zip(local.placement.dims, given, local.shape, strict=True)
        )
        value = inner.moved(local, Placement(dims), "a result of shard_map")
        both = tuple(mine + others for mine, others in zip(given, dims, strict=True))
        results.append(Local(value, Placement(both), var.type.shape))
    return results


@structured("debug_callback")
@structured("io_callback")
def _host_call(block: Block, equation: Equation) -> list[Local]:
    """The host is called once, by the first device; the others get its results."""
    operands = [block.operand(v, p.whole(v.type.ndim), (), equation.op.name) for v in equation.inputs]
    mesh, types = block.mover.mesh, [x.type for x in operands]

    def call(*args: Value) -> Sequence[Value]:
        return [_summable(x) for x in trace.bind_attrs(equation.op, args, equation.attrs)]

    def rest(*args: Value) -> Sequence[Value]:
        return [families.zeros(_summable_type(v.type)) for v in equation.outputs]

    bodies = (trace.stage(rest, types).program, trace.stage(call, types).program)
    index = block.mover.axis_index(mesh.axis_names)
    is_first = trace.bind1(primitive.by_name("eq"), index, trace.as_value(0))
    number = _converted(is_first, index.dtype)
    found = trace.bind(cond_p, number, *operands, branches=bodies)
    results = []
    for value, var in zip(found, equation.outputs, strict=True):
        dims = p.whole(var.type.ndim)
        now, shape = Placement(dims, mesh.axis_names), var.type.shape
        total = block.mover.reshard(value, now, dims, equation.op.name, shape)
        results.append(Local(_converted(total, var.type.dtype), Placement(dims), shape))
    return results


def _summable_type(type_: ArrayType) -> ArrayType:
    return type_.update(dtype=dtypes.int32) if type_.dtype == dtypes.bool_ else type_


def _summable(x: Value) -> Value:
    return _converted(x, _summable_type(x.type).dtype)


def _converted(x: Value, dtype: np.dtype) -> Value:
    if x.dtype == dtype:
        return x
    return trace.bind1(primitive.by_name("convert_element_type"), x, new_dtype=dtype)


@dataclass(frozen=True, slots=True)
class Inserted:
    """What staging a body left with the mover: the collectives, and the placements of variables."""

    notes: tuple[Note, ...]
    placements: Mapping[Var, Placement]

    @property
    def nbytes(self) -> int:
        """Bytes that each device gives to the collectives."""
        return sum(note.nbytes for note in self.notes)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A body as a local program, under one choice of what stays terms of a sum.

    Args:
        staged: the programs: one, or one per branch.
        entering: for each parameter the axes over which it is partial.
        leaving: for each result where it is.
        offered: for each result the axes over which it could have stayed partial.
        inserted: collectives, and where the variables of the body are.
        cost: bytes of all collectives, those included that are needed before and after.
    """

    staged: tuple[trace.Staged, ...]
    entering: tuple[Axes, ...]
    leaving: tuple[Placement, ...]
    offered: tuple[Axes, ...]
    inserted: Inserted
    cost: float


def stage_body(
    block: Block,
    body: Program,
    placements: Sequence[Placement],
    finish: Callable[[Block, list[Local]], list[Value]],
    constants: Sequence[Var] = (),
    turns: int = 1,
) -> trace.Staged:
    """The local program of a body whose parameters are placed so; `finish` moves its results. A loop says
    what it does not change, and how often it turns.
    """
    staging = trace.Staging(trace.current())
    mesh = block.mover.mesh
    params = [
        staging.parameter(p.local_type(v.type, placement.dims, mesh))
        for v, placement in zip(body.params, placements, strict=True)
    ]
    with trace.running(staging):
        inner = Block(body, block.plan, block.mover, is_body=True, constants=constants, turns=turns)
        inner.sums = block.sums
        given = zip(params, placements, body.params, strict=True)
        found = inner.run([Local(x, placement, v.type.shape) for x, placement, v in given])
        results = [staging.var(trace.as_value(v)) for v in finish(inner, found)]
    staging.is_closed = True
    captured = list(staging.captures.values())
    program = staging.builder.build(
        [var for var, _ in captured] + [x.variable for x in params], results, name=body.name
    )
    return trace.Staged(program, tuple(x for _, x in captured), (False,) * len(results))


def recorded(block: Block, run: Callable[[], None]) -> Inserted:
    """What `run` inserts, which is taken back: what is chosen in the end records its own."""
    mover = block.mover
    before, known = len(mover.collectives), mover.placements
    mover.placements = {}
    run()
    found = Inserted(tuple(mover.collectives[before:]), mover.placements)
    del mover.collectives[before:]
    mover.placements = known
    return found


def cheapest(
    block: Block,
    attempt: Callable[[tuple[Axes, ...], tuple[Axes, ...]], Attempt],
    proposals: Sequence[Callable[[Attempt], tuple[tuple[Axes, ...], tuple[Axes, ...]]]],
    nothing: tuple[tuple[Axes, ...], tuple[Axes, ...]],
) -> Attempt:
    """The cheapest of a few attempts, later ones before earlier ones of equal cost.

    Args:
        block: what records the collectives of the choice.
        attempt: stages a body; given the axes over which parameters and results are partial.
        proposals: what to try next, from the best so far.
        nothing: the first attempt, without partial sums.
    """
    best, tried = attempt(*nothing), {nothing}
    for propose in proposals:
        given = propose(best)
        if given in tried:
            continue
        tried.add(given)
        found = attempt(*given)
        if found.cost <= best.cost:
            best = found
    block.mover.collectives.extend(best.inserted.notes)
    block.mover.placements.update(best.inserted.placements)
    return best


def entering(block: Block, variables: Sequence[Var], inside: Sequence[Dims]) -> tuple[Axes, ...]:
    """Axes over which operands may enter a body, where they are placed so, as terms: none if something else
    uses them.
    """
    return tuple(
        apart(dims, block.env[v].placement.partial) if block.uses[v] == 1 else ()
        for v, dims in zip(variables, inside, strict=True)
    )


def apart(dims: Dims, partial: Axes) -> Axes:
    """Axes over which a value placed so may be partial; none when one of them splits it."""
    return partial if all(set(partial).isdisjoint(axes) for axes in dims) else ()


def waiting_bytes(block: Block, variables: Sequence[Var], entered: Sequence[Axes]) -> float:
    """Bytes that are summed before a body, because operands do not enter it as terms."""
    return sum(
        local_bytes(block, v, block.env[v].placement)
        for v, axes in zip(variables, entered, strict=True)
        if block.env[v].placement.partial != axes
    )


def local_bytes(block: Block, var: Var, placement: Placement) -> float:
    """Bytes of one device's part of a value."""
    return p.local_type(var.type, placement.dims, block.mover.mesh).nbytes


def enter(block: Block, var: Var, dims: Dims, axes: Axes, reason: str) -> Value:
    """An operand of a body, which enters it as terms over `axes`."""
    if axes and var not in block.zeros:
        return block.moved(block.env[var], Placement(dims, axes), reason)
    return block.operand(var, dims, (), reason)


@structured("cond")
def _cond(block: Block, equation: Equation) -> list[Local]:
    branches: tuple[Program, ...] = equation.attrs["branches"]
    inside = [block.plan[v] for v in branches[0].params]
    after = [block.plan[v] for v in equation.outputs]
    index = block.operand(equation.inputs[0], (), (), "the index of cond")
    variables = equation.inputs[1:]

    def attempt(entered: tuple[Axes, ...], left: tuple[Axes, ...]) -> Attempt:
        targets = [Placement(*item) for item in zip(after, left, strict=True)]
        staged: list[trace.Staged] = []
        offers: list[list[Axes | None]] = []
        costs = []

        def finish(inner: Block, found: list[Local]) -> list[Value]:
            offers.append(
                [
                    None if v in inner.zeros else local.placement.partial
                    for v, local in zip(inner.program.results, found, strict=True)
                ]
            )
            return [inner.moved(x, to, "a result of cond") for x, to in zip(found, targets, strict=True)]

        notes: list[Note] = []
        placements: dict[Var, Placement] = {}
        for branch in branches:
            placed = [Placement(*item) for item in zip(inside, entered, strict=True)]
            found = recorded(block, lambda: staged.append(stage_body(block, branch, placed, finish)))  # noqa: B023
            notes += found.notes
            placements.update(found.placements)
            costs.append(found.nbytes)
        cost = max(costs) + waiting_bytes(block, variables, entered)
        cost += sum(
            local_bytes(block, v, to) for v, to in zip(equation.outputs, targets, strict=True) if to.partial
        )
        agreed = []
        for dims, *column in zip(after, *offers, strict=True):
            kinds = {axes for axes in column if axes is not None}
            agreed.append(apart(dims, kinds.pop()) if len(kinds) == 1 else ())
        inserted = Inserted(tuple(notes), placements)
        return Attempt(tuple(staged), entered, tuple(targets), tuple(agreed), inserted, cost)

    nothing = ((),) * len(variables), ((),) * len(after)
    chosen = cheapest(
        block,
        attempt,
        (
            lambda best: (nothing[0], best.offered),
            lambda best: (entering(block, variables, inside), tuple(to.partial for to in best.leaving)),
            lambda best: (best.entering, best.offered),
        ),
        nothing,
    )
    operands = [
        enter(block, v, dims, axes, "cond")
        for v, dims, axes in zip(variables, inside, chosen.entering, strict=True)
    ]
    programs, captures = unify_captures(list(chosen.staged))
    results = trace.bind(equation.op, index, *captures, *operands, branches=tuple(programs))
    return [
        Local(r, placement, v.type.shape)
        for r, placement, v in zip(results, chosen.leaving, equation.outputs, strict=True)
    ]
