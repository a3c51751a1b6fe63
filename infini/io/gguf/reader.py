"""Reading GGUF files: mapped into memory, so that a tensor is read from disk when its bytes are looked at.

A model may be in several files, `name-00001-of-00003.gguf`; naming one of them reads all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from infini.io.gguf import dequantizers, header as header_
from infini.io.gguf.header import Header, TensorInfo
from infini.io.gguf.types import GGUFError, TensorType
from infini.io.gguf.values import Metadata
from infini.io.tensors import MissingFileError

SPLIT_NUMBER: Final = "split.no"
SPLIT_COUNT: Final = "split.count"
SPLIT_TENSORS: Final = "split.tensors.count"
SPLIT_KEYS: Final = (SPLIT_NUMBER, SPLIT_COUNT, SPLIT_TENSORS)
MAX_SHARDS: Final = 65_535

_SHARD: Final = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, slots=True, eq=False)
class GGUFTensor:
    """A tensor of a GGUF file, or one to be written: its bytes are asked for when they are needed.

    Args:
        name: its name in the file.
        type: what its bytes mean.
        shape: sizes, the contiguous dimension last.
        load: gives the bytes: uint8, as many as the type and the shape say.
    """

    name: str
    type: TensorType
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.type.nbytes(self.shape)

    @property
    def data(self) -> np.ndarray:
        """The bytes: uint8 (..., N, bytes of a row). Of a file that was read they are a view of the map."""
        flat = self.load()
        return flat.reshape(*self.shape[:-1], self.type.row_nbytes(self.shape[-1]))

    def numpy(self) -> np.ndarray:
        """The numbers, in the dtype that the file has them in; quantised ones as float32.

        Raises:
            UnsupportedTypeError: nothing reads numbers of this type.
        """
        if self.type.dtype is not None:
            return self.data.view(self.type.dtype)
        return dequantizers.dequantize(self.data, self.type)

    def __repr__(self) -> str:
        return f"GGUFTensor({self.name!r}, {self.type}, {self.shape})"


class GGUFFile:
    """A model read from one GGUF file or from several.

    Args:
        paths: its files, in order.
        headers: what stands in front of each.
        maps: their bytes.

    Example:
        >>> import tempfile
        >>> from infini.io import gguf
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     x = gguf.tensor("x", np.arange(64, dtype=np.float32).reshape(2, 32), "Q8_0")
        ...     _ = gguf.write(f"{folder}/a.gguf", {"general.architecture": "llama"}, [x])
        ...     file = gguf.read(f"{folder}/a.gguf")
        ...     file.metadata["general.architecture"], file.tensors["x"], file.tensors["x"].data.shape
        ('llama', GGUFTensor('x', Q8_0, (2, 32)), (2, 34))
    """

    def __init__(self, paths: list[Path], headers: list[Header], maps: list[np.ndarray]) -> None:
        self.paths = tuple(paths)
        self.headers = tuple(headers)
        self.metadata = Metadata(headers[0].fields)
        self.tensors: Mapping[str, GGUFTensor] = _joined(paths, headers, maps)

    @property
    def path(self) -> Path:
        """The first file."""
        return self.paths[0]

    @property
    def alignment(self) -> int:
        """Tensors begin at multiples of it."""
        return self.headers[0].alignment

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for header in self.headers for info in header.tensors)

    def __repr__(self) -> str:
        return f"GGUFFile({self.path.name!r}, {len(self.metadata)} keys, {len(self.tensors)} tensors)"


def read(path: Path | str, *, has_data: bool = True) -> GGUFFile:
    """Open a model in GGUF. Its header is read and checked now, and its tensors when they are asked for.

    Args:
        path: the file, or any file of a model that is spread over several.
        has_data: whether the numbers have to be there too.

    Raises:
        MissingFileError: it is not there, or another of its files is not.
        GGUFError: a file is damaged, or is none.
    """
    paths = shards(Path(path))
    headers, maps = [], []
    for number, file in enumerate(paths):
        mapped = _map(file)
        header = header_.parse(mapped.data, file.name, has_data=has_data)
        _check_shard(header, file, number, len(paths))
        headers.append(header)
        maps.append(mapped)
    _check_total(headers, paths)
    return GGUFFile(paths, headers, maps)


def shards(path: Path) -> list[Path]:
    """All files of the model that `path` belongs to, in order.

    Raises:
        MissingFileError: one of them is not there.
    """
    if not path.is_file():
        raise MissingFileError(
            f"there is no file {path}", expected="a file in GGUF", fix="look at the name, or pull the model"
        )
    found = _SHARD.fullmatch(path.name)
    if found is None:
        return [path]
    count = int(found["count"])
    paths = [path.with_name(shard_name(found["stem"], number, count)) for number in range(count)]
    missing = [file.name for file in paths if not file.is_file()]
    if missing or not 1 <= int(found["number"]) <= count:
        raise MissingFileError(
            f"{path.name} is one of {count} files of a model, and others are missing",
            got=f"{path.parent} without " + ", ".join(missing[:4]) + (" ..." if missing[4:] else ""),
            fix="copy all of them into one folder",
        )
    return paths


def shard_name(stem: str, number: int, count: int) -> str:
    """File name of one of several files; `number` counts from 0."""
    return f"{stem}-{number + 1:05d}-of-{count:05d}.gguf"


def stem_of(path: Path | str) -> str:
    """Name of a model by one of its files, without the number and `.gguf`."""
    name = Path(path).name
    found = _SHARD.fullmatch(name)
    return found["stem"] if found is not None else name.removesuffix(".gguf")


def _map(path: Path) -> np.ndarray:
    if path.stat().st_size == 0:
        raise GGUFError(f"{path.name} is empty", got=str(path), fix="copy or convert it again")
    return np.memmap(path, np.uint8, "r").view(np.ndarray)


def _check_shard(header: Header, path: Path, number: int, count: int) -> None:
    """A file says which one of how many it is; one whose name says nothing is the only one."""
    found_number, found_count = _whole(header, SPLIT_NUMBER, path), _whole(header, SPLIT_COUNT, path)
    if (found_number or 0, found_count or 1) != (number, count):
        raise GGUFError(
            f"{path.name} does not say of itself what its name says",
            got=f"{SPLIT_NUMBER} {found_number}, {SPLIT_COUNT} {found_count}",
            expected=f"file {number} of {count}, counted from 0",
            fix="give the files the names that they were written with, NAME-00001-of-00003.gguf",
        )


def _check_total(headers: list[Header], paths: list[Path]) -> None:
    said = _whole(headers[0], SPLIT_TENSORS, paths[0])
    total = sum(len(header.tensors) for header in headers)
    if len(paths) > 1 and said is not None and said != total:
        raise GGUFError(
            f"the files of {stem_of(paths[0])} do not have as many tensors as they say",
            got=f"{total} in {len(paths)} files",
            expected=f"{SPLIT_TENSORS} {said}",
            fix="copy them again",
        )


def _whole(header: Header, key: str, path: Path) -> int | None:
    """A whole number of the metadata; None when it is not there."""
    found = header.fields.get(key)
    if found is None:
        return None
    if isinstance(found.data, int):
        return int(found.data)
    raise GGUFError(f"{path.name} is damaged: {key} is no whole number", got=found.type_name)


def _joined(paths: list[Path], headers: list[Header], maps: list[np.ndarray]) -> dict[str, GGUFTensor]:
    found: dict[str, GGUFTensor] = {}
    for path, header, mapped in zip(paths, headers, maps, strict=True):
        for info in header.tensors:
            if info.name in found:
                raise GGUFError(f"the tensor {info.name!r} is in two files", got=f"again in {path.name}")
            found[info.name] = GGUFTensor(info.name, info.type, info.shape, _loader(mapped, info))
    return found


def _loader(mapped: np.ndarray, info: TensorInfo) -> Callable[[], np.ndarray]:
    # A plain array over the map: a view of class np.memmap costs more at every operation.
    return lambda: mapped[info.start : info.start + info.nbytes]
