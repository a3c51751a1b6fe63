"""A rehearsal of `bench/gpu_smoke.py` on the stand-in for CuPy: every check runs, and what is missing is
said.
"""

from __future__ import annotations

import importlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from bench import gpu_job, gpu_smoke
from infini.backends import cuda
from infini.core import backend as backend_, execute
from tests.backends import fake_nccl
from tests.backends.fake_cupy import Machine


@pytest.fixture
def on_gpu(monkeypatch: Any) -> Iterator[None]:
    """Programs find the stand-in by the name of the backend."""
    made, real = cuda.CudaBackend(), backend_.get
    monkeypatch.setattr(backend_, "get", lambda name: made if name == "cuda" else real(name))
    execute.clear_caches()
    backend_.forget_default_device()
    yield
    execute.clear_caches()


@pytest.mark.usefixtures("on_gpu")
def test_every_check_passes_and_is_recorded(monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    machine = Machine()
    fake_nccl.install(machine)
    machine.install(monkeypatch)

    def start_job(command: list[str]) -> subprocess.CompletedProcess[str]:
        assert command[-1] == "bench.gpu_job"
        gpu_job.main()  # a job of one process, on both devices
        return subprocess.CompletedProcess(command, 0, capsys.readouterr().out, "")

    monkeypatch.setattr(gpu_job.parallel, "initialize", lambda: None)  # which would last for all tests
    monkeypatch.setattr(gpu_smoke, "start_job", start_job)
    assert gpu_smoke.main(["--small", "--results", str(tmp_path)]) == 0, capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    (run,) = json.loads(path.read_text())
    assert {check["status"] for check in run["checks"]} == {"ok"}
    assert machine.count("replay") > 0 and machine.count("gemm") > 0
    found = {check["check"]: check for check in run["checks"]}
    assert "Duplicate GPU" in found["NCCL with two ranks on one GPU"]["refused"]
    assert found["training over all GPUs"]["GPUs"] == 2 and found["two processes"]["processes"] == 1


@pytest.mark.usefixtures("on_gpu")
def test_what_a_machine_lacks_is_said_and_no_failure(monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    machine = Machine()
    machine.capabilities = ("90",)
    machine.install(monkeypatch)
    monkeypatch.setattr(gpu_smoke.shutil, "which", lambda name: None)
    monkeypatch.setattr(gpu_smoke.sys, "executable", str(tmp_path / "python"))
    several = (
        "NCCL with one rank",
        "NCCL with two ranks on one GPU",
        "training over all GPUs",
        "two processes",
    )
    real = gpu_smoke.Checks.all
    monkeypatch.setattr(gpu_smoke.Checks, "all", lambda self: {name: real(self)[name] for name in several})
    assert gpu_smoke.main(["--small", "--results", str(tmp_path / "results")]) == 0
    said = capsys.readouterr().out
    assert said.count("not run") == len(several)
    assert "CuPy finds no NCCL" in said and "there is one GPU" in said and "mpi4py or mpirun" in said


def test_missing_packages_are_named(monkeypatch: Any, capsys: Any) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(gpu_smoke.importlib.util, "find_spec", lambda n: None if n == "cupy" else real(n))
    assert gpu_smoke.main([]) == 2
    assert "cupy-cuda12x" in capsys.readouterr().out
