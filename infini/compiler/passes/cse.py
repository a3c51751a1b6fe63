"""Common subexpressions: equal equations on equal operands become one.

Operations with effects are never merged. `optimization_barrier` makes values nothing equals, so work that is
repeated behind one (rematerialisation) stays repeated.
"""

from __future__ import annotations

from collections.abc import Hashable

from infini.compiler.passes import rewrite
from infini.core import ir
from infini.core.ir import Equation, Program, Var
from infini.core.primitive import Effect

_KEPT_APART = frozenset({"optimization_barrier"})


def eliminate_common(program: Program) -> Program:
    """The program, and those inside it, with one equation per distinct computation."""
    env: dict[Var, Var] = {}
    builder = ir.Builder()
    seen: dict[Hashable, tuple[Var, ...]] = {}
    for var, constant in program.consts:
        env[var] = builder.constant(constant.array)
    for equation in program.equations:
        inputs = tuple([env.get(v, v) for v in equation.inputs])
        attrs = rewrite.map_programs(equation.attrs, eliminate_common)
        key = (equation.op, inputs, attrs)
        found = seen.get(key)
        if found is not None:
            env.update(zip(equation.outputs, found, strict=True))
            continue
        if equation.effect is Effect.NONE and equation.op.name not in _KEPT_APART:
            seen[key] = equation.outputs
        if inputs != equation.inputs or attrs is not equation.attrs:
            equation = Equation(equation.op, inputs, attrs, equation.outputs, equation.where, equation.via)
        builder.append(equation)
    return builder.build(program.params, [env.get(v, v) for v in program.results], name=program.name)
