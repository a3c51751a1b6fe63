"""Sizes that are known when a kernel is called: SymPy integers, some of them block sizes with bounds.

The only file of the kernel language that imports SymPy, and nothing outside the language imports it: `import
infini` stays free of it. Symbols end where a kernel is specialised, so the IR holds ints only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

import sympy

from infini.core import errors

Size: TypeAlias = Any  # Any: an int or a SymPy expression; SymPy's operators are not typed

DEFAULT_LOWER: Final = 16
DEFAULT_UPPER: Final = 1024


class _Fresh(sympy.Dummy):
    """A symbol that equals itself alone and prints as its name."""

    __slots__ = ()

    def _sympystr(self, printer: Any) -> str:  # Any: SymPy's hook for printing
        return str(self.name)


class BlockSize(_Fresh):
    """A power of two between `lower` and `upper` that a kernel may choose freely: results do not depend on
    it.
    """

    lower: int
    upper: int

    __slots__ = ("lower", "upper")


def Symbol(name: str) -> Size:  # noqa: N802  # a constructor
    """A size that is read off the operands of a call.

    Example:
        >>> from infini.tile import Symbol
        >>> 2 * Symbol("n") + 1
        2*n + 1
    """
    return sympy.Symbol(name, integer=True, nonnegative=True)


def fresh(name: str) -> Size:
    """A size symbol of its own, whatever others are called."""
    return _Fresh(name, integer=True, nonnegative=True)


def block_size(lower: int = DEFAULT_LOWER, upper: int = DEFAULT_UPPER, *, name: str = "BLOCK") -> Size:
    """A tunable size: a power of two that the kernel's configuration or the tuner decides.

    Args:
        lower: smallest value, a power of two.
        upper: largest value, a power of two.
        name: name under which `KernelFunction.configure` sets it.

    Raises:
        ValueMismatchError: the bounds are no powers of two, or in the wrong order.
    """
    if not (_is_power_of_two(lower) and _is_power_of_two(upper) and lower <= upper):
        raise errors.ValueMismatchError(
            "a block size lies between two powers of two",
            got=f"lower {lower}, upper {upper}",
            expected="such as 32, 128",
        )
    symbol = BlockSize(name, integer=True, positive=True)
    symbol.lower, symbol.upper = lower, upper
    return symbol


def size(value: object) -> Size:
    """A size in canonical form: a SymPy expression.

    Raises:
        TypeMismatchError: it is neither an integer nor made of symbols.
    """
    try:
        expression = sympy.sympify(value, strict=True)
    except sympy.SympifyError:
        expression = None
    if expression is None or not expression.is_integer:
        raise errors.TypeMismatchError(
            "this is not a size", got=repr(value), expected="an integer, or symbols of tile"
        )
    return expression


def ceil_div(numerator: Size, denominator: Size) -> Size:
    """Quotient rounded up."""
    return sympy.ceiling(size(numerator) / size(denominator))


def floor_div(numerator: Size, denominator: Size) -> Size:
    """Quotient rounded down."""
    return sympy.floor(size(numerator) / size(denominator))


def product(sizes: Iterable[Size]) -> Size:
    """Product of sizes."""
    return sympy.prod(sizes) if (sizes := list(sizes)) else sympy.Integer(1)


def is_one(value: Size) -> bool:
    """Whether a size is known to be 1."""
    return bool(value == 1)


def is_equal(first: Size, second: Size) -> bool:
    """Whether two sizes are known to be equal."""
    return bool(sympy.simplify(first - second) == 0)


def block_sizes(expressions: Iterable[Size]) -> tuple[BlockSize, ...]:
    """The tunable symbols in some expressions, by name."""
    found = {s for e in expressions for s in e.free_symbols if isinstance(s, BlockSize)}
    return tuple(sorted(found, key=lambda s: (s.name, s.dummy_index)))


def number(expression: Size, values: Mapping[Size, int]) -> int:
    """The value of an expression.

    Raises:
        TypeMismatchError: a symbol in it has no value.
    """
    result = sympy.sympify(expression.xreplace(values))
    if not result.is_Integer:
        missing = ", ".join(sorted(str(s) for s in result.free_symbols))
        raise errors.TypeMismatchError(
            f"the size {expression} is not known from the operands",
            got=f"no value for {missing}",
            fix="give the tensor of the result shape= in terms of the shapes of the operands",
        )
    return int(result)


def _is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0
