"""The model as a Hugging Face folder: its configuration, its weights by their names there, its tokenizer.

Reads what it writes, and every folder in the layout of LLaMA, Mistral, Mixtral, Qwen2, Qwen3 or Qwen3-MoE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

import infini as inf
import infini.numpy as inp
from infini import io, random
from infini.data import tokenizer as tokenizer_
from infini.io import tensors as tensors_
from infini.train import gpt, hugging_face
from infini.train.hugging_face import from_json as from_json, to_json as to_json

Json = dict[str, Any]  # Any: whatever JSON holds
# Mixtral's names of the weights of an expert.
_MIXTRAL: Final = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


@dataclass(frozen=True, slots=True)
class Model:
    """What a model folder holds, ready to run.

    Args:
        config: its sizes.
        params: its weights.
        tokenizer: its tokenizer, which knows the ids that end a text.
        generation: what generation_config.json says about sampling: `temperature`, `top_k`, `top_p`.
    """

    config: gpt.Config
    params: gpt.Params
    tokenizer: tokenizer_.Tokenizer
    generation: Mapping[str, float] = field(default_factory=lambda: {"temperature": 0.8, "top_p": 0.95})


def save(path: Path | str, model: Model, *, dtype: Any = None) -> None:  # Any: a dtype
    """Write a folder that `load` and Hugging Face's transformers read, whole or not at all.

    Args:
        path: the folder; an earlier model there is replaced.
        model: what to write.
        dtype: dtype of the weights, float32 or bfloat16; as they are when absent.

    Raises:
        ValueMismatchError: the folder holds other files, or no layout has what the model has.
    """
    tokens = model.tokenizer
    tensors = to_tensors(model.params, model.config)
    if dtype is not None:
        tensors = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    stored = {"dtype": str(next(iter(tensors.values())).dtype)}
    special = {"bos_token_id": tokens.begin_id, "eos_token_id": _one_or_all(tokens.end_ids)}
    special = {name: id for name, id in special.items() if id is not None}
    texts = {"bos_token": tokens.begin_id, "eos_token": tokens.end_id}
    io.write_model(
        path,
        io.ModelFiles(
            config=to_json(model.config) | special | stored | {"torch_dtype": stored["dtype"]},
            tensors=tensors,
            tokenizer=tokens.to_json(),
            tokenizer_config={
                "tokenizer_class": "PreTrainedTokenizerFast",
                "clean_up_tokenization_spaces": False,
                "model_max_length": model.config.max_length,
            }
            | {name: tokens.token_of(id) for name, id in texts.items() if id is not None},
            generation_config={"do_sample": True} | dict(model.generation) | special,
        ),
    )


def load(path: Path | str, *, dtype: Any = None) -> Model:  # Any: a dtype
    """Read a model folder.

    Args:
        path: the folder.
        dtype: dtype of the weights; as they are stored when absent.

    Raises:
        MissingFileError: the folder or one of its files is not there.
        CorruptFileError: a file is damaged, or its tensors are not those of its configuration.
        ValueMismatchError: the model needs something that is not supported.
    """
    files = io.read_model(path)
    config = from_json(files.config)
    tokenizer = _tokenizer(files.tokenizer, files.tokenizer_config, files.config | files.generation_config)
    generation = {
        name: files.generation_config[name]
        for name in ("temperature", "top_k", "top_p")
        if isinstance(files.generation_config.get(name), int | float)
    }
    return Model(config, from_tensors(files.tensors, config, dtype=dtype), tokenizer, generation)


def load_tokenizer(path: Path | str) -> tokenizer_.Tokenizer:
    """The tokenizer of a model folder, or of a tokenizer.json.

    Raises:
        MissingFileError: it is not there.
        CorruptFileError: a file is damaged.
        ValueMismatchError: it is no tokenizer.
    """
    place = Path(path).expanduser()
    file = place / "tokenizer.json" if place.is_dir() else place
    if not file.is_file():
        raise io.MissingFileError(
            f"there is no tokenizer {place}",
            expected="a tokenizer.json, or a folder that has one",
            fix="correct data.tokenizer",
        )
    stated: Json = {}
    for name in ("config.json", "generation_config.json"):
        stated |= io.read_json(file.with_name(name)) if file.with_name(name).is_file() else {}
    special = file.with_name("tokenizer_config.json")
    return _tokenizer(
        file.read_text(encoding="utf-8"), io.read_json(special) if special.is_file() else {}, stated
    )


def to_tensors(params: gpt.Params, config: gpt.Config) -> dict[str, np.ndarray]:
    """Weights by their names in Hugging Face's files, where every expert has its own."""
    kind = hugging_face.kind_of(config)
    found: dict[str, np.ndarray] = {}
    for path, array in _leaves(params):
        whole = np.asarray(array)
        parts = whole if _is_of_experts(path) else (whole,)
        found |= zip(_full_names(path, kind, config), parts, strict=True)
    return found


def from_tensors(
    tensors: Mapping[str, np.ndarray], config: gpt.Config, *, dtype: Any = None
) -> gpt.Params:  # Any: a dtype
    """Parameters from weights by name.

    Raises:
        CorruptFileError: a weight is missing, unexpected, or has the wrong shape.
    """
    wanted = inf.eval_shape(lambda: gpt.init(random.PRNGKey(0), config))
    kind = hugging_face.kind_of(config)
    names = {
        name: tuple(like.shape[1:] if _is_of_experts(path) else like.shape)
        for path, like in _leaves(wanted)
        for name in _full_names(path, kind, config)
    }
    extra = sorted(name for name in set(tensors) - set(names) if not _is_idle(name, config))
    missing = sorted(set(names) - set(tensors))
    for problem, found in (("are missing", missing), ("are not part of the model", extra)):
        if found:
            raise io.CorruptFileError(
                f"weights {problem}",
                got=", ".join(found[:4]) + (f" and {len(found) - 4} more" if found[4:] else ""),
                expected="the weights that config.json asks for",
                fix="copy the whole model folder again",
            )
    for name, shape in names.items():
        own = tensors.shape(name) if isinstance(tensors, tensors_.TensorFiles) else tensors[name].shape
        if own != shape:
            raise io.CorruptFileError(
                f"the weight {name} has the wrong shape", got=str(own), expected=str(shape)
            )

    def read(path: str) -> Any:  # Any: an array
        found = [tensors[name] for name in _full_names(path, kind, config)]
        return inp.asarray(np.stack(found) if _is_of_experts(path) else found[0], dtype=dtype)

    return _filled(wanted, "", read)


def _tokenizer(text: str, special: Json, stated: Json) -> tokenizer_.Tokenizer:
    """A tokenizer with the special ids that the files beside it state; ids stand above texts."""
    plain = tokenizer_.Tokenizer.from_json(text)

    def id_of(name: str) -> int | None:
        token = special.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        return plain.id_of(token) if isinstance(token, str) else None

    begin, ends = stated.get("bos_token_id"), stated.get("eos_token_id")
    own_end = id_of("eos_token")
    if ends is None:
        ends = [] if own_end is None else [own_end]
    ends = [ends] if isinstance(ends, int) else list(ends)
    if own_end in ends:  # the one between documents
        ends.sort(key=lambda id: id != own_end)
    begin = id_of("bos_token") if begin is None else begin
    if begin is None and not ends:
        return plain
    return tokenizer_.Tokenizer.from_json(text, begin_id=begin, end_ids=ends)


def _one_or_all(ids: tuple[int, ...]) -> int | list[int] | None:
    return None if not ids else ids[0] if len(ids) == 1 else list(ids)


def _is_idle(name: str, config: gpt.Config) -> bool:
    """Whether writers store a weight that nothing reads: a tied projection, frequencies of old versions."""
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_embeddings)


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:  # Any: a tree of arrays
    for key, child in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(child, dict | list):
            yield from _leaves(child, f"{path}{key}.")
        else:
            yield f"{path}{key}", child


def _filled(node: Any, path: str, read: Callable[[str], Any]) -> Any:  # Any: a tree of arrays
    if isinstance(node, dict):
        return {key: _filled(child, f"{path}{key}.", read) for key, child in node.items()}
    if isinstance(node, list):
        return [_filled(child, f"{path}{index}.", read) for index, child in enumerate(node)]
    return read(path.removesuffix("."))


def _is_of_experts(path: str) -> bool:
    """Whether the array at a path holds a weight of every expert."""
    return ".mlp.experts." in path


def _full_names(path: str, kind: str, config: gpt.Config) -> list[str]:
    """Names in the files of what is at a path: one, or one for each expert."""
    inner = path if path.startswith("lm_head") else f"model.{path}"
    if kind == "mixtral":
        inner = inner.replace(".mlp.", ".block_sparse_moe.")
    if _is_of_experts(path):
        folder, own = inner.rsplit(".", 1)
        own = _MIXTRAL[own] if kind == "mixtral" else own
        return [f"{folder}.{expert}.{own}.weight" for expert in range(config.num_experts)]
    return [f"{inner.removesuffix('_bias')}.bias" if inner.endswith("_bias") else f"{inner}.weight"]
