"""DLPack with device memory, on the stand-in for CuPy: sharing, copying, and going to the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

import infini as inf  # after the skip
from infini.backends import cuda
from infini.core import array, backend as backend_, dlpack, dtypes, ir, sharding
from infini.core.backend import Device
from infini.core.ir import ArrayType
from tests.backends.fake_cupy import Machine

DEVICE = Device("cuda", 0)
X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def on_gpu(monkeypatch: Any) -> array.Array:
    Machine().install(monkeypatch)
    made, real = cuda.CudaBackend(), backend_.get
    monkeypatch.setattr(backend_, "get", lambda name: made if name == "cuda" else real(name))
    return array.Array(ArrayType(X.shape, dtypes.float32), (made.put(X, DEVICE),), sharding.on_one(DEVICE))


class Tensor:
    """A tensor of another library in the memory of the same device."""

    def __init__(self, x: array.Array) -> None:
        self.x = x
        self.streams: list[Any] = []

    def __dlpack__(self, *, stream: Any = None, max_version: Any = None) -> Any:
        self.streams.append(stream)
        return self.x.__dlpack__(max_version=max_version)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.x.__dlpack_device__()


def test_device_memory_is_shared(on_gpu: array.Array) -> None:
    tensor = Tensor(on_gpu)
    shared = inf.dlpack.from_dlpack(tensor, copy=False)
    assert on_gpu.__dlpack_device__() == (2, 0) and shared.devices() == {DEVICE}
    assert shared.unsafe_buffer_pointer() == on_gpu.unsafe_buffer_pointer()
    assert tensor.streams == [1], "the producer makes the legacy default stream wait"
    assert shared.tolist() == X.tolist()


def test_device_memory_is_copied_on_the_device(on_gpu: array.Array) -> None:
    copied = inf.dlpack.from_dlpack(Tensor(on_gpu))
    assert copied.unsafe_buffer_pointer() != on_gpu.unsafe_buffer_pointer()
    assert copied.devices() == {DEVICE} and copied.tolist() == X.tolist()


def test_device_memory_goes_to_another_device(on_gpu: array.Array) -> None:
    cpu = backend_.get("cpu").devices()[0]
    assert inf.dlpack.from_dlpack(Tensor(on_gpu), device=cpu).devices() == {cpu}


def test_a_consumer_on_the_host_gets_a_copy(on_gpu: array.Array) -> None:
    capsule = on_gpu.__dlpack__(dl_device=(dlpack.CPU, 0), max_version=(1, 0))

    class Host(Tensor):
        def __dlpack__(self, **options: Any) -> Any:
            return capsule

        def __dlpack_device__(self) -> tuple[int, int]:
            return (dlpack.CPU, 0)

    assert np.from_dlpack(Host(on_gpu)).tolist() == X.tolist()


def test_numpy_cannot_share_device_memory(on_gpu: array.Array) -> None:
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(on_gpu, copy=False)
    assert np.asarray(on_gpu).tolist() == X.tolist()


def test_small_floats_are_exchanged_on_the_device(on_gpu: array.Array) -> None:
    x = on_gpu.to_host().astype(dtypes.bfloat16)
    buffer = backend_.get("cuda").put(x, DEVICE)
    there = array.Array(ir.ArrayType(x.shape, x.dtype), (buffer,), sharding.on_one(DEVICE))
    assert inf.dlpack.from_dlpack(Tensor(there), copy=False).dtype == dtypes.bfloat16
