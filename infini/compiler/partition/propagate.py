"""Propagation: from the placements that people asked for to one for every variable of a program.

Sweeps go forwards and backwards through the equations until nothing changes. A placement, once there,
stays; dimensions that are whole may still be split. Values of a loop that are the same value in turn are
*tied*.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal

from infini.compiler.partition import placement as p
from infini.compiler.partition.factors import factors_of
from infini.compiler.partition.placement import Dims
from infini.core import primitive
from infini.core.ir import Equation, Program, Var
from infini.core.mesh import AbstractMesh

_MAX_SWEEPS: Final = 8
# One dimension, the number of steps, stands in front of `xs` and `ys` outside of a scan; it is never split.
Tie = tuple[Var, Var, Literal["same", "rows"]]


class Plan:
    """The placement of every variable; partial sums are no part of a plan.

    Args:
        mesh: the mesh.
        fixed: placements that people asked for.
    """

    def __init__(self, mesh: AbstractMesh, fixed: dict[Var, Dims]) -> None:
        self.mesh = mesh
        self.fixed = fixed
        self._open: dict[Var, Dims] = {}
        self._has_changed = False

    def __getitem__(self, var: Var) -> Dims:
        return self.fixed.get(var) or self._open.get(var) or p.whole(var.type.ndim)

    def suggest(self, var: Var, dims: Dims) -> None:
        """Split dimensions of a variable that are whole, over axes that it does not use."""
        if var in self.fixed:
            return
        now = list(self[var])
        used = {axis for axes in now for axis in axes}
        for i, axes in enumerate(dims):
            if (
                axes
                and not now[i]
                and used.isdisjoint(axes)
                and var.type.shape[i] % p.size_of(axes, self.mesh) == 0
            ):
                now[i] = axes
                used.update(axes)
        if tuple(now) != self[var]:
            self._open[var] = tuple(now)
            self._has_changed = True

    def run(self, program: Program) -> None:
        """Sweep until nothing changes."""
        for _ in range(_MAX_SWEEPS):
            self._has_changed = False
            self._sweep(program, is_forward=True)
            self._sweep(program, is_forward=False)
            if not self._has_changed:
                return

    def _sweep(self, program: Program, *, is_forward: bool) -> None:
        for equation in program.equations if is_forward else reversed(program.equations):
            if equation.op.name == "sharding_constraint":
                self.suggest(equation.inputs[0], self[equation.output])
            elif equation.op.name == "shard_map":
                for var, spec in zip(equation.inputs, equation.attrs["in_specs"], strict=True):
                    self.suggest(var, p.from_spec(spec, var.type.ndim))
            elif equation.op.name == "optimization_barrier":
                for before, after in zip(equation.inputs, equation.outputs, strict=True):
                    self._tie((before, after, "same"))
            elif equation.programs and not equation.op.has(primitive.PLACE):
                self._through_bodies(equation, is_forward=is_forward)
            else:
                self._through(equation, is_forward=is_forward)

    def _through(self, equation: Equation, *, is_forward: bool) -> None:
        found = factors_of(equation)
        inputs = list(zip(equation.inputs, found.inputs, strict=True))
        outputs = list(zip(equation.outputs, found.outputs, strict=True))
        sources, targets = ((inputs, outputs), outputs) if is_forward else ((outputs, inputs), inputs)
        split: p.Split = {}
        for side in sources:
            wishes = [
                wish for var, dims in side for wish in p.project(self[var], dims, found.sizes, self.mesh)
            ]
            p.merge(split, p.leading_first(wishes, found))
        split = p.contiguous(split, found, self.mesh)
        for var, dims in targets:
            self.suggest(var, p.expand(split, dims))

    def _through_bodies(self, equation: Equation, *, is_forward: bool) -> None:
        for tie in ties(equation):
            self._tie(tie)
        for body in equation.programs:
            self._sweep(body, is_forward=is_forward)
        for tie in ties(equation):
            self._tie(tie)

    def _tie(self, tie: Tie) -> None:
        outer, inner, kind = tie
        if kind == "same":
            self.suggest(inner, self[outer])
            self.suggest(outer, self[inner])
        else:
            self.suggest(inner, self[outer][1:])
            self.suggest(outer, ((), *self[inner]))


def ties(equation: Equation) -> Iterator[Tie]:
    """Pairs of variables around and inside the bodies of an equation that hold the same value."""
    attrs, inputs, outputs = equation.attrs, equation.inputs, equation.outputs
    if equation.op.name == "scan":
        body, first = attrs["body"], attrs["num_consts"]
        second = first + attrs["num_carry"]
        yield from _same(inputs[:second], body.params[:second])
        yield from _same(body.results[: second - first], body.params[first:second])
        yield from _same(outputs[: second - first], body.params[first:second])
        for outer, inner in zip(inputs[second:], body.params[second:], strict=True):
            yield outer, inner, "rows"
        for outer, inner in zip(outputs[second - first :], body.results[second - first :], strict=True):
            yield outer, inner, "rows"
    elif equation.op.name == "cond":
        for branch in attrs["branches"]:
            yield from _same(inputs[1:], branch.params)
            yield from _same(outputs, branch.results)
    elif equation.op.name == "while":
        first, second = attrs["num_cond_consts"], attrs["num_cond_consts"] + attrs["num_body_consts"]
        condition, body = attrs["cond"], attrs["body"]
        yield from _same((*inputs[:first], *inputs[second:]), condition.params)
        yield from _same(inputs[first:], body.params)
        yield from _same(body.results, body.params[second - first :])
        yield from _same(outputs, body.params[second - first :])


def _same(outer: Sequence[Var], inner: Sequence[Var]) -> Iterator[Tie]:
    for a, b in zip(outer, inner, strict=True):
        yield a, b, "same"


def fixed_placements(program: Program, mesh: AbstractMesh) -> dict[Var, Dims]:
    """Placements that constraints and shard_map in a program, and in the programs inside it, ask for."""
    found: dict[Var, Dims] = {}
    for equation in program.equations:
        if equation.op.name == "sharding_constraint":
            found[equation.output] = p.from_spec(equation.attrs["spec"], equation.output.type.ndim)
        elif equation.op.name == "shard_map" and not equation.attrs.get("axes"):
            for var, spec in zip(equation.outputs, equation.attrs["out_specs"], strict=True):
                found[var] = p.from_spec(spec, var.type.ndim)
        else:
            for body in equation.programs:
                found.update(fixed_placements(body, mesh))
    return found
