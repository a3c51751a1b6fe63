"""Dimensions that axes do not divide: functions over every kind of operation equal those of one device, with
NaN (or the largest number) in the room that parts leave empty.
"""

import itertools

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax, nn, random
from infini.parallel import checkpoints, explain_sharding
from infini.sharding import NamedSharding, P, make_mesh
from infini.testing import count_collectives, predicted
from tests.parallel.sharded import assert_same, counts, gradient_of, looped, scanned


@pytest.fixture(autouse=True)
def devices():
    with inf.config(device="reference", cpu_devices=8, check=1):
        yield


def array(*shape):
    return np.sin(np.arange(np.prod(shape), dtype=np.float32) * 1.3).reshape(shape)


def accumulated(x, w):
    def add(total, row):
        return total + inf.grad(lambda w: inp.tanh(row @ w).sum())(w), None

    return lax.scan(add, inp.zeros(w.shape), inp.stack([x, x * 2, inp.sin(x)]))[0]


def convolved(x, w):
    images = inp.stack([x, x * 2, x + 1])[:, None]
    return lax.conv_general_dilated(images, inp.stack([w[:3, :3]] * 5)[:, None], (1, 1), "SAME")


def attended(x, w):
    heads = inp.stack([x, x * 2, x + 1])[..., None] * inp.ones(4)
    return nn.dot_product_attention(heads, heads, heads, is_causal=True)


def classified(x, w):
    logits, labels = x @ w, inp.argmax(x, 1)
    shifted = logits - logits.max(1, keepdims=True)
    return (inp.log(inp.exp(shifted).sum(1)) - inp.take_along_axis(shifted, labels[:, None], 1)[:, 0]).mean()


# x is (n, m) and w (m, m).
FUNCTIONS = {
    "elementwise": lambda x, w: inp.where(x > 0, inp.exp(x), x * w[0]),
    "dot": lambda x, w: x @ w,
    "dots": lambda x, w: inp.tanh(x @ w) @ w.T,
    "gram": lambda x, w: x.T @ x,
    "sum": lambda x, w: ((x * w[0]).sum(0), x.sum(), w.mean(1), x.var(), inp.std(x, 0)),
    "extrema": lambda x, w: (x.max(0), inp.min(w), x.max()),
    "positions": lambda x, w: (inp.argmax(x, 1), inp.argmax(w, 0), inp.argmin(x, 0), inp.argmin(x > 0)),
    "product": lambda x, w: ((1 + x / 9).prod(0), w[:2].prod()),
    "logic": lambda x, w: ((x > -2).all(0), (x > -2).all(), (w > 2).any(1)),
    "bits": lambda x, w: lax.reduce_xor((x * 100).astype(int), (0,)),
    "softmax": lambda x, w: inp.exp(x - x.max(-1, keepdims=True)) / inp.exp(x).sum(0),
    "reshape": lambda x, w: (x.reshape(-1), x[..., None].reshape(x.shape[0], 1, -1), w.reshape(1, -1)),
    "transpose": lambda x, w: (x.T, w.T),
    "broadcast": lambda x, w: x[:, None, :] * w[None],
    "slice": lambda x, w: (x[1:4], w[:, 1:4:2], w[3], x[-1], x[:, :1]),
    "reverse": lambda x, w: (x[::-1], w[::-1, ::-1]),
    "pad": lambda x, w: (inp.pad(x, ((1, 2), (0, 0))), lax.pad(w, 2.0, ((3, 1, 1), (0, 0, 0)))),
    "concatenate": lambda x, w: inp.concatenate([x, w, x]),
    "iota": lambda x, w: x + inp.arange(x.shape[1], dtype="float32") + inp.arange(x.size).reshape(x.shape),
    "dynamic slice": lambda x, w: lax.dynamic_slice(x, (inp.argmax(w[0]), 0), (3, x.shape[1])),
    "dynamic row": lambda x, w: lax.dynamic_update_slice(x, w[:1], (inp.argmax(w[0]) - 1, 0)),
    "dynamic update": lambda x, w: lax.dynamic_update_slice(x, w[:2], (inp.argmax(w[0]), 0)),
    "rows": lambda x, w: x[inp.argmax(w, 1)],
    "clipped rows": lambda x, w: inp.take(x, inp.argmax(w, 1) * 3 - 4, axis=0, mode="clip"),
    "filled rows": lambda x, w: inp.take(x, inp.argmax(w, 1) * 3, axis=0, mode="fill"),
    "zero rows": lambda x, w: inp.take(x, inp.arange(-2, 11), axis=0, mode="fill", fill_value=0),
    "along axis": lambda x, w: inp.take_along_axis(x, inp.argmax(x, 1)[:, None], axis=1),
    "scatter": lambda x, w: (
        x.at[inp.argmax(w, 1) % 3].add(w), x.at[inp.argmax(w, 1)].max(w), x.at[0].set(w[1]),
    ),
    "sort": lambda x, w: (inp.sort(w, axis=1), inp.sort(x, axis=0)),
    "argsort": lambda x, w: (inp.argsort(x, axis=0), inp.argsort(inp.floor(w * 2), axis=1)),
    "top_k": lambda x, w: (lax.top_k(x, 3), lax.top_k(w.T, 2)),
    "running": lambda x, w: (
        inp.cumsum(x, 0), lax.cumsum(x, 1, reverse=True), inp.cumprod(w, 1), lax.cumprod(w, 0, reverse=True),
    ),
    "running extrema": lambda x, w: (lax.cummax(x, 0), lax.cummin(w, 0, reverse=True)),
    "running logs": lambda x, w: lax.cumlogsumexp(x, 0, reverse=True),
    "scan": scanned,
    "while": looped,
    "cond": lambda x, w: lax.cond(x.sum() > w.sum(), lambda a: a @ w, lambda a: inp.exp(a), x),
    "switch": lambda x, w: lax.switch(
        inp.argmax(x[0] + w[0]) % 3, [lambda a: a + 1, lambda a: a.sum(0) * a, lambda a: a - w[0]], x
    ),
    "accumulated gradients": accumulated,
    "checkpoint": lambda x, w: inf.checkpoint(lambda a: inp.sin(a @ w))(x),
    "vmap": lambda x, w: inf.vmap(lambda row: inp.outer(row, row) @ w)(x),
    "jvp": lambda x, w: inf.jvp(lambda a: inp.tanh(a @ w), (x,), (x * x,))[1],
    "hessian": lambda x, w: inf.vmap(inf.hessian(lambda row: (inp.tanh(row @ w) ** 2).sum()))(x),
    "random": lambda x, w: x + random.normal(random.PRNGKey(3), x.shape),
    "rms_norm": lambda x, w: lax.rms_norm(x, w[0]),
    "fft": lambda x, w: inp.fft.fft(x).real,
    "inverse": lambda x, w: inp.linalg.inv(w + x[:, :1, None] + 9 * inp.eye(w.shape[0])),
    "singular values": lambda x, w: inp.linalg.svd(w * x[:, :1, None])[1],
    "convolution": convolved,
    "windows": lambda x, w: lax.reduce_window(x, 0.0, lax.add, (3, 3), (1, 1), "SAME"),
    "attention": attended,
    "cross entropy": classified,
}  # fmt: skip
DIFFERENTIABLE = [
    "elementwise", "dot", "dots", "sum", "extrema", "product", "softmax", "reshape", "broadcast", "slice",
    "reverse", "pad", "concatenate", "dynamic slice", "dynamic update", "rows", "filled rows", "along axis",
    "scatter", "sort", "top_k", "running", "running logs", "scan", "cond", "checkpoint", "vmap",
    "convolution", "attention", "cross entropy", "rms_norm",
]  # fmt: skip
# Sizes n and m of arrays, and of meshes; with 5 over 4 and 5 over 8 there are devices that hold nothing.
SIZES = [(7, 5, (2, 2)), (5, 13, (4, 1)), (13, 5, (8, 1)), (5, 7, (4, 2))]
SPECS = [P("a"), P(None, "a"), P("b", "a"), P(("a", "b")), P(None, ("b", "a")), P()]


def cases(name, count):
    """Some placements on some meshes, other ones for each function."""
    every = list(itertools.product(SIZES, SPECS, SPECS))
    start, step = sum(map(ord, name)), 41  # prime to the number of all
    return [every[(start + step * i) % len(every)] for i in range(count)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_equal_those_of_one_device(name):
    for (n, m, mesh), x_spec, w_spec in cases(name, 8):
        assert_same(FUNCTIONS[name], [array(n, m), array(m, m)], [x_spec, w_spec], mesh)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_equal_those_of_one_device(name):
    for (n, m, mesh), x_spec, w_spec in cases(name, 4):
        f = gradient_of(FUNCTIONS[name], 2)
        assert_same(f, [array(n, m), array(m, m)], [x_spec, w_spec], mesh)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "float16", "complex64"])
def test_tails_of_every_kind_of_number_are_filled(dtype):
    def f(x):
        found = [x.sum(0), x[::-1], inp.sort(x, 0), inp.cumsum(x, 0)]
        if dtype not in ("bool", "complex64"):
            found += [x.max(0), x.min(0), x.prod(0), inp.argmin(x, 0), lax.cummin(x, 0, reverse=True)]
            found += [lax.top_k(x, 2, axis=0)]
        return found

    assert_same(f, [(array(7, 3) * 3 + 3).astype(dtype)], [P("a")], (4,))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
def test_what_orders_last_is_not_mistaken_for_a_tail(value):
    x = np.full((5, 2), value, np.float32)
    x[1, 1] = 3

    def f(x):
        positions = lax.iota("int32", 5)[:, None] * inp.ones((1, 2), "int32")
        ordered = lax.sort((x, positions), dimension=0, num_keys=1)
        return ordered, lax.top_k(x, 4, axis=0), inp.argmax(x, 0), inp.argmin(x, 0), x.max(0), x.min(0)

    assert_same(f, [x], [P("a")], (4,), exact=True)


def test_every_backend_computes_with_tails(backend_name):
    with inf.config(device=backend_name):
        for name in ("scan", "cross entropy", "rows"):
            x, w = array(7, 5), array(5, 5)
            assert_same(gradient_of(FUNCTIONS[name], 2), [x, w], [P("a"), P(None, "a")], (4,))


# --- what is communicated ------------------------------------------------------------------------


def test_elementwise_operations_keep_tails():
    assert counts(lambda x: inp.tanh(x) * 2 + x, [array(7, 5)], [P("a", "b")], (2, 2)) == {}


def test_a_contracted_dimension_is_added_up_over_devices():
    made = counts(lambda x, w: x @ w, [array(3, 7), array(7, 5)], [P(None, "a"), P("a")], (4,))
    assert made == {"psum": 1}


def test_a_carry_stays_split():
    def f(x, w):
        return lax.scan(lambda carry, _: (inp.tanh(carry @ w), None), x, None, length=3)[0]

    assert counts(f, [array(7, 5), array(5, 5)], [P("a"), P()], (4,)) == {}


def test_a_gradient_is_scattered_to_where_its_parameter_is():
    def step(w, x):
        return w - inf.grad(lambda w: inp.sin(x @ w).sum())(w)

    made = counts(step, [array(7, 5), array(8, 7)], [P("a"), P("a")], (4,))
    assert made == {"all_gather": 1, "psum_scatter": 1}


def test_what_cannot_keep_a_tail_is_gathered():
    made = counts(lambda x: inp.concatenate([x, inp.ones(4)]), [array(7)], [P("a")], (4,))
    assert made == {"all_gather": 1}


def test_moving_a_split_to_another_dimension_is_one_exchange():
    columns = NamedSharding(make_mesh((4,), ("a",)), P(None, "a"))
    made = counts(lambda x: lax.with_sharding_constraint(x, columns), [array(7, 5)], [P("a")], (4,))
    assert made == {"all_to_all": 1}


def test_predicted_collectives_are_those_that_run():
    mesh = make_mesh((4,), ("a",))
    f = inf.shard(inf.grad(classified, argnums=1), mesh=mesh, in_specs=(P(), P(None, "a")), out_specs=P("a"))
    shown = explain_sharding(f, array(5, 7), array(7, 7))
    with count_collectives() as made:
        f(array(5, 7), array(7, 7))
    assert made == predicted(shown.found)
    assert "argument 1: f32[7,7] P(None, 'a') in parts of up to f32[7,2]" in shown
    assert "result 0: f32[7,7] P('a') in parts of up to f32[2,7]" in shown


# --- at the boundary -----------------------------------------------------------------------------


def placed(x, spec=SPECS[0], sizes=(4,)):
    return inf.device_put(x, NamedSharding(make_mesh(sizes, ("a", "b")[: len(sizes)]), spec))


def test_parts_hold_what_is_there():
    x = array(5, 3)
    shards = placed(x).addressable_shards
    assert [s.data.shape for s in shards] == [(2, 3), (2, 3), (1, 3), (0, 3)]
    for shard in shards:
        np.testing.assert_array_equal(np.asarray(shard.data), x[shard.index])


def test_buffers_are_of_one_size_and_tails_show_when_they_are_read():
    x = placed(array(5))
    part = x.type.update(shape=x.sharding.shard_shape(x.shape))
    held = [d.backend.get(b, part) for d, b in zip(x.addressable_devices, x.buffers, strict=True)]
    assert [np.isnan(h).sum() for h in held] == [0, 0, 1, 2]


def test_an_element_on_one_of_many_devices_is_not_replicated():
    x = placed(np.ones(1, np.float32))
    assert not x.is_fully_replicated
    np.testing.assert_array_equal(np.asarray(x + 1), [2])


def test_arrays_move_between_all_placements():
    x = array(7, 5)
    for sizes in ((2, 2), (4, 2)):
        for first, second in itertools.permutations(SPECS, 2):
            moved = placed(placed(x, first, sizes), second, sizes)
            assert moved.sharding.spec == second
            np.testing.assert_array_equal(np.asarray(moved), x)


def test_arrays_move_between_meshes():
    x = array(7, 5)
    for first, second in itertools.permutations(
        [((4,), P("a")), ((2, 4), P("b", "a")), ((8,), P(None, "a"))], 2
    ):
        moved = placed(placed(x, first[1], first[0]), second[1], second[0])
        np.testing.assert_array_equal(np.asarray(moved), x)


def test_callbacks_are_asked_for_what_is_there():
    x, asked = array(5), []
    where = NamedSharding(make_mesh((4,), ("a",)), P("a"))
    made = inf.make_array_from_callback((5,), where, lambda index: asked.append(index[0]) or x[index])
    assert [(s.start, s.stop) for s in asked] == [(0, 2), (2, 4), (4, 5), (5, 5)]
    np.testing.assert_array_equal(np.asarray(made), x)


def test_arrays_are_made_of_local_data_and_of_parts():
    x = array(5, 2)
    where = NamedSharding(make_mesh((4,), ("a",)), P("a"))
    local = inf.make_array_from_process_local_data(where, x, (5, 2))
    parts = [s.data for s in local.addressable_shards]
    made = inf.make_array_from_single_device_arrays((5, 2), where, parts)
    np.testing.assert_array_equal(np.asarray(made), x)


def test_a_part_with_a_tail_is_refused():
    where = NamedSharding(make_mesh((2,), ("a",)), P("a"))
    parts = [inf.device_put(array(2), d) for d in where.mesh.local_devices]
    with pytest.raises(ValueError, match="another type than it should"):
        inf.make_array_from_single_device_arrays((3,), where, parts)


def test_donated_arrays_with_tails_are_deleted():
    x = placed(array(7))
    found = inf.jit(lambda x: x + 1, donate_argnums=0)(x)
    assert x.is_deleted()
    np.testing.assert_array_equal(np.asarray(found), array(7) + 1)


def test_shard_map_takes_equal_parts_only():
    f = inf.shard_map(lambda x: x, mesh=make_mesh((4,), ("a",)), in_specs=P("a"), out_specs=P("a"))
    with pytest.raises(ValueError, match="dimension 0 of size 7 cannot be split into 4 equal parts"):
        f(array(7))


def test_a_body_that_is_split_by_hand_along_one_axis_is_split_unevenly_along_others():
    mesh = make_mesh((2, 4), ("a", "b"))
    f = inf.shard_map(
        lambda x, w: lax.psum(inp.tanh(x) @ w, "a"), mesh=mesh, in_specs=(P(None, "a"), P("a")),
        out_specs=P(), axis_names={"a"},
    )  # fmt: skip
    x, w = array(5, 6), array(6, 7)
    for x_spec, w_spec in [(P("b"), P()), (P("b", "a"), P("a", "b")), (P(), P(None, "b")), (P("a"), P("b"))]:
        found = inf.jit(f)(placed(x, x_spec, (2, 4)), placed(w, w_spec, (2, 4)))
        np.testing.assert_allclose(np.asarray(found), np.tanh(x) @ w, rtol=1e-5, atol=1e-5)


def test_checkpoints_hold_no_tails(tmp_path):
    state = {"w": placed(array(7, 5)), "b": placed(array(1))}
    checkpoints.save(tmp_path, state, 1).wait()
    for sizes, spec in [((8,), P("a")), ((2,), P("a")), ((2, 2), P("a")), ((4,), P())]:
        where = NamedSharding(make_mesh(sizes, ("a", "b")[: len(sizes)]), spec)
        like = {name: inf.ShapeDtypeStruct(x.shape, x.dtype, sharding=where) for name, x in state.items()}
        for name, found in checkpoints.load(tmp_path, like).items():
            np.testing.assert_array_equal(np.asarray(found), np.asarray(state[name]))
