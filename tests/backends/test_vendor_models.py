"""A user's programs on adapters over stand-ins: eager calls, training steps, donation, several threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

import infini as inf  # after the skip
import infini.numpy as inp
from infini.core import backend as backend_
from infini.train import gpt
from tests.backends.vendor_fixtures import Device, folder, sdk

__all__ = ["folder", "sdk"]

CONFIG = gpt.Config(
    vocab_size=24,
    hidden_size=16,
    intermediate_size=24,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
)


@pytest.fixture(params=["metax", "ascend"])
def device(request: Any, sdk: Path, monkeypatch: Any) -> Iterator[Device]:
    """The device of the name of its adapter."""
    made, real = Device(request.param, sdk), backend_.get
    found = {made.backend.name: made.backend}
    monkeypatch.setattr(backend_, "get", lambda name: found.get(name) or real(name))
    backend_.forget_default_device()
    with inf.config(device=request.param):
        yield made
    backend_.forget_default_device()
    inf.clear_caches()
    assert made.compiler.faults == []


def test_eager_calls(device: Device) -> None:
    x = inp.arange(6.0).reshape(2, 3)
    y = inp.sin(x) @ inp.ones((3, 2)) + inp.sort(x, axis=1)[:, :2]
    assert str(y.device) == f"{device.backend.name}:0"
    wanted = np.sin(np.arange(6.0).reshape(2, 3)) @ np.ones((3, 2)) + np.arange(6.0).reshape(2, 3)[:, :2]
    np.testing.assert_allclose(np.asarray(y), wanted, rtol=1e-6)


def test_arrays_move_between_devices_and_the_cpu(device: Device) -> None:
    first, second = inf.devices(device.backend.name)
    x = inf.device_put(inp.arange(5), first)
    there = inf.device_put(x, second)
    back = inf.device_put(there, inf.devices("cpu")[0])
    assert str(there.device).endswith(":1") and back.tolist() == [0, 1, 2, 3, 4]


def test_a_training_step(device: Device, rng: Any) -> None:
    def step(params: Any, windows: Any) -> Any:
        value, grads = inf.value_and_grad(lambda p: gpt.loss(p, windows, CONFIG))(params)
        return inf.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    windows = rng.integers(0, 24, (1, 5)).astype(np.int32)
    losses = {}
    with inf.config(device="reference"):
        start = inf.tree.map(np.asarray, gpt.init(inf.random.PRNGKey(0), CONFIG))
    for name in ("reference", device.backend.name):
        with inf.config(device=name):
            params, found = start, []
            jitted = inf.jit(step)
            for _ in range(2):
                params, value = jitted(params, windows)
                found.append(float(value))
            losses[name] = found
    np.testing.assert_allclose(losses[device.backend.name], losses["reference"], rtol=1e-4)
    assert losses["reference"][1] < losses["reference"][0]


def test_a_donated_parameter_is_updated_in_place(device: Device) -> None:
    update = inf.jit(lambda x, y: x + y, donate_argnums=0, donation="require")
    x = inp.zeros(300)
    total = device.backend.driver(0).memory_stats()["bytes_in_use"]
    for _ in range(3):
        x = update(x, 1.0)
    assert x.tolist() == [3.0] * 300
    assert device.backend.driver(0).memory_stats()["bytes_in_use"] <= total + 1024


def test_threads_share_a_device(device: Device) -> None:
    function = inf.jit(lambda x: inp.cumsum(x * 2.0))
    function(inp.ones(4)).block_until_ready()
    found: dict[int, list[float]] = {}

    def work(number: int) -> None:
        with inf.config(device=device.backend.name):
            for _ in range(3):
                found[number] = function(inp.full(4, float(number))).tolist()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [2.0 * n, 4.0 * n, 6.0 * n, 8.0 * n] for n in range(4)}


def test_memory_of_a_device_is_told(device: Device) -> None:
    x = inp.ones(1000)
    stats = x.device.memory_stats()
    assert stats["bytes_in_use"] >= 4000 and stats["bytes_limit"] == 1 << 30
