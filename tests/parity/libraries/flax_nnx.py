"""Modules of flax.nnx: a network that is trained in place."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx


class Network(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 16, rngs=rngs)
        self.second = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


def main():
    x = jax.random.normal(jax.random.key(1), (64, 4))
    y = (x.sum(axis=1) > 0).astype(jnp.int32)
    model = Network(nnx.Rngs(0))
    optimiser = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimiser):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        value, gradient = nnx.value_and_grad(loss)(model)
        optimiser.update(model, gradient)
        return value

    losses = [step(model, optimiser) for _ in range(6)]
    return {"losses": jnp.stack(losses), "scores": model(x)}
