"""Pictures of placements, and callbacks that are told of them."""

import numpy as np
import pytest

import infini as inf
from infini import debug
from infini.sharding import NamedSharding, P, SingleDeviceSharding, make_mesh

X = np.ones((8, 8), np.float32)


@pytest.fixture(autouse=True)
def devices():
    with inf.config(device="reference", cpu_devices=8, check=1):
        yield


@pytest.fixture
def mesh():
    return make_mesh((2, 4), ("x", "y"))


def drawn(capsys, shape, sharding, **options):
    debug.visualize_sharding(shape, sharding, **options)
    return capsys.readouterr().out.splitlines()


def names(lines):
    """The labels of a picture, without platform, by rows."""
    rows = [[cell.split()[-1] for cell in line.strip("│").split("│") if cell.strip()] for line in lines]
    return [row for row in rows if row and not any(c in "".join(row) for c in "┌├└")]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (P("x", "y"), [["0", "1", "2", "3"], ["4", "5", "6", "7"]]),
        (P("x"), [["0,1,2,3"], ["4,5,6,7"]]),
        (P(None, "y"), [["0,4", "1,5", "2,6", "3,7"]]),
        (P(("x", "y")), [[str(i)] for i in range(8)]),
        (P(("y", "x")), [[i] for i in "04152637"]),
        (P(), [["0,1,2,3,4,5,6,7"]]),
    ],
    ids=str,
)
def test_a_part_shows_the_devices_that_hold_it(capsys, mesh, spec, expected):
    wide = {"scale": 2.0, "max_width": 120}
    assert names(drawn(capsys, (8, 8), NamedSharding(mesh, spec), **wide)) == expected


def test_a_picture_has_lines_between_parts(capsys):
    mesh = make_mesh((2, 2), ("a", "b"))
    where = NamedSharding(mesh, P("a", "b"))
    found = drawn(capsys, (8, 8), where, scale=1.25, min_width=15)
    found = [line.replace("REFERENCE", "CPU") for line in found]
    assert found[0][0] + found[0][-1] == "┌┐" and found[-1][0] + found[-1][-1] == "└┘"
    assert sum(line.startswith("├") for line in found) == 1 and sum("CPU" in line for line in found) == 2


def test_one_dimension_is_one_row(capsys, mesh):
    lines = drawn(capsys, (8,), NamedSharding(mesh, P("y")), scale=3.0)
    assert len(lines) == 3 and names(lines) == [["0,4", "1,5", "2,6", "3,7"]]


def test_a_picture_keeps_to_its_width(capsys, mesh):
    lines = drawn(capsys, (8, 8), NamedSharding(mesh, P("x", "y")), scale=9.0, max_width=40)
    assert {len(line) for line in lines} <= set(range(41))


def test_three_dimensions_are_an_error(mesh):
    with pytest.raises(ValueError, match="one and two dimensions"):
        debug.visualize_sharding((8, 8, 8), NamedSharding(mesh, P()))
    with pytest.raises(ValueError, match="one and two dimensions"):
        debug.visualize_array_sharding(inf.numpy.ones(()))


def test_an_array_is_drawn_where_it_is(capsys, mesh):
    debug.visualize_array_sharding(inf.device_put(X, NamedSharding(mesh, P("x"))), use_color=False)
    assert names(capsys.readouterr().out.splitlines()) == [["0,1,2,3"], ["4,5,6,7"]]


def test_a_value_of_a_program_is_drawn_where_the_partitioner_puts_it(capsys, mesh):
    @inf.jit
    def f(x):
        debug.visualize_array_sharding(x * 2, use_color=False)
        return x

    f(inf.device_put(X, NamedSharding(mesh, P("x"))))
    assert names(capsys.readouterr().out.splitlines()) == [["0,1,2,3"], ["4,5,6,7"]]


def test_a_callback_is_told_the_placement(mesh):
    seen, x = [], inf.device_put(X, NamedSharding(mesh, P("x", "y")))
    debug.inspect_array_sharding(x, callback=seen.append)
    inf.jit(lambda v: (debug.inspect_array_sharding(v.T * 2, callback=seen.append), v)[1])(x)
    assert seen == [NamedSharding(mesh, P("x", "y")), NamedSharding(mesh, P("y", "x"))]


def test_inside_derivatives_and_loops(mesh):
    seen, x = [], inf.device_put(X, NamedSharding(mesh, P("x")))

    def f(v):
        debug.inspect_array_sharding(v * 2, callback=seen.append)
        return (v**2).sum()

    inf.jit(inf.grad(f))(x)
    assert seen == [NamedSharding(mesh, P("x"))]


@pytest.mark.parametrize("platform", ["reference", "cpu"])
def test_without_a_mesh_a_program_tells_its_device(platform):
    seen = []
    with inf.config(device=platform):
        f = inf.jit(lambda v: (debug.inspect_array_sharding(v, callback=seen.append), v + 1)[1])
        f(inf.numpy.ones(3))
        assert seen == [SingleDeviceSharding(inf.devices()[0])]


def test_a_callback_must_be_a_function():
    with pytest.raises(TypeError, match="needs a function"):
        debug.inspect_array_sharding(inf.numpy.ones(3), callback=3)
