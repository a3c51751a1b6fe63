"""From files to ids: what a run trains on and what it is measured on, with the tokenizer made for them.

Text is tokenised once. The ids lie in a folder whose name is a hash of the texts and of the tokenizer, so the
next run over the same text maps them at once, and one over changed text never sees old ids.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np

from infini.compiler import disk_cache
from infini.data import corpus as corpus_, documents, files, token_files, tokenizer as tokenizer_
from infini.data.token_files import fingerprint as fingerprint

Stage = Literal["reading", "training the tokenizer", "tokenising"]
Progress = Callable[[Stage, int, int], None]
TOKENIZER_BYTES: Final = 64 << 20
_BATCH: Final = 2 << 20  # characters that are encoded together


@dataclass(frozen=True, slots=True)
class TokenizedCorpus:
    """Text as ids.

    Args:
        tokenizer: trained on the training part, or the one that was given.
        train: ids to train on: documents one after the other, each between the tokenizer's begin and end.
        held_out: ids to measure on.
        manifest: how many there are and where they come from.
        was_there: whether the ids were found on disk.
        num_binary: files passed by because they are no text.
    """

    tokenizer: tokenizer_.Tokenizer
    train: np.ndarray
    held_out: np.ndarray
    manifest: token_files.Manifest
    was_there: bool = False
    num_binary: int = 0


def prepare(
    paths: Sequence[Path | str] = (),
    *,
    vocab_size: int = 4096,
    tokenizer: tokenizer_.Tokenizer | None = None,
    held_out_share: float = 0.04,
    field: str = "text",
    invalid: documents.Invalid = "error",
    max_bytes: int | None = None,
    tokenizer_bytes: int = TOKENIZER_BYTES,
    cache: Path | str | None = None,
    on_progress: Progress = lambda stage, done, total: None,
) -> TokenizedCorpus:
    """The ids of text files, mapped from disk; made first when this text was never tokenised so.

    Args:
        paths: files, folders and patterns, see `files.find`; none means the Python standard library.
        vocab_size: tokens of a tokenizer to train on the text.
        tokenizer: use this one instead.
        held_out_share: share of the text to keep aside.
        field: which field of a .jsonl line has the text.
        invalid: what to do about bytes that are no text, see `documents.pieces`.
        max_bytes: no file is begun after so many bytes.
        tokenizer_bytes: about how much of the text a tokenizer is trained on.
        cache: folder of tokenised texts; the user's cache folder when absent.
        on_progress: called with what is done, bytes so far and bytes in all.

    Raises:
        ValueMismatchError: there is no text or too little, or the vocabulary is too small.
        TextError: a file is not text.
    """
    found = files.find(paths, max_bytes=max_bytes)
    digests = _digests(found, on_progress)
    name = token_files.key(
        contents=[(digest.hex(), source.kind) for source, digest in zip(found.sources, digests, strict=True)],
        tokenizer=_tokenizer_key(tokenizer, vocab_size, tokenizer_bytes),
        split=held_out_share,
        field=field,
        invalid=invalid,
    )
    folder = (Path(cache).expanduser() if cache else disk_cache.folder("tokens")) / name
    there = _load(folder, tokenizer)
    if there is None:
        text = corpus_.split(found, digests, held_out_share=held_out_share, field=field, invalid=invalid)
        with token_files.writing(folder) as written:
            _tokenize(text, written, tokenizer, vocab_size, tokenizer_bytes, on_progress)
        there = _load(folder, tokenizer)
        assert there is not None, f"{folder} was written and cannot be read"
        there = replace(there, was_there=False)
    return replace(there, num_binary=found.num_binary)


def read(paths: Sequence[Path | str] = (), *, vocab_size: int) -> TokenizedCorpus:
    """As `prepare`, with nothing left on disk: the ids are in memory."""
    with tempfile.TemporaryDirectory() as folder:
        found = prepare(paths, vocab_size=vocab_size, cache=folder)
        return replace(found, train=np.array(found.train), held_out=np.array(found.held_out))


def _digests(found: files.Found, on_progress: Progress) -> list[bytes]:
    digests, done = [], 0
    for source in found.sources:
        digests.append(source.digest())
        done += source.size
        on_progress("reading", done, found.size)
    return digests


def _tokenizer_key(tokenizer: tokenizer_.Tokenizer | None, vocab_size: int, num_bytes: int) -> object:
    version = importlib.metadata.version("tokenizers")
    if tokenizer is None:
        return ["byte-level BPE", vocab_size, num_bytes, version]
    return [tokenizer.to_json(), tokenizer.begin_id, tokenizer.end_id, version]


def _load(folder: Path, tokenizer: tokenizer_.Tokenizer | None) -> TokenizedCorpus | None:
    found = token_files.read(folder)
    if found is None:
        return None
    manifest, train, held_out, text = found
    own = tokenizer_.Tokenizer.from_json(text) if tokenizer is None else tokenizer
    return TokenizedCorpus(own, train, held_out, manifest, was_there=True)


def _tokenize(
    text: corpus_.Corpus,
    folder: Path,
    tokenizer: tokenizer_.Tokenizer | None,
    vocab_size: int,
    tokenizer_bytes: int,
    on_progress: Progress,
) -> None:
    if tokenizer is None:
        stride = -(-text.size // tokenizer_bytes)
        sample = _sample(text, stride, on_progress)
        tokenizer = tokenizer_.train(sample, vocab_size=vocab_size)
    writer = token_files.Writer(folder, tokenizer.dtype)
    done = 0
    try:
        for batch in _batches(text):
            for (is_held_out, piece), ids in zip(
                batch, tokenizer.encode_batch([piece.text for _, piece in batch]), strict=True
            ):
                writer.write(
                    _between(ids, piece, tokenizer), is_held_out=is_held_out, ends_document=piece.is_last
                )
                done += piece.size
            on_progress("tokenising", done, text.size)
        writer.finish(tokenizer.to_json(), text.size)
    finally:
        writer.close()


def _sample(text: corpus_.Corpus, stride: int, on_progress: Progress) -> Iterator[str]:
    """Every `stride`-th piece of the training part."""
    number = done = 0
    for is_held_out, piece in text.pieces():
        done += piece.size
        if is_held_out:
            continue
        if number % stride == 0:
            yield piece.text
        number += 1
        on_progress("training the tokenizer", done, text.size)


def _batches(text: corpus_.Corpus) -> Iterator[list[tuple[bool, documents.Piece]]]:
    batch: list[tuple[bool, documents.Piece]] = []
    size = 0
    for item in text.pieces():
        batch.append(item)
        size += len(item[1].text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _between(ids: np.ndarray, piece: documents.Piece, tokenizer: tokenizer_.Tokenizer) -> np.ndarray:
    """Ids of a piece with the document's begin and end where it has them."""
    parts = [ids]
    if piece.is_first and tokenizer.begin_id is not None:
        parts.insert(0, np.array([tokenizer.begin_id], ids.dtype))
    if piece.is_last and tokenizer.end_id is not None:
        parts.append(np.array([tokenizer.end_id], ids.dtype))
    return np.concatenate(parts) if len(parts) > 1 else ids
