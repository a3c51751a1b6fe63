"""Dead code: equations whose results nothing uses. Effects are kept. Loops and calls lose what only they
carried.
"""

from __future__ import annotations

from infini.compiler.passes import rewrite
from infini.core import ir
from infini.core.ir import Equation, Program, Var
from infini.core.primitive import Effect


def eliminate_dead(program: Program) -> Program:
    """The program, and those inside it, without equations that nothing uses."""
    used: set[Var] = set(program.results)
    kept: list[Equation] = []
    for equation in reversed(program.equations):
        if equation.effect is Effect.NONE and not any(v in used for v in equation.outputs):
            continue
        if equation.op.name == "scan":
            equation = _trim_scan(equation, used)
        elif equation.programs:
            attrs = rewrite.map_programs(equation.attrs, eliminate_dead)
            equation = Equation(
                equation.op, equation.inputs, attrs, equation.outputs, equation.where, equation.via
            )
        used.update(equation.inputs)
        kept.append(equation)
    consts = tuple((var, constant) for var, constant in program.consts if var in used)
    return program.replace(equations=tuple(reversed(kept)), consts=consts)


def _trim_scan(equation: Equation, used: set[Var]) -> Equation:
    """A scan without the stacked results and the inputs that nobody needs; the carry stays whole."""
    body = eliminate_dead(equation.attrs["body"])
    num_consts, num_carry = equation.attrs["num_consts"], equation.attrs["num_carry"]
    kept_ys = [i for i in range(num_carry, len(body.results)) if equation.outputs[i] in used]
    outputs = equation.outputs[:num_carry] + tuple(equation.outputs[i] for i in kept_ys)
    body = eliminate_dead(
        body.replace(results=body.results[:num_carry] + tuple(body.results[i] for i in kept_ys))
    )
    needed = {v for inner in body.equations for v in inner.inputs} | set(body.results)
    fixed = range(num_consts, num_consts + num_carry)
    params = [i for i, param in enumerate(body.params) if i in fixed or param in needed]
    body = body.replace(params=tuple(body.params[i] for i in params))
    attrs = equation.attrs.replace(body=body, num_consts=sum(i < num_consts for i in params))
    inputs = tuple(equation.inputs[i] for i in params)
    return Equation(equation.op, inputs, ir.Attrs(attrs), outputs, equation.where, equation.via)
