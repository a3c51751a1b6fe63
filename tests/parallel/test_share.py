"""Equal gathers are made once where there is room for what is kept."""

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.compiler.partition import hoist, share
from infini.core import check
from infini.sharding import Collectives, P, make_mesh
from infini.testing import count_collectives

X = np.sin(np.arange(64, dtype=np.float32)).reshape(8, 8)
WHOLE = 2 * X.nbytes  # what a gather over two devices makes


@pytest.fixture(autouse=True)
def devices():
    with inf.config(device="reference", cpu_devices=2, check=1):
        yield


def program(f, count=1):
    """The program that each device runs for a function of local parts."""
    mesh = make_mesh((2,), ("a",))
    mapped = inf.shard_map(f, mesh=mesh, in_specs=(P(),) * count, out_specs=P(), check_vma=False)
    (equation,) = inf.make_jaxpr(mapped)(*[X] * count).equations
    return equation.attrs["body"]


def gathers(program):
    """Which parameter each gather is of, in order; None for what is computed."""
    params = {v: i for i, v in enumerate(program.params)}
    return [params.get(e.inputs[0]) for e in program.equations if e.op.name == "all_gather"]


def shared(f, count=1, window_bytes=1 << 20):
    found = share.share(program(f, count), window_bytes)
    check.check(found)
    return gathers(found)


def whole(x):
    return lax.all_gather(x, "a", tiled=True)


def there_and_back(x, *weights):
    """Every weight is read forwards and backwards, as in training."""
    for w in (*weights, *reversed(weights)):
        x = inp.tanh(x @ whole(w)[:8])
    return x


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (0, [1, 2, 3, 3, 2, 1]),
        (1, [1, 2, 3, 2, 1]),  # the last is still there
        (2, [1, 2, 3, 1]),
        (3, [1, 2, 3]),
    ],
)
def test_what_is_gathered_last_is_kept_first(room, expected):
    assert shared(there_and_back, 4, window_bytes=room * WHOLE) == expected


def test_a_larger_array_in_between_takes_the_room():
    def f(x, w, large):
        y = x @ whole(w)[:8]
        y = y + whole(inp.concatenate([large] * 4))[:8]
        return y @ whole(w)[:8]

    assert shared(f, 3, window_bytes=5 * WHOLE).count(1) == 1
    assert shared(f, 3, window_bytes=4 * WHOLE).count(1) == 2


def test_what_is_alive_for_others_takes_room():
    def f(x, w, other):
        kept = whole(other)
        y = inp.tanh(x @ whole(w)[:8])
        y = y @ whole(inp.sin(y))[:8]
        return y @ whole(w)[:8] + kept[:8]

    assert shared(f, 3, window_bytes=3 * WHOLE) == [2, 1, None]
    assert shared(f, 3, window_bytes=2 * WHOLE) == [2, 1, None, 1]


def test_what_two_products_read_in_turn_is_gathered_once_whatever_its_size():
    def f(x, v, w):
        y = x @ x
        return whole(y)[:8] @ v, inp.tanh(whole(y)[:8] @ w)

    assert shared(f, 3, window_bytes=0) == [None]


def test_what_is_sent_in_between_makes_it_a_question_of_room():
    def f(x):
        y = x @ x
        return whole(y)[:8] @ lax.psum(x + whole(y)[:8], "a") + whole(y)[:8]

    assert shared(f, window_bytes=0) == [None, None]
    assert shared(f, window_bytes=WHOLE) == [None]


def test_loops_that_gather_are_in_between():
    def f(x, w):
        y = whole(w)[:8]
        x = lax.scan(lambda c, _: (whole(inp.sin(c))[:8], None), x, None, length=3)[0]
        return x + y, whole(w)

    assert shared(f, 2, window_bytes=2 * WHOLE) == [1]
    assert shared(f, 2, window_bytes=2 * WHOLE - 1) == [1, 1]


def test_bodies_share_their_own():
    def f(x, w):
        return lax.scan(lambda c, _: (inp.tanh(c @ whole(w)[:8]) @ whole(w)[:8], None), x, None, length=3)[0]

    found = share.share(program(f, 2), 2 * WHOLE)
    (loop,) = [e for e in found.equations if e.op.name == "scan"]
    assert len(gathers(loop.attrs["body"])) == 1


def test_nothing_is_kept_across_a_barrier():
    def f(x, w):
        y = x @ whole(w)[:8]
        w, y = lax.optimization_barrier((w, y))
        return y @ whole(w)[:8]

    assert shared(f, 2) == [1, None]


def test_other_axes_and_dimensions_are_other_gathers():
    def f(x):
        return whole(x), lax.all_gather(x, "a", axis=1, tiled=True)

    assert shared(f) == [0, 0]
    found = program(f)
    assert share.share(found, 1 << 20) is found


def test_a_second_step_of_a_move_is_shared_with_the_first():
    def f(x):
        return [lax.all_to_all(whole(x), "a", 1, 0, tiled=True) * i for i in range(2)]

    found = share.share(program(f), 1 << 20)
    assert [e.op.name for e in found.equations if e.op.name.startswith("all")] == ["all_gather", "all_to_all"]


# --- rows of a scan -----------------------------------------------------------------------------------


def layers(x, ws):
    def layer(x, w):
        return inp.tanh(x @ whole(w)[:8]), x.sum()

    return lax.scan(layer, x, ws, reverse=True)


def of_layers(limit, f=layers):
    mesh = make_mesh((2,), ("a",))
    mapped = inf.shard_map(f, mesh=mesh, in_specs=(P(), P()), out_specs=P(), check_vma=False)
    (equation,) = inf.make_jaxpr(mapped)(X, np.stack([X] * 3)).equations
    found = hoist.leave_loops(equation.attrs["body"], limit)
    check.check(found)
    return found


def test_rows_of_a_scan_are_gathered_together_before_it():
    found = of_layers(3 * WHOLE)
    (gather,) = [e for e in found.equations if e.op.name == "all_gather"]
    assert gather.inputs == found.params[1:] and gather.output.type.shape == (3, 16, 8)
    (loop,) = [e for e in found.equations if e.op.name == "scan"]
    assert len(loop.inputs) == 2 and not gathers(loop.attrs["body"])


def test_rows_that_are_too_large_together_are_gathered_in_turn():
    found = of_layers(3 * WHOLE - 1)
    assert gathers(found) == []


def test_what_is_made_of_rows_stays_in_the_loop():
    def computed(x, ws):
        return lax.scan(lambda x, w: (inp.tanh(x @ whole(inp.sin(w))[:8]), None), x, ws)[0]

    assert gathers(of_layers(1 << 20, computed)) == []


def test_layers_of_a_split_model_are_gathered_once_with_equal_results():
    def loss(ws, x):
        return (lax.scan(lambda x, w: (inp.tanh(x @ w), None), x, ws)[0] ** 2).mean()

    mesh = make_mesh((2,), ("a",))
    # More rows than a weight has, so that weights travel.
    args = np.stack([X / 2, X / 3, X / 4]), np.tile(X, (8, 1))
    specs = P(None, "a"), P("a")

    def run(**options):
        step = inf.shard(
            inf.grad(loss), mesh=mesh, in_specs=specs, out_specs=specs[0], collectives=Collectives(**options)
        )
        with count_collectives() as counts:
            found = np.asarray(step(*args))
        return found, counts["all_gather", ("a",)].calls

    (ours, calls), (in_turn, many) = run(), run(window_bytes=0)
    assert (calls, many) == (1, 6)
    np.testing.assert_allclose(ours, in_turn, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(ours, np.asarray(inf.grad(loss)(*args)), rtol=1e-5, atol=1e-6)
