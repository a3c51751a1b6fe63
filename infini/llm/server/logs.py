"""What the server writes to its log: lines of `name=value` or of JSON, one for each call, and faults.

The log is Python's, `infini.server`; `configure` gives it a handler on standard error. Texts of clients are
never in it.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any, Final, Literal

from starlette.types import Scope

CLIENT_CLOSED: Final = 499  # the status that servers log for a client that left before its answer
LOGGER: Final = logging.getLogger("infini.server")
ACCESS: Final = logging.getLogger("infini.server.access")
Format = Literal["text", "json"]
QUIET_PATHS: Final = frozenset({"/health", "/metrics", "/ping", "/load"})


def configure(*, level: str = "info", form: Format = "text", file: str | None = None) -> None:
    """Send the log of the server and of uvicorn to standard error or a file.

    Args:
        level: least severe level that is shown: debug, info, warning, error.
        form: "text" for people, "json" for programs.
        file: a file to append to instead.
    """
    handler = logging.FileHandler(file, encoding="utf-8") if file else logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    for name in ("infini.server", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False
    for name in ("uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers[:] = []


def say(event: str, message: str, *, level: int = logging.INFO, **fields: object) -> None:
    """A line of the log.

    Args:
        event: stable name of what happened.
        message: a sentence.
        level: of `logging`.
        fields: values that belong to it.
    """
    LOGGER.log(level, "%s", message, extra={"event": event, "fields": fields})


def access(scope: Scope, request_id: str, status: int, seconds: float) -> None:
    """The line of an answered call; calls of monitors are for level debug."""
    level = logging.DEBUG if scope["path"] in QUIET_PATHS and status < 400 else logging.INFO
    if not ACCESS.isEnabledFor(level):
        return
    client = scope.get("client")
    fields = {
        "client": client[0] if client else "-",
        "method": scope["method"],
        "path": printable(scope["path"]),
        "status": status,
        "seconds": round(seconds, 4),
        "request_id": request_id,
        **_made(scope.get("state", {}).get("generation")),
    }
    ACCESS.log(
        level,
        "%s %s %d",
        fields["method"],
        fields["path"],
        status,
        extra={"event": "request", "fields": fields},
    )


def _made(generation: Any) -> dict[str, int]:  # Any: generation.py imports this module
    if generation is None:
        return {}
    usage = generation.usage
    return {"prompt_tokens": usage.prompt, "cached_tokens": usage.cached, "made_tokens": usage.completion}


def fault(request_id: str, error: BaseException) -> None:
    """A fault of ours with its traceback."""
    LOGGER.error(
        "request %s failed", request_id, exc_info=error,
        extra={"event": "fault", "fields": {"request_id": request_id}},
    )  # fmt: skip


def printable(text: str, most: int = 200) -> str:
    """A text of a client that can stand in a line: no control characters, not long.

    Args:
        text: any.
        most: characters kept.
    """
    return "".join(char if char.isprintable() else "?" for char in text[:most])


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{record.levelname} {when} {record.getMessage()}"
        fields: Mapping[str, object] = getattr(record, "fields", {})
        if getattr(record, "event", "") == "request":
            hidden = ("method", "path", "status")
            fields = {name: value for name, value in fields.items() if name not in hidden}
        if fields:
            line += " " + " ".join(f"{name}={value}" for name, value in fields.items())
        return line + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.name),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
