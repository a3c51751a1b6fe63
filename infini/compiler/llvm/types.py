"""LLVM's scalar and vector types, one object per type, so types are compared by identity."""

from __future__ import annotations

import functools
from typing import Final


class Type:
    """A scalar or vector type; made by `scalar` and `vector` only, so equal types are identical."""

    __slots__ = ("element", "lanes", "text")

    def __init__(self, element: str, lanes: int) -> None:
        self.element = element
        self.lanes = lanes
        self.text = element if lanes == 1 else f"<{lanes} x {element}>"

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    @property
    def is_float(self) -> bool:
        """Whether elements are floating point."""
        return self.element in FLOAT_BITS

    @property
    def bits(self) -> int:
        """Bits of an element."""
        return FLOAT_BITS[self.element] if self.is_float else int(self.element[1:])

    def with_element(self, element: str) -> Type:
        """As many lanes of another element."""
        return vector(element, self.lanes)

    def with_lanes(self, lanes: int) -> Type:
        """Another number of lanes."""
        return vector(self.element, lanes)


FLOAT_BITS: Final = {"half": 16, "bfloat": 16, "float": 32, "double": 64}
BYTES: Final = {"i1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "half": 2, "float": 4, "double": 8, "ptr": 8}


@functools.cache
def vector(element: str, lanes: int) -> Type:
    """The type of `lanes` elements; with one lane a scalar."""
    return Type(element, lanes)


def scalar(element: str) -> Type:
    """The type of one element."""
    return vector(element, 1)


I1, I8, I16, I32, I64, F32, F64, PTR = (
    scalar(element) for element in ("i1", "i8", "i16", "i32", "i64", "float", "double", "ptr")
)
