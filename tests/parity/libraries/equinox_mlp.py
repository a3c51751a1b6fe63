"""Modules of equinox: a network that is trained, an ensemble, and an attention layer."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax


def main():
    x = jax.random.normal(jax.random.key(1), (64, 4))
    y = (x.sum(axis=1) > 0).astype(jnp.int32)
    model = eqx.nn.MLP(4, 2, 16, 2, key=jax.random.key(0))
    optimiser = optax.adam(1e-2)
    state = optimiser.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_value_and_grad
    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()

    @eqx.filter_jit
    def step(model, state):
        value, gradient = loss(model)
        updates, state = optimiser.update(gradient, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state, value

    losses = []
    for _ in range(6):
        model, state, value = step(model, state)
        losses.append(value)

    ensemble = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 3, key=key))(
        jax.random.split(jax.random.key(2), 5)
    )
    each = eqx.filter_vmap(lambda one, row: one(row), in_axes=(eqx.if_array(0), None))(ensemble, x[0])
    attention = eqx.nn.MultiheadAttention(2, 4, key=jax.random.key(3))
    return {"losses": jnp.stack(losses), "each": each, "attention": attention(x[:5], x[:5], x[:5])}
