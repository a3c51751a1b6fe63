"""The program as the partitioner wants it: calls inlined, no repeated work, and every variable of every
body its own.

Placements are a table keyed by variables. A body that two loops share would have one placement for both,
so bodies are copied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from infini.compiler.partition import factors
from infini.compiler.passes import cse, dead_code, decompose, inline, rewrite
from infini.core import errors, mesh as mesh_, primitive
from infini.core.ir import Attrs, Equation, Program, Var
from infini.core.mesh import AbstractMesh, AxisEntry

Spec = tuple[AxisEntry, ...]


def prepare(program: Program) -> Program:
    """The program to partition. Operations that only their definition can split are decomposed."""
    flat = inline.inline_calls(program)
    split = decompose.decompose(flat, _is_kept, backend="partitioner")
    clean = dead_code.eliminate_dead(cse.eliminate_common(split))
    return clean.replace(equations=tuple(_with_own_bodies(e) for e in clean.equations))


def placed_by_name(program: Program, mesh: AbstractMesh, named: Mapping[str, Spec]) -> Program:
    """The program with constraints in place of the names that `named` has a place for.

    Raises:
        ValueMismatchError: a place has more entries than a value has dimensions.
    """
    if not named:
        return program

    def changed(equation: Equation) -> Equation:
        if equation.op.name == "name" and equation.attrs["name"] in named:
            place = named[equation.attrs["name"]]
            found: dict[str, object] = {"mesh": mesh, "spec": _fitting(place, equation, mesh)}
            if waiting := mesh_.unreduced_axes(place):
                found["unreduced"] = tuple(sorted(waiting))
            op, attrs = primitive.by_name("sharding_constraint"), Attrs(found)
            return Equation(op, equation.inputs, attrs, equation.outputs, equation.where, equation.via)
        if not equation.programs:
            return equation
        attrs = rewrite.map_programs(equation.attrs, lambda inner: placed_by_name(inner, mesh, named))
        return Equation(equation.op, equation.inputs, attrs, equation.outputs, equation.where, equation.via)

    return program.replace(equations=tuple(map(changed, program.equations)))


def _fitting(spec: Spec, equation: Equation, mesh: AbstractMesh) -> Spec:
    """The part of a spec that divides a value into parts of much the same size."""
    name, type_ = equation.attrs["name"], equation.output.type
    if len(spec) > type_.ndim:
        raise errors.ValueMismatchError(
            f"the value named {name!r} has fewer dimensions than its place",
            got=f"P{tuple(spec)} for {type_}",
            fix=f"change named[{name!r}]",
            where=equation.where,
        )
    counts = [math.prod(mesh.shape[axis] for axis in mesh_.entry_axes(entry)) for entry in spec]
    return tuple(
        entry if mesh_.splits_well(size, count) else None
        for entry, count, size in zip(spec, counts, type_.shape, strict=False)
    )


def _is_kept(equation: Equation) -> bool:
    op = equation.op
    if op.name == "name":  # a name that nobody has a place for; terms of sums would stop at it
        return False
    return factors.can_split(op) or op.name == "sharding_constraint" or not op.has(primitive.DECOMPOSE)


def _with_own_bodies(equation: Equation) -> Equation:
    if not equation.programs:
        return equation
    attrs = rewrite.map_programs(equation.attrs, _copy)
    return Equation(equation.op, equation.inputs, attrs, equation.outputs, equation.where, equation.via)


def _copy(program: Program) -> Program:
    env = {v: Var(v.type, v.hint) for v in (*program.params, *(v for v, _ in program.consts))}
    equations = []
    for equation in program.equations:
        env.update((v, Var(v.type, v.hint)) for v in equation.outputs)
        moved = Equation(
            equation.op,
            tuple(env[v] for v in equation.inputs),
            equation.attrs,
            tuple(env[v] for v in equation.outputs),
            equation.where,
            equation.via,
        )
        equations.append(_with_own_bodies(moved))
    return program.replace(
        params=tuple(env[v] for v in program.params),
        equations=tuple(equations),
        results=tuple(env[v] for v in program.results),
        consts=tuple((env[v], constant) for v, constant in program.consts),
    )


def uses(program: Program) -> dict[Var, int]:
    """How often each variable of a program is used, as an operand or a result."""
    found: dict[Var, int] = {}
    for var in (*(v for e in program.equations for v in e.inputs), *program.results):
        found[var] = found.get(var, 0) + 1
    return found


def zeros(program: Program) -> set[Var]:
    """Variables that are zero everywhere: constants, and what is made of them by moving elements."""
    found = {v for v, constant in program.consts if not any(constant.data)}
    for equation in program.equations:
        if equation.op.name in _KEEPS_ZERO and equation.inputs and equation.inputs[0] in found:
            found.update(equation.outputs)
    return found


_KEEPS_ZERO = frozenset(
    {"broadcast_in_dim", "reshape", "transpose", "convert_element_type", "sharding_constraint"}
)
