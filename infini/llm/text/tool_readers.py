"""Readers that the grammars of tool calls are made of: a text up to a mark, a name, a JSON object that is a
call.

A reader is a generator: it asks for a letter by `yield` (None is the end) and tells an `Output` what it
found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Final, TypeVar

from infini.llm.text import json_scanner

T = TypeVar("T")
Machine = Generator[None, str | None, None]
Reader = Generator[None, str | None, T]

MAX_NAME: Final = 256  # letters of a tool's name
_SPACE: Final = " \t\r\n"
NAME: Final = re.compile(r"[\w.:/-]+")


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


# --- readers ----------------------------------------------------------------------------------


def letter_of(output: Output, raw: list[str]) -> Reader[str | None]:
    """The next letter, which becomes part of `raw`."""
    letter = yield from output.next()
    if letter is not None:
        raw.append(letter)
    return letter


def space(output: Output, raw: list[str]) -> Reader[str | None]:
    """Letters of space become part of `raw`; the first other one is the result."""
    letter = yield from output.next()
    while letter is not None and letter in _SPACE:
        raw.append(letter)
        letter = yield from output.next()
    return letter


def all_text(output: Output) -> Reader[None]:
    while (letter := (yield from output.next())) is not None:
        output.text(letter)


def text_until(output: Output, *marks: str) -> Reader[str | None]:
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


def optional(output: Output, mark: str) -> Reader[str]:
    """What was read of a mark and the space before it; the mark may be missing, and nothing is lost then."""
    raw: list[str] = []
    letter = yield from space(output, raw)
    before, seen = "".join(raw), ""
    while letter is not None and mark.startswith(seen + letter):
        seen += letter
        if seen == mark:
            return before + seen
        letter = yield from output.next()
    output.back += [letter, *reversed(before + seen)]
    return ""


def optional_in(output: Output, raw: list[str], mark: str) -> Reader[str | None]:
    """Space and a mark that may be missing, as part of `raw`; None when only its beginning is there."""
    letter = yield from space(output, raw)
    seen = ""
    while letter is not None and mark.startswith(seen + letter):
        seen += letter
        raw.append(letter)
        if seen == mark:
            return seen
        letter = yield from output.next()
    output.back.append(letter)
    return None if seen else ""


def skip(output: Output, mark: str) -> Reader[bool]:
    """Leave out space and a mark after a call; without the mark, what was read is text."""
    raw: list[str] = []
    letter = yield from space(output, raw)
    seen = ""
    while letter is not None and mark.startswith(seen + letter):
        seen += letter
        if seen == mark:
            return True
        letter = yield from output.next()
    output.back += [letter, *reversed("".join(raw) + seen)]
    return False


def word_until(output: Output, raw: list[str], ends: tuple[str, ...]) -> Reader[str | None]:
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
        if not NAME.fullmatch(found):
            break
        if mark == "{":
            output.back.append("{")
            raw.append(name[:-1])
        else:
            raw.append(name)
        if mark == "[CALL_ID]" and (yield from word_until(output, raw, ("[ARGS]",))) is None:
            return None
        return found
    output.text("".join(raw) + name)
    return None


def arguments(output: Output, name: str, raw: list[str]) -> Reader[bool]:
    """An object that holds the arguments of a call, passed on as it arrives."""
    letter = yield from space(output, raw)
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


def call_object(output: Output, before: str) -> Reader[bool]:
    """An object `{"name": ..., "arguments": {...}}`. One that is none becomes text, with what stood before
    it.
    """
    raw = [before]
    reader = _ObjectReader()
    call: Call | None = None
    letter = yield from space(output, raw)
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
