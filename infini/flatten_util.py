"""Trees of arrays as vectors, under `jax.flatten_util`'s name."""

from infini.numpy.trees import ravel_pytree as ravel_pytree
