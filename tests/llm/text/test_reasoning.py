"""Thoughts split from answers."""

from __future__ import annotations

import hypothesis
import pytest
import tokenizers
from hypothesis import strategies as st
from tokenizers import models

from infini.core import errors
from infini.llm.text import reasoning, tokenizer
from infini.llm.text.reasoning import PARSERS, Parts
from tests.llm.text import families

THINK = PARSERS["think"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>\nhm\n</think>\n\nyes", Parts("hm", "yes")),
        ("\n <think>hm</think>yes", Parts("hm", "yes")),
        ("just an answer", Parts("", "just an answer")),
        ("  an answer", Parts("", "  an answer")),
        ("about <think>marks</think>", Parts("", "about <think>marks</think>")),
        ("<think>cut off", Parts("cut off", "")),
        ("<think></think>yes", Parts("", "yes")),
        ("<think>a < b </thin> c</think>yes</think>", Parts("a < b </thin> c", "yes</think>")),
        ("<thin", Parts("", "<thin")),
        ("", Parts()),
    ],
)
def test_a_thought_stands_at_the_beginning(text: str, parts: Parts) -> None:
    assert THINK.parse(text) == parts


def test_a_prompt_may_open_the_thought() -> None:
    assert THINK.parse("hm</think>yes", prompt="...<think>\n") == Parts("hm", "yes")
    assert THINK.parse("<think>hm</think>yes", prompt="<think>") == Parts("hm", "yes")
    assert PARSERS["deepseek_r1"].parse("hm</think>\nyes") == Parts("hm", "yes")
    assert THINK.parse("yes", prompt="<think>\n\n</think>\n\n") == Parts("", "yes")


@hypothesis.given(
    pieces=st.lists(
        st.sampled_from(["<think>", "</think>", "<", "</", "think>", "a", " ", "\n", "</think", "b c"]),
        max_size=9,
    ),
    size=st.integers(1, 7),
    is_open=st.booleans(),
)
def test_every_cut_gives_the_same_parts(pieces: list[str], size: int, is_open: bool) -> None:
    text, prompt = "".join(pieces), "<think>" if is_open else ""
    stream = THINK.stream(prompt=prompt)
    found = [stream.push(text[at : at + size]) for at in range(0, len(text), size)] + [stream.finish()]
    joined = Parts("".join(part.reasoning for part in found), "".join(part.content for part in found))
    assert joined == THINK.parse(text, prompt=prompt)


def test_text_is_passed_on_as_soon_as_it_is_certain() -> None:
    stream = THINK.stream()
    assert [stream.push(piece).reasoning for piece in ("<think>", "one", " two", " <", "b")] == [
        "", "one", " two", "", " <b"
    ]  # fmt: skip
    assert stream.is_in_reasoning


def test_the_template_names_the_parser() -> None:
    assert reasoning.parser_of(families.DEEPSEEK) is THINK
    assert reasoning.parser_of(families.LLAMA3) is None
    assert reasoning.parser_of(families.LLAMA3, name="qwen3") is THINK
    assert reasoning.parser_of(families.DEEPSEEK, name="none") is None
    with pytest.raises(errors.ValueMismatchError, match="no reasoning parser"):
        reasoning.parser_of(None, name="x")


def test_a_mark_may_be_the_first_token_of_a_vocabulary() -> None:
    inner = tokenizers.Tokenizer(models.BPE({"</think>": 0, "<think>": 1}, []))
    assert reasoning.parser_of(tokenizer.from_json(inner.to_str(), {"chat_template": "x"})) is THINK
