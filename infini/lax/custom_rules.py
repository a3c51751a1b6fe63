"""Functions with derivative rules of their own, as operations: what `custom_vjp` and `custom_jvp` stage.

The body is what runs; the rules are host functions on flat values, found again by `host.lookup`. Outside of
staged programs `transforms.custom` calls the rules itself and nothing here is involved.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

from infini.core import dtypes, errors, host, ir, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import families
from infini.lax.calls import Context, Flags, MaybeValues, Values, merge, nonzero, reference_body, type_body
from infini.lax.families import is_linear

# Cotangents of the primals from residuals and cotangents of the results; None is zero.
Backward: TypeAlias = Callable[[Values, MaybeValues], MaybeValues]
# A mapped axis: `transforms.batch_tracing.Axis`. Rules hold it and no interpreter, which would hold them.
Axis: TypeAlias = Any
# Results, residuals and backward rule, from primals and which of them have a tangent.
Forward: TypeAlias = Callable[[Values, Flags], tuple[Values, Values, Backward]]
# Results and their tangents, from primals and tangents; None is zero.
Rule: TypeAlias = Callable[[Values, MaybeValues], tuple[Values, MaybeValues]]
# A rule as a function of values none of which is None, its operands, and what reads the results of one run.
FlatRule: TypeAlias = tuple[
    Callable[..., Values], list[Value], Callable[[Values], tuple[Values, MaybeValues]]
]
FlatBackward: TypeAlias = tuple[Callable[..., Values], list[Value], Callable[[Values], MaybeValues]]
# From a function of flat values to another one.
Rewrite: TypeAlias = Callable[[Callable[..., Values]], Callable[..., Values]]


# --- rules over a batch --------------------------------------------------------------------------


def batched_forward(axis: Axis, forward: Forward, batched: Flags) -> Forward:
    """The forward rule for whole batches of the primals marked in `batched`; every result is a batch."""

    def run(primals: Values, perturbed: Flags) -> tuple[Values, Values, Backward]:
        backwards: list[Backward] = []
        counts: list[int] = []

        def flat(*inner: Value) -> Values:
            outs, residuals, backward = forward(inner, perturbed)
            backwards.append(backward)
            counts.append(len(outs))
            return [*outs, *residuals]

        values, flags = axis.batch_function(flat, primals, batched)
        count = counts[0]
        outs = families.whole_batches(axis.size, values[:count], flags[:count])
        return outs, values[count:], batched_backward(axis, backwards[0], flags[count:], batched)

    return run


def batched_backward(axis: Axis, backward: Backward, residual_flags: Flags, batched: Flags) -> Backward:
    """The backward rule for batches: cotangents of primals that are not batched are summed over the batch."""

    def run(residuals: Values, cts: MaybeValues) -> MaybeValues:
        flat, operands, read = _flat_backward(backward, residuals, cts)
        flags = (*residual_flags, *(True,) * (len(operands) - len(residuals)))
        values, out_flags = axis.batch_function(flat, operands, flags)
        found = read(families.whole_batches(axis.size, values, out_flags))
        return [
            ct if ct is None or is_batched else trace.bind1(_op("reduce_sum"), ct, axes=(-ct.ndim,))
            for ct, is_batched in zip(found, batched, strict=True)
        ]

    return run


def batched_rule(axis: Axis, rule: Rule, batched: Flags) -> Rule:
    """The JVP rule for whole batches of the primals marked in `batched`, with their tangents."""

    def run(primals: Values, tangents: MaybeValues) -> tuple[Values, MaybeValues]:
        flat, operands, read = _flat_rule(rule, primals, tangents)
        moving = (b for b, t in zip(batched, tangents, strict=True) if t is not None)
        values, out_flags = axis.batch_function(flat, operands, (*batched, *moving))
        return read(families.whole_batches(axis.size, values, out_flags))

    return run


def _op(name: str) -> Primitive:
    return primitive.by_name(name)


# --- rules as functions of values, none of which is None -------------------------------------------


def _flat_rule(rule: Rule, primals: Values, tangents: MaybeValues) -> FlatRule:
    count, given = len(primals), nonzero(tangents)
    found: list[tuple[int, Flags]] = []

    def flat(*inner: Value) -> Values:
        outs, moved = rule(inner[:count], merge(given, inner[count:]))
        found.append((len(outs), nonzero(moved)))
        return [*outs, *(t for t in moved if t is not None)]

    def read(values: Values) -> tuple[Values, MaybeValues]:
        num_outs, moved_flags = found[0]
        return values[:num_outs], merge(moved_flags, values[num_outs:])

    return flat, [*primals, *(t for t in tangents if t is not None)], read


def _flat_backward(backward: Backward, residuals: Values, cts: MaybeValues) -> FlatBackward:
    count, given = len(residuals), nonzero(cts)
    found: list[Flags] = []

    def flat(*inner: Value) -> Values:
        moved = backward(inner[:count], merge(given, inner[count:]))
        found.append(nonzero(moved))
        return [ct for ct in moved if ct is not None]

    def read(values: Values) -> MaybeValues:
        return merge(found[0], values)

    return flat, [*residuals, *(ct for ct in cts if ct is not None)], read


# --- rules run another way -----------------------------------------------------------------------


def rewritten(attrs: ir.Attrs, rewrite: Rewrite, key: Hashable) -> ir.Attrs:
    """Attributes of a custom call whose rules are rewritten: each flat function `f` that they consist of runs
    as `rewrite(f)`. `key` names the rewriting, so that equal calls stay equal.
    """
    name = "rule" if "rule" in attrs else "forward"
    reference: ir.HostFunction = attrs[name]
    function: Any = host.lookup(reference)
    changed = _rewritten_rule(function, rewrite) if name == "rule" else _rewritten_forward(function, rewrite)
    return attrs.replace(**{name: host.register(changed, key=(key, reference))})


def _rewritten_rule(rule: Rule, rewrite: Rewrite) -> Rule:
    def run(primals: Values, tangents: MaybeValues) -> tuple[Values, MaybeValues]:
        flat, operands, read = _flat_rule(rule, primals, tangents)
        return read(rewrite(flat)(*operands))

    return run


def _rewritten_forward(forward: Forward, rewrite: Rewrite) -> Forward:
    def run(primals: Values, perturbed: Flags) -> tuple[Values, Values, Backward]:
        found: list[tuple[int, Backward]] = []

        def flat(*inner: Value) -> Values:
            outs, residuals, backward = forward(inner, perturbed)
            found.append((len(outs), backward))
            return [*outs, *residuals]

        values = rewrite(flat)(*primals)
        count, backward = found[0]
        return values[:count], values[count:], _rewritten_backward(backward, rewrite)

    return run


def _rewritten_backward(backward: Backward, rewrite: Rewrite) -> Backward:
    def run(residuals: Values, cts: MaybeValues) -> MaybeValues:
        flat, operands, read = _flat_backward(backward, residuals, cts)
        return read(rewrite(flat)(*operands))

    return run


# --- custom_vjp ----------------------------------------------------------------------------------


def refuse_forward_mode() -> errors.TypeMismatchError:
    """The error for forward mode of a function that has a VJP only."""
    return errors.TypeMismatchError(
        "cannot apply forward-mode differentiation (jvp) to a function with a custom VJP only",
        fix="use grad, vjp or jacrev, or give the function a custom_jvp rule instead",
    )


def _jvp_of_vjp(ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs) -> Any:
    if any(nonzero(tangents)):
        raise refuse_forward_mode()
    return trace.bind(custom_vjp_call_p, *primals, **attrs), (None,) * len(attrs["body"].results)


def _linearize_vjp(
    ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs
) -> tuple[Values, MaybeValues]:
    with trace.running(ctx.parent):
        outs, residuals, backward = host.lookup(attrs["forward"])(primals, nonzero(tangents))
    return outs, bind_linear(ctx, backward, residuals, primals, tangents, [r.type for r in outs])


def bind_linear(
    ctx: Context,
    backward: Backward,
    residuals: Values,
    primals: Values,
    tangents: MaybeValues,
    out_types: Sequence[ArrayType],
) -> MaybeValues:
    """Tangents of a function that has only a VJP: an equation that can be transposed and nothing else.

    Results that are integers have none.
    """
    given = [t for t in tangents if t is not None]
    flags = nonzero(tangents)

    def of_given(saved: Values, cts: MaybeValues) -> MaybeValues:
        return [ct for ct, flag in zip(backward(saved, cts), flags, strict=True) if flag]

    moving = tuple(dtypes.is_inexact(t.dtype) for t in out_types)

    def of_moving(saved: Values, cts: MaybeValues) -> MaybeValues:
        return of_given(saved, merge(moving, cts))

    moved = ctx.bind_linear(
        custom_vjp_linear_p,
        *residuals,
        *given,
        backward=host.register(of_moving),
        num_residuals=len(residuals),
        out_types=tuple(t for t, flag in zip(out_types, moving, strict=True) if flag),
    )
    return merge(moving, moved)


def _batch_vjp(ctx: Context, args: Values, batched: Flags, attrs: ir.Attrs) -> tuple[Values, Flags]:
    count = len(attrs["body"].results)
    body, out_flags = ctx.batch_program(attrs["body"], batched, force=(True,) * count)
    forward = batched_forward(ctx.axis, host.lookup(attrs["forward"]), batched)
    changed = attrs.replace(body=body, forward=host.register(forward))
    return trace.bind(custom_vjp_call_p, *args, **changed), out_flags


custom_vjp_call_p: Primitive = primitive.register(
    Primitive(
        "custom_vjp_call",
        None,
        {
            primitive.TYPE: type_body,
            primitive.REFERENCE: reference_body,
            primitive.JVP: _jvp_of_vjp,
            primitive.LINEARIZE: _linearize_vjp,
            primitive.BATCH: _batch_vjp,
        },
        is_higher_order=True,
    )
)


def _transpose_linear(ctx: Context, cts: MaybeValues, args: Sequence[Any], attrs: ir.Attrs) -> MaybeValues:
    count = attrs["num_residuals"]
    found = host.lookup(attrs["backward"])(args[:count], cts)
    return (None,) * count + tuple(
        ct if is_linear(a) else None for a, ct in zip(args[count:], found, strict=True)
    )


def _batch_linear(ctx: Context, args: Values, batched: Flags, attrs: ir.Attrs) -> tuple[Values, Flags]:
    count = attrs["num_residuals"]
    backward = batched_backward(ctx.axis, host.lookup(attrs["backward"]), batched[:count], batched[count:])
    changed = attrs.replace(
        backward=host.register(backward),
        out_types=tuple(t.update(shape=(ctx.size, *t.shape)) for t in attrs["out_types"]),
    )
    return trace.bind(custom_vjp_linear_p, *args, **changed), (True,) * len(attrs["out_types"])


def _jvp_of_linear(ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs) -> Any:
    raise refuse_forward_mode()


custom_vjp_linear_p: Primitive = primitive.register(
    Primitive(
        "custom_vjp_linear",
        None,
        {
            primitive.TYPE: lambda *types, backward, num_residuals, out_types: out_types,
            primitive.JVP: _jvp_of_linear,
            primitive.TRANSPOSE: _transpose_linear,
            primitive.BATCH: _batch_linear,
        },
        is_higher_order=True,
    )
)


# --- custom_jvp ----------------------------------------------------------------------------------


def _jvp_custom(
    ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs
) -> tuple[Values, MaybeValues]:
    if not any(nonzero(tangents)):
        return trace.bind(custom_jvp_call_p, *primals, **attrs), (None,) * len(attrs["body"].results)
    found: tuple[Values, MaybeValues] = host.lookup(attrs["rule"])(primals, tangents)
    return found


def _batch_custom_jvp(ctx: Context, args: Values, batched: Flags, attrs: ir.Attrs) -> tuple[Values, Flags]:
    count = len(attrs["body"].results)
    body, out_flags = ctx.batch_program(attrs["body"], batched, force=(True,) * count)
    rule = host.register(batched_rule(ctx.axis, host.lookup(attrs["rule"]), batched))
    return trace.bind(custom_jvp_call_p, *args, **attrs.replace(body=body, rule=rule)), out_flags


custom_jvp_call_p: Primitive = primitive.register(
    Primitive(
        "custom_jvp_call",
        None,
        {
            primitive.TYPE: type_body,
            primitive.REFERENCE: reference_body,
            primitive.JVP: _jvp_custom,
            primitive.BATCH: _batch_custom_jvp,
        },
        is_higher_order=True,
    )
)
