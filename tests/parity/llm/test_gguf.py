"""GGUF against the package gguf, and against transformers, which reads it with that package."""

from __future__ import annotations

import json
from pathlib import Path

import gguf as peer
import numpy as np
import pytest
import torch
import transformers

from infini.io import gguf
from infini.io.tensors import write_tensors
from infini.llm.checkpoints import gguf as own
from tests.llm.checkpoints import gguf_models

pytestmark = pytest.mark.filterwarnings("ignore")

READ = [
    "F32",
    "F16",
    "BF16",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ1_S",
    "IQ1_M",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ2_S",
    "IQ3_XXS",
    "IQ3_S",
    "IQ4_NL",
    "IQ4_XS",
    "TQ1_0",
    "TQ2_0",
    "MXFP4",
    "NVFP4",
]
MADE = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0"]


def test_all_types_that_the_package_reads_are_read():
    readable = {type.name for type in peer.quants._type_traits} | {"F32", "F16"}
    assert readable == set(READ)


def test_types_have_the_package_s_numbers_and_sizes():
    for type in peer.GGMLQuantizationType:
        if type.name == "Q8_1":  # a type of activations, for which the package has an old size
            continue
        found = gguf.type_of(type.name)
        assert (found.id, (found.block_size, found.block_nbytes)) == (type, peer.GGML_QUANT_SIZES[type])


@pytest.mark.parametrize("type", READ)
def test_any_bytes_are_the_package_s_numbers_bit_by_bit(type):
    """Scales that are NaN or infinite included."""
    kind = peer.GGMLQuantizationType[type]
    data = (
        np.random.default_rng(4).integers(0, 256, (33, 8 * gguf.type_of(type).block_nbytes)).astype(np.uint8)
    )
    expected = peer.quants.dequantize(data, kind)
    found = gguf.dequantize(data, type)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("type", MADE)
@pytest.mark.parametrize("scale", [1.0, 1e-7, 1e4])
def test_floats_become_the_package_s_bytes(type, scale):
    x = np.random.default_rng(5).standard_normal((40, 512)).astype(np.float32) * np.float32(scale)
    x[0] = 0
    x[1] = np.round(x[1])  # halves between codes
    x[2, ::3] = 0
    x[3] = x[3, 0]
    expected = peer.quants.quantize(x, peer.GGMLQuantizationType[type]).view(np.uint8)
    np.testing.assert_array_equal(gguf.quantize(x, type), expected.reshape(40, -1))


def test_a_file_of_the_package_is_read(tmp_path: Path):
    writer = peer.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint8("a.u8", 3)
    writer.add_int64("a.i64", -5)
    writer.add_float64("a.f64", 1.5)
    writer.add_bool("a.bool", True)
    writer.add_array("a.texts", ["x", "é", ""])
    writer.add_array("a.numbers", [1, -2, 3])
    numbers = np.arange(64, dtype=np.float32).reshape(2, 32)
    writer.add_tensor("x", numbers)
    writer.add_tensor("q", peer.quants.quantize(numbers, peer.GGMLQuantizationType.Q4_0),
                      raw_dtype=peer.GGMLQuantizationType.Q4_0)  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = gguf.read(tmp_path / "a.gguf")
    assert found.metadata["general.architecture"] == "llama"
    assert (found.metadata["a.u8"], found.metadata["a.i64"], found.metadata["a.f64"]) == (3, -5, 1.5)
    assert found.metadata["a.texts"] == ["x", "é", ""]
    assert found.metadata["a.numbers"].tolist() == [1, -2, 3]
    np.testing.assert_array_equal(found.tensors["x"].numpy(), numbers)
    assert found.tensors["q"].shape == (2, 32)
    gguf.write(tmp_path / "b.gguf", found.metadata, found.tensors.values())
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()


def test_the_package_reads_our_file(tmp_path: Path):
    x = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    metadata = {
        "general.architecture": "llama",
        "n": -7,
        "f": 0.25,
        "t": ["a", "b"],
        "i": np.arange(3, dtype=np.int16),
    }
    tensors = [gguf.tensor(type, x, type) for type in ("F32", "F16", "Q5_1", "Q4_K", "Q6_K")]
    gguf.write(tmp_path / "a.gguf", metadata, tensors, alignment=64)
    reader = peer.GGUFReader(tmp_path / "a.gguf")
    assert reader.fields["n"].contents() == -7
    assert reader.fields["t"].contents() == ["a", "b"]
    assert reader.fields["i"].contents() == [0, 1, 2]
    assert reader.alignment == 64
    for found in reader.tensors:
        assert found.name == found.tensor_type.name
        numbers = peer.quants.dequantize(found.data, found.tensor_type)
        np.testing.assert_array_equal(numbers, gguf.dequantize(gguf.quantize(x, found.name), found.name))


CLASSES = {
    "llama": "Llama", "llama 3": "Llama", "llama, yarn": "Llama", "mistral": "Mistral", "mixtral": "Mixtral",
    "qwen2": "Qwen2", "qwen3": "Qwen3", "qwen3 moe": "Qwen3Moe", "gemma2": "Gemma2", "phi3": "Phi3",
    "phi3, long": "Phi3", "gpt2": "GPT2", "deepseek v2": "DeepseekV2", "deepseek v3": "DeepseekV3",
}  # fmt: skip


@pytest.mark.parametrize("kind", CLASSES)
def test_transformers_computes_the_same_with_a_folder_made_of_a_file(kind: str, tmp_path: Path):
    """Configuration and weights that went through GGUF mean what those of the folder mean."""
    name = f"{CLASSES[kind]}{'LMHeadModel' if kind == 'gpt2' else 'ForCausalLM'}"
    config = {**gguf_models.config(kind), "architectures": [name], "pad_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_tensors(tmp_path / "model.safetensors", gguf_models.tensors(kind), metadata={"format": "pt"})
    metadata, tensors = own.write_model(config, gguf_models.tensors(kind))
    gguf.write(tmp_path / "model.gguf", metadata, tensors)
    own.to_folder(tmp_path / "model.gguf", tmp_path / "back")
    tokens = torch.tensor([np.random.default_rng(1).integers(3, 96, 24).tolist()])
    load = getattr(transformers, name).from_pretrained
    with torch.no_grad():
        expected = load(tmp_path, dtype=torch.float32)(tokens).logits
        found = load(tmp_path / "back", dtype=torch.float32)(tokens).logits
    np.testing.assert_allclose(found, expected, atol=2e-5)
