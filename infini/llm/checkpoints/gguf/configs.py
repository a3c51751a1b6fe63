"""Metadata of a GGUF file as a config.json, and back."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from infini.core import errors
from infini.io import gguf
from infini.llm.checkpoints.gguf import ropes
from infini.llm.checkpoints.gguf.architectures import (
    ARCHITECTURES,
    BY_MODEL_TYPE,
    FILE_NAMES,
    Architecture,
    Field,
    Json,
)

ARCHITECTURE: Final = "general.architecture"
_SPECIAL: Final = (
    ("tokenizer.ggml.bos_token_id", "bos_token_id"),
    ("tokenizer.ggml.eos_token_id", "eos_token_id"),
    ("tokenizer.ggml.padding_token_id", "pad_token_id"),
)
_TEXTS: Final = ("rope.scaling.type",)
_MAY_BE_ZERO: Final = ("sliding_window", "first_k_dense_replace", "n_shared_experts", "q_lora_rank")
_LARGEST: Final = 2**31 - 1
_SIGMOID: Final = 2  # `expert_gating_func`; 1 is softmax
# Layers of the one Gemma 2 for which llama.cpp scales by the width of the model over its heads.
_GEMMA_27B_LAYERS: Final = 46
# What MiniCPM's files leave out when they are older than these keys.
_MINICPM: Final = {"embedding_scale": 12.0, "depth": 1.4, "base": 256}

# Names of one number; config.json of some models has another one than its class.
EXPERT_COUNTS: Final = ("num_local_experts", "num_experts", "n_routed_experts")

Get = Callable[[str, Any], Any]  # Any: values of metadata


def read(metadata: gguf.Metadata, tensors: Mapping[str, gguf.GGUFTensor]) -> tuple[Architecture, Json]:
    """What a file says, as config.json of Hugging Face says it.

    Raises:
        UnsupportedError: the architecture is not among those that are known.
        GGUFError: a key is missing or has the wrong type.
    """
    name = metadata.get(ARCHITECTURE)
    if name not in FILE_NAMES:
        raise errors.UnsupportedError(
            "a GGUF file has an architecture that is not known",
            got=f"{ARCHITECTURE} {name!r}",
            expected=", ".join(FILE_NAMES),
        )

    def get(key: str, default: Any = None) -> Any:  # Any: values of metadata
        value = _plain(metadata, f"{name}.{key}", default)
        if key not in _TEXTS and isinstance(value, str):
            raise gguf.GGUFError(f"the key {name}.{key} is a text", got=repr(value[:40]), expected="a number")
        if isinstance(value, float) and not math.isfinite(value):
            raise gguf.GGUFError(f"the key {name}.{key} is no number", got=str(value))
        return value

    found = _architecture(str(name), get)
    config: Json = {"architectures": [found.class_name], "model_type": found.model_type, **found.constants}
    for field in found.fields:
        value = get(field.key, field.default)
        if value is None and field.is_required:
            raise gguf.GGUFError(f"a GGUF file lacks the key {name}.{field.key}", expected=field.name)
        if value is not None:
            config[field.name] = _checked(value, field, f"{name}.{field.key}")
    _sizes(config, tensors)
    for key, special in _SPECIAL:
        value = _plain(metadata, key, None)
        if value is not None:
            config[special] = value
    config["tie_word_embeddings"] = "output.weight" not in tensors
    _READERS.get(found.model_type, lambda *_: None)(config, get, tensors)
    _attention(config, found, get, tensors)
    return found, config


def write(
    config: Json,
) -> tuple[Architecture, dict[str, Any], dict[str, np.ndarray]]:  # Any: values of metadata
    """Metadata of a GGUF file, and tensors that stand for numbers of it.

    Raises:
        UnsupportedError: there is no architecture of GGUF for this model.
        CorruptFileError: config.json lacks a size.
    """
    kind = config.get("model_type")
    found = BY_MODEL_TYPE.get(_like(config)) if isinstance(kind, str) else None
    if found is None:
        raise errors.UnsupportedError(
            "models of this kind are not written to GGUF",
            got=f"model_type {kind!r} in config.json",
            expected=", ".join(sorted(BY_MODEL_TYPE)),
        )
    data = _complete(config, found)
    keys: dict[str, Any] = {}  # Any: values of metadata
    for field in found.fields:
        value = data.get(field.name)
        if value is None and field.is_required:
            raise gguf.GGUFError(
                f"config.json does not state {field.name}", fix="copy the whole model folder again"
            )
        if value is not None:
            keys[field.key] = _typed(value, field)
    keys["vocab_size"] = int(data["vocab_size"])
    _WRITERS.get(found.model_type, lambda *_: None)(data, keys)
    tensors: dict[str, np.ndarray] = {}
    if found.model_type != "gpt2":
        rope_dim = _rope_dim(data, found)
        more, tensors = ropes.write(data, rope_dim)
        keys |= {"rope.dimension_count": rope_dim, **more}
    if keys.get("attention.key_length") is not None:
        keys.setdefault("attention.value_length", keys["attention.key_length"])
    return found, {f"{found.name}.{key}": value for key, value in keys.items()}, tensors


def heads(config: Json) -> tuple[int, int]:
    """Heads of queries, and of keys and values."""
    count = config.get("num_attention_heads") or config["n_head"]
    return int(count), int(config.get("num_key_value_heads") or count)


def _plain(metadata: gguf.Metadata, key: str, default: Any) -> Any:  # Any: values of metadata
    """A value in Python's types. Floats of 32 bits are the shortest decimal numbers that mean them: 1e-05 is
    stored as 9.99999974e-06. One value for all layers may be stored once per layer."""
    value = metadata.fields.get(key)
    if value is None:
        return default
    if isinstance(value.data, np.ndarray) and value.data.size:
        if (value.data != value.data[0]).any():
            raise errors.UnsupportedError(
                "layers of different sizes are not supported", got=f"{key} {value.data.tolist()[:8]}"
            )
        return float(str(value.data[0])) if value.data.dtype.kind == "f" else value.data[0].item()
    if isinstance(value.data, np.ndarray | list):
        raise gguf.GGUFError(f"the key {key} is a list", got=value.type_name, expected="one value")
    if value.kind is gguf.ValueType.FLOAT32:
        return float(str(np.float32(value.data)))
    return value.data


def _checked(value: Any, field: Field, key: str) -> Any:  # Any: values of metadata
    """A number of a file, which has to be one that its field may have."""
    if isinstance(value, bool) != isinstance(field.default, bool):
        raise gguf.GGUFError(f"the key {key} has the wrong type", got=repr(value))
    if isinstance(value, bool):
        return value
    if _is_fraction(field):
        if not value > 0:
            raise gguf.GGUFError(f"the key {key} is not positive", got=repr(value))
        return value
    lowest = 0 if field.name in _MAY_BE_ZERO else 1
    if not isinstance(value, int) or not lowest <= value <= _LARGEST:
        raise gguf.GGUFError(
            f"the key {key} is no size",
            got=repr(value),
            expected=f"a whole number from {lowest} to {_LARGEST}",
        )
    return value


def _architecture(name: str, get: Get) -> Architecture:
    """Which of the models that share a name this is."""
    if name == "llama":
        if get("expert_count", 0):
            return BY_MODEL_TYPE["mixtral"]
        return BY_MODEL_TYPE["mistral" if get("attention.sliding_window", 0) else "llama"]
    if name == "deepseek2":
        is_third = get("expert_gating_func", 1) == _SIGMOID
        return BY_MODEL_TYPE["deepseek_v3" if is_third else "deepseek_v2"]
    return next(a for a in ARCHITECTURES if a.name == name)


def _sizes(config: Json, tensors: Mapping[str, gguf.GGUFTensor]) -> None:
    embeddings = tensors.get("token_embd.weight")
    if embeddings is None or len(embeddings.shape) != 2:
        raise gguf.GGUFError(
            "a GGUF file has no table of embeddings", expected="the tensor token_embd.weight"
        )
    config["vocab_size"] = embeddings.shape[0]
    _check_counts(config, tensors)
    types = {x.type.name for x in tensors.values() if len(x.shape) > 1}
    dtypes = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    plain = [dtypes[name] for name in types if name in dtypes]
    if len(types) == len(plain) and plain:
        config["dtype"] = next((d for d in plain if d != "float32"), "float32")


def _check_counts(config: Json, tensors: Mapping[str, gguf.GGUFTensor]) -> None:
    """Layers and experts are as many as there are tensors of them, before lists of that length are made."""
    blocks = {int(name.split(".")[1]) for name in tensors if re.match(r"blk\.\d{1,6}\.", name)}
    layers = config.get("num_hidden_layers") or config.get("n_layer")
    if blocks != set(range(len(blocks))) or layers != len(blocks):
        raise gguf.GGUFError(
            "a GGUF file does not have the blocks that it says",
            got=f"{len(blocks)} blocks, the last one {max(blocks, default=None)}",
            expected=f"block_count {layers}",
        )
    experts = next((config[name] for name in EXPERT_COUNTS if name in config), None)
    for name, x in tensors.items():
        if "_exps." in name and x.shape[0] != experts:
            raise gguf.GGUFError(
                f"the tensor {name!r} is not of all experts",
                got=str(x.shape),
                expected=f"expert_count {experts}",
            )
    if experts is not None and experts > len(tensors) and not any("_exps." in name for name in tensors):
        raise gguf.GGUFError(
            "a GGUF file does not have the experts that it says", got=f"expert_count {experts}"
        )


def _attention(config: Json, found: Architecture, get: Get, tensors: Mapping[str, gguf.GGUFTensor]) -> None:
    """Widths of heads and rotary embeddings."""
    if found.model_type == "gpt2":
        return
    count, of_keys = heads(config)
    for name, value in (("num_attention_heads", count), ("num_key_value_heads", of_keys)):
        if not isinstance(value, int) or value < 1:
            raise gguf.GGUFError(f"a GGUF file has no sensible {name}", got=repr(value))
        config[name] = value
    if found.name == "deepseek2":
        rope_dim = int(config["qk_rope_head_dim"])
    else:
        head_dim = int(config.get("head_dim") or config["hidden_size"] // count)
        rope_dim = get("rope.dimension_count", head_dim)
        if not isinstance(rope_dim, int) or not 0 < rope_dim <= head_dim or rope_dim % 2:
            raise gguf.GGUFError(
                "a GGUF file rotates more numbers of a head than there are, or half a pair",
                got=f"rope.dimension_count {rope_dim}",
                expected=f"an even number, at most {head_dim}",
            )
        if rope_dim != head_dim:
            config["partial_rotary_factor"] = rope_dim / head_dim
        if found.name in ("llama", "minicpm", "qwen3", "qwen3moe"):
            config["attention_bias"] = "blk.0.attn_q.bias" in tensors
        if found.name in ("llama", "minicpm"):
            config["mlp_bias"] = "blk.0.ffn_up.bias" in tensors
    scaling = ropes.read(get, tensors, config, rope_dim)
    if scaling is not None:
        config["rope_scaling"] = scaling


def _read_gemma2(config: Json, get: Get, tensors: Mapping[str, gguf.GGUFTensor]) -> None:
    config["tie_word_embeddings"] = True
    is_largest = config["num_hidden_layers"] == _GEMMA_27B_LAYERS
    plain = config["hidden_size"] // config["num_attention_heads"]
    config.setdefault("head_dim", plain)
    config["query_pre_attn_scalar"] = plain if is_largest else config["head_dim"]


def _read_minicpm(config: Json, get: Get, tensors: Mapping[str, gguf.GGUFTensor]) -> None:
    layers = config["num_hidden_layers"]
    config["scale_emb"] = get("embedding_scale", _MINICPM["embedding_scale"])
    residual = get("residual_scale", None)
    config["scale_depth"] = _MINICPM["depth"] if residual is None else round(residual * math.sqrt(layers), 6)
    scale = get("logit_scale", None)
    if scale is not None and not scale > 0:
        raise gguf.GGUFError("a GGUF file divides logits by nothing", got=f"logit_scale {scale}")
    base = _MINICPM["base"] if scale is None else config["hidden_size"] / scale
    config["dim_model_base"] = int(base) if float(base).is_integer() else base


def _read_gpt2(config: Json, get: Get, tensors: Mapping[str, gguf.GGUFTensor]) -> None:
    config["n_ctx"] = config["n_positions"]


def _read_phi3(config: Json, get: Get, tensors: Mapping[str, gguf.GGUFTensor]) -> None:
    if not config.get("sliding_window"):
        config["sliding_window"] = None
    # The class of transformers has a number here that small vocabularies do not have.
    config.setdefault("pad_token_id", None)


def _read_deepseek(config: Json, get: Get, tensors: Mapping[str, gguf.GGUFTensor]) -> None:
    rope_dim, rank = config["qk_rope_head_dim"], config["kv_lora_rank"]
    # Files made before the latent form was used keep the widths of heads under the plain keys.
    key = get("attention.key_length_mla", None) or get("attention.key_length", None)
    value = get("attention.value_length_mla", None) or get("attention.value_length", None)
    if key is None or value is None or not 0 < rope_dim < key:
        raise gguf.GGUFError("a GGUF file does not say how wide its heads are", got=f"{key} and {value}")
    config |= {"qk_nope_head_dim": key - rope_dim, "v_head_dim": value, "kv_lora_rank": rank}
    config.setdefault("q_lora_rank", None)
    config["num_key_value_heads"] = config["num_attention_heads"]
    if config["model_type"] == "deepseek_v2":
        groups = config.get("n_group") or 1
        config["topk_method"] = "group_limited_greedy" if groups > 1 else "greedy"


_READERS: Final[dict[str, Callable[[Json, Get, Mapping[str, gguf.GGUFTensor]], None]]] = {
    "gemma2": _read_gemma2,
    "minicpm": _read_minicpm,
    "gpt2": _read_gpt2,
    "phi3": _read_phi3,
    "deepseek_v2": _read_deepseek,
    "deepseek_v3": _read_deepseek,
}


def _like(config: Json) -> str:
    """The model type that a file of this model has; CPM's relatives are MiniCPM or plain LLaMA."""
    kind = str(config["model_type"])
    if kind in BY_MODEL_TYPE:
        return kind
    is_relative = kind.startswith(("fm9g", "jiuge", "cpm"))
    return ("minicpm" if "scale_emb" in config else "llama") if is_relative else kind


def _complete(config: Json, found: Architecture) -> Json:
    """A config.json with what it leaves out."""
    data = dict(config)
    count = next((data[name] for name in EXPERT_COUNTS if data.get(name) is not None), None)
    if count is not None:
        data |= dict.fromkeys(EXPERT_COUNTS, count)
    for field in found.fields:
        if data.get(field.name) is None and field.default is not None:
            data[field.name] = field.default
    if "vocab_size" not in data:
        raise gguf.GGUFError("config.json does not state vocab_size", fix="copy the whole model folder again")
    if found.model_type == "gpt2":
        data["n_inner"] = data.get("n_inner") or 4 * int(data["n_embd"])
        return data
    data["rope_theta"] = ropes.theta_of(data)
    data["num_key_value_heads"] = data.get("num_key_value_heads") or data["num_attention_heads"]
    if any(field.name == "head_dim" for field in found.fields):
        data["head_dim"] = data.get("head_dim") or int(data["hidden_size"]) // int(
            data["num_attention_heads"]
        )
    return data


def _rope_dim(data: Json, found: Architecture) -> int:
    if found.name == "deepseek2":
        return int(data["qk_rope_head_dim"])
    head_dim = data.get("head_dim") or int(data["hidden_size"]) // int(data["num_attention_heads"])
    share = ropes.scaling_of(data).get("partial_rotary_factor") or data.get("partial_rotary_factor") or 1.0
    return int(head_dim * share)


def _typed(value: Any, field: Field) -> Any:  # Any: a value of JSON
    """A number as files have it: counts are whole, and what is a fraction for some models is one for all."""
    if isinstance(value, bool):
        return value
    return float(value) if _is_fraction(field) else int(value)


def _is_fraction(field: Field) -> bool:
    return field.name.endswith(("eps", "epsilon", "theta", "softcapping", "scaling_factor"))


def _write_minicpm(data: Json, keys: dict[str, Any]) -> None:  # Any: values of metadata
    keys["embedding_scale"] = float(data["scale_emb"])
    keys["residual_scale"] = float(data["scale_depth"]) / math.sqrt(int(data["num_hidden_layers"]))
    keys["logit_scale"] = int(data["hidden_size"]) / float(data["dim_model_base"])


def _write_gemma2(data: Json, keys: dict[str, Any]) -> None:  # Any: values of metadata
    is_largest = data["num_hidden_layers"] == _GEMMA_27B_LAYERS
    plain = data["hidden_size"] // data["num_attention_heads"]
    expected = plain if is_largest else data["head_dim"]
    if data.get("query_pre_attn_scalar", expected) != expected:
        raise errors.UnsupportedError(
            "GGUF files of Gemma 2 cannot say what scores are divided by",
            got=f"query_pre_attn_scalar {data['query_pre_attn_scalar']}",
            expected=str(expected),
        )


def _write_phi3(data: Json, keys: dict[str, Any]) -> None:  # Any: values of metadata
    keys["attention.sliding_window"] = int(data.get("sliding_window") or 0)
    name = "original_max_position_embeddings"
    original = data.get(name) or ropes.scaling_of(data).get(name) or data["max_position_embeddings"]
    keys["rope.scaling.original_context_length"] = int(original)


def _write_mixture(data: Json, keys: dict[str, Any]) -> None:  # Any: values of metadata
    _write_plain(data, keys)
    if (
        data.get("norm_topk_prob") is False
        or data.get("mlp_only_layers")
        or data.get("decoder_sparse_step", 1) != 1
    ):
        raise errors.UnsupportedError(
            "GGUF files of Qwen 3 have experts in every layer, whose weights sum to 1",
            got=f"norm_topk_prob {data.get('norm_topk_prob')}, "
            f"mlp_only_layers {data.get('mlp_only_layers')}, "
            f"decoder_sparse_step {data.get('decoder_sparse_step')}",
        )


def _write_plain(data: Json, keys: dict[str, Any]) -> None:  # Any: values of metadata
    if data.get("use_sliding_window") and data.get("sliding_window"):
        raise errors.UnsupportedError(
            "GGUF files of Qwen have no sliding window",
            got=f"use_sliding_window with sliding_window {data['sliding_window']}",
            fix="set use_sliding_window to false in config.json: texts up to the window are computed alike",
        )


def _write_deepseek(data: Json, keys: dict[str, Any]) -> None:  # Any: values of metadata
    if data.get("rope_interleave", True) is False:
        raise errors.UnsupportedError(
            "GGUF files of DeepSeek have interleaved rotary embeddings", got="rope_interleave false"
        )
    rank, rope_dim = int(data["kv_lora_rank"]), int(data["qk_rope_head_dim"])
    keys |= {
        "attention.head_count_kv": 1,
        "attention.key_length": rank + rope_dim,
        "attention.value_length": rank,
        "attention.key_length_mla": int(data["qk_nope_head_dim"]) + rope_dim,
        "attention.value_length_mla": int(data["v_head_dim"]),
        "expert_gating_func": _SIGMOID if _scoring(data) == "sigmoid" else 1,
    }
    if not data.get("q_lora_rank"):
        keys.pop("attention.q_lora_rank", None)


def _scoring(data: Json) -> str:
    return str(data.get("scoring_func") or ("sigmoid" if data["model_type"] == "deepseek_v3" else "softmax"))


_WRITERS: Final[dict[str, Callable[[Json, dict[str, Any]], None]]] = {
    "minicpm": _write_minicpm,
    "gemma2": _write_gemma2,
    "phi3": _write_phi3,
    "qwen2": _write_plain,
    "qwen3": _write_plain,
    "qwen3_moe": _write_mixture,
    "deepseek_v2": _write_deepseek,
    "deepseek_v3": _write_deepseek,
}
