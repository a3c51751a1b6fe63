"""Who waits for an exchange between devices: the host does not, so a thread follows each one on its way.

It enters the exchange among the collectives of the process when the one before has ended, as a host that
blocks in it would. So the watchdog of a job can name who has not arrived, and a connection that broke ends
the job with the operation and its line.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from infini.backends.accelerator.driver import Driver
from infini.backends.spmd import activity
from infini.backends.spmd.activity import WatchedComm
from infini.core.comm import Groups
from infini.core.ir import Equation

CHANNEL: Final = "devices"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2e-4, 0.05


class Lookout:
    """Follows the exchanges of one program.

    Args:
        comm: communication of the processes, whose collectives are noted.
        check: raises when the library has found that something broke.
    """

    def __init__(self, comm: WatchedComm, check: Callable[[], None]) -> None:
        self._comm, self._check = comm, check

    def follow(self, equation: Equation, groups: Groups, driver: Driver) -> None:
        """Follow what was started last on a stream."""
        event = driver.record()

        def wait() -> None:
            with (
                activity.of_equation(equation),
                self._comm.noted(groups, equation.op.name, CHANNEL),
            ):
                pause_s = _FIRST_PAUSE_S
                while not driver.has_happened(event):
                    self._check()
                    time.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            driver.discard(event)

        _thread().put(wait)


class _Follower:
    """The thread of this process. What is raised in it ends the job, as in every thread."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()  # Any: functions
        threading.Thread(target=self._work, name="infini-device-exchanges", daemon=True).start()

    def put(self, wait: Callable[[], None]) -> None:
        """Follow one more."""
        self._tasks.put(wait)

    def _work(self) -> None:
        while True:
            self._tasks.get()()


@functools.cache
def _thread() -> _Follower:
    return _Follower()
