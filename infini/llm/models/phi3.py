"""Phi 3: LLaMA with matrices that files have joined, and rotary embeddings of a part of each head.

Reference: arXiv:2404.14219.
"""

from __future__ import annotations

from infini.llm.models import llama, weights
from infini.llm.models.config import Config
from infini.llm.models.family import Family, Json
from infini.llm.models.weights import Weight


def _config(data: Json) -> Config:
    defaults = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    window = data.get("sliding_window")
    windows = () if window is None else (window,) * llama.size(data, "num_hidden_layers")
    return llama.config(
        data, defaults=defaults, windows=windows, qkv_bias=False, output_bias=False, mlp_bias=False
    )


def _table(model: Config) -> list[Weight]:
    found = llama.ends(model)
    width, hidden, queries = model.hidden_size, model.intermediate_size, model.num_heads * model.head_dim
    keys = model.num_kv_heads * model.head_dim
    for number in range(model.num_layers):
        path, name = ("layers", number), f"model.layers.{number}"
        found += llama.norms(model, number)
        start = 0
        for key, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            found += weights.linear(
                (*path, "self_attn", key),
                f"{name}.self_attn.qkv_proj",
                rows,
                width,
                stored_shape=(queries + 2 * keys, width),
                part=(start, start + rows),
            )
            start += rows
        found += weights.linear((*path, "self_attn", "o_proj"), f"{name}.self_attn.o_proj", width, queries)
        for key, start in (("gate_proj", 0), ("up_proj", hidden)):
            found += weights.linear(
                (*path, "mlp", key),
                f"{name}.mlp.gate_up_proj",
                hidden,
                width,
                stored_shape=(2 * hidden, width),
                part=(start, start + hidden),
            )
        found += weights.linear((*path, "mlp", "down_proj"), f"{name}.mlp.down_proj", width, hidden)
    return found


FAMILY = Family(names=("phi3",), architectures=("Phi3ForCausalLM",), config=_config, weights=_table)
