"""Structured output: what grammars allow, limits, and that nothing asked for harms anything else."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from infini.core import errors
from infini.llm.sampling import guided, kernels, state, tool_schemas
from infini.llm.sampling.limits import Limits
from infini.llm.sampling.params import SamplingParams, StructuredOutputsParams
from infini.llm.sampling.state import Row

pytest.importorskip("llguidance")

EOS, STOP, AB, TRUE, TOOL = 256, 257, 258, 259, 260

LONGER = {EOS: b"<eos>", STOP: b"<stop>", AB: b"ab", TRUE: b"true", TOOL: b"<tool>"}


class Bytes:
    """A tokenizer of bytes, with two ends of text, two longer tokens and a special one."""

    vocab_size = 261
    eos_ids = (EOS, STOP)
    special_ids = frozenset({EOS, STOP, TOOL})

    def token_bytes(self, id: int) -> bytes:
        return bytes([id]) if id < 256 else LONGER[id]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [TOOL] if text == "<tool>" else list(text.encode())


V = 300  # of the model: more than the tokenizer has


@pytest.fixture(scope="module")
def compiler() -> guided.Compiler:
    return guided.Compiler(Bytes(), vocab_size=V)


def _grammar(compiler: guided.Compiler, **form: Any) -> guided.Grammar:
    return compiler.compile(StructuredOutputsParams(**form))


def _allowed(grammar: guided.Grammar) -> set[int]:
    mask = np.full(-(-V // 32) + 1, 0xFFFFFFFF, np.uint32)
    grammar.fill_mask(mask)
    return {token for token in range(mask.size * 32) if mask[token // 32] >> np.uint32(token % 32) & 1}


def _tokens(text: str) -> list[int]:
    return list(text.encode())


def _accepts(grammar: guided.Grammar, text: str) -> bool:
    """Whether a text has the form, token by token as the masks say."""
    for token in _tokens(text):
        if token not in _allowed(grammar):
            return False
        assert grammar.accept(token)
    return EOS in _allowed(grammar)


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        ({"regex": "[ab]{2}c?"}, ["ab", "bbc"], ["a", "abd", ""]),
        ({"regex": "^a|b$"}, ["a", "b"], ["ab"]),
        ({"regex": r"a\$"}, ["a$"], ["a"]),
        ({"choice": ["yes", 'a "quote"\n', "é/x"]}, ["yes", 'a "quote"\n', "é/x"], ["no", "ye"]),
        (
            {"json": PERSON},
            ['{"name": "Ann", "age": 3}', '{"name":"","age":-1}'],
            ['{"name": "Annabel", "age": 3}'],
        ),
        ({"json": json.dumps(PERSON)}, ['{"name":"A","age":3}'], ['{"age":3}']),
        ({"json": {"type": "integer"}, "disable_any_whitespace": True}, ["12"], ["1 2"]),
        ({"json_object": True}, ["{}", '{"a": [1, null]}'], ["[]", "1"]),
        ({"grammar": 'root ::= "(" root ")" | "x"'}, ["x", "((x))"], ["(x", "y"]),
        ({"grammar": 'start: "(" start ")" | "x"'}, ["x", "((x))"], ["(x", "y"]),
    ],
)
def test_a_form_allows_what_it_says(
    compiler: guided.Compiler, form: dict[str, Any], good: Sequence[str], bad: Sequence[str]
) -> None:
    for text in good:
        assert _accepts(_grammar(compiler, **form), text), text
    for text in bad:
        assert not _accepts(_grammar(compiler, **form), text), text


def test_tokens_of_several_letters_come_where_all_of_them_may(compiler: guided.Compiler) -> None:
    assert _allowed(_grammar(compiler, regex="a+b+")) == {ord("a"), AB}
    assert TRUE in _allowed(_grammar(compiler, json={"type": "boolean"}))


def test_special_tokens_are_no_text(compiler: guided.Compiler) -> None:
    assert _allowed(_grammar(compiler, regex="<eos>")) == {ord("<")}


def test_only_tokens_of_the_vocabulary_are_allowed(compiler: guided.Compiler) -> None:
    assert max(_allowed(_grammar(compiler, regex="(.|\n)*"))) < Bytes.vocab_size


def test_a_complete_answer_may_end_by_any_end(compiler: guided.Compiler) -> None:
    grammar = _grammar(compiler, regex="a")
    assert not grammar.is_complete
    assert grammar.accept(ord("a"))
    assert grammar.is_complete and grammar.is_finished
    assert _allowed(grammar) == {EOS, STOP}
    assert grammar.accept(STOP)


def test_a_wrong_token_is_refused_and_only_the_end_remains(compiler: guided.Compiler) -> None:
    grammar = _grammar(compiler, regex="aaa")
    assert not grammar.accept(ord("b"))
    assert grammar.error is not None and "<" not in grammar.error[:1]
    assert _allowed(grammar) == {EOS, STOP}
    assert not grammar.accept(ord("a"))


def test_rollback_takes_tokens_back_even_over_the_end(compiler: guided.Compiler) -> None:
    grammar = _grammar(compiler, regex="ab|ac")
    before = _allowed(grammar)
    for token in (ord("a"), ord("b"), EOS, EOS):
        assert grammar.accept(token)
    grammar.rollback(3)
    assert _allowed(grammar) == {ord("b"), ord("c")}
    grammar.rollback(1)
    assert _allowed(grammar) == before


def test_guesses_are_cut_where_the_form_ends(compiler: guided.Compiler) -> None:
    grammar = _grammar(compiler, regex="abc")
    assert grammar.count_allowed(_tokens("abxx")) == 2
    assert grammar.count_allowed([AB, ord("c")]) == 2
    row = Row(SamplingParams(), vocab_size=V, grammar=grammar)
    assert row.possible(_tokens("abd")) == _tokens("ab")
    assert _allowed(grammar) == {ord("a")}


def test_tokens_without_a_choice_are_free_guesses(compiler: guided.Compiler) -> None:
    grammar = _grammar(compiler, regex="x(yes|no)")
    assert grammar.forced()[:1] == [ord("x")]


def test_copies_of_a_cached_form_are_independent(compiler: guided.Compiler) -> None:
    before = compiler.num_cached
    one, two = (_grammar(compiler, regex="pq") for _ in range(2))
    assert compiler.num_cached == before + 1
    one.accept(ord("p"))
    assert _allowed(two) == {ord("p")}


def test_the_cache_is_bounded() -> None:
    small = guided.Compiler(Bytes(), cache_size=3)
    for number in range(9):
        _grammar(small, regex=f"x{number}")
    assert small.num_cached == 3


def test_a_tokenizer_keeps_its_compiler() -> None:
    tokenizer = Bytes()
    form = StructuredOutputsParams(regex="a")
    guided.compile(form, tokenizer)
    guided.compile(form, tokenizer)
    assert guided._compilers[tokenizer].num_cached == 1


# --- what a stranger may send ------------------------------------------------------------------------


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"regex": "["}, "regex cannot be compiled"),
        ({"regex": "a" * 4097}, "4097 characters"),
        ({"json": "{"}, "is no JSON"),
        ({"json": "[" * 10_000}, "is no JSON"),
        ({"json": "3"}, "is no JSON schema"),
        ({"json": {"type": "nothing"}}, "json cannot be compiled"),
        ({"json": {"$ref": "#/nowhere"}}, "json cannot be compiled"),
        ({"json": {"$ref": "#"}}, "json cannot be compiled"),
        ({"json": {"$ref": "http://127.0.0.1/schema"}}, "json cannot be compiled"),
        ({"json": _nested(10_000)}, "levels of nesting"),
        ({"json": {"type": "string", "pattern": "a" * 5000}}, "5000 characters"),
        ({"json": {"enum": ["x" * 70_000]}}, "bytes"),
        ({"choice": ["x" * 70_000]}, "bytes"),
        ({"choice": ["x"] * 2000}, "2000 strings"),
        ({"grammar": "root ::= " + "(" * 20_000}, "grammar cannot be compiled"),
        ({"grammar": "start: missing"}, "grammar cannot be compiled"),
        ({"grammar": "no grammar"}, "grammar cannot be compiled"),
        ({"grammar": "x" * 70_000}, "bytes"),
        ({"structural_tag": "{}"}, "another form"),
        ({"structural_tag": '{"triggers": ["<a"], "structures": []}'}, "no structures"),
        (
            {"structural_tag": '{"triggers":["<"],"structures":[{"begin":"x","schema":{},"end":""}]}'},
            "begin with one of the triggers",
        ),
    ],
)
def test_a_form_that_cannot_be_is_an_error_of_its_request(
    compiler: guided.Compiler, form: dict[str, Any], message: str
) -> None:
    with pytest.raises(errors.ValueMismatchError, match=message):
        _grammar(compiler, **form)
    assert _accepts(_grammar(compiler, regex="a"), "a")  # the next request is served


@pytest.mark.parametrize("regex", ["(a+)+$", "(.*a.{300}){100}", "((a{1,1000}){1,1000}){1,1000}"])
def test_expressions_that_are_slow_elsewhere(compiler: guided.Compiler, regex: str) -> None:
    grammar = _grammar(compiler, regex=regex)
    for _ in range(50):
        if ord("a") not in _allowed(grammar):
            break
        grammar.accept(ord("a"))
    assert _allowed(grammar)


def test_what_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    hurried = guided.Compiler(Bytes(), limits=Limits(grammar_compile_s=0.05))
    goes_on = threading.Event()
    built = hurried._built
    monkeypatch.setattr(hurried, "_built", lambda name, text: (goes_on.wait(5), built(name, text))[1])
    start = time.perf_counter()
    with pytest.raises(errors.ValueMismatchError, match="takes too long to compile"):
        _grammar(hurried, regex="a")
    assert time.perf_counter() - start < 4
    goes_on.set()
    assert _accepts(_grammar(hurried, regex="b"), "b")


def test_a_tokenizer_without_an_end_is_an_error() -> None:
    class Endless(Bytes):
        eos_ids = ()

    with pytest.raises(errors.ValueMismatchError, match="ends a text"):
        guided.Compiler(Endless())


# --- with the rest of sampling -----------------------------------------------------------------------


def test_masks_of_many_rows_are_those_of_each(compiler: guided.Compiler) -> None:
    grammars = [_grammar(compiler, regex=f"[{first}-z]x") for first in "aeimq"]
    grammars[2].accept(ord("1"))  # an error, which must not reach the others
    mask = np.full((8, -(-V // 32)), 7, np.uint32)
    guided.fill_masks(enumerate(grammars), mask)
    for row, grammar in enumerate(grammars):
        alone = np.zeros(mask.shape[1], np.uint32)
        grammar.fill_mask(alone)
        np.testing.assert_array_equal(mask[row], alone)
    assert (mask[5:] == 7).all()


def test_answers_have_their_forms_beside_free_ones(compiler: guided.Compiler) -> None:
    rows = [
        Row(SamplingParams(seed=1), vocab_size=V, grammar=_grammar(compiler, json=PERSON)),
        Row(SamplingParams(seed=2), vocab_size=V),
        Row(
            SamplingParams(seed=3, temperature=2.0),
            vocab_size=V,
            grammar=_grammar(compiler, regex="[0-9]{4}"),
        ),
    ]
    features = state.preset_of(state.features_of(rows))
    rng = np.random.default_rng(0)
    answers: list[list[int]] = [[] for _ in rows]
    for _ in range(400):
        logits = rng.normal(size=(4, V)).astype(np.float32)
        logits[:, ord('"')] += 3.0  # strings end soon
        made = state.build(rows, 4, features)
        drawn = np.asarray(kernels.sample_step(logits, made, features=features).tokens)
        for answer, row, token in zip(answers, rows, drawn.tolist(), strict=False):
            assert row.push(token)
            answer.append(token)
        if all(row.grammar is None or row.grammar.is_finished for row in rows):
            break
    texts = [
        b"".join(Bytes().token_bytes(token) for token in answer if token not in Bytes.eos_ids)
        for answer in (answers[0], answers[2])
    ]
    assert set(json.loads(texts[0])) == {"name", "age"}
    assert texts[1].isdigit() and len(texts[1]) == 4


def test_guesses_are_masked_one_after_the_other(compiler: guided.Compiler) -> None:
    grammar = _grammar(compiler, regex="abcd")
    row = Row(SamplingParams(temperature=0.0), vocab_size=V, grammar=grammar)
    features = state.PRESETS[2]
    made = state.build([row], 4, features, drafts=[_tokens("ab")])
    drawn = kernels.sample_step(np.zeros((4, V), np.float32), made, features=features).tokens
    assert np.asarray(drawn)[:3].tolist() == [ord("a"), ord("b"), ord("c")]
    assert _allowed(grammar) == {ord("a")}


def test_free_text_with_parts_that_follow_a_schema(compiler: guided.Compiler) -> None:
    tag = {
        "triggers": ["<tool>"],
        "structures": [{"begin": "<tool>", "schema": {"type": "integer"}, "end": "</tool>"}],
    }
    grammar = _grammar(compiler, structural_tag=json.dumps(tag))
    for token in _tokens("any text "):
        assert grammar.accept(token)
    assert EOS in _allowed(grammar)
    assert grammar.accept(TOOL)
    assert _allowed(grammar) <= {*_tokens(" \n\r\t-0123456789")}
    for token in _tokens("12</tool> more"):
        assert grammar.accept(token)


# --- calls of functions ------------------------------------------------------------------------------

FUNCTIONS = [
    ("add", {"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "required": ["a"],
             "additionalProperties": False, "$defs": {"x": {"type": "integer"}}}),
    ("say", {"type": "object", "properties": {"b": {"$ref": "#/definitions/x"}}, "required": ["b"],
             "additionalProperties": False, "definitions": {"x": {"type": "string"}}}),
    ("now", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("choice", "is_single", "good", "bad"),
    [
        ("add", False, ['{"a": 1}'], ['{"a": "x"}', "[]"]),
        (
            "required",
            False,
            [
                '[{"name": "add", "parameters": {"a": 1}}]',
                '[{"name": "say", "parameters": {"b": "x"}}, {"name": "now", "parameters": {}}]',
            ],
            [
                "[]",
                '[{"name": "add", "parameters": {"a": "x"}}]',
                '[{"name": "say", "parameters": {"b": 1}}]',
            ],
        ),
        (
            "required",
            True,
            ['[{"name": "add", "parameters": {"a": 1}}]'],
            ['[{"name": "add", "parameters": {"a": 1}}, {"name": "now", "parameters": {}}]'],
        ),
    ],
)
def test_calls_that_have_to_be(
    compiler: guided.Compiler, choice: str, is_single: bool, good: Sequence[str], bad: Sequence[str]
) -> None:
    """Two functions have different definitions of one name."""
    form = tool_schemas.forced_calls(FUNCTIONS, choice, is_single=is_single)
    for text in good:
        assert _accepts(compiler.compile(form), text), text
    for text in bad:
        assert not _accepts(compiler.compile(form), text), text


def test_a_schema_that_refers_to_itself_stays_what_it_is(compiler: guided.Compiler) -> None:
    tree = {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False}
    form = tool_schemas.forced_calls([("walk", tree), ("now", None)], "required")
    assert _accepts(compiler.compile(form), '[{"name": "walk", "parameters": {"next": {"next": {}}}}]')
    assert not _accepts(compiler.compile(form), '[{"name": "walk", "parameters": {"next": 3}}]')


def test_calls_between_marks_in_free_text(compiler: guided.Compiler) -> None:
    form = tool_schemas.tagged_calls(FUNCTIONS, begin="<call>", end="</call>")
    good = 'Well, <call>{"name": "add", "arguments": {"a": 1}}</call> and more'
    assert _accepts(compiler.compile(form), good)
    assert not _accepts(compiler.compile(form), '<call>{"name": "add", "arguments": {"a": "x"}}</call>')
    assert _accepts(compiler.compile(form), "no call at all")


@pytest.mark.parametrize("functions", [[], FUNCTIONS])
def test_a_choice_of_nothing_is_an_error(functions: Sequence[Any]) -> None:
    with pytest.raises(errors.ValueMismatchError, match="tool_choice"):
        tool_schemas.forced_calls(functions, "missing")
