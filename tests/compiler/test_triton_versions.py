"""The golden kernels on the versions of Triton that forks are based on, for GPUs that are not here."""

from __future__ import annotations

import sys

import pytest

from tools import triton_versions


@pytest.mark.night
@pytest.mark.parametrize("version", triton_versions.VERSIONS)
def test_every_golden_kernel_compiles(version: str) -> None:
    last = triton_versions.LAST_PYTHON.get(version, sys.version_info[:2])
    if sys.version_info[:2] > last:
        pytest.skip(f"Triton {version} has no wheels for Python {sys.version_info[0]}.{sys.version_info[1]}")
    refused = [v for v in triton_versions.verdicts(version) if v.text != "ok"]
    assert [(v.target, v.kernel, v.text) for v in refused] == []
