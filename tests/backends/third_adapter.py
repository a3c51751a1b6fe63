"""An adapter outside the tree, as a vendor would write it: Cambricon's runtime, from its facts alone."""

from __future__ import annotations

import dataclasses

from infini.backends.vendors.adapter import Adapter, AdapterBackend
from infini.backends.vendors.fork import TritonFork
from infini.backends.vendors.tables import CollectiveTable, Places, RuntimeTable
from infini.compiler.triton.target import GENERIC
from infini.core import dtypes as d

RUNTIME = RuntimeTable(
    libraries=("libcnrt.so",),
    calls={
        "device_count": "cnrtGetDeviceCount: >u32", "set_device": "cnrtSetDevice: device",
        "synchronize": "cnrtSyncDevice:", "allocate": "cnrtMalloc: >ptr n", "free": "cnrtFree: ptr",
        "copy": "cnrtMemcpy: dst src n kind", "copy_async": "cnrtMemcpyAsync_V2: dst src n stream kind",
        "stream_create": "cnrtQueueCreate: >ptr", "stream_destroy": "cnrtQueueDestroy: stream",
        "stream_synchronize": "cnrtQueueSync: stream", "stream_query": "cnrtQueueQuery: stream",
        "stream_wait_event": "cnrtQueueWaitNotifier: event stream =0:u32",
        "event_create": "cnrtNotifierCreate: >ptr", "event_destroy": "cnrtNotifierDestroy: event",
        "event_record": "cnrtPlaceNotifier: event stream", "event_query": "cnrtQueryNotifier: event",
        "event_synchronize": "cnrtWaitNotifier: event",
        "event_elapsed": "cnrtNotifierElapsedTime: start end >f32",
        "error_text": "cnrtGetErrorStr -> str: code",
    },
    kinds={"h2d": 0, "d2d": 1, "d2h": 2},
    not_ready=frozenset({1}), out_of_memory=frozenset({100100, 100010}), alignment=256,
)  # fmt: skip
COLLECTIVES = CollectiveTable(
    libraries=("libcncl.so",),
    calls={
        "get_id": "cnclGetCliqueId: &id", "destroy": "cnclFreeComm: comm",
        "init_rank": "cnclInitComms: >ptr =1 &device:i32 &rank:i32 num_ranks &id",
        "all_reduce": "cnclAllReduce: send recv n dtype op comm stream",
        "all_gather": "cnclAllGather: send recv n dtype comm stream",
        "reduce_scatter": "cnclReduceScatter: send recv n dtype op comm stream",
        "broadcast": "cnclBroadcast: send recv n dtype root comm stream",
        "error_text": "cnclGetErrorStr -> str: code",
    },
    id_bytes=136,
    dtypes={
        d.float16: 0x10, d.bfloat16: 0x11, d.float32: 0x12, d.int8: 0x20, d.int16: 0x21, d.int32: 0x22,
        d.int64: 0x23, d.uint8: 0x30, d.uint16: 0x31, d.uint32: 0x32, d.uint64: 0x33,
    },
    ops={"sum": 0, "prod": 1, "max": 2, "min": 3},
)  # fmt: skip
TARGET = dataclasses.replace(GENERIC, name="MLU", platform="mlu", binary="cnbin", max_warps=4)
PLACES = Places(("NEUWARE_HOME",), ("/usr/local/neuware",), ("lib64",), "install Cambricon's Neuware")
ADAPTER = Adapter(
    "cambricon", "Cambricon", PLACES, RUNTIME, TARGET, TritonFork("install Cambricon's Triton"),
    arch=lambda runtime, device: "mtp_592", collectives=COLLECTIVES,
)  # fmt: skip


def backend() -> AdapterBackend:
    """The backend, for the registry."""
    return AdapterBackend(ADAPTER)
