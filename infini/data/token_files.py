"""Tokens on disk: raw little-endian ids that are mapped into memory, in a folder that is written once and
never changed.

    train.bin  held_out.bin  tokenizer.json  manifest.json

A folder appears whole or not at all, and its name is a hash of everything that decides its contents.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from infini import io
from infini.core import errors

TRAIN: Final = "train.bin"
HELD_OUT: Final = "held_out.bin"
TOKENIZER: Final = "tokenizer.json"
MANIFEST: Final = "manifest.json"
_FORMAT: Final = 1
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a folder of tokens says about itself.

    Args:
        dtype: `uint16` or `uint32`.
        num_train: tokens to train on.
        num_held_out: tokens kept aside.
        num_train_documents: documents they come from.
        num_held_out_documents: documents those kept aside come from.
        tokens: `fingerprint` of both.
        num_bytes: bytes of text.
        format: version of the layout.
    """

    dtype: str
    num_train: int
    num_held_out: int
    num_train_documents: int
    num_held_out_documents: int
    tokens: str
    num_bytes: int
    format: int = _FORMAT


def key(**parts: object) -> str:
    """Name of the folder for contents that these parts decide."""
    text = json.dumps({"format": _FORMAT} | parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def fingerprint(*arrays: np.ndarray) -> str:
    """A short name for ids: equal ids have equal names on every machine."""
    digest = hashlib.sha256()
    for ids in arrays:
        for at in range(0, len(ids), _CHUNK):
            digest.update(np.ascontiguousarray(ids[at : at + _CHUNK], "<u4").tobytes())
    return digest.hexdigest()[:16]


class Writer:
    """Appends ids to the two files of a folder."""

    def __init__(self, folder: Path, dtype: np.dtype) -> None:
        self._dtype = dtype.newbyteorder("<")
        self._files: tuple[BinaryIO, BinaryIO] = (
            (folder / TRAIN).open("wb"),
            (folder / HELD_OUT).open("wb"),
        )
        self._folder = folder
        self._counts = [0, 0]
        self._documents = [0, 0]

    def write(self, ids: np.ndarray, *, is_held_out: bool, ends_document: bool) -> None:
        """Append ids to one of the files."""
        self._files[is_held_out].write(ids.astype(self._dtype, copy=False).tobytes())
        self._counts[is_held_out] += len(ids)
        self._documents[is_held_out] += ends_document

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def finish(self, tokenizer: str, num_bytes: int) -> Manifest:
        """Close the files and write what describes them."""
        self.close()
        arrays = [
            _map(self._folder / name, self._dtype, count)
            for name, count in zip((TRAIN, HELD_OUT), self._counts, strict=True)
        ]
        manifest = Manifest(
            dtype=self._dtype.name,
            num_train=self._counts[0],
            num_held_out=self._counts[1],
            num_train_documents=self._documents[0],
            num_held_out_documents=self._documents[1],
            tokens=fingerprint(*arrays),
            num_bytes=num_bytes,
        )
        (self._folder / TOKENIZER).write_text(tokenizer, encoding="utf-8")
        (self._folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2), encoding="utf-8")
        return manifest


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the name `folder` at the end; when another process was faster,
    its folder stays, since it has the same contents.

    Raises:
        ValueMismatchError: the place cannot be written to.
    """
    try:
        with io.replacing_folder(folder, may_replace=(TRAIN, HELD_OUT, TOKENIZER, MANIFEST)) as written:
            yield written
    except OSError as error:
        raise errors.ValueMismatchError(
            "the tokens could not be written",
            got=str(error),
            expected=f"a folder with enough space at {folder.parent}",
            fix="set data.cache to another folder, or INFINI_CACHE_DIR",
        ) from error


def read(folder: Path) -> tuple[Manifest, np.ndarray, np.ndarray, str] | None:
    """Manifest, ids to train on, ids kept aside, and the text of the tokenizer; None when the folder is not
    there, not whole, or of another version. The ids are mapped, not read.
    """
    try:
        found: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))  # Any: JSON
        manifest = Manifest(**found)
        if manifest.format != _FORMAT:
            return None
        dtype = np.dtype(manifest.dtype).newbyteorder("<")
        train = _map(folder / TRAIN, dtype, manifest.num_train)
        held_out = _map(folder / HELD_OUT, dtype, manifest.num_held_out)
        return manifest, train, held_out, (folder / TOKENIZER).read_text(encoding="utf-8")
    except (OSError, ValueError, TypeError):  # each of them means: not a folder that can be used
        return None


def _map(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    if path.stat().st_size != count * dtype.itemsize:
        raise ValueError(f"{path} has {path.stat().st_size} bytes instead of {count * dtype.itemsize}")
    if count == 0:
        return np.empty(0, dtype)  # nothing can be mapped from an empty file
    return np.memmap(path, dtype, mode="r", shape=(count,))
