"""The forms in which families write tool calls, as grammars that read one letter at a time.

A grammar is a generator: it asks for a letter by `yield` (None is the end) and tells an `Output` what it
found. The small readers below, a text up to a mark, a JSON object with a name and arguments, are shared by
the forms.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Final, TypeVar

from infini.llm.text import json_scanner

T = TypeVar("T")
Machine = Generator[None, str | None, None]
Reader = Generator[None, str | None, T]

MAX_NAME: Final = 256  # letters of a tool's name
_SPACE: Final = " \t\r\n"
_NAME: Final = re.compile(r"[\w.:/-]+")


@dataclass(slots=True)
class Call:
    """A call as it is read.

    Args:
        name: the tool.
        raw: letters of the answer that made it.
        place: length of the answer's text where it stood.
    """

    name: str
    raw: list[str] = field(default_factory=list)
    place: int = 0
    is_whole: bool = False
    pieces: list[str] = field(default_factory=list)

    def arguments(self) -> str:
        return "".join(self.pieces)


class Output:
    """What a grammar found, and the letter it gave back."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.back: list[str | None] = []
        self._text: list[str] = []
        self._events: list[tuple[int, str | None, str]] = []
        self._content: list[str] = []
        self._space = ""  # at the beginning and after calls: vanishes unless text follows
        self._is_at_edge = True

    def text(self, text: str) -> None:
        """Text of the answer."""
        if not text:
            return
        if self._is_at_edge:
            self._space += text
            if not self._space.strip(_SPACE):
                return
            text, self._space, self._is_at_edge = self._space, "", False
        self._text.append(text)
        self._content.append(text)

    def end(self) -> None:
        """The answer ends. Space alone is an answer only where there are no calls."""
        if self._space and not self.calls:
            self._text.append(self._space)
            self._content.append(self._space)
        self._space = ""

    def begin(self, name: str) -> Call:
        """A call begins."""
        self._space, self._is_at_edge = "", True
        call = Call(name, place=len(self._text))
        self.calls.append(call)
        self._events.append((len(self.calls) - 1, name, ""))
        return call

    def arguments(self, call: Call, text: str) -> None:
        """More of the arguments of the newest call."""
        if not text:
            return
        call.pieces.append(text)
        index, name, before = self._events[-1] if self._events else (-1, None, "")
        if index == len(self.calls) - 1:
            self._events[-1] = (index, name, before + text)
        else:
            self._events.append((len(self.calls) - 1, None, text))

    def take(self) -> tuple[str, list[tuple[int, str | None, str]]]:
        """What is new since the last time."""
        text, events = "".join(self._content), self._events
        self._content, self._events = [], []
        return text, events

    def whole_text(self) -> str:
        """The answer's text, with the letters of calls that broke off in their place."""
        found, at = [], 0
        for call in self.calls:
            if not call.is_whole:
                found += [*self._text[at : call.place], "".join(call.raw)]
                at = call.place
        return "".join([*found, *self._text[at:]])

    def next(self) -> Reader[str | None]:
        """The next letter."""
        if self.back:
            return self.back.pop()
        return (yield)


def run(grammar: Callable[[Output], Machine], output: Output, text: str) -> None:
    """Read a whole answer."""
    machine = grammar(output)
    next(machine)
    for letter in text:
        machine.send(letter)
    end(machine)


def end(machine: Machine | None) -> None:
    """Tell a grammar that there are no more letters."""
    if machine is None:
        return
    try:
        while True:  # a letter given back at the end is read once more before the end
            machine.send(None)
    except StopIteration:
        pass


# --- the forms --------------------------------------------------------------------------------


def hermes(output: Output) -> Machine:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, of Hermes and Qwen."""
    while (yield from _text_until(output, "<tool_call>")):
        if (yield from _call_object(output, "<tool_call>")):
            yield from _skip(output, "</tool_call>")
    output.end()


def llama3_json(output: Output) -> Machine:
    """`{"name": ..., "parameters": {...}}` as the whole answer, several with `;` between them."""
    raw = yield from _optional(output, "<|python_tag|>")
    if (yield from _call_object(output, raw)):
        while (yield from _skip(output, ";")):
            if not (yield from _call_object(output, ";")):
                break
    yield from _all_text(output)
    output.end()


def mistral(output: Output) -> Machine:
    """`[TOOL_CALLS]` and an array of calls; in newer models `[TOOL_CALLS]name[ARGS]{...}` for each."""
    mark = "[TOOL_CALLS]"
    while (yield from _text_until(output, mark)):
        raw = [mark]
        letter = yield from _space(output, raw)
        if letter == "[":
            raw.append("[")
            while (yield from _call_object(output, "".join(raw))):
                if not (yield from _skip(output, ",")):
                    yield from _skip(output, "]")
                    break
                raw = [","]
            continue
        if letter == "{":  # one call without an array
            output.back.append(letter)
            yield from _call_object(output, "".join(raw))
            continue
        output.back.append(letter)
        name = yield from _word_until(output, raw, ("[ARGS]", "[CALL_ID]", "{"))
        if name is not None:
            yield from _arguments(output, name, raw)
    output.end()


def deepseek(output: Output) -> Machine:
    """`<｜tool▁call▁begin｜>function<｜tool▁sep｜>name`, a block of JSON, and an end; in newer models
    the name stands before the separator and the object follows bare.
    """
    begin, separator = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"
    first, last = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
    while mark := (yield from _text_until(output, begin, first, last)):
        if mark != begin:
            continue
        raw = [begin]
        name = yield from _word_until(output, raw, (separator,))
        if name is None:
            continue
        if name == "function":
            letter = yield from _letter_of(output, raw)
            found: list[str | None] = []
            while letter not in (None, "\n", "{", "`") and len(found) < MAX_NAME:
                found.append(letter)
                letter = yield from _letter_of(output, raw)
            name = "".join(part for part in found if part is not None).strip()
            if letter in ("{", "`"):
                raw.pop()
                output.back.append(letter)
                name = name or "function"  # the newer form, and a tool of this name
            fence = yield from _optional_in(output, raw, "```json")
            if not _NAME.fullmatch(name) or fence is None:
                output.text("".join(raw))
                continue
        if (yield from _arguments(output, name, raw)):
            yield from _skip(output, "```")
            yield from _skip(output, "<｜tool▁call▁end｜>")
    output.end()


def pythonic(output: Output) -> Machine:
    """`[name(key=value, ...), ...]` as the whole answer. Values are literals; a call is passed on when it
    ends.
    """
    raw = [(yield from _optional(output, "<|python_start|>"))]
    letter = yield from _space(output, raw)
    if letter != "[":
        output.text("".join(raw))
        output.back.append(letter)
    else:
        raw.append("[")
        yield from _python_list(output, raw)
    yield from _all_text(output)
    output.end()


def qwen_xml(output: Output) -> Machine:
    """`<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`; a model of this
    form may write the JSON of `hermes` as well.
    """
    while (yield from _text_until(output, "<tool_call>")):
        raw = ["<tool_call>"]
        letter = yield from _space(output, raw)
        output.back.append(letter)
        if letter == "{":
            is_whole = yield from _call_object(output, "".join(raw))
        else:
            is_whole = yield from _xml_call(output, raw)
        if is_whole:
            yield from _skip(output, "</tool_call>")
    output.end()


# --- readers ----------------------------------------------------------------------------------


def _letter_of(output: Output, raw: list[str]) -> Reader[str | None]:
    """The next letter, which becomes part of `raw`."""
    letter = yield from output.next()
    if letter is not None:
        raw.append(letter)
    return letter


def _space(output: Output, raw: list[str]) -> Reader[str | None]:
    """Letters of space become part of `raw`; the first other one is the result."""
    letter = yield from output.next()
    while letter is not None and letter in _SPACE:
        raw.append(letter)
        letter = yield from output.next()
    return letter


def _all_text(output: Output) -> Reader[None]:
    while (letter := (yield from output.next())) is not None:
        output.text(letter)


def _text_until(output: Output, *marks: str) -> Reader[str | None]:
    """Text up to one of some marks, none of which begins another; None when the answer ends before."""
    held = ""
    while (letter := (yield from output.next())) is not None:
        held += letter
        if held in marks:
            return held
        while held and not any(mark.startswith(held) for mark in marks):
            output.text(held[0])
            held = held[1:]
    output.text(held)
    return None


def _optional(output: Output, mark: str) -> Reader[str]:
    """What was read of a mark and the space before it; the mark may be missing, and nothing is lost then."""
    raw: list[str] = []
    letter = yield from _space(output, raw)
    space, seen = "".join(raw), ""
    while letter is not None and mark.startswith(seen + letter):
        seen += letter
        if seen == mark:
            return space + seen
        letter = yield from output.next()
    output.back += [letter, *reversed(space + seen)]
    return ""


def _optional_in(output: Output, raw: list[str], mark: str) -> Reader[str | None]:
    """Space and a mark that may be missing, as part of `raw`; None when only its beginning is there."""
    letter = yield from _space(output, raw)
    seen = ""
    while letter is not None and mark.startswith(seen + letter):
        seen += letter
        raw.append(letter)
        if seen == mark:
            return seen
        letter = yield from output.next()
    output.back.append(letter)
    return None if seen else ""


def _skip(output: Output, mark: str) -> Reader[bool]:
    """Leave out space and a mark after a call; without the mark, what was read is text."""
    raw: list[str] = []
    letter = yield from _space(output, raw)
    seen = ""
    while letter is not None and mark.startswith(seen + letter):
        seen += letter
        if seen == mark:
            return True
        letter = yield from output.next()
    output.back += [letter, *reversed("".join(raw) + seen)]
    return False


def _word_until(output: Output, raw: list[str], ends: tuple[str, ...]) -> Reader[str | None]:
    """A name up to one of some marks. Without one it is text, and the result is None.

    A mark that opens an object is given back. What stands between `[CALL_ID]` and `[ARGS]` is left out.
    """
    name = ""
    while (letter := (yield from output.next())) is not None:
        if letter in "\n<[{" and not any(end.startswith(letter) for end in ends):
            output.back.append(letter)
            break
        name += letter
        mark = next((end for end in ends if name.endswith(end)), None)
        if mark is None:
            if len(name) > MAX_NAME:
                break
            continue
        found = name[: -len(mark)].strip()
        if not _NAME.fullmatch(found):
            break
        if mark == "{":
            output.back.append("{")
            raw.append(name[:-1])
        else:
            raw.append(name)
        if mark == "[CALL_ID]" and (yield from _word_until(output, raw, ("[ARGS]",))) is None:
            return None
        return found
    output.text("".join(raw) + name)
    return None


def _arguments(output: Output, name: str, raw: list[str]) -> Reader[bool]:
    """An object that holds the arguments of a call, passed on as it arrives."""
    letter = yield from _space(output, raw)
    if letter != "{":
        output.text("".join(raw))
        output.back.append(letter)
        return False
    call = output.begin(name)
    call.raw = raw
    scanner = json_scanner.Scanner()
    while letter is not None and scanner.push(letter):
        raw.append(letter)
        output.arguments(call, letter)
        if scanner.is_done:
            call.is_whole = True
            return True
        letter = yield from output.next()
    output.back.append(letter)
    return False


class _ObjectReader:
    """Follows an object that describes a call: its keys, its name, and where its arguments stand."""

    def __init__(self) -> None:
        self.scanner = json_scanner.Scanner()
        self.name: str | None = None
        self.arguments: list[str] = []  # letters of the arguments that wait for the name
        self.is_in_arguments = False
        self.has_arguments = False
        self._key = ""
        self._letters: list[str] = []  # of the key or value that is being read, at depth 1
        self._is_value = False

    def push(self, letter: str) -> bool:
        """Whether a letter can stand here."""
        scanner = self.scanner
        depth, was_in_string = scanner.depth, scanner.is_in_string
        if not scanner.push(letter):
            return False
        if depth == 0:
            return letter == "{" or letter in _SPACE
        if depth == 1 and not was_in_string and letter in ",:}":
            return self._edge(letter)
        if self._is_value and self._key in ("arguments", "parameters"):
            if not self.is_in_arguments:
                if letter in _SPACE:
                    return True
                if self.has_arguments or letter not in '{"':
                    return False
                self.is_in_arguments = self.has_arguments = True
            if depth > 1 or was_in_string or letter not in _SPACE:
                self.arguments.append(letter)
            return True
        self._letters.append(letter)
        return True

    def _edge(self, letter: str) -> bool:
        """A key or a value at depth 1 has ended."""
        text, self._letters = "".join(self._letters).strip(), []
        if letter == ":":
            self._key, self._is_value = json.loads(text), True
            return True
        if self._is_value and self._key == "name":
            name = json.loads(text)
            if not isinstance(name, str) or not name.strip() or self.name is not None:
                return False
            self.name = name
        self.is_in_arguments = self._is_value = False
        return True


def _call_object(output: Output, before: str) -> Reader[bool]:
    """An object `{"name": ..., "arguments": {...}}`. One that is none becomes text, with what stood before
    it.
    """
    raw = [before]
    reader = _ObjectReader()
    call: Call | None = None
    letter = yield from _space(output, raw)
    if letter != "{":
        output.text("".join(raw))
        output.back.append(letter)
        return False
    while letter is not None and reader.push(letter):
        raw.append(letter)
        if call is None and reader.name is not None and reader.arguments[:1] == ["{"]:
            call = output.begin(reader.name)
            call.raw = raw
        if call is not None and reader.arguments:
            output.arguments(call, "".join(reader.arguments))
            reader.arguments = []
        if reader.scanner.is_done:
            return _ended(output, call, reader, raw)
        letter = yield from output.next()
    output.back.append(letter)
    if call is None:
        output.text("".join(raw))
    return False


def _ended(output: Output, call: Call | None, reader: _ObjectReader, raw: list[str]) -> bool:
    """An object is whole: whether it was a call."""
    if call is None and reader.name is not None:
        text = "".join(reader.arguments).strip() or "{}"
        if text[0] == '"':  # an object that was written as a string
            text = json.loads(text).strip() or "{}"
        if _is_object(text):
            call = output.begin(reader.name)
            call.raw = raw
            output.arguments(call, text)
    if call is None:
        output.text("".join(raw))
        return False
    call.is_whole = True
    return True


def _is_object(text: str) -> bool:
    scanner = json_scanner.Scanner()
    return text[:1] == "{" and all(scanner.push(letter) for letter in text) and scanner.is_done


def _xml_call(output: Output, raw: list[str]) -> Reader[bool]:
    """A function with parameters as elements. Values that are JSON are taken as such, others as strings."""
    call: Call | None = None
    count = 0
    if (yield from _optional_in(output, raw, "<function=")) != "<function=":
        output.text("".join(raw))
        return False
    name = yield from _element_text(output, raw, ">")
    if name is None or not 0 < len(name.strip()) <= MAX_NAME:
        output.text("".join(raw))
        return False
    while True:
        before = len(raw)
        found = yield from _optional_in(output, raw, "</function>")
        if found == "</function>":
            break
        key = value = None
        is_open = found is None and "".join(raw[before:]).strip() == "<"
        if is_open and (yield from _optional_in(output, raw, "parameter=")) == "parameter=":
            key = yield from _element_text(output, raw, ">")
            value = None if key is None else (yield from _element_text(output, raw, "</parameter>"))
        if key is None or value is None:
            if call is None:
                output.text("".join(raw))
            return False
        if call is None:
            call = output.begin(name.strip())
            call.raw = raw
        pair = f"{json.dumps(key.strip(), ensure_ascii=False)}: {_as_json(value)}"
        output.arguments(call, (", " if count else "{") + pair)
        count += 1
    if call is None:
        call = output.begin(name.strip())
        call.raw = raw
        output.arguments(call, "{")
    output.arguments(call, "}")
    call.is_whole = True
    return True


def _element_text(output: Output, raw: list[str], mark: str) -> Reader[str | None]:
    """Text up to a mark, which is left out of the result; None when the answer ends before."""
    start = len(raw)
    while (letter := (yield from _letter_of(output, raw))) is not None:
        if letter == mark[-1] and "".join(raw[-len(mark) :]) == mark and len(raw) - start >= len(mark):
            return "".join(raw[start : len(raw) - len(mark)])
    return None


def _as_json(value: str) -> str:
    """A parameter's value: JSON where it is a number, a truth or a structure, else a string."""
    text = value.removeprefix("\n").removesuffix("\n")
    try:
        found = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return json.dumps(found if not isinstance(found, str) else text, ensure_ascii=False)


def _refuse(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _python_list(output: Output, raw: list[str]) -> Reader[None]:
    """Calls in Python's syntax, separated by commas, up to the bracket that ends them."""
    while True:
        source: list[str] = []
        quote, depth = "", 0
        while True:
            letter = yield from _letter_of(output, raw)
            if letter is None:
                output.text("".join(raw))
                return
            if not quote and depth == 0 and letter in ",]":
                break
            source.append(letter)
            if quote:
                if letter == quote and not _was_escaped(source):
                    quote = ""
            elif letter in "'\"":
                quote = letter
            elif letter in "([{":
                depth += 1
            elif letter in ")]}":
                depth -= 1
        found = _python_call("".join(source))
        if found is None:
            output.text("".join(raw))
            return
        call = output.begin(found[0])
        output.arguments(call, found[1])
        call.is_whole = True
        raw.clear()
        if letter == "]":
            yield from _skip(output, "<|python_end|>")
            return


def _was_escaped(source: list[str]) -> bool:
    """Whether an odd number of backslashes stands before the last letter."""
    count = 0
    while count < len(source) - 1 and source[-2 - count] == "\\":
        count += 1
    return count % 2 == 1


def _python_call(source: str) -> tuple[str, str] | None:
    """Name and arguments, as JSON, of a call in Python's syntax; None without one. Nothing is evaluated."""
    try:
        with warnings.catch_warnings():  # a model's odd escapes are no business of the program's author
            warnings.simplefilter("ignore")
            node = ast.parse(source.strip(), mode="eval").body
        if not isinstance(node, ast.Call) or node.args or any(item.arg is None for item in node.keywords):
            return None
        name = ast.unparse(node.func)
        if not all(part.isidentifier() for part in name.split(".")):
            return None
        arguments = {str(item.arg): ast.literal_eval(_with_truths(item.value)) for item in node.keywords}
        return name, json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _with_truths(node: ast.expr) -> ast.expr:
    """JSON's `true`, `false` and `null`, which models mix in, as Python's."""
    names = {"true": True, "false": False, "null": None}

    class Names(ast.NodeTransformer):
        def visit_Name(self, name: ast.Name) -> ast.expr:
            return ast.Constant(names[name.id]) if name.id in names else name

    found = Names().visit(node)
    return found if isinstance(found, ast.expr) else node
