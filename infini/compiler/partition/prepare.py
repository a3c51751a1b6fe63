"""The program as the partitioner wants it: calls inlined, no repeated work, and every variable of every
body its own.

Placements are a table keyed by variables. A body that two loops share would have one placement for both,
so bodies are copied.
"""

from __future__ import annotations

from infini.compiler.partition import factors
from infini.compiler.passes import cse, dead_code, decompose, inline, rewrite
from infini.core import primitive
from infini.core.ir import Equation, Program, Var


def prepare(program: Program) -> Program:
    """The program to partition. Operations that only their definition can split are decomposed."""
    flat = inline.inline_calls(program)
    split = decompose.decompose(flat, _is_kept, backend="partitioner")
    clean = dead_code.eliminate_dead(cse.eliminate_common(split))
    return clean.replace(equations=tuple(_with_own_bodies(e) for e in clean.equations))


def _is_kept(equation: Equation) -> bool:
    op = equation.op
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
