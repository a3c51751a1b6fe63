"""Table of small programs of checkpoint and its policies, each run on infini and on JAX."""

from __future__ import annotations

import functools

import jax.ad_checkpoint  # noqa: F401  # JAX does not load it by itself
import numpy as np
import pytest

from tests.parity import transforms_table as table

X = np.array([0.3, -1.2, 2.0], np.float32)
M = np.array([[0.5, -0.2, 0.1], [0.3, 0.8, -0.4]], np.float32)
W = np.array([[0.5, -0.2, 0.1], [0.3, 0.8, -0.4], [0.2, 0.2, 0.9]], np.float32)


def clipped(j, n, l, **options):
    """Identity whose cotangent is clipped."""

    @functools.partial(j.custom_vjp, **options)
    def f(x, limit):
        return x * 1.0

    f.defvjp(lambda x, limit: (f(x, limit), limit), lambda limit, ct: (n.minimum(ct, limit), None))
    return f


def log1pexp(j, n, l):
    @j.custom_jvp
    def f(x):
        return n.log(1.0 + n.exp(x))

    @f.defjvp
    def rule(primals, tangents):
        (x,), (t,) = primals, tangents
        return f(x), (1 - 1 / (1 + n.exp(x))) * t

    return f


def block(j, n, names=False):
    name = j.ad_checkpoint.checkpoint_name if names else lambda x, _: x

    def f(w, x):
        h = name(n.sin(w @ x), "hidden")
        return name(n.tanh(w @ h), "out").sum()

    return f


POLICIES = {
    "everything_saveable": lambda p: p.everything_saveable,
    "nothing_saveable": lambda p: p.nothing_saveable,
    "dots_saveable": lambda p: p.dots_saveable,
    "checkpoint_dots": lambda p: p.checkpoint_dots,
    "dots_with_no_batch_dims_saveable": lambda p: p.dots_with_no_batch_dims_saveable,
    "save_only_these_names": lambda p: p.save_only_these_names("hidden"),
    "save_any_names_but_these": lambda p: p.save_any_names_but_these("hidden"),
    "save_anything_except_these_names": lambda p: p.save_anything_except_these_names("hidden"),
    "save_from_both_policies": lambda p: p.save_from_both_policies(
        p.dots_saveable, p.save_only_these_names("out")
    ),
}


def saved_by_policy(j, n, l):
    """How often the backward pass calls the host again for values that a policy saves or not."""
    counts = {}
    for name, policy in POLICIES.items():
        calls = []

        def host(x, calls=calls):
            calls.append(1)
            return np.sin(x)

        def f(x, host=host):
            y = j.pure_callback(host, j.ShapeDtypeStruct((3,), np.float32), l.stop_gradient(x))
            return (j.ad_checkpoint.checkpoint_name(y, "hidden") * n.sin(x)).sum()

        j.block_until_ready(j.grad(j.checkpoint(f, policy=policy(j.checkpoint_policies)))(X))
        counts[name] = len(calls)
    return counts


CASES: dict[str, table.Case] = {
    "checkpoint": lambda j, n, l: j.grad(j.checkpoint(block(j, n)), argnums=(0, 1))(W, X),
    "checkpoint without prevent_cse": lambda j, n, l: j.grad(j.checkpoint(block(j, n), prevent_cse=False))(
        W, X
    ),
    "checkpoint static_argnums": lambda j, n, l: j.grad(j.checkpoint(lambda x, k: x**k, static_argnums=(1,)))(
        2.0, 3
    ),
    "checkpoint static_argnames": lambda j, n, l: j.grad(
        j.checkpoint(lambda x, k: x**k, static_argnames="k")
    )(np.float32(2.0), k=3),
    "checkpoint as a decorator": lambda j, n, l: j.grad(j.remat(lambda x: n.sin(n.sin(x))))(2.0),
    "checkpoint keyword arguments": lambda j, n, l: j.grad(j.checkpoint(lambda x, *, y: x * n.sin(y)))(
        2.0, y=3.0
    ),
    "checkpoint of trees": lambda j, n, l: j.grad(
        lambda p: j.checkpoint(lambda p: {"s": p["a"] * n.sin(p["b"]), "n": None})(p)["s"].sum()
    )({"a": X, "b": X}),
    "checkpoint of a custom_vjp": lambda j, n, l: j.grad(
        j.checkpoint(lambda x: clipped(j, n, l)(n.sin(x), 0.3) * 2)
    )(0.4),
    "checkpoint of a custom_jvp": lambda j, n, l: j.grad(j.checkpoint(lambda x: log1pexp(j, n, l)(n.sin(x))))(
        0.4
    ),
    "checkpoint of scan": lambda j, n, l: j.grad(
        j.checkpoint(lambda x: l.scan(lambda c, y: (n.sin(c * y), c), 0.5, x)[0])
    )(X),
    "scan of checkpoint": lambda j, n, l: j.grad(
        lambda x: l.scan(j.checkpoint(lambda c, y: (n.sin(c * y), c)), 0.5, x)[0]
    )(X),
    "checkpoint of checkpoint": lambda j, n, l: j.grad(
        j.checkpoint(lambda x: n.sin(j.checkpoint(lambda x: n.sin(x))(x)))
    )(0.3),
    "second derivative of checkpoint": lambda j, n, l: j.grad(
        j.grad(j.checkpoint(lambda x: n.sin(n.sin(x))))
    )(0.3),
    "hessian of checkpoint": lambda j, n, l: j.hessian(j.checkpoint(block(j, n)), argnums=1)(W, X),
    "jvp of checkpoint": lambda j, n, l: j.jvp(j.checkpoint(block(j, n)), (W, X), (W, X)),
    "linearize of checkpoint": lambda j, n, l: j.linearize(j.checkpoint(lambda x: n.sin(n.sin(x))), X)[1](X),
    "vmap of grad of checkpoint": lambda j, n, l: j.vmap(j.grad(j.checkpoint(block(j, n)), 1), (None, 0))(
        W, M
    ),
    "jit of grad of checkpoint": lambda j, n, l: j.jit(j.grad(j.checkpoint(block(j, n))))(W, X),
    "checkpoint with an integer argument": lambda j, n, l: j.grad(j.checkpoint(lambda x, i: x[i] ** 2))(X, 1),
    "checkpoint of an unhashable static": lambda j, n, l: j.checkpoint(
        lambda x, k: x * k[0], static_argnums=1
    )(X, [3]),
    "checkpoint_name alone": lambda j, n, l: j.grad(
        lambda x: j.ad_checkpoint.checkpoint_name({"a": n.sin(x)}, "s")["a"]
    )(0.3),
    "policies save what they say": saved_by_policy,
    **{
        f"checkpoint with {name}": lambda j, n, l, policy=policy: j.grad(
            j.checkpoint(block(j, n, names=True), policy=policy(j.checkpoint_policies)), argnums=(0, 1)
        )(W, X)
        for name, policy in POLICIES.items()
    },
    "policy under jit and vmap": lambda j, n, l: j.jit(
        j.vmap(
            j.grad(j.checkpoint(block(j, n, names=True), policy=j.checkpoint_policies.dots_saveable), 1),
            (None, 0),
        )
    )(W, M),
    "policy in scan": lambda j, n, l: j.grad(
        lambda w: l.scan(
            j.checkpoint(
                lambda c, _: (j.ad_checkpoint.checkpoint_name(n.sin(w @ c), "hidden"), None),
                policy=j.checkpoint_policies.save_only_these_names("hidden"),
            ),
            X,
            None,
            length=3,
        )[0].sum()
    )(W),
    "policy around scan": lambda j, n, l: j.grad(
        j.checkpoint(
            lambda w: l.scan(
                lambda c, _: (n.cos(j.ad_checkpoint.checkpoint_name(n.sin(w @ c), "hidden")), None),
                X,
                None,
                length=3,
            )[0].sum(),
            policy=j.checkpoint_policies.save_only_these_names("hidden"),
        )
    )(W),
    "policy around cond": lambda j, n, l: j.grad(
        j.checkpoint(
            lambda x: l.cond(x[0] > 0, lambda x: n.sin(n.exp(x)).sum(), lambda x: n.cos(x).sum(), x),
            policy=j.checkpoint_policies.everything_saveable,
        )
    )(X),
    "a policy of one's own": lambda j, n, l: j.grad(
        j.checkpoint(lambda x: n.sin(n.sin(x)), policy=lambda prim, *_, **params: str(prim) == "sin")
    )(0.3),
}


REFUSALS: dict[str, table.Case] = {
    "checkpoint of no function": lambda j, n, l: j.checkpoint(3)(X),
    "bool under checkpoint": lambda j, n, l: j.checkpoint(lambda x: x if x > 0 else -x)(1.0),
    "checkpoint of a string": lambda j, n, l: j.checkpoint(lambda x: x)("a"),
    "checkpoint static_argnums out of range": lambda j, n, l: j.checkpoint(lambda x: x, static_argnums=(3,))(
        X
    ),
}

TABLE = table.Table("checkpoint", CASES, REFUSALS)


@pytest.mark.parametrize("name", CASES)
def test_equals_jax(name: str) -> None:
    TABLE.check(name)


@pytest.mark.parametrize("name", REFUSALS)
def test_refuses_what_jax_refuses(name: str) -> None:
    TABLE.check_refusal(name)


@pytest.mark.slow
def test_the_record_is_what_jax_says(request: pytest.FixtureRequest) -> None:
    TABLE.check_record(is_update=request.config.getoption("update_golden"))
