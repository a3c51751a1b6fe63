"""Rewriting: a rule is a row of data, and one driver applies a table of them in a single walk.

A rule looks at one equation whose operands are already rewritten and gives the variables that replace its
outputs, or None. What it emits is rewritten again, up to a bound that names the rules that fight. Rules are
exact: no result changes in a bit.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from infini.core import ir, primitive
from infini.core.ir import Attrs, Equation, Program, Var

_MAX_STEPS: Final = 40


@dataclass(frozen=True, slots=True)
class Rule:
    """One identity.

    Args:
        name: for provenance, as `simplify/mul_one`.
        op: name of the operation at the root.
        apply: gives the variables that stand for the outputs, or None when the identity does not hold here.
        why: the identity, for people.
    """

    name: str
    op: str
    apply: Callable[[Match], Var | Sequence[Var] | None]
    why: str


class Match:
    """An equation as a rule sees it: its operands, what defines them, and a way to emit replacements."""

    def __init__(self, rewriter: Rewriter, equation: Equation) -> None:
        self._rewriter = rewriter
        self.equation = equation

    @property
    def attrs(self) -> Attrs:
        """Attributes of the equation."""
        return self.equation.attrs

    @property
    def inputs(self) -> tuple[Var, ...]:
        """Operands."""
        return self.equation.inputs

    @property
    def x(self) -> Var:
        """First operand."""
        return self.equation.inputs[0]

    @property
    def y(self) -> Var:
        """Second operand."""
        return self.equation.inputs[1]

    @property
    def out(self) -> ir.ArrayType:
        """Type of the only output."""
        return self.equation.output.type

    def defined_by(self, var: Var, *ops: str) -> Equation | None:
        """The equation that makes `var`, if it is one of these operations."""
        found = self._rewriter.definition.get(var)
        return found if found is not None and found.op.name in ops else None

    def constant(self, var: Var) -> np.ndarray | None:
        """The elements of a constant."""
        found = self._rewriter.constants.get(var)
        return None if found is None else found.array

    def scalar(self, var: Var) -> Any:  # Any: a NumPy scalar
        """The one value that every element of `var` has, looking through broadcasts; None when unknown."""
        found = self._rewriter.constants.get(var)
        if found is not None and found.is_scalar:
            return found.array.reshape(-1)[0]
        equation = self.defined_by(var, "broadcast_in_dim", "reshape")
        return None if equation is None else self.scalar(equation.inputs[0])

    def is_scalar(self, var: Var, number: float) -> bool:
        """Whether every element is this number, its sign included."""
        value = self.scalar(var)
        if value is None or value.dtype.kind == "c":
            return False
        return bool(value == number and np.signbit(float(value)) == np.signbit(float(number)))

    def num_uses(self, var: Var) -> int:
        """How often the program before rewriting uses what became `var`; 0 when a rule made it."""
        return self._rewriter.uses.get(var, 0)

    def emit(self, op: str, *inputs: Var, **attrs: object) -> Var:
        """Emit an equation with one output."""
        return self.emit_attrs(op, inputs, Attrs(attrs))

    def emit_attrs(self, op: str, inputs: Sequence[Var], attrs: Attrs) -> Var:
        """As `emit`, with attributes as they are."""
        (output,) = self._rewriter.emit(primitive.by_name(op), inputs, attrs, self.equation)
        return output

    def emit_all(self, op: str, inputs: Sequence[Var], attrs: Attrs) -> tuple[Var, ...]:
        """Emit an equation with any number of outputs."""
        return self._rewriter.emit(primitive.by_name(op), inputs, attrs, self.equation)

    def literal(self, array: np.ndarray) -> Var:
        """The variable of a constant."""
        return self._rewriter.literal(array)


class Rewriter:
    """One walk over a program with a table of rules."""

    def __init__(self, table: Sequence[Rule], via: str) -> None:
        self.rules = table
        self.table: dict[str, list[Rule]] = {}
        for rule in table:
            self.table.setdefault(rule.op, []).append(rule)
        self.via = via
        self.builder = ir.Builder()
        self.definition: dict[Var, Equation] = {}
        self.constants: dict[Var, ir.Constant] = {}
        self.uses: collections.Counter[Var] = collections.Counter()
        self._trail: list[str] = []

    def run(self, program: Program) -> Program:
        """The rewritten program; what has become unused is left to dead-code removal."""
        env: dict[Var, Var] = {param: param for param in program.params}
        uses = collections.Counter(v for equation in program.equations for v in equation.inputs)
        uses.update(program.results)
        self.uses.update({param: uses[param] for param in program.params})
        for var, constant in program.consts:
            env[var] = self.literal(constant.array)
        for equation in program.equations:
            self._trail = []
            inputs = tuple([env[v] for v in equation.inputs])
            attrs = map_programs(equation.attrs, lambda inner: self.fork().run(inner))
            moved = equation
            if inputs != equation.inputs or attrs is not equation.attrs:
                moved = Equation(equation.op, inputs, attrs, equation.outputs, equation.where, equation.via)
            if equation.op.name not in self.table:
                self._keep(moved)
                for output in moved.outputs:
                    env[output] = output
                    self.uses[output] = uses[output]
                continue
            for before, after in zip(equation.outputs, self._rewrite(moved), strict=True):
                env[before] = after
                self.uses[after] += uses[before]
        return self.builder.build(program.params, [env[v] for v in program.results], name=program.name)

    def fork(self) -> Rewriter:
        """A fresh walk with the same rules, for a program inside."""
        return Rewriter(self.rules, self.via)

    def literal(self, array: np.ndarray) -> Var:
        """The variable of a constant, known to the rules."""
        var = self.builder.constant(array)
        self.constants[var] = ir.Constant.of(array)
        return var

    def emit(
        self, op: primitive.Primitive, inputs: Sequence[Var], attrs: Attrs, cause: Equation
    ) -> tuple[Var, ...]:
        """Emit an equation in place of `cause`, after rewriting it in turn."""
        types = ir.infer_types(op, [v.type for v in inputs], attrs)
        depth = len(self._trail)
        via = f"{self.via}/{self._trail[-1]}" if depth else cause.via
        outputs = self._rewrite(Equation(op, tuple(inputs), attrs, tuple(map(Var, types)), cause.where, via))
        del self._trail[depth:]
        return outputs

    def _rewrite(self, equation: Equation) -> tuple[Var, ...]:
        match = Match(self, equation)
        for rule in self.table.get(equation.op.name, ()):
            depth = len(self._trail)
            assert depth < _MAX_STEPS, f"rewrite rules fight: {' '.join(self._trail[-6:])}"
            self._trail.append(rule.name)
            found = rule.apply(match)
            if found is not None:
                outputs = (found,) if isinstance(found, Var) else tuple(found)
                types = [v.type for v in outputs]
                assert types == [v.type for v in equation.outputs], f"rule {rule.name} changes a type"
                return outputs
            del self._trail[depth:]
        self._keep(equation)
        return equation.outputs

    def _keep(self, equation: Equation) -> None:
        self.builder.append(equation)
        for output in equation.outputs:
            self.definition[output] = equation


def map_programs(attrs: Attrs, change: Callable[[Program], Program]) -> Attrs:
    """Attributes with every program among them, in tuples too, replaced by `change` of it."""
    if not ir.programs_of(attrs):
        return attrs

    def value(item: Any) -> Any:  # Any: attributes are of many types
        if isinstance(item, Program):
            return change(item)
        return tuple(value(x) for x in item) if isinstance(item, tuple) else item

    return Attrs({name: value(item) for name, item in attrs.items()})


def rewrite(program: Program, table: Sequence[Rule], via: str) -> Program:
    """Apply a table of rules to a program and the programs inside it."""
    return Rewriter(table, via).run(program)
