"""Models of every architecture, written to GGUF and read again: the same weights and the same
configuration.
"""

from __future__ import annotations

import numpy as np
import pytest

from infini.core import errors
from infini.io import gguf
from infini.llm import checkpoints, models
from infini.llm.checkpoints import gguf as own
from tests.llm.checkpoints import gguf_models


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A function from the name of a model to its file."""
    folder = tmp_path_factory.mktemp("models")

    def file(kind, type="auto"):
        path = folder / f"{kind} {type}.gguf"
        if not path.exists():
            metadata, tensors = own.write_model(
                gguf_models.config(kind), gguf_models.tensors(kind), type=type
            )
            gguf.write(path, metadata, tensors)
        return path

    return file


def _plane_bytes(x):
    return {name: np.asarray(plane).tobytes() for name, plane in x.named_planes()}


@pytest.mark.parametrize("kind", gguf_models.CONFIGS)
def test_weights_come_back_under_their_names(files, kind):
    expected = gguf_models.tensors(kind)
    found = own.read(files(kind)).tensors
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        # The norms of Gemma are stored with 1 added, which rounds them.
        tolerance = 1e-7 if kind == "gemma2" and "norm" in name else 0
        np.testing.assert_allclose(found[name].numpy(), array, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("kind", gguf_models.CONFIGS)
def test_the_configuration_comes_back(files, kind):
    found = models.config_from_json(own.read(files(kind)).config)
    assert found == models.config_from_json(gguf_models.config(kind))


@pytest.mark.parametrize("kind", gguf_models.CONFIGS)
def test_a_file_loads_as_a_checkpoint(files, kind):
    found = checkpoints.load(files(kind))
    assert found.config == models.config_from_json(gguf_models.config(kind))
    assert found.nbytes >= sum(array.nbytes for array in gguf_models.tensors(kind).values()) // 2


def test_files_are_named_as_llama_cpp_names_them(files):
    names = set(gguf.read(files("llama")).tensors)
    parts = [
        "attn_norm",
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_norm",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
    ]
    blocks = {f"blk.{i}.{part}.weight" for i in range(2) for part in parts}
    assert names == blocks | {"token_embd.weight", "output_norm.weight", "output.weight"}


def test_rows_of_heads_are_stored_in_pairs(files):
    width, heads = 16, 4
    stored = gguf.read(files("llama")).tensors["blk.0.attn_q.weight"].numpy().reshape(heads, width, 64)
    plain = gguf_models.tensors("llama")["model.layers.0.self_attn.q_proj.weight"].reshape(heads, width, 64)
    np.testing.assert_array_equal(stored[:, 0::2], plain[:, : width // 2])
    np.testing.assert_array_equal(stored[:, 1::2], plain[:, width // 2 :])


def test_quantised_rows_are_put_in_order_without_touching_their_blocks(files):
    found = own.read(files("llama", "Q8_0")).tensors["model.layers.0.self_attn.k_proj.weight"]
    plain = gguf_models.tensors("llama")["model.layers.0.self_attn.k_proj.weight"]
    assert found.type.name == "Q8_0"
    np.testing.assert_array_equal(found.data, gguf.quantize(plain, "Q8_0"))


@pytest.mark.parametrize("type", ["Q4_0", "Q5_1", "Q8_0"])
def test_blocks_become_planes_of_quantized_arrays(files, type):
    params = checkpoints.load(files("qwen2, wide", type), is_arranged=False).params
    weight = params["layers"][0]["self_attn"]["q_proj"]
    plain = gguf_models.tensors("qwen2, wide")["model.layers.0.self_attn.q_proj.weight"]
    assert weight.scheme.name == type
    assert _plane_bytes(weight) == _plane_bytes(own.planes(gguf.quantize(plain, type), type))


def test_norms_and_biases_stay_float32(files):
    found = gguf.read(files("qwen2", "Q8_0")).tensors
    kinds = {name: x.type.name for name, x in found.items()}
    assert all(kind == "F32" for name, kind in kinds.items() if "norm" in name or name.endswith("bias"))
    assert kinds["blk.0.attn_q.weight"] == "Q8_0"


def test_rows_that_blocks_do_not_divide_are_float16():
    config = {**gguf_models.config("llama"), "intermediate_size": 40, "hidden_size": 64}
    tensors = {"model.layers.0.mlp.down_proj.weight": np.ones((64, 40), np.float32)}
    _, found = own.write_model(config, tensors, type="Q4_0")
    assert found[0].type.name == "F16"


def test_one_tensor_of_each_expert_becomes_one_of_all(files):
    found = gguf.read(files("mixtral")).tensors["blk.0.ffn_gate_exps.weight"]
    assert found.shape == (4, 96, 64)
    third = gguf_models.tensors("mixtral")["model.layers.0.block_sparse_moe.experts.2.w1.weight"]
    np.testing.assert_array_equal(found.numpy()[2], third)


def test_experts_of_old_files_have_tensors_of_their_own(files, tmp_path):
    file = gguf.read(files("mixtral"))
    tensors = []
    for name, x in file.tensors.items():
        if "_exps" not in name:
            tensors.append(x)
            continue
        for number in range(x.shape[0]):
            one = name.replace("_exps.", f".{number}.")
            tensors.append(gguf.tensor(one, x.numpy()[number], "F32"))
    gguf.write(tmp_path / "old.gguf", file.metadata, tensors)
    found = own.read(tmp_path / "old.gguf").tensors
    assert found.keys() == gguf_models.tensors("mixtral").keys()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model_type": "bert"}, "bert"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8}, "sliding window"),
        ({"model_type": "gemma2", "head_dim": 16, "query_pre_attn_scalar": 20}, "query_pre_attn_scalar"),
        (
            {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": False},
            "sum to 1",
        ),
    ],
)
def test_what_gguf_cannot_say_is_refused(changes, word):
    with pytest.raises(errors.UnsupportedError, match=word):
        own.write_model({**gguf_models.config("llama"), **changes}, {})


def test_unknown_tensors_are_refused_by_name(files, tmp_path):
    file = gguf.read(files("llama"))
    extra = gguf.tensor("blk.0.attn_sinks.weight", np.zeros(4, np.float32), "F32")
    gguf.write(tmp_path / "a.gguf", file.metadata, [*file.tensors.values(), extra])
    with pytest.raises(errors.UnsupportedError, match="attn_sinks"):
        own.read(tmp_path / "a.gguf")


def test_an_unknown_architecture_is_refused_by_name(tmp_path):
    gguf.write(tmp_path / "a.gguf", {"general.architecture": "mamba"}, [])
    with pytest.raises(errors.UnsupportedError, match="mamba"):
        own.read(tmp_path / "a.gguf")


@pytest.mark.parametrize("value", ["four", [4, 8], -1, 0])
def test_a_key_of_the_wrong_kind_is_an_error(files, tmp_path, value):
    file = gguf.read(files("llama"))
    fields = {**file.metadata.fields, "llama.attention.head_count": gguf.value_of(value)}
    gguf.write(tmp_path / "a.gguf", fields, file.tensors.values())
    with pytest.raises(errors.InfiniError):
        checkpoints.load(tmp_path / "a.gguf")


def test_a_missing_key_is_named(files, tmp_path):
    file = gguf.read(files("llama"))
    fields = {key: value for key, value in file.metadata.fields.items() if "block_count" not in key}
    gguf.write(tmp_path / "a.gguf", fields, file.tensors.values())
    with pytest.raises(gguf.GGUFError, match="block_count"):
        own.read(tmp_path / "a.gguf")


def test_factors_of_llama_3_are_recognised_in_their_tensor(files):
    assert own.read(files("llama 3")).config["rope_scaling"] == gguf_models.CONFIGS["llama 3"]["rope_scaling"]


def test_factors_that_no_formula_gives_are_kept_one_by_one(files, tmp_path):
    file = gguf.read(files("llama"))
    factors = np.array([1, 1, 2, 7, 3, 8, 8, 5], np.float32)
    tensors = [*file.tensors.values(), gguf.tensor("rope_freqs.weight", factors, "F32")]
    gguf.write(tmp_path / "a.gguf", file.metadata, tensors)
    found = models.config_from_json(own.read(tmp_path / "a.gguf").config).rope
    assert found.long_factors == found.short_factors == tuple(factors.tolist())
    assert found.scaling.attention_factor == 1.0


@pytest.mark.parametrize("kind", ["llama 3", "phi3, long", "deepseek v3", "minicpm", "gpt2"])
def test_no_byte_of_the_header_crashes_the_reader_of_models(files, tmp_path, kind):
    raw = files(kind).read_bytes()
    end = gguf.read(files(kind)).headers[0].data_start
    path = tmp_path / "a.gguf"
    path.write_bytes(raw)
    outcomes = {"read": 0, "refused": 0}
    rng = np.random.default_rng(1)
    with path.open("r+b") as out:
        for place in range(0, end, 4):
            out.seek(place)
            out.write(bytes([int(rng.choice([0, 1, 0x7F, 0xFF, raw[place] ^ 1, raw[place] ^ 0x40]))]))
            out.flush()
            try:
                models.config_from_json(own.read(path).config)
                outcomes["read"] += 1
            except errors.InfiniError:
                outcomes["refused"] += 1
            out.seek(place)
            out.write(raw[place : place + 1])
    assert min(outcomes.values()) > 10
