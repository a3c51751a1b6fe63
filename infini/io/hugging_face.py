"""Model folders in Hugging Face's layout: config.json, safetensors files, tokenizer.json and companions.

This file knows files, not models: what a configuration means is the business of the model that reads it.
Nothing is unpickled. References: https://huggingface.co/docs/safetensors, https://huggingface.co/docs/transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from infini.io import folders, tensors as tensors_
from infini.io.tensors import CorruptFileError, MissingFileError

CONFIG: Final = "config.json"
GENERATION_CONFIG: Final = "generation_config.json"
WEIGHTS: Final = "model.safetensors"
WEIGHTS_INDEX: Final = "model.safetensors.index.json"
TOKENIZER: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
SHARDS: Final = "model-*-of-*.safetensors"
FILES: Final = (CONFIG, GENERATION_CONFIG, WEIGHTS, WEIGHTS_INDEX, SHARDS, TOKENIZER, TOKENIZER_CONFIG)
MAX_SHARD_BYTES: Final = 5 << 30

Json = dict[str, Any]  # Any: whatever JSON holds


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The contents of a model folder.

    Args:
        config: config.json.
        tensors: arrays of the safetensors files by name.
        tokenizer: text of tokenizer.json.
        tokenizer_config: tokenizer_config.json.
        generation_config: generation_config.json.
    """

    config: Json
    tensors: Mapping[str, np.ndarray]
    tokenizer: str
    tokenizer_config: Json
    generation_config: Json


def write_model(path: Path | str, files: ModelFiles, *, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write a model folder, whole or not at all; an older model of that name is replaced.

    Args:
        path: the folder.
        files: its contents.
        max_shard_bytes: weights of more bytes are spread over several files with an index.

    Raises:
        ValueMismatchError: the folder holds other files, which would be lost.
    """
    with folders.replacing_folder(path, may_replace=FILES) as folder:
        _write_json(folder / CONFIG, files.config)
        _write_json(folder / GENERATION_CONFIG, files.generation_config)
        _write_json(folder / TOKENIZER_CONFIG, files.tokenizer_config)
        (folder / TOKENIZER).write_text(files.tokenizer, encoding="utf-8")
        write_tensors(folder, files.tensors, max_shard_bytes)


def read_model(path: Path | str) -> ModelFiles:
    """Read a model folder; weights may be in one file or in several with an index.

    Returns:
        Its contents. Weights are read from disk when they are asked for.

    Raises:
        MissingFileError: the folder or one of its files is not there.
        CorruptFileError: a file is damaged.
    """
    folder = folders.recover(path)
    if not folder.is_dir():
        raise MissingFileError(
            f"there is no model folder {Path(path)}",
            expected="a folder with " + ", ".join((CONFIG, WEIGHTS, TOKENIZER)),
            fix="make one with `infini train` or `infini demo`",
        )
    return ModelFiles(
        config=read_json(folder / CONFIG),
        tensors=open_tensors(folder),
        tokenizer=_read_tokenizer(folder),
        tokenizer_config=read_optional_json(folder / TOKENIZER_CONFIG),
        generation_config=read_optional_json(folder / GENERATION_CONFIG),
    )


def write_tensors(folder: Path, tensors: Mapping[str, np.ndarray], max_shard_bytes: int) -> None:
    """Write the weights of a model folder, to one file or to several with an index.

    Of several only the tensors of one file are in memory at a time, where `tensors` reads them when they are
    asked for.
    """
    shards: list[list[str]] = [[]]
    used, total = 0, 0
    loaded: dict[str, np.ndarray] = {}
    places: dict[str, str] = {}
    # The number of files is in their names, and sizes are known only when tensors have been read: files get
    # their names at the end.
    for name in tensors:
        tensor = tensors[name]
        if loaded and used + tensor.nbytes > max_shard_bytes:
            _write_shard(folder, len(shards), loaded)
            shards.append([])
            loaded, used = {}, 0
        loaded[name] = tensor
        shards[-1].append(name)
        used += tensor.nbytes
        total += tensor.nbytes
    # Readers look at `format` to see which framework's layout it is; PyTorch's is the common one.
    if len(shards) == 1:
        tensors_.write_tensors(folder / WEIGHTS, loaded, metadata={"format": "pt"})
        return
    _write_shard(folder, len(shards), loaded)
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        (folder / _part(number)).rename(folder / file)
        places.update(dict.fromkeys(names, file))
    _write_json(folder / WEIGHTS_INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _write_shard(folder: Path, number: int, tensors: Mapping[str, np.ndarray]) -> None:
    tensors_.write_tensors(folder / _part(number), tensors, metadata={"format": "pt"})


def _part(number: int) -> str:
    return f"part-{number}.safetensors"


def open_tensors(folder: Path) -> tensors_.TensorFiles:
    """The weights of a model folder, in one file or in several with an index.

    Raises:
        MissingFileError: a file is not there.
        CorruptFileError: a file is damaged, or lacks what the index says.
    """
    if not (folder / WEIGHTS_INDEX).is_file():
        if not (folder / WEIGHTS).is_file() and any(folder.glob("pytorch_model*.bin")):
            raise MissingFileError(
                f"{WEIGHTS} is missing",
                got=f"{folder} has pytorch_model.bin, a pickle, which is never read",
                fix="convert it: load it with transformers and call save_pretrained",
            )
        return tensors_.read_tensors(folder / WEIGHTS)
    places = read_json(folder / WEIGHTS_INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CorruptFileError(f"{WEIGHTS_INDEX} has no weight_map", got=str(folder / WEIGHTS_INDEX))
    found = tensors_.TensorFiles(*(folder / Path(name).name for name in sorted(set(places.values()))))
    lost = sorted(places.keys() - found.keys())
    if lost:
        raise CorruptFileError(
            f"{places[lost[0]]} lacks {lost[0]}",
            got=f"{len(lost)} of {len(places)} weights of {WEIGHTS_INDEX} are in no file",
            fix="copy the whole model folder again",
        )
    return found


def _read_tokenizer(folder: Path) -> str:
    if not (folder / TOKENIZER).is_file() and (folder / "tokenizer.model").is_file():
        raise MissingFileError(
            f"{TOKENIZER} is missing",
            got=f"{folder} has only tokenizer.model, SentencePiece's format",
            fix="convert it: load it with transformers' AutoTokenizer and call save_pretrained",
        )
    return read_text(folder / TOKENIZER)


def read_text(file: Path) -> str:
    """The text of a file.

    Raises:
        MissingFileError: it is not there.
        CorruptFileError: it is no text.
    """
    _require(file)
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{file.name} is not text", got=f"{file}: {error}") from error


def read_json(file: Path) -> Json:
    """An object of JSON.

    Raises:
        MissingFileError: the file is not there.
        CorruptFileError: it is not JSON, or no object.
    """
    text = read_text(file)
    try:
        data = json.loads(text)
        if "\\ud" in text.lower():  # perhaps half of a surrogate pair, which no text can hold
            json.dumps(data, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(
            f"{file.name} is not JSON", got=f"{file}: {error}", fix="write or copy it again"
        ) from error
    if not isinstance(data, dict):
        raise CorruptFileError(f"{file.name} is not a JSON object", got=f"{file}: {type(data).__name__}")
    return data


def read_optional_json(file: Path) -> Json:
    """As `read_json`; empty when there is no such file."""
    return read_json(file) if file.is_file() else {}


def _require(file: Path) -> None:
    if not file.is_file():
        raise MissingFileError(
            f"{file.name} is missing", got=str(file.parent), fix="copy the whole model folder again"
        )


def _write_json(file: Path, data: Json) -> None:
    file.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
