"""Where two programs differ that should be one: the first equation, constant, parameter or option, with the
lines of both sides. Each side is packed as text, so that nothing has to be rebuilt from what another process
sent.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import zlib
from dataclasses import dataclass
from typing import Final

import msgpack
import numpy as np

from infini.compiler.partition import costs
from infini.core import source, text
from infini.core.ir import Program

_MAX_SHOWN: Final = 160  # letters of a line of a program in a message
_INDENT: Final = "\n" + " " * 12  # below the label `got:`
_LABEL: Final = re.compile(r"@[\w.]+")
_CONSTANT: Final = re.compile(r"(%\d+): (\S+) = const (.*)")
_HEAD: Final = re.compile(r"program @\((.*)\) \{")


@dataclass(frozen=True)
class Subject:
    """What has to be the same in every process.

    Args:
        program: the per-device program.
        facts: names and values of all else that the code depends on.
    """

    program: Program
    facts: tuple[tuple[str, str], ...]

    @functools.cached_property
    def key(self) -> str:
        """Digest of it all."""
        parts = (self.program.fingerprint, self.facts)
        return hashlib.blake2b(repr(parts).encode(), digest_size=20).hexdigest()

    @functools.cached_property
    def short_key(self) -> np.ndarray:
        """The beginning of the digest as a number, which is quick to send."""
        return np.array(int(self.key[:15], 16), np.int64)

    @functools.cached_property
    def first(self) -> tuple[str, source.Where | None]:
        """The first collective and its line, which a process is on its way to when it begins."""
        return _first(self.program) or (self.program.name, self.where)

    @property
    def title(self) -> str:
        """The program for people."""
        return f"{self.program.name} at {self.where}" if self.where else self.program.name

    @functools.cached_property
    def where(self) -> source.Where | None:
        """A line of the user's that the program comes from."""
        return next((equation.where for equation in self.program.equations if equation.where), None)


def _first(program: Program) -> tuple[str, source.Where | None] | None:
    for equation in program.equations:
        if equation.op.name in costs.COLLECTIVES:
            return equation.op.name, equation.where
        for inner in equation.programs:
            if found := _first(inner):
                return found
    return None


@dataclass(frozen=True, slots=True)
class Told:
    """What a process told about its program: lines without and with the user's, and the other facts."""

    plain: tuple[str, ...]
    where: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """Parts of an error; see `core.errors`."""

    what: str
    got: str
    expected: str
    fix: str


def pack(subject: Subject) -> bytes:
    """The program and the facts as text, compressed."""
    plain = _lines(subject.program, with_where=False)
    shown = _lines(subject.program, with_where=True)
    where = [long[len(short) :].strip().removeprefix("# ") for short, long in zip(plain, shown, strict=True)]
    # Names of functions are no part of what a program computes.
    content = [[_LABEL.sub("@", line.strip()) for line in plain], where, subject.facts]
    return zlib.compress(msgpack.packb(content), 1)


def unpack(content: bytes) -> Told:
    """What `pack` made."""
    plain, where, facts = msgpack.unpackb(zlib.decompress(content), use_list=False)
    return Told(plain, where, facts)


def show(mine: tuple[int, Told], other: tuple[int, Told]) -> Difference:
    """The first difference between the programs of two processes.

    Args:
        mine: number of this process, and what it told.
        other: the same of the other one.
    """
    sides = sorted((mine, other), key=lambda side: side[0])
    (_, first), (_, second) = sides
    pairs = itertools.zip_longest(first.plain, second.plain)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if at is None:
        return _of_facts(sides)
    lines = [side.plain[at] if at < len(side.plain) else "nothing: it has ended" for _, side in sides]
    constants = [_CONSTANT.fullmatch(line) for line in lines]
    if all(constants) and len({found.group(2) for found in constants if found}) == 1:
        return _of_constants(sides, at)
    heads = [_HEAD.fullmatch(line) for line in lines]
    if all(heads):
        return _of_parameters(sides, [found.group(1).split(", ") for found in heads if found])
    shown = [_with_line(side, at) for _, side in sides]
    number = sum(1 for line in first.plain[:at] if _is_equation(line)) + 1
    return Difference(
        f"they differ first in equation {number}",
        _beside(sides, shown),
        "the same equations in every process",
        "let no Python branch around operations depend on the process; make what differs data, such as "
        "rows of a split array, or `lax.axis_index`",
    )


def _of_facts(sides: list[tuple[int, Told]]) -> Difference:
    (_, first), (_, second) = sides
    theirs = dict(second.facts)
    name = next((name for name, value in first.facts if theirs.get(name) != value), "options")
    values = [f"{name} = {_short(dict(side.facts).get(name, 'nothing'))}" for _, side in sides]
    return Difference(
        "the programs are equal, and are compiled with other options",
        _beside(sides, values),
        "the same options, knobs and environment in every process",
        f"set {name} alike everywhere",
    )


def _of_constants(sides: list[tuple[int, Told]], at: int) -> Difference:
    found = [_CONSTANT.fullmatch(side.plain[at]) for _, side in sides]
    shown = []
    for (_, side), constant in zip(sides, found, strict=True):
        assert constant is not None
        variable, type_, value = constant.groups()
        used = re.compile(rf"\(.*{re.escape(variable)}\b.*\)")
        lines = (i for i, line in enumerate(side.plain) if i > at and used.search(line))
        where = next((side.where[i] for i in lines if side.where[i]), "")
        shown.append(f"{type_} = {_short(value)}" + (f", used at {where}" if where else ""))
    return Difference(
        "a constant depends on the process",
        _beside(sides, shown),
        "the same constants in every process",
        "give it to the function as an argument, an array split over the mesh where it has to differ; what "
        "comes from process_index(), a clock or an unseeded generator is another value in every process",
    )


def _of_parameters(sides: list[tuple[int, Told]], params: list[list[str]]) -> Difference:
    pairs = list(itertools.zip_longest(*params, fillvalue="nothing"))
    at = next(i for i, (a, b) in enumerate(pairs) if a != b)
    types = [found.partition(": ")[2] or found for found in pairs[at]]
    return Difference(
        f"argument {at} has another type",
        _beside(sides, [f"{type_} (the part of a device)" for type_ in types]),
        "the same shapes and dtypes in every process",
        "give every process arrays of one global shape: pad the last batch, or leave it out",
    )


def _lines(program: Program, *, with_where: bool) -> list[str]:
    sections = text.sections(program, lines=with_where)
    return [line for section in sections for line in section.lines]


def _is_equation(line: str) -> bool:
    return not line.startswith(("program ", "return", "}")) and " = const " not in line


def _with_line(side: Told, at: int) -> str:
    if at >= len(side.plain):
        return "nothing more"
    where = side.where[at]
    return _short(side.plain[at]) + (f"  at {where}" if where else "")


def _short(line: str) -> str:
    return line if len(line) <= _MAX_SHOWN else f"{line[:_MAX_SHOWN]} ..."


def _beside(sides: list[tuple[int, Told]], shown: list[str]) -> str:
    return _INDENT.join(f"process {i}: {line}" for (i, _), line in zip(sides, shown, strict=True))
