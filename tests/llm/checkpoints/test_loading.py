"""Loading: what is in files comes to its place, once in memory; what is not right is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import infini as inf
from infini import io, quantization
from infini.core import memory, tree
from infini.llm import checkpoints
from infini.quantization import QuantizedArray
from tests.llm.checkpoints.folders import CONFIG, logits_of, tensors_of, write

# --- folders --------------------------------------------------------------------------------------------


def test_weights_come_to_their_places(tmp_path: Path) -> None:
    tensors = tensors_of(CONFIG)
    found = checkpoints.load(write(tmp_path, CONFIG, tensors))
    attention = found.params["layers"][1]["self_attn"]
    np.testing.assert_array_equal(attention["k_proj"], tensors["model.layers.1.self_attn.k_proj.weight"])
    np.testing.assert_array_equal(found.params["embed_tokens"], tensors["model.embed_tokens.weight"])
    assert found.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    assert found.config.num_layers == len(found.params["layers"]) == 2


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_weights_whose_dtype_is_kept_are_not_copied(tmp_path: Path, dtype: Any) -> None:
    config = CONFIG | {"hidden_size": 128, "torch_dtype": np.dtype(dtype).name}
    folder = write(tmp_path, config, tensors_of(config, dtype))
    before = memory.HOST.stats()["bytes_in_use"]
    found = checkpoints.load(folder)
    assert {leaf.dtype for leaf in tree.leaves(found.params)} == {np.dtype(dtype)}
    assert memory.HOST.stats()["bytes_in_use"] - before < found.nbytes // 20


def test_a_donated_weight_does_not_change_its_file(tmp_path: Path) -> None:
    folder = write(tmp_path, CONFIG, tensors_of(CONFIG))
    raw = (folder / "model.safetensors").read_bytes()
    table = checkpoints.load(folder).params["embed_tokens"]
    inf.jit(lambda x: x + 1, donate_argnums=0)(table).block_until_ready()
    assert (folder / "model.safetensors").read_bytes() == raw


def test_another_dtype(tmp_path: Path) -> None:
    folder = write(tmp_path, CONFIG, tensors_of(CONFIG))
    found = checkpoints.load(folder, dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in tree.leaves(found.params)} == {"bfloat16"}
    with pytest.raises(inf.errors.ValueMismatchError, match="float32, bfloat16 or float16"):
        checkpoints.load(folder, dtype="int8")


def test_norms_take_the_dtype_that_is_stated_and_matrices_keep_theirs(tmp_path: Path) -> None:
    tensors = tensors_of(CONFIG, np.float16)
    found = checkpoints.load(write(tmp_path, CONFIG, tensors))
    assert found.params["norm"].dtype == np.float32
    assert found.params["layers"][0]["mlp"]["up_proj"].dtype == np.float16


def test_several_files_with_an_index(tmp_path: Path) -> None:
    tensors = tensors_of(CONFIG)
    io.write_model(
        tmp_path / "m",
        io.ModelFiles(
            config=CONFIG, tensors=tensors, tokenizer="{}", tokenizer_config={}, generation_config={}
        ),
        max_shard_bytes=100_000,
    )
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 2
    found = checkpoints.load(tmp_path / "m")
    np.testing.assert_array_equal(found.params["lm_head"], tensors["lm_head.weight"])


def test_experts_are_stacked(tmp_path: Path) -> None:
    config = CONFIG | {"model_type": "mixtral", "num_local_experts": 3}
    tensors = tensors_of(config)
    stacked = checkpoints.load(write(tmp_path, config, tensors)).params["layers"][0]["mlp"]["experts"]
    name = "model.layers.0.block_sparse_moe.experts.{}.w2.weight"
    np.testing.assert_array_equal(stacked["down_proj"], np.stack([tensors[name.format(i)] for i in range(3)]))


def test_what_lies_beside_the_weights(tmp_path: Path) -> None:
    found = checkpoints.load(
        write(
            tmp_path, CONFIG, tensors_of(CONFIG),
            generation_config__json={"temperature": 0.5}, tokenizer__json='{"a": 1}',
            tokenizer_config__json={"chat_template": "own"},
        )
    )  # fmt: skip
    assert found.generation_config == {"temperature": 0.5}
    assert found.tokenizer_files["tokenizer.json"] == '{"a": 1}'
    assert found.chat_template == "own"


@pytest.mark.parametrize("files, expected", [
    ({}, None),
    ({"tokenizer_config__json": {"chat_template": [{"name": "tool_use", "template": "t"},
                                                   {"name": "default", "template": "d"}]}}, "d"),
    ({"tokenizer_config__json": {"chat_template": 3}}, None),
    ({"chat_template__json": {"chat_template": "j"}, "tokenizer_config__json": {"chat_template": "c"}}, "j"),
    ({"chat_template__jinja": "file", "chat_template__json": {"chat_template": "j"}}, "file"),
])  # fmt: skip
def test_chat_templates(tmp_path: Path, files: dict[str, Any], expected: str | None) -> None:
    assert checkpoints.read(write(tmp_path, CONFIG, tensors_of(CONFIG), **files)).chat_template == expected


def test_progress_counts_the_bytes_of_the_files(tmp_path: Path) -> None:
    config = CONFIG | {"model_type": "phi3"}  # weights that are parts of one array
    tensors = tensors_of(config)
    seen: list[tuple[int, int]] = []
    checkpoints.load(write(tmp_path, config, tensors), on_progress=lambda *now: seen.append(now))
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert seen[-1] == (total, total)
    assert seen == sorted(seen) and len(set(seen)) == len(seen)


def test_a_placement_is_asked_for_by_name(tmp_path: Path) -> None:
    mesh = inf.Mesh(np.asarray(inf.devices()[:1]), ("tp",))
    split = inf.NamedSharding(mesh, inf.P("tp"))
    asked: dict[str, tuple[int, ...]] = {}

    def place(name: str, shape: tuple[int, ...]) -> Any:
        asked[name] = shape
        return split if name.endswith("q_proj") else None

    found = checkpoints.load(write(tmp_path, CONFIG, tensors_of(CONFIG)), sharding=place)
    assert asked["layers.1.self_attn.q_proj"] == (64, 64)
    assert found.params["layers"][1]["self_attn"]["q_proj"].sharding == split


# --- ties and names ----------------------------------------------------------------------------------------


def test_a_projection_that_is_not_stored_and_not_denied_is_the_table(tmp_path: Path) -> None:
    config = {name: value for name, value in CONFIG.items() if name != "tie_word_embeddings"}
    tensors = tensors_of(CONFIG)
    del tensors["lm_head.weight"]
    assert checkpoints.load(write(tmp_path, config, tensors)).config.tie_embeddings
    with pytest.raises(io.CorruptFileError, match=r"a weight is missing") as caught:
        checkpoints.load(write(tmp_path, CONFIG, tensors))
    assert "lm_head.weight" in str(caught.value)


def test_a_tied_projection_may_be_stored_and_is_not_read(tmp_path: Path) -> None:
    config = CONFIG | {"tie_word_embeddings": True}
    found = checkpoints.load(write(tmp_path, config, tensors_of(CONFIG)))
    assert "lm_head" not in found.params


def test_9g_files_say_their_biases_and_norms(tmp_path: Path) -> None:
    config = CONFIG | {"model_type": "fm9g7b"}
    tensors = tensors_of(config | {"model_type": "qwen2"})
    assert checkpoints.load(write(tmp_path, config, tensors)).config.qkv_bias
    tensors = tensors_of(config | {"model_type": "qwen3", "head_dim": 16})
    assert checkpoints.load(write(tmp_path, config, tensors)).config.qk_norm


def test_minicpm_is_llama_with_scales(tmp_path: Path) -> None:
    tensors = tensors_of(CONFIG)
    scales = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16, "model_type": "minicpm"}
    scaled = checkpoints.load(write(tmp_path, CONFIG | scales, tensors))
    plain = dict(tensors)
    plain["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] * np.float32(12)
    plain["lm_head.weight"] = tensors["lm_head.weight"] * np.float32(16 / 64)
    for name in tensors:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            plain[name] = tensors[name] * np.float32(1.4 / 2**0.5)
    expected = logits_of(checkpoints.load(write(tmp_path, CONFIG, plain)), [3, 1, 4, 1, 5])
    np.testing.assert_allclose(logits_of(scaled, [3, 1, 4, 1, 5]), expected, atol=2e-5)


def test_names_of_gpt2_without_a_prefix(tmp_path: Path) -> None:
    config = {
        "model_type": "gpt2",
        "vocab_size": 96,
        "n_embd": 64,
        "n_layer": 1,
        "n_head": 4,
        "n_positions": 32,
    }
    tensors = tensors_of(config)
    whole = logits_of(checkpoints.load(write(tmp_path, config, tensors)), [3, 1])
    short = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    short["h.0.attn.bias"] = np.ones((1, 1, 32, 32), np.float32)
    np.testing.assert_array_equal(logits_of(checkpoints.load(write(tmp_path, config, short)), [3, 1]), whole)


def test_blocks_that_predict_further_tokens_are_not_read(tmp_path: Path) -> None:
    config = CONFIG | {
        "model_type": "deepseek_v3", "q_lora_rank": None, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "n_group": 2, "topk_group": 1,
        "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1,
    }  # fmt: skip
    tensors = tensors_of(config) | {"model.layers.2.eh_proj.weight": np.ones((2, 2), np.float32)}
    assert checkpoints.load(write(tmp_path, config, tensors)).config.num_layers == 2


# --- what is not right -------------------------------------------------------------------------------------


def test_missing_and_unexpected_weights_are_listed(tmp_path: Path) -> None:
    tensors = tensors_of(CONFIG)
    folder = write(
        tmp_path, CONFIG, tensors | {"model.layers.0.self_attn.q_proj.bias": np.ones(64, np.float32)}
    )
    with pytest.raises(io.CorruptFileError, match="a weight is not part of the model") as caught:
        checkpoints.load(folder)
    assert "model.layers.0.self_attn.q_proj.bias" in str(caught.value)
    assert checkpoints.load(folder, allow_unexpected=True).config.num_layers == 2
    gone = {name: tensor for name, tensor in tensors.items() if ".layers.1." not in name}
    with pytest.raises(io.CorruptFileError, match="9 weights are missing") as caught:
        checkpoints.load(write(tmp_path, CONFIG, gone))
    assert "and 5 more" in str(caught.value)


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    tensors = tensors_of(CONFIG)
    tensors["model.layers.1.mlp.up_proj.weight"] = np.ones((64, 256), np.float32)
    words = re.escape("model.layers.1.mlp.up_proj.weight has the wrong shape")
    with pytest.raises(io.CorruptFileError, match=words) as caught:
        checkpoints.load(write(tmp_path, CONFIG, tensors))
    assert "[64, 256]" in str(caught.value) and "[256, 64]" in str(caught.value)


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, CONFIG, tensors_of(CONFIG)) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(io.CorruptFileError, match=r"model.safetensors is damaged") as caught:
        checkpoints.load(tmp_path)
    assert "cut" in str(caught.value)


@pytest.mark.parametrize("change, words", [
    ({"model_type": "rwkv"}, "kind of model is not supported"),
    ({"model_type": None}, "kind of model is not supported"),
    ({"hidden_size": None}, "does not state hidden_size"),
    ({"num_hidden_layers": "2"}, "num_hidden_layers is no size"),
    ({"vocab_size": -1}, "vocab_size is no size"),
    ({"num_attention_heads": True}, "num_attention_heads is no size"),
    ({"num_key_value_heads": 3}, "do not divide"),
    ({"hidden_act": "mish"}, "activation is not supported"),
    ({"rope_scaling": {"type": "spiral"}}, "spiral"),
    ({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "wrong length"),
    ({"rope_scaling": {"type": "linear"}}, "does not state factor"),
    ({"rope_scaling": 3}, "wrong kind"),
    ({"num_hidden_layers": 100_000}, "num_hidden_layers is no size"),
    ({"model_type": "mixtral", "num_local_experts": 10**6, "num_experts_per_tok": 2}, "experts of width"),
    ({"model_type": "mistral", "sliding_window": "8"}, "windows of"),
    ({"rope_theta": -1.0}, "base -1.0"),
    ({"rms_norm_eps": float("nan")}, "not one"),
    ({"partial_rotary_factor": 0.2}, "rotations of"),
    ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
])  # fmt: skip
def test_configurations_that_cannot_be_run_say_why(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    folder = write(tmp_path, CONFIG | change, tensors_of(CONFIG))
    with pytest.raises(inf.errors.InfiniError, match=words):
        checkpoints.load(folder)


def test_an_architecture_alone_is_enough(tmp_path: Path) -> None:
    config = {name: value for name, value in CONFIG.items() if name != "model_type"}
    found = checkpoints.load(
        write(tmp_path, config | {"architectures": ["LlamaForCausalLM"]}, tensors_of(CONFIG))
    )
    assert found.config.family == "llama"


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(io.MissingFileError, match="there is no model"):
        checkpoints.load(tmp_path / "none")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(io.MissingFileError, match=r"model.safetensors is missing"):
        checkpoints.load(tmp_path)


# --- quantisation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, matrix, table", [
    ("int8", "int8", "int8"), ("Q8_0", "Q8_0", "Q8_0"), ("q4_0", "Q4_0", "Q8_0"),
    ("q6_k", "Q6_K", "Q8_0"), ("q4_k", "Q4_K", "Q8_0"),
])  # fmt: skip
def test_matrices_are_quantised_on_load(tmp_path: Path, name: str, matrix: str, table: str) -> None:
    tensors = tensors_of(CONFIG)
    found = checkpoints.load(write(tmp_path, CONFIG, tensors), quantization=name)
    mlp = found.params["layers"][0]["mlp"]
    assert isinstance(mlp["down_proj"], QuantizedArray)
    assert mlp["down_proj"].scheme.name == matrix
    assert found.params["lm_head"].scheme.name == found.params["embed_tokens"].scheme.name == table
    assert mlp["up_proj"].scheme.name == ("Q8_0" if name.endswith("_k") else matrix)  # rows of 64
    assert not isinstance(found.params["norm"], QuantizedArray)
    whole = tensors["model.layers.0.mlp.down_proj.weight"]
    stored = quantization.quantize(whole, mlp["down_proj"].plain().scheme)
    np.testing.assert_array_equal(mlp["down_proj"].dequantize(), stored.dequantize())
    exact = logits_of(checkpoints.load(tmp_path), [3, 1, 4])
    error = np.sqrt(np.mean((logits_of(found, [3, 1, 4]) - exact) ** 2) / np.mean(exact**2))
    assert error < (0.2 if "4" in name else 0.03)


def test_experts_are_quantised_one_by_one(tmp_path: Path) -> None:
    config = CONFIG | {"model_type": "mixtral", "num_local_experts": 3}
    found = checkpoints.load(write(tmp_path, config, tensors_of(config)), quantization="q8_0")
    mlp = found.params["layers"][0]["mlp"]
    assert mlp["experts"]["gate_proj"].shape == (3, 256, 64)
    assert not isinstance(mlp["gate"], QuantizedArray)
    exact = logits_of(checkpoints.load(tmp_path), [3, 1, 4])
    np.testing.assert_allclose(logits_of(found, [3, 1, 4]), exact, atol=0.05 * np.abs(exact).max())


@pytest.mark.parametrize("name", ["int8", "q4_k"])
def test_rows_lie_side_by_side_on_a_cpu(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, CONFIG | {"vocab_size": 90}, tensors_of(CONFIG | {"vocab_size": 90}))
    side, own = (checkpoints.load(folder, quantization=name, is_arranged=flag) for flag in (None, False))
    found, plain = (loaded.params["layers"][1]["mlp"]["down_proj"] for loaded in (side, own))
    assert (found.scheme.rows, plain.scheme.rows) == (16, 1)
    assert side.params["embed_tokens"].scheme.rows == 1  # 90 rows
    for mine, theirs in zip(found.plain().planes, plain.planes, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_allclose(logits_of(side, [3, 1, 4]), logits_of(own, [3, 1, 4]), atol=1e-5)


def test_some_may_stay_as_they_are(tmp_path: Path) -> None:
    folder = write(tmp_path, CONFIG, tensors_of(CONFIG))
    found = checkpoints.load(folder, quantization="int8", keep=["lm_head", "layers.1."])
    assert not isinstance(found.params["lm_head"], QuantizedArray)
    assert not isinstance(found.params["layers"][1]["mlp"]["up_proj"], QuantizedArray)
    assert isinstance(found.params["layers"][0]["mlp"]["up_proj"], QuantizedArray)


def test_an_unknown_quantisation(tmp_path: Path) -> None:
    with pytest.raises(inf.errors.ValueMismatchError, match="no quantization of that name") as caught:
        checkpoints.load(tmp_path, quantization="q3")
    assert "q4_k" in str(caught.value)
