"""The core suite takes turns fairly and reports medians."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest

from infini.perf import core


def test_summary_is_the_median_and_the_quartiles() -> None:
    summary = core.Summary.of([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (summary.low_s, summary.median_s, summary.high_s, summary.num_samples) == (2.0, 3.0, 4.0, 5)


def test_summary_of_one_sample_is_that_sample() -> None:
    assert core.Summary.of([2.0]) == core.Summary(2.0, 2.0, 2.0, 1)


def test_the_ratio_is_of_the_medians_and_above_one_when_infini_is_faster() -> None:
    found = core.report({"train_step": {"infini": [1.0, 1.0, 9.0], "jax": [3.0, 2.0, 2.0]}})
    assert found["train_step"]["jax_over_infini"] == 2.0


def test_without_a_peer_there_is_no_ratio() -> None:
    assert "jax_over_infini" not in core.report({"import": {"infini": [1.0]}})["import"]


class _FakeWorker:
    def __init__(self, name: str, log: list[tuple[str, str]]) -> None:
        self.name, self.log = name, log

    def ask(self, case: str, count: int, size: Mapping[str, int]) -> list[float]:
        self.log.append((case, self.name))
        return [1.0] * count


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What fake workers were asked, in order."""
    asked: list[tuple[str, str]] = []

    @contextmanager
    def running(names: Sequence[str], num_cpus: int) -> Iterator[list[_FakeWorker]]:
        yield [_FakeWorker(name, asked) for name in names]

    monkeypatch.setattr(core, "running", running)
    monkeypatch.setattr(core, "PAUSE_S", 0.0)
    return asked


def test_frameworks_alternate_within_a_measure(log: list[tuple[str, str]]) -> None:
    core.measure(["infini", "jax"], num_rounds=1, num_cpus=1, only=["small_call"])
    assert [name for _, name in log[:4]] == ["infini", "jax", "jax", "infini"]


def test_the_order_alternates_between_rounds(log: list[tuple[str, str]]) -> None:
    core.measure(["infini", "jax"], num_rounds=2, num_cpus=1, only=["first_step"])
    assert [name for _, name in log] == ["infini", "jax", "jax", "infini"]


def test_a_train_step_is_compiled_before_it_is_timed(log: list[tuple[str, str]]) -> None:
    core.measure(["infini"], num_rounds=1, num_cpus=1, only=["train_step"])
    assert [case for case, _ in log[:2]] == ["first_step", "train_step"]
