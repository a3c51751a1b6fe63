"""Collectives of what a loop does not change, and of rows that it reads in turn, run once, before the loop.

A weight that a loop reads and that is split over devices is gathered in front of the loop, if what is
gathered so is small enough to live as long as the loop: for larger ones, memory for one turn at a time is why
they are split. The rows of stacked weights are gathered together: as many bytes in one message. The rest of a
body that does not change is moved by `passes.loops` when pieces are compiled.
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
    rows = {given.inner: given.outer for given in loop.xs} if isinstance(loop, Scan) else {}
    found, kept = [], []
    for item in loop.equations:
        leaves = item.op.name in costs.COLLECTIVES
        from_ = next((known for known in (outside, rows) if all(v in known for v in item.inputs)), None)
        if not leaves or from_ is None or (from_ is rows and not _counts_from_the_right(item)):
            kept.append(item)
            continue
        types = [v.type for v in item.outputs]
        if from_ is rows:
            assert isinstance(loop, Scan)
            types = [type_.update(shape=(loop.length, *type_.shape)) for type_ in types]
        nbytes = sum(type_.nbytes for type_ in types)
        if nbytes > limit:
            kept.append(item)
            continue
        limit -= nbytes
        made = tuple(Var(type_, v.hint) for type_, v in zip(types, item.outputs, strict=True))
        inputs = tuple(from_[v] for v in item.inputs)
        found.append(Equation(item.op, inputs, item.attrs, made, item.where, item.via))
        from_.update(zip(item.outputs, made, strict=True))
        moved.update(zip(item.outputs, made, strict=True))
        given = [Given(*pair) for pair in zip(made, item.outputs, strict=True)]
        if from_ is rows:
            assert isinstance(loop, Scan)
            loop.xs += given
        else:
            loop.consts += given
    if not found:
        return [equation]
    loop.equations = kept
    read = {v for e in kept for v in e.inputs} | {c.after for c in loop.carry}
    if isinstance(loop, Scan):
        read |= {filled.inner for filled in loop.ys}
        loop.xs = [given for given in loop.xs if given.inner in read]
    loop.consts = [given for given in loop.consts if given.inner in read]
    return [*found, loop.build("hoist")]


def _counts_from_the_right(equation: Equation) -> bool:
    """Whether a collective of a row says the same of stacked rows, which have a dimension in front."""
    attrs = equation.attrs
    dimensions = (*attrs.get("dimensions", ()), attrs.get("split", -1), attrs.get("concat", -1))
    return all(d < 0 for d in dimensions)
