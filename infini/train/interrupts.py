"""Ctrl-C and the polite kill: the first one only raises a flag, because a step cut off would lose its donated
state; the second one does what it did before.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Final

from infini.core import events

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def held_back() -> Iterator[Callable[[], bool]]:
    """Within the block the first Ctrl-C or SIGTERM raises a flag and emits the event `interrupt-held-back`.

    Yields:
        A function that says whether the flag is up.
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag.is_set  # signals reach the main thread only
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(number: int, frame: object) -> None:
        flag.set()
        restore()
        events.emit("interrupt-held-back", "finishing the step; a second Ctrl-C quits at once")

    for number in _SIGNALS:
        signal.signal(number, on_signal)
    try:
        yield flag.is_set
    finally:
        restore()
