"""The communication suite: links that fit what was measured, and a job that measures."""

from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console

from infini.backends.cpu.limits import Limits
from infini.compiler.partition import costs
from infini.core.machine import Link, Machine
from infini.perf import comm, tables

LIMITS = Limits(1, 1e11, {1 << 20: 2e10}, {1 << 20: 1e10})


def test_the_weights_that_made_the_seconds_are_found_again(rng: np.random.Generator) -> None:
    facts = rng.uniform(1, 10, (20, 3))
    seconds = facts @ [1e-4, 0.0, 3e-9]
    np.testing.assert_allclose(comm.nearest(facts / seconds[:, None]), [1e-4, 0.0, 3e-9], atol=1e-12)


def test_nothing_costs_less_than_nothing(rng: np.random.Generator) -> None:
    facts = rng.uniform(1, 10, (20, 2))
    seconds = facts @ [2.0, -0.1]
    found = comm.nearest(facts / seconds[:, None])
    assert found[1] == 0 and found[0] > 0


def test_a_machine_predicts_the_samples_that_it_was_made_of() -> None:
    made = Machine(Link(2e9, latency_s=3e-6), start_s=5e-5)
    samples = [
        comm.Sample(name, nbytes, made.start_s + costs.num_messages(name, 4) * made.link.latency_s
                    + costs.wire_bytes(name, nbytes, 4) / made.link.bytes_per_s, None)
        for name in comm.COLLECTIVES for nbytes in (1 << 10, 1 << 20)
    ]  # fmt: skip
    found = comm._machine(samples, 4, LIMITS)
    assert found.link.bytes_per_s == pytest.approx(2e9)
    assert found.link.latency_s == pytest.approx(3e-6)
    assert found.start_s == pytest.approx(5e-5)
    assert (found.flops_per_s, found.memory_bytes_per_s) == (1e11, 1e10)


@pytest.mark.multi
@pytest.mark.xdist_group("mpi")
def test_a_job_measures_collectives_and_a_step(mpirun_path: str) -> None:
    found = comm.launched(2, LIMITS, size="quick", only=["tensor"])
    assert {s.name for s in found.samples} == set(comm.COLLECTIVES)
    assert all(s.seconds > 0 and s.mpi_s is not None for s in found.samples)
    (step,) = found.steps
    assert step.recipe == "tensor"
    assert step.loss_difference < 1e-5
    assert step.predicted_s > step.communication_s > 0
    assert comm.Report.from_json(found.as_json()) == found
    console = Console(record=True, width=160)
    console.print(*tables.communication(found))
    assert "train step of 2 processes" in console.export_text()


def test_one_process_has_nobody_to_talk_to() -> None:
    found = comm.Report(1, (0.1, 0.1, 0.2), Machine(Link(1e9)), (), ())
    assert len(tables.communication(found)) == 1
