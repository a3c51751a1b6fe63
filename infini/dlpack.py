"""Sharing memory with other libraries, with the names of `jax.dlpack`."""

from infini.core.dlpack import is_supported_dtype as is_supported_dtype
from infini.core.exchange import from_dlpack as from_dlpack
