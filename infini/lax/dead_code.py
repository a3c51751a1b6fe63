"""Dead code of programs that transformations make: dropped, inside calls and scans too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from infini.core import ir, primitive
from infini.core.ir import Equation, Program, Var

CALLS: Final = ("call", "checkpoint")


def changed(equation: Equation, attrs: ir.Attrs, inputs: Sequence[Var], outputs: Sequence[Var]) -> Equation:
    """The equation with other attributes, inputs and outputs, at the same line."""
    return Equation(equation.op, tuple(inputs), attrs, tuple(outputs), equation.where, equation.via)


def without_dead(program: Program) -> tuple[Program, tuple[bool, ...]]:
    """The program without equations that nothing uses, and which of its parameters are used.

    Calls and scans lose the operands and results that nobody needs.
    """
    used: set[Var] = set(program.results)
    kept: list[Equation] = []
    for equation in reversed(program.equations):
        wanted = [v in used for v in equation.outputs]
        if not any(wanted) and equation.effect is primitive.Effect.NONE:
            continue
        if equation.op.name in CALLS:
            equation = _trimmed(equation, wanted, 0, 0)
        elif equation.op.name == "scan":
            equation = _trimmed(equation, wanted, equation.attrs["num_consts"], equation.attrs["num_carry"])
        used.update(equation.inputs)
        kept.append(equation)
    consts = tuple((var, constant) for var, constant in program.consts if var in used)
    trimmed = program.replace(equations=tuple(reversed(kept)), consts=consts)
    return trimmed, tuple(param in used for param in program.params)


def _trimmed(equation: Equation, wanted: Sequence[bool], num_consts: int, num_carry: int) -> Equation:
    """A call or scan with the results that are wanted and the operands they need; a carry stays whole."""
    body: Program = equation.attrs["body"]
    results = [i < num_carry or flag for i, flag in enumerate(wanted)]
    body, used = without_dead(
        body.replace(results=tuple(r for r, flag in zip(body.results, results, strict=True) if flag))
    )
    carry = range(num_consts, num_consts + num_carry)
    needed = [i in carry or flag for i, flag in enumerate(used)]
    body = body.replace(params=tuple(p for p, flag in zip(body.params, needed, strict=True) if flag))
    attrs = equation.attrs.replace(body=body)
    if equation.op.name == "scan":
        attrs = attrs.replace(num_consts=sum(needed[:num_consts]))
    return changed(
        equation,
        attrs,
        [v for v, flag in zip(equation.inputs, needed, strict=True) if flag],
        [v for v, flag in zip(equation.outputs, results, strict=True) if flag],
    )
