"""Loops taken apart, so that passes can change what they are given, carry and make, and put together again.

Variables of the body keep their identity: an equation that leaves the body leaves its output behind as a
parameter of the same name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infini.compiler import views
from infini.core import ir
from infini.core.ir import Constant, Equation, Program, Var


@dataclass(slots=True)
class Given:
    """What a loop is given: the array outside and the parameter of the body."""

    outer: Var
    inner: Var


@dataclass(slots=True)
class Carried:
    """One carry: its start, the parameter of the body, the result of the body, and its end."""

    start: Var
    inner: Var
    after: Var
    end: Var


@dataclass(slots=True)
class Filled:
    """An array that a scan fills step by step: the result of the body, and the array."""

    inner: Var
    outer: Var


@dataclass(slots=True)
class Scan:
    """A scan."""

    equation: Equation
    consts: list[Given]
    carry: list[Carried]
    xs: list[Given]
    ys: list[Filled]
    equations: list[Equation]
    literals: tuple[tuple[Var, Constant], ...]

    @classmethod
    def of(cls, equation: Equation) -> Scan:
        """The parts of a scan."""
        body: Program = equation.attrs["body"]
        first, count = equation.attrs["num_consts"], equation.attrs["num_carry"]
        given = [Given(*pair) for pair in zip(equation.inputs, body.params, strict=True)]
        filled = [Filled(*pair) for pair in zip(body.results, equation.outputs, strict=True)]
        carry = [
            Carried(g.outer, g.inner, f.inner, f.outer)
            for g, f in zip(given[first : first + count], filled[:count], strict=True)
        ]
        xs, ys = given[first + count :], filled[count:]
        return cls(equation, given[:first], carry, xs, ys, list(body.equations), body.consts)

    @property
    def length(self) -> int:
        """Number of steps."""
        length: int = self.equation.attrs["length"]
        return length

    def take_one(self, x: Given, made: Equation, via: str) -> None:
        """Take an array that `made` repeats for all steps as a constant of the loop."""
        (one,) = made.inputs
        self.xs.remove(x)
        if one.type == x.inner.type:
            self.consts.append(Given(one, x.inner))
            return
        param = Var(one.type)
        self.consts.append(Given(one, param))
        attrs = ir.Attrs(made.attrs.replace(shape=x.inner.type.shape))
        self.equations.insert(0, Equation(made.op, (param,), attrs, (x.inner,), made.where, via))

    def build(self, via: str) -> Equation:
        """The equation."""
        body = _built(
            self.equation.attrs["body"],
            [*(g.inner for g in self.consts), *(c.inner for c in self.carry), *(g.inner for g in self.xs)],
            self.equations,
            [*(c.after for c in self.carry), *(f.inner for f in self.ys)],
            self.literals,
        )
        attrs = self.equation.attrs.replace(body=body, num_consts=len(self.consts), num_carry=len(self.carry))
        inputs = [
            *(g.outer for g in self.consts),
            *(c.start for c in self.carry),
            *(g.outer for g in self.xs),
        ]
        outputs = [*(c.end for c in self.carry), *(f.outer for f in self.ys)]
        return Equation(
            self.equation.op, tuple(inputs), ir.Attrs(attrs), tuple(outputs), self.equation.where, via
        )


def has_equal_slices(made: Equation) -> bool:
    """Whether an equation makes an array whose slices along the first dimension are all equal."""
    return made.op.name == "broadcast_in_dim" and 0 not in views.kept(made)


@dataclass(slots=True)
class While:
    """A loop with a condition; the carries have one parameter in each of its two programs."""

    equation: Equation
    condition_consts: list[Given]
    consts: list[Given]
    carry: list[Carried]
    condition_carry: list[Var]
    condition_equations: list[Equation]
    equations: list[Equation]

    @classmethod
    def of(cls, equation: Equation) -> While:
        """The parts of a loop."""
        a = equation.attrs
        condition, body = a["cond"], a["body"]
        first, count = a["num_cond_consts"], a["num_body_consts"]
        consts = zip(equation.inputs[first : first + count], body.params[:count], strict=True)
        carry = zip(
            equation.inputs[first + count :], body.params[count:], body.results, equation.outputs, strict=True
        )
        return cls(
            equation,
            [Given(*pair) for pair in zip(equation.inputs[:first], condition.params[:first], strict=True)],
            [Given(*pair) for pair in consts],
            [Carried(*item) for item in carry],
            list(condition.params[first:]),
            list(condition.equations),
            list(body.equations),
        )

    def build(self, via: str) -> Equation:
        """The equation."""
        a = self.equation.attrs
        condition = _built(
            a["cond"],
            [*(g.inner for g in self.condition_consts), *self.condition_carry],
            self.condition_equations,
            a["cond"].results,
        )
        body = _built(
            a["body"],
            [*(g.inner for g in self.consts), *(c.inner for c in self.carry)],
            self.equations,
            [c.after for c in self.carry],
        )
        attrs = a.replace(
            cond=condition,
            body=body,
            num_cond_consts=len(self.condition_consts),
            num_body_consts=len(self.consts),
        )
        inputs = [g.outer for g in (*self.condition_consts, *self.consts)] + [c.start for c in self.carry]
        outputs = tuple(c.end for c in self.carry)
        return Equation(self.equation.op, tuple(inputs), ir.Attrs(attrs), outputs, self.equation.where, via)


def _built(
    before: Program,
    params: Sequence[Var],
    equations: Sequence[Equation],
    results: Sequence[Var],
    literals: Sequence[tuple[Var, Constant]] | None = None,
) -> Program:
    used = {v for e in equations for v in e.inputs} | set(results)
    literals = before.consts if literals is None else literals
    consts = tuple((var, constant) for var, constant in literals if var in used)
    return before.replace(
        params=tuple(params), equations=tuple(equations), results=tuple(results), consts=consts
    )
