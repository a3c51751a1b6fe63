"""Messages of msgpack over a connection, each after its length."""

from __future__ import annotations

import socket
import threading
from typing import Any, Final

import msgpack

ANSWER_S: Final = 2.0  # who takes longer to take or to give a message is silent
_MAX_MESSAGE: Final = 1 << 20
_HEAD: Final = 4  # bytes of the length before a message


class Line:
    """One end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._lock = threading.Lock()
        self._read = b""
        connection.settimeout(ANSWER_S)

    def send(self, *message: object) -> bool:
        """Send a message; whether the connection took it."""
        content = msgpack.packb(message)
        try:
            with self._lock:
                self.socket.sendall(len(content).to_bytes(_HEAD, "big") + content)
        except OSError:
            return False
        return True

    def receive(self) -> list[list[Any]] | None:  # Any: messages are of many kinds
        """Whole messages that have come, after the socket was found readable; None at the end."""
        try:
            found = self.socket.recv(1 << 16)
        except TimeoutError:
            return []
        except OSError:
            return None
        if not found:
            return None
        self._read += found
        messages = []
        while len(self._read) >= _HEAD:
            length = int.from_bytes(self._read[:_HEAD], "big")
            if length > _MAX_MESSAGE:
                return None
            if len(self._read) < _HEAD + length:
                break
            try:
                messages.append(list(msgpack.unpackb(self._read[_HEAD : _HEAD + length])))
            except (ValueError, TypeError):  # not one of ours
                return None
            self._read = self._read[_HEAD + length :]
        return messages

    def close(self) -> None:
        """End it."""
        self.socket.close()
