"""`cost_analysis` counts what JAX's does: the same for products, the same order of magnitude for the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import lax

X, W = np.ones((64, 128), np.float32), np.ones((128, 256), np.float32)
IMAGE, FILTER = np.ones((2, 8, 12, 12), np.float32), np.ones((16, 8, 3, 3), np.float32)
LINE, STACK = np.ones(1024, np.float32), np.ones((4, 32, 16), np.float32)


def attention(n, x):
    """Without a mask."""
    s = n.exp(n.einsum("bik,bjk->bij", x, x))
    return n.einsum("bij,bjk->bik", s / s.sum(-1, keepdims=True), x)


# Function of numpy's and lax's namespace and arrays; arrays; largest ratio of the counts.
PROGRAMS = {
    "dot": (lambda n, L, x, w: x @ w, (X, W), 1.0),
    "layer": (lambda n, L, x, w: n.tanh(x @ w) + 1, (X, W), 1.0),
    "attention": (lambda n, L, x: attention(n, x), (STACK,), 1.1),
    "convolution": (lambda n, L, x, w: L.conv(x, w, (1, 1), "VALID"), (IMAGE, FILTER), 1.01),
    "padded convolution": (lambda n, L, x, w: L.conv(x, w, (1, 1), "SAME"), (IMAGE, FILTER), 1.3),
    "sort": (lambda n, L, x: n.sort(x), (LINE,), 1.01),
    "windows": (
        lambda n, L, x: L.reduce_window(x, 0.0, L.add, (1, 1, 3, 3), (1, 1, 1, 1), "VALID"),
        (IMAGE,),
        1.3,
    ),
    "sum": (lambda n, L, x: x.sum(-1), (X,), 1.1),
    "scatter": (lambda n, L, x: x.at[n.arange(32)].add(1.0), (X,), 1.5),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_counts_are_those_of_jax(name):
    f, args, ratio = PROGRAMS[name]
    ours = infini.jit(lambda *a: f(inp, lax, *a)).lower(*args).compile().cost_analysis()
    theirs = jax.jit(lambda *a: f(jnp, jax.lax, *a)).lower(*args).compile().cost_analysis()
    assert theirs["flops"] / ratio <= ours["flops"] <= theirs["flops"] * ratio
    assert ours["transcendentals"] == (theirs.get("transcendentals") or 0)
