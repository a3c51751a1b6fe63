"""Names of models: `ORG/MODEL`, `ORG/MODEL:Q4_K_M` for one file of a GGUF repository, `ORG/MODEL@REVISION`.

A name becomes a folder, so what may stand in it is a short list, and nothing else gets to the file system.
The same holds for the names of files, which a hub sends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from infini.core import errors

_PART: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_NAME: Final = re.compile(
    rf"({_PART})(?:/({_PART}))?(?:@({_PART}))?(?::([A-Za-z0-9][A-Za-z0-9._-]{{0,63}}))?"
)
_FILE: Final = re.compile(r"[A-Za-z0-9._+@=\[\]() -]{1,255}")


@dataclass(frozen=True, slots=True)
class Name:
    """A model on a hub.

    Args:
        repository: `ORG/MODEL`, or `MODEL` alone.
        revision: branch, tag or commit; None for the hub's default.
        variant: which file of a GGUF repository, such as `Q4_K_M`; None for all, or the usual one.
    """

    repository: str
    revision: str | None = None
    variant: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return self.repository + revision + (f":{self.variant}" if self.variant else "")


def parse(text: str) -> Name:
    """A name from its text.

    Raises:
        ValueMismatchError: it is none; no path gets through, neither `..` nor a drive.

    Example:
        >>> parse("org/model-GGUF:Q4_K_M")
        Name(repository='org/model-GGUF', revision=None, variant='Q4_K_M')
    """
    found = _NAME.fullmatch(text)
    parts = () if found is None else tuple(part for part in found.groups() if part is not None)
    if found is None or any(".." in part or part.endswith(".") for part in parts):
        raise errors.ValueMismatchError(
            "this is no name of a model",
            got=repr(text[:200]),
            expected="ORG/MODEL, ORG/MODEL:VARIANT or ORG/MODEL@REVISION, of letters, digits and . _ -",
        )
    owner, model, revision, variant = found.groups()
    return Name(f"{owner}/{model}" if model else owner, revision, variant)


def inside(folder: Path, path: str) -> Path:
    """The place of a repository's file in a folder.

    Raises:
        ValueMismatchError: the file would lie elsewhere.
    """
    parts = PurePosixPath(path).parts
    is_plain = bool(parts) and all(
        _FILE.fullmatch(part) and part not in (".", "..") and not part.endswith((".", " ")) for part in parts
    )
    if not is_plain or path != "/".join(parts):
        raise errors.ValueMismatchError(
            "the hub names a file that cannot be stored",
            got=repr(path[:200]),
            expected="a plain relative path",
        )
    place = folder.joinpath(*parts)
    if not place.resolve().is_relative_to(folder.resolve()):
        raise errors.ValueMismatchError(
            "the hub names a file outside of its folder",
            got=repr(path[:200]),
            fix="delete the link in the way",
        )
    return place
