"""Training steps under recipes and products of them, on eight devices: the losses and gradients of one."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from typing import Any

import numpy as np
import pytest

import infini as inf
from infini import parallel, random, tree
from infini.ad_checkpoint import checkpoint_name
from infini.core import errors
from infini.core.mesh import AbstractMesh
from infini.parallel import explain_sharding, recipes
from infini.sharding import P, make_mesh
from infini.train import gpt
from tests.parallel.recipe_rows import GATHERED, LENGTH, MODELS, ROWS, SIZES, optimizer, run


@pytest.mark.parametrize(("name", "model"), ROWS)
def test_ten_steps_are_those_of_one_device(name: str, model: str) -> None:
    with inf.config(cpu_devices=8):
        found = run(name, MODELS[model])
    assert found.losses == pytest.approx(found.wanted, rel=1e-5)
    assert found.excess <= 1
    assert found.is_as_predicted


@pytest.mark.parametrize("rows", [8, 7])
def test_a_vocabulary_that_the_axis_does_not_divide_is_split(rows: int) -> None:
    recipe, sent = recipes.product(recipes.tensor(), recipes.data()), {}
    for size in (64, 61):
        config = dataclasses.replace(MODELS["gpt"], vocab_size=size)
        with inf.config(device="reference", cpu_devices=8, check=1):
            params = gpt.init(random.PRNGKey(0), config)
            windows = np.random.default_rng(0).integers(0, size, (rows, LENGTH + 1)).astype(np.int32)
            run = inf.value_and_grad(lambda params, windows, config=config: gpt.loss(params, windows, config))
            mesh = make_mesh((2, 4), ("dp", "tp"))
            specs = recipe.params(params, mesh)
            assert specs["embed_tokens"] == P("tp")
            split = inf.shard(run, mesh=mesh, in_specs=(specs, recipe.of_batch()), out_specs=(P(), specs))
            found, wanted = split(params, windows), inf.jit(run)(params, windows)
            shown = explain_sharding(split, params, windows, memory=False)
        for a, b in zip(tree.leaves(found), tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(np.abs(b).max()))
        sent[size] = Counter((c.name, c.axes) for c in shown.collectives for _ in range(c.times or 1))
    assert sent[61] == sent[64]


# --- placements -------------------------------------------------------------------------------------

MESH = AbstractMesh(("dp", "tp", "ep"), (2, 4, 2))
UP, DOWN = (64, 32), (32, 64)


@pytest.mark.parametrize(
    ("recipe", "path", "shape", "placed"),
    [
        (recipes.data(), "layers/0/mlp/up_proj", UP, P()),
        (recipes.zero3(), "layers/0/mlp/up_proj", UP, P("dp")),
        (recipes.zero3(), "norm", (31,), P()),
        (recipes.zero3(), "router", (3, 32), P(None, "dp")),
        (recipes.tensor(), "layers/0/mlp/up_proj", UP, P("tp")),
        (recipes.tensor(), "layers/0/mlp/down_proj", DOWN, P(None, "tp")),
        (recipes.tensor(), "layers/0/self_attn/q_proj_bias", (64,), P("tp")),
        (recipes.tensor(), "layers/0/self_attn/o_proj_bias", (32,), P()),
        (recipes.tensor(), "layers/0/mlp/experts/up_proj", (8, *UP), P(None, "tp")),
        (recipes.tensor(), "embed_tokens", (66, 32), P("tp")),  # parts of 17 rows, the last of 15
        (recipes.tensor(), "embed_tokens", (9, 32), P()),
        (recipes.product(recipes.tensor(), recipes.zero3()), "layers/0/mlp/up_proj", UP, P("tp", "dp")),
        (recipes.product(recipes.tensor(), recipes.zero3()), "norm", (32,), P("dp")),
        (recipes.product(recipes.experts(), recipes.tensor(), recipes.zero3()), "mlp/experts/up_proj",
         (8, *UP), P("ep", "tp", "dp")),
    ],
)  # fmt: skip
def test_places(recipe: recipes.Recipe, path: str, shape: tuple[int, ...], placed: P) -> None:
    assert recipe.place(path, shape, MESH) == placed


def test_what_the_optimizer_keeps_is_split_by_zero1_alone() -> None:
    params = {"up_proj": np.zeros(UP, np.float32)}
    state = optimizer().init(params)
    recipe = recipes.zero1()
    assert recipe.params(params, MESH) == {"up_proj": P()}
    placed = tree.leaves(recipe.optimizer(state, MESH), is_leaf=lambda x: isinstance(x, P))
    assert placed.count(P("dp")) == 2  # both moments; the count of steps is whole


def test_zero2_places_weights_and_what_the_optimizer_keeps_as_zero1() -> None:
    state = {"params": {"up_proj": np.zeros(UP, np.float32)}}
    for kind in ("params", "optimizer"):
        first, second = (getattr(r, kind)(state, MESH) for r in (recipes.zero1(), recipes.zero2()))
        assert first == second


def test_batches_are_split_by_all_axes_that_split_them() -> None:
    recipe = recipes.product(recipes.experts(), recipes.data())
    assert recipe.of_batch() == P(("dp", "ep"))
    assert recipe.axes == ("ep", "dp")


def test_named_values_have_the_axes_of_the_batch_that_split_nothing_else_of_them() -> None:
    recipe = recipes.product(recipes.experts(), recipes.tensor(), recipes.sequence(), recipes.data())
    assert recipe.of_names() == {
        "experts": P("ep", "dp"),
        "sequences": P(("dp", "ep")),
        "residual": P(("dp", "ep"), "tp"),
        "normed": P(("dp", "ep"), None),
    }


def test_gathered_experts_have_tokens_whole_along_their_axis_and_results_not_summed() -> None:
    recipe = recipes.product(GATHERED, recipes.data())
    whole, terms = P("dp"), P("dp", unreduced={"ep"})
    assert recipe.of_batch() == P(("dp", "ep"))
    assert recipe.of_names() == {
        "experts": P("ep", "dp"),
        **dict.fromkeys(("tokens", "choices", "gradient of mixed"), whole),
        **dict.fromkeys(("mixed", "gradient of tokens", "gradient of choices"), terms),
    }


def test_a_dispatch_that_does_not_exist_is_named() -> None:
    with pytest.raises(errors.ValueMismatchError, match="no dispatch called 'broadcast'"):
        recipes.experts(dispatch="broadcast")


def test_a_gradient_is_placed_by_the_name_of_its_value() -> None:
    with inf.config(device="reference", cpu_devices=4):
        mesh = make_mesh((4,), ("x",))
        f = inf.grad(lambda x: (checkpoint_name(x * 2, "twice") ** 2).sum())
        x = np.arange(24, dtype=np.float32).reshape(8, 3)
        found = inf.shard(f, mesh=mesh, named={"gradient of twice": P("x")})(x)
        np.testing.assert_array_equal(found, 8 * x)
        assert found.addressable_shards[1].data.shape == (2, 3)


def test_a_name_may_stay_terms_of_a_sum() -> None:
    """What nobody asked to be whole is scattered then."""
    with inf.config(device="reference", cpu_devices=4):
        mesh = make_mesh((4,), ("x",))
        a, b = np.ones((8, 4), np.float32), np.ones((4, 8), np.float32)

        def sent(**options: Any) -> dict[str, int]:
            run = inf.shard(
                lambda a, b: inf.numpy.tanh(checkpoint_name(a @ b, "product")),
                mesh=mesh, in_specs=(P(None, "x"), P("x")), out_specs=P("x"), **options
            )  # fmt: skip
            np.testing.assert_allclose(run(a, b), np.tanh(a @ b), rtol=1e-6)
            return {c.name: c.nbytes for c in inf.parallel.explain_sharding(run, a, b).collectives}

        assert sent(named={"product": P(None, unreduced={"x"})}) == {"psum_scatter": 256}
        with pytest.raises(errors.ValueMismatchError, match=r"named\['product'\] splits over 'y'"):
            sent(named={"product": P(None, unreduced={"y"})})


def test_a_name_splits_a_program_that_nothing_else_splits() -> None:
    with inf.config(device="reference", cpu_devices=4):
        mesh = make_mesh((4,), ("x",))
        x = np.arange(24, dtype=np.float32).reshape(8, 3)

        def place(spec: Any) -> Any:
            return inf.shard(lambda x: checkpoint_name(x * 2, "twice"), mesh=mesh, named={"twice": spec})(x)

        found = place(P("x"))
        np.testing.assert_array_equal(found, x * 2)
        assert found.addressable_shards[1].data.shape == (2, 3)
        with pytest.raises(errors.ValueMismatchError, match=r"named\['twice'\] splits over 'y'"):
            place(P("y"))
        with pytest.raises(errors.ValueMismatchError, match=r"'twice' has fewer dimensions than its place"):
            place(P(None, None, "x"))
        with pytest.raises(errors.TypeMismatchError, match=r"named\['twice'\] is no placement"):
            place("x")


@pytest.mark.parametrize("sizes", [{"cp": 4}, {"ep": 2, "cp": 4}], ids=["context", "context x experts"])
def test_places_of_experts_are_split_with_the_tokens(sizes: dict[str, int]) -> None:
    """Eight places of every expert in a sequence; every device computes those of its part."""
    config = gpt.Config(**SIZES | {"num_layers": 1}, num_experts=8, capacity_factor=1.0)
    recipe = recipes.product(recipes.context(), *([recipes.experts()] if "ep" in sizes else []))
    params = gpt.init(random.PRNGKey(0), config)
    windows = np.random.default_rng(0).integers(0, 64, (2, 33)).astype(np.int32)
    f = inf.value_and_grad(functools.partial(gpt.loss, config=config))
    with inf.config(device="reference", cpu_devices=8):
        mesh = make_mesh(tuple(sizes.values()), tuple(sizes))
        specs = recipe.params(params, mesh)
        run = inf.shard(
            f, mesh=mesh, in_specs=(specs, recipe.of_batch()), out_specs=(P(), specs), named=recipe.of_names()
        )
        for found, wanted in zip(
            tree.leaves(run(params, windows)), tree.leaves(inf.jit(f)(params, windows)), strict=True
        ):
            bound = 1e-5 * float(np.abs(wanted).max())
            np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=0, atol=bound)
        source = parallel.explain_sharding(run, params, windows, memory=False).found
    rows = [e for e in source.source.equations if e.op.name == "logistic"]  # in the experts
    assert [source.placements[e.output].dims[2] for e in rows] == [("cp",)]


def test_strategies_of_a_product_are_those_of_its_recipes() -> None:
    by_ring = recipes.product(recipes.context(form="ring"), recipes.sequence(), recipes.data())
    assert by_ring.strategies == {"attention": "ring"}
    placed = by_ring.of_names()
    assert placed["residual"] == P("dp", ("cp", "tp")) and placed["normed"] == P("dp", "cp")
    assert recipes.context().strategies == {}
    with pytest.raises(errors.ValueMismatchError, match=r"different strategies for attention[^$]*'gather'"):
        recipes.product(by_ring, recipes.context("ep", "gather"))


def test_an_axis_that_the_mesh_lacks_is_named() -> None:
    with pytest.raises(errors.ValueMismatchError, match=r"splits over 'fsdp', which the mesh lacks"):
        recipes.zero3("fsdp").params({"w": np.zeros(2)}, MESH)
