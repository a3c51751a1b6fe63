"""Model folders in Hugging Face's layout: config.json, safetensors files, a tokenizer's files, a template.

Reference: https://huggingface.co/docs/transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from infini import io
from infini.io import folders, hugging_face, tensors as tensors_
from infini.llm.checkpoints import packed
from infini.llm.checkpoints.source import Source

_TEXTS: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


class Mapped:
    """Weights of safetensors files, mapped."""

    def __init__(self, files: tensors_.TensorFiles) -> None:
        self._files = files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""
        return self._files.shape(name)

    def dtype(self, name: str) -> np.dtype:
        """Dtype of a weight."""
        return self._files.dtype(name)

    def nbytes(self, name: str) -> int:
        """Bytes of a weight."""
        return self._files.mapped(name).nbytes

    def read(self, name: str) -> np.ndarray:
        """A weight, read-only and not copied."""
        return self._files.mapped(name)


def read(path: Path | str) -> Source:
    """Look into a model folder.

    Raises:
        MissingFileError: the folder, or config.json or a file of weights in it, is not there.
        CorruptFileError: a file is damaged.
        ValueMismatchError: weights are stored in few bits in a way that is not supported.
    """
    folder = folders.recover(path)
    if not folder.is_dir():
        raise io.MissingFileError(
            f"there is no model {Path(path)}",
            expected="a folder with config.json and safetensors files, or a .gguf file",
            fix="`infini pull ORG/MODEL` fetches one",
        )
    config = io.read_json(folder / hugging_face.CONFIG)
    texts = {name: hugging_face.read_text(folder / name) for name in _TEXTS if (folder / name).is_file()}
    return Source(
        place=str(folder),
        config_json=config,
        tensors=packed.unpacked(Mapped(hugging_face.open_tensors(folder)), config),
        tokenizer_files=texts,
        generation_config=hugging_face.read_optional_json(folder / hugging_face.GENERATION_CONFIG),
        chat_template=_chat_template(folder, texts),
    )


def _chat_template(folder: Path, texts: dict[str, str]) -> str | None:
    """The template of a folder; a file of its own stands above the tokenizer's configuration."""
    if "chat_template.jinja" in texts:
        return texts["chat_template.jinja"]
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = _default(io.read_json(folder / name).get("chat_template")) if name in texts else None
        if found is not None:
            return found
    return None


def _default(template: Any) -> str | None:  # Any: JSON
    """A template, or of a list of named ones the one called `default`."""
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict)]
        template = next((entry.get("template") for entry in named if entry.get("name") == "default"), None)
    return template if isinstance(template, str) else None
