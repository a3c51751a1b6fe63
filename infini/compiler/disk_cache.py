"""Compiled objects on disk: whole files under a key, each with a checksum, written under another name and
renamed.

An entry is never wrong, only missing: the key must hold everything that decides the content. A broken or
unreadable entry counts as missing, and a folder that cannot be written is no reason to fail. When a process
that added entries ends, those that were not used for longest are removed until the knob `cache_mib` holds:
once an hour or after much was added, because looking at every entry takes long.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import itertools
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infini.core import config

_MAGIC: Final = b"infini-cache-1\n"
_DIGEST_SIZE: Final = 20
_DAY_S: Final = 86_400.0
_ROOM: Final = 0.9  # of the bound that is left after old entries were removed
_TRIM_EVERY_S: Final = 3600.0
_MUCH: Final = 16  # a process that adds more than this part of the bound trims in any case
_MARK: Final = "trimmed"  # file whose time is that of the last look at all entries
# What is kept, and how people call it.
KINDS: Final = {
    "objects": "machine code",
    "programs": "compiled programs",
    "cubins": "kernels of the Triton backends",
    "choices": "measured choices",
    "processors": "what LLVM says of processors",
}


@dataclass(frozen=True, slots=True)
class Usage:
    """Entries of one kind and their bytes."""

    num_entries: int
    num_bytes: int


def root() -> Path:
    """Folder of all kinds: the knob `cache_dir`, or the user's cache folder."""
    chosen = config.get("cache_dir")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "infini"


def folder(kind: str) -> Path:
    """Folder of one kind of entries."""
    return root() / kind


def read(kind: str, key: str) -> bytes | None:
    """The content under a key; None when there is none, or the knob `no_cache` is set."""
    if config.get("no_cache"):
        return None
    path = _path(kind, key)
    try:
        stored = path.read_bytes()
        if time.time() - path.stat().st_mtime > _DAY_S:
            os.utime(path)  # used: the oldest entries are removed first
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
        # Every first program of a process comes here, and `tempfile` takes milliseconds to load.
        part = path.with_name(f"{key}.{os.getpid()}.{next(_parts)}.part")
        with part.open("xb") as file:  # no other process has this one
            try:
                file.write(_MAGIC + _digest(content) + content)
                file.close()
                part.replace(path)
                top = root()
                _written[top] = _written.get(top, 0) + len(content)
            except OSError:
                part.unlink(missing_ok=True)


# --- keeping it small -------------------------------------------------------------------------------


_parts: Final = itertools.count()
_written: Final[dict[Path, int]] = {}  # folders this process has added to, and the bytes added


def usage(kind: str) -> Usage:
    """How much there is of one kind."""
    sizes = [size for _, size, _ in _entries(folder(kind))]
    return Usage(len(sizes), sum(sizes))


def clear(kinds: Sequence[str] = tuple(KINDS)) -> int:
    """Remove every entry of some kinds; returns the bytes freed. Programs keep what they have loaded."""
    freed = 0
    for kind in kinds:
        for _, size, path in _entries(folder(kind)):
            with contextlib.suppress(OSError):
                path.unlink()
                freed += size
    return freed


def trim(top: Path, limit: int) -> int:
    """Remove the entries that were not used for longest while there are more than `limit` bytes; returns the
    bytes freed.
    """
    entries = [entry for kind in KINDS for entry in _entries(top / kind)]
    excess = sum(size for _, size, _ in entries) - limit
    if excess <= 0:
        return 0
    excess, freed = excess + int(limit * (1 - _ROOM)), 0
    for _, size, path in sorted(entries):
        if freed >= excess:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            freed += size
    return freed


def _entries(top: Path) -> list[tuple[float, int, Path]]:
    """Time of the last use, size and path of every entry."""
    found = []
    for part in _listed(top):
        for entry in _listed(part.path):
            with contextlib.suppress(OSError):  # another process may have removed it
                status = entry.stat()
                found.append((status.st_mtime, status.st_size, Path(entry.path)))
    return found


def _listed(path: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError:
        return []


@atexit.register
def _trim_what_was_written() -> None:
    limit = config.get("cache_mib") << 20
    for top, added in _written.items():
        if added > limit // _MUCH or _is_due(top / _MARK):
            trim(top, limit)


def _is_due(mark: Path) -> bool:
    """Whether the last look was long ago; if so, this one is noted."""
    try:
        if 0 <= time.time() - mark.stat().st_mtime < _TRIM_EVERY_S:
            return False
    except OSError:
        pass  # never looked
    with contextlib.suppress(OSError):
        mark.touch()
    return True


def _path(kind: str, key: str) -> Path:
    return folder(kind) / key[:2] / key


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_SIZE).digest()
