"""`reshard`, and the decorators that JAX has for meshes whose axes are of different types."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from infini.core import errors, tree
from infini.core.mesh import PartitionSpec
from infini.core.sharding import NamedSharding
from infini.lax import placement
from infini.transforms.placement import device_put


def reshard(xs: Any, out_shardings: Any) -> Any:  # Any: pytrees
    """Place values anew, as `jax.reshard`: at once outside of transformations, as a constraint inside.

    Args:
        xs: pytree of arrays.
        out_shardings: `NamedSharding`, or `P` where a mesh is set; or a tree of these, a prefix of `xs`.

    Raises:
        TypeMismatchError: there is something else among the placements.
        ValueMismatchError: a placement does not fit its array, or a `P` has no mesh around it.

    Example:
        >>> import infini as inf, infini.numpy as inp
        >>> with inf.set_mesh(inf.make_mesh((1,), ("data",))):
        ...     inf.reshard(inp.ones(4), inf.P("data")).sharding.spec == inf.P("data")
        True
    """
    for where in tree.leaves(out_shardings, is_leaf=placement.is_sharding):
        if not isinstance(where, (NamedSharding, PartitionSpec)):
            raise errors.TypeMismatchError("reshard takes a NamedSharding or a P", got=repr(where))
    return device_put(xs, out_shardings)


def auto_axes(
    f: Callable[..., Any] | None = None, /, *, axes: Any = None, out_sharding: Any = None
) -> Any:  # Any: a function, or a decorator; axis names; a tree of placements
    """A function inside which the partitioner places values, as `jax.sharding.auto_axes`. It does so
    everywhere in infini, so this constrains the results and does nothing else.

    Args:
        f: function of arrays.
        axes: accepted for JAX's sake.
        out_sharding: placements of the results; a caller may pass `out_sharding=` instead.

    Raises:
        TypeMismatchError: no placement is given.
    """
    if f is None:
        return functools.partial(auto_axes, axes=axes, out_sharding=out_sharding)

    @functools.wraps(f)
    def run(*args: Any, **kwargs: Any) -> Any:
        where = kwargs.pop("out_sharding", out_sharding)
        if where is None:
            raise errors.TypeMismatchError(
                "auto_axes needs the placement of its results", fix="pass out_sharding="
            )
        return reshard(f(*args, **kwargs), where)

    return run


def explicit_axes(
    f: Callable[..., Any] | None = None, /, *, axes: Any = None, in_sharding: Any = None
) -> Any:  # Any: a function, or a decorator; axis names; a tree of placements
    """A function whose arguments are placed as given, as `jax.sharding.explicit_axes`. Inside it the
    partitioner goes on placing values, as axes of type `Explicit` act as `Auto` ones.

    Args:
        f: function of arrays.
        axes: accepted for JAX's sake.
        in_sharding: placements of the arguments, a prefix of their tuple; a caller may pass `in_sharding=`
            instead.

    Raises:
        TypeMismatchError: no placement is given.
    """
    if f is None:
        return functools.partial(explicit_axes, axes=axes, in_sharding=in_sharding)

    @functools.wraps(f)
    def run(*args: Any, **kwargs: Any) -> Any:
        where = kwargs.pop("in_sharding", in_sharding)
        if where is None:
            raise errors.TypeMismatchError(
                "explicit_axes needs the placements of its arguments", fix="pass in_sharding="
            )
        return f(*reshard(args, where), **kwargs)

    return run
