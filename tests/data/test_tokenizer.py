"""The byte-level tokenizer, and text that arrives in pieces."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
import tokenizers.processors

from infini.core import errors
from infini.data import tokenizer

TEXTS = ["def f(x):\n    return x + 1\n" * 20, "class A:\n    pass\n" * 20]
UNUSUAL = "naïve 世界 🦉\u200d👩🏽‍💻\tend"


@pytest.fixture(scope="module")
def small() -> tokenizer.Tokenizer:
    return tokenizer.train(TEXTS, vocab_size=300)


@pytest.mark.parametrize("text", ["", " leading and trailing ", UNUSUAL, "a\r\nb\x00"])
def test_every_text_comes_back(small: tokenizer.Tokenizer, text: str) -> None:
    assert small.decode(small.encode(text)) == text


def test_training_is_deterministic(small: tokenizer.Tokenizer) -> None:
    assert tokenizer.train(TEXTS, vocab_size=300).to_json() == small.to_json()


def test_json_round_trip(small: tokenizer.Tokenizer) -> None:
    again = tokenizer.Tokenizer.from_json(small.to_json())
    assert again.encode(TEXTS[0]) == small.encode(TEXTS[0])


def test_batches_have_the_ids_of_single_texts(small: tokenizer.Tokenizer) -> None:
    first, second = small.encode_batch(["a = 1", UNUSUAL])
    assert first.dtype == np.uint16
    assert [first.tolist(), second.tolist()] == [small.encode("a = 1"), small.encode(UNUSUAL)]


def test_a_prompt_has_the_special_tokens_before_a_text_and_not_those_after_it() -> None:
    inner = tokenizers.Tokenizer.from_str(tokenizer.train(TEXTS, vocab_size=300).to_json())
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    found = tokenizer.Tokenizer(inner)
    assert found.encode_prompt("a") == [0, *found.encode("a")]


def test_an_empty_prompt_is_the_begin_of_a_document(small: tokenizer.Tokenizer) -> None:
    assert small.encode_prompt("") == [small.begin_id]


def test_special_ids_of_other_models_can_be_given(small: tokenizer.Tokenizer) -> None:
    found = tokenizer.Tokenizer.from_json(small.to_json(), begin_id=7, end_ids=[8, 9])
    assert (found.begin_id, found.end_id, found.end_ids) == (7, 8, (8, 9))


@pytest.mark.parametrize("text", [UNUSUAL, "🦉" * 10, "plain"])
def test_stream_gives_the_text_in_whole_characters(small: tokenizer.Tokenizer, text: str) -> None:
    pieces = list(small.stream(small.encode(text)))
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)


def test_stream_continues_a_prompt(small: tokenizer.Tokenizer) -> None:
    prompt, rest = small.encode("世界 "), small.encode(UNUSUAL)
    assert "".join(small.stream(rest, prompt=prompt)) == UNUSUAL


def test_stream_shows_a_character_as_soon_as_it_is_complete(small: tokenizer.Tokenizer) -> None:
    pieces = list(small.stream(small.encode("🦉🦉")))
    assert pieces == ["", "", "", "🦉", "", "", "", "🦉"]


def test_stream_ends_a_cut_character_with_a_mark(small: tokenizer.Tokenizer) -> None:
    assert "".join(small.stream(small.encode("a🦉")[:-1])) == "a\ufffd"


def test_stream_goes_on_after_bytes_that_are_no_text(small: tokenizer.Tokenizer) -> None:
    broken = small.encode("🦉")[:1] * 9
    assert "".join(small.stream([*broken, *small.encode("ok")])).endswith("ok")


def test_a_vocabulary_without_the_bytes_is_an_error() -> None:
    with pytest.raises(errors.ValueMismatchError, match="vocabulary is too small"):
        tokenizer.train(TEXTS, vocab_size=100)


def test_a_damaged_file_is_an_error() -> None:
    with pytest.raises(errors.ValueMismatchError, match="not a tokenizer"):
        tokenizer.Tokenizer.from_json("{}")
