"""The partitioner: a program for global shapes and a mesh become the program that each device runs.

    prepare    calls inlined, bodies their own
    propagate  placements that people asked for spread over every variable (`Plan`)
    local      each equation on local parts, with collectives where placements differ (`Block`)
    sequences  attention of which queries and keys are split alike: by ring, gather or all_to_all
    hoist      collectives of what loops do not change before these
    share      equal gathers made once
    combine    collectives that can travel together joined into buckets

What an operation allows stands in its PLACE and PARTITION rules, or follows from its signature.
Propagation over factors is after Shardy (https://openxla.org/shardy) and GSPMD (arXiv:2105.04663).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infini.compiler.partition import (
    combine,
    costs,
    hoist,
    loops as loops,  # it and `structured` fill the table of `local`
    placement as p,
    sequences,
    share,
    strategies as strategies_,
    structured as structured,
)
from infini.compiler.partition.costs import Collective, Note
from infini.compiler.partition.local import Block, Local
from infini.compiler.partition.placement import Dims, Placement
from infini.compiler.partition.prepare import placed_by_name, prepare
from infini.compiler.partition.propagate import Plan, fixed_placements
from infini.compiler.partition.reshard import Mover
from infini.core import check, config, errors, trace
from infini.core.backend import CompileOptions
from infini.core.ir import ArrayType, Program, Var
from infini.core.machine import DEFAULT, Collectives, Machine
from infini.core.mesh import AbstractMesh, AxisEntry, part_counts
from infini.core.primitive import Signature

Spec = tuple[AxisEntry, ...]


@dataclass(frozen=True, slots=True)
class Partitioned:
    """A per-device program, how its parameters and results are split, and the collectives it makes.

    Args:
        program: what each device runs.
        mesh: the mesh.
        in_specs: how parameters are split.
        out_specs: how results are split.
        collectives: all that it runs, with their trips.
        source: the global program that was split: calls inlined, no repeated work.
        placements: where the parts of its variables are, those of bodies included.
        notes: why results of collectives in `program` are there.
        machine: the machine that it was planned for.
        forms: of equations that can be computed in several forms, by their first results, the form and why.
    """

    program: Program
    mesh: AbstractMesh
    in_specs: tuple[Spec, ...]
    out_specs: tuple[Spec, ...]
    collectives: tuple[Collective, ...]
    source: Program
    placements: Mapping[Var, Placement]
    notes: Mapping[Var, Note]
    machine: Machine
    forms: Mapping[Var, str]


def partition(
    program: Program,
    mesh: AbstractMesh,
    in_specs: Sequence[Spec | None] = (),
    *,
    window_bytes: int = Collectives().window_bytes,
    machine: Machine | None = None,
    strategies: Sequence[tuple[str, str]] = (),
    named: Sequence[tuple[str, Spec]] = (),
) -> Partitioned:
    """Split a program over a mesh.

    Args:
        program: program over global arrays.
        mesh: axes to split over.
        in_specs: for each parameter its split, or None to choose one; all chosen when empty.
        window_bytes: size up to which what a loop does not change is taken to be moved before it.
        machine: what ways are compared by; bytes decide when absent.
        strategies: pairs (operation, strategy) that are decided, see `strategies`.
        named: pairs (name, spec) that values with a name are asked to be split by.

    Raises:
        ValueMismatchError: a spec is longer than its array, or there is no such strategy.
        LoweringError: the program names another mesh.
    """
    given = tuple(in_specs) or (None,) * len(program.params)
    flat = prepare(placed_by_name(program, mesh, dict(named)))
    _check_meshes(flat, mesh)
    plan = _plan(flat, mesh, given)
    attention = sequences.recognised(flat, plan)
    if attention is not None and sequences.is_sequence_split(
        attention, again := _plan(attention, mesh, given)
    ):
        flat, plan = attention, again
    fixed = plan.fixed
    waiting = {v: asked.partial for v, asked in fixed.items()}
    staging = trace.Staging(None)
    planned_for = machine or DEFAULT
    mover = Mover(mesh, staging, planned_for, strategies_.named(strategies), window_bytes)
    params = [staging.parameter(p.local_type(v.type, plan[v], mesh)) for v in flat.params]
    with trace.running(staging):
        block = Block(flat, plan, mover)
        block.sums.update(_as_parameters(flat, plan))
        found = block.run(
            [
                Local(x, Placement(plan[v], waiting.get(v, ())), v.type.shape)
                for x, v in zip(params, flat.params, strict=True)
            ]
        )
        results = []
        for var, local in zip(flat.results, found, strict=True):
            dims = local.placement.dims
            if var in fixed or local.placement.partial:
                dims = block.summed(var, local.placement)
            target = Placement(dims, waiting.get(var, ()))
            results.append((staging.var(block.moved(local, target, "a result")), target))
    staging.is_closed = True
    per_device = staging.builder.build(
        [x.variable for x in params], [v for v, _ in results], name=program.name
    )
    if config.get("check"):
        check.check(per_device)
    notes = {note.result: note for note in mover.collectives}
    return Partitioned(
        per_device,
        mesh,
        tuple(p.to_spec(plan[v], waiting.get(v, ())) for v in flat.params),
        tuple(p.to_spec(target.dims, target.partial) for _, target in results),
        costs.collectives(per_device, mesh, notes),
        flat,
        mover.placements,
        notes,
        planned_for,
        mover.forms,
    )


def _plan(program: Program, mesh: AbstractMesh, given: Sequence[Spec | None]) -> Plan:
    """Where the variables of a program are, whose parameters are placed so."""
    fixed = fixed_placements(program, mesh)
    for param, spec in zip(program.params, given, strict=True):
        if spec is not None:
            part_counts(param.type.shape, spec, mesh)
            fixed[param] = p.asked(spec, param.type.ndim, mesh)
    plan = Plan(mesh, fixed)
    plan.run(program)
    return plan


def for_options(program: Program, options: CompileOptions) -> Partitioned:
    """The program of a mesh as it runs: split, with its collectives out of loops where they can be, and
    joined into buckets.

    Raises:
        ValueMismatchError: as `partition`.
        LoweringError: as `partition`.
    """
    assert options.mesh is not None
    found = partition(
        program,
        options.mesh,
        options.in_specs,
        window_bytes=options.collectives.window_bytes,
        machine=options.machine,
        strategies=options.strategies,
        named=options.named,
    )
    moved: dict[Var, Var] = {}
    once = hoist.leave_loops(found.program, options.collectives.window_bytes, moved)
    once = share.share(once, options.collectives.window_bytes)
    joined = combine.combine(once, options.collectives, moved)
    if joined is found.program:
        return found
    notes = dict(found.notes)
    for known, other in moved.items():  # from inner loops outwards, then what sums are made of
        if known in notes:
            notes[other] = notes[known]
    made = costs.collectives(joined, options.mesh, notes)
    return dataclasses.replace(found, program=joined, collectives=made, notes=notes)


def _as_parameters(program: Program, plan: Plan) -> dict[Var, Dims]:
    """Where results that are sums over devices may go when nobody asked: as parameters of their type are
    split, so that the gradient of a parameter is scattered to where the parameter is. The results of a type
    go with its parameters in turn when they are equally many, else with all of them when these are split
    alike.
    """
    params: dict[ArrayType, list[Dims]] = {}
    results: dict[ArrayType, list[Var]] = {}
    for var in program.params:
        params.setdefault(var.type, []).append(plan[var])
    given = {*program.params, *plan.fixed}
    for var in dict.fromkeys(program.results):
        if var not in given:
            results.setdefault(var.type, []).append(var)
    found: dict[Var, Dims] = {}
    for type_, variables in results.items():
        wanted = params.get(type_, [])
        if len(set(wanted)) == 1:
            wanted = wanted[:1] * len(variables)
        if len(wanted) == len(variables):
            found.update(zip(variables, wanted, strict=True))
    # What a result is made of element by element goes where it goes: a gradient before it is clipped. So do
    # the rows that a scan stacks: the gradients of the layers of a model.
    for equation in reversed(program.equations):
        if equation.op.name == "scan":
            first, rows = equation.attrs["num_carry"], equation.attrs["body"].results
            for outer, inner in zip(equation.outputs[first:], rows[first:], strict=True):
                if outer in found and not found[outer][0]:
                    found.setdefault(inner, found[outer][1:])
            continue
        dims = found.get(equation.outputs[0]) if len(equation.outputs) == 1 else None
        if (
            dims is not None
            and isinstance(equation.op.signature, Signature)
            and not equation.op.signature.letters
        ):
            for var in equation.inputs:
                if var.type.shape == equation.output.type.shape and var not in given:
                    found.setdefault(var, dims)
    return found


def _check_meshes(program: Program, mesh: AbstractMesh) -> None:
    for equation in program.equations:
        named = equation.attrs.get("mesh")
        if named is not None and named != mesh:
            raise errors.LoweringError(
                "one program uses two meshes",
                got=f"{named.shape} in {equation.op.name}, {mesh.shape} for its arguments",
                fix="use one mesh for arguments, constraints and shard_map",
                where=equation.where,
            )
        for inner in equation.programs:
            _check_meshes(inner, mesh)
