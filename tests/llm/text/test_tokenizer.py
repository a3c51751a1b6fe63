"""Tokenizers from folders, GGUF metadata and tokenizer.model."""

# ruff: noqa: E501  # tables of odd values
from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest

from infini.core import errors
from infini.io import tensors
from infini.llm.text import gguf_vocabulary, tokenizer
from tests.llm.text import vocabularies as v


@pytest.fixture(scope="module")
def words() -> tokenizer.Tokenizer:
    return tokenizer.from_json(v.byte_level().to_str(), {"bos_token": "<s>", "eos_token": "<|im_end|>"})


@pytest.fixture(scope="module")
def spaced() -> tokenizer.Tokenizer:
    return tokenizer.from_json(v.sentencepiece().to_str(), {"bos_token": "<s>", "eos_token": "</s>"})


@pytest.mark.parametrize("text", v.TRICKY)
def test_byte_level_text_comes_back(words: tokenizer.Tokenizer, text: str) -> None:
    ids = words.encode(text, add_special_tokens=False)
    assert words.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", v.TRICKY)
def test_sentencepiece_text_comes_back(spaced: tokenizer.Tokenizer, text: str) -> None:
    ids = spaced.encode(text)
    assert ids[0] == spaced.bos_id
    if "<s>" not in text:  # a prefix space is put behind each special token
        assert spaced.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("text", v.TRICKY)
def test_gguf_metadata_give_the_tokens_of_the_folder_byte_level(
    words: tokenizer.Tokenizer, text: str
) -> None:
    found = tokenizer.from_gguf(v.gguf_metadata(v.byte_level()))
    assert found.encode(text) == words.encode(text)


@pytest.mark.parametrize("text", v.TRICKY)
def test_gguf_metadata_give_the_tokens_of_the_folder_sentencepiece(
    spaced: tokenizer.Tokenizer, text: str
) -> None:
    found = tokenizer.from_gguf(v.gguf_metadata(v.sentencepiece(), pre=None))
    assert found.encode(text) == spaced.encode(text)
    assert found.decode(found.encode(text)) == spaced.decode(spaced.encode(text))


def test_token_bytes_joined_are_the_text(words: tokenizer.Tokenizer, spaced: tokenizer.Tokenizer) -> None:
    text = "naïve 🦉 你好 <|im_end|> <tool_call>"
    assert b"".join(words.token_bytes(id) for id in words.encode(text)) == text.encode()
    text = " naïve 🦉 你好"
    assert b"".join(spaced.token_bytes(id) for id in spaced.encode(text[1:], False)) == text.encode()
    assert words.token_bytes(10**6) == b"" and words.token_text(-1) is None


def test_bytes_that_are_no_utf8_are_replaced_one_by_one(spaced: tokenizer.Tokenizer) -> None:
    ids = [spaced.token_id(f"<0x{byte:02X}>") for byte in "é".encode() + b"\xff\xe4\xbd" + "ö".encode()]
    assert spaced.decode([id for id in ids if id is not None]) == "é\ufffd\ufffd\ufffdö"


def test_gguf_flags_say_what_stands_around_a_text() -> None:
    metadata = v.gguf_metadata(v.byte_level())
    metadata |= {"tokenizer.ggml.add_bos_token": np.bool_(True), "tokenizer.ggml.add_eos_token": True}
    found = tokenizer.from_gguf(metadata)
    assert found.encode("hi")[0] == found.bos_id
    assert found.encode("hi")[-1] == found.eos_id
    assert found.encode("hi", add_special_tokens=False) == found.encode("hi")[1:-1]


def test_gguf_ids_that_end_an_answer_come_from_all_keys_and_known_tokens() -> None:
    metadata = v.gguf_metadata(v.byte_level())
    tokens = metadata["tokenizer.ggml.tokens"]
    metadata |= {
        "tokenizer.ggml.eos_token_id": tokens.index("</s>"),
        "tokenizer.ggml.eot_token_id": np.uint32(7),
    }
    assert tokenizer.from_gguf(metadata).eos_ids == (tokens.index("</s>"), 7, tokens.index("<|im_end|>"))


def test_gguf_arrays_may_be_numpy() -> None:
    metadata = v.gguf_metadata(v.sentencepiece(), pre=None)
    arrays = {name: np.asarray(value) for name, value in metadata.items() if isinstance(value, list)}
    arrays["tokenizer.ggml.tokens"] = metadata["tokenizer.ggml.tokens"]
    assert tokenizer.from_gguf(metadata | arrays).encode("fox") == tokenizer.from_gguf(metadata).encode("fox")


def test_gguf_templates_are_found_by_name() -> None:
    metadata = v.gguf_metadata(v.byte_level())
    metadata |= {"tokenizer.chat_template": "A", "tokenizer.chat_template.tool_use": "B"}
    found = tokenizer.from_gguf(metadata)
    assert found.chat_template == "A" and found.chat_templates["tool_use"] == "B"


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"tokenizer.ggml.model": "bert"}, errors.ValueMismatchError, "bert"),
        ({"tokenizer.ggml.pre": "unheard-of"}, errors.ValueMismatchError, "unheard-of"),
        ({"tokenizer.ggml.model": None}, tensors.CorruptFileError, "no tokenizer"),
        ({"tokenizer.ggml.token_type": [1]}, tensors.CorruptFileError, "token_type"),
        ({"tokenizer.ggml.merges": ["one"]}, tensors.CorruptFileError, "merge"),
        ({"tokenizer.ggml.merges": None}, tensors.CorruptFileError, "merges"),
        ({"tokenizer.ggml.bos_token_id": "x"}, tensors.CorruptFileError, "bos_token_id"),
        ({"tokenizer.ggml.tokens": [1, 2]}, tensors.CorruptFileError, "tokens"),
    ],
)
def test_wrong_gguf_metadata_are_named(changes: dict, kind: type, text: str) -> None:
    with pytest.raises(kind, match=text):
        tokenizer.from_gguf(v.gguf_metadata(v.byte_level()) | changes)


ODD = [
    None, 1, -1, 2**40, True, 1.5, float("nan"), "x", "", [], [1], ["a"], ["a", "b"] * 300, [None], [[1]], b"x", {"a": 1},
    np.zeros(3), np.full(425, np.nan), ["\udcff"] * 425, ["\ud800"] * 425, [3] * 425, [99] * 425, [""] * 425, ["a"] * 425,
]  # fmt: skip


@pytest.mark.parametrize("pre", ["qwen2", None])
def test_any_wrong_value_of_gguf_metadata_gives_a_named_error_or_a_tokenizer(pre: str | None) -> None:
    base = v.gguf_metadata(v.byte_level() if pre else v.sentencepiece(), pre=pre)
    more = ("add_bos_token", "add_space_prefix", "eot_token_id")
    for key in [*base, *(f"tokenizer.ggml.{name}" for name in more), "tokenizer.chat_template"]:
        for value in ODD:
            with contextlib.suppress(errors.InfiniError):
                found = tokenizer.from_gguf(base | {key: value})
                found.decode(found.encode("hello wörld <s>"))


@pytest.mark.parametrize("pre", gguf_vocabulary.word_rules())
def test_words_are_cut_without_loss(pre: str) -> None:
    found = tokenizer.from_gguf(v.gguf_metadata(v.byte_level(), pre=pre))
    for text in v.TRICKY:
        assert found.decode(found.encode(text, False), skip_special_tokens=False) == text


def test_folder_gives_ends_templates_and_tokens(tmp_path: Path) -> None:
    v.write_folder(
        tmp_path,
        v.byte_level(),
        bos_token={"content": "<s>"},
        eos_token="<|im_end|>",
        pad_token="<pad>",
        chat_template=[{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}],
        model_max_length=4096,
    )
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 5]}))
    found = tokenizer.from_folder(tmp_path)
    assert found.eos_ids == (found.token_id("<|im_end|>"), 3, 5)
    assert found.chat_templates == {"default": "D", "tool_use": "T"}
    assert found.special_id("pad_token") == found.vocab_size - 1
    assert found.model_max_length == 4096


def test_template_files_stand_above_the_configuration(tmp_path: Path) -> None:
    v.write_folder(tmp_path, v.byte_level(), chat_template="old")
    (tmp_path / "chat_template.jinja").write_text("new")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("R")
    assert tokenizer.from_folder(tmp_path).chat_templates == {"default": "new", "rag": "R"}


def test_truncation_of_a_file_is_taken_out(tmp_path: Path) -> None:
    inner = v.byte_level()
    inner.enable_truncation(4)
    inner.enable_padding(length=16)
    v.write_folder(tmp_path, inner)
    assert len(tokenizer.from_folder(tmp_path).encode("one two three four five six")) > 16


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "weights").touch()
    with pytest.raises(tensors.MissingFileError, match="no tokenizer"):
        tokenizer.from_folder(tmp_path)


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": 1')
    with pytest.raises(errors.ValueMismatchError, match="not a tokenizer"):
        tokenizer.from_folder(tmp_path)


def test_lone_surrogates_are_encoded_as_question_marks(words: tokenizer.Tokenizer) -> None:
    assert words.encode("a\ud800b") == words.encode("a?b")


def test_sentencepiece_file_gives_the_tokens_of_its_json(tmp_path: Path, spaced: tokenizer.Tokenizer) -> None:
    metadata = v.gguf_metadata(v.sentencepiece(), pre=None)
    rows = zip(
        *(metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type")), strict=True
    )
    (tmp_path / "tokenizer.model").write_bytes(v.model_proto(list(rows), algorithm=2))
    found = tokenizer.from_folder(tmp_path)
    for text in v.TRICKY:
        assert found.encode(text) == spaced.encode(text)
        assert found.decode(found.encode(text)) == spaced.decode(spaced.encode(text))
    assert (found.bos_id, found.eos_ids) == (1, (2,))


def test_unigram_takes_the_likeliest_pieces(tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("▁a", -1.0, 1), ("b", -3.0, 1)]
    pieces += [("▁ab", -5.0, 1), ("▁", -2.0, 1), ("a", -2.5, 1), ("c", -9.0, 1), ("bc", -4.0, 1)]
    pieces += [(f"<0x{byte:02X}>", -20.0, 6) for byte in range(256)]
    (tmp_path / "tokenizer.model").write_bytes(v.model_proto(pieces, algorithm=1))
    found = tokenizer.from_folder(tmp_path)
    assert [found.token_text(id) for id in found.encode("ab abc", False)] == ["▁a", "b", "▁a", "bc"]
    assert found.decode(found.encode("ab é")) == "ab é"


@pytest.mark.parametrize("cut", [1, 7, 100, -3])
def test_a_cut_sentencepiece_file_is_named(tmp_path: Path, cut: int) -> None:
    data = v.model_proto([("<unk>", 0.0, 2), ("abcdefgh", -1.0, 1)] * 20, algorithm=2)
    (tmp_path / "tokenizer.model").write_bytes(data[:cut])
    with pytest.raises(tensors.CorruptFileError, match=r"tokenizer\.model"):
        tokenizer.from_folder(tmp_path)


def test_every_wrong_byte_of_a_sentencepiece_file_gives_a_named_error_or_a_tokenizer(tmp_path: Path) -> None:
    data = v.model_proto([("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("ab", -1.0, 1), ("a", -2.0, 1)], algorithm=2)
    for place in range(len(data)):
        (tmp_path / "tokenizer.model").write_bytes(
            data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
        )
        with contextlib.suppress(errors.InfiniError):
            tokenizer.from_folder(tmp_path)


def test_tiktoken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    with pytest.raises(errors.ValueMismatchError, match="tiktoken"):
        tokenizer.from_folder(tmp_path)


def test_long_texts_are_encoded_in_time_that_grows_with_them(words: tokenizer.Tokenizer) -> None:
    """Counts, as tests do not time: a text without a single space is as many tokens as it must be."""
    text = "ab" * 50_000
    ids = words.encode(text, add_special_tokens=False)
    assert words.decode(ids) == text
