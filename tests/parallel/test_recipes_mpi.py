"""The table of recipes under mpirun: one job per number of processes runs all rows, each with its mesh made
smaller, and every process compares what it holds with one device.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import pytest

import infini as inf
from tests.parallel import jobs
from tests.parallel.recipe_rows import MODELS, ROWS, run

pytestmark = [pytest.mark.multi, pytest.mark.xdist_group("mpi")]

JOBS = {"2 processes": (2, "cpu"), "4 processes": (4, "reference")}
Found: TypeAlias = list[dict[str, Any]]  # by process: what it found, by row and model


def runs() -> dict[str, Any]:
    """All rows with models of one layer, in one process of a job."""
    num_devices = len(inf.devices())
    small = {model: dataclasses.replace(config, num_layers=1) for model, config in MODELS.items()}
    return {
        f"{name}, {model}": dataclasses.asdict(run(name, config, num_devices))
        for name, model in ROWS
        for config in [small[model]]
    }


@pytest.fixture(scope="module", params=JOBS)
def job(
    request: pytest.FixtureRequest, mpirun_path: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Found]:
    """A number of processes, and what they found."""
    count, device = JOBS[request.param]
    folder = tmp_path_factory.mktemp("found")
    return count, jobs.found(mpirun_path, count, runs, folder, INFINI_DEVICE=device)


@pytest.mark.parametrize(("name", "model"), ROWS)
def test_ten_steps_over_processes_are_those_of_one_device(
    job: tuple[int, Found], name: str, model: str
) -> None:
    count, processes = job
    assert len(processes) == count
    for process in (told[f"{name}, {model}"] for told in processes):
        assert process["losses"] == pytest.approx(process["wanted"], rel=1e-5)
        assert process["excess"] <= 1
        assert process["is_as_predicted"]
        assert process["num_collectives"] == processes[0][f"{name}, {model}"]["num_collectives"]
