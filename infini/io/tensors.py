"""Files of named arrays in the format safetensors: a JSON header and raw bytes, nothing to execute.

Files are mapped into memory: arrays of any size are there at once, and read from disk when they are used.
Reference: https://huggingface.co/docs/safetensors. The library is imported when the first file is written.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from infini.core import errors
from infini.io import folders, tensor_header


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
        self._places: dict[str, tuple[np.ndarray, tensor_header.Place]] = {}
        for path in paths:
            data, places = _open(path)
            twice = self._places.keys() & places.keys()
            if twice:
                raise CorruptFileError(f"{min(twice)} is in two files", got=", ".join(map(str, paths)))
            self._places.update({name: (data, place) for name, place in places.items()})

    def __getitem__(self, name: str) -> np.ndarray:
        """A copy of an array."""
        return self.mapped(name).copy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def mapped(self, name: str) -> np.ndarray:
        """An array without a copy, read-only: its bytes are those of the file, which must not change while
        the array is in use. (A file that is replaced by another of its name does not change.)
        """
        data, place = self._places[name]
        raw = data[place.start : place.start + place.nbytes]
        if raw.ctypes.data % max(place.dtype.itemsize, 1):  # by the header's length; writers pad it
            raw = raw.copy()
            raw.flags.writeable = False
        return raw.view(place.dtype).reshape(place.shape)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array, without reading it."""
        return self._places[name][1].shape

    def dtype(self, name: str) -> np.dtype:
        """Dtype of an array, without reading it."""
        return self._places[name][1].dtype


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


def _open(path: Path) -> tuple[np.ndarray, dict[str, tensor_header.Place]]:
    """All bytes of a file, mapped and read-only, and where its arrays are."""
    if not path.is_file():
        raise MissingFileError(
            f"{path.name} is missing", got=str(path.parent), fix="copy the whole folder again"
        )
    try:
        with path.open("rb") as file:
            # Nothing of no bytes can be mapped.
            is_empty = os.fstat(file.fileno()).st_size == 0
            mapped = b"" if is_empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        data = np.frombuffer(mapped, np.uint8)
        return data, tensor_header.parse(data)[0]
    except (tensor_header.HeaderError, OSError) as error:
        raise CorruptFileError(
            f"{path.name} is damaged",
            got=f"{path}: {error}",
            expected="a safetensors file",
            fix="write or copy it again",
        ) from error
