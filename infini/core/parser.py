"""The parser of the text form of programs: `parse(print(program)) == program`.

Read line by line, so that every fault names its line. What the text form looks like stands in `core.text`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import numpy as np

from infini.core import dtypes, errors, frames, ir, primitive, source

_EXAMPLE: Final = "program @name(%0: f32[2]) {"
_HEAD: Final = re.compile(r"(\w+) @([\w.]+)\(([^()]*)\)(.*) \{")
_CONST: Final = re.compile(r"(%\w+: \S+) = const (.*)")
_EQUATION: Final = re.compile(r"(?:(.*?) = )?([\w.]+)\(([^()]*)\)(?: \{(.*)\})?")
_TYPE: Final = re.compile(r"(\w+)\[([\d,]*)\]")


def parse(text: str, *, file: str = "") -> ir.Program:
    """The program that `text` describes; the first of several is the main one, the others are its attributes.

    Args:
        text: text form of programs; empty lines and lines that start with `#` are skipped.
        file: name of the file it came from, for errors.

    Raises:
        ParseError: the text is no program; the message holds the line.
    """
    chunks = _chunks(text, file)
    if not chunks:
        where = source.Where(file, 1) if file else None
        raise errors.ParseError("the text holds no program", expected=_EXAMPLE, where=where)
    parser = _Parser({chunk.name: chunk for chunk in chunks}, file)
    program = parser.program(chunks[0].name)
    for chunk in chunks:
        if chunk.name not in parser.done:
            parser.fail(f"nothing uses @{chunk.name}", chunk.number, chunk.head)
    return program


@dataclass(slots=True)
class _Chunk:
    """The lines of one program, with their numbers in the text; `style` and `tail` if it has a frame."""

    name: str
    head: str
    number: int
    lines: list[tuple[int, str]] = field(default_factory=list)
    style: frames.Style | None = None
    tail: str = ""


def _chunks(text: str, file: str) -> list[_Chunk]:
    found: list[_Chunk] = []
    is_open = False
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if is_open:
            if line == "}":
                is_open = False
            else:
                found[-1].lines.append((number, line))
            continue
        head = _HEAD.fullmatch(line)
        style = frames.by_keyword(head[1]) if head is not None else None
        if head is None or (style is None and (head[1] != "program" or head[4])):
            _fail("this line does not begin a program", number, line, file, _EXAMPLE)
        if any(chunk.name == head[2] for chunk in found):
            _fail(f"two programs are called @{head[2]}", number, line, file)
        found.append(_Chunk(head[2], head[3], number, style=style, tail=head[4]))
        is_open = True
    if is_open:
        last = found[-1]
        _fail(f"@{last.name} is not closed", last.number, last.head, file, "a line with } alone")
    return found


def _fail(what: str, number: int, line: str, file: str, expected: str | None = None) -> NoReturn:
    where = source.Where(file, number) if file else None
    raise errors.ParseError(f"line {number}: {what}", got=line, expected=expected, where=where)


class _Parser:
    def __init__(self, chunks: dict[str, _Chunk], file: str) -> None:
        self.chunks, self.file = chunks, file
        self.done: dict[str, Any] = {}  # Any: programs, and attributes that have a frame
        self.open: list[str] = []
        self.number, self.line = 0, ""

    def fail(self, what: str, number: int, line: str, expected: str | None = None) -> NoReturn:
        _fail(what, number, line, self.file, expected)

    def program(self, name: str) -> Any:  # Any: as `done`
        """The program or the framed attribute called `name`; attributes ask for theirs in turn."""
        if name not in self.done:
            if name not in self.chunks:
                raise errors.ParseError(f"@{name} is used and not defined")
            if name in self.open:
                raise errors.ParseError(f"@{name} contains itself")
            self.open.append(name)
            self.done[name] = self._program(self.chunks[name])
            self.open.pop()
        return self.done[name]

    def _program(self, chunk: _Chunk) -> Any:  # Any: as `done`
        scope = _Scope()
        params: tuple[ir.Var, ...] = ()
        consts: list[tuple[ir.Var, ir.Constant]] = []
        equations: list[ir.Equation] = []
        results: tuple[ir.Var, ...] | None = None
        around: list[str] = []
        for number, raw in [(chunk.number, f"({chunk.head})"), *chunk.lines]:
            line, comment = _cut_comment(raw)
            try:
                if number == chunk.number:
                    params = tuple(scope.declare(item) for item in split(chunk.head))
                elif results is not None:
                    raise errors.ParseError("a line follows the results")
                elif chunk.style is not None and line.partition(" ")[0] in chunk.style.words:
                    around.append(line)
                elif re.match(r"return\b", line):
                    results = tuple(scope.use(v) for v in split(line[len("return") :]))
                elif const := _CONST.fullmatch(line):
                    var = scope.declare(const[1])
                    consts.append((var, parse_constant(const[2], var.type)))
                else:
                    equations.append(self._equation(line, comment, scope))
            except errors.ParseError as error:
                # An error of a nested program names its own line already.
                if error.what.startswith("line "):
                    raise
                self.fail(error.what, number, raw, error.expected)
        if chunk.style is not None:
            return self._framed(chunk, chunk.style, around, scope, params, equations, consts)
        if results is None:
            self.fail(f"@{chunk.name} has no return line", chunk.number, chunk.head)
        return ir.Program(params, tuple(equations), results, tuple(consts), chunk.name)

    def _framed(self, chunk: _Chunk, style: frames.Style, around: list[str], *parts: Any) -> Any:
        """The attribute of a section that has a frame. Any: of `_program`, as it has collected them."""
        scope, params, equations, consts = parts
        try:
            results = tuple(scope.use(label) for label in style.results(around))
            body = ir.Program(params, tuple(equations), results, tuple(consts), chunk.name)
            return style.read(body, frames.Frame(chunk.tail, tuple(around), ()), self.value)
        except (errors.ParseError, ValueError, IndexError) as error:
            what = error.what if isinstance(error, errors.ParseError) else str(error)
            self.fail(f"{style.keyword} @{chunk.name}: {what}", chunk.number, chunk.head)

    def _equation(self, line: str, comment: str, scope: _Scope) -> ir.Equation:
        match = _EQUATION.fullmatch(line)
        if not match:
            raise errors.ParseError(
                "this line is not an equation", expected="%1: f32[2] = exp(%0) {key=value}"
            )
        inputs = tuple(scope.use(v) for v in split(match[3]))
        attrs = dict(self.attribute(item) for item in split(match[4] or ""))
        outputs = tuple(scope.declare(item) for item in split(match[1] or ""))
        where, via = _parse_comment(comment)
        return ir.Equation(primitive.by_name(match[2]), inputs, ir.Attrs(attrs), outputs, where, via)

    def attribute(self, text: str) -> tuple[str, object]:
        """A `key=value` pair."""
        key, equals, item = text.partition("=")
        if not equals:
            raise errors.ParseError(f"{text!r} is not an attribute", expected="key=value")
        return key.strip(), self.value(item.strip())

    def value(self, text: str) -> Any:  # Any: attributes are of many types
        """The value of an attribute, as the printer writes it."""
        if text.startswith("@"):
            return self.program(text[1:])
        if text.startswith("op:"):
            return primitive.by_name(text[3:])
        if text.startswith('"'):
            return _json(text)
        if text.startswith("("):
            return tuple(self.value(item) for item in split(text[1:-1]))
        if text.startswith("{"):
            return frozenset(self.value(item) for item in split(text[1:-1]))
        if text in dtypes.BY_SHORT_NAME:
            return dtypes.BY_SHORT_NAME[text]
        if text in ("nan", "inf", "-inf"):
            return float(text)
        if _TYPE.fullmatch(text):
            return parse_type(text)
        call = re.fullmatch(r"(\w+)\((.*)\)", text, re.S)
        if call and call[1] == "complex":
            real, imag = split(call[2])
            return complex(float(real), float(imag))
        if call:
            return self._instance(call[1], call[2])
        return _literal(text)

    def _instance(self, name: str, fields: str) -> Any:  # Any: an instance of an attribute class
        given = dict(self.attribute(item) for item in split(fields))
        try:
            return ir.attribute_class(name)(**given)
        except TypeError as error:
            raise errors.ParseError(f"{name} cannot be made: {error}") from None


class _Scope:
    """The variables of one program by their labels."""

    def __init__(self) -> None:
        self.vars: dict[str, ir.Var] = {}

    def declare(self, text: str) -> ir.Var:
        """A variable at its definition, as in `%0: f32[2]`."""
        label, colon, type_text = text.partition(":")
        label = label.strip()
        if not colon or not re.fullmatch(r"%\w+", label):
            raise errors.ParseError(f"{text!r} does not declare a variable", expected="%0: f32[2]")
        if label in self.vars:
            raise errors.ParseError(f"{label} is defined twice")
        self.vars[label] = var = ir.Var(parse_type(type_text.strip()))
        return var

    def use(self, label: str) -> ir.Var:
        """The variable that a label stands for."""
        if label not in self.vars:
            raise errors.ParseError(f"{label} is used before it is defined")
        return self.vars[label]


def parse_type(text: str) -> ir.ArrayType:
    """An array type such as `f32[2,3]`.

    Raises:
        ParseError: the text is none.
    """
    match = _TYPE.fullmatch(text)
    if not match or match[1] not in dtypes.BY_SHORT_NAME:
        raise errors.ParseError(f"{text!r} is not an array type", expected="for example f32[2,3]")
    return ir.ArrayType(tuple(int(n) for n in match[2].split(",") if n), dtypes.BY_SHORT_NAME[match[1]])


def parse_constant(text: str, type_: ir.ArrayType) -> ir.Constant:
    """A constant of a known type, in the form `text.constant_text` writes.

    Raises:
        ParseError: the text is no constant, or none of that type.
    """
    try:
        if text.startswith("bytes:"):
            data = bytes.fromhex(text[len("bytes:") :])
        else:
            plain = re.sub(r"-?\binf\b", lambda m: "-1e999" if m[0].startswith("-") else "1e999", text)
            data = np.array(_literal(plain)).astype(type_.dtype).reshape(type_.shape).tobytes()
    except (ValueError, TypeError) as error:
        if isinstance(error, errors.ParseError):
            raise
        raise errors.ParseError(f"this is not a constant of type {type_}: {error}") from None
    if len(data) != type_.nbytes:
        raise errors.ParseError(f"a constant of type {type_} has {type_.nbytes} bytes, not {len(data)}")
    return ir.Constant(type_, data)


def _literal(text: str) -> Any:  # Any: numbers, None, and nested lists of numbers
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise errors.ParseError(f"{text!r} is not an attribute value") from None


def _json(text: str) -> Any:  # Any: a string
    try:
        return json.loads(text)
    except ValueError:
        raise errors.ParseError(f"{text} is not a string") from None


def split(text: str) -> list[str]:
    """Split at commas outside brackets and strings."""
    parts, depth, start = [], 0, 0
    for i, char, is_quoted in _characters(text):
        if is_quoted:
            continue
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def _characters(text: str) -> Iterator[tuple[int, str, bool]]:
    """Each character with its place, and whether it belongs to a string."""
    is_quoted = is_escaped = False
    for i, char in enumerate(text):
        yield i, char, is_quoted or char == '"'
        if is_escaped:
            is_escaped = False
        elif is_quoted and char == "\\":
            is_escaped = True
        elif char == '"':
            is_quoted = not is_quoted


def _cut_comment(line: str) -> tuple[str, str]:
    for i, char, is_quoted in _characters(line):
        if char == "#" and not is_quoted:
            return line[:i].strip(), line[i + 1 :].strip()
    return line.strip(), ""


def _parse_comment(comment: str) -> tuple[source.Where | None, str]:
    position, _, via = f" {comment}".partition(" via ")
    place, _, scope = position.strip().partition(" (")
    file, _, line = place.rpartition(":")
    where = source.Where(file, int(line), scope.removesuffix(")")) if file and line.isdigit() else None
    return where, via.strip()
