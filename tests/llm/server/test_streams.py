"""Event streams as ASGI: what is given back when a client leaves before anything began."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from infini.llm.server import streams
from infini.llm.server.settings import Settings


def test_a_stream_that_never_began_gives_back_what_it_holds() -> None:
    closed: list[str] = []

    async def events() -> AsyncGenerator[bytes, None]:
        yield b"never"

    async def close() -> None:
        closed.append("closed")

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        await asyncio.sleep(60)

    stream = streams.EventStream(events(), close=close, request_id="x", settings=Settings())
    with pytest.raises(ClientDisconnect):
        asyncio.run(stream({"type": "http"}, receive, send))  # type: ignore[arg-type]
    assert closed == ["closed"]


def test_text_that_cannot_be_encoded_is_replaced() -> None:
    assert streams.event({"a": "\ud800é"}) == 'data: {"a":"?é"}\n\n'.encode()


def test_events_may_have_names() -> None:
    assert streams.event([1], "response.created") == b"event: response.created\ndata: [1]\n\n"
