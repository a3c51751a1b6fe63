"""Calls of programs: `call` (nested jit), `checkpoint` (rematerialisation), custom derivative rules, and
the barrier.

Rules of higher-order operations receive the running transformation as `ctx`, which applies itself to
their bodies, so this
file knows no transformation. See `transforms` for `jvp_program`, `linearize_program`,
`transpose_program`, `batch_program`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from infini.core import errors, host, ir, primitive, trace, tree
from infini.core.ir import ArrayType, Program
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import families
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


def _type_body(*types: ArrayType, body: Program, **_: object) -> tuple[ArrayType, ...]:
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


def _reference_body(evaluate: Any, *arrays: np.ndarray, body: Program, **_: object) -> Any:
    return evaluate(body, arrays)


def _jvp_body(op_name: str) -> Any:  # Any: a rule
    def rule(
        ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs
    ) -> tuple[Values, MaybeValues]:
        body, out_flags = ctx.jvp_program(attrs["body"], nonzero(tangents))
        given = [t for t in tangents if t is not None]
        results = trace.bind(primitive.by_name(op_name), *primals, *given, **attrs.replace(body=body))
        count = len(attrs["body"].results)
        return results[:count], merge(out_flags, results[count:])

    return rule


def _linearize_call(
    ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs
) -> tuple[Values, MaybeValues]:
    body: Program = attrs["body"]
    parts = ctx.linearize_program(body, nonzero(tangents))
    results = ctx.bind_primal(call_p, *primals, **attrs.replace(body=parts.primal))
    outs, extra = results[: len(body.results)], results[len(body.results) :]
    residuals = parts.residual_values(primals, extra)
    given = [t for t in tangents if t is not None]
    out_tangents = ctx.bind_linear(call_p, *residuals, *given, **attrs.replace(body=parts.linear))
    return outs, merge(parts.out_nonzero, out_tangents)


def _transpose_body(op: Callable[[], Primitive], fence: bool) -> Any:  # Any: a rule
    def rule(ctx: Context, cts: MaybeValues, args: Sequence[Any], attrs: ir.Attrs) -> MaybeValues:
        linear = tuple(is_linear(a) for a in args)
        body, out_flags = ctx.transpose_program(attrs["body"], linear, nonzero(cts))
        known = [a for a in args if not is_linear(a)]
        given = [ct for ct in cts if ct is not None]
        if fence:
            body = _fenced(body, len(known))
        found = trace.bind(op(), *known, *given, **attrs.replace(body=body))
        return merge(linear, merge(out_flags, found))

    return rule


def _batch_body(op: Callable[[], Primitive]) -> Any:  # Any: a rule
    def rule(ctx: Context, args: Values, batched: Flags, attrs: ir.Attrs) -> tuple[Values, Flags]:
        body, out_flags = ctx.batch_program(attrs["body"], batched)
        return trace.bind(op(), *args, **attrs.replace(body=body)), out_flags

    return rule


call_p: Primitive = primitive.register(
    Primitive(
        "call",
        None,
        {
            primitive.TYPE: _type_body,
            primitive.REFERENCE: _reference_body,
            primitive.JVP: _jvp_body("call"),
            primitive.LINEARIZE: _linearize_call,
            primitive.TRANSPOSE: _transpose_body(lambda: call_p, fence=False),
            primitive.BATCH: _batch_body(lambda: call_p),
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


def _fenced(body: Program, num_known: int) -> Program:
    """`body` with its first parameters behind a barrier tied to the others, so recomputation is not
    merged with the original.
    """

    def run(*args: Value) -> Sequence[Value]:
        return trace.evaluate(body, barrier(*args))

    return body if num_known == 0 else trace.stage(run, body.in_types, name=body.name).program


# --- checkpoint ------------------------------------------------------------------------------


def _linearize_checkpoint(
    ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs
) -> tuple[Values, MaybeValues]:
    # The primal runs as it is; the linear part holds the inputs and recomputes the rest when it is
    # transposed.
    body: Program = attrs["body"]
    jvp, out_flags = ctx.jvp_program(body, nonzero(tangents))
    outs = ctx.bind_primal(checkpoint_p, *primals, **attrs)
    if not any(out_flags):
        return outs, merge(out_flags, ())
    tangents_only = jvp.replace(results=jvp.results[len(body.results) :])
    given = [t for t in tangents if t is not None]
    moved = ctx.bind_linear(checkpoint_p, *primals, *given, **attrs.replace(body=tangents_only))
    return outs, merge(out_flags, moved)


checkpoint_p: Primitive = primitive.register(
    Primitive(
        "checkpoint",
        None,
        {
            primitive.TYPE: _type_body,
            primitive.REFERENCE: _reference_body,
            primitive.JVP: _jvp_body("checkpoint"),
            primitive.LINEARIZE: _linearize_checkpoint,
            primitive.TRANSPOSE: _transpose_body(lambda: checkpoint_p, fence=True),
            primitive.BATCH: _batch_body(lambda: checkpoint_p),
        },
        is_higher_order=True,
    )
)


# --- custom rules ------------------------------------------------------------------------------


def _refuse_forward_mode(ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs) -> Any:
    if not any(nonzero(tangents)):
        return trace.bind(custom_vjp_call_p, *primals, **attrs), (None,) * len(attrs["body"].results)
    raise errors.TypeMismatchError(
        "cannot apply forward-mode differentiation (jvp) to a function with a custom VJP only",
        fix="use grad, vjp or jacrev, or give the function a custom_jvp rule instead",
    )


def _linearize_custom_vjp(
    ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs
) -> tuple[Values, MaybeValues]:
    body: Program = attrs["body"]
    forward = host.lookup(attrs["forward"])
    with trace.running(ctx.parent):
        outs, residuals = forward(*primals)
    return outs, bind_custom_linear(ctx, attrs["backward"], residuals, primals, tangents, body.out_types)


def bind_custom_linear(
    ctx: Context,
    backward: ir.HostFunction,
    residuals: Values,
    primals: Values,
    tangents: MaybeValues,
    out_types: Sequence[ArrayType],
) -> Values:
    """Tangents of a function that has only a VJP: an equation that can be transposed and nothing else."""
    with trace.running(ctx.linear):
        filled = [families.zeros(p.type) if t is None else t for p, t in zip(primals, tangents, strict=True)]
    return ctx.bind_linear(
        custom_vjp_linear_p,
        *residuals,
        *filled,
        backward=backward,
        num_residuals=len(residuals),
        out_types=tuple(out_types),
    )


def _batch_custom_vjp(ctx: Context, args: Values, batched: Flags, attrs: ir.Attrs) -> tuple[Values, Flags]:
    forward, backward = host.lookup(attrs["forward"]), host.lookup(attrs["backward"])
    moved = families.whole_batches(ctx.size, args, batched)
    body, out_flags = ctx.batch_program(attrs["body"], (True,) * len(args), force=True)
    size, axis_name = ctx.size, ctx.axis_name

    def batched_forward(*primals: Value) -> tuple[Values, Values]:
        counts: list[int] = []

        def flat(*inner: Value) -> Values:
            outs, residuals = forward(*inner)
            counts.append(len(outs))
            return [*outs, *residuals]

        found = ctx.batch_function(flat, primals, size, axis_name)
        return found[: counts[0]], found[counts[0] :]

    def batched_backward(residuals: Values, cts: Values) -> Values:
        count = len(residuals)
        return ctx.batch_function(
            lambda *both: backward(both[:count], both[count:]), [*residuals, *cts], size, axis_name
        )

    changed = attrs.replace(
        body=body,
        forward=host.register(batched_forward, key=("batched", attrs["forward"].id, size, axis_name)),
        backward=host.register(batched_backward, key=("batched", attrs["backward"].id, size, axis_name)),
    )
    return trace.bind(custom_vjp_call_p, *moved, **changed), out_flags


custom_vjp_call_p: Primitive = primitive.register(
    Primitive(
        "custom_vjp_call",
        None,
        {
            primitive.TYPE: _type_body,
            primitive.REFERENCE: _reference_body,
            primitive.JVP: _refuse_forward_mode,
            primitive.LINEARIZE: _linearize_custom_vjp,
            primitive.BATCH: _batch_custom_vjp,
        },
        is_higher_order=True,
    )
)


def _transpose_custom(ctx: Context, cts: MaybeValues, args: Sequence[Any], attrs: ir.Attrs) -> MaybeValues:
    count = attrs["num_residuals"]
    filled = [families.zeros(t) if ct is None else ct for t, ct in zip(attrs["out_types"], cts, strict=True)]
    found = host.lookup(attrs["backward"])(args[:count], filled)
    return (None,) * count + tuple(
        ct if is_linear(a) else None for a, ct in zip(args[count:], found, strict=True)
    )


def _batch_custom_linear(ctx: Context, args: Values, batched: Flags, attrs: ir.Attrs) -> tuple[Values, Flags]:
    moved = families.whole_batches(ctx.size, args, batched)
    backward, size, axis_name = host.lookup(attrs["backward"]), ctx.size, ctx.axis_name

    def batched_backward(residuals: Values, cts: Values) -> Values:
        count = len(residuals)
        return ctx.batch_function(
            lambda *both: backward(both[:count], both[count:]), [*residuals, *cts], size, axis_name
        )

    changed = attrs.replace(
        backward=host.register(batched_backward, key=("batched", attrs["backward"].id, size, axis_name)),
        out_types=tuple(t.update(shape=(size, *t.shape)) for t in attrs["out_types"]),
    )
    return trace.bind(custom_vjp_linear_p, *moved, **changed), (True,) * len(attrs["out_types"])


custom_vjp_linear_p: Primitive = primitive.register(
    Primitive(
        "custom_vjp_linear",
        None,
        {
            primitive.TYPE: lambda *types, backward, num_residuals, out_types: out_types,
            primitive.TRANSPOSE: _transpose_custom,
            primitive.BATCH: _batch_custom_linear,
        },
        is_higher_order=True,
    )
)


def _jvp_custom(
    ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs
) -> tuple[Values, MaybeValues]:
    if not any(nonzero(tangents)):
        return trace.bind(custom_jvp_call_p, *primals, **attrs), (None,) * len(attrs["body"].results)
    filled = [families.zeros(p.type) if t is None else t for p, t in zip(primals, tangents, strict=True)]
    return host.lookup(attrs["rule"])(primals, filled)


def _batch_custom_jvp(ctx: Context, args: Values, batched: Flags, attrs: ir.Attrs) -> tuple[Values, Flags]:
    rule, size, axis_name = host.lookup(attrs["rule"]), ctx.size, ctx.axis_name
    moved = families.whole_batches(size, args, batched)
    body, out_flags = ctx.batch_program(attrs["body"], (True,) * len(args), force=True)

    def batched_rule(primals: Values, tangents: Values) -> tuple[Values, Values]:
        count = len(primals)
        num_results: list[int] = []

        def flat(*both: Value) -> Values:
            outs, out_tangents = rule(both[:count], both[count:])
            num_results.append(len(outs))
            return [*outs, *out_tangents]

        found = ctx.batch_function(flat, [*primals, *tangents], size, axis_name)
        return found[: num_results[0]], found[num_results[0] :]

    reference = host.register(batched_rule, key=("batched", attrs["rule"].id, size, axis_name))
    return trace.bind(custom_jvp_call_p, *moved, **attrs.replace(body=body, rule=reference)), out_flags


custom_jvp_call_p: Primitive = primitive.register(
    Primitive(
        "custom_jvp_call",
        None,
        {
            primitive.TYPE: _type_body,
            primitive.REFERENCE: _reference_body,
            primitive.JVP: _jvp_custom,
            primitive.BATCH: _batch_custom_jvp,
        },
        is_higher_order=True,
    )
)


def optimization_barrier(operand: Any) -> Any:  # Any: pytrees
    """A tree of values that the compiler computes together: nothing is moved or merged across."""
    leaves, treedef = tree.flatten(operand)
    return tree.unflatten(treedef, barrier(*(trace.as_value(x) for x in leaves)))
