"""Buckets: collectives over the same axes travel together, as large as they may be and no larger."""

from collections import Counter

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.compiler.partition import combine
from infini.core import check, tree
from infini.sharding import Collectives, P, make_mesh
from infini.testing import count_collectives

X = np.sin(np.arange(64, dtype=np.float32)).reshape(8, 8)


@pytest.fixture(autouse=True)
def devices():
    with inf.config(device="reference", cpu_devices=4, check=1):
        yield


def program(f, count=1):
    """The program that each device runs for a function of local parts."""
    mesh = make_mesh((2, 2), ("a", "b"))
    mapped = inf.shard_map(f, mesh=mesh, in_specs=(P(),) * count, out_specs=P(), check_vma=False)
    (equation,) = inf.make_jaxpr(mapped)(*[X] * count).equations
    return equation.attrs["body"]


def buckets(found):
    """Operands of each collective, in order."""
    return [
        (e.op.name, len(e.inputs))
        for e in found.equations
        if e.effect is inf.core.primitive.Effect.COLLECTIVE
    ]


def combined(f, count=1, **options):
    found = combine.combine(program(f, count), Collectives(**options))
    check.check(found)
    return found


def chain(x):
    """Eight sums that are ready one after another."""
    found = []
    for _ in range(8):
        x = inp.sin(x)
        found.append(lax.psum(x, "a"))
    return found


def test_sums_that_do_not_need_each_other_are_one():
    assert buckets(combined(chain)) == [("psum", 8)]


def test_the_first_bucket_is_small_and_the_others_are_not():
    found = combined(chain, first_bucket_bytes=2 * X.nbytes, bucket_bytes=4 * X.nbytes)
    assert buckets(found) == [("psum", 2), ("psum", 4), ("psum", 2)]


def test_a_bucket_stands_where_its_last_member_is_ready():
    found = combined(chain, first_bucket_bytes=2 * X.nbytes, bucket_bytes=4 * X.nbytes)
    assert [e.op.name for e in found.equations[:4]] == ["sin", "sin", "psum", "sin"]


def test_a_size_of_nothing_joins_nothing():
    assert buckets(combined(chain, bucket_bytes=0)) == [("psum", 1)] * 8


def test_a_sum_that_needs_another_stays_apart():
    def f(x):
        first = lax.psum(x, "a")
        return first, lax.psum(inp.sin(first), "a"), lax.psum(x * 2, "a")

    assert buckets(combined(f)) == [("psum", 1), ("psum", 2)]


def test_buckets_do_not_need_each_other_in_a_circle():
    def f(x):
        left = lax.psum(x, "a")
        right = lax.psum(x * 2, "b")
        return lax.psum(inp.sin(right), "a"), lax.psum(inp.cos(left), "b")

    # The third sum joins the first; then the fourth, which needs the first, cannot join the second.
    assert buckets(combined(f)) == [("psum", 1), ("psum", 2), ("psum", 1)]


@pytest.mark.parametrize(
    "other",
    [
        lambda x: lax.psum(x, "b"),
        lambda x: lax.pmax(x, "a"),
        lambda x: lax.psum(x.astype(inp.bfloat16), "a"),
        lambda x: lax.ppermute(x, "a", [(0, 1)]),
    ],
    ids=["axes", "operation", "dtype", "permutation"],
)
def test_collectives_that_differ_stay_apart(other):
    assert {count for _, count in buckets(combined(lambda x: (lax.psum(x, "a"), other(x))))} == {1}


def test_scattered_dimensions_may_differ():
    def f(x):
        rows = lax.psum_scatter(x, "a", tiled=True)
        return rows, lax.psum_scatter(x, "a", scatter_dimension=1, tiled=True)

    (equation,) = [e for e in combined(f).equations if e.op.name == "psum_scatter"]
    assert equation.attrs["dimensions"] == (-2, -1)


def gathered(x, *weights):
    return [lax.all_gather(w, "a", tiled=True) for w in weights]


def test_gathers_that_are_used_together_are_one():
    def f(x, q, k, v, o):
        q, k, v, o = gathered(x, q, k, v, o)
        heads = x @ q[:8] + x @ k[:8] * (x @ v[:8])
        return inp.tanh(heads) @ o[:8]

    def g(x, q, k, v, o):  # the weights are used as they are
        q, k, v, o = (lax.all_gather(w[:4], "a", tiled=True) for w in (q, k, v, o))
        return inp.tanh(x @ q + x @ k * (x @ v)) @ o

    assert buckets(combined(f, 5, window_bytes=0)) == [("all_gather", 1)] * 4
    assert buckets(combined(g, 5, window_bytes=0)) == [("all_gather", 3), ("all_gather", 1)]


def weights_and_activations(x, *weights):
    """Each weight is gathered, and what it makes of the one before."""
    for w in weights:
        x = inp.tanh(lax.all_gather(x, "b", tiled=True)[:8] @ lax.all_gather(w, "a", tiled=True)[:8])
    return x


@pytest.mark.parametrize(("window", "expected"), [(4, [4]), (3, [3, 1]), (2, [2, 2]), (1, [1] * 4)])
def test_gathers_of_parameters_are_joined_up_to_a_window(window, expected):
    found = combined(weights_and_activations, 5, window_bytes=2 * window * X.nbytes)
    assert [len(e.inputs) for e in found.equations if e.attrs.get("axes") == ("a",)] == expected


def test_gathers_of_what_is_computed_stay_where_they_are():
    found = combined(weights_and_activations, 5)
    assert [len(e.inputs) for e in found.equations if e.attrs.get("axes") == ("b",)] == [1] * 4


def test_gathers_that_are_results_are_one():
    def f(x, y):
        return [lax.all_gather(inp.sin(a), "a", tiled=True) for a in (lax.psum(x, "b"), lax.psum(y * 2, "b"))]

    assert buckets(combined(f, 2, window_bytes=0)) == [("psum", 2), ("all_gather", 2)]


def loss_and_sums(x, y):
    """A number over both axes beside an array over each."""
    return lax.psum(inp.sum(x), ("a", "b")), lax.psum(x, "a"), lax.psum(y * 2, "b")


def test_a_small_sum_over_two_axes_travels_with_sums_over_each():
    parts = {}
    body = program(loss_and_sums, 2)
    found = combine.combine(body, Collectives(), parts)
    check.check(found)
    assert buckets(found) == [("psum", 2), ("psum", 2)]
    assert list(parts) == [body.results[0]]  # whose note is that of both parts


@pytest.mark.parametrize(
    "f",
    [
        lambda x, y: (lax.psum(inp.sum(x), ("a", "b")), lax.psum(x, "a")),  # nothing is sent over the other
        lambda x, y: (
            lax.psum(inp.concatenate([x, y]), ("a", "b")),
            lax.psum(x, "a"),
            lax.psum(y, "b"),
        ),  # large
    ],
)
def test_other_sums_over_two_axes_are_one(f):
    assert ("psum", 1) in buckets(combined(f, 2))
    assert any(e.attrs.get("axes") == ("a", "b") for e in combined(f, 2).equations)


def test_terms_are_added_up_in_one_order_where_that_is_asked_for():
    found = combined(loss_and_sums, 2, deterministic=True)
    assert buckets(found) == [("psum", 1)] * 3


def test_a_sum_in_two_parts_is_the_same():
    mesh = make_mesh((2, 2), ("a", "b"))
    given = inp.asarray(np.random.default_rng(0).integers(-9, 9, (8, 8)).astype(np.float32))

    def run(**options):
        mapped = inf.shard_map(
            loss_and_sums, mesh=mesh, in_specs=(P("a", "b"),) * 2, out_specs=(P(), P(None, "b"), P("a"))
        )
        return inf.shard(mapped, mesh=mesh, collectives=Collectives(**options))(given, given)

    for one, other in zip(run(), run(bucket_bytes=0), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_bodies_of_loops_are_combined_by_themselves():
    def f(x):
        def turn(carry, row):
            return carry + lax.psum(row, "a") * lax.psum(row * 2, "a"), None

        return lax.scan(turn, x[0], x)[0] + lax.psum(x[0], "a")

    (scan,) = [e for e in combined(f).equations if e.op.name == "scan"]
    assert ("psum", 2) in buckets(scan.attrs["body"])


def test_calls_of_the_host_keep_their_order():
    def f(x):
        first = lax.psum(x, "a")
        inf.debug.callback(lambda y: None, first, ordered=True)
        inf.debug.callback(lambda y: None, x * 2, ordered=True)
        return lax.psum(x * 3, "a")

    before = [e.inputs[0].type for e in program(f).equations if e.op.name == "debug_callback"]
    after = [e.inputs[0].type for e in combined(f).equations if e.op.name == "debug_callback"]
    assert before == after and len(after) == 2


def train(params, x):
    def loss(params):
        return sum((inp.sin(x @ w) ** 2).mean() for w in params)

    return tree.map(lambda p, g: p - 0.1 * g, params, inf.grad(loss)(params))


@pytest.mark.parametrize(
    ("spec", "name"), [(P(), "psum"), (P("a"), "psum_scatter")], ids=["data parallel", "fully sharded"]
)
def test_gradients_of_a_step_travel_together_with_equal_results(spec, name):
    params, mesh = [X, X.T, X * 2], make_mesh((4,), ("a",))
    expected = inf.jit(train)(params, X)
    calls = {}
    for bucket in (0, 1 << 20):
        step = inf.shard(
            train, mesh=mesh, in_specs=([spec] * 3, P("a")), out_specs=[spec] * 3,
            collectives=Collectives(bucket, bucket),
        )  # fmt: skip
        with count_collectives() as counts:
            found = step(params, X)
        calls[bucket] = counts[name, ("a",)].calls
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert calls == {0: 3, 1 << 20: 1}


def test_the_order_of_a_program_without_collectives_is_its_own():
    found = program(lambda x: inp.sin(x) + inp.cos(x))
    assert combine.combine(found, Collectives()) is found
    assert Counter(e.op.name for e in found.equations) == {"sin": 1, "cos": 1, "add": 1}
