"""The fused program: kernels and the equations left over, in an order that makes everything before its use.

Arrays keep their variables; kernels take and give flat ones, and the reshapes around them cost nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from infini.compiler import tiling
from infini.compiler.expression import Domain
from infini.compiler.grouping import Grouping, Level
from infini.core import ir, primitive
from infini.core.ir import Attrs, Equation, Program, Var
from infini.core.primitive import Effect
from infini.tile import program as kernel_


@dataclass(eq=False, slots=True)
class Unit:
    """What becomes one kernel: its results, and the domain they share."""

    roots: list[tuple[Var, Level]]
    domain: Domain
    position: int
    built: tiling.Built | None = None


def assemble(grouping: Grouping, units: Sequence[Unit], core: Callable[[Var], Var]) -> Program:
    """The program in kernels.

    Args:
        grouping: the program, and what each variable is.
        units: kernels, built.
        core: the variable below the reshapes of another.
    """
    program = grouping.program
    steps: list[tuple[int, Equation | Unit]] = [(unit.position, unit) for unit in units]
    steps += [(i, e) for i, e in enumerate(program.equations) if not grouping.is_fusable(e)]
    steps.sort(key=lambda step: step[0])
    writer = _Writer(program, core)
    for step in _ordered(steps, core):
        if isinstance(step, Unit):
            writer.kernel(step, grouping)
        else:
            writer.equation(step)
    return writer.finish()


def _ordered(
    steps: Sequence[tuple[int, Equation | Unit]],
    core: Callable[[Var], Var],
) -> list[Equation | Unit]:
    """Steps in an order that makes everything before its use, close to program order."""
    maker: dict[Var, int] = {}
    for number, (_, step) in enumerate(steps):
        outputs = [v for v, _ in step.roots] if isinstance(step, Unit) else step.outputs
        maker.update((v, number) for v in outputs)
    waits: list[set[int]] = []
    last_effect: int | None = None
    for number, (_, step) in enumerate(steps):
        if isinstance(step, Unit):
            assert step.built is not None
            inputs: Iterable[Var] = (*step.built.operands, *step.built.extents)
        else:
            inputs = step.inputs
        needs = {maker[v] for v in map(core, inputs) if v in maker}
        if isinstance(step, Equation) and step.effect is not Effect.NONE:
            needs |= {last_effect} if last_effect is not None else set()
            last_effect = number
        waits.append(needs)
    users: list[list[int]] = [[] for _ in steps]
    missing = [len(needs) for needs in waits]
    for number, needs in enumerate(waits):
        for need in needs:
            users[need].append(number)
    ready = [number for number, count in enumerate(missing) if count == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        number = heapq.heappop(ready)
        order.append(steps[number][1])
        for user in users[number]:
            missing[user] -= 1
            if missing[user] == 0:
                heapq.heappush(ready, user)
    assert len(order) == len(steps), "groups depend on each other in a cycle"
    return order


class _Writer:
    """Writes the fused program; arrays keep their variables, kernels take and give flat ones."""

    def __init__(self, program: Program, core: Callable[[Var], Var]) -> None:
        self.program, self.core = program, core
        self.builder = ir.Builder()
        self.env: dict[Var, Var] = {param: param for param in program.params}
        self.shaped: dict[tuple[Var, tuple[int, ...]], Var] = {}
        for var, constant in program.consts:
            self.env[var] = self.builder.constant(constant.array)

    def _reshaped(self, var: Var, shape: tuple[int, ...]) -> Var:
        if var.type.shape == shape:
            return var
        key = (var, shape)
        if key not in self.shaped:
            attrs = Attrs({"shape": shape, "ndim": var.type.ndim})
            (self.shaped[key],) = self.builder.emit(primitive.by_name("reshape"), [var], attrs, via="fuse")
        return self.shaped[key]

    def array(self, var: Var) -> Var:
        """A variable of the old program in the new one."""
        return self._reshaped(self.env[self.core(var)], var.type.shape)

    def kernel(self, unit: Unit, grouping: Grouping) -> None:
        """Append a kernel."""
        built = unit.built
        assert built is not None
        operands = [
            self._reshaped(self.env[self.core(v)], (v.type.size,)) if is_flat else self.array(v)
            for v, is_flat in zip(built.operands, built.flat, strict=True)
        ]
        operands += [self.env[v] for v in built.extents]
        where = grouping.definition[unit.roots[-1][0]].where
        outputs = self.builder.emit(
            kernel_.kernel_p,
            operands,
            Attrs({"kernel": built.kernel}),
            where=where,
            via="fuse",
            out_types=built.kernel.outputs,
        )
        for (var, _), output in zip(unit.roots, outputs, strict=True):
            self.shaped[output, var.type.shape] = shaped = self._reshaped(output, var.type.shape)
            self.env[var] = shaped
            self.shaped[shaped, output.type.shape] = output

    def equation(self, equation: Equation) -> None:
        """Append an equation that is no kernel."""
        inputs = [self.array(v) for v in equation.inputs]
        outputs = self.builder.emit(
            equation.op, inputs, equation.attrs, where=equation.where, via=equation.via,
            out_types=[v.type for v in equation.outputs],
        )  # fmt: skip
        self.env.update(zip(equation.outputs, outputs, strict=True))

    def finish(self) -> Program:
        """The program."""
        results = [self.array(v) for v in self.program.results]
        return self.builder.build(self.program.params, results, name=self.program.name)
