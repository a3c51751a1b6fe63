"""Events: what the system tells people while it works, each with a stable code. Warnings are events.

Listeners get every event; events of level `warning` also become `InfiniWarning`, which tests treat as an
error.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from infini.core import comm, config, errors

Level = Literal["debug", "info", "warning", "error"]
_RANK: Final[dict[str, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_logger = logging.getLogger("infini")
_logger.setLevel(logging.DEBUG)  # the knob `log` decides, and the handlers of the program


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: a stable `code` such as `donation-unused`, a sentence, and data."""

    code: str
    message: str
    level: Level = "info"
    data: dict[str, Any] = field(default_factory=dict)  # Any: data of many kinds


_listeners: list[Callable[[Event], None]] = []


def emit(code: str, message: str, *, level: Level = "info", is_asked: bool = False, **data: object) -> None:
    """Tell listeners, the log, and for warnings Python's warning system.

    Args:
        code: stable name of what happened.
        message: a sentence about it.
        level: how severe it is.
        is_asked: whether a knob asks for this event, so that it is shown whatever the knob `log` says.
        data: for listeners.
    """
    event = Event(code, message, level, data)
    for listener in tuple(_listeners):
        listener(event)
    if level == "warning":
        warnings.warn(f"[{code}] {message}", errors.InfiniWarning, stacklevel=3)
    elif is_asked or (_RANK[level] >= _RANK[config.get("log")] and (level == "error" or comm.speaks())):
        _write(_RANK[level], f"{comm.prefix()}[{code}] {message}")


def _write(rank: int, text: str) -> None:
    """To the handlers of the program's log, or to the terminal when it has none."""
    if _logger.hasHandlers():
        _logger.log(rank, "%s", text)
    else:
        sys.stderr.write(f"infini: {text}\n")


@contextmanager
def listen(listener: Callable[[Event], None]) -> Iterator[None]:
    """Call `listener` with every event inside the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def record() -> Iterator[list[Event]]:
    """Collect the events of a block in a list."""
    found: list[Event] = []
    with listen(found.append):
        yield found
