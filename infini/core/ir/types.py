"""What a value of a program is: `ArrayType`, a shape and a dtype, and `Var`, identity plus type."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from infini.core import dtypes

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ArrayType:
    """Shape and dtype of an array, nothing else."""

    shape: Shape
    dtype: np.dtype

    # Written out because every call of a jitted function hashes and compares the types of its arguments.
    def __eq__(self, other: object) -> bool:
        return self is other or (
            type(other) is ArrayType and self.shape == other.shape and self.dtype == other.dtype
        )

    def __hash__(self) -> int:
        return hash(self.shape)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of a dense array of this type."""
        return self.size * self.dtype.itemsize

    def update(self, *, shape: Shape | None = None, dtype: np.dtype | None = None) -> ArrayType:
        """The same type with another shape or dtype."""
        return ArrayType(self.shape if shape is None else shape, self.dtype if dtype is None else dtype)

    def __str__(self) -> str:
        return f"{dtypes.short(self.dtype)}[{','.join(map(str, self.shape))}]"

    __repr__ = __str__


class Var:
    """A value of a program: identity plus type. `hint` is a name for the printer and means nothing."""

    __slots__ = ("hint", "type")

    def __init__(self, type: ArrayType, hint: str = "") -> None:
        self.type = type
        self.hint = hint

    def __repr__(self) -> str:
        return f"Var({self.hint or hex(id(self))}: {self.type})"
