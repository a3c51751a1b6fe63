"""Modules of flax.linen: a network that is trained with its state, and one with batch statistics."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training import train_state


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(nn.LayerNorm()(nn.Dense(16)(x))))


class Convolutional(nn.Module):
    @nn.compact
    def __call__(self, x, is_training):
        x = nn.BatchNorm(use_running_average=not is_training)(nn.Conv(4, (3, 3))(x))
        return nn.avg_pool(nn.gelu(x), (2, 2), strides=(2, 2))


def main():
    x = jax.random.normal(jax.random.key(1), (64, 4))
    y = (x.sum(axis=1) > 0).astype(jnp.int32)
    model = Network()
    state = train_state.TrainState.create(
        apply_fn=model.apply, params=model.init(jax.random.key(0), x)["params"], tx=optax.adam(1e-2)
    )

    @jax.jit
    def step(state):
        def loss(params):
            scores = state.apply_fn({"params": params}, x)
            return optax.softmax_cross_entropy_with_integer_labels(scores, y).mean()

        value, gradient = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=gradient), value

    losses = []
    for _ in range(6):
        state, value = step(state)
        losses.append(value)

    pictures = jax.random.normal(jax.random.key(2), (2, 8, 8, 3))
    variables = Convolutional().init(jax.random.key(3), pictures, True)
    maps, changed = Convolutional().apply(variables, pictures, True, mutable=["batch_stats"])
    return {"losses": jnp.stack(losses), "maps": maps, "statistics": changed["batch_stats"]}
