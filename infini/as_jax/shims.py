"""Names of JAX that libraries use and that infini has no module for: sizes of the process's world, casts of
dtypes, flat vectors of trees, and marks that mean something to JAX's own machinery alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import optree

from infini import numpy as jnp
from infini.as_jax import abstract, refused
from infini.core import backend, dtypes, errors, trace, tree, tree_nodes
from infini.core.value import Value
from infini.random import key_array

# The JAX whose names and results infini follows; libraries compare it with what they need.
VERSION: Final = "0.10.2"
VERSION_INFO: Final = tuple(int(part) for part in VERSION.split("."))

Function = Callable[..., Any]  # Any: whatever a library wraps


def device_count(platform: str | None = None) -> int:
    """`jax.device_count`: devices of a platform."""
    return len(backend.devices(platform))


def local_device_count(platform: str | None = None) -> int:
    """`jax.local_device_count`: devices of this process."""
    return len(backend.local_devices(platform))


def default_backend() -> str:
    """`jax.default_backend`: JAX's name of the default device's platform."""
    name = backend.default_device().platform
    return "gpu" if name == "cuda" else name


def ravel_pytree(pytree: Any) -> tuple[Value, Callable[[Value], Any]]:  # Any: a pytree
    """`jax.flatten_util.ravel_pytree`: all leaves as one vector, and the function that undoes it.

    Args:
        pytree: leaves of any shapes and dtypes.

    Returns:
        The vector in the promoted dtype, and a function from such a vector to a tree like `pytree`.
    """
    leaves, structure = tree.flatten(pytree)
    arrays = [jnp.asarray(leaf) for leaf in leaves]
    shapes = [array.shape for array in arrays]
    kinds = [array.dtype for array in arrays]
    ends = np.cumsum([array.size for array in arrays])
    if arrays:
        joined = jnp.result_type(*kinds)
        flat = jnp.concatenate([jnp.ravel(array).astype(joined) for array in arrays])
    else:
        flat = jnp.zeros(0, jnp.float32)

    def unravel(vector: Value) -> Any:  # Any: a pytree
        if np.shape(vector) != flat.shape:
            raise ValueError(f"expected a vector of shape {flat.shape}, got {np.shape(vector)}")
        parts = jnp.split(vector, ends[:-1]) if arrays else []
        restored = [
            part.reshape(shape).astype(kind) for part, shape, kind in zip(parts, shapes, kinds, strict=True)
        ]
        return tree.unflatten(structure, restored)

    return flat, unravel


def pmap(function: Function, *args: object, **options: object) -> refused.Refused:
    """`jax.pmap`: the function may be wrapped, and the call says what to use in its place."""
    del function, args, options
    return refused.Refused("jax.pmap", "use jax.shard_map over a mesh, or jax.vmap on one device")


def orthogonal_initializer(name: str) -> Function:
    """An initializer's maker, which libraries call while they load; using the initializer is the error."""

    def make(*args: object, **options: object) -> refused.Refused:
        del args, options
        return refused.Refused(name, "use jax.nn.initializers.variance_scaling or another initializer")

    make.__name__ = name.rpartition(".")[2]
    return make


def canonicalize_dtype(dtype: object) -> np.dtype:
    """`jax.dtypes.canonicalize_dtype`: the dtype itself, since infini has every one without a flag.

    Python's own types become the 32-bit defaults.
    """
    return _DEFAULTS[dtype] if isinstance(dtype, type) and dtype in _DEFAULTS else dtypes.canonical(dtype)


_DEFAULTS: Final[dict[object, np.dtype]] = {
    bool: np.dtype(bool),
    int: np.dtype(np.int32),
    float: np.dtype(np.float32),
    complex: np.dtype(np.complex64),
}


class extended(np.generic):  # noqa: N801  # JAX's name
    """`jax.dtypes.extended`: the kind of dtypes that are not numbers."""


class prng_key(extended):  # noqa: N801  # JAX's name
    """`jax.dtypes.prng_key`: the kind of the dtype of typed keys."""


class ExtendedDType:
    """`jax._src.dtypes.ExtendedDType`: the base of dtypes that libraries add; infini computes with none."""


def issubdtype(first: Any, second: Any) -> bool:  # Any: what NumPy takes for a dtype, and kinds of keys
    """`jax.dtypes.issubdtype`: as NumPy's, and typed keys are of the kinds `prng_key` and `extended`."""
    if second in (extended, prng_key):
        return isinstance(first, key_array.KeyDType) or first is prng_key
    return not isinstance(first, key_array.KeyDType) and bool(jnp.issubdtype(first, second))


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


ArrayLike: Final = Value | np.ndarray | np.bool_ | np.number | bool | int | float | complex
DTypeLike: Final = str | type[Any] | np.dtype | abstract.HasDtype


class NodeClasses:
    """`jax.tree_util`'s registry, as far as it can be asked: whether a class is a node of pytrees."""

    def __contains__(self, cls: type) -> bool:
        return cls is tuple or (tree_nodes.is_node(cls) and not optree.is_namedtuple_class(cls))


NODE_CLASSES: Final = NodeClasses()
