"""Stages of jitted functions, with the names of `jax.stages`."""

from infini.transforms.stages import (
    ArgInfo as ArgInfo,
    Compiled as Compiled,
    Lowered as Lowered,
    Traced as Traced,
)
from infini.transforms.staging import Jitted as Wrapped  # noqa: F401  # JAX's name
