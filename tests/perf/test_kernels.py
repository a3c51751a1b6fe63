"""What kernels cost before they run is measured without a GPU."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from infini.perf import kernels, workloads


def test_kernels_of_workloads_are_found_once() -> None:
    softmax = workloads.by_name("softmax/6x10")
    assert len(kernels.sources([softmax, softmax])) == 1


def test_a_compiled_kernel_is_read_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    one = kernels.sources([workloads.by_name("softmax/6x10")])
    real = kernels.compile_._compile
    monkeypatch.setattr(
        kernels.compile_,
        "_compile",
        lambda source, *about: compiled.append(source.key) or real(source, *about),
    )
    cold, cached = kernels.compile_seconds(one)
    assert (len(cold), len(cached), len(compiled)) == (1, 1, 1)


def test_the_host_replays_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_CALLS", 2)
    assert len(kernels.host_seconds(4)) == kernels._REPEATS
