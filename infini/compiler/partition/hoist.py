"""Collectives of what a loop does not change run once, before the loop.

A weight that a loop reads and that is split over devices is gathered in front of the loop, if what is
gathered so is small enough to live as long as the loop: for larger ones, memory for one turn at a time is why
they are split. The rest of a body that does not change is moved by `passes.loops` when pieces are compiled.
"""

from __future__ import annotations

from infini.compiler.partition import costs
from infini.compiler.passes import rewrite
from infini.compiler.passes.loop_parts import Given, Scan, While
from infini.core.ir import Equation, Program, Var


def leave_loops(program: Program, limit: int, moved: dict[Var, Var] | None = None) -> Program:
    """The program with collectives of constants of loops before these, innermost loops first; the same object
    when there are none.

    Args:
        program: per-device program.
        limit: bytes that one loop may make to live beside it.
        moved: filled with what each result of a collective is now called outside, by what it was inside.
    """
    moved = {} if moved is None else moved
    equations: list[Equation] = []
    for equation in program.equations:
        equations += _without(_with_bodies(equation, limit, moved), limit, moved)
    if len(equations) == len(program.equations) and all(
        a is b for a, b in zip(equations, program.equations, strict=True)
    ):
        return program
    return program.replace(equations=tuple(equations))


def _with_bodies(equation: Equation, limit: int, moved: dict[Var, Var]) -> Equation:
    changed = {id(body): leave_loops(body, limit, moved) for body in equation.programs}
    if all(changed[id(body)] is body for body in equation.programs):
        return equation
    attrs = rewrite.map_programs(equation.attrs, lambda body: changed[id(body)])
    return Equation(equation.op, equation.inputs, attrs, equation.outputs, equation.where, equation.via)


def _without(equation: Equation, limit: int, moved: dict[Var, Var]) -> list[Equation]:
    """What leaves a loop, then the loop."""
    if equation.op.name not in ("scan", "while"):
        return [equation]
    loop = Scan.of(equation) if equation.op.name == "scan" else While.of(equation)
    outside = {given.inner: given.outer for given in loop.consts}
    found, kept = [], []
    for item in loop.equations:
        nbytes = sum(v.type.nbytes for v in item.outputs)
        leaves = item.op.name in costs.COLLECTIVES and all(v in outside for v in item.inputs)
        if not leaves or nbytes > limit:
            kept.append(item)
            continue
        limit -= nbytes
        made = tuple(Var(v.type, v.hint) for v in item.outputs)
        inputs = tuple(outside[v] for v in item.inputs)
        found.append(Equation(item.op, inputs, item.attrs, made, item.where, item.via))
        outside.update(zip(item.outputs, made, strict=True))
        moved.update(zip(item.outputs, made, strict=True))
        loop.consts += [Given(*pair) for pair in zip(made, item.outputs, strict=True)]
    if not found:
        return [equation]
    loop.equations = kept
    read = {v for e in kept for v in e.inputs} | {c.after for c in loop.carry}
    if isinstance(loop, Scan):
        read |= {filled.inner for filled in loop.ys}
    loop.consts = [given for given in loop.consts if given.inner in read]
    return [*found, loop.build("hoist")]
