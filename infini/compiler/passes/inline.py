"""Inlining of calls: nested jit, checkpoint and custom rules have done their part once differentiation is
over.
"""

from __future__ import annotations

from typing import Final

from infini.compiler.passes import rewrite
from infini.core import ir
from infini.core.ir import Program, Var

CALLS: Final = frozenset({"call", "checkpoint", "custom_jvp_call", "custom_vjp_call"})


def inline_calls(program: Program) -> Program:
    """The program, and those inside it, with the bodies of calls in their place."""
    builder = ir.Builder()
    env: dict[Var, Var] = {param: param for param in program.params}
    _append(builder, program, env)
    return builder.build(program.params, [env[v] for v in program.results], name=program.name)


def _append(builder: ir.Builder, program: Program, env: dict[Var, Var]) -> None:
    for var, constant in program.consts:
        env[var] = builder.constant(constant.array)
    for equation in program.equations:
        inputs = [env[v] for v in equation.inputs]
        if equation.op.name in CALLS:
            body: Program = equation.attrs["body"]
            inner = dict(zip(body.params, inputs, strict=True))
            _append(builder, body, inner)
            env.update(zip(equation.outputs, (inner[v] for v in body.results), strict=True))
            continue
        outputs = builder.emit(
            equation.op,
            inputs,
            rewrite.map_programs(equation.attrs, inline_calls),
            where=equation.where,
            via=equation.via,
            out_types=[v.type for v in equation.outputs],
        )
        env.update(zip(equation.outputs, outputs, strict=True))
