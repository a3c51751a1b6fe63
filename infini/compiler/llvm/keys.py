"""Elements as unsigned integers of the same width in the order of the elements, so sorting compares integers.

Two orders: that of `sort`, in which zeros of both signs are equal and so are all NaNs, which come last; and
the total order of IEEE 754, of which `top_k` takes the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infini.compiler import sort_keys
from infini.compiler.llvm.builder import Function, Value
from infini.compiler.llvm.types import Type, vector
from infini.core import dtypes


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a dtype.

    Args:
        dtype: dtype of the elements; complex numbers have none.
        is_total: whether the order is the total one.
    """

    dtype: np.dtype
    is_total: bool = False

    @property
    def bits(self) -> int:
        """Bits of a key."""
        return 8 * self.dtype.itemsize

    @property
    def element(self) -> str:
        """LLVM's name of a key."""
        return f"i{self.bits}"

    @property
    def has_specials(self) -> bool:
        """Whether elements that differ may have one key."""
        return self.dtype in dtypes.FLOATS and not self.is_total

    def of(self, f: Function, x: Value) -> Value:
        """The keys of the bits of elements."""
        if self.dtype in dtypes.FLOATS:
            return self._of_float(f, x)
        return f.binary("xor", x, self._top(f, x)) if self.dtype in dtypes.SIGNED else x

    def _of_float(self, f: Function, x: Value) -> Value:
        sign = f.binary("ashr", x, f.constant(self.bits - 1, x.type))
        # Negative numbers are turned round as a whole, others get the top bit.
        key = f.binary("xor", x, f.binary("or", sign, self._top(f, x)))
        if self.is_total:
            return key
        key = f.select(self.is_zero(f, x), self._top(f, x), key)
        return f.select(self.is_nan(f, x), f.constant(-1, x.type), key)

    def bits_of(self, f: Function, key: Value) -> Value:
        """The bits of an element with a key: the inverse of `of`, where that has one."""
        if self.dtype not in dtypes.FLOATS:
            return f.binary("xor", key, self._top(f, key)) if self.dtype in dtypes.SIGNED else key
        # What had no sign has the top bit now.
        top = f.binary("ashr", key, f.constant(self.bits - 1, key.type))
        inverse = f.binary("xor", top, f.constant(-1, key.type))
        return f.binary("xor", key, f.binary("or", inverse, self._top(f, key)))

    def is_zero(self, f: Function, x: Value) -> Value:
        """Whether bits are those of a zero."""
        return f.compare("eq", self._magnitude(f, x), f.constant(0, x.type))

    def is_nan(self, f: Function, x: Value) -> Value:
        """Whether bits are those of a NaN: larger than those of the largest number, or of infinity."""
        return f.compare("ugt", self._magnitude(f, x), f.constant(sort_keys.largest_bits(self.dtype), x.type))

    def is_special(self, f: Function, x: Value) -> Value:
        """Whether bits are not those that `bits_of` gives for their key: of NaN, or of -0."""
        minus_zero = f.compare("eq", x, self._top(f, x))
        return f.binary("or", minus_zero, self.is_nan(f, x))

    def _magnitude(self, f: Function, x: Value) -> Value:
        return f.binary("and", x, f.constant((1 << (self.bits - 1)) - 1, x.type))

    def _top(self, f: Function, x: Value) -> Value:
        return f.constant(1 << (self.bits - 1), x.type)

    def type(self, lanes: int = 1) -> Type:
        """LLVM's type of keys."""
        return vector(self.element, lanes)
