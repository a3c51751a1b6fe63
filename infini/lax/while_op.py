"""The operation behind `while_loop`: an unknown number of steps, so there is forward mode only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infini.core import dtypes, errors, ir, primitive, trace
from infini.core.ir import ArrayType, Program
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import elementwise as e, families
from infini.lax.calls import Context, Flags, MaybeValues, Values, check_operands, merge, nonzero
from infini.lax.loop_bodies import carry_fixpoint, cut, regroup


@dataclass(frozen=True, slots=True)
class WhileParts:
    """Items that belong to constants of the condition, constants of the body, and the carry."""

    cond_consts: tuple[Any, ...]
    body_consts: tuple[Any, ...]
    carry: tuple[Any, ...]

    @classmethod
    def of(cls, items: Sequence[Any], attrs: ir.Attrs) -> WhileParts:
        """The parts of items in the order of the operands."""
        first, second = attrs["num_cond_consts"], attrs["num_cond_consts"] + attrs["num_body_consts"]
        return cls(tuple(items[:first]), tuple(items[first:second]), tuple(items[second:]))


def _type(
    *types: ArrayType, cond: Program, body: Program, num_cond_consts: int, num_body_consts: int
) -> tuple[ArrayType, ...]:
    carry = types[num_cond_consts + num_body_consts :]
    check_operands("while (condition)", cond, (*types[:num_cond_consts], *carry))
    check_operands(
        "while (body)", body, (*types[num_cond_consts : num_cond_consts + num_body_consts], *carry)
    )
    if cond.out_types != (ArrayType((), dtypes.bool_),):
        raise errors.TypeMismatchError(
            "the condition of while_loop must return a boolean scalar", got=str(cond.out_types)
        )
    if body.out_types != carry:
        raise errors.TypeMismatchError(
            "the body of while_loop must return a carry of the type it takes",
            got=str(body.out_types),
            expected=str(carry),
        )
    return carry


def _reference(
    evaluate: Any,
    *arrays: np.ndarray,
    cond: Program,
    body: Program,
    num_cond_consts: int,
    num_body_consts: int,
) -> Any:
    cond_consts, body_consts, carry = cut(
        arrays, (num_cond_consts, num_body_consts, len(arrays) - num_cond_consts - num_body_consts)
    )
    while bool(evaluate(cond, [*cond_consts, *carry])[0]):
        carry = list(evaluate(body, [*body_consts, *carry]))
    return carry


# --- derivatives ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Moving:
    """A while loop over primals and tangents: its attributes and operands, and which carries move."""

    attrs: ir.Attrs
    primals: tuple[Value, ...]
    given: tuple[Value, ...]
    moved: tuple[Value, ...]
    flags: Flags


def _moving(ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs) -> _Moving:
    body: Program = attrs["body"]
    p, g = WhileParts.of(primals, attrs), WhileParts.of(tangents, attrs)
    const_flags = nonzero(g.body_consts)

    def run(flags: Flags) -> tuple[Program, Flags]:
        found: tuple[Program, Flags] = ctx.jvp_program(body, (*const_flags, *flags), flags)
        return found

    flags = carry_fixpoint(lambda flags: run(flags)[1], nonzero(g.carry))
    jvp, _ = run(flags)
    moved = tuple(
        families.zeros(c.type) if t is None else t
        for t, c, flag in zip(g.carry, p.carry, flags, strict=True)
        if flag
    )
    given = tuple(t for t in g.body_consts if t is not None)
    sizes = (len(p.body_consts), len(p.carry), len(given), len(moved))
    condition: Program = attrs["cond"]
    unused = tuple(ir.Var(t.type) for t in moved)
    changed = attrs.replace(
        cond=condition.replace(params=condition.params + unused),
        body=jvp.replace(params=regroup(jvp.params, sizes, (0, 2, 1, 3))),
        num_body_consts=len(p.body_consts) + len(given),
    )
    return _Moving(changed, tuple(primals), given, moved, flags)


def _operands(found: _Moving, attrs: ir.Attrs) -> list[Value]:
    p = WhileParts.of(found.primals, attrs)
    return [*p.cond_consts, *p.body_consts, *found.given, *p.carry, *found.moved]


def _jvp(ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs) -> tuple[Values, MaybeValues]:
    if not any(nonzero(WhileParts.of(tangents, attrs).body_consts + WhileParts.of(tangents, attrs).carry)):
        return trace.bind(while_p, *primals, **attrs), (None,) * len(attrs["body"].results)
    moving = _moving(ctx, primals, tangents, attrs)
    results = trace.bind_attrs(while_p, _operands(moving, attrs), moving.attrs)
    count = len(moving.flags)
    return results[:count], merge(moving.flags, results[count:])


def _linearize(
    ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs
) -> tuple[Values, MaybeValues]:
    # The linear part repeats the primals: as the number of steps is unknown, none of them is kept.
    results = ctx.bind_primal(while_p, *primals, **attrs)
    parts = WhileParts.of(tangents, attrs)
    if not any(nonzero(parts.body_consts + parts.carry)):
        return results, (None,) * len(results)
    with trace.running(ctx.linear):
        moving = _moving(ctx, primals, tangents, attrs)
    moved = ctx.bind_linear(while_p, *_operands(moving, attrs), **moving.attrs)
    return results, merge(moving.flags, moved[len(moving.flags) :])


def _transpose(ctx: Context, cts: MaybeValues, args: Sequence[Any], attrs: ir.Attrs) -> MaybeValues:
    raise errors.ValueMismatchError(
        "reverse-mode differentiation does not work for lax.while_loop, "
        "or lax.fori_loop with dynamic bounds: "
        "the number of steps, and so the memory for their values, is not known",
        fix="use lax.scan, lax.fori_loop with static bounds, or forward mode (jvp, jacfwd)",
    )


# --- batches -------------------------------------------------------------------------------------


def _batch(ctx: Context, args: Values, batched: Flags, attrs: ir.Attrs) -> tuple[Values, Flags]:
    condition, body = attrs["cond"], attrs["body"]
    flags, parts = WhileParts.of(batched, attrs), WhileParts.of(args, attrs)

    def step(carry: Flags) -> Flags:
        _, predicate = ctx.batch_program(condition, (*flags.cond_consts, *carry))
        _, found = ctx.batch_program(body, (*flags.body_consts, *carry), carry)
        return (True,) * len(carry) if predicate[0] else found

    carry_flags = carry_fixpoint(step, flags.carry)
    mapped_cond, predicate = ctx.batch_program(condition, (*flags.cond_consts, *carry_flags))
    mapped_body, _ = ctx.batch_program(body, (*flags.body_consts, *carry_flags), carry_flags)
    carry = [
        families.broadcast_to(x, (ctx.size, *x.shape)) if flag and not was else x
        for x, flag, was in zip(parts.carry, carry_flags, flags.carry, strict=True)
    ]
    if not predicate[0]:
        found = trace.bind(
            while_p,
            *parts.cond_consts,
            *parts.body_consts,
            *carry,
            **attrs.replace(cond=mapped_cond, body=mapped_body),
        )
        return found, carry_flags
    if mapped_body.effect.is_ordered or mapped_cond.effect.is_ordered:
        raise errors.TypeMismatchError(
            "vmap of while_loop with a batched condition cannot keep an ordered effect inside the loop",
            fix="move the effect out of the loop, or map with lax.map instead of vmap",
        )
    operands = WhileParts(parts.cond_consts, parts.body_consts, tuple(carry))
    return _masked(operands, mapped_cond, mapped_body), carry_flags


def _masked(parts: WhileParts, condition: Program, body: Program) -> Sequence[Value]:
    """The loop over a batch whose elements stop at different times: it runs while any of them does."""
    num_cond, num_body = len(parts.cond_consts), len(parts.body_consts)

    def any_true(*values: Value) -> Sequence[Value]:
        (flags,) = trace.evaluate(condition, values)
        return [trace.bind1(primitive.by_name("reduce_max"), flags, axes=(-1,))]

    def masked(*values: Value) -> Sequence[Value]:
        first, second, current = cut(values, (num_cond, num_body, len(parts.carry)))
        (flags,) = trace.evaluate(condition, [*first, *current])
        updated = trace.evaluate(body, [*second, *current])
        return [_select_rows(flags, new, old) for new, old in zip(updated, current, strict=True)]

    types = [v.type for v in (*parts.cond_consts, *parts.body_consts, *parts.carry)]
    carry_types = types[num_cond + num_body :]
    return trace.bind(
        while_p,
        *parts.cond_consts,
        *parts.cond_consts,
        *parts.body_consts,
        *parts.carry,
        cond=trace.stage(any_true, [*types[:num_cond], *carry_types], name=condition.name).program,
        body=trace.stage(masked, types, name=body.name).program,
        num_cond_consts=num_cond,
        num_body_consts=num_cond + num_body,
    )


def _select_rows(flags: Value, new: Value, old: Value) -> Value:
    shape = (*flags.shape, *(1,) * (new.ndim - 1))
    wide = trace.bind1(primitive.by_name("reshape"), flags, shape=shape, ndim=1)
    return trace.bind1(e.select_n_p, wide, old, new)


while_p: Primitive = primitive.register(
    Primitive(
        "while",
        None,
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.JVP: _jvp,
            primitive.LINEARIZE: _linearize,
            primitive.TRANSPOSE: _transpose,
            primitive.BATCH: _batch,
        },
        is_higher_order=True,
    )
)
