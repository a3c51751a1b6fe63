"""The model's configuration and weights as files."""

from __future__ import annotations

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


@pytest.mark.parametrize("tie", [True, False])
def test_round_trip(tmp_path: Path, model: model_files.Model, tie: bool) -> None:
    config = replace(CONFIG, tie_embeddings=tie)
    model = replace(model, config=config, params=gpt.init(random.PRNGKey(1), config))
    model_files.save(tmp_path / "model", model)
    read = model_files.load(tmp_path / "model")
    assert read.config == config
    assert read.tokenizer.to_json() == model.tokenizer.to_json()
    assert inf.tree.structure(read.params) == inf.tree.structure(model.params)
    for found, expected in zip(inf.tree.leaves(read.params), inf.tree.leaves(model.params), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_names_are_those_of_hugging_face(model: model_files.Model) -> None:
    names = set(model_files.to_tensors(model.params))
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
    tensors = model_files.to_tensors(model.params)
    del tensors["model.norm.weight"]
    with pytest.raises(io.CorruptFileError, match=r"weights are missing[^$]*model\.norm\.weight"):
        model_files.from_tensors(tensors, CONFIG)


def test_foreign_weights_are_named(model: model_files.Model) -> None:
    tensors = model_files.to_tensors(model.params) | {"model.layers.9.norm.weight": np.zeros(1)}
    with pytest.raises(io.CorruptFileError, match=r"not part of the model"):
        model_files.from_tensors(tensors, CONFIG)


def test_wrong_shapes_are_named(model: model_files.Model) -> None:
    tensors = model_files.to_tensors(model.params) | {"model.norm.weight": np.zeros(3)}
    with pytest.raises(io.CorruptFileError, match=r"model\.norm\.weight has the wrong shape"):
        model_files.from_tensors(tensors, CONFIG)


@pytest.mark.parametrize(
    "change", [{"model_type": "mistral"}, {"attention_bias": True}, {"rope_scaling": {"rope_type": "llama3"}}]
)
def test_what_is_not_supported_is_named(change: dict) -> None:
    data = model_files.to_json(CONFIG)
    if "rope_scaling" in change:
        del data["rope_parameters"]
    with pytest.raises(errors.ValueMismatchError, match="not supported"):
        model_files.from_json(data | change)


def test_a_missing_size_is_named() -> None:
    data = model_files.to_json(CONFIG)
    del data["hidden_size"]
    with pytest.raises(io.CorruptFileError, match="hidden_size"):
        model_files.from_json(data)
