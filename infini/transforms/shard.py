"""`shard` annotates a function and lets the partitioner do the rest; `shard_map` runs it on local parts,
collectives by hand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from infini.core import errors, mesh, sharding, trace, tree
from infini.core.mesh import PartitionSpec
from infini.lax import manual, placement
from infini.transforms import flat, staging

Specs = Any  # Any: a P, or a pytree of P and None


def shard(
    fun: Callable[..., Any],
    *,
    mesh: sharding.Mesh,
    in_specs: Specs = None,
    out_specs: Specs = None,
    **options: Any,
) -> Any:  # Any: a jitted function; options of jit
    """A jitted function split over a mesh: as annotated where it is, as the partitioner likes elsewhere.

    Args:
        fun: function of arrays and pytrees, written for global shapes.
        mesh: devices with named axes.
        in_specs: a `P` for every argument, or a tuple with one tree of `P` (a prefix) per argument; None
            leaves the choice to the partitioner, which takes arrays that are on the mesh already as they are.
            So does `P.UNCONSTRAINED` for one dimension. `P(unreduced={"data"})` are terms of a sum over an
            axis, as in `out_specs`: gradients of several calls are added before they are summed over devices.
        out_specs: the same for the result.
        **options: options of `jit`.

    Returns:
        The jitted function. It takes host arrays too and places them.

    Raises:
        ValueMismatchError: a spec names an axis the mesh has not, or does not divide its array.
    """
    return staging.jit(
        fun, in_shardings=_on_mesh(mesh, in_specs), out_shardings=_on_mesh(mesh, out_specs), **options
    )


def _on_mesh(mesh_: sharding.Mesh, specs: Specs) -> Any:  # Any: pytrees of placements
    return tree.map(
        lambda spec: sharding.NamedSharding(mesh_, spec),
        specs,
        is_leaf=lambda s: isinstance(s, PartitionSpec),
    )


def shard_map(
    f: Callable[..., Any] | None = None,
    /,
    *,
    mesh: sharding.Mesh | None = None,
    in_specs: Specs,
    out_specs: Specs,
    check_vma: bool = False,
) -> Any:  # Any: a function, or a decorator
    """Run a function on the local parts of arrays, one call per device, as `jax.shard_map`.

    Args:
        f: function of local parts; collectives such as `lax.psum(x, "data")` are available inside.
        mesh: devices with named axes; the one of `with mesh:` when absent.
        in_specs: a `P` for every argument, or a tuple with one tree of `P` (a prefix) per argument.
        out_specs: a `P`, or a tree of them: how results are joined. Along axes a spec does not name,
            results must be equal on all devices.
        check_vma: accepted for JAX's sake; nothing is checked.

    Returns:
        Function of global arrays, which can be jitted, differentiated and batched.

    Raises:
        ValueMismatchError: there is no mesh, or specs do not match the arguments.
    """
    if f is None:
        return functools.partial(
            shard_map, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=check_vma
        )

    @functools.wraps(f)
    def run(*args: Any) -> Any:
        where = mesh if mesh is not None else sharding.current_mesh()
        if where is None:
            raise errors.ValueMismatchError(
                "shard_map needs a mesh", fix="pass mesh=, or call it inside `with mesh:`"
            )
        return _apply(f, where, in_specs, out_specs, args)

    return run


def _apply(
    f: Callable[..., Any], mesh_: sharding.Mesh, in_specs: Specs, out_specs: Specs, args: tuple[Any, ...]
) -> Any:  # Any: pytrees
    leaves, in_tree = tree.flatten((args, {}))
    values = flat.values(leaves, "arguments of shard_map")
    specs = _leaf_specs(in_specs, args, "in_specs")
    abstract = mesh_.abstract
    for value, spec in zip(values, specs, strict=True):
        placement.check_spec(value.type, abstract, spec)
    inner = flat.FlatFunction(f, in_tree)
    types = [manual.local_type(v.type, s, abstract) for v, s in zip(values, specs, strict=True)]
    with trace.named_axes(*abstract.shape.items()):
        staged = trace.stage(inner, types, weak=[v.weak for v in values], name=inner.__name__)
    assert inner.out_tree is not None
    dummy = tree.unflatten(inner.out_tree, list(range(len(staged.weak))))
    found_specs = _leaf_specs(out_specs, dummy, "out_specs")
    results = trace.bind(
        manual.shard_map_p,
        *staged.captures,
        *values,
        body=staged.program,
        mesh=abstract,
        in_specs=((),) * len(staged.captures) + tuple(specs),
        out_specs=tuple(found_specs),
    )
    marked = [r.with_weak(flag) for r, flag in zip(results, staged.weak, strict=True)]
    return tree.unflatten(inner.out_tree, marked)


def _leaf_specs(specs: Specs, x: Any, what: str) -> list[tuple[mesh.AxisEntry, ...]]:  # Any: a pytree
    """One spec per leaf from a tree that is a prefix; None stands for `P()`."""
    given = tree.leaves(specs, is_leaf=lambda s: s is None or isinstance(s, PartitionSpec))
    for spec in given:
        if isinstance(spec, PartitionSpec) and (spec.unreduced or mesh.UNCONSTRAINED in spec):
            raise errors.ValueMismatchError(
                f"shard_map: {what} say how every part lies",
                got=repr(spec),
                expected="axis names and None",
                fix="add terms up with lax.psum, and write None for whole dimensions",
            )
    if isinstance(specs, PartitionSpec) or specs is None:
        return [tuple(specs or ())] * len(tree.leaves(x))
    leaves, treedef = tree.flatten(specs, is_leaf=lambda s: s is None or isinstance(s, PartitionSpec))
    try:
        parts = treedef.flatten_up_to(x)
    except ValueError as error:
        raise errors.ValueMismatchError(
            f"shard_map: {what} does not match", got=str(specs), expected=f"a prefix of {tree.structure(x)}"
        ) from error
    return [tuple(spec or ()) for spec, part in zip(leaves, parts, strict=True) for _ in tree.leaves(part)]
