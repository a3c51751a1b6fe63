"""Communication between the devices of one program: the protocol that backends implement, and the
processes of a job.

The collectives of a program are cut out by the backend and handed to a `Comm`, which knows ranks but no
mesh. A call takes one array per device of this process (a *row* each) and gives one back, so that one
protocol covers a process with many devices in lockstep, many processes with one device each, and
anything between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NoReturn, Protocol, TypeAlias, runtime_checkable

import numpy as np

from infini.core import config, errors
from infini.core.mesh import AbstractMesh

ReduceOp: TypeAlias = Literal["sum", "max", "min"]
Rows: TypeAlias = Sequence[np.ndarray]
# Ranks that take part together, in the order of their index along the axis; groups are disjoint and
# cover all ranks.
Groups: TypeAlias = tuple[tuple[int, ...], ...]


class Pending(Protocol):
    """A message that may be on its way still."""

    def wait(self) -> None:
        """Block until it has left; what is sent may change then."""


class Comm(Protocol):
    """Communication among the ranks of one program. Calls are blocking. Every process makes the same
    collectives in one order; `send` and `recv` are between two ranks, and concern nobody else.
    """

    local_ranks: tuple[int, ...]

    def all_reduce(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
        """Elementwise reduction over each group, in the order of its members; 16-bit floats accumulate
        in float32.
        """

    def all_gather(self, rows: Rows, groups: Groups) -> list[np.ndarray]:
        """Arrays of the group stacked along a fresh leading axis."""

    def all_to_all(self, rows: Rows, groups: Groups) -> list[np.ndarray]:
        """Block i of the leading axis goes to member i; blocks received are stacked in the order of the
        members.
        """

    def reduce_scatter(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
        """Block i of the leading axis, reduced over the group as by `all_reduce`, for member i."""

    def permute(self, rows: Rows, pairs: Sequence[tuple[int, int]], groups: Groups) -> list[np.ndarray]:
        """Send along (source, destination) pairs of group indices; a member that receives nothing gets
        zeros.
        """

    def send(self, row: np.ndarray, source: int, destination: int, tag: int = 0) -> None:
        """Give an array of a rank of this process to another rank. The array may change afterwards.

        The call may last until the other rank receives. Messages between two ranks with one tag arrive in
        the order in which they were sent.

        Args:
            row: the array.
            source: rank that gives it, one of `local_ranks`.
            destination: rank that gets it.
            tag: what tells messages between the same ranks apart, from 0 to 32767.
        """

    def start_send(self, row: np.ndarray, source: int, destination: int, tag: int = 0) -> Pending:
        """As `send`, without waiting for the other rank: two ranks may send to each other before either
        receives. The array is left alone until the message was waited for.
        """

    def recv(
        self, shape: tuple[int, ...], dtype: np.dtype, source: int, destination: int, tag: int = 0
    ) -> np.ndarray:
        """What `source` sent to `destination`, a rank of this process; waits for it.

        Args:
            shape: shape of the array; the sender does not tell it.
            dtype: its dtype.
            source: rank that sends it.
            destination: rank that gets it, one of `local_ranks`.
            tag: that of the message.

        Raises:
            CollectiveError: it would wait for ever, since both ranks are of this process and nothing was
                sent.
        """

    def broadcast(self, content: bytes) -> bytes:
        """What rank 0 gives, for every process; what others give is ignored."""

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """What each process gives, for every process, in the order of their ranks; lengths may differ."""

    def barrier(self) -> None:
        """Wait for every rank."""

    def duplicate(self) -> Comm:
        """A comm among the same ranks whose calls never meet those of this one, so that another thread may
        use it. Every process makes its duplicates in one order.
        """


class PassingComm:
    """A `Comm` that passes every call on to another one. Those that change some calls are made of it; their
    duplicates are of a kind of their own.

    Args:
        inner: the other one.
    """

    def __init__(self, inner: Comm) -> None:
        self.inner = inner
        self.local_ranks = inner.local_ranks

    def all_reduce(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
        """As `Comm.all_reduce`."""
        return self.inner.all_reduce(rows, op, groups)

    def all_gather(self, rows: Rows, groups: Groups) -> list[np.ndarray]:
        """As `Comm.all_gather`."""
        return self.inner.all_gather(rows, groups)

    def all_to_all(self, rows: Rows, groups: Groups) -> list[np.ndarray]:
        """As `Comm.all_to_all`."""
        return self.inner.all_to_all(rows, groups)

    def reduce_scatter(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
        """As `Comm.reduce_scatter`."""
        return self.inner.reduce_scatter(rows, op, groups)

    def permute(self, rows: Rows, pairs: Sequence[tuple[int, int]], groups: Groups) -> list[np.ndarray]:
        """As `Comm.permute`."""
        return self.inner.permute(rows, pairs, groups)

    def send(self, row: np.ndarray, source: int, destination: int, tag: int = 0) -> None:
        """As `Comm.send`."""
        self.inner.send(row, source, destination, tag)

    def start_send(self, row: np.ndarray, source: int, destination: int, tag: int = 0) -> Pending:
        """As `Comm.start_send`."""
        return self.inner.start_send(row, source, destination, tag)

    def recv(
        self, shape: tuple[int, ...], dtype: np.dtype, source: int, destination: int, tag: int = 0
    ) -> np.ndarray:
        """As `Comm.recv`."""
        return self.inner.recv(shape, dtype, source, destination, tag)

    def broadcast(self, content: bytes) -> bytes:
        """As `Comm.broadcast`."""
        return self.inner.broadcast(content)

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """As `Comm.gather_bytes`."""
        return self.inner.gather_bytes(content)

    def barrier(self) -> None:
        """As `Comm.barrier`."""
        self.inner.barrier()

    def duplicate(self) -> Comm:
        """As `Comm.duplicate`."""
        return self.inner.duplicate()


@runtime_checkable
class Overlaps(Protocol):
    """What a comm over several processes may offer besides."""

    @property
    def may_overlap(self) -> bool:
        """Whether a thread may make its calls while others call the same library."""


# What looks at the communication of programs while they run: gives a comm to take instead of one. Empty but
# for `testing.count_collectives`.
observers: Final[list[Callable[[Comm, AbstractMesh], Comm]]] = []


def observed(comm: Comm, mesh: AbstractMesh) -> Comm:
    """The comm that a program over a mesh uses, with every observer around it."""
    for observe in observers:
        comm = observe(comm, mesh)
    return comm


class Launcher(Protocol):
    """What knows the other processes of a job and can talk to them; there is one for MPI."""

    def comm(self, process_of_rank: tuple[int, ...]) -> Comm:
        """Communication among ranks, given the process that holds each; called in the same order
        everywhere.
        """

    def unwatched_comm(self, process_of_rank: tuple[int, ...]) -> Comm:
        """Communication of its own, among ranks of which some may wait for long, which `comm` takes for a
        fault.
        """

    def place(self) -> str:
        """Where among its collectives this process is, as a part of a sentence."""

    def abort(self, status: int) -> NoReturn:
        """End all processes of the job, after what this one has written is out."""


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of this job. A job of one process has no launcher."""

    index: int = 0
    count: int = 1
    launcher: Launcher | None = None
    num_sharing: int = 1  # processes of the job, this one included, that share its processor cores
    host_index: int = 0  # number of this process among those of its machine, which decides its accelerator


_processes = [Processes()]


def processes() -> Processes:
    """The job this process is part of; a job of one until `infini.parallel.initialize` was called."""
    return _processes[0]


def speaks() -> bool:
    """Whether this process is one that the knob `log_ranks` wants to hear of."""
    wanted = config.get("log_ranks")
    return wanted == "all" or processes().index in {int(part) for part in wanted.split(",")}


def prefix() -> str:
    """What a line of this process begins with: its number in brackets, unless it is 0 and speaks for all."""
    found = processes()
    if found.count == 1 or (found.index == 0 and config.get("log_ranks") == "0"):
        return ""
    return f"[{found.index}] "


def install_processes(found: Processes) -> None:
    """Set the job, once, before any device was used.

    Raises:
        CollectiveError: another job was set before.
    """
    if _processes[0].launcher is not None and _processes[0] != found:
        raise errors.CollectiveError("this process is part of a job already", got=str(_processes[0]))
    _processes[0] = found
