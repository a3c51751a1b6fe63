"""Table of small programs of the derivative transforms, each run on infini and on JAX."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from tests.parity import transforms_table as table

A = np.array
X = np.array([0.3, -1.2, 2.0], np.float32)
M = np.array([[0.5, -0.2, 0.1], [0.3, 0.8, -0.4]], np.float32)
C = np.array([1.0 + 2.0j, -0.5j, 2.0 - 1.0j], np.complex64)
Pair = collections.namedtuple("Pair", ["a", "b"])  # a pytree of both libraries


def tree_loss(n):
    return lambda p: (n.sin(p["w"]) * p["b"][0]).sum() + p["b"][1] ** 2


TREE = {"w": X, "b": [np.float32(2.0), np.float32(3.0)], "none": None}

CASES: dict[str, table.Case] = {
    # grad and value_and_grad
    "grad of a Python float": lambda j, n, l: j.grad(n.sin)(0.5),
    "grad of a float32 scalar": lambda j, n, l: j.grad(n.sin)(np.float32(0.5)),
    "grad of a pytree with None": lambda j, n, l: j.grad(tree_loss(n))(TREE),
    "grad of a namedtuple": lambda j, n, l: j.grad(lambda p: (p.a * p.b).sum())(Pair(X, 2 * X)),
    "grad of an ordered dict": lambda j, n, l: j.grad(lambda d: (d["b"] * d["a"] ** 2).sum())(
        collections.OrderedDict(b=X, a=2 * X)
    ),
    "grad of a default dict": lambda j, n, l: j.grad(lambda d: (d["b"] * d["a"] ** 2).sum())(
        collections.defaultdict(list, b=X, a=2 * X)
    ),
    "grad of an empty tree": lambda j, n, l: j.grad(lambda p: 1.0)({}),
    "grad with a negative argnum": lambda j, n, l: j.grad(lambda x, y: x * y**2, argnums=-1)(2.0, 3.0),
    "grad with a tuple of argnums": lambda j, n, l: j.grad(lambda x, y: x * y**2, argnums=(1, 0))(2.0, 3.0),
    "grad with one argnum in a tuple": lambda j, n, l: j.grad(lambda x, y: x * y**2, argnums=(1,))(2.0, 3.0),
    "grad with a list of argnums": lambda j, n, l: j.grad(lambda x, y: x * y**2, argnums=[0, -1])(2.0, 3.0),
    "grad with keyword arguments": lambda j, n, l: j.grad(lambda x, *, y: x * y**2)(2.0, y=3.0),
    "grad with an integer beside": lambda j, n, l: j.grad(lambda x, k: x[k] ** 2)(X, 1),
    "grad with a string beside": lambda j, n, l: j.grad(lambda x, k: x**2 if k == "a" else x)(3.0, "a"),
    "grad with a function beside": lambda j, n, l: j.grad(lambda x, f: f(x))(3.0, n.cos),
    "grad of a jitted function with a string": lambda j, n, l: j.grad(
        j.jit(lambda x, k: x**2 if k == "a" else x, static_argnums=1)
    )(3.0, "a"),
    "grad has_aux": lambda j, n, l: j.grad(lambda x: (x**2, {"y": x * 3, "s": "text"}), has_aux=True)(2.0),
    "value_and_grad has_aux": lambda j, n, l: j.value_and_grad(lambda x: (x**2, (x, 1, None)), has_aux=True)(
        2.0
    ),
    "value_and_grad of argnums": lambda j, n, l: j.value_and_grad(lambda x, y: (x * y).sum(), (0, 1))(
        X, 2 * X
    ),
    "grad aux that depends on nothing": lambda j, n, l: j.grad(lambda x: (x, n.ones(2)), has_aux=True)(2.0),
    "grad of grad with aux": lambda j, n, l: j.grad(
        lambda x: j.grad(lambda x: (x**3, x**2), has_aux=True)(x)[0]
    )(2.0),
    "third derivative": lambda j, n, l: j.grad(j.grad(j.grad(lambda x: n.sin(x) * n.exp(x))))(0.3),
    "fourth derivative under jit": lambda j, n, l: j.jit(j.grad(j.grad(j.grad(j.grad(n.tanh)))))(0.3),
    "grad of an unused argument": lambda j, n, l: j.grad(lambda x, y: x**2, argnums=(0, 1))(X[0], X),
    "grad of a constant": lambda j, n, l: j.grad(lambda x: 3.0)(2.0),
    "grad of an int constant output as float": lambda j, n, l: j.grad(lambda x: n.float32(3))(X).sum(),
    "grad through an integer": lambda j, n, l: j.grad(lambda x: x * n.floor(x).astype(int).astype(float))(
        2.5
    ),
    "grad of an empty array": lambda j, n, l: j.grad(lambda x: x.sum())(np.zeros((0, 3), np.float32)),
    "grad with nan": lambda j, n, l: j.grad(lambda x: n.sqrt(x).sum())(A([-1.0, 0.0, 4.0], "f")),
    "grad of where keeps nan out": lambda j, n, l: j.grad(
        lambda x: n.where(x > 0, n.sqrt(n.where(x > 0, x, 1.0)), 0.0).sum()
    )(X),
    "grad in bfloat16": lambda j, n, l: j.grad(lambda x: (x * x).sum())(n.asarray(X, n.bfloat16)),
    "grad in float16 of a float32 sum": lambda j, n, l: j.grad(lambda x: (x.astype(n.float32) ** 2).sum())(
        n.asarray(X, n.float16)
    ),
    "grad of python control flow": lambda j, n, l: [
        j.grad(lambda x: x**2 if x > 0 else -x)(v) for v in (2.0, -3.0)
    ],
    "grad of a python loop on values": lambda j, n, l: j.grad(doubled)(1.5),
    "grad of stop_gradient": lambda j, n, l: j.grad(lambda x: x * l.stop_gradient(x))(3.0),
    "stop_gradient of a tree": lambda j, n, l: l.stop_gradient({"a": X, "b": (1, None)}),
    "stop_gradient of integers": lambda j, n, l: l.stop_gradient(A([1, 2])),
    "jvp of stop_gradient": lambda j, n, l: j.jvp(lambda x: l.stop_gradient(x) * x, (X,), (X,)),
    "grad keeps weak types": lambda j, n, l: j.grad(lambda p: p[0] * p[1])((2.0, np.float32(3.0))),
    "grad with allow_int": lambda j, n, l: j.grad(lambda x: 2.0, allow_int=True)(3),
    "grad with allow_int of a tree": lambda j, n, l: j.grad(lambda p: p["x"][p["i"]] ** 2, allow_int=True)(
        {"x": X, "i": A([1, 2])[0]}
    ),
    "grad with allow_int of booleans": lambda j, n, l: j.grad(
        lambda m, x: (x * m).sum(), argnums=(0, 1), allow_int=True
    )(A([True, False, True]), X),
    "value_and_grad of a jitted function": lambda j, n, l: j.value_and_grad(j.jit(tree_loss(n)))(TREE),
    "jit of value_and_grad": lambda j, n, l: j.jit(j.value_and_grad(tree_loss(n)))(TREE),
    # complex derivatives
    "grad of a real function of a complex argument": lambda j, n, l: j.grad(
        lambda z: (l.real(z) ** 2 + 3 * l.imag(z)).sum()
    )(C),
    "grad of abs squared": lambda j, n, l: j.grad(lambda z: l.real(z * l.conj(z)).sum())(C),
    "holomorphic grad": lambda j, n, l: j.grad(lambda z: z**2 * 1j, holomorphic=True)(1.0 + 2.0j),
    "holomorphic value_and_grad": lambda j, n, l: j.value_and_grad(lambda z: z * z * z, holomorphic=True)(
        np.complex64(1 - 1j)
    ),
    "holomorphic jacfwd": lambda j, n, l: j.jacfwd(lambda z: z * z, holomorphic=True)(C),
    "holomorphic jacrev": lambda j, n, l: j.jacrev(lambda z: z * z, holomorphic=True)(C),
    "holomorphic hessian": lambda j, n, l: j.hessian(lambda z: (z * z * z).sum(), holomorphic=True)(C),
    "jacrev from real to complex": lambda j, n, l: j.vjp(lambda x: x * (1 + 2j), X)[1](C),
    "jacfwd from real to complex": lambda j, n, l: j.jacfwd(lambda x: x * (1.0 + 2j))(X),
    "vjp with an imaginary cotangent": lambda j, n, l: j.vjp(lambda z: z * z, C)[1](1j * C),
    "jvp of a complex function": lambda j, n, l: j.jvp(lambda z: z * z, (C,), (1j * C,)),
    "linear_transpose of a complex function": lambda j, n, l: j.linear_transpose(lambda z: z * (1 + 2j), C)(
        C
    ),
    # vjp
    "vjp": lambda j, n, l: j.vjp(lambda x, y: x * n.sin(y), X, 2 * X)[1](X),
    "vjp twice": lambda j, n, l: [(f := j.vjp(n.sin, X)[1])(X), f(2 * X)],
    "vjp has_aux": lambda j, n, l: [
        (r := j.vjp(lambda x: (x * x, {"a": x}), X, has_aux=True))[0],
        r[2],
        r[1](X),
    ],
    "vjp of a tree": lambda j, n, l: j.vjp(lambda p: {"o": p["w"] * p["b"][0], "n": None}, TREE)[1](
        {"o": X, "n": None}
    ),
    "vjp of no arguments": lambda j, n, l: j.vjp(lambda: n.ones(2))[1](np.ones(2, np.float32)),
    "vjp with integer inputs": lambda j, n, l: j.vjp(lambda x, i: x[i], X, 1)[1](np.float32(1.0)),
    "vjp with an integer output": lambda j, n, l: j.vjp(lambda x: (x * 2, (x > 0)), X)[1](
        (X, np.zeros(3, FLOAT0))
    ),
    "vjp under jit": lambda j, n, l: j.jit(lambda x, ct: j.vjp(n.sin, x)[1](ct))(X, X),
    "vjp is a pytree": lambda j, n, l: len(j.tree_util.tree_leaves(j.vjp(lambda x: x * n.exp(x), X)[1])) > 0,
    "vjp function through jit": lambda j, n, l: j.jit(lambda f, ct: f(ct))(j.vjp(n.sin, X)[1], X),
    "vjp function out of jit": lambda j, n, l: j.jit(lambda x: j.vjp(n.sin, x))(X)[1](X),
    "vjp mapped over cotangents": lambda j, n, l: j.vmap(j.vjp(lambda x: M @ x, X)[1])(np.eye(2, dtype="f")),
    "vjp of a weak scalar": lambda j, n, l: j.vjp(lambda x: x * 2, 3.0)[1](1.0),
    "grad of vjp": lambda j, n, l: j.grad(lambda x: j.vjp(lambda x: x**3, x)[1](x)[0])(2.0),
    # jvp
    "jvp": lambda j, n, l: j.jvp(lambda x, y: x * n.sin(y), (X, X), (2 * X, X)),
    "jvp with lists": lambda j, n, l: j.jvp(n.sin, [X], [X]),
    "jvp of a tree": lambda j, n, l: j.jvp(tree_loss(n), (TREE,), (TREE,)),
    "jvp with integers": lambda j, n, l: j.jvp(
        lambda x, i: (x[i], i), (X, np.int32(1)), (X, np.zeros((), FLOAT0))
    ),
    "jvp of a constant output": lambda j, n, l: j.jvp(lambda x: (x, 2.0, n.ones(2)), (X,), (X,)),
    "jvp of a boolean output": lambda j, n, l: j.jvp(lambda x: x > 0, (X,), (X,)),
    "jvp has_aux": lambda j, n, l: j.jvp(lambda x: (x * x, {"a": x}), (X,), (X,), has_aux=True),
    "jvp of jvp": lambda j, n, l: j.jvp(lambda x: j.jvp(n.sin, (x,), (x,))[1], (X,), (X,)),
    "jvp of grad": lambda j, n, l: j.jvp(j.grad(lambda x: n.sin(x).sum()), (X,), (X,)),
    "grad of jvp": lambda j, n, l: j.grad(lambda x: j.jvp(n.sin, (x,), (X,))[1].sum())(X),
    "jvp of a weak scalar": lambda j, n, l: j.jvp(lambda x: x * 2, (3.0,), (1.0,)),
    "jvp under vmap": lambda j, n, l: j.vmap(lambda t: j.jvp(n.sin, (X,), (t,))[1])(np.eye(3, dtype="f")),
    # linearize and linear_transpose
    "linearize": lambda j, n, l: [(r := j.linearize(lambda x: n.sin(x) * x, X))[0], r[1](X), r[1](2 * X)],
    "linearize of a tree": lambda j, n, l: [(r := j.linearize(tree_loss(n), TREE))[0], r[1](TREE)],
    "linearize has_aux": lambda j, n, l: [
        (r := j.linearize(lambda x: (x**2, "a"), X, has_aux=True))[1](X),
        r[2],
    ],
    "linearize of a while": lambda j, n, l: j.linearize(
        lambda x: l.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, n.sin(c[1])), (0, x))[1], X
    )[1](X),
    "linearize mapped": lambda j, n, l: j.vmap(j.linearize(n.sin, X)[1])(np.eye(3, dtype="f")),
    "linearize under jit": lambda j, n, l: j.jit(lambda x: j.linearize(n.sin, x)[1](x))(X),
    "linear_transpose": lambda j, n, l: j.linear_transpose(lambda x: M @ x, X)(A([1.0, 2.0], "f")),
    "linear_transpose of a shape": lambda j, n, l: j.linear_transpose(
        lambda x: M @ x, j.ShapeDtypeStruct((3,), np.float32)
    )(A([1.0, 2.0], "f")),
    "linear_transpose of integers": lambda j, n, l: j.linear_transpose(lambda x: 3 * x, 1)(2),
    "linear_transpose of a tree": lambda j, n, l: j.linear_transpose(
        lambda p: {"s": p["a"] + 2 * p["b"]}, {"a": X, "b": X}
    )({"s": X}),
    "linear_transpose of two arguments": lambda j, n, l: j.linear_transpose(lambda x, y: x - 3 * y, X, X)(X),
    "linear_transpose of a zero": lambda j, n, l: j.linear_transpose(lambda x: n.zeros(2), X)(
        A([1.0, 2.0], "f")
    ),
    "linear_transpose of a scan": lambda j, n, l: j.linear_transpose(
        lambda x: l.scan(lambda c, a: (c + a, 2 * c), np.float32(0.0), x)[1], X
    )(X),
    "linear_transpose of a cond": lambda j, n, l: j.linear_transpose(
        lambda x: l.cond(True, lambda x: 2 * x, lambda x: x, x), X
    )(X),
    # Jacobians
    "jacfwd": lambda j, n, l: j.jacfwd(lambda x: n.sin(M @ x))(X),
    "jacrev": lambda j, n, l: j.jacrev(lambda x: n.sin(M @ x))(X),
    "jacobian": lambda j, n, l: j.jacobian(lambda x: n.sin(M @ x))(X),
    "jacfwd of a tree to a tree": lambda j, n, l: j.jacfwd(
        lambda p: {"u": p["a"] * p["b"], "v": p["a"].sum()}
    )({"a": X, "b": M[:1] * 2}),
    "jacrev of a tree to a tree": lambda j, n, l: j.jacrev(
        lambda p: {"u": p["a"] * p["b"], "v": p["a"].sum()}
    )({"a": X, "b": M[:1] * 2}),
    "jacfwd of argnums": lambda j, n, l: j.jacfwd(lambda x, y: x * y, argnums=(0, 1))(X, 2 * X),
    "jacrev of argnums": lambda j, n, l: j.jacrev(lambda x, y: x * y, argnums=(0, -1))(X, 2 * X),
    "jacfwd has_aux": lambda j, n, l: j.jacfwd(lambda x: (x * x, {"a": x}), has_aux=True)(X),
    "jacrev has_aux": lambda j, n, l: j.jacrev(lambda x: (x * x, {"a": x}), has_aux=True)(X),
    "jacfwd of a scalar": lambda j, n, l: j.jacfwd(n.sin)(0.5),
    "jacrev of a scalar": lambda j, n, l: j.jacrev(n.sin)(0.5),
    "jacrev of a matrix": lambda j, n, l: j.jacrev(lambda m: m @ m.T)(M),
    "jacfwd of a matrix": lambda j, n, l: j.jacfwd(lambda m: m @ m.T)(M),
    "jacrev with allow_int": lambda j, n, l: j.jacrev(lambda i, x: x * 2, argnums=1, allow_int=True)(3, X),
    "jacfwd of a constant": lambda j, n, l: j.jacfwd(lambda x: n.ones(2))(X),
    "jacrev of a constant": lambda j, n, l: j.jacrev(lambda x: n.ones(2))(X),
    "hessian": lambda j, n, l: j.hessian(lambda x: n.prod(n.sin(x)))(X),
    "hessian of a tree": lambda j, n, l: j.hessian(lambda p: (p["a"] ** 2 * p["b"]).sum())(
        {"a": X, "b": 2 * X}
    ),
    "hessian of argnums": lambda j, n, l: j.hessian(lambda x, y: (x**2 * y).sum(), argnums=(0, 1))(X, 2 * X),
    "hessian has_aux": lambda j, n, l: j.hessian(lambda x: ((x**3).sum(), {"a": x}), has_aux=True)(X),
    "hessian under jit and vmap": lambda j, n, l: j.jit(j.vmap(j.hessian(lambda x: n.prod(n.sin(x)))))(M),
    "jacrev of jacfwd": lambda j, n, l: j.jacrev(j.jacfwd(lambda x: n.sin(x) * x.sum()))(X),
    "fwd_and_bwd": lambda j, n, l: [
        (r := (pair := j.fwd_and_bwd(lambda x, y: x * n.sin(y), argnums=(0, 1)))[0](X, X))[0],
        pair[1](r[1], X),
    ],
    "grad with reduce_axes": lambda j, n, l: j.grad(n.sin, reduce_axes=())(1.0),
}
FLOAT0 = np.dtype([("float0", np.void, 0)])


def doubled(x):
    while x < 10:
        x = x * 2
    return x


REFUSALS: dict[str, table.Case] = {
    "grad of a vector": lambda j, n, l: j.grad(lambda x: x)(X),
    "grad of a tree output": lambda j, n, l: j.grad(lambda x: {"a": x})(1.0),
    "grad of an integer output": lambda j, n, l: j.grad(lambda x: n.int32(3))(1.0),
    "grad of a complex output": lambda j, n, l: j.grad(lambda x: x * 1j)(1.0),
    "grad of an integer input": lambda j, n, l: j.grad(lambda x: x * 1.0)(3),
    "grad of a boolean input": lambda j, n, l: j.grad(lambda x: x * 1.0)(True),
    "grad of a complex input to a complex output": lambda j, n, l: j.grad(lambda z: z * z)(1j),
    "holomorphic grad of a real input": lambda j, n, l: j.grad(lambda z: z * 1j, holomorphic=True)(1.0),
    "holomorphic grad of a real output": lambda j, n, l: j.grad(lambda z: l.real(z), holomorphic=True)(1j),
    "grad of a string": lambda j, n, l: j.grad(lambda x: 1.0)("a"),
    "grad with argnums out of range": lambda j, n, l: j.grad(lambda x: x, argnums=1)(1.0),
    "grad with a negative argnum out of range": lambda j, n, l: j.grad(lambda x: x, argnums=-2)(1.0),
    "grad with tuple argnums out of range": lambda j, n, l: j.grad(lambda x: x, argnums=(0, 1))(1.0),
    "grad with float argnums": lambda j, n, l: j.grad(lambda x: x, argnums=0.5)(1.0),
    "grad with string argnums": lambda j, n, l: j.grad(lambda x: x, argnums="x")(1.0),
    "grad of keyword only": lambda j, n, l: j.grad(lambda x: x)(x=1.0),
    "grad of None": lambda j, n, l: j.grad(None)(1.0),
    "grad has_aux without aux": lambda j, n, l: j.grad(lambda x: x, has_aux=True)(1.0),
    "grad has_aux with a triple": lambda j, n, l: j.grad(lambda x: (x, 1, 2), has_aux=True)(1.0),
    "jvp of non-tuples": lambda j, n, l: j.jvp(n.sin, 1.0, 1.0),
    "jvp of other structures": lambda j, n, l: j.jvp(n.sin, (1.0,), (1.0, 2.0)),
    "jvp of other shapes": lambda j, n, l: j.jvp(n.sin, (X,), (1.0,)),
    "jvp of other dtypes": lambda j, n, l: j.jvp(n.sin, (X,), (A([1, 2, 3]),)),
    "jvp with an integer primal and float tangent": lambda j, n, l: j.jvp(lambda x: x * 2.0, (3,), (1.0,)),
    "jvp of a function of no array": lambda j, n, l: j.jvp(lambda x: x, ("a",), ("b",)),
    "vjp with another cotangent structure": lambda j, n, l: j.vjp(lambda x: (x, x), X)[1](X),
    "vjp with another cotangent shape": lambda j, n, l: j.vjp(lambda x: x, X)[1](np.float32(1.0)),
    "vjp with another cotangent dtype": lambda j, n, l: j.vjp(lambda x: x, X)[1](A([1, 2, 3])),
    "vjp of a string": lambda j, n, l: j.vjp(lambda x: x, "a"),
    "vjp has_aux without aux": lambda j, n, l: j.vjp(lambda x: x, X, has_aux=True),
    "linearize with another tangent structure": lambda j, n, l: j.linearize(n.sin, X)[1](X, X),
    "linearize with another tangent shape": lambda j, n, l: j.linearize(n.sin, X)[1](np.float32(1.0)),
    "linear_transpose of sin": lambda j, n, l: j.linear_transpose(n.sin, X)(X),
    "linear_transpose with another cotangent": lambda j, n, l: j.linear_transpose(lambda x: x, X)(
        np.float32(1)
    ),
    "linear_transpose with another structure": lambda j, n, l: j.linear_transpose(lambda x: x, X)((X, X)),
    "jacfwd of an integer": lambda j, n, l: j.jacfwd(lambda x: x * 1.0)(3),
    "jacrev of an integer": lambda j, n, l: j.jacrev(lambda x: x * 1.0)(3),
    "jacrev of an integer output": lambda j, n, l: j.jacrev(lambda x: n.int32(3))(1.0),
    "jacfwd of a complex input": lambda j, n, l: j.jacfwd(lambda z: z * z)(C),
    "jacrev of a complex output": lambda j, n, l: j.jacrev(lambda z: z * z)(C),
    "holomorphic jacfwd of a real input": lambda j, n, l: j.jacfwd(lambda z: z, holomorphic=True)(X),
    "reverse mode of while": lambda j, n, l: j.grad(
        lambda x: l.while_loop(lambda c: c < 10.0, lambda c: c * 2, x)
    )(1.0),
    "reverse mode of fori with traced bounds": lambda j, n, l: j.jit(
        j.grad(lambda x, k: l.fori_loop(0, k, lambda i, c: c * x, 1.0))
    )(2.0, 3),
    "bool of a traced value under jit of grad": lambda j, n, l: j.jit(j.grad(lambda x: x if x > 0 else -x))(
        1.0
    ),
}


TABLE = table.Table("derivatives", CASES, REFUSALS)


@pytest.mark.parametrize("name", CASES)
def test_equals_jax(name: str) -> None:
    TABLE.check(name)


@pytest.mark.parametrize("name", REFUSALS)
def test_refuses_what_jax_refuses(name: str) -> None:
    TABLE.check_refusal(name)


@pytest.mark.slow
def test_the_record_is_what_jax_says(request: pytest.FixtureRequest) -> None:
    TABLE.check_record(is_update=request.config.getoption("update_golden"))
