"""Tokens and prompts are those of transformers; what GGUF metadata describe are the tokens of the folder."""

# ruff: noqa: E501  # tables of files and texts
from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import transformers
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from infini.llm.text import chat, tokenizer
from tests.llm.text import families, vocabularies as v

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def _unigram() -> Any:  # Any: a tokenizer
    """Unigram with bytes, as T5's relatives have it, behind a Metaspace."""
    import tokenizers

    base = v.sentencepiece()
    pieces = [(base.id_to_token(id), -float(id) / 50) for id in range(base.get_vocab_size())]
    inner = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    inner.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    )
    return inner


FOLDERS = {
    "byte_level": (v.byte_level, SPECIAL | {"pad_token": "<pad>", "additional_special_tokens": ["<|extra|>"]}),
    "byte_level_bos": (v.byte_level, SPECIAL | {"add_bos_token": True, "add_eos_token": True}),
    "sentencepiece": (v.sentencepiece, SPECIAL | {"unk_token": "<unk>"}),
    "sentencepiece_no_bos": (v.sentencepiece, SPECIAL | {"add_bos_token": False}),
    "sentencepiece_added": (
        v.sentencepiece,
        SPECIAL
        | {"added_tokens_decoder": {"455": {"content": "<|x|>", "special": True, "lstrip": False, "rstrip": True,
                                            "normalized": False, "single_word": False},
                                    "456": {"content": "word", "special": False, "lstrip": False, "rstrip": False,
                                            "normalized": True, "single_word": True}}},
    ),
    "unigram": (_unigram, SPECIAL),
}  # fmt: skip


@pytest.fixture(scope="module", params=FOLDERS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    make, config = FOLDERS[request.param]
    folder = v.write_folder(tmp_path_factory.mktemp(request.param), make(), **config)
    return tokenizer.from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)


MORE = ["<|x|> after", "a word, words and <|extra|>", "</s><s>a", "<pad>"]


def test_tokens_of_tricky_texts(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    for text in v.TRICKY + MORE:
        for adds in (True, False):
            assert ours.encode(text, adds) == theirs(text, add_special_tokens=adds)["input_ids"], text
    assert ours.encode_batch(v.TRICKY) == theirs(v.TRICKY)["input_ids"]


def test_text_of_tokens(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    for text in v.TRICKY + MORE:
        ids = ours.encode(text)
        for skips in (True, False):
            assert ours.decode(ids, skips) == theirs.decode(
                ids, skip_special_tokens=skips, clean_up_tokenization_spaces=False
            )


@hypothesis.given(text=st.text(max_size=40))
def test_tokens_of_any_text(both: tuple[Any, Any], text: str) -> None:
    ours, theirs = both
    assert ours.encode(text) == theirs(text)["input_ids"]


@hypothesis.given(ids=st.lists(st.integers(0, 420), max_size=30))
def test_text_of_any_tokens_without_bytes(both: tuple[Any, Any], ids: list[int]) -> None:
    ours, theirs = both
    ids = [id for id in ids if not str(ours.token_text(id)).startswith("<0x")]
    assert ours.decode(ids) == theirs.decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def test_ids_with_a_meaning(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    assert (ours.bos_id, ours.eos_id, ours.vocab_size) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        len(theirs),
    )
    assert ours.special_ids == {id for id, token in theirs.added_tokens_decoder.items() if token.special}
    assert ours.special_id("pad_token") == theirs.pad_token_id


def test_sentencepiece_file_gives_the_tokens_of_llamas_class(tmp_path: Path) -> None:
    """LlamaTokenizer makes merges of a vocabulary by a rule of its own."""
    metadata = v.gguf_metadata(v.sentencepiece(), pre=None)
    rows = zip(
        *(metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type")), strict=True
    )
    (tmp_path / "tokenizer.model").write_bytes(v.model_proto(list(rows), algorithm=2))
    ours = tokenizer.from_folder(tmp_path)
    vocab = {token: id for id, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [
        (first, second)
        for token in sorted(vocab, key=vocab.get)  # type: ignore[arg-type]
        if metadata["tokenizer.ggml.token_type"][vocab[token]] == 1
        for first, second in ((token[:at], token[at:]) for at in range(1, len(token)))
        if first in vocab and second in vocab
    ]
    theirs = transformers.LlamaTokenizer(vocab=vocab, merges=merges)
    for text in v.TRICKY:
        if (
            not text.startswith(" ") and "<s>" not in text
        ):  # a prefix space is there once, and behind special tokens
            assert ours.encode(text, False) == theirs(text, add_special_tokens=False)["input_ids"]


# --- chat templates ---------------------------------------------------------------------------


@pytest.mark.parametrize("conversation", families.CONVERSATIONS)
@pytest.mark.parametrize("family", families.TEMPLATES)
def test_prompts(family: str, conversation: str, chatting: tuple[Any, Any]) -> None:
    ours, theirs = chatting
    messages, how = families.CONVERSATIONS[conversation]
    template = families.TEMPLATES[family]
    how = {"add_generation_prompt": True} | how
    expected: str | None = None
    with contextlib.suppress(Exception):
        expected = theirs.apply_chat_template(messages, chat_template=template, tokenize=False, **how)
    if expected is None:
        with pytest.raises(Exception, match="chat template"):
            chat.render(messages, tokenizer=ours, chat_template=template, **how)
        return
    found = chat.render(messages, tokenizer=ours, chat_template=template, **how)
    assert found == expected
    ids = theirs.apply_chat_template(messages, chat_template=template, **how)
    assert ours.encode(found, add_special_tokens=False) == list(
        ids["input_ids"] if hasattr(ids, "keys") else ids
    )


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = v.write_folder(tmp_path_factory.mktemp("chat"), v.byte_level(), **SPECIAL)
    return tokenizer.from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("family", ["chatml", "phi3", "gemma", "deepseek"])
def test_a_message_that_goes_on(family: str, chatting: tuple[Any, Any]) -> None:
    ours, theirs = chatting
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "The answer is"}]
    how: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    template = families.TEMPLATES[family]
    expected = theirs.apply_chat_template(messages, chat_template=template, tokenize=False, **how)
    assert chat.render(messages, tokenizer=ours, chat_template=template, **how) == expected


def test_templates_of_folders(tmp_path: Path) -> None:
    v.write_folder(tmp_path, v.byte_level(), **SPECIAL, chat_template="config")
    for files in ({}, {"chat_template.jinja": "file"}, {"additional_chat_templates/rag.jinja": "rag"}):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path).chat_template
        theirs = theirs if isinstance(theirs, dict) else {"default": theirs}
        assert tokenizer.from_folder(tmp_path).chat_templates == theirs
