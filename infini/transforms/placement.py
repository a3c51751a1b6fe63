"""Where arrays live: `device_put`, arrays made of parts, and annotations on the arguments and results of
a function.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from infini.core import array as array_, backend, dtypes, errors, execute, mesh, sharding, shards, trace, tree
from infini.core.array import Array
from infini.core.formats import Format
from infini.core.ir import ArrayType
from infini.core.layout import AutoLayout, Layout
from infini.core.sharding import NamedSharding, SingleDeviceSharding
from infini.core.value import Value
from infini.lax import placement
from infini.transforms import flat, layouts, parts


def device_put(
    x: Any, device: Any = None, *, src: Any = None, donate: Any = False, may_alias: Any = None
) -> Any:  # Any: pytrees; a device, a placement, or a tree of these; flags, or trees of these
    """Put arrays on a device or spread them over a mesh, as `jax.device_put`. The results are committed
    there.

    Args:
        x: pytree of arrays, NumPy arrays and numbers.
        device: `Device`, `NamedSharding`, `P` inside `with mesh:`, or a pytree of these that is a prefix
            of `x`; None leaves everything where it is, uncommitted. A `Format` asks for a layout of the
            memory, too: the array is repacked once.
        src: accepted for JAX's sake; arrays know where they are.
        donate: whether the arrays given are deleted, or a prefix tree of booleans; they must not be used
            afterwards.
        may_alias: accepted for JAX's sake; arrays that are in the right place already are not copied.

    Returns:
        The tree of arrays. Inside `jit` a sharding is a constraint, and a single device means nothing.

    Raises:
        TypeMismatchError: `device` is none of these.
        ValueMismatchError: a sharding does not fit its array.
        CollectiveError: processes put different arrays on a mesh over them; with the knob `check`.

    Example:
        >>> import infini as inf, numpy as np
        >>> inf.device_put(np.ones(2, np.float32), inf.devices("reference")[0]).committed
        True
    """
    if device is None or is_place(device):
        moved = tree.map(lambda leaf: _put(leaf, device), x)
    else:
        moved = tree.map(
            lambda where, part: tree.map(lambda leaf: _put(leaf, where), part),
            device,
            x,
            is_leaf=is_place,
        )
    if donate is not False:
        flags = tree.leaves(tree.broadcast(donate, x))
        for given, found, is_donated in zip(tree.leaves(x), tree.leaves(moved), flags, strict=True):
            _donate(given, found, is_donated)
    return moved


def is_place(x: object) -> bool:
    """Whether `device_put` can put an array there: a device, a sharding or a `Format`."""
    return isinstance(x, (backend.Device, Format)) or placement.is_sharding(x)


def _donate(given: Any, found: Value, is_donated: bool) -> None:  # Any: a leaf
    """Delete an array that was put elsewhere, unless the result lies in its memory."""
    if not is_donated or not isinstance(given, Array) or not isinstance(found, Array) or found is given:
        return
    if not any(a is b for a in given.memory.buffers for b in found.memory.buffers):
        given.delete()


def _put(leaf: Any, where: Any) -> Value:  # Any: see device_put
    (value,) = flat.values([leaf], "what device_put is given")
    if isinstance(where, Format):
        return _put_format(value, where)
    if isinstance(where, backend.Device):
        where = sharding.on_one(where)
    if isinstance(where, mesh.PartitionSpec):
        if not trace.is_eager():
            return placement.constrain(value, *placement.abstract_mesh_and_spec(where, "device_put"))
        where = NamedSharding(*placement.mesh_and_spec(where, "device_put"))
    if not trace.is_eager():
        if not isinstance(where, NamedSharding):
            return value
        return placement.constrain(value, *placement.abstract_mesh_and_spec(where, "device_put"))
    if isinstance(where, (Layout, AutoLayout)):
        raise errors.ValueMismatchError(
            "device_put takes no bare layout", got=str(where), fix="wrap it: Format(layout, x.sharding)"
        )
    array = trace.to_array(value)
    if where is None:
        return array
    if not is_place(where):
        raise errors.TypeMismatchError(
            "device_put: this is no place for an array",
            got=f"{where!r} of type {type(where).__name__}",
            expected="a Device, a sharding, P inside `with mesh:`, or a Format",
            fix="take a device from infini.devices()",
        )
    if isinstance(where, SingleDeviceSharding):
        where = sharding.on_one(where.device)  # the one object for this placement
        if not where.device.backend.owns(where.device):
            raise errors.DeviceError(
                "device_put: this device belongs to another process",
                got=str(where.device),
                expected=f"one of {', '.join(map(str, backend.local_devices(where.device.platform)))}",
                fix="put the array on a mesh over devices of all processes",
            )
    if array.sharding == where:
        return array.placed(where)
    if isinstance(where, SingleDeviceSharding):
        buffer = execute.on_device(array, where.device)
        return Array(array.type, (buffer,), where, weak=array.weak, committed=True)
    placement.check_spec(array.type, where.mesh.abstract, where.spec)
    if any(entry == mesh.UNCONSTRAINED for entry in where.spec):
        raise errors.ValueMismatchError(
            "device_put needs a placement of every dimension",
            got=repr(where.spec),
            fix="P.UNCONSTRAINED is for shard, jit and with_sharding_constraint; write None or an axis",
        )
    is_split = isinstance(array.sharding, NamedSharding)
    is_on_mesh = isinstance(array.sharding, NamedSharding) and array.sharding.mesh == where.mesh
    if is_split and not is_on_mesh and not where.spec.unreduced:
        return parts.between_meshes(array, where)
    if is_on_mesh or where.spec.unreduced:
        return parts.respread(array, where)
    parts.check_same(array, where)
    return Array(array.type, execute.shards(array, where), where, weak=array.weak, committed=True)


def _put_format(value: Value, where: Format) -> Value:
    if isinstance(where.layout, AutoLayout):
        raise errors.ValueMismatchError(
            "device_put needs a concrete layout",
            got=f"{where} for {value.type}",
            fix="compile first: the formats a program wants are compiled.input_formats",
        )
    if where.layout is not None:
        layouts.check_fits(where.layout, value.shape, "device_put")
    moved = _put(value, where.sharding)
    return layouts.arranged(moved, where.layout) if where.layout and isinstance(moved, Array) else moved


def with_layout_constraint(x: Any, layouts_: Any) -> Any:  # Any: pytrees
    """Lay out the memory of arrays, as `jax.experimental.layout.with_layout_constraint`.

    Inside a program this checks and does nothing else: what lies in between is the compiler's to lay out,
    and results are as `out_shardings` says.

    Args:
        x: pytree of arrays.
        layouts_: a `Layout`, or a tree of them that is a prefix of `x`.

    Raises:
        ValueMismatchError: a layout has another rank than its array.
        TypeMismatchError: there is something else than a layout.
    """
    leaves, treedef = tree.flatten(x)
    found = []
    for leaf, layout in zip(leaves, tree.leaves(tree.broadcast(layouts_, x)), strict=True):
        if not isinstance(layout, Layout):
            raise errors.TypeMismatchError(
                "with_layout_constraint needs concrete layouts", got=repr(layout), expected="a Layout"
            )
        (value,) = flat.values([leaf], "what with_layout_constraint is given")
        layouts.check_fits(layout, value.shape, "with_layout_constraint")
        is_eager = trace.is_eager()
        found.append(layouts.arranged(trace.to_array(value), layout) if is_eager else value)
    return tree.unflatten(treedef, found)


def make_array_from_callback(
    shape: Sequence[int],
    sharding_: NamedSharding,
    data_callback: Callable[[tuple[slice, ...]], Any],
    dtype: Any = None,
) -> Array:  # Any: array data; a dtype
    """An array each part of which comes from a function of its index, as `jax.make_array_from_callback`.

    Args:
        shape: global shape.
        sharding_: how it is split.
        data_callback: called with the index (a tuple of slices) of each part that this process holds. Where
            an axis does not divide a dimension the last parts are smaller, or empty.
        dtype: dtype of the result; that of the data when absent.
    """
    size = tuple(int(n) for n in shape)
    mesh_ = sharding_.mesh
    hosts = []
    for rank in mesh_.local_ranks:
        index = mesh.shard_index(size, sharding_.spec, mesh_.abstract, rank)
        data = data_callback(index)
        host = trace.to_array(trace.as_value(data)).to_host() if dtype is None else np.asarray(data, dtype)
        expected = tuple(s.stop - s.start for s in index)
        if host.shape != expected:
            raise errors.TypeMismatchError(
                "a part of an array has the wrong shape", got=str(host.shape), expected=str(expected)
            )
        hosts.append(shards.padded(host, sharding_.shard_shape(size)))
    kinds = dict.fromkeys(host.dtype for host in hosts)
    if len(kinds) > 1:
        raise errors.TypeMismatchError(
            "the parts of an array have different dtypes", got=", ".join(map(str, kinds)), fix="pass dtype="
        )
    if not hosts and dtype is None:
        raise errors.ValueMismatchError(
            "a process without a device of the mesh cannot know the dtype of the array",
            got=f"shape {size} on {mesh_}",
            fix="pass dtype=",
        )
    kind = hosts[0].dtype if hosts else dtypes.canonical(dtype)
    devices = [mesh_.flat_devices[rank] for rank in mesh_.local_ranks]
    buffers = [d.backend.put(host, d) for d, host in zip(devices, hosts, strict=True)]
    return array_.Array(ArrayType(size, kind), buffers, sharding_, committed=True)


def make_array_from_process_local_data(
    sharding_: NamedSharding, local_data: Any, global_shape: Sequence[int] | None = None
) -> Array:  # Any: array data
    """A global array from what each process has, as `jax.make_array_from_process_local_data`.

    Args:
        sharding_: how the global array is split.
        local_data: the part that lies on the devices of this process, one block. Dimensions that are as
            long as those of the whole are cut.
        global_shape: shape of the whole; when absent all processes hold parts of one size.

    Raises:
        ValueMismatchError: a dimension is neither that of the part nor that of the whole.
    """
    local = np.asarray(local_data)
    shape = tuple(global_shape) if global_shape is not None else _global_shape(local.shape, sharding_)
    indices = [
        mesh.shard_index(shape, sharding_.spec, sharding_.mesh.abstract, rank)
        for rank in sharding_.mesh.local_ranks
    ]
    first = []
    for d, (size, whole) in enumerate(zip(local.shape, shape, strict=True)):
        low = min((index[d].start for index in indices), default=0)
        own = max((index[d].stop for index in indices), default=0) - low
        if indices and size not in (own, whole):
            raise errors.ValueMismatchError(
                f"dimension {d} of what this process has is not its part of the array",
                got=f"{local.shape} of {shape}, split by {sharding_.spec}",
                expected=f"{own} elements for the devices of this process, or all {whole}",
            )
        first.append(low if size == own else 0)

    def part(index: tuple[slice, ...]) -> np.ndarray:
        return local[tuple(slice(s.start - low, s.stop - low) for s, low in zip(index, first, strict=True))]

    return make_array_from_callback(shape, sharding_, part, None if indices else trace.as_value(local).dtype)


def _global_shape(local: tuple[int, ...], sharding_: NamedSharding) -> tuple[int, ...]:
    """Shape of the whole when this process holds `local` elements: parts that it holds count once."""
    mesh_, spec = sharding_.mesh, placement.full_spec(sharding_.spec, len(local))
    shape = []
    for size, entry in zip(local, spec, strict=True):
        axes = mesh.entry_axes(entry)
        held = {tuple(mesh_.abstract.coordinates(rank)[axis] for axis in axes) for rank in mesh_.local_ranks}
        if held and size % len(held):
            raise errors.ValueMismatchError(
                f"what this process has cannot be cut into {len(held)} equal parts for its devices",
                got=f"shape {local}, split by {sharding_.spec}",
                fix=f"give {size + -size % len(held)} elements where there are {size}, or pass global_shape",
            )
        shape.append(size // len(held) * mesh_.abstract.size_of(entry))
    return tuple(shape)


# --- annotated functions ---------------------------------------------------------------------


def constrained(
    fun: Callable[..., Any], in_shardings: Any, out_shardings: Any, static_numbers: Collection[int] = ()
) -> tuple[Callable[..., Any], sharding.Mesh | None]:  # Any: pytrees of placements
    """A function whose arguments and results are constrained to placements, and the mesh they name.

    Args:
        fun: function of pytrees.
        in_shardings: placement of every argument, or a tuple with one tree per dynamic positional argument.
        out_shardings: placement, or tree of placements, of the result.
        static_numbers: positions of arguments that are no arrays.

    Raises:
        ValueMismatchError: placements name two meshes.
    """
    given = tree.leaves((in_shardings, out_shardings), is_leaf=placement.is_sharding)
    meshes = {placement.mesh_and_spec(s, "jit")[0] for s in given if not isinstance(s, SingleDeviceSharding)}
    if len(meshes) > 1:
        raise errors.ValueMismatchError(
            "jit: placements name different meshes", got=", ".join(map(repr, meshes))
        )

    @functools.wraps(fun)
    def run(*args: Any, **kwargs: Any) -> Any:
        static = {n % len(args) for n in static_numbers} if args else set()
        dynamic = tuple(a for n, a in enumerate(args) if n not in static)
        moved = iter(_constrain_tree(dynamic, in_shardings, "in_shardings"))
        placed = [a if n in static else next(moved) for n, a in enumerate(args)]
        return _constrain_tree(fun(*placed, **kwargs), out_shardings, "out_shardings")

    return run, next(iter(meshes), None)


def _constrain_tree(x: Any, where: Any, what: str) -> Any:  # Any: pytrees
    if where is None:
        return x
    if placement.is_sharding(where):
        return tree.map(lambda leaf: _constrain_leaf(leaf, where), x)
    prefix = list(where) if isinstance(x, tuple) and isinstance(where, list) else where

    def one(sharding_: Any, part: Any) -> Any:
        return part if sharding_ is None else tree.map(lambda leaf: _constrain_leaf(leaf, sharding_), part)

    leaves, treedef = tree.flatten(prefix, is_leaf=lambda s: s is None or placement.is_sharding(s))
    try:
        parts = treedef.flatten_up_to(x)
    except ValueError as error:
        given = tree.map(_spec_of, where, is_leaf=lambda s: s is None or placement.is_sharding(s))
        names = {"in_shardings": ("in_specs", "arguments"), "out_shardings": ("out_specs", "results")}
        other, of_what = names[what]
        raise errors.ValueMismatchError(
            f"{what} (of jit; {other} of shard) does not match the {of_what} of the function",
            got=str(given),
            expected=f"a tree that begins as {of_what} do: {tree.structure(x)}",
            fix="one placement for everything, or one for each of them, each with a tree of its own",
        ) from error
    return tree.unflatten(treedef, [one(s, part) for s, part in zip(leaves, parts, strict=True)])


def _spec_of(where: Any) -> Any:  # Any: a placement or None
    return getattr(where, "spec", where)


def _constrain_leaf(leaf: Any, where: Any) -> Any:  # Any: an operand; a placement
    if isinstance(where, SingleDeviceSharding):
        return leaf
    found, spec = placement.mesh_and_spec(where, "jit")
    return placement.constrain(leaf, found.abstract, spec)
