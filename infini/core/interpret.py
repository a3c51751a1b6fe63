"""Evaluation of programs on NumPy arrays, equation by equation, through the REFERENCE rules.

A first-order operation is `rule(*arrays, **attrs)`; a higher-order one is `rule(evaluate, *arrays,
**attrs)` where `evaluate(program, arrays)` gives the list of results. Operations without a rule are
replaced by their DECOMPOSE. The backend `reference` runs programs this way, and so does the search for a NaN.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from infini.core import ir, primitive, trace

Evaluate: TypeAlias = Callable[[ir.Program, Sequence[np.ndarray]], list[np.ndarray]]
Apply: TypeAlias = Callable[[ir.Equation, Sequence[np.ndarray], Evaluate], list[np.ndarray]]


def has_route(op: primitive.Primitive) -> bool:
    """Whether programs with this operation can be interpreted."""
    return op.has(primitive.REFERENCE) or op.has(primitive.DECOMPOSE)


def evaluate(program: ir.Program, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Results of a program on one device."""
    return evaluator(apply)(program, arrays)


def evaluator(apply_equation: Apply) -> Evaluate:
    """The evaluator that runs each equation by `apply_equation`."""

    def run(program: ir.Program, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        env = dict(zip(program.params, arrays, strict=True))
        env.update((var, constant.array) for var, constant in program.consts)
        for equation in program.equations:
            results = apply_equation(equation, [env[v] for v in equation.inputs], run)
            env.update(zip(equation.outputs, results, strict=True))
        return [env[v] for v in program.results]

    return run


def apply(equation: ir.Equation, operands: Sequence[np.ndarray], evaluate: Evaluate) -> list[np.ndarray]:
    """Results of one equation, checked against its types."""
    op = equation.op
    if not op.has(primitive.REFERENCE):
        return evaluate(decomposition(op, tuple(v.type for v in equation.inputs), equation.attrs), operands)
    rule = op.rule(primitive.REFERENCE)
    found = (
        rule(evaluate, *operands, **equation.attrs)
        if op.is_higher_order
        else rule(*operands, **equation.attrs)
    )
    return typed(found, equation)


def typed(
    found: Any, equation: ir.Equation
) -> list[np.ndarray]:  # Any: what a rule returns, an array or several
    """The results of a rule as a list of arrays of the types the equation declares."""
    results = list(found) if isinstance(found, (tuple, list)) else [found] if equation.outputs else []
    arrays = [np.asarray(x) for x in results]
    for array, var in zip(arrays, equation.outputs, strict=True):
        assert array.shape == var.type.shape and array.dtype == var.type.dtype, (
            f"the REFERENCE rule of {equation.op.name!r} gave {array.dtype}{list(array.shape)}, "
            f"its type is {var.type}"
        )
    return arrays


@functools.lru_cache(maxsize=1024)
def decomposition(op: primitive.Primitive, in_types: tuple[ir.ArrayType, ...], attrs: ir.Attrs) -> ir.Program:
    """The program that the DECOMPOSE rule of an operation stages at these types."""
    rule = op.rule(primitive.DECOMPOSE)
    return trace.stage(lambda *xs: rule(*xs, **attrs), in_types, name=op.name).program
