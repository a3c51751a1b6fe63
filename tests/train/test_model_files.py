"""The model's configuration and weights as files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import infini as inf
from infini import io, random
from infini.core import errors
from infini.data import tokenizer
from infini.train import gpt, model_files

CONFIG = gpt.Config(
    vocab_size=260,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
)


@pytest.fixture(scope="module")
def model() -> model_files.Model:
    tokens = tokenizer.train(["def f(): pass\n"], vocab_size=260)
    return model_files.Model(CONFIG, gpt.init(random.PRNGKey(0), CONFIG), tokens)


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_embeddings": True},
        {"tie_embeddings": False},
        {"num_experts": 3, "balance_weight": 0.02},
        {"num_experts": 3, "experts_per_token": 1, "qk_norm": True, "is_router_normalized": False},
        {"num_experts": 1, "experts_per_token": 1},
    ],
)
def test_round_trip(tmp_path: Path, model: model_files.Model, changes: dict) -> None:
    config = replace(CONFIG, **changes)
    model = replace(model, config=config, params=gpt.init(random.PRNGKey(1), config))
    model_files.save(tmp_path / "model", model)
    read = model_files.load(tmp_path / "model")
    assert read.config == config
    assert read.tokenizer.to_json() == model.tokenizer.to_json()
    assert inf.tree.structure(read.params) == inf.tree.structure(model.params)
    for found, expected in zip(inf.tree.leaves(read.params), inf.tree.leaves(model.params), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_names_are_those_of_hugging_face(model: model_files.Model) -> None:
    names = set(model_files.to_tensors(model.params, model.config))
    assert {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
    } < names


def test_configuration_round_trip() -> None:
    config = replace(CONFIG, rope_theta=5e5, tie_embeddings=False)
    assert model_files.from_json(model_files.to_json(config)) == config


def test_rotary_base_is_read_where_older_files_have_it() -> None:
    data = model_files.to_json(replace(CONFIG, rope_theta=5e5))
    del data["rope_parameters"]
    assert model_files.from_json(data).rope_theta == 5e5


def test_missing_weights_are_named(model: model_files.Model) -> None:
    tensors = model_files.to_tensors(model.params, model.config)
    del tensors["model.norm.weight"]
    with pytest.raises(io.CorruptFileError, match=r"weights are missing[^$]*model\.norm\.weight"):
        model_files.from_tensors(tensors, CONFIG)


def test_foreign_weights_are_named(model: model_files.Model) -> None:
    tensors = model_files.to_tensors(model.params, model.config) | {"model.layers.9.norm.weight": np.zeros(1)}
    with pytest.raises(io.CorruptFileError, match=r"not part of the model"):
        model_files.from_tensors(tensors, CONFIG)


def test_wrong_shapes_are_named(model: model_files.Model) -> None:
    tensors = model_files.to_tensors(model.params, model.config) | {"model.norm.weight": np.zeros(3)}
    with pytest.raises(io.CorruptFileError, match=r"model\.norm\.weight has the wrong shape"):
        model_files.from_tensors(tensors, CONFIG)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gemma"},
        {"model_type": "qwen3_moe", "mlp_only_layers": [1]},
        {"model_type": "qwen3_moe", "decoder_sparse_step": 2},
        {"hidden_act": "gelu"},
        {"quantization_config": {"bits": 4}},
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_type": "longrope"}},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
        {"model_type": "mistral", "sliding_window": 4, "layer_types": ["full_attention"]},
        {
            "model_type": "qwen2",
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["chunked_attention"] * 2,
        },
    ],
)
def test_what_is_not_supported_is_named(change: dict) -> None:
    data = model_files.to_json(CONFIG)
    with pytest.raises(errors.ValueMismatchError, match="not supported") as caught:
        model_files.from_json(data | change)
    assert (
        [name for name in change if name in str(caught.value)]
        or "rotary" in str(caught.value)
        or "rope" in str(caught.value)
    )


def test_experts_have_their_names_there() -> None:
    config = replace(CONFIG, num_experts=2)
    names = set(model_files.to_tensors(gpt.init(random.PRNGKey(0), config), config))
    layer = "model.layers.1.block_sparse_moe"
    assert {f"{layer}.gate.weight", f"{layer}.experts.0.w1.weight", f"{layer}.experts.1.w2.weight"} < names
    config = replace(config, qk_norm=True)
    names = set(model_files.to_tensors(gpt.init(random.PRNGKey(0), config), config))
    assert {"model.layers.0.mlp.gate.weight", "model.layers.0.mlp.experts.1.up_proj.weight"} < names


def test_a_missing_expert_is_named() -> None:
    config = replace(CONFIG, num_experts=2)
    tensors = model_files.to_tensors(gpt.init(random.PRNGKey(0), config), config)
    del tensors["model.layers.1.block_sparse_moe.experts.1.w3.weight"]
    with pytest.raises(io.CorruptFileError, match=r"weights are missing[^$]*experts\.1\.w3"):
        model_files.from_tensors(tensors, config)


def test_experts_with_biases_have_no_layout() -> None:
    with pytest.raises(errors.ValueMismatchError, match=r"no model layout"):
        model_files.to_json(replace(CONFIG, num_experts=2, qkv_bias=True))


def test_a_model_that_no_layout_has_is_named() -> None:
    with pytest.raises(errors.ValueMismatchError, match=r"no model layout .*[^$]*qk_norm = True"):
        model_files.to_json(replace(CONFIG, qk_norm=True, mlp_bias=True))


def test_biases_and_norms_have_their_names_there() -> None:
    config = replace(CONFIG, qkv_bias=True, output_bias=True, qk_norm=True)
    names = set(model_files.to_tensors(gpt.init(random.PRNGKey(0), config), config))
    assert {"model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.k_norm.weight"} < names


def test_weights_that_nothing_reads_are_no_error(model: model_files.Model) -> None:
    tensors = model_files.to_tensors(model.params, model.config) | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4)
    }
    assert inf.tree.structure(model_files.from_tensors(tensors, CONFIG)) == inf.tree.structure(model.params)


def test_weights_can_be_stored_narrow(tmp_path: Path, model: model_files.Model) -> None:
    model_files.save(tmp_path / "model", model, dtype="bfloat16")
    assert model_files.load(tmp_path / "model").params["norm"].dtype == "bfloat16"
    assert model_files.load(tmp_path / "model", dtype="float32").params["norm"].dtype == np.float32
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"


def _special(folder: Path, **files: dict) -> tokenizer.Tokenizer:
    for name, data in files.items():
        path = folder / f"{name}.json"
        stored = json.loads(path.read_text()) if path.is_file() else {}
        stored = {key: value for key, value in stored.items() if "eos" not in key and "bos" not in key}
        path.write_text(json.dumps(stored | data))
    return model_files.load(folder).tokenizer


@pytest.mark.parametrize(
    ("generation", "config", "texts", "begin", "ends"),
    [
        ({"eos_token_id": [5, 1], "bos_token_id": 7}, {}, {}, 7, (5, 1)),
        ({}, {"eos_token_id": 9}, {}, None, (9,)),
        ({"eos_token_id": [5, 1]}, {"eos_token_id": 9}, {"eos_token": "</s>"}, None, (1, 5)),
        ({}, {}, {"eos_token": {"content": "a"}, "bos_token": "b"}, 67, (66,)),
    ],
)
def test_special_ids_are_those_the_folder_states(
    tmp_path: Path,
    model: model_files.Model,
    generation: dict,
    config: dict,
    texts: dict,
    begin: int,
    ends: tuple,
) -> None:
    model_files.save(tmp_path / "model", model)
    found = _special(tmp_path / "model", generation_config=generation, config=config, tokenizer_config=texts)
    assert (found.end_ids, found.begin_id if begin is not None else None) == (ends, begin)
    assert model_files.load_tokenizer(tmp_path / "model").end_ids == ends


def test_a_tokenizer_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(io.MissingFileError, match="no tokenizer"):
        model_files.load_tokenizer(tmp_path / "missing")


def test_a_missing_size_is_named() -> None:
    data = model_files.to_json(CONFIG)
    del data["hidden_size"]
    with pytest.raises(io.CorruptFileError, match="hidden_size"):
        model_files.from_json(data)
