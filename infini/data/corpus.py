"""Text to train on and text kept aside to measure on.

Whole documents are held out by the hash of their bytes, so copies of one stay on one side and the split
depends on nothing but contents. Where documents are so few that this would keep aside far more or less than
asked, the end of each is held out instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from infini.core import errors
from infini.data import documents, files

_TOLERATED: Final = 3.0  # times more or less than the share asked for
_NEAR: Final = 1 << 20  # bytes searched for the end of a line


@dataclass(frozen=True, slots=True)
class Corpus:
    """Files of text and how they are split.

    Args:
        parts: files, and whether each is held out; None when that is decided line by line.
        threshold: lines whose mark is smaller are held out.
        field: which field of a line has the text.
        invalid: what to do about bytes that are no text.
    """

    parts: tuple[tuple[files.Source, bool | None], ...]
    threshold: int
    field: str = "text"
    invalid: documents.Invalid = "error"

    @property
    def size(self) -> int:
        """Bytes of both parts."""
        return sum(source.size for source, _ in self.parts)

    def pieces(self) -> Iterator[tuple[bool, documents.Piece]]:
        """Every piece of every document, in order, and whether it is held out.

        Raises:
            TextError: a file is not text.
        """
        for source, side in self.parts:
            for piece in documents.pieces(source, field=self.field, invalid=self.invalid):
                yield _mark(piece.record) < self.threshold if side is None else side, piece


def split(
    found: files.Found,
    digests: Sequence[bytes],
    *,
    held_out_share: float = 0.04,
    field: str = "text",
    invalid: documents.Invalid = "error",
) -> Corpus:
    """Set some of the text aside.

    Args:
        found: the files.
        digests: SHA-256 of each, as `Source.digest` gives it.
        held_out_share: share of the bytes to keep aside, in (0, 1).
        field: which field of a line has the text.
        invalid: what to do about bytes that are no text.

    Raises:
        ValueMismatchError: the share is wrong, or there is too little text to split.
        TextError: a line is no document.
    """
    if not 0.0 < held_out_share < 1.0:
        raise errors.ValueMismatchError(
            "the held-out share must lie between 0 and 1", got=repr(held_out_share), fix="use 0.04"
        )
    marks, sizes = _marks(found.sources, digests, field, invalid)
    total, wanted = int(sizes.sum()), held_out_share * int(sizes.sum())
    threshold = int(held_out_share * 2**64)
    kept = int(sizes[marks < np.uint64(threshold)].sum())
    is_by_hash = wanted / _TOLERATED <= kept <= min(wanted * _TOLERATED, total - 1)
    texts = [source for source in found.sources if source.kind == "text"]
    if not is_by_hash and not texts:
        threshold = _nearest_threshold(marks, sizes, wanted)
    parts: list[tuple[files.Source, bool | None]] = []
    for source, digest in zip(found.sources, digests, strict=True):
        if source.kind == "lines":
            parts.append((source, None))
        elif is_by_hash:
            parts.append((source, int.from_bytes(digest[:8]) < threshold))
        else:
            parts += _cut(source, held_out_share)
    if not is_by_hash and texts and not any(side for _, side in parts):
        raise errors.ValueMismatchError(
            f"{texts[0].name} is too short to keep a part of it aside",
            got=f"{total} bytes of text",
            fix="give more text with --data",
        )
    return Corpus(tuple(parts), threshold, field, invalid)


def read(paths: Sequence[Path | str] = (), *, held_out_share: float = 0.04) -> Corpus:
    """`files.find`, then `split`, with their defaults."""
    found = files.find(paths)
    return split(found, [source.digest() for source in found.sources], held_out_share=held_out_share)


def _mark(record: bytes) -> int:
    return int.from_bytes(hashlib.sha256(record).digest()[:8])


def _marks(
    sources: Sequence[files.Source], digests: Sequence[bytes], field: str, invalid: documents.Invalid
) -> tuple[np.ndarray, np.ndarray]:
    """A number below 2**64 for every document, uint64, and its bytes, int64."""
    marks, sizes = [], []
    for source, digest in zip(sources, digests, strict=True):
        if source.kind == "text":
            marks.append(int.from_bytes(digest[:8]))
            sizes.append(source.size)
            continue
        for piece in documents.pieces(source, field=field, invalid=invalid):
            if piece.is_first:
                marks.append(_mark(piece.record))
                sizes.append(piece.size)
    return np.array(marks, np.uint64), np.array(sizes, np.int64)


def _nearest_threshold(marks: np.ndarray, sizes: np.ndarray, wanted: float) -> int:
    """The mark below which documents have the bytes wanted: one at least, and not all of them."""
    order = np.argsort(marks)
    if len(np.unique(marks)) < 2:
        raise errors.ValueMismatchError(
            "there is only one document, and none to keep aside",
            got=f"{len(marks)} lines",
            expected="at least 2 different ones",
            fix="give more text with --data",
        )
    reached = int(np.searchsorted(np.cumsum(sizes[order]), wanted))
    last = marks[order[min(reached, len(order) - 1)]]
    smaller = marks[marks < marks.max()]
    return int(min(last, smaller.max())) + 1


def _cut(source: files.Source, share: float) -> list[tuple[files.Source, bool | None]]:
    """A file in two, after a line where there is one; whole when it is too short for that."""
    at = source.start + max(int(source.size * (1.0 - share)), 1)
    begin = max(source.start, at - _NEAR)
    before, after = source.read(begin, at), source.read(at, at + _NEAR)
    line = before.rfind(b"\n", int(begin == source.start)) + 1
    if line:
        before, after = before[:line], before[line:] + after
    else:
        inside = next(
            (n for n, byte in enumerate(after) if byte & 0xC0 != 0x80), len(after)
        )  # of a character
        before, after = before + after[:inside], after[inside:]
    if not before.strip() or not after.strip():
        return [(source, False)]
    middle = begin + len(before)
    return [(replace(source, stop=middle), False), (replace(source, start=middle), True)]
