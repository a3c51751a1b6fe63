"""Adapters over stand-ins, for the tests of vendors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from infini.backends.vendors import ascend, metax  # after the skip
from infini.backends.vendors.adapter import Adapter, AdapterBackend
from infini.testing.conformance import Outcome, Subject, all_checks, run
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

    def conformance(self, *sections: str) -> list[Outcome]:
        """The outcomes of the checks of some sections, or all."""
        checks = [check for check in all_checks() if not sections or check.section in sections]
        return list(run(Subject(self.backend.name, self.backend), checks))


def failed(outcomes: list[Outcome]) -> list[str]:
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


__all__ = ["ADAPTERS", "Device", "ascend_device", "failed", "folder", "made", "metax_device", "sdk"]
