"""The partitioner: which placements follow from a few annotations, which collectives are inserted, and
that results are equal.
"""

from collections import Counter

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax, parallel
from infini.compiler import partition
from infini.core import check, events, primitive, trace, tree
from infini.core.mesh import AbstractMesh
from infini.core.primitive import Primitive, Signature
from infini.lax import families
from infini.sharding import NamedSharding, P, make_mesh

DATA, MODEL = AbstractMesh(("data",), (2,)), AbstractMesh(("model",), (2,))
BOTH = AbstractMesh(("data", "model"), (2, 2))
COLUMNS = {"b1": P("model"), "w1": P(None, "model"), "w2": P("model")}


def random(*shape):
    return np.random.standard_normal(shape).astype(np.float32)


def mlp_loss(params, x, y):
    hidden = inp.tanh(x @ params["w1"] + params["b1"])
    return ((hidden @ params["w2"] - y) ** 2).mean()


def mlp_step(params, x, y):
    loss, gradients = inf.value_and_grad(mlp_loss)(params, x, y)
    return loss, tree.map(lambda p, g: p - 0.1 * g, params, gradients)


def mlp_arguments():
    return {"b1": random(16), "w1": random(8, 16), "w2": random(16, 4)}, random(32, 8), random(32, 4)


def partitioned(f, args, mesh, specs):
    program = inf.make_jaxpr(f)(*args)
    found = partition.partition(program, mesh, [None if s is None else tuple(s) for s in specs])
    check.check(found.program)
    return found


def counts(found):
    return dict(Counter(c.name for c in found.collectives))


@pytest.mark.parametrize(
    ("mesh", "specs", "expected"),
    [
        (DATA, [P(), P(), P(), P("data"), P("data")], {"psum": 4}),
        (MODEL, [*COLUMNS.values(), P(), P()], {"psum": 1}),
        (BOTH, [*COLUMNS.values(), P("data"), P("data")], {"psum": 5}),
        (DATA, [P("data")] * 5, {"all_gather": 4, "psum_scatter": 3, "psum": 1}),
    ],
    ids=["data parallel", "tensor parallel", "both", "fully sharded"],
)
def test_an_mlp_step_has_no_collective_too_many(mesh, specs, expected):
    assert counts(partitioned(mlp_step, mlp_arguments(), mesh, specs)) == expected


def test_results_keep_the_placement_of_the_parameters_they_update():
    found = partitioned(mlp_step, mlp_arguments(), BOTH, [*COLUMNS.values(), P("data"), P("data")])
    assert found.out_specs == ((), ("model",), (None, "model"), ("model",))


def test_a_parameter_without_a_placement_is_placed_by_its_use():
    found = partitioned(lambda w, x: x @ w, (random(8, 16), random(4, 8)), MODEL, [None, P(None, "model")])
    assert found.in_specs == (("model",), (None, "model"))


def test_partial_sums_meet_before_they_are_added_up():
    def f(x, a, b):
        return x @ a + x @ b

    specs = [P(None, "model"), P("model"), P("model")]
    found = partitioned(f, (random(4, 8), random(8, 6), random(8, 6)), MODEL, specs)
    assert counts(found) == {"psum": 1}


def test_a_sum_that_is_wanted_in_parts_is_scattered():
    def f(x, w):
        return lax.with_sharding_constraint(x @ w, NamedSharding(mesh, P("model")))

    with inf.config(device="reference", cpu_devices=2):
        mesh = make_mesh((2,), ("model",))
    found = partitioned(f, (random(4, 8), random(8, 6)), MODEL, [P(None, "model"), P("model")])
    assert counts(found) == {"psum_scatter": 1}


@pytest.mark.parametrize("num_terms", [2, 3])
def test_sums_that_are_wanted_in_parts_meet_before_they_are_scattered(num_terms):
    """As the gradients of what several products read."""

    def f(x, scale, *weights):
        total = sum((x @ w for w in weights[1:]), x @ weights[0])
        return lax.with_sharding_constraint(total * scale, NamedSharding(mesh, P("model")))

    with inf.config(device="reference", cpu_devices=2):
        mesh = make_mesh((2,), ("model",))
    args = random(8, 16), random(8, 6), *[random(16, 6) for _ in range(num_terms)]
    specs = [P(None, "model"), P("model"), *[P("model")] * num_terms]
    found = partitioned(f, args, MODEL, specs)
    assert counts(found) == {"psum_scatter": 1}


def test_an_axis_that_changes_its_dimension_is_exchanged():
    def f(x):
        return lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, "model")))

    with inf.config(device="reference", cpu_devices=2):
        mesh = make_mesh((2,), ("model",))
    found = partitioned(f, (random(4, 8),), MODEL, [P("model")])
    assert counts(found) == {"all_to_all": 1}


def test_what_two_operations_want_in_one_place_is_moved_once():
    def f(x, u, v):
        return x @ u, x @ v

    x, u, v = random(64, 64), random(64, 8), random(64, 8)
    with inf.config(device="reference", cpu_devices=2):
        constrained = NamedSharding(make_mesh((2,), ("data",)), P(None, "data"))

        def g(x, u, v):
            y = lax.with_sharding_constraint(inp.tanh(x), constrained)
            return f(y, u, v)

        run = inf.shard(
            g, mesh=constrained.mesh, in_specs=(P(), P(), P()), out_specs=P("data"),
            strategies={"dot": "results"},
        )  # fmt: skip
        shown = parallel.explain_sharding(run, x, u, v)
        assert [c.name for c in shown.collectives] == ["all_to_all"]
        for found, expected in zip(run(x, u, v), inf.jit(f)(np.tanh(x), u, v), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_gradients_that_a_loop_sums_are_added_up_after_it():
    def step(w, batches):
        def add(total, x):
            return total + inf.grad(lambda w: inp.tanh(x @ w).sum())(w), None

        return lax.scan(add, inp.zeros((8, 4)), batches)[0]

    found = partitioned(step, (random(8, 4), random(3, 16, 8)), DATA, [P(), P(None, "data")])
    (scan,) = [e for e in found.program.equations if e.op.name == "scan"]
    assert counts(found) == {"psum": 1}
    assert [e.op.name for e in scan.attrs["body"].equations if e.op.name == "psum"] == []


def test_a_gather_is_announced_with_its_bytes():
    with events.record() as found:
        partitioned(lambda x: inp.sort(x), (random(16),), DATA, [P("data")])
    assert [(e.code, e.data["nbytes"]) for e in found] == [("reshard", 32)]


def test_parts_have_room_for_equally_many_elements():
    found = partitioned(lambda x: inp.sin(x), (random(5),), DATA, [P("data")])
    assert found.program.in_types[0].shape == found.program.out_types[0].shape == (3,)
    assert found.out_specs == (("data",),)
    assert found.collectives == ()


def test_two_meshes_are_refused():
    with inf.config(device="reference", cpu_devices=4):
        other = NamedSharding(make_mesh((4,), ("data",)), P("data"))
    with pytest.raises(NotImplementedError, match="two meshes"):
        partitioned(lambda x: lax.with_sharding_constraint(x, other), (random(8),), DATA, [P()])


def test_an_operation_with_a_signature_alone_is_split_along_its_loop_dimensions():
    softmax = primitive.register(
        Primitive(
            "row_softmax",
            Signature((("n",),), (("n",),)),
            {
                primitive.TYPE: lambda x: (x,),
                primitive.REFERENCE: lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
            },
        )
    )
    try:
        f = lambda x: trace.bind1(softmax, x)  # noqa: E731
        assert counts(partitioned(f, (random(4, 8),), DATA, [P("data")])) == {}
        assert counts(partitioned(f, (random(4, 8),), DATA, [P(None, "data")])) == {"all_gather": 1}
    finally:
        primitive.unregister(softmax)


def test_a_linear_operation_with_a_signature_alone_leaves_partial_sums():
    total = primitive.register(
        Primitive(
            "total",
            Signature((("n",),), ((),)),
            {
                primitive.TYPE: lambda x: (x.update(shape=x.shape[:-1]),),
                primitive.REFERENCE: lambda x: x.sum(-1),
                primitive.TRANSPOSE: lambda ct, x: (families.broadcast_to(ct, x.shape),),
            },
        )
    )
    try:
        found = partitioned(lambda x: trace.bind1(total, x), (random(4, 8),), DATA, [P(None, "data")])
        assert counts(found) == {"psum": 1}
    finally:
        primitive.unregister(total)


def test_explain_sharding_names_placements_collectives_and_lines():
    with inf.config(device="reference", cpu_devices=2):
        mesh = make_mesh((2,), ("model",))
        sharded = inf.shard(mlp_loss, mesh=mesh, in_specs=(COLUMNS, P(), P()))
        shown = parallel.explain_sharding(sharded, *mlp_arguments())
    assert "argument 1: f32[8,16] P(None, 'model')" in shown
    assert "psum over model: 512 bytes for sub, operand 0, test_partition.py:" in shown
