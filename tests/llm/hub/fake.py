"""A hub on this machine: a small ASGI application on a real port, which can fail in the ways that hubs do."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote

import uvicorn

Message = MutableMapping[str, Any]
COMMIT = "c0ffee" * 6 + "abcd"


@dataclass
class Hub:
    """What the hub has and does; tests change it while it runs.

    Args:
        files: content by path.
        cuts: numbers of bytes after which answers for a path end early, one for each request.
        spoilt: how many more answers for a path have a wrong byte.
        statuses: answers of the next requests for a path, before any content.
        elsewhere: address that content is redirected to.
        goes_round: whether that redirects as well, to itself.
        surplus: bytes that answers have and the files have not.
        token: what requests must prove; None for anybody.
        has_ranges: whether parts can be asked for.
        seen: path and headers of every request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    large: tuple[str, ...] = (".safetensors", ".gguf")
    cuts: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    spoilt: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    statuses: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    elsewhere: str | None = None
    goes_round: bool = False
    surplus: int = 0
    token: str | None = None
    has_ranges: bool = True
    commit: str = COMMIT
    repository: str = "org/model"
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    address: str = ""

    def fetched(self) -> list[str]:
        """Paths of the files that were asked for, in order."""
        return [path.rpartition(f"/{self.commit}/")[2] for path, _ in self.seen if "/resolve/" in path]

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        assert scope["type"] == "http"
        path = unquote(scope["path"])
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        query = parse_qs(scope["query_string"].decode())
        self.seen.append((path, headers))
        if self.statuses[path]:
            await _answer(send, self.statuses[path].pop(0), b"later", {"retry-after": "0"})
        elif self.token is not None and headers.get("authorization") != f"Bearer {self.token}":
            await _answer(send, 401, b"who are you")
        elif path == f"/api/models/{self.repository}/revision/main":
            await _answer(send, 200, json.dumps(self._listing()).encode())
        elif path == f"/api/v1/models/{self.repository}/repo/files":
            await _answer(send, 200, json.dumps(self._listing_of_modelscope()).encode())
        elif path == f"/api/v1/models/{self.repository}/repo":
            await self._file(send, query["FilePath"][0], headers)
        elif path.startswith(f"/{self.repository}/resolve/{self.commit}/"):
            await self._file(send, path.removeprefix(f"/{self.repository}/resolve/{self.commit}/"), headers)
        elif path.startswith("/cdn/"):
            await self._file(send, path.removeprefix("/cdn/"), headers, is_here=True)
        else:
            await _answer(send, 404, b"not found")

    def _listing(self) -> dict[str, Any]:
        rows = []
        for path, data in self.files.items():
            row: dict[str, Any] = {"rfilename": path, "size": len(data)}
            if path.endswith(self.large):
                row["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}
            else:
                row["blobId"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            rows.append(row)
        return {"id": self.repository, "sha": self.commit, "siblings": rows}

    def _listing_of_modelscope(self) -> dict[str, Any]:
        rows = [
            {"Path": path, "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest(), "Type": "blob"}
            for path, data in self.files.items()
        ]
        return {"Code": 200, "Success": True, "Data": {"Files": [*rows, {"Path": "folder", "Type": "tree"}]}}

    async def _file(
        self,
        send: Callable[[Message], Awaitable[None]],
        path: str,
        headers: dict[str, str],
        is_here: bool = False,
    ) -> None:
        data = self.files.get(path)
        if data is None:
            await _answer(send, 404, b"no such file")
            return
        if self.elsewhere is not None and (not is_here or self.goes_round):
            await _answer(send, 302, b"", {"location": f"{self.elsewhere}/cdn/{path}"})
            return
        if self.spoilt[path]:
            self.spoilt[path] -= 1
            data = bytes([data[0] ^ 1]) + data[1:]
        start, status, more = 0, 200, {}
        if self.has_ranges and headers.get("range", "").startswith("bytes="):
            start = int(headers["range"].removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                await _answer(send, 416, b"")
                return
            status, more = 206, {"content-range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        part = data[start:] + bytes(self.surplus)
        await send(_start(status, {"content-length": str(len(part)), **more}))
        if self.cuts[path]:
            await send(
                {"type": "http.response.body", "body": part[: self.cuts[path].pop(0)], "more_body": True}
            )
            raise ConnectionError("cut on purpose")
        await send({"type": "http.response.body", "body": part})


def _start(status: int, headers: dict[str, str]) -> Message:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": pairs}


async def _answer(
    send: Callable[[Message], Awaitable[None]],
    status: int,
    body: bytes,
    headers: dict[str, str] | None = None,
) -> None:
    await send(_start(status, {"content-length": str(len(body))} | (headers or {})))
    await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """An ASGI application on a free port; yields its address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
