"""Adapters over stand-ins, for the tests of vendors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

from infini.backends.reference import interpreter  # after the skip
from infini.backends.vendors import ascend_tables as ascend, metax_tables as metax
from infini.backends.vendors.adapter import Adapter, AdapterBackend
from infini.backends.vendors.fork import TritonFork
from infini.backends.vendors.tables import Places, RuntimeTable
from infini.core import trace
from infini.core.backend import CompileOptions, Device as Place
from infini.core.ir import ArrayType
from infini.testing import conformance
from tests.backends import third_adapter, vendor_shims
from tests.backends.vendor_shims import FakeCompiler, Shim

ADAPTERS: Mapping[str, Adapter] = {
    "metax": metax.ADAPTER,
    "ascend": ascend.ADAPTER,
    "cambricon": third_adapter.ADAPTER,
}
RUNTIMES = {
    "metax": "maca/lib/libmcruntime.so",
    "ascend": "cann/lib64/libascendcl.so",
    "cambricon": "neuware/lib64/libcnrt.so",
    "kunlun": "xpu/so/libxpurt.so",
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stand-ins are."""
    if not vendor_shims.has_compiler():
        pytest.skip("gcc compiles the stand-ins and is not here")
    made = tmp_path_factory.mktemp("vendors")
    vendor_shims.build(made)
    return made


@pytest.fixture
def sdk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every SDK is installed, and its variable set."""
    for name, home in vendor_shims.HOMES.items():
        monkeypatch.setenv(name, str(folder / home))
    return folder


class Device:
    """An adapter over its stand-in.

    Args:
        name: of the adapter.
        folder: where the stand-ins are.
        changes: fields of the adapter that are others.
    """

    def __init__(self, name: str, folder: Path, **changes: Any) -> None:
        self.compiler = FakeCompiler(is_packed=name == "ascend", facts={"mix_mode": "aiv", "lock_num": 0})
        self.shim = Shim(folder / RUNTIMES[name], self.compiler)
        adapter = ADAPTERS[name] if name in ADAPTERS else changes.pop("adapter")
        compiles = "launch" in adapter.runtime.calls and "compiler" not in changes
        if compiles:
            changes["compiler"] = self.compiler
        self.backend = AdapterBackend(dataclasses.replace(adapter, **changes))

    @property
    def runtime(self) -> Any:
        """The runtime, with the first device current."""
        self.backend.runtime.use(0)
        return self.backend.runtime

    def conformance(self, *sections: str) -> list[conformance.Outcome]:
        """The outcomes of the checks of some sections, or all."""
        checks = [check for check in conformance.all_checks() if not sections or check.section in sections]
        return list(conformance.run(conformance.Subject(self.backend.name, self.backend), checks))


def failed(outcomes: list[conformance.Outcome]) -> list[str]:
    """Names of the checks that failed."""
    return [f"{o.section}: {o.name}: {o.detail}" for o in outcomes if o.status == "failed"]


@pytest.fixture
def metax_device(sdk: Path) -> Iterator[Device]:
    """MetaX."""
    yield from made("metax", sdk)


@pytest.fixture
def ascend_device(sdk: Path) -> Iterator[Device]:
    """Ascend."""
    yield from made("ascend", sdk)


def made(name: str, folder: Path, **changes: Any) -> Iterator[Device]:
    """A device; no launch of it may have gone wrong behind the runtime's back."""
    device = Device(name, folder, **changes)
    yield device
    assert device.compiler.faults == []


KUNLUN = Adapter(
    name="kunlun",
    vendor="Kunlun",
    places=Places(("XPU_HOME",), (), ("so",), "install XRE"),
    runtime=RuntimeTable(
        libraries=("libxpurt.so.1", "libxpurt.so"),
        calls={
            "device_count": "xpu_device_count: >i32", "set_device": "xpu_set_device: device",
            "allocate": "xpu_malloc: >ptr n:u64 =0", "free": "xpu_free: ptr",
            "copy": "xpu_memcpy: dst src n:u64 kind",
            "copy_async": "xpu_memcpy_async: dst src n:u64 kind stream",
            "stream_create": "xpu_stream_create: >ptr", "stream_destroy": "xpu_stream_destroy: stream",
            "stream_synchronize": "xpu_wait: stream", "error_text": "xpu_strerror -> str: code",
        },
        kinds={"d2h": 0, "h2d": 1, "d2d": 2},
        out_of_memory=frozenset({-705}),
        error_texts={-705: "no memory", -707: "invalid parameter", -701: "no such device"},
    ),
    target=third_adapter.TARGET,
    compiler=TritonFork("install Kunlun's Triton"),
    arch=lambda runtime, device: 3,
)  # fmt: skip


def run(device: Device, function: Callable[..., Any], *arrays: np.ndarray, at: int = 0) -> list[np.ndarray]:
    """Results of a program on a device, after they were compared with the oracle's."""

    def flat(*xs: Any) -> list[Any]:
        found = function(*xs)
        return list(found) if isinstance(found, (tuple, list)) else [found]

    program = trace.stage(flat, [ArrayType(a.shape, a.dtype) for a in arrays]).program
    executable = device.backend.compile(program, CompileOptions())
    place = Place(device.backend.name, at)
    buffers = executable([device.backend.put(a, place) for a in arrays])
    found = [device.backend.get(b, t) for b, t in zip(buffers, program.out_types, strict=True)]
    for got, want in zip(found, interpreter.evaluate(program, arrays), strict=True):
        np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=1e-4, atol=1e-4)
    return found


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def with_runtime(adapter: Adapter, **changes: Any) -> Adapter:
    """An adapter whose runtime's table has other fields; `calls` are added to those there are."""
    table = adapter.runtime
    calls = {**table.calls, **changes.pop("calls", {})}
    calls = {name: text for name, text in calls.items() if text}
    return dataclasses.replace(adapter, runtime=dataclasses.replace(table, calls=calls, **changes))


__all__ = [
    "ADAPTERS",
    "KUNLUN",
    "Device",
    "ascend_device",
    "failed",
    "folder",
    "made",
    "metax_device",
    "normal",
    "run",
    "sdk",
    "with_runtime",
]
