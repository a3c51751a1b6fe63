"""Names of `jax.experimental` that infini has."""

from infini.experimental import checkify as checkify
