"""The index of a checkpoint: where the pieces of its arrays are, and what its files must look like.

It is a msgpack table that holds the rest as bytes, with their SHA-256, so that a flipped bit in the index is
found as well. The checkpoints of one safetensors file that `infini train` wrote before are read through an
index made from their manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgpack
import numpy as np

from infini.core import dtypes
from infini.parallel.checkpoints import parts, pieces
from infini.parallel.checkpoints.pieces import Slices

INDEX: Final = "index.msgpack"
MANIFEST: Final = "manifest.json"  # of the format 1
_STATE: Final = "state.safetensors"
_FORMAT: Final = 2
_DTYPES: Final = {dtype.name: dtype for dtype in dtypes.ALL}


class DamagedError(Exception):
    """Why a folder is no checkpoint that can be used; callers put the words into an error or a note."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a checkpoint and what it must be."""

    name: str
    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class StoredPiece:
    """Where a piece of an array is: number of the file, name in it, and which part of the array it is."""

    file: int
    key: str
    slices: Slices


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array of a checkpoint.

    Args:
        dtype: its dtype.
        shape: its shape.
        placement: how it was split when it was written, for people.
        pieces: its pieces, which cover it; an array without elements has none.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    placement: str
    pieces: tuple[StoredPiece, ...]

    def __str__(self) -> str:
        return f"{dtypes.short(self.dtype)}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Index:
    """What there is to know of a checkpoint.

    Args:
        position: what was given to `save`.
        arrays: the arrays by name.
        files: the files, but for the index.
        version: version of infini that wrote it.
    """

    position: Mapping[str, Any]  # Any: what msgpack holds
    arrays: Mapping[str, StoredArray]
    files: tuple[StoredFile, ...]
    version: str


def pack(index: Index) -> bytes:
    """The contents of the file."""
    body: bytes = msgpack.packb(
        {
            "position": msgpack.packb(index.position),  # lists stay lists
            "version": index.version,
            "arrays": {
                name: [
                    array.dtype.name,
                    array.shape,
                    array.placement,
                    [(piece.file, piece.key, piece.slices) for piece in array.pieces],
                ]
                for name, array in index.arrays.items()
            },
            "files": [(file.name, file.nbytes, file.sha256) for file in index.files],
        }
    )
    packed: bytes = msgpack.packb(
        {"format": _FORMAT, "sha256": hashlib.sha256(body).hexdigest(), "body": body}
    )
    return packed


def read(folder: Path) -> Index:
    """The index of a checkpoint.

    Raises:
        DamagedError: it has none, or it is damaged.
    """
    try:
        if not (folder / INDEX).exists() and (folder / MANIFEST).exists():
            return _of_manifest(folder)
        return _unpack((folder / INDEX).read_bytes())
    except FileNotFoundError as error:
        raise DamagedError(f"{Path(error.filename).name} is missing") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException) as error:
        name = INDEX if (folder / INDEX).exists() else MANIFEST
        raise DamagedError(f"{name} is damaged ({error})") from error


def problem_of(folder: Path, file: StoredFile) -> str | None:
    """Why a file of a checkpoint is not what it must be; None when it is. Reads all of it."""
    try:
        size = (folder / file.name).stat().st_size
        if size != file.nbytes:
            return f"{file.name} is damaged: it has {size} bytes instead of {file.nbytes}"
        with (folder / file.name).open("rb") as handle:
            if hashlib.file_digest(handle, "sha256").hexdigest() != file.sha256:
                return f"{file.name} is damaged: its contents have another SHA-256"
    except FileNotFoundError:
        return f"{file.name} is missing"
    except OSError as error:
        return f"{file.name} cannot be read: {error.strerror}"
    return None


def _unpack(packed: bytes) -> Index:
    outer = msgpack.unpackb(packed)
    if outer["format"] != _FORMAT:
        raise DamagedError(f"it has the format {outer['format']}, and this version reads 1 and {_FORMAT}")
    if hashlib.sha256(outer["body"]).hexdigest() != outer["sha256"]:
        raise ValueError("its contents have another SHA-256")
    body = msgpack.unpackb(outer["body"], use_list=False, strict_map_key=False)
    arrays = {
        name: StoredArray(_DTYPES[dtype], shape, placement, tuple(StoredPiece(*piece) for piece in stored))
        for name, (dtype, shape, placement, stored) in body["arrays"].items()
    }
    files = tuple(StoredFile(*file) for file in body["files"])
    return Index(msgpack.unpackb(body["position"]), arrays, files, body["version"])


def _of_manifest(folder: Path) -> Index:
    """The index of a checkpoint of format 1: one file of whole arrays."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if manifest["format"] != 1:
        raise DamagedError(f"it has the format {manifest['format']}, and this version reads 1 and {_FORMAT}")
    files = [StoredFile(name, facts["bytes"], facts["sha256"]) for name, facts in manifest["files"].items()]
    number = [file.name for file in files].index(_STATE)
    if problem := problem_of(folder, files[number]):
        raise DamagedError(problem)
    arrays = {}
    for name, fields in parts.Part(folder / _STATE).fields.items():
        shape = tuple(fields["shape"])
        stored = (StoredPiece(number, name, pieces.whole(shape)),) if 0 not in shape else ()
        arrays[name] = StoredArray(parts.DTYPES[fields["dtype"]], shape, "", stored)
    return Index(manifest["position"], arrays, tuple(files), manifest["infini"])
