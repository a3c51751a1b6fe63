"""Loading object files without LLVM, for Linux on x86-64: what a start from the disk cache needs of a linker.

The code generator is asked for position-independent code without exceptions, thread-local variables and
debugging records, so its files hold code, constants, now and then zeroed variables, and a few kinds of
references. Anything else is left to LLVM's linker (`jit_link`). The format is that of the System V ABI,
"Object Files", and of its AMD64 supplement, section 4.4 (https://gitlab.com/x86-psABIs/x86-64-ABI).
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from infini.backends.cpu.code_memory import CodePages

_SECTION: Final = np.dtype(
    [
        ("name", "<u4"), ("type", "<u4"), ("flags", "<u8"), ("address", "<u8"), ("offset", "<u8"),
        ("size", "<u8"), ("link", "<u4"), ("info", "<u4"), ("alignment", "<u8"), ("entry_size", "<u8"),
    ]
)  # fmt: skip
_SYMBOL: Final = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
_RELOCATION: Final = np.dtype([("offset", "<u8"), ("info", "<u8"), ("addend", "<i8")])
_MAGIC: Final = b"\x7fELF\x02\x01"  # 64 bits, little-endian
_RELOCATABLE, _X86_64 = 1, 62
_SYMBOLS, _RELOCATIONS, _ZEROS, _PLAIN_RELOCATIONS = 2, 4, 8, 9  # types of sections
_WRITE, _ALLOCATE, _THREAD_LOCAL = 1, 2, 0x400  # flags of sections
_UNDEFINED, _ABSOLUTE, _COMMON = 0, 0xFFF1, 0xFFF2  # instead of the number of a section
_LOCAL: Final = 0  # binding of a symbol
# Kinds of references: to an address, relative to the place, the same of a function, and to a slot with the
# address, in three spellings.
_ADDRESS, _RELATIVE, _CALL, _SLOTS = 1, 2, 4, (9, 41, 42)
_JUMP: Final = b"\xff\x25\x02\x00\x00\x00\x66\x90"  # jmp [rip + 2], and two bytes, before the address
_JUMP_BYTES: Final = 16


class UnsupportedError(Exception):
    """An object file with something in it that is not loaded here."""


@functools.cache
def is_supported() -> bool:
    """Whether objects of this process are loaded here."""
    return sys.platform == "linux" and os.uname().machine == "x86_64" and sys.byteorder == "little"


class Loaded:
    """Code in memory, which goes with the object.

    Args:
        pages: its memory.
        addresses: of the symbols that other code may use.
    """

    __slots__ = ("addresses", "pages")

    def __init__(self, pages: CodePages, addresses: dict[str, int]) -> None:
        self.pages, self.addresses = pages, addresses


@dataclass(slots=True)
class _Placed:
    """A section that is loaded: where its content is, and where it goes, from the start of code or data."""

    content: bytes
    size: int
    is_data: bool
    offset: int


@dataclass(slots=True)
class _Layout:
    """Bytes of code and data so far."""

    code: int = 0
    data: int = 0

    def place(self, size: int, alignment: int, *, is_data: bool) -> int:
        """The offset of the next section."""
        start = -(-(self.data if is_data else self.code) // alignment) * alignment
        if is_data:
            self.data = start + size
        else:
            self.code = start + size
        return start


class _File:
    """The tables of an object file, its sections with their places."""

    def __init__(self, content: bytes, layout: _Layout) -> None:
        if content[:6] != _MAGIC or struct.unpack_from("<HH", content, 16) != (_RELOCATABLE, _X86_64):
            raise UnsupportedError("no relocatable object for x86-64")
        self.content = content
        (start,), (count,) = struct.unpack_from("<Q", content, 40), struct.unpack_from("<H", content, 60)
        self.sections = np.frombuffer(content, _SECTION, count, start).tolist()
        self.placed: dict[int, _Placed] = {}
        self.symbols: list[tuple[str, int, int, int]] = []  # name, binding, section, value
        self.references: list[tuple[int, list[tuple[int, ...]]]] = []  # section; offset, info, addend
        for number, (_, kind, flags, _, offset, size, link, info, alignment, _) in enumerate(self.sections):
            if flags & _THREAD_LOCAL or kind == _PLAIN_RELOCATIONS:
                raise UnsupportedError("thread-local variables, or references without addends")
            if flags & _ALLOCATE:
                is_data = bool(flags & _WRITE)
                if is_data and kind != _ZEROS:
                    raise UnsupportedError("variables with values")
                place = layout.place(size, max(1, alignment), is_data=is_data)
                body = b"" if kind == _ZEROS else content[offset : offset + size]
                self.placed[number] = _Placed(body, size, is_data, place)
            elif kind == _SYMBOLS:
                names = self.sections[link][4]
                for name, bits, _, section, value, _ in self._table(_SYMBOL, offset, size):
                    self.symbols.append((self._text(names + name), bits >> 4, section, value))
            elif kind == _RELOCATIONS and self.sections[info][2] & _ALLOCATE:
                self.references.append((info, self._table(_RELOCATION, offset, size)))

    def _table(self, entry: np.dtype, offset: int, size: int) -> list[tuple[int, ...]]:
        found = np.frombuffer(self.content, entry, size // entry.itemsize, offset)
        return [tuple(row) for row in found.tolist()]

    def _text(self, start: int) -> str:
        return self.content[start : self.content.index(b"\0", start)].decode()


def load(objects: Iterable[bytes], symbols: Sequence[str], externs: Mapping[str, int]) -> Loaded:
    """Load object files that may call each other, functions at given addresses, and those of the process.

    Args:
        objects: object files of the code generator.
        symbols: the functions whose addresses are wanted.
        externs: addresses by name.

    Raises:
        UnsupportedError: a file holds what is not loaded here, or is none.
        KeyError: nothing defines a symbol.
        OSError: the system gives no memory for code.
    """
    try:
        return _load(objects, symbols, externs)
    except (ValueError, IndexError, struct.error) as error:
        raise UnsupportedError("the tables of the file are broken") from error


def _load(objects: Iterable[bytes], symbols: Sequence[str], externs: Mapping[str, int]) -> Loaded:
    layout = _Layout()
    files = [_File(content, layout) for content in objects]
    # Symbols of elsewhere may be far away: each has a jump, whose address is also its slot.
    outside = {name for file in files for name, _, section, _ in file.symbols[1:] if section == _UNDEFINED}
    slots = {name: layout.place(_JUMP_BYTES, _JUMP_BYTES, is_data=False) for name in sorted(outside)}
    pages = CodePages(layout.code, layout.data)
    image = bytearray(layout.code)
    exported: dict[str, int] = {}
    for file in files:
        for section in file.placed.values():
            if not section.is_data:
                image[section.offset : section.offset + len(section.content)] = section.content
        for name, binding, number, value in file.symbols:
            if binding != _LOCAL and number not in (_UNDEFINED, _ABSOLUTE, _COMMON):
                exported[name] = _address(file, pages, number, value)
    far = {name: exported.get(name) or externs.get(name) or _of_process(name) for name in slots}
    for name, offset in slots.items():
        image[offset : offset + _JUMP_BYTES] = _JUMP + struct.pack("<Q", far[name])
    for file in files:
        _relocate(file, pages, image, slots, far)
    pages.write(image)
    return Loaded(pages, {name: exported[name] for name in symbols})


def _address(file: _File, pages: CodePages, number: int, value: int) -> int:
    section = file.placed.get(number)
    if section is None:
        raise UnsupportedError("a symbol without a place")
    return (pages.data if section.is_data else pages.code) + section.offset + value


def _of_process(name: str) -> int:
    """The address of a function of the libraries in this process."""
    try:
        function = getattr(_process(), name)
    except AttributeError:
        raise KeyError(name) from None
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@functools.cache
def _process() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _relocate(
    file: _File, pages: CodePages, image: bytearray, slots: Mapping[str, int], far: Mapping[str, int]
) -> None:
    """Fill in the references of a file."""
    for number, references in file.references:
        section = file.placed[number]
        if section.is_data:
            raise UnsupportedError("variables that hold addresses")
        for offset, info, addend in references:
            name, _, target_section, value = file.symbols[info >> 32]
            place = section.offset + offset
            here = pages.code + place
            is_far = target_section == _UNDEFINED
            target = far[name] if is_far else _address(file, pages, target_section, value)
            kind = info & 0xFFFFFFFF
            if kind == _ADDRESS:
                struct.pack_into("<Q", image, place, (target + addend) & 0xFFFFFFFFFFFFFFFF)
                continue
            if kind in _SLOTS:
                if not is_far:
                    raise UnsupportedError("a slot for a symbol of the same file")
                target = pages.code + slots[name] + len(_JUMP)
            elif kind == _CALL and is_far and not _reaches(target + addend - here):
                target = pages.code + slots[name]
            elif kind not in (_CALL, _RELATIVE):
                raise UnsupportedError(f"references of kind {kind}")
            distance = target + addend - here
            if not _reaches(distance):
                raise UnsupportedError("a variable that is too far away")
            struct.pack_into("<i", image, place, distance)


def _reaches(distance: int) -> bool:
    return -(1 << 31) <= distance < 1 << 31
