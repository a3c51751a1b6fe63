"""What a checkpoint holds before it is read into memory: the common form of folders and GGUF files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np

from infini.quantization import QuantizedArray

Json: TypeAlias = dict[str, Any]  # Any: whatever JSON holds


class Tensors(Protocol):
    """Weights by the names that Hugging Face's files give them."""

    def __iter__(self) -> Iterator[str]:
        """All names."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight, without reading it."""

    def nbytes(self, name: str) -> int:
        """Bytes that reading it takes from the files."""

    def read(self, name: str) -> np.ndarray | QuantizedArray:
        """A weight: a NumPy array that nobody writes, mapped where files allow it, or one in few bits, whose
        planes are such arrays.
        """


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint.

    Args:
        place: what messages call it.
        config_json: the contents of config.json, or what stands for it.
        tensors: its weights.
        tokenizer_files: texts of the tokenizer's files by name.
        generation_config: the contents of generation_config.json; empty when there is none.
        chat_template: the template that makes a prompt of messages; None when there is none.
    """

    place: str
    config_json: Json
    tensors: Tensors
    tokenizer_files: Mapping[str, str] = field(default_factory=dict)
    generation_config: Json = field(default_factory=dict)
    chat_template: str | None = None
