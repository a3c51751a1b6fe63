"""Meshes that are set, and placements by name: what JAX has no answer for, or answers otherwise."""

import numpy as np
import pytest

import infini as inf
from infini import lax
from infini.core import errors
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


class TestDevices:
    """Programs name axes; the devices are those of the mesh that was named while they were traced."""

    @pytest.fixture
    def last(self):
        with inf.config(device="reference", cpu_devices=4):
            yield Mesh(np.array(inf.devices()[2:4]), ("x",))

    @pytest.mark.parametrize(
        "placed",
        [
            lambda mesh: inf.shard_map(lambda b: b * 2, mesh=mesh, in_specs=P("x"), out_specs=P("x")),
            lambda mesh: lambda x: inf.lax.with_sharding_constraint(x * 2, NamedSharding(mesh, P("x"))),
            lambda mesh: lambda x: inf.device_put(x * 2, NamedSharding(mesh, P("x"))),
            lambda mesh: inf.shard(lambda x: x * 2, mesh=mesh, in_specs=P("x")),
        ],
    )
    @pytest.mark.parametrize("around", [lambda f: f, inf.jit, lambda f: inf.jit(inf.jit(f))])
    def test_are_those_that_are_named(self, last, placed, around):
        f = around(placed(last))
        for _ in range(2):
            y = f(np.arange(4, dtype=np.float32))
            np.testing.assert_array_equal(y, [0, 2, 4, 6])
            assert y.sharding.device_set == set(inf.devices()[2:4])

    def test_a_function_in_another_one_keeps_them(self, last):
        inner = inf.jit(inf.shard_map(lambda b: b * 2, mesh=last, in_specs=P("x"), out_specs=P("x")))
        x = np.arange(4, dtype=np.float32)
        inner(x)
        assert inf.jit(lambda x: inner(x) + 1)(x).sharding.device_set == set(inf.devices()[2:4])

    def test_two_meshes_of_one_name_are_refused(self, last):
        first = Mesh(np.array(inf.devices()[:2]), ("x",))

        def f(x):
            x = inf.lax.with_sharding_constraint(x, NamedSharding(first, P("x")))
            return inf.lax.with_sharding_constraint(x * 2, NamedSharding(last, P("x")))

        with pytest.raises(errors.DeviceError, match="two meshes with the same axes"):
            inf.jit(f)(np.ones(4, np.float32))

    def test_an_argument_on_others_is_refused(self, last):
        first = Mesh(np.array(inf.devices()[:2]), ("x",))
        x = inf.device_put(np.ones(4, np.float32), NamedSharding(first, P("x")))
        with pytest.raises(errors.DeviceError, match="other devices than the mesh"):
            inf.shard(lambda x: x * 2, mesh=last, in_specs=P("x"))(x)

    def test_each_is_there_once(self, last):
        with pytest.raises(errors.ValueMismatchError, match="reference:2 several times"):
            Mesh(np.array([inf.devices()[2]] * 2), ("x",))
        with pytest.raises(errors.ValueMismatchError, match="at least one along each axis"):
            Mesh(np.array([]), ("x",))

    def test_of_two_kinds_are_refused(self):
        with pytest.raises(errors.DeviceError, match="cpu, reference"):
            Mesh(np.array([inf.devices("cpu")[0], inf.devices("reference")[0]]), ("x",))

    def test_alone_there_is_nothing_to_say(self, last):
        def told(x):
            inf.debug.print("{}", x.sum())
            return x

        one = Mesh(np.array(inf.devices()[:1]), ("x",))
        inf.jit(inf.shard_map(told, mesh=one, in_specs=P("x"), out_specs=P("x")))(np.ones(2, np.float32))
