"""Names of `jax.experimental` that infini has."""

from infini.experimental import checkify as checkify
from infini.lax.callbacks import io_callback as io_callback
