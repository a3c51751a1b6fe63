"""Programs over several processes take turns: every process runs the same ones in the same order, or what one
of them sends is taken for something else by another.

Whether it is the same program everywhere is asked before each run, see `agreement`. What can be seen from
inside one process is refused here: two threads that run such programs at once, and a program after one that
ended in the middle.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Final

from infini.core import comm, errors


class Turns:
    """Whose turn it is in this process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a callback of a program may run another one
        self._left = ""

    @contextlib.contextmanager
    def one(self, name: str) -> Iterator[None]:
        """A block in which a program communicates.

        Args:
            name: of the program.

        Raises:
            CollectiveError: another thread runs one, or one was left in the middle.
        """
        self._check()
        if not self._lock.acquire(blocking=False):
            raise errors.CollectiveError(
                "two threads run programs over several processes at once",
                got=f"{name}, in the thread {threading.current_thread().name!r}",
                expected="programs in one order, the same in every process",
                fix="run them all in one thread",
            )
        try:
            yield
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def meeting(self, name: str) -> Iterator[None]:
        """A block that sends messages to other processes, or waits for theirs, in an order that all know.

        Args:
            name: what it does.

        Raises:
            CollectiveError: one before was left in the middle.
        """
        self._check()
        try:
            yield
        except BaseException as error:
            if comm.processes().count > 1:
                self.leave(name, error)
            raise

    def _check(self) -> None:
        if self._left:
            raise errors.CollectiveError(
                "the processes of this job are no longer in step",
                got=self._left,
                expected="every program over several processes to run to its end, in all of them",
                fix="end the job, or catch such errors before a program over several processes begins",
            )

    def leave(self, name: str, error: BaseException) -> None:
        """A program ended in the middle, when it had met the other processes already: this one is out of step
        from now on.

        Args:
            name: of the program.
            error: what ended it.
        """
        self._left = f"{name} ended in the middle by {type(error).__name__}: {error}".rstrip(": ")


TURNS: Final = Turns()
