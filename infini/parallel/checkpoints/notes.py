"""Notes that processes leave each other in the hidden folder of a checkpoint: `process-00001.note`.

A note appears whole. It says how long the part of the process is and what its SHA-256 is, or what went wrong.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgpack

Facts: TypeAlias = dict[str, Any]  # Any: numbers and words

_FIRST_PAUSE_S: Final = 0.002
_LONGEST_PAUSE_S: Final = 0.2


class GivenUpError(Exception):
    """A checkpoint is not finished, for a reason that lies elsewhere."""


def leave(folder: Path, process: int, facts: Facts) -> None:
    """Leave the note of a process.

    Raises:
        OSError: the system refused.
    """
    name = _name(process)
    hidden = folder / f".{name}"
    hidden.write_bytes(msgpack.packb(facts))
    os.replace(hidden, folder / name)  # noqa: PTH105  # atomic, and no rename of a folder


def collect(folder: Path, num_processes: int, is_given_up: threading.Event) -> list[Facts]:
    """The notes of all processes, when they are there.

    Raises:
        GivenUpError: a note says that something went wrong, or the flag went up.
    """
    found: dict[int, Facts] = {}
    pause = _FIRST_PAUSE_S
    while True:
        for process in range(num_processes):
            if process not in found and (folder / _name(process)).exists():
                facts: Facts = msgpack.unpackb((folder / _name(process)).read_bytes())
                if "problem" in facts:
                    raise GivenUpError(f"process {process}: {facts['problem']}")
                found[process] = facts
        if len(found) == num_processes:
            return [found[process] for process in range(num_processes)]
        if is_given_up.wait(pause):
            raise GivenUpError("another process could not write its part")
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def delete(folder: Path, num_processes: int) -> None:
    """Delete the notes of all processes."""
    for process in range(num_processes):
        (folder / _name(process)).unlink()


def appears(folder: Path, patience_s: float) -> bool:
    """Whether this process sees a folder, now or soon."""
    end = time.monotonic() + patience_s
    while not folder.is_dir():
        if time.monotonic() > end:
            return False
        time.sleep(_FIRST_PAUSE_S)
    return True


def _name(process: int) -> str:
    return f"process-{process:05}.note"
