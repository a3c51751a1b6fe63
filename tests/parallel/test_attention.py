"""Attention over a mesh: by batch and heads nothing is communicated; by queries, devices need all keys."""

from collections import Counter

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax, nn
from infini.compiler import partition
from infini.core import check
from infini.core.mesh import AbstractMesh
from infini.sharding import NamedSharding, P, make_mesh

MESH = AbstractMesh(("dp", "tp"), (2, 2))
HEADS, ROWS = P("dp", None, "tp"), P("dp", "tp")


def attend(q, k, v, *extras, **options):
    names = ("bias", "mask")[: len(extras)]
    return nn.dot_product_attention(q, k, v, **dict(zip(names, extras, strict=True)), **options)


def gradients(q, k, v, *extras, **options):
    loss = lambda *args: inp.sin(attend(*args, *extras, **options)).sum()  # noqa: E731
    return inf.grad(loss, argnums=(0, 1, 2))(q, k, v)


def causal(f):
    return lambda *args: f(*args, is_causal=True)


def operands(heads=4, key_heads=2):
    x = np.random.default_rng(0).standard_normal((3, 4, 8, 4, 4)).astype(np.float32)
    return x[0][:, :, :heads], x[1][:, :, :key_heads], x[2][:, :, :key_heads]


def counts(f, args, specs):
    found = partition.partition(inf.make_jaxpr(f)(*args), MESH, [tuple(s) for s in specs])
    check.check(found.program)
    return dict(Counter(c.name for c in found.collectives)), found


@pytest.mark.parametrize("f", [attend, gradients, causal(attend), causal(gradients)])
def test_batch_and_heads_are_split_for_nothing(f):
    found, partitioned = counts(f, operands(), [HEADS] * 3)
    assert found == {}
    assert set(partitioned.out_specs) == {tuple(HEADS)}


def test_groups_of_queries_that_share_a_key_head_are_split_for_nothing():
    found, partitioned = counts(causal(attend), operands(key_heads=1), [HEADS, P("dp"), P("dp")])
    assert found == {}
    assert partitioned.out_specs == (tuple(HEADS),)


def test_gradients_of_shared_keys_are_sums_over_the_groups():
    found, partitioned = counts(causal(gradients), operands(key_heads=1), [HEADS, P("dp"), P("dp")])
    assert found == {"psum": 2}
    assert partitioned.out_specs == (tuple(HEADS), ("dp",), ("dp",))


def test_rows_are_split_where_every_device_has_all_keys():
    found, partitioned = counts(causal(attend), operands(), [ROWS, P("dp"), P("dp")])
    assert found == {}
    assert partitioned.out_specs == (tuple(ROWS),)


def test_split_keys_are_gathered():
    found, _ = counts(causal(attend), operands(), [ROWS] * 3)
    assert found == {"all_gather": 2}


BIAS = np.linspace(-1, 1, 4 * 8 * 8, dtype=np.float32).reshape(4, 1, 8, 8)
MASK = np.random.default_rng(1).random((1, 4, 8, 8)) < 0.8
OPTIONS = {
    "causal": ((), {"is_causal": True}),
    "window": ((), {"local_window_size": (2, 1)}),
    "bias and mask": ((BIAS, MASK | np.eye(8, dtype=bool)), {}),
    "mask and band": ((BIAS, MASK | np.eye(8, dtype=bool)), {"is_causal": True}),
}


@pytest.mark.parametrize("specs", [[HEADS] * 3, [ROWS, P("dp"), P("dp")], [ROWS] * 3], ids=["h", "q", "qk"])
@pytest.mark.parametrize("name", OPTIONS)
def test_sharded_attention_equals_unsharded(name, specs):
    extras, options = OPTIONS[name]

    def f(q, k, v):
        return attend(q, k, v, *extras, **options), gradients(q, k, v, *extras, **options)

    with inf.config(device="reference", cpu_devices=4, check=1):
        expected, expected_gradients = inf.jit(f)(*operands())
        mesh = make_mesh((2, 2), ("dp", "tp"))
        placed = [inf.device_put(x, NamedSharding(mesh, s)) for x, s in zip(operands(), specs, strict=True)]
        found, found_gradients = inf.jit(f)(*placed)
        for a, b in zip((found, *found_gradients), (expected, *expected_gradients), strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)


def test_vmapped_attention_is_split_along_its_loop():
    q, k, v = (np.stack([x, x * 2]) for x in operands())
    specs = [P("dp", "tp")] * 3
    found, partitioned = counts(inf.vmap(causal(gradients)), (q, k, v), specs)
    assert found == {}
    assert set(partitioned.out_specs) == {("dp", "tp")}


# --- a transformer that is written with it ----------------------------------------------------

LAYERS = 2


def layer(params, x):
    batch, rows, _ = x.shape
    normed = lax.rms_norm(x, params["norm"]) if "norm" in params else x
    q, k, v = (
        (normed @ params[name]).reshape(batch, rows, heads, 4)
        for name, heads in (("q", 4), ("k", 2), ("v", 2))
    )
    mixed = attend(q, k, v, is_causal=True).reshape(batch, rows, 16)
    x = x + mixed @ params["o"]
    return x + inp.tanh(x @ params["up"]) @ params["down"]


def forward(layers, x):
    for params in layers:
        x = layer(params, x)
    return x


def layers_and_specs(has_norm):
    shapes = {"q": (16, 16), "k": (16, 8), "v": (16, 8), "o": (16, 16), "up": (16, 32), "down": (32, 16)}
    if has_norm:
        shapes["norm"] = (16,)
    random = np.random.default_rng(2)
    layers = [{n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}] * LAYERS
    rows, columns = {"o", "down"}, {"q", "k", "v", "up"}
    specs = {n: P("tp") if n in rows else P(None, "tp") if n in columns else P() for n in shapes}
    return layers, [specs[n] for _ in range(LAYERS) for n in sorted(shapes)]


@pytest.mark.parametrize("has_norm", [True, False])
def test_a_layer_forwards_has_two_sums_over_the_heads(has_norm):
    layers, specs = layers_and_specs(has_norm)
    found, _ = counts(forward, (layers, np.ones((4, 8, 16), np.float32)), [*specs, P("dp")])
    assert found == {"psum": 2 * LAYERS}


@pytest.mark.parametrize("has_norm", [True, False])
def test_a_layer_backwards_has_two_sums_over_the_heads(has_norm):
    layers, specs = layers_and_specs(has_norm)
    backward = inf.grad(lambda layers, x: inp.sin(forward(layers, x)).sum(), argnums=(0, 1))
    found, partitioned = counts(backward, (layers, np.ones((4, 8, 16), np.float32)), [*specs, P("dp")])
    by_axes = Counter((c.name, c.axes) for c in partitioned.collectives)
    assert by_axes[("psum", ("tp",))] == 4 * LAYERS  # two forwards, two backwards
    assert found == {"psum": 4 * LAYERS + len(specs)}  # and the gradient of every parameter, over the batch
