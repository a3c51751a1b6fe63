"""The tables of a vendor: where its libraries are, how each operation is called, and what its numbers mean.

Tables are checked when they are made, so a mistake shows on import and not on a device. Nothing here loads a
library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np

from infini.backends.vendors import slots
from infini.backends.vendors.places import Places as Places  # tables name it beside them
from infini.compiler.triton.source import TritonSource
from infini.compiler.triton.target import Target
from infini.core import dtypes, errors

COPY_KINDS: Final = ("h2d", "d2h", "d2d")


@dataclass(frozen=True, slots=True)
class Operation:
    """What a table may say how to call.

    Args:
        arguments: logical arguments, by the names of their slots.
        num_results: how many values it may give.
        is_required: whether a runtime without it cannot be used.
    """

    arguments: tuple[str, ...] = ()
    num_results: tuple[int, ...] = (0,)
    is_required: bool = False


# Those that are not required have a default on the host, or switch off what needs them.
RUNTIME_OPERATIONS: Final[dict[str, Operation]] = {
    "initialize": Operation(),
    "device_count": Operation((), (1,), True),
    "set_device": Operation(("device",), (0,), True),
    "current_device": Operation((), (1,)),
    "synchronize": Operation(),
    "allocate": Operation(("n",), (1,), True),
    "free": Operation(("ptr",), (0,), True),
    "copy": Operation(("dst", "src", "n", "kind"), (0,), True),
    "copy_async": Operation(("dst", "src", "n", "kind", "stream"), (0,), True),
    "fill": Operation(("ptr", "value", "n", "stream")),
    "memory_info": Operation((), (2,)),  # free, then total
    "allocate_host": Operation(("n",), (1,)),
    "free_host": Operation(("ptr",)),
    "stream_create": Operation((), (1,), True),
    "stream_destroy": Operation(("stream",), (0,), True),
    "stream_synchronize": Operation(("stream",), (0,), True),
    "stream_query": Operation(("stream",), (0, 1)),
    "stream_wait_event": Operation(("stream", "event")),
    "event_create": Operation((), (1,)),
    "event_destroy": Operation(("event",)),
    "event_record": Operation(("event", "stream")),
    "event_query": Operation(("event",), (0, 1)),
    "event_synchronize": Operation(("event",)),
    "event_elapsed": Operation(("start", "end"), (1,)),  # milliseconds
    "error_text": Operation(("code",), (1,)),
    "attribute": Operation(("attribute", "device"), (1,)),
    "name": Operation(("device",), (1,)),
    "module_load": Operation(("image", "n"), (1,)),
    "module_function": Operation(("module", "name"), (1,)),
    "launch": Operation(
        ("function", "grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "blocks", "shared",
         "stream", "arguments", "size")
    ),
}  # fmt: skip

# A runtime has all of these, or events are times of the host.
EVENTS: Final = ("event_create", "event_destroy", "event_record", "event_synchronize", "event_elapsed")

COLLECTIVE_OPERATIONS: Final[dict[str, Operation]] = {
    "get_id": Operation(("id",), (0,), True),
    "init_rank": Operation(("num_ranks", "id", "rank", "device"), (1,), True),
    "destroy": Operation(("comm",), (0,), True),
    "all_reduce": Operation(("send", "recv", "n", "dtype", "op", "comm", "stream"), (0,), True),
    "all_gather": Operation(("send", "recv", "n", "dtype", "comm", "stream"), (0,), True),
    "reduce_scatter": Operation(("send", "recv", "n", "dtype", "op", "comm", "stream"), (0,), True),
    "broadcast": Operation(("send", "recv", "n", "dtype", "root", "comm", "stream"), (0,), True),
    "send": Operation(("send", "n", "dtype", "peer", "comm", "stream")),
    "recv": Operation(("recv", "n", "dtype", "peer", "comm", "stream")),
    "group_start": Operation(),
    "group_end": Operation(),
    "error_text": Operation(("code",), (1,)),
}

GEMM_OPERATIONS: Final[dict[str, Operation]] = {
    "create": Operation((), (1,), True),
    "set_stream": Operation(("handle", "stream"), (0,), True),
    "gemm": Operation(
        ("handle", "transpose_a", "transpose_b", "m", "n", "k", "alpha", "a", "a_type", "lda", "a_stride",
         "b", "b_type", "ldb", "b_stride", "beta", "c", "c_type", "ldc", "c_stride", "count", "compute"),
        (0,), True,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LibraryTable:
    """How a vendor's library is called.

    Args:
        libraries: its file names, best first; with a folder they are taken as they are.
        calls: by operation, `"symbol: slots"`; see `slots`. Calls of a vendor's own functions are named
            `own ...`.
        ok: statuses that mean success, by operation where it is not 0 alone.
        out_of_memory: statuses that mean that memory is short.
        error_texts: texts of statuses, where the library has no function for them.
        proof: symbols one of which tells the library from another vendor's of the same file name.
    """

    libraries: tuple[str, ...]
    calls: Mapping[str, str]
    ok: Mapping[str, frozenset[int]] = field(default_factory=dict)
    out_of_memory: frozenset[int] = frozenset()
    error_texts: Mapping[int, str] = field(default_factory=dict)
    proof: tuple[str, ...] = ()

    def parsed(self, operations: Mapping[str, Operation]) -> dict[str, slots.Call]:
        """The calls, checked against what there is to call.

        Raises:
            ValueMismatchError: an operation is unknown or missing, or a call does not fit it.
            ParseError: a call cannot be read.
        """
        unknown = sorted(name for name in self.calls if name not in operations and name[:4] != "own ")
        if unknown:
            raise errors.ValueMismatchError(
                f"the table of {self.libraries[0]} has calls for operations that there are not",
                got=", ".join(unknown),
                expected=", ".join(operations),
            )
        missing = sorted(n for n, o in operations.items() if o.is_required and n not in self.calls)
        if missing:
            raise errors.ValueMismatchError(
                f"the table of {self.libraries[0]} lacks calls for operations that are needed",
                got=", ".join(missing),
            )
        found = {name: slots.parse(text) for name, text in self.calls.items()}
        for name, operation in operations.items():
            if name in found:
                slots.check(name, found[name], operation.arguments, operation.num_results)
        return found


@dataclass(frozen=True, slots=True)
class Kernel:
    """Machine code of a kernel, as a vendor's Triton made it.

    Args:
        code: the binary.
        name: symbol of the kernel.
        parameters: Triton types of the parameters.
        num_hidden: pointers that follow them: global and profiling scratch memory of newer versions.
        num_warps: warps per program.
        shared_bytes: dynamic shared memory.
        scratch_bytes: global scratch memory per program.
        facts: what else the compiler said, for a vendor's own functions.
    """

    code: bytes
    name: str
    parameters: tuple[str, ...]
    num_hidden: int = 0
    num_warps: int = 1
    shared_bytes: int = 0
    scratch_bytes: int = 0
    facts: Mapping[str, int | str] = field(default_factory=dict)


class Compiler(Protocol):
    """What makes kernels for a vendor's devices."""

    def why_unavailable(self, target: Target) -> str | None:
        """Why it cannot compile for a target here, and what to install; None when it can."""

    def compile(self, source: TritonSource, target: Target) -> Kernel:
        """A kernel.

        Args:
            source: the text.
            target: the kind of processor.

        Raises:
            LoweringError: the source cannot be compiled.
        """


@dataclass(frozen=True, slots=True)
class Packed:
    """Arguments of a launch as a vendor takes them.

    Args:
        arguments: address of them.
        size: their bytes.
        owners: what has to live until the launch returns.
    """

    arguments: int
    size: int
    owners: Any  # Any: buffers of ctypes


# Arguments of a launch from the runtime, the kernel, its parameters, the address of scratch memory and the
# grid. Any: the runtime's module imports this one.
Pack = Callable[[Any, Kernel, tuple[bytes, ...], int, tuple[int, int, int]], Packed]


@dataclass(frozen=True, slots=True)
class RuntimeTable(LibraryTable):
    """A vendor's runtime.

    Args:
        kinds: numbers of the directions of a copy: `h2d`, `d2h`, `d2d`.
        not_ready: statuses of queries that mean "not yet".
        stream_complete: what a query of a stream gives when its work is done, where it gives a number.
        event_complete: the same for an event.
        attributes: numbers of device attributes by our names: `processors`, `threads`, `major`, `minor`.
        alignment: bytes that every allocation is aligned to.
        pack: puts the arguments of a launch together.
        load: loads a kernel, where it takes more than `module_load` and `module_function`; it gets the
            runtime and the kernel, and gives what `launch` takes as the function.
    """

    kinds: Mapping[str, int] = field(default_factory=lambda: {"h2d": 1, "d2h": 2, "d2d": 3})
    not_ready: frozenset[int] = frozenset()
    stream_complete: int = 0
    event_complete: int = 0
    attributes: Mapping[str, int] = field(default_factory=dict)
    alignment: int = 64
    pack: Pack | None = None
    load: Callable[[Any, Kernel], int] | None = None  # Any: Runtime, which imports this module

    def __post_init__(self) -> None:
        self.parsed(RUNTIME_OPERATIONS)
        missing = sorted(set(COPY_KINDS) - set(self.kinds))
        if missing:
            raise errors.ValueMismatchError(
                f"the table of {self.libraries[0]} has no number for directions of copies",
                got=", ".join(missing),
            )


@dataclass(frozen=True, slots=True)
class CollectiveTable(LibraryTable):
    """A vendor's library of collectives.

    Args:
        id_bytes: size of the identifier that ranks share.
        dtypes: numbers of the dtypes that it takes.
        ops: numbers of reductions: `sum`, `prod`, `max`, `min`, `avg`.
        preload: libraries that it needs loaded before it, with their symbols visible to it.
    """

    id_bytes: int = 128
    dtypes: Mapping[np.dtype, int] = field(default_factory=dict)
    ops: Mapping[str, int] = field(default_factory=dict)
    preload: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.parsed(COLLECTIVE_OPERATIONS)


@dataclass(frozen=True, slots=True)
class GemmTable(LibraryTable):
    """A BLAS with cuBLAS's calls. Its types and transposes are cuBLAS's numbers unless they are given here.

    Args:
        name: of the library, for people.
        transposes: numbers of "no" and "yes".
        types: by cuBLAS's number of a data type, this library's.
        computes: by cuBLAS's number of a compute type, this library's.
    """

    name: str = ""
    transposes: tuple[int, int] = (0, 1)
    types: Mapping[int, int] = field(default_factory=dict)
    computes: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parsed(GEMM_OPERATIONS)


NCCL_DTYPES: Final[dict[np.dtype, int]] = {
    dtypes.int8: 0, dtypes.uint8: 1, dtypes.int32: 2, dtypes.uint32: 3, dtypes.int64: 4, dtypes.uint64: 5,
    dtypes.float16: 6, dtypes.float32: 7, dtypes.float64: 8, dtypes.bfloat16: 9,
}  # fmt: skip
NCCL_OPS: Final = {"sum": 0, "prod": 1, "max": 2, "min": 3, "avg": 4}


def cuda_like(prefix: str, **others: str) -> dict[str, str]:
    """Calls of a runtime that has CUDA's functions under another prefix.

    Args:
        prefix: such as `mc` or `musa`.
        others: calls that differ, or that there are besides; an empty text takes one out.
    """
    calls = {
        "device_count": "{p}GetDeviceCount: >i32",
        "set_device": "{p}SetDevice: device",
        "current_device": "{p}GetDevice: >i32",
        "synchronize": "{p}DeviceSynchronize:",
        "allocate": "{p}Malloc: >ptr n",
        "free": "{p}Free: ptr",
        "copy": "{p}Memcpy: dst src n kind",
        "copy_async": "{p}MemcpyAsync: dst src n kind stream",
        "fill": "{p}MemsetAsync: ptr value n stream",
        "memory_info": "{p}MemGetInfo: >size >size",
        "allocate_host": "{p}MallocHost: >ptr n",
        "free_host": "{p}FreeHost: ptr",
        "stream_create": "{p}StreamCreateWithFlags: >ptr =1:u32",  # not ordered with the default stream
        "stream_destroy": "{p}StreamDestroy: stream",
        "stream_synchronize": "{p}StreamSynchronize: stream",
        "stream_query": "{p}StreamQuery: stream",
        "stream_wait_event": "{p}StreamWaitEvent: stream event =0:u32",
        "event_create": "{p}EventCreate: >ptr",
        "event_destroy": "{p}EventDestroy: event",
        "event_record": "{p}EventRecord: event stream",
        "event_query": "{p}EventQuery: event",
        "event_synchronize": "{p}EventSynchronize: event",
        "event_elapsed": "{p}EventElapsedTime: >f32 start end",
        "error_text": "{p}GetErrorString -> str: code",
        "attribute": "{p}DeviceGetAttribute: >i32 attribute device",
    }
    named = {name: text.replace("{p}", prefix) for name, text in calls.items()} | others
    return {name: text for name, text in named.items() if text}


def nccl_like(prefix: str, *, also: str = "") -> dict[str, str]:
    """Calls of a library that has NCCL's functions under another prefix.

    Args:
        prefix: such as `mccl`.
        also: another prefix that some versions use.
    """

    def call(name: str, text: str) -> str:
        return f"{prefix}{name}{f'|{also}{name}' if also else ''}{text}"

    return {
        "get_id": call("GetUniqueId", ": &id"),
        "init_rank": call("CommInitRank", ": >ptr num_ranks *id rank"),
        "destroy": call("CommDestroy", ": comm"),
        "all_reduce": call("AllReduce", ": send recv n dtype op comm stream"),
        "all_gather": call("AllGather", ": send recv n dtype comm stream"),
        "reduce_scatter": call("ReduceScatter", ": send recv n dtype op comm stream"),
        "broadcast": call("Broadcast", ": send recv n dtype root comm stream"),
        "send": call("Send", ": send n dtype peer comm stream"),
        "recv": call("Recv", ": recv n dtype peer comm stream"),
        "group_start": call("GroupStart", ":"),
        "group_end": call("GroupEnd", ":"),
        "error_text": call("GetErrorString", " -> str: code"),
    }
