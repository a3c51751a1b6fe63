"""Qwen2, with biases in attention, Qwen3, with norms of queries and keys, and Qwen3 with experts.

References: Qwen2 (arXiv:2407.10671), Qwen3 (arXiv:2505.09388).
"""

from __future__ import annotations

from typing import Final

from infini.core import errors
from infini.llm.models import llama
from infini.llm.models.config import Config, Experts
from infini.llm.models.family import Family, Json
from infini.llm.models.weights import Weight

_DEFAULTS: Final = {"max_position_embeddings": 32768, "num_key_value_heads": 32}
_MOE: Final = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "decoder_sparse_step": 1,
}


def _qwen2(data: Json) -> Config:
    return llama.config(
        data, defaults=_DEFAULTS, windows=_windows(data), qkv_bias=True, output_bias=False, mlp_bias=False
    )


def _qwen3(data: Json) -> Config:
    defaults = {**_DEFAULTS, "head_dim": 128}
    return llama.config(data, defaults=defaults, windows=_windows(data), qk_norm=True)


def _qwen3_moe(data: Json) -> Config:
    data = llama.stated(data, _MOE)
    num_layers, count = (
        llama.size(data, "num_hidden_layers"),
        data.get("num_local_experts", data["num_experts"]),
    )
    dense = set(data.get("mlp_only_layers") or ())
    every = llama.size(data, "decoder_sparse_step")
    experts = Experts(
        count=count,
        per_token=llama.size(data, "num_experts_per_tok"),
        width=llama.size(data, "moe_intermediate_size"),
        layers=tuple(n for n in range(num_layers) if n not in dense and (n + 1) % every == 0),
        is_normalized=bool(data.get("norm_topk_prob", False)),
    )
    window = data.get("sliding_window") if data.get("use_sliding_window") else None
    windows = () if window is None else (window,) * num_layers
    return llama.config(data, windows=windows, qk_norm=True, experts=experts)


def _windows(data: Json) -> tuple[int | None, ...]:
    """For each block its window, which `layer_types` says, or the number of blocks without one."""
    window = data.get("sliding_window", 4096)
    if not data.get("use_sliding_window") or window is None:
        return ()
    num_layers = llama.size(data, "num_hidden_layers")
    kinds = data.get("layer_types")
    if kinds is None:
        first = data.get("max_window_layers", 28)
        return tuple(window if number >= first else None for number in range(num_layers))
    return layer_windows(kinds, window)


def layer_windows(kinds: list[str], window: int) -> tuple[int | None, ...]:
    """For each block its window, of what `layer_types` of a config.json says.

    Raises:
        ValueMismatchError: it says something else.
    """
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise errors.ValueMismatchError(
            "this kind of attention is not supported",
            got=f"layer_types has {min(unknown)!r} in config.json",
            expected="'full_attention' or 'sliding_attention'",
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _moe_table(model: Config) -> list[Weight]:
    assert model.experts is not None
    found = llama.ends(model)
    for number in range(model.num_layers):
        if not model.has_experts(number):
            found += llama.layer(model, number)
            continue
        path, name = ("layers", number, "mlp"), f"model.layers.{number}.mlp"
        found += llama.norms(model, number)
        found += llama.attention(model, number)
        found += llama.router(path, f"{name}.gate", model)
        found += llama.experts(path, name, model)
    return found


QWEN2 = Family(names=("qwen2",), architectures=("Qwen2ForCausalLM",), config=_qwen2, weights=llama.table)
QWEN3 = Family(names=("qwen3",), architectures=("Qwen3ForCausalLM",), config=_qwen3, weights=llama.table)
QWEN3_MOE = Family(
    names=("qwen3_moe",), architectures=("Qwen3MoeForCausalLM",), config=_qwen3_moe, weights=_moe_table
)
