"""Text under construction: lines with indentation, fresh names, and the values of a kernel's body as Triton
sees them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from infini.compiler.triton import naming
from infini.compiler.triton.source import is_padded, padded
from infini.compiler.triton.target import GENERIC, Target
from infini.core.ir import ArrayType, Equation, Shape
from infini.core.source import Where


@dataclass(frozen=True, slots=True)
class Tile:
    """A value in registers: a block of padded shape, or a scalar.

    Args:
        name: expression of the value, a name in most cases.
        type: its logical type.
        padding: the number that fills the padding, when it is known.
        wide: the same value in float32, for 16-bit constants.
        number: the value as a literal, for constants that arithmetic may take as one.
    """

    name: str
    type: ArrayType
    padding: float | None = None
    wide: str = ""
    number: str = ""

    @property
    def shape(self) -> Shape:
        """Padded shape."""
        return padded(self.type.shape)

    @property
    def is_padded(self) -> bool:
        """Whether there are elements outside the logical shape."""
        return is_padded(self.type.shape)


@dataclass(frozen=True, slots=True)
class Walked:
    """An operand whose levels are loaded step by step: the first positions are known, the rest is not loaded
    yet. The last position may be a block of so many dimensions, which then come before those of a tile.
    """

    operand: int
    positions: tuple[str, ...]
    type: ArrayType
    block_rank: int = 0


@dataclass(frozen=True, slots=True)
class Counter:
    """The numbers from 0 to the size of `type`: what a loop may walk without a load."""

    type: ArrayType


Operand = Tile | Walked | Counter


@dataclass(slots=True)
class Writer:
    """Lines of one function; temporaries end in `__` and a number until the text is polished.

    Args:
        target: what the text is for.
        lines: statements.
        depth: of the next line.
        has_dot: whether matrix units are used.
        largest: elements of the largest tile.
        notes: the user's lines, by the number of the first line that they became.
        types: of temporaries.
        suggested: the user's names of temporaries.
    """

    target: Target = GENERIC
    lines: list[str] = field(default_factory=list)
    depth: int = 1
    count: int = 0
    has_dot: bool = False
    largest: int = 1
    notes: dict[int, str] = field(default_factory=dict)
    types: dict[str, ArrayType] = field(default_factory=dict)
    suggested: dict[str, str] = field(default_factory=dict)
    _where: Where | None = None
    _is_inside: bool = False
    _base: str = "value"

    def line(self, text: str) -> None:
        """Append a line."""
        self.lines.append("    " * self.depth + text)

    def note(self, text: str) -> None:
        """A comment above the next line, where a block begins."""
        self.notes[len(self.lines)] = text

    @contextlib.contextmanager
    def equation(self, equation: Equation) -> Iterator[None]:
        """Lines for an equation: the user's line stands above the first that became of it."""
        before = self._is_inside, self._base
        self._base = _BASES.get(equation.op.name, equation.op.name)
        if not self._is_inside and equation.where != self._where:
            self._where = equation.where
            if equation.where is not None and equation.where.file:
                self.note(naming.note(equation.where))
        if not equation.programs:
            self._is_inside = True  # what it is made of is no line of the user's
        yield
        self._is_inside, self._base = before

    def suggest(self, tile: Operand, name: str) -> None:
        """The user's name of a value."""
        if isinstance(tile, Tile) and tile.name in self.types and name:
            self.suggested[tile.name] = name

    def leave_block(self) -> None:
        """The next equation begins a block, whatever line it is of."""
        self._where = None

    def fresh(self, base: str = "") -> str:
        """A name that is not in use."""
        self.count += 1
        return f"{base or self._base}__{self.count}"

    def tile(self, text: str, type: ArrayType, *, padding: float | None = None, base: str = "") -> Tile:
        """Name the value of an expression."""
        name = self.fresh(base)
        self.line(f"{name} = {text}")
        self.types[name] = type
        tile = Tile(name, type, padding)
        size = 1
        for n in tile.shape:
            size *= n
        self.largest = max(self.largest, size)
        return tile


# Names of what operations give, where their own names say something else or are long.
_BASES: Final = {
    "add": "total", "sub": "difference", "mul": "product", "div": "quotient", "neg": "negated",
    "select_n": "chosen", "convert_element_type": "converted", "bitcast_convert_type": "bits",
    "reduce_sum": "total", "reduce_max": "largest", "reduce_min": "smallest", "reduce_prod": "product",
    "reduce_and": "all_of", "reduce_or": "any_of", "reduce_xor": "odd_of", "broadcast_in_dim": "spread",
    "max": "larger_of", "min": "smaller_of", "and": "both", "or": "either", "xor": "mixed", "not": "inverted",
    "lt": "is_less", "le": "is_at_most", "gt": "is_more", "ge": "is_at_least", "eq": "is_equal",
    "ne": "is_other",
    "abs": "size", "dot": "products", "iota": "places", "exp": "grown", "log": "logarithm", "sqrt": "root",
    "rsqrt": "inverse_root", "shift_left": "shifted", "shift_right_logical": "shifted",
    "shift_right_arithmetic": "shifted", "scan": "carry", "rem": "remainder", "pow": "power",
    "reshape": "reshaped",
    "transpose": "turned",
}  # fmt: skip
