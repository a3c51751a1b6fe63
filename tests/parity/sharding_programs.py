"""Programs of meshes and placements for eight devices; what JAX answers is recorded by `mesh_programs`."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.parity.mesh_programs import Program

X = np.arange(64, dtype=np.float32).reshape(8, 8)
SPECS: dict[str, tuple[Any, ...]] = {
    "x": ("x",), "whole": (), "second": (None, "y"), "both": ("x", "y"), "one dimension": (("x", "y"),),
    "turned": (("y", "x"),), "padded": ("x", None),
}  # fmt: skip


def mesh_of(lib: Any, sizes: tuple[int, ...] = (2, 4), names: tuple[str, ...] = ("x", "y")) -> Any:
    """A mesh that the partitioner looks after."""
    return lib.make_mesh(sizes, names, axis_types=(lib.sharding.AxisType.Auto,) * len(names))


def placed(lib: Any, *spec: Any) -> Any:
    return lib.NamedSharding(mesh_of(lib), lib.P(*spec))


def ids(devices: Any) -> list[int]:
    return sorted(device.id for device in devices)


def with_ids(found: Any) -> dict[int, Any]:
    return {device.id: index for device, index in found.items()}


def shards(x: Any) -> list[Any]:
    return [(s.device.id, s.index, s.replica_id, s.data) for s in x.addressable_shards]


def inside(lib: Any, mesh: Any, program: Any) -> Any:
    with lib.set_mesh(mesh):
        return program()


def singles(lib: Any, order: Any = range(8), rows: int = 1, dtype: Any = None, count: int = 8) -> Any:
    where = lib.NamedSharding(mesh_of(lib, (8,), ("a",)), lib.P("a"))
    parts = [lib.device_put(X[i : i + rows], lib.devices()[i]) for i in order]
    if dtype is not None:
        parts[-1] = lib.device_put(X[-1:].astype(dtype), lib.devices()[7])
    return lib.make_array_from_single_device_arrays((8, 8), where, parts[:count])


def left_set(lib: Any) -> Any:
    lib.set_mesh(mesh_of(lib))
    before = str(lib.sharding.get_mesh())
    lib.set_mesh(None)
    return before, str(lib.sharding.get_mesh())


def nested(lib: Any) -> list[str]:
    seen = []
    with lib.set_mesh(mesh_of(lib)):
        with lib.set_mesh(mesh_of(lib, (8,), ("a",))):
            seen.append(str(lib.sharding.get_mesh()))
        seen.append(str(lib.sharding.get_mesh()))
    return [*seen, str(lib.sharding.get_mesh())]


def equivalent(lib: Any) -> list[bool]:
    first = [placed(lib, *spec) for spec in SPECS.values()]
    row = mesh_of(lib, (8,), ("a",))
    others = [*first, lib.NamedSharding(row, lib.P("a")), lib.NamedSharding(row, lib.P())]
    others.append(lib.sharding.SingleDeviceSharding(lib.devices()[0]))
    return [a.is_equivalent_to(b, 2) for a in first for b in others]


def abstract_names(mesh: Any) -> Any:
    return mesh.axis_names, mesh.axis_sizes, [str(t).removeprefix("AxisType.") for t in mesh.axis_types]


def pieces(lib: Any, mesh: Any, *spec: Any) -> Any:
    x = lib.device_put(lib.device_put(X, placed(lib, "x", "y")), lib.NamedSharding(mesh, lib.P(*spec)))
    return shards(x)


PROGRAMS: dict[str, Program] = {
    "repr of a mesh": lambda lib: repr(mesh_of(lib)),
    "text of a mesh": lambda lib: str(mesh_of(lib)),
    "text of a mesh of one axis": lambda lib: str(mesh_of(lib, (8,), ("a",))),
    "repr of a mesh with default types": lambda lib: repr(lib.make_mesh((2, 4), ("x", "y"))),
    "repr of an abstract mesh": lambda lib: repr(lib.sharding.AbstractMesh((2, 4), ("x", "y"))),
    "repr of an abstract mesh of one axis": lambda lib: repr(lib.sharding.AbstractMesh((2,), ("x",))),
    "repr of no mesh": lambda lib: (repr(lib.sharding.get_mesh()), repr(lib.sharding.get_abstract_mesh())),
    "repr of a type": lambda lib: [repr(t) for t in lib.sharding.AxisType],
    "text of a type": lambda lib: [str(t) for t in lib.sharding.AxisType],
    "start of the repr of a placement": lambda lib: repr(placed(lib, "x", None)),
    "facts of a mesh": lambda lib: [
        (m.shape_tuple, m.size, m.empty, m.is_multi_process, m.device_ids, m.axis_sizes, dict(m.shape))
        for m in [mesh_of(lib)]
    ],
    "devices of a mesh": lambda lib: (
        ids(mesh_of(lib).local_devices),
        mesh_of(lib).local_mesh == mesh_of(lib),
    ),
    "an updated mesh": lambda lib: str(mesh_of(lib).update(axis_types=(lib.sharding.AxisType.Explicit,) * 2)),
    "axes of an abstract mesh": lambda lib: [
        (m.auto_axes, m.explicit_axes, m.manual_axes, m.are_all_axes_auto, m.are_all_axes_manual)
        for m in [mesh_of(lib).abstract_mesh]
    ],
    "an updated abstract mesh": lambda lib: abstract_names(
        mesh_of(lib).abstract_mesh.update_axis_types({"x": lib.sharding.AxisType.Manual})
    ),
    "equal meshes": lambda lib: (
        mesh_of(lib) == mesh_of(lib),
        hash(mesh_of(lib)) == hash(mesh_of(lib)),
        mesh_of(lib) == mesh_of(lib, (4, 2)),
        mesh_of(lib) == mesh_of(lib, (2, 4), ("y", "x")),
    ),
    **{
        f"indices of {n}": (lambda lib, s=s: with_ids(placed(lib, *s).devices_indices_map((8, 8))))
        for n, s in SPECS.items()
    },
    **{
        f"local indices of {n}": (
            lambda lib, s=s: with_ids(placed(lib, *s).addressable_devices_indices_map((8, 8)))
        )
        for n, s in SPECS.items()
    },
    **{
        f"facts of {n}": (
            lambda lib, s=s: [
                (
                    p.is_fully_replicated,
                    p.is_fully_addressable,
                    p.has_addressable_devices,
                    p.num_devices,
                    p.memory_kind,
                    p.replicated_axes,
                    ids(p.addressable_devices),
                    ids(p.device_set),
                    p.shard_shape((8, 16)),
                )
                for p in [placed(lib, *s)]
            ]
        )
        for n, s in SPECS.items()
    },
    **{
        f"shards of {n}": (lambda lib, s=s: shards(lib.device_put(X, placed(lib, *s))))
        for n, s in SPECS.items()
    },
    **{f"moved to {n}": (lambda lib, s=s: pieces(lib, mesh_of(lib, (4, 2)), *s)) for n, s in SPECS.items()},
    "moved to fewer devices": lambda lib: pieces(
        lib, lib.sharding.Mesh(np.array(lib.devices()[:2]), ("x",)), "x"
    ),
    "moved to other devices": lambda lib: pieces(
        lib, lib.sharding.Mesh(np.array(lib.devices()[::-1]).reshape(2, 4), ("x", "y")), "x", "y"
    ),
    "moved to one device": lambda lib: shards(
        lib.device_put(lib.device_put(X, placed(lib, "x")), lib.devices()[3])
    ),
    "one device": lambda lib: [
        (p.is_fully_replicated, p.num_devices, with_ids(p.devices_indices_map((2, 2))), p.shard_shape((2, 2)))
        for p in [lib.sharding.SingleDeviceSharding(lib.devices()[1])]
    ],
    "one device made": lambda lib: (
        lib.sharding.make_single_device_sharding(lib.devices()[1])
        == lib.sharding.SingleDeviceSharding(lib.devices()[1])
    ),
    "equivalent placements": equivalent,
    "an updated placement": lambda lib: placed(lib, "x").update(spec=lib.P("y")) == placed(lib, "y"),
    "the same memory": lambda lib: placed(lib, "x").with_memory_kind("device") == placed(lib, "x"),
    "nested meshes": nested,
    "a mesh that is left set": left_set,
    "a mesh that is set for P": lambda lib: inside(
        lib, mesh_of(lib), lambda: shards(lib.device_put(X, lib.P("x", "y")))
    ),
    "a mesh that is set for a constraint": lambda lib: inside(
        lib,
        mesh_of(lib),
        lambda: shards(lib.jit(lambda x: lib.lax.with_sharding_constraint(x * 2, lib.P("x", "y")))(X)),
    ),
    "the abstract mesh that is set": lambda lib: inside(
        lib, mesh_of(lib), lambda: abstract_names(lib.sharding.get_abstract_mesh())
    ),
    "shardings of jit by P": lambda lib: inside(
        lib, mesh_of(lib), lambda: shards(lib.jit(lambda x: x + 1, out_shardings=lib.P("y"))(X))
    ),
    "reshard at once": lambda lib: shards(
        lib.reshard(lib.numpy.asarray(X), lib.NamedSharding(lib.make_mesh((2, 4), ("x", "y")), lib.P("y")))
    ),
    "reshard of P": lambda lib: inside(
        lib,
        lib.make_mesh((2, 4), ("x", "y")),
        lambda: shards(lib.reshard(lib.numpy.asarray(X), lib.P("y", "x"))),
    ),
    "reshard inside jit": lambda lib: inside(
        lib,
        lib.make_mesh((2, 4), ("x", "y")),
        lambda: shards(lib.jit(lambda x: lib.reshard(x * 2, lib.P("y")))(lib.numpy.asarray(X))),
    ),
    "arrays of single devices": lambda lib: shards(singles(lib)),
    "in another order": lambda lib: shards(singles(lib, (3, 1, 0, 2, 7, 6, 5, 4))),
    # mistakes
    "reshard without a mesh": lambda lib: lib.reshard(X, lib.P("x")),
    "reshard to a device": lambda lib: lib.reshard(X, lib.devices()[0]),
    "single arrays: shape": lambda lib: singles(lib, rows=2),
    "single arrays: dtype": lambda lib: singles(lib, dtype="int32"),
    "single arrays: count": lambda lib: singles(lib, count=3),
    "single arrays: no list": lambda lib: lib.make_array_from_single_device_arrays((8, 8), placed(lib), X),
    "an unknown axis": lambda lib: placed(lib, "z"),
    "too many names": lambda lib: lib.sharding.Mesh(np.array(lib.devices()), ("a", "b")),
    "constraint without a mesh": lambda lib: lib.device_put(X, lib.P("x")),
    "set_mesh of no mesh": lambda lib: lib.set_mesh("x"),
    "set_mesh of an abstract mesh": lambda lib: lib.set_mesh(mesh_of(lib).abstract_mesh),
}
