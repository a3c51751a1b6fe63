"""Sums over devices that are not taken yet: inside a program, and from one program to the next."""

from collections import Counter

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.compiler import partition
from infini.core import check, parser
from infini.core.mesh import AbstractMesh
from infini.sharding import NamedSharding, P, make_mesh

DATA = AbstractMesh(("data",), (2,))
BOTH = AbstractMesh(("data", "model"), (2, 2))
TERMS = P(unreduced={"data"})


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


W, X, Y = random(8, 16), random(32, 8), random(32, 16)


def loss(w, x, y):
    return ((inp.tanh(x @ w) - y) ** 2).mean()


def partitioned(f, args, specs, mesh=DATA):
    found = partition.partition(inf.make_jaxpr(f)(*args), mesh, list(specs))
    check.check(found.program)
    return found


def counts(found):
    return dict(Counter(c.name for c in found.collectives))


def names(program):
    """Names of all operations of a program and of those inside it."""
    return [
        name
        for e in program.equations
        for name in (e.op.name, *(n for inner in e.programs for n in names(inner)))
    ]


# --- in a program ----------------------------------------------------------------------------


def test_whole_terms_wait_beside_partial_ones():
    def f(x, a, b, residual):
        return ((residual + x @ a) + residual * 2) + x @ b

    specs = [P(None, "data"), P("data"), P("data"), P()]
    found = partitioned(f, (random(16, 8), random(8, 16), random(8, 16), random(16, 16)), specs)
    assert counts(found) == {"psum": 1}


def test_an_operation_that_is_linear_lets_terms_through():
    def f(x, w):
        y = -(x @ w).reshape(4, 4, 16).transpose(1, 0, 2) * 2.0
        return inp.where(inp.arange(16) > 3, y, 0.0).sum((0, 1))

    found = partitioned(f, (random(16, 8), random(8, 16)), [P(None, "data"), P("data")])
    assert [(c.name, c.nbytes) for c in found.collectives] == [("psum", 64)]


def test_whole_numbers_are_added_up_before_a_division():
    f = lambda x: lax.div(x.sum(0), np.int32(3)).sum()  # noqa: E731
    found = partitioned(f, (np.arange(64, dtype=np.int32).reshape(8, 8),), [P("data")])
    assert [(c.name, c.nbytes) for c in found.collectives] == [("psum", 32)]


def accumulate(start):
    def f(w, xs, ys):
        def turn(total, batch):
            return total * 0.5 + inf.grad(loss)(w, *batch), None

        return lax.scan(turn, start(w), (xs, ys))[0]

    return f


@pytest.mark.parametrize("start", [inp.zeros_like, lambda w: w, lambda w: inp.ones_like(w) * 3])
def test_a_loop_that_adds_up_gradients_sums_over_devices_once(start):
    args = (W, np.stack([X] * 3), np.stack([Y] * 3))
    found = partitioned(accumulate(start), args, [P(), P(None, "data"), P(None, "data")])
    (scan,) = [e for e in found.program.equations if e.op.name == "scan"]
    assert counts(found) == {"psum": 1}
    assert "psum" not in names(scan.attrs["body"])


def test_a_running_sum_that_is_read_in_every_turn_is_summed_in_every_turn():
    def f(w, xs, ys):
        def turn(total, batch):
            total = total + inf.grad(loss)(w, *batch)
            return total, inp.abs(total).max()

        return lax.scan(turn, inp.zeros_like(w), (xs, ys))

    found = partitioned(f, (W, X[None], Y[None]), [P(), P(None, "data"), P(None, "data")])
    (scan,) = [e for e in found.program.equations if e.op.name == "scan"]
    assert names(scan.attrs["body"]).count("psum") == 1
    assert counts(found) == {"psum": 1}


def test_a_while_loop_that_adds_up_gradients_sums_over_devices_once():
    def f(w, x, y):
        turn = lambda c: (c[0] + 1, c[1] + inf.grad(loss)(w, x, y))  # noqa: E731
        return lax.while_loop(lambda c: c[0] < 3, turn, (0, inp.zeros_like(w)))[1]

    found = partitioned(f, (W, X, Y), [P(), P("data"), P("data")])
    (loop,) = [e for e in found.program.equations if e.op.name == "while"]
    assert counts(found) == {"psum": 1}
    assert "psum" not in names(loop.attrs["body"])


def test_branches_leave_their_sums_to_what_is_behind_them():
    def f(w, x, y):
        gradient = inf.grad(loss)(w, x, y)
        other = lax.cond(y[0, 0] > 0, lambda: inf.grad(loss)(w, x, -y), lambda: inp.zeros_like(w))
        return gradient + other

    found = partitioned(f, (W, X, Y), [P(), P("data"), P("data")])
    # The gradients once, and the element that decides.
    assert sum(c.nbytes for c in found.collectives if c.name == "psum") == W.nbytes + 4


def test_terms_enter_a_branch_that_is_linear_in_them():
    def f(w, x, y):
        gradient = inf.grad(loss)(w, x, y)
        return lax.cond(w[0, 0] > 0, lambda g: g * 0.5, lambda g: -g, gradient) + x.T @ y

    found = partitioned(f, (W, X, Y), [P(), P("data"), P("data")])
    assert counts(found) == {"psum": 1}


def test_terms_pass_a_barrier():
    def f(w, x, y):
        return lax.optimization_barrier(inf.grad(loss)(w, x, y)) + x.T @ y

    assert counts(partitioned(f, (W, X, Y), [P(), P("data"), P("data")])) == {"psum": 1}


# --- gradients as results --------------------------------------------------------------------


@pytest.mark.parametrize("spec", [P("data"), P(None, "data")])
def test_the_gradient_of_a_split_parameter_is_scattered(spec):
    found = partitioned(inf.grad(loss), (W, X, Y), [spec, P("data"), P("data")])
    assert found.out_specs == (tuple(spec),)
    assert counts(found) == {"all_gather": 1, "psum_scatter": 1}


def test_the_gradient_of_a_whole_parameter_is_whole():
    found = partitioned(inf.grad(loss), (W, X, Y), [P(), P("data"), P("data")])
    assert (found.out_specs, counts(found)) == (((),), {"psum": 1})


def test_a_clipped_gradient_is_scattered_before_its_norm():
    def f(w, x, y):
        gradient = inf.grad(loss)(w, x, y)
        return gradient / inp.sqrt((gradient**2).sum())

    found = partitioned(f, (W, X, Y), [P("data"), P("data"), P("data")])
    assert found.out_specs == (("data",),)
    assert [(c.name, c.nbytes) for c in found.collectives if c.name != "all_gather"] == [
        ("psum_scatter", W.nbytes),
        ("psum", 4),
    ]


# --- from one program to the next ----------------------------------------------------------------


@pytest.fixture
def mesh():
    with inf.config(device="reference", cpu_devices=4, check=1):
        yield make_mesh((2, 2), ("data", "model"))


def step(w, total, x, y):
    return total + inf.grad(loss)(w, x, y)


def test_gradients_of_several_calls_are_summed_over_devices_once(mesh):
    place = lambda spec: NamedSharding(mesh, spec)  # noqa: E731
    add = inf.shard(step, mesh=mesh, in_specs=(P(), TERMS, P("data"), P("data")), out_specs=TERMS)
    update = inf.shard(lambda w, g: w - 0.1 * g, mesh=mesh, in_specs=(P(), TERMS), out_specs=P())
    total = inf.device_put(np.zeros_like(W), place(TERMS))
    batches = [(X, Y), (X * 2, Y), (X, -Y)]
    for x, y in batches:
        total = add(W, total, x, y)
        assert total.sharding.spec == TERMS
    with inf.config(device="reference"):
        expected = sum(np.asarray(inf.grad(loss)(W, x, y)) for x, y in batches)
    np.testing.assert_allclose(np.asarray(total), expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(np.asarray(update(W, total)), W - 0.1 * expected, rtol=2e-5, atol=1e-6)


def test_a_call_that_adds_terms_communicates_nothing():
    specs = [P(), TERMS, P("data"), P("data")]
    constrained = lambda *args: lax.with_sharding_constraint(step(*args), NamedSharding(mesh, TERMS))  # noqa: E731
    with inf.config(device="reference", cpu_devices=2):
        mesh = make_mesh((2,), ("data",))
        found = partitioned(constrained, (W, W, X, Y), specs)
    assert counts(found) == {}
    assert (found.in_specs[1], found.out_specs) == (TERMS, (TERMS,))


def test_terms_that_are_wanted_whole_are_summed():
    found = partitioned(lambda g: g * 2, (W,), [TERMS])
    assert (counts(found), found.out_specs) == ({"psum": 1}, ((),))


def test_terms_that_are_wanted_in_parts_are_scattered():
    with inf.config(device="reference", cpu_devices=2):
        where = NamedSharding(make_mesh((2,), ("data",)), P("data"))
    found = partitioned(lambda g: lax.with_sharding_constraint(g, where), (W,), [TERMS])
    assert counts(found) == {"psum_scatter": 1}


@pytest.mark.parametrize("spec", [TERMS, P("model", unreduced={"data"}), P(unreduced={"data", "model"})])
def test_an_array_of_terms_is_their_sum(mesh, spec):
    x = inf.device_put(X, NamedSharding(mesh, spec))
    assert x.sharding.spec == spec and not x.is_fully_replicated
    np.testing.assert_array_equal(np.asarray(x), X)
    np.testing.assert_allclose(np.asarray(inp.sin(x)), np.sin(X), rtol=1e-6)
    whole = inf.device_put(x, NamedSharding(mesh, P()))
    np.testing.assert_array_equal(np.asarray(whole), X)


def test_the_cotangent_of_every_term_is_that_of_their_sum(mesh):
    where = NamedSharding(mesh, TERMS)
    f = inf.grad(lambda x: (inp.sin(lax.with_sharding_constraint(x, where)) ** 2).sum())
    np.testing.assert_allclose(np.asarray(inf.jit(f)(X)), np.sin(2 * X), rtol=1e-5, atol=1e-6)


def test_a_loop_goes_on_from_terms():
    f = lambda total, w, xs, ys: lax.scan(  # noqa: E731
        lambda c, batch: (c + inf.grad(loss)(w, *batch), None), total, (xs, ys)
    )[0]
    with inf.config(device="reference", cpu_devices=2):
        where = NamedSharding(make_mesh((2,), ("data",)), TERMS)
    kept = lambda *args: lax.with_sharding_constraint(f(*args), where)  # noqa: E731
    specs = [TERMS, P(), P(None, "data"), P(None, "data")]
    found = partitioned(kept, (W, W, np.stack([X] * 3), np.stack([Y] * 3)), specs)
    assert (counts(found), found.out_specs) == ({}, (TERMS,))


# --- what a P says -------------------------------------------------------------------------------


def test_an_axis_does_not_split_and_wait():
    with pytest.raises(ValueError, match="splits a dimension and is unreduced"):
        P("data", unreduced={"data"})


def test_a_p_with_terms_is_its_own():
    assert P("a") == ("a",) and P("a") != P("a", unreduced={"b"}) and hash(P("a")) == hash(("a",))
    assert repr(P("a", unreduced={"c", "b"})) == "P('a', unreduced={'b', 'c'})"


def test_a_spec_is_not_equal_to_nothing():
    assert P() != None and P("a") != None and P() == P() and P("a") != P("a", unreduced={"b"})  # noqa: E711


def test_axes_that_a_mesh_lacks_are_refused(mesh):
    with pytest.raises(ValueError, match="does not fit the mesh"):
        NamedSharding(mesh, P(unreduced={"pipe"}))


def test_shard_map_takes_no_terms(mesh):
    with pytest.raises(ValueError, match="say how every part lies"):
        inf.shard_map(lambda x: x, mesh=mesh, in_specs=TERMS, out_specs=P())(X)


def test_booleans_are_no_terms(mesh):
    with pytest.raises(ValueError, match="only numbers"):
        inf.device_put(X > 0, NamedSharding(mesh, TERMS))


def test_a_constraint_with_terms_prints_and_parses(mesh):
    where = NamedSharding(mesh, P(None, P.UNCONSTRAINED, unreduced={"data"}))
    program = inf.make_jaxpr(lambda x: lax.with_sharding_constraint(x, where))(X)
    assert parser.parse(repr(program)) == program
