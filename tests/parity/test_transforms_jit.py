"""Table of small programs of jit, its stages, and what controls tracing, each run on infini and on JAX."""

from __future__ import annotations

import collections
import functools

import numpy as np
import pytest

from tests.parity import transforms_table as table

A = np.array
X = np.array([0.3, -1.2, 2.0], np.float32)
Pair = collections.namedtuple("Pair", ["a", "b"])  # a pytree of both libraries
W = np.array([[0.5, -0.2, 0.1], [0.3, 0.8, -0.4], [0.2, 0.2, 0.9]], np.float32)


def shape_of(j, *shape, dtype=np.float32):
    return j.ShapeDtypeStruct(shape, dtype)


class Scale:
    def __init__(self, j, factor):
        self.j, self.factor = j, factor

    def __call__(self, x):
        return x * self.factor

    def double(self, x):
        return self.j.jit(self.apply, static_argnums=1)(x, 2)

    def apply(self, x, times):
        return x * self.factor * times


def donated(j, n):
    x, y = n.ones((4, 4)), n.ones((4, 4)) * 2
    result = j.jit(lambda x, y: x + y, donate_argnames="x")(x, y)
    return result, x.is_deleted(), y.is_deleted()


def trace_counts(j, n):
    count = []

    @j.jit
    def f(x, k=None):
        count.append(1)
        return x

    found = []
    for args in [
        (X,),
        (2 * X,),
        (X[:2],),
        (n.asarray(X),),
        (1.0,),
        (np.float32(1),),
        (2,),
        (True,),
        (X, X),
        (X, {"a": X}),
    ]:
        f(*args)
        found.append(len(count))
    return found


def make_jaxpr_counts(j, n):
    program = j.make_jaxpr(lambda x: n.sin(n.cos(x)))(X)
    equations = getattr(program, "eqns", None) or program.equations
    return len(equations), [str(getattr(e, "primitive", None) or e.op) for e in equations]


def converted_closure(j, n):
    def outer(y):
        f, hoisted = j.closure_convert(lambda x: n.sin(x * y), 1.0)
        return f(3.0, *hoisted)

    return outer


def in_scope(j, n, x):
    with j.named_scope("outer"):
        return j.named_scope("inner")(n.sin)(x)


def evaluated_early(j, n, x):
    with j.ensure_compile_time_eval():
        k = int(n.asarray(2) * 3)
    return x * k


def without_jit(j, n):
    seen = []
    with j.disable_jit():
        result = j.jit(lambda x: (seen.append(float(x)), x * 2 if x > 0 else x)[1])(2.0)
    return seen, result


def with_jit_again(j, n):
    with j.disable_jit(), j.disable_jit(False):
        return j.jit(lambda x: x * 2)(X)


CASES: dict[str, table.Case] = {
    "jit of no arguments": lambda j, n, l: j.jit(lambda: n.ones(2))(),
    "jit returning None": lambda j, n, l: j.jit(lambda x: None)(X),
    "jit returning its argument": lambda j, n, l: j.jit(lambda x: x)(X),
    "jit returning an argument twice": lambda j, n, l: j.jit(lambda x: (x, {"a": x}))(X),
    "jit returning Python numbers": lambda j, n, l: j.jit(lambda x: (1, 2.0, True, 1j))(X),
    "jit returning NumPy data": lambda j, n, l: j.jit(lambda x: (np.float32(1), np.arange(2)))(X),
    "jit of trees": lambda j, n, l: j.jit(lambda p, *rest, **named: (p, rest, named))(
        {"b": X, "a": [X, None, ()]}, Pair(1, 2.0), k=X, a=(1,)
    ),
    "jit of a mixed-key dict of strings": lambda j, n, l: j.jit(lambda d: d)({"b": 1, "a": 2}),
    "jit static_argnums": lambda j, n, l: j.jit(lambda x, k: x * k, static_argnums=1)(X, 3),
    "jit negative static_argnums": lambda j, n, l: j.jit(lambda x, k: x * len(k), static_argnums=-1)(
        X, "abc"
    ),
    "jit static_argnames": lambda j, n, l: j.jit(lambda x, k: x * len(k), static_argnames="k")(X, k="abc"),
    "jit static_argnames by position": lambda j, n, l: j.jit(lambda x, k: x * len(k), static_argnames=("k",))(
        X, "abc"
    ),
    "jit static_argnums by name": lambda j, n, l: j.jit(lambda x, k: x * len(k), static_argnums=1)(
        X, k="abc"
    ),
    "jit static default": lambda j, n, l: j.jit(lambda x, k="ab": x * len(k), static_argnames="k")(X),
    "jit static keyword only": lambda j, n, l: j.jit(lambda x, *, k="ab": x * len(k), static_argnames="k")(
        X, k="a"
    ),
    "jit several static": lambda j, n, l: j.jit(lambda f, x, k: f(x) * k, static_argnums=(0, 2))(n.sin, X, 2),
    "jit static None": lambda j, n, l: j.jit(lambda x, k: x if k is None else k, static_argnums=1)(X, None),
    "jit of a closure": lambda j, n, l: (lambda y: j.jit(lambda x: x * y)(X))(n.ones(3) * 2),
    "jit of nested jits": lambda j, n, l: j.jit(lambda x: j.jit(lambda x: j.jit(n.sin)(x) * 2)(x) + 1)(X),
    "jit of partial": lambda j, n, l: j.jit(functools.partial(lambda k, x: x * k, 3))(X),
    "jit of tree_util.Partial argument": lambda j, n, l: j.jit(lambda f, x: f(x))(
        j.tree_util.Partial(n.multiply, 3.0), X
    ),
    "jit as a decorator with options": lambda j, n, l: j.jit(static_argnums=(1,))(lambda x, k: x * k)(X, 3),
    "jit inline and keep_unused": lambda j, n, l: j.jit(lambda x, y: x * 2, inline=True, keep_unused=True)(
        X, X
    ),
    "jit of a method": lambda j, n, l: Scale(j, 3.0).double(X),
    "jit of a callable object": lambda j, n, l: j.jit(Scale(j, 3.0))(X),
    "jit keeps weak types": lambda j, n, l: j.jit(lambda x: (x, x * 2, x * np.float32(2)))(2.0),
    "jit donation": lambda j, n, l: donated(j, n),
    "jit trace counts": lambda j, n, l: trace_counts(j, n),
    "jit eval_shape": lambda j, n, l: j.jit(lambda x, k: {"a": x[:k]}, static_argnums=1).eval_shape(X, 2),
    "jit compiler_options": lambda j, n, l: j.jit(n.sin, compiler_options={})(X),
    "jit of an empty array": lambda j, n, l: j.jit(lambda x: (x * 2, x.sum()))(X[:0]),
    "jit of a random closure constant": lambda j, n, l: j.jit(lambda x: x + np.arange(3, dtype=np.float32))(
        X
    ),
    "lower and compile": lambda j, n, l: (
        j.jit(lambda x, y: x * y["a"]).lower(X, {"a": X}).compile()(X, {"a": X})
    ),
    "lower of shapes": lambda j, n, l: j.jit(n.sin).lower(shape_of(j, 3)).compile()(X),
    "lower with static arguments": lambda j, n, l: (
        j.jit(lambda x, k: x * k, static_argnums=1).lower(X, 3).compile()(X)
    ),
    "lower with keyword arguments": lambda j, n, l: (
        j.jit(lambda x, *, y: x * y).lower(X, y=X).compile()(X, y=X)
    ),
    "compiled keeps weak types": lambda j, n, l: j.jit(lambda x: x * 2).lower(1.0).compile()(3.0),
    "compiled in_tree and out_tree": lambda j, n, l: [
        (c := j.jit(lambda x, y: {"o": x}).lower(X, (X,)).compile()).in_tree.num_leaves,
        c.out_tree.num_leaves,
    ],
    "trace": lambda j, n, l: [
        (t := j.jit(lambda x: {"a": x * 2}).trace(X)).out_info,
        t.lower().compile()(X),
        t.fun_name,
    ],
    "lowered out_info": lambda j, n, l: j.jit(lambda x: {"a": x[:2]}).lower(X).out_info,
    "cost_analysis has flops": lambda j, n, l: (
        j.jit(lambda a, b: a @ b).lower(W, W).compile().cost_analysis()["flops"] > 0
    ),
    "memory_analysis counts arguments": lambda j, n, l: (
        j.jit(lambda a: a @ a).lower(W).compile().memory_analysis().argument_size_in_bytes
    ),
    "memory_analysis counts results": lambda j, n, l: (
        j.jit(lambda a: a @ a).lower(W).compile().memory_analysis().output_size_in_bytes
    ),
    "as_text is text": lambda j, n, l: [
        isinstance((low := j.jit(n.sin).lower(X)).as_text(), str),
        isinstance(low.compile().as_text(), str),
    ],
    "eval_shape": lambda j, n, l: j.eval_shape(lambda x, y: {"a": x @ y, "b": x.sum()}, W, X),
    "eval_shape of shapes": lambda j, n, l: j.eval_shape(lambda x: (x * 2.0, x > 0), shape_of(j, 2, 3)),
    "eval_shape of weak types": lambda j, n, l: j.eval_shape(lambda x: (x * 2, 1.0, 1), 2.0),
    "eval_shape with keywords": lambda j, n, l: j.eval_shape(lambda x, *, y: x + y, X, y=shape_of(j, 3)),
    "eval_shape of a scan": lambda j, n, l: j.eval_shape(
        lambda x: l.scan(lambda c, y: (c + y, c), 0.0, x), X
    ),
    "make_jaxpr counts": lambda j, n, l: make_jaxpr_counts(j, n),
    "make_jaxpr return_shape": lambda j, n, l: j.make_jaxpr(lambda x: {"a": x * 2}, return_shape=True)(X)[1],
    "make_jaxpr static_argnums": lambda j, n, l: j.make_jaxpr(
        lambda x, k: x * len(k), static_argnums=1, return_shape=True
    )(X, "ab")[1],
    "closure_convert": lambda j, n, l: j.grad(converted_closure(j, n))(2.0),
    "named_call": lambda j, n, l: j.jit(j.named_call(lambda x: x * 2, name="twice"))(X),
    "named_scope": lambda j, n, l: j.jit(lambda x: in_scope(j, n, x))(X),
    "ensure_compile_time_eval": lambda j, n, l: j.jit(lambda x: evaluated_early(j, n, x))(X),
    "disable_jit": lambda j, n, l: without_jit(j, n),
    "disable_jit(False)": lambda j, n, l: with_jit_again(j, n),
    "device_put of a tree": lambda j, n, l: j.device_put({"a": X, "b": [1.0, None]}),
    "device_put under jit": lambda j, n, l: j.jit(lambda x: j.device_put(x) * 2)(X),
    "grad of device_put": lambda j, n, l: j.grad(lambda x: j.device_put(x * 2).sum())(X),
    "device_get": lambda j, n, l: j.device_get({"a": n.asarray(X), "b": 1.0, "c": None, "d": np.arange(2)}),
    "device_get is NumPy": lambda j, n, l: type(j.device_get(n.asarray(X))).__name__,
    "block_until_ready": lambda j, n, l: j.block_until_ready({"a": n.asarray(X), "b": 1, "c": "text"}),
}


REFUSALS: dict[str, table.Case] = {
    "jit of no function": lambda j, n, l: j.jit(3),
    "jit of a string": lambda j, n, l: j.jit(lambda x: x)("a"),
    "jit of an object": lambda j, n, l: j.jit(lambda x: x)(object()),
    "jit returning a string": lambda j, n, l: j.jit(lambda x: "a")(X),
    "jit of an unhashable static": lambda j, n, l: j.jit(lambda x, k: x, static_argnums=1)(X, [1]),
    "jit of an unhashable static name": lambda j, n, l: j.jit(lambda x, k: x, static_argnames="k")(X, k=[1]),
    "jit static_argnums out of range": lambda j, n, l: j.jit(lambda x: x, static_argnums=3),
    "jit static_argnames unknown": lambda j, n, l: j.jit(lambda x: x, static_argnames="y"),
    "jit donate_argnums out of range": lambda j, n, l: j.jit(lambda x: x, donate_argnums=3),
    "jit static and donated": lambda j, n, l: j.jit(lambda x: x, static_argnums=0, donate_argnums=0),
    "jit of a donated argument used again": lambda j, n, l: [
        x := n.ones((4, 4)),
        j.jit(lambda x: x + 1, donate_argnums=0)(x),
        x + 1,
    ],
    "jit with a wrong number of arguments": lambda j, n, l: j.jit(lambda x: x)(X, X),
    "jit with unknown options": lambda j, n, l: j.jit(lambda x: x, staticargnums=0),
    "bool under jit": lambda j, n, l: j.jit(lambda x: 1 if x else 2)(1.0),
    "float under jit": lambda j, n, l: j.jit(lambda x: float(x))(1.0),
    "int under jit": lambda j, n, l: j.jit(lambda x: int(x))(1),
    "range under jit": lambda j, n, l: j.jit(lambda x: range(x))(1),
    "NumPy under jit": lambda j, n, l: j.jit(lambda x: np.sin(np.asarray(x)))(1.0),
    "compiled with another shape": lambda j, n, l: j.jit(n.sin).lower(X).compile()(X[:2]),
    "compiled with another dtype": lambda j, n, l: j.jit(n.sin).lower(X).compile()(A([1, 2, 3])),
    "compiled with another structure": lambda j, n, l: j.jit(lambda x: x).lower(X).compile()((X, X)),
    "compiled with static arguments": lambda j, n, l: (
        j.jit(lambda x, k: x * k, static_argnums=1).lower(X, 3).compile()(X, 3)
    ),
    "eval_shape of a string": lambda j, n, l: j.eval_shape(lambda x: x, "a"),
    "block_until_ready of a deleted array": lambda j, n, l: [
        x := n.ones(2),
        x.delete(),
        j.block_until_ready(x),
    ],
}

TABLE = table.Table("jit", CASES, REFUSALS)


@pytest.mark.parametrize("name", CASES)
def test_equals_jax(name: str) -> None:
    TABLE.check(name)


@pytest.mark.parametrize("name", REFUSALS)
def test_refuses_what_jax_refuses(name: str) -> None:
    TABLE.check_refusal(name)


@pytest.mark.slow
def test_the_record_is_what_jax_says(request: pytest.FixtureRequest) -> None:
    TABLE.check_record(is_update=request.config.getoption("update_golden"))
