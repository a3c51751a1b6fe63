"""Looking inside: prints and callbacks from compiled programs, with the names of `jax.debug`."""

from infini.lax.effects import debug_callback as callback, debug_print as print  # noqa: A004  # JAX's name

__all__ = ["callback", "print"]
