"""Ending a text at given strings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, strategies as st

from infini.llm import stops

LETTERS = st.text(alphabet="ab", max_size=30)


@given(
    text=LETTERS,
    cuts=st.lists(st.integers(0, 30), max_size=8),
    ends=st.lists(LETTERS.filter(bool), max_size=3),
)
def test_the_text_ends_before_the_first_string_however_it_is_cut(
    text: str, cuts: list[int], ends: list[str]
) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(places)]
    found = [(at + len(end), at) for end in ends if (at := text.find(end)) >= 0]
    _, start = min(found, default=(0, len(text)))
    assert "".join(stops.until(pieces, ends)) == text[:start]


def test_what_cannot_be_a_beginning_is_not_held_back() -> None:
    assert list(stops.until(["one ", "two", "!"], ["two three"])) == ["one ", "two!"]
    assert list(stops.until(["a", "b"], [])) == ["a", "b"]


def test_nothing_is_asked_for_after_the_end() -> None:
    def pieces() -> Iterator[str]:
        yield "a stop b"
        pytest.fail("asked for more")

    assert list(stops.until(pieces(), ["stop"])) == ["a "]
