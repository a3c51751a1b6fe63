"""The parameters of a kernel as its cubin says them: what the driver copies, whatever anybody believes.

Sections `.nv.info.KERNEL` are lists of attributes: a byte says how the value is stored, another names the
attribute, and two bytes are the value or the number of bytes that follow. Their numbers are those that
`cuobjdump -elf` of CUDA's toolkit prints.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_FOLLOWS: Final = 4  # a value of as many bytes as the two say
_CONSTANT_BANK: Final = 0x0A  # EIATTR_PARAM_CBANK: where the parameters lie, and their bytes
_BLOCK: Final = 0x10  # EIATTR_REQNTID
_PARAMETER: Final = 0x17  # EIATTR_KPARAM_INFO
_BYTES: Final = 0x19  # EIATTR_CBANK_PARAM_SIZE


@dataclass(frozen=True, slots=True, order=True)
class Parameter:
    """One parameter: where it lies among all of them, and its bytes."""

    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Table:
    """The parameters of a kernel in their order, the bytes of all, and the block that it has to be launched
    with.
    """

    parameters: tuple[Parameter, ...]
    nbytes: int
    block: tuple[int, int, int]


def table_of(code: bytes, function_name: str) -> Table:
    """The parameters of a kernel of a cubin.

    Raises:
        KeyError: it has no such kernel.
    """
    section = _sections(code)[f".nv.info.{function_name}"]
    found: dict[int, Parameter] = {}
    sizes, blocks = set(), set()
    for attribute, value in _attributes(section):
        if attribute == _PARAMETER:
            _, ordinal, offset, packed = struct.unpack("<IHHI", value)
            found[ordinal] = Parameter(offset, packed >> 18)
        elif attribute == _CONSTANT_BANK:
            sizes.add(struct.unpack("<IHH", value)[2])
        elif attribute == _BYTES:
            sizes.add(struct.unpack("<H", value)[0])
        elif attribute == _BLOCK:
            blocks.add(struct.unpack("<III", value))
    assert sorted(found) == list(range(len(found))), "every parameter is described"
    (nbytes,), (block,) = sizes, blocks
    return Table(tuple(found[i] for i in range(len(found))), nbytes, block)


def _attributes(section: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(section):
        kind, attribute, number = struct.unpack_from("<BBH", section, at)
        at += 4
        if kind == _FOLLOWS:
            yield attribute, section[at : at + number]
            at += number
        else:
            yield attribute, struct.pack("<H", number)


def _sections(code: bytes) -> dict[str, bytes]:
    """Contents of the sections of a 64-bit ELF file by name."""
    assert code[:5] == b"\x7fELF\x02", "a cubin is a 64-bit ELF file"
    (table,) = struct.unpack_from("<Q", code, 40)
    entry_bytes, num_entries, names_at = struct.unpack_from("<HHH", code, 58)
    entries = [struct.unpack_from("<IIQQQQ", code, table + i * entry_bytes) for i in range(num_entries)]
    names = code[entries[names_at][4] :]
    return {
        names[name : names.index(b"\0", name)].decode(): code[offset : offset + nbytes]
        for name, _, _, _, offset, nbytes in entries
    }
