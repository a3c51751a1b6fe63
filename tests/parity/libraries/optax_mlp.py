"""Optimisers of optax on a network of two layers."""

import jax
import jax.numpy as jnp
import optax
import optax.contrib

OPTIMISERS = {
    "adamw": optax.adamw(1e-2),
    "adafactor": optax.adafactor(1e-2),
    "clipped": optax.chain(
        optax.clip_by_global_norm(0.5), optax.adam(optax.cosine_decay_schedule(1e-2, decay_steps=20))
    ),
    "every_second": optax.MultiSteps(optax.sgd(0.1, momentum=0.9), every_k_schedule=2),
    "lamb": optax.lamb(1e-2),
    "lion": optax.lion(1e-3),
    "muon": optax.contrib.muon(1e-2),
    "novograd": optax.novograd(1e-2),
}


def initial(key):
    first, second = jax.random.split(key)
    return {
        "first": {"w": jax.random.normal(first, (4, 16)) / 2, "b": jnp.zeros(16)},
        "second": {"w": jax.random.normal(second, (16, 2)) / 4, "b": jnp.zeros(2)},
    }


def loss(params, x, y):
    hidden = jax.nn.relu(x @ params["first"]["w"] + params["first"]["b"])
    scores = hidden @ params["second"]["w"] + params["second"]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(scores, y).mean()


def train(optimiser, x, y):
    params = initial(jax.random.key(0))
    state = optimiser.init(params)

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params, x, y)
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    losses = []
    for _ in range(6):
        params, state, value = step(params, state)
        losses.append(value)
    return jnp.stack(losses)


def main():
    x = jax.random.normal(jax.random.key(1), (64, 4))
    y = (x.sum(axis=1) > 0).astype(jnp.int32)
    return {name: train(optimiser, x, y) for name, optimiser in OPTIMISERS.items()}
