"""Collectives over several axes of a mesh give what JAX's give, on every device."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini.sharding import P, make_mesh
from tests.parity import collectives_table as table

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def of_jax(tmp_path_factory: Any) -> Mapping[str, np.ndarray]:
    target = tmp_path_factory.mktemp("collectives") / "jax.npz"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.parity.collectives_table", str(target)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **flags}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(np.load(target))


@pytest.fixture(scope="module")
def of_infini() -> Mapping[str, np.ndarray]:
    with inf.config(device="reference", cpu_devices=8):
        return table.results(inf, inp, lambda: make_mesh(table.SIZES, table.AXES), P)


@pytest.mark.parametrize("name", table.CASES)
def test_collectives_over_several_axes(
    name: str, of_jax: Mapping[str, np.ndarray], of_infini: Mapping[str, np.ndarray]
) -> None:
    mine = {key: value for key, value in of_infini.items() if key.startswith(f"{name}/")}
    assert mine.keys() == {key for key in of_jax if key.startswith(f"{name}/")}
    for key, value in mine.items():
        assert value.dtype == of_jax[key].dtype, key
        np.testing.assert_allclose(value, of_jax[key], rtol=2e-5, atol=1e-5, err_msg=key)
