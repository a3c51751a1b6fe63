"""Models that several devices share give the logits of one, whatever their weights are stored in."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import infini as inf
from infini.core import errors, tree
from infini.llm import models
from infini.llm.checkpoints import placing
from infini.llm.models import Rows, placement, weights
from infini.quantization import QuantizedArray
from infini.sharding import make_mesh
from infini.testing import count_collectives
from tests.llm.models.test_decoder import (
    BLOCK,
    BLOCKS,
    KINDS,
    LATENT,
    PROMPT,
    SIZES,
    batch_of,
    made,
    run,
    step_of,
)

REQUESTS = (Rows(PROMPT[:5], 0, [1]), Rows(PROMPT[2:5], 0, [2]))
MOE = SIZES | {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FAMILIES: dict[str, dict[str, Any]] = KINDS | {
    "mistral": SIZES | {"sliding_window": 4},
    "qwen2": SIZES,
    "qwen3": SIZES | {"head_dim": 32},
    "qwen3_moe": MOE,
    "minicpm": SIZES | {"tie_word_embeddings": True, "scale_depth": 1.4, "dim_model_base": 32},
    "fm9g7b": SIZES,
    "deepseek_v2": SIZES | LATENT | {"topk_method": "greedy", "q_lora_rank": None},
}
# Groups of 256 want wide matrices.
WIDE = SIZES | {
    "hidden_size": 512, "intermediate_size": 768, "num_attention_heads": 8, "num_hidden_layers": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def devices():
    with inf.config(cpu_devices=2):
        yield


def place(config: models.Config, data: dict[str, Any], params: Any) -> tuple[Any, Any]:
    """Weights and an empty cache as placement wants them on two devices."""
    mesh = make_mesh((2,), (placement.AXIS,))
    of_weight, of_cache = placement.weights(config, mesh), placement.cache(config, mesh)
    found: dict[str, Any] = {}
    for weight in models.family_of(data).weights(config):
        value, name = params, ".".join(map(str, weight.path))
        for key in weight.path:
            value = value[key]
        weights.put(found, weight.path, placing.placed(value, name, of_weight))
    cache = [
        {name: inf.device_put(array, of_cache(name)) for name, array in entry.items()}
        for entry in models.init_cache(config, BLOCKS, BLOCK, "float32")
    ]
    return found, cache


def shared(config: models.Config, data: dict[str, Any], params: Any) -> np.ndarray:
    """Logits of `REQUESTS` computed by two devices; no cache may be copied."""
    placed, cache = place(config, data, params)
    found, _ = step_of()(placed, cache, batch_of(*REQUESTS), config=config)
    return np.asarray(found)[: len(REQUESTS)]


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() < 1e-5 * max(1.0, np.abs(expected).max())


def bytes_per_device(params: Any) -> list[int]:
    found = [0, 0]
    for leaf in tree.leaves(params):
        for number, part in enumerate(leaf.addressable_shards):
            found[number] += part.data.nbytes
    return found


@pytest.mark.parametrize("kind", FAMILIES)
def test_two_devices_give_the_logits_of_one(kind: str) -> None:
    data = {"model_type": kind} | FAMILIES[kind]
    config, params = made(kind, **FAMILIES[kind])
    assert_close(shared(config, data, params), run(config, params, *REQUESTS))


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize("scheme", [None, "Q4_0"])
def test_experts_apart_give_the_logits_of_one_device(kind: str, scheme: str | None) -> None:
    data = {"model_type": kind} | FAMILIES[kind]
    config, params = made(kind, scheme, **FAMILIES[kind])
    config = dataclasses.replace(config, quantized_activations="exact")
    expected = run(config, params, *REQUESTS)
    assert_close(shared(placement.apart(config, 2), data, params), expected)


def test_each_device_has_some_experts_whole_and_sends_none() -> None:
    data = {"model_type": "mixtral"} | FAMILIES["mixtral"]
    config, params = made("mixtral", **FAMILIES["mixtral"])
    config = placement.apart(config, 2)
    placed, cache = place(config, data, params)
    part = placed["layers"][0]["mlp"]["experts"]["down_proj"].addressable_shards[1].data
    np.testing.assert_array_equal(part, np.asarray(params["layers"][0]["mlp"]["experts"]["down_proj"])[2:])
    with count_collectives() as counts:
        step_of()(placed, cache, batch_of(*REQUESTS), config=config)
    sent = sum(count.nbytes for count in counts.values())
    assert 0 < sent < part.nbytes


@pytest.mark.parametrize("scheme", ["Q4_0", "Q8_0", "int8", "Q4_K", "Q6_K"])
def test_weights_in_few_bits_are_shared(scheme: str) -> None:
    data = {"model_type": "llama"} | WIDE
    config, params = made("llama", scheme, **WIDE)
    # Rounded activations differ where sums in another order fall to the other side of a half.
    config = dataclasses.replace(config, quantized_activations="exact")
    assert_close(shared(config, data, params), run(config, params, *REQUESTS))
    assert_shared(config, data, params, scheme)


@pytest.mark.parametrize("scheme", ["Q4_0", "Q8_0", "int8", "Q4_K", "Q6_K"])
def test_arranged_weights_are_shared_but_for_ties_of_rounded_activations(scheme: str) -> None:
    data = {"model_type": "llama"} | WIDE
    config, params = made("llama", scheme, **WIDE)
    assert config.quantized_activations == "int8"
    expected = run(config, params, *REQUESTS)
    params = tree.map(arranged, params, is_leaf=lambda node: isinstance(node, QuantizedArray))
    assert np.abs(shared(config, data, params) - expected).max() < 0.02 * np.abs(expected).max()
    assert_shared(config, data, params, scheme)


def assert_shared(config: models.Config, data: dict[str, Any], params: Any, scheme: str) -> None:
    placed, _ = place(config, data, params)
    first, second = bytes_per_device(placed["layers"])
    whole = sum(leaf.nbytes for leaf in tree.leaves(params["layers"]))
    assert first == second
    # What is split by inputs stays whole where a row is one group, or three.
    assert first < whole * (0.55 if scheme.endswith("_0") else 0.85)


def arranged(node: Any) -> Any:
    return node.arranged() if isinstance(node, QuantizedArray) else node


def test_no_group_of_columns_is_cut() -> None:
    """Three groups on two devices are whole on both; two are one on each."""
    config, params = made("llama", "Q4_K", **WIDE)
    placed, _ = place(config, {"model_type": "llama"} | WIDE, params)
    layer = placed["layers"][0]
    assert params["layers"][0]["mlp"]["down_proj"].blocks.shape[1] == 3
    assert layer["mlp"]["down_proj"].blocks.sharding.spec == inf.P(None, None, None)
    parts = layer["self_attn"]["o_proj"].blocks.addressable_shards
    assert [part.data.shape[1] for part in parts] == [1, 1]


def test_experts_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(errors.ValueMismatchError, match="divided by their number") as caught:
        placement.apart(made("mixtral", **FAMILIES["mixtral"])[0], 3)
    assert "4 experts, 3 devices" in str(caught.value)
    with pytest.raises(errors.ValueMismatchError, match="divided by their number"):
        placement.apart(made("llama", **SIZES)[0], 2)


def test_the_latent_cache_stays_whole_and_heads_are_shared() -> None:
    mesh = make_mesh((2,), (placement.AXIS,))
    latent, _ = made("deepseek_v3", **FAMILIES["deepseek_v3"])
    heads, _ = made("llama", **SIZES)
    assert placement.cache(latent, mesh)("key").spec == inf.P()
    assert placement.cache(heads, mesh)("key").spec == inf.P(None, "tp")
