"""The header of a safetensors file: which arrays there are, and where; read with suspicion.

A file begins with the length of its header, eight bytes with the lowest first, and the header, a JSON object.
What a header says is believed only when it fits the file: every array has its place inside the data, of the
size that its dtype and shape need, and all of them together cover the data without a hole and without an
overlap.

Reference: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from infini.core import dtypes

MAX_HEADER_BYTES: Final = 100_000_000
_LENGTH_BYTES: Final = 8
_MAX_SIZE: Final = 1 << 62
DTYPES: Final = {
    "BOOL": dtypes.bool_,
    "U8": dtypes.uint8,
    "I8": dtypes.int8,
    "U16": dtypes.uint16,
    "I16": dtypes.int16,
    "U32": dtypes.uint32,
    "I32": dtypes.int32,
    "U64": dtypes.uint64,
    "I64": dtypes.int64,
    "F8_E4M3": dtypes.float8_e4m3fn,
    "F8_E5M2": dtypes.float8_e5m2,
    "F8_E8M0": np.dtype("float8_e8m0fnu"),
    "F16": dtypes.float16,
    "BF16": dtypes.bfloat16,
    "F32": dtypes.float32,
    "F64": dtypes.float64,
    "C64": dtypes.complex64,
}


class HeaderError(ValueError):
    """A header is not what it should be; the text says in which way."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an array is.

    Args:
        dtype: its dtype.
        shape: its shape.
        start: its first byte, counted from the beginning of the file.
        nbytes: how many it has.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    nbytes: int


def parse(data: np.ndarray) -> tuple[dict[str, Place], dict[str, str]]:
    """The arrays of a file and its metadata.

    Args:
        data: all bytes of the file, uint8; no more than the header is read.

    Raises:
        HeaderError: the header does not fit the file.
    """
    if data.size < _LENGTH_BYTES:
        raise HeaderError(f"it has {data.size} bytes, too few for the length of a header")
    length = int.from_bytes(data[:_LENGTH_BYTES].tobytes(), "little")
    if length > MAX_HEADER_BYTES:
        raise HeaderError(f"its header claims {length} bytes, more than {MAX_HEADER_BYTES}")
    first = _LENGTH_BYTES + length
    if first > data.size:
        raise HeaderError(f"its header claims {length} bytes of the {data.size} that the file has")
    table = _table(data[_LENGTH_BYTES:first].tobytes())
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise HeaderError("__metadata__ is no table of texts")
    places = {name: _place(name, fields, first) for name, fields in table.items()}
    _check_cover(places, first, data.size)
    return places, metadata


def _table(raw: bytes) -> dict[str, Any]:  # Any: JSON
    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_repetition)
    except RecursionError:
        raise HeaderError("its header is nested too deeply") from None
    except HeaderError:
        raise
    except ValueError as error:
        raise HeaderError(f"its header is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise HeaderError(f"its header is no table but {type(found).__name__}")
    return found


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # Any: JSON
    found = dict(pairs)
    if len(found) != len(pairs):
        raise HeaderError("its header has a name twice")
    return found


def _place(name: str, fields: Any, first: int) -> Place:  # Any: JSON
    if not isinstance(fields, dict):
        raise HeaderError(f"{name} is no table")
    tag = fields.get("dtype")
    dtype = DTYPES.get(tag) if isinstance(tag, str) else None
    if dtype is None:
        raise HeaderError(f"{name} has the dtype {tag!r}, which is not known here")
    shape, offsets = _sizes(fields.get("shape")), _sizes(fields.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2:
        raise HeaderError(f"{name} has no shape or no place")
    nbytes = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise HeaderError(
            f"{name} has {offsets[1] - offsets[0]} bytes instead of the {nbytes} of {tag}{list(shape)}"
        )
    return Place(dtype, shape, first + offsets[0], nbytes)


def _sizes(value: Any) -> tuple[int, ...] | None:  # Any: JSON
    """A list of integers that are not negative, and none so large that products of them take long."""
    if not isinstance(value, list) or len(value) > 64:
        return None
    if not all(type(size) is int and 0 <= size < _MAX_SIZE for size in value):
        return None
    return tuple(value)


def _check_cover(places: dict[str, Place], first: int, size: int) -> None:
    end, before = first, "the header"
    for name, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if place.start != end:
            what = "overlap" if place.start < end else "have a hole between them"
            raise HeaderError(f"{before} and {name} {what}")
        end, before = place.start + place.nbytes, name
    if end != size:
        is_cut = end > size
        raise HeaderError(
            f"it is cut: it has {size} of {end} bytes" if is_cut else f"it has {size - end} bytes too many"
        )
