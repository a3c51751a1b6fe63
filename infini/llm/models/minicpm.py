"""MiniCPM and the 9G models: LLaMA with scales of embeddings, of what layers add, and of logits.

What a config.json does not state is not scaled. 9G's files may have biases of queries, keys and values, and
norms of queries and keys, without saying so: their weights say it.

Reference: MiniCPM (arXiv:2404.06395).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any

from infini.llm.models import llama
from infini.llm.models.config import Config
from infini.llm.models.family import Family, Json


def _config(data: Json) -> Config:
    return llama.config(data, defaults={"rms_norm_eps": 1e-5})


def _scaled(data: Json) -> Config:
    data = llama.stated(data, {"rms_norm_eps": 1e-5})
    width, num_layers = llama.size(data, "hidden_size"), llama.size(data, "num_hidden_layers")
    scales: dict[str, Any] = {}  # Any: as `llama.config` takes them
    if "scale_emb" in data:
        scales["embedding_scale"] = float(data["scale_emb"])
    if "scale_depth" in data:
        scales["residual_scale"] = float(data["scale_depth"]) / math.sqrt(num_layers)
    if "dim_model_base" in data:
        scales["logits_scale"] = float(data["dim_model_base"]) / width
    return llama.config(data, **scales)


def _fitted(model: Config, names: Collection[str]) -> Config:
    attention = "model.layers.0.self_attn"
    return dataclasses.replace(
        model,
        qkv_bias=f"{attention}.q_proj.bias" in names,
        output_bias=f"{attention}.o_proj.bias" in names,
        qk_norm=f"{attention}.q_norm.weight" in names,
    )


FAMILY = Family(
    names=("minicpm", "fm9g"),
    architectures=("MiniCPMForCausalLM", "FM9GForCausalLM"),
    config=_scaled,
    weights=llama.table,
    fitted=_fitted,
)
JIUGE = Family(
    names=("fm9g7b", "jiuge"),
    architectures=("FM9G7BForCausalLM", "JiugeForCausalLM"),
    config=_config,
    weights=llama.table,
    fitted=_fitted,
)
