"""Small models of every architecture of GGUF, made of NumPy's random numbers: equal bytes wherever they are
made.
"""

from __future__ import annotations

import functools
import zlib
from typing import Any

import numpy as np

from infini.llm import models

_SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
_LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [2.0, 2.5, 3.0, 4.0, 6.0, 8.0, 9.0, 10.0],
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
_MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "head_dim": 32}
_DEEPSEEK = {
    "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2,
    "topk_group": 1, "moe_intermediate_size": 32, "n_shared_experts": 1, "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5, "norm_topk_prob": True,
}  # fmt: skip
_WIDE = {"hidden_size": 256, "intermediate_size": 512}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama, biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama 3": {"model_type": "llama", "rope_scaling": _LLAMA3},
    "llama, linear": {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    "llama, yarn": {"model_type": "llama", "rope_scaling": _YARN},
    "llama, wide": {"model_type": "llama", **_WIDE},
    "mistral": {"model_type": "mistral", "sliding_window": 16},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "minicpm": {"model_type": "minicpm", "scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 32},
    "qwen2": {"model_type": "qwen2"},
    "qwen2, wide": {"model_type": "qwen2", **_WIDE},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True},
    "qwen3, wide": {"model_type": "qwen3", "head_dim": 64, "tie_word_embeddings": True, **_WIDE},
    "qwen3 moe": {"model_type": "qwen3_moe", "norm_topk_prob": True, **_MIXTURE},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 16,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
    },
    "phi3": {"model_type": "phi3", "sliding_window": 16},
    "phi3, long": {"model_type": "phi3", "original_max_position_embeddings": 16, "rope_scaling": _LONG},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 96,
        "n_positions": 64,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
    },
    # Of groups llama.cpp takes those with the best two experts, as the third version does and the second
    # does not.
    "deepseek v2": {
        "model_type": "deepseek_v2",
        **_DEEPSEEK,
        "topk_method": "greedy",
        "n_group": 1,
        "norm_topk_prob": False,
    },
    "deepseek v3": {
        "model_type": "deepseek_v3",
        **_DEEPSEEK,
        "rope_scaling": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1},
    },
}


def config(kind: str) -> dict[str, Any]:
    """The config.json of a model."""
    own = CONFIGS[kind]
    return dict(own) if own["model_type"] == "gpt2" else {**_SIZES, **own}


@functools.cache
def tensors(kind: str) -> dict[str, np.ndarray]:
    """Its weights by the names of its folder. Norms, biases and the like are not what they are at first."""
    data = config(kind)
    known = models.config_from_json(data)
    found: dict[str, np.ndarray] = {}
    prefix = "transformer." if data["model_type"] == "gpt2" else ""
    for weight in models.family_of(data).weights(known):
        for name in weight.names:
            own = name if name.startswith(prefix) or name == "lm_head.weight" else prefix + name
            # A stream of its own for every weight, whatever order the table has.
            rng = np.random.default_rng(zlib.crc32(own.encode()))
            shape = weight.file_shape
            is_vector = len(shape) == 1
            scale = 0.1 if is_vector else 1.5 / np.sqrt(shape[-1])
            center = 1.0 if is_vector and "norm" in own and data["model_type"] != "gemma2" else 0.0
            found[own] = (center + scale * rng.standard_normal(shape)).astype(np.float32)
    return found
