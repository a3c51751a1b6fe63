"""Reading text and setting some of it aside."""

from __future__ import annotations

from pathlib import Path

import pytest

from infini.core import errors
from infini.data import corpus


def _write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        (root / f"{name}.py").write_text(text)
    return root


def test_standard_library_gives_both_parts() -> None:
    found = corpus.read(max_bytes=1 << 20)
    assert found.train
    assert found.held_out


def test_split_does_not_depend_on_where_the_files_are(tmp_path: Path) -> None:
    texts = {f"m{i}": f"value = {i}\n" for i in range(40)}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert corpus.read([_write(tmp_path / "a", **texts)]) == corpus.read([_write(tmp_path / "b", **texts)])


def test_copies_of_a_file_stay_on_one_side(tmp_path: Path) -> None:
    found = corpus.read(
        [_write(tmp_path, **{f"m{i}": f"x = {i % 5}\n" for i in range(40)})], held_out_share=0.3
    )
    assert not {d.text for d in found.train} & {d.text for d in found.held_out}


def test_files_of_tests_and_large_files_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    _write(tmp_path / "test", inner="skipped = 1\n")
    _write(tmp_path, large="x" * 2000, a="a = 1\n", b="b = 2\n")
    found = corpus.read([tmp_path], max_file_bytes=1000)
    assert {d.name for d in found.train + found.held_out} == {"a.py", "b.py"}


def test_reading_stops_at_the_limit(tmp_path: Path) -> None:
    _write(tmp_path, **{f"m{i}": "x" * 100 for i in range(10)})
    assert corpus.read([tmp_path], max_bytes=350).size == 300


def test_one_file_is_cut_after_a_line(tmp_path: Path) -> None:
    file = tmp_path / "all.log"
    file.write_text("".join(f"line {i}\n" for i in range(100)))
    found = corpus.read([file], held_out_share=0.1)
    assert found.train[0].text + found.held_out[0].text == file.read_text()
    assert found.train[0].text.endswith("\n")


def test_a_folder_without_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(errors.ValueMismatchError, match="no text to train on"):
        corpus.read([tmp_path])


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(errors.ValueMismatchError, match="no file or folder"):
        corpus.read([tmp_path / "missing"])


def test_a_python_without_sources_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(errors.ValueMismatchError, match="without the sources"):
        corpus.read()
