"""A training step of a LLaMA under the usual placements: what is communicated, and that the numbers are
the same.
"""

from collections import Counter

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
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


# --- chains of products ----------------------------------------------------------------------------

WIDTH, INNER, TOKENS = 16, 32, 256


def chain(weights, x):
    """Layers of two blocks of two products with something between them, as attention and feed-forward."""
    for up, down in weights:
        x = x + inp.tanh(x @ up) @ down
    return x


def chain_of(num_layers):
    weights = [(np.ones((WIDTH, INNER), np.float32), np.ones((INNER, WIDTH), np.float32))] * 2 * num_layers
    return weights, np.ones((TOKENS, WIDTH), np.float32)


def messages(f, arguments, specs, size):
    """Name and bytes of every collective."""
    mesh = AbstractMesh(("x",), (size,))
    specs = [tuple(s) for s in tree.leaves(specs, is_leaf=lambda x: isinstance(x, P))]
    found = partition.partition(inf.make_jaxpr(f)(*arguments), mesh, specs)
    return [(c.name, c.nbytes) for c in found.collectives]


@pytest.mark.parametrize(("num_layers", "size"), [(1, 2), (3, 4)])
def test_a_chain_by_columns_and_rows_has_two_sums_per_layer_and_as_many_backwards(num_layers, size):
    weights, x = chain_of(num_layers)
    specs = [(P(None, "x"), P("x"))] * len(weights), P()
    a_sum = ("psum", x.nbytes)
    assert messages(chain, (weights, x), specs, size) == [a_sum] * 2 * num_layers
    # Cotangents of results are given, so that all there is besides is the backward pass.
    backwards = lambda w, x, g: inf.vjp(chain, w, x)[1](g)  # noqa: E731
    found = messages(backwards, (weights, x, x), (*specs, P()), size)
    last = 1  # its results are not read by anything backwards
    assert found == [a_sum] * (2 * num_layers - last) + [a_sum] * 2 * num_layers


@pytest.mark.parametrize(("num_layers", "size"), [(1, 2), (3, 4)])
def test_a_chain_of_split_weights_gathers_each_use_and_scatters_each_gradient(num_layers, size):
    weights, x = chain_of(num_layers)
    specs = [(P("x"), P("x"))] * len(weights), P("x")
    step = lambda w, x: inf.grad(lambda w, x: (chain(w, x) ** 2).sum(), argnums=(0, 1))(w, x)  # noqa: E731
    found = messages(step, (weights, x), specs, size)
    nbytes = 4 * WIDTH * INNER
    count = 2 * len(weights)
    # Forwards and backwards.
    assert found.count(("all_gather", nbytes // size)) == 2 * count
    assert found.count(("psum_scatter", nbytes)) == count
    assert len(found) == 3 * count


@pytest.mark.parametrize("kind", ["both", "fully sharded"])
def test_a_sharded_step_gives_the_same_numbers(kind, arguments):
    with inf.config(device="reference", cpu_devices=4):
        expected = inf.jit(train)(*arguments)
        mesh = make_mesh((2,) * len(MESHES[kind]), MESHES[kind])
        found = inf.shard(train, mesh=mesh, in_specs=specs_of(kind, arguments[0]))(*arguments)
        for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-4, atol=2e-5)
