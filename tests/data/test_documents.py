"""Documents of files: text is checked, long ones come in pieces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infini.data import documents, files


def _pieces(path: Path, **options: object) -> list[documents.Piece]:
    [source] = files.find([path]).sources
    return list(documents.pieces(source, **options))


def _text(tmp_path: Path, data: bytes) -> Path:
    (tmp_path / "t.txt").write_bytes(data)
    return tmp_path / "t.txt"


def _lines(tmp_path: Path, *lines: object) -> Path:
    rows = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    return tmp_path / "t.jsonl"


def test_a_file_is_one_document_with_plain_line_ends(tmp_path: Path) -> None:
    [piece] = _pieces(_text(tmp_path, b"\xef\xbb\xbfa\r\nb\r\xc3\xa9"))
    assert (piece.text, piece.is_first, piece.is_last) == ("a\nb\né", True, True)


@pytest.mark.parametrize("unit", ["é" * 39 + "\n", "漢字 no line end "])
def test_long_documents_come_in_pieces_that_are_the_whole(tmp_path: Path, unit: str) -> None:
    text = unit * (3 * documents.PIECE // len(unit))
    pieces = _pieces(_text(tmp_path, text.encode()))
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.is_first for piece in pieces] == [True, *[False] * (len(pieces) - 1)]
    assert [piece.is_last for piece in pieces] == [*[False] * (len(pieces) - 1), True]
    assert sum(piece.size for piece in pieces) == len(text.encode())
    assert all(len(piece.text) <= documents.PIECE for piece in pieces)
    if "\n" in unit:
        assert all(piece.text.endswith("\n") for piece in pieces)


@pytest.mark.parametrize("before", [3, (1 << 20) - 1, (1 << 20) + 5, 3 << 20])
def test_what_is_not_text_is_named_with_its_place(tmp_path: Path, before: int) -> None:
    path = _text(tmp_path, b"a" * before + b"\xc3(" + b"b" * 10)
    with pytest.raises(documents.TextError, match=f"byte 0xc3 at offset {before}:") as caught:
        _pieces(path)
    assert str(path) in str(caught.value) and "data.invalid_text" in str(caught.value)


def test_a_character_cut_off_at_the_end_is_named(tmp_path: Path) -> None:
    with pytest.raises(documents.TextError, match="at offset 2: unexpected end"):
        _pieces(_text(tmp_path, b"ab\xe6\xbc"))


@pytest.mark.parametrize(("invalid", "expected"), [("replace", ["a\ufffdb"]), ("skip", [])])
def test_what_is_not_text_can_be_replaced_or_skipped(
    tmp_path: Path, invalid: documents.Invalid, expected: list[str]
) -> None:
    assert [p.text for p in _pieces(_text(tmp_path, b"a\xffb"), invalid=invalid)] == expected


def test_blank_documents_are_left_out(tmp_path: Path) -> None:
    assert _pieces(_text(tmp_path, b" \n\t")) == []


def test_each_line_is_a_document(tmp_path: Path) -> None:
    path = _lines(tmp_path, {"text": "one\r\n"}, "", {"id": 1, "text": "zwei é"}, {"text": " "})
    assert [piece.text for piece in _pieces(path)] == ["one\r\n", "zwei é"]
    assert all(piece.is_first and piece.is_last for piece in _pieces(path))


def test_the_field_of_the_text_can_be_named(tmp_path: Path) -> None:
    assert [p.text for p in _pieces(_lines(tmp_path, {"body": "x"}), field="body")] == ["x"]


@pytest.mark.parametrize("line", ["{", "[1]", {"body": "x"}, {"text": 3}])
def test_a_line_that_is_no_document_is_named(tmp_path: Path, line: object) -> None:
    path = _lines(tmp_path, {"text": "good"}, line)
    with pytest.raises(documents.TextError, match=r"line 2 of .*t\.jsonl is no document"):
        _pieces(path)
    assert [piece.text for piece in _pieces(path, invalid="skip")] == ["good"]
