"""Tool calls in the forms of the families: whole and streamed, in every way of cutting."""

# ruff: noqa: E501  # texts of templates and answers are as long as they are
from __future__ import annotations

import json

import hypothesis
import pytest
from hypothesis import strategies as st

from infini.core import errors
from infini.llm.text import json_scanner, tools
from infini.llm.text.tools import PARSERS, Parsed, ToolCall, ToolParser
from tests.llm.text import families

ARGUMENTS = '{"city": "Wien \\"x\\" }{", "days": [1, -2.5e3, {"a": null}], "ok": true}'
D = {
    "begin": "<｜tool▁call▁begin｜>", "sep": "<｜tool▁sep｜>", "end": "<｜tool▁call▁end｜>",
    "all": "<｜tool▁calls▁begin｜>", "done": "<｜tool▁calls▁end｜>",
}  # fmt: skip


def _in_form(name: str, calls: list[tuple[str, str]]) -> str:
    """An answer with calls, as a model of the form writes it."""
    if name == "hermes":
        return "\n".join(f'<tool_call>\n{{"name": "{n}", "arguments": {a}}}\n</tool_call>' for n, a in calls)
    if name == "llama3_json":
        return "; ".join(f'{{"name": "{n}", "parameters": {a}}}' for n, a in calls)
    if name == "mistral":
        return "[TOOL_CALLS] [" + ", ".join(f'{{"name": "{n}", "arguments": {a}}}' for n, a in calls) + "]"
    if name == "mistral_new":
        return "".join(f"[TOOL_CALLS]{n}[ARGS]{a}" for n, a in calls)
    if name == "deepseek":
        rows = "\n".join(f"{D['begin']}function{D['sep']}{n}\n```json\n{a}\n```{D['end']}" for n, a in calls)
        return D["all"] + rows + D["done"]
    if name == "deepseek_new":
        return D["all"] + "".join(f"{D['begin']}{n}{D['sep']}{a}{D['end']}" for n, a in calls) + D["done"]
    if name == "pythonic":
        rows = [(n, ", ".join(f"{k}={v!r}" for k, v in json.loads(a).items())) for n, a in calls]
        return "[" + ", ".join(f"{n}({a})" for n, a in rows) + "]"
    assert name == "qwen3_xml"
    return "\n".join(
        f"<tool_call>\n<function={n}>\n"
        + "".join(
            f"<parameter={k}>\n{v if isinstance(v, str) else json.dumps(v)}\n</parameter>\n"
            for k, v in json.loads(a).items()
        )
        + "</function>\n</tool_call>"
        for n, a in calls
    )


FORMS = [
    "hermes",
    "llama3_json",
    "mistral",
    "mistral_new",
    "deepseek",
    "deepseek_new",
    "pythonic",
    "qwen3_xml",
]


def _parser(form: str) -> ToolParser:
    return PARSERS[form.removesuffix("_new")]


def _same(parsed: Parsed, calls: list[tuple[str, str]]) -> bool:
    return [(call.name, json.loads(call.arguments)) for call in parsed.calls] == [
        (name, json.loads(arguments)) for name, arguments in calls
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 3])
def test_calls_are_read(form: str, count: int) -> None:
    calls = [(f"get_{index}", ARGUMENTS) for index in range(count)]
    found = _parser(form).parse(_in_form(form, calls))
    assert _same(found, calls)
    assert found.content == ""
    if form not in ("pythonic", "qwen3_xml"):  # there arguments are no JSON yet
        assert [call.arguments for call in found.calls] == [ARGUMENTS] * count


@pytest.mark.parametrize(
    "form", ["hermes", "mistral", "mistral_new", "deepseek", "deepseek_new", "qwen3_xml"]
)
def test_text_before_a_call_stays(form: str) -> None:
    found = _parser(form).parse("Let me look.\n" + _in_form(form, [("f", "{}")]))
    assert (found.content, found.calls) == ("Let me look.\n", (ToolCall("f", "{}"),))


@pytest.mark.parametrize("form", FORMS)
def test_text_without_calls_stays(form: str) -> None:
    for text in (
        "",
        "  ",
        "Hello [1, 2] {x} <b>",
        "{",
        "[",
        "<tool",
        '{"name": 3}',
        "\n[TOOL",
        "[f(x)]",
        "a [TOOL_CALLS",
    ):
        assert _parser(form).parse(text) == Parsed(text)


def _streamed(parser: ToolParser, text: str, size: int) -> Parsed:
    stream = parser.stream()
    deltas = [stream.push(text[at : at + size]) for at in range(0, len(text), size)] + [stream.finish()]
    calls: list[list[str]] = []
    for piece in (piece for delta in deltas for piece in delta.calls):
        if piece.name is not None:
            assert piece.index == len(calls) and piece.id is not None
            calls.append([piece.name, piece.arguments])
        else:
            assert piece.index == len(calls) - 1 and piece.id is None
            calls[-1][1] += piece.arguments
    assert stream.num_calls == len(calls)
    return Parsed("".join(delta.content for delta in deltas), tuple(ToolCall(*call) for call in calls))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_every_cut_of_good_calls_is_the_whole(form: str, size: int) -> None:
    text = _in_form(form, [("f", ARGUMENTS), ("g", "{}")])
    for before in ("",) if form in ("llama3_json", "pythonic") else ("", "text < "):
        assert _streamed(_parser(form), before + text, size) == _parser(form).parse(before + text)


FRAGMENTS = [
    "<tool_call>", "</tool_call>", '{"name": "f", "arguments": ', '{"x": [1, 2]}', "}", "]", ",", ";", "[", "{", '"', "a",
    " ", "\n", "[TOOL_CALLS]", "[ARGS]", "f", '{"name": "f"', ', "parameters": {}', "f(x=1)", "<function=f>", "</function>",
    "<parameter=x>", "</parameter>", *D.values(), "function", "```json", "```", '"arguments": "{}"', "<|python_tag|>", "\\",
]  # fmt: skip


@pytest.mark.parametrize("name", PARSERS)
@hypothesis.given(pieces=st.lists(st.sampled_from(FRAGMENTS), max_size=12), size=st.integers(1, 9))
def test_every_cut_of_any_text_gives_the_same(name: str, pieces: list[str], size: int) -> None:
    text = "".join(pieces)
    streamed = _streamed(PARSERS[name], text, size)
    assert streamed == _streamed(PARSERS[name], text, 1000)
    whole = PARSERS[name].parse(text)
    good = tuple(call for call in streamed.calls if _is_object(call.arguments))
    assert whole.calls == good
    if good == streamed.calls:
        assert whole.content == streamed.content


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>{"name": "f"'),
        ("hermes", '<tool_call>{"arguments": {"x": 1}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"x": 1, }}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"x": "'),
        ("hermes", "<tool_call>f(1)</tool_call>"),
        ("llama3_json", '{"name": "f", "parameters": {"x": 1'),
        ("llama3_json", '{"answer": 42}'),
        ("mistral", "[TOOL_CALLS] hello {"),
        ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": 3}]'),
        ("deepseek", f"{D['begin']}function{D['sep']}f\n```python"),
        ("pythonic", "[f(x=open('/etc/passwd'))]"),
        ("pythonic", "[f(1)]"),
        ("pythonic", "[f(**{})]"),
        ("pythonic", "[f(x=nan)]"),
        ("qwen3_xml", "<tool_call><function=f><parameter=x>1"),
    ],
)
def test_a_malformed_call_stays_text(name: str, text: str) -> None:
    assert PARSERS[name].parse(text) == Parsed(text)


def test_arguments_are_passed_on_while_they_arrive() -> None:
    stream = PARSERS["hermes"].stream()
    assert stream.push('<tool_call>{"name": "f", "argu').calls == ()
    assert stream.push('ments": {"x').calls[0].arguments == '{"x'
    assert stream.push('": 1').calls[0].arguments == '": 1'


def test_a_name_that_comes_late_and_arguments_as_a_string() -> None:
    text = '<tool_call>{"arguments": {"x": 1}, "name": "f"}</tool_call>'
    assert PARSERS["hermes"].parse(text).calls == (ToolCall("f", '{"x": 1}'),)
    text = '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>'
    assert PARSERS["hermes"].parse(text).calls == (ToolCall("f", '{"x": 1}'),)


def test_a_bad_call_does_not_hide_a_good_one() -> None:
    text = '<tool_call>oops</tool_call>\n<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    found = PARSERS["hermes"].parse(text)
    assert found == Parsed("<tool_call>oops</tool_call>\n", (ToolCall("f", "{}"),))


def test_work_grows_with_the_text() -> None:
    """Steps of the scanner per letter, on what makes parsers that look back go wrong."""
    steps = 0
    before = json_scanner.Scanner.push

    def push(self: json_scanner.Scanner, letter: str) -> bool:
        nonlocal steps
        steps += 1
        return before(self, letter)

    json_scanner.Scanner.push = push  # type: ignore[method-assign]
    try:
        text = '<tool_call>{"name": "f", "arguments": {"x": "' * 2000
        PARSERS["hermes"].parse(text)
    finally:
        json_scanner.Scanner.push = before  # type: ignore[method-assign]
    assert steps <= 2 * len(text)


@hypothesis.given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    ),
    st.integers(0, 60),
    st.sampled_from('{}[]",:0-.eE\\/ truenfals\n\x01'),
)
def test_scanner_accepts_what_json_accepts(value: object, at: int, letter: str) -> None:
    for text in (json.dumps([value]), json.dumps([value], ensure_ascii=False, indent=1)):
        at %= len(text)
        for candidate in (
            text,
            text[:at] + letter + text[at:],
            text[:at] + letter + text[at + 1 :],
            text[:at],
        ):
            scanner = json_scanner.Scanner()
            accepts = all(scanner.push(each) for each in candidate) and scanner.is_done
            assert accepts == _is_json(candidate), candidate


def _is_json(text: str) -> bool:
    def refuse(name: str) -> object:
        raise ValueError(name)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True


def test_the_template_names_the_parser() -> None:
    names = {
        name: getattr(tools.parser_of(template), "name", None)
        for name, template in families.TEMPLATES.items()
    }
    assert names == {
        "chatml": "hermes", "llama3": "llama3_json", "mistral": "mistral", "gemma": None, "deepseek": "deepseek",
        "phi3": None, "parts": None,
    }  # fmt: skip
    assert tools.parser_of(families.GEMMA, name="qwen3_coder") is PARSERS["qwen3_xml"]
    assert tools.parser_of(families.CHATML, name="none") is None
    with pytest.raises(errors.ValueMismatchError, match="no tool-call parser"):
        tools.parser_of(None, name="x")
