"""Which files hold the text to train on: files, folders and glob patterns of the user's choice, or the Python
standard library found on the machine.

The order of files depends on their names inside the folder that was given, never on where that folder is, so
two machines with the same files train on the same tokens.
"""

from __future__ import annotations

import glob
import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from infini.core import errors

Kind = Literal["text", "lines"]
RECORD_SUFFIXES: Final = (".jsonl", ".ndjson")
_BLOCK: Final = 1 << 20
_SNIFFED: Final = 8 << 10  # a zero byte among the first ones makes a file binary

# Of the standard library: tests, code tables and generated documentation would teach a small model little
# about how programs read, and files this large are tables more often than text.
_LIBRARY_SKIPPED: Final = frozenset(
    ["test", "tests", "idle_test", "test_data", "site-packages", "dist-packages", "encodings", "pydoc_data"]
)
_LIBRARY_SUFFIXES: Final = frozenset(
    [
        ".py",
        ".pyi",
        ".txt",
        ".md",
        ".rst",
        ".c",
        ".h",
        ".cpp",
        ".hpp",
        ".js",
        ".ts",
        ".java",
        ".rs",
        ".go",
        ".toml",
        ".json",
    ]
)
_LIBRARY_MAX_BYTES: Final = 256 << 10


@dataclass(frozen=True, slots=True)
class Source:
    """A file of text, or the bytes from `start` to `stop` of one.

    Args:
        path: the file.
        name: how it is reported: its path inside the folder that was given.
        kind: `text`, one document; `lines`, a JSON object with a text on every line.
        start: first byte that belongs to it.
        stop: first byte that does not.
    """

    path: Path
    name: str
    kind: Kind
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.stop - self.start

    def digest(self) -> bytes:
        """SHA-256 of its bytes."""
        found = hashlib.sha256()
        for block in self.blocks():
            found.update(block)
        return found.digest()

    def blocks(self) -> Iterator[bytes]:
        """Its bytes, one MiB at a time."""
        left = self.size
        with self.path.open("rb") as file:
            file.seek(self.start)
            while left and (block := file.read(min(left, _BLOCK))):
                left -= len(block)
                yield block

    def read(self, start: int, stop: int) -> bytes:
        """Its bytes from `start` to `stop`, counted from the start of the file."""
        with self.path.open("rb") as file:
            file.seek(max(start, self.start))
            return file.read(max(min(stop, self.stop) - max(start, self.start), 0))


@dataclass(frozen=True, slots=True)
class Found:
    """Files that hold text, in order, and how many others were passed by."""

    sources: tuple[Source, ...]
    num_binary: int = 0

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(source.size for source in self.sources)


def find(paths: Sequence[Path | str] = (), *, max_bytes: int | None = None) -> Found:
    """The text files that `paths` name.

    Args:
        paths: files, taken as they are; folders, searched for text files of any suffix, without hidden ones
            and those with a zero byte near their start; patterns such as `notes/**/*.md`. Files that end in
            .jsonl or .ndjson hold a JSON object per line. No path means the Python standard library.
        max_bytes: no file is begun after so many bytes.

    Returns:
        At least one file. A file that is named twice counts once.

    Raises:
        ValueMismatchError: a path does not exist, a pattern matches nothing, or there is no text.
    """
    sources: dict[Path, Source] = {}
    num_binary = total = 0
    for root, path in _paths(paths):
        if max_bytes is not None and total >= max_bytes:
            break
        real = path.resolve()
        size = path.stat().st_size
        if real in sources or not size:
            continue
        if root != path and _is_binary(path):
            num_binary += 1
            continue
        name = path.relative_to(root).as_posix() if path != root else path.name
        kind: Kind = "lines" if path.suffix in RECORD_SUFFIXES else "text"
        sources[real] = Source(path, name, kind, 0, size)
        total += size
    if not sources:
        raise errors.ValueMismatchError(
            "there is no text to train on",
            got=", ".join(map(str, paths)) + (f", with {num_binary} binary files" if num_binary else ""),
            expected="files with text, or folders that hold some",
            fix="name files, folders or patterns with --data",
        )
    return Found(tuple(sources.values()), num_binary)


def standard_library() -> Path:
    """The folder of the running Python's library sources.

    Raises:
        ValueMismatchError: this Python comes without sources.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    if not (folder / "os.py").is_file():
        raise errors.ValueMismatchError(
            "this Python comes without the sources of its library",
            got=f"no os.py in {folder}",
            fix="name files or folders of text with --data",
        )
    return folder


def _paths(given: Sequence[Path | str]) -> Iterator[tuple[Path, Path]]:
    """Pairs of what was named and a file in it."""
    if not given:
        library = standard_library()
        yield from ((library, path) for path in _library_files(library))
    for name in given:
        path = Path(name).expanduser()
        if path.is_dir():
            yield from ((path, file) for file in _inside(path))
        elif path.exists():
            yield path, path
        elif glob.has_magic(str(path)):
            # Unlike Path.glob this takes patterns that begin anywhere, and leaves hidden files alone.
            matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
            if not matches:
                raise errors.ValueMismatchError(
                    f"no file matches {path}",
                    fix="correct the pattern given to --data; ** stands for any folders",
                )
            for match in matches:
                yield from ((match, file) for file in (_inside(match) if match.is_dir() else [match]))
        else:
            raise errors.ValueMismatchError(
                f"there is no file or folder {path}", fix="correct the path given to --data"
            )


def _inside(root: Path) -> list[Path]:
    """Files below a folder in the order of their names; hidden files and folders are left out."""
    found = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".") and name != "__pycache__"]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(
        (path for path in found if path.is_file()), key=lambda path: path.relative_to(root).as_posix()
    )


def _library_files(root: Path) -> list[Path]:
    found = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in _LIBRARY_SKIPPED and name != "__pycache__"]
        found += [Path(folder, name) for name in names if Path(name).suffix in _LIBRARY_SUFFIXES]
    small = (path for path in found if path.is_file() and path.stat().st_size <= _LIBRARY_MAX_BYTES)
    return sorted(small, key=lambda path: path.relative_to(root).as_posix())


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" in file.read(_SNIFFED)
