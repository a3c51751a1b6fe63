"""`scan`: a fixed number of steps, differentiable both ways.

A scan has operands (constants, carries, xs); constants are the same in every step. Linearising splits the
body: residuals that are constants or slices of xs are passed on as they are, only computed ones are stacked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infini.core import errors, ir, primitive, trace
from infini.core.ir import ArrayType, Program
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import elementwise as e, families
from infini.lax.calls import Context, Flags, MaybeValues, Values, check_operands, merge, nonzero
from infini.lax.families import is_linear
from infini.lax.loop_bodies import carry_fixpoint, cut, regroup


@dataclass(frozen=True, slots=True)
class ScanParts:
    """Items (operands, tangents, flags) of the constants, the carries and the xs of a scan."""

    consts: tuple[Any, ...]
    carry: tuple[Any, ...]
    xs: tuple[Any, ...]

    @classmethod
    def of(cls, items: Sequence[Any], attrs: ir.Attrs) -> ScanParts:
        """The parts of items in the order of the operands."""
        first, second = attrs["num_consts"], attrs["num_consts"] + attrs["num_carry"]
        return cls(tuple(items[:first]), tuple(items[first:second]), tuple(items[second:]))

    def with_carry(self, carry: Sequence[Any]) -> ScanParts:
        """The same parts with another carry."""
        return ScanParts(self.consts, tuple(carry), self.xs)

    def present(self) -> ScanParts:
        """The parts without absent items (None)."""
        return ScanParts(
            *(tuple(x for x in part if x is not None) for part in (self.consts, self.carry, self.xs))
        )

    @property
    def all(self) -> tuple[Any, ...]:
        """The items in the order of the operands."""
        return (*self.consts, *self.carry, *self.xs)


def stacked(type_: ArrayType, length: int) -> ArrayType:
    """The type of one array per step."""
    return type_.update(shape=(length, *type_.shape))


def unstacked(type_: ArrayType) -> ArrayType:
    """The type of one step of an array of xs."""
    return type_.update(shape=type_.shape[1:])


def _type(
    *types: ArrayType, body: Program, num_consts: int, num_carry: int, length: int, reverse: bool
) -> tuple[ArrayType, ...]:
    xs = types[num_consts + num_carry :]
    if any(t.ndim == 0 or t.shape[0] != length for t in xs):
        raise errors.TypeMismatchError(f"scan: every xs needs a leading dimension of {length}", got=str(xs))
    check_operands("scan", body, (*types[: num_consts + num_carry], *(unstacked(x) for x in xs)))
    carry = types[num_consts : num_consts + num_carry]
    if body.out_types[:num_carry] != carry:
        raise errors.TypeMismatchError(
            "scan: the body must return a carry of the type it takes",
            got=str(body.out_types[:num_carry]),
            expected=str(carry),
        )
    return (*carry, *(stacked(t, length) for t in body.out_types[num_carry:]))


def _reference(
    evaluate: Any,
    *arrays: np.ndarray,
    body: Program,
    num_consts: int,
    num_carry: int,
    length: int,
    reverse: bool,
) -> Any:
    consts, carry = arrays[:num_consts], list(arrays[num_consts : num_consts + num_carry])
    xs = arrays[num_consts + num_carry :]
    ys = [np.empty((length, *t.shape), t.dtype) for t in body.out_types[num_carry:]]
    for i in reversed(range(length)) if reverse else range(length):
        results = evaluate(body, [*consts, *carry, *(x[i, ...] for x in xs)])
        carry = list(results[:num_carry])
        for y, result in zip(ys, results[num_carry:], strict=True):
            y[i] = result
    return [*carry, *ys]


# --- derivatives ---------------------------------------------------------------------------------


def _instantiated(primals: ScanParts, tangents: ScanParts, carry_flags: Flags) -> ScanParts:
    """Tangents in which carries that become nonzero later start as zeros."""
    return tangents.with_carry(
        [
            families.zeros(p.type) if t is None and flag else t
            for t, p, flag in zip(tangents.carry, primals.carry, carry_flags, strict=True)
        ]
    )


def _jvp(ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs) -> tuple[Values, MaybeValues]:
    body, num_carry = attrs["body"], attrs["num_carry"]
    flags, count = ScanParts.of(nonzero(tangents), attrs), len(body.results)
    ys_force = (False,) * (count - num_carry)

    def run(carry: Flags) -> tuple[Program, Flags]:
        found: tuple[Program, Flags] = ctx.jvp_program(body, flags.with_carry(carry).all, (*carry, *ys_force))
        return found

    carry_flags = carry_fixpoint(lambda carry: run(carry)[1][:num_carry], flags.carry)
    jvp, out_flags = run(carry_flags)
    p = ScanParts.of(primals, attrs)
    g = _instantiated(p, ScanParts.of(tangents, attrs), carry_flags).present()
    # The body takes primals then tangents; a scan takes constants, carries, xs.
    sizes = (len(p.consts), len(p.carry), len(p.xs), len(g.consts), len(g.carry), len(g.xs))
    body_params = regroup(jvp.params, sizes, (0, 3, 1, 4, 2, 5))
    num_moved_ys = len(jvp.results) - count - len(g.carry)
    out_sizes = (num_carry, count - num_carry, len(g.carry), num_moved_ys)
    scanned = trace.bind(
        scan_p,
        *p.consts, *g.consts, *p.carry, *g.carry, *p.xs, *g.xs,
        **attrs.replace(
            body=jvp.replace(params=body_params, results=regroup(jvp.results, out_sizes, (0, 2, 1, 3))),
            num_consts=len(p.consts) + len(g.consts),
            num_carry=len(p.carry) + len(g.carry),
        ),
    )  # fmt: skip
    parts = cut(scanned, (num_carry, len(g.carry), count - num_carry, num_moved_ys))
    return [*parts[0], *parts[2]], merge(out_flags, [*parts[1], *parts[3]])


def _linearize(
    ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs
) -> tuple[Values, MaybeValues]:
    body, num_consts, num_carry = attrs["body"], attrs["num_consts"], attrs["num_carry"]
    flags, count = ScanParts.of(nonzero(tangents), attrs), len(body.results)
    ys_force = (False,) * (count - num_carry)

    def split_body(carry: Flags) -> Any:  # Any: see transforms.linear.LinearizedProgram
        return ctx.linearize_program(body, flags.with_carry(carry).all, (*carry, *ys_force))

    carry_flags = carry_fixpoint(lambda carry: split_body(carry).out_nonzero[:num_carry], flags.carry)
    parts = split_body(carry_flags)
    # A residual that is a carry must be stacked, so it becomes a result of the body.
    is_carry = [k is not None and num_consts <= k < num_consts + num_carry for k in parts.known]
    carried = [parts.primal.params[k] for k, flag in zip(parts.known, is_carry, strict=True) if flag]
    primal_body = parts.primal.replace(results=(*parts.primal.results, *carried))
    results = ctx.bind_primal(scan_p, *primals, **attrs.replace(body=primal_body))
    extra, carries = cut(results[count:], (len(results) - count - len(carried), len(carried)))
    computed, stacked_carries = iter(extra), iter(carries)

    with trace.running(ctx.linear):
        filled = _instantiated(ScanParts.of(primals, attrs), ScanParts.of(tangents, attrs), carry_flags)
    g = filled.present()
    res_consts, res_xs, const_vars, xs_vars = [], [], [], []
    residual_vars = parts.linear.params[: len(parts.known)]
    for var, known, is_carried in zip(residual_vars, parts.known, is_carry, strict=True):
        if known is not None and known < num_consts:
            res_consts.append(primals[known])
            const_vars.append(var)
            continue
        xs_vars.append(var)
        if is_carried:
            res_xs.append(next(stacked_carries))
        else:
            res_xs.append(next(computed) if known is None else primals[known])
    moving = cut(parts.linear.params[len(parts.known) :], (len(g.consts), len(g.carry), len(g.xs)))
    linear_body = parts.linear.replace(params=(*const_vars, *moving[0], *moving[1], *xs_vars, *moving[2]))
    moved = ctx.bind_linear(
        scan_p,
        *res_consts, *g.consts, *g.carry, *res_xs, *g.xs,
        **attrs.replace(
            body=linear_body, num_consts=len(res_consts) + len(g.consts), num_carry=len(g.carry)
        ),
    )  # fmt: skip
    return results[:count], merge(parts.out_nonzero, moved)


def _transpose(ctx: Context, cts: MaybeValues, args: Sequence[Any], attrs: ir.Attrs) -> MaybeValues:
    body, num_carry, length = attrs["body"], attrs["num_carry"], attrs["length"]
    parts = ScanParts.of(args, attrs)
    const_linear, xs_linear = ([is_linear(a) for a in part] for part in (parts.consts, parts.xs))
    out_types = [*(c.type for c in parts.carry), *(stacked(t, length) for t in body.out_types[num_carry:])]
    filled = families.filled(cts, out_types)
    ct_carry, ct_ys = filled[:num_carry], filled[num_carry:]
    linear = (*const_linear, *(True,) * num_carry, *xs_linear)
    every = (True,) * sum(linear)
    back, _ = ctx.transpose_program(body, linear, (True,) * len(body.results), every)
    known_consts = [a for a in parts.consts if not is_linear(a)]
    known_xs = [a for a in parts.xs if not is_linear(a)]
    sums = [families.zeros(a.type) for a in parts.consts if is_linear(a)]
    shapes = [len(known_consts), len(sums), num_carry, len(known_xs), len(ct_ys)]
    found_sizes = (len(sums), num_carry, sum(xs_linear))

    def step(*values: Value) -> Sequence[Value]:
        # Steps take known constants | sums, carry cotangents | known xs, cotangents of ys.
        fixed, totals, ct_c, x, ct_y = cut(values, shapes)
        found = trace.evaluate(back, [*fixed, *x, *ct_c, *ct_y])
        ct_consts, new_carry, ct_x = cut(found, found_sizes)
        added = [trace.bind1(e.add_p, a, b) for a, b in zip(totals, ct_consts, strict=True)]
        return [*added, *new_carry, *ct_x]

    types = [v.type for v in (*known_consts, *sums, *ct_carry)]
    types += [unstacked(v.type) for v in (*known_xs, *ct_ys)]
    staged = trace.stage(step, types, name=f"{body.name}_transposed")
    found = trace.bind(
        scan_p,
        *staged.captures, *known_consts, *sums, *ct_carry, *known_xs, *ct_ys,
        body=staged.program,
        num_consts=len(staged.captures) + len(known_consts),
        num_carry=len(sums) + num_carry,
        length=length,
        reverse=not attrs["reverse"],
    )  # fmt: skip
    ct_consts, found_carry, ct_xs = cut(found, found_sizes)
    kept_carry = [ct if is_linear(c) else None for c, ct in zip(parts.carry, found_carry, strict=True)]
    return [*merge(tuple(const_linear), ct_consts), *kept_carry, *merge(tuple(xs_linear), ct_xs)]


# --- batches -------------------------------------------------------------------------------------


def _batch(ctx: Context, args: Values, batched: Flags, attrs: ir.Attrs) -> tuple[Values, Flags]:
    body, num_carry = attrs["body"], attrs["num_carry"]
    flags = ScanParts.of(batched, attrs)
    ys_force = (False,) * (len(body.results) - num_carry)

    def run(carry: Flags) -> tuple[Program, Flags]:
        found: tuple[Program, Flags] = ctx.batch_program(
            body, flags.with_carry(carry).all, (*carry, *ys_force)
        )
        return found

    carry_flags = carry_fixpoint(lambda carry: run(carry)[1][:num_carry], flags.carry)
    mapped, out_flags = run(carry_flags)
    parts = ScanParts.of(args, attrs)
    carry = [
        families.broadcast_to(x, (ctx.size, *x.shape)) if flag and not was else x
        for x, flag, was in zip(parts.carry, carry_flags, flags.carry, strict=True)
    ]
    xs = [_swap_leading(x) if flag else x for x, flag in zip(parts.xs, flags.xs, strict=True)]
    found = trace.bind(scan_p, *parts.consts, *carry, *xs, **attrs.replace(body=mapped))
    ys = [
        _swap_leading(y) if flag else y
        for y, flag in zip(found[num_carry:], out_flags[num_carry:], strict=True)
    ]
    return [*found[:num_carry], *ys], out_flags


def _swap_leading(x: Value) -> Value:
    rest = tuple(range(2 - x.ndim, 0))
    return trace.bind1(primitive.by_name("transpose"), x, permutation=(1 - x.ndim, -x.ndim, *rest))


scan_p: Primitive = primitive.register(
    Primitive(
        "scan",
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
