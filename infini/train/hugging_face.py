"""Configurations of Hugging Face's LLaMA, Mistral, Mixtral, Qwen2, Qwen3 and Qwen3-MoE as `gpt.Config`, and
back.

What a config.json states and `gpt.py` lacks is named; keys that say how to train or how to run are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from infini import io
from infini.core import errors
from infini.train import gpt, rotary

Json = Mapping[str, Any]  # Any: whatever JSON holds

# What each layout takes for granted when its config.json is silent.
_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "llama": {"max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "attention_bias": False,
        "sliding_window": 4096,
    },
    "mixtral": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "qwen3_moe": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "attention_bias": False,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
    },
}
_WITH_EXPERTS: Final = frozenset({"mixtral", "qwen3_moe"})
_ARCHITECTURES: Final = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
# Keys that must have one value, since `gpt.py` has it built in.
_BUILT_IN: Final[dict[str, object]] = {
    "hidden_act": "silu",
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


def from_json(data: Json) -> gpt.Config:
    """The model that a config.json describes.

    Raises:
        ValueMismatchError: it states something that is not supported.
        CorruptFileError: it lacks a size.
    """
    kind = data.get("model_type", "llama")
    if kind not in _DEFAULTS:
        raise _unsupported("model_type", kind, " ".join(_DEFAULTS))
    for name, value in _BUILT_IN.items():
        if data.get(name, value) not in (value, None):
            raise _unsupported(name, data[name], repr(value))
    # None stands for the default, but for the window, which it switches off.
    data = _DEFAULTS[kind] | {
        k: value for k, value in data.items() if value is not None or k == "sliding_window"
    }
    sliding_window, full_layers = _windows(kind, data)
    try:
        num_heads = data["num_attention_heads"]
        return gpt.Config(
            vocab_size=data["vocab_size"],
            hidden_size=data["hidden_size"],
            intermediate_size=data["moe_intermediate_size" if kind == "qwen3_moe" else "intermediate_size"],
            num_layers=data["num_hidden_layers"],
            num_heads=num_heads,
            num_kv_heads=data.get("num_key_value_heads", num_heads),
            head_dim=data.get("head_dim", data["hidden_size"] // num_heads),
            max_length=data["max_position_embeddings"],
            rope_theta=float(_rope(data).get("rope_theta", data.get("rope_theta", 10000.0))),
            norm_epsilon=data.get("rms_norm_eps", 1e-6),
            tie_embeddings=data.get("tie_word_embeddings", False),
            rope_scaling=scaling_of(data),
            qkv_bias=kind == "qwen2" or data.get("attention_bias", False),
            output_bias=kind != "qwen2" and data.get("attention_bias", False),
            mlp_bias=data.get("mlp_bias", False),
            qk_norm=kind in ("qwen3", "qwen3_moe"),
            sliding_window=sliding_window,
            full_layers=full_layers,
            **_experts(kind, data),
        )
    except KeyError as error:
        raise io.CorruptFileError(
            f"config.json does not state {error.args[0]}", fix="copy the whole model folder again"
        ) from None


def to_json(config: gpt.Config) -> dict[str, Any]:  # Any: whatever JSON holds
    """The contents of config.json; the rotary base stands where transformers 4 and where 5 look for it.

    Raises:
        ValueMismatchError: no layout has what this model has.
    """
    kind = kind_of(config)
    rope = _rope_to_json(config)
    data = {
        "model_type": kind,
        "architectures": [_ARCHITECTURES[kind]],
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_length,
        "rope_theta": config.rope_theta,
        "rope_parameters": rope,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": "float32",
        "torch_dtype": "float32",
    }
    if rope["rope_type"] != "default":
        data["rope_scaling"] = rope
    if kind in ("llama", "qwen3", "qwen3_moe"):
        data["attention_bias"] = config.output_bias
    if kind == "llama":
        data["mlp_bias"] = config.mlp_bias
    if kind != "llama":
        data["sliding_window"] = config.sliding_window
    if kind in _WITH_EXPERTS:
        data |= {
            "num_local_experts": config.num_experts,
            "num_experts_per_tok": config.experts_per_token,
            "router_aux_loss_coef": config.balance_weight,
        }
    if kind == "qwen3_moe":
        data |= {
            "num_experts": config.num_experts,
            "moe_intermediate_size": config.intermediate_size,
            "norm_topk_prob": config.is_router_normalized,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "use_sliding_window": config.sliding_window is not None,
        }
    if kind in ("qwen2", "qwen3"):
        has_window = config.sliding_window is not None
        full = config.full_layers if has_window else range(config.num_layers)
        data |= {
            "use_sliding_window": has_window,
            "max_window_layers": len(full),
            "layer_types": [
                "full_attention" if layer in full else "sliding_attention"
                for layer in range(config.num_layers)
            ],
        }
    return data


def _experts(kind: str, data: Json) -> dict[str, Any]:  # Any: numbers of several kinds
    """What a configuration says of experts. Nothing is dropped where it is used, so nothing of a capacity."""
    if kind not in _WITH_EXPERTS:
        return {}
    name = "num_local_experts" if kind == "mixtral" or "num_local_experts" in data else "num_experts"
    return {
        "num_experts": data[name],
        "experts_per_token": data["num_experts_per_tok"],
        "is_router_normalized": kind == "mixtral" or data["norm_topk_prob"],
        "balance_weight": data.get("router_aux_loss_coef", 0.001),
    }


def kind_of(config: gpt.Config) -> str:
    """The layout that has all that a model has.

    Raises:
        ValueMismatchError: there is none.
    """
    window = config.sliding_window is not None
    bias = (config.qkv_bias, config.output_bias)
    if config.num_experts and not config.mlp_bias and not config.full_layers:
        if config.qk_norm and bias[0] == bias[1]:
            return "qwen3_moe"
        if bias == (False, False) and not config.qk_norm and config.is_router_normalized:
            return "mixtral"
    if config.num_experts:
        raise _no_layout(config)
    if config.qk_norm and bias[0] == bias[1] and not config.mlp_bias:
        return "qwen3"
    if bias == (True, False) and not config.qk_norm and not config.mlp_bias:
        return "qwen2"
    if (
        window
        and not config.full_layers
        and bias == (False, False)
        and not config.qk_norm
        and not config.mlp_bias
    ):
        return "mistral"
    if bias[0] == bias[1] and not window and not config.qk_norm:
        return "llama"
    raise _no_layout(config)


def _no_layout(config: gpt.Config) -> errors.InfiniError:
    names = ("qkv_bias", "output_bias", "mlp_bias", "qk_norm", "sliding_window", "full_layers", "num_experts")
    return errors.ValueMismatchError(
        "no model layout of Hugging Face has all that this model has",
        got=", ".join(f"{name} = {getattr(config, name)}" for name in names),
        expected="LLaMA (equal biases in attention, mlp_bias), Mistral (sliding_window), Qwen2 (qkv_bias, "
        "sliding_window, full_layers), Qwen3 (qk_norm, equal biases in attention, sliding_window, "
        "full_layers), Mixtral (num_experts, sliding_window) or Qwen3-MoE (num_experts, qk_norm, equal "
        "biases in attention, sliding_window)",
        fix="leave one of them out",
    )


def _windows(kind: str, data: Json) -> tuple[int | None, tuple[int, ...]]:
    """Size of the sliding window, and the blocks that have none."""
    window = data.get("sliding_window")
    always = kind in ("mistral", "mixtral")
    if kind == "llama" or window is None or (not always and not data.get("use_sliding_window", False)):
        return None, ()
    num_layers = data.get("num_hidden_layers", 0)
    kinds = data.get("layer_types")
    if always or kind == "qwen3_moe":
        if kinds is not None and set(kinds) != {"sliding_attention"}:
            raise _unsupported("layer_types", kinds, "'sliding_attention' for every layer")
        return window, ()
    if kinds is None:
        return window, tuple(range(min(data.get("max_window_layers", 28), num_layers)))
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise _unsupported("layer_types", min(unknown), "'full_attention' or 'sliding_attention'")
    return window, tuple(layer for layer, own in enumerate(kinds) if own == "full_attention")


def _rope(data: Json) -> Json:
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    if any(isinstance(value, dict) for value in rope.values()):
        raise _unsupported("rope_parameters", sorted(rope), "one set of parameters for all layers")
    return rope


def scaling_of(data: Json) -> rotary.Scaling:
    """How a config.json changes the rotary frequencies.

    Raises:
        ValueMismatchError: it names a way that is not supported.
        KeyError: it lacks what its way needs.
    """
    rope = {name: value for name, value in _rope(data).items() if value is not None}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise _unsupported("partial_rotary_factor", rope["partial_rotary_factor"], "1.0")
    name = "original_max_position_embeddings"
    original = int(data.get(name) or rope.get(name) or data["max_position_embeddings"])
    match kind:
        case "default":
            return rotary.UNSCALED
        case "linear" | "dynamic":
            return rotary.Scaling(kind, factor=float(rope["factor"]))
        case "llama3":
            return rotary.Scaling(
                "llama3",
                factor=float(rope["factor"]),
                original_length=original,
                low_factor=float(rope["low_freq_factor"]),
                high_factor=float(rope["high_freq_factor"]),
            )
        case "yarn":
            factor = float(rope.get("factor") or data["max_position_embeddings"] / original)
            return rotary.Scaling(
                "yarn",
                factor=factor,
                original_length=original,
                beta_fast=float(rope.get("beta_fast") or 32.0),
                beta_slow=float(rope.get("beta_slow") or 1.0),
                is_truncated=bool(rope.get("truncate", True)),
                attention_factor=_attention_factor(rope, factor),
            )
    raise _unsupported("rope_type", kind, "'default', 'linear', 'dynamic', 'llama3' or 'yarn'")


def _attention_factor(rope: Json, factor: float) -> float:
    if "attention_factor" in rope:
        return float(rope["attention_factor"])
    first, second = rope.get("mscale"), rope.get("mscale_all_dim")
    if first and second:
        return rotary.yarn_attention_factor(factor, first) / rotary.yarn_attention_factor(factor, second)
    return rotary.yarn_attention_factor(factor)


def _rope_to_json(config: gpt.Config) -> dict[str, Any]:  # Any: whatever JSON holds
    scaling = config.rope_scaling
    rope: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": scaling.kind}
    if scaling.kind != "default":
        rope["factor"] = scaling.factor
    if scaling.kind in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = scaling.original_length
    if scaling.kind == "llama3":
        rope |= {"low_freq_factor": scaling.low_factor, "high_freq_factor": scaling.high_factor}
    if scaling.kind == "yarn":
        rope |= {
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "truncate": scaling.is_truncated,
            "attention_factor": scaling.attention_factor,
        }
    return rope


def _unsupported(name: str, value: object, expected: str) -> errors.InfiniError:
    return errors.ValueMismatchError(
        "this model is not supported",
        got=f"{name} = {value!r} in config.json",
        expected=expected,
        fix="use a model of the layouts LLaMA, Mistral, Mixtral, Qwen2, Qwen3 or Qwen3-MoE",
    )
