"""Second derivatives: logistic regression by Newton and conjugate gradients, a Hessian, custom rules."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax, random


@jax.custom_jvp
def softplus(x):
    return jnp.logaddexp(x, 0.0)


@softplus.defjvp
def softplus_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    return softplus(x), t / (1 + jnp.exp(-x))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def clipped(x, bound):
    return x


clipped.defvjp(lambda x, bound: (x, None), lambda bound, _, ct: (jnp.clip(ct, -bound, bound),))


def objective(w, x, y):
    scores = x @ w
    return jnp.mean(softplus(scores) - y * scores) + 0.01 * w @ w


def conjugate_gradients(product, b):
    def turn(state):
        x, r, p, i = state
        q = product(p)
        a = (r @ r) / (p @ q)
        new = r - a * q
        return x + a * p, new, new + (new @ new) / (r @ r) * p, i + 1

    start = (jnp.zeros_like(b), b, b, 0)
    return lax.while_loop(lambda s: (s[3] < 20) & (s[1] @ s[1] > 1e-10), turn, start)[0]


@jax.jit
def newton(w, x, y):
    gradient = jax.grad(objective)

    def product(v):
        return jax.jvp(lambda u: gradient(u, x, y), (w,), (v,))[1]

    return w - conjugate_gradients(product, gradient(w, x, y))


def main():
    k1, k2 = random.split(random.PRNGKey(3))
    x = random.normal(k1, (64, 4))
    y = (x @ jnp.array([1.0, -2.0, 0.5, 0.0]) + 0.3 * random.normal(k2, (64,)) > 0).astype(jnp.float32)
    w = jnp.zeros(4)
    for _ in range(4):
        w = newton(w, x, y)
    hessian = jax.hessian(objective)(w, x, y)
    other = jax.jacfwd(jax.jacrev(objective))(w, x, y)
    kept = jax.grad(lambda v: jnp.sum(clipped(v, 0.5) ** 2))(jnp.array([0.1, 2.0, -3.0]))
    _, linear = jax.linearize(lambda u: objective(u, x, y), w)
    return {"w": w, "hessian": hessian, "other": other, "kept": kept, "slope": linear(jnp.ones(4))}
