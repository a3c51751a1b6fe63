"""The byte-level tokenizer, and text that arrives in pieces."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
import tokenizers.decoders
import tokenizers.models
import tokenizers.normalizers
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


@pytest.fixture(scope="module")
def sentences() -> tokenizer.Tokenizer:
    """As those of the first LLaMAs: spaces are marks, unknown characters are bytes, the decoder strips the
    space before the first word.
    """
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]
    vocabulary = {name: number for number, name in enumerate(names)}
    model = tokenizers.models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True)
    inner = tokenizers.Tokenizer(model)
    inner.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    inner.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    inner.add_special_tokens(["<s>", "</s>"])
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer.Tokenizer(inner)


@pytest.mark.parametrize("prompt", ["", "a", "b a 🦉"])
def test_stream_keeps_spaces_where_the_decoder_strips_the_first(
    sentences: tokenizer.Tokenizer, prompt: str
) -> None:
    ids = sentences.encode_prompt(f"{prompt} a b 🦉 a".lstrip())
    start = sentences.encode_prompt(prompt) if prompt else ids[:1]
    assert ids[: len(start)] == start
    assert (
        prompt + "".join(sentences.stream(ids[len(start) :], prompt=start)) == f"{prompt} a b 🦉 a".lstrip()
    )


def test_a_vocabulary_without_the_bytes_is_an_error() -> None:
    with pytest.raises(errors.ValueMismatchError, match="vocabulary is too small"):
        tokenizer.train(TEXTS, vocab_size=100)


def test_a_damaged_file_is_an_error() -> None:
    with pytest.raises(errors.ValueMismatchError, match="not a tokenizer"):
        tokenizer.Tokenizer.from_json("{}")
