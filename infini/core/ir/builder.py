"""`Builder` is the only way to make an equation, so every one has gone through its type rule."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infini.core import primitive, source
from infini.core.ir.attributes import Attrs
from infini.core.ir.constants import Constant
from infini.core.ir.program import Equation, Program
from infini.core.ir.types import ArrayType, Var


def infer_types(
    op: primitive.Primitive, in_types: Sequence[ArrayType], attrs: Mapping[str, Any]
) -> tuple[ArrayType, ...]:
    """Types of the results of an operation, by its TYPE rule."""
    if op.is_higher_order:
        # Their rules only compare; a cache would hash whole programs, and keep host functions alive.
        return tuple(op.rule(primitive.TYPE)(*in_types, **attrs))
    return _infer_types(op, tuple(in_types), attrs if isinstance(attrs, Attrs) else Attrs(attrs))


@functools.lru_cache(maxsize=65536)
def _infer_types(
    op: primitive.Primitive, in_types: tuple[ArrayType, ...], attrs: Attrs
) -> tuple[ArrayType, ...]:
    return tuple(op.rule(primitive.TYPE)(*in_types, **attrs))


class Builder:
    """Collects equations and constants of a program under construction."""

    def __init__(self) -> None:
        self.equations: list[Equation] = []
        self.consts: dict[Constant, Var] = {}

    def emit(
        self,
        op: primitive.Primitive,
        inputs: Sequence[Var],
        attrs: Attrs,
        *,
        where: source.Where | None = None,
        via: str = "",
        out_types: Sequence[ArrayType] | None = None,
    ) -> tuple[Var, ...]:
        """Append an equation and return its outputs; `out_types` may be given by a caller that ran the
        type rule.
        """
        types = out_types if out_types is not None else infer_types(op, [v.type for v in inputs], attrs)
        outputs = tuple(Var(type_) for type_ in types)
        self.equations.append(Equation(op, tuple(inputs), attrs, outputs, where, via))
        return outputs

    def emit1(self, op: primitive.Primitive, inputs: Sequence[Var], **attrs: object) -> Var:
        """Append an equation with one output and return it; the form passes use."""
        (output,) = self.emit(op, inputs, Attrs(attrs))
        return output

    def append(self, equation: Equation) -> None:
        """Append an equation that exists already, outputs included."""
        self.equations.append(equation)

    def constant(self, array: np.ndarray) -> Var:
        """The variable of a constant; equal constants share one."""
        constant = Constant.of(array)
        if constant not in self.consts:
            self.consts[constant] = Var(constant.type)
        return self.consts[constant]

    def build(self, params: Sequence[Var], results: Sequence[Var], *, name: str = "main") -> Program:
        """The finished program; constants nothing uses are left out."""
        used = {id(v) for equation in self.equations for v in equation.inputs} | {id(v) for v in results}
        consts = tuple((var, constant) for constant, var in self.consts.items() if id(var) in used)
        return Program(tuple(params), tuple(self.equations), tuple(results), consts, name)


def inline(builder: Builder, program: Program, arguments: Sequence[Var]) -> tuple[Var, ...]:
    """Append the equations of `program`, applied to `arguments`, to a builder; returns its results there."""
    env: dict[Var, Var] = dict(zip(program.params, arguments, strict=True))
    for var, constant in program.consts:
        env[var] = builder.constant(constant.array)
    for equation in program.equations:
        outputs = builder.emit(
            equation.op,
            [env[v] for v in equation.inputs],
            equation.attrs,
            where=equation.where,
            via=equation.via,
            out_types=[v.type for v in equation.outputs],
        )
        env.update(zip(equation.outputs, outputs, strict=True))
    return tuple(env[v] for v in program.results)


def single_equation(op: primitive.Primitive, in_types: Sequence[ArrayType], attrs: Attrs) -> Program:
    """The program that applies one operation to its parameters: what eager execution compiles."""
    builder = Builder()
    params = [Var(type_) for type_ in in_types]
    return builder.build(params, builder.emit(op, params, attrs), name=op.name)
