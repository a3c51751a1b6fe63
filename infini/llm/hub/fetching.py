"""One file from a hub: written beside its name, gone on with after a cut, checked, and only then given its
name.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from infini.io import folders, tensors
from infini.llm.hub import remote
from infini.llm.hub.names import Name

if TYPE_CHECKING:
    import httpx

_CHUNK: Final = 1 << 20
PART: Final = ".part"


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


def fetch(
    file: remote.RemoteFile,
    place: Path,
    client: httpx.Client,
    hub: remote.Hub,
    name: Name,
    *,
    on_bytes: Callable[[int], None] = lambda _: None,
    wait_s: float = 0.5,
) -> None:
    """Fetch a file.

    Args:
        file: what is fetched.
        place: where it is stored; `place` with `.part` behind it holds what there is so far, also from
            earlier.
        client: by which.
        hub: from where.
        name: of the model, for messages.
        on_bytes: gets the number of bytes that are new; negative when some are thrown away.
        wait_s: pause before the second try.

    Raises:
        HubError: the hub cannot be reached, or refuses.
        CorruptFileError: twice something else came than the hub's list says.
    """
    import httpx

    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(place.name + PART)
    for is_last in (False, True):
        size = part.stat().st_size if part.is_file() else 0
        if file.size is not None and size > file.size:
            part.unlink()
            size = 0
        on_bytes(size)
        if size != file.size or file.size is None:
            remote.repeated(
                lambda: _receive(file, part, client, hub, name, on_bytes),
                hub,
                wait_s=wait_s,
                kinds=(httpx.TransportError, remote.Again),
            )
        problem = _problem(file, part)
        if problem is None:
            folders.sync(part)
            part.replace(place)
            return
        on_bytes(-part.stat().st_size)
        part.unlink()
        if is_last:
            raise tensors.CorruptFileError(
                f"{file.path} of {name} arrived damaged, twice",
                got=problem[0],
                expected=problem[1],
                fix="try again later, or another mirror",
            )


class _CutError(remote.Again):
    """The connection ended before the file."""

    def __init__(self, has_progress: bool) -> None:
        super().__init__(0)
        self.has_progress = has_progress

    def __str__(self) -> str:
        return "the connection ended before the file"


def _receive(
    file: remote.RemoteFile,
    part: Path,
    client: httpx.Client,
    hub: remote.Hub,
    name: Name,
    on_bytes: Callable[[int], None],
) -> None:
    """Append what is missing; start again where the server cannot go on."""
    import httpx

    have = part.stat().st_size if part.is_file() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with client.stream("GET", file.url, headers=headers) as answer:
        if (
            answer.status_code == 416
        ):  # nothing after what there is: the list, or the part, is of another state
            on_bytes(-have)
            part.unlink()
            raise remote.Again(416)
        remote.check(answer, hub, name)
        goes_on = answer.status_code == 206 and _start(answer) == have
        if have and not goes_on:
            on_bytes(-have)
            if answer.status_code == 206:
                part.unlink()
                raise remote.Again(206)
        received = 0
        with part.open("ab" if goes_on else "wb") as out:
            try:
                for chunk in answer.iter_bytes():  # as it comes: what waits for a full chunk is lost at a cut
                    out.write(chunk)
                    received += len(chunk)
                    on_bytes(len(chunk))
                    if file.size is not None and (have if goes_on else 0) + received > file.size:
                        break  # more than the file has: its size is found wrong in a moment
            except httpx.TransportError as error:
                raise _CutError(received > 0) from error
    total = part.stat().st_size
    if file.size is not None and total < file.size:
        raise _CutError(received > 0)


def _start(answer: httpx.Response) -> int | None:
    """The first byte of a partial answer."""
    unit, _, span = answer.headers.get("content-range", "").partition(" ")
    first = span.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdecimal() else None


def _problem(file: remote.RemoteFile, part: Path) -> tuple[str, str] | None:
    """What a received file has, and should have, where it differs from the hub's list."""
    size = part.stat().st_size
    if file.size is not None and size != file.size:
        return f"{size:,} bytes", f"{file.size:,} bytes"
    for kind, stated in (("sha256", file.sha256), ("blob", file.blob)):
        if stated is not None and digest(part, kind) != stated:
            return f"{kind} {digest(part, kind)}", stated
    return None


def digest(path: Path, kind: str) -> str:
    """The checksum of a file: `sha256`, or `blob`, git's SHA-1 of a file."""
    found: _Hash
    if kind == "blob":
        found = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        found = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def is_unchanged(file: remote.RemoteFile, place: Path) -> bool:
    """Whether a file that is here is the hub's, by its size and checksum; without a checksum it never is."""
    with contextlib.suppress(OSError):
        if file.size is not None and place.stat().st_size != file.size:
            return False
        for kind, stated in (("sha256", file.sha256), ("blob", file.blob)):
            if stated is not None:
                return digest(place, kind) == stated
    return False
