"""Table of small programs of vmap and collectives over a mapped axis, each run on infini and on JAX."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from tests.parity import transforms_table as table

A = np.array
X = np.array([0.3, -1.2, 2.0], np.float32)
M = np.array([[0.5, -0.2, 0.1], [0.3, 0.8, -0.4]], np.float32)
Pair = collections.namedtuple("Pair", ["a", "b"])  # a pytree of both libraries


CASES: dict[str, table.Case] = {
    "vmap": lambda j, n, l: j.vmap(lambda x, y: n.sin(x) @ y)(M, 2 * M),
    "vmap in_axes": lambda j, n, l: j.vmap(lambda x, y: x * y, in_axes=(0, None))(M, X),
    "vmap in_axes list": lambda j, n, l: j.vmap(lambda x, y: x * y, in_axes=[1, None])(M, A([1.0, 2.0], "f")),
    "vmap negative in_axes": lambda j, n, l: j.vmap(lambda x: x * 2, in_axes=-1)(M),
    "vmap in_axes of a dict": lambda j, n, l: j.vmap(
        lambda d: d["a"] * d["b"], in_axes=({"a": 0, "b": None},)
    )({"a": M, "b": X}),
    "vmap in_axes prefix": lambda j, n, l: j.vmap(lambda d, k: d["a"] * d["b"][0] * k, in_axes=(0, None))(
        {"a": M, "b": [M]}, 2.0
    ),
    "vmap in_axes with None leaf": lambda j, n, l: j.vmap(lambda p: p[0] * 2, in_axes=((0, None),))(
        (M, None)
    ),
    "vmap in_axes of a namedtuple": lambda j, n, l: j.vmap(lambda p: p.a * p.b, in_axes=(Pair(0, None),))(
        Pair(M, X)
    ),
    "vmap out_axes": lambda j, n, l: [
        j.vmap(lambda x: n.outer(x, x), out_axes=a)(M) for a in (0, 1, 2, -1, -2)
    ],
    "vmap out_axes of a tree": lambda j, n, l: j.vmap(
        lambda x: {"a": x, "b": x * 2}, out_axes={"a": 1, "b": 0}
    )(M),
    "vmap out_axes None": lambda j, n, l: j.vmap(lambda x: (x, 3.0, n.ones(2)), out_axes=(0, None, None))(M),
    "vmap of constant results": lambda j, n, l: j.vmap(lambda x: (x, 3.0, n.ones(2)))(M),
    "vmap axis_size": lambda j, n, l: j.vmap(lambda: n.ones(2), axis_size=3)(),
    "vmap axis_size with all None": lambda j, n, l: j.vmap(lambda x: x * 2, in_axes=None, axis_size=3)(X),
    "vmap keyword arguments": lambda j, n, l: j.vmap(lambda x, *, y: x * y)(M, y=2 * M),
    "vmap of scalars inside": lambda j, n, l: j.vmap(lambda x: x**2)(X),
    "vmap of vmap": lambda j, n, l: j.vmap(j.vmap(lambda x, y: x * y, (0, None)), (None, 0))(
        X, A([1.0, 2.0], "f")
    ),
    "vmap of jit": lambda j, n, l: j.vmap(j.jit(lambda x: n.sin(x).sum()))(M),
    "jit of vmap": lambda j, n, l: j.jit(j.vmap(lambda x: n.sin(x).sum(), 1))(M),
    "vmap of an empty batch": lambda j, n, l: j.vmap(lambda x: x.sum() * 2)(M[:0]),
    "vmap of integers": lambda j, n, l: j.vmap(lambda i: n.asarray(X)[i])(A([2, 0])),
    "vmap keeps weak types": lambda j, n, l: j.vmap(lambda x: (x * 2, 1.0))(X),
    "vmap spmd_axis_name": lambda j, n, l: j.vmap(lambda x: x * 2, spmd_axis_name="data")(M),
    "vmap of a dict returned": lambda j, n, l: j.vmap(lambda x: {"b": x, "a": None})(M),
    "collectives of nested axes": lambda j, n, l: j.vmap(
        j.vmap(lambda x: (l.psum(x, "i"), l.psum(x, ("i", "j")), l.axis_index("j")), axis_name="i"),
        axis_name="j",
    )(M),
    "psum of a constant": lambda j, n, l: j.vmap(lambda x: l.psum(1, "i") * x, axis_name="i")(X),
    "pmean of a tree": lambda j, n, l: j.vmap(
        lambda x: l.pmean({"a": x, "b": 1.0}, "i"), axis_name="i", out_axes=None
    )(X),
    "axis_size": lambda j, n, l: j.vmap(lambda x: x * l.axis_size("i"), axis_name="i")(X),
    "grad of vmap of psum": lambda j, n, l: j.grad(
        lambda x: j.vmap(lambda x: n.sin(l.psum(x, "i")) * x, axis_name="i")(x).sum()
    )(X),
    "vmap of grad of psum": lambda j, n, l: j.vmap(
        j.grad(lambda x: n.sin(l.psum(x, "i")) * x), axis_name="i"
    )(X),
}


REFUSALS: dict[str, table.Case] = {
    "vmap of no argument": lambda j, n, l: j.vmap(lambda: 1.0)(),
    "vmap of nothing mapped": lambda j, n, l: j.vmap(lambda x: x, in_axes=None)(X),
    "vmap of sizes that differ": lambda j, n, l: j.vmap(lambda x, y: x)(X, M),
    "vmap of a size that differs from axis_size": lambda j, n, l: j.vmap(lambda x: x, axis_size=5)(X),
    "vmap of a scalar": lambda j, n, l: j.vmap(lambda x: x)(1.0),
    "vmap of an axis too many": lambda j, n, l: j.vmap(lambda x: x, in_axes=1)(X),
    "vmap with too many in_axes": lambda j, n, l: j.vmap(lambda x: x, in_axes=(0, 0))(X),
    "vmap with another tree of in_axes": lambda j, n, l: j.vmap(lambda x: x, in_axes=({"a": 0},))(X),
    "vmap with float in_axes": lambda j, n, l: j.vmap(lambda x: x, in_axes=0.5)(X),
    "vmap with string in_axes": lambda j, n, l: j.vmap(lambda x: x, in_axes="a")(X),
    "vmap with another tree of out_axes": lambda j, n, l: j.vmap(lambda x: x, out_axes=(0, 0))(X),
    "vmap with out_axes too large": lambda j, n, l: j.vmap(lambda x: x, out_axes=1)(X),
    "vmap with out_axes None on a batch": lambda j, n, l: j.vmap(lambda x: x, out_axes=None)(X),
    "vmap of no function": lambda j, n, l: j.vmap(3)(X),
    "vmap with a float axis_size": lambda j, n, l: j.vmap(lambda: 1.0, axis_size="a")(),
    "vmap returning a string": lambda j, n, l: j.vmap(lambda x: "a")(X),
    "vmap of a string": lambda j, n, l: j.vmap(lambda x: x)("a"),
    "an unbound axis name": lambda j, n, l: l.psum(X, "nowhere"),
}

TABLE = table.Table("vmap", CASES, REFUSALS)


@pytest.mark.parametrize("name", CASES)
def test_equals_jax(name: str) -> None:
    TABLE.check(name)


@pytest.mark.parametrize("name", REFUSALS)
def test_refuses_what_jax_refuses(name: str) -> None:
    TABLE.check_refusal(name)


@pytest.mark.slow
def test_the_record_is_what_jax_says(request: pytest.FixtureRequest) -> None:
    TABLE.check_record(is_update=request.config.getoption("update_golden"))
