"""Writing GGUF files, version 3: one tensor after the other, so that a model larger than memory can be
written.

Files are written aside and take their names when all of them are on disk.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from infini.core import errors
from infini.io import folders
from infini.io.gguf import quantizers
from infini.io.gguf.header import (
    ALIGNMENT,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_ALIGNMENT,
    MAX_COUNT,
    MAX_STRING_NBYTES,
)
from infini.io.gguf.reader import SPLIT_COUNT, SPLIT_KEYS, SPLIT_NUMBER, SPLIT_TENSORS, GGUFTensor, shard_name
from infini.io.gguf.types import MAX_DIMENSIONS, VALUE_DTYPES, TensorType, ValueType, type_of
from infini.io.gguf.values import Metadata, Value, value_of

VERSION: Final = 3
MAX_NAME_NBYTES: Final = 63  # llama.cpp keeps names in 64 bytes with a zero at the end

Listener = Callable[[str, int, int], None]
"""Called after each tensor: its name, bytes written, bytes in all."""


@dataclass(frozen=True, slots=True)
class Shards:
    """How a model is spread over files; each gets as many tensors as fit.

    Args:
        max_nbytes: bytes of tensors in a file; a tensor that alone has more is a file of its own.
        max_tensors: tensors in a file.
        is_first_empty: whether the first file has the metadata and no tensors.
    """

    max_nbytes: int | None = None
    max_tensors: int | None = None
    is_first_empty: bool = False


def tensor(
    name: str, array: np.ndarray | Callable[[], np.ndarray], type: TensorType | str, shape: Sequence[int] = ()
) -> GGUFTensor:
    """A tensor to be written, made of floats when its turn comes.

    Args:
        name: its name in the file.
        array: the numbers, or what gives them.
        type: what they are stored as.
        shape: their shape, where `array` is a function.

    Raises:
        ValueMismatchError: rows are not made of whole blocks of the type.
    """
    found = type_of(type)
    sizes = tuple(shape) if callable(array) else array.shape
    found.nbytes(sizes)

    def load() -> np.ndarray:
        numbers = array() if callable(array) else array
        return quantizers.quantize(numbers, found).reshape(-1)

    return GGUFTensor(name, found, sizes, load)


def write(
    path: Path | str,
    metadata: Mapping[str, Any],  # Any: what `value_of` takes
    tensors: Iterable[GGUFTensor],
    *,
    alignment: int | None = None,
    shards: Shards | None = None,
    has_data: bool = True,
    on_progress: Listener | None = None,
) -> list[Path]:
    """Write a model, whole or not at all.

    Args:
        path: the file; replaced when it is there. Several files are named after it,
            `name-00001-of-00003.gguf`.
        metadata: values by key: of `read`, made by `value_of`, or plain Python values.
        tensors: the tensors, in order. Bytes are asked for one tensor at a time.
        alignment: tensors begin at multiples of it; what the metadata say, or 32, when absent.
        shards: how to spread the model over files; one file when absent.
        has_data: whether the numbers are written. Files without are for looking at.
        on_progress: called after each tensor.

    Returns:
        The files.

    Raises:
        ValueMismatchError: a name, a number or the alignment is out of range, or a name is there twice.
        TypeMismatchError: a value of the metadata is of a kind that files do not have.
    """
    source = metadata.fields if isinstance(metadata, Metadata) else metadata
    fields = {key: value_of(value) for key, value in source.items() if key not in SPLIT_KEYS}
    fields, step = _aligned(fields, alignment)
    everything = list(tensors)
    _check(fields, everything)
    parts = _parts(everything, shards or Shards())
    target = Path(path)
    paths = [target]
    if len(parts) > 1:
        stem = target.name.removesuffix(".gguf")
        paths = [target.with_name(shard_name(stem, number, len(parts))) for number in range(len(parts))]
    total = sum(x.nbytes for x in everything) if has_data else 0
    done = 0

    def after(name: str, nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if on_progress is not None:
            on_progress(name, done, total)

    with contextlib.ExitStack() as stack:
        written = [stack.enter_context(folders.replacing_file(p)) for p in paths]
        for number, (file, part) in enumerate(zip(written, parts, strict=True)):
            own = _shard_fields(fields, number, len(parts), len(everything))
            with file.open("wb") as out:
                _write_file(out, own, part, step, has_data, after)
    return paths


def _aligned(fields: dict[str, Value], alignment: int | None) -> tuple[dict[str, Value], int]:
    found = fields.get(ALIGNMENT)
    step = alignment if alignment is not None else found.data if found is not None else DEFAULT_ALIGNMENT
    is_power = isinstance(step, int) and 1 <= step <= MAX_ALIGNMENT and not step & (step - 1)
    if not is_power or not isinstance(step, int):
        raise errors.ValueMismatchError(
            "tensors cannot be aligned so",
            got=repr(step),
            expected=f"a power of two, at most {MAX_ALIGNMENT}",
        )
    if step != DEFAULT_ALIGNMENT or found is not None:
        fields = {**fields, ALIGNMENT: Value(ValueType.UINT32, step)}
    return fields, step


def _check(fields: Mapping[str, Value], tensors: Sequence[GGUFTensor]) -> None:
    for what, size in (("keys of metadata", len(fields) + len(SPLIT_KEYS)), ("tensors", len(tensors))):
        if size > MAX_COUNT:
            raise errors.ValueMismatchError(
                f"a GGUF file has too many {what}", got=str(size), expected=f"at most {MAX_COUNT}"
            )
    seen = set()
    for x in tensors:
        if x.name in seen:
            raise errors.ValueMismatchError(f"two tensors have the name {x.name!r}")
        seen.add(x.name)
        if not 1 <= len(x.name.encode()) <= MAX_NAME_NBYTES:
            raise errors.ValueMismatchError(
                "llama.cpp cannot read a name of this length",
                got=repr(x.name),
                expected=f"1 to {MAX_NAME_NBYTES} bytes",
            )
        if not 1 <= len(x.shape) <= MAX_DIMENSIONS or 0 in x.shape:
            raise errors.ValueMismatchError(
                f"GGUF files have no tensors of this shape: {x.name}",
                got=str(x.shape),
                expected=f"1 to {MAX_DIMENSIONS} dimensions, none of size 0",
            )


def _parts(tensors: list[GGUFTensor], shards: Shards) -> list[list[GGUFTensor]]:
    """The tensors of each file."""
    parts: list[list[GGUFTensor]] = [[]]
    nbytes = 0
    if shards.is_first_empty and tensors:
        parts.append([])
    for x in tensors:
        is_full = (shards.max_tensors is not None and len(parts[-1]) >= shards.max_tensors) or (
            shards.max_nbytes is not None and nbytes + x.nbytes > shards.max_nbytes
        )
        if is_full and parts[-1]:
            parts.append([])
            nbytes = 0
        parts[-1].append(x)
        nbytes += x.nbytes
    return parts


def _shard_fields(fields: dict[str, Value], number: int, count: int, num_tensors: int) -> dict[str, Value]:
    """Metadata of one file: the first has all of it."""
    if count == 1:
        return fields
    own = fields if number == 0 else {key: fields[key] for key in (ALIGNMENT,) if key in fields}
    return {
        **own,
        SPLIT_NUMBER: Value(ValueType.UINT16, number),
        SPLIT_COUNT: Value(ValueType.UINT16, count),
        SPLIT_TENSORS: Value(ValueType.INT32, num_tensors),
    }


def _write_file(
    out: BinaryIO,
    fields: Mapping[str, Value],
    tensors: Sequence[GGUFTensor],
    alignment: int,
    has_data: bool,
    after: Callable[[str, int], None],
) -> None:
    head = io.BytesIO()
    head.write(struct.pack("<4sIQQ", MAGIC, VERSION, len(tensors), len(fields)))
    for key, value in fields.items():
        _write_text(head, key)
        _write_value(head, value)
    offset = 0
    for x in tensors:
        _write_text(head, x.name)
        sizes = tuple(reversed(x.shape))
        head.write(struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, x.type.id, offset))
        offset += x.nbytes + -x.nbytes % alignment
    head.write(bytes(-head.tell() % alignment))
    out.write(head.getbuffer())
    for x in tensors if has_data else ():
        data = x.load()
        if data.dtype != np.uint8 or data.size != x.nbytes:
            raise errors.TypeMismatchError(
                f"the bytes of the tensor {x.name!r} are not those of its type and shape",
                got=f"{data.dtype}{data.shape}",
                expected=f"{x.nbytes} bytes for {x.type} of shape {x.shape}",
            )
        out.write(np.ascontiguousarray(data).data)
        out.write(bytes(-x.nbytes % alignment))
        after(x.name, x.nbytes)


def _write_value(out: BinaryIO, value: Value) -> None:
    out.write(struct.pack("<I", value.kind))
    if value.kind is ValueType.STRING:
        _write_text(out, str(value.data))
    elif value.kind is not ValueType.ARRAY:
        out.write(np.array(value.data, VALUE_DTYPES[value.kind]).tobytes())
    elif isinstance(value.data, np.ndarray) and value.item is not None:
        out.write(struct.pack("<IQ", value.item, value.data.size))
        out.write(value.data.astype(VALUE_DTYPES[value.item], copy=False).tobytes())
    elif isinstance(value.data, list):
        out.write(struct.pack("<IQ", ValueType.STRING, len(value.data)))
        for text in value.data:
            _write_text(out, text)


def _write_text(out: BinaryIO, text: str) -> None:
    raw = text.encode("utf-8", "surrogateescape")
    if len(raw) > MAX_STRING_NBYTES:
        raise errors.ValueMismatchError(
            "a text is too long", got=f"{len(raw)} bytes", expected=f"at most {MAX_STRING_NBYTES}"
        )
    out.write(struct.pack("<Q", len(raw)))
    out.write(raw)
