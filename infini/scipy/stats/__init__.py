"""Distributions with `jax.scipy.stats`'s names."""

from infini.scipy.stats import norm as norm
