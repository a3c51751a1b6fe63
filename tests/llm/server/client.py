"""A client of an application in this process: calls are made in one event loop, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

import httpx
from starlette.applications import Starlette

R = TypeVar("R")


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="test-client").start()
    return loop


def run(work: Coroutine[Any, Any, R]) -> R:
    """The result of a coroutine in that loop."""
    return asyncio.run_coroutine_threadsafe(work, _loop()).result(120)


class Client:
    """Calls an application, between its start and its end.

    Args:
        app: the application.
        root_path: what a server would put in front of every path.
    """

    def __init__(self, app: Starlette, *, root_path: str = "") -> None:
        self.app = app
        # Faults are answered by the application itself; the client must not raise them first.
        transport = httpx.ASGITransport(app, raise_app_exceptions=False, root_path=root_path)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60)
        self._stack = contextlib.AsyncExitStack()

    def __enter__(self) -> Client:
        run(self._stack.enter_async_context(self.app.router.lifespan_context(self.app)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async def close() -> None:
            await self._client.aclose()
            await self._stack.aclose()

        run(close())

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        """One call."""
        return run(self._client.request(method, url, **options))

    def get(self, url: str, **options: Any) -> httpx.Response:
        """A GET."""
        return self.request("GET", url, **options)

    def post(self, url: str, **options: Any) -> httpx.Response:
        """A POST."""
        return self.request("POST", url, **options)

    def options(self, url: str, **options: Any) -> httpx.Response:
        """An OPTIONS."""
        return self.request("OPTIONS", url, **options)
