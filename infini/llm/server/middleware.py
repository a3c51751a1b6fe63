"""What every request goes through before a handler sees it, as plain ASGI: numbers, hosts, keys, faults.

From the outside in: `Numbered` (X-Request-Id, the access log, metrics of HTTP, faults as JSON), `Hosts`,
CORS where it is asked for, `Guarded` (keys), `Bounded` (calls at once). Paths are ASGI's `scope["path"]`,
never rebuilt from a header.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infini.llm.server import failures, logs
from infini.llm.server.keys import Keys

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}\Z")
# Open without a key: whether the server lives says nothing about anybody.
OPEN_PATHS: Final = frozenset({"/health", "/ping"})
UNOBSERVED_PATHS: Final = frozenset({"/metrics", "/health", "/load", "/ping", "/version"})
_MONITORED: Final = tuple(UNOBSERVED_PATHS)
Observe = Callable[[str, str, int, float], None]


class Numbered:
    """Gives every request a number, tells the log and the metrics about it, and answers for faults of ours.

    Args:
        app: what is inside.
        observe: called with method, path of the route, status and seconds.
    """

    def __init__(self, app: ASGIApp, observe: Observe) -> None:
        self._app, self._observe = app, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = given.decode() if _REQUEST_ID.match(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        start, status = time.perf_counter(), 0

        async def numbered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {
                    **message,
                    "headers": [*message.get("headers", ()), (b"x-request-id", request_id.encode())],
                }
            await send(message)

        try:
            await self._app(scope, receive, numbered)
        except (ClientDisconnect, ConnectionError):
            status = status or logs.CLIENT_CLOSED
        except Exception as error:
            # The fault goes to the log in full and to the client as a number.
            logs.fault(request_id, error)
            if status:
                raise
            await failures.internal(request_id).response()(scope, receive, numbered)
        finally:
            seconds = time.perf_counter() - start
            route = scope.get("route_path") or "unknown"
            # Nothing was answered where the client had left by then.
            self._observe(scope["method"], route, status or logs.CLIENT_CLOSED, seconds)
            logs.access(scope, request_id, status or logs.CLIENT_CLOSED, seconds)


class Hosts:
    """Refuses requests that name another host: a web page may have bound its own name to this address.

    Args:
        app: what is inside.
        allowed: names without ports, in lower case.
    """

    def __init__(self, app: ASGIApp, allowed: frozenset[str]) -> None:
        self._app, self._allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            hosts = [value for name, value in scope["headers"] if name == b"host"]
            if len(hosts) != 1 or host_name(hosts[0].decode("latin-1")) not in self._allowed:
                error = failures.ApiError(
                    403, "This host name is not served; see --allowed-hosts.", code="host_not_allowed"
                )
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


def host_name(host: str) -> str:
    """The name in a header Host, without its port.

    Args:
        host: such as `localhost:8000` or `[::1]:8000`.

    Returns:
        Such as `localhost` or `::1`; an empty text for what is neither.
    """
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:/\\@?#\[\]]+))(?::\d{1,5})?", host)
    return "" if found is None else (found[1] or found[2]).lower().rstrip(".")


class Guarded:
    """Refuses requests without a key on every path, known or not, but those of `OPEN_PATHS`.

    Args:
        app: what is inside.
        keys: those that are accepted.
        open_paths: paths that need none.
    """

    def __init__(self, app: ASGIApp, keys: Keys, open_paths: frozenset[str]) -> None:
        self._app, self._keys, self._open = app, keys, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open_paths(scope):
            number = self._keys.find(scope["headers"])
            if number is None:
                error = failures.ApiError(
                    401,
                    "Incorrect or missing API key: send it as `Authorization: Bearer KEY`.",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await error.response()(scope, receive, send)
                return
            if len(self._keys) > 1:
                scope["state"]["key"] = number
        await self._app(scope, receive, send)

    def _open_paths(self, scope: Scope) -> frozenset[str]:
        """With uvicorn's root path in front of every path, the open ones have it, too."""
        root = scope.get("root_path", "")
        return frozenset(root + path for path in self._open) if root else self._open


class Bounded:
    """Refuses calls beyond a number that is answered at once. Monitors are answered whatever happens.

    Args:
        app: what is inside.
        most: the number.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most, self.num_open = app, most, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].endswith(_MONITORED):
            await self._app(scope, receive, send)
            return
        if self.num_open >= self._most:
            error = failures.overloaded(f"{self._most} calls are being answered; try again.")
            await error.response()(scope, receive, send)
            return
        self.num_open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self.num_open -= 1
