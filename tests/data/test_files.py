"""Which files are taken as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from infini.core import errors
from infini.data import files


def _write(root: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def _names(*paths: Path | str) -> list[str]:
    return [source.name for source in files.find(paths).sources]


def test_folders_are_searched_for_text_of_any_suffix_in_the_order_of_names(tmp_path: Path) -> None:
    _write(tmp_path, b_dot_md="x", a_dot_xyz="x", sub__c_dot_txt="x", README="x")
    assert _names(tmp_path) == ["README", "a.xyz", "b.md", "sub/c.txt"]


def test_hidden_empty_and_binary_files_in_folders_are_passed_by(tmp_path: Path) -> None:
    _write(tmp_path, good="x", empty="", __git__config="x", __pycache____x_dot_txt="x")
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    found = files.find([tmp_path / "good", tmp_path])
    assert [source.name for source in found.sources if "git" not in source.name] == ["good"]
    assert found.num_binary == 1


def test_patterns_reach_into_folders(tmp_path: Path) -> None:
    _write(tmp_path, a_dot_md="x", sub__b_dot_md="x", sub__c_dot_txt="x")
    assert _names(f"{tmp_path}/**/*.md") == ["a.md", "b.md"]


def test_a_file_named_twice_counts_once(tmp_path: Path) -> None:
    _write(tmp_path, a_dot_md="x", b_dot_md="x")
    assert _names(tmp_path / "b.md", tmp_path, f"{tmp_path}/*.md") == ["b.md", "a.md"]


def test_lines_are_told_by_the_suffix(tmp_path: Path) -> None:
    _write(tmp_path, a_dot_jsonl="{}", b_dot_json="{}")
    assert [source.kind for source in files.find([tmp_path]).sources] == ["lines", "text"]


def test_no_file_is_begun_after_the_limit(tmp_path: Path) -> None:
    _write(tmp_path, a="x" * 60, b="x" * 60, c="x" * 60)
    assert len(files.find([tmp_path], max_bytes=100).sources) == 2


def test_the_standard_library_is_taken_without_its_tests() -> None:
    names = _names()
    assert "json/decoder.py" in names
    assert not [name for name in names if name.startswith(("test/", "encodings/", "site-packages/"))]


@pytest.mark.parametrize(
    ("name", "words"),
    [("missing", "no file or folder"), ("*.nothing", "no file matches"), ("", "no text to train on")],
)
def test_what_is_not_there_is_named(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(errors.ValueMismatchError, match=words):
        files.find([tmp_path / name])


def test_a_python_without_sources_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(errors.ValueMismatchError, match="without the sources"):
        files.find()
