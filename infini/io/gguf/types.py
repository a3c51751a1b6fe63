"""What numbers of a GGUF file are: the types of tensors, of which blocks of numbers take so many bytes, and
the types of metadata.

A declaration per type, as data. References: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and
ggml's list of types, https://github.com/ggml-org/ggml/blob/master/include/ggml.h.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import ml_dtypes
import numpy as np

from infini.core import errors
from infini.io.tensors import CorruptFileError

MAX_DIMENSIONS: Final = 4


class GGUFError(CorruptFileError):
    """A GGUF file is damaged, lies about its sizes, or is of a kind that is not read."""


class ValueType(enum.IntEnum):
    """Types of metadata, with their numbers in files."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# Little-endian, as files have them. Strings and arrays have lengths of their own.
VALUE_DTYPES: Final[dict[ValueType, np.dtype]] = {
    ValueType.UINT8: np.dtype("<u1"),
    ValueType.INT8: np.dtype("<i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("?"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}


@dataclass(frozen=True, slots=True)
class TensorType:
    """A type of tensors: rows are cut into blocks of numbers, and each block takes a fixed number of bytes.

    Args:
        name: ggml's name, such as "Q4_K".
        id: its number in files.
        block_size: numbers in a block; 1 for plain numbers.
        block_nbytes: bytes of a block.
        dtype: dtype of the numbers where each is stored on its own; None for those stored in blocks.
    """

    name: str
    id: int
    block_size: int
    block_nbytes: int
    dtype: np.dtype | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether numbers are codes that share what lies beside them in their block."""
        return self.dtype is None

    @property
    def bits_per_number(self) -> float:
        """Bits that a number takes, its share of scales included."""
        return 8 * self.block_nbytes / self.block_size

    def row_nbytes(self, size: int) -> int:
        """Bytes of a row of so many numbers.

        Raises:
            ValueMismatchError: the row is not made of whole blocks.
        """
        if size % self.block_size:
            raise errors.ValueMismatchError(
                f"rows are not made of whole blocks of {self.name}",
                got=f"rows of {size} numbers",
                expected=f"a multiple of {self.block_size}",
                fix="choose a type with smaller blocks: Q8_0 has 32, F16 has 1",
            )
        return size // self.block_size * self.block_nbytes

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of this shape.

        Raises:
            ValueMismatchError: its rows are not made of whole blocks.
        """
        return math.prod(shape[:-1]) * self.row_nbytes(shape[-1] if shape else 1)

    def __str__(self) -> str:
        return self.name


def _plain(name: str, number: int, dtype: str | np.dtype) -> TensorType:
    found = np.dtype(dtype)
    return TensorType(name, number, 1, found.itemsize, found)


# In the order of their numbers. Types that ggml has removed (4, 5, 31 to 33, 36 to 38) have no layout any
# more.
TYPES: Final[tuple[TensorType, ...]] = (
    _plain("F32", 0, "<f4"),
    _plain("F16", 1, "<f2"),
    TensorType("Q4_0", 2, 32, 18),
    TensorType("Q4_1", 3, 32, 20),
    TensorType("Q5_0", 6, 32, 22),
    TensorType("Q5_1", 7, 32, 24),
    TensorType("Q8_0", 8, 32, 34),
    TensorType("Q8_1", 9, 32, 36),
    TensorType("Q2_K", 10, 256, 84),
    TensorType("Q3_K", 11, 256, 110),
    TensorType("Q4_K", 12, 256, 144),
    TensorType("Q5_K", 13, 256, 176),
    TensorType("Q6_K", 14, 256, 210),
    TensorType("Q8_K", 15, 256, 292),
    TensorType("IQ2_XXS", 16, 256, 66),
    TensorType("IQ2_XS", 17, 256, 74),
    TensorType("IQ3_XXS", 18, 256, 98),
    TensorType("IQ1_S", 19, 256, 50),
    TensorType("IQ4_NL", 20, 32, 18),
    TensorType("IQ3_S", 21, 256, 110),
    TensorType("IQ2_S", 22, 256, 82),
    TensorType("IQ4_XS", 23, 256, 136),
    _plain("I8", 24, "<i1"),
    _plain("I16", 25, "<i2"),
    _plain("I32", 26, "<i4"),
    _plain("I64", 27, "<i8"),
    _plain("F64", 28, "<f8"),
    TensorType("IQ1_M", 29, 256, 56),
    _plain("BF16", 30, np.dtype(ml_dtypes.bfloat16)),
    TensorType("TQ1_0", 34, 256, 54),
    TensorType("TQ2_0", 35, 256, 66),
    TensorType("MXFP4", 39, 32, 17),
    TensorType("NVFP4", 40, 64, 36),
    TensorType("Q1_0", 41, 128, 18),
    TensorType("Q2_0", 42, 64, 18),
)

BY_ID: Final[dict[int, TensorType]] = {found.id: found for found in TYPES}
BY_NAME: Final[dict[str, TensorType]] = {found.name: found for found in TYPES}

FLOATS: Final = tuple(BY_NAME[name] for name in ("F32", "F16", "BF16", "F64"))


def type_of(name: TensorType | str) -> TensorType:
    """The type of this name, in any case of letters; a type stands for itself.

    Raises:
        ValueMismatchError: there is none.

    Example:
        >>> type_of("q4_k")
        TensorType(name='Q4_K', id=12, block_size=256, block_nbytes=144, dtype=None)
    """
    if isinstance(name, TensorType):
        return name
    found = BY_NAME.get(name.upper())
    if found is None:
        raise errors.ValueMismatchError(
            f"there is no type of tensors {name!r}",
            expected=", ".join(BY_NAME),
            fix="choose one of these names",
        )
    return found
