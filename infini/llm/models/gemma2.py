"""Gemma 2: norms around both layers that multiply by 1 + weight, caps of scores and logits, and windows in
every second block.

Reference: arXiv:2408.00118.
"""

from __future__ import annotations

from typing import Final

from infini.core import errors
from infini.llm.models import llama, qwen, weights
from infini.llm.models.config import Config
from infini.llm.models.family import Family, Json
from infini.llm.models.weights import Weight

_DEFAULTS: Final = {
    "max_position_embeddings": 8192,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "tie_word_embeddings": True,
}


def _config(data: Json) -> Config:
    # null switches off what is on when nothing is said.
    switches = {"sliding_window": 4096, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0}
    window, logits_cap, attention_cap = (data.get(name, value) for name, value in switches.items())
    data = llama.stated(data, _DEFAULTS)
    if data.get("use_bidirectional_attention"):
        raise errors.ValueMismatchError(
            "this model is not supported", got="use_bidirectional_attention = true in config.json"
        )
    num_layers = llama.size(data, "num_hidden_layers")
    kinds = data.get("layer_types") or [
        "full_attention" if number % 2 else "sliding_attention" for number in range(num_layers)
    ]
    return llama.config(
        data,
        windows=() if window is None else qwen.layer_windows(kinds, window),
        activation=llama.activation(data["hidden_activation"]),
        is_norm_offset=True,
        has_output_norms=True,
        attention_scale=data["query_pre_attn_scalar"] ** -0.5,
        attention_cap=attention_cap,
        logits_cap=logits_cap,
        embedding_scale=llama.size(data, "hidden_size") ** 0.5,
        mlp_bias=False,
    )


def _table(model: Config) -> list[Weight]:
    found = llama.ends(model)
    for number in range(model.num_layers):
        path, name = ("layers", number), f"model.layers.{number}"
        for key, stored in (
            ("attention_norm", "input_layernorm"),
            ("attention_output_norm", "post_attention_layernorm"),
            ("mlp_norm", "pre_feedforward_layernorm"),
            ("mlp_output_norm", "post_feedforward_layernorm"),
        ):
            found += weights.norm((*path, key), f"{name}.{stored}", model.hidden_size)
        found += llama.attention(model, number)
        found += llama.feed_forward((*path, "mlp"), f"{name}.mlp", model, model.intermediate_size)
    return found


FAMILY = Family(names=("gemma2",), architectures=("Gemma2ForCausalLM",), config=_config, weights=_table)
