"""Calls of programs: `call` (nested jit) and the barrier, with what all operations that hold programs share.

Rules of higher-order operations receive the running transformation as `ctx`, which applies itself to their
bodies, so this file knows no transformation. See `transforms` for `jvp_program`, `linearize_program`,
`transpose_program` and `batch_program`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from infini.core import errors, ir, primitive, trace, tree
from infini.core.ir import ArrayType, Program
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax.families import is_linear

Context = Any  # Any: the interpreter of a transformation, which lives above
Flags = tuple[bool, ...]
Values = Sequence[Value]
MaybeValues = Sequence[Value | None]


def merge(flags: Flags, present: Sequence[Any], absent: Any = None) -> tuple[Any, ...]:
    """Items of `present` where flags are set, `absent` elsewhere."""
    items = iter(present)
    return tuple(next(items) if flag else absent for flag in flags)


def nonzero(tangents: Sequence[object]) -> Flags:
    """Which tangents are not symbolic zeros."""
    return tuple(t is not None for t in tangents)


def type_body(*types: ArrayType, body: Program, **_: object) -> tuple[ArrayType, ...]:
    """TYPE rule of operations that run their `body` on their operands."""
    check_operands("call", body, types)
    return body.out_types


def check_operands(name: str, body: Program, types: Sequence[ArrayType]) -> None:
    """Refuse operands other than the parameters of a body.

    Raises:
        TypeMismatchError: they differ.
    """
    if tuple(types) != body.in_types:
        raise errors.TypeMismatchError(
            f"{name}: operands do not match the body", got=str(tuple(types)), expected=str(body.in_types)
        )


def reference_body(evaluate: Any, *arrays: np.ndarray, body: Program, **_: object) -> Any:
    """REFERENCE rule of operations that run their `body`."""
    return evaluate(body, arrays)


def jvp_body(op_name: str) -> Any:  # Any: a rule
    """JVP rule: the same operation on the derivative of its body."""

    def rule(
        ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs
    ) -> tuple[Values, MaybeValues]:
        body, out_flags = ctx.jvp_program(attrs["body"], nonzero(tangents))
        given = [t for t in tangents if t is not None]
        results = trace.bind(primitive.by_name(op_name), *primals, *given, **attrs.replace(body=body))
        count = len(attrs["body"].results)
        return results[:count], merge(out_flags, results[count:])

    return rule


def linearize_call(
    ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs
) -> tuple[Values, MaybeValues]:
    """LINEARIZE rule: the body split in two calls."""
    body: Program = attrs["body"]
    parts = ctx.linearize_program(body, nonzero(tangents))
    options = {"name": attrs["name"]} if "name" in attrs else {}
    results = ctx.bind_primal(call_p, *primals, body=parts.primal, **options)
    outs, extra = results[: len(body.results)], results[len(body.results) :]
    residuals = parts.residual_values(primals, extra)
    given = [t for t in tangents if t is not None]
    out_tangents = ctx.bind_linear(call_p, *residuals, *given, body=parts.linear, **options)
    return outs, merge(parts.out_nonzero, out_tangents)


def transpose_body(op: Callable[[], Primitive], fence: Callable[[ir.Attrs], bool]) -> Any:  # Any: a rule
    """TRANSPOSE rule: the same operation on the transposed body, fenced where `fence` says so."""

    def rule(ctx: Context, cts: MaybeValues, args: Sequence[Any], attrs: ir.Attrs) -> MaybeValues:
        linear = tuple(is_linear(a) for a in args)
        body, out_flags = ctx.transpose_program(attrs["body"], linear, nonzero(cts))
        known = [a for a in args if not is_linear(a)]
        given = [ct for ct in cts if ct is not None]
        if fence(attrs):
            body = _fenced(body, len(known))
        found = trace.bind(op(), *known, *given, **attrs.replace(body=body))
        return merge(linear, merge(out_flags, found))

    return rule


def batch_body(op: Callable[[], Primitive]) -> Any:  # Any: a rule
    """BATCH rule: the same operation on the mapped body."""

    def rule(ctx: Context, args: Values, batched: Flags, attrs: ir.Attrs) -> tuple[Values, Flags]:
        body, out_flags = ctx.batch_program(attrs["body"], batched)
        return trace.bind(op(), *args, **attrs.replace(body=body)), out_flags

    return rule


call_p: Primitive = primitive.register(
    Primitive(
        "call",
        None,
        {
            primitive.TYPE: type_body,
            primitive.REFERENCE: reference_body,
            primitive.JVP: jvp_body("call"),
            primitive.LINEARIZE: linearize_call,
            primitive.TRANSPOSE: transpose_body(lambda: call_p, fence=lambda attrs: False),
            primitive.BATCH: batch_body(lambda: call_p),
        },
        is_higher_order=True,
    )
)


# --- optimization_barrier --------------------------------------------------------------------


def _jvp_barrier(
    ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs
) -> tuple[Values, MaybeValues]:
    given = [t for t in tangents if t is not None]
    results = trace.bind(optimization_barrier_p, *primals)
    moved = trace.bind(optimization_barrier_p, *given) if given else ()
    return results, merge(nonzero(tangents), moved)


def _linearize_barrier(
    ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs
) -> tuple[Values, MaybeValues]:
    given = [t for t in tangents if t is not None]
    moved = ctx.bind_linear(optimization_barrier_p, *given) if given else ()
    return ctx.bind_primal(optimization_barrier_p, *primals), merge(nonzero(tangents), moved)


def _transpose_barrier(ctx: Context, cts: MaybeValues, args: Sequence[Any], attrs: ir.Attrs) -> MaybeValues:
    given = [ct for ct in cts if ct is not None]
    return merge(nonzero(cts), trace.bind(optimization_barrier_p, *given))


optimization_barrier_p: Primitive = primitive.register(
    Primitive(
        "optimization_barrier",
        None,
        {
            primitive.TYPE: lambda *types: types,
            primitive.REFERENCE: lambda evaluate, *arrays: arrays,
            primitive.JVP: _jvp_barrier,
            primitive.LINEARIZE: _linearize_barrier,
            primitive.TRANSPOSE: _transpose_barrier,
            primitive.BATCH: lambda ctx, args, batched, attrs: (
                trace.bind(optimization_barrier_p, *args),
                batched,
            ),
            primitive.WEAK: lambda weak, attrs: weak,
        },
        is_higher_order=True,
    )
)


def barrier(*operands: Value) -> tuple[Value, ...]:
    """Values that the compiler computes together: nothing is moved or merged across."""
    return trace.bind(optimization_barrier_p, *operands) if operands else ()


def optimization_barrier(operand: Any) -> Any:  # Any: pytrees
    """A tree of values that the compiler computes together: nothing is moved or merged across."""
    leaves, treedef = tree.flatten(operand)
    return tree.unflatten(treedef, barrier(*(trace.as_value(x) for x in leaves)))


def _fenced(body: Program, num_known: int) -> Program:
    """`body` with its first parameters behind a barrier tied to the others, so recomputation is not
    merged with the original.
    """

    def run(*args: Value) -> Sequence[Value]:
        return trace.evaluate(body, barrier(*args))

    return body if num_known == 0 else trace.stage(run, body.in_types, name=body.name).program
