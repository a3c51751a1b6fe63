"""A model served for one call: `infini serve` in a process of its own, a chat completion, and its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from infini.core import errors

# What a single call needs: no programs that nobody runs are compiled before it.
_OPTIONS: Final = ("--port", "0", "--log-format", "json", "--enforce-eager", "--max-num-seqs", "1")
_CALL_S: Final = 300.0
_END_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Args:
        url: where the server was.
        text: of the answer.
        num_tokens: of it.
        status: of the server's process, which was asked to end.
    """

    url: str
    text: str
    num_tokens: int
    status: int


def ask_once(model: Path, content: str, *, max_tokens: int) -> Answer:
    """Serve a model, ask for one chat completion, and stop the server.

    Args:
        model: folder of the model.
        content: what the user says.
        max_tokens: length of the answer at most.

    Returns:
        The answer.

    Raises:
        InfiniError: the server did not start, or did not answer.
    """
    with _serving(model) as (process, url):
        found = _post(url, content, max_tokens)
        process.send_signal(signal.SIGTERM)
        status = _ended(process)
    return Answer(url, found["choices"][0]["message"]["content"], found["usage"]["completion_tokens"], status)


@contextlib.contextmanager
def _serving(model: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that is ready, and its address."""
    # Options of a server of the user's own are not for this one.
    environment = {name: text for name, text in os.environ.items() if not _is_option(name)}
    process = subprocess.Popen(
        [sys.executable, "-m", "infini", "serve", str(model), *_OPTIONS],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8", env=environment,
    )  # fmt: skip
    log = process.stderr
    assert log is not None
    try:
        url = _ready(log)
        # The log is read on, so that the server never waits for a reader.
        reader = threading.Thread(target=deque, args=(log, 0), daemon=True)
        reader.start()
        yield process, url
        reader.join(_END_S)
    finally:
        process.kill()
        process.wait()
        log.close()


def _ended(process: subprocess.Popen[str]) -> int:
    try:
        return process.wait(_END_S)
    except subprocess.TimeoutExpired:
        raise errors.InfiniError(f"the server did not end within {_END_S:g} s of being asked to") from None


def _is_option(name: str) -> bool:
    return name.startswith("INFINI_SERVE_") or name.endswith("_API_KEY")


def _ready(log: IO[str]) -> str:
    """The address that the log says the server listens on."""
    last: deque[str] = deque(maxlen=8)
    for line in log:
        last.append(line.strip())
        with contextlib.suppress(ValueError, TypeError, KeyError):
            said = json.loads(line)
            if said["event"] == "ready":
                return str(said["message"]).rpartition(" ")[2]
    raise errors.InfiniError("the server did not start", got=" ".join(last)[-500:] or "nothing was said")


def _post(url: str, content: str, max_tokens: int) -> dict[str, Any]:  # Any: JSON
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": max_tokens}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    # Never through a proxy: the server is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_CALL_S) as answer:
            found: dict[str, Any] = json.load(answer)  # Any: JSON
            return found
    except urllib.error.HTTPError as error:
        with error:
            raise errors.InfiniError(
                "the server refused the call", got=error.read(500).decode("utf-8", "replace")
            ) from None
    except OSError as error:
        raise errors.InfiniError("the server did not answer", got=str(error)) from None
