"""Huawei's Ascend NPUs (CANN): not CUDA's shape. The process initialises once, every thread sets a device
before anything else, copies say how much room there is, queries answer by a number, and errors are words
about the thread's last call.

Kernels of triton-ascend are loaded and launched by the runtime's lower layer: a binary is registered, a
function is a name of ours, and the arguments are one packed structure. None of this has run on hardware yet.
"""

from __future__ import annotations

import ctypes
import itertools
from typing import Any, Final

from infini.backends.vendors.adapter import Adapter
from infini.backends.vendors.ascend import SOUGHT
from infini.backends.vendors.fork import TritonFork
from infini.backends.vendors.runtime import Runtime
from infini.backends.vendors.tables import (
    CollectiveTable,
    Kernel,
    Packed,
    RuntimeTable,
)
from infini.compiler.triton.target import Target
from infini.core import dtypes, errors

# What kind of cores a binary is for.
_MAGIC_VECTOR: Final = 0x41415246
_MAGIC_MIXED: Final = 0x43554245
# Chips whose kernels get an address by which their cores wait for each other.
_SYNCHRONISED: Final = ("Ascend910B", "Ascend910_93")


class _Binary(ctypes.Structure):
    """What the runtime registers: a kind of cores, a version, and the bytes."""

    _fields_ = (
        ("magic", ctypes.c_uint32),
        ("version", ctypes.c_uint32),
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_uint64),
    )


# Names of functions live as long as the process: their addresses are the functions for the runtime.
_NAMES: list[Any] = []  # Any: buffers of ctypes
_NUMBERS = itertools.count()


def load(runtime: Runtime, kernel: Kernel) -> int:
    """Register a binary, and a function of it under an address of ours.

    Raises:
        LoweringError: the kernel needs locks between its cores, which are not set up here.
    """
    if int(kernel.facts.get("lock_num") or 0) > 0:
        raise errors.LoweringError(
            f"the kernel {kernel.name} needs locks between cores, which are not set up here",
            got=f"{kernel.facts['lock_num']} locks",
            fix="report the kernel; INFINI_DUMP=triton prints it",
        )
    is_vector = kernel.facts.get("mix_mode", "aiv") == "aiv"
    code = ctypes.create_string_buffer(kernel.code, len(kernel.code))
    magic = _MAGIC_VECTOR if is_vector else _MAGIC_MIXED
    binary = _Binary(magic, 0, ctypes.addressof(code), len(kernel.code))
    (module,) = runtime.call("own register_binary", binary=binary)
    # Two binaries may have functions of one name; ours are different.
    stub = ctypes.create_string_buffer(f"{kernel.name}_{next(_NUMBERS)}".encode())
    _NAMES.extend((stub, code))
    runtime.call(
        "own register_function", module=module, stub=ctypes.addressof(stub),
        stub_name=stub.value, name=kernel.name.encode(),
    )  # fmt: skip
    return ctypes.addressof(stub)


def pack(
    runtime: Runtime,
    kernel: Kernel,
    arguments: tuple[bytes, ...],
    scratch: int,
    grid: tuple[int, int, int],
) -> Packed:
    """One structure: the address of the cores' synchronisation where there is one, locks, workspace, the
    arguments, and the grid.
    """
    values = []
    (chip,) = runtime.call("name")
    if chip.decode().startswith(_SYNCHRONISED):
        address, _ = runtime.call("own synchronisation_address")
        values.append(int(address).to_bytes(8, "little"))
    values += [(0).to_bytes(8, "little"), scratch.to_bytes(8, "little")]
    for kind, value in zip(kernel.parameters, arguments, strict=True):
        is_wide = kind.startswith("*") or len(value) == 8
        values.append(value if is_wide else value.ljust(4, b"\0"))
    values += [n.to_bytes(4, "little") for n in grid]
    content = bytearray()
    for value in values:
        content += bytes(-len(content) % len(value)) + value
    owner = (ctypes.c_char * len(content)).from_buffer(content)
    return Packed(ctypes.addressof(owner), len(content), (owner, content))


RUNTIME = RuntimeTable(
    libraries=SOUGHT.libraries,
    calls={
        "initialize": "aclInit: =null",
        "device_count": "aclrtGetDeviceCount: >u32",
        "set_device": "aclrtSetDevice: device",
        "current_device": "aclrtGetDevice: >i32",
        "synchronize": "aclrtSynchronizeDevice:",
        "allocate": "aclrtMalloc: >ptr n =0",  # large pages first
        "free": "aclrtFree: ptr",
        "copy": "aclrtMemcpy: dst n src n kind",
        "copy_async": "aclrtMemcpyAsync: dst n src n kind stream",
        "fill": "aclrtMemsetAsync: ptr n value n stream",
        "memory_info": "aclrtGetMemInfo: =1 >size >size",  # of the device's high-bandwidth memory
        "allocate_host": "aclrtMallocHost: >ptr n",
        "free_host": "aclrtFreeHost: ptr",
        "stream_create": "aclrtCreateStream: >ptr",
        "stream_destroy": "aclrtDestroyStream: stream",
        "stream_synchronize": "aclrtSynchronizeStream: stream",
        "stream_query": "aclrtStreamQuery: stream >i32",
        "stream_wait_event": "aclrtStreamWaitEvent: stream event",
        "event_create": "aclrtCreateEvent: >ptr",
        "event_destroy": "aclrtDestroyEvent: event",
        "event_record": "aclrtRecordEvent: event stream",
        "event_query": "aclrtQueryEventStatus: event >i32",
        "event_synchronize": "aclrtSynchronizeEvent: event",
        "event_elapsed": "aclrtEventElapsedTime: >f32 start end",
        "error_text": "aclGetRecentErrMsg -> str:",
        "attribute": "aclrtGetDeviceInfo: device:u32 attribute >i64",
        "name": "aclrtGetSocName -> str:",
        "launch": "rtKernelLaunch: function blocks arguments size:u32 =null stream",
        "own register_binary": "rtDevBinaryRegister: &binary >ptr",
        "own register_function": "rtFunctionRegister: module stub stub_name:str name =0:u32",
        "own synchronisation_address": "rtGetC2cCtrlAddr: >u64 >u32",
    },
    ok={"initialize": frozenset({0, 100002})},  # another library of the process has done it
    out_of_memory=frozenset({200000, 207001, 207018}),
    error_texts={107002: "no device is set in this thread", 507015: "an AI core raised an exception"},
    stream_complete=0,
    event_complete=1,
    attributes={"processors": 101},
    pack=pack,
    load=load,
)

COLLECTIVES = CollectiveTable(
    # MetaX's older software has a library of this name, too.
    libraries=("libhccl.so",),
    calls={
        "get_id": "HcclGetRootInfo: &id",
        "init_rank": "HcclCommInitRootInfo: num_ranks:u32 &id rank:u32 >ptr",
        "destroy": "HcclCommDestroy: comm",
        "all_reduce": "HcclAllReduce: send recv n:u64 dtype op comm stream",
        "all_gather": "HcclAllGather: send recv n:u64 dtype comm stream",
        "reduce_scatter": "HcclReduceScatter: send recv n:u64 dtype op comm stream",
        "broadcast": "HcclBroadcast: recv n:u64 dtype root:u32 comm stream",  # in place
        "send": "HcclSend: send n:u64 dtype peer:u32 comm stream",
        "recv": "HcclRecv: recv n:u64 dtype peer:u32 comm stream",
        "group_start": "HcclGroupStart:",  # newer versions alone
        "group_end": "HcclGroupEnd:",
        "error_text": "HcclGetErrorString -> str: code",
    },
    id_bytes=4108,
    dtypes={
        dtypes.int8: 0, dtypes.int16: 1, dtypes.int32: 2, dtypes.float16: 3, dtypes.float32: 4,
        dtypes.int64: 5, dtypes.uint64: 6, dtypes.uint8: 7, dtypes.uint16: 8, dtypes.uint32: 9,
        dtypes.float64: 10, dtypes.bfloat16: 11,
    },
    ops={"sum": 0, "prod": 1, "max": 2, "min": 3},
)  # fmt: skip

# A program is one core's work, whatever its warps; larger grids than a launch can hold become loops. A core's
# memory has room for a few tiles of this size.
TARGET = Target(
    name="Ascend",
    platform="npu",
    arch="",
    binary="npubin",
    warp_size=0,
    shared_bytes=192 << 10,
    capabilities=frozenset({"int64", "bfloat16", "dot", "atomic_cas"}),
    grid=(65535, 1, 1),
    max_tile=1 << 12,
)


def arch(runtime: Runtime, device: int) -> str:
    """Name of the chip, such as Ascend910B3."""
    return runtime.name(device)


ADAPTER = Adapter(
    name=SOUGHT.name,
    vendor=SOUGHT.vendor,
    places=SOUGHT.places,
    runtime=RUNTIME,
    target=TARGET,
    compiler=TritonFork(
        install="pip install triton-ascend instead of triton",
        scratch="workspace_size",
        facts=("mix_mode", "lock_num"),
    ),
    arch=arch,
    collectives=COLLECTIVES,
)
