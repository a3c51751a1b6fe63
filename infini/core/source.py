"""The user's line: the innermost stack frame outside this package and what it calls back through.

Imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import sys
import sysconfig
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PACKAGE_DIRECTORY: Final = str(Path(__file__).resolve().parents[1]) + "/"
# Parts of the package that call the public API as a user would, so their own lines are worth showing.
_USER_LIKE: Final = tuple(
    PACKAGE_DIRECTORY + part for part in ("llm/models/", "train/", "perf/", "cli/", "testing/")
)
_STANDARD_LIBRARY: Final = str(Path(sysconfig.get_path("stdlib"))) + "/"
_INSTALLED: Final = ("/site-packages/", "/dist-packages/")
# Libraries that call functions of ours: pytrees inside a user's line, and commands, where there is none.
_PASSED_THROUGH: Final = tuple(
    f"{folder}{name}/" for folder in _INSTALLED for name in ("optree", "typer", "click")
)


@dataclass(frozen=True, slots=True)
class Where:
    """A line of source: absolute `file`, one-based `line`, and the named scopes around it."""

    file: str
    line: int
    scope: str = ""

    def __str__(self) -> str:
        return f"{Path(self.file).name}:{self.line}" + (f" ({self.scope})" if self.scope else "")


_scope: contextvars.ContextVar[str] = contextvars.ContextVar("infini_scope", default="")


@contextlib.contextmanager
def named_scope(name: str) -> Iterator[None]:
    """Name the lines of the block; scopes inside scopes are joined with a slash."""
    token = _scope.set(f"{_scope.get()}/{name}" if _scope.get() else name)
    try:
        yield
    finally:
        _scope.reset(token)


def here() -> Where | None:
    """The line of user code that is running now, or None when there is none."""
    return line_of(sys._getframe(1))


def line_of(frame: types.FrameType | None) -> Where | None:
    """The innermost line of user code from a frame outwards, or None when there is none."""
    while frame is not None:
        if _is_users(frame.f_code.co_filename):
            return Where(frame.f_code.co_filename, frame.f_lineno, _scope.get())
        frame = frame.f_back
    return None


@functools.lru_cache(maxsize=4096)
def _is_users(file: str) -> bool:
    """Whether code of a file is the user's: not this package's, Python's, or of what lies between."""
    if file.startswith("<"):
        return file.startswith(("<stdin", "<ipython", "<python-input"))
    if file.startswith(PACKAGE_DIRECTORY):
        return file.startswith(_USER_LIKE)
    if any(folder in file for folder in _PASSED_THROUGH):
        return False
    return not file.startswith(_STANDARD_LIBRARY) or any(folder in file for folder in _INSTALLED)
