"""What this process does together with others: which collectives it has entered, for those who wait for it.

A `WatchedComm` notes every call before it blocks. Collectives are numbered per group of processes, and all
members of a group number theirs alike; so a process whose count is behind that of a waiting one has not
arrived. The walk over a program names the operation and the user's line with `doing`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from infini.core import source
from infini.core.comm import Comm, Groups, Pending, ReduceOp, Rows
from infini.core.ir import Equation


@dataclass(frozen=True, slots=True)
class Group:
    """Processes that communicate, and the channel they use: calls of two channels never meet."""

    processes: tuple[int, ...]
    channel: str = ""


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective that a process has entered.

    Args:
        op: operation, as the program names it.
        where: the user's line.
        group: who takes part.
        number: its number among those of the group, from 1.
        since: when it was entered, on this process' monotonic clock.
    """

    op: str
    where: source.Where | None
    group: Group
    number: int
    since: float

    def __str__(self) -> str:
        return f"{self.op} at {self.where}" if self.where else self.op


class Activity:
    """The collectives of this process. Threads write it, and the control channel reads it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[Group, int] = {}
        self._current: dict[int, Collective] = {}  # by thread
        self._last: Collective | None = None
        self._failed: Collective | None = None
        self._changed = time.monotonic()

    @contextlib.contextmanager
    def inside(self, group: Group, method: str, *, again: bool = False) -> Iterator[None]:
        """A block that waits for the processes of a group.

        Args:
            group: who takes part.
            method: what is called; the operation is that of `doing` where there is one.
            again: whether it waits for what was entered last, instead of entering another.
        """
        op, where = getattr(_named, "equation", None) or (method, source.here())
        thread = threading.get_ident()
        with self._lock:
            number = self._counts[group] = self._counts.get(group, 0) + (not again)
            now = time.monotonic()
            self._current[thread] = entered = Collective(op, where, group, number, now)
            self._failed = None
        try:
            yield
        except BaseException:
            self._failed = entered
            raise
        finally:
            with self._lock:
                del self._current[thread]
                self._last, self._changed = entered, time.monotonic()

    @property
    def counts(self) -> dict[Group, int]:
        """How many collectives of each group were entered."""
        with self._lock:
            return dict(self._counts)

    @property
    def current(self) -> tuple[Collective, ...]:
        """The collectives that threads of this process are in."""
        with self._lock:
            return tuple(self._current.values())

    @property
    def last(self) -> Collective | None:
        """The collective that was left last."""
        return self._last

    @property
    def idle_s(self) -> float:
        """Seconds since a collective was left, or since the start."""
        return time.monotonic() - self._changed

    def place(self) -> str:
        """Where among the collectives this process is, as a part of a sentence."""
        for collective in (*self.current, *([self._failed] if self._failed else [])):
            return f"in {collective}, number {collective.number} of {named(collective.group.processes)}"
        if self._last is None:
            return "before its first collective"
        return f"after {self._last}, number {self._last.number} of {named(self._last.group.processes)}"


_named: Final = threading.local()


@contextlib.contextmanager
def doing(op: str, where: source.Where | None) -> Iterator[None]:
    """Name what the calls of a `WatchedComm` inside the block are for."""
    before = getattr(_named, "equation", None)
    _named.equation = (op, where)
    try:
        yield
    finally:
        _named.equation = before


def of_equation(equation: Equation) -> contextlib.AbstractContextManager[None]:
    """`doing` for a collective of a program."""
    return doing(equation.op.name, equation.where)


def named(processes: Sequence[int]) -> str:
    """Numbers of processes for people: `process 3`, `processes 0 to 3`, `processes 0, 2, 5`."""
    found = sorted(set(processes))
    if len(found) == 1:
        return f"process {found[0]}"
    if len(found) > 2 and found == list(range(found[0], found[-1] + 1)):
        return f"processes {found[0]} to {found[-1]}"
    return f"processes {', '.join(map(str, found))}"


class WatchedComm:
    """A comm whose calls are noted before they block.

    Args:
        inner: what communicates.
        owners: process of each rank.
        activity: where calls are noted.
        channel: name of the communicators of `inner`.
    """

    def __init__(self, inner: Comm, owners: tuple[int, ...], activity: Activity, channel: str = "") -> None:
        self.local_ranks = inner.local_ranks
        self._inner, self._owners, self._activity, self._channel = inner, owners, activity, channel
        self._num_duplicates = 0

    def all_reduce(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
        """As `Comm.all_reduce`."""
        with self.noted(groups, f"all_reduce of {op}"):
            return self._inner.all_reduce(rows, op, groups)

    def all_gather(self, rows: Rows, groups: Groups) -> list[np.ndarray]:
        """As `Comm.all_gather`."""
        with self.noted(groups, "all_gather"):
            return self._inner.all_gather(rows, groups)

    def all_to_all(self, rows: Rows, groups: Groups) -> list[np.ndarray]:
        """As `Comm.all_to_all`."""
        with self.noted(groups, "all_to_all"):
            return self._inner.all_to_all(rows, groups)

    def reduce_scatter(self, rows: Rows, op: ReduceOp, groups: Groups) -> list[np.ndarray]:
        """As `Comm.reduce_scatter`."""
        with self.noted(groups, f"reduce_scatter of {op}"):
            return self._inner.reduce_scatter(rows, op, groups)

    def permute(self, rows: Rows, pairs: Sequence[tuple[int, int]], groups: Groups) -> list[np.ndarray]:
        """As `Comm.permute`."""
        with self.noted(groups, "permute"):
            return self._inner.permute(rows, pairs, groups)

    def send(self, row: np.ndarray, source: int, destination: int, tag: int = 0) -> None:
        """As `Comm.send`."""
        with self._between(source, destination, tag, f"send to process {self._owners[destination]}"):
            self._inner.send(row, source, destination, tag)

    def start_send(self, row: np.ndarray, source: int, destination: int, tag: int = 0) -> Pending:
        """As `Comm.start_send`; waiting for it is noted, too."""
        method = f"send to process {self._owners[destination]}"
        with self._between(source, destination, tag, method):
            inner = self._inner.start_send(row, source, destination, tag)
        return _Leaving(inner, lambda: self._between(source, destination, tag, method, again=True))

    def recv(
        self, shape: tuple[int, ...], dtype: np.dtype, source: int, destination: int, tag: int = 0
    ) -> np.ndarray:
        """As `Comm.recv`."""
        with self._between(source, destination, tag, f"recv from process {self._owners[source]}"):
            return self._inner.recv(shape, dtype, source, destination, tag)

    def broadcast(self, content: bytes) -> bytes:
        """As `Comm.broadcast`."""
        with self.noted(self._everyone, "broadcast"):
            return self._inner.broadcast(content)

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """As `Comm.gather_bytes`."""
        with self.noted(self._everyone, "gather_bytes"):
            return self._inner.gather_bytes(content)

    def barrier(self) -> None:
        """As `Comm.barrier`."""
        with self.noted(self._everyone, "barrier"):
            self._inner.barrier()

    def duplicate(self) -> WatchedComm:
        """As `Comm.duplicate`; its calls are numbered apart."""
        self._num_duplicates += 1
        channel = f"{self._channel}/{self._num_duplicates}"
        return WatchedComm(self._inner.duplicate(), self._owners, self._activity, channel)

    @property
    def may_overlap(self) -> bool:
        """As `core.comm.Overlaps`."""
        return bool(getattr(self._inner, "may_overlap", False))

    @property
    def _everyone(self) -> Groups:
        return (tuple(range(len(self._owners))),)

    def noted(
        self, groups: Groups, method: str, channel: str = ""
    ) -> contextlib.AbstractContextManager[None]:
        """A block that waits for the other members of the group of this process.

        Args:
            groups: groups of ranks.
            method: what is called.
            channel: of what does not go through this comm; it is numbered apart.
        """
        (rank, *_) = self.local_ranks
        ranks = next(group for group in groups if rank in group)
        if len(ranks) == 1:
            return contextlib.nullcontext()
        group = Group(tuple(self._owners[rank] for rank in ranks), self._channel + channel)
        return self._activity.inside(group, method)

    def _between(
        self, source: int, destination: int, tag: int, method: str, *, again: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        ends = (self._owners[source], self._owners[destination])
        group = Group(ends, f"{self._channel}#{ends[0]}>{ends[1]}:{tag}")
        return self._activity.inside(group, method, again=again)


@dataclass(frozen=True, slots=True)
class _Leaving:
    """A message on its way; whoever waits for it is noted."""

    inner: Pending
    noted: Callable[[], contextlib.AbstractContextManager[None]]

    def wait(self) -> None:
        """As `Pending.wait`."""
        with self.noted():
            self.inner.wait()
