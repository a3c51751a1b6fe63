"""Functions with a batching rule of their own, with the names of `jax.custom_batching`."""

from infini.transforms.custom_batching import (
    custom_vmap as custom_vmap,
    sequential_vmap as sequential_vmap,
)
