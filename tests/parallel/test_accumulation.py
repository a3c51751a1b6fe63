"""Gradients that a step adds up over parts of its batch: where the sums lie under each recipe, what that
sends and what it holds.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax, random, tree
from infini.ad_checkpoint import checkpoint_name
from infini.core import errors
from infini.core.mesh import AbstractMesh
from infini.parallel import explain_sharding, recipes
from infini.sharding import P, make_mesh
from infini.testing import count_collectives, predicted
from infini.train import gpt, step

MESH = AbstractMesh(("dp", "tp"), (4, 2))
PARTS, DEVICES = 4, 4
CONFIG = gpt.Config(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=4, num_kv_heads=4, head_dim=4
)
# How often gradients are scattered or summed whole in a step.
MADE = {"data": (0, 1), "zero1": (1, 0), "zero2": (PARTS, 0), "zero3": (PARTS, 0)}


@pytest.fixture(autouse=True)
def devices() -> Any:
    with inf.config(device="reference", cpu_devices=DEVICES):
        yield


@functools.cache
def state() -> Any:
    return step.init_state(random.PRNGKey(0), CONFIG, step.Hyperparameters())


def windows() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 32, (32, 33)).astype(np.int32)


def over_mesh(recipe: recipes.Recipe) -> Any:
    """The step of `infini train`, with parts."""
    mesh = make_mesh((DEVICES,), ("dp",))
    specs = {
        "params": recipe.params(state()["params"], mesh),
        "optimizer": recipe.optimizer(state()["optimizer"], mesh),
    }
    return inf.shard(
        in_parts(),
        mesh=mesh,
        in_specs=(specs, recipe.of_batch(), P()),
        out_specs=(specs, None),
        named=recipe.of_names() | recipe.of_sums(state()["params"], mesh),
    )


def in_parts() -> Any:
    how = step.Computation(num_parts=PARTS)
    return functools.partial(step.step, config=CONFIG, hyper=step.Hyperparameters(), computation=how)


@pytest.mark.parametrize("name", MADE)
def test_gradients_are_sent_once_or_for_every_part(name: str) -> None:
    run, arguments = over_mesh(getattr(recipes, name)()), (state(), windows(), np.float32(1e-3))
    shown = explain_sharding(run, *arguments, memory=False)
    made: Counter[str] = Counter()
    for c in shown.collectives:
        made[c.name] += c.num_operands * (c.times or 1)
    num_weights = len(tree.leaves(state()["params"]))
    scattered, whole = MADE[name]
    assert made["psum_scatter"] == scattered * num_weights
    assert made["psum"] == whole * num_weights + (1 if whole else 2)  # the loss, and of parts the norm
    with count_collectives() as counts:
        after, metrics = run(*arguments)
    assert counts == predicted(shown.found)
    wanted, expected = inf.jit(in_parts())(*arguments)
    assert float(metrics["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-5)
    for x, y in zip(tree.leaves(after["params"]), tree.leaves(wanted["params"]), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


# --- one product, whose sums of gradients are most of what it holds ------------------------------------

WIDTH, ROWS = 128, 64


def accumulated(weights: Any, moments: Any, xs: Any) -> Any:
    def turn(total: Any, x: Any) -> Any:
        gradient = inf.grad(lambda w: (inp.tanh(x @ w) ** 2).sum())(weights)
        return checkpoint_name(total + gradient, "sums/w"), None

    total, _ = lax.scan(turn, inp.zeros_like(weights), xs)
    moments = moments * 0.9 + total
    return weights - moments, moments


def planned(recipe: recipes.Recipe) -> Any:
    mesh = make_mesh((DEVICES,), ("dp",))
    weights = np.zeros((WIDTH, WIDTH), np.float32)
    specs = recipe.params({"w": weights}, mesh)["w"], recipe.optimizer({"w": weights}, mesh)["w"]
    run = inf.shard(
        accumulated,
        mesh=mesh,
        in_specs=(*specs, P(None, "dp")),
        out_specs=specs,
        named=recipe.of_sums({"w": weights}, mesh),
        donate_argnums=(0, 1),
    )
    return explain_sharding(run, weights, weights, np.zeros((PARTS, DEVICES * ROWS, WIDTH), np.float32))


def test_zero2_holds_a_part_of_what_zero1_holds() -> None:
    """The sum: whole under one, a part under the other."""
    whole = 4 * WIDTH * WIDTH
    first, second = planned(recipes.zero1()), planned(recipes.zero2())
    assert first.memory["arguments"] == second.memory["arguments"]
    assert first.memory["peak"] - second.memory["peak"] >= (1 - 1 / DEVICES) * whole


@pytest.mark.parametrize(("recipe", "times"), [(recipes.zero1(), 1), (recipes.zero2(), PARTS)])
def test_zero2_scatters_in_every_turn(recipe: recipes.Recipe, times: int) -> None:
    shown = planned(recipe)
    made = [(c.name, c.times, c.nbytes) for c in shown.collectives if c.name != "all_gather"]
    assert made == [("psum_scatter", times, 4 * WIDTH * WIDTH)]


# --- places -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "placed"),
    [
        (recipes.data(), {}),
        (recipes.zero1(), {"sums/up_proj": P(unreduced={"dp"}), "sums/norm": P(unreduced={"dp"})}),
        (recipes.zero2(), {"sums/up_proj": P("dp"), "sums/norm": P("dp")}),
        (recipes.zero3(), {}),
        (
            recipes.product(recipes.tensor(), recipes.zero1()),
            {"sums/up_proj": P("tp", unreduced={"dp"}), "sums/norm": P(unreduced={"dp"})},
        ),
        (
            recipes.product(recipes.tensor(), recipes.sequence(), recipes.zero1()),
            {"sums/up_proj": P("tp", unreduced={"dp"}), "sums/norm": P(unreduced={"dp", "tp"})},
        ),
        (
            recipes.product(recipes.tensor(), recipes.zero2()),
            {"sums/up_proj": P("tp", "dp"), "sums/norm": P("dp")},
        ),
    ],
)
def test_places_of_sums(recipe: recipes.Recipe, placed: dict[str, P]) -> None:
    params = {"norm": np.zeros(16), "up_proj": np.zeros((32, 16)), "scale": np.zeros(())}
    assert recipe.of_sums(params, MESH) == placed


def test_an_axis_that_the_mesh_lacks_is_named() -> None:
    mesh = make_mesh((DEVICES,), ("dp",))
    with pytest.raises(errors.ValueMismatchError, match=r"named\['sums/w'\] splits over 'data'"):
        inf.shard(lambda x: x, mesh=mesh, named={"sums/w": P(unreduced={"data"})})
