"""Adapters of vendors against stand-ins for their libraries: each passes the conformance suite, and each trap
of the vendors' interfaces has a case.

Nothing here has touched a vendor's device. The stand-ins find addresses of the host where those of the device
belong, and delay the work of streams until somebody waits.
"""

from __future__ import annotations

import ctypes
import dataclasses
import inspect
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

from infini import lax  # after the skip
from infini.backends.vendors import ascend_tables as ascend, metax_tables as metax
from infini.backends.vendors.adapter import AdapterBackend
from infini.backends.vendors.comm import Collectives
from infini.core import dtypes, errors
from infini.core.ir import ArrayType
from infini.testing.conformance import collectives, streams
from tests.backends import third_adapter, vendor_shims
from tests.backends.vendor_fixtures import (
    ADAPTERS,
    KUNLUN,
    Device,
    ascend_device,
    failed,
    folder,
    metax_device,
    normal,
    run,
    sdk,
    with_runtime,
)

__all__ = ["ascend_device", "folder", "metax_device", "sdk"]


# --- conformance -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ADAPTERS, "kunlun"])
def test_an_adapter_passes_conformance(name: str, sdk: Path) -> None:
    changes = {"adapter": KUNLUN} if name == "kunlun" else {}
    device = Device(name, sdk, **changes)
    outcomes = device.conformance()
    assert failed(outcomes) == []
    passed = {o.section for o in outcomes if o.status == "passed"}
    assert {"backend", "memory", "streams", "events", "kernels"} <= passed
    assert ("programs" in passed) == (name in ("metax", "ascend"))
    assert ("collectives" in passed) == (name != "kunlun")
    assert device.compiler.faults == [] and device.shim.library.shim_num_events() == 0


def test_the_third_adapter_is_short() -> None:
    assert len(inspect.getsource(third_adapter).splitlines()) < 60


def test_conformance_gives_everything_back(metax_device: Device) -> None:
    def held() -> tuple[int, int]:
        library = metax_device.shim.library
        return library.shim_num_blocks(), library.shim_num_streams()

    sections = ("memory", "streams", "events", "collectives")
    metax_device.conformance(*sections)  # the driver of a device keeps its stream and a pool
    before = held()
    assert failed(metax_device.conformance(*sections)) == []
    assert held() == before


# --- the table is wrong: conformance finds it ------------------------------------------------


@pytest.fixture
def no_patience(monkeypatch: Any) -> None:
    monkeypatch.setattr(streams, "PATIENCE_S", 0.2)
    monkeypatch.setattr(collectives, "GRACE_S", 0.1)


@pytest.mark.usefixtures("no_patience")
@pytest.mark.parametrize(
    ("name", "changes", "section"),
    [
        pytest.param("metax", {"kinds": {"h2d": 2, "d2h": 1, "d2d": 3}}, "memory", id="exchanged"),
        pytest.param("cambricon", {"kinds": {"h2d": 1, "d2h": 2, "d2d": 3}}, "memory", id="CUDA's"),
        pytest.param(
            "cambricon",
            {"calls": {"copy_async": "cnrtMemcpyAsync_V2: dst src n kind stream"}},
            "streams",
            id="queue after direction",
        ),
        pytest.param(
            "cambricon",
            {"calls": {"event_elapsed": "cnrtNotifierElapsedTime: >f32 start end"}},
            "events",
            id="time first",
        ),
        pytest.param(
            "cambricon",
            {"calls": {"stream_wait_event": "cnrtQueueWaitNotifier: stream event =0:u32"}},
            "events",
            id="queue before notifier",
        ),
        pytest.param(
            "ascend",
            {"calls": {"copy": "aclrtMemcpy: dst =1:size src n kind"}},
            "memory",
            id="little room",
        ),
        pytest.param("ascend", {"event_complete": 0}, "events", id="answers about events reversed"),
        pytest.param("ascend", {"stream_complete": 1}, "streams", id="answers about streams reversed"),
        pytest.param("ascend", {"out_of_memory": frozenset()}, "memory", id="unknown end of memory"),
        pytest.param("metax", {"not_ready": frozenset()}, "streams", id="unknown answer not yet"),
        pytest.param("metax", {"calls": {"fill": "mcMemsetAsync: ptr n value stream"}}, "memory", id="fill"),
        pytest.param(
            "metax", {"calls": {"allocate_host": "mcMallocHost: >ptr n =4:u32"}}, "memory", id="flags"
        ),
        pytest.param(
            "ascend", {"calls": {"allocate": "aclrtMalloc: >ptr n =9"}}, "memory", id="unknown policy"
        ),
    ],
)
def test_a_wrong_table_fails(name: str, changes: dict[str, Any], section: str, sdk: Path) -> None:
    device = Device(name, sdk)
    device.backend = AdapterBackend(with_runtime(device.backend.adapter, **changes))
    assert failed(device.conformance(section)) != []


@pytest.mark.usefixtures("no_patience")
def test_wrong_numbers_of_dtypes_fail(sdk: Path) -> None:
    wrong = dataclasses.replace(ascend.COLLECTIVES, dtypes={dtypes.float32: 7, dtypes.int32: 2})
    assert failed(Device("ascend", sdk, collectives=wrong).conformance("collectives")) != []


def test_exchanged_reductions_fail(sdk: Path) -> None:
    wrong = dataclasses.replace(metax.COLLECTIVES, ops={"sum": 0, "max": 3, "min": 2})
    assert failed(Device("metax", sdk, collectives=wrong).conformance("collectives")) != []


# --- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ADAPTERS))
@pytest.mark.parametrize("kind", ["h2d", "d2h", "d2d"])
def test_an_address_of_the_host_for_one_of_the_device_is_refused(name: str, kind: str, sdk: Path) -> None:
    device = Device(name, sdk)
    runtime, host = device.runtime, np.zeros(64, np.uint8)
    block = runtime.allocate(64)
    ends = {"h2d": (host.ctypes.data, host.ctypes.data), "d2h": (block, block)}
    target, source = ends.get(kind, (host.ctypes.data, block))
    with pytest.raises(errors.DeviceError):
        runtime.copy(target, source, 64, kind)
    runtime.free(block)


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_an_unknown_direction_has_the_vendors_words(name: str, sdk: Path) -> None:
    device = Device(name, sdk)
    kinds = {"h2d": 9, "d2h": 9, "d2d": 9}
    device.backend = AdapterBackend(with_runtime(device.backend.adapter, kinds=kinds))
    runtime, host = device.runtime, np.zeros(64, np.uint8)
    block = runtime.allocate(64)
    words = {"metax": "invalid copy direction", "ascend": "kind is not valid", "cambricon": "bad direction"}
    with pytest.raises(errors.DeviceError, match=words[name]):
        runtime.copy(block, host.ctypes.data, 64, "h2d")


def test_copies_say_how_much_room_there_is(ascend_device: Device) -> None:
    runtime, host = ascend_device.runtime, np.zeros(48, np.uint8)
    block = runtime.allocate(100)
    ascend_device.shim.reset()
    runtime.copy(block, host.ctypes.data, 48, "h2d")
    assert ascend_device.shim.calls("aclrtMemcpy") == ["aclrtMemcpy 48 of 48 kind 1"]
    assert ascend_device.shim.calls("aclrtMalloc") == []


def test_nothing_is_never_asked_for(ascend_device: Device) -> None:
    driver = ascend_device.backend.driver(0)
    ascend_device.shim.reset()
    assert driver.allocate(0).address == 0
    driver.fill(0, np.zeros((0, 4), np.float32))
    driver.move(0, 0, 0)
    assert ascend_device.shim.calls("aclrtM") == []


def test_memory_given_back_is_used_again_and_released_when_it_is_short(metax_device: Device) -> None:
    driver = metax_device.backend.driver(0)
    first = driver.allocate(1 << 20)
    address = first.address
    del first
    assert driver.allocate(1 << 20).address == address
    metax_device.shim.reset()
    kept = driver.memory_stats()["bytes_kept"]
    free = driver.memory_stats()["bytes_free"]
    large = driver.allocate(free + kept - (1 << 20))  # fits only without what is kept
    assert large.address != 0 and metax_device.shim.calls("mcFree") != []
    with pytest.raises(errors.OutOfMemoryError, match="mcMalloc found no memory"):
        driver.allocate(1 << 40)


def test_peak_of_memory_is_counted(metax_device: Device) -> None:
    driver = metax_device.backend.driver(0)
    one, two = driver.allocate(1000), driver.allocate(1000)
    del one
    stats = driver.memory_stats()
    assert (stats["bytes_in_use"], stats["peak_bytes_in_use"], stats["bytes_kept"]) == (1024, 2048, 1024)
    del two


# --- processes, threads and devices ----------------------------------------------------------


def test_a_process_that_was_initialised_by_others_is_accepted(ascend_device: Device) -> None:
    library = ctypes.CDLL(str(ascend_device.backend.runtime.library.path))
    library.aclInit(None)
    assert library.aclInit(None) == 100002
    assert AdapterBackend(ascend.ADAPTER).why_no_runtime() is None


def test_every_thread_sets_the_device_before_anything_else(ascend_device: Device) -> None:
    runtime = ascend_device.runtime
    library = ctypes.CDLL(str(runtime.library.path))
    codes, pointer = [], ctypes.c_void_p()

    def work() -> None:
        codes.append(library.aclrtMalloc(ctypes.byref(pointer), ctypes.c_size_t(8), 0))
        ascend_device.backend.driver(1).allocate(8)
        codes.append(library.aclrtMalloc(ctypes.byref(pointer), ctypes.c_size_t(8), 0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert codes == [107002, 0] and "aclrtSetDevice 1" in ascend_device.shim.calls("aclrtSetDevice")


@pytest.mark.parametrize("name", ["metax", "ascend"])
def test_a_device_that_another_library_makes_current_is_put_right(name: str, sdk: Path) -> None:
    device = Device(name, sdk)
    others = ctypes.CDLL(str(device.backend.runtime.library.path))
    set_device = others.mcSetDevice if name == "metax" else others.aclrtSetDevice
    driver = device.backend.driver(0)
    buffer = driver.upload(np.arange(4))
    set_device(1)
    assert driver.download(buffer, ArrayType((4,), dtypes.int64)).tolist() == [0, 1, 2, 3]
    set_device(0)


def test_two_devices_compute_on_their_own_memory(metax_device: Device) -> None:
    for at in (1, 0):
        run(metax_device, lambda x, y: lax.add(lax.sin(x), y), normal(5, 40), normal(5, 40), at=at)


def test_visible_devices_are_read_when_the_library_is_loaded(
    sdk: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    shutil.copytree(sdk / "maca", tmp_path / "maca")  # one that no process has loaded
    monkeypatch.setenv("MACA_PATH", str(tmp_path / "maca"))
    backend = AdapterBackend(metax.ADAPTER)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert backend.why_no_runtime() is None
    shim = vendor_shims.Shim.__new__(vendor_shims.Shim)
    shim.library = ctypes.CDLL(str(tmp_path / "maca/lib/libmcruntime.so"))
    shim.library.shim_log.restype = ctypes.c_char_p
    assert shim.calls("loaded") == ["loaded CUDA_VISIBLE_DEVICES=1,0"]


def test_a_library_of_another_vendor_under_the_same_name_is_refused(
    sdk: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    shutil.copytree(sdk / "maca", tmp_path / "maca")
    library = tmp_path / "maca/lib/libmccl.so"
    source = str(vendor_shims.SOURCES / "mccl.c")
    subprocess.run(
        ["gcc", "-std=gnu11", "-shared", "-fPIC", "-pthread", "-DmcclCommMcDevice=mcclCommMuDevice",
         "-o", str(library), source, str(library.with_name("libmcruntime.so"))],
        check=True,
    )  # fmt: skip
    monkeypatch.setenv("MACA_PATH", str(tmp_path / "maca"))
    runtime: Any = None  # nothing is called
    found, reason = Collectives.load(runtime, metax.COLLECTIVES, metax.ADAPTER.places)
    assert found is None and reason is not None and "has no mcclCommMcDevice" in reason


# --- errors ----------------------------------------------------------------------------------


def test_a_vendor_without_words_for_its_last_error_gives_the_code(ascend_device: Device) -> None:
    runtime = ascend_device.runtime
    with pytest.raises(errors.DeviceError, match=r"(?s)rtFunctionRegister failed.*status 107000\n"):
        runtime.call(
            "own register_function", module=ctypes.addressof(ctypes.create_string_buffer(b"nothing")),
            stub=1, stub_name=b"a", name=b"a",
        )  # fmt: skip


def test_negative_errors_have_words_from_the_table(sdk: Path) -> None:
    device = Device("kunlun", sdk, adapter=KUNLUN)
    runtime = device.runtime
    assert not runtime.has("error_text")  # the library has no such function, and is loaded all the same
    device.shim.library.shim_set_limit(100)
    with pytest.raises(errors.OutOfMemoryError, match="status -705: no memory"):
        runtime.allocate(1000)
    with pytest.raises(errors.DeviceError, match="status -707: invalid parameter"):
        runtime.free(12345)
    assert device.shim.calls("xpu_malloc") == ["xpu_malloc kind 0"]


def test_what_a_runtime_lacks_is_done_on_the_host_or_refused_by_name(sdk: Path) -> None:
    runtime = Device("kunlun", sdk, adapter=KUNLUN).runtime
    assert runtime.memory_info() is None and runtime.attribute("processors", 0) is None
    assert not runtime.has_device_clock and runtime.name(0) == "Kunlun 0"
    with pytest.raises(errors.UnsupportedError, match="no operation 'launch'"):
        runtime.call("launch")


def test_a_kernel_that_fails_is_an_error_of_the_stream(metax_device: Device) -> None:
    driver = metax_device.backend.driver(0)
    metax_device.shim.library.shim_set_launcher(None)  # nothing can be computed now
    with pytest.raises(errors.DeviceError, match="an illegal memory access"):
        run(metax_device, lax.sin, normal(8))
    driver.synchronize()
