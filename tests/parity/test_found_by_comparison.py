"""Small programs on which infini once differed from JAX; each stays here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infini
import infini.numpy as inp

A = np.array
CASES = {
    "gradient of repeated writes": lambda api, np_: api.grad(
        lambda u: (np_.zeros(3).at[A([1, 1, 1])].set(u) ** 2).sum()
    )(A([0.0, 1, 2], "f")),
    "large integer powers wrap": lambda api, np_: np_.power(A([3, -3], "int32"), A([40, 33], "int32")),
    "small integer powers wrap": lambda api, np_: np_.power(A([7], "uint8"), A([9], "uint8")),
    "power of zero": lambda api, np_: api.grad(lambda x: np_.power(0.0, x))(2.0),
    "second derivative of a running product": lambda api, np_: api.jit(
        api.grad(api.grad(lambda x: np_.cumprod(np_.stack([x, x, x])).sum()))
    )(3.0),
    "slope of abs": lambda api, np_: api.vmap(api.grad(abs))(A([-2.0, 0.0, 3.0], "f")),
    "floor division of floats by zero": lambda api, np_: np_.floor_divide(A([5.0, -5.0], "f"), 0.0),
    "argmax of one": lambda api, np_: np_.argmax(np_.ones((3, 1)), axis=1),
    "argmax of a scalar": lambda api, np_: np_.argmax(np.float32(3.0)),
    "take clips negative indices": lambda api, np_: np_.take(A([1.0, 2, 3], "f"), A([-1, 9]), mode="clip"),
    "gradient of a constant function": lambda api, np_: api.grad(lambda x: 1.0)(2.0),
    "gradient of an unused argument": lambda api, np_: api.grad(lambda p: p["a"] * 2)({"a": 1.0, "b": 2.0}),
    "tangent of floor": lambda api, np_: api.jvp(np_.floor, (1.5,), (1.0,)),
    "variance inside jit": lambda api, np_: api.jit(lambda x: x.var())(np.arange(4, dtype=np.float32)),
    "static arguments of equal value and other type": lambda api, np_: [
        (f := api.jit(lambda x, n: x * n, static_argnums=1))(np.arange(3), 2),
        f(np.arange(3), 2.0),
    ],
    "sum over the mapped axis in a batched branch": lambda api, np_: api.vmap(
        lambda p, x: api.lax.cond(p, lambda x: api.lax.psum(x, "i"), lambda x: x * 2, x), axis_name="i"
    )(A([True, False]), A([1.0, 2.0], "f")),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_jax(name):
    ours, theirs = CASES[name](infini, inp), CASES[name](jax, jnp)
    for a, b in zip(infini.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert isinstance(a, infini.Array) and a.dtype == b.dtype
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6)
