"""Text as ids."""

from __future__ import annotations

import numpy as np

from infini.data import corpus, tokens

TEXT = corpus.Corpus((corpus.Document("a", "def f(): pass\n"),), (corpus.Document("b", "x = 1\n"),))


def test_both_parts_are_encoded_by_one_tokenizer() -> None:
    found = tokens.tokenize(TEXT, vocab_size=260)
    assert found.tokenizer.decode(found.train) == TEXT.train[0].text
    assert found.tokenizer.decode(found.held_out) == TEXT.held_out[0].text


def test_fingerprint_depends_on_the_ids_only() -> None:
    ids = np.arange(5)
    assert tokens.fingerprint(ids) == tokens.fingerprint(ids.astype(np.uint16))
    assert tokens.fingerprint(ids) != tokens.fingerprint(ids + 1)
