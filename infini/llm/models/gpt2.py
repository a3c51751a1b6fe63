"""GPT-2: learned positions, norms with mean and deviation, a feed-forward layer without a gate, biases
everywhere, and matrices that files have as (in, out).
"""

from __future__ import annotations

import re
from typing import Final

from infini.core import errors
from infini.llm.models import llama, weights
from infini.llm.models.config import Config
from infini.llm.models.family import Family, Json
from infini.llm.models.weights import Weight

_DEFAULTS: Final = {
    "model_type": "gpt2",
    "n_positions": 1024,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}


def _config(data: Json) -> Config:
    data = llama.stated(data, _DEFAULTS)
    for name, value in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if bool(data.get(name, value)) is not value:
            raise errors.ValueMismatchError(
                "this model is not supported",
                got=f"{name} = {data[name]} in config.json",
                expected=str(value),
            )
    width, heads = llama.size(data, "n_embd"), llama.size(data, "n_head")
    return Config(
        family="gpt2",
        vocab_size=llama.size(data, "vocab_size"),
        hidden_size=width,
        intermediate_size=llama.size(data, "n_inner") if data.get("n_inner") else 4 * width,
        num_layers=llama.size(data, "n_layer"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        max_length=llama.size(data, "n_positions"),
        norm="layer",
        norm_epsilon=float(data["layer_norm_epsilon"]),
        activation=llama.activation(data["activation_function"]),
        is_gated=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        tie_embeddings=bool(data["tie_word_embeddings"]),
    )


def _table(model: Config) -> list[Weight]:
    width, hidden = model.hidden_size, model.intermediate_size
    found = [
        Weight(("embed_tokens",), ("transformer.wte.weight",), (model.vocab_size, width), kind="embedding"),
        Weight(("embed_positions",), ("transformer.wpe.weight",), (model.max_length, width)),
        *weights.norm(("norm",), "transformer.ln_f", width, has_bias=True),
    ]
    if not model.tie_embeddings:
        found += weights.linear(("lm_head",), "lm_head", model.vocab_size, width)
    for number in range(model.num_layers):
        path, name = ("layers", number), f"transformer.h.{number}"
        found += weights.norm((*path, "attention_norm"), f"{name}.ln_1", width, has_bias=True)
        found += weights.norm((*path, "mlp_norm"), f"{name}.ln_2", width, has_bias=True)
        for place, key in enumerate(("q_proj", "k_proj", "v_proj")):
            found += weights.linear(
                (*path, "self_attn", key),
                f"{name}.attn.c_attn",
                width,
                width,
                has_bias=True,
                stored_shape=(width, 3 * width),
                part=(place * width, (place + 1) * width),
                is_transposed=True,
            )
        for place_, stored, rows, columns in (
            (("self_attn", "o_proj"), "attn.c_proj", width, width),
            (("mlp", "up_proj"), "mlp.c_fc", hidden, width),
            (("mlp", "down_proj"), "mlp.c_proj", width, hidden),
        ):
            found += weights.linear(
                (*path, *place_), f"{name}.{stored}", rows, columns, has_bias=True, is_transposed=True
            )
    return found


def _stored_name(name: str, model: Config) -> str | None:
    """Files of the first release lack the prefix, and have masks beside the weights."""
    if re.search(r"\.attn\.(masked_)?bias$", name):
        return None
    return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"


FAMILY = Family(
    names=("gpt2",),
    architectures=("GPT2LMHeadModel",),
    config=_config,
    weights=_table,
    stored_name=_stored_name,
)
