"""Every kind of workload runs on infini, and the tables of workloads are whole."""

from __future__ import annotations

import math

import numpy as np
import pytest

from infini.perf import contestants, cpu, workload as workload_, workloads
from infini.perf.workload import Workload
from infini.perf.workloads import gpu


@pytest.fixture(scope="module")
def ours() -> contestants.Contestant:
    return contestants.contestant("infini", 2)


# The step donates scales of batch normalisation that it still reads, and says so.
@pytest.mark.filterwarnings("ignore:.*donation-unused")
@pytest.mark.parametrize("workload", [*workloads.TINY, *gpu.TINY], ids=lambda w: w.name)
def test_runs_on_infini(ours: contestants.Contestant, workload: Workload) -> None:
    result = contestants.Timing(ours, workload).result
    assert result
    assert all(np.isfinite(array).all() for array in result)


def test_names_are_unique() -> None:
    every = (*workloads.WORKLOADS, *workloads.TINY, *gpu.WORKLOADS, *gpu.TINY, *cpu.PROBES)
    names = [(w.family, w.name) for w in every]
    assert len(names) == len(set(names))


def test_every_kind_has_a_tiny_one() -> None:
    kinds = {w.name.partition("/")[0] for w in workloads.WORKLOADS}
    assert kinds == {w.name.partition("/")[0] for w in workloads.TINY}


def test_every_family_with_a_target_is_measured_even_when_quick() -> None:
    measured = {w.family for w in (*workloads.WORKLOADS, *cpu.PROBES) if w.is_quick}
    measured |= {w.family for w in gpu.WORKLOADS}
    assert measured == set(workload_.TARGETS)


def test_arguments_are_the_same_for_everyone() -> None:
    workload = workloads.by_name("softmax/6x10")
    first, second = (workload.arguments(np.random.default_rng(contestants.SEED)) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])


def test_a_step_carries_its_state(ours: contestants.Contestant) -> None:
    losses = contestants.Timing(ours, workloads.by_name("cnn_step/2x8x8_w3")).result
    assert len({float(loss) for loss in losses}) == contestants.STEPS_COMPARED


def test_equal_results_do_not_differ() -> None:
    kept = contestants.digest([np.arange(6.0).reshape(2, 3)])
    assert contestants.difference(kept, kept, "values") == 0.0


def test_a_difference_is_relative_to_the_largest_value() -> None:
    expected = contestants.digest([np.array([1.0, -10.0])])
    found = contestants.digest([np.array([1.5, -10.0])])
    assert contestants.difference(found, expected, "values") == pytest.approx(0.05)


@pytest.mark.parametrize("other", [np.zeros((3, 2)), np.full((2, 3), np.nan)])
def test_other_shapes_and_nan_differ_without_bound(other: np.ndarray) -> None:
    expected = contestants.digest([np.zeros((2, 3))])
    assert math.isinf(contestants.difference(contestants.digest([other]), expected, "values"))


def test_a_missing_result_differs_without_bound() -> None:
    expected = contestants.digest([np.zeros(2), np.zeros(2)])
    assert math.isinf(contestants.difference(contestants.digest([np.zeros(2)]), expected, "values"))
