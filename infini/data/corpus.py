"""Text to train on: files of the user's choice, or the Python standard library found on the machine.

The order of documents and the split into training and held-out text depend on the files' names and
contents only, so two machines with the same files train on the same tokens.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infini.core import errors

# Tests, code tables and generated documentation would teach a small model little about how programs read.
SKIPPED_FOLDERS: Final = frozenset(
    [
        "test",
        "tests",
        "idle_test",
        "test_data",
        "site-packages",
        "dist-packages",
        "encodings",
        "pydoc_data",
        "__pycache__",
    ]
)
TEXT_SUFFIXES: Final = frozenset(
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


@dataclass(frozen=True, slots=True)
class Document:
    """One text with the name it is reported under."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents to train on, and documents kept aside to measure on."""

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]

    @property
    def size(self) -> int:
        """Characters of both parts."""
        return sum(len(document.text) for document in self.train + self.held_out)


def read(
    paths: Sequence[Path | str] = (),
    *,
    held_out_share: float = 0.04,
    max_file_bytes: int = 256 << 10,
    max_bytes: int = 64 << 20,
) -> Corpus:
    """Read the text files under `paths`, or the Python standard library when there are none.

    Args:
        paths: files, taken as they are, and folders, searched for files with a known text suffix.
        held_out_share: share of the text to keep aside, in (0, 1); whole files where there are several.
        max_file_bytes: larger files found in folders are left out: they are tables more often than text.
        max_bytes: reading stops at this many bytes.

    Returns:
        Two parts, neither of them empty.

    Raises:
        ValueMismatchError: a path does not exist, or no text was found.
    """
    roots = [Path(path) for path in paths] or [standard_library()]
    documents: list[Document] = []
    total = 0
    for root, file in _files(roots, max_file_bytes):
        text = file.read_text(encoding="utf-8", errors="replace")
        if not text.strip():
            continue
        total += len(text.encode())
        if documents and total > max_bytes:
            break
        documents.append(Document(file.relative_to(root).as_posix() if file != root else file.name, text))
    if not documents:
        raise errors.ValueMismatchError(
            "there is no text to train on",
            got=", ".join(map(str, roots)),
            expected=f"text files ({' '.join(sorted(TEXT_SUFFIXES))}) of at most {max_file_bytes >> 10} KiB",
            fix="name files or folders of text with --data",
        )
    return _split(documents, held_out_share)


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


def _files(roots: Sequence[Path], max_file_bytes: int) -> Iterator[tuple[Path, Path]]:
    for root in roots:
        if root.is_file():
            yield root, root
        elif root.is_dir():
            found = (file for file in root.rglob("*") if file.suffix in TEXT_SUFFIXES and file.is_file())
            for file in sorted(found, key=lambda file: file.relative_to(root).as_posix()):
                inside = file.relative_to(root).parts[:-1]
                if SKIPPED_FOLDERS.isdisjoint(inside) and file.stat().st_size <= max_file_bytes:
                    yield root, file
        else:
            raise errors.ValueMismatchError(
                f"there is no file or folder {root}", fix="correct the path given to --data"
            )


def _split(documents: Sequence[Document], share: float) -> Corpus:
    """Hold out whole documents by the hash of their text, so that copies of a file stay on one side."""
    if not 0.0 < share < 1.0:
        raise errors.ValueMismatchError("the held-out share must lie between 0 and 1", got=repr(share))
    if len(documents) == 1:
        return _cut(documents[0], share)
    marks = [int.from_bytes(hashlib.sha256(document.text.encode()).digest()[:8]) for document in documents]
    held_out = {index for index, mark in enumerate(marks) if mark < share * 2**64}
    if not held_out or len(held_out) == len(documents):
        held_out = {marks.index(min(marks))}
    return Corpus(
        train=tuple(document for index, document in enumerate(documents) if index not in held_out),
        held_out=tuple(document for index, document in enumerate(documents) if index in held_out),
    )


def _cut(document: Document, share: float) -> Corpus:
    """A lone document is cut near its end, after a line where there is one."""
    at = int(len(document.text) * (1.0 - share))
    at = document.text.rfind("\n", 1, at) + 1 or max(at, 1)
    parts = document.text[:at], document.text[at:]
    if not all(part.strip() for part in parts):
        raise errors.ValueMismatchError(
            f"{document.name} is too short to keep a part of it aside", got=f"{len(document.text)} characters"
        )
    return Corpus(train=(Document(document.name, parts[0]),), held_out=(Document(document.name, parts[1]),))
