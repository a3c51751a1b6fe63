"""Mistral: LLaMA with a window of the last tokens. And Mixtral: the same with experts.

References: Mistral (arXiv:2310.06825), Mixtral (arXiv:2401.04088).
"""

from __future__ import annotations

from typing import Final

from infini.llm.models import llama
from infini.llm.models.config import Config, Experts
from infini.llm.models.family import Family, Json
from infini.llm.models.weights import Weight

_DEFAULTS: Final = {"num_key_value_heads": 8, "max_position_embeddings": 131072}
# What Mixtral calls the three matrices of an expert.
_NAMES: Final = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def _mistral(data: Json) -> Config:
    window = data.get("sliding_window", 4096)  # null switches it off
    return llama.config(data, defaults=_DEFAULTS, windows=_everywhere(window, data))


def _mixtral(data: Json) -> Config:
    data = llama.stated(
        data, {**_DEFAULTS, "rms_norm_eps": 1e-5, "num_local_experts": 8, "num_experts_per_tok": 2}
    )
    experts = Experts(
        count=llama.size(data, "num_local_experts"),
        per_token=llama.size(data, "num_experts_per_tok"),
        width=llama.size(data, "intermediate_size"),
        layers=tuple(range(llama.size(data, "num_hidden_layers"))),
    )
    return llama.config(data, windows=_everywhere(data.get("sliding_window"), data), experts=experts)


def _everywhere(window: int | None, data: Json) -> tuple[int, ...]:
    return () if window is None else (window,) * llama.size(data, "num_hidden_layers")


def _table(model: Config) -> list[Weight]:
    assert model.experts is not None
    found = llama.ends(model)
    for number in range(model.num_layers):
        path, name = ("layers", number), f"model.layers.{number}"
        found += llama.norms(model, number)
        found += llama.attention(model, number)
        found += llama.router((*path, "mlp"), f"{name}.block_sparse_moe.gate", model)
        found += llama.experts((*path, "mlp"), f"{name}.block_sparse_moe", model, _NAMES)
    return found


FAMILY = Family(
    names=("mistral",),
    architectures=("MistralForCausalLM",),
    config=_mistral,
    weights=llama.table,
)
MIXTRAL = Family(
    names=("mixtral",),
    architectures=("MixtralForCausalLM",),
    config=_mixtral,
    weights=_table,
)
