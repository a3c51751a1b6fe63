"""Ending a text at given strings although it arrives in pieces that may cut them in two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence


def until(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Pieces of a text up to the first of some strings, which is left out.

    The first is the one that is complete first, as if the text came letter by letter. What might be the
    beginning of one is held back until it is known.

    Args:
        pieces: the text as it arrives; nothing is asked for after the end was found.
        stops: strings that end it, none of them empty.

    Example:
        >>> list(until(["one t", "wo", " three"], ["two", "four"]))
        ['one ']
    """
    held = ""
    for piece in pieces:
        held += piece
        found = [(at + len(stop), at) for stop in stops if (at := held.find(stop)) >= 0]
        if found:
            _, start = min(found)
            if start:
                yield held[:start]
            return
        keep = _num_open(held, stops)
        if len(held) > keep:
            yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    if held:
        yield held


def _num_open(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` with which one of the strings begins."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    return next((n for n in range(min(longest, len(text)), 0, -1) if _begins(text[-n:], stops)), 0)


def _begins(text: str, stops: Sequence[str]) -> bool:
    return any(stop.startswith(text) for stop in stops)
