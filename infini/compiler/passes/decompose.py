"""Operations without a route in a backend are replaced by their DECOMPOSE, staged at the operand types.

What is left has a route; anything else is an error that names the routes tried, before any code is made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from infini.compiler.passes import inline, rewrite
from infini.core import errors, ir, primitive, trace
from infini.core.ir import Equation, Program, Var


def decompose(program: Program, has_route: Callable[[Equation], bool], *, backend: str) -> Program:
    """The program, and those inside it, in operations that `has_route` accepts.

    Args:
        program: program to change.
        has_route: whether the backend lowers an equation itself.
        backend: name of the backend, for the error.

    Raises:
        LoweringError: an operation has neither a route nor a decomposition.
    """

    def walk(inner: Program) -> Program:
        builder = ir.Builder()
        env: dict[Var, Var] = {param: param for param in inner.params}
        for var, constant in inner.consts:
            env[var] = builder.constant(constant.array)
        for equation in inner.equations:
            operands = tuple(env[v] for v in equation.inputs)
            moved = Equation(
                equation.op,
                operands,
                rewrite.map_programs(equation.attrs, walk),
                equation.outputs,
                equation.where,
                equation.via,
            )
            if has_route(moved):
                builder.append(moved)
                env.update((v, v) for v in equation.outputs)
                continue
            body = walk(inline.inline_calls(definition(moved, backend)))
            start = len(builder.equations)
            results = ir.inline(builder, body, operands)
            _mark(builder, start, moved)
            env.update(zip(equation.outputs, results, strict=True))
        return builder.build(inner.params, [env[v] for v in inner.results], name=inner.name)

    return walk(program)


def _mark(builder: ir.Builder, start: int, cause: Equation) -> None:
    """Give the equations from `start` on the line of the operation they stand for."""
    for i in range(start, len(builder.equations)):
        e = builder.equations[i]
        builder.equations[i] = Equation(
            e.op, e.inputs, e.attrs, e.outputs, cause.where, f"decompose/{cause.op.name}"
        )


def definition(equation: Equation, backend: str) -> Program:
    """The program that defines an equation's operation.

    Raises:
        LoweringError: there is none.
    """
    if not equation.op.has(primitive.DECOMPOSE):
        types = ", ".join(str(v.type) for v in equation.inputs)
        raise errors.LoweringError(
            f"the {backend} backend has no route for {equation.op.name!r}",
            got=f"operands {types}",
            expected="a lowering of its own, a scalar function of its family, or a DECOMPOSE rule",
            fix=primitive.DECOMPOSE.hint,
            where=equation.where,
        )
    return _staged(equation.op, tuple(v.type for v in equation.inputs), equation.attrs)


@functools.lru_cache(maxsize=1024)
def _staged(op: primitive.Primitive, types: tuple[ir.ArrayType, ...], attrs: ir.Attrs) -> Program:
    rule = op.rule(primitive.DECOMPOSE)
    return trace.stage(lambda *xs: rule(*xs, **attrs), types, name=op.name).program
