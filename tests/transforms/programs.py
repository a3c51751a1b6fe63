"""Programs with control flow for the property tests: functions from three floats to a scalar."""

from __future__ import annotations

import functools
from typing import Any

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.ad_checkpoint import checkpoint_name

W = inp.asarray([[0.5, -0.2, 0.1], [0.3, 0.8, -0.4], [0.2, 0.2, 0.9]])


def branch(x: Any) -> Any:
    return lax.cond(x[0] > 0, lambda x: inp.sin(x).sum(), lambda x: (x * x).sum() * x[1], x)


def nested_branches(x: Any) -> Any:
    def inner(x: Any) -> Any:
        return lax.switch(inp.int32(x[1] > 0) + inp.int32(x[2] > 0), [inp.sin, inp.cos, inp.tanh], x).sum()

    return lax.cond(x[0] > 0.5, inner, lambda x: (x**3).sum(), x)


def recurrence(x: Any) -> Any:
    carry, ys = lax.scan(lambda c, a: (inp.tanh(W @ c * a), c * a), inp.ones(3), x)
    return carry.sum() + (ys * ys).sum()


def reverse_recurrence(x: Any) -> Any:
    return lax.scan(lambda c, a: (c * inp.sin(a) + a, None), 0.5, x, reverse=True)[0]


def unrolled(x: Any) -> Any:
    return lax.scan(lambda c, a: (inp.sin(c * a) + c, c), 0.5, x, unroll=2)[1].sum()


def scan_of_branch(x: Any) -> Any:
    def step(c: Any, a: Any) -> Any:
        return lax.cond(a > 0, lambda c: inp.sin(c) * a, lambda c: c * c - a, c), None

    return lax.scan(step, x[2], x)[0]


def branch_of_scan(x: Any) -> Any:
    return lax.cond(x[1] > 0, recurrence, reverse_recurrence, x)


def scan_of_scan(x: Any) -> Any:
    def inner(c: Any, a: Any) -> Any:
        return inp.sin(c * a), None

    return lax.scan(lambda c, a: (lax.scan(inner, c * a, x)[0], c), 0.7, x)[0]


def counted_loop(x: Any) -> Any:
    return lax.fori_loop(0, 4, lambda i, c: inp.tanh(W @ c) * x + 0.1 * i, x).sum()


def loop_of_constants(x: Any) -> Any:
    """The while loop depends on no argument; everything around it does."""
    factor = lax.while_loop(lambda c: c < 3.0, lambda c: c * 1.5, 1.0)
    return (inp.sin(x) * factor).sum()


def saved_by_name(x: Any) -> Any:
    @functools.partial(inf.checkpoint, policy=inf.checkpoint_policies.save_only_these_names("h"))
    def layer(x: Any) -> Any:
        return inp.tanh(W @ checkpoint_name(inp.sin(W @ x), "h"))

    return layer(layer(x)).sum()


def scan_of_checkpoint(x: Any) -> Any:
    policy = inf.checkpoint_policies.dots_saveable
    step = inf.checkpoint(lambda c, a: (inp.sin(W @ c) * a, None), policy=policy)
    return lax.scan(step, x, x)[0].sum()


def checkpoint_of_scan(x: Any) -> Any:
    policy = inf.checkpoint_policies.everything_saveable
    return inf.checkpoint(recurrence, policy=policy)(x)


@inf.custom_jvp
def soft(x: Any) -> Any:
    return inp.log1p(inp.exp(x))


soft.defjvps(lambda t, out, x: t / (1 + inp.exp(-x)))


@inf.custom_vjp
def scaled(x: Any, w: Any) -> Any:
    return inp.sin(x) * w


scaled.defvjp(
    lambda x, w: (scaled(x, w), (x, w)), lambda r, ct: (ct * inp.cos(r[0]) * r[1], (ct * inp.sin(r[0])))
)


def with_jvp_rule(x: Any) -> Any:
    return lax.scan(lambda c, a: (soft(c * a), None), x, x)[0].sum()


def with_vjp_rule(x: Any) -> Any:
    return lax.cond(x[0] > 0, lambda x: scaled(x, x[::-1]).sum(), lambda x: scaled(x, x).sum() * 2, x)


def associative(x: Any) -> Any:
    return (lax.associative_scan(inp.multiply, inp.sin(x) + 1.5) ** 2).sum()


def mapped_in_batches(x: Any) -> Any:
    return lax.map(lambda a: inp.sin(a) * x.sum(), x, batch_size=2).sum()


def root(x: Any) -> Any:
    def newton(f: Any, guess: Any) -> Any:
        return lax.fori_loop(0, 12, lambda _, y: y - f(y) / (2 * y), guess)

    return lax.custom_root(lambda y: y * y - 2.0 - (x * x).sum(), 1.5, newton, lambda g, y: y / g(1.0))


def linear_solution(x: Any) -> Any:
    def solve(matvec: Any, b: Any) -> Any:
        return lax.fori_loop(0, 25, lambda _, y: y + (b - matvec(y)) / 4.0, b)

    scale = 4.0 + inp.tanh(x)
    return (lax.custom_linear_solve(lambda y: scale * y, inp.cos(x), solve, symmetric=True) ** 2).sum()


PROGRAMS = (
    branch, nested_branches, recurrence, reverse_recurrence, unrolled, scan_of_branch, branch_of_scan,
    scan_of_scan, counted_loop, loop_of_constants, saved_by_name, scan_of_checkpoint, checkpoint_of_scan,
    with_jvp_rule, with_vjp_rule, associative, mapped_in_batches, root, linear_solution,
)  # fmt: skip
# Functions with a VJP only have no forward mode.
FORWARD_PROGRAMS = tuple(f for f in PROGRAMS if f is not with_vjp_rule)
