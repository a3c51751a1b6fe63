"""Loops: `scan` (a fixed number of steps, differentiable both ways) and `while_loop` (until a condition,
forward mode only).

A scan has operands (constants, carries, xs); constants are the same in every step. Linearising splits the
body: residuals that
are constants or slices of xs are passed on as they are, only computed ones are stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors, ir, primitive, trace, tree
from infini.core.ir import ArrayType, Program
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import elementwise as e, families, reduction
from infini.lax.calls import Context, Flags, MaybeValues, Values, check_operands, merge, nonzero
from infini.lax.families import is_linear


def _stacked(type_: ArrayType, length: int) -> ArrayType:
    return type_.update(shape=(length, *type_.shape))


def _unstacked(type_: ArrayType) -> ArrayType:
    return type_.update(shape=type_.shape[1:])


# --- scan ----------------------------------------------------------------------------------


def _type_scan(
    *types: ArrayType, body: Program, num_consts: int, num_carry: int, length: int, reverse: bool
) -> tuple[ArrayType, ...]:
    xs = types[num_consts + num_carry :]
    if any(t.ndim == 0 or t.shape[0] != length for t in xs):
        raise errors.TypeMismatchError(f"scan: every xs needs a leading dimension of {length}", got=str(xs))
    check_operands("scan", body, (*types[: num_consts + num_carry], *(_unstacked(x) for x in xs)))
    carry = types[num_consts : num_consts + num_carry]
    if body.out_types[:num_carry] != carry:
        raise errors.TypeMismatchError(
            "scan: the body must return a carry of the type it takes",
            got=str(body.out_types[:num_carry]),
            expected=str(carry),
        )
    return (*carry, *(_stacked(t, length) for t in body.out_types[num_carry:]))


def _reference_scan(
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
        results = evaluate(body, [*consts, *carry, *(x[i] for x in xs)])
        carry = list(results[:num_carry])
        for y, result in zip(ys, results[num_carry:], strict=True):
            y[i] = result
    return [*carry, *ys]


def _split(items: Sequence[Any], attrs: ir.Attrs) -> tuple[list[Any], list[Any], list[Any]]:
    first, second = attrs["num_consts"], attrs["num_consts"] + attrs["num_carry"]
    return list(items[:first]), list(items[first:second]), list(items[second:])


def _split_flags(flags: Flags, attrs: ir.Attrs) -> tuple[Flags, Flags, Flags]:
    consts, carry, xs = _split(flags, attrs)
    return tuple(consts), tuple(carry), tuple(xs)


def _instantiated(
    primals: Values, tangents: MaybeValues, attrs: ir.Attrs, carry_flags: Flags
) -> list[Value | None]:
    """Tangents in which carries that become nonzero later start as zeros."""
    consts, carry, xs = _split(tangents, attrs)
    _, carry_primals, _ = _split(primals, attrs)
    filled = [
        families.zeros(p.type) if t is None and flag else t
        for t, p, flag in zip(carry, carry_primals, carry_flags, strict=True)
    ]
    return [*consts, *filled, *xs]


def _carry_fixpoint(step: Callable[[Flags], Flags], flags: Flags) -> Flags:
    """Smallest set of carries closed under the body: flags grow until the body adds none."""
    for _ in range(len(flags) + 1):
        found = step(flags)
        united = tuple(a or b for a, b in zip(flags, found, strict=True))
        if united == flags:
            break
        flags = united
    return flags


def _jvp_scan(
    ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs
) -> tuple[Values, MaybeValues]:
    body, num_carry = attrs["body"], attrs["num_carry"]
    const_flags, carry_flags, xs_flags = _split_flags(nonzero(tangents), attrs)
    count = len(body.results)
    ys_force = (False,) * (count - num_carry)

    def run(flags: Flags) -> tuple[Program, Flags]:
        return ctx.jvp_program(body, (*const_flags, *flags, *xs_flags), (*flags, *ys_force))

    carry_flags = _carry_fixpoint(lambda flags: run(flags)[1][:num_carry], carry_flags)
    jvp, out_flags = run(carry_flags)
    filled = _instantiated(primals, tangents, attrs, carry_flags)
    consts, carry, xs = _split(primals, attrs)
    g_consts, g_carry, g_xs = ([t for t in part if t is not None] for part in _split(filled, attrs))
    # The body takes primals then tangents; a scan takes constants, carries, xs.
    sizes = (len(consts), len(carry), len(xs), len(g_consts), len(g_carry), len(g_xs))
    body_params = _regroup(jvp.params, sizes, (0, 3, 1, 4, 2, 5))
    outs, out_tangents = jvp.results[:count], jvp.results[count:]
    moved_carry, moved_ys = out_tangents[: len(g_carry)], out_tangents[len(g_carry) :]
    results = (*outs[:num_carry], *moved_carry, *outs[num_carry:], *moved_ys)
    scanned = trace.bind(
        scan_p,
        *consts,
        *g_consts,
        *carry,
        *g_carry,
        *xs,
        *g_xs,
        **attrs.replace(
            body=jvp.replace(params=body_params, results=results),
            num_consts=len(consts) + len(g_consts),
            num_carry=len(carry) + len(g_carry),
        ),
    )
    parts = _cut(scanned, (num_carry, len(g_carry), count - num_carry, len(moved_ys)))
    return [*parts[0], *parts[2]], merge(out_flags, [*parts[1], *parts[3]])


def _cut(items: Sequence[Any], sizes: Sequence[int]) -> list[list[Any]]:
    parts, start = [], 0
    for size in sizes:
        parts.append(list(items[start : start + size]))
        start += size
    return parts


def _regroup(items: Sequence[Any], sizes: Sequence[int], order: Sequence[int]) -> tuple[Any, ...]:
    parts = _cut(items, sizes)
    return tuple(item for i in order for item in parts[i])


def _linearize_scan(
    ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs
) -> tuple[Values, MaybeValues]:
    body, num_consts, num_carry = attrs["body"], attrs["num_consts"], attrs["num_carry"]
    const_flags, carry_flags, xs_flags = _split_flags(nonzero(tangents), attrs)
    count = len(body.results)
    ys_force = (False,) * (count - num_carry)

    def split_body(flags: Flags) -> Any:  # Any: see transforms.linear.LinearizedProgram
        return ctx.linearize_program(body, (*const_flags, *flags, *xs_flags), (*flags, *ys_force))

    carry_flags = _carry_fixpoint(lambda flags: split_body(flags).out_nonzero[:num_carry], carry_flags)
    parts = split_body(carry_flags)
    # A residual that is a carry must be stacked, so it becomes a result of the body.
    is_carry = [k is not None and num_consts <= k < num_consts + num_carry for k in parts.known]
    stacked = [parts.primal.params[k] for k, flag in zip(parts.known, is_carry, strict=True) if flag]
    primal_body = parts.primal.replace(results=(*parts.primal.results, *stacked))
    results = ctx.bind_primal(scan_p, *primals, **attrs.replace(body=primal_body))
    outs = results[:count]
    extra, carries = _cut(results[count:], (len(results) - count - len(stacked), len(stacked)))
    computed, stacked_carries = iter(extra), iter(carries)

    with trace.running(ctx.linear):
        filled = _instantiated(primals, tangents, attrs, carry_flags)
    g_consts, g_carry, g_xs = ([t for t in part if t is not None] for part in _split(filled, attrs))
    res_consts, res_xs, const_vars, xs_vars = [], [], [], []
    residual_vars = parts.linear.params[: len(parts.known)]
    for var, known, carried in zip(residual_vars, parts.known, is_carry, strict=True):
        if known is not None and known < num_consts:
            res_consts.append(primals[known])
            const_vars.append(var)
            continue
        xs_vars.append(var)
        if carried:
            res_xs.append(next(stacked_carries))
        else:
            res_xs.append(next(computed) if known is None else primals[known])
    tangent_vars = _cut(parts.linear.params[len(parts.known) :], (len(g_consts), len(g_carry), len(g_xs)))
    linear_body = parts.linear.replace(
        params=(*const_vars, *tangent_vars[0], *tangent_vars[1], *xs_vars, *tangent_vars[2])
    )
    moved = ctx.bind_linear(
        scan_p,
        *res_consts,
        *g_consts,
        *g_carry,
        *res_xs,
        *g_xs,
        **attrs.replace(body=linear_body, num_consts=len(res_consts) + len(g_consts), num_carry=len(g_carry)),
    )
    return outs, merge(parts.out_nonzero, moved)


def _transpose_scan(ctx: Context, cts: MaybeValues, args: Sequence[Any], attrs: ir.Attrs) -> MaybeValues:
    body, num_carry = attrs["body"], attrs["num_carry"]
    consts, carry, xs = _split(args, attrs)
    const_linear, xs_linear = ([is_linear(a) for a in part] for part in (consts, xs))
    ct_carry = [
        families.zeros(c.type) if ct is None else ct for c, ct in zip(carry, cts[:num_carry], strict=True)
    ]
    out_types = [_stacked(t, attrs["length"]) for t in body.out_types[num_carry:]]
    ct_ys = [
        families.zeros(t) if ct is None else ct for t, ct in zip(out_types, cts[num_carry:], strict=True)
    ]
    linear = (*const_linear, *(True,) * num_carry, *xs_linear)
    every = (True,) * sum(linear)
    back, _ = ctx.transpose_program(body, linear, (True,) * len(body.results), every)
    known_consts = [a for a in consts if not is_linear(a)]
    known_xs = [a for a in xs if not is_linear(a)]
    sums = [families.zeros(a.type) for a in consts if is_linear(a)]
    shapes = [len(known_consts), len(sums), num_carry, len(known_xs), len(ct_ys)]

    def step(*values: Value) -> Sequence[Value]:
        # Steps take known constants | sums, carry cotangents | known xs, cotangents of ys.
        fixed, totals, ct_c, x, ct_y = _cut(values, shapes)
        found = trace.evaluate(back, [*fixed, *x, *ct_c, *ct_y])
        ct_consts, new_carry, ct_x = _cut(
            found, (len(totals), num_carry, len(found) - len(totals) - num_carry)
        )
        added = [trace.bind1(e.add_p, a, b) for a, b in zip(totals, ct_consts, strict=True)]
        return [*added, *new_carry, *ct_x]

    types = [
        *(v.type for v in known_consts),
        *(v.type for v in sums),
        *(v.type for v in ct_carry),
        *(_unstacked(v.type) for v in known_xs),
        *(_unstacked(v.type) for v in ct_ys),
    ]
    staged = trace.stage(step, types, name=f"{body.name}_transposed")
    found = trace.bind(
        scan_p,
        *staged.captures,
        *known_consts,
        *sums,
        *ct_carry,
        *known_xs,
        *ct_ys,
        body=staged.program,
        num_consts=len(staged.captures) + len(known_consts),
        num_carry=len(sums) + num_carry,
        length=attrs["length"],
        reverse=not attrs["reverse"],
    )
    ct_consts, found_carry, ct_xs = _cut(found, (len(sums), num_carry, len(found) - len(sums) - num_carry))
    kept_carry = [ct if is_linear(c) else None for c, ct in zip(carry, found_carry, strict=True)]
    return [*merge(tuple(const_linear), ct_consts), *kept_carry, *merge(tuple(xs_linear), ct_xs)]


def _batch_scan(ctx: Context, args: Values, batched: Flags, attrs: ir.Attrs) -> tuple[Values, Flags]:
    body, num_carry = attrs["body"], attrs["num_carry"]
    const_flags, carry_flags, xs_flags = _split_flags(batched, attrs)
    ys_force = (False,) * (len(body.results) - num_carry)

    def run(flags: Flags) -> tuple[Program, Flags]:
        return ctx.batch_program(body, (*const_flags, *flags, *xs_flags), (*flags, *ys_force))

    carry_flags = _carry_fixpoint(lambda flags: run(flags)[1][:num_carry], carry_flags)
    mapped, out_flags = run(carry_flags)
    consts, carry, xs = _split(args, attrs)
    carry = [
        families.broadcast_to(x, (ctx.size, *x.shape)) if flag and not was else x
        for x, flag, was in zip(carry, carry_flags, _split(batched, attrs)[1], strict=True)
    ]
    xs = [_swap_leading(x) if flag else x for x, flag in zip(xs, xs_flags, strict=True)]
    found = trace.bind(scan_p, *consts, *carry, *xs, **attrs.replace(body=mapped))
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
            primitive.TYPE: _type_scan,
            primitive.REFERENCE: _reference_scan,
            primitive.JVP: _jvp_scan,
            primitive.LINEARIZE: _linearize_scan,
            primitive.TRANSPOSE: _transpose_scan,
            primitive.BATCH: _batch_scan,
        },
        is_higher_order=True,
    )
)


def scan(
    f: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any = None,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
) -> tuple[Any, Any]:  # Any: pytrees
    """Run `carry, y = f(carry, x)` over the leading dimension of `xs`, as `jax.lax.scan`.

    Args:
        f: function of a carry and one slice of `xs`; returns the next carry, of equal type, and one slice
            of `ys`.
        init: first carry, a pytree of arrays.
        xs: pytree of arrays with equal leading dimensions, or None.
        length: number of steps, needed when `xs` is None.
        reverse: go from the last step to the first.
        unroll: accepted for JAX's sake; the compiler decides.

    Returns:
        The last carry, and the `ys` stacked along a leading dimension.

    Raises:
        TypeMismatchError: the carry changes its structure or type, or leading dimensions differ.
        ValueMismatchError: no length is given or it disagrees with `xs`.
    """
    x_leaves, x_tree = tree.flatten(xs)
    x_values = [trace.as_value(x) for x in x_leaves]
    length = _scan_length(x_values, length)
    init_leaves, carry_tree = tree.flatten(init)
    carry = [trace.as_value(c) for c in init_leaves]
    out_trees: list[tree.PyTreeDef] = []

    def flat(*args: Value) -> Sequence[Any]:
        result = f(tree.unflatten(carry_tree, args[: len(carry)]), tree.unflatten(x_tree, args[len(carry) :]))
        if not isinstance(result, tuple) or len(result) != 2:
            raise errors.TypeMismatchError(
                "the body of scan must return (carry, y)", got=type(result).__name__
            )
        new_carry, new_tree = tree.flatten(result[0])
        if new_tree != carry_tree:
            raise errors.TypeMismatchError(
                "the body of scan must return a carry of the structure it takes",
                got=str(new_tree),
                expected=str(carry_tree),
            )
        ys, y_tree = tree.flatten(result[1])
        out_trees.append(y_tree)
        return [*new_carry, *ys]

    name = getattr(f, "__name__", "scan_body")
    x_types = [_unstacked(x.type) for x in x_values]
    x_weak = [x.weak for x in x_values]
    staged, carry = _widen_carry(flat, carry, x_types, x_weak, name, "scan")
    found = trace.bind(
        scan_p,
        *staged.captures,
        *carry,
        *x_values,
        body=staged.program,
        num_consts=len(staged.captures),
        num_carry=len(carry),
        length=length,
        reverse=bool(reverse),
    )
    marked = [r.with_weak(flag) for r, flag in zip(found, staged.weak, strict=True)]
    return tree.unflatten(carry_tree, marked[: len(carry)]), tree.unflatten(
        out_trees[-1], marked[len(carry) :]
    )


def _scan_length(xs: Sequence[Value], length: int | None) -> int:
    if any(x.ndim == 0 for x in xs):
        raise errors.ValueMismatchError(
            "scan: every leaf of xs needs a leading dimension", got=str([str(x.type) for x in xs])
        )
    sizes = {x.shape[0] for x in xs} | ({int(length)} if length is not None else set())
    if len(sizes) != 1:
        raise errors.ValueMismatchError(
            "scan needs one number of steps",
            got=f"leading sizes {sorted({x.shape[0] for x in xs})}, length {length}",
            expected="equal leading dimensions in xs, or length=",
        )
    return sizes.pop()


def _widen_carry(
    flat: Callable[..., Sequence[Any]],
    carry: list[Value],
    extra_types: Sequence[ArrayType],
    extra_weak: Sequence[bool],
    name: str,
    what: str,
) -> tuple[trace.Staged, list[Value]]:
    """Trace a loop body; weak carries that come back strong (or wider) are widened once to a fixpoint, as
    in JAX.
    """
    for _ in range(len(carry) + 1):
        types = [*(c.type for c in carry), *extra_types]
        weak = [*(c.weak for c in carry), *extra_weak]
        staged = trace.stage(flat, types, weak=weak, name=name)
        changed, widened = False, []
        for number, (old, new, new_weak) in enumerate(
            zip(carry, staged.program.out_types, staged.weak, strict=False)
        ):
            if old.type != new and not (old.weak and old.shape == new.shape):
                raise errors.TypeMismatchError(
                    f"the body of {what} must return a carry of the type it takes",
                    got=f"carry {number} goes in as {old.type} and comes out as {new}",
                    fix="convert it with .astype(...), or start from a carry of the type that comes out",
                )
            if old.weak and not (new_weak and old.type == new):
                widened.append(e.convert_element_type(old, new.dtype).with_weak(new_weak))
                changed = True
            else:
                widened.append(old)
        if not changed:
            return staged, carry
        carry = widened
    return staged, carry


def map(f: Callable[..., Any], xs: Any) -> Any:  # Any: pytrees
    """Apply `f` to each slice of `xs` along the leading dimension, one after another, and stack the
    results.
    """
    _, ys = scan(lambda _, x: ((), f(x)), (), xs)
    return ys


# --- while -----------------------------------------------------------------------------------


def _type_while(
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


def _reference_while(
    evaluate: Any,
    *arrays: np.ndarray,
    cond: Program,
    body: Program,
    num_cond_consts: int,
    num_body_consts: int,
) -> Any:
    cond_consts, body_consts, carry = _cut(
        arrays, (num_cond_consts, num_body_consts, len(arrays) - num_cond_consts - num_body_consts)
    )
    while bool(evaluate(cond, [*cond_consts, *carry])[0]):
        carry = list(evaluate(body, [*body_consts, *carry]))
    return carry


def _split_while(items: Sequence[Any], attrs: ir.Attrs) -> list[list[Any]]:
    first, second = attrs["num_cond_consts"], attrs["num_body_consts"]
    return _cut(items, (first, second, len(items) - first - second))


def _jvp_while(
    ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs
) -> tuple[Values, MaybeValues]:
    body: Program = attrs["body"]
    cond_consts, body_consts, carry = _split_while(primals, attrs)
    _, g_body, g_carry = _split_while(tangents, attrs)
    const_flags, carry_flags = nonzero(g_body), nonzero(g_carry)

    def run(flags: Flags) -> tuple[Program, Flags]:
        found: tuple[Program, Flags] = ctx.jvp_program(body, (*const_flags, *flags), flags)
        return found

    carry_flags = _carry_fixpoint(lambda flags: run(flags)[1], carry_flags)
    jvp, out_flags = run(carry_flags)
    moved = [
        families.zeros(p.type) if t is None else t
        for t, p, flag in zip(g_carry, carry, carry_flags, strict=True)
        if flag
    ]
    given = [t for t in g_body if t is not None]
    sizes = (len(body_consts), len(carry), len(given), len(moved))
    params = _regroup(jvp.params, sizes, (0, 2, 1, 3))
    condition: Program = attrs["cond"]
    unused = tuple(ir.Var(t.type) for t in moved)
    found = trace.bind(
        while_p,
        *cond_consts,
        *body_consts,
        *given,
        *carry,
        *moved,
        cond=condition.replace(params=condition.params + unused),
        body=jvp.replace(params=params),
        num_cond_consts=len(cond_consts),
        num_body_consts=len(body_consts) + len(given),
    )
    return found[: len(carry)], merge(out_flags, found[len(carry) :])


def _linearize_while(
    ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs
) -> tuple[Values, MaybeValues]:
    _, g_body, g_carry = _split_while(tangents, attrs)
    if any(nonzero([*g_body, *g_carry])):
        raise errors.ValueMismatchError(
            "reverse-mode differentiation does not work for lax.while_loop, "
            "or lax.fori_loop with dynamic bounds: "
            "the number of steps, and so the memory for their values, is not known",
            fix="use lax.scan, lax.fori_loop with static bounds, or forward mode (jvp, jacfwd)",
        )
    return ctx.bind_primal(while_p, *primals, **attrs), (None,) * len(attrs["body"].results)


def _batch_while(ctx: Context, args: Values, batched: Flags, attrs: ir.Attrs) -> tuple[Values, Flags]:
    condition, body = attrs["cond"], attrs["body"]
    cond_flags, const_flags, carry_flags = (tuple(part) for part in _split_while(batched, attrs))
    cond_consts, body_consts, carry = _split_while(args, attrs)

    def step(flags: Flags) -> Flags:
        _, predicate = ctx.batch_program(condition, (*cond_flags, *flags))
        _, found = ctx.batch_program(body, (*const_flags, *flags), flags)
        return (True,) * len(flags) if predicate[0] else found

    carry_flags = _carry_fixpoint(step, carry_flags)
    mapped_cond, predicate = ctx.batch_program(condition, (*cond_flags, *carry_flags))
    mapped_body, _ = ctx.batch_program(body, (*const_flags, *carry_flags), carry_flags)
    carry = [
        families.broadcast_to(x, (ctx.size, *x.shape)) if flag and not was else x
        for x, flag, was in zip(carry, carry_flags, _split_while(batched, attrs)[2], strict=True)
    ]
    if not predicate[0]:
        changed = attrs.replace(cond=mapped_cond, body=mapped_body)
        return trace.bind(while_p, *cond_consts, *body_consts, *carry, **changed), carry_flags
    if mapped_body.effect.is_ordered or mapped_cond.effect.is_ordered:
        raise errors.TypeMismatchError(
            "vmap of while_loop with a batched condition cannot keep an ordered effect",
            fix="map with lax.map instead",
        )
    # Elements whose condition is false keep their carry; the loop runs while any is true.
    num_cond = len(cond_consts)

    def any_true(*values: Value) -> Sequence[Value]:
        (flags,) = trace.evaluate(mapped_cond, values)
        return [trace.bind1(reduction.reduce_max_p, flags, axes=(-1,))]

    def masked(*values: Value) -> Sequence[Value]:
        first, second, current = _cut(values, (num_cond, len(body_consts), len(carry)))
        (flags,) = trace.evaluate(mapped_cond, [*first, *current])
        updated = trace.evaluate(mapped_body, [*second, *current])
        return [_select_rows(flags, new, old) for new, old in zip(updated, current, strict=True)]

    types = [v.type for v in (*cond_consts, *body_consts, *carry)]
    carry_types = types[num_cond + len(body_consts) :]
    found = trace.bind(
        while_p,
        *cond_consts,
        *cond_consts,
        *body_consts,
        *carry,
        cond=trace.stage(any_true, [*types[:num_cond], *carry_types], name=condition.name).program,
        body=trace.stage(masked, types, name=body.name).program,
        num_cond_consts=num_cond,
        num_body_consts=num_cond + len(body_consts),
    )
    return found, carry_flags


def _select_rows(flags: Value, new: Value, old: Value) -> Value:
    shape = (*flags.shape, *(1,) * (new.ndim - 1))
    wide = trace.bind1(primitive.by_name("reshape"), flags, shape=shape, ndim=1)
    return trace.bind1(e.select_n_p, wide, old, new)


while_p: Primitive = primitive.register(
    Primitive(
        "while",
        None,
        {
            primitive.TYPE: _type_while,
            primitive.REFERENCE: _reference_while,
            primitive.JVP: _jvp_while,
            primitive.LINEARIZE: _linearize_while,
            primitive.BATCH: _batch_while,
        },
        is_higher_order=True,
    )
)


def while_loop(
    cond_fun: Callable[[Any], Any], body_fun: Callable[[Any], Any], init_val: Any
) -> Any:  # Any: pytrees
    """Repeat `val = body_fun(val)` while `cond_fun(val)` holds, as `jax.lax.while_loop`.

    Args:
        cond_fun: function from the carry to a boolean scalar.
        body_fun: function from the carry to the next, of equal structure and type.
        init_val: first carry, a pytree of arrays.

    Returns:
        The last carry.

    Raises:
        TypeMismatchError: the condition is no boolean scalar, or the carry changes its type.
    """
    leaves, carry_tree = tree.flatten(init_val)
    carry = [trace.as_value(x) for x in leaves]

    def flat_body(*args: Value) -> Sequence[Any]:
        results, out_tree = tree.flatten(body_fun(tree.unflatten(carry_tree, args)))
        if out_tree != carry_tree:
            raise errors.TypeMismatchError(
                "the body of while_loop must return the structure it takes",
                got=str(out_tree),
                expected=str(carry_tree),
            )
        return results

    def flat_cond(*args: Value) -> Sequence[Any]:
        results = tree.leaves(cond_fun(tree.unflatten(carry_tree, args)))
        if len(results) != 1 or trace.as_value(results[0]).type != ArrayType((), dtypes.bool_):
            raise errors.TypeMismatchError(
                "the condition of while_loop must return a boolean scalar",
                got=", ".join(str(trace.as_value(r).type) for r in results),
            )
        return results

    body, carry = _widen_carry(flat_body, carry, (), (), getattr(body_fun, "__name__", "body"), "while_loop")
    types, weak = [c.type for c in carry], [c.weak for c in carry]
    condition = trace.stage(flat_cond, types, weak=weak, name=getattr(cond_fun, "__name__", "condition"))
    found = trace.bind(
        while_p,
        *condition.captures,
        *body.captures,
        *carry,
        cond=condition.program,
        body=body.program,
        num_cond_consts=len(condition.captures),
        num_body_consts=len(body.captures),
    )
    marked = [r.with_weak(flag) for r, flag in zip(found, body.weak, strict=True)]
    return tree.unflatten(carry_tree, marked)


def fori_loop(
    lower: Any, upper: Any, body_fun: Callable[[Any, Any], Any], init_val: Any, *, unroll: Any = None
) -> Any:
    """Repeat `val = body_fun(i, val)` for `i` from `lower` to `upper` - 1.

    With Python ints as bounds it is a scan, which can be differentiated in reverse; otherwise a while loop.

    Args:
        lower: first index.
        upper: one past the last index.
        body_fun: function of the index and the carry, to the next carry.
        init_val: first carry, a pytree of arrays.
        unroll: accepted for JAX's sake; the compiler decides.
    """
    is_static = isinstance(lower, (int, np.integer)) and isinstance(upper, (int, np.integer))
    if is_static:
        start = trace.as_value(int(lower)).with_weak(False)

        def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
            i, value = carry
            return (e.add(i, 1), body_fun(i, value)), None

        (_, result), _ = scan(step, (start, init_val), None, length=max(int(upper) - int(lower), 0))
        return result
    first, last = trace.as_value(lower), trace.as_value(upper)
    dtype, _ = dtypes.promote(((first.dtype, first.weak), (last.dtype, last.weak)))
    first, last = e.convert_element_type(first, dtype), e.convert_element_type(last, dtype)
    _, _, result = while_loop(
        lambda c: e.lt(c[0], c[1]),
        lambda c: (e.add(c[0], 1), c[1], body_fun(c[0], c[2])),
        (first, last, init_val),
    )
    return result
