"""Messages to prompts, and what a template may not do."""

# ruff: noqa: E501  # texts of templates and answers are as long as they are
from __future__ import annotations

import contextlib
import time
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from infini.core import errors
from infini.llm.text import chat, template_process, template_sandbox, templates, tokenizer
from infini.llm.text.templates import ChatTemplateError
from tests.llm.text import families, vocabularies as v

USER = [{"role": "user", "content": "hello"}]


def _render(template: str, **values: Any) -> str:
    return templates.render(template, templates.plain({"messages": USER} | values))


def _tokenizer(**config: Any) -> tokenizer.Tokenizer:
    return tokenizer.from_json(
        v.byte_level().to_str(), {"bos_token": "<s>", "eos_token": "<|im_end|>"} | config
    )


# --- what is rendered -------------------------------------------------------------------------


def test_the_tokenizers_template_gets_its_special_tokens() -> None:
    tokens = _tokenizer(
        chat_template="{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token }}"
    )
    assert chat.render(USER, tokenizer=tokens) == "<s>hello<|im_end|>"


def test_without_a_template_the_vocabulary_decides() -> None:
    assert chat.render(USER, tokenizer=_tokenizer()).startswith("<|im_start|>user\nhello<|im_end|>\n")
    plain = tokenizer.from_json(v.sentencepiece().to_str(), {"bos_token": "<s>"})
    assert chat.render([{"role": "system", "content": "S"}, *USER], tokenizer=plain) == (
        "<s>S\nUser: hello\nAssistant:"
    )


def test_templates_are_chosen_by_name_and_for_tools() -> None:
    tokens = _tokenizer(
        chat_template=[{"name": n, "template": n.upper()} for n in ("default", "tool_use", "rag")]
    )
    assert chat.render(USER, tokenizer=tokens) == "DEFAULT"
    assert chat.render(USER, tokenizer=tokens, tools=families.TOOLS) == "TOOL_USE"
    assert chat.render(USER, tokenizer=tokens, chat_template="rag") == "RAG"
    assert chat.render(USER, tokenizer=tokens, chat_template="own {{ messages|length }}") == "own 1"


def test_several_templates_without_a_default_are_named() -> None:
    with pytest.raises(errors.ValueMismatchError, match="none is the default"):
        chat.render(USER, tokenizer=_tokenizer(chat_template=[{"name": "rag", "template": ""}]))


def test_parts_become_text_unless_the_template_reads_parts() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert "user\na\nb<|im_end|>" in chat.render(messages, chat_template=chat.CHATML)
    assert "User: [a] [b]" in chat.render(messages, chat_template=families.PARTS)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([], "no messages"),
        ("hello", "no messages"),
        ([{"content": "x"}], r"messages\[0\] has no role"),
        ([*USER, {"role": "user", "content": 3}], r"messages\[1\]"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}], "no text"),
        ([{"role": "assistant", "tool_calls": [{"id": "x"}]}], "without a function"),
    ],
)
def test_wrong_messages_are_named(messages: Any, text: str) -> None:
    with pytest.raises(errors.ValueMismatchError, match=text):
        chat.render(messages, chat_template=chat.CHATML)


def test_arguments_of_calls_become_objects() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": [1, "é"]}'}}
    messages = [*USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert '"arguments": {"x": [1, "é"]}' in chat.render(messages, chat_template=families.CHATML)
    broken = {"type": "function", "function": {"name": "f", "arguments": '{"x": '}}
    text = chat.render([*USER, {"role": "assistant", "tool_calls": [broken]}], chat_template=families.CHATML)
    assert '"arguments": "{\\"x\\": "' in text


@pytest.mark.parametrize("depth", [300, 900])
def test_arguments_that_are_nested_too_deeply_are_named(depth: int) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "[" * depth + "]" * depth}}
    with pytest.raises(ChatTemplateError, match="exceeds a limit"):
        chat.render([*USER, {"role": "assistant", "tool_calls": [call]}], chat_template=families.CHATML)


def test_content_is_none_only_for_templates_that_ask() -> None:
    messages = [*USER, {"role": "assistant", "content": None}]
    assert chat.render(messages, chat_template="{{ messages[1]['content'] is none }}") == "True"
    assert chat.render(messages, chat_template="{{ messages[1]['content'] is defined }}") == "False"


def test_the_last_message_goes_on() -> None:
    messages = [*USER, {"role": "assistant", "content": "The answer "}]
    how: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    text = chat.render(messages, chat_template=chat.CHATML, **how)
    assert text.endswith("<|im_start|>assistant\nThe answer ")
    trimmed = chat.render(messages, chat_template=families.GEMMA, **how)
    assert trimmed.endswith("<start_of_turn>model\nThe answer ")
    with pytest.raises(errors.ValueMismatchError, match="both continue"):
        chat.render(messages, chat_template=chat.CHATML, continue_final_message=True)


@pytest.mark.parametrize("name", ["tokenize", "messages", "chat_template", "raise_exception", "eos_token"])
def test_variables_that_are_not_the_callers_are_refused(name: str) -> None:
    with pytest.raises((errors.ValueMismatchError, TypeError)):
        chat.render(USER, **{"chat_template": "x", "tokenizer": None} | {name: "y"}) if name not in (
            "messages", "chat_template"
        ) else chat.render(USER, chat_template="x", **{"tokenize": 1})  # fmt: skip


def test_objects_reach_a_template_as_names_of_their_types() -> None:
    assert chat.render(USER, chat_template="{{ tool }}", tool=object()) == "<object>"


def test_date_of_today() -> None:
    assert _render("{{ strftime_now('%Y') }}") == time.strftime("%Y")


def test_variables_of_a_template() -> None:
    assert templates.variables(families.CHATML) == {
        "messages", "tools", "add_generation_prompt", "enable_thinking"
    }  # fmt: skip


def test_what_a_template_refuses_is_its_own_message() -> None:
    with pytest.raises(ChatTemplateError, match="System role not supported"):
        chat.render([{"role": "system", "content": "x"}], chat_template=families.GEMMA)


@pytest.mark.parametrize(
    "template", ["{% for %}", "{{ x ", "{% generation %}", "{{ a b }}", "{{ x | nofilter }}"]
)
def test_a_template_that_is_none_is_named(template: str) -> None:
    with pytest.raises(ChatTemplateError, match="not valid"):
        _render(template)


@pytest.mark.parametrize(
    "template", ["{{ messages[9].content }}", "{{ 1 / 0 }}", "{{ messages + 1 }}", "{{ 'a' | int + none }}"]
)
def test_a_template_that_fails_is_named(template: str) -> None:
    with pytest.raises(ChatTemplateError):
        _render(template)


# --- what a template may not do ---------------------------------------------------------------

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('id') }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ lipsum.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__code__ }}",
    "{{ range.__class__ }}",
    "{{ messages.__class__.__base__ }}",
    "{{ (messages | map(attribute='__class__') | list)[0].mro() }}",
    "{{ messages | attr('__class__') }}",
    "{{ ['__class__'] | map('attr', '__class__') | list }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(namespace) }}",
    "{{ '{0.__class__}' | format(namespace) }}",
    "{{ ('%s' | format)(namespace.__init__) }}",
    "{{ namespace(__class__=1) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='x') }}",
    "{{ messages.clear() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% extends 'x' %}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ (generation or loop).__class__ }}",
    "{{ config }}{{ request.application.__globals__ }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_reaches_nothing_of_python(template: str) -> None:
    try:
        text = _render(template)
    except ChatTemplateError:
        return
    assert not any(
        word in text for word in ("<class", "<module", "<function", "globals", "root:", "built-in")
    )


LIMITS = [
    "{{ 'a' * 10**9 }}",
    "{{ ['a'] * 10**9 }}",
    "{{ ('a' * 1000) * 1000 * 1000 }}",
    "{{ range(10**9) }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "{% set ns = namespace(x='aaaa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='aaaa') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x='aaaa') %}{% for i in range(99) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=(1,)) %}{% for i in range(99) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {ns.x: 1} }}",
    "{% set ns = namespace(x={}) %}{% for i in range(99) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x == ns.x }}",
    "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
    "{{ 2 ** (10**9) }}",
    "{{ 'x' | center(10**9) }}",
    "{{ 'x'.ljust(10**9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 999999) }}",
    "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "{{ ('a' * 10000).replace('', 'b' * 100000) }}",
    "{{ ('a' * 100000).join(range(99999) | map('string') | list) }}",
    "{{ range(99999) | join('a' * 100000) }}",
    "{{ ('\n' * 100000) | indent(100000) }}",
    "{{ messages | tojson(indent=1000000) }}",
    "{{ ('\t' * 100000).expandtabs(100000) }}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(x) %}{% for i in range(9) %}{% if x %}{{ f(x - 1) }}{% endif %}{% endfor %}{% endmacro %}{{ f(40) }}",
    "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "{{ '(' * 100 }}" * 20000,
    "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "{{ " + "-" * 5000 + "1 }}",
    "{{ " + "1+" * 9000 + "1 }}",
    "{% if a %}" * 3000 + "{% endif %}" * 3000,
]


@pytest.mark.parametrize("template", LIMITS, ids=lambda text: text[:60])
def test_a_template_that_asks_for_too_much_is_stopped(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_STEPS", 200_000)  # the same, sooner
    with pytest.raises(ChatTemplateError):
        _render(template)


def test_values_shared_in_many_places_are_counted_as_they_are_written() -> None:
    shared = [["x" * 1000] * 100] * 100
    with pytest.raises(ChatTemplateError, match="limit"):
        _render("{{ messages }}{{ x }}{{ x }}", x=[shared] * 2)


def test_a_template_of_a_request_runs_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    text = chat.render(USER, chat_template=chat.CHATML, is_trusted=False)
    assert text == chat.render(USER, chat_template=chat.CHATML)
    with pytest.raises(ChatTemplateError, match="refuses the messages"):
        chat.render(USER, chat_template="{{ raise_exception('no') }}", is_trusted=False)
    monkeypatch.setattr(template_sandbox, "MAX_SECONDS", -template_process._GRACE_S)
    with pytest.raises(ChatTemplateError, match="limit"):
        template_process.render("x", {})


FRAGMENTS = [
    "{{ ", " }}", "{% ", " %}", "for x in ", "messages", "endfor", "if ", "endif", "else", "set ", "ns = namespace()", "ns.x",
    " = ", "[", "]", "(", ")", "{", "}", "'a'", "1", "0", "-", "+", "*", "**", "//", "%", "~", "|", ".", ",", "==", " in ", " is ",
    "range(", "join", "list", "map(", "'role'", "tojson", "sort", "int", "format", "string", "defined", "loop", "loop.index",
    "macro f(x)", "endmacro", "f(", "generation", "endgeneration", "raise_exception(", "strftime_now(", "none", "x", "text",
    "dictsort", "groupby(", "slice(", "batch(", "indent", "replace(", "items", "min", "sum", "round", "first", "10**3", "dict(",
    "break", "call", "filter upper", "{#", "#}", "\n", "recursive", "[::-1]", "cycler(", "joiner(", "'%s'", "'{}'.format(",
]  # fmt: skip


@hypothesis.given(pieces=st.lists(st.sampled_from(FRAGMENTS), max_size=14))
def test_any_template_gives_text_or_its_own_error(pieces: list[str]) -> None:
    with contextlib.suppress(ChatTemplateError):
        assert isinstance(_render("".join(pieces)), str)
        assert isinstance(_render("{{ " + "".join(pieces) + " }}"), str)
