"""A checkpoint on its way: the thread that writes it, and what becomes of it."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

from infini.core import errors, events
from infini.parallel.checkpoints import notes, peers

_EXIT_PATIENCE_S: Final = 60.0  # for the parts of other processes, when this one ends


class CheckpointWriteError(errors.InfiniError, OSError):
    """A checkpoint could not be written; those before it are as they were."""


class Pending:
    """A checkpoint that is being written. Made by `save`.

    Attributes:
        folder: the folder that it will have.
        step: its step.
    """

    def __init__(self, folder: Path, step: int, job: peers.Peers) -> None:
        self.folder, self.step = folder, step
        self.opened: Future[Path] = Future()  # the hidden folder, in process 0
        self.is_given_up = threading.Event()
        self._job = job
        self._may_begin = threading.Event()
        self._share_written, self._finished = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._is_settled, self._settling = False, threading.Lock()
        self._failure: dict[str, Any] | None = None  # Any: numbers and words

    def done(self) -> bool:
        """Whether this process has nothing left to do for it, well or badly."""
        return self._finished.is_set()

    def wait(self) -> Path:
        """Wait until the checkpoint is there. In a job of several processes, call it in every one.

        Returns:
            Its folder.

        Raises:
            CheckpointWriteError: it could not be written; raised in every process.
        """
        with self._settling:
            if not self._is_settled:
                self._failure = self._settle()
                self._is_settled = True
        if self._failure is not None:
            raise self.failed(self._failure["process"], self._failure["text"]) from self._error
        return self.folder

    def start(self, work: Callable[[], None]) -> None:
        """Do the work of this process in a thread; what it raises is kept for `wait`."""

        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001  # raised by `wait`
                self._error = error
                if not self.opened.done():
                    self.opened.set_exception(error)
            finally:
                self._share_written.set()
                self._finished.set()

        threading.Thread(target=run, name="infini-checkpoint", daemon=True).start()

    def wait_to_begin(self, written: Path) -> None:
        """Show the hidden folder to the others, and wait until they have seen it; in process 0.

        Raises:
            GivenUpError: one of them does not see it.
        """
        self.opened.set_result(written)
        self._may_begin.wait()
        if self.is_given_up.is_set():
            raise notes.GivenUpError("another process does not see the folder")

    def begin(self) -> None:
        """All have seen the hidden folder; in process 0."""
        self._may_begin.set()

    def mark_share_written(self) -> None:
        """The part of this process is on disk."""
        self._share_written.set()

    def give_up(self) -> None:
        """Have process 0 delete what there is, and wait for that."""
        self.is_given_up.set()
        self._may_begin.set()
        if self._job.index == 0:
            self._finished.wait()

    def failed(self, process: int, text: str) -> CheckpointWriteError:
        """The error for what went wrong in a process."""
        place = f" in process {process}" if self._job.count > 1 else ""
        return CheckpointWriteError(
            f"the checkpoint of step {self.step} could not be written",
            got=f"{text}{place}",
            expected=f"a folder that can be written, with enough space: {self.folder.parent}",
            fix="make room or see to permissions, then go on: the checkpoints before it are whole",
        )

    @property
    def is_settled(self) -> bool:
        """Whether all processes know what became of it."""
        return self._is_settled

    def finish_at_exit(self) -> None:
        """Let the thread finish when the process ends, and say what nobody has asked for."""
        if not self._finished.wait(_EXIT_PATIENCE_S):
            self.is_given_up.set()
            self._finished.wait(_EXIT_PATIENCE_S)
        if self._error is not None and not self._is_settled:
            events.emit(
                "checkpoint-failed", f"the checkpoint of step {self.step}: {self._error}", level="warning"
            )

    def _settle(self) -> dict[str, Any] | None:  # Any: numbers and words
        """What went wrong, the same in every process."""
        self._share_written.wait()
        words = [word for word in self._job.gather(self._word()) if word is not None]
        if words:
            self.give_up()
            return next((word for word in words if not word["is_consequence"]), words[0])
        if self._job.index == 0:
            self._finished.wait()
        failure: dict[str, Any] | None = self._job.tell(self._word())
        return failure

    def _word(self) -> dict[str, Any] | None:  # Any: numbers and words
        if self._error is None:
            return None
        is_consequence = isinstance(self._error, notes.GivenUpError)
        return {"process": self._job.index, "text": str(self._error), "is_consequence": is_consequence}


class _Outstanding:
    """The last save of this process, which the next one waits for."""

    def __init__(self) -> None:
        self._pending: Pending | None = None
        self._is_registered = False

    def settle(self) -> None:
        """Wait for it, unless all know already what became of it.

        Raises:
            CheckpointWriteError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None and not pending.is_settled:
            pending.wait()

    def put(self, pending: Pending) -> None:
        """Remember a save."""
        self._pending = pending
        if not self._is_registered:
            atexit.register(self._at_exit)
            self._is_registered = True

    def _at_exit(self) -> None:
        if self._pending is not None:
            self._pending.finish_at_exit()


OUTSTANDING: Final = _Outstanding()
