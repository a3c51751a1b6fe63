"""Transposition: running a program that is linear in some parameters backwards (design 4a.4)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from infini.core import errors, ir, primitive, trace, value
from infini.core.ir import Program
from infini.core.value import Value
from infini.lax import families
from infini.lax.families import LinearInput, is_linear

Flags = tuple[bool, ...]


class Transposer:
    """The `ctx` of TRANSPOSE rules of higher-order operations."""

    def transpose_program(
        self, program: Program, linear: Flags, nonzero: Flags, force: Flags = ()
    ) -> tuple[Program, Flags]:
        """See `transpose_program`."""
        return transpose_program(program, linear, nonzero, force)


_TRANSPOSER = Transposer()


def backward(
    program: Program, args: Sequence[Value | LinearInput], cotangents: Sequence[Value | None]
) -> list[Value | None]:
    """Cotangents of the parameters that are `LinearInput`, by running a linear program backwards.

    Equations without linear inputs (recomputed values) run forwards first. Everything is bound under the
    current interpreter.

    Args:
        program: program that is linear in the parameters marked by `args`.
        args: values of the other parameters, and `LinearInput` for the linear ones.
        cotangents: one per result; None is zero.

    Returns:
        One cotangent per parameter; None where it is zero or the parameter is not linear.
    """
    env: dict[ir.Var, Any] = dict(zip(program.params, args, strict=True))
    for var, constant in program.consts:
        env[var] = value.Literal(constant.array, weak=False)
    linear_equations = []
    for equation in program.equations:
        inputs = [env[v] for v in equation.inputs]
        if any(is_linear(x) for x in inputs):
            linear_equations.append((equation, inputs))
            env.update((v, LinearInput(v.type)) for v in equation.outputs)
        else:
            with trace.at_line(equation.where):
                env.update(
                    zip(equation.outputs, trace.bind_attrs(equation.op, inputs, equation.attrs), strict=True)
                )
    cts: dict[ir.Var, Value] = {}

    def accumulate(var: ir.Var, ct: Value | None) -> None:
        if ct is not None and is_linear(env[var]):
            cts[var] = trace.bind1(primitive.by_name("add"), cts[var], ct) if var in cts else ct

    for var, ct in zip(program.results, cotangents, strict=True):
        accumulate(var, ct)
    for equation, inputs in reversed(linear_equations):
        given = [cts.pop(v, None) for v in equation.outputs]
        if all(ct is None for ct in given):
            continue
        with trace.at_line(equation.where):
            for var, x, ct in zip(equation.inputs, inputs, _transposed(equation, inputs, given), strict=True):
                if ct is not None and is_linear(x):
                    accumulate(var, families.sum_to(ct, x.shape))
    return [cts.get(p) if is_linear(a) else None for p, a in zip(program.params, args, strict=True)]


def _transposed(
    equation: ir.Equation, inputs: Sequence[Any], cotangents: Sequence[Value | None]
) -> Sequence[Value | None]:
    op = equation.op
    if not op.has(primitive.TRANSPOSE):
        raise errors.MissingRuleError(
            f"operation {op.name!r} is not linear, or has no transpose rule",
            got=", ".join(str(x.type) for x in inputs),
            expected="a function that is linear in its arguments",
            fix="use vjp, which transposes the derivative of a function",
            where=equation.where,
        )
    rule = op.rule(primitive.TRANSPOSE)
    if op.is_higher_order:
        return rule(_TRANSPOSER, cotangents, inputs, equation.attrs)
    ct = cotangents[0] if len(cotangents) == 1 else tuple(cotangents)
    return rule(ct, *inputs, **equation.attrs)


@functools.lru_cache(maxsize=4096)
def transpose_program(
    program: Program, linear: Flags, nonzero: Flags, force: Flags = ()
) -> tuple[Program, Flags]:
    """The transpose of a program that is linear in some parameters.

    Args:
        program: program to transpose.
        linear: which parameters it is linear in.
        nonzero: which results have a cotangent.
        force: linear parameters whose cotangent is given even when it is zero; all False when empty.

    Returns:
        The program from the other parameters and the nonzero cotangents to the cotangents of the linear
        parameters, and
        which of these it gives.
    """
    flags: list[Flags] = []
    wanted = force or (False,) * sum(linear)

    def run(*args: Value) -> Sequence[Value]:
        known = iter(args)
        inputs: list[Value | LinearInput] = [
            LinearInput(p.type) if flag else next(known)
            for p, flag in zip(program.params, linear, strict=True)
        ]
        cts = [next(known) if flag else None for flag in nonzero]
        every = backward(program, inputs, cts)
        found = [
            families.zeros(p.type) if ct is None and wish else ct
            for (p, ct), wish in zip(
                [(p, ct) for p, ct, flag in zip(program.params, every, linear, strict=True) if flag],
                wanted,
                strict=True,
            )
        ]
        flags.append(tuple(ct is not None for ct in found))
        return [ct for ct in found if ct is not None]

    types = [p.type for p, flag in zip(program.params, linear, strict=True) if not flag]
    types += [v.type for v, flag in zip(program.results, nonzero, strict=True) if flag]
    staged = trace.stage(run, types, name=f"{program.name}_transposed")
    assert not staged.captures, "a program captures nothing"
    return staged.program, flags[0]
