"""Every workload of the CPU suite computes the same on infini, JAX and PyTorch, so none is asked for less."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from infini.perf import contestants, workloads
from infini.perf.workload import Workload

Digest = dict[str, np.ndarray]


def _digest(contestant: contestants.Contestant, workload: Workload) -> Digest:
    timing: Any = contestants.Timing(contestant, workload)
    return contestants.digest(timing.result)


@pytest.mark.filterwarnings("ignore:.*donation-unused")  # see tests/perf/test_workloads.py
@pytest.mark.parametrize("workload", workloads.TINY, ids=lambda w: w.name)
def test_results_are_those_of_jax_and_torch(workload: Workload) -> None:
    found = _digest(contestants.contestant("infini", 2), workload)
    for peer in ("jax", "torch"):
        expected = _digest(contestants.contestant(peer, 1), workload)
        assert contestants.difference(found, expected, workload.compared) <= workload.tolerance, peer
