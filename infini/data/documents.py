"""Documents of a file, in pieces: text that is checked as it is read, and never more of it in memory than a
piece.

A piece of a long document ends after a line. Pieces are encoded one by one, so a token never reaches across
their ends; within a document that is a place in a million characters.
"""

from __future__ import annotations

import codecs
import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from infini.core import errors
from infini.data.files import Source

Invalid = Literal["error", "replace", "skip"]
PIECE: Final = 1 << 20  # characters


class TextError(errors.InfiniError, ValueError):
    """A file is not the text that it should be."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a document.

    Args:
        text: its characters, never empty. Line ends are "\\n", whatever the file has.
        is_first: whether a document begins with it.
        is_last: whether a document ends with it.
        size: bytes of the file that went into it.
        record: for files of lines, the bytes of the line; a document's own name.
    """

    text: str
    is_first: bool
    is_last: bool
    size: int
    record: bytes = b""


def pieces(source: Source, *, field: str = "text", invalid: Invalid = "error") -> Iterator[Piece]:
    """The documents of a file; those without a visible character are left out.

    Args:
        source: the file.
        field: which field of a line's JSON object has the text.
        invalid: what to do about bytes that are not UTF-8, or a line without such an object: `error`;
            `replace` the bytes by U+FFFD and skip the line; or `skip` the file or line.

    Raises:
        TextError: there is one, and `invalid` is `error`. It names the file and the place.
    """
    if source.kind == "lines":
        return _records(source, field, invalid)
    if invalid == "skip" and not _is_text(source):
        return iter(())
    return _marked(_texts(source, "replace" if invalid == "replace" else "strict"))


def _texts(source: Source, invalid: str) -> Iterator[tuple[str, int]]:
    """Text of a file cut after lines, with the bytes read for each part."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(invalid), translate=True)
    text, size, seen = "", 0, source.start
    for block in itertools.chain(source.blocks(), [b""]):
        try:
            decoded = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            # The error counts from the bytes kept over from the block before.
            kept = len(error.object) - len(block)
            raise _not_text(source, seen - kept + error.start, error) from None
        text += decoded.removeprefix("\ufeff") if seen == 0 else decoded
        seen += len(block)
        size += len(block)
        while len(text) > PIECE:
            end = text.rfind("\n", 0, PIECE) + 1 or PIECE
            yield text[:end], size
            text, size = text[end:], 0
    yield text, size


def _marked(parts: Iterator[tuple[str, int]]) -> Iterator[Piece]:
    """Pieces of one document; none when there is nothing in it to see."""
    text, size = next(parts)
    is_first = True
    for following, following_size in parts:
        if following:
            yield Piece(text, is_first, False, size)
            text, size, is_first = following, following_size, False
    if text.strip() or not is_first:
        yield Piece(text, is_first, True, size)


def _is_text(source: Source) -> bool:
    try:
        for _ in _texts(source, "strict"):
            pass
    except TextError:
        return False
    return True


def _records(source: Source, field: str, invalid: Invalid) -> Iterator[Piece]:
    at = source.start
    with source.path.open("rb") as file:
        file.seek(at)
        for number, line in enumerate(file, 1):
            if at >= source.stop:
                return
            at += len(line)
            if not line.strip():
                continue
            text = _text_of(line, field)
            if isinstance(text, str):
                if text.strip():
                    yield from _in_pieces(text, line)
            elif invalid == "error":
                raise TextError(
                    f"line {number} of {source.path} is no document",
                    got=text.reason,
                    expected=f'a JSON object with a text under "{field}", such as {{"{field}": "..."}}',
                    fix="correct the line, set data.text_field to the right name, or data.invalid_text to "
                    '"skip"',
                )


@dataclass(frozen=True, slots=True)
class _Unreadable:
    reason: str


def _text_of(line: bytes, field: str) -> str | _Unreadable:
    try:
        found: Any = json.loads(line)  # Any: whatever JSON holds
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return _Unreadable(f"{line[:60]!r}: {error}")
    if not isinstance(found, dict) or field not in found:
        return _Unreadable(f"{found!r:.60}: no such field")
    text = found[field]
    return text if isinstance(text, str) else _Unreadable(f"{field} is {type(text).__name__}")


def _in_pieces(text: str, record: bytes) -> Iterator[Piece]:
    for at in range(0, len(text), PIECE):
        part = text[at : at + PIECE]
        yield Piece(part, at == 0, at + PIECE >= len(text), len(record) if at == 0 else 0, record)


def _not_text(source: Source, at: int, error: UnicodeDecodeError) -> TextError:
    return TextError(
        f"{source.path} is not UTF-8",
        got=f"byte 0x{error.object[error.start]:02x} at offset {at}: {error.reason}",
        expected="text in UTF-8",
        fix="convert the file (iconv -t UTF-8), leave it out, or set data.invalid_text to "
        '"replace" or "skip"',
    )
