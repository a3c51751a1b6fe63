"""What people get wrong about meshes, placements and recipes, and what they are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini.core import errors, events
from infini.parallel import recipes
from infini.sharding import Link, Machine, NamedSharding, P, make_mesh


@pytest.fixture(autouse=True)
def devices() -> Any:
    with inf.config(device="reference", cpu_devices=8):
        yield


def mesh() -> Any:
    return make_mesh((4, 2), ("dp", "tp"))


def layer(w: Any, x: Any) -> Any:
    return inp.tanh(x @ w)


def split(**options: Any) -> Any:
    ones = np.ones((8, 8), np.float32)
    return inf.shard(layer, **{"mesh": mesh(), **options})(ones, ones)


VALUE, KIND = errors.ValueMismatchError, errors.TypeMismatchError
WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "names in one text": (
        lambda: make_mesh((4, 2), "dp,tp"), VALUE, r"sizes of the axes, then as many names"
    ),
    "names first": (lambda: make_mesh(("dp", "tp"), (4, 2)), VALUE, r"fix: +make_mesh"),
    "one number": (lambda: make_mesh(8, ("dp",)), VALUE, r"got: +sizes 8"),
    "no devices": (lambda: make_mesh((0, 2), ("a", "b")), VALUE, r"positive numbers"),
    "more than there are": (
        lambda: make_mesh((4, 4), ("a", "b")), errors.DeviceError, r"needs 16 devices\n.*8 devices"
    ),
    "an axis twice": (
        lambda: NamedSharding(mesh(), P("dp", "dp")), VALUE, r"axis 'dp' stands there twice"
    ),
    "an axis that is not there": (
        lambda: NamedSharding(mesh(), P("pp")), VALUE, r"no axis 'pp'\n.*\n.*'dp', 'tp'"
    ),
    "a number in P": (lambda: P(0), KIND, r"an entry of P names no axis: 0"),
    "a text for P": (lambda: NamedSharding(mesh(), "dp"), KIND, r"fix: +P\('dp'\)"),
    "a tuple for a mesh": (lambda: NamedSharding((4, 2), P()), KIND, r"expected: +a Mesh"),
    "shard over sizes": (lambda: split(mesh=(4, 2)), KIND, r"shard: mesh is of another"),
    "too few placements": (
        lambda: split(in_specs=(P("dp"),)),
        VALUE,
        r"in_specs of shard\) does not match the arguments of the function\n +got: +\(P\('dp'\),\)",
    ),
    "too few places of results": (
        lambda: split(out_specs=(P(), P())), VALUE, r"out_specs of shard\) .* the results"
    ),
    "a strategy of nothing": (
        lambda: split(strategies={"matmull": "results"}), VALUE, r"'matmull'.* no operation"
    ),
    "a link of nothing": (
        lambda: split(machine=Machine(Link(1e9), links={"pp": Link(1e9)})),
        VALUE,
        r"a link for the axis 'pp'",
    ),
    "a machine by name": (lambda: split(machine="h100"), KIND, r"machine is of another"),
    "names in a list": (lambda: split(named=["x"]), KIND, r"recipe.of_names\(\)"),
    "recipes by name": (lambda: recipes.product("tensor"), KIND, r"product joins recipes"),
    "a list of recipes": (
        lambda: recipes.product([recipes.data()]), KIND, r"one after the other"
    ),
    "a pattern that is none": (
        lambda: recipes.tensor(columns="("), VALUE, r"no regular expression.*\n +got: +'\('"
    ),
    "an axis by number": (lambda: recipes.zero3(4), KIND, r"an axis of the mesh"),
    "a mesh by text": (
        lambda: recipes.data().params({}, "dp=8"), KIND, r"got: +'dp=8' of type str"
    ),
    "no arrays": (
        lambda: recipes.data().params({"a": {"b": "text"}}, mesh()), KIND, r"str at 'a/b'"
    ),
    "rows that devices cannot share": (
        lambda: inf.make_array_from_process_local_data(NamedSharding(mesh(), P("dp")), np.ones((6, 2))),
        VALUE,
        r"4 equal parts .*\n.*\n +fix: +give 8 elements where there are 6",
    ),
    "no simulated devices": (
        lambda: inf.config(cpu_devices=0).__enter__(), VALUE, r"expected: +a number of at"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_with_what_would_be_right(name: str) -> None:
    wrong, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        wrong()


def test_a_recipe_that_knows_none_of_the_weights_says_so() -> None:
    params = {"linear_1": np.ones((8, 8)), "linear_2": np.ones((8, 8))}
    with pytest.warns(
        errors.InfiniWarning, match=r"recipe-unused.*no weight is split over 'tp'.*'linear_1', 'linear_2'"
    ):
        recipes.product(recipes.tensor(), recipes.data()).params(params, mesh())


@pytest.mark.parametrize(
    "recipe",
    [recipes.tensor(columns="linear_1$", rows="linear_2$"), recipes.zero3("tp"), recipes.zero1("tp")],
)
def test_a_recipe_that_splits_something_is_silent(recipe: recipes.Recipe) -> None:
    params = {"linear_1": np.ones((8, 8)), "linear_2": np.ones((8, 8))}
    with events.record() as found:
        recipe.params(params, mesh())
    assert not found


def test_a_place_for_a_name_that_no_value_has_is_shown() -> None:
    ones = np.ones((8, 8), np.float32)
    run = inf.shard(layer, mesh=mesh(), named={"resdual": P("dp")})
    shown = inf.parallel.explain_sharding(run, ones, ones, memory=False)
    assert shown.unused == ("resdual",)
    assert "no value is named 'resdual'" in shown


def test_one_axis_may_be_named_by_a_text() -> None:
    assert make_mesh((8,), "dp").shape == {"dp": 8}
