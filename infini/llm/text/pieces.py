"""From tokens to text: what the decoder of a `tokenizer.json` does, said as steps that can run on a stream.

A decoder there is a list of steps over all tokens. The ones of language models work from left to right, so
each is a small state machine here: `push` takes one token, and `finish` gives what was waiting. Bytes become
text by the rule of the family: byte-level vocabularies replace what is not UTF-8 as one piece (Unicode's
recommendation), SentencePiece replaces each such byte, and keeps whole characters beside it.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

REPLACEMENT: Final = "\ufffd"
_BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """The letter of each byte in byte-level vocabularies: itself where it can be printed, else the next free
    one from 256 on.
    """
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF: Final[dict[str, int]] = _byte_alphabet()
LETTER_OF: Final[dict[int, str]] = {byte: letter for letter, byte in BYTE_OF.items()}


def _each_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return REPLACEMENT * (error.end - error.start), error.end


_EACH: Final = "infini_each_byte"
codecs.register_error(_EACH, _each_byte)


def byte_level_bytes(token: str) -> bytes:
    """Bytes of a token of a byte-level vocabulary; one with other letters stands for itself."""
    try:
        return bytes([BYTE_OF[letter] for letter in token])
    except KeyError:
        return token.encode()


def byte_of(token: str) -> int | None:
    """The byte of a token such as `<0x0A>`, None for others."""
    found = _BYTE.fullmatch(token)
    return int(found[1], 16) if found else None


class Decoder(Protocol):
    """Text of tokens that arrive one after the other."""

    def push(self, token: str) -> str:
        """Text that is certain now that this token is known."""

    def finish(self) -> str:
        """What was waiting: bytes that became no character."""


class ByteLevel:
    """Letters that stand for bytes."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token: str) -> str:
        return self._decode(byte_level_bytes(token))

    def finish(self) -> str:
        return self._decode(b"", True)


class SentencePiece:
    """Texts with a sign for the space, and bytes as `<0xNN>`.

    Args:
        space: the sign that becomes a space; None when spaces are spaces.
        has_bytes: whether `<0xNN>` is a byte.
        strip: number of spaces that are taken from the beginning of the whole.
        drop_first: whether the first token loses all its signs, as the step Metaspace does.
    """

    def __init__(
        self, *, space: str | None = "▁", has_bytes: bool = True, strip: int = 0, drop_first: bool = False
    ) -> None:
        self._space, self._has_bytes, self._strip, self._drop_first = space, has_bytes, strip, drop_first
        self._bytes = codecs.getincrementaldecoder("utf-8")(_EACH).decode
        self._has_pending = False

    def push(self, token: str) -> str:
        byte = byte_of(token) if self._has_bytes and len(token) == 6 else None
        if byte is not None:
            self._has_pending = True
            text = self._bytes(bytes([byte]))
        else:
            if self._space is not None:
                token = token.replace(self._space, "" if self._drop_first else " ")
            text = self._rest() + token
        self._drop_first = False
        return self._stripped(text)

    def finish(self) -> str:
        return self._stripped(self._rest())

    def _rest(self) -> str:
        if not self._has_pending:
            return ""
        self._has_pending = False
        return self._bytes(b"", True)

    def _stripped(self, text: str) -> str:
        while self._strip and text:
            if text[0] != " ":
                self._strip = 0
            else:
                text, self._strip = text[1:], self._strip - 1
        return text


def kind_of(decoder: Mapping[str, Any] | None) -> dict[str, Any] | None:  # Any: JSON, and arguments
    """How to decode a stream, from the entry `decoder` of a `tokenizer.json`.

    Returns:
        Arguments of `SentencePiece`, `{}` for `ByteLevel`, None for a decoder that is neither.
    """
    if decoder is None:
        return None
    steps: Sequence[Mapping[str, Any]] = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    names = [step["type"] for step in steps]
    if names == ["ByteLevel"]:
        return {}
    found: dict[str, Any] = {"space": None, "has_bytes": False}
    for step in steps:
        match step["type"]:
            case "Replace" if found["space"] is None and step["content"] == " ":
                pattern = step["pattern"].get("String")
                if not pattern or len(pattern) != 1:
                    return None
                found["space"] = pattern
            case "Metaspace" if found["space"] is None:
                found["space"] = step["replacement"]
                scheme = step.get(
                    "prepend_scheme", "always" if step.get("add_prefix_space", True) else "never"
                )
                found["drop_first"] = scheme != "never"
            case "ByteFallback":
                found["has_bytes"] = True
            case "Fuse":
                pass
            case "Strip" if names[-1] == "Strip" and step["content"] == " " and not step["stop"]:
                found["strip"] = step["start"]
            case _:
                return None
    # Steps work on tokens until Fuse makes one text of them; a strip without it is one of every token.
    if "strip" in found and "Fuse" not in names:
        return None
    return None if found["space"] is None and not found["has_bytes"] else found


def make(kind: Mapping[str, Any]) -> Decoder:  # Any: arguments
    """A decoder at the beginning of a text."""
    return SentencePiece(**kind) if kind else ByteLevel()


def bytes_of(token: str, kind: Mapping[str, Any] | None) -> bytes:  # Any: arguments
    """Bytes that a token adds to a text in the middle of it."""
    if kind is not None and not kind:
        return byte_level_bytes(token)
    byte = byte_of(token) if kind is None or kind["has_bytes"] else None
    if byte is not None:
        return bytes([byte])
    space = "▁" if kind is None else kind["space"]
    return (token.replace(space, " ") if space else token).encode()
