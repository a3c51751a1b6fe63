"""SentencePiece's file `tokenizer.model`, as an object of the library `tokenizers`.

The file is a message in the wire format of protocol buffers. Of it the pieces with scores and kinds are read,
and the few settings that change tokens. References: https://protobuf.dev/programming-guides/encoding/,
https://github.com/google/sentencepiece (sentencepiece_model.proto, the field numbers).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from infini.core import errors
from infini.io import tensors
from infini.llm.text import gguf_vocabulary

if TYPE_CHECKING:
    import tokenizers

_UNIGRAM, _BPE = 1, 2
_FIX: Final = "convert it: load the folder with transformers' AutoTokenizer and call save_pretrained"


@dataclass(frozen=True, slots=True)
class Pieces:
    """What the file describes.

    Args:
        inner: the library's object, with its special tokens.
        special_tokens: texts of tokens with a meaning, by the names of tokenizer_config.json.
        has_bos: whether models with such a file put BOS before a text where nothing is said.
    """

    inner: tokenizers.Tokenizer
    special_tokens: dict[str, str]
    has_bos: bool


def read(data: bytes) -> Pieces:
    """The vocabulary of a `tokenizer.model`.

    Raises:
        CorruptFileError: the file is damaged, or is none of SentencePiece.
        ValueMismatchError: it was made by an algorithm that is not supported.
    """
    from tokenizers import AddedToken

    if _is_ranks(data):
        raise errors.ValueMismatchError(
            "tokenizer.model is a file of tiktoken, which does not say how words are cut",
            expected="a file of SentencePiece, or tokenizer.json",
            fix=_FIX,
        )
    try:
        tokens, scores, kinds, trainer, normalizer = _fields(data)
    except (IndexError, struct.error, UnicodeDecodeError, _NoMessageError) as error:
        raise tensors.CorruptFileError(
            "tokenizer.model is damaged, or none of SentencePiece",
            got=str(error),
            fix="copy it again, or " + _FIX,
        ) from error
    if not tokens:
        raise tensors.CorruptFileError("tokenizer.model has no pieces", fix="copy it again")
    algorithm = int(trainer.get(3, _UNIGRAM))
    has_bytes = bool(trainer.get(35, 0))
    has_prefix = bool(normalizer.get(3, 1))
    unknown = int(trainer.get(40, 0))
    if algorithm == _BPE:
        inner = gguf_vocabulary.sentencepiece_bpe(
            tokens, scores, kinds, tokens[unknown] if unknown < len(tokens) else None,
            has_prefix=has_prefix, has_bytes=has_bytes,
        )  # fmt: skip
    elif algorithm == _UNIGRAM:
        inner = _unigram(tokens, scores, unknown, has_bytes)
    else:
        raise errors.ValueMismatchError(
            "tokenizer.model was made by an algorithm that is not supported",
            got={3: "word", 4: "char"}.get(algorithm, str(algorithm)),
            expected="unigram or bpe",
            fix=_FIX,
        )
    _set_text_rules(
        inner, normalizer, has_prefix=has_prefix, has_bytes=has_bytes, cleans=algorithm == _UNIGRAM
    )
    added = [
        AddedToken(token, special=kind == gguf_vocabulary.CONTROL, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (gguf_vocabulary.CONTROL, gguf_vocabulary.USER_DEFINED)
    ]
    inner.add_tokens(added)
    special = {}
    for name, field, default in (("unk", 40, 0), ("bos", 41, 1), ("eos", 42, 2), ("pad", 43, -1)):
        id = _signed(trainer.get(field, default))
        if 0 <= id < len(tokens):
            special[f"{name}_token"] = tokens[id]
    return Pieces(inner, special, algorithm == _BPE and "bos_token" in special)


def _unigram(tokens: list[str], scores: list[float], unknown: int, has_bytes: bool) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, models

    vocab = list(zip(tokens, scores, strict=True))
    return Tokenizer(models.Unigram(vocab, unk_id=unknown, byte_fallback=has_bytes))


def _set_text_rules(
    inner: tokenizers.Tokenizer,
    normalizer: dict[int, Any],  # Any: numbers or bytes
    *,
    has_prefix: bool,
    has_bytes: bool,
    cleans: bool,
) -> None:
    """What happens to a text before it is cut, and to tokens when they become text."""
    from tokenizers import Regex, decoders, normalizers

    steps: list[Any] = []  # Any: normalizers
    if normalizer.get(2):
        steps.append(normalizers.Precompiled(normalizer[2]))
    if cleans and normalizer.get(4, 1):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if has_prefix:
        steps.append(normalizers.Prepend("▁"))
    inner.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            *([decoders.ByteFallback()] if has_bytes else []),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if has_prefix else []),
        ]
    )


# --- the wire format --------------------------------------------------------------------------


class _NoMessageError(Exception):
    """The bytes are no message."""


def _fields(
    data: bytes,
) -> tuple[list[str], list[float], list[int], dict[int, Any], dict[int, Any]]:  # Any: numbers or bytes
    tokens: list[str] = []
    scores: list[float] = []
    kinds: list[int] = []
    trainer: dict[int, Any] = {}  # Any: numbers or bytes
    normalizer: dict[int, Any] = {}
    for number, value in _message(data):
        if number == 1:
            piece = dict(_message(_as_bytes(value)))
            tokens.append(_as_bytes(piece.get(1, b"")).decode())
            scores.append(struct.unpack("<f", _as_bytes(piece.get(2, bytes(4))))[0])
            kinds.append(int(piece.get(3, gguf_vocabulary.NORMAL)))
        elif number == 2:
            trainer = dict(_message(_as_bytes(value)))
        elif number == 3:
            normalizer = dict(_message(_as_bytes(value)))
    return tokens, scores, kinds, trainer, normalizer


def _message(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of the fields: integers, or bytes."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == 0:
            value, place = _varint(data, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, place = data[place : place + size], place + size
        elif kind == 2:
            size, place = _varint(data, place)
            value, place = data[place : place + size], place + size
        else:
            raise _NoMessageError(f"a field of kind {kind} at byte {place}")
        if place > len(data) or not number:
            raise _NoMessageError(f"a field ends behind the file, at byte {place}")
        yield number, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise _NoMessageError(f"a number is too long at byte {place}")


def _as_bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise _NoMessageError("a number stands where text belongs")
    return value


def _signed(value: int) -> int:
    """Negative numbers are written as if they had 64 bits."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _is_ranks(data: bytes) -> bool:
    """Whether a file is one of tiktoken: lines of base64 and a number."""
    first = data[:200].split(b"\n")[0].split()
    return len(first) == 2 and first[1].isdigit() and first[0].rstrip(b"=").replace(b"+", b"").isalnum()
