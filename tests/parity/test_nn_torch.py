"""Modules against PyTorch's of the same name: its state dictionary is loaded, then results and derivatives by
operands and parameters are compared."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

import infini
import infini.numpy as inp
from infini import nn, random
from infini.testing import tolerances

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """A layer in both libraries, and what it is called with."""

    name: str
    inputs: tuple[Any, ...]
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = {k: "array" if isinstance(v, np.ndarray) else v for k, v in self.options.items()}
        return f"{self.name}{self.arguments}{options}{sorted(self.call)}"


X = floats(3, 5, 8)
IMAGE = floats(2, 6, 4, 5)
TOKENS = RNG.integers(0, 11, (3, 4))
MASK = np.triu(np.ones((5, 5), bool), 1)
PADDING = np.array([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])

LAYERS = [
    Case("Linear", (X,), (8, 3)),
    Case("Linear", (X[0, 0],), (8, 3), {"bias": False}),
    Case("Bilinear", (floats(5, 4), floats(5, 3)), (4, 3, 2)),
    Case("Embedding", (TOKENS,), (11, 6)),
    Case("Embedding", (TOKENS,), (11, 6), {"padding_idx": 3}),
    Case("LayerNorm", (X,), (8,)),
    Case("LayerNorm", (X,), ((5, 8),), {"bias": False, "eps": 1e-3}),
    Case("LayerNorm", (X,), (8,), {"elementwise_affine": False}),
    Case("RMSNorm", (X,), (8,)),
    Case("RMSNorm", (X,), ((5, 8),), {"eps": 1e-3}),
    Case("GroupNorm", (IMAGE,), (3, 6)),
    Case("MultiheadAttention", (floats(5, 3, 8), floats(6, 3, 8), floats(6, 3, 8)), (8, 2)),
    Case("MultiheadAttention", (X, X, X), (8, 2), {"batch_first": True},
         {"attn_mask": MASK, "key_padding_mask": PADDING}),
    Case("MultiheadAttention", (X, X, X), (8, 2), {"batch_first": True, "bias": False},
         {"attn_mask": floats(6, 5, 5), "average_attn_weights": False}),
    Case("MultiheadAttention", (X, floats(3, 4, 6), floats(3, 4, 7)), (8, 4),
         {"batch_first": True, "kdim": 6, "vdim": 7}),
    Case("MultiheadAttention", (X[0], X[1], X[2]), (8, 2), {"add_bias_kv": True, "add_zero_attn": True},
         {"attn_mask": MASK}),
    Case("RNN", (X,), (8, 4), {"num_layers": 2, "batch_first": True}),
    Case("RNN", (X,), (8, 4), {"nonlinearity": "relu", "bias": False}),
    Case("LSTM", (X,), (8, 4), {"num_layers": 2, "bidirectional": True}),
    Case("LSTM", (X[0],), (8, 4), {"proj_size": 3}),
    Case("GRU", (X,), (8, 4), {"bidirectional": True, "batch_first": True}),
    Case("GRU", (X, floats(1, 5, 4)), (8, 4)),
    Case("RNNCell", (X[0],), (8, 4)),
    Case("GRUCell", (X[0], floats(5, 4)), (8, 4)),
    Case("LSTMCell", (X[0],), (8, 4), {"bias": False}),
    Case("TransformerEncoderLayer", (X,), (8, 2),
         {"dim_feedforward": 12, "batch_first": True, "dropout": 0.0},
         {"src_mask": MASK, "src_key_padding_mask": PADDING}),
    Case("TransformerEncoderLayer", (X,), (8, 2),
         {"dim_feedforward": 12, "activation": "gelu", "norm_first": True, "dropout": 0.0}),
    Case("TransformerDecoderLayer", (X, floats(3, 4, 8)), (8, 2),
         {"dim_feedforward": 12, "batch_first": True, "dropout": 0.0}, {"tgt_mask": MASK}),
    Case("Conv1d", (floats(2, 6, 9),), (6, 4, 3), {"padding": "same", "dilation": 2}),
    Case("Conv1d", (floats(6, 9),), (6, 4, 3), {"stride": 2, "padding": 1, "padding_mode": "circular"}),
    Case("Conv2d", (IMAGE,), (6, 4, (3, 2)), {"stride": (2, 1), "padding": (1, 0), "bias": False}),
    Case("Conv2d", (IMAGE,), (6, 4, 3), {"groups": 2, "padding": 1, "padding_mode": "reflect"}),
    Case("Conv3d", (floats(1, 2, 4, 5, 3),), (2, 3, 2), {"padding": 1, "padding_mode": "replicate"}),
    Case("ConvTranspose1d", (floats(2, 6, 5),), (6, 4, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    Case("ConvTranspose2d", (IMAGE,), (6, 4, (3, 2)), {"groups": 2, "dilation": 2, "stride": (1, 2)}),
    Case("ConvTranspose3d", (floats(2, 3, 2, 3),), (2, 3, 2), {"bias": False}),
    Case("MaxPool1d", (floats(2, 3, 9),), (3,), {"stride": 2, "padding": 1, "dilation": 2}),
    Case("MaxPool2d", (IMAGE,), (3,), {"stride": 2, "ceil_mode": True}),
    Case("MaxPool3d", (floats(2, 3, 4, 5),), (2,)),
    Case("AvgPool1d", (floats(2, 3, 9),), (4,), {"stride": 3, "padding": 2, "ceil_mode": True}),
    Case("AvgPool2d", (IMAGE,), ((3, 2),), {"stride": 2, "padding": (1, 0), "count_include_pad": False}),
    Case("AvgPool2d", (IMAGE,), (2,), {"divisor_override": 3, "ceil_mode": True}),
    Case("AvgPool3d", (floats(2, 3, 4, 5),), (2,), {"stride": 1}),
    Case("AdaptiveAvgPool1d", (floats(2, 3, 7),), (3,)),
    Case("AdaptiveAvgPool2d", (IMAGE,), ((2, None),)),
    Case("AdaptiveAvgPool3d", (floats(2, 3, 4, 5),), (2,)),
    Case("AdaptiveMaxPool1d", (floats(2, 3, 7),), (3,)),
    Case("AdaptiveMaxPool2d", (IMAGE,), ((1, 3),)),
    Case("AdaptiveMaxPool3d", (floats(1, 2, 3, 4, 5),), (2,)),
    Case("PReLU", (X,)),
    Case("PReLU", (IMAGE,), (6,)),
    Case("Flatten", (IMAGE,)),
    Case("Unflatten", (X,), (2, (2, -1))),
    Case("Identity", (X,), (3, 4)),
]  # fmt: skip

ACTIVATIONS = [
    ("ReLU", {}), ("ReLU6", {}), ("LeakyReLU", {"negative_slope": 0.3}), ("ELU", {"alpha": 0.7}),
    ("CELU", {"alpha": 0.7}), ("SELU", {}), ("GELU", {}), ("GELU", {"approximate": "tanh"}), ("SiLU", {}),
    ("Mish", {}), ("Sigmoid", {}), ("LogSigmoid", {}), ("Tanh", {}), ("Tanhshrink", {}), ("Softsign", {}),
    ("Softplus", {"beta": 2.0}), ("Hardtanh", {"min_val": -0.5, "max_val": 1.5}), ("Hardsigmoid", {}),
    ("Hardswish", {}), ("Hardshrink", {}), ("Softshrink", {"lambd": 0.2}),
    ("Threshold", {"threshold": 0.1, "value": 20.0}),
    ("GLU", {"dim": 1}), ("Softmax", {"dim": 1}), ("Softmin", {"dim": 1}), ("LogSoftmax", {"dim": -1}),
]  # fmt: skip

LABELS = RNG.integers(0, 8, (3, 5))
IGNORED = np.where(RNG.random((3, 5)) < 0.4, -100, LABELS)
SIGNS = np.where(RNG.random(3) < 0.5, -1, 1)
CHANCES = RNG.random((3, 8, 5)).astype(np.float32)
SCORES = floats(3, 8, 5)
W = RNG.random(8).astype(np.float32)
LOSSES = [
    Case("CrossEntropyLoss", (SCORES, LABELS)),
    Case("CrossEntropyLoss", (SCORES, IGNORED), (), {"weight": W, "label_smoothing": 0.1}),
    Case("CrossEntropyLoss", (SCORES, IGNORED), (), {"reduction": "sum", "weight": W}),
    Case("CrossEntropyLoss", (SCORES, IGNORED), (), {"reduction": "none", "label_smoothing": 0.2}),
    Case("CrossEntropyLoss", (SCORES, CHANCES), (), {"weight": W, "label_smoothing": 0.1}),
    Case("CrossEntropyLoss", (SCORES[0, :, 0], np.int64(3))),
    Case("NLLLoss", (SCORES, IGNORED), (), {"weight": W}),
    Case("BCELoss", (CHANCES, CHANCES[::-1]), (), {"weight": CHANCES[1]}),
    Case("BCEWithLogitsLoss", (SCORES * 30, CHANCES), (), {"pos_weight": CHANCES[1]}),
    Case("KLDivLoss", (SCORES, CHANCES), (), {"reduction": "batchmean"}),
    Case("KLDivLoss", (SCORES, floats(3, 8, 5)), (), {"log_target": True, "reduction": "sum"}),
    Case("MSELoss", (SCORES, CHANCES)),
    Case("L1Loss", (SCORES, CHANCES), (), {"reduction": "sum"}),
    Case("SmoothL1Loss", (SCORES, CHANCES), (), {"beta": 0.5}),
    Case("HuberLoss", (SCORES, CHANCES), (), {"delta": 0.5}),
    Case("PoissonNLLLoss", (SCORES, CHANCES * 5), (), {"full": True}),
    Case("PoissonNLLLoss", (CHANCES, CHANCES * 5), (), {"log_input": False}),
    Case("GaussianNLLLoss", (SCORES, CHANCES, CHANCES[..., :1]), (), {"full": True}),
    Case("CosineEmbeddingLoss", (floats(3, 8), floats(3, 8), SIGNS), (), {"margin": 0.1}),
    Case("MarginRankingLoss", (floats(3), floats(3), SIGNS), (), {"margin": 0.5}),
    Case("HingeEmbeddingLoss", (floats(3), SIGNS)),
    Case("SoftMarginLoss", (floats(3), SIGNS)),
    Case("TripletMarginLoss", (floats(3, 8), floats(3, 8), floats(3, 8)), (), {"swap": True, "margin": 2.0}),
]  # fmt: skip


def tensor(x: Any, needs_grad: bool = False) -> Any:
    if not isinstance(x, (np.ndarray, np.generic)):
        return x
    found = torch.from_numpy(np.array(x))
    return found.requires_grad_() if needs_grad and found.is_floating_point() else found


def leaves(results: Any) -> list[Any]:
    if isinstance(results, (tuple, list)):
        return [leaf for part in results for leaf in leaves(part)]
    return [] if results is None else [results]


def run_ours(
    layer: Any, case: Case, state: dict[str, torch.Tensor] | None
) -> tuple[list[Any], dict[str, Any], list[Any]]:
    """Results, derivatives by parameters, derivatives by operands, of the weighted sum of all results."""
    if state is not None:
        layer = layer.load_state_dict(state)
        assert list(layer.state_dict()) == list(state)
    places = [i for i, x in enumerate(case.inputs) if np.asarray(x).dtype == np.float32]

    def loss(layer: Any, *given: Any) -> Any:
        inputs = list(case.inputs)
        for i, x in zip(places, given, strict=True):
            inputs[i] = x
        results = leaves(layer(*inputs, **case.call))
        return sum((r * inp.cos(inp.arange(r.size)).reshape(r.shape)).sum() for r in results), results

    run = infini.jit(infini.value_and_grad(loss, tuple(range(len(places) + 1)), has_aux=True))
    (_, results), (by_layer, *by_inputs) = run(layer, *(case.inputs[i] for i in places))
    return results, by_layer.state_dict(), by_inputs


def run_theirs(layer: Any, case: Case) -> tuple[list[Any], dict[str, Any], list[Any]]:
    inputs = [tensor(x, True) for x in case.inputs]
    results = leaves(layer(*inputs, **{name: tensor(x) for name, x in case.call.items()}))
    sum((r * torch.cos(torch.arange(r.numel())).reshape(r.shape)).sum() for r in results).backward()
    by_layer = {name: p.grad for name, p in layer.named_parameters()}
    return results, by_layer, [x.grad for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]


@pytest.fixture(autouse=True)
def on_the_reference_backend() -> Iterator[None]:
    """Modules say what is computed; how well the backends do it is tested with the operations."""
    with infini.config(device="reference"):
        yield


def compare(ours: Any, theirs: Any, case: Case, state: dict[str, torch.Tensor]) -> None:
    found, by_layer, by_inputs = run_ours(ours, case, state)
    wanted, their_layer, their_inputs = run_theirs(theirs, case)
    for a, b in zip(found, wanted, strict=True):
        tolerances.assert_close(a, b.detach().numpy(), "contraction")
    for a, b in zip(by_inputs, their_inputs, strict=True):
        tolerances.assert_close(a, b.numpy(), "program")
    for name, b in their_layer.items():
        tolerances.assert_close(by_layer[name], b.numpy(), "program")


def pair(case: Case) -> tuple[Any, Any]:
    """The layer in both libraries."""
    torch.manual_seed(0)
    theirs = getattr(torch.nn, case.name)(*case.arguments, **{k: tensor(v) for k, v in case.options.items()})
    constructor = getattr(nn, case.name)
    key = {"key": random.key(0)} if "key" in inspect.signature(constructor).parameters else {}
    return constructor(*case.arguments, **case.options, **key), theirs


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_layers(case: Case) -> None:
    ours, theirs = pair(case)
    compare(ours, theirs, case, theirs.state_dict())


@pytest.mark.parametrize(("name", "options"), ACTIVATIONS, ids=str)
def test_activations(name: str, options: dict[str, Any]) -> None:
    case = Case(name, (floats(4, 6),), (), options)
    compare(*pair(case), case, {})


@pytest.mark.parametrize("case", LOSSES, ids=str)
def test_losses(case: Case) -> None:
    ours, theirs = pair(case)
    found, _, by_inputs = run_ours(ours, case, None)
    (wanted,), _, their_inputs = run_theirs(theirs, case)
    tolerances.assert_close(found[0], wanted.detach().numpy(), "contraction")
    for a, b in zip(by_inputs, their_inputs, strict=True):
        tolerances.assert_close(a, np.zeros_like(a) if b is None else b.numpy(), "program")


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("BatchNorm1d", (5, 3), {}),
        ("BatchNorm1d", (5, 3, 2), {"momentum": None}),
        ("BatchNorm2d", (2, 3, 4, 5), {"affine": False}),
        ("BatchNorm3d", (2, 3, 2, 2, 2), {"momentum": 0.3, "eps": 1e-2}),
    ],
    ids=str,
)
def test_batch_norms_over_three_batches(name: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    ours, theirs = getattr(nn, name)(3, **options), getattr(torch.nn, name)(3, **options)
    state = ours.initial_state()
    assert list(ours.state_dict(state)) == list(theirs.state_dict())
    for training in (True, True, False):
        x = floats(*shape)
        theirs.train(training)
        wanted = theirs(torch.from_numpy(x))
        found, state = ours(x, state, training=training)
        tolerances.assert_close(found, wanted.detach().numpy(), "program")
    for key, value in ours.state_dict(state).items():
        np.testing.assert_allclose(value, theirs.state_dict()[key].numpy(), rtol=1e-5, atol=1e-6)


ATTENTION = [
    {},
    {"attn_mask": np.tri(5, 6, dtype=bool)},
    {"attn_mask": floats(3, 4, 5, 6)},
    {"is_causal": True, "scale": 0.3},
    {"enable_gqa": True},
]


@pytest.mark.parametrize("options", ATTENTION, ids=str)
def test_scaled_dot_product_attention(options: dict[str, Any]) -> None:
    heads = 2 if "enable_gqa" in options else 4
    given = floats(3, 4, 5, 8), floats(3, heads, 6, 8), floats(3, heads, 6, 7)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        *map(tensor, given), **{name: tensor(x) for name, x in options.items()}
    )
    tolerances.assert_close(nn.scaled_dot_product_attention(*given, **options), wanted.numpy(), "contraction")


def test_places_of_maxima() -> None:
    options = {"kernel_size": 3, "stride": 2, "padding": 1, "return_indices": True}
    values, places = torch.nn.MaxPool2d(**options)(torch.from_numpy(IMAGE))
    found, at = nn.MaxPool2d(**options)(IMAGE)
    np.testing.assert_array_equal(found, values.numpy())
    np.testing.assert_array_equal(at, places.numpy())


def test_a_model_is_loaded_from_a_state_dictionary_of_pytorch() -> None:
    theirs = torch.nn.Sequential(
        torch.nn.Linear(8, 4),
        torch.nn.BatchNorm1d(4),
        torch.nn.ReLU(),
        torch.nn.Sequential(torch.nn.Linear(4, 2)),
    )
    theirs(torch.from_numpy(X[0]))
    theirs.eval()
    keys = random.split(random.key(0))
    ours = nn.Sequential(
        nn.Linear(8, 4, key=keys[0]), nn.BatchNorm1d(4), nn.relu, nn.Sequential(nn.Linear(4, 2, key=keys[1]))
    )
    ours, state = ours.load_state_dict(theirs.state_dict(), nn.initial_state(ours))
    found, _ = ours(X[0], state, training=False)
    tolerances.assert_close(found, theirs(torch.from_numpy(X[0])).detach().numpy(), "contraction")


def test_bfloat16_checkpoints_load() -> None:
    theirs = torch.nn.Linear(3, 2, dtype=torch.bfloat16)
    ours = nn.Linear(3, 2, dtype="bfloat16", key=random.key(0)).load_state_dict(theirs.state_dict())
    assert ours.weight.dtype == inp.bfloat16
    np.testing.assert_array_equal(np.asarray(ours.weight, np.float32), theirs.weight.detach().float().numpy())


def test_initial_values_have_the_spread_of_pytorch() -> None:
    for name, sizes in (
        ("Linear", (50, 40)),
        ("Embedding", (50, 40)),
        ("LSTM", (30, 40)),
        ("MultiheadAttention", (40, 4)),
    ):
        theirs = getattr(torch.nn, name)(*sizes).state_dict()
        ours = getattr(nn, name)(*sizes, key=random.key(1)).state_dict()
        for key, value in ours.items():
            wanted = theirs[key].std().item() if theirs[key].std() > 0 else 0.0
            assert float(np.std(value)) == pytest.approx(wanted, rel=0.35), (name, key)


LLAMA = {
    "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 6, "vocab_size": 11, "num_hidden_layers": 1, "attn_implementation": "eager",
}  # fmt: skip


def test_a_block_of_llama_is_that_of_transformers() -> None:
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = modeling.LlamaConfig(**LLAMA)
    model = modeling.LlamaModel(config).eval()
    layer = nn.TransformerBlock(16, 24, 4, 2, 6, key=random.key(0))
    layer = layer.load_state_dict(model.layers[0].state_dict())
    tokens = torch.arange(7)[None]
    with torch.no_grad():
        embedded = model.embed_tokens(tokens)
        wanted = model(inputs_embeds=embedded).last_hidden_state.numpy()
    found = nn.RMSNorm(16, 1e-6)(layer(embedded.numpy()))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
