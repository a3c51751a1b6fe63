"""What became of one program on its way through the compiler: the program after every pass, the functions
that its steps call, and their machine code. Written to files by `dump`, shown as a page by `infini.debug`.
"""

from __future__ import annotations

import functools
import linecache
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infini.core import text
from infini.core.ir import Equation, Program
from infini.core.source import Where
from infini.tile.program import Kernel


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The program after a pass; `equations` of it that were not there before are new."""

    name: str
    program: Program
    is_changed: bool
    num_new: int
    num_gone: int


@dataclass(slots=True)
class Recorder:
    """Keeps what `pipeline.run` shows it."""

    snapshots: list[Snapshot] = field(default_factory=list)

    def __call__(self, name: str, before: Program, after: Program) -> None:
        """One pass was done."""
        old, new = (list(map(equation_key, all_equations(p))) for p in (before, after))
        gone, added = _beyond(old, new), _beyond(new, old)
        is_changed = before is not after and (bool(gone or added) or before != after)
        self.snapshots.append(Snapshot(name, after, is_changed, added, gone))


def _beyond(these: Sequence[str], others: Sequence[str]) -> int:
    """How many of these are not among the others, counted as often as they occur."""
    left: dict[str, int] = {}
    for key in others:
        left[key] = left.get(key, 0) + 1
    count = 0
    for key in these:
        if left.get(key, 0):
            left[key] -= 1
        else:
            count += 1
    return count


def all_equations(program: Program) -> Iterator[Equation]:
    """The equations of a program and of those inside it, the bodies of kernels left out."""
    for equation in program.equations:
        yield equation
        if "kernel" not in equation.attrs:
            for inner in equation.programs:
                yield from all_equations(inner)


def equation_key(equation: Equation) -> str:
    """An equation without its variables and the programs inside: what people compare at a glance."""
    attrs = ", ".join(
        f"{name}={text.attribute_text(item)}"
        for name, item in equation.attrs.items()
        if not isinstance(item, (Program, Kernel, tuple)) or not equation.programs
    )
    operands = ", ".join(str(v.type) for v in equation.inputs)
    results = ", ".join(str(v.type) for v in equation.outputs)
    return f"{results} = {equation.op.name}({operands}) {attrs}"


@dataclass(frozen=True, slots=True)
class Function:
    """A native function that steps of a program call.

    Args:
        name: for people; the same name is not given twice in a program.
        symbol: its name in machine code.
        equations: those it computes, by position and with the programs of loops inside; equal kernels share
            a function.
        section: label of the kernel in the text of the fused program; empty when there is none.
        num_tasks: pieces that threads claim.
        cost_ns: estimated time of all tasks on one thread.
        llvm: its text.
        assembly: of the processor it is for.
    """

    name: str
    symbol: str
    equations: tuple[Equation, ...]
    section: str
    num_tasks: int
    cost_ns: float
    llvm: str
    assembly: str

    @property
    def lines(self) -> tuple[Where, ...]:
        """The user's lines that it computes."""
        return lines_of(self.equations)


@dataclass(frozen=True, slots=True)
class Inspection:
    """Every stage of a program.

    Args:
        program: as it was traced.
        backend: name of the backend.
        target: what machine code is for.
        snapshots: the program after each pass, the last in kernels.
        functions: in the order of their first call.
        entry: LLVM text of the native program that calls them.
        notes: other texts of the backend by title.
    """

    program: Program
    backend: str
    target: str = ""
    snapshots: tuple[Snapshot, ...] = ()
    functions: tuple[Function, ...] = ()
    entry: str = ""
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def fused(self) -> Program:
        """The program after the last pass."""
        return self.snapshots[-1].program if self.snapshots else self.program

    def kernel_text(self, function: Function) -> str:
        """The tile program of a function; empty when it has none."""
        return next(("\n".join(s.lines) for s in _sections(self.fused) if s.name == function.section), "")


@functools.lru_cache(maxsize=8)
def _sections(program: Program) -> list[text.Section]:
    return text.sections(program)


def lines_of(equations: Sequence[Equation]) -> tuple[Where, ...]:
    """The user's lines of equations and of the programs inside them, each once, in order of the file."""
    found: set[Where] = set()
    pending = list(equations)
    while pending:
        equation = pending.pop()
        if equation.where is not None:
            found.add(equation.where)
        pending += [e for inner in equation.programs for e in inner.equations]
    return tuple(sorted(found, key=lambda w: (w.file, w.line, w.scope)))


def source_line(where: Where) -> str:
    """The text of a line of the user; empty when the file is gone."""
    is_there = where.file.startswith("<") or Path(where.file).is_file()
    return linecache.getline(where.file, where.line).strip() if is_there else ""


def duration(ns: float) -> str:
    """A time as people read it."""
    for scale, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
        if ns >= scale:
            return f"{ns / scale:.3g} {unit}"
    return f"{ns:.0f} ns"


def comments(function: Function, mark: str) -> str:
    """What a function is, and the user's lines it computes, as comments above its text."""
    plural = "s" if function.num_tasks != 1 else ""
    estimate = f"about {duration(function.cost_ns)} on one thread"
    found = [f"{function.name}: {function.num_tasks} task{plural}, {estimate}"]
    others = [e for e in function.equations if not function.section or e.op.name != "kernel"]
    found += dict.fromkeys(map(equation_key, others))
    found += [f"{where}    {source_line(where)}".rstrip() for where in function.lines]
    return "".join(f"{mark} {line}\n" for line in found)


def labels(program: Program) -> dict[Kernel, str]:
    """The label of every kernel in the text of a program."""
    return {s.item: s.name for s in _sections(program) if isinstance(s.item, Kernel)}
