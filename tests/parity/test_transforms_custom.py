"""Table of small programs of custom derivative rules, each run on infini and on JAX."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from tests.parity import transforms_table as table

A = np.array
X = np.array([0.3, -1.2, 2.0], np.float32)


def clipped(j, n, l, **options):
    """Identity whose cotangent is clipped."""

    @functools.partial(j.custom_vjp, **options)
    def f(x, limit):
        return x * 1.0

    f.defvjp(lambda x, limit: (f(x, limit), limit), lambda limit, ct: (n.minimum(ct, limit), None))
    return f


def scaled(j, n, l):
    """A static exponent as nondiff argument."""

    @functools.partial(j.custom_vjp, nondiff_argnums=(0, 2))
    def f(kind, x, k):
        return n.sin(x) * k if kind == "sin" else n.cos(x) * k

    f.defvjp(lambda kind, x, k: (f(kind, x, k), {"x": x}), lambda kind, k, res, ct: (ct * res["x"] * k,))
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


def product_rule(j, n, l):
    @j.custom_jvp
    def f(x, y):
        return x * y

    f.defjvps(lambda t, out, x, y: 10 * t * y, None)
    return f


def tree_rule(j, n, l):
    @j.custom_vjp
    def f(p, q):
        return {"s": p["a"] * q, "t": p["b"]}

    f.defvjp(lambda p, q: (f(p, q), (p, q)), lambda r, ct: ({"a": ct["s"] * r[1], "b": 2 * ct["t"]}, None))
    return f


def symbolic_vjp(j, n, l):
    seen = []

    @j.custom_vjp
    def f(x, y):
        return x * y, x + y

    def forward(x, y):
        seen.append((x.perturbed, y.perturbed))
        return (x.value * y.value, x.value + y.value), (x.value, y.value)

    def backward(res, cts):
        zero = j.custom_derivatives.SymbolicZero
        seen.append(tuple(type(ct) is zero for ct in cts))
        ct = cts[0]
        return ct * res[1], ct * res[0]

    f.defvjp(forward, backward, symbolic_zeros=True)
    return j.grad(lambda x: f(x, 3.0)[0])(2.0), seen


def symbolic_jvp(j, n, l):
    seen = []

    @j.custom_jvp
    def f(x, y):
        return x * y

    def rule(primals, tangents):
        zero = j.custom_derivatives.SymbolicZero
        seen.append(tuple(type(t) is zero for t in tangents))
        return f(*primals), tangents[0] * primals[1]

    f.defjvp(rule, symbolic_zeros=True)
    return j.jvp(lambda x: f(x, 3.0), (2.0,), (1.0,)), seen


def eager_branch(j, n, l):
    """Rules look at values when nothing is traced."""

    @j.custom_vjp
    def f(x):
        return x * 2 if x > 0 else x * 3

    f.defvjp(lambda x: (f(x), x > 0), lambda positive, ct: (ct * (20 if positive else 30),))
    return f


def eager_branch_jvp(j, n, l):
    @j.custom_jvp
    def f(x):
        return x * 2 if x > 0 else x * 3

    f.defjvp(lambda p, t: (f(p[0]), t[0] * (20 if p[0] > 0 else 30)))
    return f


def with_custom_gradient(j, n, l):
    @j.custom_gradient
    def f(x, y):
        return x * y, lambda ct: (ct * 10.0, ct * 20.0)

    return f


def integer_rule(j, n, l):
    @j.custom_vjp
    def f(x, i):
        return x[i]

    f.defvjp(lambda x, i: (x[i], (x, i)), lambda r, ct: (n.zeros_like(r[0]).at[r[1]].set(ct * 5), None))
    return f


def optimised(j, n):
    @j.custom_vjp
    def f(x):
        return n.sin(x)

    f.defvjp(lambda x: (n.sin(x), n.cos(x)), lambda c, ct: (5 * ct * c,), optimize_remat=True)
    return j.grad(f)(0.3)


def nondiff_jvp(j, n):
    @functools.partial(j.custom_jvp, nondiff_argnums=(0,))
    def f(g, x):
        return g(x)

    f.defjvp(lambda g, primals, tangents: (g(primals[0]), 3 * tangents[0]))
    return f


def named_nondiff_jvp(j, n):
    @functools.partial(j.custom_jvp, nondiff_argnames=("kind",))
    def f(x, kind):
        return x * 2 if kind == "a" else x * 3

    f.defjvp(lambda kind, primals, tangents: (f(primals[0], kind), (7 if kind == "a" else 8) * tangents[0]))
    return f


def integer_jvp(j, n):
    @j.custom_jvp
    def f(x, k):
        return x * k

    f.defjvp(lambda p, t: (f(*p), t[0] * 10))
    return f


def undefined_vjp(j):
    return j.custom_vjp(lambda x: x)


def wrong_vjp(j, backward, forward=lambda x: (x, None)):
    f = j.custom_vjp(lambda x: x * 1.0)
    f.defvjp(forward, backward)
    return j.grad(lambda x: f(x).sum())


def wrong_jvp(j, rule):
    f = j.custom_jvp(lambda x: x * 1.0)
    f.defjvp(rule)
    return lambda x: j.jvp(f, (x,), (x,))


CASES: dict[str, table.Case] = {
    "custom_vjp": lambda j, n, l: j.grad(lambda x: clipped(j, n, l)(x, 0.5) * 3)(2.0),
    "custom_vjp with keyword arguments": lambda j, n, l: j.grad(
        lambda x: clipped(j, n, l)(limit=0.5, x=x) * 3
    )(2.0),
    "custom_vjp under jit": lambda j, n, l: j.jit(j.grad(lambda x: clipped(j, n, l)(x, 0.5) * 3))(2.0),
    "custom_vjp under vmap": lambda j, n, l: j.vmap(j.grad(lambda x, k: clipped(j, n, l)(x, k) * 3))(
        X, np.abs(X)
    ),
    "grad of vmap of custom_vjp": lambda j, n, l: j.grad(
        lambda x: (j.vmap(clipped(j, n, l), (0, None))(x, 0.5) * x).sum()
    )(X),
    "custom_vjp of scan": lambda j, n, l: j.grad(
        lambda x: l.scan(lambda c, y: (clipped(j, n, l)(c * y, 0.5), None), 1.0, x)[0]
    )(X),
    "custom_vjp nondiff_argnums": lambda j, n, l: j.grad(lambda x: scaled(j, n, l)("sin", x, 3.0))(2.0),
    "custom_vjp nondiff_argnums value": lambda j, n, l: scaled(j, n, l)("cos", X, 3),
    "custom_vjp of trees": lambda j, n, l: j.vjp(tree_rule(j, n, l), {"a": X, "b": 2.0}, 3.0)[1](
        {"s": n.asarray(X), "t": 5.0}
    ),
    "custom_vjp of integers": lambda j, n, l: j.grad(integer_rule(j, n, l))(X, 1),
    "custom_vjp looks at values": lambda j, n, l: [
        eager_branch(j, n, l)(2.0),
        j.grad(eager_branch(j, n, l))(-2.0),
    ],
    "custom_vjp symbolic zeros": symbolic_vjp,
    "second derivative of custom_vjp": lambda j, n, l: j.grad(
        j.grad(lambda x: scaled(j, n, l)("sin", x * x, 3.0))
    )(0.5),
    "vjp of custom_vjp value": lambda j, n, l: j.vjp(clipped(j, n, l), X, 0.5)[0],
    "jit of a custom_vjp value": lambda j, n, l: j.jit(clipped(j, n, l))(X, 0.5),
    "custom_vjp optimize_remat": lambda j, n, l: optimised(j, n),
    "custom_jvp": lambda j, n, l: j.grad(log1pexp(j, n, l))(100.0),
    "custom_jvp jvp": lambda j, n, l: j.jvp(log1pexp(j, n, l), (X,), (X,)),
    "custom_jvp under jit and vmap": lambda j, n, l: j.jit(j.vmap(j.grad(log1pexp(j, n, l))))(X),
    "second derivative of custom_jvp": lambda j, n, l: j.grad(j.grad(log1pexp(j, n, l)))(0.5),
    "custom_jvp defjvps": lambda j, n, l: j.grad(product_rule(j, n, l), argnums=(0, 1))(2.0, 3.0),
    "custom_jvp looks at values": lambda j, n, l: [
        eager_branch_jvp(j, n, l)(2.0),
        j.grad(eager_branch_jvp(j, n, l))(-2.0),
    ],
    "custom_jvp looks at values in vjp": lambda j, n, l: j.vjp(eager_branch_jvp(j, n, l), 2.0)[1](1.0),
    "custom_jvp symbolic zeros": symbolic_jvp,
    "custom_jvp nondiff_argnums": lambda j, n, l: j.grad(nondiff_jvp(j, n), argnums=1)(n.sin, 2.0),
    "custom_jvp nondiff_argnames": lambda j, n, l: j.grad(named_nondiff_jvp(j, n))(2.0, "b"),
    "custom_jvp with an integer": lambda j, n, l: j.jvp(lambda x: integer_jvp(j, n)(x, 3), (2.0,), (1.0,)),
    "custom_gradient": lambda j, n, l: j.grad(with_custom_gradient(j, n, l), argnums=(0, 1))(2.0, 3.0),
    "custom_gradient value": lambda j, n, l: with_custom_gradient(j, n, l)(2.0, 3.0),
    "custom_gradient under jit": lambda j, n, l: j.jit(j.grad(with_custom_gradient(j, n, l)))(2.0, 3.0),
    "custom_gradient of one argument": lambda j, n, l: j.grad(
        j.custom_gradient(lambda x: (x * x, lambda ct: 7 * ct * x))
    )(3.0),
}


REFUSALS: dict[str, table.Case] = {
    "custom_vjp without rules": lambda j, n, l: undefined_vjp(j)(1.0),
    "forward mode of custom_vjp": lambda j, n, l: j.jvp(lambda x: clipped(j, n, l)(x, 0.5), (1.0,), (1.0,)),
    "jacfwd of custom_vjp": lambda j, n, l: j.jacfwd(lambda x: clipped(j, n, l)(x, 0.5))(X),
    "forward rule without a pair": lambda j, n, l: wrong_vjp(j, lambda r, ct: (ct,), lambda x: x)(1.0),
    "forward rule of another structure": lambda j, n, l: wrong_vjp(
        j, lambda r, ct: (ct,), lambda x: ((x, x), None)
    )(1.0),
    "forward rule of another shape": lambda j, n, l: wrong_vjp(
        j, lambda r, ct: (ct,), lambda x: (n.ones(2), None)
    )(X),
    "backward rule without a tuple": lambda j, n, l: wrong_vjp(j, lambda r, ct: ct)(1.0),
    "backward rule of another length": lambda j, n, l: wrong_vjp(j, lambda r, ct: (ct, ct))(1.0),
    "backward rule of another structure": lambda j, n, l: wrong_vjp(j, lambda r, ct: ((ct, ct),))(1.0),
    "backward rule of another shape": lambda j, n, l: wrong_vjp(j, lambda r, ct: (ct[:2],))(X),
    "custom_jvp without rules": lambda j, n, l: j.custom_jvp(lambda x: x)(1.0),
    "jvp rule without a pair": lambda j, n, l: wrong_jvp(j, lambda p, t: p[0])(1.0),
    "jvp rule of another structure": lambda j, n, l: wrong_jvp(j, lambda p, t: (p[0], (t[0], t[0])))(1.0),
    "jvp rule of another tangent shape": lambda j, n, l: wrong_jvp(j, lambda p, t: (p[0], t[0][:2]))(X),
    "jvp rule of another tangent dtype": lambda j, n, l: wrong_jvp(j, lambda p, t: (p[0], t[0].astype(int)))(
        X
    ),
    "custom_vjp with keyword only arguments": lambda j, n, l: j.custom_vjp(lambda *, x: x)(x=1.0),
    "custom_vjp with a wrong call": lambda j, n, l: clipped(j, n, l)(1.0),
}

TABLE = table.Table("custom", CASES, REFUSALS)


@pytest.mark.parametrize("name", CASES)
def test_equals_jax(name: str) -> None:
    TABLE.check(name)


@pytest.mark.parametrize("name", REFUSALS)
def test_refuses_what_jax_refuses(name: str) -> None:
    TABLE.check_refusal(name)


@pytest.mark.slow
def test_the_record_is_what_jax_says(request: pytest.FixtureRequest) -> None:
    TABLE.check_record(is_update=request.config.getoption("update_golden"))
