"""Text as ids, on disk and found again."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from infini.core import errors
from infini.data import documents, tokenizer, tokens

TEXTS = [f"def function_{i}(x):\n    return x + {i}\n" for i in range(12)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "text" / f"{number:02}.py").write_text(text)
    return tmp_path


def _prepare(folder: Path, **options: object) -> tokens.TokenizedCorpus:
    return tokens.prepare([folder / "text"], cache=folder / "cache", **{"vocab_size": 280} | options)


def _documents(found: tokens.TokenizedCorpus) -> list[str]:
    """Texts of both parts; every document stands between the tokenizer's begin and end."""
    texts = []
    for ids in (found.train, found.held_out):
        begins, ends = (np.flatnonzero(ids == i) for i in (found.tokenizer.begin_id, found.tokenizer.end_id))
        assert begins[0] == 0 and ends[-1] == len(ids) - 1 and (begins[1:] == ends[:-1] + 1).all()
        texts += [found.tokenizer.decode(ids[b + 1 : e]) for b, e in zip(begins, ends, strict=True)]
    return texts


def test_every_document_is_on_one_side_and_whole(folder: Path) -> None:
    found = _prepare(folder, held_out_share=0.2)
    assert sorted(_documents(found)) == sorted(TEXTS)
    assert found.manifest.num_train_documents + found.manifest.num_held_out_documents == 12


def test_ids_are_mapped_and_found_again(folder: Path) -> None:
    first, again = _prepare(folder), _prepare(folder)
    assert (first.was_there, again.was_there) == (False, True)
    assert isinstance(again.train, np.memmap) and again.train.dtype == np.uint16
    np.testing.assert_array_equal(again.train, first.train)
    assert again.manifest.tokens == tokens.fingerprint(first.train, first.held_out)
    assert again.tokenizer.to_json() == first.tokenizer.to_json()


@pytest.mark.parametrize("change", ["text", "vocab_size", "share", "tokenizer"])
def test_whatever_decides_the_ids_makes_a_new_folder(folder: Path, change: str) -> None:
    _prepare(folder)
    if change == "text":
        (folder / "text" / "00.py").write_text("changed = 1\n")
    own = tokenizer.train(["x = 1\n"], vocab_size=260)
    options = {"vocab_size": {"vocab_size": 290}, "share": {"held_out_share": 0.3}}.get(change, {})
    found = _prepare(folder, **({"tokenizer": own} if change == "tokenizer" else options))
    assert not found.was_there
    assert len(list((folder / "cache").iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "manifest", "version"])
def test_a_damaged_folder_is_made_again(folder: Path, damage: str) -> None:
    first = _prepare(folder)
    [entry] = (folder / "cache").iterdir()
    if damage == "cut":
        (entry / "train.bin").write_bytes((entry / "train.bin").read_bytes()[:-1])
    else:
        manifest = json.loads((entry / "manifest.json").read_text())
        text = json.dumps(manifest | {"format": 0}) if damage == "version" else "{"
        (entry / "manifest.json").write_text(text)
    again = _prepare(folder)
    assert not again.was_there
    np.testing.assert_array_equal(again.train, first.train)


def test_a_large_vocabulary_needs_wider_ids(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer.Tokenizer, "dtype", np.dtype(np.uint32))
    assert _prepare(folder).train.dtype == np.uint32


def test_a_long_document_is_encoded_in_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PIECE", 200)
    monkeypatch.setattr(tokens, "_BATCH", 500)
    (folder / "text" / "long.py").write_text("".join(TEXTS))
    assert "".join(TEXTS) in _documents(_prepare(folder))


def test_a_tokenizer_is_trained_on_a_sample(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, seen = tokenizer.train, []

    def counting(texts: Iterable[str], *, vocab_size: int) -> tokenizer.Tokenizer:
        seen.append(list(texts))
        return train(seen[-1], vocab_size=vocab_size)

    monkeypatch.setattr(tokenizer, "train", counting)
    size = sum(len(text) for text in TEXTS)
    for limit in (size, size // 3):
        _prepare(folder, tokenizer_bytes=limit)
    assert [len(texts) for texts in seen] == [11, 3]


def test_progress_is_told_in_bytes(folder: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    _prepare(folder, on_progress=lambda *report: seen.append(report))
    total = sum(len(text) for text in TEXTS)
    assert {(stage, done) for stage, done, whole in seen if done == whole == total} >= {
        ("reading", total),
        ("tokenising", total),
    }


def test_an_error_leaves_nothing_behind(folder: Path) -> None:
    (folder / "text" / "zz.py").write_bytes(b"\xff\xfe")
    with pytest.raises(documents.TextError, match=r"zz\.py is not UTF-8"):
        _prepare(folder)
    assert list((folder / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(errors.ValueMismatchError, match=r"data\.cache"):
        tokens.prepare([folder / "text"], cache=folder / "file", vocab_size=280)


def _prepare_quietly(folder: Path) -> None:
    _prepare(folder)


def test_two_processes_may_make_the_same_folder(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_prepare_quietly, args=(folder,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert _prepare(folder).was_there
    assert len(list((folder / "cache").iterdir())) == 1


def test_read_leaves_nothing_on_disk(folder: Path) -> None:
    found = tokens.read([folder / "text"], vocab_size=280)
    assert sorted(_documents(found)) == sorted(TEXTS)


def test_fingerprint_depends_on_the_ids_only() -> None:
    ids = np.arange(5)
    assert tokens.fingerprint(ids) == tokens.fingerprint(ids.astype(np.uint16))
    assert tokens.fingerprint(ids) != tokens.fingerprint(ids + 1)
