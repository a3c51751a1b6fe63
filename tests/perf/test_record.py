"""Records of measurements: appended, never overwritten, with what is needed to judge them."""

from __future__ import annotations

import json
from pathlib import Path

from infini.perf import record


def test_append_adds_to_the_file_of_the_day(tmp_path: Path) -> None:
    first = record.append("suite", {"measures": {"a": 1}}, tmp_path)
    second = record.append("suite", {"measures": {"a": 2}}, tmp_path)
    runs = json.loads(second.read_text())
    assert first == second
    assert [run["measures"]["a"] for run in runs] == [1, 2]


def test_a_run_says_where_it_ran(tmp_path: Path) -> None:
    (run,) = json.loads(record.append("suite", {}, tmp_path).read_text())
    assert run["machine"]["num_cpus"] >= 1
    assert "numpy" in run["versions"]
    assert run["commit"]


def test_nothing_unfinished_is_left_beside_the_file(tmp_path: Path) -> None:
    path = record.append("suite", {}, tmp_path)
    assert list(tmp_path.iterdir()) == [path]
