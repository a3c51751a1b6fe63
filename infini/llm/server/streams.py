"""Answers that end when their client leaves: whole ones raced against the disconnect, and event streams.

An event stream is an ASGI response of its own rather than Starlette's: its errors have to become events, and
silence is filled with comments. A client that reads nothing is dropped by `connections`, and looks here like
one that left.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Final, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from infini.llm.server import failures, logs
from infini.llm.server.settings import Settings

R = TypeVar("R")
DONE: Final = b"data: [DONE]\n\n"
COMMENT: Final = b": keep-alive\n\n"
_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


def encode(value: object) -> bytes:
    """JSON for the wire.

    Args:
        value: without NaN and infinities.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(
        "utf-8", "replace"
    )


def event(value: object, name: str | None = None) -> bytes:
    """One server-sent event.

    Args:
        value: its data, JSON.
        name: its type, where the stream has types.
    """
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + encode(value) + b"\n\n"


async def whole(request: Request, work: Coroutine[Any, Any, R]) -> R:  # Any: coroutines' other types
    """The result of a piece of work that is cancelled when the client leaves.

    Args:
        request: the request, its body read.
        work: what makes the answer; it gives back what it holds when it is cancelled.

    Returns:
        Its result.

    Raises:
        ClientDisconnect: the client left.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        leaving.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream:
    """A response of events.

    Args:
        events: encoded events, in order.
        close: gives back what the events hold, whether or not one was asked for: a generator that never began
            runs nothing at its end.
        request_id: number of the request, for the text of an internal error.
        settings: seconds until a comment.
        ending: what follows the last event.
        error_name: type of an error event, where the stream has types.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        *,
        close: Callable[[], Coroutine[Any, Any, None]],
        request_id: str,
        settings: Settings,
        ending: bytes = DONE,
        error_name: str | None = None,
    ) -> None:
        self._close = close
        self._events, self._request_id, self._settings = events, request_id, settings
        self._ending, self._error_name = ending, error_name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._written, self._is_writing = time.monotonic(), False
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(_disconnect(receive))
        others = (leaving, asyncio.ensure_future(self._comment(send)))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                raise ClientDisconnect
            sending.result()
        finally:
            for task in (sending, *others):
                task.cancel()
            await asyncio.gather(sending, *others, return_exceptions=True)
            await self._events.aclose()
            await self._close()
        await send({"type": "http.response.body", "body": self._ending, "more_body": False})

    async def _send(self, send: Send) -> None:
        async def write(body: bytes) -> None:
            self._is_writing = True
            await send({"type": "http.response.body", "body": body, "more_body": True})
            self._is_writing, self._written = False, time.monotonic()

        await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        try:
            async for piece in self._events:
                await write(piece)
        except failures.ApiError as error:
            await write(event(error.body(), self._error_name))
        except (ConnectionError, ClientDisconnect):
            raise
        except Exception as error:  # noqa: BLE001  # the client is told, the log has the rest
            logs.fault(self._request_id, error)
            await write(event(failures.internal(self._request_id).body(), self._error_name))

    async def _comment(self, send: Send) -> None:
        """Fill silence, which proxies take for the end."""
        comment_s = self._settings.comment_s
        while True:
            await asyncio.sleep(comment_s / 4)
            if not self._is_writing and time.monotonic() - self._written > comment_s:
                await send({"type": "http.response.body", "body": COMMENT, "more_body": True})
                self._written = time.monotonic()


Answer = Response | EventStream
