"""Clusters: vmap over points and over seeds, scatter-add of sums, a loop with a break, sorting."""

import jax
import jax.numpy as jnp
from jax import lax, random


def nearest(centers, x):
    return jnp.argmin(jnp.sum((centers - x) ** 2, axis=-1))


def fit(key, points, count):
    first = random.choice(key, points.shape[0], (count,), replace=False)

    def turn(state):
        centers, _, i = state
        which = jax.vmap(nearest, in_axes=(None, 0))(centers, points)
        sums = jnp.zeros_like(centers).at[which].add(points)
        sizes = jnp.zeros(count).at[which].add(1.0)
        moved = jnp.where(sizes[:, None] > 0, sums / jnp.maximum(sizes, 1.0)[:, None], centers)
        return moved, jnp.abs(moved - centers).max(), i + 1

    state = (points[first], jnp.inf, 0)
    centers, _, turns = lax.while_loop(lambda s: (s[1] > 1e-4) & (s[2] < 30), turn, state)
    order = jnp.lexsort((centers[:, 1], centers[:, 0]))
    return centers[order], turns


def main():
    k1, k2, k3 = random.split(random.PRNGKey(7), 3)
    middles = random.uniform(k1, (3, 2), minval=-5, maxval=5)
    points = (middles[:, None, :] + 0.3 * random.normal(k2, (3, 20, 2))).reshape(-1, 2)
    centers, turns = jax.jit(fit, static_argnums=2)(k3, points, 3)
    many, _ = jax.vmap(lambda k: fit(k, points, 3))(random.split(k3, 4))
    distances = jnp.sqrt(jnp.sum((points[:, None] - centers[None]) ** 2, axis=-1))
    closest = jnp.take_along_axis(distances, jnp.argmin(distances, axis=1)[:, None], axis=1)
    values, places = lax.top_k(closest[:, 0], 4)
    histogram = jnp.bincount(jnp.argmin(distances, axis=1), length=3)
    return {
        "centers": centers,
        "turns": turns,
        "many": many,
        "far": values,
        "places": places,
        "histogram": histogram,
        "quantiles": jnp.quantile(closest, jnp.array([0.1, 0.5, 0.9])),
    }
