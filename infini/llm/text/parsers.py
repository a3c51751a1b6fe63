"""Parsers by name: those of tool calls and those of thoughts are chosen alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

from infini.core import errors

NONE: Final = "none"  # the name of no parser
Parser = TypeVar("Parser")


def named(
    name: str, parsers: Mapping[str, Parser], aliases: Mapping[str, str], *, kind: str
) -> Parser | None:
    """The parser of a name, None for `none`.

    Args:
        name: a name or an alias.
        parsers: by their names.
        aliases: further names, and what they stand for.
        kind: what parsers of this kind are called, for the error.

    Raises:
        ValueMismatchError: there is no such parser.
    """
    if name == NONE:
        return None
    found = parsers.get(aliases.get(name, name))
    if found is None:
        raise errors.ValueMismatchError(
            f"there is no {kind} parser {name}", got=name, expected=", ".join([*parsers, *aliases, NONE])
        )
    return found
