"""Attributes that are a program with something around it, such as kernels: in the text form they are sections
of their own, with lines before and after the equations of the program.

The layer that owns such a class registers how the lines are written and read; `core.text` and `core.parser`
ask here. The fingerprint does not: it uses the fields of the class.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from infini.core import ir


@dataclass(frozen=True, slots=True)
class Frame:
    """The lines around the equations of a program.

    Args:
        tail: what follows the parameters in the head.
        before: lines between the head and the constants.
        after: lines after the equations; they say what the results are.
    """

    tail: str
    before: tuple[str, ...]
    after: tuple[str, ...]


class Style(Protocol):
    """How the attributes of one class are written and read.

    `keyword` begins the head; each line of a frame begins with one of `words`. Any: attributes, whose classes
    layers above own.
    """

    keyword: str
    words: frozenset[str]

    def fits(self, item: Any) -> bool:
        """Whether the text form can say all of an attribute; one that is malformed prints as its fields."""

    def body(self, item: Any) -> ir.Program:
        """The program inside; its name is that of the section."""

    def write(self, item: Any, results: Sequence[str], value: Callable[[object], str]) -> Frame:
        """The lines around the equations; parameters are `%0`, `%1` ..., results have these labels."""

    def results(self, lines: Sequence[str]) -> list[str]:
        """The labels of the results, as the lines around the equations say."""

    def read(self, body: ir.Program, frame: Frame, value: Callable[[str], Any]) -> Any:
        """The attribute; all lines are in `frame.before`."""


_STYLES: dict[str, Style] = {}  # by keyword
# Modules that register a style, loaded when the first attribute of the class is printed or parsed.
_DECLARED_LATER: Final = {"kernel": "infini.tile.notation"}


def register(style: Style) -> None:
    """Say how the attributes of a class are written; the keyword is its name in small letters."""
    _STYLES[style.keyword] = style


def by_keyword(keyword: str) -> Style | None:
    """The style whose sections begin with a keyword."""
    if keyword not in _STYLES and keyword in _DECLARED_LATER:
        importlib.import_module(_DECLARED_LATER[keyword])
    return _STYLES.get(keyword)


def style_of(item: object) -> Style | None:
    """The style of an attribute, if its class has one and it fits into it."""
    style = by_keyword(type(item).__name__.lower())
    return style if style is not None and style.fits(item) else None
