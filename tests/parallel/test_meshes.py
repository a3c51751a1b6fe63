"""Meshes that are set, and placements by name: what JAX has no answer for, or answers otherwise."""

import numpy as np
import pytest

import infini as inf
from infini import lax
from infini.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    P,
    auto_axes,
    explicit_axes,
    get_abstract_mesh,
    get_mesh,
    make_mesh,
    use_abstract_mesh,
    use_mesh,
)

X = np.arange(16, dtype=np.float32).reshape(8, 2)


@pytest.fixture(autouse=True)
def devices():
    with inf.config(device="reference", cpu_devices=4, check=1):
        yield


@pytest.fixture
def mesh():
    return make_mesh((2, 2), ("a", "b"))


def test_an_abstract_mesh_takes_names_and_sizes_in_either_order():
    assert AbstractMesh((2, 4), ("a", "b")) == AbstractMesh(("a", "b"), (2, 4))


def test_types_of_axes_are_no_part_of_equality(mesh):
    assert mesh == make_mesh((2, 2), ("a", "b"), (AxisType.Auto,) * 2)
    assert mesh.abstract_mesh == mesh.abstract
    assert mesh.abstract_mesh.explicit_axes == ("a", "b") and mesh.abstract.auto_axes == ("a", "b")


def test_an_abstract_mesh_of_other_lengths_is_an_error():
    with pytest.raises(ValueError, match="one size per axis"):
        AbstractMesh(("a", "b"), (2,))


def test_every_axis_needs_a_type():
    with pytest.raises(ValueError, match="one AxisType per axis"):
        make_mesh((2, 2), ("a", "b"), (AxisType.Auto,))


def test_entering_a_mesh_sets_it(mesh):
    with mesh:
        assert get_mesh() == mesh and get_abstract_mesh() == mesh.abstract
    with use_mesh(mesh):
        assert get_mesh() == mesh
    assert get_mesh().empty and get_abstract_mesh().empty


def test_an_error_inside_a_block_restores_the_mesh_before(mesh):
    with pytest.raises(KeyError), inf.set_mesh(mesh):
        raise KeyError
    assert get_mesh().empty


def test_an_abstract_mesh_gives_constraints_their_meaning(mesh):
    f = inf.jit(lambda x: lax.with_sharding_constraint(x, P("a")) + 1)
    with use_abstract_mesh(mesh.abstract):
        program = inf.make_jaxpr(f)(X)
    assert "sharding_constraint" in str(program)
    with pytest.raises(ValueError, match="outside of a mesh"):
        f(X)


def test_use_abstract_mesh_refuses_devices(mesh):
    with pytest.raises(TypeError, match=r"mesh\.abstract_mesh"), use_abstract_mesh(mesh):
        pass


def test_a_function_is_traced_again_for_another_mesh(mesh):
    f = inf.jit(lambda x: lax.with_sharding_constraint(x, P("a")))
    with inf.set_mesh(mesh):
        assert f(X).sharding.mesh == mesh
    other = make_mesh((4,), ("a",))
    with inf.set_mesh(other):
        assert f(X).sharding.mesh == other
        f(X)
    assert f.num_traces == 2


def test_auto_axes_place_results(mesh):
    f = auto_axes(lambda x: x + 1, out_sharding=NamedSharding(mesh, P("a")))
    assert f(X).sharding.spec == P("a")
    assert f(X, out_sharding=NamedSharding(mesh, P("b"))).sharding.spec == P("b")
    with pytest.raises(TypeError, match="out_sharding"):
        auto_axes(lambda x: x)(X)


def test_explicit_axes_place_arguments(mesh):
    seen = []
    f = explicit_axes(lambda x: seen.append(x.sharding.spec) or x, in_sharding=NamedSharding(mesh, P("b")))
    np.testing.assert_array_equal(f(X), X)
    assert seen == [P("b")]


def test_other_kinds_of_memory_are_refused(mesh):
    with pytest.raises(NotImplementedError, match="one kind of memory"):
        NamedSharding(mesh, P()).with_memory_kind("pinned_host")


def test_parts_of_one_array_on_an_equal_placement_of_another_mesh_are_not_copied(mesh):
    x = inf.device_put(X, NamedSharding(mesh, P("a", "b")))
    row = Mesh(mesh.devices, ("c", "d"))
    moved = inf.device_put(x, NamedSharding(row, P("c", "d")))
    assert moved.sharding.mesh == row and moved.sharding.mesh != mesh
    assert [a is b for a, b in zip(moved.buffers, x.buffers, strict=True)] == [True] * 4


@pytest.mark.parametrize("source", [P("a", "b"), P("b"), P(), P(("b", "a"))], ids=str)
@pytest.mark.parametrize("target", [P("c"), P(None, "c"), P()], ids=str)
def test_arrays_move_between_meshes(mesh, source, target):
    other = make_mesh((2,), ("c",), devices=inf.devices()[1:3])
    x = inf.device_put(X, NamedSharding(mesh, source))
    moved = inf.device_put(x, NamedSharding(other, target))
    assert moved.sharding == NamedSharding(other, target) and moved.committed
    np.testing.assert_array_equal(moved, X)
    np.testing.assert_array_equal(moved.addressable_shards[1].data, X[moved.addressable_shards[1].index])
