"""Text under construction: lines with indentation, fresh names, and the values of a kernel's body as Triton
sees them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from infini.compiler.triton.source import is_padded, padded
from infini.core.ir import ArrayType, Shape


@dataclass(frozen=True, slots=True)
class Tile:
    """A value in registers: a block of padded shape, or a scalar.

    Args:
        name: expression of the value, a name in most cases.
        type: its logical type.
        padding: the number that fills the padding, when it is known.
        wide: the same value in float32, for 16-bit constants.
    """

    name: str
    type: ArrayType
    padding: float | None = None
    wide: str = ""

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
    """Lines of one function."""

    lines: list[str] = field(default_factory=list)
    depth: int = 1
    count: int = 0
    helpers: set[str] = field(default_factory=set)
    has_dot: bool = False
    largest: int = 1

    def line(self, text: str) -> None:
        """Append a line."""
        self.lines.append("    " * self.depth + text)

    def fresh(self, prefix: str = "v") -> str:
        """A name that is not in use."""
        self.count += 1
        return f"{prefix}{self.count}"

    def tile(self, text: str, type: ArrayType, *, padding: float | None = None, prefix: str = "v") -> Tile:
        """Name the value of an expression."""
        name = self.fresh(prefix)
        self.line(f"{name} = {text}")
        tile = Tile(name, type, padding)
        size = 1
        for n in tile.shape:
            size *= n
        self.largest = max(self.largest, size)
        return tile
