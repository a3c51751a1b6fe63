"""Which models GGUF files hold, as tables: names of tensors here and in Hugging Face's folders, and metadata
beside fields of config.json.

A new architecture is one entry of `ARCHITECTURES`. References: llama.cpp's lists of names,
https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/tensor_mapping.py, and the configurations of
https://github.com/huggingface/transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Json = dict[str, Any]  # Any: whatever JSON holds

# What becomes of a tensor between the two.
#   same         nothing
#   queries      rows of each head are in the order of llama.cpp's rotary embeddings: pairs lie side by side,
#   keys         where Hugging Face has the first halves of all pairs and then the second ones
#   plus one     files have the weight of a norm that multiplies by 1 + weight with the 1 added
#   transposed   Hugging Face has (inputs, outputs)
#   experts      files have those of all experts in one tensor
#   latent keys, latent values    the two halves of DeepSeek's kv_b_proj, the first one transposed
Kind = Literal["same", "queries", "keys", "plus one", "transposed", "experts", "latent keys", "latent values"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One tensor of a model, or one of each block.

    Args:
        file: name in GGUF files; `{i}` is a block, `{s}` is weight or bias, `{e}` an expert.
        model: name in Hugging Face's folders.
        kind: what becomes of it.
    """

    file: str
    model: str
    kind: Kind = "same"


@dataclass(frozen=True, slots=True)
class Field:
    """One number of the configuration.

    Args:
        key: key in GGUF files, after the name of the architecture.
        name: field of config.json.
        default: what it is where a file does not say; None for leaving it out.
        is_required: whether every file has to say it.
    """

    key: str
    name: str
    default: Any = None  # Any: a JSON value
    is_required: bool = False


@dataclass(frozen=True, slots=True)
class Architecture:
    """A kind of model.

    Args:
        name: `general.architecture` of its files.
        model_type: `model_type` of its config.json.
        class_name: the entry of `architectures` there.
        rules: its tensors.
        fields: its numbers.
        constants: fields of config.json that all its files imply.
    """

    name: str
    model_type: str
    class_name: str
    rules: tuple[Rule, ...]
    fields: tuple[Field, ...]
    constants: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON values


_EMBEDDINGS: Final = (
    Rule("token_embd.{s}", "model.embed_tokens.{s}"),
    Rule("output_norm.{s}", "model.norm.{s}"),
    Rule("output.{s}", "lm_head.{s}"),
)
_LAYER: Final = "model.layers.{i}."


def _block(*pairs: tuple[str, str] | tuple[str, str, Kind]) -> tuple[Rule, ...]:
    return tuple(
        Rule(f"blk.{{i}}.{pair[0]}", _LAYER + pair[1], pair[2] if len(pair) == 3 else "same")
        for pair in pairs
    )


_ATTENTION: Final = _block(
    ("attn_norm.{s}", "input_layernorm.{s}"),
    ("attn_q.{s}", "self_attn.q_proj.{s}"),
    ("attn_k.{s}", "self_attn.k_proj.{s}"),
    ("attn_v.{s}", "self_attn.v_proj.{s}"),
    ("attn_output.{s}", "self_attn.o_proj.{s}"),
)
_ROTATED_ATTENTION: Final = _block(
    ("attn_norm.{s}", "input_layernorm.{s}"),
    ("attn_q.{s}", "self_attn.q_proj.{s}", "queries"),
    ("attn_k.{s}", "self_attn.k_proj.{s}", "keys"),
    ("attn_v.{s}", "self_attn.v_proj.{s}"),
    ("attn_output.{s}", "self_attn.o_proj.{s}"),
)
_QK_NORMS: Final = _block(
    ("attn_q_norm.{s}", "self_attn.q_norm.{s}"), ("attn_k_norm.{s}", "self_attn.k_norm.{s}")
)
_MLP_NORM: Final = _block(("ffn_norm.{s}", "post_attention_layernorm.{s}"))
_MLP: Final = _block(
    ("ffn_gate.{s}", "mlp.gate_proj.{s}"),
    ("ffn_up.{s}", "mlp.up_proj.{s}"),
    ("ffn_down.{s}", "mlp.down_proj.{s}"),
)
_EXPERTS: Final = _block(
    ("ffn_gate_inp.{s}", "mlp.gate.{s}"),
    ("ffn_gate_exps.{s}", "mlp.experts.{e}.gate_proj.{s}", "experts"),
    ("ffn_up_exps.{s}", "mlp.experts.{e}.up_proj.{s}", "experts"),
    ("ffn_down_exps.{s}", "mlp.experts.{e}.down_proj.{s}", "experts"),
)
_MIXTRAL_EXPERTS: Final = _block(
    ("ffn_gate_inp.{s}", "block_sparse_moe.gate.{s}"),
    ("ffn_gate_exps.{s}", "block_sparse_moe.experts.{e}.w1.{s}", "experts"),
    ("ffn_up_exps.{s}", "block_sparse_moe.experts.{e}.w3.{s}", "experts"),
    ("ffn_down_exps.{s}", "block_sparse_moe.experts.{e}.w2.{s}", "experts"),
)
# Files made before April 2024 have a tensor per expert.
_MIXTRAL_SINGLE_EXPERTS: Final = _block(
    ("ffn_gate.{e}.{s}", "block_sparse_moe.experts.{e}.w1.{s}"),
    ("ffn_up.{e}.{s}", "block_sparse_moe.experts.{e}.w3.{s}"),
    ("ffn_down.{e}.{s}", "block_sparse_moe.experts.{e}.w2.{s}"),
)
_GEMMA: Final = (
    Rule("token_embd.{s}", "model.embed_tokens.{s}"),
    Rule("output_norm.{s}", "model.norm.{s}", "plus one"),
    *_block(
        ("attn_norm.{s}", "input_layernorm.{s}", "plus one"),
        ("attn_q.{s}", "self_attn.q_proj.{s}"),
        ("attn_k.{s}", "self_attn.k_proj.{s}"),
        ("attn_v.{s}", "self_attn.v_proj.{s}"),
        ("attn_output.{s}", "self_attn.o_proj.{s}"),
        ("post_attention_norm.{s}", "post_attention_layernorm.{s}", "plus one"),
        ("ffn_norm.{s}", "pre_feedforward_layernorm.{s}", "plus one"),
        ("post_ffw_norm.{s}", "post_feedforward_layernorm.{s}", "plus one"),
    ),
    *_MLP,
)
_PHI3: Final = (
    *_EMBEDDINGS,
    *_block(
        ("attn_norm.{s}", "input_layernorm.{s}"),
        ("attn_qkv.{s}", "self_attn.qkv_proj.{s}"),
        ("attn_output.{s}", "self_attn.o_proj.{s}"),
        ("ffn_norm.{s}", "post_attention_layernorm.{s}"),
        ("ffn_up.{s}", "mlp.gate_up_proj.{s}"),
        ("ffn_down.{s}", "mlp.down_proj.{s}"),
    ),
)
_GPT2: Final = (
    Rule("token_embd.{s}", "transformer.wte.{s}"),
    Rule("position_embd.{s}", "transformer.wpe.{s}"),
    Rule("output_norm.{s}", "transformer.ln_f.{s}"),
    Rule("output.{s}", "lm_head.{s}"),
    Rule("blk.{i}.attn_norm.{s}", "transformer.h.{i}.ln_1.{s}"),
    Rule("blk.{i}.attn_qkv.{s}", "transformer.h.{i}.attn.c_attn.{s}", "transposed"),
    Rule("blk.{i}.attn_output.{s}", "transformer.h.{i}.attn.c_proj.{s}", "transposed"),
    Rule("blk.{i}.ffn_norm.{s}", "transformer.h.{i}.ln_2.{s}"),
    Rule("blk.{i}.ffn_up.{s}", "transformer.h.{i}.mlp.c_fc.{s}", "transposed"),
    Rule("blk.{i}.ffn_down.{s}", "transformer.h.{i}.mlp.c_proj.{s}", "transposed"),
)
_DEEPSEEK: Final = (
    *_EMBEDDINGS,
    *_block(
        ("attn_norm.weight", "input_layernorm.weight"),
        ("attn_q.weight", "self_attn.q_proj.weight"),
        ("attn_q_a.weight", "self_attn.q_a_proj.weight"),
        ("attn_q_a_norm.weight", "self_attn.q_a_layernorm.weight"),
        ("attn_q_b.weight", "self_attn.q_b_proj.weight"),
        ("attn_kv_a_mqa.weight", "self_attn.kv_a_proj_with_mqa.weight"),
        ("attn_kv_a_norm.weight", "self_attn.kv_a_layernorm.weight"),
        ("attn_kv_b.weight", "self_attn.kv_b_proj.weight"),
        ("attn_k_b.weight", "self_attn.kv_b_proj.weight", "latent keys"),
        ("attn_v_b.weight", "self_attn.kv_b_proj.weight", "latent values"),
        ("attn_output.weight", "self_attn.o_proj.weight"),
    ),
    *_MLP_NORM,
    *_MLP,
    *_EXPERTS,
    *_block(
        ("exp_probs_b.bias", "mlp.gate.e_score_correction_bias"),
        ("ffn_gate_shexp.{s}", "mlp.shared_experts.gate_proj.{s}"),
        ("ffn_up_shexp.{s}", "mlp.shared_experts.up_proj.{s}"),
        ("ffn_down_shexp.{s}", "mlp.shared_experts.down_proj.{s}"),
    ),
)

_LLAMA_RULES: Final = (*_EMBEDDINGS, *_ROTATED_ATTENTION, *_MLP_NORM, *_MLP)

_SIZES: Final = (
    Field("context_length", "max_position_embeddings", is_required=True),
    Field("embedding_length", "hidden_size", is_required=True),
    Field("block_count", "num_hidden_layers", is_required=True),
    Field("feed_forward_length", "intermediate_size", is_required=True),
    Field("attention.head_count", "num_attention_heads", is_required=True),
    Field("attention.head_count_kv", "num_key_value_heads"),
    Field("attention.layer_norm_rms_epsilon", "rms_norm_eps", is_required=True),
)
_THETA: Final = Field("rope.freq_base", "rope_theta", 10_000.0)
_HEAD: Final = Field("attention.key_length", "head_dim")
_WINDOW: Final = Field("attention.sliding_window", "sliding_window")
_LLAMA_FIELDS: Final = (*_SIZES, _HEAD, _THETA)

_MOE_FIELDS: Final = (
    Field("expert_used_count", "num_experts_per_tok", is_required=True),
    Field("expert_feed_forward_length", "moe_intermediate_size"),
)

_DEEPSEEK_FIELDS: Final = (
    *(f for f in _SIZES if f.name != "num_key_value_heads"),
    _THETA,
    Field("leading_dense_block_count", "first_k_dense_replace", 0),
    Field("attention.q_lora_rank", "q_lora_rank"),
    Field("attention.kv_lora_rank", "kv_lora_rank", is_required=True),
    Field("rope.dimension_count", "qk_rope_head_dim", is_required=True),
    *_MOE_FIELDS,
    Field("expert_count", "n_routed_experts", is_required=True),
    Field("expert_shared_count", "n_shared_experts", 0),
    Field("expert_weights_scale", "routed_scaling_factor", 1.0),
    Field("expert_weights_norm", "norm_topk_prob", False),
    Field("expert_group_count", "n_group"),
    Field("expert_group_used_count", "topk_group"),
)

ARCHITECTURES: Final[tuple[Architecture, ...]] = (
    Architecture("llama", "llama", "LlamaForCausalLM", _LLAMA_RULES, _LLAMA_FIELDS, {"hidden_act": "silu"}),
    Architecture(
        "llama",
        "mistral",
        "MistralForCausalLM",
        _LLAMA_RULES,
        (*_LLAMA_FIELDS, _WINDOW),
        {"hidden_act": "silu"},
    ),
    Architecture(
        "llama",
        "mixtral",
        "MixtralForCausalLM",
        (*_EMBEDDINGS, *_ROTATED_ATTENTION, *_MLP_NORM, *_MIXTRAL_EXPERTS, *_MIXTRAL_SINGLE_EXPERTS),
        (
            *_LLAMA_FIELDS,
            _WINDOW,
            Field("expert_count", "num_local_experts", is_required=True),
            Field("expert_used_count", "num_experts_per_tok", is_required=True),
        ),
        {"hidden_act": "silu"},
    ),
    Architecture(
        "minicpm", "minicpm", "MiniCPMForCausalLM", _LLAMA_RULES, _LLAMA_FIELDS, {"hidden_act": "silu"}
    ),
    Architecture(
        "qwen2",
        "qwen2",
        "Qwen2ForCausalLM",
        (*_EMBEDDINGS, *_ATTENTION, *_MLP_NORM, *_MLP),
        (*_SIZES, _THETA),
        {"hidden_act": "silu", "use_sliding_window": False},
    ),
    Architecture(
        "qwen3",
        "qwen3",
        "Qwen3ForCausalLM",
        (*_EMBEDDINGS, *_ATTENTION, *_QK_NORMS, *_MLP_NORM, *_MLP),
        _LLAMA_FIELDS,
        {"hidden_act": "silu", "use_sliding_window": False},
    ),
    Architecture(
        "qwen3moe",
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        (*_EMBEDDINGS, *_ATTENTION, *_QK_NORMS, *_MLP_NORM, *_MLP, *_EXPERTS),
        (*_LLAMA_FIELDS, *_MOE_FIELDS, Field("expert_count", "num_experts", is_required=True)),
        {
            "hidden_act": "silu",
            "use_sliding_window": False,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
    ),
    Architecture(
        "gemma2",
        "gemma2",
        "Gemma2ForCausalLM",
        _GEMMA,
        (
            *_LLAMA_FIELDS,
            Field("attn_logit_softcapping", "attn_logit_softcapping", 50.0),
            Field("final_logit_softcapping", "final_logit_softcapping", 30.0),
            Field("attention.sliding_window", "sliding_window", 4096),
        ),
        {
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_act": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
        },
    ),
    Architecture(
        "phi3",
        "phi3",
        "Phi3ForCausalLM",
        _PHI3,
        (
            *_SIZES,
            _THETA,
            _WINDOW,
            Field("rope.scaling.original_context_length", "original_max_position_embeddings"),
        ),
        {"hidden_act": "silu"},
    ),
    Architecture(
        "gpt2",
        "gpt2",
        "GPT2LMHeadModel",
        _GPT2,
        (
            Field("context_length", "n_positions", is_required=True),
            Field("embedding_length", "n_embd", is_required=True),
            Field("block_count", "n_layer", is_required=True),
            Field("feed_forward_length", "n_inner"),
            Field("attention.head_count", "n_head", is_required=True),
            Field("attention.layer_norm_epsilon", "layer_norm_epsilon", is_required=True),
        ),
        {"activation_function": "gelu_new"},
    ),
    Architecture(
        "deepseek2",
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        _DEEPSEEK,
        _DEEPSEEK_FIELDS,
        {"hidden_act": "silu", "moe_layer_freq": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    ),
    Architecture(
        "deepseek2",
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        _DEEPSEEK,
        _DEEPSEEK_FIELDS,
        {"hidden_act": "silu", "moe_layer_freq": 1, "scoring_func": "softmax"},
    ),
)  # fmt: skip

BY_MODEL_TYPE: Final[dict[str, Architecture]] = {a.model_type: a for a in ARCHITECTURES}
FILE_NAMES: Final[tuple[str, ...]] = tuple(dict.fromkeys(a.name for a in ARCHITECTURES))
