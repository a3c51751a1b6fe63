"""Propagation: from the placements that people asked for to one for every variable of a program.

A placement only ever becomes finer: dimensions are split over more axes, never over others. So there is a
fixpoint, and a queue of the equations beside what has changed finds it, whatever the program. Values of a
loop that are the same value in turn are one *class* with one placement; what lies around a loop is tied to
it. The order of the queue, which decides where wishes conflict, is data: `PRIORITIES`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from infini.compiler.partition import placement as p, prepare
from infini.compiler.partition.factors import factors_of
from infini.compiler.partition.placement import Asked, Dims
from infini.core import primitive
from infini.core.ir import Equation, Program, Var
from infini.core.mesh import AbstractMesh, P
from infini.lax.places import Factors

# What passes on its placement first. Within one priority forwards comes before backwards, so that the batch
# goes through a model before anything comes back from its loss.
PRIORITIES: Final[Mapping[str, int]] = {
    "asked": 0,  # next to a placement that people asked for
    "through": 1,  # all arrays of an equation have the same dimensions
    "ends": 2,  # contractions, reductions, broadcasts: dimensions end or begin
}
# `class`: one value, which has one placement. `same`: the same value, where a move in between is possible.
# `rows`: as that, but outside of a scan there is one dimension more in front, which is never split.
Kind = Literal["class", "same", "rows"]
Tie = tuple[Var, Var, Kind]


@dataclass(frozen=True, slots=True)
class _Step:
    """What passes placements on: an equation by its factors, or a tie."""

    priority: int
    number: int
    inputs: tuple[Var, ...]
    outputs: tuple[Var, ...]
    factors: Factors | None = None
    kind: Kind = "same"


@dataclass(slots=True)
class _Queue:
    """Steps to take, the most urgent first."""

    heap: list[tuple[int, int, int]] = field(default_factory=list)  # priority, is_backward, order
    waiting: set[tuple[int, int]] = field(default_factory=set)  # number, is_backward

    def add(self, step: _Step, is_backward: int) -> None:
        if (step.number, is_backward) not in self.waiting:
            self.waiting.add((step.number, is_backward))
            order = -step.number if is_backward else step.number
            heapq.heappush(self.heap, (step.priority, is_backward, order))

    def take(self) -> tuple[int, int] | None:
        if not self.heap:
            return None
        _, is_backward, order = heapq.heappop(self.heap)
        found = (abs(order), is_backward)
        self.waiting.discard(found)
        return found


class Plan:
    """The placement of every variable; partial sums are no part of a plan.

    Args:
        mesh: the mesh.
        fixed: placements that people asked for.
    """

    def __init__(self, mesh: AbstractMesh, fixed: Mapping[Var, Asked]) -> None:
        self.mesh = mesh
        self.fixed = fixed
        self._dims: dict[Var, Dims] = {}  # by the first variable of a class
        self._asked: dict[Var, Asked] = {}  # by the same
        self._first: dict[Var, Var] = {}
        self._factors: dict[Var, Factors] = {}  # by the first result of an equation
        self._steps: list[_Step] = []
        self._after: dict[Var, list[_Step]] = {}  # steps that read a class, by its first variable
        self._before: dict[Var, list[_Step]] = {}  # steps that write it
        self._queue = _Queue()

    def __getitem__(self, var: Var) -> Dims:
        return self._dims.get(self._root(var)) or p.whole(var.type.ndim)

    def factors(self, equation: Equation) -> Factors:
        """How the dimensions of an equation correspond; see `factors_of`."""
        key = equation.outputs[0] if equation.outputs else None
        found = self._factors.get(key) if key else None
        if found is None:
            found = factors_of(equation)
            if key:
                self._factors[key] = found
        return found

    def suggest(self, var: Var, dims: Dims) -> None:
        """Split dimensions of a variable further, over axes that it does not use."""
        root, now = self._root(var), self[var]
        asked = self._asked.get(root)
        finer = list(now)
        used = {axis for axes in now for axis in axes}.union(asked.partial if asked is not None else ())
        for i, axes in enumerate(dims):
            if axes[: len(finer[i])] != finer[i] or (asked is not None and i not in asked.open):
                continue
            for axis in axes[len(finer[i]) :]:
                if axis in used:
                    break
                finer[i] = (*finer[i], axis)
                used.add(axis)
        if tuple(finer) != now:
            self._dims[root] = tuple(finer)
            self._note(root)

    def run(self, program: Program) -> None:
        """Propagate what was asked for until nothing changes."""
        self._join(program, prepare.uses(program))
        for var, asked in self.fixed.items():
            root = self._root(var)
            if self._asked.setdefault(root, asked) is asked:
                self._dims[root] = asked.dims
        self._collect(program)
        for step in self._steps:
            for var in step.inputs:
                self._after.setdefault(self._root(var), []).append(step)
            for var in step.outputs:
                self._before.setdefault(self._root(var), []).append(step)
        for root in list(self._dims):
            self._note(root)
        self._seed(program)
        self.settle()

    def settle(self) -> None:
        """Propagate until nothing changes."""
        while (found := self._queue.take()) is not None:
            number, is_backward = found
            step = self._steps[number]
            if step.factors is not None:
                self._through(step, step.factors, is_forward=not is_backward)
            else:
                self._tie(step, is_forward=not is_backward)

    # --- classes ------------------------------------------------------------------------------

    def _root(self, var: Var) -> Var:
        first = self._first.get(var)
        if first is None:
            return var
        while (further := self._first.get(first)) is not None:
            self._first[var] = first = further
        return first

    def _join(self, program: Program, uses: Mapping[Var, int]) -> None:
        """Make one class of what holds one value, as far as at most one placement is asked for it."""
        for equation in program.equations:
            for outer, inner, kind in ties(equation):
                # A value that something else uses too may be wanted elsewhere in another way.
                is_one = kind == "class" or (
                    kind == "same" and outer not in self.fixed and uses.get(outer, 0) == 1
                )
                if is_one:
                    self._unite(inner, outer)
            for body in equation.programs:
                self._join(body, prepare.uses(body))

    def _unite(self, a: Var, b: Var) -> None:
        first, second = self._root(a), self._root(b)
        if first is second:
            return
        wishes = [self._asked.get(root, self.fixed.get(root)) for root in (first, second)]
        if wishes[0] is not None and wishes[1] is not None and wishes[0] != wishes[1]:
            return
        self._first[second] = first
        wish = wishes[0] or wishes[1]
        if wish is not None:
            self._asked[first] = wish
            self._dims[first] = wish.dims

    # --- the queue ----------------------------------------------------------------------------

    def _note(self, root: Var) -> None:
        """Queue the steps beside a class that has changed."""
        for step in self._after.get(root, ()):
            self._queue.add(step, 0)
            self._queue.add(step, 1)  # other operands may follow
        for step in self._before.get(root, ()):
            self._queue.add(step, 1)

    def _add(
        self,
        priority: str,
        inputs: Sequence[Var],
        outputs: Sequence[Var],
        factors: Factors | None = None,
        kind: Kind = "same",
    ) -> None:
        number = len(self._steps)
        self._steps.append(_Step(PRIORITIES[priority], number, tuple(inputs), tuple(outputs), factors, kind))

    def _collect(self, program: Program) -> None:
        for equation in program.equations:
            name = equation.op.name
            if name == "sharding_constraint":
                self._add("asked", equation.inputs, equation.outputs)
            elif name == "shard_map":
                continue
            elif name == "optimization_barrier":
                for before, after in zip(equation.inputs, equation.outputs, strict=True):
                    self._add("through", (before,), (after,))
            elif equation.programs and not equation.op.has(primitive.PLACE):
                for outer, inner, kind in ties(equation):
                    if self._root(outer) is not self._root(inner):
                        self._add("through", (outer,), (inner,), kind=kind)
                for body in equation.programs:
                    self._collect(body)
            elif equation.outputs:
                found = self.factors(equation)
                self._add(_priority(equation, found), equation.inputs, equation.outputs, factors=found)

    def _seed(self, program: Program) -> None:
        """Operands of shard_map are wanted as it says."""
        for equation in program.equations:
            if equation.op.name == "shard_map":
                for var, spec in zip(equation.inputs, equation.attrs["in_specs"], strict=True):
                    self.suggest(var, p.from_spec(spec, var.type.ndim))
            elif not equation.op.has(primitive.PLACE):
                for body in equation.programs:
                    self._seed(body)

    # --- steps --------------------------------------------------------------------------------

    def _through(self, step: _Step, found: Factors, *, is_forward: bool) -> None:
        inputs = list(zip(step.inputs, found.inputs, strict=True))
        outputs = list(zip(step.outputs, found.outputs, strict=True))
        sources, targets = ((inputs,), outputs) if is_forward else ((outputs, inputs), inputs)
        split: p.Split = {}
        for side in sources:
            wishes = [wish for var, dims in side for wish in p.project(self[var], dims, found, self.mesh)]
            p.merge(split, p.leading_first(wishes, found))
        if split:
            split = p.contiguous(split, found, self.mesh)
            for var, dims in targets:
                self.suggest(var, p.expand(split, dims))

    def _tie(self, step: _Step, *, is_forward: bool) -> None:
        (outer,), (inner,) = step.inputs, step.outputs
        if step.kind == "rows":
            if is_forward:
                self.suggest(inner, self[outer][1:])
            else:
                self.suggest(outer, ((), *self[inner]))
        elif is_forward:
            self.suggest(inner, self[outer])
        else:
            self.suggest(outer, self[inner])


def _priority(equation: Equation, found: Factors) -> str:
    """The name of an equation's priority: whether its arrays have the same dimensions to split."""
    arrays = [
        *zip(equation.inputs, found.inputs, strict=True),
        *zip(equation.outputs, found.outputs, strict=True),
    ]
    own = [{name for names in dims for name in names if found.sizes[name] > 1} for _, dims in arrays]
    is_same = all(names == own[-1] for names, (var, _) in zip(own, arrays, strict=True) if var.type.size > 1)
    return "through" if is_same and not found.reduced else "ends"


def ties(equation: Equation) -> Iterator[Tie]:
    """Pairs of variables around and inside the bodies of an equation that hold the same value: the one around
    first, or the one that the other is to have the placement of.
    """
    attrs, inputs, outputs = equation.attrs, equation.inputs, equation.outputs
    if equation.op.name == "scan":
        body, first = attrs["body"], attrs["num_consts"]
        second = first + attrs["num_carry"]
        carry = body.params[first:second]
        yield from _carried(carry, body, outputs[: second - first])
        yield from _pairs(inputs[:second], body.params[:second], "same")
        yield from _pairs(inputs[second:], body.params[second:], "rows")
        yield from _pairs(outputs[second - first :], body.results[second - first :], "rows")
    elif equation.op.name == "cond":
        branches = attrs["branches"]
        for branch in branches:
            yield from _pairs(branches[0].params, branch.params, "class")
        for branch in branches:
            yield from _pairs(inputs[1:], branch.params, "same")
        for branch in branches:
            yield from _results(branch, outputs)
    elif equation.op.name == "while":
        first, second = attrs["num_cond_consts"], attrs["num_cond_consts"] + attrs["num_body_consts"]
        condition, body = attrs["cond"], attrs["body"]
        carry = body.params[second - first :]
        yield from _pairs(carry, condition.params[first:], "class")
        yield from _carried(carry, body, outputs)
        yield from _pairs(inputs[:first], condition.params[:first], "same")
        yield from _pairs(inputs[first:], body.params, "same")


def _pairs(outer: Sequence[Var], inner: Sequence[Var], kind: Kind) -> Iterator[Tie]:
    for a, b in zip(outer, inner, strict=True):
        yield a, b, kind


def _carried(carry: Sequence[Var], body: Program, after: Sequence[Var]) -> Iterator[Tie]:
    """A carry is one value before, in and after its turn."""
    yield from _pairs(after, carry, "class")
    yield from _results(body, carry)


def _results(body: Program, wanted: Sequence[Var]) -> Iterator[Tie]:
    """Results of a body, each of which one variable stands for; one that is two results may be moved."""
    constants = {v for v, _ in body.consts}
    seen: set[Var] = set()
    for result, var in zip(body.results, wanted, strict=False):
        yield result, var, "same" if result in seen | constants else "class"
        seen.add(result)


def fixed_placements(program: Program, mesh: AbstractMesh) -> dict[Var, Asked]:
    """Placements that constraints and shard_map in a program, and in the programs inside it, ask for."""
    found: dict[Var, Asked] = {}
    for equation in program.equations:
        if equation.op.name == "sharding_constraint":
            spec = P(*equation.attrs["spec"], unreduced=equation.attrs.get("unreduced", ()))
            found[equation.output] = p.asked(spec, equation.output.type.ndim, mesh)
        elif equation.op.name == "shard_map" and not equation.attrs.get("axes"):
            for var, out in zip(equation.outputs, equation.attrs["out_specs"], strict=True):
                found[var] = Asked(p.from_spec(out, var.type.ndim))
        else:
            for body in equation.programs:
                found.update(fixed_placements(body, mesh))
    return found
