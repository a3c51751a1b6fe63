"""Folders that appear whole or not at all."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from infini.core import errors, events
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
        if self.suffix == ".ready":
            raise OSError("no space")
        return rename(self, target)

    monkeypatch.setattr(folders, "_exchange", lambda: None)
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no space"):
        _write(tmp_path / "model", "new")
    assert _contents(tmp_path / "model") == dict.fromkeys(NAMES, "old")


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from infini.io import folders

    def write(path, text):
        with folders.replacing_folder(path, may_replace=["a", "b"]) as folder:
            for name in "ab":
                (folder / name).write_text(text)

    def killed_before_rename(number, path):
        rename, left = Path.rename, [number]
        def counting(self, target):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(self, target)
        Path.rename = counting
        write(path, "new")

    if sys.argv[2] == "renames":
        folders._exchange = lambda: None
    for number in range(1, 8):
        path = Path(sys.argv[1]) / str(number) / "model"
        write(path, "old")
        if (child := os.fork()) == 0:
            killed_before_rename(number, path)
            os._exit(0)
        was_killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        was_there = path.exists()
        found = folders.recover(path)
        texts = {file.read_text() for file in found.iterdir()}
        assert found == path and len(list(path.iterdir())) == 2 and len(texts) == 1, (number, texts)
        write(path, "newest")
        assert [p.name for p in path.parent.iterdir()] == ["model"], (number, os.listdir(path.parent))
        print(number, was_killed, was_there, *texts)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and needs Linux's renameat2")
@pytest.mark.parametrize(
    ("way", "expected"),
    [
        # .new to .ready; exchange; .ready to .trash
        ("exchange", ["1 True True old", "2 True True new", "3 False True new"]),
        # .new to .ready; target to .old; .ready to target; .old to .trash
        (
            "renames",
            ["1 True True old", "2 True True old", "3 True False new", "4 True True new", "5 False True new"],
        ),
    ],
)
def test_a_kill_before_any_rename_loses_no_folder(tmp_path: Path, way: str, expected: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), way], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[: len(expected)] == expected


def test_an_old_folder_alone_comes_back(tmp_path: Path) -> None:
    _write(tmp_path / "model", "old")
    (tmp_path / "model").rename(tmp_path / ".model.x.old")
    with events.record() as seen:
        assert folders.recover(tmp_path / "model") == tmp_path / "model"
    assert _contents(tmp_path / "model") == dict.fromkeys(NAMES, "old")
    assert [event.code for event in seen] == ["folder-recovered"]


def test_leftovers_of_another_name_stay(tmp_path: Path) -> None:
    (tmp_path / ".model.v2.x.ready").mkdir()
    assert not folders.recover(tmp_path / "model").exists()
    _write(tmp_path / "model", "new")
    assert (tmp_path / ".model.v2.x.ready").exists()


def test_folders_of_writers_at_work_stay(tmp_path: Path) -> None:
    with folders.replacing_folder(tmp_path / "model", may_replace=NAMES) as first:
        (first / "a.txt").write_text("first")
        _write(tmp_path / "model", "second")
        assert (first / "a.txt").exists()
    assert _contents(tmp_path / "model") == {"a.txt": "first"}


def test_a_link_keeps_pointing_to_the_folder(tmp_path: Path) -> None:
    _write(tmp_path / "real", "old")
    (tmp_path / "model").symlink_to("real")
    _write(tmp_path / "model", "new")
    assert (tmp_path / "model").is_symlink()
    assert _contents(tmp_path / "real") == dict.fromkeys(NAMES, "new")


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), folders.replacing_file(path) as written:
        written.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    with folders.replacing_file(path) as written:
        written.write_text("new")
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]


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
