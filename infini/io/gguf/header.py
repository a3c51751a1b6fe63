"""The part of a GGUF file before the numbers: version, metadata, and where each tensor lies.

Nothing that a file says about sizes is believed before it is held against the file's length: counts,
lengths of texts and arrays, dimensions, offsets. All of it is computed with Python's integers, which do not
overflow. What is wrong is a `GGUFError` that says where. Reference:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Final, NoReturn

import numpy as np

from infini.io.gguf.types import BY_ID, MAX_DIMENSIONS, VALUE_DTYPES, GGUFError, TensorType, ValueType
from infini.io.gguf.values import Value

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
DEFAULT_ALIGNMENT: Final = 32
ALIGNMENT: Final = "general.alignment"

MAX_COUNT: Final = 65_536  # tensors, and keys of metadata
MAX_STRING_NBYTES: Final = 16 << 20
MAX_ALIGNMENT: Final = 1 << 20

_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_SCALARS: Final = {
    kind: struct.Struct("<" + letter)
    for kind, letter in zip(
        VALUE_DTYPES, ("B", "b", "H", "h", "I", "i", "f", "?", "Q", "q", "d"), strict=True
    )
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies.

    Args:
        name: its name.
        type: what its numbers are.
        shape: sizes with the contiguous dimension last, as in NumPy; files have them the other way round.
        start: first byte in the file.
        nbytes: number of bytes.
    """

    name: str
    type: TensorType
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the numbers.

    Args:
        version: version of the format.
        alignment: tensors begin at multiples of it, counted from `data_start`.
        fields: metadata with types.
        tensors: in the order of the file.
        data_start: byte at which the numbers begin.
    """

    version: int
    alignment: int
    fields: dict[str, Value]
    tensors: tuple[TensorInfo, ...]
    data_start: int


def parse(data: memoryview, name: str, *, has_data: bool = True) -> Header:
    """Read and check the header of a file.

    Args:
        data: the bytes of the whole file.
        name: what errors call it.
        has_data: whether the numbers have to be there too; `infini gguf split --no-data` writes files
            without.

    Raises:
        GGUFError: something is wrong with it.
    """
    cursor = _Cursor(data, name)
    version = _version(cursor)
    num_tensors = cursor.count("tensors")
    num_fields = cursor.count("keys of metadata")
    fields: dict[str, Value] = {}
    for _ in range(num_fields):
        key = cursor.name("a key of metadata")
        if key in fields:
            cursor.fail(f"the key {key!r} is there twice")
        fields[key] = cursor.value(key)
    alignment = _alignment(fields, cursor)
    raw = [_tensor(cursor) for _ in range(num_tensors)]
    data_start = cursor.at + -cursor.at % alignment
    if num_tensors and has_data and data_start > len(data):
        cursor.fail("the file ends before the numbers begin")
    return Header(
        version, alignment, fields, _placed(raw, data_start, alignment, cursor, has_data), data_start
    )


def _version(cursor: _Cursor) -> int:
    if bytes(cursor.take(4, "the magic number")) != MAGIC:
        raise GGUFError(
            f"{cursor.file} is not a GGUF file",
            got=f"it begins with {bytes(cursor.data[:4])!r}",
            expected=f"{MAGIC!r}",
            fix="name a file made for llama.cpp, or a folder in Hugging Face's layout",
        )
    version = cursor.u32("the version")
    if version in VERSIONS:
        return version
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if swapped in (1, *VERSIONS):
        raise GGUFError(
            f"{cursor.file} is written for big-endian machines, which is not read",
            got=f"version {swapped} with its bytes in the other order",
            expected="a little-endian file",
            fix="convert it with gguf-convert-endian of the package gguf",
        )
    raise GGUFError(
        f"{cursor.file} has a version of GGUF that is not read",
        got=f"version {version}",
        expected=" or ".join(map(str, VERSIONS)),
        fix="convert the model again with a current converter",
    )


def _alignment(fields: dict[str, Value], cursor: _Cursor) -> int:
    found = fields.get(ALIGNMENT)
    if found is None:
        return DEFAULT_ALIGNMENT
    value = found.data
    if not isinstance(value, int) or found.kind is not ValueType.UINT32:
        cursor.fail(f"{ALIGNMENT} has the type {found.type_name}", expected="uint32")
    if not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        cursor.fail(f"{ALIGNMENT} is {value}", expected=f"a power of two, at most {MAX_ALIGNMENT}")
    return value


def _tensor(cursor: _Cursor) -> tuple[str, TensorType, tuple[int, ...], int]:
    """Name, type, shape and offset of the next tensor, each checked on its own."""
    name = cursor.name("the name of a tensor")
    ndim = cursor.u32(f"the number of dimensions of {name!r}")
    if not 1 <= ndim <= MAX_DIMENSIONS:
        cursor.fail(f"the tensor {name!r} has {ndim} dimensions", expected=f"1 to {MAX_DIMENSIONS}")
    sizes = [cursor.u64(f"the sizes of {name!r}") for _ in range(ndim)]
    if 0 in sizes:
        cursor.fail(f"the tensor {name!r} has a dimension of size 0")
    number = cursor.u32(f"the type of {name!r}")
    found = BY_ID.get(number)
    if found is None:
        cursor.fail(
            f"the tensor {name!r} has the unknown type {number}",
            expected=", ".join(f"{t.id} ({t.name})" for t in BY_ID.values()),
        )
    if sizes[0] % found.block_size:
        cursor.fail(
            f"rows of the tensor {name!r} are not made of whole blocks of {found}",
            got=f"{sizes[0]} numbers",
            expected=f"a multiple of {found.block_size}",
        )
    offset = cursor.u64(f"the offset of {name!r}")
    return name, found, tuple(reversed(sizes)), offset


def _placed(
    raw: list[tuple[str, TensorType, tuple[int, ...], int]],
    data_start: int,
    alignment: int,
    cursor: _Cursor,
    has_data: bool,
) -> tuple[TensorInfo, ...]:
    """Tensors with their places, which are aligned, inside the file and apart from each other."""
    placed = []
    names: set[str] = set()
    for name, found, shape, offset in raw:
        if name in names:
            cursor.fail(f"the tensor {name!r} is there twice")
        names.add(name)
        nbytes = math.prod(shape) // found.block_size * found.block_nbytes
        if offset % alignment:
            cursor.fail(
                f"the tensor {name!r} is not aligned",
                got=f"offset {offset}",
                expected=f"a multiple of {alignment}",
            )
        start = data_start + offset
        if has_data and start + nbytes > len(cursor.data):
            cursor.fail(
                f"the tensor {name!r} reaches beyond the end of the file",
                got=f"{found} of shape {shape}: bytes {start} to {start + nbytes}, of {len(cursor.data)}",
                fix="the file is cut or damaged: copy it again",
            )
        placed.append(TensorInfo(name, found, shape, start, nbytes))
    end, before = data_start, ""
    for info in sorted(placed, key=lambda info: info.start):
        if info.start < end:
            cursor.fail(f"the tensors {before!r} and {info.name!r} overlap")
        end, before = info.start + info.nbytes, info.name
    return tuple(placed)


class _Cursor:
    """A place in the bytes of a file; what is asked for has to be there."""

    def __init__(self, data: memoryview, file: str) -> None:
        self.data = data
        self.file = file
        self.at = 0

    def fail(
        self, what: str, *, got: str | None = None, expected: str | None = None, fix: str | None = None
    ) -> NoReturn:
        raise GGUFError(
            f"{self.file} is damaged: {what}",
            got=got or f"at byte {self.at}",
            expected=expected,
            fix=fix or "copy or convert it again",
        )

    def need(self, nbytes: int, what: str) -> None:
        if nbytes > len(self.data) - self.at:
            self.fail(
                f"it ends within {what}",
                got=f"{len(self.data) - self.at} bytes left at byte {self.at}, {nbytes} needed",
                fix="the file is cut or damaged: copy it again",
            )

    def take(self, nbytes: int, what: str) -> memoryview:
        self.need(nbytes, what)
        self.at += nbytes
        return self.data[self.at - nbytes : self.at]

    def u32(self, what: str) -> int:
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack(self.take(8, what))[0])

    def count(self, what: str) -> int:
        found = self.u64(f"the number of {what}")
        if found > MAX_COUNT:
            self.fail(f"it says that it has {found} {what}", expected=f"at most {MAX_COUNT}")
        return found

    def text(self, what: str) -> bytes:
        nbytes = self.u64(f"the length of {what}")
        if nbytes > MAX_STRING_NBYTES:
            self.fail(f"{what} has {nbytes} bytes", expected=f"at most {MAX_STRING_NBYTES}")
        return bytes(self.take(nbytes, what))

    def name(self, what: str) -> str:
        raw = self.text(what)
        try:
            found = raw.decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8", got=repr(raw[:64]))
        if not found or "\0" in found:
            self.fail(f"{what} is empty or has a zero in it", got=repr(raw[:64]))
        return found

    def kind(self, key: str) -> ValueType:
        number = self.u32(f"the type of {key!r}")
        try:
            return ValueType(number)
        except ValueError:
            self.fail(f"{key!r} has the unknown type {number}", expected="0 to 12")

    def value(self, key: str) -> Value:
        kind = self.kind(key)
        if kind is ValueType.ARRAY:
            return self.array(key)
        if kind is ValueType.STRING:
            return Value(kind, _decode(self.text(f"the text of {key!r}")))
        layout = _SCALARS[kind]
        raw = self.take(layout.size, f"the value of {key!r}")
        if kind is ValueType.BOOL:
            self.check_truth(raw, key)
        return Value(kind, layout.unpack(raw)[0])

    def array(self, key: str) -> Value:
        item = self.kind(key)
        size = self.u64(f"the size of {key!r}")
        if item is ValueType.ARRAY:
            self.fail(f"{key!r} is an array of arrays, which is not read")
        if item is ValueType.STRING:
            self.need(8 * size, f"the texts of {key!r}")  # each has its length at least
            return Value(ValueType.ARRAY, self.texts(key, size), item)
        dtype = VALUE_DTYPES[item]
        raw = self.take(size * dtype.itemsize, f"the numbers of {key!r}")
        if item is ValueType.BOOL:
            self.check_truth(raw, key)
        return Value(ValueType.ARRAY, np.frombuffer(raw, dtype).copy(), item)

    def texts(self, key: str, size: int) -> list[str]:
        """The texts of an array. A tokenizer has hundreds of thousands, so this is one plain loop."""
        found = []
        data, at, end, unpack = self.data, self.at, len(self.data), _U64.unpack_from
        for _ in range(size):
            if end - at < 8:
                self.at = at
                self.need(8, f"the texts of {key!r}")
            (nbytes,) = unpack(data, at)
            at += 8
            if nbytes > end - at or nbytes > MAX_STRING_NBYTES:
                self.at = at
                self.fail(
                    f"a text of {key!r} has {nbytes} bytes",
                    expected=f"at most {min(end - at, MAX_STRING_NBYTES)}",
                )
            found.append(str(data[at : at + nbytes], "utf-8", "surrogateescape"))
            at += nbytes
        self.at = at
        return found

    def check_truth(self, raw: memoryview, key: str) -> None:
        if raw.nbytes and max(raw) > 1:
            self.fail(f"{key!r} has a truth value that is neither 0 nor 1")


def _decode(raw: bytes) -> str:
    """Text of a value. Bytes that are no UTF-8 are kept, so that they are written as they were read."""
    return raw.decode("utf-8", "surrogateescape")
