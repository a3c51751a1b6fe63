"""`shard_map`: local parts and collectives by hand, under jit, grad, jvp and vmap."""

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.sharding import NamedSharding, P, make_mesh

X = np.arange(16, dtype=np.float32).reshape(8, 2) / 8


@pytest.fixture(autouse=True)
def devices():
    with inf.config(device="reference", cpu_devices=4, check=1):
        yield


@pytest.fixture
def mesh():
    return make_mesh((4,), ("a",))


def test_a_body_sees_its_part(mesh):
    seen = []

    def f(x):
        seen.append(x.shape)
        return x.sum(keepdims=True)

    found = inf.shard_map(f, mesh=mesh, in_specs=P("a"), out_specs=P("a"))(X)
    assert seen == [(2, 2)]
    np.testing.assert_allclose(found, X.reshape(4, 4).sum(1)[:, None])


@pytest.mark.parametrize(
    ("collective", "out", "expected"),
    [
        (lambda x: lax.psum(x, "a"), P(), X.reshape(4, 2, 2).sum(0)),
        (lambda x: lax.pmean(x, "a"), P(), X.reshape(4, 2, 2).mean(0)),
        (lambda x: lax.pmax(x, "a"), P(), X[6:]),
        (lambda x: lax.pmin(x, "a"), P(), X[:2]),
        (lambda x: lax.all_gather(x, "a", tiled=True), P(), X),
        (lambda x: lax.all_gather(x, "a"), P(), X.reshape(4, 2, 2)),
        (lambda x: lax.ppermute(x, "a", [(0, 1), (1, 2)]), P("a"), np.vstack([X[:2] * 0, X[:4], X[:2] * 0])),
        (lambda x: lax.psum_scatter(x.reshape(4), "a", tiled=True), P("a"), X.reshape(4, 4).sum(0)),
        (lambda x: lax.all_to_all(x.reshape(4, 1), "a", 0, 1, tiled=True), P("a"), X.reshape(4, 4).T),
        (lambda x: x[:1, 0] * 0 + lax.axis_index("a"), P("a"), np.arange(4)),
    ],
    ids=["psum", "pmean", "pmax", "pmin", "tiled", "gather", "ppermute", "scatter", "all_to_all", "index"],
)  # fmt: skip
def test_collectives(mesh, collective, out, expected):
    # What is gathered is equal everywhere, which the types do not know.
    mapped = inf.shard_map(collective, mesh=mesh, in_specs=P("a"), out_specs=out, check_vma=False)
    found = inf.jit(mapped)(X)
    np.testing.assert_allclose(np.asarray(found).reshape(np.shape(expected)), expected)


def mean_of_squares(mesh):
    def f(w, x):
        return lax.pmean((inp.tanh(x @ w) ** 2).mean(), "a")

    return inf.shard_map(f, mesh=mesh, in_specs=(P(), P("a")), out_specs=P())


W = np.array([[0.5, -1.0], [2.0, 0.25]], np.float32)


@pytest.mark.parametrize("wrap", [lambda f: f, inf.jit], ids=["eager", "jit"])
def test_gradients_equal_those_of_the_global_program(mesh, wrap):
    expected = inf.grad(lambda w, x: (inp.tanh(x @ w) ** 2).mean(), argnums=(0, 1))(W, X)
    found = wrap(inf.grad(mean_of_squares(mesh), argnums=(0, 1)))(W, X)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_forward_mode(mesh):
    expected = inf.jvp(lambda w: (inp.tanh(X @ w) ** 2).mean(), (W,), (W,))
    found = inf.jvp(lambda w: mean_of_squares(mesh)(w, X), (W,), (W,))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_vmap(mesh):
    many = np.stack([W, 2 * W, -W])
    found = inf.vmap(mean_of_squares(mesh), in_axes=(0, None))(many, X)
    np.testing.assert_allclose(found, [(np.tanh(X @ w) ** 2).mean() for w in many], rtol=1e-5)


def test_collectives_inside_loops_and_branches(mesh):
    def f(x):
        def step(total, row):
            total = total + lax.psum(row, "a")
            return total, lax.cond(total.sum() > 3, lambda r: lax.psum(r, "a"), lambda r: r * 0, row)

        total, rows = lax.scan(step, inp.zeros(2), x)
        total = lax.while_loop(
            lambda t: lax.pmax(t, "a").sum() < 40, lambda t: t + lax.psum(t, "a") / 4, total
        )
        return total, rows

    mapped = inf.shard_map(f, mesh=mesh, in_specs=P("a"), out_specs=(P(), P()), check_vma=False)
    total, rows = inf.jit(mapped)(X)
    parts = X.reshape(4, 2, 2).sum(0)
    sums = np.cumsum(parts, 0)
    np.testing.assert_allclose(rows, np.where(sums.sum(1, keepdims=True) > 3, parts, 0))
    expected = sums[-1]
    while expected.sum() < 40:
        expected = expected * 2
    np.testing.assert_allclose(total, expected)


def test_the_index_of_a_device_inside_a_loop(mesh):
    def f(x):
        return lax.scan(lambda c, row: (c + row * lax.axis_index("a"), ()), inp.zeros(2), x)[0][None]

    found = inf.jit(inf.shard_map(f, mesh=mesh, in_specs=P("a"), out_specs=P("a")))(X)
    np.testing.assert_allclose(found, X.reshape(4, 2, 2).sum(1) * np.arange(4)[:, None])


def test_it_sits_inside_an_annotated_program(mesh):
    double = inf.shard_map(lambda x: x * 2, mesh=mesh, in_specs=P("a"), out_specs=P("a"))
    found = inf.jit(lambda x: inp.exp(double(x)).sum(0))(inf.device_put(X, NamedSharding(mesh, P(None))))
    np.testing.assert_allclose(found, np.exp(2 * X).sum(0), rtol=1e-5)


def test_an_unknown_axis_is_an_error(mesh):
    with pytest.raises(ValueError, match="no mesh axis 'b'"):
        inf.shard_map(lambda x: x, mesh=mesh, in_specs=P("b"), out_specs=P())(X)


def test_specs_that_do_not_match_the_arguments_are_an_error(mesh):
    with pytest.raises(ValueError, match="in_specs does not match"):
        inf.shard_map(lambda x: x, mesh=mesh, in_specs=(P(), P()), out_specs=P())(X)
