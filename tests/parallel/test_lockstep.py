"""Sharded equals unsharded: functions over every kind of operation, on four simulated devices, under
many placements.
"""

import itertools

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax, random
from infini.core import tree
from infini.sharding import NamedSharding, P, SingleDeviceSharding, make_mesh
from tests.parallel.sharded import looped, scanned

X = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
W = np.cos(np.arange(64, dtype=np.float32)).reshape(8, 8)


@pytest.fixture(autouse=True)
def devices():
    with inf.config(device="reference", cpu_devices=4, check=1):
        yield


def branched(x, w):
    return lax.cond(x.sum() > w.sum(), lambda a: a @ w, lambda a: inp.exp(a), x)


def routed(x, w):
    return lax.switch(inp.argmax(x[0] + w[0]), [lambda a: a + 1, lambda a: a * 2, lambda a: a - w], x)


def accumulated(x, w):
    def add(total, row):
        return total + inf.grad(lambda w: inp.tanh(row @ w).sum())(w), None

    return lax.scan(add, inp.zeros((8, 8)), inp.stack([x, x * 2, x @ x]))[0]


FUNCTIONS = {
    "accumulated gradients": accumulated,
    "elementwise": lambda x, w: inp.where(x > w, inp.exp(x), x * w),
    "dot": lambda x, w: x @ w,
    "chain of dots": lambda x, w: inp.tanh(x @ w) @ w.T @ x,
    "sum": lambda x, w: ((x * w).sum(0), x.sum(), w.mean(1)),
    "max": lambda x, w: (x.max(0), inp.min(w), inp.argmax(x, 1), inp.argmax(w, 0)),
    "softmax": lambda x, w: inp.exp(x - x.max(-1, keepdims=True)) / inp.exp(w).sum(0),
    "reshape": lambda x, w: (x.reshape(4, 2, 8), w.reshape(64), x.reshape(2, 4, 4, 2), w.reshape(16, 4)),
    "transpose": lambda x, w: (x.T, inp.transpose(w.reshape(2, 4, 8), (2, 0, 1))),
    "broadcast": lambda x, w: x[:, None, :] * w[None],
    "slice": lambda x, w: (x[2:6], w[:, 1:7:2], x[::-1], w[3]),
    "pad and concatenate": lambda x, w: inp.concatenate([inp.pad(x, ((1, 2), (0, 0))), w], 0),
    "iota": lambda x, w: x + inp.arange(8, dtype=inp.float32) + inp.arange(64).reshape(8, 8) * w,
    "dynamic slice": lambda x, w: lax.dynamic_slice(x, (inp.argmax(w[0]), 0), (3, 8)),
    "dynamic update": lambda x, w: lax.dynamic_update_slice(x, w[:2], (inp.argmax(w[0]), 0)),
    "dynamic row": lambda x, w: lax.dynamic_update_slice(x, w[:1], (inp.argmax(w[0]) - 2, 0)),
    "dynamic element": lambda x, w: lax.dynamic_update_slice(x, w[2:3, 3:4], (inp.argmax(w[0]), 99)),
    "row": lambda x, w: x.at[inp.argmax(w[0])].set(w[1]),
    "rows": lambda x, w: x[inp.argmax(w, 1)],
    "clipped rows": lambda x, w: inp.take(x, inp.argmax(w, 1) * 3 - 4, axis=0, mode="clip"),
    "filled rows": lambda x, w: inp.take(x, inp.argmax(w, 1) * 3, axis=0, mode="fill"),
    "along axis": lambda x, w: inp.take_along_axis(x, inp.argmax(w, 1)[:, None], axis=1),
    "sort": lambda x, w: (inp.sort(w, axis=1), inp.sort(w, axis=0)),
    "scan": scanned,
    "while": looped,
    "cond": branched,
    "switch": routed,
    "checkpoint": lambda x, w: inf.checkpoint(lambda a: inp.sin(a @ w))(x),
    "vmap": lambda x, w: inf.vmap(lambda row: inp.outer(row, row) @ w)(x),
    "random": lambda x, w: (
        x + random.normal(random.PRNGKey(3), (8, 8)) * random.uniform(random.PRNGKey(4), (8,))
    ),
    "rms_norm": lambda x, w: lax.rms_norm(x, w[0]),
}
DIFFERENTIABLE = [
    "dot", "chain of dots", "softmax", "reshape", "rows", "along axis", "scan", "cond", "checkpoint", "vmap",
    "slice", "pad and concatenate", "dynamic update", "dynamic row", "dynamic slice", "broadcast",
]  # fmt: skip
SPECS = [P(), P("a"), P(None, "a"), P("b", "a"), P(("a", "b")), P(None, ("b", "a"))]


def assert_equal(found, expected):
    for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=5e-5, atol=1e-5)


def placements(mesh, name):
    """A few pairs of placements, other ones for each function."""
    pairs = list(itertools.product(SPECS, SPECS))
    start = sum(map(ord, name))
    return [
        tuple(NamedSharding(mesh, spec) for spec in pairs[(start + 7 * i) % len(pairs)]) for i in range(6)
    ]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_sharded_equals_unsharded(name):
    f, mesh = FUNCTIONS[name], make_mesh((2, 2), ("a", "b"))
    expected = inf.jit(f)(X, W)
    for x_spec, w_spec in placements(mesh, name):
        assert_equal(inf.jit(f)(inf.device_put(X, x_spec), inf.device_put(W, w_spec)), expected)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_sharded_gradients_equal_unsharded(name):
    def loss(x, w):
        return sum((inp.sin(leaf) * leaf).sum() for leaf in tree.leaves(FUNCTIONS[name](x, w)))

    mesh = make_mesh((2, 2), ("a", "b"))
    gradient = inf.jit(inf.grad(loss, argnums=(0, 1)))
    expected = gradient(X, W)
    for x_spec, w_spec in placements(mesh, name):
        assert_equal(gradient(inf.device_put(X, x_spec), inf.device_put(W, w_spec)), expected)


@pytest.mark.parametrize("name", ["chain of dots", "rows", "scan", "iota", "softmax"])
def test_every_backend_runs_sharded_programs(name, backend_name):
    with inf.config(device=backend_name):
        expected = inf.jit(FUNCTIONS[name])(X, W)
        where = NamedSharding(make_mesh((4,), ("a",)), P("a"))
        assert_equal(inf.jit(FUNCTIONS[name])(inf.device_put(X, where), inf.device_put(W, where)), expected)


def test_eager_operations_on_sharded_arrays_run_sharded():
    mesh = make_mesh((4,), ("a",))
    x = inf.device_put(X, NamedSharding(mesh, P("a")))
    y = inp.tanh(x) * 2
    assert y.sharding.spec == P("a")
    assert_equal(y, np.tanh(X) * 2)


def test_device_put_moves_between_placements():
    mesh = make_mesh((2, 2), ("a", "b"))
    for first, second in itertools.permutations(SPECS, 2):
        moved = inf.device_put(inf.device_put(X, NamedSharding(mesh, first)), NamedSharding(mesh, second))
        assert moved.sharding == NamedSharding(mesh, second)
        np.testing.assert_array_equal(np.asarray(moved), X)


def test_device_put_on_one_device_commits():
    device = inf.devices("reference")[2]
    x = inf.device_put({"x": X}, device)["x"]
    assert x.committed and x.sharding == SingleDeviceSharding(device)
    assert (x + 1).device == device


def test_arrays_on_two_meshes_do_not_mix():
    x = inf.device_put(X, NamedSharding(make_mesh((4,), ("a",)), P("a")))
    y = inf.device_put(X, NamedSharding(make_mesh((2,), ("a",)), P("a")))
    with pytest.raises(inf.InfiniError, match="different"):
        x + y


def test_in_and_out_shardings_of_jit():
    mesh = make_mesh((4,), ("a",))
    rows, columns = NamedSharding(mesh, P("a")), NamedSharding(mesh, P(None, "a"))
    f = inf.jit(lambda x, n: x * n, static_argnums=1, in_shardings=(rows,), out_shardings=columns)
    found = f(X, 3)
    assert found.sharding.spec == P(None, "a")
    assert_equal(found, X * 3)


def test_a_plain_p_belongs_to_the_mesh_around_it():
    f = inf.jit(lambda x: lax.with_sharding_constraint(x + 1, P("a")))
    with make_mesh((4,), ("a",)):
        assert f(X).sharding.spec == P("a")
    with pytest.raises(ValueError, match="outside of a mesh"):
        f(X)


def test_donated_sharded_arrays_are_deleted():
    mesh = make_mesh((4,), ("a",))
    x = inf.device_put(X, NamedSharding(mesh, P("a")))
    inf.jit(lambda x: x + 1, donate_argnums=0)(x)
    assert x.is_deleted()


def test_make_array_from_callback_asks_for_each_part():
    sharding = NamedSharding(make_mesh((4,), ("a",)), P("a"))
    asked = []
    found = inf.make_array_from_callback(X.shape, sharding, lambda index: asked.append(index) or X[index])
    assert [index[0].start for index in asked] == [0, 2, 4, 6]
    np.testing.assert_array_equal(np.asarray(found), X)


def test_make_array_from_process_local_data():
    sharding = NamedSharding(make_mesh((2, 2), ("a", "b")), P("a"))
    np.testing.assert_array_equal(np.asarray(inf.make_array_from_process_local_data(sharding, X)), X)


def test_a_host_call_happens_once(capsys):
    mesh = make_mesh((4,), ("a",))

    def f(x):
        inf.debug.print("sum {}", x.sum())
        return x

    inf.jit(f)(inf.device_put(np.ones(8, np.float32), NamedSharding(mesh, P("a"))))
    assert capsys.readouterr().out == "sum 8.0\n"
