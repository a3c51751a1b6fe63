"""From files to ids: what a run trains on and what it is measured on, with the tokenizer made for them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infini.data import corpus, tokenizer


@dataclass(frozen=True, slots=True)
class TokenizedCorpus:
    """Text as ids.

    Args:
        tokenizer: trained on the training part.
        train: ids to train on.
        held_out: ids to measure on.
    """

    tokenizer: tokenizer.Tokenizer
    train: np.ndarray
    held_out: np.ndarray


def tokenize(text: corpus.Corpus, *, vocab_size: int) -> TokenizedCorpus:
    """Train a tokenizer on the training part of a corpus and encode both parts.

    Raises:
        ValueMismatchError: the vocabulary is too small.
    """
    trained = tokenizer.train((document.text for document in text.train), vocab_size=vocab_size)
    return TokenizedCorpus(
        trained,
        trained.encode_documents([document.text for document in text.train]),
        trained.encode_documents([document.text for document in text.held_out]),
    )


def read(paths: Sequence[Path | str] = (), *, vocab_size: int) -> TokenizedCorpus:
    """`corpus.read`, then `tokenize`."""
    return tokenize(corpus.read(paths), vocab_size=vocab_size)


def fingerprint(*arrays: np.ndarray) -> str:
    """A short name for ids: equal ids have equal names on every machine."""
    digest = hashlib.sha256()
    for ids in arrays:
        digest.update(np.ascontiguousarray(ids, "<u4").tobytes())
    return digest.hexdigest()[:16]
