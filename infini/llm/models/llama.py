"""LLaMA 1 to 3.x, and what has its blocks: the plain case, from which other families' files start.

Reference: LLaMA (arXiv:2302.13971), Llama 3 (arXiv:2407.21783).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from infini.core import errors
from infini.io import tensors as tensors_
from infini.llm.models import checking, rope, weights
from infini.llm.models.config import Activation, Config
from infini.llm.models.family import Family, Json
from infini.llm.models.weights import Weight

# What most families call the three matrices of an expert.
_OF_EXPERTS: Final = {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"}
_LARGEST: Final = (1 << 31) - 1
_ACTIVATIONS: Final[dict[str, Activation]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def config(
    data: Json, *, defaults: Json | None = None, **fields: Any
) -> Config:  # Any: fields of several kinds
    """The sizes that all families of this shape state.

    Args:
        data: the contents of config.json.
        defaults: what a family takes for granted where its file is silent or says null.
        fields: fields of `Config` that stand above what is read.

    Raises:
        CorruptFileError: a size is missing, or is no positive integer.
        ValueMismatchError: something that it states is not supported.
    """
    data = stated(data, defaults)
    num_heads = size(data, "num_attention_heads")
    hidden_size = size(data, "hidden_size")
    head_dim = size(data, "head_dim") if data.get("head_dim") else hidden_size // num_heads
    found: dict[str, Any] = {
        "family": data["model_type"],
        "vocab_size": size(data, "vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": size(data, "intermediate_size"),
        "num_layers": size(data, "num_hidden_layers"),
        "num_heads": num_heads,
        "num_kv_heads": size(data, "num_key_value_heads") if data.get("num_key_value_heads") else num_heads,
        "head_dim": head_dim,
        "max_length": size(data, "max_position_embeddings"),
        "norm_epsilon": float(data.get("rms_norm_eps", 1e-6)),
        "activation": activation(data.get("hidden_act", "silu")),
        "rope": rope.read(data, head_dim),
        "qkv_bias": bool(data.get("attention_bias", False)),
        "output_bias": bool(data.get("attention_bias", False)),
        "mlp_bias": bool(data.get("mlp_bias", False)),
        "tie_embeddings": bool(data.get("tie_word_embeddings", False)),
    }
    return Config(**found | fields)


def stated(data: Json, defaults: Json | None = None) -> dict[str, Any]:  # Any: whatever JSON holds
    """What a config.json says, with defaults where it is silent or says null."""
    common = {"model_type": "llama", "max_position_embeddings": 2048}
    return common | dict(defaults or {}) | {name: value for name, value in data.items() if value is not None}


def size(data: Json, name: str) -> int:
    """A positive integer of a config.json.

    Raises:
        CorruptFileError: it is missing, or something else.
    """
    value, largest = data.get(name), checking.MOST_LAYERS if "layer" in name else _LARGEST
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise tensors_.CorruptFileError(
            f"config.json does not state {name}" if value is None else f"config.json: {name} is no size",
            got=None if value is None else repr(value),
            expected=f"a positive integer, at most {largest}",
            fix="copy the whole model folder again",
        )
    return value


def activation(name: str) -> Activation:
    """The activation that a config.json calls so.

    Raises:
        ValueMismatchError: there is none of that name.
    """
    if name not in _ACTIVATIONS:
        raise errors.ValueMismatchError(
            "this activation is not supported",
            got=f"{name!r} in config.json",
            expected=", ".join(sorted(_ACTIVATIONS)),
        )
    return _ACTIVATIONS[name]


def table(model: Config) -> list[Weight]:
    """Every weight of such a model."""
    found = ends(model)
    for number in range(model.num_layers):
        found += layer(model, number)
    return found


def ends(model: Config) -> list[Weight]:
    """What is before the first block and behind the last one."""
    sizes = (model.vocab_size, model.hidden_size)
    found = [Weight(("embed_tokens",), ("model.embed_tokens.weight",), sizes, kind="embedding")]
    found += weights.norm(("norm",), "model.norm", model.hidden_size)
    if not model.tie_embeddings:
        found += weights.linear(("lm_head",), "lm_head", *sizes, has_bias=model.head_bias)
    return found


def layer(model: Config, number: int) -> list[Weight]:
    """What is in a block."""
    path, name = ("layers", number, "mlp"), f"model.layers.{number}.mlp"
    return [
        *norms(model, number),
        *attention(model, number),
        *feed_forward(path, name, model, model.intermediate_size),
    ]


def norms(model: Config, number: int) -> list[Weight]:
    """The norms of a block before its layers."""
    path, name = ("layers", number), f"model.layers.{number}"
    return [
        *weights.norm((*path, "attention_norm"), f"{name}.input_layernorm", model.hidden_size),
        *weights.norm((*path, "mlp_norm"), f"{name}.post_attention_layernorm", model.hidden_size),
    ]


def attention(model: Config, number: int) -> list[Weight]:
    """The weights of a block's attention."""
    path, name = ("layers", number, "self_attn"), f"model.layers.{number}.self_attn"
    width, queries = model.hidden_size, model.num_heads * model.head_dim
    keys = model.num_kv_heads * model.head_dim
    found = []
    for key, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        found += weights.linear((*path, key), f"{name}.{key}", rows, width, has_bias=model.qkv_bias)
    found += weights.linear((*path, "o_proj"), f"{name}.o_proj", width, queries, has_bias=model.output_bias)
    if model.qk_norm:
        found += weights.norm((*path, "q_norm"), f"{name}.q_norm", model.head_dim)
        found += weights.norm((*path, "k_norm"), f"{name}.k_norm", model.head_dim)
    return found


def feed_forward(path: weights.Path, name: str, model: Config, hidden: int) -> list[Weight]:
    """The weights of a feed-forward layer with a gate."""
    found = []
    for key in ("gate_proj", "up_proj"):
        found += weights.linear(
            (*path, key), f"{name}.{key}", hidden, model.hidden_size, has_bias=model.mlp_bias
        )
    return found + weights.linear(
        (*path, "down_proj"), f"{name}.down_proj", model.hidden_size, hidden, has_bias=model.mlp_bias
    )


def router(path: weights.Path, name: str, model: Config) -> list[Weight]:
    """The matrix that chooses experts; it is never quantised."""
    assert model.experts is not None
    return [Weight((*path, "gate"), (f"{name}.weight",), (model.experts.count, model.hidden_size))]


def experts(
    path: weights.Path, name: str, model: Config, names: Mapping[str, str] = _OF_EXPERTS
) -> list[Weight]:
    """The matrices of all experts of a block, of which files have one for each."""
    assert model.experts is not None
    count, width, hidden = model.experts.count, model.hidden_size, model.experts.width
    shapes = {"gate_proj": (hidden, width), "up_proj": (hidden, width), "down_proj": (width, hidden)}
    return [
        Weight(
            (*path, "experts", key),
            tuple(f"{name}.experts.{expert}.{names[key]}.weight" for expert in range(count)),
            (count, *shape),
            kind="experts",
        )
        for key, shape in shapes.items()
    ]


FAMILY = Family(
    names=("llama",),
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
    config=config,
    weights=table,
)
