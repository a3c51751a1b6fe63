"""Rematerialisation: the operation `checkpoint`.

The primal runs as it is. The linear part holds the operands and the values that the policy saves, and
computes the other residuals again, behind a barrier, when it is transposed (design 4a.5).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infini.core import ir, primitive, trace
from infini.core.ir import Program
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import dead_code, rematerialisation
from infini.lax.calls import (
    Context,
    Flags,
    MaybeValues,
    Values,
    batch_body,
    jvp_body,
    merge,
    nonzero,
    reference_body,
    transpose_body,
    type_body,
)
from infini.lax.checkpoint_policies import policy_of


@dataclass(frozen=True, slots=True)
class _Split:
    """The two programs of a checkpoint.

    Args:
        saving: from the operands to the results, then the saved values.
        linear: from the operands marked in `kept`, the saved values and the tangents to the result tangents.
        kept: which operands `linear` needs.
    """

    saving: Program
    linear: Program
    kept: Flags


def _linearize(
    ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs
) -> tuple[Values, MaybeValues]:
    count = len(attrs["body"].results)
    parts = ctx.linearize_program(attrs["body"], nonzero(tangents))
    if not any(parts.out_nonzero):
        return ctx.bind_primal(checkpoint_p, *primals, **attrs), merge(parts.out_nonzero, ())
    split = _split(parts, count, attrs.get("policy"))
    found = ctx.bind_primal(checkpoint_p, *primals, **attrs.replace(body=split.saving))
    kept = [p for p, flag in zip(primals, split.kept, strict=True) if flag]
    given = [t for t in tangents if t is not None]
    moved = ctx.bind_linear(checkpoint_p, *kept, *found[count:], *given, **attrs.replace(body=split.linear))
    return found[:count], merge(parts.out_nonzero, moved)


@functools.lru_cache(maxsize=1024)
def _split(parts: Any, count: int, policy: Any) -> _Split:
    """Split a linearized body, `transforms.linear.LinearizedProgram`, by a policy."""
    halves = rematerialisation.split(parts.primal, policy_of(policy), count)
    num_params = len(parts.primal.params)
    num_known = num_params + halves.num_saved

    def run(*args: Value) -> Sequence[Value]:
        computed = trace.evaluate(halves.using, args[:num_known])
        residuals = parts.residual_values(args[:num_params], computed)
        return trace.evaluate(parts.linear, [*residuals, *args[num_known:]])

    types = [*halves.using.in_types, *parts.linear.in_types[len(parts.known) :]]
    staged = trace.stage(run, types, name=parts.linear.name)
    assert not staged.captures, "a program captures nothing"
    linear, used = dead_code.without_dead(staged.program)
    params = [p for p, flag in zip(linear.params[:num_params], used, strict=False) if flag]
    return _Split(
        halves.saving, linear.replace(params=(*params, *linear.params[num_params:])), used[:num_params]
    )


checkpoint_p: Primitive = primitive.register(
    Primitive(
        "checkpoint",
        None,
        {
            primitive.TYPE: type_body,
            primitive.REFERENCE: reference_body,
            primitive.JVP: jvp_body("checkpoint"),
            primitive.LINEARIZE: _linearize,
            primitive.TRANSPOSE: transpose_body(
                lambda: checkpoint_p, fence=lambda attrs: bool(attrs.get("prevent_cse", True))
            ),
            primitive.BATCH: batch_body(lambda: checkpoint_p),
        },
        is_higher_order=True,
    )
)
