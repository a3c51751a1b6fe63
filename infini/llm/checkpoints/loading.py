"""Checkpoints as configurations and parameters, ready to run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

import infini.numpy as inp
from infini import io
from infini.llm import models
from infini.llm.models import weights as weights_

Json: TypeAlias = dict[str, Any]  # Any: whatever JSON holds
Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that is ready to run, and what lay beside its weights.

    Args:
        config_json: the contents of config.json, or what a GGUF file says in its place.
        config: what `models.forward` takes.
        params: weights, as `models.forward` takes them.
        tokenizer_files: texts of the tokenizer's files by name: tokenizer.json, tokenizer_config.json ...
        generation_config: the contents of generation_config.json; empty when there is none.
        chat_template: the template that makes a prompt of messages; None when there is none.
        nbytes: bytes that the weights take in memory.
        seconds: how long loading took.
    """

    config_json: Json
    config: models.Config
    params: dict[str, Any]  # Any: arrays, and dictionaries and lists of them
    tokenizer_files: Mapping[str, str]
    generation_config: Json
    chat_template: str | None
    nbytes: int
    seconds: float


def load(
    path: Path | str,
    *,
    dtype: Any = "auto",  # Any: what names a dtype
    quantization: str | None = None,
    on_progress: Progress | None = None,
) -> Checkpoint:
    """Read a model folder or a GGUF file.

    Args:
        path: the folder or file.
        dtype: dtype of the weights and of what is computed with them; "auto" as they are stored.
        quantization: how to store matrices in memory: "int8", "q8_0", "q4_0", "q4_k" or "q6_k"; None as they
            are in the files.
        on_progress: called with the bytes read so far and those there are.

    Raises:
        MissingFileError: the folder, or one of its files, is not there.
        CorruptFileError: a file is damaged, or its weights are not those of its configuration.
        ValueMismatchError: the model needs something that is not supported.
    """
    start = time.perf_counter()
    files = io.read_model(path)
    config = models.config_from_json(files.config)
    params: dict[str, Any] = {}
    nbytes = 0
    for weight in models.family_of(files.config).weights(config):
        found = [files.tensors[name] for name in weight.names]
        array = np.stack(found) if weight.kind == "experts" else found[0]
        placed = inp.asarray(array, dtype=None if dtype == "auto" else dtype)
        nbytes += placed.nbytes
        weights_.put(params, weight.path, placed)
    return Checkpoint(
        config_json=files.config,
        config=config,
        params=params,
        tokenizer_files={"tokenizer.json": files.tokenizer},
        generation_config=files.generation_config,
        chat_template=files.tokenizer_config.get("chat_template"),
        nbytes=nbytes,
        seconds=time.perf_counter() - start,
    )
