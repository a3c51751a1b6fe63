"""Programs as text: printer and parser, with `parse(print(p)) == p`.

    program @main(%0: f32[2,3]) {
      %1: f32[2,3] = exp(%0)                       # train.py:41
      %2: f32[2] = reduce_sum(%1) {axes=(-1,)}     # train.py:42
      return %2
    }

Programs among the attributes are printed below their user as `@name` and shared when equal; so are kernels,
with lines of their own around their equations (`core.frames`).
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass

import numpy as np

from infini.core import dtypes, frames, ir, primitive
from infini.core.parser import parse as parse, parse_constant as parse_constant, parse_type as parse_type

_COMMENT_COLUMN = 72


@dataclass(frozen=True, slots=True)
class Section:
    """The lines of one program: its head, lines of its frame, its constants, its equations, its results, and
    a closing brace.

    Args:
        name: its label.
        program: the program.
        lines: text.
        num_before: lines of the frame before the constants.
        keyword: what the head begins with.
        item: the attribute that has the frame, or the program.
    """

    name: str
    program: ir.Program
    lines: tuple[str, ...]
    num_before: int = 0
    keyword: str = "program"
    item: object = None

    @property
    def first_equation(self) -> int:
        """The number of the line of the first equation."""
        return 1 + self.num_before + len(self.program.consts)


def print_program(program: ir.Program, *, lines: bool = True) -> str:
    """Text form of a program; `lines=False` leaves out the user's lines."""
    return "\n\n".join("\n".join(section.lines) for section in sections(program, lines=lines))


def sections(program: ir.Program, *, lines: bool = True) -> list[Section]:
    """The text form in parts: the program, then each different one among its attributes, in order of use."""
    return _Printer(lines=lines, names=True).run(program)


def canonical_text(program: ir.Program) -> str:
    """Text form that depends on the structure alone; the fingerprint hashes it."""
    (section,) = _Printer(lines=False, names=False).run(program)
    return "\n".join(section.lines)


def attribute_text(value: object) -> str:
    """Text form of an attribute that holds no program."""
    return _Printer(lines=False, names=False).value(value)


class _Printer:
    def __init__(self, *, lines: bool, names: bool) -> None:
        self.lines, self.names = lines, names
        self.labels: dict[str, str] = {}  # fingerprint -> @name
        self.taken: set[str] = set()
        self.queue: list[tuple[str, object]] = []  # programs, and attributes that have a frame

    def run(self, program: ir.Program) -> list[Section]:
        name = _label(program.name) if self.names else "main"
        # Without names, programs among the attributes are written as their fingerprints and queue nothing.
        self.queue.append((name, program))
        self.taken = {name}
        found = []
        while self.queue:
            name, current = self.queue.pop(0)
            found.append(self.section(name, current))
        return found

    def label(self, program: ir.Program) -> str:
        key = program.fingerprint
        return self.named(key, program.name, program) if self.names else key

    def named(self, key: str, base: str, item: object) -> str:
        """The label of what is printed as a section of its own."""
        if key not in self.labels:
            base = _label(base)
            name, count = base, 1
            while name in self.taken:
                name, count = f"{base}_{count}", count + 1
            self.taken.add(name)
            self.labels[key] = name
            self.queue.append((name, item))
        return self.labels[key]

    def section(self, name: str, item: object) -> Section:
        if isinstance(item, ir.Program):
            return Section(name, item, tuple(self.body(name, item)), item=item)
        style = frames.style_of(item)
        assert style is not None
        program = style.body(item)
        head, *middle, last, end = self.body(name, program)
        results = last.removeprefix("  return").replace(",", " ").split()
        frame = style.write(item, results, self.value)
        head = f"{style.keyword}{head.removeprefix('program').removesuffix(' {')}{frame.tail} {{"
        before = [f"  {line}" for line in frame.before]
        lines = (head, *before, *middle, *(f"  {line}" for line in frame.after), end)
        return Section(name, program, lines, len(before), style.keyword, item)

    def body(self, name: str, program: ir.Program) -> list[str]:
        numbers: dict[ir.Var, str] = {}

        def var(v: ir.Var) -> str:
            if v not in numbers:
                numbers[v] = f"%{len(numbers)}"
            return numbers[v]

        head = ", ".join(f"{var(p)}: {p.type}" for p in program.params)
        out = [f"program @{name}({head}) {{"]
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
        return [*out, "}"]

    def value(self, item: object) -> str:
        if isinstance(item, ir.Program):
            return f"@{self.label(item)}"
        if self.names and (style := frames.style_of(item)) is not None:
            key = f"{style.keyword} {attribute_text(item)}"
            return f"@{self.named(key, style.body(item).name, item)}"
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
    written = repr(array.tolist())
    if constant.type.dtype in dtypes.COMPLEX:
        # Python writes neither infinities nor negative zeros of complex numbers so that they read back.
        is_plain = bool(np.isfinite(array).all()) and parse_constant(written, constant.type) == constant
        return written if is_plain else f"bytes:{constant.data.hex()}"
    return written


ir.install_printer(print_program, canonical_text)
