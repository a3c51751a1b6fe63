"""Pipelines whose stages are split over the other axes of the mesh."""

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax, nn, parallel
from infini.backends.spmd.lockstep import LockstepComm
from infini.core import tree
from infini.sharding import NamedSharding, P, make_mesh
from tests.parallel.pipelined import (
    MICROBATCHES,
    ROWS,
    TENSOR,
    arguments,
    assert_equal,
    check,
    layer,
    pairs,
    squares,
    two_layers,
    unsharded,
)


@pytest.fixture(autouse=True)
def devices():
    with inf.config(device="reference", cpu_devices=8, check=1):
        yield


@pytest.mark.parametrize(
    ("shape", "names", "specs", "batch"),
    [
        ((2, 4), ("pp", "dp"), None, P("dp")),
        ((4, 2), ("tp", "pp"), TENSOR, P()),
        ((2, 2, 2), ("dp", "pp", "tp"), TENSOR, P("dp")),
        ((2, 2, 2), ("pp", "dp", "tp"), TENSOR, P(("dp", "tp"))),
    ],
)
def test_stages_are_split_over_the_other_axes(shape, names, specs, batch, rng):
    params = pairs(rng, 2)
    x, t = rng.normal(size=(2, ROWS * 2, 8)).astype(np.float32)
    mesh = make_mesh(shape, names)
    options = {"param_specs": None if specs is None else [specs, specs], "batch_spec": batch}
    step, gradient = check([two_layers] * 2, squares, params, x, t, mesh=mesh, **options)
    if specs is not None:
        spec = gradient[1]["up"]["weight"].sharding.spec
        assert spec == P("tp") and gradient[1]["up"]["weight"].sharding.mesh == step.mesh_of(1)
    parts = mesh.size // mesh.shape["pp"] if batch else 1
    parts = parts if batch != P("dp") else mesh.shape["dp"]
    assert step.record.sent_bytes == (ROWS * 2 * 8 * 4 // parts,) * 2


@pytest.mark.parametrize("count", [2, 8])
def test_gradients_are_reduced_once_per_step(count, rng, monkeypatch):
    """Over the axis of the batch: once for each stage, its parameters in one message, and the loss of each
    microbatch.
    """
    calls, reduce = [], LockstepComm.all_reduce
    monkeypatch.setattr(LockstepComm, "all_reduce", lambda *args: calls.append(args[1:]) or reduce(*args))
    params, x, t = arguments(rng, (4, 4, 4))
    step = parallel.pipeline(
        [layer] * 2,
        squares,
        mesh=make_mesh((2, 2), ("pp", "dp")),
        num_microbatches=count,
        batch_spec=P("dp"),
    )
    step(params, x, t)
    assert len(calls) == 2 + count
    assert sum(row.size for rows, *_ in calls for row in rows[:1]) == count + sum(
        p.size for p in tree.leaves(params)
    )


def test_fully_sharded_stages(rng):
    params = pairs(rng, 4)
    x, t = rng.normal(size=(2, ROWS, 8)).astype(np.float32)
    mesh = make_mesh((2, 4), ("pp", "dp"))
    specs = parallel.recipes.zero3("dp").params(params, mesh.at("pp", 0))
    options = {"param_specs": specs, "batch_spec": P("dp"), "schedule": "interleaved"}
    _, gradient = check([two_layers] * 4, squares, params, x, t, mesh=mesh, **options)
    assert gradient[3]["up"]["weight"].addressable_shards[0].data.size == 16 * 8 // 4


def transformer(rng, width=8, size=12):
    """Four blocks of attention and a pair of layers, letters before and after; with placements over `tp`."""
    matrix = lambda *shape: (0.3 * rng.normal(size=shape)).astype(np.float32)  # noqa: E731
    names = {"q": P(None, "tp"), "k": P(None, "tp"), "v": P(None, "tp"), "o": P("tp", None)}
    specs = [{**names, **TENSOR} for _ in range(4)]
    params = [{**{n: matrix(width, width) for n in names}, **pairs(rng, 1, width)[0]} for _ in range(4)]
    for end in (0, 3):
        params[end]["letters"], specs[end]["letters"] = matrix(size, width), P("tp", None)
    params[3]["letters"] = params[0]["letters"]

    def block(p, x):
        heads = lambda name: (x @ p[name]).reshape(*x.shape[:2], 2, width // 2)  # noqa: E731
        seen = nn.dot_product_attention(heads("q"), heads("k"), heads("v"), is_causal=True)
        x = x + seen.reshape(x.shape) @ p["o"]
        return x + two_layers(p, x)

    first = lambda p, letters: block(p, p["letters"][letters])  # noqa: E731
    last = lambda p, x: block(p, x) @ p["letters"].T  # noqa: E731
    return [first, block, block, last], params, specs


def test_a_transformer_over_every_axis_follows_the_same_losses(rng):
    stages, params, specs = transformer(rng)
    letters = rng.integers(0, 12, (ROWS, 7)).astype(np.int32)

    def loss_of(scores, letters):
        return nn.losses.cross_entropy(scores, letters).mean()

    step = parallel.pipeline(
        stages,
        loss_of,
        mesh=make_mesh((2, 2, 2), ("dp", "pp", "tp")),
        num_microbatches=MICROBATCHES,
        schedule="interleaved",
        param_specs=specs,
        batch_spec=P("dp"),
        shared=[("0/letters", "3/letters")],
    )

    def alone(params):
        value, gradient = unsharded(stages, loss_of, params, letters[:, :-1], letters[:, 1:])
        both = gradient[0]["letters"] + gradient[3]["letters"]
        gradient[0]["letters"] = gradient[3]["letters"] = both
        return value, gradient

    placed, losses = step.place(params), []
    for _ in range(5):
        loss, found = step(placed, letters[:, :-1], letters[:, 1:])
        there = alone(tree.map(np.asarray, placed))[1]
        # Gradients of queries and keys are small differences: the norm is that of all parameters.
        assert_equal(found, there, largest=max(float(inp.abs(leaf).max()) for leaf in tree.leaves(there)))
        expected, gradient = alone(params)
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
        placed, params = (
            tree.map(lambda p, g: p - 0.03 * g, *pair) for pair in ((placed, found), (params, gradient))
        )
        losses.append(float(loss))
    assert losses == sorted(losses, reverse=True)


def test_tied_parameters_that_are_split(rng):
    params, x, t = arguments(rng, (8, 8, 8))
    params[1] = params[0]
    mesh = make_mesh((2, 2, 2), ("pp", "dp", "tp"))
    options = {"mesh": mesh, "num_microbatches": 2, "batch_spec": P("dp")}
    specs = {"weight": P("tp", None), "bias": P("tp")}
    step = parallel.pipeline(
        [layer] * 2, squares, param_specs=[specs] * 2, shared=[("0/weight", "1/weight")], **options
    )
    _, gradient = step(params, x, t)
    _, (expected,) = unsharded([lambda p, x: layer(p, layer(p, x))], squares, params[:1], x, t)
    assert_equal([gradient[0]["weight"], gradient[1]["weight"]], [expected["weight"]] * 2)


def test_placed_parameters_stay_where_they_are(rng):
    params, x, t = arguments(rng, (8, 8, 8))
    mesh = make_mesh((2, 2), ("pp", "tp"))
    step = parallel.pipeline([layer] * 2, squares, mesh=mesh, num_microbatches=2)
    placed = [
        tree.map(lambda leaf, c=c: inf.device_put(leaf, NamedSharding(step.mesh_of(c), P("tp"))), part)
        for c, part in enumerate(params)
    ]
    _, gradient = step(placed, x, t)
    assert {leaf.sharding.spec for leaf in tree.leaves(gradient)} == {P("tp")}
    assert step.place(placed)[0]["weight"] is placed[0]["weight"]


def test_a_constraint_inside_a_stage_is_over_its_own_devices(rng):
    def constrained(params, x):
        return lax.with_sharding_constraint(layer(params, x), P(None, "tp"))

    params, x, t = arguments(rng, (8, 8, 8))
    step = parallel.pipeline(
        [constrained] * 2, squares, mesh=make_mesh((2, 2), ("pp", "tp")), num_microbatches=MICROBATCHES
    )
    assert_equal(step(params, x, t), unsharded([layer] * 2, squares, params, x, t))
