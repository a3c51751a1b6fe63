"""An error that nobody catches in one process ends the whole job, whose other processes would wait for it.

The hooks of Python for uncaught errors, of the main thread and of others, print as before, add which process
it was and in which collective, and abort. Python tells no hook of `SystemExit`; what can be known of it is
kept for the report on processes that ended while others wait for them.
"""

from __future__ import annotations

import contextlib
import opcode
import sys
import threading
import traceback
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Final

from infini.backends.spmd.job import Job
from infini.core import source

_INTERRUPTED: Final = 130  # what shells report of a program that Ctrl-C ended
_MAX_STACK: Final = 4000  # letters of a stack that are told to others


@dataclass(frozen=True, slots=True)
class Ending:
    """How the program of a process ended without an uncaught error.

    Args:
        how: a part of a sentence.
        stack: where it left, when it left early.
    """

    how: str
    stack: str = ""


class Failures:
    """The hooks of one process.

    Args:
        job: the job to end.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._exit: tuple[object, str] | None = None  # the status of the last `sys.exit`, and its stack
        self._outermost = _outermost_frame()

    def install(self) -> None:
        """Put the hooks before those there are."""
        self._hook_main_thread()
        self._hook_other_threads()
        self._hook_exit()

    def ending(self) -> Ending:
        """How the program ended; called while Python shuts down."""
        frame = self._outermost
        if frame is None or _has_returned(frame):
            return Ending("has ended its program")
        where = source.line_of(frame)
        at = f" at {where}" if where else ""
        if self._exit is None:
            return Ending(f"has ended its program by SystemExit{at}")
        status, stack = self._exit
        return Ending(f"has ended its program by sys.exit({status!r}){at}", stack[-_MAX_STACK:])

    def _hook_main_thread(self) -> None:
        previous, job = sys.excepthook, self._job

        def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            try:
                previous(kind, error, trace)
            finally:  # it fails where nobody reads
                if job.is_here:
                    self._end(_INTERRUPTED if issubclass(kind, KeyboardInterrupt) else 1)

        sys.excepthook = hook

    def _hook_other_threads(self) -> None:
        previous, job = threading.excepthook, self._job

        def hook(arguments: Any) -> None:  # Any: threading.ExceptHookArgs, a tuple with fields
            try:
                previous(arguments)
            finally:
                # A thread may end itself by SystemExit, which is no error.
                if job.is_here and not issubclass(arguments.exc_type, SystemExit):
                    name = arguments.thread.name if arguments.thread is not None else "unknown"
                    self._end(1, f", in its thread {name}")

        threading.excepthook = hook

    def _hook_exit(self) -> None:
        leave = sys.exit

        def exit_(status: Any = None, /) -> Any:  # Any: as of sys.exit
            if threading.current_thread() is threading.main_thread():
                self._exit = (status, "".join(traceback.format_stack(sys._getframe(1))))
            leave(status)

        sys.exit = exit_

    def _end(self, status: int, detail: str = "") -> None:
        job = self._job
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        job.say(
            f"infini: process {job.index} of {job.count} ended the job by this error{detail}, {job.place()}"
        )
        job.abort(status)


def _outermost_frame() -> FrameType | None:
    """The first frame of the main thread, if this is it."""
    if threading.current_thread() is not threading.main_thread():
        return None
    frame = sys._getframe(0)
    while frame.f_back is not None:
        frame = frame.f_back
    return frame


def _has_returned(frame: FrameType) -> bool:
    """Whether a frame that runs no more was left by its end, and not by an exception."""
    code = frame.f_code.co_code
    return 0 <= frame.f_lasti < len(code) and opcode.opname[code[frame.f_lasti]].startswith("RETURN")
