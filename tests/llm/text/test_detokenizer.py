"""Text of a stream of tokens: equal to the text of all of them, for every way of cutting."""

from __future__ import annotations

import itertools

import hypothesis
import pytest
from hypothesis import strategies as st

from infini.core import errors
from infini.llm.text import tokenizer
from infini.llm.text.detokenizer import Incremental
from tests.llm.text import vocabularies as v

WORDS = tokenizer.from_json(v.byte_level().to_str(), {"bos_token": "<s>", "eos_token": "<|im_end|>"})
SPACED = tokenizer.from_json(v.sentencepiece().to_str(), {"bos_token": "<s>", "eos_token": "</s>"})


def _metaspace() -> tokenizer.Tokenizer:
    from tokenizers import decoders

    inner = v.sentencepiece()
    inner.decoder = decoders.Metaspace()
    return tokenizer.from_json(inner.to_str())


def _wordpiece() -> tokenizer.Tokenizer:
    """A decoder that the stream has no steps for."""
    from tokenizers import decoders

    inner = v.byte_level()
    inner.decoder = decoders.WordPiece()
    return tokenizer.from_json(inner.to_str())


ALL = {"byte_level": WORDS, "sentencepiece": SPACED, "metaspace": _metaspace(), "wordpiece": _wordpiece()}


def _cut(ids: list[int], cuts: list[int]) -> list[list[int]]:
    places = [0, *sorted({cut % (len(ids) + 1) for cut in cuts}), len(ids)]
    return [ids[a:b] for a, b in itertools.pairwise(places)]


@pytest.mark.parametrize("name", ALL)
@hypothesis.given(
    ids=st.lists(st.integers(0, 330), max_size=40), cuts=st.lists(st.integers(0, 60)), skips=st.booleans()
)
def test_any_ids_in_any_cuts_give_the_text_of_all(
    name: str, ids: list[int], cuts: list[int], skips: bool
) -> None:
    tokens = ALL[name]
    stream = Incremental(tokens, skip_special_tokens=skips)
    found = "".join(stream.push(part) for part in _cut(ids, cuts)) + stream.finish()
    assert found == tokens.decode(ids, skip_special_tokens=skips)


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece"])
@hypothesis.given(text=st.text(max_size=30), cuts=st.lists(st.integers(0, 60)))
def test_no_piece_has_half_a_character(name: str, text: str, cuts: list[int]) -> None:
    hypothesis.assume("\ufffd" not in text)
    stream = Incremental(ALL[name])
    pieces = [stream.push(part) for part in _cut(ALL[name].encode(text, False), cuts)] + [stream.finish()]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) == text


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece"])
@hypothesis.given(text=st.text(max_size=20), at=st.integers(0, 60))
def test_behind_a_prompt_it_is_the_rest_of_the_text(name: str, text: str, at: int) -> None:
    ids = ALL[name].encode(text, add_special_tokens=False)
    at %= len(ids) + 1
    first = Incremental(ALL[name])
    before = first.push(ids[:at])
    stream = Incremental(ALL[name], prompt=ids[:at])
    assert before + stream.push(ids[at:]) + stream.finish() == ALL[name].decode(ids)


def test_the_space_after_a_prompt_stays() -> None:
    ids = SPACED.encode("fox", add_special_tokens=False)
    assert Incremental(SPACED).push(ids) == "fox"
    assert Incremental(SPACED, prompt=SPACED.encode("The quick")).push(ids) == " fox"
    assert Incremental(SPACED, prompt=[1]).push(ids) == "fox"


def test_special_tokens_are_shown_when_asked() -> None:
    ids = WORDS.encode("a<|im_end|>b")
    assert Incremental(WORDS).push(ids) == "ab"
    assert Incremental(WORDS, skip_special_tokens=False).push(ids) == "a<|im_end|>b"


# --- stop strings -----------------------------------------------------------------------------


def _first_stop(text: str, stops: list[str]) -> tuple[int, str] | None:
    """Oracle: letter by letter, the string that is complete first, the longest of those."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return end, max(found, key=len)
    return None


@hypothesis.given(
    text=st.text("ab ", max_size=24),
    stops=st.lists(st.text("ab ", min_size=1, max_size=5), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 60)),
    is_included=st.booleans(),
)
def test_stop_strings_end_the_text_where_the_first_is_complete(
    text: str, stops: list[str], cuts: list[int], is_included: bool
) -> None:
    stream = Incremental(WORDS, stop=stops, include_stop_str_in_output=is_included)
    found = "".join(stream.push(part) for part in _cut(WORDS.encode(text, False), cuts)) + stream.finish()
    expected = _first_stop(text, stops)
    if expected is None:
        assert (found, stream.stopped) == (text, None)
    else:
        end, stop = expected
        assert (found, stream.stopped) == (text[: end if is_included else end - len(stop)], stop)


@hypothesis.given(text=st.text("abc", max_size=24), stop=st.text("abc", min_size=1, max_size=6))
def test_no_part_of_a_stop_string_is_shown_before_it_is_known(text: str, stop: str) -> None:
    stream = Incremental(WORDS, stop=[stop])
    shown = ""
    for id in WORDS.encode(text, add_special_tokens=False):
        shown += stream.push([id])
        if stream.stopped is not None:
            break
    expected = _first_stop(text, [stop])
    end = len(text) if expected is None else expected[0] - len(stop)
    assert text[:end].startswith(shown)


def test_a_stop_string_across_special_tokens_and_bytes_is_found() -> None:
    stream = Incremental(SPACED, stop=["🦉!"])
    text = "".join(stream.push([id]) for id in SPACED.encode("an owl 🦉! and more"))
    assert (text, stream.stopped) == ("an owl ", "🦉!")


def test_stop_strings_are_not_looked_for_in_the_first_tokens() -> None:
    ids = WORDS.encode("a a a a", add_special_tokens=False)
    stream = Incremental(WORDS, stop=["a"], min_tokens=2)
    first = stream.push(ids[:2])
    assert first == WORDS.decode(ids[:2])
    assert stream.push(ids[2:]) == " " or stream.stopped == "a"


def test_after_a_stop_string_nothing_comes() -> None:
    stream = Incremental(WORDS, stop=["b"])
    assert stream.push(WORDS.encode("a b c")) + stream.push([1, 2]) + stream.finish() == "a "


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(errors.ValueMismatchError, match="empty"):
        Incremental(WORDS, stop=["a", ""])


def test_work_per_token_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is not asked to decode: each token's text is looked up once."""
    calls = []
    monkeypatch.setattr(tokenizer.Tokenizer, "decode", lambda *_: calls.append(1))
    monkeypatch.setattr(tokenizer.Tokenizer, "decode_from_start", lambda *_: calls.append(1))
    stream = Incremental(SPACED, stop=["never"])
    for _ in range(1000):
        stream.push([300])
    assert not calls
