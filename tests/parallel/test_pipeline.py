"""Pipelines on simulated devices: loss and gradients equal those of one device, whatever the schedule."""

import ml_dtypes
import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax, parallel, random
from infini.core import tree
from infini.sharding import make_mesh
from tests.parallel.pipelined import (
    MICROBATCHES,
    ROWS,
    SCHEDULES,
    affine,
    arguments,
    assert_equal,
    check,
    layer,
    norm_of,
    squares,
    unsharded,
)


@pytest.fixture(autouse=True)
def devices():
    with inf.config(device="reference", cpu_devices=8, check=1):
        yield


@pytest.mark.parametrize(("name", "ranks", "chunks"), SCHEDULES)
def test_gradients_of_stages_of_uneven_widths(name, ranks, chunks, rng):
    params, x, t = arguments(rng, (8, 12, 5, 7, 3)[: chunks + 1])
    mesh = make_mesh((ranks,), ("pp",))
    check([layer] * chunks, squares, params, x, t, mesh=mesh, schedule=name)


def test_every_schedule_gives_the_same_bits(rng):
    params, x, t = arguments(rng, (6,) * 5)
    found = []
    for name, ranks, _ in SCHEDULES[:4]:
        step = parallel.pipeline(
            [layer] * 4, squares, mesh=make_mesh((ranks,), ("pp",)), num_microbatches=8, schedule=name
        )
        found.append(tree.leaves(step(params, x, t)))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_every_backend_runs_pipelines(backend_name, rng):
    with inf.config(device=backend_name):
        params, x, t = arguments(rng, (6,) * 5)
        # Two parameters of one type: their sums begin as equal zeros in memory of their own.
        twice = [{"a": part, "b": tree.map(np.copy, part)} for part in params]
        stage = lambda p, x: layer(p["a"], x) * layer(p["b"], x + 1)  # noqa: E731
        mesh = make_mesh((2,), ("pp",))
        check([stage] * 4, squares, twice, x, t, mesh=mesh, schedule="interleaved")


def test_activations_are_trees_of_any_dtype_and_shape(rng):
    """Integers, booleans and a scalar go along; an integer array of another length is made on the way."""

    def embed(table, batch):
        return {"x": table[batch["ids"]], "ids": batch["ids"], "keep": batch["ids"] > 2, "penalty": 0.0}

    def mix(weight, batch):
        x = inp.where(batch["keep"][..., None], batch["x"] @ weight, 0.0)
        sums = batch["penalty"] + (weight**2).sum()
        return (x, batch["ids"].sum(0), inp.argmax(x, -1).astype("int8"), sums)

    def loss(found, targets):
        x, counts, best, penalty = found
        scores = x.sum(1) * (best[:, 0] + 1) + counts.sum()
        return ((scores - targets) ** 2).mean() + 0.1 * penalty

    params = [rng.normal(size=(9, 4)), rng.normal(size=(4, 4))]
    params = [p.astype(np.float32) for p in params]
    ids = rng.integers(0, 9, (ROWS, 3)).astype(np.int32)
    targets = rng.normal(size=ROWS).astype(np.float32)
    step, _ = check([embed, mix], loss, params, {"ids": ids}, targets)
    assert step.record.num_messages == (4 * MICROBATCHES, MICROBATCHES)  # only x has a gradient


def test_bfloat16_gradients_are_added_in_float32(rng):
    params, x, t = arguments(rng, (8, 8, 8))
    half = tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), (params, x))
    _, gradient = check([layer] * 2, squares, *half, t, tolerance=2e-2)
    assert {leaf.dtype for leaf in tree.leaves(gradient)} == {np.dtype(ml_dtypes.bfloat16)}
    many = parallel.pipeline([layer] * 2, squares, mesh=make_mesh((2,), ("pp",)), num_microbatches=ROWS)
    _, fine = many(*half, t)
    # Sixteen roundings to 8 bits would be off by more than the two of the result.
    assert_equal(fine, gradient, tolerance=2**-6)


def test_float64_stays(rng):
    params, x, t = tree.map(lambda leaf: inp.asarray(leaf, dtype="float64"), arguments(rng, (4, 4, 4)))
    _, gradient = check([layer] * 2, squares, params, x, t, tolerance=1e-12)
    assert {leaf.dtype.name for leaf in tree.leaves(gradient)} == {"float64"}


def test_parameters_that_are_integers_have_no_gradient(rng):
    def pick(params, x):
        return inp.take(x, params["order"], axis=1) * params["scale"]

    params = [{"order": np.array([2, 0, 1]), "scale": np.float32(1.5)}, affine(rng, 3, 3)]
    x, t = rng.normal(size=(2, ROWS, 3)).astype(np.float32)
    step, gradient = check([pick, layer], squares, params, x, t)
    assert gradient[0]["order"].dtype == inf.float0
    assert step.norm(gradient) == pytest.approx(norm_of([gradient[0]["scale"], *tree.leaves(gradient[1])]))


def test_a_stage_that_stops_gradients(rng):
    stages = [layer, lambda p, x: layer(p, lax.stop_gradient(x))]
    params, x, t = arguments(rng, (4, 4, 4))
    step, gradient = check(stages, squares, params, x, t)
    assert not np.asarray(gradient[0]["weight"]).any()
    assert step.record.num_messages == (MICROBATCHES, 0)


def test_a_loss_that_depends_on_nothing(rng):
    params, x, t = arguments(rng, (4, 4, 4))
    check([layer] * 2, lambda y, t: (t**2).mean(), params, x, t)


def test_stages_without_parameters(rng):
    x, t = rng.normal(size=(2, ROWS, 3)).astype(np.float32)
    stages = [lambda p, x: x * 2, lambda p, x: layer(p["inner"][0], x)]
    check(stages, squares, [None, {"inner": [affine(rng, 3, 3)]}], x, t)


def test_what_functions_close_over(rng):
    table = inp.asarray(rng.normal(size=(16, 8)).astype(np.float32))  # more than a constant holds
    params, x, t = arguments(rng, (8, 16, 3))
    check([lambda p, x: layer(p, x) @ table, lambda p, x: layer(p, x @ table.T)], squares, params, x, t)


def test_dropout_has_a_key_for_each_microbatch_and_stage(rng):
    def drop(params, x, key):
        return layer(params, inp.where(random.bernoulli(key, 0.5, x.shape), x / 0.5, 0))

    params, x, t = arguments(rng, (8, 8, 8))
    x[:] = x[:1]  # equal rows, so only keys tell microbatches apart
    t[:] = t[:1]
    for key in (random.key(3), random.PRNGKey(3)):
        check([drop] * 2, squares, params, x, t, key=key)
    step = parallel.pipeline(
        [lambda p, x, key: random.uniform(key, x.shape) + 0 * p] * 2,
        lambda y, t: (y * t).sum(),
        mesh=make_mesh((2,), ("pp",)),
        num_microbatches=2,
    )
    ones = np.zeros((2, 4), np.float32)
    ones[0] = 1  # only the first microbatch counts
    first = float(step([np.float32(0)] * 2, ones, ones, key=random.key(0))[0])
    second = float(step([np.float32(0)] * 2, ones, 1 - ones, key=random.key(0))[0])
    assert first != second


def test_tied_parameters_get_the_sum(rng):
    table = rng.normal(size=(9, 4)).astype(np.float32)
    weight = affine(rng, 4, 4)
    ids = rng.integers(0, 9, ROWS).astype(np.int32)

    def embed(params, ids):
        return params["table"][ids]

    def head(params, x):
        return layer(params["inner"], x) @ params["table"].T

    def loss(logits, ids):
        chosen = (logits * (inp.arange(9) == ids[:, None])).sum(1)
        return (inp.log(inp.exp(logits).sum(1)) - chosen).mean()

    stages = [embed, layer, layer, head]
    params = [{"table": table}, weight, weight, {"inner": weight, "table": table}]
    (_, expected) = unsharded(
        [lambda p, x: head(p, layer(p["inner"], layer(p["inner"], embed(p, x))))], loss, [params[3]], ids, ids
    )
    total = expected[0]["table"]
    for ranks, name in ((4, "1f1b"), (2, "interleaved"), (1, "gpipe")):
        step = parallel.pipeline(
            stages,
            loss,
            mesh=make_mesh((ranks,), ("pp",)),
            num_microbatches=MICROBATCHES,
            schedule=name,
            shared=[("0/table", "3/table")],
        )
        _, gradient = step(params, ids, ids)
        assert_equal([gradient[0]["table"], gradient[3]["table"]], [total, total])
        counted = tree.leaves((gradient[:3], gradient[3]["inner"]))
        assert step.norm(gradient) == pytest.approx(norm_of(counted), rel=1e-5)
        inner = sum(np.asarray(g["weight"]) for g in (gradient[1], gradient[2], gradient[3]["inner"]))
        assert_equal([inner], [expected[0]["inner"]["weight"]])


def test_the_sum_over_microbatches(rng):
    params, x, t = arguments(rng, (4, 4, 4))
    options = {"mesh": make_mesh((2,), ("pp",)), "num_microbatches": 4}
    mean = parallel.pipeline([layer] * 2, squares, **options)(params, x, t)
    total = parallel.pipeline([layer] * 2, squares, reduction="sum", **options)(params, x, t)
    assert_equal(total, tree.map(lambda leaf: leaf * 4, mean))


def test_a_loop_trains_where_the_parameters_are(rng):
    params, x, t = arguments(rng, (4, 8, 8, 4, 2))
    step = parallel.pipeline([layer] * 4, squares, mesh=make_mesh((4,), ("pp",)), num_microbatches=8)
    placed, plain, losses = step.place(params), params, []
    for _ in range(5):
        loss, gradient = step(placed, x, t)
        expected, plain_gradient = unsharded([layer] * 4, squares, plain, x, t)
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
        placed = tree.map(lambda p, g: p - 0.5 * g, placed, gradient)
        plain = tree.map(lambda p, g: p - 0.5 * g, plain, plain_gradient)
        losses.append(float(loss))
    assert losses == sorted(losses, reverse=True)
    for c, part in enumerate(placed):
        assert {leaf.sharding.mesh for leaf in tree.leaves(part)} == {step.mesh_of(c)}
