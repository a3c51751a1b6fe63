"""Launches and products of vendors: what arrives at a stand-in, and what it computes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

from infini import lax  # after the skip
from infini.backends.vendors import ascend_tables as ascend
from infini.core import errors
from tests.backends import vendor_shims
from tests.backends.vendor_fixtures import (
    ADAPTERS,
    Device,
    ascend_device,
    folder,
    metax_device,
    normal,
    run,
    sdk,
)
from tests.backends.vendor_shims import FakeCompiler

__all__ = ["ascend_device", "folder", "metax_device", "sdk"]


# --- kernels ---------------------------------------------------------------------------------


def test_a_launch_of_metax(metax_device: Device) -> None:
    run(metax_device, lambda x, y: lax.add(lax.sin(x), y), normal(6, 50), normal(6, 50))
    (line,) = metax_device.shim.calls("mcModuleLaunchKernel")
    ((_, grid, threads),) = metax_device.compiler.launches
    assert f"block {threads},1,1" in line and threads % 64 == 0 and grid[1:] == (1, 1)
    (target,) = metax_device.compiler.asked
    assert (target.platform, target.arch, target.warp_size, target.binary) == ("maca", 100, 64, "mcfatbin")


def test_a_launch_of_ascend(ascend_device: Device) -> None:
    run(ascend_device, lambda x, y: lax.add(lax.sin(x), y), normal(6, 50), normal(6, 50))
    registered = ascend_device.shim.calls("rtDevBinaryRegister")[-1]
    assert "magic 41415246" in registered  # for the vector cores
    assert len(ascend_device.shim.calls("rtKernelLaunch")) == 1
    (target,) = ascend_device.compiler.asked
    assert (target.platform, target.arch, target.warp_size) == ("npu", "Ascend910B3", 0)


@pytest.mark.parametrize("num_hidden", [1, 2])
def test_pointers_that_newer_versions_of_triton_add(num_hidden: int, sdk: Path) -> None:
    compiler = FakeCompiler(num_hidden=num_hidden, scratch_bytes=64)
    device = Device("metax", sdk, compiler=compiler)
    device.shim = vendor_shims.Shim(sdk / "maca/lib/libmcruntime.so", compiler)
    run(device, lax.sin, normal(40))
    assert compiler.faults == [] and len(compiler.launches) == 1


def test_workspace_and_mixed_cores_of_ascend(sdk: Path) -> None:
    compiler = FakeCompiler(is_packed=True, facts={"mix_mode": "mix"}, scratch_bytes=256)
    device = Device("ascend", sdk, compiler=compiler)
    device.shim = vendor_shims.Shim(sdk / "cann/lib64/libascendcl.so", compiler)
    run(device, lax.sin, normal(40))
    assert compiler.faults == []
    assert "magic 43554245" in device.shim.calls("rtDevBinaryRegister")[-1]


def test_a_kernel_with_locks_is_refused(sdk: Path) -> None:
    device = Device("ascend", sdk, compiler=FakeCompiler(is_packed=True, facts={"lock_num": 3}))
    with pytest.raises(errors.LoweringError, match="needs locks between cores"):
        run(device, lax.sin, normal(4))


def test_a_large_grid_becomes_loops(sdk: Path) -> None:
    target = dataclasses.replace(ascend.TARGET, grid=(3, 1, 1))
    device = Device("ascend", sdk, target=target)
    run(device, lambda x, y: lax.dot(lax.sin(x), y), normal(70, 20), normal(20, 130))
    run(device, lambda x: lax.sort(lax.mul(x, 2.0)), normal(9, 30))
    assert device.compiler.faults == []
    blocks = [int(line.split()[2]) for line in device.shim.calls("rtKernelLaunch")]
    assert blocks and max(blocks) == 3


def test_doubles_are_refused_when_a_program_is_compiled(ascend_device: Device) -> None:
    with pytest.raises(errors.LoweringError, match=r"(?s)float64.*Ascend.*compute in float32"):
        run(ascend_device, lax.sin, normal(4, dtype=np.float64))


@pytest.mark.parametrize("name", ["metax", "ascend"])
def test_without_the_vendors_triton_the_error_says_what_to_install(name: str, sdk: Path) -> None:
    device = Device(name, sdk, compiler=ADAPTERS[name].compiler)
    with pytest.raises(errors.LoweringError, match=r"(?s)for .*nvidia.*not for (maca|npu); .*install"):
        run(device, lax.sin, normal(4))


# --- products --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=str)
@pytest.mark.parametrize(
    "program",
    [
        pytest.param(lambda x, y: lax.dot(x, y), id="plain"),
        pytest.param(
            lambda x, y: lax.dot_general(x, lax.transpose(y, (1, 0)), (((1,), (1,)), ((), ()))),
            id="transposed",
        ),
    ],
)
def test_products_by_the_vendors_library(program: Any, dtype: Any, metax_device: Device) -> None:
    x, y = (np.random.default_rng(0).integers(-3, 4, s).astype(dtype) for s in ((5, 7), (7, 11)))
    run(metax_device, program, x, y)
    assert len(metax_device.shim.calls("mcblasGemmStridedBatchedEx")) == 1


def test_batched_products_by_the_vendors_library(metax_device: Device) -> None:
    spec = (((2,), (1,)), ((0,), (0,)))
    run(metax_device, lambda x, y: lax.dot_general(x, y, spec), normal(3, 4, 5), normal(3, 5, 6))
    assert len(metax_device.shim.calls("mcblasGemmStridedBatchedEx")) == 1


def test_products_without_a_library_are_kernels(sdk: Path) -> None:
    device = Device("metax", sdk, gemm=None)
    run(device, lax.dot, normal(20, 30), normal(30, 10))
    assert device.shim.calls("mcblas") == [] and len(device.compiler.launches) == 1
    assert device.backend.driver(0).gemm_library is None


def test_ways_of_a_product_are_measured_by_events(metax_device: Device) -> None:
    driver = metax_device.backend.driver(0)
    ran = []
    measure = driver.beside().timer(lambda: ran.append(1), repeats=3)
    assert measure() > 0 and len(ran) == 3 and metax_device.shim.library.shim_num_events() == 0
