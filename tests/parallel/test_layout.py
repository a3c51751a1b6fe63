"""Ranks, coordinates and groups of a mesh."""

from __future__ import annotations

import numpy as np
import pytest

import infini as inf
from infini import lax, parallel
from infini.core import errors
from infini.sharding import AbstractMesh, P, make_mesh

MESH = AbstractMesh((2, 3, 4), ("dp", "ep", "tp"))


def test_a_rank_is_the_number_of_its_coordinates_in_mesh_order() -> None:
    for rank, index in enumerate(np.ndindex(2, 3, 4)):
        found = parallel.coordinates_of(MESH, rank)
        assert tuple(found.values()) == index and tuple(found) == MESH.axis_names
        assert parallel.rank_of(MESH, **found) == rank


def test_a_rank_is_the_place_of_its_device() -> None:
    with inf.config(device="reference", cpu_devices=8):
        mesh = make_mesh((2, 4), ("dp", "tp"))
        for rank in mesh.local_ranks:
            place = tuple(parallel.coordinates_of(mesh, rank).values())
            assert mesh.devices[place] == mesh.flat_devices[rank]


@pytest.mark.parametrize("axes", [("dp",), ("tp",), ("ep", "dp"), ("tp", "ep", "dp"), ()])
def test_groups_have_every_rank_once_and_differ_along_their_axes_only(axes: tuple[str, ...]) -> None:
    groups = parallel.groups_of(MESH, *axes)
    assert sorted(rank for group in groups for rank in group) == list(range(24))
    for group in groups:
        at = [parallel.coordinates_of(MESH, rank) for rank in group]
        assert len({tuple(found[a] for a in MESH.axis_names if a not in axes) for found in at}) == 1
        own = [tuple(found[a] for a in axes) for found in at]
        assert own == sorted(own)
        assert all(parallel.group_of(MESH, rank, *axes) == group for rank in group)


def test_a_collective_joins_a_group() -> None:
    with inf.config(device="reference", cpu_devices=8):
        mesh = make_mesh((2, 2, 2), ("a", "b", "c"))
        ranks = np.arange(8, dtype=np.int32).reshape(2, 2, 2)
        gather = lambda x: lax.all_gather(x, ("c", "a"), tiled=True)  # noqa: E731
        joined = inf.shard_map(
            lambda x: gather(x.reshape(1)).reshape(1, 1, 1, 4),
            mesh=mesh,
            in_specs=P("a", "b", "c"),
            out_specs=P("a", "b", "c"),
            check_vma=False,
        )(ranks)
        for rank in range(8):
            index = tuple(parallel.coordinates_of(mesh, rank).values())
            assert tuple(np.asarray(joined)[index]) == parallel.group_of(mesh, rank, "c", "a")


def test_what_the_mesh_lacks_is_named() -> None:
    with pytest.raises(errors.IndexOutOfRangeError, match=r"no device number 24[^$]*dp=2, ep=3, tp=4"):
        parallel.coordinates_of(MESH, 24)
    with pytest.raises(errors.IndexOutOfRangeError, match=r"'ep' of the mesh has no index 3[^$]*0 to 2"):
        parallel.rank_of(MESH, dp=0, ep=3, tp=0)
    with pytest.raises(errors.ValueMismatchError, match=r"one index for each axis[^$]*dp=0[^$]*dp, ep, tp"):
        parallel.rank_of(MESH, dp=0)
    with pytest.raises(errors.ValueMismatchError, match=r"axes of the mesh, each once[^$]*'pp'"):
        parallel.groups_of(MESH, "pp")
    with pytest.raises(errors.IndexOutOfRangeError, match="no device number -1"):
        parallel.group_of(MESH, -1, "dp")


def test_slices_of_a_mesh() -> None:
    with inf.config(device="reference", cpu_devices=8):
        mesh = make_mesh((2, 4), ("pp", "dp"))
    assert mesh.at("pp", 1).flat_devices == mesh.flat_devices[4:]
    assert mesh.at("dp", 1).flat_devices == mesh.flat_devices[1::4]
    assert mesh.at("dp", 1).axis_names == ("pp",)
    single = mesh.at("dp", 3).at("pp", 1)
    assert single.flat_devices == mesh.flat_devices[7:] and single.size == 1
    with pytest.raises(inf.InfiniError, match="no axis 'tp'"):
        mesh.at("tp", 0)
    with pytest.raises(IndexError, match="has no index 2"):
        mesh.at("pp", 2)
