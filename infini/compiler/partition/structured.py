"""Operations that factors cannot describe: constraints, loops, branches, shard_map, host calls.

Bodies become local programs of their own. A carry has one placement, that of the plan, before, during
and after its loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from infini.compiler.partition import placement as p, prepare
from infini.compiler.partition.local import Block, Local, structured
from infini.compiler.partition.placement import Axes, Dims, Placement
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
    return [Local(block.operand(var, dims, (), "a sharding constraint"), Placement(dims))]


@structured("optimization_barrier")
def _barrier(block: Block, equation: Equation) -> list[Local]:
    locals_ = [block.settle(v, "optimization_barrier") for v in equation.inputs]
    values = trace.bind_attrs(equation.op, [local.value for local in locals_], equation.attrs)
    return [Local(value, local.placement) for value, local in zip(values, locals_, strict=True)]


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
    return [Local(r, Placement(block.plan[v])) for r, v in zip(results, equation.outputs, strict=True)]


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
        operands.append(Local(block.operand(var, both, (), "shard_map"), Placement(rest)))
        fixed[param] = rest
    plan = Plan(mesh, fixed)
    plan.run(body)
    mover = Mover(mesh, block.mover.outermost)
    mover.collectives = block.mover.collectives
    inner = Block(body, plan, mover)
    results = []
    for local, var, spec in zip(inner.run(operands), equation.outputs, attrs["out_specs"], strict=True):
        value, dims = mover.add_up(
            local.value, local.placement, local.placement.dims, "a result of shard_map"
        )
        given = p.from_spec(spec, var.type.ndim)
        results.append(Local(value, Placement(tuple(a + b for a, b in zip(given, dims, strict=True)))))
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
        total = block.mover.reshard(value, Placement(dims, mesh.axis_names), dims, equation.op.name)
        results.append(Local(_converted(total, var.type.dtype), Placement(dims)))
    return results


def _summable_type(type_: ArrayType) -> ArrayType:
    return type_.update(dtype=dtypes.int32) if type_.dtype == dtypes.bool_ else type_


def _summable(x: Value) -> Value:
    return _converted(x, _summable_type(x.type).dtype)


def _converted(x: Value, dtype: np.dtype) -> Value:
    if x.dtype == dtype:
        return x
    return trace.bind1(primitive.by_name("convert_element_type"), x, new_dtype=dtype)


def stage_body(
    block: Block,
    body: Program,
    placements: Sequence[Placement],
    finish: Callable[[Block, list[Local]], tuple[list[Value], list[Placement]]],
) -> tuple[trace.Staged, list[Placement]]:
    """The local program of a body whose parameters are placed so, and the placements of its results."""
    staging = trace.Staging(trace.current())
    mesh = block.mover.mesh
    params = [
        staging.parameter(p.local_type(v.type, placement.dims, mesh))
        for v, placement in zip(body.params, placements, strict=True)
    ]
    with trace.running(staging):
        inner = Block(body, block.plan, block.mover)
        found = inner.run([Local(x, placement) for x, placement in zip(params, placements, strict=True)])
        values, placed = finish(inner, found)
        results = [staging.var(trace.as_value(v)) for v in values]
    staging.is_closed = True
    captured = list(staging.captures.values())
    program = staging.builder.build(
        [var for var, _ in captured] + [x.variable for x in params], results, name=body.name
    )
    return trace.Staged(program, tuple(x for _, x in captured), (False,) * len(results)), placed


def _moved(block: Block, locals_: Sequence[Local], targets: Sequence[Dims], reason: str) -> list[Value]:
    return [
        block.mover.reshard(local.value, local.placement, dims, reason)
        for local, dims in zip(locals_, targets, strict=True)
    ]


def _placed(values: Sequence[Value], dims: Sequence[Dims]) -> list[Local]:
    return [Local(value, Placement(d)) for value, d in zip(values, dims, strict=True)]


def _planned(block: Block, variables: Sequence[Var]) -> list[Dims]:
    return [block.plan[v] for v in variables]


def _whole_sums(dims: Sequence[Dims]) -> list[Placement]:
    return [Placement(d) for d in dims]


@structured("scan")
def _scan(block: Block, equation: Equation) -> list[Local]:
    attrs, body = equation.attrs, equation.attrs["body"]
    num_consts, num_carry = attrs["num_consts"], attrs["num_carry"]
    inside = _planned(block, body.params)
    num_fixed = num_consts + num_carry
    carry_dims = inside[num_consts:num_fixed]
    outside = [*inside[:num_fixed], *(((), *dims) for dims in inside[num_fixed:])]
    operands = [block.operand(v, dims, (), "scan") for v, dims in zip(equation.inputs, outside, strict=True)]

    def finish(inner: Block, found: list[Local]) -> tuple[list[Value], list[Placement]]:
        carry = [
            inner.mover.reshard(
                local.value,
                Placement(local.placement.dims, () if partial else local.placement.partial),
                dims,
                "the carry of scan",
            )
            for local, dims, partial in zip(found[:num_carry], carry_dims, partials, strict=True)
        ]
        sums.update(_running_sums(inner, num_consts, num_carry))
        ys = found[num_carry:]
        return [*carry, *(y.value for y in ys)], [y.placement for y in ys]

    # A running sum that starts from zero may stay partial until the loop is over. What is one shows when the
    # body has been partitioned; then it is done again.
    partials: list[Axes] = [()] * num_carry
    sums: dict[int, Axes] = {}
    num_before = len(block.mover.collectives)
    staged, ys = stage_body(block, body, _whole_sums(inside), finish)
    partials = [
        sums.get(i, ()) if equation.inputs[num_consts + i] in block.zeros else () for i in range(num_carry)
    ]
    if any(partials):
        del block.mover.collectives[num_before:]
        placed = _whole_sums(inside)
        placed[num_consts:num_fixed] = [Placement(*item) for item in zip(carry_dims, partials, strict=True)]
        staged, ys = stage_body(block, body, placed, finish)
    changed = attrs.replace(body=staged.program, num_consts=len(staged.captures) + num_consts)
    results = trace.bind(equation.op, *staged.captures, *operands, **changed)
    stacked = [
        *(Placement(*item) for item in zip(carry_dims, partials, strict=True)),
        *(Placement(((), *y.dims), y.partial) for y in ys),
    ]
    return [Local(r, placement) for r, placement in zip(results, stacked, strict=True)]


def _running_sums(inner: Block, num_consts: int, num_carry: int) -> dict[int, Axes]:
    """Carries to which the body adds something partial and does nothing else, with the axes of the sum."""
    body, found = inner.program, {}
    made_by = {v: e for e in body.equations for v in e.outputs}
    for i in range(num_carry):
        param, result = body.params[num_consts + i], body.results[i]
        is_sum = result in made_by and param in made_by[result].inputs and inner.uses[result] == 1
        if is_sum and param in inner.accumulators:
            found[i] = inner.accumulators[param]
    return found


@structured("cond")
def _cond(block: Block, equation: Equation) -> list[Local]:
    branches: tuple[Program, ...] = equation.attrs["branches"]
    inside, after = _planned(block, branches[0].params), _planned(block, equation.outputs)
    index = block.operand(equation.inputs[0], (), (), "the index of cond")
    operands = [
        block.operand(v, dims, (), "cond") for v, dims in zip(equation.inputs[1:], inside, strict=True)
    ]

    def finish(inner: Block, found: list[Local]) -> tuple[list[Value], list[Placement]]:
        return _moved(inner, found, after, "a result of cond"), []

    staged = [stage_body(block, branch, _whole_sums(inside), finish)[0] for branch in branches]
    programs, captures = unify_captures(staged)
    results = trace.bind(equation.op, index, *captures, *operands, branches=tuple(programs))
    return _placed(results, after)


@structured("while")
def _while(block: Block, equation: Equation) -> list[Local]:
    attrs = equation.attrs
    condition, body = attrs["cond"], attrs["body"]
    first, second = attrs["num_cond_consts"], attrs["num_body_consts"]
    inside = _planned(block, body.params)
    carry_dims = inside[second:]
    cond_inside = [*_planned(block, condition.params[:first]), *carry_dims]
    outside = [*cond_inside[:first], *inside]
    operands = [block.operand(v, dims, (), "while") for v, dims in zip(equation.inputs, outside, strict=True)]

    def predicate(inner: Block, found: list[Local]) -> tuple[list[Value], list[Placement]]:
        return _moved(inner, found, [()], "the condition of while"), []

    def carry(inner: Block, found: list[Local]) -> tuple[list[Value], list[Placement]]:
        return _moved(inner, found, carry_dims, "the carry of while"), []

    local_cond, _ = stage_body(block, condition, _whole_sums(cond_inside), predicate)
    local_body, _ = stage_body(block, body, _whole_sums(inside), carry)
    results = trace.bind(
        equation.op, *local_cond.captures, *operands[:first], *local_body.captures, *operands[first:],
        cond=local_cond.program, body=local_body.program,
        num_cond_consts=len(local_cond.captures) + first, num_body_consts=len(local_body.captures) + second,
    )  # fmt: skip
    return _placed(results, carry_dims)
