"""A training step of a LLaMA under the usual placements: what is communicated, and that the numbers are
the same.
"""

from collections import Counter

import numpy as np
import pytest

import infini as inf
from infini import random
from infini.compiler import partition
from infini.core import tree
from infini.core.mesh import AbstractMesh
from infini.parallel import recipes
from infini.sharding import P, make_mesh
from infini.train import gpt, step

CONFIG = gpt.Config(
    tie_embeddings=True,
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
)
HYPER = step.Hyperparameters()


def train(state, windows, learning_rate):
    return step.step(state, windows, learning_rate, CONFIG, HYPER)


@pytest.fixture
def arguments(rng):
    with inf.config(device="reference"):
        state = step.init_state(random.PRNGKey(0), CONFIG, HYPER)
    return state, rng.integers(0, 64, (8, 9)).astype(np.int32), np.float32(1e-3)


def specs_of(kind, state):
    recipe = {
        "data": recipes.data("data"),
        "model": recipes.tensor("model"),
        "both": recipes.product(recipes.tensor("model"), recipes.data("data")),
        "fully sharded": recipes.zero3("data"),
    }[kind]
    return recipe.params(state, abstract(kind)), recipe.of_batch(), P()


def abstract(kind):
    return AbstractMesh(MESHES[kind], (2,) * len(MESHES[kind]))


MESHES = {"data": ("data",), "model": ("model",), "both": ("data", "model"), "fully sharded": ("data",)}
# Over data: 20 gradients and the loss. Over model: per layer two sums forwards and two backwards, one
# each for embedding and logits, two and a maximum in the loss, and one for the norm of all gradients.
EXPECTED = {
    "data": {"psum": 21},
    "model": {"psum": 13, "pmax": 1},
    "both": {"psum": 33, "pmax": 1},
    "fully sharded": {"psum_scatter": 20, "psum": 2},
}


@pytest.mark.parametrize("kind", MESHES)
def test_what_a_step_communicates(kind, arguments):
    mesh = abstract(kind)
    is_spec = lambda x: isinstance(x, P)  # noqa: E731
    specs = [tuple(s) for s in tree.leaves(specs_of(kind, arguments[0]), is_leaf=is_spec)]
    found = partition.partition(inf.make_jaxpr(train)(*arguments), mesh, specs)
    counts = Counter(c.name for c in found.collectives)
    gathers = counts.pop("all_gather", 0)
    assert counts == EXPECTED[kind]
    assert bool(gathers) == (kind == "fully sharded")


@pytest.mark.parametrize("kind", ["both", "fully sharded"])
def test_a_sharded_step_gives_the_same_numbers(kind, arguments):
    with inf.config(device="reference", cpu_devices=4):
        expected = inf.jit(train)(*arguments)
        mesh = make_mesh((2,) * len(MESHES[kind]), MESHES[kind])
        found = inf.shard(train, mesh=mesh, in_specs=specs_of(kind, arguments[0]))(*arguments)
        for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-4, atol=2e-5)
