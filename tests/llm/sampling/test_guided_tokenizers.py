"""Structured output with the two great kinds of tokenizers: bytes that merge, and pieces with spaces."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from infini.llm.sampling import guided
from infini.llm.sampling.params import StructuredOutputsParams

pytest.importorskip("llguidance")
tokenizers = pytest.importorskip("tokenizers")

TEXTS = [
    '{"name": "Ann", "ok": true, "of": [1, 2, 3]}',
    "the day after the other day",
    "3.14 <eos> yes no é ß",
] * 3


def _byte_level() -> Any:  # Any: a tokenizer of the library
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def _pieces() -> Any:  # Any: a tokenizer of the library
    normal = [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.normalizer = tokenizers.normalizers.Sequence(normal)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=120, show_progress=False)
    trained.train_from_iterator(TEXTS, trainer)
    learned = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    model = tokenizers.models.BPE(
        vocab={piece: at for at, piece in enumerate(pieces)},
        merges=[tuple(pair) for pair in learned["merges"]],
        byte_fallback=True,
        unk_token="<unk>",
    )
    made = tokenizers.Tokenizer(model)
    made.normalizer = trained.normalizer
    made.add_special_tokens(["<unk>", "<eos>"])
    return made


class Words:
    """What structured output asks of a tokenizer, over the library's object."""

    def __init__(self, inner: Any) -> None:  # Any: a tokenizer of the library
        self.inner = inner
        self.vocab_size = inner.get_vocab_size()
        self.eos_ids = (inner.token_to_id("<eos>"),)
        self.special_ids = frozenset(
            id for id in map(inner.token_to_id, ("<eos>", "<unk>")) if id is not None
        )
        self._is_byte_level = inner.token_to_id("<0x00>") is None
        shown = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._byte_of = {shown.pre_tokenize_str(chr(at))[0][0]: bytes([at]) for at in range(128)}

    def token_bytes(self, id: int) -> bytes:
        token = self.inner.id_to_token(id)
        if id in self.special_ids:
            return token.encode()
        if self._is_byte_level:
            return self.inner.decode([id]).encode() if "�" not in self.inner.decode([id]) else b""
        if token.startswith("<0x"):
            return bytes([int(token[3:5], 16)])
        return token.replace("▁", " ").encode()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self.inner.encode(text, add_special_tokens=add_special_tokens).ids


@pytest.fixture(scope="module", params=[_byte_level, _pieces])
def words(request: pytest.FixtureRequest) -> Words:
    make: Callable[[], Any] = request.param  # Any: a tokenizer of the library
    return Words(make())


def _walk(grammar: guided.Grammar, words: Words, seed: int) -> str:
    """An answer by a model that takes any allowed token, and ends as soon as it may."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(-(-words.vocab_size // 32), np.uint32)
    answer = b""
    for _ in range(300):
        grammar.fill_mask(mask)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: words.vocab_size]
        if bits[words.eos_ids[0]]:
            return answer.decode()
        token = int(rng.choice(np.flatnonzero(bits)))
        assert grammar.accept(token), (grammar.error, answer, words.token_bytes(token))
        answer += words.token_bytes(token)
    raise AssertionError(f"no end: {answer!r}")


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "ok": {"type": "boolean"}},
    "required": ["name", "ok"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(4))
def test_every_allowed_token_is_accepted(words: Words, seed: int) -> None:
    """What has to come is tokenized by the tokenizer, whose space in front would not fit the form."""
    compiler = guided.Compiler(words)
    person = _walk(compiler.compile(StructuredOutputsParams(json=SCHEMA)), words, seed)
    assert set(json.loads(person)) == {"name", "ok"}
    choices = ["yes", "no", "the other day", " no"]
    assert _walk(compiler.compile(StructuredOutputsParams(choice=choices)), words, seed) in choices
    date = _walk(compiler.compile(StructuredOutputsParams(regex=r"<\d{4}>-\d\d")), words, seed)
    assert len(date) == 9 and date[0] == "<"


def test_special_tokens_never_spell_text(words: Words) -> None:
    grammar = guided.Compiler(words).compile(StructuredOutputsParams(regex="<eos>"))
    mask = np.zeros(-(-words.vocab_size // 32), np.uint32)
    grammar.fill_mask(mask)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    assert not bits[words.eos_ids[0]]
    assert _walk(grammar, words, 0) == "<eos>"
