"""The operation behind `custom_linear_solve`: the solution of a linear equation by a program.

Its attributes are four programs of (constants, vector): the linear function, its transpose, and a solver for
each; the last three may be followed by auxiliary results. The derivative of a solution is the solution of the
same equation for another right-hand side, and its transpose that of the transposed equation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import errors, ir, primitive, trace
from infini.core.ir import ArrayType, Program
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import families
from infini.lax.calls import Context, Flags, MaybeValues, Values, call_p, check_operands, merge, nonzero
from infini.lax.families import is_linear


def _type(
    *types: ArrayType,
    matvec: Program,
    solve: Program,
    vecmat: Program | None,
    transpose_solve: Program | None,
    num_consts: int,
) -> tuple[ArrayType, ...]:
    check_operands("linear_solve", solve, types)
    return solve.out_types


def _reference(evaluate: Any, *arrays: np.ndarray, solve: Program, **_: object) -> Any:
    return evaluate(solve, arrays)


def _decompose(*operands: Value, solve: Program, **_: object) -> Sequence[Value]:
    return trace.evaluate(solve, operands)


def _right_hand_side(given: Sequence[Value | None], moved: Sequence[Value | None]) -> list[Value | None]:
    """Tangents of the vector less those of the linear function."""
    subtract, negate = primitive.by_name("sub"), primitive.by_name("neg")
    found: list[Value | None] = []
    for b, m in zip(given, moved, strict=True):
        if m is None:
            found.append(b)
        else:
            found.append(trace.bind1(negate, m) if b is None else trace.bind1(subtract, b, m))
    return found


def _jvp(ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs) -> tuple[Values, MaybeValues]:
    count = attrs["num_consts"]
    results = trace.bind_attrs(linear_solve_p, primals, attrs)
    size = len(primals) - count
    x, flags = results[:size], nonzero(tangents[:count])
    moved: Sequence[Value | None] = (None,) * size
    if any(flags):
        jvp, out_flags = ctx.jvp_program(attrs["matvec"], (*flags, *(False,) * size))
        given = [t for t in tangents[:count] if t is not None]
        found = trace.bind(call_p, *primals[:count], *x, *given, body=jvp)
        moved = merge(out_flags, found[size:])
    rhs = _right_hand_side(tangents[count:], moved)
    if not any(nonzero(rhs)):
        return results, (None,) * len(results)
    full = families.filled(rhs, [x.type for x in primals[count:]])
    solved = trace.bind_attrs(linear_solve_p, [*primals[:count], *full], attrs)
    return results, [*solved[:size], *(None,) * (len(results) - size)]


def _linearize(
    ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs
) -> tuple[Values, MaybeValues]:
    count = attrs["num_consts"]
    results = ctx.bind_primal(linear_solve_p, *primals, **attrs)
    size = len(primals) - count
    x, flags = results[:size], nonzero(tangents[:count])
    moved: Sequence[Value | None] = (None,) * size
    if any(flags):
        parts = ctx.linearize_program(attrs["matvec"], (*flags, *(False,) * size))
        params = [*primals[:count], *x]
        extra = ctx.bind_primal(call_p, *params, body=parts.primal)[size:]
        given = [t for t in tangents[:count] if t is not None]
        if any(parts.out_nonzero):
            residuals = parts.residual_values(params, extra)
            found = ctx.bind_linear(call_p, *residuals, *given, body=parts.linear)
            moved = merge(parts.out_nonzero, found)
    with trace.running(ctx.linear):
        rhs = _right_hand_side(tangents[count:], moved)
        if not any(nonzero(rhs)):
            return results, (None,) * len(results)
        full = families.filled(rhs, [x.type for x in primals[count:]])
    solved = ctx.bind_linear(linear_solve_p, *primals[:count], *full, **attrs)
    return results, [*solved[:size], *(None,) * (len(results) - size)]


def _transpose(ctx: Context, cts: MaybeValues, args: Sequence[Any], attrs: ir.Attrs) -> MaybeValues:
    if attrs["transpose_solve"] is None:
        raise errors.TypeMismatchError(
            "reverse-mode differentiation of custom_linear_solve needs a solver of the transposed equation",
            fix="pass transpose_solve=, or symmetric=True when the function is its own transpose",
        )
    count = attrs["num_consts"]
    size = len(args) - count
    full = families.filled(cts[:size], [a.type for a in args[count:]])
    turned = attrs.replace(
        matvec=attrs["vecmat"],
        vecmat=attrs["matvec"],
        solve=attrs["transpose_solve"],
        transpose_solve=attrs["solve"],
    )
    found = trace.bind_attrs(linear_solve_p, [*args[:count], *full], turned)
    return (None,) * count + tuple(
        ct if is_linear(a) else None for a, ct in zip(args[count:], found[:size], strict=True)
    )


def _batch(ctx: Context, args: Values, batched: Flags, attrs: ir.Attrs) -> tuple[Values, Flags]:
    count = attrs["num_consts"]
    flags = (*batched[:count], *(True,) * (len(args) - count))
    names = ("matvec", "vecmat", "solve", "transpose_solve")
    programs = {
        name: ctx.batch_program(attrs[name], flags, force=True)[0]
        for name in names
        if attrs[name] is not None
    }
    operands = [*args[:count], *families.whole_batches(ctx.size, args[count:], batched[count:])]
    found = trace.bind_attrs(linear_solve_p, operands, attrs.replace(**programs))
    return found, (True,) * len(found)


linear_solve_p: Primitive = primitive.register(
    Primitive(
        "linear_solve",
        None,
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.DECOMPOSE: _decompose,
            primitive.JVP: _jvp,
            primitive.LINEARIZE: _linearize,
            primitive.TRANSPOSE: _transpose,
            primitive.BATCH: _batch,
        },
        is_higher_order=True,
    )
)
