"""Folders that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from infini.core import errors
from infini.io import folders

NAMES = ("a.txt", "b.txt")


def _write(path: Path, text: str) -> None:
    with folders.replacing_folder(path, may_replace=NAMES) as folder:
        for name in NAMES:
            (folder / name).write_text(text)


def _contents(path: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in path.iterdir()}


def test_replaces_an_older_folder(tmp_path: Path) -> None:
    _write(tmp_path / "model", "old")
    _write(tmp_path / "model", "new")
    assert _contents(tmp_path / "model") == dict.fromkeys(NAMES, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_crash_while_writing_leaves_the_old_folder(tmp_path: Path) -> None:
    _write(tmp_path / "model", "old")
    with (
        pytest.raises(KeyboardInterrupt),
        folders.replacing_folder(tmp_path / "model", may_replace=NAMES) as folder,
    ):
        (folder / "a.txt").write_text("half")
        raise KeyboardInterrupt
    assert _contents(tmp_path / "model") == dict.fromkeys(NAMES, "old")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_rename_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "model", "old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.suffix == ".new":
            raise OSError("no space")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no space"):
        _write(tmp_path / "model", "new")
    assert _contents(tmp_path / "model") == dict.fromkeys(NAMES, "old")


def test_folder_and_files_have_the_usual_permissions(tmp_path: Path) -> None:
    with folders.replacing_folder(tmp_path / "model", may_replace=NAMES) as folder:
        (folder / "a.txt").touch(mode=0o600)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.txt").touch()
    for name in (".", "a.txt"):
        assert (tmp_path / "model" / name).stat().st_mode == (tmp_path / "plain" / name).stat().st_mode


def test_other_files_are_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("mine")
    with pytest.raises(errors.ValueMismatchError, match=r"it holds notes\.md"):
        _write(tmp_path, "new")
    assert _contents(tmp_path) == {"notes.md": "mine"}


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(errors.ValueMismatchError, match="it is a file"):
        _write(tmp_path / "model", "new")
