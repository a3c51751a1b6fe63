"""`Program`, a typed function in SSA form, and `Equation`, one operation of it at a line of the user.

Programs are immutable; equality and the fingerprint are structural and ignore names and lines.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from infini.core import primitive, source
from infini.core.ir import attributes
from infini.core.ir.attributes import Attrs
from infini.core.ir.constants import Constant
from infini.core.ir.types import ArrayType, Var


@dataclass(frozen=True, slots=True, eq=False)
class Equation:
    """`outputs = op(inputs; attrs)`, made at the user's line `where`; `via` names the passes that rewrote
    it.
    """

    op: primitive.Primitive
    inputs: tuple[Var, ...]
    attrs: Attrs
    outputs: tuple[Var, ...]
    where: source.Where | None = None
    via: str = ""

    @property
    def output(self) -> Var:
        """The only output."""
        (output,) = self.outputs
        return output

    @property
    def effect(self) -> primitive.Effect:
        """What it does besides computing, its sub-programs included."""
        own = self.op.effect_for(self.attrs)
        inner = self.programs
        return max_effect([own, *(program.effect for program in inner)]) if inner else own

    @property
    def programs(self) -> tuple[Program, ...]:
        """The programs among its attributes."""
        return programs_of(self.attrs)


def programs_of(attrs: Attrs) -> tuple[Program, ...]:
    """The programs among some attributes, in tuples and attribute classes too."""
    return attrs.programs(_programs_in)


_LEAVES = frozenset({int, float, str, bool, type(None)})  # most attributes


def _programs_in(values: Iterable[object]) -> Iterator[Program]:
    for value in values:
        if type(value) in _LEAVES:
            continue
        if isinstance(value, Program):
            yield value
        elif isinstance(value, tuple):
            yield from _programs_in(value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _programs_in(getattr(value, item.name) for item in dataclasses.fields(value))


_EFFECT_ORDER = (
    primitive.Effect.NONE,
    primitive.Effect.IO,
    primitive.Effect.ORDERED_IO,
    primitive.Effect.COLLECTIVE,
)


def max_effect(effects: Iterable[primitive.Effect]) -> primitive.Effect:
    """The strongest of some effects."""
    return max(effects, key=_EFFECT_ORDER.index, default=primitive.Effect.NONE)


@attributes.plain
@dataclass(frozen=True, eq=False)
class Program:
    """A typed function: `params` in, `equations` in order, `results` out; `consts` are small and known.

    Immutable. `==` and `hash` are structural: names, lines and the identity of Vars do not count.
    """

    params: tuple[Var, ...]
    equations: tuple[Equation, ...]
    results: tuple[Var, ...]
    consts: tuple[tuple[Var, Constant], ...] = ()
    name: str = field(default="main", compare=False)

    @property
    def in_types(self) -> tuple[ArrayType, ...]:
        """Types of the parameters."""
        return tuple(param.type for param in self.params)

    @property
    def out_types(self) -> tuple[ArrayType, ...]:
        """Types of the results."""
        return tuple(result.type for result in self.results)

    @functools.cached_property
    def effect(self) -> primitive.Effect:
        """The strongest effect of its equations."""
        return max_effect(equation.effect for equation in self.equations)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal blake2b of the structure: the cache key. Ignores names and lines; uses no id, hash
        or set order.
        """
        # The printer is above this module in reading order and imports it; it is looked up at the first use.
        return hashlib.blake2b(_canonical_text(self).encode(), digest_size=20).hexdigest()

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Program) and self.fingerprint == other.fingerprint)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return _print(self)

    def _repr_pretty_(
        self, printer: Any, cycle: bool
    ) -> None:  # Any: IPython's and hypothesis' pretty printer
        printer.text(_print(self))

    def replace(self, **changes: Any) -> Program:  # Any: as dataclasses.replace
        """The same program with some fields changed."""
        return dataclasses.replace(self, **changes)


_printers: list[Any] = []  # Any: the functions that core.text installs, [print, canonical]


def install_printer(print_program: Any, canonical_text: Any) -> None:  # Any: see _printers
    """Called once by `core.text`, which imports this module."""
    _printers[:] = [print_program, canonical_text]


def _print(program: Program) -> str:
    return str(_printers[0](program))


def _canonical_text(program: Program) -> str:
    return str(_printers[1](program))
