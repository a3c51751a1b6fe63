"""Donation over a mesh: buffers are overwritten, taken as they lie, or freed; and nobody sees it."""

import dataclasses
import functools
import gc

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax, optim, random, tree
from infini.backends.spmd import walk
from infini.core import errors, events, execute
from infini.core.memory import HOST, HostBuffer
from infini.parallel import recipes
from infini.sharding import NamedSharding, P, make_mesh
from infini.train import gpt

SIZE = 1 << 16  # elements of a parameter: large enough to find it in the counts of memory


@pytest.fixture(autouse=True)
def devices():
    with inf.config(device="cpu", cpu_devices=2):
        yield


@pytest.fixture
def copies(monkeypatch):
    """How many bytes were copied into each fresh buffer."""
    found, real = [], HostBuffer.copy_of
    monkeypatch.setattr(HostBuffer, "copy_of", lambda array: found.append(array.nbytes) or real(array))
    return found


def put(x, *spec):
    return inf.device_put(np.asarray(x), NamedSharding(make_mesh((2,), ("x",)), P(*spec)))


def on_mesh(f, in_specs, out_specs, **options):
    mesh = make_mesh((2,), ("x",))
    return inf.jit(
        inf.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False), **options
    )


def descend(params, x):
    """A step whose gradient crosses the mesh."""
    return {name: p - 0.5 * lax.psum(p * x.sum(), "x") for name, p in params.items()}


def addresses(array):
    return [buffer.address for buffer in array.buffers]


def test_a_step_leaves_results_in_the_memory_of_donated_parameters():
    step = on_mesh(descend, (P(), P("x")), P(), donate_argnums=0, donation="require")
    params = {name: put(np.ones(SIZE, np.float32)) for name in "ab"}
    x = put(np.ones(4, np.float32), "x")
    before = sorted(address for p in params.values() for address in addresses(p))
    found = step(params, x)
    assert sorted(address for p in found.values() for address in addresses(p)) == before
    assert all(p.is_deleted() for p in params.values())
    np.testing.assert_array_equal(np.asarray(found["a"]), np.full(SIZE, 1 - 0.5 * 4, np.float32))


def test_a_donated_step_takes_no_second_set_of_parameters():
    step = on_mesh(descend, (P(), P("x")), P(), donate_argnums=0)
    x = put(np.ones(4, np.float32), "x")
    params = {name: put(np.ones(SIZE, np.float32)) for name in "abcdefgh"}
    for _ in range(2):
        params = step(params, x)
    gc.collect()
    before = HOST.stats()["bytes_in_use"]
    params = step(params, x)
    assert HOST.stats()["bytes_in_use"] == before


def test_a_donated_array_that_is_freed_before_a_result_is_made_is_of_use():
    # The whole is only read in part, and comes back gathered: no piece can write into it.
    def f(p):
        half = lax.dynamic_slice(p, (lax.axis_index("x") * 2,), (2,))
        return lax.all_gather(half * 2, "x", tiled=True)

    found = on_mesh(f, P(), P(), donate_argnums=0, donation="require")(put(np.arange(4, dtype=np.float32)))
    np.testing.assert_array_equal(np.asarray(found), np.arange(4) * 2)


def test_required_donation_that_cannot_be_used_is_an_error_that_names_the_parameter():
    step = on_mesh(
        lambda p, x: lax.psum((p * x).sum(), "x"), (P("x"), P("x")), P(), donate_argnums=0, donation="require"
    )
    with pytest.raises(errors.DonationError, match=r"parameter 0 \(f32\[2\]\): no result has 8 bytes"):
        step(put(np.ones(4, np.float32), "x"), put(np.ones(4, np.float32), "x"))


def test_donation_that_cannot_be_used_warns_once_about_the_whole_program():
    step = on_mesh(lambda p: lax.psum(p.sum(), "x"), P("x"), P(), donate_argnums=0)
    with pytest.warns(errors.InfiniWarning, match=r"donation-unused.*parameter 0") as seen:
        step(put(np.ones(4, np.float32), "x"))
    assert len(seen) == 1


def test_intermediate_results_are_overwritten_without_a_word():
    def f(x):
        for _ in range(3):
            x = inp.sin(x) + lax.psum(x, "x")
        return x

    with events.record() as said:
        found = on_mesh(f, P("x"), P("x"))(put(np.ones(8, np.float32), "x"))
    assert not [event for event in said if event.code.startswith("donation")]
    expected = np.ones(4, np.float32)
    for _ in range(3):
        expected = np.sin(expected) + 2 * expected
    np.testing.assert_allclose(np.asarray(found)[:4], expected, rtol=1e-6)


def test_an_array_that_numpy_sees_is_not_overwritten():
    x = put(np.arange(4, dtype=np.float32), "x")
    view = x.addressable_shards[0].data.__array__(copy=False)
    with events.record() as said:
        on_mesh(lambda x: x - lax.psum(x, "x"), P("x"), P("x"), donate_argnums=0)(x)
    assert view.tolist() == [0, 1] and "donation-copied" in [event.code for event in said]


def test_results_have_memory_of_their_own():
    x = put(np.ones(4, np.float32), "x")
    same, total, again = on_mesh(
        lambda x: (x, lax.psum(x, "x"), lax.psum(x, "x")), P("x"), (P("x"), P(), P())
    )(x)
    known = [addresses(a) for a in (x, same, total, again)]
    flat = [address for found in known for address in found]
    assert len(set(flat)) == len(flat)
    on_mesh(lambda x: x * 2 + lax.psum(x, "x"), P("x"), P("x"), donate_argnums=0)(same)
    assert np.asarray(x).tolist() == [1, 1, 1, 1]


# --- models ---------------------------------------------------------------------------------------

MODEL = gpt.Config(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=4, num_kv_heads=4, head_dim=8
)
OPTIMIZER = optim.adam(1e-2)


def init(key, config=MODEL):
    params = gpt.init(key, config)
    return params, OPTIMIZER.init(params)


def train(params, state, rows, config=MODEL):
    loss, gradients = inf.value_and_grad(lambda p: gpt.loss(p, rows, config))(params)
    updates, state = OPTIMIZER.update(gradients, state, params)
    return optim.apply_updates(params, updates), state, loss


def of_leaves(tree_):
    return {address for leaf in tree.leaves(tree_) if leaf.size > 1 for address in addresses(leaf)}


def test_a_step_of_a_model_updates_all_of_its_state_in_place():
    config = dataclasses.replace(MODEL, num_layers=2)
    step = inf.jit(functools.partial(train, config=config), donate_argnums=(0, 1), donation="require")
    state = inf.jit(functools.partial(init, config=config))(random.key(0))
    before = of_leaves(state)
    assert of_leaves(step(*state, inp.zeros((8, 17), int))[:2]) == before


@pytest.mark.parametrize("recipe", [recipes.zero3("x"), recipes.tensor("x")], ids=["zero3", "tensor"])
def test_a_step_of_a_split_model_gives_back_all_of_its_state(recipe):
    mesh = make_mesh((2,), ("x",))
    params, state = inf.eval_shape(init, random.key(0))
    specs = recipe.params(params, mesh), recipe.optimizer(state, mesh)
    state = inf.shard(init, mesh=mesh, out_specs=specs)(random.key(0))
    step = inf.shard(
        train, mesh=mesh, in_specs=(*specs, recipe.of_batch()), out_specs=(*specs, P()),
        named=recipe.of_names(), donate_argnums=(0, 1), donation="require",
    )  # fmt: skip
    rows = inp.zeros((8, 17), int)
    state = step(*state, rows)[:2]
    gc.collect()
    before = HOST.stats()["bytes_in_use"]
    state = step(*state, rows)[:2]
    gc.collect()
    assert HOST.stats()["bytes_in_use"] == before


# --- loops ---------------------------------------------------------------------------------------


def test_carries_of_a_loop_are_overwritten(copies):
    def f(total, xs):
        def turn(total, x):
            return total + lax.psum(x + 0 * total, "x"), None

        return lax.scan(turn, total, xs)[0]

    step = on_mesh(f, (P(), P(None, "x")), P(), donate_argnums=0, donation="require")
    total, xs = put(np.zeros(SIZE, np.float32)), put(np.ones((3, 2 * SIZE), np.float32), None, "x")
    before = addresses(total)
    copies.clear()
    found = step(total, xs)
    assert addresses(found) == before
    np.testing.assert_array_equal(np.asarray(found), np.full(SIZE, 6, np.float32))
    assert [nbytes for nbytes in copies if nbytes >= SIZE] == []  # no carry, no slice, no sum


def test_a_carry_that_the_caller_keeps_is_copied_once(copies):
    def f(total, xs):
        return lax.scan(lambda c, x: (c + lax.psum(x - c, "x"), None), total, xs)[0]

    total, xs = put(np.zeros(SIZE, np.float32)), put(np.ones((3, 2 * SIZE), np.float32), None, "x")
    copies.clear()
    on_mesh(f, (P(), P(None, "x")), P())(total, xs)
    assert len([nbytes for nbytes in copies if nbytes >= SIZE]) == 2  # two devices
    assert not np.asarray(total).any()


def test_slices_and_stacks_of_a_scan_are_not_copied(copies):
    def f(xs):
        return lax.scan(lambda c, x: (c + lax.psum(x.sum(), "x"), x * 2), 0.0, xs)

    xs = put(np.ones((3, 2 * SIZE), np.float32), None, "x")
    copies.clear()
    total, ys = on_mesh(f, P(None, "x"), (P(), P(None, "x")))(xs)
    assert float(total) == 6 * SIZE and np.asarray(ys).sum() == 12 * SIZE
    assert [nbytes for nbytes in copies if nbytes >= SIZE] == [3 * SIZE * 4] * 2  # the result, on each device


@pytest.mark.parametrize("length", [0, 1, 3])
def test_carries_that_pass_and_change_places(length):
    def f(a, b, c):
        def turn(carry, x):
            a, b, c, _ = carry
            return (b, a + lax.psum(c, "x"), c, a), None

        return lax.scan(turn, (a, b, c, c), None, length=length)[0]

    given = [np.float32([i, i + 1]) for i in range(3)]
    a, b, c, kept = *given, given[2]
    for _ in range(length):
        a, b, c, kept = b, a + 2 * c, c, a
    arrays = [put(x) for x in given]
    for donated in ((), (0, 1, 2)):
        found = on_mesh(f, P(), P(), donate_argnums=donated)(*[put(x) for x in given] if donated else arrays)
        for x, y in zip(found, (a, b, c, kept), strict=True):
            np.testing.assert_array_equal(np.asarray(x), y)
    for x, y in zip(arrays, given, strict=True):
        np.testing.assert_array_equal(np.asarray(x), y)


@pytest.mark.parametrize("turns", [0, 2])
def test_a_while_loop_overwrites_only_its_own(turns):
    def f(x):
        return lax.while_loop(
            lambda c: c[0] < turns, lambda c: (c[0] + 1, c[1] + lax.psum(c[1], "x"), c[2]), (0, x, x)
        )

    x = put(np.float32([1, 2]))
    for _ in range(2):
        number, changed, kept = on_mesh(f, P(), P())(x)
        assert int(number) == turns
        np.testing.assert_array_equal(np.asarray(changed), np.float32([1, 2]) * 3**turns)
        np.testing.assert_array_equal(np.asarray(kept), np.asarray(x))


@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_a_branch_overwrites_what_is_given_to_it(value):
    def f(x):
        y = inp.cos(x)
        return lax.cond(x[0] > 0, lambda y: (y, y + lax.psum(y, "x")), lambda y: (y * 2, y), y)

    x = put(np.float32([value, 0]))
    first, second = on_mesh(f, P(), P())(x)
    y = np.cos(np.float32([value, 0]))
    expected = (y, 3 * y) if value > 0 else (y * 2, y)
    np.testing.assert_allclose(np.asarray(first), expected[0], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(second), expected[1], rtol=1e-6)


# --- constants, and what a run does besides ------------------------------------------------------


def test_constants_are_put_once_for_all_runs(monkeypatch):
    table, asked = np.float32([1, 2, 3]), []
    real = walk.Walk.constant
    monkeypatch.setattr(
        walk.Walk,
        "constant",
        lambda self, var, c: asked.append(var not in self.constants) or real(self, var, c),
    )
    f = on_mesh(lambda x: x + lax.psum(inp.asarray(table), "x"), P(), P())
    found = [np.asarray(f(put(np.zeros(3, np.float32)))).tolist() for _ in range(3)]
    assert found == [[2, 4, 6]] * 3
    assert asked.count(True) == 1 and len(asked) == 3


def test_a_repeated_call_makes_no_options(monkeypatch):
    x = put(np.ones(4, np.float32), "x")
    f = on_mesh(lambda x: lax.psum(x, "x"), P("x"), P())
    f(x)
    made, real = [], dataclasses.replace
    monkeypatch.setattr(dataclasses, "replace", lambda *a, **k: made.append(a) or real(*a, **k))
    f(x)
    assert made == []


@pytest.mark.parametrize(
    "other",
    [
        lambda x: inf.device_put(x, x.sharding),
        lambda x: inf.device_put(x, NamedSharding(make_mesh((1, 2), ("a", "b")), P("b"))),
        lambda x: x.addressable_shards[0].data,
        lambda x: x.addressable_data(1),
        lambda x: inf.make_array_from_single_device_arrays(
            x.shape, x.sharding, [shard.data for shard in x.addressable_shards]
        ),
    ],
)
def test_arrays_in_one_memory_are_donated_one_by_one(other):
    x = put(np.arange(SIZE, dtype=np.float32), "x")
    step = inf.jit(lambda a: a * 0 - 1, donate_argnums=0)
    y = other(x)
    before, whole = np.array(y), np.array(x)
    step(x)
    np.testing.assert_array_equal(y, before)
    x = put(whole, "x")
    step(other(x))
    np.testing.assert_array_equal(x, whole)


def test_what_was_seen_once_is_overwritten_later():
    gc.collect()  # what tests before have left
    before = HOST.stats()["bytes_in_use"]
    x = put(np.zeros(SIZE, np.float32), "x")
    assert [np.asarray(shard.data)[0] for shard in x.addressable_shards] == [0, 0]
    gc.collect()
    step = inf.jit(lambda a: a + 1, donate_argnums=0, donation="require")
    addresses = [b.address for b in x.buffers]
    with events.record() as seen:
        y = step(x)
    assert [b.address for b in y.buffers] == addresses
    assert not [e for e in seen if e.code == "donation-copied"]
    del x, y
    gc.collect()
    assert HOST.stats()["bytes_in_use"] == before


def test_a_step_that_begins_with_host_arrays_is_compiled_once(monkeypatch):
    made, real = [], execute._over_mesh
    monkeypatch.setattr(execute, "_over_mesh", lambda *a: made.append(a) or real(*a))
    mesh = make_mesh((2,), ("x",))

    def step(w, x):
        return w - x.sum(0), (w * x).sum()

    run = inf.shard(step, mesh=mesh, in_specs=(P("x"), P(None, "x")), out_specs=(P("x"), P()))
    w, x = np.ones(4, np.float32), np.ones((3, 4), np.float32)
    for _ in range(3):
        w, _ = run(w, x)
    np.testing.assert_array_equal(w, [-8] * 4)
    assert len(made) <= 2  # everything on the host, then the first argument on the mesh
    for _ in range(2):
        w, _ = run(w, inf.device_put(x, NamedSharding(mesh, P(None, "x"))))
    assert len(made) <= 2
