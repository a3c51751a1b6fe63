"""Collectives of the vendor's library, with a rank on each device in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from infini.backends.vendors.comm import Collectives, Communicator
from infini.backends.vendors.runtime import Runtime
from infini.core import dtypes, errors
from infini.testing.conformance.checks import Check, Failed, NotAvailable, Subject, expect, expect_equal

_MOST_RANKS = 4
PATIENCE_S = 60.0  # how long ranks may take together
GRACE_S = 2.0  # and how long they may take when one of them has failed
_SIZE = 37


class Rank:
    """One rank: a device, a stream, and a place in the group."""

    def __init__(self, runtime: Runtime, comm: Communicator, stream: int) -> None:
        self.runtime, self.comm, self.stream = runtime, comm, stream

    @property
    def rank(self) -> int:
        """Its number."""
        return self.comm.rank

    @contextmanager
    def blocks(self, host: np.ndarray, out_size: int) -> Iterator[tuple[int, int]]:
        """A block with an array, and one for a result of so many elements."""
        runtime = self.runtime
        with ExitStack() as stack:
            send = runtime.allocate(host.nbytes)
            stack.callback(runtime.free, send)
            recv = runtime.allocate(out_size * host.itemsize)
            stack.callback(runtime.free, recv)
            runtime.copy(send, host.ctypes.data, host.nbytes, "h2d")
            yield send, recv

    def result(self, address: int, size: int, dtype: np.dtype) -> np.ndarray:
        """An array of the device, once the stream is done."""
        self.runtime.stream_synchronize(self.stream)
        host = np.zeros(size, dtype)
        self.runtime.copy(host.ctypes.data, address, host.nbytes, "d2h")
        return host


def on_ranks(subject: Subject, count: int, work: Callable[[Rank], None]) -> None:
    """Run something on every rank of a group, each in a thread.

    Raises:
        Failed: ranks wait for each other for ever.
    """
    library, runtime = _library(subject), subject.runtime
    id_ = library.new_id()
    found: list[Exception] = []

    def rank(number: int) -> None:
        try:
            comm = library.join(id_, count, number, number)
            stream = runtime.stream_create()
            try:
                work(Rank(runtime, comm, stream))
            finally:
                runtime.stream_destroy(stream)
                comm.destroy()
        except Exception as error:  # noqa: BLE001  # raised below, in the thread of the check
            found.append(error)

    threads = [threading.Thread(target=rank, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + PATIENCE_S
    while any(thread.is_alive() for thread in threads) and time.monotonic() < end:
        if found:  # the others may wait for that one for ever
            end = min(end, time.monotonic() + GRACE_S)
        for thread in threads:
            thread.join(0.01)
    if found:
        raise found[0]
    if any(thread.is_alive() for thread in threads):
        raise Failed(f"{count} ranks wait for each other for more than {PATIENCE_S:.0f} s")


def _library(subject: Subject) -> Collectives:
    subject.need_device()
    adapter = subject.adapter
    if adapter.adapter.collectives is None:
        raise NotAvailable("the adapter has no library of collectives")
    try:
        return adapter.collectives()
    except errors.DeviceError as error:
        raise NotAvailable(error.got or error.what) from error


def _counts(subject: Subject) -> range:
    return range(1, min(subject.adapter.num_devices, _MOST_RANKS) + 1)


def _array(rank: int, size: int, dtype: np.dtype) -> np.ndarray:
    """Small whole numbers: sums and products of them are exact in every dtype."""
    return np.random.default_rng(rank).integers(1, 4, size).astype(dtype)


_REDUCTIONS = {
    "sum": lambda arrays: sum(arrays),
    "prod": lambda arrays: np.prod(np.stack(arrays), axis=0),
    "max": lambda arrays: np.max(np.stack(arrays), axis=0),
    "min": lambda arrays: np.min(np.stack(arrays), axis=0),
    "avg": lambda arrays: sum(arrays) / len(arrays),
}


def _reduced(op: str, arrays: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    wide = [a.astype(np.float64) for a in arrays]
    return np.asarray(_REDUCTIONS[op](wide)).astype(dtype)


def all_reduce(subject: Subject) -> str:
    """Every reduction, and every dtype."""
    table = _library(subject).table
    cases = [(op, dtypes.float32) for op in table.ops] + [("sum", dtype) for dtype in table.dtypes]

    def work(rank: Rank) -> None:
        for op, dtype in cases:
            arrays = [_array(r, _SIZE, dtype) for r in range(rank.comm.num_ranks)]
            with rank.blocks(arrays[rank.rank], _SIZE) as (send, recv):
                rank.comm.all_reduce(send, recv, _SIZE, dtype, op, rank.stream)
                got = rank.result(recv, _SIZE, dtype)
            what = f"all_reduce {op} of {dtypes.short(dtype)} on {rank.comm.num_ranks} ranks"
            wanted = _reduced(op, arrays, dtype)
            if op == "avg":
                expect(bool(np.allclose(got, wanted, rtol=1e-6)), what, got=got[:3], expected=wanted[:3])
            else:
                expect_equal(got, wanted, what)

    for count in _counts(subject):
        on_ranks(subject, count, work)
    return f"{', '.join(table.ops)}; {', '.join(map(dtypes.short, table.dtypes))}"


def all_reduce_in_place(subject: Subject) -> str:
    """The result where the operand was."""

    def work(rank: Rank) -> None:
        arrays = [_array(r, _SIZE, dtypes.float32) for r in range(rank.comm.num_ranks)]
        with rank.blocks(arrays[rank.rank], 1) as (send, _):
            rank.comm.all_reduce(send, send, _SIZE, dtypes.float32, "sum", rank.stream)
            got = rank.result(send, _SIZE, dtypes.float32)
        expect_equal(got, _reduced("sum", arrays, dtypes.float32), "all_reduce in place")

    for count in _counts(subject):
        on_ranks(subject, count, work)
    return ""


def all_gather(subject: Subject) -> str:
    """Arrays of all ranks in the order of the ranks."""

    def work(rank: Rank) -> None:
        count = rank.comm.num_ranks
        arrays = [_array(r, _SIZE, dtypes.int32) for r in range(count)]
        with rank.blocks(arrays[rank.rank], _SIZE * count) as (send, recv):
            rank.comm.all_gather(send, recv, _SIZE, dtypes.int32, rank.stream)
            got = rank.result(recv, _SIZE * count, dtypes.int32)
        expect_equal(got, np.concatenate(arrays), f"all_gather on {count} ranks")

    for count in _counts(subject):
        on_ranks(subject, count, work)
    return _ranks(subject)


def reduce_scatter(subject: Subject) -> str:
    """A part of the sum for every rank."""

    def work(rank: Rank) -> None:
        count = rank.comm.num_ranks
        arrays = [_array(r, _SIZE * count, dtypes.float32) for r in range(count)]
        with rank.blocks(arrays[rank.rank], _SIZE) as (send, recv):
            rank.comm.reduce_scatter(send, recv, _SIZE, dtypes.float32, "sum", rank.stream)
            got = rank.result(recv, _SIZE, dtypes.float32)
        whole = _reduced("sum", arrays, dtypes.float32)
        mine = slice(rank.rank * _SIZE, (rank.rank + 1) * _SIZE)
        expect_equal(got, whole[mine], f"reduce_scatter on {count} ranks")

    for count in _counts(subject):
        on_ranks(subject, count, work)
    return _ranks(subject)


def broadcast(subject: Subject) -> str:
    """What each root in turn has, for all; the operand stays as it is."""

    def work(rank: Rank) -> None:
        for root in range(rank.comm.num_ranks):
            arrays = [_array(r, _SIZE, dtypes.float32) for r in range(rank.comm.num_ranks)]
            with rank.blocks(arrays[rank.rank], _SIZE) as (send, recv):
                rank.comm.broadcast(send, recv, _SIZE, dtypes.float32, root, rank.stream)
                got = rank.result(recv, _SIZE, dtypes.float32)
                kept = rank.result(send, _SIZE, dtypes.float32)
            expect_equal(got, arrays[root], f"broadcast from rank {root}")
            expect_equal(kept, arrays[rank.rank], "the operand of a broadcast")

    for count in _counts(subject):
        on_ranks(subject, count, work)
    return _ranks(subject)


def send_and_receive(subject: Subject) -> str:
    """Every rank gives to the next one."""
    library = _library(subject)
    if "send" not in library.library.functions or "recv" not in library.library.functions:
        raise NotAvailable("the library has no send and receive")
    if subject.adapter.num_devices < 2:
        raise NotAvailable("there is one device")

    def work(rank: Rank) -> None:
        comm, count = rank.comm, rank.comm.num_ranks
        following, previous = (rank.rank + 1) % count, (rank.rank - 1) % count
        with rank.blocks(_array(rank.rank, _SIZE, dtypes.float32), _SIZE) as (send, recv):
            steps = [
                lambda: comm.send(send, _SIZE, dtypes.float32, following, rank.stream),
                lambda: comm.recv(recv, _SIZE, dtypes.float32, previous, rank.stream),
            ]
            with comm.group():
                # Without groups every second rank receives first, so that none waits for another in a ring.
                for step in steps if comm.has_groups or rank.rank % 2 == 0 else reversed(steps):
                    step()
            got = rank.result(recv, _SIZE, dtypes.float32)
        expect_equal(got, _array(previous, _SIZE, dtypes.float32), f"what rank {previous} sent")

    for count in _counts(subject)[1:]:
        on_ranks(subject, count, work)
    return _ranks(subject)


def refuses(subject: Subject) -> str:
    """Dtypes and reductions that the library lacks are refused by name."""
    library = _library(subject)
    missing = [d for d in (dtypes.float64, dtypes.complex64) if d not in library.table.dtypes]
    refused = []
    for dtype in missing:
        try:
            library.dtype_number(dtype)
        except errors.UnsupportedError:
            refused.append(dtypes.short(dtype))
        else:
            raise Failed(f"{dtypes.short(dtype)} is not in the table and was not refused")
    if "avg" not in library.table.ops:
        try:
            library.op_number("avg")
        except errors.UnsupportedError:
            refused.append("avg")
        else:
            raise Failed("avg is not in the table and was not refused")
    return ", ".join(refused)


def _ranks(subject: Subject) -> str:
    most = _counts(subject)[-1]
    return "1 rank" if most == 1 else f"up to {most} ranks"


CHECKS = (
    Check("collectives", "all_reduce", all_reduce),
    Check("collectives", "all_reduce in place", all_reduce_in_place),
    Check("collectives", "all_gather", all_gather),
    Check("collectives", "reduce_scatter", reduce_scatter),
    Check("collectives", "broadcast", broadcast),
    Check("collectives", "send and receive", send_and_receive),
    Check("collectives", "refuses what it lacks", refuses),
)
