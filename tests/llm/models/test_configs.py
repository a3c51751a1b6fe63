"""What config.json files of published models say, against what is known of these models."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

import infini as inf
from infini.llm import models
from infini.llm.models import registry

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def sizes(
    width: int, hidden: int, layers: int, heads: int, kv_heads: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
    } | more  # fmt: skip


PUBLISHED: dict[str, tuple[str, int, dict[str, Any]]] = {
    "Llama 3.1 8B": ("llama", 8_030_261_248, sizes(4096, 14336, 32, 32, 8, 128256)),
    "TinyLlama": ("llama", 1_100_048_384, sizes(2048, 5632, 22, 32, 4, 32000)),
    "Mistral 7B": ("mistral", 7_241_732_096, sizes(4096, 14336, 32, 32, 8, 32000)),
    "Mixtral 8x7B": ("mixtral", 46_702_792_704, sizes(4096, 14336, 32, 32, 8, 32000, num_local_experts=8)),
    "Qwen2.5 7B": ("qwen2", 7_615_616_512, sizes(3584, 18944, 28, 28, 4, 152064)),
    "Qwen3 8B": ("qwen3", 8_190_735_360, sizes(4096, 12288, 36, 32, 8, 151936, head_dim=128)),
    "Qwen3 30B-A3B": (
        "qwen3_moe",
        30_532_122_624,
        sizes(2048, 6144, 48, 32, 4, 151936, head_dim=128, num_experts=128, moe_intermediate_size=768),
    ),
    "Gemma 2 2B": ("gemma2", 2_614_341_888, sizes(2304, 9216, 26, 8, 4, 256000, head_dim=256)),
    "Phi 3 mini": ("phi3", 3_821_079_552, sizes(3072, 8192, 32, 32, 32, 32064)),
    "GPT-2": ("gpt2", 124_439_808, {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12}),
    "DeepSeek V3": ("deepseek_v3", 671_026_419_200, sizes(7168, 18432, 61, 128, 128, 129280)),
    "DeepSeek V2 Lite": (
        "deepseek_v2",
        15_706_484_224,
        sizes(2048, 10944, 27, 16, 16, 102400, q_lora_rank=None, moe_intermediate_size=1408,
              first_k_dense_replace=1),
    ),
    "MiniCPM 2B": ("minicpm", 2_724_880_896, sizes(2304, 5760, 40, 36, 36, 122753, tie_word_embeddings=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_as_many_parameters_as_is_said(name: str) -> None:
    kind, count, data = PUBLISHED[name]
    data = {"model_type": kind} | data
    table = models.family_of(data).weights(models.config_from_json(data))
    assert sum(math.prod(weight.shape) for weight in table) == count
    assert len({weight.path for weight in table}) == len(table)


@pytest.mark.parametrize("name", registry.names())
def test_every_family_makes_a_configuration_that_can_be_hashed(name: str) -> None:
    more = {"n_embd": 32, "n_layer": 2, "n_head": 4} if name == "gpt2" else {}
    config = models.config_from_json(SMALL | {"model_type": name} | more)
    assert config.family == name
    assert hash(config) == hash(models.config_from_json(SMALL | {"model_type": name} | more))


def test_both_spellings_of_rotary_embeddings_say_the_same() -> None:
    inner: dict[str, Any] = {"factor": 4.0, "original_max_position_embeddings": 512}
    spellings: list[dict[str, Any]] = [
        {"rope_theta": 5e5, "rope_scaling": {"type": "yarn", **inner}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "yarn", **inner}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "yarn", **inner}},
    ]
    first, *others = [models.config_from_json(SMALL | {"model_type": "llama"} | own) for own in spellings]
    assert first.rope is not None and first.rope.theta == 5e5 and first.rope.scaling.kind == "yarn"
    assert all(other == first for other in others)


@pytest.mark.parametrize("data, expected", [
    ({"model_type": "llama", "sliding_window": 8}, ()),
    ({"model_type": "mistral"}, (4096,) * 4),
    ({"model_type": "mistral", "sliding_window": None}, ()),
    ({"model_type": "mixtral"}, ()),
    ({"model_type": "mixtral", "sliding_window": 8}, (8,) * 4),
    ({"model_type": "qwen2", "sliding_window": 8}, ()),
    ({"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3},
     (None, None, None, 8)),
    ({"model_type": "qwen3", "sliding_window": 8, "use_sliding_window": True,
      "layer_types": ["full_attention", "sliding_attention"] * 2}, (None, 8, None, 8)),
    ({"model_type": "gemma2", "sliding_window": 8}, (8, None, 8, None)),
    ({"model_type": "phi3", "sliding_window": 2047}, (2047,) * 4),
])  # fmt: skip
def test_windows(data: dict[str, Any], expected: tuple[int | None, ...]) -> None:
    config = models.config_from_json(SMALL | data)
    assert config.windows == expected
    assert [config.window_of(layer) for layer in range(4)] == list(expected or [None] * 4)


def test_null_switches_off_what_is_on_by_default() -> None:
    data = SMALL | {"model_type": "gemma2", "attn_logit_softcapping": None, "final_logit_softcapping": None}
    config = models.config_from_json(data)
    assert config.attention_cap is None and config.logits_cap is None


def test_the_scale_of_scores_has_the_sharpening_of_yarn_twice() -> None:
    rope = {"type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0}
    data = SMALL | {"model_type": "deepseek_v3", "rope_scaling": rope, "qk_nope_head_dim": 128}
    scale = models.config_from_json(data).attention_scale
    assert scale == pytest.approx(192**-0.5 * (0.1 * math.log(40) + 1) ** 2)


def test_a_family_of_ones_own_stands_above_those_that_are_there() -> None:
    before = list(registry._FAMILIES)
    try:
        plain = models.family_named("llama")
        own = dataclasses.replace(plain, architectures=())
        models.register(own)
        assert models.family_of({"model_type": "llama"}) is own
    finally:
        registry._FAMILIES[:] = before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling",
    "rope_parameters", "partial_rotary_factor", "hidden_act", "sliding_window", "use_sliding_window",
    "layer_types", "max_window_layers", "num_local_experts", "num_experts", "num_experts_per_tok",
    "moe_intermediate_size", "mlp_only_layers", "decoder_sparse_step", "n_group", "topk_group", "topk_method",
    "n_routed_experts", "n_shared_experts", "first_k_dense_replace", "moe_layer_freq", "kv_lora_rank",
    "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "routed_scaling_factor", "scale_emb",
    "scale_depth", "dim_model_base", "query_pre_attn_scalar", "attn_logit_softcapping", "n_embd", "n_inner",
    "n_layer", "n_head", "n_positions", "layer_norm_epsilon", "original_max_position_embeddings",
    "final_logit_softcapping", "architectures", "rope_interleave", "tie_word_embeddings",
    "activation_function",
)  # fmt: skip


@given(
    st.sampled_from(registry.names()), st.dictionaries(st.sampled_from(KEYS), JSON, min_size=1, max_size=3)
)
def test_whatever_a_file_says_is_a_model_or_a_named_error(name: str, changes: dict[str, Any]) -> None:
    more = {"n_embd": 32, "n_layer": 2, "n_head": 4} if name == "gpt2" else {"n_routed_experts": 4}
    data = SMALL | {"model_type": name} | more | changes
    try:
        config = models.config_from_json(data)
        hash(config)
    except inf.errors.InfiniError:
        return
    table = models.family_of(data).weights(config)
    assert all(type(size) is int and size > 0 for weight in table for size in weight.shape)


def test_what_kinds_there_are_is_said() -> None:
    with pytest.raises(inf.errors.ValueMismatchError, match="not supported") as caught:
        models.config_from_json({"model_type": "bert", "architectures": ["BertModel"]})
    assert "gemma2" in str(caught.value) and "'bert'" in str(caught.value)
