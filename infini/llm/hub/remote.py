"""What a hub says about a repository: its files with sizes and checksums, and where they are fetched.

References: https://huggingface.co/docs/hub/api, https://modelscope.cn/docs (both as their clients use them).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar
from urllib.parse import quote

from infini.core import errors
from infini.llm.hub.names import Name

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
Source = Literal["huggingface", "modelscope"]

RETRIES: Final = 5
_TIMEOUT_S: Final = 30.0
_AGENT: Final = "infini"
_MAX_LISTING: Final = 64 << 20  # bytes of a hub's answer about a repository


class HubError(errors.InfiniError, OSError):
    """A hub cannot be reached, or refuses a request."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository.

    Args:
        path: its name in the repository.
        size: in bytes; None where the hub does not say.
        sha256: of the content, None where the hub does not say.
        blob: git's SHA-1 of the content, None where the hub does not say.
        url: where it is fetched.
    """

    path: str
    size: int | None
    sha256: str | None
    blob: str | None
    url: str


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository at one commit.

    Args:
        commit: what names this state for good; the revision where the hub has no such name.
        files: all of its files.
    """

    commit: str
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True, slots=True)
class Hub:
    """A hub and how to speak to it.

    Args:
        source: whose interface it has.
        endpoint: its address; a mirror has another.
        token: what is sent to prove who asks, to this address only.
    """

    source: Source
    endpoint: str
    token: str | None = None

    def headers(self) -> dict[str, str]:
        """Headers of every request to this address."""
        found = {"User-Agent": _AGENT, "Accept-Encoding": "identity"}
        return found | ({"Authorization": f"Bearer {self.token}"} if self.token else {})

    def client(self) -> httpx.Client:
        """A client that follows redirects and sends the token to this hub's address alone.

        Raises:
            ValueMismatchError: httpx is not installed.
        """
        try:
            import httpx
        except ImportError as error:
            raise errors.ValueMismatchError(
                "pulling needs the library httpx", got=str(error), fix="pip install 'infini[llm]'"
            ) from error
        # httpx drops Authorization on the way to another host; the test of redirects holds it to that.
        return httpx.Client(
            headers=self.headers(), timeout=_TIMEOUT_S, follow_redirects=True, max_redirects=8
        )


def hub(
    source: Source,
    *,
    endpoint: str | None = None,
    token: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Hub:
    """A hub, with what the environment says of it: HF_ENDPOINT, HF_TOKEN, MODELSCOPE_ENDPOINT,
    MODELSCOPE_API_TOKEN.

    Args:
        source: which hub.
        endpoint: address of a mirror; stands above the environment.
        token: stands above the environment and the file that `hf auth login` writes.
        environment: in place of the process's.

    Raises:
        ValueMismatchError: the token is none that HTTP can carry.
    """
    known = os.environ if environment is None else environment
    if source == "huggingface":
        endpoint = endpoint or known.get("HF_ENDPOINT") or "https://huggingface.co"
        token = token or known.get("HF_TOKEN") or _token_file(known)
    else:
        endpoint = endpoint or known.get("MODELSCOPE_ENDPOINT") or "https://modelscope.cn"
        token = token or known.get("MODELSCOPE_API_TOKEN")
    if not endpoint.startswith(("http://", "https://")):
        endpoint = f"https://{endpoint}"
    token = token.strip() if token else None
    if token and not (token.isascii() and token.isprintable()):  # which the message must not show
        raise errors.ValueMismatchError(
            "the token cannot be sent",
            got="one with letters that no header may hold",
            fix="copy it again from the hub's page",
        )
    return Hub(source, endpoint.rstrip("/"), token or None)


def home(environment: Mapping[str, str]) -> Path:
    """The folder of Hugging Face's own tools."""
    stated = environment.get("HF_HOME")
    base = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(stated or f"{base}/huggingface").expanduser()


def _token_file(environment: Mapping[str, str]) -> str | None:
    try:
        return home(environment).joinpath("token").read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def repository(hub: Hub, name: Name, client: httpx.Client, *, wait_s: float = 0.5) -> Repository:
    """The files of a repository.

    Raises:
        HubError: there is none, it needs a token, or the hub cannot be reached.
    """
    if hub.source == "huggingface":
        revision = name.revision or "main"
        where = f"{hub.endpoint}/api/models/{name.repository}/revision/{quote(revision, safe='')}?blobs=true"
        data = _json(client, where, hub, name, wait_s)
        commit = str(data.get("sha") or revision)
        return Repository(
            commit, tuple(_of_hugging_face(hub, name, commit, row) for row in _rows(data, "siblings"))
        )
    revision = name.revision or "master"
    where = (
        f"{hub.endpoint}/api/v1/models/{name.repository}/repo/files?Revision={quote(revision)}&Recursive=true"
    )
    answer = _json(client, where, hub, name, wait_s)
    files = answer.get("Data")
    if not isinstance(files, dict):
        raise HubError(
            f"there is no {name.repository}" + (f" at {revision}" if name.revision else ""),
            got=f"{answer.get('Message') or answer.get('Code')} from {hub.endpoint}",
            fix="check the spelling, the revision, and whether it is on another hub (--source)",
        )
    latest = files.get("LatestCommitter")
    commit = str((latest.get("Id") if isinstance(latest, dict) else None) or revision)
    return Repository(
        commit,
        tuple(
            _of_modelscope(hub, name, revision, row)
            for row in _rows(files, "Files")
            if row.get("Type") != "tree"
        ),
    )


def _of_hugging_face(hub: Hub, name: Name, commit: str, row: Mapping[str, Any]) -> RemoteFile:  # Any: JSON
    path = str(row.get("rfilename", ""))
    large = row.get("lfs")
    large = large if isinstance(large, dict) else {}
    return RemoteFile(
        path,
        _size(row.get("size", large.get("size"))),
        _sum(large.get("sha256") or large.get("oid")),
        None if large else _sum(row.get("blobId")),
        f"{hub.endpoint}/{name.repository}/resolve/{quote(commit, safe='')}/{quote(path)}",
    )


def _of_modelscope(hub: Hub, name: Name, revision: str, row: Mapping[str, Any]) -> RemoteFile:  # Any: JSON
    path = str(row.get("Path", ""))
    return RemoteFile(
        path,
        _size(row.get("Size")),
        _sum(row.get("Sha256")),
        None,
        f"{hub.endpoint}/api/v1/models/{name.repository}/repo"
        f"?Revision={quote(revision)}&FilePath={quote(path, safe='')}",
    )


def _size(stated: object) -> int | None:
    """A size that a file can have."""
    if isinstance(stated, bool) or not isinstance(stated, int):
        return None
    return stated if 0 <= stated < 1 << 63 else None


def _sum(stated: object) -> str | None:
    """A checksum, as text."""
    return stated.lower() if isinstance(stated, str) and stated else None


def _rows(data: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:  # Any: JSON
    rows = data.get(key)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _json(client: httpx.Client, url: str, hub: Hub, name: Name, wait_s: float) -> dict[str, Any]:  # Any: JSON
    import httpx

    def ask() -> dict[str, Any]:  # Any: JSON
        body = bytearray()
        with client.stream("GET", url) as answer:
            check(answer, hub, name)
            for chunk in answer.iter_bytes():
                body += chunk
                if len(body) > _MAX_LISTING:
                    raise HubError(
                        f"the hub's answer about {name.repository} has no end",
                        got=f"more than {_MAX_LISTING >> 20} MiB",
                        fix=f"check the address {hub.endpoint}",
                    )
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise HubError(
                "the hub's answer is no JSON",
                got=body[:80].decode("utf-8", "replace"),
                fix=f"check the address {hub.endpoint}",
            ) from error
        if not isinstance(data, dict):
            raise HubError("the hub's answer is no object", got=type(data).__name__)
        return data

    return repeated(ask, hub, wait_s=wait_s, kinds=(httpx.TransportError, Again))


@contextlib.contextmanager
def named_faults(hub: Hub) -> Iterator[None]:
    """What a client raises that is worth no second try, as an error of ours: redirects in a circle ..."""
    import httpx

    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise HubError(
            f"{hub.endpoint} does not answer as a hub does", got=f"{type(error).__name__}: {error}",
            fix="check the address, or another mirror",
        ) from error  # fmt: skip


class Again(Exception):  # noqa: N818  # it says what to do
    """The hub asks to come back later.

    Args:
        status: its answer.
        after_s: when, where it says so.
    """

    def __init__(self, status: int, after_s: float | None = None) -> None:
        super().__init__(f"status {status}")
        self.after_s = after_s


def repeated(fn: Callable[[], T], hub: Hub, *, wait_s: float, kinds: tuple[type[Exception], ...]) -> T:
    """What a request gives; it is repeated with growing pauses while the network fails.

    Args:
        fn: makes the request. One that gets on, and fails later, says so by an attribute `has_progress` of
            its exception, and has all its tries again.
        hub: whom it asks, for the message.
        wait_s: the first pause.
        kinds: exceptions that are worth another try.

    Raises:
        HubError: no try succeeded.
    """
    failures = 0
    while True:
        try:
            return fn()
        except kinds as error:
            failures = 1 if getattr(error, "has_progress", False) else failures + 1
            if failures > RETRIES:
                raise HubError(
                    f"{hub.endpoint} cannot be reached",
                    got=f"{type(error).__name__}: {error}",
                    fix="check the network, or set a mirror by HF_ENDPOINT; what was fetched is kept",
                ) from error
            pause = getattr(error, "after_s", None)
            time.sleep(min(wait_s * 2 ** (failures - 1) if pause is None else pause, 60.0))


def check(answer: httpx.Response, hub: Hub, name: Name) -> None:
    """Raise what an answer without success means.

    Raises:
        HubError: there is no such repository or revision, or it needs a token.
        Again: it is worth another try.
    """
    status = answer.status_code
    if status < 400:
        return
    if status in (408, 429) or status >= 500:
        after = answer.headers.get("retry-after", "")
        raise Again(status, float(after) if after.isdecimal() else None)
    if status in (401, 403):
        raise HubError(
            f"{name.repository} is not open to {'this token' if hub.token else 'requests without a token'}",
            got=f"status {status} from {hub.endpoint}",
            fix="accept its terms on the hub's page if it has any, and set HF_TOKEN or pass --token;"
            " a private or misspelt name gives the same answer",
        )
    if status == 404:
        raise HubError(
            f"there is no {name.repository}" + (f" at {name.revision}" if name.revision else ""),
            got=f"status 404 from {hub.endpoint}",
            fix="check the spelling, the revision, and whether it is on another hub (--source)",
        )
    raise HubError(
        f"the hub refuses a request for {name.repository}", got=f"status {status} from {hub.endpoint}"
    )
