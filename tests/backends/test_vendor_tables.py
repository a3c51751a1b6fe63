"""Tables of vendors are checked when they are made, libraries are looked for when a device is asked for, and
what is missing is said.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from typer.testing import CliRunner

from infini.backends import coverage
from infini.backends.vendors import (
    ascend as ascend_look,
    ascend_tables as ascend,
    metax as metax_look,
    metax_tables as metax,
    slots,
)
from infini.backends.vendors.adapter import AdapterBackend
from infini.backends.vendors.places import Places
from infini.backends.vendors.tables import CollectiveTable, RuntimeTable, cuda_like
from infini.core import backend as backend_, errors, primitive
from infini.testing.conformance.__main__ import app
from tests.backends import third_adapter
from tests.backends.vendor_fixtures import folder, sdk, with_runtime

__all__ = ["folder", "sdk"]
ROOT = Path(__file__).resolve().parents[2]


# --- the language of slots -------------------------------------------------------------------


def test_a_call_in_every_kind_of_slot() -> None:
    call = slots.parse("new|old -> i32: dst &id *by_value >ptr =-1 =null device:u32 n >f32")
    assert call.symbols == ("new", "old") and call.returns == "i32"
    assert [(s.role, s.type) for s in call.slots] == [
        ("argument", "ptr"), ("by pointer", "ptr"), ("by value", "ptr"), ("result", "ptr"),
        ("constant", "i32"),
        ("constant", "ptr"), ("argument", "u32"), ("argument", "size"), ("result", "f32"),
    ]  # fmt: skip
    assert call.num_results == 2 and call.arguments == {"dst", "id", "by_value", "device", "n"}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("mcMalloc >ptr n", "cannot be read"), ("mcMalloc: >ptr, n", "cannot be read"),
        ("mcMalloc -> word: >ptr", "unknown type"), ("mcMalloc: >word", "unknown type"),
        ("mcMalloc: =three", "unknown type"), ("mcMalloc: n:word", "unknown type"),
    ],
)  # fmt: skip
def test_a_call_that_cannot_be_read_is_an_error_with_the_call(text: str, word: str) -> None:
    with pytest.raises(errors.ParseError, match=rf"(?s)mcMalloc.*{word}|{word}.*mcMalloc"):
        slots.parse(text)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"allocate": "mcMalloc: >ptr bytes"}, r"'allocate' \(mcMalloc\) has slots.*got: +bytes"),
        ({"allocate": "mcMalloc: n"}, r"'allocate' \(mcMalloc\) gives 0 values.*expected: +1,"),
        ({"alocate": "mcMalloc: >ptr n"}, "operations that there are not.*got: +alocate"),
        ({"free": ""}, "lacks calls for operations that are needed.*got: +free"),
    ],
)
def test_a_table_that_does_not_fit_fails_when_it_is_made(changes: dict[str, str], word: str) -> None:
    with pytest.raises(errors.ValueMismatchError, match=f"(?s){word}"):
        RuntimeTable(libraries=("libmcruntime.so",), calls=cuda_like("mc", **changes))


def test_directions_must_all_be_there() -> None:
    with pytest.raises(errors.ValueMismatchError, match="d2d"):
        RuntimeTable(("libmcruntime.so",), cuda_like("mc"), kinds={"h2d": 1, "d2h": 2})


def test_a_library_of_collectives_needs_its_operations() -> None:
    with pytest.raises(errors.ValueMismatchError, match=r"all_gather.*reduce_scatter"):
        CollectiveTable(("libx.so",), {"get_id": "get: &id"})


# --- libraries -------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [metax.ADAPTER, ascend.ADAPTER], ids=lambda a: a.name)
def test_without_an_sdk_the_reason_says_what_was_looked_for_and_what_to_install(
    adapter: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    for name in adapter.places.homes:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(adapter.places.homes[1], str(tmp_path))
    backend = AdapterBackend(adapter)
    reason = backend.why_unavailable()
    assert reason is not None
    for word in (
        adapter.runtime.libraries[0], str(tmp_path / adapter.places.folders[0]), adapter.places.homes[0],
        adapter.places.defaults[0], adapter.places.install,
    ):  # fmt: skip
        assert word in reason
    assert f"({adapter.places.homes[0]}, {adapter.places.homes[2]} are not set)" in reason
    assert backend.devices() == ()
    with pytest.raises(errors.DeviceError, match="has no device here"):
        _ = backend.runtime


@pytest.mark.parametrize("vendor", [metax_look, ascend_look], ids=lambda v: v.SOUGHT.name)
def test_a_look_without_an_sdk_gives_the_reason_of_the_tables(vendor: Any, monkeypatch: Any) -> None:
    for name in vendor.SOUGHT.places.homes:
        monkeypatch.delenv(name, raising=False)
    backend = AdapterBackend(vendor.SOUGHT)
    assert backend.why_unavailable() == reason_of(backend.adapter)
    assert backend.devices() == () and backend.num_devices == 0


def test_a_look_finds_what_the_tables_find(sdk: Path) -> None:
    backend = AdapterBackend(metax_look.SOUGHT)
    assert backend.num_devices == 2
    assert backend.why_no_compiler() == AdapterBackend(metax.ADAPTER).why_no_compiler()


def test_a_bare_name_that_the_loader_knows_is_found() -> None:
    here = Places((), (), (), "install it")
    assert here.why_missing(("libnothing.so", "libc.so.6")) is None
    assert "libnothing.so was not found: looked in no folder, and where" in str(
        here.why_missing(("libnothing.so",))
    )


def reason_of(adapter: Any) -> str:
    reason = AdapterBackend(adapter).why_unavailable()
    assert reason is not None
    return reason


def test_a_file_that_is_no_library_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libmcruntime.so").write_text("not a library")
    monkeypatch.setenv("MACA_PATH", str(tmp_path))
    assert "libmcruntime.so cannot be loaded: " in reason_of(metax.ADAPTER)


def test_a_library_without_a_function_is_named_with_the_function(sdk: Path) -> None:
    adapter = with_runtime(metax.ADAPTER, calls={"allocate": "mcAllocate|mcAlloc: >ptr n"})
    assert "libmcruntime.so has no mcAllocate or mcAlloc" in reason_of(adapter)


def test_a_runtime_without_devices_and_one_that_fails_are_told_apart(sdk: Path) -> None:
    none = with_runtime(metax.ADAPTER, calls={"device_count": "mcGetDevice: >i32"})
    assert "sees no device; is the driver loaded, and are devices visible?" in reason_of(none)
    failing = with_runtime(metax.ADAPTER, calls={"initialize": "mcSetDevice: =7"})
    assert "mcSetDevice failed (status 101: invalid device ordinal)" in reason_of(failing)


def test_tables_of_another_version_are_refused() -> None:
    assert "of version 9" in reason_of(dataclasses.replace(metax.ADAPTER, api_version=9))


def test_devices_without_a_compiler_are_not_offered(sdk: Path) -> None:
    backend = AdapterBackend(metax.ADAPTER)
    assert backend.num_devices == 2 and backend.devices() == ()
    assert "2 found, and no compiler for their kernels: " in str(backend.why_unavailable())
    assert "not for maca; install MetaX's Triton" in str(backend.why_unavailable())


# --- found by entry point --------------------------------------------------------------------


def test_our_adapters_are_advertised() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["infini.backends"]
    assert set(points) == {"metax", "ascend"}
    for name, value in points.items():
        module, _, function = value.partition(":")
        assert getattr(importlib.import_module(module), function)().name == name


@pytest.fixture
def installed(tmp_path: Path, sdk: Path) -> dict[str, str]:
    """An environment in which the third adapter is a package of its own, and ours are installed, too."""
    shutil.copy(third_adapter.__file__, tmp_path / "infini_cambricon.py")
    for package, points in (
        ("infini_cambricon-1.0", "cambricon = infini_cambricon:backend"),
        ("infini-0", "metax = infini.backends.vendors.metax:backend"),
    ):
        info = tmp_path / f"{package}.dist-info"
        info.mkdir()
        (info / "entry_points.txt").write_text(f"[infini.backends]\n{points}\n")
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "200"}


def python(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_an_adapter_outside_the_tree_is_found_and_passes(installed: dict[str, str]) -> None:
    done = python(installed, "-m", "infini.testing.conformance", "--backend", "cambricon", "--json")
    outcomes = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    passed = {(o["section"], o["name"]) for o in outcomes if o["status"] == "passed"}
    assert {("memory", "bytes come back"), ("collectives", "all_gather"), ("kernels", "softmax")} <= passed


def test_finding_adapters_loads_no_library_of_theirs(installed: dict[str, str]) -> None:
    code = """
from infini.core import backend
assert {"metax", "cambricon"} <= set(backend.names()), backend.names()
metax = backend.get("metax")
def is_loaded():
    return "libmcruntime" in open("/proc/self/maps").read()
assert not is_loaded()
assert metax.num_devices == 2 and is_loaded()
"""
    done = python(installed, "-W", "error", "-c", code)
    assert done.returncode == 0, done.stderr


# --- the command -----------------------------------------------------------------------------


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "160"})


def test_the_command_shows_a_table_and_counts() -> None:
    done = command("--backend", "reference", "--section", "backend", "--section", "programs")
    assert done.exit_code == 0 and "conformance of reference" in done.output
    assert "reference is no adapter" in done.output and "passed, " in done.output


def test_what_is_not_available_fails_when_that_is_asked_for() -> None:
    assert command("--backend", "reference", "--section", "memory").exit_code == 0
    assert command("--backend", "reference", "--section", "memory", "--strict").exit_code == 1


def test_unknown_backends_and_sections_are_named() -> None:
    done = command("--backend", "loom")
    assert done.exit_code == 2 and "no backend called 'loom'" in done.output
    done = command("--backend", "cpu", "--section", "looms")
    assert done.exit_code == 2 and "there is no section looms; there are backend, memory" in done.output


def test_a_failure_is_shown_and_gives_1(sdk: Path, monkeypatch: Any) -> None:
    broken = with_runtime(metax.ADAPTER, kinds={"h2d": 2, "d2h": 1, "d2d": 3})
    real = backend_.get
    monkeypatch.setattr(backend_, "get", lambda n: AdapterBackend(broken) if n == "metax" else real(n))
    done = command("--backend", "metax", "--section", "memory")
    assert done.exit_code == 1 and "mcMemcpy failed; got status 1: invalid argument" in done.output


# --- routes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["add", "dot", "sort", "gather", "cumsum", "reduce_sum", "scan"])
def test_every_family_has_a_route_where_the_processor_has_its_dtype(name: str) -> None:
    backend = AdapterBackend(ascend.ADAPTER)
    op = primitive.by_name(name)
    routes = {s.dtype.name: backend.route(s.program, op) for s in coverage.samples(op)}
    assert routes["float32"] in ("own", "kernel")
    assert routes.get("float64", "hole") == "hole"
