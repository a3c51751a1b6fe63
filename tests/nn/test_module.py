"""Modules: frozen, pytrees, keys of state dictionaries, refusals, containers, running statistics."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import lax, nn, random, tree
from infini.core import errors

KEY = random.key(0)


class Block(nn.Module):
    """A module of a user: a constructor, a static field, containers."""

    layers: list[nn.Linear]
    scales: dict[str, inp.ndarray]
    name: str = nn.field(static=True, default="block")

    def __init__(self, width: int, *, key: random.KeyArray) -> None:
        self.layers = [nn.Linear(width, width, key=one) for one in random.split(key)]
        self.scales = {"a": inp.ones(width), "b": inp.zeros(())}

    def __call__(self, x: inp.ndarray) -> inp.ndarray:
        for layer in self.layers:
            x = inp.tanh(layer(x)) * self.scales["a"] + self.scales["b"]
        return x


class Pair(nn.Module):
    """A module with the constructor of a dataclass."""

    first: inp.ndarray
    second: nn.Linear | None = None


def test_a_module_is_a_frozen_dataclass() -> None:
    layer = nn.Linear(2, 3, key=KEY)
    assert dataclasses.is_dataclass(layer)
    with pytest.raises(dataclasses.FrozenInstanceError, match="replace"):
        layer.bias = None
    with pytest.raises(nn.FrozenModuleError):
        del layer.bias
    assert layer.replace(bias=None).bias is None and layer.bias is not None


def test_a_module_is_a_pytree_and_keeps_its_static_fields() -> None:
    block = tree.map(lambda x: x + 1, Block(3, key=KEY))
    assert block.name == "block" and block.scales["a"].tolist() == [2, 2, 2]
    assert len(tree.leaves(block)) == 6


def test_derivatives_have_the_structure_of_the_module() -> None:
    block, x = Block(3, key=KEY), inp.ones((2, 3))
    slopes = infini.grad(lambda m: m(x).sum())(block)
    assert tree.structure(slopes) == tree.structure(block)
    step = 1e-2
    moved = block.replace(scales=block.scales | {"b": inp.asarray(step)})
    other = block.replace(scales=block.scales | {"b": inp.asarray(-step)})
    numeric = (moved(x).sum() - other(x).sum()) / (2 * step)
    assert float(slopes.scales["b"]) == pytest.approx(float(numeric), rel=1e-2)


def test_integer_leaves_have_no_derivative_until_they_are_partitioned() -> None:
    model = Pair(inp.arange(3), nn.Linear(3, 3, key=KEY))
    loss = lambda m: (m.second(m.first * 1.0)).sum()  # noqa: E731
    with pytest.raises(TypeError):
        infini.grad(loss)(model)
    floats, rest = nn.partition(model, nn.is_inexact_array)
    slopes = infini.grad(lambda floats: loss(nn.combine(floats, rest)))(floats)
    assert slopes.first is None and slopes.second.weight.tolist() == [[0, 1, 2]] * 3


def test_jit_traces_again_only_when_the_structure_changes() -> None:
    traces = []

    @infini.jit
    def run(model: nn.Module, x: inp.ndarray) -> inp.ndarray:
        traces.append(model)
        return model(x)

    x = inp.ones((2, 3))
    for key in random.split(KEY, 3):
        run(nn.Linear(3, 3, key=key), x)
    run(nn.Linear(3, 3, bias=False, key=KEY), x)
    assert len(traces) == 2


def test_modules_are_stacked_by_vmap_and_scanned() -> None:
    keys = random.split(KEY, 4)
    stack = infini.vmap(lambda key: nn.Linear(3, 3, key=key))(keys)
    found, _ = lax.scan(lambda x, layer: (layer(x), None), inp.ones(3), stack)
    wanted = inp.ones(3)
    for key in keys:
        wanted = nn.Linear(3, 3, key=key)(wanted)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_shapes_of_a_module_need_no_memory() -> None:
    shapes = infini.eval_shape(lambda: Block(3, key=KEY))
    assert shapes.layers[0].weight.shape == (3, 3)
    loaded = shapes.load_state_dict(Block(3, key=KEY).state_dict())
    assert loaded(inp.ones(3)).shape == (3,)


def test_copies_and_pickles_are_equal() -> None:
    block = Block(3, key=KEY)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        np.testing.assert_array_equal(other(inp.ones(3)), block(inp.ones(3)))


def test_keys_of_a_state_dictionary_are_those_of_pytorch() -> None:
    assert list(Block(2, key=KEY).state_dict()) == [
        "layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias", "scales.a", "scales.b",
    ]  # fmt: skip
    assert list(nn.ModuleDict({"x": nn.PReLU(), "y": nn.ReLU()}).state_dict(prefix="m.")) == ["m.x.weight"]
    assert list(nn.ModuleList([nn.PReLU(), nn.PReLU()]).state_dict()) == ["0.weight", "1.weight"]


def test_names_of_modules_and_parameters() -> None:
    block = Block(2, key=KEY)
    assert [name for name, _ in block.named_modules()] == ["", "layers.0", "layers.1"]
    assert [name for name, _ in block.named_children()] == ["layers.0", "layers.1"]
    assert len(block.parameters()) == len(block.named_parameters()) == 6
    assert block.modules()[1:] == block.children()


def test_loading_gives_a_new_module_in_its_own_dtypes() -> None:
    layer = nn.Linear(2, 1, dtype="bfloat16", key=KEY)
    loaded = layer.load_state_dict({"weight": np.array([[1.0, 2.0]]), "bias": np.array([3.0])})
    assert loaded.weight.dtype == inp.bfloat16 and loaded(inp.ones(2, "bfloat16")).tolist() == [6.0]
    assert layer.weight is not loaded.weight


def test_loading_lists_all_that_does_not_fit() -> None:
    with pytest.raises(errors.ValueMismatchError) as caught:
        nn.Linear(2, 3, key=KEY).load_state_dict({"weight": np.ones((2, 2)), "scale": np.ones(1)})
    for words in ("missing: bias", "unexpected: scale", "shape of weight: (2, 2), expected (3, 2)"):
        assert words in str(caught.value)


def test_loading_that_is_not_strict_keeps_the_rest() -> None:
    layer = nn.Linear(2, 1, key=KEY)
    loaded = layer.load_state_dict({"bias": np.array([7.0]), "other": np.ones(1)}, strict=False)
    assert loaded.bias.tolist() == [7] and loaded.weight is layer.weight
    with pytest.raises(errors.ValueMismatchError, match="shape of bias"):
        layer.load_state_dict({"bias": np.ones(2)}, strict=False)


def test_dtype_and_device_change_by_to() -> None:
    model = Pair(inp.arange(3), nn.Linear(3, 3, key=KEY))
    narrow = model.to(dtype="bfloat16")
    assert narrow.second.weight.dtype == inp.bfloat16 and narrow.first.dtype == inp.int32
    assert model.to("float64").second.bias.dtype == inp.float64
    assert model.to(infini.devices()[0]).second.bias.committed


@pytest.mark.parametrize("name", ["reference", "reference:0"])
def test_a_name_of_a_device_is_a_device(name: str) -> None:
    layer = nn.Linear(2, 2, key=KEY)
    (device,) = infini.devices("reference")
    assert layer.to(name).weight.device == device
    moved = layer.to(name, "bfloat16").bias
    assert (moved.device, moved.dtype) == (device, inp.bfloat16)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (("cpu:99",), errors.DeviceError, "no device 'cpu:99'"),
        (("cpu:x",), errors.DeviceError, "no device 'cpu:x'"),
        (("tpu:0",), errors.DeviceError, "no backend called 'tpu'"),
        (("float32", "bfloat16"), errors.DeviceError, "no backend called 'float32'"),
        (("tpu",), errors.TypeMismatchError, "neither a device nor a dtype"),
        ((0,), errors.TypeMismatchError, "neither a device nor a dtype"),
        ((None, "cpu:0"), errors.TypeMismatchError, "not a dtype"),
    ],
)
def test_what_is_neither_a_device_nor_a_dtype_is_an_error(given, error, message) -> None:
    with pytest.raises(error, match=message):
        nn.Linear(2, 2, key=KEY).to(*given)


def test_parameters_are_made_on_a_device_of_a_name() -> None:
    (device,) = infini.devices("reference")
    assert nn.Linear(2, 2, device="reference:0", key=KEY).weight.device == device


def test_arrays_take_no_names() -> None:
    with pytest.raises(errors.TypeMismatchError, match="no place for an array"):
        infini.device_put(inp.ones(2), "cpu:0")
    with pytest.raises(errors.TypeMismatchError, match="takes a device"):
        inp.ones(2).to_device("cpu:0")


def test_text_of_a_module() -> None:
    assert repr(nn.Linear(2, 3, bias=False, key=KEY)) == (
        "Linear(weight=f32[3,2], bias=None, in_features=2, out_features=3)"
    )
    assert repr(nn.Sequential(nn.ReLU(), nn.Sequential(nn.Dropout(0.1), nn.relu))) == (
        "Sequential(\n  (0): ReLU()\n  (1): Sequential(\n"
        "    (0): Dropout(p=0.1)\n    (1): Lambda(fn=relu)\n  )\n)"
    )


@pytest.mark.parametrize(
    ("fields", "constructor", "words"),
    [
        ({"x": inp.ndarray}, lambda self: None, "did not set the field 'x'"),
        ({"x": inp.ndarray}, lambda self: setattr(self, "y", 1), "has no field 'y'"),
        ({"x": inp.ndarray}, lambda self: setattr(self, "x", "text"), "neither an array nor a module"),
        ({"x": inp.ndarray}, lambda self: setattr(self, "x", [nn.relu]), "nn.Lambda"),
    ],
)
def test_constructors_are_checked(fields: dict, constructor, words: str) -> None:
    cls = type("Made", (nn.Module,), {"__annotations__": fields, "__init__": constructor})
    with pytest.raises(errors.TypeMismatchError, match=words):
        cls()


def test_static_fields_have_to_be_hashable() -> None:
    class Bad(nn.Module):
        sizes: list[int] = nn.field(static=True)

    with pytest.raises(errors.TypeMismatchError, match="hashable"):
        Bad([1, 2])


def test_a_constructor_above_is_used_and_may_be_called() -> None:
    class Base(nn.Module):
        x: inp.ndarray

        def __init__(self, size: int) -> None:
            self.x = inp.ones(size)

    class Same(Base):
        def total(self) -> inp.ndarray:
            return self.x.sum()

    class More(Base):
        y: inp.ndarray

        def __init__(self, size: int) -> None:
            super().__init__(size)
            self.y = 2 * self.x

    assert float(Same(3).total()) == 3 and More(2).y.tolist() == [2, 2]


# --- filters ---


def test_tree_at_replaces_leaves_and_nodes() -> None:
    block = Block(2, key=KEY)
    moved = nn.tree_at(lambda m: (m.layers[0].bias, m.scales["b"]), block, (inp.ones(2), inp.ones(())))
    assert moved.layers[0].bias.tolist() == [1, 1] and float(moved.scales["b"]) == 1
    shorter = nn.tree_at(lambda m: m.layers, block, replace_fn=lambda layers: layers[:1])
    assert len(shorter.layers) == 1 and shorter.layers[0].weight is block.layers[0].weight
    with_bias = nn.tree_at(
        lambda m: m.bias, nn.Linear(1, 1, bias=False, key=KEY), inp.ones(1), is_leaf=lambda x: x is None
    )
    assert with_bias.bias.tolist() == [1]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"replace": 1, "replace_fn": abs}, {"replace": (1, 2)}],
    ids=["none", "both", "too many"],
)
def test_tree_at_refuses_what_does_not_fit(arguments: dict) -> None:
    with pytest.raises(errors.ValueMismatchError, match="tree_at"):
        nn.tree_at(lambda t: [t["a"]], {"a": inp.ones(1), "b": inp.ones(1)}, **arguments)


def test_tree_at_refuses_nodes_of_other_trees() -> None:
    with pytest.raises(errors.ValueMismatchError, match="name nodes"):
        nn.tree_at(lambda t: inp.ones(1), {"a": inp.ones(1)}, inp.zeros(1))


def test_filter_takes_prefixes() -> None:
    model = {"a": [inp.ones(1), inp.arange(2)], "b": inp.ones(2)}
    kept = nn.filter(model, {"a": nn.is_inexact_array, "b": False})
    assert kept["a"][0] is model["a"][0] and kept["a"][1] is None and kept["b"] is None
    assert nn.filter(model, nn.is_array, inverse=True, replace=0) == {"a": [0, 0], "b": 0}


# --- noise and statistics ---


def test_dropout_needs_a_key_and_keeps_the_mean() -> None:
    drop, x = nn.Dropout(0.25), inp.ones(4000)
    assert drop(x) is x and drop(x, key=KEY, training=False) is x
    dropped = drop(x, key=KEY)
    assert set(np.unique(dropped).tolist()) == {0.0, np.float32(4 / 3)}
    assert float(dropped.mean()) == pytest.approx(1, abs=0.05)
    with pytest.raises(errors.ValueMismatchError, match="needs a key"):
        drop(x, training=True)
    with pytest.raises(errors.ValueMismatchError, match="probability"):
        nn.Dropout(1.5)


def test_channel_dropout_drops_whole_channels() -> None:
    dropped = np.asarray(nn.Dropout2d(0.5)(inp.ones((8, 16, 3, 3)), key=KEY))
    sums = dropped.sum((2, 3))
    assert set(np.unique(sums).tolist()) == {0, 18}


def test_alpha_dropout_keeps_mean_and_variance() -> None:
    x = random.normal(KEY, (20000,))
    dropped = np.asarray(nn.AlphaDropout(0.3)(x, key=random.key(1)))
    assert abs(dropped.mean()) < 0.05 and abs(dropped.std() - 1) < 0.05


def test_a_sequence_splits_keys_and_threads_statistics() -> None:
    first, second = random.split(KEY)
    model = nn.Sequential(
        nn.Linear(3, 4, key=first),
        nn.BatchNorm1d(4),
        nn.Dropout(),
        nn.Sequential(nn.Dropout(), nn.Linear(4, 2, key=second)),
    )
    state, x = nn.initial_state(model), random.normal(KEY, (6, 3))
    run = infini.jit(lambda state, key: model(x, state, key=key, training=True))
    y, after = run(state, first)
    assert y.shape == (6, 2) and list(after) == ["1"] and int(after["1"]["num_batches_tracked"]) == 1
    quiet, same = model(x, after, training=False)
    assert quiet.shape == (6, 2) and same is not after and same["1"] is after["1"]
    with pytest.raises(errors.ValueMismatchError, match="layer 1 has running statistics"):
        model(x)


def test_statistics_of_a_model_are_found_by_the_names_of_modules() -> None:
    class Net(nn.Module):
        norms: list[nn.BatchNorm1d]
        head: nn.Sequential

        def __init__(self) -> None:
            self.norms = [nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False)]
            self.head = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(2))

    state = nn.initial_state(Net())
    assert list(Net().state_dict(state))[-3:] == [f"head.1.{name}" for name in state["head"]["1"]]
    assert list(state["norms"]) == ["0"]
    keys = Net().state_dict(state)
    assert Net().load_state_dict(keys).norms[0].weight.shape == (2,)  # statistics may come along
    _, loaded = Net().load_state_dict(keys | {"norms.0.running_var": np.array([5.0, 6.0])}, state)
    assert loaded["norms"]["0"]["running_var"].tolist() == [5, 6]


def test_running_statistics_get_no_derivative() -> None:
    norm, x = nn.BatchNorm1d(2), random.normal(KEY, (5, 2))

    def loss(norm: nn.BatchNorm1d) -> inp.ndarray:
        _, state = norm(x, norm.initial_state(), training=True)
        return state["running_mean"].sum()

    assert infini.grad(loss)(norm).weight.tolist() == [0, 0]


# --- layers ---


def test_results_have_the_dtype_of_the_operand() -> None:
    x = inp.ones((2, 4), "bfloat16")
    for layer in (nn.LayerNorm(4, dtype="bfloat16"), nn.RMSNorm(4, dtype="bfloat16"), nn.LayerNorm(4)):
        assert layer(x).dtype == inp.bfloat16


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: nn.Linear(3, 2, key=KEY)(inp.ones((2, 4))), "size 3 of dimension -1"),
        (lambda: nn.Embedding(3, 2, key=KEY)(inp.ones(2)), "takes integers"),
        (lambda: nn.LayerNorm((2, 3))(inp.ones((3, 3))), "normalized_shape"),
        (lambda: nn.BatchNorm2d(3)(inp.ones((2, 3)), {}, training=True), "number of dimensions"),
        (lambda: nn.LSTM(3, 2, key=KEY)(inp.ones((1, 2, 3)), (inp.ones((1, 1, 2)),) * 2), "another shape"),
        (lambda: nn.LSTM(3, 2, key=KEY)(inp.ones(3)), "number of dimensions"),
        (lambda: nn.Linear(3, 2, dtype="int32", key=KEY), "floats"),
    ],
)
def test_operands_that_do_not_fit(call, words: str) -> None:
    with pytest.raises(errors.TypeMismatchError, match=words):
        call()


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.MultiheadAttention(5, 2, key=KEY),
        lambda: nn.GroupNorm(2, 5),
        lambda: nn.GroupedQueryAttention(8, 4, 3, key=KEY),
        lambda: nn.CausalSelfAttention(5, 2, key=KEY),
        lambda: nn.GELU("fast"),
        lambda: nn.RNN(2, 2, nonlinearity="sin", key=KEY),
        lambda: nn.RotaryEmbedding(3),
        lambda: nn.Embedding(3, 2, padding_idx=3, key=KEY),
        lambda: nn.TransformerEncoderLayer(4, 2, activation="sin", key=KEY),
        lambda: nn.losses.mse(1.0, 2.0, reduction="max"),
    ],
)
def test_arguments_that_do_not_fit(make) -> None:
    with pytest.raises(errors.ValueMismatchError):
        make()


def test_an_embedding_with_a_largest_norm_scales_rows_down() -> None:
    table = nn.Embedding(4, 3, max_norm=1.0, key=KEY)
    lengths = np.linalg.norm(np.asarray(table(inp.arange(4))), axis=-1)
    assert (lengths <= 1 + 1e-6).all() and (lengths > 0.5).any()


def test_dropout_between_recurrent_layers() -> None:
    layer, x = nn.GRU(3, 4, num_layers=2, dropout=0.5, key=KEY), random.normal(KEY, (5, 2, 3))
    quiet, noisy, again = layer(x)[0], layer(x, key=random.key(1))[0], layer(x, key=random.key(1))[0]
    assert not np.allclose(quiet, noisy) and np.array_equal(noisy, again)


# --- decoder ---


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_embedding_depends_on_distances_alone(interleaved: bool) -> None:
    rope = nn.RotaryEmbedding(8, interleaved=interleaved)
    q, k = (random.normal(key, (1, 1, 1, 12)) for key in random.split(KEY))
    product = lambda i, j: float((rope(q, inp.asarray([i])) * rope(k, inp.asarray([j]))).sum())  # noqa: E731
    assert product(7, 3) == pytest.approx(product(104, 100), rel=1e-4)
    assert rope(q, inp.asarray([9]))[..., 8:].tolist() == q[..., 8:].tolist()


def test_scaled_frequencies_of_llama_3() -> None:
    scaling = nn.RotaryScaling(8.0, 1.0, 4.0, 8192)
    plain, scaled = (nn.RotaryEmbedding(64, 500000.0, scaling=s).frequencies() for s in (None, scaling))
    assert scaled[0] == plain[0] and scaled[-1] == pytest.approx(plain[-1] / 8)
    linear = nn.RotaryEmbedding(64, scaling=nn.RotaryScaling(4.0)).frequencies()
    np.testing.assert_allclose(linear * 4, nn.RotaryEmbedding(64).frequencies(), rtol=1e-6)


def test_a_block_reads_its_cache_token_by_token() -> None:
    block = nn.TransformerBlock(16, 32, 4, 2, key=KEY)
    x = random.normal(KEY, (2, 5, 16))
    step = infini.jit(lambda token, cache: block(token, cache=cache))
    cache, found = nn.KVCache(2, 8, 2, 4), []
    for i in range(5):
        y, cache = step(x[:, i : i + 1], cache)
        found.append(y)
    assert int(cache.length) == 5
    np.testing.assert_allclose(inp.concatenate(found, 1), block(x), rtol=1e-4, atol=1e-5)


def test_attention_of_gpt_2_is_causal() -> None:
    layer, x = nn.CausalSelfAttention(8, 2, key=KEY), random.normal(KEY, (1, 6, 8))
    np.testing.assert_allclose(layer(x)[:, :3], layer(x[:, :3]), rtol=1e-5, atol=1e-6)
    assert nn.MLP(8, key=KEY)(x).shape == x.shape


def test_training_a_small_model_lowers_the_loss() -> None:
    first, second = random.split(KEY)
    model = nn.Sequential(nn.Linear(2, 16, key=first), nn.Tanh(), nn.Linear(16, 1, key=second))
    x = random.normal(KEY, (64, 2))
    y = x[:, :1] * x[:, 1:]
    loss = lambda model: nn.MSELoss()(model(x), y)  # noqa: E731
    step = infini.jit(lambda model: tree.map(lambda p, g: p - 0.1 * g, model, infini.grad(loss)(model)))
    before = float(loss(model))
    for _ in range(60):
        model = step(model)
    assert float(loss(model)) < 0.7 * before
