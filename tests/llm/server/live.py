"""A server on a free port of this machine, in a thread of its own, and clients that are only sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from infini.llm.server import running
from infini.llm.server.settings import Settings
from tests.llm.server.scripted import ScriptedEngine


@dataclass(frozen=True)
class Live:
    """A server that answers."""

    server: running.Server
    engine: ScriptedEngine
    port: int
    thread: threading.Thread
    clients: list[socket.socket] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self, **options: int) -> socket.socket:
        """A connection. Options are those of the socket, such as `rcvbuf`."""
        client = socket.socket()
        self.clients.append(client)
        if "rcvbuf" in options:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options["rcvbuf"])
        client.connect(("127.0.0.1", self.port))
        client.settimeout(20)
        return client

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()


@contextlib.contextmanager
def serving(engine: ScriptedEngine, place: running.Place | None = None, **settings: Any) -> Iterator[Live]:
    """A server over an engine, until the block ends."""
    place = place or running.Place(port=0)
    bound = running.bind(place)
    server = running.make(engine, Settings(**{"names": ("tiny",), **settings}), place, bound)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])), daemon=True)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive())
    port = 0 if place.uds else bound.getsockname()[1]
    live = Live(server, engine, port, thread)
    try:
        yield live
    finally:
        for client in live.clients:
            client.close()
        live.stop()
        bound.close()


def wait_until(is_so: Callable[[], bool], seconds: float = 20.0) -> None:
    """Return when something is so; a machine under load may need its time."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.005)


def request(body: object, path: str = "/v1/chat/completions", host: str = "localhost") -> bytes:
    """The bytes of a call."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return head.encode() + f"Content-Length: {len(data)}\r\n\r\n".encode() + data


def rest(client: socket.socket) -> bytes:
    """Everything until the other side closes."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while piece := client.recv(65536):
            found += piece
    return found
