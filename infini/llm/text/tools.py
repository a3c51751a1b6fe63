"""Tool calls that models write into their answers, each family in a form of its own.

A form is a grammar that reads letter by letter, so every way of cutting an answer gives the same calls, and
the work grows with its length. Arguments are passed on while they arrive, as the model wrote them. What only
looks like a call stays text: it is held back until a name and the beginning of arguments are there. Arguments
that break off later cannot be taken back from a stream; `parse`, which sees all, gives such a call back as
text.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from infini.llm.text import parsers, tool_grammars, tool_readers
from infini.llm.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool.

    Args:
        name: the tool.
        arguments: a JSON object, as text.
        id: made anew for every call.
    """

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}", compare=False)


@dataclass(frozen=True, slots=True)
class CallPiece:
    """New text of a call.

    Args:
        index: number of the call in this answer.
        name: the tool, in the first piece of a call; None in the others.
        arguments: what follows the arguments so far.
        id: of the call, in its first piece.
    """

    index: int
    name: str | None
    arguments: str
    id: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Delta:
    """What a piece of an answer holds: text, and pieces of calls."""

    content: str = ""
    calls: tuple[CallPiece, ...] = ()


@dataclass(frozen=True, slots=True)
class Parsed:
    """A whole answer: its text, without the calls, and the calls."""

    content: str
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolParser:
    """How a family writes calls.

    Args:
        name: name of the form.
        grammar: reads letters and says what they are.
        marks: what a chat template of this form has in it; a group that is there as a whole is enough.
        foreign: what a template of another form with the same marks has in it.
        is_special: whether its marks are special tokens, which decoding must then keep.
    """

    name: str
    grammar: Callable[[tool_readers.Output], tool_readers.Machine]
    marks: tuple[tuple[str, ...], ...]
    foreign: tuple[str, ...] = ()
    is_special: bool = False

    def parse(self, text: str) -> Parsed:
        """Text and calls of a whole answer.

        Example:
            >>> answer = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
            >>> [(call.name, call.arguments) for call in PARSERS["hermes"].parse(answer).calls]
            [('f', '{"x": 1}')]
        """
        output = tool_readers.Output()
        tool_readers.run(self.grammar, output, text)
        return Parsed(
            output.whole_text(),
            tuple(ToolCall(call.name, call.arguments()) for call in output.calls if call.is_whole),
        )

    def stream(self) -> ToolStream:
        """A parser at the beginning of an answer."""
        return ToolStream(self)


class ToolStream:
    """Splits an answer that arrives in pieces; made by `ToolParser.stream`."""

    def __init__(self, parser: ToolParser) -> None:
        self._output = tool_readers.Output()
        self._machine: tool_readers.Machine | None = parser.grammar(self._output)
        next(self._machine)

    @property
    def num_calls(self) -> int:
        """Calls that have begun."""
        return len(self._output.calls)

    def push(self, text: str) -> Delta:
        """What is certain now."""
        for letter in text:
            if self._machine is not None:
                self._machine.send(letter)
        return self._taken()

    def finish(self) -> Delta:
        """What was held back, and turned out to be text."""
        tool_readers.end(self._machine)
        self._machine = None
        return self._taken()

    def _taken(self) -> Delta:
        content, calls = self._output.take()
        return Delta(
            content,
            tuple(
                CallPiece(index, name, arguments, None if name is None else f"call_{secrets.token_hex(12)}")
                for index, name, arguments in calls
            ),
        )


PARSERS: Final[Mapping[str, ToolParser]] = {
    parser.name: parser
    for parser in (
        ToolParser("qwen3_xml", tool_grammars.qwen_xml, (("<tool_call>", "<function="),)),
        ToolParser("hermes", tool_grammars.hermes, (("<tool_call>",),), foreign=("<arg_key>",)),
        ToolParser("mistral", tool_grammars.mistral, (("[TOOL_CALLS]",),), is_special=True),
        ToolParser("deepseek", tool_grammars.deepseek, (("<｜tool▁call▁begin｜>",),), is_special=True),
        ToolParser(
            "llama3_json", tool_grammars.llama3_json, (("<|python_tag|>",), ('"parameters"', "<|eot_id|>")),
            is_special=True,
        ),
        ToolParser(
            "pythonic", tool_grammars.pythonic, (("func_name1(", "params_name1="), ("<|python_start|>",))
        ),
    )
}  # fmt: skip
# Names that other servers use for the same forms.
_ALIASES: Final = {
    "qwen": "hermes", "qwen2": "hermes", "qwen25": "hermes", "qwen3": "hermes", "qwen3_coder": "qwen3_xml",
    "deepseek_v3": "deepseek", "deepseek_v31": "deepseek", "llama3": "llama3_json",
    "llama4_json": "llama3_json", "llama4_pythonic": "pythonic", "llama3_pythonic": "pythonic",
}  # fmt: skip


def parser_of(source: Tokenizer | str | None, *, name: str | None = None) -> ToolParser | None:
    """The parser of a model, from what its chat template tells the model to write.

    Args:
        source: the model's tokenizer, or a template.
        name: name of a parser; stands above the template. `none` for no parser.

    Returns:
        The parser, None when the template has no form that is known.

    Raises:
        ValueMismatchError: there is no parser of this name.
    """
    if name is not None:
        return parsers.named(name, PARSERS, _ALIASES, kind="tool-call")
    templates = list(source.chat_templates.values()) if isinstance(source, Tokenizer) else [source or ""]
    for parser in PARSERS.values():
        if any(_fits(parser, text) for text in templates):
            return parser
    return None


def _fits(parser: ToolParser, template: str) -> bool:
    has_marks = any(all(mark in template for mark in group) for group in parser.marks)
    return has_marks and not any(mark in template for mark in parser.foreign)
