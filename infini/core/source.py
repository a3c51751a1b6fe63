"""The user's line: the innermost stack frame outside this package and what it calls back through.

Imports nothing of ours.
"""

from __future__ import annotations

import functools
import sys
import sysconfig
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PACKAGE_DIRECTORY: Final = str(Path(__file__).resolve().parents[1]) + "/"
# Parts of the package that call the public API as a user would, so their own lines are worth showing.
_USER_LIKE: Final = tuple(
    PACKAGE_DIRECTORY + part for part in ("llm/", "train/", "perf/", "cli/", "testing/")
)
_STANDARD_LIBRARY: Final = str(Path(sysconfig.get_path("stdlib"))) + "/"
_INSTALLED: Final = ("/site-packages/", "/dist-packages/")
# Libraries that call functions of ours in the middle of a user's line.
_PASSED_THROUGH: Final = tuple(f"{folder}optree/" for folder in _INSTALLED)


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
        if _is_users(frame.f_code.co_filename):
            return Where(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return None


@functools.lru_cache(maxsize=4096)
def _is_users(file: str) -> bool:
    """Whether code of a file is the user's: not this package's, Python's, or of what lies between."""
    if file.startswith("<"):
        return file.startswith(("<stdin", "<ipython"))
    if file.startswith(PACKAGE_DIRECTORY):
        return file.startswith(_USER_LIKE)
    if any(folder in file for folder in _PASSED_THROUGH):
        return False
    return not file.startswith(_STANDARD_LIBRARY) or any(folder in file for folder in _INSTALLED)
