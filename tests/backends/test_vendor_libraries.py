"""Libraries of vendors: collectives by every calling convention, and several libraries of one name."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from infini import lax  # after the skip
from infini.backends.vendors import ascend_tables as ascend, metax_tables as metax
from infini.backends.vendors.adapter import AdapterBackend
from infini.core import dtypes, errors
from tests.backends import vendor_shims
from tests.backends.vendor_fixtures import (
    Device,
    ascend_device,
    failed,
    folder,
    metax_device,
    normal,
    run,
    sdk,
)

__all__ = ["ascend_device", "folder", "metax_device", "sdk"]


# --- collectives -----------------------------------------------------------------------------


def test_an_identifier_goes_by_value_with_all_of_its_bytes(metax_device: Device) -> None:
    assert failed(metax_device.conformance("collectives")) == []
    joined = metax_device.shim.calls("mcclCommInitRank 1 of 2")
    assert joined and all(line.split("id ")[1].startswith("7..") for line in joined)
    assert all(line.split("..")[2].startswith("9,") for line in joined)


@pytest.mark.parametrize("change", [lambda id_: id_[:-1], lambda id_: id_ + b"\0", lambda id_: b""])
def test_an_identifier_of_another_length_is_refused(change: Any, metax_device: Device) -> None:
    metax_device.runtime.use(0)
    library = metax_device.backend.collectives()
    with pytest.raises(errors.ValueMismatchError, match=r"(?s)MetaX's collectives.*expected: 128 bytes"):
        library.join(change(library.new_id()), 1, 0, 0)
    assert metax_device.shim.calls("mcclCommInitRank") == []


def test_broadcast_in_place_keeps_the_operand(ascend_device: Device) -> None:
    outcomes = ascend_device.conformance("collectives")
    assert [o.status for o in outcomes if o.name == "broadcast"] == ["passed"]
    assert ascend_device.shim.calls("HcclBroadcast") != []


def test_without_groups_a_ring_does_not_block(ascend_device: Device) -> None:
    assert "group_start" not in ascend_device.backend.collectives().library.functions
    outcomes = ascend_device.conformance("collectives")
    assert [o.status for o in outcomes if o.name == "send and receive"] == ["passed"]


@pytest.mark.parametrize(
    ("name", "dtype", "op"), [("cambricon", dtypes.float64, "sum"), ("ascend", dtypes.float32, "avg")]
)
def test_what_a_library_of_collectives_lacks_is_refused_with_what_it_has(
    name: str, dtype: Any, op: str, sdk: Path
) -> None:
    library = Device(name, sdk).backend.collectives()
    with pytest.raises(errors.UnsupportedError, match=r"(?s)(do not take f64.*f16|no reduction 'avg'.*sum)"):
        library.dtype_number(dtype)
        library.op_number(op)


def test_a_failing_collective_has_the_vendors_words(metax_device: Device) -> None:
    library = metax_device.backend.collectives()
    comm = library.join(library.new_id(), 1, 0, 0)
    with pytest.raises(errors.CollectiveError, match=r"mcclAllReduce failed\n.*status 4: invalid argument"):
        comm.all_reduce(1, 2, 3, dtypes.float32, "sum", 0)
    comm.destroy()


def test_other_names_of_a_function_are_tried(sdk: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Newer software exports `mxccl` where older has `mccl`."""
    library = tmp_path / "maca/lib/libmccl.so"
    shutil.copytree(sdk / "maca", tmp_path / "maca")
    names = [call.split("|")[0].split(" ")[0].split(":")[0] for call in metax.COLLECTIVES.calls.values()]
    command = ["gcc", "-shared", "-fPIC", "-o", str(library), str(vendor_shims.SOURCES / "mccl.c")]
    command += [f"-D{name}={name.replace('mccl', 'mxccl')}" for name in names]
    command.append(str(library.parent / "libmcruntime.so"))
    subprocess.run(command, check=True)
    monkeypatch.setenv("MACA_PATH", str(tmp_path / "maca"))
    device = Device("metax", tmp_path)
    assert failed(device.conformance("collectives")) == []
    assert device.backend.collectives().library.functions["all_reduce"].symbol == "mxcclAllReduce"


# --- libraries -------------------------------------------------------------------------------


def test_a_library_of_another_vendor_with_the_same_name_is_left(
    sdk: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    other = tmp_path / "lib64"
    other.mkdir()
    source = tmp_path / "other.c"
    source.write_text("int hcclGetUniqueId(void *id) { return 0; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(other / "libhccl.so"), str(source)], check=True)
    adapter = dataclasses.replace(
        ascend.ADAPTER,
        places=dataclasses.replace(ascend.ADAPTER.places, homes=("OTHER_HOME", "ASCEND_HOME_PATH")),
    )
    monkeypatch.setenv("OTHER_HOME", str(tmp_path))
    found = AdapterBackend(adapter).collectives()
    assert found.library.path == str(sdk / "cann/lib64/libhccl.so")
    monkeypatch.setenv("ASCEND_HOME_PATH", "")
    alone = dataclasses.replace(ascend.COLLECTIVES, libraries=(str(other / "libhccl.so"),))
    runtime = dataclasses.replace(ascend.RUNTIME, libraries=(str(sdk / "cann/lib64/libascendcl.so"),))
    with pytest.raises(errors.DeviceError, match=r"libhccl.so has no HcclGetRootInfo, HcclComm"):
        AdapterBackend(dataclasses.replace(adapter, collectives=alone, runtime=runtime)).collectives()


def test_adapters_of_two_vendors_work_side_by_side(metax_device: Device, ascend_device: Device) -> None:
    for device in (metax_device, ascend_device, metax_device):
        run(device, lambda x: lax.mul(lax.exp(x), 2.0), normal(40))
    assert ascend_device.shim.calls("mc") == [] and metax_device.shim.calls("acl") == []
