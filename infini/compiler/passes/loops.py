"""What is the same in every step of a loop is computed once, before it.

A carry that no step changes becomes a constant of the loop, and so does an array taken slice by slice whose
slices are all equal; an array filled with equal slices is made outside. Then equations of the body whose
operands are constants of the loop leave it, innermost loops first. Cheap ones that would make more memory
than they read (a repeated scalar, a mask of positions, a wider dtype) stay where they fuse with their
readers. Everything that moves is pure, so it may run before a loop that makes no step. Effects stay, and
nothing leaves from behind an `optimization_barrier`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Final

from infini.compiler.grouping import is_fusable, is_reduction
from infini.compiler.passes import loop_parts, panels, rewrite
from infini.compiler.passes.loop_parts import Given, Scan, While
from infini.core import ir, primitive
from infini.core.ir import Constant, Equation, Program, Var
from infini.core.primitive import Effect

VIA: Final = "loops"
_DEAR: Final = frozenset({"pad", "concatenate"})  # fusable, but products and sorts read them from memory
_STAYS: Final = frozenset({"optimization_barrier", panels.from_panels_p.name})


def move_invariants(program: Program) -> Program:
    """The program, and those inside it, with what their loops repeat moved before them."""
    if not any(equation.programs for equation in program.equations):
        return program
    return _Mover().run(program)


class _Mover:
    """One walk over a program; loops are appended with what leaves them before them."""

    def __init__(self) -> None:
        self.builder = ir.Builder()
        self.definition: dict[Var, Equation] = {}
        self.env: dict[Var, Var] = {}

    def run(self, program: Program) -> Program:
        for var, constant in program.consts:
            self.env[var] = self.builder.constant(constant.array)
        for equation in program.equations:
            inputs = tuple(self.env.get(v, v) for v in equation.inputs)
            attrs = rewrite.map_programs(equation.attrs, move_invariants)
            if inputs != equation.inputs or attrs is not equation.attrs:
                equation = dataclasses.replace(equation, inputs=inputs, attrs=attrs)
            if equation.op.name == "scan":
                equation = self._scan(equation)
            elif equation.op.name == "while":
                equation = self._while(equation)
            self._append(equation)
        results = [self.env.get(v, v) for v in program.results]
        return self.builder.build(program.params, results, name=program.name)

    def _append(self, equation: Equation) -> None:
        self.builder.append(equation)
        self.definition.update((v, equation) for v in equation.outputs)

    def emit(self, op: str, inputs: Sequence[Var], **attrs: object) -> Var:
        """Append an equation with one output."""
        (output,) = self.builder.emit(primitive.by_name(op), inputs, ir.Attrs(attrs), via=VIA)
        self.definition[output] = self.builder.equations[-1]
        return output

    def copied(self, equation: Equation, inputs: Sequence[Var]) -> tuple[Var, ...]:
        """Append an equation of a body, on arrays out here."""
        outputs = tuple(Var(v.type) for v in equation.outputs)
        self._append(dataclasses.replace(equation, inputs=tuple(inputs), outputs=outputs, via=VIA))
        return outputs

    # --- scan -----------------------------------------------------------------------------------

    def _scan(self, equation: Equation) -> Equation:
        scan = Scan.of(equation)
        if scan.length == 0:
            return equation
        for carried in [c for c in scan.carry if c.after is c.inner]:
            scan.carry.remove(carried)
            scan.consts.append(Given(carried.start, carried.inner))
            self.env[carried.end] = carried.start
        for x in list(scan.xs):
            self._equal_slices(scan, x)
        found = _Invariants(self, scan.consts, scan.literals, may_hang=True)
        scan.equations = found.leave(scan.equations)
        for y in [y for y in scan.ys if found.is_invariant(y.inner)]:
            one = found.outside(y.inner)
            shape = (scan.length, *one.type.shape)
            self.env[y.outer] = self.emit(
                "broadcast_in_dim", [one], shape=shape, dims=tuple(range(-one.type.ndim, 0))
            )
            scan.ys.remove(y)
        taken = {x.inner: x.outer for x in scan.xs}
        for y in [y for y in scan.ys if y.inner in taken]:
            self.env[y.outer] = taken[y.inner]
            scan.ys.remove(y)
        used = _used(scan.equations, [*(c.after for c in scan.carry), *(y.inner for y in scan.ys)])
        scan.consts = found.consts(used)
        return scan.build(equation.via)

    def _equal_slices(self, scan: Scan, x: Given) -> None:
        """Take an array whose slices are all equal as one of them."""
        made = self.definition.get(x.outer)
        while made is not None and made.op.name == "rev" and made.attrs["axes"] == (-x.outer.type.ndim,):
            made = self.definition.get(made.inputs[0])
        if made is not None and loop_parts.has_equal_slices(made):
            scan.take_one(x, made, VIA)

    # --- while ----------------------------------------------------------------------------------

    def _while(self, equation: Equation) -> Equation:
        loop = While.of(equation)
        for i in reversed([i for i, c in enumerate(loop.carry) if c.after is c.inner]):
            carried, inner = loop.carry.pop(i), loop.condition_carry.pop(i)
            loop.consts.append(Given(carried.start, carried.inner))
            loop.condition_consts.append(Given(carried.start, inner))
            self.env[carried.end] = carried.start
        # A loop that may make no step must not wait for one inside it that never ends.
        found = _Invariants(self, loop.consts, equation.attrs["body"].consts, may_hang=False)
        loop.equations = found.leave(loop.equations)
        loop.consts = found.consts(_used(loop.equations, [c.after for c in loop.carry]))
        condition = equation.attrs["cond"]
        found = _Invariants(self, loop.condition_consts, condition.consts, may_hang=True)
        loop.condition_equations = found.leave(loop.condition_equations)
        loop.condition_consts = found.consts(_used(loop.condition_equations, condition.results))
        return loop.build(equation.via)


class _Invariants:
    """Variables of a body that are the same in every step."""

    def __init__(
        self,
        mover: _Mover,
        consts: Iterable[Given],
        literals: Iterable[tuple[Var, Constant]],
        *,
        may_hang: bool,
    ) -> None:
        self.mover, self.may_hang = mover, may_hang
        self.outer = {given.inner: given.outer for given in consts}
        self.literals = dict(literals)
        self.kept: dict[Var, Equation] = {}  # the same in every step, and computed in every step

    def is_invariant(self, var: Var) -> bool:
        """Whether it has one value in all steps."""
        return var in self.outer or var in self.literals or var in self.kept

    def outside(self, var: Var) -> Var:
        """The variable before the loop that has its value."""
        if var not in self.outer and var in self.literals:
            return self.mover.builder.constant(self.literals[var].array)
        if var not in self.outer:
            equation = self.kept[var]
            made = self.mover.copied(equation, [self.outside(v) for v in equation.inputs])
            self.outer.update(zip(equation.outputs, made, strict=True))
        return self.outer[var]

    def leave(self, equations: Sequence[Equation]) -> list[Equation]:
        """Move what can be moved before the loop; what stays."""
        stays = []
        for equation in equations:
            if not self._may_move(equation):
                stays.append(equation)
            elif self._is_cheaper_inside(equation):
                self.kept.update((v, equation) for v in equation.outputs)
                stays.append(equation)
            else:
                made = self.mover.copied(equation, [self.outside(v) for v in equation.inputs])
                self.outer.update(zip(equation.outputs, made, strict=True))
        return stays

    def _may_move(self, equation: Equation) -> bool:
        return (
            all(map(self.is_invariant, equation.inputs))
            and equation.effect is Effect.NONE
            and equation.op.name not in _STAYS
            and (self.may_hang or not _has_while(equation))
        )

    def _is_cheaper_inside(self, equation: Equation) -> bool:
        """Whether it becomes part of a kernel of the loop that would otherwise read as much or more."""
        if not is_fusable(equation) or equation.op.name in _DEAR or is_reduction(equation):
            return False
        if equation.output.type.size <= 1:
            return True
        read = sum(v.type.nbytes for v in set(equation.inputs) if v in self.outer and v not in self.kept)
        return equation.output.type.nbytes > read

    def consts(self, used: set[Var]) -> list[Given]:
        """What the loop is given of it: variables that are used and not made in the body."""
        return [Given(outer, v) for v, outer in self.outer.items() if v in used and v not in self.kept]


def _used(equations: Iterable[Equation], results: Iterable[Var]) -> set[Var]:
    return {v for equation in equations for v in equation.inputs} | set(results)


def _has_while(equation: Equation) -> bool:
    return equation.op.name == "while" or any(
        _has_while(inner) for program in equation.programs for inner in program.equations
    )
