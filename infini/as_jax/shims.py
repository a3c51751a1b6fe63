"""Names of JAX that libraries use and that mean something to JAX's own machinery alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import optree

from infini.as_jax import refused
from infini.core import errors, trace, tree_nodes

# The JAX whose names and results infini follows; libraries compare it with what they need.
VERSION: Final = "0.10.2"
VERSION_INFO: Final = tuple(int(part) for part in VERSION.split("."))

Function = Callable[..., Any]  # Any: whatever a library wraps


def pmap(function: Function, *args: object, **options: object) -> refused.Refused:
    """`jax.pmap`: the function may be wrapped, and the call says what to use in its place."""
    del function, args, options
    return refused.Refused("jax.pmap", "use jax.shard_map over a mesh, or jax.vmap on one device")


def register_exclusion(path: str) -> None:
    """`traceback_util.register_exclusion`: infini's errors end with the user's line without it."""
    del path


def api_boundary(function: Function, **options: object) -> Function:
    """`traceback_util.api_boundary`: the function itself; infini does not shorten tracebacks."""
    del options
    return function


def record_event(event: str, **details: object) -> None:
    """`jax.monitoring.record_event`: nobody listens to JAX's events here."""
    del event, details


def record_event_duration_secs(event: str, duration: float, **details: object) -> None:
    """`jax.monitoring.record_event_duration_secs`: as `record_event`."""
    del event, duration, details


def wait_for_tokens() -> None:
    """`jax._src.dispatch.wait_for_tokens`: effects are ordered without tokens."""


def concrete_or_error(
    force: Function | None,
    x: Any,  # Any: what an operation takes
    context: str = "",
) -> Any:  # Any: as `force`
    """`jax.core.concrete_or_error`: a value that must be known, converted by `force`.

    Raises:
        ConcretizationError: it is being traced.
    """
    if isinstance(x, trace.Tracer) and x.concrete() is None:
        raise errors.ConcretizationError(
            "a value must be known while tracing", got=x.origin(), expected=context or "a known value"
        )
    return x if force is None else force(x)


class NodeClasses:
    """`jax.tree_util`'s registry, as far as it can be asked: whether a class is a node of pytrees."""

    def __contains__(self, cls: type) -> bool:
        return cls is tuple or (tree_nodes.is_node(cls) and not optree.is_namedtuple_class(cls))


NODE_CLASSES: Final = NodeClasses()
