"""Functions of two scalars that users give to reductions: traced once on scalars, applied to whole arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from infini.core import errors, ir, primitive, trace, tree
from infini.core.ir import ArrayType, Program
from infini.core.value import Literal, Value
from infini.lax import elementwise as e, families

_CALLS: Final = frozenset({"call", "checkpoint", "custom_jvp_call", "custom_vjp_call"})


def stage(
    name: str, computation: Callable[[Any, Any], Any], treedef: tree.PyTreeDef, dtypes: Sequence[np.dtype]
) -> trace.Staged:  # Any: pytrees of scalars
    """A function of two elements as a program of scalars.

    Args:
        name: function to name in errors.
        computation: `(x, y) -> z` of pytrees of scalars.
        treedef: structure of each element.
        dtypes: dtypes of its leaves.

    Raises:
        ValueMismatchError: it gives another structure.
        TypeMismatchError: it gives other types.
    """
    types = [ArrayType((), dtype) for dtype in dtypes]

    def flat(*scalars: Value) -> Sequence[Any]:
        count = len(types)
        found = computation(
            tree.unflatten(treedef, scalars[:count]), tree.unflatten(treedef, scalars[count:])
        )
        results, found_tree = tree.flatten(found)
        if found_tree != treedef:
            raise errors.ValueMismatchError(
                f"{name}: the computation gives another structure than its operands have",
                got=str(found_tree),
                expected=str(treedef),
            )
        return results

    staged = trace.stage(flat, types * 2, name="computation")
    if list(staged.program.out_types) != types:
        raise errors.TypeMismatchError(
            f"{name}: the computation does not give what it takes",
            got=", ".join(map(str, staged.program.out_types)),
            expected=", ".join(map(str, types)),
        )
    return staged


def operation_of(program: Program) -> primitive.Primitive | None:
    """The operation of a program that applies nothing else to its two parameters."""
    if len(program.equations) != 1 or len(program.params) != 2:
        return None
    (equation,) = program.equations
    if equation.inputs not in (program.params, program.params[::-1]) or program.results != equation.outputs:
        return None
    return equation.op


def apply(name: str, staged: trace.Staged, left: Sequence[Value], right: Sequence[Value]) -> list[Value]:
    """The computation element by element."""
    shape = max((x.shape for x in (*left, *right)), key=len)
    results = _elementwise(name, staged.program, [*staged.captures, *left, *right])
    return [families.broadcast_to(x, shape) for x in results]


def _elementwise(name: str, program: Program, args: Sequence[Value]) -> list[Value]:
    """Apply a program of scalars to arrays: its operations broadcast."""
    env: dict[ir.Var, Value] = dict(zip(program.params, args, strict=True))
    for var, constant in program.consts:
        env[var] = Literal(constant.array, weak=False)
    for equation in program.equations:
        inputs = [env[v] for v in equation.inputs]
        with trace.at_line(equation.where):
            env.update(zip(equation.outputs, _step(name, equation, inputs), strict=True))
    return [env[v] for v in program.results]


def _step(name: str, equation: ir.Equation, inputs: Sequence[Value]) -> Sequence[Value]:
    if equation.op.name in _CALLS:
        return _elementwise(name, equation.attrs["body"], inputs)
    if equation.op.name == "cond":
        return _chosen(name, equation, inputs)
    variables = (*equation.inputs, *equation.outputs)
    if any(v.type.ndim for v in variables) or equation.op.signature_for(equation.attrs) is None:
        raise errors.TypeMismatchError(
            f"{name}: the computation has to be made of elementwise operations on scalars",
            got=f"{equation.op.name} of {', '.join(str(v.type) for v in equation.inputs)}",
            fix="use lax.scan or lax.fori_loop instead",
            where=equation.where,
        )
    return trace.bind_attrs(equation.op, inputs, equation.attrs)


def _chosen(name: str, equation: ir.Equation, inputs: Sequence[Value]) -> list[Value]:
    """Every branch of a cond, and of their results those that the index names."""
    index, *operands = inputs
    found: list[Value] = []
    for number, branch in enumerate(equation.attrs["branches"]):
        results = _elementwise(name, branch, operands)
        if number:
            is_chosen = trace.bind1(e.ge_p, index, Literal(np.asarray(number, index.dtype), weak=False))
            results = [
                trace.bind1(e.select_n_p, is_chosen, old, new)
                for old, new in zip(found, results, strict=True)
            ]
        found = results
    return found
