"""The table of recipes under mpirun: one job per number of processes runs all rows, each with its mesh made
smaller, and every process compares what it holds with one device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

import infini as inf
from tests.parallel import jobs
from tests.parallel.recipe_rows import MODELS, RECIPES, alone, run

pytestmark = [pytest.mark.multi, pytest.mark.xdist_group("mpi")]

JOBS = {"2 processes": 2, "4 processes": 4}
Found: TypeAlias = list[dict[str, Any]]  # by process: what it found, by row and model


def runs() -> dict[str, Any]:
    """All rows, in one process of a job."""
    num_devices = len(inf.devices())
    return {
        f"{name}, {model}": dataclasses.asdict(run(name, model, num_devices))
        for name in RECIPES
        for model in MODELS
    }


@pytest.fixture(scope="module")
def found(mpirun_path: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Found]:
    """What the processes of each job found, run when it is asked for first."""
    done: dict[str, Found] = {}

    def of(job: str) -> Found:
        if job not in done:
            folder = tmp_path_factory.mktemp("found")
            done[job] = jobs.found(mpirun_path, JOBS[job], runs, folder, INFINI_DEVICE="cpu")
        return done[job]

    return of


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("job", JOBS)
def test_ten_steps_over_processes_are_those_of_one_device(
    job: str, name: str, model: str, found: Callable[[str], Found]
) -> None:
    processes = found(job)
    assert len(processes) == JOBS[job]
    for process in (told[f"{name}, {model}"] for told in processes):
        assert process["losses"] == pytest.approx(alone(model)[0], rel=1e-5)
        assert process["excess"] <= 1
        assert process["is_as_predicted"]
