"""A small language model on the stand-in for a GPU: training and cached decoding against the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

import infini as inf
from infini.backends import cuda
from infini.core import backend as backend_
from infini.perf import contestants, limits
from infini.perf.workload import Workload
from infini.perf.workloads import gpu
from infini.train import gpt
from tests.backends.fake_cupy import Machine

CONFIG = gpt.Config(
    vocab_size=40,
    hidden_size=32,
    intermediate_size=48,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
)


@pytest.fixture(autouse=True)
def machine(monkeypatch: Any) -> Any:
    """The device `cuda` is the stand-in."""
    made, real = Machine().install(monkeypatch), backend_.get
    backend = cuda.CudaBackend()
    monkeypatch.setattr(backend_, "get", lambda name: backend if name == "cuda" else real(name))
    backend_.forget_default_device()
    yield made
    backend_.forget_default_device()
    inf.clear_caches()


def parameters() -> Any:
    """Random parameters on the host."""
    with inf.config(device="reference"):
        return inf.tree.map(np.asarray, gpt.init(inf.random.PRNGKey(0), CONFIG))


def test_training_steps(rng: Any) -> None:
    def step(params: Any, windows: Any) -> Any:
        value, grads = inf.value_and_grad(lambda p: gpt.loss(p, windows, CONFIG))(params)
        return inf.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    windows = rng.integers(0, 40, (2, 9)).astype(np.int32)
    losses = {}
    for device in ("reference", "cuda"):
        with inf.config(device=device):
            params, found = parameters(), []
            jitted = inf.jit(step)
            for _ in range(2):
                params, value = jitted(params, windows)
                found.append(float(value))
            losses[device] = found
    np.testing.assert_allclose(losses["cuda"], losses["reference"], rtol=1e-4)
    assert losses["cuda"][-1] < losses["cuda"][0]


def test_decoding_updates_the_cache_in_place(machine: Machine, rng: Any) -> None:
    tokens = rng.integers(0, 40, (1, 4)).astype(np.int32)
    step = lambda p, c, t, i: gpt.forward_cached(p, c, t, i, CONFIG)  # noqa: E731
    logits = {}
    for device in ("reference", "cuda"):
        with inf.config(device=device):
            jitted = inf.jit(step, donate_argnums=1)
            params = inf.tree.map(inf.numpy.asarray, parameters())
            cache, found = gpt.init_cache(CONFIG, 1, 8), []
            for i in range(4):
                machine.events.clear()
                out, cache = jitted(params, cache, tokens[:, i : i + 1], np.int32(i))
                found.append(np.asarray(out))
            logits[device] = np.concatenate(found)
    np.testing.assert_allclose(logits["cuda"], logits["reference"], rtol=1e-3, atol=1e-4)
    assert machine.count("replay") == 1


@pytest.mark.parametrize("workload", gpu.TINY, ids=lambda w: w.name)
def test_workloads_of_the_gpu_suite(workload: Workload) -> None:
    found = {}
    for device in ("reference", "cuda"):
        with inf.config(device=device):
            ours: Any = contestants.contestant("infini", 1, device)
            found[device] = contestants.digest(contestants.Timing(ours, workload).result)
    assert contestants.difference(found["cuda"], found["reference"], "values") <= workload.tolerance


def test_the_rate_of_copies_is_measured() -> None:
    measured = limits.measure_gpu([1 << 12])
    assert measured.least_s(1e9, 1 << 11, 1 << 11) > 0
