"""MetaX's GPUs (MACA): CUDA's functions under the prefix `mc`, with a few that differ.

What is not public, or follows from the order of declarations alone, is data here and nothing depends on it
but the facts that are shown: the numbers of attributes. None of this has run on hardware yet.
"""

from __future__ import annotations

import dataclasses

from infini.backends.vendors.adapter import Adapter
from infini.backends.vendors.fork import TritonFork
from infini.backends.vendors.metax import SOUGHT
from infini.backends.vendors.runtime import Runtime
from infini.backends.vendors.tables import (
    NCCL_DTYPES,
    NCCL_OPS,
    CollectiveTable,
    GemmTable,
    RuntimeTable,
    cuda_like,
    nccl_like,
)
from infini.compiler.triton.target import GENERIC

RUNTIME = RuntimeTable(
    libraries=SOUGHT.libraries,
    calls=cuda_like(
        "mc",
        allocate_host="mcMallocHost: >ptr n =0:u32",  # CUDA's has no flags
        name="mcDeviceGetName: >text =256 device",
        module_load="mcModuleLoadData: >ptr image:str",
        module_function="mcModuleGetFunction: >ptr module name",
        launch="mcModuleLaunchKernel: function grid_x grid_y grid_z block_x block_y block_z shared stream "
        "arguments =null",
    ),
    out_of_memory=frozenset({2}),
    not_ready=frozenset({600}),
    attributes={"threads": 0, "processors": 16, "major": 21, "minor": 22},
    alignment=256,
)

COLLECTIVES = CollectiveTable(
    # Moore Threads has a library of this name, too; the functions are in MetaX's folder.
    libraries=("libmccl.so",),
    proof=("mcclCommMcDevice", "mxcclCommMcDevice"),
    calls=nccl_like("mccl", also="mxccl"),
    id_bytes=128,
    dtypes=NCCL_DTYPES,
    ops=NCCL_OPS,
)

GEMM = GemmTable(
    name="mcblas",
    libraries=("libmcblas.so",),
    calls={
        "create": "mcblasCreate: >ptr",
        "set_stream": "mcblasSetStream: handle stream",
        "gemm": "mcblasGemmStridedBatchedEx: handle transpose_a:i32 transpose_b:i32 m:i32 n:i32 k:i32 alpha "
        "a a_type:i32 lda:i32 a_stride:i64 b b_type:i32 ldb:i32 b_stride:i64 beta "
        "c c_type:i32 ldc:i32 c_stride:i64 count:i32 compute:i32 =-1",
    },
)

TARGET = dataclasses.replace(
    GENERIC,
    name="MetaX",
    platform="maca",
    binary="mcfatbin",
    warp_size=64,
    shared_bytes=64 << 10,
    max_warps=8,  # 512 threads
)


def arch(runtime: Runtime, device: int) -> int:
    """Capability times ten, as CUDA counts it."""
    major, minor = (runtime.attribute(name, device) or 0 for name in ("major", "minor"))
    return major * 10 + minor


ADAPTER = Adapter(
    name=SOUGHT.name,
    vendor=SOUGHT.vendor,
    places=SOUGHT.places,
    runtime=RUNTIME,
    target=TARGET,
    compiler=TritonFork(
        install="install MetaX's Triton (mcTriton) instead of the one of PyPI",
    ),
    arch=arch,
    collectives=COLLECTIVES,
    gemm=GEMM,
)
