"""What can be proven of sizes: equality, divisibility, bounds.

Every answer is one-sided: "known to be", never "known not to be" by its absence. A kernel asks when it is
defined; what it cannot prove it checks at the call with numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import sympy

from infini.tile import symbols
from infini.tile.symbols import BlockSize, Named, Size

_INFINITY: Final = sympy.oo
Interval = tuple[Size, Size]


def ceil_div(numerator: Size, denominator: Size) -> Size:
    """Quotient rounded up."""
    return sympy.ceiling(symbols.size(numerator) / symbols.size(denominator))


def floor_div(numerator: Size, denominator: Size) -> Size:
    """Quotient rounded down."""
    return sympy.floor(symbols.size(numerator) / symbols.size(denominator))


def at_least(expression: Size, bound: Size) -> Size:
    """The larger of the two, without a `Max` where it is known."""
    if is_at_most(bound, expression):
        return expression
    return bound if is_at_most(expression, bound) else _unevaluated(sympy.Max, expression, bound)


def at_most(expression: Size, bound: Size) -> Size:
    """The smaller of the two, without a `Min` where it is known."""
    if is_at_most(expression, bound):
        return expression
    return bound if is_at_most(bound, expression) else _unevaluated(sympy.Min, expression, bound)


def _unevaluated(function: Callable[..., Size], *sizes: Size) -> Size:
    """`Max` or `Min` as it is: SymPy would search for simplifications, for longer than all the rest takes."""
    return function(*sorted(sizes, key=lambda s: s.sort_key()), evaluate=False)


def is_one(value: Size) -> bool:
    """Whether a size is known to be 1."""
    return bool(value == 1)


def is_equal(first: Size, second: Size) -> bool:
    """Whether two sizes are known to be equal."""
    return bool(first == second) or bool(_difference(first, second) == 0)


def may_be_equal(first: Size, second: Size) -> bool:
    """False where two sizes are known to differ: by sign, by bounds or by a divisor."""
    if first == second or (difference := _difference(first, second)) == 0:
        return True
    lower, upper = interval(difference)
    if lower > 0 or upper < 0:
        return False
    constant, rest = difference.as_coeff_Add()
    return bool(constant % divisor(rest) == 0)


def is_at_most(first: Size, second: Size) -> bool:
    """Whether one size is known not to exceed the other."""
    first, second = symbols.size(first), symbols.size(second)
    if first == second or interval(first)[1] <= interval(second)[0]:
        return True
    return bool(interval(_difference(second, first))[0] >= 0)


def is_multiple(value: Size, of: Size) -> bool:
    """Whether one size is known to divide the other."""
    value, of = symbols.size(value), symbols.size(of)
    if isinstance(of, BlockSize):
        return divisor(value) % of.upper == 0 or value == of
    if of.is_Integer:
        return bool(of != 0) and divisor(value) % int(of) == 0
    return bool(sympy.cancel(_resolved(value) / _resolved(of)).is_integer)


def divisor(expression: Size) -> int:
    """The largest number that is known to divide an expression; 0 divides 0 alone."""
    if expression.is_Integer:
        return abs(int(expression))
    if expression.is_Symbol:
        facts = symbols.facts_of(expression)
        powers = facts.lower if facts.power_of_two and symbols.is_power_of_two(facts.lower) else 1
        return math.lcm(facts.divisible_by, powers)
    if expression.is_Add:
        return math.gcd(*map(divisor, expression.args))
    if expression.is_Mul and all(x.is_integer for x in expression.args):
        return math.prod(map(divisor, expression.args))
    return 1


def interval(expression: Size) -> Interval:
    """Numbers, or infinities, that an expression lies between."""
    if expression.is_number:
        return expression, expression
    if expression.is_Symbol:
        facts = symbols.facts_of(expression)
        return sympy.Integer(facts.lower), _INFINITY if facts.upper is None else sympy.Integer(facts.upper)
    parts = [interval(x) for x in expression.args]
    lows, highs = [low for low, _ in parts], [high for _, high in parts]
    if expression.is_Add:
        return sympy.Add(*lows), sympy.Add(*highs)
    if expression.is_Mul:
        return _product(parts)
    if isinstance(expression, (sympy.ceiling, sympy.floor, sympy.Max, sympy.Min)):
        return expression.func(*lows), expression.func(*highs)
    if expression.is_Pow and expression.exp == -1 and lows[0] > 0:
        return 1 / highs[0], 1 / lows[0]
    if isinstance(expression, sympy.Mod) and lows[1] > 0:
        return sympy.Integer(0), highs[1] - 1
    return -_INFINITY, _INFINITY


def _product(parts: Sequence[Interval]) -> Interval:
    low, high = sympy.Integer(1), sympy.Integer(1)
    for other in parts:
        ends = [sympy.Integer(0) if 0 in (a, b) else a * b for a in (low, high) for b in other]
        low, high = min(ends), max(ends)
    return low, high


def _difference(first: Size, second: Size) -> Size:
    return sympy.expand_mul(_resolved(symbols.size(first) - symbols.size(second)))


def _resolved(expression: Size) -> Size:
    """The expression with divisible symbols as products, so that their fractions cancel."""
    found = {
        s: s.facts.divisible_by * symbols.quotient(s)
        for s in expression.free_symbols
        if isinstance(s, Named) and not isinstance(s, BlockSize) and s.facts.divisible_by > 1
    }
    return expression.xreplace(found) if found else expression
