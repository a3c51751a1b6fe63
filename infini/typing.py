"""Types to annotate with, under `jax.typing`'s names."""

from infini.core.abstract import ArrayLike as ArrayLike, DTypeLike as DTypeLike
