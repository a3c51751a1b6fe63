"""Events: what the system tells people while it works, each with a stable code. Warnings are events.

Listeners get every event; events of level `warning` also become `InfiniWarning`, which tests treat as an
error.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from infini.core import config, errors

Level = Literal["debug", "info", "warning", "error"]
_RANK: Final[dict[str, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_logger = logging.getLogger("infini")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: a stable `code` such as `donation-unused`, a sentence, and data."""

    code: str
    message: str
    level: Level = "info"
    data: dict[str, Any] = field(default_factory=dict)  # Any: data of many kinds


_listeners: list[Callable[[Event], None]] = []


def emit(code: str, message: str, *, level: Level = "info", **data: object) -> None:
    """Tell listeners, the log, and for warnings Python's warning system."""
    event = Event(code, message, level, data)
    for listener in tuple(_listeners):
        listener(event)
    if level == "warning":
        warnings.warn(f"[{code}] {message}", errors.InfiniWarning, stacklevel=3)
    elif _RANK[level] >= _RANK[config.get("log")]:
        _logger.log(_RANK[level], "[%s] %s", code, message)


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
