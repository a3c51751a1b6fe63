"""Programs over several devices of a vendor, by his library of collectives: MetaX's, which is like NCCL, and
Ascend's, which puts nothing together.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

import infini as inf  # after the skip
import infini.numpy as inp
from infini import lax
from infini.core import backend as backend_, errors, execute
from infini.sharding import NamedSharding, P, make_mesh
from tests.backends.vendor_fixtures import Device, folder, sdk

assert folder and sdk  # fixtures
X = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
W = np.cos(np.arange(16, dtype=np.float32)).reshape(4, 4)


@pytest.fixture(params=["metax", "ascend"])
def vendor(request: Any, sdk: Path, monkeypatch: Any) -> Iterator[Device]:
    """A vendor whose devices are the default ones."""
    found, real = Device(request.param, sdk), backend_.get
    monkeypatch.setattr(backend_, "get", lambda name: found.backend if name == request.param else real(name))
    execute.clear_caches()
    backend_.forget_default_device()
    with inf.config(device=request.param):
        yield found
    execute.clear_caches()
    assert found.compiler.faults == []


def reduced(device: Device) -> list[str]:
    return device.shim.calls("mcclAllReduce") + device.shim.calls("HcclAllReduce")


def test_a_training_step_over_devices_is_that_of_one(vendor: Device) -> None:
    def step(w: Any, x: Any) -> Any:
        value, gradient = inf.value_and_grad(lambda v: (inp.tanh(x @ v) ** 2).mean())(w)
        return value, w - 0.1 * gradient

    with inf.config(device="reference"):
        wanted = inf.jit(step)(W, X)
    mesh = make_mesh((2,), ("x",))
    for w_spec in (P(), P("x")):
        w, x = inf.device_put(W, NamedSharding(mesh, w_spec)), inf.device_put(X, NamedSharding(mesh, P("x")))
        for _ in range(2):
            value, after = inf.jit(step)(w, x)
        np.testing.assert_allclose(float(value), float(wanted[0]), rtol=1e-5)
        np.testing.assert_allclose(np.asarray(after), np.asarray(wanted[1]), rtol=1e-4, atol=1e-5)
    assert reduced(vendor)


def test_messages_between_devices(vendor: Device) -> None:
    def move(x: Any) -> Any:
        return (
            lax.ppermute(x, "x", [(0, 1)]),
            lax.all_to_all(x, "x", 1, 0, tiled=True),
            lax.psum(x.astype(inp.bfloat16), "x"),
            lax.all_gather(x, "x", axis=1, tiled=True),
        )

    def run(device: str) -> Any:
        with inf.config(device=device, cpu_devices=2):
            mapped = inf.shard_map(
                move, mesh=make_mesh((2,), ("x",)), in_specs=P("x"), out_specs=P("x"), check_vma=False
            )
            return [np.asarray(y) for y in inf.jit(mapped)(X)]

    for got, want in zip(run(vendor.backend.name), run("reference"), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_failing_exchange_has_the_vendors_words_and_the_line(vendor: Device, monkeypatch: Any) -> None:
    mesh = make_mesh((2,), ("x",))
    x = inf.device_put(X, NamedSharding(mesh, P("x")))
    run = inf.jit(lambda x: x.sum(0))
    run(x)
    library = vendor.backend.collectives()
    monkeypatch.setattr(library, "op_number", lambda op: 9)
    with pytest.raises(errors.CollectiveError, match=r"psum over x failed: .*AllReduce failed") as caught:
        run(x)
    assert "status" in str(caught.value.got)
    assert caught.value.where is not None and caught.value.where.file.endswith("test_vendor_mesh.py")
