"""Where exchanges are made: at once, or by one thread of the process beside what it computes.

There is one thread per process, and it makes exchanges in the order in which they were begun: every process
runs the same schedule, so they meet in that order. Blocking calls on a thread are what makes progress with
every MPI; most have no progress for non-blocking ones while nobody calls them.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Pending(Protocol[T_co]):
    """An exchange that was begun."""

    def wait(self) -> T_co:
        """What it made, once it has ended; raises what it raised."""


class Exchanger(Protocol):
    """Makes exchanges in the order in which they are given."""

    def run(self, exchange: Callable[[], T]) -> T:
        """Make an exchange after all that were begun."""

    def start(self, exchange: Callable[[], T]) -> Pending[T]:
        """Begin an exchange."""


class Ended(Generic[T]):
    """An exchange that ended when it was begun."""

    __slots__ = ("_found",)

    def __init__(self, found: T) -> None:
        self._found = found

    def wait(self) -> T:
        """What it made."""
        return self._found


class Immediate:
    """Makes every exchange at once: for devices of one process, and where MPI allows no other thread."""

    def run(self, exchange: Callable[[], T]) -> T:
        """Make it."""
        return exchange()

    def start(self, exchange: Callable[[], T]) -> Ended[T]:
        """Make it."""
        return Ended(exchange())


IMMEDIATE: Final = Immediate()


class Task(Generic[T]):
    """An exchange in the queue of a thread."""

    __slots__ = ("_ended", "_error", "_exchange", "_found")

    def __init__(self, exchange: Callable[[], T]) -> None:
        self._exchange: Callable[[], T] | None = exchange
        self._ended = threading.Event()
        self._found: T | None = None
        self._error: BaseException | None = None

    def make(self) -> None:
        """Make the exchange, in the thread."""
        assert self._exchange is not None
        try:
            self._found = self._exchange()
        except BaseException as error:  # noqa: BLE001  # it is raised by who waits
            self._error = error
        self._exchange = None  # which holds what was sent

    def end(self) -> None:
        """Wake who waits."""
        self._ended.set()

    def wait(self) -> T:
        """What it made, once it has ended; raises what it raised."""
        self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._found  # type: ignore[return-value]  # it ended


class CommThread:
    """A thread that makes exchanges, in the order in which they were begun. It starts with the first one."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Task[Any]] = queue.SimpleQueue()  # Any: of each what it makes
        self._lock = threading.Lock()
        self._num_begun = self._num_ended = 0
        self._thread: threading.Thread | None = None

    def run(self, exchange: Callable[[], T]) -> T:
        """Make an exchange after all that were begun: here, when they have ended."""
        with self._lock:
            is_idle = self._num_begun == self._num_ended
        return exchange() if is_idle else self.start(exchange).wait()

    def start(self, exchange: Callable[[], T]) -> Task[T]:
        """Begin an exchange."""
        task = Task(exchange)
        with self._lock:
            self._num_begun += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="infini-exchanges", daemon=True)
                self._thread.start()
        self._tasks.put(task)
        return task

    def _work(self) -> None:
        while True:
            task = self._tasks.get()
            task.make()
            with self._lock:
                self._num_ended += 1
            task.end()
            del task  # or what it made would live until the next one


@functools.cache
def shared() -> CommThread:
    """The thread of this process."""
    return CommThread()
