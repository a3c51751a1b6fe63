"""The measurement of linear layers: what is measured, and that it is the product it says."""

from __future__ import annotations

import numpy as np
import pytest

from infini.backends.cpu.limits import Limits
from infini.core import config
from infini.perf import ggml, linear
from infini.perf.linear import Case


@pytest.mark.parametrize("kind", [*linear.KINDS, "Q5_0", "Q3_K"])
def test_weights_have_the_numbers_that_their_bytes_have(kind: str) -> None:
    w = linear.weight(kind, 4, 256, np.random.default_rng(0))
    found = linear.numbers(w)
    assert found.shape == (4, 256)
    assert 0.0 < np.abs(found).mean() < 0.2
    if kind in ggml.TYPES:
        assert linear.rows_of(w).shape[0] == 4


@pytest.mark.parametrize("is_arranged", [False, True])
def test_a_case_is_measured(is_arranged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "MAX_WEIGHTS", 2)
    monkeypatch.setattr(linear, "PAUSE_S", 0.0)
    with config.config(num_threads=config.get("num_threads")):
        found = linear.measure(Case("Q4_0", (32, 256), 2), turns=2, budget_s=0.0, is_arranged=is_arranged)
    assert [len(times) for times in found.seconds.values()] == [2]
    assert found.weight_bytes == 32 * 256 * 9 // 16
    assert 0 < found.errors["infini"] < 0.02


def test_rates_are_shares_of_the_limits() -> None:
    limits = Limits(2, 1e9, {1 << 20: 9e9, 1 << 30: 1e9}, {})
    found = linear.Found(
        Case("Q8_0", (10, 100), 1), 1000, {"infini": [1e-6, 3e-6, 2e-6], "ggml": [4e-6]},
        {"infini": 0.0, "ggml": 0.0},
    )  # fmt: skip
    row = found.row(limits)
    assert row["infini_us"] == pytest.approx(2.0)
    assert row["gb_per_s"] == pytest.approx(0.5) and row["share_of_bandwidth"] == pytest.approx(0.5)
    assert row["gflop_per_s"] == pytest.approx(1.0) and row["share_of_peak"] == pytest.approx(1.0)
    assert row["ggml_over_infini"] == pytest.approx(2.0)


def test_every_combination_is_a_case() -> None:
    found = linear.cases(["bf16"], [1, 8], [(4, 2), (2, 4)])
    assert [case.name for case in found] == ["bf16/4x2/1", "bf16/4x2/8", "bf16/2x4/1", "bf16/2x4/8"]
