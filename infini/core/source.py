"""The user's line: the innermost stack frame outside this package. Imports nothing of ours."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from pathlib import Path

PACKAGE_DIRECTORY = str(Path(__file__).resolve().parents[1]) + "/"
# Parts of the package that call the public API as a user would, so their own lines are worth showing.
_USER_LIKE = tuple(PACKAGE_DIRECTORY + part for part in ("llm/", "train/", "perf/", "cli/", "testing/"))


@dataclass(frozen=True, slots=True)
class Where:
    """A line of source: absolute `file`, one-based `line`."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{Path(self.file).name}:{self.line}"


def here() -> Where | None:
    """The line of user code that is running now, or None when there is none."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        is_users = not file.startswith(PACKAGE_DIRECTORY) or file.startswith(_USER_LIKE)
        if is_users and (not file.startswith("<") or file.startswith(("<stdin", "<ipython"))):
            return Where(file, frame.f_lineno)
        frame = frame.f_back
    return None
