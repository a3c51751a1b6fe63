"""The model as a Hugging Face folder: its configuration and its weights by their names there.

Reads what it writes, and every LLaMA folder that needs nothing `gpt.py` lacks; what it lacks is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

import infini as inf
import infini.numpy as inp
from infini import io, random
from infini.core import errors
from infini.data import tokenizer as tokenizer_
from infini.train import gpt

# Values that a folder may state and that `gpt.py` has built in.
_BUILT_IN: Final[dict[str, object]] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
}


@dataclass(frozen=True, slots=True)
class Model:
    """What a model folder holds, ready to run."""

    config: gpt.Config
    params: gpt.Params
    tokenizer: tokenizer_.Tokenizer


def save(path: Path | str, model: Model) -> None:
    """Write a folder that `load` and Hugging Face's transformers read.

    Raises:
        ValueMismatchError: the folder holds other files.
    """
    tokens = model.tokenizer
    special = {
        name: id
        for name, id in (("bos_token_id", tokens.begin_id), ("eos_token_id", tokens.end_id))
        if id is not None
    }
    io.write_model(
        path,
        io.ModelFiles(
            config=to_json(model.config) | special,
            tensors=to_tensors(model.params),
            tokenizer=tokens.to_json(),
            tokenizer_config={
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": tokenizer_.BEGIN,
                "eos_token": tokenizer_.END,
                "clean_up_tokenization_spaces": False,
                "model_max_length": model.config.max_length,
            },
            generation_config={"do_sample": True, "temperature": 0.8, "top_p": 0.95} | special,
        ),
    )


def load(path: Path | str) -> Model:
    """Read a model folder.

    Raises:
        MissingFileError: the folder or one of its files is not there.
        CorruptFileError: a file is damaged, or its tensors are not those of its configuration.
        ValueMismatchError: the model needs something that is not supported.
    """
    files = io.read_model(path)
    config = from_json(files.config)
    return Model(config, from_tensors(files.tensors, config), tokenizer_.Tokenizer.from_json(files.tokenizer))


def to_json(config: gpt.Config) -> dict[str, Any]:  # Any: whatever JSON holds
    """The contents of config.json; the rotary base stands where transformers 4 and where 5 look for it."""
    return _BUILT_IN | {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_length,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def from_json(data: Mapping[str, Any]) -> gpt.Config:  # Any: whatever JSON holds
    """The sizes that a config.json states, with LLaMA's defaults for what it leaves out.

    Raises:
        ValueMismatchError: it states something that is not supported.
        CorruptFileError: it lacks a size.
    """
    for name, value in _BUILT_IN.items():
        if data.get(name, value) != value:
            raise errors.ValueMismatchError(
                "this model is not supported", got=f"{name} = {data[name]!r}", expected=f"{name} = {value!r}"
            )
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise errors.ValueMismatchError(
            "this model's rotary scaling is not supported", got=repr(kind), expected="'default'"
        )
    try:
        return gpt.Config(
            vocab_size=data["vocab_size"],
            hidden_size=data["hidden_size"],
            intermediate_size=data["intermediate_size"],
            num_layers=data["num_hidden_layers"],
            num_heads=data["num_attention_heads"],
            num_kv_heads=data.get("num_key_value_heads") or data["num_attention_heads"],
            head_dim=data.get("head_dim") or data["hidden_size"] // data["num_attention_heads"],
            max_length=data.get("max_position_embeddings", 2048),
            rope_theta=rope.get("rope_theta", data.get("rope_theta", 10000.0)),
            norm_epsilon=data.get("rms_norm_eps", 1e-6),
            tie_embeddings=data.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise io.CorruptFileError(f"config.json does not state {error.args[0]}") from None


def to_tensors(params: gpt.Params) -> dict[str, np.ndarray]:
    """Weights by their names in Hugging Face's files."""
    return {name: np.asarray(array) for name, array in _named(params)}


def from_tensors(tensors: Mapping[str, np.ndarray], config: gpt.Config) -> gpt.Params:
    """Parameters from weights by name.

    Raises:
        CorruptFileError: a weight is missing, unexpected, or has the wrong shape.
    """
    wanted = inf.eval_shape(lambda: gpt.init(random.PRNGKey(0), config))
    names = {name: like.shape for name, like in _named(wanted)}
    # Some writers store the tied output projection as well.
    extra = sorted(set(tensors) - set(names) - ({"lm_head.weight"} if config.tie_embeddings else set()))
    missing = sorted(set(names) - set(tensors))
    for problem, found in (("are missing", missing), ("are not part of the model", extra)):
        if found:
            raise io.CorruptFileError(
                f"weights {problem}",
                got=", ".join(found[:4]) + (f" and {len(found) - 4} more" if found[4:] else ""),
            )
    for name, shape in names.items():
        if tensors[name].shape != shape:
            raise io.CorruptFileError(
                f"the weight {name} has the wrong shape", got=str(tensors[name].shape), expected=str(shape)
            )
    return _filled(wanted, "", tensors)


def _named(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:  # Any: a tree of arrays
    for key, child in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(child, dict | list):
            yield from _named(child, f"{path}{key}.")
        else:
            yield _full_name(f"{path}{key}"), child


def _filled(node: Any, path: str, tensors: Mapping[str, np.ndarray]) -> Any:  # Any: a tree of arrays
    if isinstance(node, dict):
        return {key: _filled(child, f"{path}{key}.", tensors) for key, child in node.items()}
    if isinstance(node, list):
        return [_filled(child, f"{path}{index}.", tensors) for index, child in enumerate(node)]
    return inp.asarray(tensors[_full_name(path.removesuffix("."))])


def _full_name(path: str) -> str:
    return f"{path}.weight" if path == "lm_head" else f"model.{path}.weight"
