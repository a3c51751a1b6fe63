"""Whole models from a folder in Hugging Face's layout to a GGUF file, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from infini.core import errors
from infini.io import folders, gguf, hugging_face, tensors as tensors_
from infini.llm.checkpoints.gguf import quantizing, reading, vocabulary, writing
from infini.llm.text import tokenizer as tokenizer_

Json = dict[str, Any]  # Any: whatever JSON holds

# What the other direction may replace in a folder.
_FILES: Final = (*hugging_face.FILES, "chat_template.jinja")
_NATIVE: Final = ("F32", "F16", "BF16")
_DTYPES: Final = ("float32", "float16", "bfloat16")


def to_file(
    folder: Path | str,
    path: Path | str,
    *,
    type: str = "auto",
    name: str | None = None,
    output: str | None = None,
    embeddings: str | None = None,
    has_tokenizer: bool = True,
    shards: gguf.Shards | None = None,
    on_progress: gguf.Listener | None = None,
) -> list[Path]:
    """Write a model folder as a GGUF file: weights, configuration, tokenizer and chat templates.

    Args:
        folder: the folder.
        path: the file; replaced when it is there.
        type: what matrices are stored as: a type or a mixture of `quantizing`, or "auto", as they are.
        name: `general.name`; the folder's name when absent.
        output: type of the projection to logits, where `type` is a quantised one.
        embeddings: type of the table of embeddings, likewise.
        has_tokenizer: whether the tokenizer is written; a file without is for programs that bring their own.
        shards: how to spread the model over files.
        on_progress: called after each tensor.

    Returns:
        The files.

    Raises:
        MissingFileError: a file of the folder is not there.
        CorruptFileError: a file is damaged.
        UnsupportedError: GGUF has no form for the model or its tokenizer.
    """
    source = folders.recover(folder)
    if not source.is_dir():
        raise tensors_.MissingFileError(
            f"there is no model folder {Path(folder)}",
            expected="a folder with config.json and safetensors files",
        )
    config = hugging_face.read_json(source / hugging_face.CONFIG)
    mixture = None if type == "auto" or type.upper() in _NATIVE else quantizing.mixture_of(type)
    # A mixture is chosen by the names of GGUF, so the model is described in full numbers first.
    metadata, tensors = writing.write_model(
        config, hugging_face.open_tensors(source), type="F32" if mixture is not None else type
    )
    fields = {key: gguf.value_of(value) for key, value in metadata.items()}
    fields["general.name"] = gguf.value_of(name or source.name)
    if has_tokenizer:
        fields |= vocabulary.write(tokenizer_.from_folder(source), int(config["vocab_size"]))
    if mixture is not None:
        fields, tensors = quantizing.choose(
            gguf.Metadata(fields), tensors, mixture, output=output, embeddings=embeddings
        )
    return gguf.write(path, fields, tensors, shards=shards, on_progress=on_progress)


def to_folder(
    path: Path | str,
    folder: Path | str,
    *,
    dtype: str = "auto",
    max_shard_bytes: int = hugging_face.MAX_SHARD_BYTES,
    on_progress: gguf.Listener | None = None,
) -> None:
    """Write a GGUF file as a model folder: config.json, safetensors files, tokenizer.json and chat template.

    Args:
        path: the file.
        folder: the folder; an older model of that name is replaced.
        dtype: dtype of the weights: "float32", "float16", "bfloat16"; or "auto": that of the file, float16
            for files of quantised matrices.
        max_shard_bytes: weights of more bytes are spread over several files.
        on_progress: called after each tensor.

    Raises:
        GGUFError: the file is damaged.
        UnsupportedError: its architecture is not known.
        ValueMismatchError: the folder holds other files, which would be lost.
    """
    if dtype not in ("auto", *_DTYPES):
        raise errors.ValueMismatchError(
            "weights of folders have no such dtype", got=dtype, expected="auto, " + ", ".join(_DTYPES)
        )
    model = reading.read(path)
    chosen = dtype if dtype != "auto" else str(model.config.get("dtype", "float16"))
    config: Json = {**model.config, "dtype": chosen}
    files = _tokenizer_files(model.metadata)
    generation: Json = {key: config[key] for key in ("bos_token_id", "eos_token_id") if key in config}
    with folders.replacing_folder(folder, may_replace=_FILES) as written:
        for file, data in ((hugging_face.CONFIG, config), (hugging_face.GENERATION_CONFIG, generation)):
            _write_json(written / file, data)
        for file, text in files.items():
            (written / file).write_text(text, encoding="utf-8")
        hugging_face.write_tensors(written, _Floats(model, chosen, on_progress), max_shard_bytes)


def _tokenizer_files(metadata: gguf.Metadata) -> dict[str, str]:
    """Texts of the tokenizer's files by name; none where the file has no tokenizer."""
    if metadata.get("tokenizer.ggml.model") in (None, "none", "no_vocab"):
        return {}
    found = tokenizer_.from_gguf(metadata)
    config: dict[str, Any] = dict(found.special_tokens)  # Any: whatever JSON holds
    for name in ("add_bos_token", "add_eos_token"):
        stated = metadata.get(f"tokenizer.ggml.{name}")
        if stated is not None:
            config[name] = bool(stated)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    files = {hugging_face.TOKENIZER: found.to_json()}
    if found.chat_template is not None:
        files["chat_template.jinja"] = found.chat_template
    files[hugging_face.TOKENIZER_CONFIG] = json.dumps(config, indent=2, sort_keys=True) + "\n"
    return files


class _Floats(Mapping[str, np.ndarray]):
    """The weights of a GGUF file in one dtype, each read when it is asked for."""

    def __init__(self, model: reading.GGUFModel, dtype: str, on_progress: gguf.Listener | None) -> None:
        self._tensors = model.tensors
        self._dtype = gguf.type_of(_NATIVE[_DTYPES.index(dtype)]).dtype
        self._on_progress = on_progress
        self._done, self._total = 0, sum(x.nbytes for x in model.tensors.values())

    def __getitem__(self, name: str) -> np.ndarray:
        x = self._tensors[name]
        found = x.numpy().astype(self._dtype)
        self._done += x.nbytes
        if self._on_progress is not None:
            self._on_progress(name, self._done, self._total)
        return found

    def __iter__(self) -> Any:  # Any: an iterator over names
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _write_json(file: Path, data: Mapping[str, Any]) -> None:  # Any: whatever JSON holds
    file.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
