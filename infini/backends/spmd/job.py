"""The job of this process, as everything above sees it: communication that is noted, and one way to end.

What carries the bytes is below: `mpi`. The control channel and the hooks for errors are beside: `control`,
`failures`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, NoReturn, Protocol

from infini.backends.spmd.activity import Activity, WatchedComm
from infini.core.comm import Comm

# Launchers stop reading the output of a job that aborts: they get this long to pass the last words on.
FORWARDING_S: Final = 0.5
_BACKSTOP_S: Final = 5.0  # for an abort that does not end this process


class Carrier(Protocol):
    """What moves bytes between the processes of a job."""

    @property
    def index(self) -> int:
        """Number of this process."""

    @property
    def count(self) -> int:
        """Number of processes."""

    def comm(self, process_of_rank: tuple[int, ...]) -> Comm:
        """Communication among ranks, given the process that holds each."""

    def abort(self, status: int) -> None:
        """End all processes of the job."""


class Job:
    """The processes that were started together; see `core.comm.Launcher`.

    Args:
        carrier: what moves bytes between them.
    """

    def __init__(self, carrier: Carrier) -> None:
        self.index, self.count = carrier.index, carrier.count
        self.activity = Activity()
        self._carrier = carrier
        self._comms: dict[tuple[int, ...], WatchedComm] = {}
        self._process = os.getpid()
        # Set when this process, or one that has told it, is about to end the job: nobody else need say why.
        self.is_ending = threading.Event()
        self.last_words: Callable[[], object] = lambda: None  # what tells the others

    @property
    def is_here(self) -> bool:
        """Whether this process is the one that joined, and not a fork of it."""
        return os.getpid() == self._process

    def comm(self, process_of_rank: tuple[int, ...]) -> WatchedComm:
        """Communication among ranks, given the process that holds each.

        Raises:
            DeviceError: the carrier cannot serve such ranks.
        """
        found = self._comms.get(process_of_rank)
        if found is None:
            inner = self._carrier.comm(process_of_rank)
            found = self._comms[process_of_rank] = WatchedComm(inner, process_of_rank, self.activity)
        return found

    def unwatched_comm(self, process_of_rank: tuple[int, ...]) -> Comm:
        """Communication of its own in which waiting for long is no fault: for the next thing to do, say."""
        # Twice: what the first duplicate is called, the control channel is called too.
        return self._carrier.comm(process_of_rank).duplicate().duplicate()

    def place(self) -> str:
        """Where among its collectives this process is, as a part of a sentence."""
        return self.activity.place()

    def say(self, text: str) -> None:
        """Write to standard error past Python's buffers, at once: another thread may hold them."""
        with contextlib.suppress(OSError):  # nobody reads it any more; the job has to end all the same
            os.write(2, (text + "\n").encode(errors="backslashreplace"))

    def abort(self, status: int) -> NoReturn:
        """End all processes of the job, after what was written has left this one."""
        self.is_ending.set()
        backstop = threading.Timer(_BACKSTOP_S, os._exit, (status,))
        backstop.daemon = True
        backstop.start()
        self.last_words()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
        time.sleep(FORWARDING_S)
        self._carrier.abort(status)
        os._exit(status)
