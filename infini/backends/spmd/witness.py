"""Who was gone first: seen by the process that has started the job and outlives it.

When a process is killed, the launcher of an MPI ends the others within milliseconds, often before one of them
can say who is missing. Each process of a job that was started by a command of ours therefore keeps a
connection to that command, which notes in what order connections break that had not said goodbye.
"""

from __future__ import annotations

import hmac
import os
import secrets
import selectors
import socket
import threading
from typing import Any, Final

from infini.backends.spmd.lines import Line

# The address and the secret, in the environment of the processes that are started.
VARIABLE: Final = "INFINI_LAUNCHER"
_TICK_S: Final = 0.2
_CONNECT_S: Final = 5.0


class Witness:
    """Listens within a block; `environment` tells the processes where.

    Attributes:
        known: numbers of the processes that have shown themselves.
        gone: numbers of the processes that were gone without a word, in order, until one said that it ends
            the job.
    """

    def __init__(self) -> None:
        self.known: set[int] = set()
        self.gone: list[int] = []
        self._is_ending = False
        self._is_over = threading.Event()
        self._token = secrets.token_hex(16)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._thread = threading.Thread(target=self._run, name="infini-witness", daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        """What the processes have to find in their environment."""
        return {VARIABLE: f"{self._listener.getsockname()[1]}:{self._token}"}

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()

    def _run(self) -> None:
        while True:
            # When all is over, what has come until then is still looked at.
            is_last = self._is_over.is_set()
            ready = self._selector.select(0 if is_last else _TICK_S)
            for key, _ in ready:
                key.data(key.fileobj)
            if is_last and not ready:
                return

    def _accept(self, listener: Any) -> None:  # Any: a socket
        connection, _ = listener.accept()
        seen = _Seen(Line(connection))
        self._selector.register(connection, selectors.EVENT_READ, lambda _: self._listen(seen))

    def _listen(self, seen: _Seen) -> None:
        messages = seen.line.receive()
        for message in messages or ():
            match message:
                case ["hello", int(index), str(token)] if hmac.compare_digest(token, self._token):
                    seen.index = index
                    self.known.add(index)
                case ["ended"]:
                    seen.has_ended = True
                case ["aborting"]:
                    self._is_ending = True
        if messages is None:
            self._selector.unregister(seen.line.socket)
            seen.line.close()
            if seen.index is not None and not seen.has_ended and not self._is_ending:
                self.gone.append(seen.index)


class _Seen:
    """One process, as far as it has told of itself."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.index: int | None = None
        self.has_ended = False


def connected(index: int) -> Line | None:
    """The connection of this process to the command that has started it; None when there is none."""
    port, _, token = os.environ.get(VARIABLE, "").partition(":")
    if not port:
        return None
    try:
        line = Line(socket.create_connection(("127.0.0.1", int(port)), timeout=_CONNECT_S))
    except OSError:  # it is gone, or on another machine: others will tell
        return None
    line.send("hello", index, token)
    return line
