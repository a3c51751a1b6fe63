"""The spec of `ragged_dot`: letters of both operands, of the sizes, and of the result."""

from __future__ import annotations

import functools
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spec:
    """Letters of the operands, of the sizes, and of the result."""

    x: str
    y: str
    sizes: str
    out: str

    @property
    def group(self) -> str:
        """The letter that numbers groups."""
        return self.sizes[-1]

    @property
    def is_summed(self) -> bool:
        """Whether the rows of each group are summed over."""
        return self.group in self.out


@functools.cache
def parse(text: str) -> Spec:
    """A spec from its text, such as `mk,gkn,g->mn`."""
    left, _, out = text.partition("->")
    x, y, sizes = left.split(",")
    return Spec(x, y, sizes, out)
