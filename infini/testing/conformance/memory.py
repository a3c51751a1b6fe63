"""Memory: blocks, copies in every direction, and its end."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import threading

import numpy as np

from infini.core import errors
from infini.core.ir import ArrayType
from infini.testing.conformance.checks import (
    Check,
    Failed,
    NotAvailable,
    Subject,
    data,
    expect,
    expect_equal,
)

_SIZES = (1, 3, 64, 255, 4096, 1 << 20)


def allocates(subject: Subject) -> str:
    """Blocks are aligned and do not overlap."""
    runtime = subject.runtime
    alignment = runtime.table.alignment
    with contextlib.ExitStack() as stack:
        found = sorted((stack.enter_context(subject.block(n)), n) for n in _SIZES)
        for address, n in found:
            expect(address % alignment == 0, f"a block of {n} bytes is not aligned", got=hex(address))
        for (address, n), (following, _) in itertools.pairwise(found):
            expect(address + n <= following, "two blocks overlap", got=f"{hex(address)} + {n}")
    return f"aligned to {alignment} bytes"


def reads_back(subject: Subject) -> str:
    """What goes to the device comes back."""
    for n in _SIZES:
        host = data(n)
        with subject.block(n) as address:
            subject.upload(address, host)
            expect_equal(subject.download(address, n), host, f"{n} bytes to the device and back")
    return f"{len(_SIZES)} sizes"


def copies_on_the_device(subject: Subject) -> str:
    """A copy from block to block."""
    host = data(4096)
    with subject.block(4096) as first, subject.block(4096) as second:
        subject.upload(first, host)
        subject.upload(second, data(4096, 1))
        subject.runtime.copy(second, first, 4096, "d2d")
        expect_equal(subject.download(second, 4096), host, "a copy on the device")
        expect_equal(subject.download(first, 4096), host, "the source of a copy")
    return ""


def copies_parts(subject: Subject) -> str:
    """Copies that start inside a block change nothing around them."""
    wanted = data(100)
    with subject.block(100) as address:
        subject.upload(address, wanted)
        part = data(9, 1)
        subject.upload(address + 13, part)
        wanted[13:22] = part
        subject.runtime.copy(address + 60, address + 13, 9, "d2d")
        wanted[60:69] = part
        expect_equal(subject.download(address, 100), wanted, "parts of a block")
        expect_equal(subject.download(address + 60, 9), part, "a part of a block")
    return ""


def copies_in_order(subject: Subject) -> str:
    """Copies of a stream happen one after another."""
    runtime, host = subject.runtime, data(1 << 16)
    back = np.zeros_like(host)
    n = host.nbytes
    with subject.block(n) as first, subject.block(n) as second, subject.stream() as stream:
        runtime.copy_async(first, host.ctypes.data, n, "h2d", stream)
        runtime.copy_async(second, first, n, "d2d", stream)
        runtime.copy_async(back.ctypes.data, second, n, "d2h", stream)
        runtime.stream_synchronize(stream)
    expect_equal(back, host, "three copies of one stream")
    return ""


def takes_nothing(subject: Subject) -> str:
    """Nothing to copy, nothing to allocate."""
    runtime = subject.runtime
    with subject.block(8) as address, subject.stream() as stream:
        host = data(8)
        subject.upload(address, host)
        for kind in ("h2d", "d2h", "d2d"):
            runtime.copy(address, address, 0, kind)
            runtime.copy_async(address, address, 0, kind, stream)
        runtime.fill(address, 1, 0, stream)
        runtime.stream_synchronize(stream)
        expect_equal(subject.download(address, 8), host, "copies of no bytes")
    device = subject.device(0)
    empty = subject.backend.put(np.zeros((0, 3), np.float32), device)
    back = subject.backend.get(empty, ArrayType((0, 3), np.dtype(np.float32)))
    expect(back.shape == (0, 3), "an empty array comes back in another shape", got=back.shape)
    return ""


def fills(subject: Subject) -> str:
    """Bytes are set, and no others."""
    runtime, n = subject.runtime, 100_000
    wanted = data(n)
    with subject.block(n) as address, subject.stream() as stream:
        subject.upload(address, wanted)
        runtime.fill(address + 7, 0xAB, n - 20, stream)
        runtime.stream_synchronize(stream)
        wanted[7 : n - 13] = 0xAB
        expect_equal(subject.download(address, n), wanted, "a fill")
    return "by the runtime" if runtime.has("fill") else "by copies from the host"


def runs_out(subject: Subject) -> str:
    """Too much memory is an error of its own, and the device goes on."""
    runtime = subject.runtime
    info = runtime.memory_info()
    wanted = 1 << 46 if info is None else 2 * info[1]
    try:
        runtime.free(runtime.allocate(wanted))
    except errors.OutOfMemoryError as error:
        detail = error.got or ""
    else:
        raise Failed(f"{wanted} bytes could be allocated, twice what there is")
    with subject.block(64) as address:
        subject.upload(address, data(64))
        expect_equal(subject.download(address, 64), data(64), "after memory ran out")
    return detail


def counts(subject: Subject) -> str:
    """What is free is no more than what there is."""
    info = subject.runtime.memory_info()
    if info is None:
        raise NotAvailable("the runtime does not say how much memory there is")
    free, total = info
    expect(0 < free <= total, "the numbers cannot be", got=f"{free} of {total}")
    return f"{free >> 20} of {total >> 20} MiB free"


def has_host_memory(subject: Subject) -> str:
    """Memory of the host that the device copies faster."""
    runtime = subject.runtime
    if not runtime.has("allocate_host"):
        raise NotAvailable("the runtime gives none; ordinary memory is used")
    (address,) = runtime.call("allocate_host", n=4096)
    host = np.ctypeslib.as_array((ctypes.c_uint8 * 4096).from_address(address))
    host[:] = data(4096)
    with subject.block(4096) as block:
        runtime.copy(block, address, 4096, "h2d")
        expect_equal(subject.download(block, 4096), data(4096), "from such memory")
    runtime.call("free_host", ptr=address)
    return ""


def serves_threads(subject: Subject) -> str:
    """A thread that did nothing before can use the device."""
    _ = subject.runtime  # what is missing is said here, and not in the thread
    host = data(64)
    found: list[np.ndarray | errors.InfiniError] = []

    def work() -> None:
        try:
            with subject.block(64) as address:
                subject.upload(address, host)
                found.append(subject.download(address, 64))
        except errors.InfiniError as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    (got,) = found
    if isinstance(got, errors.InfiniError):
        raise Failed(f"a new thread cannot use the device: {got.what}", got=got.got)
    expect_equal(got, host, "in a new thread")
    return ""


def copies_between_devices(subject: Subject) -> str:
    """An array goes from one device to another."""
    _ = subject.runtime
    if subject.adapter.num_devices < 2:
        raise NotAvailable("there is one device")
    devices = subject.device(0), subject.device(1)
    host = np.arange(100, dtype=np.float32)
    type_ = ArrayType(host.shape, host.dtype)
    there = subject.backend.copy(subject.backend.put(host, devices[0]), type_, devices[1])
    expect_equal(subject.backend.get(there, type_), host, "from device to device")
    return ""


CHECKS = (
    Check("memory", "blocks are aligned and apart", allocates),
    Check("memory", "bytes come back", reads_back),
    Check("memory", "copies on the device", copies_on_the_device),
    Check("memory", "copies of parts", copies_parts),
    Check("memory", "copies in the order of a stream", copies_in_order),
    Check("memory", "no bytes at all", takes_nothing),
    Check("memory", "fills", fills),
    Check("memory", "running out is an error of its own", runs_out),
    Check("memory", "what is free", counts),
    Check("memory", "memory of the host", has_host_memory),
    Check("memory", "another thread", serves_threads),
    Check("memory", "copies between devices", copies_between_devices),
)
