"""A gated recurrent network by scan, with a checkpointed body, and its Jacobian through time."""

import jax
import jax.numpy as jnp
from jax import lax, nn, random


def cell(params, h, x):
    z = nn.sigmoid(x @ params["wz"] + h @ params["uz"])
    r = nn.sigmoid(x @ params["wr"] + h @ params["ur"])
    new = jnp.tanh(x @ params["wh"] + (r * h) @ params["uh"])
    return (1 - z) * h + z * new


def run(params, xs):
    @jax.checkpoint
    def body(h, x):
        h = cell(params, h, x)
        return h, h.sum()

    return lax.scan(body, jnp.zeros(params["uz"].shape[0]), xs)


def main():
    keys = random.split(random.key(1), 7)
    names = ("wz", "wr", "wh", "uz", "ur", "uh")
    rows = {"w": 3, "u": 5}
    params = {n: random.normal(k, (rows[n[0]], 5)) * 0.4 for n, k in zip(names, keys, strict=False)}
    xs = random.normal(keys[6], (9, 3))
    last, sums = jax.jit(run)(params, xs)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(run(p, xs)[0] ** 2)))(params)
    through_time = jax.jacrev(lambda x: run(params, x)[0])(xs)
    forward = jax.jacfwd(lambda x: run(params, x)[0])(xs)
    backwards = lax.scan(lambda h, x: (cell(params, h, x), h), last, xs, reverse=True)[1]
    return {
        "last": last,
        "sums": sums,
        "gradient": gradient,
        "jacobian": through_time,
        "difference": jnp.abs(through_time - forward).max() < 1e-5,
        "backwards": backwards,
    }
