"""Connections: uvicorn's HTTP/1.1 with what it lacks: time for headers, a status for long ones, drops."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from infini.llm.server import logs

_TOO_LONG: Final = 431
_TEXTS: Final = {400: b"Invalid HTTP request received.", _TOO_LONG: b"Request header fields too large."}


class _Connection(h11.Connection):
    """Remembers what status fits the fault that it raised last, and refuses what h11 lets through.

    h11 measures headers only while they are incomplete, so not those that arrive at once. It takes a request
    with two statements of its length, of which a proxy in front may believe the other one.

    Args:
        most: bytes of a request's line and headers.
    """

    fault = 400

    def __init__(self, most: int | None) -> None:
        super().__init__(h11.SERVER, *(() if most is None else (most,)))
        self._most = most

    def next_event(self) -> Any:  # Any: h11's events and its two signs
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                self._check(event)
            return event
        except h11.RemoteProtocolError as error:
            self.fault = error.error_status_hint
            raise

    def _check(self, request: h11.Request) -> None:
        size = len(request.method) + len(request.target)
        size += sum(len(name) + len(value) + 4 for name, value in request.headers)
        if self._most is not None and size > self._most:
            raise h11.RemoteProtocolError("the headers are too long", error_status_hint=_TOO_LONG)
        names = {name for name, _ in request.headers}
        if {b"content-length", b"transfer-encoding"} <= names:
            raise h11.RemoteProtocolError("the body has two lengths")


class Protocol(H11Protocol):
    """One connection. A subclass by `with_limits` knows how long headers take at most, and reading nothing.

    A connection that is only closed waits for its client to read what is unsent, for ever; so does an answer
    whose bytes find no room. Both are ended here, when nothing at all was read for too long.
    """

    header_s = 10.0
    slow_client_s = 30.0

    def __init__(self, *arguments: Any, **options: Any) -> None:  # Any: passed on as they are
        super().__init__(*arguments, **options)
        most = self.config.h11_max_incomplete_event_size
        self.conn = _Connection(most)
        self._header_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_headers()
        self._forget_reading()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client has not read for a while: there is no room for more."""
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        """It has."""
        self._forget_reading()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        is_between = self.cycle is None or self.cycle.response_complete
        if is_between and self._header_timer is None:
            self._expect_headers()
        super().data_received(data)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._forget_headers()

    def send_400_response(self, msg: str) -> None:
        """An answer to what is no HTTP, or has too long headers."""
        assert isinstance(self.conn, _Connection)
        status = self.conn.fault if self.conn.fault in _TEXTS else 400
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        for event in (
            h11.Response(status_code=status, headers=headers),
            h11.Data(data=_TEXTS[status]),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _expect_headers(self) -> None:
        self._header_timer = self.loop.call_later(self.header_s, self._headers_are_late)

    def _forget_headers(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _headers_are_late(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _expect_reading(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        self._read_timer = self.loop.call_later(self.slow_client_s, self._reading_is_late, unsent)

    def _forget_reading(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _reading_is_late(self, unsent: int) -> None:
        if self.transport.get_write_buffer_size() < unsent:  # slowly is fine
            self._expect_reading()
            return
        self._read_timer = None
        logs.say("slow_client", f"a client read nothing for {self.slow_client_s:g} s")
        self.transport.abort()


def with_limits(*, header_s: float, slow_client_s: float) -> type[Protocol]:
    """The protocol with times.

    Args:
        header_s: seconds from a connection, or from the first byte of a further request, to its last header.
        slow_client_s: seconds in which a client has to read something.
    """
    attributes: dict[str, Any] = {"header_s": header_s, "slow_client_s": slow_client_s}  # Any: of a class
    return type("Protocol", (Protocol,), attributes)
