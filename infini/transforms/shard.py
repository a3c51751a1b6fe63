"""`shard` annotates a function and lets the partitioner do the rest; `shard_map` runs it on local parts,
collectives by hand.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from infini.core import errors, mesh_context, primitive, sharding, trace, tree
from infini.core.machine import Collectives, Machine
from infini.core.mesh import UNCONSTRAINED, AxisEntry, AxisType, PartitionSpec, entry_axes
from infini.core.value import Value
from infini.lax import manual, placement, varying
from infini.transforms import flat, staging

Specs = Any  # Any: a P, or a pytree of P and None


def shard(
    fun: Callable[..., Any],
    *,
    mesh: sharding.Mesh,
    in_specs: Specs = None,
    out_specs: Specs = None,
    machine: Machine | None = None,
    strategies: Mapping[str, str] = MappingProxyType({}),
    collectives: Collectives | None = None,
    named: Mapping[str, PartitionSpec] = MappingProxyType({}),
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
        machine: links and speeds that the partitioner compares ways by; without it the bytes that are sent
            decide. `explain_sharding` shows what it found.
        strategies: for operations how they are split: `results` (as the plan wants their results), `operands`
            (as these lie), `contracted` (along what is summed) or `whole`; the cheaper of the first two when
            nothing is said. `attention` of a split sequence also by `gather`, `ring` or `all_to_all`.
        collectives: how collectives are joined into buckets.
        named: for names that `checkpoint_name` gave to values where these lie. A dimension whose parts would
            leave more than an eighth of their room empty is not split. Over unreduced axes the values are
            terms of sums, which wait.
        **options: options of `jit`.

    Returns:
        The jitted function. It takes host arrays too and places them.

    Raises:
        ValueMismatchError: a spec names an axis the mesh has not, or has more entries than its array has
            dimensions; there is no strategy of a name.
    """
    _check_options(mesh, machine, strategies, collectives, named)
    jitted = staging.jit(
        fun, in_shardings=_on_mesh(mesh, in_specs), out_shardings=_on_mesh(mesh, out_specs), **options
    )
    jitted.options = dataclasses.replace(
        jitted.options,
        machine=machine,
        strategies=tuple(sorted(strategies.items())),
        collectives=collectives or jitted.options.collectives,
        named=places_of_names(named, mesh),
        mesh=mesh if named else jitted.options.mesh,
    )
    return jitted


def _check_options(
    mesh_: Any, machine: Any, strategies: Any, collectives: Any, named: Any
) -> None:  # Any: what a user gave
    kinds = (
        ("mesh", mesh_, sharding.Mesh, "a Mesh, which has devices: make_mesh((4, 2), ('dp', 'tp'))"),
        ("machine", machine, Machine | None, "a Machine"),
        ("strategies", strategies, Mapping, "names of strategies by operation, such as {'dot': 'results'}"),
        ("collectives", collectives, Collectives | None, "a Collectives"),
        ("named", named, Mapping, "a P by name, such as recipe.of_names() gives"),
    )
    for name, given, kind, expected in kinds:
        if not isinstance(given, kind):
            raise errors.TypeMismatchError(
                f"shard: {name} is of another kind",
                got=f"{given!r} of type {type(given).__name__}",
                expected=expected,
            )
    for name in strategies:
        try:
            primitive.by_name(name)
        except errors.ParseError:
            raise errors.ValueMismatchError(
                f"shard: strategies names {name!r}, which is no operation",
                got=repr(dict(strategies)),
                expected="names as explain_sharding prints them",
            ) from None
    unknown = [axis for axis in dict(machine.links) if axis not in mesh_.axis_names] if machine else []
    if unknown:
        raise errors.ValueMismatchError(
            f"shard: machine has a link for the axis {unknown[0]!r}, which the mesh lacks",
            got=repr(machine),
            expected=f"axes among {', '.join(map(repr, mesh_.axis_names))}",
        )


def places_of_names(
    named: Mapping[str, Any], mesh_: sharding.Mesh, what: str = "shard"
) -> tuple[tuple[str, PartitionSpec], ...]:  # Any: what a user gave
    """Placements of named values, as `CompileOptions` takes them.

    Args:
        named: a `P` for each name.
        mesh_: devices.
        what: whose argument it is, for messages.

    Raises:
        TypeMismatchError: something is no `P`.
        ValueMismatchError: one names an axis that the mesh lacks.
    """
    for name, spec in named.items():
        if not isinstance(spec, PartitionSpec):
            raise errors.TypeMismatchError(
                f"{what}: named[{name!r}] is no placement",
                got=repr(spec),
                expected="a P",
                fix=f"P({spec!r})",
            )
        axes = [*(axis for entry in spec for axis in entry_axes(entry)), *sorted(spec.unreduced)]
        if len(set(axes)) < len(axes):
            raise errors.ValueMismatchError(
                f"{what}: named[{name!r}] names an axis twice",
                got=repr(spec),
                expected="each axis for one dimension at most",
            )
        missing = [axis for axis in axes if axis not in mesh_.axis_names]
        if missing:
            raise errors.ValueMismatchError(
                f"{what}: named[{name!r}] splits over {missing[0]!r}, which the mesh lacks",
                got=f"{spec}",
                expected=f"axes among {', '.join(map(repr, mesh_.axis_names))}",
                fix="name the axes of the mesh as these, or pass the recipe their names",
            )
    return tuple(sorted(named.items()))


def _on_mesh(mesh_: sharding.Mesh, specs: Specs) -> Any:  # Any: pytrees of placements
    return tree.map(
        lambda spec: sharding.NamedSharding(mesh_, spec),
        specs,
        is_leaf=lambda s: isinstance(s, PartitionSpec),
    )


class Infer:
    """Stands for placements that are read off the arguments, as `jax.sharding.Infer`."""

    def __repr__(self) -> str:
        return "Infer"


INFER: Final = Infer()


def shard_map(
    f: Callable[..., Any] | None = None,
    /,
    *,
    out_specs: Specs,
    in_specs: Specs = INFER,
    mesh: sharding.Mesh | sharding.AbstractMesh | None = None,
    axis_names: Set[str] = frozenset(),
    check_vma: bool = True,
) -> Any:  # Any: a function, or a decorator
    """Run a function on the local parts of arrays, one call per device, as `jax.shard_map`.

    Args:
        f: function of local parts; collectives such as `lax.psum(x, "data")` are available inside.
        out_specs: a `P`, or a tree of them: how results are joined. Along axes a spec does not name,
            results must be equal on all devices.
        in_specs: a `P` for every argument, or a tuple with one tree of `P` (a prefix) per argument; None
            passes an argument as it is, whatever it is. Placements of the arguments when absent.
        mesh: devices with named axes, or names and sizes alone; the one that is set when absent.
        axis_names: axes along which `f` sees local parts; the partitioner splits along the others, which
            specs may not name. All axes when empty.
        check_vma: know which values differ between devices: results are checked, and `psum` of what
            differs is equal everywhere, so its gradient is right inside of `f` as well. Without, `psum` is
            its own transpose and nothing is checked.

    Returns:
        Function of global arrays, which can be jitted, differentiated and batched.

    Raises:
        ValueMismatchError: there is no mesh, specs do not match the arguments, or a result differs
            along an axis that its spec does not name.
        TypeMismatchError: `f` is no function, or a spec is none.

    Example:
        >>> import infini as inf, infini.numpy as inp
        >>> mesh = inf.make_mesh((1,), ("data",))
        >>> total = inf.shard_map(
        ...     lambda x: inf.lax.psum(x.sum(), "data"), mesh=mesh, in_specs=inf.P("data"), out_specs=inf.P()
        ... )
        >>> total(inp.ones(4))
        Array(4., dtype=float32)
    """
    options = {
        "mesh": mesh, "in_specs": in_specs, "out_specs": out_specs, "axis_names": axis_names,
        "check_vma": check_vma,
    }  # fmt: skip
    if f is None:
        return functools.partial(shard_map, **options)
    if not callable(f):
        raise errors.TypeMismatchError("shard_map needs a function", got=repr(f))

    @functools.wraps(f)
    def run(*args: Any) -> Any:
        where = _mesh(mesh, args)
        mapped = _Mapped(f, where, _manual_axes(where, axis_names), check_vma)
        if isinstance(mesh, sharding.Mesh):
            sharding.name_mesh(mesh)
        # Outside of jit the devices are those of the mesh.
        with mesh if isinstance(mesh, sharding.Mesh) else contextlib.nullcontext():
            return mapped(in_specs, out_specs, args)

    return run


def smap(
    f: Callable[..., Any] | None = None, /, *, in_axes: Any = INFER, out_axes: Any, axis_name: str
) -> Any:  # Any: a function, or a decorator; trees of integers and None
    """`shard_map` along one axis of the mesh that is set, as `jax.smap`.

    Args:
        f: function of local parts.
        in_axes: dimension that is cut, for every argument; None for arguments that stay whole; or a tuple
            of trees of these. Those of the arguments when absent.
        out_axes: dimension along which results are joined, likewise.
        axis_name: the axis.

    Raises:
        TypeMismatchError: an axis is neither an integer nor None, or `axis_name` is several names.
    """
    if f is None:
        return functools.partial(smap, in_axes=in_axes, out_axes=out_axes, axis_name=axis_name)
    if not isinstance(axis_name, str):
        raise errors.TypeMismatchError("smap takes one axis", got=repr(axis_name), fix="use shard_map")
    return shard_map(
        f,
        in_specs=in_axes if in_axes is INFER else _specs_of_axes(in_axes, axis_name),
        out_specs=_specs_of_axes(out_axes, axis_name),
        axis_names={axis_name},
    )


def _specs_of_axes(axes: Any, name: str) -> Any:  # Any: trees of integers; of specs
    def one(axis: Any) -> PartitionSpec:
        if axis is None:
            return PartitionSpec()
        if isinstance(axis, bool) or not isinstance(axis, int) or axis < 0:
            raise errors.TypeMismatchError(
                "axes of smap are integers from 0 and None", got=repr(axis), fix="use shard_map for others"
            )
        return PartitionSpec(*[None] * axis, name)

    return tree.map(one, axes, is_leaf=lambda x: x is None)


def _mesh(
    given: sharding.Mesh | sharding.AbstractMesh | None, args: tuple[Any, ...]
) -> sharding.AbstractMesh:
    """The mesh that is given or set; else that of the arguments.

    Raises:
        ValueMismatchError: there is none.
    """
    found = given if given is not None else sharding.current_abstract_mesh()
    if found is None:
        placed = (getattr(leaf, "sharding", None) for leaf in tree.leaves(args))
        found = next((p.mesh for p in placed if isinstance(p, sharding.NamedSharding)), None)
    if found is None:
        raise errors.ValueMismatchError(
            "shard_map needs a mesh", fix="pass mesh=, or call it inside `with set_mesh(mesh):`"
        )
    return found.abstract_mesh


def _manual_axes(where: sharding.AbstractMesh, names: Set[str]) -> tuple[str, ...]:
    unknown = sorted(set(names) - set(where.axis_names))
    if unknown:
        raise errors.ValueMismatchError(
            f"there is no mesh axis {unknown[0]!r}", got=f"axis_names={set(names)}", expected=str(where)
        )
    free = [name for name in where.axis_names if name not in where.manual_axes]
    return tuple(name for name in free if not names or name in names)


@dataclass(frozen=True, slots=True)
class _Mapped:
    """A function over local parts: where it runs, along which axes by itself, and whether it knows what
    varies.
    """

    f: Callable[..., Any]
    mesh: sharding.AbstractMesh
    axes: tuple[str, ...]
    check_vma: bool

    def __call__(self, in_specs: Specs, out_specs: Specs, args: tuple[Any, ...]) -> Any:  # Any: pytrees
        leaves, in_tree = tree.flatten(args)
        specs = self._given(in_specs, args, leaves)
        dynamic = [leaf for leaf, spec in zip(leaves, specs, strict=True) if spec is not None]
        own = [tuple(spec) for spec in specs if spec is not None]
        values = flat.values(dynamic, "arguments of shard_map")
        # Equal to others of the same axes, whatever their types: programs hold names and sizes alone.
        abstract = sharding.AbstractMesh(self.mesh.axis_names, self.mesh.axis_sizes)
        for value, spec in zip(values, own, strict=True):
            placement.check_spec(value.type, abstract, spec)
            self._check_manual(spec, "in_specs")
        out_trees: list[tree.PyTreeDef] = []
        found_specs: list[tuple[AxisEntry, ...]] = []

        def inner(*parts: Value) -> list[Value]:
            mine = iter(parts)
            every = [leaf if s is None else next(mine) for leaf, s in zip(leaves, specs, strict=True)]
            results, out_tree = tree.flatten(self.f(*tree.unflatten(in_tree, every)))
            out_trees.append(out_tree)
            dummy = tree.unflatten(out_tree, list(range(len(results))))
            found_specs[:] = [tuple(s or ()) for s in _leaf_specs(out_specs, dummy, "out_specs")]
            found = flat.values(results, "results of shard_map")
            for value, spec in zip(found, found_specs, strict=True):
                self._check_result(value, spec)
            return varying.marked(found, [_axes_in(spec) for spec in found_specs])

        inner.__name__ = getattr(self.f, "__name__", type(self.f).__name__)
        staged = self._staged(inner, values, own, abstract)
        attrs: dict[str, Any] = {"check_vma": True} if self.check_vma else {}
        if self.axes != abstract.axis_names:
            attrs["axes"] = self.axes
        results = trace.bind(
            manual.shard_map_p,
            *staged.captures,
            *values,
            body=staged.program,
            mesh=abstract,
            in_specs=((),) * len(staged.captures) + tuple(own),
            out_specs=tuple(found_specs),
            **attrs,
        )
        marked = [r.with_weak(flag) for r, flag in zip(results, staged.weak, strict=True)]
        return tree.unflatten(out_trees[0], marked)

    def _staged(
        self,
        inner: Callable[..., list[Value]],
        values: Sequence[Value],
        specs: Sequence[tuple[AxisEntry, ...]],
        abstract: sharding.AbstractMesh,
    ) -> trace.Staged:
        """The program over local parts."""
        types = [manual.local_type(v.type, s, abstract) for v, s in zip(values, specs, strict=True)]
        weak = [v.weak for v in values]
        axes = tuple((name, abstract.shape[name]) for name in self.axes)
        inside = self.mesh.update_axis_types(dict.fromkeys(self.axes, AxisType.Manual))
        with trace.named_axes(*axes), mesh_context.use_abstract_mesh(inside):
            if not self.check_vma:
                return trace.stage(inner, types, weak=weak, name=inner.__name__)
            outer = trace.current().manual
            known = outer.axes if isinstance(outer, varying.Manual) else ()
            flags = [_axes_in(s) | trace.varying_axes(v) for v, s in zip(values, specs, strict=True)]
            return trace.stage(
                inner, types, weak=weak, name=inner.__name__, varying=flags,
                manual=varying.Manual((*known, *axes)),
            )  # fmt: skip

    def _given(self, specs: Specs, args: Any, leaves: Sequence[Any]) -> list[PartitionSpec | None]:
        """One spec per leaf of the arguments; None for what is passed as it is."""
        if specs is not INFER:
            return _leaf_specs(specs, args, "in_specs")
        found = []
        for leaf in leaves:
            where = getattr(leaf, "sharding", None)
            if not isinstance(where, sharding.NamedSharding):
                raise errors.TypeMismatchError(
                    "shard_map cannot infer in_specs of an argument that is on no mesh",
                    got=f"{leaf.type if isinstance(leaf, Value) else type(leaf).__name__}",
                    fix="pass in_specs=, or place it with device_put outside of jit",
                )
            kept = [tuple(a for a in entry_axes(entry) if a in self.axes) for entry in where.spec]
            found.append(PartitionSpec(*(None if not a else a[0] if len(a) == 1 else a for a in kept)))
        return list(found)

    def _check_manual(self, spec: Sequence[AxisEntry], what: str) -> None:
        other = sorted(_axes_in(spec) - set(self.axes))
        if other:
            raise errors.ValueMismatchError(
                f"shard_map: {what} may name manual axes only",
                got=f"{PartitionSpec(*spec)!r}, and {other[0]!r} is split by the partitioner",
                expected=", ".join(map(repr, self.axes)),
                fix="add it to axis_names, or constrain values inside with lax.with_sharding_constraint",
            )

    def _check_result(self, value: Value, spec: tuple[AxisEntry, ...]) -> None:
        """Refuse a spec that does not fit its result, or a result that differs where it says it does not."""
        self._check_manual(spec, "out_specs")
        if len(spec) > value.ndim:
            raise errors.ValueMismatchError(
                "shard_map: an entry of out_specs is longer than the result has dimensions",
                got=f"{PartitionSpec(*spec)!r} for a result of type {value.type}",
                fix="give the result that dimension, for example with x[None]",
            )
        extra = sorted((trace.varying_axes(value) & set(self.axes)) - _axes_in(spec))
        if self.check_vma and extra:
            name = getattr(self.f, "__name__", "the function")
            along = ", ".join(map(repr, extra))
            raise errors.ValueMismatchError(
                f"shard_map: a result of {name} may differ between devices along {along}, which its "
                "out_specs does not name",
                got=f"{PartitionSpec(*spec)!r} for a result of type {value.type}",
                expected="a result that is equal along these axes, as psum and pmax give it",
                fix="name the axes in out_specs, reduce over them, or pass check_vma=False when the values "
                "are known to be equal",
            )


def _axes_in(spec: Sequence[AxisEntry]) -> frozenset[str]:
    return frozenset(name for entry in spec for name in entry_axes(entry))


def _leaf_specs(specs: Specs, x: Any, what: str) -> list[PartitionSpec | None]:  # Any: a pytree
    """One spec per leaf from a tree that is a prefix; None stands for leaves without one."""
    leaves, treedef = tree.flatten(specs, is_leaf=lambda s: s is None or isinstance(s, PartitionSpec))
    for spec in leaves:
        if spec is not None and not isinstance(spec, PartitionSpec):
            raise errors.TypeMismatchError(f"shard_map: {what} must be made of P and None", got=repr(spec))
        if isinstance(spec, PartitionSpec) and (spec.unreduced or UNCONSTRAINED in spec):
            raise errors.ValueMismatchError(
                f"shard_map: {what} say how every part lies",
                got=repr(spec),
                expected="axis names and None",
                fix="add terms up with lax.psum, and write None for whole dimensions",
            )
    try:
        parts = treedef.flatten_up_to(x)
    except ValueError as error:
        raise errors.ValueMismatchError(
            f"shard_map: {what} does not match", got=str(specs), expected=f"a prefix of {tree.structure(x)}"
        ) from error
    return [spec for spec, part in zip(leaves, parts, strict=True) for _ in tree.leaves(part)]
