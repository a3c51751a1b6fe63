"""Communication among processes by MPI, one device per process. mpi4py is imported when a job is looked
for, never before.

Groups become sub-communicators, made once by their members and kept; those of a duplicate are other ones.
bfloat16 travels as bits; its sums, and those of float16, are taken in float32. Notes on mpi4py's buffers:
https://mpi4py.readthedocs.io/en/stable/tutorial.html
"""

from __future__ import annotations

import functools
import sys
import time
import zlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final

import numpy as np

from infini.core import comm, dtypes, errors
from infini.core.comm import Groups, ReduceOp, Rows

_FIX: Final = (
    "install an MPI and its bindings with `pip install infini[mpi]`, and start with `mpirun -n 2 python ...`"
)

FORWARDING_S: Final = 0.5


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
        if len(set(process_of_rank)) != len(process_of_rank) or self.index not in process_of_rank:
            raise errors.DeviceError(
                "a mesh over several processes takes one device of each",
                got=f"devices of the processes {process_of_rank}, in process {self.index}",
                fix="unset INFINI_CPU_DEVICES under mpirun, and make the mesh of all devices",
            )
        if process_of_rank not in self._comms:
            self._comms[process_of_rank] = MpiComm(self._mpi, process_of_rank)
        return self._comms[process_of_rank]

    def abort_on_errors(self) -> None:
        """End the whole job when this process raises, so that the others do not wait for it for ever."""
        previous = sys.excepthook

        def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            previous(kind, error, trace)
            sys.stderr.flush()
            sys.stdout.flush()
            # The launcher stops reading the output of a job that aborts: give it time to pass the error on.
            time.sleep(FORWARDING_S)
            self._world.Abort(1)

        sys.excepthook = hook


class MpiComm:
    """One rank per process. Rows have one entry.

    Args:
        mpi: the module mpi4py.MPI.
        process_of_rank: process of the job that is each rank.
        line: the duplications that led here, each the number of its turn.
    """

    def __init__(
        self,
        mpi: Any,  # Any: a module without types
        process_of_rank: tuple[int, ...],
        line: tuple[int, ...] = (),
    ) -> None:
        self._mpi = mpi
        self._process_of_rank = process_of_rank
        self._line, self._num_duplicates = line, 0
        # Threads may make communicators of two comms at once; what tells them apart must be equal everywhere.
        self._tag = zlib.crc32(repr((process_of_rank, line)).encode()) % 32768
        self._rank = process_of_rank.index(mpi.COMM_WORLD.rank)
        self.local_ranks: tuple[int, ...] = (self._rank,)
        # Members of a group call this together, in program order, so one tag serves all groups.
        self._communicator = functools.cache(self._create)

    def _create(self, group: tuple[int, ...]) -> Any:  # Any: a communicator
        world = self._mpi.COMM_WORLD
        members = world.group.Incl([self._process_of_rank[rank] for rank in group])
        return world.Create_group(members, tag=self._tag)

    def _mine(self, groups: Groups) -> tuple[Any, tuple[int, ...]]:
        group = next(group for group in groups if self._rank in group)
        return self._communicator(group), group

    def all_reduce(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
        """`MPI_Allreduce`; 16-bit floats go as float32, booleans as bytes."""
        communicator, _ = self._mine(groups)
        (row,) = rows
        wide = np.ascontiguousarray(_reducible(row)).reshape(row.shape)
        result = np.empty_like(wide)
        communicator.Allreduce(wide, result, op=self._operation(op))
        return [result.astype(row.dtype, copy=False)]

    def all_gather(self, rows: Rows, groups: Groups) -> list[np.ndarray]:
        """`MPI_Allgather` of bytes."""
        communicator, group = self._mine(groups)
        row = np.ascontiguousarray(rows[0]).reshape(rows[0].shape)
        result = np.empty((len(group), *row.shape), row.dtype)
        communicator.Allgather(self._bytes(row), self._bytes(result))
        return [result]

    def all_to_all(self, rows: Rows, groups: Groups) -> list[np.ndarray]:
        """`MPI_Alltoall` of bytes."""
        communicator, _ = self._mine(groups)
        row = np.ascontiguousarray(rows[0])
        result = np.empty_like(row)
        communicator.Alltoall(self._bytes(row), self._bytes(result))
        return [result]

    def reduce_scatter(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
        """`MPI_Reduce_scatter_block`; 16-bit floats go as float32, booleans as bytes."""
        communicator, _ = self._mine(groups)
        (row,) = rows
        wide = np.ascontiguousarray(_reducible(row))
        result = np.empty(row.shape[1:], wide.dtype)
        communicator.Reduce_scatter_block(wide, result, op=self._operation(op))
        return [result.astype(row.dtype, copy=False)]

    def permute(self, rows: Rows, pairs: Sequence[tuple[int, int]], groups: Groups) -> list[np.ndarray]:
        """One message per pair."""
        communicator, group = self._mine(groups)
        row = np.ascontiguousarray(rows[0]).reshape(rows[0].shape)
        here = group.index(self._rank)
        result, requests = np.zeros_like(row), []
        for origin, target in pairs:
            if target == here:
                requests.append(communicator.Irecv(self._bytes(result), source=origin))
            if origin == here:
                requests.append(communicator.Isend(self._bytes(row), dest=target))
        self._mpi.Request.Waitall(requests)
        return [result]

    def send(self, row: np.ndarray, source: int, destination: int, tag: int = 0) -> None:
        """`MPI_Send` of bytes."""
        assert source == self._rank, "a process sends for its own rank"
        self._everyone().Send(self._bytes(np.ascontiguousarray(row)), dest=destination, tag=tag)

    def recv(
        self, shape: tuple[int, ...], dtype: np.dtype, source: int, destination: int, tag: int = 0
    ) -> np.ndarray:
        """`MPI_Recv` of bytes."""
        assert destination == self._rank, "a process receives for its own rank"
        result = np.empty(shape, dtype)
        self._everyone().Recv(self._bytes(result), source=source, tag=tag)
        return result

    def broadcast(self, content: bytes) -> bytes:
        """`MPI_Bcast` of the length, then of the bytes."""
        communicator = self._everyone()
        length = np.array([len(content)], np.int64)
        communicator.Bcast(length, root=0)
        received = np.frombuffer(content, np.uint8) if self._rank == 0 else np.empty(length[0], np.uint8)
        communicator.Bcast(self._bytes(received), root=0)
        return received.tobytes()

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """`MPI_Allgather` of the lengths, then `MPI_Allgatherv` of the bytes."""
        communicator = self._everyone()
        lengths = np.empty(len(self._process_of_rank), np.int64)
        communicator.Allgather(np.array([len(content)], np.int64), lengths)
        ends = np.cumsum(lengths)
        received = np.empty(int(ends[-1]), np.uint8)
        mine = np.frombuffer(content, np.uint8)
        communicator.Allgatherv(self._bytes(mine), [received, lengths.tolist(), None, self._mpi.BYTE])
        return [received[end - length : end].tobytes() for end, length in zip(ends, lengths, strict=True)]

    def barrier(self) -> None:
        """`MPI_Barrier` of all ranks."""
        self._everyone().Barrier()

    def duplicate(self) -> MpiComm:
        """A comm with communicators of its own, made when they are used first."""
        self._num_duplicates += 1
        return MpiComm(self._mpi, self._process_of_rank, (*self._line, self._num_duplicates))

    def _everyone(self) -> Any:  # Any: a communicator
        return self._communicator(tuple(range(len(self._process_of_rank))))

    def _operation(self, op: ReduceOp) -> Any:  # Any: an MPI operation
        return {"sum": self._mpi.SUM, "max": self._mpi.MAX, "min": self._mpi.MIN}[op]

    def _bytes(self, array: np.ndarray) -> list[Any]:  # Any: an MPI buffer specification
        assert array.flags.c_contiguous, "buffers of backends are in C order"
        return [array.reshape(-1).view(np.uint8), self._mpi.BYTE]


def _reducible(row: np.ndarray) -> np.ndarray:
    if row.dtype in dtypes.FLOATS and row.dtype.itemsize <= 2:
        return row.astype(np.float32)
    return row.view(np.uint8) if row.dtype == dtypes.bool_ else row


def initialize() -> comm.Processes:
    """Find the MPI job of this process and make it the job of the program."""
    launcher = MpiLauncher()
    found = comm.Processes(launcher.index, launcher.count, launcher)
    comm.install_processes(found)
    if launcher.count > 1:
        launcher.abort_on_errors()
    return found
