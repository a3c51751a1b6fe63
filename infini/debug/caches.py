"""Why a jitted function was traced more than once."""

from __future__ import annotations

from typing import Any

from infini.core import errors
from infini.transforms import staging


def explain_cache(function: Any) -> list[str]:  # Any: a jitted function
    """One sentence for each time that a jitted function was traced again, oldest first.

    The knob `explain` logs them as they happen.

    Args:
        function: what `infini.jit` returned.

    Returns:
        The last 100 sentences; each names the argument that differs from the most similar call before.

    Raises:
        TypeMismatchError: the function is not jitted.

    Example:
        >>> import infini as inf
        >>> f = inf.jit(lambda x: x * 2)
        >>> _ = f(1), f(1.0)
        >>> inf.debug.explain_cache(f)
        ['<lambda> was traced again because of other types: x is weak f32[] instead of weak i32[]']
    """
    if not isinstance(function, staging.Jitted):
        raise errors.TypeMismatchError("explain_cache needs a jitted function", got=repr(function))
    return list(function.misses)
