"""Elementwise work between loops goes into the scan that reads it slice by slice.

There it fuses, and no array of all steps is written and read for it. `absorb` takes two things in:

- what a scan fills for other scans only, and what is a few cheap operations away from arrays that are there
  anyway, is not filled: the readers compute it (a derivative's residual `s * (1 - s)` beside `s`);
- an array taken slice by slice that is an elementwise function of others is computed in the body, when the
  body reads it elementwise and nobody else does (the bias of an input projection).

Results do not change in a bit.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Final

from infini.compiler.grouping import is_fusable
from infini.compiler.passes import loop_parts, rewrite
from infini.compiler.passes.loop_parts import Filled, Given, Scan
from infini.core import ir, primitive
from infini.core.ir import Equation, Program, Var

VIA: Final = "loop_slices"
CHEAP: Final = frozenset(
    {"abs", "add", "and", "eq", "ge", "gt", "le", "lt", "max", "min", "mul", "ne", "neg", "not", "or",
     "select_n", "sub"}
)  # fmt: skip
MAX_OPERATIONS: Final = 4  # that a reader repeats instead of reading their result


def absorb(program: Program) -> Program:
    """The program, and those inside it, with elementwise work inside the scans that read it."""
    if not any(equation.programs for equation in program.equations):
        return program
    return _Absorber(program).run()


class _Absorber:
    """One walk over a program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.builder = ir.Builder()
        self.env: dict[Var, Var] = {}
        self.definition: dict[Var, Equation] = {}
        self.uses = Counter([*(v for e in program.equations for v in e.inputs), *program.results])
        self.repeated: set[Var] = set()  # made for readers that compute it themselves
        self.readers: dict[Var, list[Equation]] = {}
        for equation in program.equations:
            for v in set(equation.inputs):
                self.readers.setdefault(v, []).append(equation)

    def run(self) -> Program:
        for var, constant in self.program.consts:
            self.env[var] = self.builder.constant(constant.array)
            self.uses[self.env[var]] = self.uses[var]
        for equation in self.program.equations:
            inputs = tuple(self.env.get(v, v) for v in equation.inputs)
            attrs = rewrite.map_programs(equation.attrs, absorb)
            if inputs != equation.inputs or attrs is not equation.attrs:
                equation = dataclasses.replace(equation, inputs=inputs, attrs=attrs)
            if equation.op.name == "scan" and equation.attrs["length"] > 0:
                self._scan(Scan.of(equation))
            else:
                self._append(equation)
        results = [self.env.get(v, v) for v in self.program.results]
        return self.builder.build(self.program.params, results, name=self.program.name)

    def _append(self, equation: Equation) -> None:
        self.builder.append(equation)
        self.definition.update((v, equation) for v in equation.outputs)

    def repeat(self, op: str, inputs: Sequence[Var], **attrs: object) -> Var:
        """Append what every reader computes itself, so that in the end nobody reads it."""
        (output,) = self.builder.emit(primitive.by_name(op), inputs, ir.Attrs(attrs), via=VIA)
        self.definition[output] = self.builder.equations[-1]
        self.repeated.add(output)
        return output

    def _scan(self, scan: Scan) -> None:
        pending = list(scan.xs)
        while pending:
            pending += self._inside(scan, pending.pop())
        given_up = _Repeated(scan)
        dropped = [y for y in reversed(list(scan.ys)) if self._is_for_scans(scan, y) and given_up.drop(y)]
        scan.ys = [y for y in scan.ys if y not in dropped]
        self._append(scan.build(scan.equation.via))
        for y in dropped:
            self.env[y.outer] = given_up.emit(self, y.inner)

    # --- arrays that are taken slice by slice ------------------------------------------------------

    def _inside(self, scan: Scan, x: Given) -> Sequence[Given]:
        """Compute the slices of an array in the body; the arrays that it takes instead."""
        made = self.definition.get(x.outer)
        if made is None or x not in scan.xs:
            return ()
        if loop_parts.has_equal_slices(made):
            scan.take_one(x, made, VIA)
            return ()
        is_ours = x.outer in self.repeated or self.uses[x.outer] == 1
        if not is_ours or not made.op.has(primitive.SCALAR) or not _is_read_elementwise(scan, x.inner):
            return ()
        if any(v.type.shape != x.outer.type.shape and v.type.ndim >= x.outer.type.ndim for v in made.inputs):
            return ()
        scan.xs.remove(x)
        before = len(scan.xs)
        found = {v: self._given(scan, v, is_slice=v.type.ndim == x.outer.type.ndim) for v in made.inputs}
        inputs = tuple(found[v] for v in made.inputs)
        scan.equations.insert(0, Equation(made.op, inputs, made.attrs, (x.inner,), made.where, VIA))
        return scan.xs[before:]

    def _given(self, scan: Scan, outer: Var, *, is_slice: bool) -> Var:
        """The parameter of the body for an array, or for its slices."""
        constant = next((c for c, v in self.builder.consts.items() if v is outer), None)
        if constant is not None and not is_slice:
            scan.literals = (*scan.literals, (Var(outer.type), constant))
            return scan.literals[-1][0]
        givens = scan.xs if is_slice else scan.consts
        known = next((g.inner for g in givens if g.outer is outer), None)
        if known is None:
            type_ = outer.type.update(shape=outer.type.shape[1:]) if is_slice else outer.type
            known = Var(type_)
            givens.append(Given(outer, known))
        return known

    # --- arrays that are filled --------------------------------------------------------------------

    def _is_for_scans(self, scan: Scan, y: Filled) -> bool:
        """Whether only other scans read an array that this one fills, slice by slice."""
        readers = self.readers.get(y.outer, [])
        return (
            bool(readers)
            and y.outer not in self.program.results
            and all(_takes_slices(reader, y.outer, scan.length) for reader in readers)
        )


def _takes_slices(reader: Equation, var: Var, length: int) -> bool:
    a = reader.attrs
    if reader.op.name != "scan" or a["length"] != length:
        return False
    first = a["num_consts"] + a["num_carry"]
    body: Program = a["body"]
    if var in reader.inputs[:first]:
        return False
    params = {p for v, p in zip(reader.inputs, body.params, strict=True) if v is var}
    is_elementwise = all(is_fusable(e) for e in body.equations if params & set(e.inputs))
    return is_elementwise and not params & set(body.results)


def _is_read_elementwise(scan: Scan, var: Var) -> bool:
    ends = [*(c.after for c in scan.carry), *(y.inner for y in scan.ys)]
    return var not in ends and all(is_fusable(e) for e in scan.equations if var in e.inputs)


class _Repeated:
    """What a scan fills and what can be computed again from the rest of it."""

    def __init__(self, scan: Scan) -> None:
        self.scan = scan
        self.maker = {v: e for e in scan.equations for v in e.outputs}
        self.arrays = {g.inner: g.outer for g in scan.xs} | {y.inner: y.outer for y in scan.ys}
        self.constants = {g.inner: g.outer for g in scan.consts}
        self.literals = dict(scan.literals)

    def drop(self, y: Filled) -> bool:
        """Leave an array out when it is a few operations away from the others."""
        if sum(other.inner is y.inner for other in self.scan.ys) > 1:
            return False
        outer = self.arrays.pop(y.inner)
        equation = self.maker.get(y.inner)
        leaves: set[Var] = set()
        if equation is None or self._weight(y.inner, leaves) > MAX_OPERATIONS or len(leaves) != 1:
            self.arrays[y.inner] = outer
            return False
        return True

    def _weight(self, var: Var, leaves: set[Var]) -> int:
        """Operations between a variable and arrays that are there; too many when there is no such way."""
        if var in self.arrays:
            leaves.add(var)
            return 0
        equation = self.maker.get(var)
        if equation is None:
            return 0 if var in self.literals or var in self.constants else MAX_OPERATIONS + 1
        if self._is_repeated_constant(equation):
            return 0
        is_like = all(
            v.type.shape == var.type.shape or v in self.literals or v in self.constants
            for v in equation.inputs
        )
        if equation.op.name not in CHEAP or not is_like:
            return MAX_OPERATIONS + 1
        return 1 + sum(self._weight(v, leaves) for v in equation.inputs)

    def _is_repeated_constant(self, equation: Equation) -> bool:
        return equation.op.name == "broadcast_in_dim" and (
            equation.inputs[0] in self.literals or equation.inputs[0] in self.constants
        )

    def emit(self, absorber: _Absorber, var: Var) -> Var:
        """The array of a variable in all steps, computed from those that are there; one step of what is the
        same in all, which broadcasts.
        """
        if var in self.arrays:
            return self.arrays[var]
        equation = self.maker.get(var)
        if equation is None:
            return self._outside(absorber, var)
        if self._is_repeated_constant(equation):
            one = self._outside(absorber, equation.inputs[0])
            return absorber.repeat("broadcast_in_dim", [one], **equation.attrs)
        inputs = [self.emit(absorber, v) for v in equation.inputs]
        return absorber.repeat(equation.op.name, inputs, **equation.attrs)

    def _outside(self, absorber: _Absorber, var: Var) -> Var:
        if var in self.constants:
            return self.constants[var]
        return absorber.builder.constant(self.literals[var].array)
