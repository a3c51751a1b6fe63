"""Samples become ratios and verdicts as the table of targets says, and are printed readably."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from infini.perf import judge, tables
from infini.perf.cpu import Measured
from infini.perf.limits import Limits
from infini.perf.workload import Family, Target

LIMITS = Limits(2, 1e9, {100: 1e9, 1000: 1e8}, {100: 2e9, 1000: 2e8})


def _line(
    name: str = "a",
    family: Family = "matmul",
    *,
    ours: float = 1.0,
    jax: float | None = None,
    eager: float | None = None,
    compiled: float | None = None,
    num_rounds: int = 1,
    least_s: float = 0.0,
) -> judge.Line:
    costs = {"infini": ours, "jax": jax, "torch": eager, "torch_compile": compiled}
    samples = {name: [[cost]] * num_rounds for name, cost in costs.items() if cost is not None}
    return judge.line(Measured(name, family, samples=samples, least_s=least_s))


def _verdict(lines: list[judge.Line], peer: str = "jax") -> judge.Verdict:
    (found,) = (verdict for verdict in judge.verdicts(lines) if verdict.peer == peer)
    return found


def test_a_ratio_is_above_one_when_infini_is_faster() -> None:
    assert _line(jax=3.0).ratios["jax"].median == 3.0


def test_pytorch_counts_by_its_better_mode() -> None:
    assert _line(eager=4.0, compiled=3.0).ratios["torch"].median == 3.0


def test_a_workload_is_judged_by_the_ratios_of_its_rounds() -> None:
    measured = Measured("a", "matmul", samples={"infini": [[1.0], [2.0]], "jax": [[2.0], [2.0]]})
    assert judge.line(measured).by_round["jax"] == [2.0, 1.0]


def test_the_geomean_of_a_family_is_that_of_its_workloads() -> None:
    assert _verdict([_line("a", jax=1.0), _line("b", jax=4.0)]).geomean.median == pytest.approx(2.0)


def test_a_target_is_met_when_geomean_and_floor_hold() -> None:
    assert _verdict([_line("a", jax=1.0), _line("b", jax=4.0)]).is_met


def test_one_workload_below_the_floor_fails_the_family() -> None:
    verdict = _verdict([_line("slow", jax=0.5), _line("b", jax=40.0)])
    assert not verdict.is_met
    assert verdict.missing == ("slow",)


def test_a_lower_quartile_a_little_below_the_target_holds() -> None:
    assert _verdict([_line(jax=1.16)]).is_met
    assert not _verdict([_line(jax=1.14)]).is_met


def test_parity_is_enough_where_both_are_at_the_limit() -> None:
    assert _verdict([_line(jax=0.99, least_s=0.95)]).is_met
    assert not _verdict([_line(jax=0.99, least_s=0.5)]).is_met


def test_what_infini_cannot_run_fails_the_family() -> None:
    broken = judge.line(
        Measured("broken", "matmul", samples={"jax": [[1.0]]}, failed={"infini": "LoweringError"})
    )
    verdict = _verdict([_line("a", jax=4.0), broken])
    assert not verdict.is_met
    assert verdict.missing == ("broken",)


def test_recorded_runs_are_rounds() -> None:
    runs = []
    for jax in (1.0, 2.0, 4.0):
        lines = [_line("a", jax=jax), _line("b", jax=1.0)]
        runs.append(judge.as_json(lines, judge.verdicts(lines)))
    a, b = judge.merged(runs)
    assert (a.by_round["jax"], a.ratios["jax"].median) == ([1.0, 2.0, 4.0], 2.0)
    assert _verdict([a, b]).geomean.median == pytest.approx(2**0.5, rel=1e-4)


def test_a_recorded_run_may_lack_a_workload() -> None:
    lines = [_line("a", jax=1.0), _line("b", jax=3.0)]
    runs = [judge.as_json(part, judge.verdicts(part)) for part in (lines, lines[1:])]
    assert [item.ratios["jax"].count for item in judge.merged(runs)] == [1, 2]


def test_results_beyond_the_tolerance_are_named() -> None:
    measured = Measured("a", "matmul", differences={"jax": 0.1, "torch": 1e-6}, tolerance=1e-4)
    assert judge.line(measured).unequal == {"jax": 0.1}


@pytest.mark.parametrize(
    ("flops", "read", "written", "expected"),
    [
        (1e9, 0, 0, 1.0),
        (0, 50, 50, 100 / 2e9),
        (0, 100, 0, 100 / 1e9),
        (0, 900, 100, 200 / 2e8 + 800 / 1e8),
        (0, 5000, 0, 5000 / 1e8),
    ],
)
def test_the_least_time_is_that_of_operations_or_of_moving(
    flops: float, read: float, written: float, expected: float
) -> None:
    assert LIMITS.least_s(flops, read, written) == pytest.approx(expected)


def test_limits_survive_json() -> None:
    assert Limits.from_json(LIMITS.as_json()) == LIMITS


def _printed(table: object) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(table)
    return out.getvalue()


def test_the_table_of_a_family_shows_the_worst_first() -> None:
    text = _printed(tables.family("matmul", [_line("fast", jax=3.0), _line("slow", jax=1e-3, ours=2e-3)]))
    assert text.index("slow") < text.index("fast")
    assert "2 ms" in text
    assert "!" in text


def test_failures_are_listed_with_their_reason() -> None:
    broken = judge.line(Measured("broken", "matmul", failed={"infini": "LoweringError: no"}))
    table = tables.failures([broken])
    assert table is not None
    assert "LoweringError: no" in _printed(table)
    assert tables.failures([_line(jax=1.0)]) is None


def test_verdicts_name_target_and_outcome() -> None:
    text = _printed(tables.verdicts(judge.verdicts([_line("slow", jax=0.5)])))
    assert ">= 1.2, each >= 0.97" in text
    assert "slow" in text


@pytest.mark.parametrize(
    ("target", "expected"),
    [(Target(1.5), ">= 1.5"), (Target(2.0, 2.0), "each >= 2"), (Target(2.0, 1.0), ">= 2, each >= 1")],
)
def test_targets_as_text(target: Target, expected: str) -> None:
    assert tables.target_text(target) == expected


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [(2.5, "s", "2.5 s"), (2.5e-3, "s", "2.5 ms"), (2.5e-6, "s", "2.5 us"), (2.6e-8, "s", "26 ns"),
     (2.5e8, "B", "250 MB")],
)  # fmt: skip
def test_costs_as_text(value: float, unit: str, expected: str) -> None:
    assert tables.cost_text(judge.Spread.of([value]), unit) == expected
