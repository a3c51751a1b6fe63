"""Sizes as numbers, and what is proven of sizes: against SymPy's own evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sympy
from hypothesis import given, strategies as st

from infini.core import errors
from infini.tile import Symbol, block_size, reasoning
from infini.tile.numbers import Numbers, number
from infini.tile.symbols import size

n, m, k = Symbol("n"), Symbol("m", lower=1, upper=40), Symbol("k", divisible_by=6, lower=6)
SYMBOLS = (n, m, k)


@st.composite
def sizes(draw: Any, depth: int = 3) -> Any:
    """Random sizes of the kinds that arrangements make."""
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from(SYMBOLS) | st.integers(-6, 12).map(sympy.Integer))
    first, second = draw(sizes(depth=depth - 1)), draw(sizes(depth=depth - 1))
    divisor = draw(st.sampled_from([m, k, 2 * m, sympy.Integer(3), sympy.Integer(16)]))
    kind = draw(st.sampled_from(["+", "-", "*", "up", "down", "max", "min", "mod"]))
    return {
        "+": lambda: first + second,
        "-": lambda: first - second,
        "*": lambda: first * second,
        "up": lambda: sympy.ceiling((first + second / divisor) / divisor),
        "down": lambda: sympy.floor(first / divisor + second / m),
        "max": lambda: sympy.Max(first, second),
        "min": lambda: sympy.Min(first, second),
        "mod": lambda: sympy.Mod(first, divisor),
    }[kind]()


values = st.fixed_dictionaries(
    {n: st.integers(0, 50), m: st.integers(1, 40), k: st.integers(1, 9).map(lambda x: 6 * x)}
)


@given(sizes(), values)
def test_numbers_are_those_of_sympy(expression: Any, at: dict[Any, int]) -> None:
    assert number(expression, at) == expression.xreplace({s: sympy.Integer(v) for s, v in at.items()})


@given(sizes(), sizes(), values)
def test_what_is_proven_holds_for_every_value(first: Any, second: Any, at: dict[Any, int]) -> None:
    a, b = number(first, at), number(second, at)
    assert not reasoning.is_equal(first, second) or a == b
    assert reasoning.may_be_equal(first, second) or a != b
    assert not reasoning.is_at_most(first, second) or a <= b
    assert not reasoning.is_multiple(first, second) or b == 0 or a % b == 0
    low, high = reasoning.interval(first)
    assert low <= a <= high
    divisor = reasoning.divisor(first)
    assert a == 0 if divisor == 0 else a % divisor == 0
    assert number(reasoning.at_least(first, second), at) == max(a, b)
    assert number(reasoning.at_most(first, second), at) == min(a, b)


def test_large_quotients_are_exact() -> None:
    large = 2**62 + 1
    assert number(sympy.ceiling(n / 2), {n: large}) == 2**61 + 1
    assert number(sympy.floor(n / 3 - sympy.Rational(1, 3)), {n: large}) == (large - 1) // 3


def test_comparisons_are_numbers_too() -> None:
    conditions = [
        n < m,
        n <= m,
        n > m,
        n >= m,
        sympy.Eq(n, m),
        sympy.Ne(n, m),
        (n < 5) & (m < 5),
        (n < 5) | (m < 5),
    ]
    assert Numbers(conditions)({n: 4, m: 6}) == (True, True, False, False, False, True, False, True)


@pytest.mark.parametrize(
    ("value", "of", "expected"),
    [
        (k, 3, True),
        (k, 4, False),
        (4 * k, 8, True),
        (n * m, m, True),
        (n, 1, True),
        (0, 7, True),
        (k + 1, 6, False),
        (Symbol("p", power_of_two=True, lower=16), block_size(1, 16), True),
        (Symbol("p", power_of_two=True, lower=8), block_size(1, 16), False),
        (Symbol("q", divisible_by=32), block_size(1, 16), True),
    ],
)
def test_divisors_are_proven(value: Any, of: Any, expected: bool) -> None:
    assert reasoning.is_multiple(value, of) is expected


def test_divisible_sizes_count_whole_tiles() -> None:
    x = Symbol("x", divisible_by=32)
    assert reasoning.is_equal(reasoning.ceil_div(x, 8), 4 * reasoning.floor_div(x, 32))
    assert not reasoning.is_equal(reasoning.ceil_div(n, 8), reasoning.floor_div(n, 8))
    assert not reasoning.may_be_equal(reasoning.ceil_div(x, 8), 4 * n + 2)


def test_bounds_of_numbers_are_numbers() -> None:
    assert reasoning.at_least(sympy.Integer(0), sympy.Integer(1)) == 1
    assert reasoning.at_most(sympy.Integer(3), sympy.Integer(1)) == 1
    assert reasoning.at_most(m, sympy.Integer(40)) == m and reasoning.at_least(k, sympy.Integer(7)) != k


def test_a_missing_value_names_the_symbol() -> None:
    with pytest.raises(errors.TypeMismatchError, match=r"no value for m\n.*give the call m="):
        number(n + m, {n: 1})
    with pytest.raises(errors.ValueMismatchError, match="m = 0"):
        number(sympy.ceiling(n / m), {n: 1, m: 0})


def test_no_size_is_a_fraction() -> None:
    for wrong in (1.5, "n", n / 2, None, sympy.sqrt(2)):
        with pytest.raises(errors.TypeMismatchError, match="not a size"):
            size(wrong)
    assert size(np.int64(3)) == 3 and size(n // m) == sympy.floor(n / m)
