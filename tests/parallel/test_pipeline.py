"""Pipelines on simulated devices: loss and gradients equal those of one device, whatever the schedule, and
what is recorded is what the schedule says.
"""

import itertools

import ml_dtypes
import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax, nn, parallel, random
from infini.backends.spmd.lockstep import LockstepComm
from infini.core import tree
from infini.parallel import schedules
from infini.parallel.schedules import Durations, Schedule, Task
from infini.sharding import NamedSharding, P, make_mesh

ROWS, MICROBATCHES = 16, 4
# Name of the schedule, ranks, chunks.
SCHEDULES = [("gpipe", 4, 4), ("1f1b", 4, 4), ("gpipe", 2, 4), ("interleaved", 2, 4), ("1f1b", 1, 1)]
PACE = Durations(forward=1.0, backward=2.0)


@pytest.fixture(autouse=True)
def devices():
    with inf.config(device="reference", cpu_devices=8, check=1):
        yield


def affine(rng, rows, columns):
    """A weight in PyTorch's layout (out, in), and a bias."""
    weight = rng.normal(size=(columns, rows)) / np.sqrt(rows)
    return {"weight": weight.astype(np.float32), "bias": rng.normal(size=columns).astype(np.float32)}


def layer(params, x):
    return inp.tanh(x @ params["weight"].T + params["bias"])


def squares(y, t):
    return ((y - t) ** 2).mean()


def arguments(rng, widths):
    """Parameters of layers between widths, inputs and targets."""
    params = [affine(rng, *pair) for pair in itertools.pairwise(widths)]
    x, t = (rng.normal(size=(ROWS, n)).astype(np.float32) for n in (widths[0], widths[-1]))
    return params, x, t


def unsharded(stages, loss, params, inputs, targets, key=None, count=MICROBATCHES):
    """Mean of the losses of microbatches and its gradient, on one device."""

    def cut(x, i):
        return tree.map(lambda leaf: leaf[i * len(leaf) // count : (i + 1) * len(leaf) // count], x)

    def total(params):
        losses = []
        for i in range(count):
            x = cut(inputs, i)
            for c, (stage, part) in enumerate(zip(stages, params, strict=True)):
                keys = [] if key is None else [random.fold_in(random.fold_in(key, i), c)]
                x = stage(part, x, *keys)
            losses.append(loss(x, cut(targets, i)))
        return sum(losses) / count

    return inf.jit(inf.value_and_grad(total, allow_int=True))(list(params))


def assert_equal(found, expected, tolerance=1e-5, largest=0.0):
    """Gradients agree in the largest norm, leaf by leaf; leaves smaller than `largest` count as that."""
    for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        if a.dtype != inf.float0:
            a, b = (np.asarray(x).astype(np.float64) for x in (a, b))
            assert np.abs(a - b).max(initial=0) <= tolerance * max(np.abs(b).max(initial=1e-30), largest)


def norm_of(leaves):
    return np.sqrt(sum((np.asarray(x).astype(np.float64) ** 2).sum() for x in leaves))


def check(stages, loss, params, inputs, targets, *, key=None, tolerance=1e-5, **options):
    """A step of a pipeline over two ranks against one device. Returns pipeline and gradient."""
    options = {"mesh": make_mesh((2,), ("pp",)), "num_microbatches": MICROBATCHES, **options}
    step = parallel.pipeline(stages, loss, **options)
    found = step(params, inputs, targets, key=key)
    expected = unsharded(stages, loss, params, inputs, targets, key)
    assert_equal(found, expected, tolerance)
    assert float(step.evaluate(params, inputs, targets, key=key)) == pytest.approx(float(found[0]))
    return step, found[1]


# --- numbers ----------------------------------------------------------------------------------------


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


# --- the other axes of the mesh -------------------------------------------------------------------------


def two_layers(params, x):
    """Megatron's pair: columns, then rows."""
    return layer(params["down"], layer(params["up"], x))


def pairs(rng, count, width=8):
    return [
        {"up": affine(rng, width, 2 * width), "down": affine(rng, 2 * width, width)} for _ in range(count)
    ]


TENSOR = {"up": {"weight": P("tp", None), "bias": P("tp")}, "down": {"weight": P(None, "tp"), "bias": P()}}


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
            tree.map(lambda p, g: p - 0.1 * g, *pair) for pair in ((placed, found), (params, gradient))
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


# --- what is recorded ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "ranks", "chunks"), SCHEDULES)
def test_the_recorded_timeline_is_the_simulated_one(name, ranks, chunks, rng):
    params, x, t = arguments(rng, (4,) * (chunks + 1))
    durations = Durations([1.0 + c for c in range(chunks)], 2.0, transfer=0.25)
    step = parallel.pipeline(
        [layer] * chunks,
        squares,
        mesh=make_mesh((ranks,), ("pp",)),
        num_microbatches=8,
        schedule=name,
        durations=durations,
    )
    step(params, x, t)
    assert step.record.timeline == schedules.simulate(step.schedule, durations)


@pytest.mark.parametrize(("name", "v"), [("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("interleaved", 3)])
def test_recorded_waiting_and_activations_are_those_of_the_literature(name, v, rng):
    p, m, width = 4, 8, 4
    params, x, t = arguments(rng, (width,) * (p * v + 1))
    step = parallel.pipeline(
        [layer] * (p * v),
        lambda y, t: y.sum(),
        mesh=make_mesh((p,), ("pp",)),
        num_microbatches=m,
        schedule=name,
        durations=PACE,
    )
    step(params, x, t)
    found = step.record.timeline
    assert found.bubble_fraction == pytest.approx((p - 1) / (v * m + p - 1))
    held = {
        "gpipe": (m,) * p,
        "1f1b": tuple(p - r for r in range(p)),
        "interleaved": tuple(2 * (p - r - 1) + (v - 1) * p + 1 for r in range(p)),
    }[name]
    assert found.peak_activations == held
    # A layer keeps what goes in and what comes out of the tanh; arrays of float32.
    layer_bytes = 2 * (ROWS // m) * width * 4
    assert step.record.peak_activation_bytes == tuple(n * layer_bytes for n in held)


def test_measured_durations_give_the_recorded_timeline(rng):
    params, x, t = arguments(rng, (4, 4, 4))
    step = parallel.pipeline([layer] * 2, squares, mesh=make_mesh((2,), ("pp",)), num_microbatches=4)
    step(params, x, t)
    found = step.record.timeline
    taken = {span.task: span.end - span.start for row in found.spans for span in row}
    again = schedules.simulate(step.schedule, taken)
    for a, b in zip(found.spans, again.spans, strict=True):
        assert [(s.task, pytest.approx(s.start), pytest.approx(s.end)) for s in a] == [
            (s.task, s.start, s.end) for s in b
        ]


def test_what_depends_on_parameters_alone_is_not_kept(rng):
    """The backward pass needs the transposed weight; it is made again, not kept for every microbatch."""
    params, x, t = arguments(rng, (64, 64, 64))
    step, _ = check([lambda p, x: x @ p["weight"].T] * 2, squares, params, x, t)
    assert (
        step.record.peak_activation_bytes[0] == 2 * (ROWS // MICROBATCHES) * 64 * 4
    )  # x of two microbatches


def test_a_checkpointed_stage_keeps_its_input_only(rng):
    def deep(params, x):
        for _ in range(3):
            x = layer(params, x)
        return x

    params, x, t = arguments(rng, (8, 8, 8))
    step, _ = check([inf.checkpoint(deep)] * 2, squares, params, x, t)
    assert step.record.peak_activation_bytes[0] == 2 * (ROWS // MICROBATCHES) * 8 * 4


def test_a_second_step_compiles_nothing(rng):
    traces = []

    def counted(params, x):
        traces.append(x.shape)
        return layer(params, x)

    params, x, t = arguments(rng, (4, 4, 4))
    step = parallel.pipeline([counted] * 2, squares, mesh=make_mesh((2,), ("pp",)), num_microbatches=4)
    for _ in range(3):
        step(params, x, t)
    assert len(traces) == 2
    step(params, x[:8], t[:8])
    assert len(traces) == 4


def test_a_schedule_of_ones_own(rng):
    order = lambda rank: tuple(  # noqa: E731
        Task(kind, rank, i) for half in ((0, 1), (2, 3)) for kind in ("forward", "backward") for i in half
    )
    schedule = Schedule("halves", 2, 4, 1, (order(0), order(1)))
    params, x, t = arguments(rng, (4, 4, 4))
    step, _ = check([layer] * 2, squares, params, x, t, schedule=schedule, num_microbatches=None)
    assert [span.task for span in step.record.timeline.spans[1]] == list(order(1))


# --- mistakes -------------------------------------------------------------------------------------------


def made(**options):
    options = {"stages": [layer] * 2, "loss": squares, "mesh": make_mesh((2,), ("pp",)), **options}
    return parallel.pipeline(options.pop("stages"), options.pop("loss"), **{"num_microbatches": 4, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axis": "stages"}, "no axis 'stages'"),
        ({"stages": [layer] * 3}, "a multiple of 2 stages"),
        ({"stages": []}, "a multiple of 2 stages"),
        ({"stages": [layer, "head"]}, r"stages\[1\] is no function"),
        ({"loss": None}, "loss is no function"),
        ({"num_microbatches": None}, "num_microbatches is missing"),
        ({"num_microbatches": 0}, "positive integer"),
        ({"schedule": "zigzag"}, "no such schedule"),
        ({"stages": [layer] * 4}, "take 'interleaved'"),
        ({"stages": [layer] * 4, "schedule": "interleaved", "num_microbatches": 3}, "whole groups"),
        ({"schedule": schedules.gpipe(3, 4)}, "for something else"),
        ({"schedule": schedules.gpipe(2, 8)}, "for something else"),
        ({"reduction": "max"}, "'mean' or 'sum'"),
        ({"batch_spec": P("pp")}, "nothing is split over 'pp'"),
        ({"param_specs": [P()]}, "one entry per stage"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(inf.InfiniError, match=message):
        made(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, x, t: (p[:1], x, t), "one pytree per stage(.|\n)*1 entries"),
        (lambda p, x, t: ({"a": p}, x, t), "a dict"),
        (lambda p, x, t: (p, x[:6], t[:6]), "cannot be cut into 4 equal microbatches"),
        (lambda p, x, t: (p, x, t[:8]), "16 rows of inputs, 8 of targets"),
        (lambda p, x, t: (p, {"a": x, "b": x[:4]}, t), "inputs have a row per example"),
        (lambda p, x, t: (p, x, np.float32(1)), "targets have a row per example"),
        (lambda p, x, t: ([p[0], "weights"], x, t), "parameters of stage 1"),
    ],
)
def test_arguments_that_do_not_fit(change, message, rng):
    with pytest.raises(inf.InfiniError, match=message):
        made()(*change(*arguments(rng, (4, 4, 4))))


def test_a_loss_that_is_no_scalar(rng):
    with pytest.raises(inf.InfiniError, match=r"one real scalar(.|\n)*f32\[4\]"):
        made(loss=lambda y, t: ((y - t) ** 2).mean(1))(*arguments(rng, (4, 4, 4)))


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        ([("0/weight", "1/wait")], "'1/wait'"),
        ([("0/weight", "0/weight")], "'0/weight', twice"),
        ([("0/weight", "1/bias")], "one type and one placement"),
    ],
)
def test_shared_names_that_mean_nothing(shared, message, rng):
    with pytest.raises(inf.InfiniError, match=message):
        made(shared=shared)(*arguments(rng, (4, 4, 4)))


def test_a_pipeline_is_not_part_of_a_program(rng):
    params, x, t = arguments(rng, (4, 4, 4))
    with pytest.raises(inf.InfiniError, match="cannot be part of one"):
        inf.jit(lambda x: made()(params, x, t)[0])(x)


def test_a_nan_in_a_stage_is_named(rng):
    params, x, t = arguments(rng, (4, 4, 4))
    x[0, 0] = -1.0
    with inf.config(nan=True), pytest.raises(inf.InfiniError, match=r"(?s)log.*test_pipeline.py"):
        made(stages=[lambda p, x: inp.log(x) @ p["weight"], layer])(params, x, t)


def test_messages_that_are_not_waited_for():
    comm, row = LockstepComm(2), np.ones(3, np.float32)
    pending = comm.start_send(row, 0, 1, tag=2)
    assert comm.recv((3,), row.dtype, 0, 1, tag=2).tolist() == [1, 1, 1]
    pending.wait()


def test_a_spec_is_not_equal_to_nothing():
    assert P() != None and P("a") != None and P() == P() and P("a") != P("a", unreduced={"b"})  # noqa: E711


def test_slices_of_a_mesh():
    mesh = make_mesh((2, 4), ("pp", "dp"))
    assert mesh.at("pp", 1).flat_devices == mesh.flat_devices[4:]
    assert mesh.at("dp", 1).flat_devices == mesh.flat_devices[1::4]
    assert mesh.at("dp", 1).axis_names == ("pp",)
    single = mesh.at("dp", 3).at("pp", 1)
    assert single.flat_devices == mesh.flat_devices[7:] and single.size == 1
    with pytest.raises(inf.InfiniError, match="no axis 'tp'"):
        mesh.at("tp", 0)
    with pytest.raises(IndexError, match="has no index 2"):
        mesh.at("pp", 2)
