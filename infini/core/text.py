"""Programs as text: printer and parser, with `parse(print(p)) == p`.

    program @main(%0: f32[2,3]) {
      %1: f32[2,3] = exp(%0)                       # train.py:41
      %2: f32[2] = reduce_sum(%1) {axes=(-1,)}     # train.py:42
      return %2
    }

Programs among the attributes are printed below their user as `@name` and shared when equal.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from typing import Any

import numpy as np

from infini.core import dtypes, errors, ir, primitive, source

_COMMENT_COLUMN = 72


def print_program(program: ir.Program, *, lines: bool = True) -> str:
    """Text form of a program; `lines=False` leaves out the user's lines."""
    return _Printer(lines=lines, names=True).run(program)


def canonical_text(program: ir.Program) -> str:
    """Text form that depends on the structure alone; the fingerprint hashes it."""
    return _Printer(lines=False, names=False).run(program)


class _Printer:
    def __init__(self, *, lines: bool, names: bool) -> None:
        self.lines, self.names = lines, names
        self.labels: dict[str, str] = {}  # fingerprint -> @name
        self.taken: set[str] = set()
        self.queue: list[tuple[str, ir.Program]] = []

    def run(self, program: ir.Program) -> str:
        # The fingerprint of the outermost program is being computed when names are off; it cannot contain
        # itself.
        self.queue.append((program.name if self.names else "main", program))
        texts = []
        self.taken = {_label(program.name)}
        while self.queue:
            name, current = self.queue.pop(0)
            texts.append(self.body(name, current))
        return "\n\n".join(texts)

    def label(self, program: ir.Program) -> str:
        key = program.fingerprint
        if not self.names:
            return key
        if key not in self.labels:
            base = _label(program.name)
            name, count = base, 1
            while name in self.taken:
                name, count = f"{base}_{count}", count + 1
            self.taken.add(name)
            self.labels[key] = name
            self.queue.append((name, program))
        return self.labels[key]

    def body(self, name: str, program: ir.Program) -> str:
        numbers: dict[ir.Var, str] = {}

        def var(v: ir.Var) -> str:
            if v not in numbers:
                numbers[v] = f"%{len(numbers)}"
            return numbers[v]

        head = ", ".join(f"{var(p)}: {p.type}" for p in program.params)
        out = [f"program @{_label(name)}({head}) {{"]
        out += [f"  {var(v)}: {v.type} = const {constant_text(c)}" for v, c in program.consts]
        for equation in program.equations:
            inputs = ", ".join(var(v) for v in equation.inputs)
            attrs = ", ".join(f"{key}={self.value(item)}" for key, item in equation.attrs.items())
            outputs = ", ".join(f"{var(v)}: {v.type}" for v in equation.outputs)
            text = f"  {outputs} = " if outputs else "  "
            text += f"{equation.op.name}({inputs})" + (f" {{{attrs}}}" if attrs else "")
            if self.lines and (equation.where or equation.via):
                text = f"{text:<{_COMMENT_COLUMN}}  # {equation.where or ''}"
                text += f" via {equation.via}" if equation.via else ""
            out.append(text.rstrip())
        out.append(f"  return {', '.join(var(v) for v in program.results)}".rstrip())
        return "\n".join([*out, "}"])

    def value(self, item: object) -> str:
        if isinstance(item, ir.Program):
            return f"@{self.label(item)}"
        if isinstance(item, np.dtype):
            return dtypes.short(item)
        if isinstance(item, primitive.Primitive):
            return f"op:{item.name}"
        if isinstance(item, str):
            return json.dumps(item)
        if isinstance(item, tuple):
            return "(" + "".join(self.value(x) + ", " for x in item).rstrip(" ") + ")" if item else "()"
        if isinstance(item, frozenset):
            return "{" + ", ".join(sorted(self.value(x) for x in item)) + "}"
        if isinstance(item, ir.ArrayType):
            return str(item)
        if dataclasses.is_dataclass(item):
            fields = ", ".join(
                f"{f.name}={self.value(getattr(item, f.name))}" for f in dataclasses.fields(item) if f.compare
            )
            return f"{type(item).__name__}({fields})"
        if isinstance(item, bool) or item is None:
            return repr(item)
        if isinstance(item, complex):
            return f"complex({item.real!r}, {item.imag!r})"
        return repr(item)


def _label(name: str) -> str:
    return re.sub(r"[^\w.]", "_", name) or "main"


def constant_text(constant: ir.Constant) -> str:
    """A constant as nested lists; floats so that they read back exactly."""
    array = constant.array
    if constant.type.dtype in dtypes.FLOATS:
        array = array.astype(np.float64)
        # A NaN keeps its payload only as bytes.
        if np.isnan(array).any():
            return f"bytes:{constant.data.hex()}"
    if constant.type.size == 0:
        return "bytes:"
    return repr(array.tolist())


def parse(text: str) -> ir.Program:
    """The program that `text` describes; the first of several is the main one.

    Raises:
        ParseError: the text is no program; the message holds the line.
    """
    chunks = re.findall(r"^program @([\w.]+)\((.*?)\) \{\n(.*?)^\}", text, re.M | re.S)
    if not chunks:
        raise errors.ParseError("the text holds no program", expected="program @name(%0: f32[2]) { ... }")
    parser = _Parser({name: (head, body) for name, head, body in chunks})
    return parser.program(chunks[0][0])


class _Parser:
    def __init__(self, chunks: dict[str, tuple[str, str]]) -> None:
        self.chunks = chunks
        self.done: dict[str, ir.Program] = {}

    def program(self, name: str) -> ir.Program:
        if name not in self.done:
            if name not in self.chunks:
                raise errors.ParseError(f"@{name} is used and not defined")
            self.done[name] = self._program(name, *self.chunks[name])
        return self.done[name]

    def _program(self, name: str, head: str, body: str) -> ir.Program:
        env: dict[str, ir.Var] = {}

        def declare(text: str) -> ir.Var:
            label, type_text = text.split(": ")
            env[label.strip()] = var = ir.Var(parse_type(type_text.strip()))
            return var

        def use(label: str) -> ir.Var:
            if label not in env:
                raise errors.ParseError(f"{label} is used before it is defined", got=f"in @{name}")
            return env[label]

        params = tuple(declare(item) for item in _split(head))
        consts: list[tuple[ir.Var, ir.Constant]] = []
        equations: list[ir.Equation] = []
        for raw in body.splitlines():
            line, _, comment = _cut_comment(raw)
            if line.startswith("return"):
                results = tuple(use(v) for v in _split(line[len("return") :]))
                return ir.Program(params, tuple(equations), results, tuple(consts), name)
            const = re.fullmatch(r"(%\d+: \S+) = const (.*)", line)
            if const:
                var = declare(const[1])
                consts.append((var, parse_constant(const[2], var.type)))
                continue
            match = re.fullmatch(r"(?:(.*?) = )?([\w.]+)\((.*?)\)(?: \{(.*)\})?", line)
            if not match:
                raise errors.ParseError("this line is not an equation", got=raw.strip())
            inputs = tuple(use(v) for v in _split(match[3]))
            attrs = dict(self.attribute(item) for item in _split(match[4] or ""))
            outputs = tuple(declare(item) for item in _split(match[1] or ""))
            where, via = _parse_comment(comment)
            equations.append(
                ir.Equation(primitive.by_name(match[2]), inputs, ir.Attrs(attrs), outputs, where, via)
            )
        raise errors.ParseError(f"@{name} has no return line")

    def attribute(self, text: str) -> tuple[str, object]:
        key, _, item = text.partition("=")
        return key.strip(), self.value(item.strip())

    def value(self, text: str) -> Any:  # Any: attributes are of many types
        if text.startswith("@"):
            return self.program(text[1:])
        if text.startswith("op:"):
            return primitive.by_name(text[3:])
        if text.startswith('"'):
            return json.loads(text)
        if text.startswith("("):
            return tuple(self.value(item) for item in _split(text[1:-1]))
        if text.startswith("{"):
            return frozenset(self.value(item) for item in _split(text[1:-1]))
        if text in dtypes.BY_SHORT_NAME:
            return dtypes.BY_SHORT_NAME[text]
        if text in ("nan", "inf", "-inf"):
            return float(text)
        if re.fullmatch(r"\w+\[[\d,]*\]", text):
            return parse_type(text)
        call = re.fullmatch(r"(\w+)\((.*)\)", text, re.S)
        if call and call[1] == "complex":
            real, imag = _split(call[2])
            return complex(float(real), float(imag))
        if call:
            return ir.attribute_class(call[1])(**dict(self.attribute(item) for item in _split(call[2])))
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise errors.ParseError(f"{text!r} is not an attribute value") from None


def parse_type(text: str) -> ir.ArrayType:
    """An array type such as `f32[2,3]`.

    Raises:
        ParseError: the text is none.
    """
    match = re.fullmatch(r"(\w+)\[([\d,]*)\]", text)
    if not match or match[1] not in dtypes.BY_SHORT_NAME:
        raise errors.ParseError(f"{text!r} is not an array type", expected="for example f32[2,3]")
    return ir.ArrayType(tuple(int(n) for n in match[2].split(",") if n), dtypes.BY_SHORT_NAME[match[1]])


def parse_constant(text: str, type_: ir.ArrayType) -> ir.Constant:
    """A constant of a known type, in the form `constant_text` writes."""
    if text.startswith("bytes:"):
        return ir.Constant(type_, bytes.fromhex(text[len("bytes:") :]))
    plain = re.sub(r"-?\binf\b", lambda m: "-1e999" if m[0].startswith("-") else "1e999", text)
    return ir.Constant.of(np.array(ast.literal_eval(plain)).astype(type_.dtype).reshape(type_.shape))


def _split(text: str) -> list[str]:
    """Split at commas outside brackets and strings."""
    parts, depth, start, quoted = [], 0, 0, False
    for i, char in enumerate(text):
        if char == '"' and text[i - 1] != "\\":
            quoted = not quoted
        elif not quoted and char in "([{":
            depth += 1
        elif not quoted and char in ")]}":
            depth -= 1
        elif not quoted and char == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def _cut_comment(line: str) -> tuple[str, str, str]:
    quoted = False
    for i, char in enumerate(line):
        if char == '"' and line[i - 1] != "\\":
            quoted = not quoted
        elif char == "#" and not quoted:
            return line[:i].strip(), "#", line[i + 1 :].strip()
    return line.strip(), "", ""


def _parse_comment(comment: str) -> tuple[source.Where | None, str]:
    position, _, via = comment.partition("via ")
    file, _, line = position.strip().rpartition(":")
    return (source.Where(file, int(line)) if file and line.isdigit() else None), via.strip()


ir.install_printer(print_program, canonical_text)
