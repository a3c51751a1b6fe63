"""A run that starts its own processes and starts them again when they fail: `infini train --processes 4
--max-restarts 3`.

A process inside a job cannot restart the job, so the command that people type becomes a supervisor: it starts
the same command under `mpirun`, passes signals on, and after a failure goes on with the newest checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Final

from infini.backends.spmd import witness
from infini.cli import output
from infini.core import errors
from infini.parallel import processes as processes_

_FORWARDED: Final = (signal.SIGINT, signal.SIGTERM)
_FIRST_PAUSE_S: Final = 0.5  # before the first restart; each later one waits twice as long
_MAX_PAUSE_S: Final = 60.0
INTERRUPTED: Final = 130  # what shells report of a program that Ctrl-C ended


def check_outside(processes: int, max_restarts: int, arguments: Sequence[str]) -> None:
    """Refuse to start a job from inside one.

    Args:
        processes: how many were asked for.
        max_restarts: how often to start again.
        arguments: the rest of the command.

    Raises:
        UnsupportedError: this process is part of a job.
    """
    if processes_.is_in_job():
        own = ["--processes", str(processes), "--max-restarts", str(max_restarts)]
        raise errors.UnsupportedError(
            "--processes and --max-restarts start a job, and this process is in one already",
            got="a process that mpirun has started",
            expected="a plain process, which starts mpirun itself",
            fix=f"leave mpirun out: {shlex.join(['infini', *arguments, *own])}",
        )


def supervise(
    start: Sequence[str],
    resume: Sequence[str],
    *,
    processes: int,
    max_restarts: int,
    can_resume: Callable[[], bool],
    newest: Callable[[], str],
) -> int:
    """Run a command in several processes, and again from where it was when they fail.

    Args:
        start: arguments of `infini` for the first time.
        resume: those for the next times.
        processes: how many.
        max_restarts: how often to start again.
        can_resume: whether there is something to go on with; without, the failure is final.
        newest: what the next processes go on from, for people.

    Returns:
        The status of the last processes.

    Raises:
        DeviceError: there is no mpirun.
    """
    launcher = processes_.mpirun(processes)
    arguments = start
    for restart in range(max_restarts + 1):
        status, was_asked = _run([*launcher, sys.executable, "-m", "infini", *arguments])
        if status in (0, INTERRUPTED) or was_asked:
            return status
        if restart == max_restarts:
            break
        if not can_resume():
            output.say(f"the processes ended with {_named(status)} before there was anything to go on with")
            return status
        output.say(
            f"the processes ended with {_named(status)}: restart {restart + 1} of {max_restarts}, {newest()}"
        )
        time.sleep(min(_FIRST_PAUSE_S * 2**restart, _MAX_PAUSE_S))
        arguments = resume
    if max_restarts:
        output.say(f"the processes ended with {_named(status)}, and all {max_restarts} restarts are used")
    return status


def _run(command: Sequence[str]) -> tuple[int, bool]:
    """Status of a command as a shell shows it, and whether a signal to this process has ended it."""
    with witness.Witness() as seen, _Forwarding() as forwarding:
        # In a group of its own it gets each signal once: from us, and not from the terminal as well.
        group = 0 if os.name == "posix" else None
        environment = os.environ | seen.environment
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=group, env=environment)
        forwarding.to(child)
        status = child.wait()
    if seen.gone and not forwarding.was_asked:
        output.say(
            f"process {seen.gone[0]} was gone first: killed, crashed in native code, or left by os._exit"
        )
    return (128 - status if status < 0 else status), forwarding.was_asked


class _Forwarding:
    """A block in which Ctrl-C and the polite kill go to a child, which knows better what to do."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._signals: list[int] = []
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> _Forwarding:
        for number in _FORWARDED:
            self._before[number] = signal.signal(number, self._forward)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave

    def to(self, child: subprocess.Popen[bytes]) -> None:
        """Name the child; it gets what has come already."""
        self._child = child
        for number in self._signals:
            child.send_signal(number)

    @property
    def was_asked(self) -> bool:
        """Whether there was a signal."""
        return bool(self._signals)

    def _forward(self, number: int, _: FrameType | None) -> None:
        self._signals.append(number)
        if self._child is not None:
            self._child.send_signal(number)


def _named(status: int) -> str:
    """A status for people; mpirun gives the bare number of a signal that killed a process."""
    number = status - 128 if status > 128 else status
    with contextlib.suppress(ValueError):
        if number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGTERM):
            return f"status {status} ({signal.Signals(number).name})"
    return f"status {status}"
