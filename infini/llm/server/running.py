"""Listening: a socket that is bound before the model loads, uvicorn, and an end that lets calls finish.

The first SIGTERM or SIGINT begins the end: nothing new is taken, calls have `drain_s` to finish, what is left
then is told so and aborted. The second one kills the process as if nobody had caught it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import uvicorn

from infini.core import errors
from infini.llm.server import application, connections, logs
from infini.llm.server.protocol import Engine
from infini.llm.server.service import Service
from infini.llm.server.settings import Settings

_GRACE_S: Final = 2.0  # for calls to tell their clients that they were aborted
_BACKLOG: Final = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where to listen.

    Args:
        host: name or address.
        port: 0 takes any that is free.
        uds: path of a Unix socket instead of both.
        ssl_keyfile: private key for TLS.
        ssl_certfile: its certificate.
        ssl_keyfile_password: what the key is encrypted with.
        ssl_ca_certs: certificates that clients must be signed by.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile_password: str | None = None
    ssl_ca_certs: str | None = None

    def url(self, bound: socket.socket) -> str:
        """The address for people.

        Args:
            bound: the socket, whose port is known by now.
        """
        if self.uds is not None:
            return f"unix:{self.uds}"
        scheme = "https" if self.ssl_certfile else "http"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{bound.getsockname()[1]}"


def bind(place: Place) -> socket.socket:
    """A socket at a place, before anybody is answered.

    Args:
        place: where.

    Raises:
        InfiniError: somebody else is there, or it is not allowed.
    """
    if place.uds is not None:
        return _bind_path(Path(place.uds))
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    if os.name == "posix":  # elsewhere it means that another process may listen there, too
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((place.host, place.port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise errors.InfiniError(
            f"cannot listen on {place.host} port {place.port}",
            got=getattr(error, "strerror", None) or str(error),
            fix="choose another one with --port, or end what listens there",
        ) from None
    bound.set_inheritable(True)
    return bound


def _bind_path(path: Path) -> socket.socket:
    """A Unix socket for its owner alone. One that nobody listens on any more is replaced."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _is_answered(path):
            path.unlink()
        bound.bind(str(path))
        path.chmod(0o600)
    except OSError as error:
        bound.close()
        raise errors.InfiniError(
            f"cannot listen on the socket {path}", got=error.strerror, fix="choose another path with --uds"
        ) from None
    return bound


def _is_answered(path: Path) -> bool:
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def serve(engine: Engine, settings: Settings, place: Place, bound: socket.socket | None = None) -> int:
    """Answer calls until a signal comes, then end the engine.

    Args:
        engine: makes the tokens.
        settings: how it is served.
        place: where.
        bound: its socket, if `bind` was called before.

    Returns:
        The status of the process: 0, or 130 after SIGINT.

    Raises:
        InfiniError: the place is taken, or files for TLS cannot be read.
    """
    bound = bind(place) if bound is None else bound
    server = make(engine, settings, place, bound)

    async def run() -> None:
        try:
            await server.serve(sockets=[bound])
        finally:
            await engine.shutdown()

    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(run())
    if place.uds is not None:
        Path(place.uds).unlink(missing_ok=True)
    return 130 if server.received == signal.SIGINT else 0


def make(engine: Engine, settings: Settings, place: Place, bound: socket.socket) -> Server:
    """The server, not running yet.

    Args:
        engine: makes the tokens.
        settings: how it is served.
        place: where.
        bound: its socket.
    """
    app = application.build(engine, settings)
    limits = settings.limits
    config = uvicorn.Config(
        app,
        http=connections.with_limits(header_s=limits.header_read_s, slow_client_s=limits.slow_client_s),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        root_path=settings.root_path,
        backlog=_BACKLOG,
        # Calls beyond the limit are refused with a reason; this is for connections that never become a call.
        limit_concurrency=2 * limits.num_connections,
        timeout_keep_alive=max(1, round(limits.keep_alive_s)),
        timeout_graceful_shutdown=max(1, round(settings.drain_s + _GRACE_S)),
        h11_max_incomplete_event_size=settings.header_nbytes,
        ssl_keyfile=place.ssl_keyfile,
        ssl_certfile=place.ssl_certfile,
        ssl_keyfile_password=place.ssl_keyfile_password,
        ssl_ca_certs=place.ssl_ca_certs,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise errors.InfiniError(
            "the files for TLS cannot be used", got=str(error), fix="correct --ssl-keyfile and --ssl-certfile"
        ) from None
    service: Service = app.state.service
    return Server(config, service, place.url(bound))


class Server(uvicorn.Server):
    """uvicorn's server with our end.

    Args:
        config: uvicorn's.
        service: what is served.
        url: for the log.
    """

    def __init__(self, config: uvicorn.Config, service: Service, url: str) -> None:
        super().__init__(config)
        self.service, self.url = service, url
        self.received: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets=sockets)
        logs.say("ready", f"server is listening on {self.url}", models=",".join(self.service.settings.names))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End: calls that take too long are aborted, and tell their clients."""
        self.service.is_draining = True
        num_open = len(self.service.open)
        if num_open:
            logs.say("draining", f"{num_open} calls may finish in {self.service.settings.drain_s:g} s")
        late = asyncio.ensure_future(self._abort_late())
        try:
            await super().shutdown(sockets=sockets)
        finally:
            late.cancel()

    async def _abort_late(self) -> None:
        await asyncio.sleep(self.service.settings.drain_s)
        logs.say("aborting", f"{len(self.service.open)} calls are aborted")
        await self.service.abort_all()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while serving; they are not raised again at the end, which they asked for."""
        try:
            before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: whoever owns the process decides
            yield
            return
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the end, the second one is the end."""
        if self.received is not None:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self.received = sig
        self.service.is_draining = self.should_exit = True
