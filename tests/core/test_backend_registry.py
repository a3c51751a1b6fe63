"""The registry of backends: plugins found by entry point, and broken ones named instead of crashing."""

from __future__ import annotations

import sys

import pytest

import infini
import infini.numpy as inp
from infini.core import backend, errors

WORKING = """
from infini.backends.reference import ReferenceBackend

class Backend(ReferenceBackend):
    name = "abacus"

def backend():
    return Backend()
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a package with one module that advertises a backend called `abacus`."""

    def install(source):
        (tmp_path / "abacus_plugin.py").write_text(source)
        info = tmp_path / "abacus_plugin-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: abacus-plugin\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text("[infini.backends]\nabacus = abacus_plugin:backend\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        forget()

    yield install
    monkeypatch.undo()
    forget()


def forget():
    sys.modules.pop("abacus_plugin", None)
    backend._advertised.cache_clear()
    backend.get.cache_clear()
    backend.forget_default_device()


def test_a_backend_outside_the_tree_is_found_and_runs_programs(installed):
    installed(WORKING)
    assert backend.names()[0] == "abacus" and "abacus" in backend.available()
    with infini.config(device="abacus"):
        x = infini.jit(lambda x: inp.sin(x) + 1)(inp.zeros(3))
    assert x.tolist() == [1.0, 1.0, 1.0] and str(infini.devices("abacus")[0]) == "abacus:0"


def test_a_backend_outside_the_tree_comes_first(installed):
    installed(WORKING)
    assert str(inp.zeros(1).device) == "abacus:0"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("", "AttributeError"),
        ("def backend():\n    raise OSError('libabacus.so is missing')", "OSError: libabacus.so is missing"),
        ("def backend():\n    return object()", "has no adopt, compile"),
        ("def backend(", "SyntaxError"),
    ],
)
def test_a_broken_plugin_gives_a_reason_and_stops_nobody(installed, source, reason):
    installed(source)
    assert "abacus" not in backend.available()
    found = backend.get("abacus").why_unavailable()
    assert reason in found and "entry point abacus = abacus_plugin:backend of abacus-plugin 1.5" in found
    with pytest.raises(errors.DeviceError, match="'abacus' has no device here"):
        infini.devices("abacus")
    with pytest.raises(errors.DeviceError, match="'abacus' cannot be used"):
        backend.get("abacus").compile(None, None)


def test_a_broken_plugin_is_announced_when_another_backend_takes_its_place(installed):
    installed("import no_such_library")
    with pytest.warns(
        errors.InfiniWarning, match="backend-broken.*'abacus' is installed and cannot be loaded"
    ):
        assert str(backend.default_device()) == "cpu:0"


def test_of_two_plugins_with_one_name_the_first_by_reference_is_taken(installed, tmp_path):
    second = tmp_path / "z_plugin-1.0.dist-info"
    second.mkdir()
    (second / "METADATA").write_text("Metadata-Version: 2.1\nName: z-plugin\nVersion: 1.0\n")
    (second / "entry_points.txt").write_text("[infini.backends]\nabacus = z_plugin:backend\n")
    installed(WORKING)
    assert backend.get("abacus").why_unavailable() is None


def test_an_unknown_backend_is_named_with_those_there_are():
    with pytest.raises(errors.DeviceError, match=r"(?s)no backend called 'loom'.*one of .*cpu"):
        backend.get("loom")
