"""Files of named arrays in the format safetensors: a JSON header and raw bytes, nothing to execute.

Reference: https://huggingface.co/docs/safetensors. The library is imported when the first file is read or
written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from infini.core import errors
from infini.io import folders


class MissingFileError(errors.InfiniError, FileNotFoundError):
    """A file or folder to read is not there."""


class CorruptFileError(errors.InfiniError, ValueError):
    """A file cannot be read as what it should be."""


class TensorFiles(Mapping[str, np.ndarray]):
    """The arrays of some safetensors files by name; each is read from disk when it is asked for.

    Args:
        paths: the files.

    Raises:
        MissingFileError: a file is not there.
        CorruptFileError: a file is damaged, or a name is in two of them.
    """

    def __init__(self, *paths: Path) -> None:
        self._files: dict[str, Any] = {}  # Any: safetensors' handle of an open file
        for path in paths:
            handle = _open(path)
            twice = self._files.keys() & set(handle.keys())
            if twice:
                raise CorruptFileError(f"{min(twice)} is in two files", got=", ".join(map(str, paths)))
            self._files.update(dict.fromkeys(handle.keys(), handle))

    def __getitem__(self, name: str) -> np.ndarray:
        return self._files[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array, without reading it."""
        return tuple(self._files[name].get_slice(name).get_shape())


def read_tensors(path: Path | str) -> TensorFiles:
    """The arrays of one safetensors file.

    Raises:
        MissingFileError: it is not there.
        CorruptFileError: it is damaged.
    """
    return TensorFiles(Path(path))


def write_tensors(
    path: Path | str, tensors: Mapping[str, np.ndarray], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays to one safetensors file, whole or not at all.

    Args:
        path: the file; replaced when it is there.
        tensors: arrays by name.
        metadata: texts for the header. Readers look at `format` to see which framework's layout it is.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_tensors(f"{folder}/a.safetensors", {"x": np.arange(3)})
        ...     read_tensors(f"{folder}/a.safetensors")["x"].tolist()
        [0, 1, 2]
    """
    from safetensors.numpy import save_file

    arrays = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    with folders.replacing_file(path) as written:
        save_file(arrays, written, metadata=dict(metadata or {}))


def _open(path: Path) -> Any:  # Any: safetensors' handle of an open file
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MissingFileError(
            f"{path.name} is missing", got=str(path.parent), fix="copy the whole folder again"
        )
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise CorruptFileError(
            f"{path.name} is damaged",
            got=f"{path}: {error}",
            expected="a safetensors file",
            fix="write or copy it again",
        ) from error
