"""What the partitioner predicts is what is counted: calls and bytes of every collective, those of loops
too.
"""

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.backends.spmd.lockstep import LockstepComm
from infini.compiler import partition
from infini.compiler.partition import costs
from infini.core import tree
from infini.core.backend import CompileOptions
from infini.core.machine import Collectives
from infini.core.mesh import AbstractMesh
from infini.sharding import Link, Machine, NamedSharding, P, make_mesh
from infini.testing import Count, CountingComm, count_collectives, predicted

X = np.linspace(-1, 1, 128, dtype=np.float32).reshape(16, 8)
W = np.cos(np.arange(64, dtype=np.float32)).reshape(8, 8)
ONE, TWO, THREE = (8,), (2, 4), (2, 2, 2)
NAMES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def devices():
    with inf.config(device="reference", cpu_devices=8, check=1):
        yield


def step(w, x):
    loss, gradient = inf.value_and_grad(lambda w: (inp.tanh(x @ w["in"]) @ w["out"]).var())(w)
    return loss, tree.map(lambda p, g: p - 0.1 * g, w, gradient)


def accumulated(w, x):
    def add(total, rows):
        return total + inf.grad(lambda w: inp.tanh(rows @ w["in"]).sum())(w)["in"], None

    return lax.scan(add, inp.zeros((8, 8)), x.reshape(4, 4, 8))[0]


def recurrent(w, x):
    def turn(carry, row):
        carry = inp.tanh(carry @ w["in"] + row)
        return carry, carry.sum()

    return lax.scan(turn, x[0], x)


def nested(w, x):
    def outer(carry, _):
        def inner(carry, _):
            return lax.with_sharding_constraint(inp.sin(carry).T @ w["in"], P("a")), None

        return lax.scan(inner, carry, None, length=3)[0], carry.sum()

    return lax.scan(outer, w["out"], None, length=2)


def moved(w, x):
    for spec in (P("a"), P(None, "a"), P(), P(("a", "b")), P("b", "a"), P("a", "b")):
        x = lax.with_sharding_constraint(x * 2, spec)
    return x


def by_hand(w, x):
    def local(x):
        total = lax.psum(x, "a")
        rows = lax.scan(lambda c, row: (c + lax.ppermute(row, "b", [(0, 1), (1, 0)]), c), x[0], x)
        return total + lax.psum_scatter(lax.all_gather(x, "a", tiled=True), "a", tiled=True), rows

    mesh = make_mesh(TWO, ("a", "b"))
    return inf.shard_map(
        local, mesh=mesh, in_specs=P("a"), out_specs=(P("a"), (P(), P("a"))), check_vma=False
    )(x)


ROWS, WHOLE = P("a"), P()
PROGRAMS = {
    "data parallel": (step, ONE, {"in": WHOLE, "out": WHOLE}, ROWS),
    "tensor parallel": (step, ONE, {"in": P(None, "a"), "out": P("a")}, WHOLE),
    "data and tensor": (step, TWO, {"in": P(None, "b"), "out": P("b")}, ROWS),
    "fully sharded": (step, ONE, {"in": ROWS, "out": ROWS}, ROWS),
    "three axes": (step, THREE, {"in": P("c", "b"), "out": P("b", "c")}, P(("a", "c"))),
    "sharded over two axes": (step, THREE, {"in": P(("a", "b")), "out": P(None, ("b", "c"))}, P(("a", "b"))),
    "accumulated gradients": (accumulated, TWO, {"in": P("b"), "out": WHOLE}, P("a")),
    "a scan that gathers": (recurrent, TWO, {"in": P("a"), "out": WHOLE}, P(None, "b")),
    "a scan over rows": (recurrent, ONE, {"in": P(None, "a"), "out": WHOLE}, WHOLE),
    "scans in scans": (nested, TWO, {"in": P("b"), "out": P("a")}, WHOLE),
    "resharding": (moved, TWO, {"in": WHOLE, "out": WHOLE}, P("b", "a")),
    "by hand": (by_hand, TWO, {"in": WHOLE, "out": WHOLE}, ROWS),
    "sorted": (lambda w, x: inp.sort(x, axis=0) @ w["in"], TWO, {"in": P("b"), "out": WHOLE}, P("a", "b")),
}


def arguments(name):
    f, sizes, specs, x_spec = PROGRAMS[name]
    mesh = make_mesh(sizes, NAMES[: len(sizes)])
    placed = inf.device_put(X, NamedSharding(mesh, x_spec))
    weights = {k: inf.device_put(W, NamedSharding(mesh, spec)) for k, spec in specs.items()}
    return f, mesh, weights, placed


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_predicted_is_counted(name):
    f, mesh, weights, x = arguments(name)
    options = CompileOptions(
        mesh=mesh.abstract, in_specs=tuple(tuple(a.sharding.spec) for a in tree.leaves((weights, x)))
    )
    with mesh:
        program = inf.make_jaxpr(f)(weights, x)
        found = partition.for_options(program, options)
        expected = f({"in": W, "out": W}, X) if name != "by hand" else inf.jit(f)(weights, x)
        with count_collectives() as counts:
            results = inf.jit(f)(weights, x)
    assert found.collectives and counts == predicted(found)
    for a, b in zip(tree.leaves(results), tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)


def partitioned(f, specs, sizes=(2,), **options):
    program = inf.make_jaxpr(f)(X, W)
    mesh = AbstractMesh(NAMES[: len(sizes)], sizes)
    return partition.partition(program, mesh, [tuple(s) for s in specs], **options)


def test_a_collective_in_a_loop_counts_its_trips():
    def f(x, w):
        return lax.scan(lambda c, _: (lax.with_sharding_constraint(c @ w, P()), None), x, None, length=5)[0]

    with make_mesh((2,), ("a",)):
        found = partitioned(f, [P(), P("a")])
    assert [c.times for c in found.collectives] == [5]


def test_a_collective_whose_trips_depend_on_values_says_so():
    def f(x, w):
        return lax.while_loop(lambda c: c.sum() < 3, lambda c: c @ w, x)

    found = partitioned(f, [P(), P("a")])
    assert {c.times for c in found.collectives} == {None}


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("psum", 150), ("pmax", 150), ("all_gather", 300), ("psum_scatter", 75), ("all_to_all", 75),
        ("ppermute", 100),
    ],
)  # fmt: skip
def test_bytes_on_the_wire_are_those_of_rings(name, sent):
    assert costs.wire_bytes(name, 100, 4) == sent
    assert costs.wire_bytes(name, 100, 1) == 0


def test_a_ring_over_two_axes_is_as_slow_as_the_slower():
    machine = Machine(Link(100.0), links={"a": Link(10.0, latency_s=1.0)})
    mesh = AbstractMesh(("a", "b"), (2, 2))
    assert costs.seconds("all_gather", ("b",), 100, mesh, machine) == 1.0
    assert costs.seconds("all_gather", ("a", "b"), 100, mesh, machine) == 3 + 30.0


def test_a_link_without_speed_is_refused():
    with pytest.raises(ValueError, match="a link sends more than no bytes"):
        Link(0.0)
    with pytest.raises(ValueError, match="a machine computes"):
        Machine(Link(1.0), flops_per_s=0)


@pytest.mark.parametrize(
    ("start_s", "expected"), [(0.0, ["all_to_all", "psum_scatter"]), (1.0, ["all_gather"])]
)
def test_another_machine_chooses_another_way(start_s, expected):
    def f(x, w):
        wide = lax.with_sharding_constraint(inp.concatenate([w] * 64, 1), P("a"))
        rows = lax.with_sharding_constraint(x[:2], P("a"))
        return lax.with_sharding_constraint(rows @ wide, P("a"))

    with make_mesh((2,), ("a",)):
        found = partitioned(f, [P(), P("a")], machine=Machine(Link(1e9), start_s=start_s))
    assert [c.name for c in found.collectives] == expected


def test_what_every_device_repeats_costs_what_it_takes():
    (dot,) = inf.make_jaxpr(lambda x, w: x @ w)(X, W).equations
    machine = Machine(Link(1.0), flops_per_s=1024.0)
    assert costs.compute_seconds(dot, 1, machine) == 2.0
    assert costs.compute_seconds(dot, 4, machine) == 0.5


def test_a_strategy_that_is_asked_for_is_taken():
    def names(strategies):
        return [
            c.name
            for c in partitioned(lambda x, w: x @ w, [P("a"), P("a")], strategies=strategies).collectives
        ]

    assert names(()) == ["all_gather"]
    assert names((("dot", "contracted"),)) == ["all_to_all", "psum_scatter"]


def test_a_strategy_of_no_name_is_refused():
    with pytest.raises(ValueError, match="no strategy called 'ring'"):
        partitioned(lambda x, w: x @ w, [P(), P()], strategies=[("dot", "ring")])


def test_shard_takes_a_machine_strategies_and_buckets():
    mesh = make_mesh((2,), ("a",))
    machine = Machine(Link(1e9))
    sharded = inf.shard(
        lambda x, w: x @ w,
        mesh=mesh,
        in_specs=(P("a"), P("a")),
        machine=machine,
        strategies={"dot": "contracted"},
        collectives=Collectives(bucket_bytes=0),
    )
    with count_collectives() as counts:
        np.testing.assert_allclose(sharded(X, W), X @ W, rtol=1e-5, atol=1e-6)
    assert counts == {("all_to_all", ("a",)): Count(1, 256), ("psum_scatter", ("a",)): Count(1, 512)}


def test_a_comm_counts_by_name_axes_and_bytes():
    mesh = AbstractMesh(("a", "b", "c"), (2, 1, 2))
    comm = CountingComm(LockstepComm(4), mesh)
    rows = [np.ones(6, np.float32)] * 4
    comm.all_reduce(rows, "max", mesh.groups(("a",)))
    comm.all_gather(rows, mesh.groups(("c", "a")))
    comm.duplicate().all_gather(rows, mesh.groups(("c", "b", "a")))
    assert comm.counts == {("pmax", ("a",)): Count(1, 24), ("all_gather", ("c", "a")): Count(2, 48)}


def hoisted(f, specs, machine=None, **options):
    with make_mesh((2,), ("a",)):
        program = inf.make_jaxpr(f)(X, W)
    options = CompileOptions(
        mesh=AbstractMesh(("a",), (2,)),
        in_specs=tuple(map(tuple, specs)),
        machine=machine,
        collectives=Collectives(**options),
    )
    return partition.for_options(program, options)


def turning(x, w):
    """Ten products with one weight."""
    return lax.scan(lambda c, _: (inp.tanh(c @ w), None), x, None, length=10)[0]


def test_a_weight_that_a_loop_reads_is_gathered_once_before_it():
    found = hoisted(turning, [P("a"), P("a")])
    assert [(c.name, c.times, c.reason) for c in found.collectives] == [("all_gather", 1, "dot, operand 1")]


def test_a_large_weight_stays_split_until_each_turn():
    found = hoisted(turning, [P("a"), P("a")], window_bytes=W.nbytes - 1)
    assert [(c.name, c.times) for c in found.collectives] == [("all_gather", 10)]


def test_loops_in_loops_let_it_out_too():
    def f(x, w):
        return lax.scan(lambda c, _: (turning(c, w), None), x, None, length=3)[0]

    assert [c.times for c in hoisted(f, [P("a"), P("a")]).collectives] == [1]
    assert [c.times for c in hoisted(f, [P("a"), P("a")], window_bytes=0).collectives] == [30]


def test_one_gather_before_a_loop_is_cheaper_than_a_small_one_in_each_turn():
    def f(x, w):
        small = lax.with_sharding_constraint(x[:2], P("a"))
        return lax.scan(lambda c, _: (inp.tanh(c @ w), None), small, None, length=50)[0]

    def found(**options):
        made = hoisted(f, [P(), P("a")], Machine(Link(1e9)), **options).collectives
        return [(c.name, c.times) for c in made]

    assert found() == [("all_gather", 1)]
    assert found(window_bytes=0) == [("all_to_all", 50), ("psum_scatter", 50)]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_loop_without_its_collective_computes_the_same(backend):
    with inf.config(device=backend):
        mesh = make_mesh((2,), ("a",))
        sharded = inf.shard(turning, mesh=mesh, in_specs=(P("a"), P("a")))
        with count_collectives() as counts:
            found = sharded(X, W)
        assert counts == {("all_gather", ("a",)): Count(1, W.nbytes // 2)}
        np.testing.assert_allclose(found, inf.jit(turning)(X, W), rtol=1e-5, atol=1e-6)


def test_while_loops_let_it_out_too():
    def f(x, w):
        return lax.while_loop(lambda c: c[0] < 4, lambda c: (c[0] + 1, inp.tanh(c[1] @ w)), (0, x))[1]

    assert [c.times for c in hoisted(f, [P("a"), P("a")]).collectives] == [1]
