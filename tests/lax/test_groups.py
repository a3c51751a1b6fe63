"""Collectives within groups of members, and what is made of collectives, over a mesh and under vmap."""

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.sharding import P, make_mesh

X = np.arange(8, dtype=np.float32).reshape(4, 2)
PAIRS = [[0, 3], [2, 1]]


def over_mesh(f, *args):
    with inf.config(device="reference", cpu_devices=4, check=1):
        mesh = make_mesh((4,), ("a",))
        g = inf.shard_map(
            lambda *xs: inf.tree.map(lambda y: y[None], f(*(x[0] for x in xs))),
            mesh=mesh, in_specs=P("a"), out_specs=P("a"),
        )  # fmt: skip
        return np.asarray(inf.jit(g)(*args))


def over_batch(f, *args):
    return np.asarray(inf.vmap(f, axis_name="a")(*args))


BOTH = pytest.mark.parametrize("run", [over_mesh, over_batch])


@BOTH
def test_groups_give_the_same_over_a_mesh_and_a_batch(run):
    found = run(lambda x: lax.psum(x, "a", axis_index_groups=PAIRS), X)
    np.testing.assert_array_equal(found, X[[0, 1, 1, 0]] + X[[3, 2, 2, 3]])
    gathered = run(lambda x: lax.all_gather(x, "a", axis_index_groups=PAIRS), X)
    np.testing.assert_array_equal(gathered, np.stack([X[[0, 3]], X[[2, 1]], X[[2, 1]], X[[0, 3]]]))


@BOTH
def test_derivatives_go_through_groups(run):
    def f(x):
        return inf.grad(lambda v: (lax.psum(v**2, "a", axis_index_groups=PAIRS) * (v + 1)).sum())(x)

    def whole(x):
        total = inp.stack([x[i] ** 2 + x[j] ** 2 for i, j in ((0, 3), (1, 2), (1, 2), (0, 3))])
        return (total * (x + 1)).sum()

    np.testing.assert_allclose(run(f, X), inf.grad(whole)(X), rtol=1e-6)


@pytest.mark.parametrize(
    "groups", [[[0, 1]], [[0, 1], [1, 2]], [[0], [1, 2, 3]]], ids=["missing", "twice", "sizes"]
)
def test_groups_must_name_every_member_once_and_be_of_one_size(groups):
    with pytest.raises(ValueError, match="axis_index_groups"):
        over_batch(lambda x: lax.psum(x, "a", axis_index_groups=groups), X)


@BOTH
@pytest.mark.parametrize("source", [0, 1, 3])
@pytest.mark.parametrize("dtype", ["float32", "int8", "bool"])
def test_pbroadcast_gives_all_what_one_has(run, source, dtype):
    nan = np.nan if dtype == "float32" else 3
    x = np.array([[nan, 1], [-0.0, 2], [5, 6], [7, 0]]).astype(dtype)
    found = run(lambda v: lax.pbroadcast(v, "a", source), x)
    assert found.tobytes() == np.stack([x[source]] * 4).tobytes()


def test_pbroadcast_needs_a_member():
    with pytest.raises(ValueError, match="has no member 4"):
        over_batch(lambda v: lax.pbroadcast(v, "a", 4), X)


def test_the_derivative_of_pbroadcast_is_the_sum_at_its_source():
    found = over_mesh(lambda v: inf.grad(lambda u: (lax.pbroadcast(u, "a", 2) * v).sum())(v), X)
    np.testing.assert_allclose(found, np.stack([0 * X[0], 0 * X[0], X.sum(0), 0 * X[0]]))


def test_psend_and_precv():
    perm = [(0, 1), (3, 2)]

    def f(x):
        token = lax.psend({"x": x}, "a", perm)
        return lax.precv(token, {"x": inf.ShapeDtypeStruct(x.shape, x.dtype)}, "a", perm)["x"]

    np.testing.assert_array_equal(over_mesh(f, X), np.stack([0 * X[0], X[0], X[3], 0 * X[0]]))


def test_precv_of_other_arrays_is_an_error():
    with pytest.raises(TypeError, match="other arrays were sent"):
        over_mesh(
            lambda x: lax.precv(lax.psend(x, "a", []), inf.ShapeDtypeStruct((3,), "float32"), "a", []), X
        )


def ragged(rng):
    """Random sizes, and what each of four members ends up with."""
    sizes = rng.integers(0, 3, (4, 4)).astype(np.int32)  # from row to column
    starts = np.cumsum(sizes, 1, dtype=np.int32) - sizes
    places = np.cumsum(sizes, 0, dtype=np.int32) - sizes
    operand = rng.normal(size=(4, 8, 3)).astype(np.float32)
    output = rng.normal(size=(4, 8, 3)).astype(np.float32)
    expected = output.copy()
    for i in range(4):
        for j in range(4):
            n = sizes[i, j]
            part = operand[i, starts[i, j] : starts[i, j] + n]
            expected[j, places[i, j] : places[i, j] + n] = part
    return operand, output, starts, sizes, places, sizes.T.copy(), expected


@BOTH
def test_ragged_all_to_all(run):
    *operands, expected = ragged(np.random.default_rng(0))
    found = run(lambda *xs: lax.ragged_all_to_all(*xs, axis_name="a"), *operands)
    np.testing.assert_array_equal(found, expected)


def test_derivatives_of_ragged_all_to_all():
    operand, output, *numbers, _ = ragged(np.random.default_rng(1))
    weights = np.random.default_rng(2).normal(size=output.shape).astype(np.float32)

    def f(x, y, w, *rest):
        sent = lambda x, y: (lax.ragged_all_to_all(x, y, *rest, axis_name="a") * w).sum()  # noqa: E731
        return inp.stack(inf.grad(sent, argnums=(0, 1))(x, y))

    found = over_mesh(f, operand, output, weights, *numbers)
    starts, sizes, places, _ = numbers
    by_operand, by_output = np.zeros_like(operand), weights.copy()
    for i in range(4):
        for j in range(4):
            n, at = sizes[i, j], places[i, j]
            by_operand[i, starts[i, j] : starts[i, j] + n] = weights[j, at : at + n]
            by_output[j, at : at + n] = 0
    np.testing.assert_allclose(found[:, 0], by_operand)
    np.testing.assert_allclose(found[:, 1], by_output)


def test_ragged_all_to_all_refuses_other_rows_and_counts():
    operand, output, *numbers, _ = ragged(np.random.default_rng(0))
    with pytest.raises(TypeError, match="rows of one type"):
        over_batch(lambda *xs: lax.ragged_all_to_all(*xs, axis_name="a"), operand, output[..., :2], *numbers)
    with pytest.raises(TypeError, match="4 integers"):
        over_batch(
            lambda *xs: lax.ragged_all_to_all(*xs, axis_name="a"),
            operand,
            output,
            *(n[:, :2] for n in numbers),
        )
    with pytest.raises(NotImplementedError):
        over_batch(
            lambda *xs: lax.ragged_all_to_all(*xs, axis_name="a", axis_index_groups=PAIRS),
            operand, output, *numbers,
        )  # fmt: skip


def test_an_unknown_axis_is_an_error():
    with pytest.raises(NameError):
        lax.pvary(inp.ones(2), "a")
