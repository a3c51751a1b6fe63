"""The derivative of a composite that brings its own VJP, as one linear operation.

Forwards it is the derivative of the composite's definition, its `body`; backwards it is the composite's VJP.
So a VJP that is faster than what transposition would give costs nothing of forward mode.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from infini.core import host, ir, primitive, trace
from infini.core.ir import Program, Var
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax.calls import (
    Context,
    Flags,
    MaybeValues,
    Values,
    jvp_body,
    linearize_call,
    reference_body,
    type_body,
)
from infini.lax.custom_rules import Backward, batched_backward
from infini.lax.families import is_linear


def bind_tangent(
    ctx: Context,
    body: Program,
    backward: Backward,
    key: Hashable,
    residuals: Values,
    primals: Values,
    tangents: Values,
) -> Sequence[Value]:
    """Stage the tangents of a composite.

    Args:
        ctx: the linearization.
        body: from the primals and the tangents to the tangents of the results.
        backward: from the residuals and cotangents of those results to the cotangents of the tangents.
        key: what `backward` depends on.
        residuals: what the forward rule of the composite's VJP saved.
        primals: operands of the composite.
        tangents: those of the operands that have one.

    Returns:
        Tangents of the results.
    """
    saved = tuple(Var(x.type) for x in residuals)  # the body needs none of them
    bound: Sequence[Value] = ctx.bind_linear(
        composite_tangent_p,
        *residuals,
        *primals,
        *tangents,
        body=body.replace(params=(*saved, *body.params)),
        backward=host.register(backward, key=key),
        num_residuals=len(residuals),
        num_primals=len(primals),
    )
    return bound


def _decompose(*operands: Value, body: Program, **_: object) -> Sequence[Value]:
    return trace.evaluate(body, operands)


def _transpose(ctx: Context, cts: MaybeValues, args: Sequence[Any], attrs: ir.Attrs) -> MaybeValues:
    count = attrs["num_residuals"]
    known = count + attrs["num_primals"]
    found = host.lookup(attrs["backward"])(args[:count], cts)
    return (None,) * known + tuple(
        ct if is_linear(a) else None for a, ct in zip(args[known:], found, strict=True)
    )


def _batch(ctx: Context, args: Values, batched: Flags, attrs: ir.Attrs) -> tuple[Values, Flags]:
    count = attrs["num_residuals"]
    every = (True,) * len(attrs["body"].results)
    body, _ = ctx.batch_program(attrs["body"], batched, force=every)
    moved = batched[count + attrs["num_primals"] :]
    backward = batched_backward(ctx.axis, host.lookup(attrs["backward"]), batched[:count], moved)
    changed = attrs.replace(body=body, backward=host.register(backward))
    return trace.bind_attrs(composite_tangent_p, args, changed), every


composite_tangent_p: Primitive = primitive.register(
    Primitive(
        "composite_tangent",
        None,
        {
            primitive.TYPE: type_body,
            primitive.REFERENCE: reference_body,
            primitive.DECOMPOSE: _decompose,
            primitive.JVP: jvp_body("call"),
            primitive.LINEARIZE: linearize_call,
            primitive.TRANSPOSE: _transpose,
            primitive.BATCH: _batch,
        },
        is_higher_order=True,
    )
)
