"""Table of small programs of control flow, alone and under every transform, each run on infini and on JAX."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from tests.parity import transforms_table as table

A = np.array
X = np.array([0.3, -1.2, 2.0], np.float32)
M = np.array([[0.5, -0.2, 0.1], [0.3, 0.8, -0.4]], np.float32)
Pair = collections.namedtuple("Pair", ["a", "b"])  # a pytree of both libraries


def branch(n, l):
    return lambda p, x: l.cond(p, lambda x: {"y": n.sin(x)}, lambda x: {"y": x * 2}, x)


def rnn(n, l, **options):
    def step(carry, x):
        new = n.tanh(carry * x + 0.5)
        return new, {"old": carry, "sum": new + x}

    return lambda c, xs: l.scan(step, c, xs, **options)


def powers(n, l):
    """A while loop with a traced number of turns."""
    return lambda x, k: l.while_loop(lambda c: c[0] < k, lambda c: (c[0] + 1, c[1] * x), (0, n.ones_like(x)))[
        1
    ]


def newton_root(n, l):
    def solve(f, x0):
        return l.fori_loop(0, 20, lambda _, x: x - f(x) / (2 * x), x0)

    return lambda a: l.custom_root(lambda x: x * x - a, 1.5, solve, lambda g, y: y / g(1.0))


def linear_solve(n, l, **options):
    def solve(matvec, b):
        # Jacobi iterations: the matrix is diagonally dominant.
        return l.fori_loop(0, 30, lambda _, x: x + (b - matvec(x)) / 4.0, n.zeros_like(b))

    return lambda m, b: l.custom_linear_solve(lambda x: m @ x, b, solve, **options)


DOMINANT = np.array([[4.0, 1.0, 0.0], [0.5, 4.0, 1.0], [0.0, 1.0, 4.0]], np.float32)
SYMMETRIC = (DOMINANT + DOMINANT.T) / 2

CASES: dict[str, table.Case] = {
    # cond
    "cond": lambda j, n, l: [branch(n, l)(p, X) for p in (True, False)],
    "cond of an array predicate": lambda j, n, l: branch(n, l)(A(True), X),
    "cond of an integer predicate": lambda j, n, l: [branch(n, l)(p, X) for p in (2, 0)],
    "cond of a float predicate": lambda j, n, l: [branch(n, l)(p, X) for p in (0.5, 0.0)],
    "cond without operands": lambda j, n, l: l.cond(True, lambda: X * 2.0, lambda: X),
    "cond with operand=": lambda j, n, l: l.cond(True, lambda x: x * 2, lambda x: x, operand=X),
    "cond with operand=None": lambda j, n, l: l.cond(
        True, lambda _: n.ones(2), lambda _: n.zeros(2), operand=None
    ),
    "cond of five arguments": lambda j, n, l: [
        l.cond(p, X, lambda x: x * 2, 2 * X, lambda x: x) for p in (True, False)
    ],
    "cond of trees": lambda j, n, l: l.cond(
        True,
        lambda t, k: {"s": t["a"] + k.a, "n": None},
        lambda t, k: {"s": t["b"] * k.b, "n": None},
        {"a": X, "b": X},
        Pair(X, 2 * X),
    ),
    "cond promotes weak types": lambda j, n, l: l.cond(True, lambda: 1.0, lambda: np.float32(2.0)),
    "cond keeps weak types": lambda j, n, l: l.cond(True, lambda: 1.0, lambda: 2.0),
    "cond under jit": lambda j, n, l: j.jit(branch(n, l))(False, X),
    "grad of cond": lambda j, n, l: [
        j.grad(lambda x, p=p: branch(n, l)(p, x)["y"].sum())(X) for p in (True, False)
    ],
    "grad of jit of cond": lambda j, n, l: j.grad(lambda x: j.jit(branch(n, l))(x[0] > 0, x)["y"].sum())(X),
    "hessian of cond": lambda j, n, l: j.hessian(lambda x: branch(n, l)(x[0] > 0, x)["y"].sum())(X),
    "jvp of cond": lambda j, n, l: j.jvp(lambda x: branch(n, l)(True, x), (X,), (X,)),
    "vmap of cond over operands": lambda j, n, l: j.vmap(branch(n, l), (None, 0))(True, M),
    "vmap of cond over the predicate": lambda j, n, l: j.vmap(branch(n, l), (0, None))(A([True, False]), X),
    "vmap of cond over both": lambda j, n, l: j.vmap(branch(n, l))(A([True, False]), M),
    "grad of vmap of cond": lambda j, n, l: j.grad(
        lambda m: j.vmap(branch(n, l))(A([True, False]), m)["y"].sum()
    )(M),
    "grad of cond with a captured value": lambda j, n, l: j.grad(
        lambda x: l.cond(x > 0, lambda: x**2, lambda: -x)
    )(3.0),
    "grad of cond where one branch is constant": lambda j, n, l: j.grad(
        lambda x: l.cond(x > 0, lambda x: 1.0, lambda x: -x, x)
    )(-3.0),
    "cond of an integer branch result": lambda j, n, l: j.grad(
        lambda x: l.cond(x > 0, lambda x: (x, 1), lambda x: (2 * x, 2), x)[0]
    )(3.0),
    "cond with an integer operand": lambda j, n, l: j.grad(
        lambda x: l.cond(x > 0, lambda x, i: x * i, lambda x, i: x, x, 3)
    )(3.0),
    "nested cond": lambda j, n, l: j.vmap(
        j.grad(lambda x: l.cond(x > 0, lambda x: l.cond(x > 1, n.sin, n.cos, x), lambda x: x**2, x))
    )(X),
    # switch
    "switch": lambda j, n, l: [l.switch(k, [n.sin, n.cos, n.tanh], X) for k in (0, 1, 2)],
    "switch clamps": lambda j, n, l: [l.switch(k, [n.sin, n.cos], X) for k in (-3, 7)],
    "switch of one branch": lambda j, n, l: l.switch(3, [n.sin], X),
    "switch of uint8": lambda j, n, l: l.switch(np.uint8(1), [n.sin, n.cos], X),
    "switch with operand=": lambda j, n, l: l.switch(1, [n.sin, n.cos], operand=X),
    "switch under vmap": lambda j, n, l: j.vmap(lambda k, x: l.switch(k, [n.sin, n.cos, n.tanh], x))(
        A([2, 0]), M
    ),
    "grad of switch": lambda j, n, l: j.vmap(
        lambda k: j.grad(lambda x: l.switch(k, [n.sin, n.cos, n.tanh], x).sum())(X)
    )(A([2, 0, 1, 9])),
    # while
    "while": lambda j, n, l: l.while_loop(lambda c: c < 10, lambda c: c * 2, 1),
    "while of a tree": lambda j, n, l: l.while_loop(
        lambda c: c["i"] < 3,
        lambda c: {"i": c["i"] + 1, "x": c["x"] * 2, "n": None},
        {"i": 0, "x": X, "n": None},
    ),
    "while without a turn": lambda j, n, l: l.while_loop(lambda c: c < 0, lambda c: c * 2, np.float32(1.0)),
    "while widens a weak carry": lambda j, n, l: l.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + np.int32(1), c[1] + c[0] * np.float32(1)), (0, 0.0)
    ),
    "while widens an integer to a float": lambda j, n, l: l.while_loop(lambda c: c < 3, lambda c: c + 1.5, 0),
    "while with captured values": lambda j, n, l: j.jit(
        lambda k, s: l.while_loop(lambda c: c < k, lambda c: c + s, 0)
    )(7, 3),
    "jvp of while": lambda j, n, l: j.jvp(lambda x: powers(n, l)(x, 3), (X,), (X,)),
    "jvp of while in a constant": lambda j, n, l: j.jvp(
        lambda x: l.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] + x), (0, np.float32(0)))[1],
        (2.0,),
        (1.0,),
    ),
    "jacfwd of while": lambda j, n, l: j.jacfwd(lambda x: powers(n, l)(x, 3))(X),
    "second forward derivative of while": lambda j, n, l: j.jacfwd(j.jacfwd(lambda x: powers(n, l)(x, 4)))(
        2.0
    ),
    "vmap of while over the bound": lambda j, n, l: j.vmap(powers(n, l), (None, 0))(2.0, A([0, 3, 5])),
    "vmap of while over the carry": lambda j, n, l: j.vmap(powers(n, l), (0, None))(X, 3),
    "vmap of jvp of while": lambda j, n, l: j.vmap(
        lambda x, k: j.jvp(lambda x: powers(n, l)(x, k), (x,), (1.0,))
    )(X, A([0, 3, 2])),
    "grad beside a while": lambda j, n, l: j.grad(
        lambda x: x * l.while_loop(lambda c: c < 10.0, lambda c: c * 2, 1.0)
    )(3.0),
    "grad of while of stopped values": lambda j, n, l: j.grad(
        lambda x: x * l.while_loop(lambda c: c < 10.0, lambda c: c * 2, l.stop_gradient(x))
    )(3.0),
    "while with a batched condition only": lambda j, n, l: j.vmap(
        lambda k: l.while_loop(lambda c: c < k, lambda c: c + 1, 0)
    )(A([2, 5])),
    # fori
    "fori_loop": lambda j, n, l: l.fori_loop(0, 5, lambda i, c: c + i, 0),
    "fori_loop from below zero": lambda j, n, l: l.fori_loop(-2, 3, lambda i, c: c * 2 + i, 1),
    "fori_loop without a turn": lambda j, n, l: l.fori_loop(3, 1, lambda i, c: c + i, 7),
    "fori_loop of a tree": lambda j, n, l: l.fori_loop(
        0, 3, lambda i, c: {"a": c["a"] * i, "b": c["a"]}, {"a": X, "b": X}
    ),
    "fori_loop with traced bounds": lambda j, n, l: j.jit(
        lambda a, b: l.fori_loop(a, b, lambda i, c: c + i, 0)
    )(2, 6),
    "fori_loop with a NumPy bound": lambda j, n, l: l.fori_loop(
        np.int32(0), np.int64(4), lambda i, c: c + i, 0
    ),
    "fori_loop with an array bound": lambda j, n, l: l.fori_loop(0, n.int32(4), lambda i, c: c + i, 0),
    "fori_loop index dtype": lambda j, n, l: l.fori_loop(
        np.uint8(1), np.uint8(4), lambda i, c: i, np.int32(0)
    ),
    "fori_loop unroll": lambda j, n, l: [
        l.fori_loop(0, 5, lambda i, c: c * 2 + i, 1, unroll=u) for u in (1, 2, 5, True, False)
    ],
    "grad of fori_loop": lambda j, n, l: j.grad(lambda x: l.fori_loop(0, 4, lambda i, c: c * x + i, 1.0))(
        1.5
    ),
    "hessian of fori_loop": lambda j, n, l: j.hessian(
        lambda x: l.fori_loop(0, 3, lambda i, c: (c * x).sum() * x, x).sum()
    )(X),
    "jvp of fori_loop with traced bounds": lambda j, n, l: j.jit(
        lambda k: j.jvp(lambda x: l.fori_loop(0, k, lambda i, c: c * x, 1.0), (2.0,), (1.0,))
    )(3),
    "fori_loop under vmap of bounds": lambda j, n, l: j.vmap(
        lambda k: l.fori_loop(0, k, lambda i, c: c + i, 0)
    )(A([0, 3, 5])),
    "fori_loop of an array in place": lambda j, n, l: l.fori_loop(
        0, 3, lambda i, c: c.at[i].set(c[i] * i), np.ones(3, np.float32)
    ),
    # scan
    "scan": lambda j, n, l: rnn(n, l)(np.float32(0.1), X),
    "scan in reverse": lambda j, n, l: rnn(n, l, reverse=True)(np.float32(0.1), X),
    "scan unrolled": lambda j, n, l: [
        rnn(n, l, unroll=u)(np.float32(0.1), np.arange(7, dtype=np.float32))
        for u in (1, 2, 3, 7, 9, True, False)
    ],
    "scan unrolled in reverse": lambda j, n, l: [
        rnn(n, l, unroll=u, reverse=True)(np.float32(0.1), np.arange(7, dtype=np.float32))
        for u in (2, 3, True)
    ],
    "grad of scan unrolled": lambda j, n, l: j.grad(
        lambda x: rnn(n, l, unroll=2)(np.float32(0.1), x)[1]["sum"].sum()
    )(X),
    "scan with _split_transpose": lambda j, n, l: rnn(n, l, _split_transpose=True)(np.float32(0.1), X),
    "scan without xs": lambda j, n, l: l.scan(lambda c, _: (c * 2, c), 1, length=4),
    "scan without a carry": lambda j, n, l: l.scan(lambda c, x: (c, x * 2), None, X),
    "scan without ys": lambda j, n, l: l.scan(lambda c, x: (c + x, None), np.float32(0), X),
    "scan of length zero": lambda j, n, l: l.scan(lambda c, x: (c + x, x * 2), np.float32(0), X[:0]),
    "scan of length one": lambda j, n, l: rnn(n, l)(np.float32(0.1), X[:1]),
    "scan of trees": lambda j, n, l: l.scan(
        lambda c, x: (Pair(c.a + x["u"], c.b * x["v"][0]), (c.a, None, {"v": x["v"][0]})),
        Pair(np.float32(0), np.float32(1)),
        {"u": X, "v": [X, None]},
    ),
    "scan widens a weak carry": lambda j, n, l: l.scan(lambda c, x: (c + x, c), 0.0, X),
    "scan widens an integer carry": lambda j, n, l: l.scan(lambda c, x: (c * 1.5, c), 1, X),
    "scan keeps a weak carry": lambda j, n, l: l.scan(lambda c, x: (c * 2, x), 1.0, X),
    "scan with a length that agrees": lambda j, n, l: rnn(n, l, length=3)(np.float32(0.1), X),
    "scan of integers": lambda j, n, l: l.scan(lambda c, x: (c + x, c * x), 0, A([1, 2, 3])),
    "scan under jit": lambda j, n, l: j.jit(rnn(n, l))(np.float32(0.1), X),
    "grad of scan": lambda j, n, l: j.grad(lambda c, x: rnn(n, l)(c, x)[1]["sum"].sum(), argnums=(0, 1))(
        np.float32(0.1), X
    ),
    "grad of scan in reverse": lambda j, n, l: j.grad(
        lambda x: rnn(n, l, reverse=True)(np.float32(0.1), x)[0]
    )(X),
    "grad of scan of the carry only": lambda j, n, l: j.grad(lambda c: rnn(n, l)(c, X)[0])(np.float32(0.1)),
    "grad of scan in a captured value": lambda j, n, l: j.grad(
        lambda w: l.scan(lambda c, x: (n.tanh(M[:, :2] @ c * w + x), c), n.ones(2), M.T)[0].sum()
    )(0.7),
    "jacfwd of scan": lambda j, n, l: j.jacfwd(lambda x: rnn(n, l)(np.float32(0.1), x))(X),
    "hessian of scan": lambda j, n, l: j.hessian(lambda x: rnn(n, l)(np.float32(0.1), x)[0])(X),
    "jacrev of jacrev of scan": lambda j, n, l: j.jacrev(
        j.jacrev(lambda x: rnn(n, l)(np.float32(0.1), x)[0])
    )(X),
    "third derivative of scan": lambda j, n, l: j.grad(
        j.grad(j.grad(lambda w: l.scan(lambda c, x: (n.sin(c * w + x), None), 0.5, X)[0]))
    )(0.7),
    "vmap of scan over the carry": lambda j, n, l: j.vmap(rnn(n, l), (0, None))(X, X),
    "vmap of scan over xs": lambda j, n, l: j.vmap(rnn(n, l), (None, 0))(np.float32(0.1), M),
    "vmap of scan over axis 1": lambda j, n, l: j.vmap(rnn(n, l), (None, 1), (0, 1))(np.float32(0.1), M),
    "vmap of grad of scan": lambda j, n, l: j.vmap(
        j.grad(lambda c, x: rnn(n, l)(c, x)[0], argnums=1), (0, None)
    )(X, X),
    "grad of scan with integer carry": lambda j, n, l: j.grad(
        lambda x: l.scan(lambda c, y: ((c[0] + 1, c[1] * x + c[0]), None), (0, 1.0), X)[0][1]
    )(0.5),
    "grad of scan of cond": lambda j, n, l: j.grad(
        lambda x: l.scan(lambda c, y: (l.cond(y > 0, n.sin, lambda c: c * y, c), c), 0.5, x)[0]
    )(X),
    "grad of scan of scan": lambda j, n, l: j.grad(
        lambda m: l.scan(lambda c, r: (l.scan(lambda d, x: (n.sin(d * x), None), c, r)[0], c), 0.5, m)[0]
    )(M),
    "grad of scan of while of stopped values": lambda j, n, l: j.grad(
        lambda x: l.scan(
            lambda c, y: (c * y + l.while_loop(lambda k: k < 3, lambda k: k + 1, 0), None), 1.0, x
        )[0]
    )(X),
    "scan with a closed-over tracer": lambda j, n, l: j.jit(
        lambda s: l.scan(lambda c, x: (c + s * x, None), 0.0, X)
    )(2.0),
    # map
    "map": lambda j, n, l: l.map(n.sin, X),
    "map of trees": lambda j, n, l: l.map(lambda t: {"o": t["a"] * t["b"]}, {"a": X, "b": X}),
    "map with batch_size": lambda j, n, l: [
        l.map(lambda x: x.sum() * 2, np.ones((7, 2), "f"), batch_size=k) for k in (1, 2, 3, 7)
    ],
    "map with batch_size of trees": lambda j, n, l: l.map(
        lambda t: {"o": t["a"] * t["b"]}, {"a": X, "b": X}, batch_size=2
    ),
    "map with a batch_size above the length": lambda j, n, l: l.map(n.sin, X, batch_size=5),
    "grad of map with batch_size": lambda j, n, l: j.grad(lambda x: l.map(n.sin, x, batch_size=2).sum())(X),
    # associative_scan
    "associative_scan of sums": lambda j, n, l: [
        l.associative_scan(n.add, np.arange(k, dtype=np.float32)) for k in (1, 2, 3, 4, 7, 8)
    ],
    "associative_scan of an empty array": lambda j, n, l: l.associative_scan(n.add, X[:0]),
    "associative_scan in reverse": lambda j, n, l: l.associative_scan(
        n.add, np.arange(5, dtype=np.float32), reverse=True
    ),
    "associative_scan along axes": lambda j, n, l: [l.associative_scan(n.add, M, axis=a) for a in (0, 1, -1)],
    "associative_scan of pairs": lambda j, n, l: l.associative_scan(
        lambda p, q: (q[0] * p[0], q[0] * p[1] + q[1]), (np.arange(1.0, 6, dtype="f"), np.ones(5, "f"))
    ),
    "associative_scan of matrices": lambda j, n, l: l.associative_scan(
        n.matmul, np.stack([SYMMETRIC] * 4) / 4
    ),
    "associative_scan of maxima": lambda j, n, l: l.associative_scan(n.maximum, X, reverse=True),
    "grad of associative_scan": lambda j, n, l: j.grad(
        lambda x: (l.associative_scan(n.multiply, x) ** 2).sum()
    )(X),
    "vmap of associative_scan": lambda j, n, l: j.vmap(lambda x: l.associative_scan(n.add, x))(M),
    # custom_root and custom_linear_solve
    "custom_root": lambda j, n, l: newton_root(n, l)(2.0),
    "grad of custom_root": lambda j, n, l: j.grad(newton_root(n, l))(2.0),
    "second derivative of custom_root": lambda j, n, l: j.grad(j.grad(newton_root(n, l)))(2.0),
    "jvp of custom_root under jit": lambda j, n, l: j.jit(lambda a: j.jvp(newton_root(n, l), (a,), (1.0,)))(
        2.0
    ),
    "vmap of grad of custom_root": lambda j, n, l: j.vmap(j.grad(newton_root(n, l)))(A([2.0, 3.0], "f")),
    "custom_root with aux": lambda j, n, l: l.custom_root(
        lambda x: x - 3.0, 0.0, lambda f, x: (x - f(x), {"k": 1.0}), lambda g, y: y / g(1.0), has_aux=True
    ),
    "custom_linear_solve": lambda j, n, l: linear_solve(n, l)(DOMINANT, X),
    "custom_linear_solve symmetric": lambda j, n, l: linear_solve(n, l, symmetric=True)(SYMMETRIC, X),
    "jvp of custom_linear_solve": lambda j, n, l: j.jvp(linear_solve(n, l), (DOMINANT, X), (DOMINANT, X)),
    "grad of custom_linear_solve symmetric": lambda j, n, l: j.grad(
        lambda m, b: (linear_solve(n, l, symmetric=True)(m, b) ** 2).sum(), argnums=(0, 1)
    )(SYMMETRIC, X),
    "grad of custom_linear_solve with a transposed solve": lambda j, n, l: j.grad(
        lambda m, b: (
            linear_solve(
                n,
                l,
                transpose_solve=lambda mv, b: l.fori_loop(
                    0, 30, lambda _, x: x + (b - mv(x)) / 4.0, n.zeros_like(b)
                ),
            )(m, b)
            ** 2
        ).sum(),
        argnums=(0, 1),
    )(DOMINANT, X),
    "vmap of custom_linear_solve": lambda j, n, l: j.vmap(linear_solve(n, l), (None, 0))(
        DOMINANT, np.stack([X, 2 * X])
    ),
    "vmap of custom_linear_solve over matrices": lambda j, n, l: j.vmap(linear_solve(n, l), (0, None))(
        np.stack([DOMINANT, SYMMETRIC]), X
    ),
    "custom_linear_solve with aux": lambda j, n, l: l.custom_linear_solve(
        lambda x: 2 * x, X, lambda mv, b: (b / 2, {"steps": 3}), has_aux=True
    ),
    # everything together
    "disable_jit runs loops in Python": lambda j, n, l: python_turns(j, n, l),
    "control flow under disable_jit": lambda j, n, l: under_disable_jit(j, n, l),
}


def python_turns(j, n, l):
    seen = []
    with j.disable_jit():
        l.scan(lambda c, x: (seen.append(float(x)), (c + x, c))[1], np.float32(0.0), X)
        l.while_loop(lambda c: bool(c < 3), lambda c: (seen.append(int(c)), c + 1)[1], 0)
        l.fori_loop(0, 2, lambda i, c: (seen.append(int(i)), c)[1], 0)
        l.cond(True, lambda: seen.append("true"), lambda: seen.append("false"))
        l.switch(1, [lambda: seen.append("zero"), lambda: seen.append("one")])
        j.jit(lambda x: seen.append(float(x)))(2.0)
    return seen


def under_disable_jit(j, n, l):
    with j.disable_jit():
        return [
            rnn(n, l)(np.float32(0.1), X),
            rnn(n, l, reverse=True)(np.float32(0.1), X),
            powers(n, l)(2.0, 3),
            branch(n, l)(True, X),
            j.jit(n.sin)(X),
            j.grad(j.jit(lambda x: n.sin(x).sum()))(X),
            l.map(n.sin, X),
            l.fori_loop(0, 3, lambda i, c: c + i, 0),
        ]


REFUSALS: dict[str, table.Case] = {
    "cond of a vector": lambda j, n, l: l.cond(A([True, False]), n.sin, n.cos, X),
    "cond of a string": lambda j, n, l: l.cond("a", n.sin, n.cos, X),
    "cond of other structures": lambda j, n, l: l.cond(True, lambda x: (x, x), lambda x: x, X),
    "cond of other shapes": lambda j, n, l: l.cond(True, lambda x: x, lambda x: x[0], X),
    "cond of other dtypes": lambda j, n, l: l.cond(True, lambda x: x, lambda x: x.astype(int), X),
    "cond of a weak integer and a float": lambda j, n, l: l.cond(False, lambda: 1, lambda: n.float32(2.0)),
    "cond of no functions": lambda j, n, l: l.cond(True, 1, 2),
    "cond of one function": lambda j, n, l: l.cond(True, n.sin),
    "cond with two kinds of operand": lambda j, n, l: l.cond(True, n.sin, n.cos, X, operand=X),
    "cond of a string operand": lambda j, n, l: l.cond(True, lambda s: 1.0, lambda s: 2.0, "a"),
    "switch of no branches": lambda j, n, l: l.switch(0, [], X),
    "switch of a float": lambda j, n, l: l.switch(0.5, [n.sin, n.cos], X),
    "switch of a vector": lambda j, n, l: l.switch(A([0, 1]), [n.sin, n.cos], X),
    "switch of no functions": lambda j, n, l: l.switch(0, [1, 2], X),
    "switch of other types": lambda j, n, l: l.switch(0, [lambda x: x, lambda x: x[0]], X),
    "while of no functions": lambda j, n, l: l.while_loop(1, 2, 0),
    "while with an integer condition": lambda j, n, l: l.while_loop(lambda c: c, lambda c: c - 1, 3),
    "while with a vector condition": lambda j, n, l: l.while_loop(lambda c: c > 0, lambda c: c - 1, X),
    "while with a tuple condition": lambda j, n, l: l.while_loop(lambda c: (c > 0,), lambda c: c - 1, 3),
    "while with another structure": lambda j, n, l: l.while_loop(lambda c: c > 0, lambda c: (c, c), 3),
    "while with another shape": lambda j, n, l: l.while_loop(lambda c: c[0] > 0, lambda c: c[:2], X),
    "while with another dtype": lambda j, n, l: l.while_loop(lambda c: c < 3, lambda c: c + 1.5, np.int32(0)),
    "fori_loop of no function": lambda j, n, l: l.fori_loop(0, 3, 1, 0),
    "fori_loop with a float bound": lambda j, n, l: l.fori_loop(0, 3.5, lambda i, c: c, 0),
    "fori_loop with bounds of two dtypes": lambda j, n, l: l.fori_loop(
        np.int8(0), np.int16(3), lambda i, c: c, 0
    ),
    "fori_loop with vector bounds": lambda j, n, l: l.fori_loop(0, A([1, 2]), lambda i, c: c, 0),
    "fori_loop with another type": lambda j, n, l: l.fori_loop(0, 3, lambda i, c: (c, c), 0),
    "fori_loop unroll with traced bounds": lambda j, n, l: j.jit(
        lambda k: l.fori_loop(0, k, lambda i, c: c, 0, unroll=2)
    )(3),
    "scan of no function": lambda j, n, l: l.scan(1, 0, X),
    "scan returning no pair": lambda j, n, l: l.scan(lambda c, x: c, 0.0, X),
    "scan returning a triple": lambda j, n, l: l.scan(lambda c, x: (c, x, x), 0.0, X),
    "scan with another structure": lambda j, n, l: l.scan(lambda c, x: ((c, c), x), 0.0, X),
    "scan with another shape": lambda j, n, l: l.scan(lambda c, x: (c[:2], x), X, X),
    "scan with another dtype": lambda j, n, l: l.scan(lambda c, x: (c.astype(int), x), np.float32(0), X),
    "scan without a length": lambda j, n, l: l.scan(lambda c, x: (c, x), 0.0, None),
    "scan with another length": lambda j, n, l: l.scan(lambda c, x: (c, x), 0.0, X, length=4),
    "scan with leading sizes that differ": lambda j, n, l: l.scan(lambda c, x: (c, x), 0.0, (X, X[:2])),
    "scan over a scalar": lambda j, n, l: l.scan(lambda c, x: (c, x), 0.0, 1.0),
    "scan with a negative unroll": lambda j, n, l: l.scan(lambda c, x: (c, x), 0.0, X, unroll=-1),
    "scan with a traced length": lambda j, n, l: j.jit(lambda k: l.scan(lambda c, x: (c, x), 0.0, length=k))(
        3
    ),
    "associative_scan of no function": lambda j, n, l: l.associative_scan(1, X),
    "associative_scan with sizes that differ": lambda j, n, l: l.associative_scan(lambda p, q: p, (X, X[:2])),
    "associative_scan of an axis too many": lambda j, n, l: l.associative_scan(n.add, X, axis=1),
    "custom_linear_solve of another structure": lambda j, n, l: l.custom_linear_solve(
        lambda x: (x, x), X, lambda mv, b: b
    ),
    "custom_linear_solve of another shape": lambda j, n, l: l.custom_linear_solve(
        lambda x: x[:2], X, lambda mv, b: b
    ),
    "custom_root of another structure": lambda j, n, l: l.custom_root(
        lambda x: (x, x), 1.0, lambda f, x: x, lambda g, y: y
    ),
    "reverse mode of custom_linear_solve without a transposed solve": lambda j, n, l: j.grad(
        lambda b: linear_solve(n, l)(DOMINANT, b).sum()
    )(X),
}


TABLE = table.Table("control_flow", CASES, REFUSALS)


@pytest.mark.parametrize("name", CASES)
def test_equals_jax(name: str) -> None:
    TABLE.check(name)


@pytest.mark.parametrize("name", REFUSALS)
def test_refuses_what_jax_refuses(name: str) -> None:
    TABLE.check_refusal(name)


@pytest.mark.slow
def test_the_record_is_what_jax_says(request: pytest.FixtureRequest) -> None:
    TABLE.check_record(is_update=request.config.getoption("update_golden"))
