"""Small data inside a program: at most 64 elements; larger arrays are hidden parameters (design 4a.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from infini.core.ir.types import ArrayType


@dataclass(frozen=True, slots=True)
class Constant:
    """At most 64 elements of data, compared by their bytes, so NaN equals itself."""

    type: ArrayType
    data: bytes

    MAX_SIZE: ClassVar[int] = 64

    @classmethod
    def of(cls, array: np.ndarray) -> Constant:
        """The constant with the elements of `array`."""
        contiguous = np.ascontiguousarray(array).reshape(array.shape)
        return cls(ArrayType(tuple(contiguous.shape), contiguous.dtype), contiguous.tobytes())

    @property
    def array(self) -> np.ndarray:
        """The elements, read-only."""
        return np.frombuffer(self.data, self.type.dtype).reshape(self.type.shape)

    @property
    def is_scalar(self) -> bool:
        """Whether every element is the same, so the constant can be broadcast from one number."""
        size = self.type.dtype.itemsize
        return len(self.data) > 0 and self.data == self.data[:size] * (len(self.data) // size)

    def item(self) -> complex | bool:
        """The first element as a Python number."""
        return self.array.reshape(-1)[0].item()
