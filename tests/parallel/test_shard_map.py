"""`shard_map`: local parts and collectives by hand, under jit, grad, jvp and vmap."""

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.ad_checkpoint import checkpoint_name
from infini.core import errors
from infini.sharding import NamedSharding, P, make_mesh
from infini.testing import count_collectives

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


def marks(program):
    """How often a program marks and adds up values, bodies included."""
    found = [e.op.name for e in program.equations if e.op.name in ("pvary", "psum_invariant", "psum")]
    for equation in program.equations:
        for body in equation.programs:
            found += marks(body)
    return found


def test_an_equal_value_is_marked_where_it_meets_a_different_one(mesh):
    f = inf.shard_map(lambda w, x: lax.psum(x @ w, "a"), mesh=mesh, in_specs=(P(), P("a")), out_specs=P())
    assert marks(inf.make_jaxpr(f)(W, X)) == ["pvary", "psum_invariant"]


def test_unchecked_bodies_have_no_marks(mesh):
    f = inf.shard_map(
        lambda w, x: lax.psum(x @ w, "a"), mesh=mesh, in_specs=(P(), P("a")), out_specs=P(), check_vma=False
    )
    assert marks(inf.make_jaxpr(f)(W, X)) == ["psum"]


def test_a_gradient_adds_up_once_per_weight(mesh):
    f = inf.shard_map(
        lambda w, x: lax.psum(((x @ w) ** 2).sum(), "a"), mesh=mesh, in_specs=(P(), P("a")), out_specs=P()
    )
    program = inf.make_jaxpr(inf.grad(f))(W, X)
    assert marks(program).count("psum_invariant") == 2  # the loss, and the cotangent of the weights


def test_no_collective_stands_in_a_branch_that_only_some_devices_take(mesh):
    def local(w, x):
        def loop(u):
            return lax.scan(lambda c, r: (c + inf.jit(lambda r: (r @ w).sum() ** 2)(r), None), w.sum(), u)[0]

        return lax.psum(lax.cond(lax.axis_index("a") > 1, loop, lambda u: u.sum() * w[0, 0], x), "a")

    f = inf.shard_map(local, mesh=mesh, in_specs=(P(), P("a")), out_specs=P())
    program = inf.make_jaxpr(inf.grad(f, argnums=(0, 1)))(W, X)

    def branches(inner):
        for equation in inner.equations:
            for body in equation.programs:
                if equation.op.name == "cond":
                    yield body
                yield from branches(body)

    assert [marks(body) for body in branches(program) if marks(body)] == []

    def whole(w, x):
        parts = x.reshape(4, 2, 2)
        first = parts[:2].sum() * w[0, 0]
        return first + sum(w.sum() + ((part @ w).sum(1) ** 2).sum() for part in parts[2:])

    found = inf.jit(inf.grad(f, argnums=(0, 1)))(W, X)
    for a, b in zip(found, inf.grad(whole, argnums=(0, 1))(W, X), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_carry_starts_varying_where_the_body_makes_it_vary(mesh):
    f = inf.shard_map(
        lambda x: lax.scan(lambda c, r: (c + r, None), inp.zeros(2), x)[0][None],
        mesh=mesh, in_specs=P("a"), out_specs=P("a"),
    )  # fmt: skip
    np.testing.assert_allclose(inf.jit(f)(X), X.reshape(4, 2, 2).sum(1))


def test_branches_give_results_that_vary_along_the_axes_of_both(mesh):
    f = inf.shard_map(
        lambda x: lax.cond(lax.axis_index("a") > 1, lambda u: u, lambda u: inp.zeros((2, 2)), x),
        mesh=mesh, in_specs=P("a"), out_specs=P("a"),
    )  # fmt: skip
    expected = np.where(np.arange(8)[:, None] > 3, X, 0)
    np.testing.assert_allclose(f(X), expected)


def test_a_body_along_one_axis_is_split_over_the_other_without_a_gather():
    mesh = make_mesh((2, 2), ("a", "b"))
    x = inf.device_put(X, NamedSharding(mesh, P("a", "b")))
    f = inf.jit(
        inf.shard_map(
            lambda v: lax.psum(inp.sin(v), "a"), mesh=mesh, in_specs=P("a"), out_specs=P(), axis_names={"a"}
        )
    )
    assert f(x).sharding.spec == P(None, "b")
    np.testing.assert_allclose(f(x), np.sin(X[:4]) + np.sin(X[4:]), rtol=1e-6)


def test_a_body_along_one_axis_may_constrain_values_along_the_other():
    mesh = make_mesh((2, 2), ("a", "b"))
    f = inf.jit(
        inf.shard_map(
            lambda v: lax.with_sharding_constraint(v * 2, P(None, "b")) + 1,
            mesh=mesh, in_specs=P("a"), out_specs=P("a"), axis_names={"a"},
        )
    )  # fmt: skip
    found = f(inf.device_put(X, NamedSharding(mesh, P("a"))))
    np.testing.assert_allclose(found, 2 * X + 1)
    assert found.sharding.spec == P("a", "b")


def test_shard_map_inside_shard_map():
    mesh = make_mesh((2, 2), ("a", "b"))

    def outer(v):
        inner = inf.shard_map(lambda u: lax.psum(u, "b"), in_specs=P("b"), out_specs=P(), axis_names={"b"})
        return lax.psum(inner(v), "a")

    f = inf.shard_map(outer, mesh=mesh, in_specs=P("a"), out_specs=P(), axis_names={"a"})
    np.testing.assert_allclose(inf.jit(f)(X), X.reshape(4, 2, 2).sum(0))


def test_an_argument_on_no_mesh_needs_a_spec(mesh):
    with pytest.raises(TypeError, match="cannot infer in_specs"):
        inf.shard_map(lambda x: x, mesh=mesh, out_specs=P("a"))(X)


def test_maxima_have_no_derivative(mesh):
    biggest = inf.shard_map(lambda x: lax.pmax(x, "a"), mesh=mesh, in_specs=P("a"), out_specs=P())
    with pytest.raises(errors.MissingRuleError, match="pmax has no derivative"):
        inf.grad(lambda x: biggest(x).sum())(X)
    held = inf.shard_map(
        lambda x: x - lax.pmax(lax.stop_gradient(x), "a"), mesh=mesh, in_specs=P("a"), out_specs=P("a")
    )
    np.testing.assert_array_equal(inf.grad(lambda x: held(x).sum())(X), np.ones_like(X))


TOTAL = np.arange(4, dtype=np.float32)


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (lambda f: inf.grad(lambda x: f(x).sum())(TOTAL), 2 * TOTAL),
        (lambda f: inf.jvp(f, (TOTAL,), (TOTAL,))[1], [28]),
        (lambda f: inf.vmap(f)(np.stack([TOTAL, 2 * TOTAL])), [[14], [56]]),
        (lambda f: inf.checkpoint(f)(TOTAL), [14]),
        (lambda f: inf.linearize(f, TOTAL)[1](TOTAL), [28]),
        (lambda f: lax.scan(lambda c, _: (c + f(TOTAL), None), inp.zeros(1), None, length=2)[0], [28]),
        (lambda f: lax.cond(True, lambda: f(TOTAL), lambda: inp.zeros(1)), [14]),
        (lambda f: lax.map(f, np.stack([TOTAL, 2 * TOTAL])), [[14], [56]]),
    ],
)
@pytest.mark.parametrize("is_jitted", [False, True])
def test_transformed_without_jit_it_runs_on_the_mesh_that_it_names(mesh, transform, expected, is_jitted):
    mapped = inf.shard_map(lambda x: lax.psum(x * x, "a"), mesh=mesh, in_specs=P("a"), out_specs=P())
    np.testing.assert_allclose(transform(inf.jit(mapped) if is_jitted else mapped), expected)


def test_parts_of_different_dtypes_are_refused(mesh):
    rows = NamedSharding(mesh, P("a"))

    def part(index):
        return np.zeros(1, np.int32 if index[0].start else np.float32)

    with pytest.raises(errors.TypeMismatchError, match="different dtypes"):
        inf.make_array_from_callback((4,), rows, part)
    assert inf.make_array_from_callback((4,), rows, part, np.float32).dtype == np.float32


@pytest.mark.parametrize("check_vma", [True, False])
def test_rules_of_custom_jvp_add_up_once(mesh, check_vma):
    @inf.custom_jvp
    def f(v):
        return lax.psum(inp.sin(v), "a")

    @f.defjvp
    def _(primals, tangents):
        return f(*primals), lax.psum(tangents[0] * 2.0, "a")

    mapped = inf.shard_map(
        lambda b: f(b).sum(), mesh=mesh, in_specs=P("a"), out_specs=P(), check_vma=check_vma
    )
    np.testing.assert_allclose(inf.jit(inf.grad(mapped))(TOTAL), [2, 2, 2, 2])
    np.testing.assert_allclose(inf.grad(mapped)(TOTAL), [2, 2, 2, 2])
    rows = np.stack([TOTAL, 2 * TOTAL])
    np.testing.assert_allclose(inf.vmap(inf.grad(mapped))(rows), 2 * np.ones((2, 4)))
    np.testing.assert_allclose(inf.jvp(mapped, (TOTAL,), (TOTAL,))[1], 12)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (
            lambda mesh: inf.shard_map(lambda a: a, mesh=mesh, in_specs=P("a", "a"), out_specs=P("a"))(
                inp.ones((4, 4))
            ),
            "names the axis 'a' twice",
        ),
        (
            lambda mesh: inf.shard(
                lambda a: checkpoint_name(a, "h") * 2, mesh=mesh, named={"h": P("a", "a")}
            )(inp.ones((4, 4))),
            r"named\['h'\] names an axis twice",
        ),
        (
            lambda mesh: inf.shard_map(
                lambda b: lax.with_sharding_constraint(b, NamedSharding(mesh, P("a"))),
                mesh=mesh, in_specs=P("a"), out_specs=P("a"),
            )(inp.ones(8)),
            "along which shard_map gives each device its own part",
        ),
        (
            lambda mesh: inf.vmap(
                lambda a: lax.with_sharding_constraint(a, NamedSharding(mesh, P("a"))), spmd_axis_name="a"
            )(inp.ones((4, 4))),
            "names the axis 'a' twice",
        ),
    ],
)  # fmt: skip
def test_an_axis_splits_one_dimension_once(mesh, run, words):
    with pytest.raises(errors.ValueMismatchError, match=words):
        run(mesh)


def test_a_batch_lies_as_it_likes_where_its_axis_is_not_said(mesh):
    x = inf.device_put(np.ones((4, 4), np.float32), NamedSharding(mesh, P("a")))
    whole = NamedSharding(mesh, P(None))
    double = inf.jit(inf.vmap(lambda row: lax.with_sharding_constraint(row * 2, whole)))
    with count_collectives() as counts:
        assert double(x).sharding.spec == P("a")
    assert counts == {}
