"""Looking inside: prints and callbacks from compiled programs with the names of `jax.debug`, and why jitted
functions were traced again.
"""

from infini.debug.caches import explain_cache
from infini.lax.effects import debug_callback as callback, debug_print as print  # noqa: A004  # JAX's name

__all__ = ["callback", "explain_cache", "print"]
