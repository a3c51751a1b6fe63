"""Setting some of the text aside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infini.core import errors
from infini.data import corpus


def _write(root: Path, *texts: str, suffix: str = ".py") -> Path:
    root.mkdir(exist_ok=True)
    for number, text in enumerate(texts):
        (root / f"m{number:02}{suffix}").write_text(text)
    return root


def _sides(found: corpus.Corpus) -> tuple[list[str], list[str]]:
    sides: tuple[list[str], list[str]] = ([], [])
    for is_held_out, piece in found.pieces():
        sides[is_held_out].append(piece.text)
    return sides


def test_split_depends_on_contents_only(tmp_path: Path) -> None:
    texts = [f"value = {i}\n" for i in range(40)]
    first, second = _write(tmp_path / "a", *texts), _write(tmp_path / "b", *texts)
    assert _sides(corpus.read([first])) == _sides(corpus.read([second]))


def test_copies_of_a_document_stay_on_one_side(tmp_path: Path) -> None:
    folder = _write(tmp_path / "a", *[f"x = {i % 5}\n" for i in range(40)])
    train, held_out = _sides(corpus.read([folder], held_out_share=0.3))
    assert train and held_out and not set(train) & set(held_out)


def test_one_file_is_cut_after_a_line(tmp_path: Path) -> None:
    text = "".join(f"line {i}\n" for i in range(100))
    train, held_out = _sides(corpus.read([_write(tmp_path / "a", text)], held_out_share=0.1))
    assert train[0] + held_out[0] == text
    assert train[0].endswith("\n")
    assert 0.05 < len(held_out[0]) / len(text) < 0.15


def test_a_file_without_lines_is_cut_between_characters(tmp_path: Path) -> None:
    text = "漢" * 50
    train, held_out = _sides(corpus.read([_write(tmp_path / "a", text)], held_out_share=0.1))
    assert train[0] + held_out[0] == text
    assert held_out[0] == "漢" * 5


def test_a_few_files_are_each_cut_near_their_end(tmp_path: Path) -> None:
    texts = [f"line of {name}\n" * 200 for name in "abc"]
    train, held_out = _sides(corpus.read([_write(tmp_path / "a", *texts)]))
    assert [a + b for a, b in zip(train, held_out, strict=True)] == texts


def test_lines_are_held_out_one_by_one(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"text": f"document {i}"}) for i in range(200))
    train, held_out = _sides(corpus.read([_write(tmp_path / "a", lines, suffix=".jsonl")]))
    assert len(train) + len(held_out) == 200
    assert 2 <= len(held_out) <= 24


@pytest.mark.parametrize("count", [2, 3])
def test_of_few_lines_at_least_one_is_held_out_and_one_is_not(tmp_path: Path, count: int) -> None:
    lines = "\n".join(json.dumps({"text": f"document {i}"}) for i in range(count))
    train, held_out = _sides(corpus.read([_write(tmp_path / "a", lines, suffix=".jsonl")]))
    assert len(held_out) == 1 and len(train) == count - 1


@pytest.mark.parametrize(("text", "suffix"), [("x", ".txt"), ('{"text": "x"}', ".jsonl")])
def test_too_little_text_to_split_is_an_error(tmp_path: Path, text: str, suffix: str) -> None:
    with pytest.raises(errors.ValueMismatchError, match=r"keep .*aside"):
        corpus.read([_write(tmp_path / "a", text, suffix=suffix)])


def test_the_share_lies_between_none_and_all(tmp_path: Path) -> None:
    with pytest.raises(errors.ValueMismatchError, match="between 0 and 1"):
        corpus.read([_write(tmp_path / "a", "x\ny\n")], held_out_share=1.0)
