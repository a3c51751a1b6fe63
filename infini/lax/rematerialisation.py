"""Splitting a forward pass by a policy: one program that also returns what is saved, one that takes it.

Calls, scans and branches are split inside; values saved in a scan are stacked. Nothing here knows of
derivatives: `lax.checkpoint` applies it to the forward half of a linearized body.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infini.core import ir, trace
from infini.core.ir import Equation, Program, Var
from infini.core.value import Value
from infini.lax import families
from infini.lax.checkpoint_policies import Policy
from infini.lax.dead_code import CALLS, changed, without_dead


@dataclass(frozen=True, slots=True)
class Halves:
    """A program split by a policy.

    Args:
        saving: from the parameters to the first results, then the saved values.
        using: from the parameters, then the saved values, to the other results.
        num_saved: how many values are saved.
    """

    saving: Program
    using: Program
    num_saved: int


def split(program: Program, policy: Policy, num_kept: int) -> Halves:
    """Split a program: `saving` returns its first `num_kept` results, `using` the others.

    Only values that `using` needs are saved.
    """
    marked = _marked(program, policy)
    num_params = len(program.params)
    using = marked.using.replace(results=program.results[num_kept:])
    using, used = without_dead(using)
    saved = [v for v, flag in zip(marked.saved, used[num_params:], strict=True) if flag]
    saving, _ = without_dead(marked.saving.replace(results=(*program.results[:num_kept], *saved)))
    return Halves(saving, using.replace(params=(*program.params, *saved)), len(saved))


@dataclass(frozen=True, slots=True)
class _Marked:
    """`saving` has the saved variables as further results, `using` has them as further parameters."""

    saving: Program
    using: Program
    saved: tuple[Var, ...]


def _marked(program: Program, policy: Policy) -> _Marked:
    saving: list[Equation] = []
    using: list[Equation] = []
    saved: list[Var] = []
    for equation in program.equations:
        if equation.op.name in CALLS or equation.op.name == "scan":
            first, second, found = _marked_body(equation, policy)
        elif equation.op.name == "cond":
            first, second, found = _marked_cond(equation, policy)
        elif policy(equation.op, *(v.type for v in equation.inputs), **equation.attrs):
            saving.append(equation)
            saved += equation.outputs
            continue
        else:
            saving.append(equation)
            using.append(equation)
            continue
        saving.append(first)
        using.append(second)
        saved += found
    return _Marked(
        program.replace(equations=tuple(saving), results=(*program.results, *saved)),
        program.replace(equations=tuple(using), params=(*program.params, *saved)),
        tuple(saved),
    )


def _marked_body(equation: Equation, policy: Policy) -> tuple[Equation, Equation, list[Var]]:
    """A call, or a scan, whose saved values are stacked."""
    inner = _marked(equation.attrs["body"], policy)
    stacked = (equation.attrs["length"],) if equation.op.name == "scan" else ()
    found = [Var(v.type.update(shape=(*stacked, *v.type.shape))) for v in inner.saved]
    saving = equation.attrs.replace(body=inner.saving)
    using = equation.attrs.replace(body=inner.using)
    return (
        changed(equation, saving, equation.inputs, (*equation.outputs, *found)),
        changed(equation, using, (*equation.inputs, *found), equation.outputs),
        found,
    )


def _marked_cond(equation: Equation, policy: Policy) -> tuple[Equation, Equation, list[Var]]:
    """Every branch saves the values of all branches; those of the others are zeros."""
    inner = [_marked(branch, policy) for branch in equation.attrs["branches"]]
    groups = [[v.type for v in marked.saved] for marked in inner]
    found = [Var(t) for group in groups for t in group]
    savings = tuple(_padded(m.saving, len(equation.outputs), groups, i) for i, m in enumerate(inner))
    usings = []
    for i, marked in enumerate(inner):
        others = [list(marked.saved) if j == i else [Var(t) for t in g] for j, g in enumerate(groups)]
        count = len(equation.inputs) - 1
        params = (*marked.using.params[:count], *(v for group in others for v in group))
        usings.append(marked.using.replace(params=params))
    return (
        changed(equation, ir.Attrs({"branches": savings}), equation.inputs, (*equation.outputs, *found)),
        changed(
            equation, ir.Attrs({"branches": tuple(usings)}), (*equation.inputs, *found), equation.outputs
        ),
        found,
    )


def _padded(body: Program, count: int, groups: Sequence[Sequence[ir.ArrayType]], mine: int) -> Program:
    def run(*args: Value) -> Sequence[Value]:
        results = trace.evaluate(body, args)
        others = [
            results[count:] if i == mine else [families.zeros(t) for t in group]
            for i, group in enumerate(groups)
        ]
        return [*results[:count], *(r for group in others for r in group)]

    return trace.stage(run, body.in_types, name=body.name).program
