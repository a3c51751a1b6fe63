"""A classifier of two spirals: mini-batches, momentum, accuracy."""

import jax
import jax.numpy as jnp
from jax import lax, nn, random


def spirals(key, count):
    turns = jnp.linspace(0.3, 3.0, count)
    label = jnp.arange(count) % 2
    angle = turns * 2.0 + label * jnp.pi
    points = jnp.stack([turns * jnp.cos(angle), turns * jnp.sin(angle)], axis=1)
    return points + 0.05 * random.normal(key, points.shape), label


def initial(key, sizes):
    keys = random.split(key, len(sizes) - 1)
    return [
        {"w": random.normal(k, (m, n)) * jnp.sqrt(2.0 / m), "b": jnp.zeros(n)}
        for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def logits(params, x):
    for layer in params[:-1]:
        x = nn.relu(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def loss(params, x, y):
    return -jnp.mean(jnp.sum(nn.log_softmax(logits(params, x)) * nn.one_hot(y, 2), axis=-1))


@jax.jit
def step(params, velocity, x, y):
    value, grads = jax.value_and_grad(loss)(params, x, y)
    velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, grads)
    return jax.tree.map(lambda p, v: p - 0.05 * v, params, velocity), velocity, value


def main():
    k1, k2, k3 = random.split(random.PRNGKey(0), 3)
    x, y = spirals(k1, 128)
    params = initial(k2, (2, 16, 16, 2))
    velocity = jax.tree.map(jnp.zeros_like, params)
    order = random.permutation(k3, 128)
    losses = []
    for _ in range(3):
        for start in range(0, 128, 32):
            batch = lax.dynamic_slice(order, (start,), (32,))
            params, velocity, value = step(params, velocity, x[batch], y[batch])
            losses.append(value)
    accuracy = jnp.mean(jnp.argmax(logits(params, x), axis=1) == y)
    return {"losses": jnp.stack(losses), "accuracy": accuracy, "params": params}
