"""A rehearsal of `bench/gpu_smoke.py` on the stand-in for CuPy: every check runs, and what is missing is
said.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from bench import gpu_smoke
from tests.backends.fake_cupy import Machine


def test_every_check_passes_and_is_recorded(monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    machine = Machine().install(monkeypatch)
    assert gpu_smoke.main(["--small", "--results", str(tmp_path)]) == 0, capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    (run,) = json.loads(path.read_text())
    assert {check["status"] for check in run["checks"]} == {"ok"}
    assert machine.count("replay") > 0 and machine.count("gemm") > 0


def test_missing_packages_are_named(monkeypatch: Any, capsys: Any) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(gpu_smoke.importlib.util, "find_spec", lambda n: None if n == "cupy" else real(n))
    assert gpu_smoke.main([]) == 2
    assert "cupy-cuda12x" in capsys.readouterr().out
