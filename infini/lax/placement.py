"""`with_sharding_constraint`: the annotation from which the partitioner starts. It is the identity to
every other transform.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors, mesh, primitive, sharding, trace, tree
from infini.core.ir import ArrayType
from infini.core.mesh import AbstractMesh, AxisEntry, P, PartitionSpec
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import families

Spec = tuple[AxisEntry, ...]


def _type(
    x: ArrayType, *, mesh: AbstractMesh, spec: Spec, unreduced: tuple[str, ...] = ()
) -> tuple[ArrayType]:
    check_spec(x, mesh, P(*spec, unreduced=unreduced))
    return (x,)


def check_spec(type_: ArrayType, mesh_: AbstractMesh, spec: Sequence[AxisEntry]) -> None:
    """Refuse a spec that does not fit an array.

    Raises:
        ValueMismatchError: it has too many entries, or names an axis the mesh has not; or it leaves a sum of
            booleans or of another type without addition.
    """
    waiting = sorted(mesh.unreduced_axes(spec))
    named = (*(name for entry in spec for name in mesh.entry_axes(entry)), *waiting)
    for name in named:
        if name not in mesh_.axis_names:
            raise errors.ValueMismatchError(
                f"there is no mesh axis {name!r}",
                expected=", ".join(mesh_.axis_names),
                got=f"P{tuple(spec)}",
            )
        if named.count(name) > 1:
            raise errors.ValueMismatchError(
                f"a placement names the axis {name!r} twice",
                expected="each axis for one dimension at most",
                got=repr(mesh.as_p(spec)),
            )
    if waiting and type_.dtype not in dtypes.NUMERIC:
        raise errors.ValueMismatchError(
            "only numbers can be left unreduced", got=f"{type_} with {mesh.as_p(spec)!r}"
        )
    mesh.part_counts(type_.shape, spec, mesh_)


def _batch(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:  # Any: see transforms.batching
    # Where the axis of a batch is not said, nothing is asked of it, as in JAX.
    first = mesh.UNCONSTRAINED if ctx.spmd_axis_name is None else ctx.spmd_axis_name
    spec = (first, *attrs["spec"]) if batched[0] else attrs["spec"]
    return trace.bind(sharding_constraint_p, *args, **attrs.replace(spec=spec)), batched


def _reference(x: np.ndarray, **_: object) -> np.ndarray:
    return x


def _transpose(ct: Value, x: Any, *, mesh: AbstractMesh, spec: Spec, **_: object) -> tuple[Value]:
    # The cotangent of every term of a sum is that of the sum.
    return (trace.bind1(sharding_constraint_p, ct, mesh=mesh, spec=spec),)


sharding_constraint_p: Primitive = primitive.register(
    Primitive(
        "sharding_constraint",
        None,
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.JVP: families.linear_jvp("sharding_constraint"),
            primitive.TRANSPOSE: _transpose,
            primitive.BATCH: _batch,
            # Off a mesh it does nothing.
            primitive.DECOMPOSE: lambda x, **_: (x,),
        },
    )
)


def full_spec(spec: Sequence[AxisEntry], ndim: int) -> Spec:
    """A spec with an entry for every dimension."""
    return (*spec, *(None,) * (ndim - len(spec)))


def mesh_and_spec(where: Any, what: str) -> tuple[sharding.Mesh, PartitionSpec]:  # Any: what a user may pass
    """The mesh and spec of a `NamedSharding`, or of a `P` inside `with mesh:`.

    Raises:
        ValueMismatchError: a `P` has no mesh around it.
        TypeMismatchError: it is neither.
    """
    if isinstance(where, sharding.NamedSharding):
        return where.mesh, where.spec
    current = sharding.current_mesh()
    if not isinstance(where, PartitionSpec) or current is None:
        raise _no_mesh(where, what)
    return current, where


def abstract_mesh_and_spec(where: Any, what: str) -> tuple[AbstractMesh, PartitionSpec]:  # Any: as above
    """As `mesh_and_spec` where devices do not matter: a mesh without devices gives a `P` its meaning, too.

    Raises:
        ValueMismatchError: a `P` has no mesh around it, or names an axis that is manual here.
        TypeMismatchError: it is neither.
    """
    current = sharding.current_abstract_mesh()
    if isinstance(where, sharding.NamedSharding):
        sharding.name_mesh(where.mesh)
        found, spec = where.mesh.abstract, where.spec
    elif not isinstance(where, PartitionSpec) or current is None:
        raise _no_mesh(where, what)
    else:
        found, spec = current, where
    manual = () if current is None else current.manual_axes
    for name in (axis for entry in spec for axis in mesh.entry_axes(entry)):
        if name in manual:
            raise errors.ValueMismatchError(
                f"{what} names {name!r}, along which shard_map gives each device its own part",
                got=repr(spec),
                expected=f"axes among {', '.join(n for n in found.axis_names if n not in manual) or 'none'}",
            )
    return found, spec


def _no_mesh(where: Any, what: str) -> errors.InfiniError:  # Any: what a user may pass
    if not isinstance(where, PartitionSpec):
        return errors.TypeMismatchError(f"{what} takes a NamedSharding or a P", got=repr(where))
    return errors.ValueMismatchError(
        f"{what} was given a P outside of a mesh",
        got=repr(where),
        fix="use `with set_mesh(mesh):`, or pass NamedSharding(mesh, spec)",
    )


def constrain(x: Any, mesh_: AbstractMesh, spec: Sequence[AxisEntry]) -> Value:  # Any: an operand
    """Ask for one value to be split as `spec` says."""
    value = trace.as_value(x)
    waiting = tuple(sorted(mesh.unreduced_axes(spec)))
    attrs = {"unreduced": waiting} if waiting else {}
    return trace.bind1(sharding_constraint_p, value, mesh=mesh_, spec=full_spec(spec, value.ndim), **attrs)


def with_sharding_constraint(x: Any, shardings: Any) -> Any:  # Any: pytrees
    """Ask for values to be split over a mesh in a certain way, as `jax.lax.with_sharding_constraint`.

    Args:
        x: pytree of arrays.
        shardings: `NamedSharding`, or `P` inside `with mesh:`; or a pytree of these, a prefix of `x`. Where a
            `P` says `P.UNCONSTRAINED` the partitioner may split as it likes; along its unreduced axes
            sums are not taken yet.

    Returns:
        The same values. The partitioner places them so, and moves data where that is needed.

    Raises:
        ValueMismatchError: a spec does not fit its array or mesh.
    """

    def one(where: Any, part: Any) -> Any:
        found, spec = abstract_mesh_and_spec(where, "with_sharding_constraint")
        with where.mesh if isinstance(where, sharding.NamedSharding) else contextlib.nullcontext():
            return tree.map(lambda leaf: constrain(leaf, found, spec), part)

    return tree.map(one, shardings, x, is_leaf=is_sharding)


def is_sharding(x: object) -> bool:
    """Whether `x` is a placement, which counts as a leaf among pytrees of placements."""
    return isinstance(x, (sharding.NamedSharding, sharding.SingleDeviceSharding, PartitionSpec))
