"""Sizes that are known when a kernel is called: SymPy integers with bounds and divisors.

Symbols end where a kernel is specialised, so the IR holds ints only; `import infini` stays free of SymPy.
What can be proven of sizes is in `reasoning`, their numbers are in `numbers`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, TypedDict

import sympy

from infini.core import errors
from infini.tile.numbers import Size as Size, number as number

DEFAULT_LOWER: Final = 16
DEFAULT_UPPER: Final = 1024


class SizeOptions(TypedDict, total=False):
    """What may be said about a size: the keyword arguments of `Symbol`."""

    lower: int
    upper: int | None
    divisible_by: int
    power_of_two: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about the value of a symbol; calls check it."""

    lower: int = 0
    upper: int | None = None
    divisible_by: int = 1
    power_of_two: bool = False

    def __post_init__(self) -> None:
        if self.lower < 0 or (self.upper is not None and self.upper < self.lower) or self.divisible_by < 1:
            raise errors.ValueMismatchError(
                "no size satisfies this",
                got=str(self),
                expected="0 <= lower <= upper, divisible_by >= 1",
            )

    def __str__(self) -> str:
        said = []
        if self.power_of_two:
            said.append("a power of two")
        if self.divisible_by > 1:
            said.append(f"divisible by {self.divisible_by}")
        if self.lower > 0:
            said.append(f"at least {self.lower}")
        if self.upper is not None:
            said.append(f"at most {self.upper}")
        return ", ".join(said) or "any size"

    def hold(self, value: int) -> bool:
        """Whether a value is as they say."""
        return (
            self.lower <= value
            and (self.upper is None or value <= self.upper)
            and value % self.divisible_by == 0
            and (not self.power_of_two or is_power_of_two(value))
        )


_ANYTHING: Final = Facts()


class Named(sympy.Dummy):
    """A symbol with facts. Two are equal where their index is: a fresh one equals itself alone.

    `label` is what it is printed as where its tensor got a name after it, see `Tensor.named`.
    """

    facts: Facts
    label: str

    __slots__ = ("facts", "label")

    def _sympystr(self, printer: Any) -> str:  # Any: SymPy's hook for printing
        return self.label


class BlockSize(Named):
    """A power of two between `lower` and `upper` that a kernel may choose freely: results do not depend on
    it.
    """

    __slots__ = ()

    @property
    def lower(self) -> int:
        """Smallest value."""
        return self.facts.lower

    @property
    def upper(self) -> int:
        """Largest value."""
        assert self.facts.upper is not None
        return self.facts.upper


def Symbol(  # noqa: N802  # a constructor
    name: str,
    *,
    lower: int = 0,
    upper: int | None = None,
    divisible_by: int = 1,
    power_of_two: bool = False,
) -> Size:
    """A size that is read off the operands of a call, or given to the call as the keyword argument `name`.

    Args:
        name: its name; symbols of one name that say the same are the same.
        lower: smallest value.
        upper: largest value, any when absent.
        divisible_by: what divides every value.
        power_of_two: whether every value is a power of two.

    Raises:
        ValueMismatchError: no size is like that.

    Example:
        >>> from infini.tile import Symbol
        >>> 2 * Symbol("n") + 1
        2*n + 1
        >>> Symbol("n", divisible_by=16) // 4
        floor(n/4)
    """
    facts = Facts(lower, upper, divisible_by, power_of_two)
    if facts == _ANYTHING:
        return sympy.Symbol(name, integer=True, nonnegative=True)
    digest = hashlib.blake2b(repr((name, facts)).encode(), digest_size=6).digest()
    return _named(name, facts, int.from_bytes(digest, "little"))


def fresh(name: str, options: SizeOptions | None = None) -> Size:
    """A size symbol of its own, whatever others are called.

    Raises:
        TypeMismatchError: there is no such option.
        ValueMismatchError: no size is like that.
    """
    unknown = sorted(set(options or ()) - SizeOptions.__annotations__.keys())
    if unknown:
        raise errors.TypeMismatchError(
            "a size has no such option",
            got=", ".join(unknown),
            expected=", ".join(SizeOptions.__annotations__),
            fix="leave constexpr out: every size is a constant of a compiled kernel"
            if "constexpr" in unknown
            else None,
        )
    return _named(name, Facts(**(options or {})), None)


def quotient(symbol: Named) -> Size:
    """What a symbol is `divisible_by` times of, always the same one."""
    by, upper = symbol.facts.divisible_by, symbol.facts.upper
    facts = Facts(-(-symbol.facts.lower // by), None if upper is None else upper // by)
    return _named(f"{symbol.name}/{by}", facts, symbol.dummy_index)


def _named(name: str, facts: Facts, index: int | None) -> Named:
    is_positive = facts.lower > 0 or facts.power_of_two
    known = {"positive": True} if is_positive else {"nonnegative": True}
    symbol = Named(name, dummy_index=index, integer=True, **known)
    symbol.facts, symbol.label = facts, name
    return symbol


def block_size(lower: int = DEFAULT_LOWER, upper: int = DEFAULT_UPPER, *, name: str = "BLOCK") -> Size:
    """A tunable size: a power of two that the kernel's configuration or the tuner decides.

    Args:
        lower: smallest value, a power of two.
        upper: largest value, a power of two.
        name: name under which `KernelFunction.configure` sets it.

    Raises:
        ValueMismatchError: the bounds are no powers of two, or in the wrong order.
    """
    if not (is_power_of_two(lower) and is_power_of_two(upper) and lower <= upper):
        raise errors.ValueMismatchError(
            "a block size lies between two powers of two",
            got=f"lower {lower}, upper {upper}",
            expected="such as 32, 128",
        )
    symbol = BlockSize(name, integer=True, positive=True)
    symbol.facts, symbol.label = Facts(lower, upper, lower, power_of_two=True), name
    return symbol


def facts_of(symbol: Size) -> Facts:
    """What is known about a symbol."""
    return symbol.facts if isinstance(symbol, Named) else _ANYTHING


def size(value: object) -> Size:
    """A size in canonical form: a SymPy expression.

    Raises:
        TypeMismatchError: it is neither an integer nor made of symbols.
    """
    try:
        expression = sympy.sympify(value, strict=True)
    except sympy.SympifyError:
        expression = None
    if expression is None or not (_is_whole(expression) or expression.is_integer):
        raise errors.TypeMismatchError(
            "this is not a size", got=repr(value), expected="an integer, or symbols of tile"
        )
    return expression


def _is_whole(expression: Size) -> bool:
    """Whether an expression is an integer by its form. SymPy doubts quotients, whose divisor could be 0; that
    is an error of the call.
    """
    if isinstance(expression, (sympy.floor, sympy.ceiling)):
        return True
    if isinstance(expression, (sympy.Add, sympy.Mul, sympy.Max, sympy.Min, sympy.Mod)):
        return all(map(_is_whole, expression.args))
    return bool((expression.is_Symbol or expression.is_number) and expression.is_integer)


def product(sizes: Iterable[Size]) -> Size:
    """Product of sizes."""
    return sympy.prod(sizes) if (sizes := list(sizes)) else sympy.Integer(1)


def block_sizes(expressions: Iterable[Size]) -> tuple[BlockSize, ...]:
    """The tunable symbols in some expressions, by name."""
    found = {s for e in expressions for s in e.free_symbols if isinstance(s, BlockSize)}
    return tuple(sorted(found, key=lambda s: (s.name, s.dummy_index)))


def is_power_of_two(value: int) -> bool:
    """Whether a number is one."""
    return value > 0 and value & (value - 1) == 0
