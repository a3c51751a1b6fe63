"""Model folders in Hugging Face's layout: config.json, model.safetensors, tokenizer.json and companions.

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

from infini.core import errors
from infini.io import folders

CONFIG: Final = "config.json"
GENERATION_CONFIG: Final = "generation_config.json"
WEIGHTS: Final = "model.safetensors"
WEIGHTS_INDEX: Final = "model.safetensors.index.json"
TOKENIZER: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
FILES: Final = (CONFIG, GENERATION_CONFIG, WEIGHTS, TOKENIZER, TOKENIZER_CONFIG)

Json = dict[str, Any]  # Any: whatever JSON holds


class MissingFileError(errors.InfiniError, FileNotFoundError):
    """A model folder lacks a file, or is not there."""


class CorruptFileError(errors.InfiniError, ValueError):
    """A file of a model folder cannot be read as what it should be."""


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


def write_model(path: Path | str, files: ModelFiles) -> None:
    """Write a model folder, whole or not at all; an older model of that name is replaced.

    Args:
        path: the folder.
        files: its contents.

    Raises:
        ValueMismatchError: the folder holds other files, which would be lost.
    """
    from safetensors.numpy import save_file

    with folders.replacing_folder(path, may_replace=FILES) as folder:
        _write_json(folder / CONFIG, files.config)
        _write_json(folder / GENERATION_CONFIG, files.generation_config)
        _write_json(folder / TOKENIZER_CONFIG, files.tokenizer_config)
        (folder / TOKENIZER).write_text(files.tokenizer, encoding="utf-8")
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in files.tensors.items()}
        # Readers look at `format` to see which framework's layout it is; PyTorch's is the common one.
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def read_model(path: Path | str) -> ModelFiles:
    """Read a model folder; weights may be in one file or in several with an index.

    Raises:
        MissingFileError: the folder or one of its files is not there.
        CorruptFileError: a file is damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise MissingFileError(
            f"there is no model folder {folder}",
            expected="a folder with " + ", ".join((CONFIG, WEIGHTS, TOKENIZER)),
            fix="make one with `infini train` or `infini demo`",
        )
    return ModelFiles(
        config=_read_json(folder / CONFIG),
        tensors=_read_tensors(folder),
        tokenizer=_read_text(folder / TOKENIZER),
        tokenizer_config=_read_optional_json(folder / TOKENIZER_CONFIG),
        generation_config=_read_optional_json(folder / GENERATION_CONFIG),
    )


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    if not (folder / WEIGHTS_INDEX).is_file():
        return _read_safetensors(folder / WEIGHTS)
    names = _read_json(folder / WEIGHTS_INDEX).get("weight_map")
    if not isinstance(names, dict):
        raise CorruptFileError(f"{WEIGHTS_INDEX} has no weight_map", got=str(folder / WEIGHTS_INDEX))
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(set(names.values())):
        tensors.update(_read_safetensors(folder / Path(file).name))
    return tensors


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    _require(file)
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CorruptFileError(
            f"{file.name} is damaged",
            got=f"{file}: {error}",
            expected="a safetensors file",
            fix="write or copy it again",
        ) from error


def _read_text(file: Path) -> str:
    _require(file)
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{file.name} is not text", got=f"{file}: {error}") from error


def _read_json(file: Path) -> Json:
    text = _read_text(file)
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise CorruptFileError(
            f"{file.name} is not JSON", got=f"{file}: {error}", fix="write or copy it again"
        ) from error
    if not isinstance(data, dict):
        raise CorruptFileError(f"{file.name} is not a JSON object", got=f"{file}: {type(data).__name__}")
    return data


def _read_optional_json(file: Path) -> Json:
    return _read_json(file) if file.is_file() else {}


def _require(file: Path) -> None:
    if not file.is_file():
        raise MissingFileError(
            f"{file.name} is missing", got=str(file.parent), fix="copy the whole model folder again"
        )


def _write_json(file: Path, data: Json) -> None:
    file.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
