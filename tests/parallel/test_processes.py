"""What a process of a job does otherwise than one alone: its threads, and what it says."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import infini as inf
from infini.backends.cpu import pool
from infini.cli import output
from infini.core import comm, events


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is number 2 of a job of four, three of which share its cores."""
    monkeypatch.setattr(comm, "_processes", [comm.Processes(2, 4, None, 3)])
    return


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize(("num_cores", "num_threads"), [(1, 1), (2, 1), (9, 3), (11, 3)])
def test_processes_of_one_machine_share_its_cores(
    monkeypatch: pytest.MonkeyPatch, num_cores: int, num_threads: int
) -> None:
    monkeypatch.setattr(pool, "num_cores", lambda: num_cores)
    with inf.config(num_threads=0):
        assert pool.num_threads() == num_threads


@pytest.mark.usefixtures("second")
def test_the_knob_says_how_many_threads_whatever_is_shared() -> None:
    with inf.config(num_threads=7):
        assert pool.num_threads() == 7


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize(("ranks", "said"), [("0", ""), ("1,3", ""), ("0, 2", "[2] hello\n[2] you\n")])
def test_the_knob_says_who_speaks(capsys: pytest.CaptureFixture[str], ranks: str, said: str) -> None:
    with inf.config(log_ranks=ranks):
        output.say("hello\nyou")
    assert capsys.readouterr().err == said


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize(
    ("ranks", "level", "said"),
    [
        ("all", "info", ["[2] [code] text"]),
        ("0", "info", []),
        ("0", "error", ["[2] [code] text"]),
    ],
)
def test_events_are_logged_by_who_speaks_and_errors_by_all(
    caplog: pytest.LogCaptureFixture, ranks: str, level: events.Level, said: list[str]
) -> None:
    with inf.config(log_ranks=ranks, log="info"):
        events.emit("code", "text", level=level)
    assert caplog.messages == said


def test_one_process_speaks_without_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    with inf.config(log_ranks="all"):
        output.say("hello")
    assert capsys.readouterr().err == "hello\n"


def test_numbers_of_processes_are_checked() -> None:
    with pytest.raises(inf.InfiniError, match="log_ranks"):
        inf.config.update("log_ranks", "first")
    assert os.environ.get("INFINI_LOG_RANKS") is None
