"""Communication among processes by MPI, one device per process. mpi4py is imported when a job is looked
for, never before.

Groups become sub-communicators, made once by their members and kept; those of a duplicate are other ones.
Floats of 16 bits and less travel as they are, and are added up in float32 by `ordered`. What is larger than
a count of MPI may be goes in several messages. Notes on mpi4py's buffers:
https://mpi4py.readthedocs.io/en/stable/tutorial.html
"""

from __future__ import annotations

import functools
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from infini.backends.spmd import ordered
from infini.core import dtypes, errors, memory
from infini.core.comm import Groups, ReduceOp, Rows

_FIX: Final = (
    "install an MPI and its bindings with `pip install infini[mpi]`, and start with `mpirun -n 2 python ...`"
)

# Counts of MPI before version 4 are of 31 bits.
MOST_BYTES: Final = 1 << 30
# A process that waits for a word of process 0 begins to sleep after this, and never sleeps longer than that.
_AWAKE_S: Final = 0.001
_LONGEST_SLEEP_S: Final = 0.005


def load() -> Any:  # Any: the module mpi4py.MPI
    """The module `mpi4py.MPI`.

    Raises:
        DeviceError: mpi4py or the MPI library is missing.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise errors.DeviceError("MPI is not available", got=str(error), fix=_FIX) from error
    return MPI


def check_ranks(index: int, process_of_rank: tuple[int, ...]) -> None:
    """Refuse ranks that are not one of each process.

    Raises:
        DeviceError: a process holds several ranks, or this one holds none.
    """
    if len(set(process_of_rank)) != len(process_of_rank) or index not in process_of_rank:
        raise errors.DeviceError(
            "a mesh over several processes takes one device of each",
            got=f"devices of the processes {process_of_rank}, in process {index}",
            fix="unset INFINI_CPU_DEVICES under mpirun, and make the mesh of all devices",
        )


class MpiLauncher:
    """The processes of an MPI job."""

    def __init__(self) -> None:
        self._mpi = load()
        self._world = self._mpi.COMM_WORLD
        self._comms: dict[tuple[int, ...], MpiComm] = {}

    @property
    def index(self) -> int:
        """Number of this process."""
        return int(self._world.rank)

    @property
    def count(self) -> int:
        """Number of processes."""
        return int(self._world.size)

    def comm(self, process_of_rank: tuple[int, ...]) -> MpiComm:
        """Communication among ranks, one per process.

        Raises:
            DeviceError: a process holds several ranks, or this one holds none.
        """
        check_ranks(self.index, process_of_rank)
        if process_of_rank not in self._comms:
            self._comms[process_of_rank] = MpiComm(self._mpi, process_of_rank)
        return self._comms[process_of_rank]

    def abort(self, status: int) -> None:
        """`MPI_Abort`, where this thread may call it; else the launcher ends all when this one is gone."""
        may_call = self._mpi.Query_thread() == self._mpi.THREAD_MULTIPLE or self._mpi.Is_thread_main()
        if may_call and not self._mpi.Is_finalized():
            self._world.Abort(status)
        os._exit(status)


class _Sending:
    """Requests of MPI with the memory they read."""

    def __init__(self, mpi: Any, requests: list[Any], content: np.ndarray) -> None:  # Any: of mpi4py
        self._mpi, self._requests, self._content = mpi, requests, content

    def wait(self) -> None:
        """`MPI_Waitall`."""
        self._mpi.Request.Waitall(self._requests)


class MpiComm:
    """One rank per process. Rows have one entry.

    Args:
        mpi: the module mpi4py.MPI.
        process_of_rank: process of the job that is each rank.
        line: the duplications that led here, each the number of its turn.
        most_bytes: size of the largest message.
    """

    def __init__(
        self,
        mpi: Any,  # Any: a module without types
        process_of_rank: tuple[int, ...],
        line: tuple[int, ...] = (),
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._mpi, self._most_bytes = mpi, most_bytes
        self._process_of_rank = process_of_rank
        self._line, self._num_duplicates = line, 0
        # Threads may make communicators of two comms at once; what tells them apart must be equal everywhere.
        self._tag = zlib.crc32(repr((process_of_rank, line)).encode()) % 32768
        self._rank = process_of_rank.index(mpi.COMM_WORLD.rank)
        self.local_ranks: tuple[int, ...] = (self._rank,)
        # Members of a group call this together, in program order, so one tag serves all groups.
        self._communicator = functools.cache(self._create)

    @property
    def may_overlap(self) -> bool:
        """Whether MPI was started so that any thread may call it at any time."""
        return bool(self._mpi.Query_thread() >= self._mpi.THREAD_MULTIPLE)

    def _create(self, group: tuple[int, ...]) -> Any:  # Any: a communicator
        world = self._mpi.COMM_WORLD
        members = world.group.Incl([self._process_of_rank[rank] for rank in group])
        return world.Create_group(members, tag=self._tag)

    def _mine(self, groups: Groups) -> tuple[Any, tuple[int, ...]]:
        group = next(group for group in groups if self._rank in group)
        return self._communicator(group), group

    def all_reduce(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
        """`MPI_Allreduce`; booleans go as bytes."""
        communicator, _ = self._mine(groups)
        (row,) = rows
        if _is_ours(row.dtype, op):
            return ordered.all_reduce(self, rows, op, groups)
        given = np.ascontiguousarray(_as_number(row)).reshape(-1)
        result = memory.empty(row.shape, given.dtype)
        for part in self._messages(given.size, given.itemsize):
            communicator.Allreduce(given[part], result.reshape(-1)[part], op=self._operation(op))
        return [result.astype(row.dtype, copy=False)]

    def all_gather(self, rows: Rows, groups: Groups) -> list[np.ndarray]:
        """`MPI_Allgather` of bytes."""
        communicator, group = self._mine(groups)
        row = _flat_bytes(rows[0])
        result = memory.empty((len(group), *rows[0].shape), rows[0].dtype)
        for part in self._messages(row.size, len(group)):
            self._exchange(communicator.Allgather, row[part], result, part)
        return [result]

    def all_to_all(self, rows: Rows, groups: Groups) -> list[np.ndarray]:
        """`MPI_Alltoall` of bytes."""
        communicator, group = self._mine(groups)
        blocks = _flat_bytes(rows[0]).reshape(len(group), -1)
        result = memory.empty(rows[0].shape, rows[0].dtype)
        for part in self._messages(blocks.shape[1], len(group)):
            self._exchange(communicator.Alltoall, np.ascontiguousarray(blocks[:, part]), result, part)
        return [result]

    def reduce_scatter(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
        """`MPI_Reduce_scatter_block`; booleans go as bytes."""
        communicator, group = self._mine(groups)
        (row,) = rows
        if _is_ours(row.dtype, op):
            return ordered.reduce_scatter(self, rows, op, groups)
        blocks = np.ascontiguousarray(_as_number(row)).reshape(len(group), -1)
        result = memory.empty(row.shape[1:], blocks.dtype)
        for part in self._messages(blocks.shape[1], len(group) * blocks.itemsize):
            communicator.Reduce_scatter_block(
                np.ascontiguousarray(blocks[:, part]), result.reshape(-1)[part], op=self._operation(op)
            )
        return [result.astype(row.dtype, copy=False)]

    def permute(self, rows: Rows, pairs: Sequence[tuple[int, int]], groups: Groups) -> list[np.ndarray]:
        """Messages between the members of each pair."""
        communicator, group = self._mine(groups)
        row, here = _flat_bytes(rows[0]), group.index(self._rank)
        result, requests = memory.empty(rows[0].shape, rows[0].dtype), []
        if all(target != here for _, target in pairs):
            result.reshape(-1).view(np.uint8)[:] = 0
        for origin, target in pairs:
            for part in self._messages(row.size):
                if target == here:
                    requests.append(communicator.Irecv(self._bytes(_flat_bytes(result)[part]), source=origin))
                if origin == here:
                    requests.append(communicator.Isend(self._bytes(row[part]), dest=target))
        self._mpi.Request.Waitall(requests)
        return [result]

    def send(self, row: np.ndarray, source: int, destination: int, tag: int = 0) -> None:
        """`MPI_Send` of bytes."""
        assert source == self._rank, "a process sends for its own rank"
        given = _flat_bytes(row)
        for part in self._messages(given.size):
            self._everyone().Send(self._bytes(given[part]), dest=destination, tag=tag)

    def start_send(self, row: np.ndarray, source: int, destination: int, tag: int = 0) -> _Sending:
        """`MPI_Isend` of bytes."""
        assert source == self._rank, "a process sends for its own rank"
        given, everyone = _flat_bytes(row), self._everyone()
        parts = self._messages(given.size)
        requests = [everyone.Isend(self._bytes(given[part]), dest=destination, tag=tag) for part in parts]
        return _Sending(self._mpi, requests, given)

    def recv(
        self, shape: tuple[int, ...], dtype: np.dtype, source: int, destination: int, tag: int = 0
    ) -> np.ndarray:
        """`MPI_Recv` of bytes."""
        assert destination == self._rank, "a process receives for its own rank"
        result = memory.empty(shape, dtype)
        for part in self._messages(result.nbytes):
            self._everyone().Recv(self._bytes(_flat_bytes(result)[part]), source=source, tag=tag)
        return result

    def broadcast(self, content: bytes) -> bytes:
        """`MPI_Ibcast` of the length, then `MPI_Bcast` of the bytes.

        Whoever waits for process 0 may wait for long, for the next request to a server for example, so it
        sleeps meanwhile: a twentieth of the time that it has waited.
        """
        communicator = self._everyone()
        length = np.array([len(content)], np.int64)
        _wait_asleep(communicator.Ibcast(length, root=0))
        received = np.frombuffer(content, np.uint8) if self._rank == 0 else np.empty(length[0], np.uint8)
        for part in self._messages(received.size):
            communicator.Bcast(self._bytes(received[part]), root=0)
        return received.tobytes()

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """`MPI_Allgather` of the lengths, then `MPI_Allgatherv` of the bytes."""
        communicator = self._everyone()
        lengths = np.empty(len(self._process_of_rank), np.int64)
        communicator.Allgather(np.array([len(content)], np.int64), lengths)
        mine = np.frombuffer(content, np.uint8)
        found = [bytearray() for _ in lengths]
        for part in self._messages(int(lengths.max()), len(lengths)):
            counts = np.clip(lengths, part.start, part.stop) - part.start
            received = np.empty(int(counts.sum()), np.uint8)
            communicator.Allgatherv(
                self._bytes(mine[part]), [received, counts.tolist(), None, self._mpi.BYTE]
            )
            for one, end, count in zip(found, np.cumsum(counts), counts, strict=True):
                one += received[end - count : end].tobytes()
        return [bytes(one) for one in found]

    def barrier(self) -> None:
        """`MPI_Barrier` of all ranks."""
        self._everyone().Barrier()

    def duplicate(self) -> MpiComm:
        """A comm with communicators of its own, made when they are used first."""
        self._num_duplicates += 1
        line = (*self._line, self._num_duplicates)
        return MpiComm(self._mpi, self._process_of_rank, line, self._most_bytes)

    def _everyone(self) -> Any:  # Any: a communicator
        return self._communicator(tuple(range(len(self._process_of_rank))))

    def _operation(self, op: ReduceOp) -> Any:  # Any: an MPI operation
        return {"sum": self._mpi.SUM, "max": self._mpi.MAX, "min": self._mpi.MIN}[op]

    def _messages(self, count: int, nbytes: int = 1) -> Iterator[slice]:
        """Slices of `count` items of `nbytes` each, none of more bytes than a message may have."""
        step = max(1, self._most_bytes // nbytes)
        return (slice(start, min(start + step, count)) for start in range(0, count, step))

    def _exchange(
        self,
        call: Callable[[list[Any], list[Any]], object],  # Any: MPI buffer specifications
        given: np.ndarray,
        result: np.ndarray,
        part: slice,
    ) -> None:
        """Receive a part of the bytes of every block of a result, without a copy when it is all of them."""
        blocks = _flat_bytes(result).reshape(result.shape[0], -1)
        is_whole = part.stop - part.start == blocks.shape[1]
        received = blocks if is_whole else np.empty((blocks.shape[0], part.stop - part.start), np.uint8)
        call(self._bytes(given), self._bytes(received))
        if not is_whole:
            blocks[:, part] = received

    def _bytes(self, array: np.ndarray) -> list[Any]:  # Any: an MPI buffer specification
        assert array.flags.c_contiguous, "buffers of backends are in C order"
        return [array.reshape(-1).view(np.uint8), self._mpi.BYTE]


def _wait_asleep(request: Any) -> None:  # Any: of mpi4py
    """Wait for something that may be far off, without a processor of its own."""
    start = time.perf_counter()
    while not request.Test():
        waited = time.perf_counter() - start
        if waited > _AWAKE_S:
            time.sleep(min(waited / 20, _LONGEST_SLEEP_S))


def _flat_bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of an array in C order; a view where it is in C order already."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _is_ours(dtype: np.dtype, op: ReduceOp) -> bool:
    """Whether MPI would reduce otherwise: it has no small floats, and loses what is not a number in maxima,
    in some processes and not in others.
    """
    return dtype in dtypes.FLOATS and (dtype.itemsize <= 2 or op != "sum")


def _as_number(row: np.ndarray) -> np.ndarray:
    return row.view(np.uint8) if row.dtype == dtypes.bool_ else row
