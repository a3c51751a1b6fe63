"""Batches made ahead by a thread, in order, a bounded number of them."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_PATIENCE_S = 0.1  # how soon a thread that waits for room notices that it should end


class Prefetch(Generic[T], Iterator[T]):
    """Iterates over `make(start), make(start + 1), ...`, each made before it is asked for.

    Use it in a `with` block, or call `close`: the thread ends then, whatever it is at.

    Args:
        make: gives the item of a number; called in the thread. What it raises is raised by `next`.
        start: number of the first item.
        stop: number after the last one; None for no end.
        depth: how many items wait at most.

    Attributes:
        wait_s: seconds that the last `next` waited.

    Example:
        >>> with Prefetch(lambda number: number**2, start=3, stop=6) as squares:
        ...     list(squares)
        [9, 16, 25]
    """

    def __init__(
        self, make: Callable[[int], T], *, start: int = 0, stop: int | None = None, depth: int = 2
    ) -> None:
        self.wait_s = 0.0
        self._make, self._next, self._stop = make, start, stop
        self._ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(max(depth, 1))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(start,), name="infini-prefetch", daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        if self._closed.is_set() or self._next == self._stop:
            raise StopIteration
        started = time.perf_counter()
        item, error = self._ready.get()
        self.wait_s = time.perf_counter() - started
        if error is not None:
            self.close()
            raise error
        self._next += 1
        return item  # type: ignore[return-value]  # without an error there is an item, which may be None

    def close(self) -> None:
        """End the thread and forget what it has made."""
        self._closed.set()
        with contextlib.suppress(queue.Empty):
            while True:  # a thread that waits for room goes on at once
                self._ready.get_nowait()
        self._thread.join()

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run(self, number: int) -> None:
        while number != self._stop and not self._closed.is_set():
            try:
                found: tuple[T | None, BaseException | None] = (self._make(number), None)
            except BaseException as error:  # noqa: BLE001  # raised again where the item is asked for
                found = (None, error)
            while not self._closed.is_set():
                try:
                    self._ready.put(found, timeout=_PATIENCE_S)
                    break
                except queue.Full:
                    continue
            if found[1] is not None:
                return
            number += 1
