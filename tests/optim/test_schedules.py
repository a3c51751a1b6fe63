"""Learning rates over the steps."""

from __future__ import annotations

import math

import pytest

import infini as inf
from infini import optim


def test_warmup_cosine_passes_its_corners() -> None:
    schedule = optim.warmup_cosine_decay_schedule(0.0, 2.0, warmup_steps=10, decay_steps=30, end_value=0.5)
    found = [float(schedule(step)) for step in (0, 5, 10, 20, 30, 99)]
    assert found == pytest.approx([0.0, 1.0, 2.0, 1.25, 0.5, 0.5], abs=1e-6)


def test_cosine_decay_follows_its_definition() -> None:
    schedule = optim.cosine_decay_schedule(3.0, 8, alpha=0.1)
    expected = [3.0 * (0.9 * 0.5 * (1 + math.cos(math.pi * step / 8)) + 0.1) for step in range(9)]
    assert [float(schedule(step)) for step in range(9)] == pytest.approx(expected, rel=1e-6)


def test_linear_schedule_stays_at_its_end() -> None:
    schedule = optim.linear_schedule(1.0, 3.0, 4)
    assert [float(schedule(step)) for step in (0, 2, 4, 7)] == [1.0, 2.0, 3.0, 3.0]


def test_schedules_can_be_traced() -> None:
    schedule = optim.warmup_cosine_decay_schedule(0.0, 1.0, 2, 10)
    assert float(inf.jit(schedule)(1)) == pytest.approx(0.5)


def test_constant_schedule() -> None:
    assert float(optim.constant_schedule(0.25)(7)) == 0.25
