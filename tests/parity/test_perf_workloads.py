"""Every workload of the CPU and GPU suites computes the same on infini, JAX and PyTorch, so none is asked for
less.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from infini.perf import contestants, workloads
from infini.perf.workload import Workload
from infini.perf.workloads import gpu

Digest = dict[str, np.ndarray]


def _digest(contestant: contestants.Contestant, workload: Workload) -> Digest:
    timing: Any = contestants.Timing(contestant, workload)
    return contestants.digest(timing.result)


@pytest.mark.filterwarnings("ignore:.*donation-unused")  # see tests/perf/test_workloads.py
@pytest.mark.parametrize("workload", [*workloads.TINY, *gpu.TINY], ids=lambda w: w.name)
def test_results_are_those_of_jax_and_torch(workload: Workload) -> None:
    found = _digest(contestants.contestant("infini", 2), workload)
    for peer in ("jax", "torch"):
        expected = _digest(contestants.contestant(peer, 1), workload)
        assert contestants.difference(found, expected, workload.compared) <= workload.tolerance, peer


# In float32: what Triton's interpreter does with bfloat16 is not what a GPU does.
TWINS = """
import dataclasses
import torch
from infini.perf import contestants
from infini.perf.workloads import gpu

for workload in gpu.TINY:
    if workload.triton is not None:
        wide = lambda rng, made=workload.arguments: tuple(x.astype("float32") for x in made(rng))
        workload = dataclasses.replace(workload, arguments=wide)
        found, expected = (
            contestants.digest(contestants.Timing(contestants.TorchContestant(name, torch), workload).result)
            for name in ("triton", "torch")
        )
        print(workload.name, contestants.difference(found, expected, "values") <= workload.tolerance)
"""


def test_kernels_by_hand_compute_what_pytorch_does() -> None:
    """In a process of its own, because Triton decides at the import whether its interpreter runs kernels."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", TWINS], capture_output=True, text=True, check=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    verdicts = dict(line.split() for line in done.stdout.splitlines())
    assert set(verdicts.values()) == {"True"}, verdicts
    assert len(verdicts) == 4
