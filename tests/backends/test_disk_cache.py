"""What is kept on disk: bounded, shown and cleared; the oldest use goes first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infini.cli.app import app
from infini.compiler import disk_cache
from infini.core import config


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    with config.config(cache_dir=str(tmp_path), no_cache=False):
        yield tmp_path


def add(key: str, size: int, age_s: float) -> Path:
    disk_cache.write("objects", key, b"x" * size)
    path = disk_cache.folder("objects") / key[:2] / key
    then = path.stat().st_mtime - age_s
    os.utime(path, (then, then))
    return path


def test_what_was_not_used_for_longest_goes_first(cache: Path) -> None:
    paths = [add(f"{i:02}key", 1000, age_s=1000.0 * (10 - i)) for i in range(10)]
    freed = disk_cache.trim(cache, 6000)
    left = [path.exists() for path in paths]
    assert left == sorted(left)  # the young ones
    assert disk_cache.usage("objects").num_bytes <= 6000
    assert freed == 10 * paths[-1].stat().st_size - disk_cache.usage("objects").num_bytes


def test_nothing_goes_below_the_bound(cache: Path) -> None:
    add("akey", 1000, age_s=1e6)
    assert disk_cache.trim(cache, 6000) == 0
    assert disk_cache.read("objects", "akey") == b"x" * 1000


def test_reading_an_old_entry_makes_it_young(cache: Path) -> None:
    old = add("akey", 100, age_s=1e6)
    before = old.stat().st_mtime
    disk_cache.read("objects", "akey")
    assert old.stat().st_mtime > before + 9e5


def test_a_process_that_adds_entries_keeps_the_bound(tmp_path: Path) -> None:
    program = (
        "from infini.compiler import disk_cache\n"
        "for i in range(30):\n    disk_cache.write('objects', f'{i:02}', bytes(100_000))\n"
    )
    environment = {
        **os.environ, "INFINI_CACHE_DIR": str(tmp_path), "INFINI_CACHE_MIB": "1", "INFINI_NO_CACHE": "0",
    }  # fmt: skip
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=60)
    with config.config(cache_dir=str(tmp_path)):
        assert 0 < disk_cache.usage("objects").num_bytes <= 1 << 20


def test_little_that_was_added_is_looked_at_once_an_hour(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "_written", {})
    with config.config(cache_mib=1):
        for i in range(40):
            add(f"{i:02}key", 30_000, age_s=0.0)
        mark = cache / "trimmed"
        mark.touch()
        disk_cache._written[cache] = 30_000  # the rest was added by other processes
        disk_cache._trim_what_was_written()
        assert disk_cache.usage("objects").num_entries == 40
        os.utime(mark, (0, 0))
        disk_cache._trim_what_was_written()
        assert disk_cache.usage("objects").num_bytes <= 1 << 20


def test_the_command_shows_and_clears(cache: Path) -> None:
    add("akey", 1000, age_s=0.0)
    disk_cache.write("choices", "bkey", b"{}")
    shown = json.loads(CliRunner().invoke(app, ["cache", "info", "--json"]).output)
    assert shown["folder"] == str(cache)
    assert shown["kinds"]["objects"]["num_entries"] == 1
    assert "objects" in CliRunner().invoke(app, ["cache", "info"]).output
    assert CliRunner().invoke(app, ["cache", "clear", "objects"]).exit_code == 0
    assert disk_cache.usage("objects").num_entries == 0
    assert disk_cache.usage("choices").num_entries == 1
    wrong = CliRunner().invoke(app, ["cache", "clear", "tokens"])
    assert wrong.exit_code == 1
    assert "choices" in wrong.output
