"""Files of pieces in the format safetensors: written in one pass that also hashes, read by mapping.

The library safetensors reads these files; it is not used here because it wants all contents in memory at
once, has no hash of what it writes, and its NumPy side knows no 8-bit floats. complex128, which the format
lacks, is stored as pairs of float64. Reference: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from infini.core import dtypes

_TAGS: Final = {
    dtypes.bool_: "BOOL",
    dtypes.int8: "I8",
    dtypes.int16: "I16",
    dtypes.int32: "I32",
    dtypes.int64: "I64",
    dtypes.uint8: "U8",
    dtypes.uint16: "U16",
    dtypes.uint32: "U32",
    dtypes.uint64: "U64",
    dtypes.float8_e4m3fn: "F8_E4M3",
    dtypes.float8_e5m2: "F8_E5M2",
    dtypes.float16: "F16",
    dtypes.bfloat16: "BF16",
    dtypes.float32: "F32",
    dtypes.float64: "F64",
    dtypes.complex64: "C64",
}
DTYPES: Final = {tag: dtype for dtype, tag in _TAGS.items()}
_CHUNK_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """An array to write.

    Args:
        key: its name in the file.
        dtype: its dtype.
        shape: its shape.
        read: gives its contents.
    """

    key: str
    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of its contents."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def write(path: Path, entries: Sequence[Entry]) -> tuple[int, str]:
    """Write a file that is not there yet, and force it to disk.

    Args:
        path: the file.
        entries: what to write; contents are asked for one after the other.

    Returns:
        Its length in bytes and its SHA-256.

    Raises:
        OSError: the system refused: no space, no permission.
    """
    ordered = sorted(entries, key=lambda entry: -entry.dtype.itemsize)  # every array is aligned then
    digest = hashlib.sha256()
    length = 0
    with path.open("xb") as file:
        for data in itertools.chain([memoryview(_header(ordered))], map(_bytes_of, ordered)):
            for start in range(0, len(data), _CHUNK_BYTES):
                chunk = data[start : start + _CHUNK_BYTES]
                digest.update(chunk)
                _put(file, chunk)
            length += len(data)
        file.flush()
        os.fsync(file.fileno())
    return length, digest.hexdigest()


def _put(file: BinaryIO, chunk: memoryview) -> None:
    file.write(chunk)


def _header(entries: Sequence[Entry]) -> bytes:
    fields: dict[str, Any] = {}  # Any: JSON
    start = 0
    for entry in entries:
        tag, shape = _TAGS.get(entry.dtype, "F64"), entry.shape
        if entry.dtype == dtypes.complex128:
            shape = (*shape, 2)
        fields[entry.key] = {
            "dtype": tag,
            "shape": shape,
            "data_offsets": [start, start + entry.nbytes],
        }
        start += entry.nbytes
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(entry: Entry) -> memoryview:
    host = entry.read()
    assert (host.shape, host.dtype) == (entry.shape, entry.dtype), "contents are of the type announced"
    return np.ascontiguousarray(host).reshape(-1).view(np.uint8).data


class Part:
    """A file that was written so, mapped into memory.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no such file.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        size = int.from_bytes(self._map[:8].tobytes(), "little")
        if not 0 < size <= len(self._map) - 8:
            raise ValueError("its header does not fit")
        self._start = 8 + size
        fields = json.loads(self._map[8 : self._start].tobytes())
        if not isinstance(fields, dict):
            raise ValueError("its header is no table")
        self.fields: dict[str, Any] = fields  # Any: JSON
        self.fields.pop("__metadata__", None)

    def array(self, key: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        """An array of the file, read-only and not copied.

        Raises:
            ValueError: there is none of this name and size.
        """
        expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        try:
            start, stop = self.fields[key]["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"it has no array {key}") from error
        data = self._map[self._start + start : self._start + stop]
        if start < 0 or len(data) != expected:
            raise ValueError(f"its array {key} has {len(data)} bytes instead of {expected}")
        return data.view(dtype).reshape(shape)
