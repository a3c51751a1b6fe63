"""Clients of an application over a scripted engine, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from infini.llm.server import application
from infini.llm.server.settings import Settings
from tests.llm.server.client import Client
from tests.llm.server.scripted import ScriptedEngine

Serve = Callable[..., Client]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(engine, **settings)`: a client of a server that answers to `localhost`."""
    clients: list[Client] = []

    def start(engine: ScriptedEngine | None = None, **settings: Any) -> Client:
        chosen = Settings(**{"names": ("tiny",), **settings})
        app = application.build(engine or ScriptedEngine(), chosen)
        client = Client(app)
        client.__enter__()
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


def events(text: str) -> list[Any]:
    """Data of a stream's events, in order; the last is `[DONE]` where there is one."""
    found = []
    for block in text.strip().split("\n\n"):
        for line in block.split("\n"):
            if line.startswith("data: "):
                data = line.removeprefix("data: ")
                found.append(data if data == "[DONE]" else json.loads(data))
    return found


def chat(content: str = "hi", **fields: Any) -> dict[str, Any]:
    """Body of a conversation of one message."""
    return {"messages": [{"role": "user", "content": content}], **fields}
