"""Compiled objects on disk: whole files under a key, each with a checksum, written under another name and
renamed.

An entry is never wrong, only missing: the key must hold everything that decides the content. A broken or
unreadable entry counts as missing, and a folder that cannot be written is no reason to fail.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Final

from infini.core import config

_MAGIC: Final = b"infini-cache-1\n"
_DIGEST_SIZE: Final = 20


def folder(kind: str) -> Path:
    """Folder of one kind of entries, in the knob `cache_dir` or the user's cache folder."""
    chosen = config.get("cache_dir")
    if chosen:
        return Path(chosen) / kind
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "infini" / kind


def read(kind: str, key: str) -> bytes | None:
    """The content under a key; None when there is none, or the knob `no_cache` is set."""
    if config.get("no_cache"):
        return None
    try:
        stored = _path(kind, key).read_bytes()
    except OSError:
        return None
    start = len(_MAGIC) + _DIGEST_SIZE
    content = stored[start:]
    is_whole = stored.startswith(_MAGIC) and stored[len(_MAGIC) : start] == _digest(content)
    return content if is_whole else None


def write(kind: str, key: str, content: bytes) -> None:
    """Keep content under a key, unless the knob `no_cache` is set."""
    if config.get("no_cache"):
        return
    path = _path(kind, key)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_MAGIC + _digest(content) + content)
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)


def _path(kind: str, key: str) -> Path:
    return folder(kind) / key[:2] / key


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_SIZE).digest()
