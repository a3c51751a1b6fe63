"""Logic, shifts and counts of the bits of each element."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax.cases import Span
from infini.lax.elementwise import terms as t
from infini.lax.elementwise.terms import ArrayLike
from infini.lax.families import elementwise

_WORDS = Span(-1e9, 1e9)
_AMOUNTS = Span(-2, 70)  # beyond both ends of every width

and_p: Primitive = elementwise("and", t.BITS, np.bitwise_and, num_operands=2, cases=(_WORDS, _WORDS))


def bitwise_and(x: ArrayLike, y: ArrayLike) -> Value:
    """Bitwise or logical and."""
    return t.binary(and_p, x, y)


or_p: Primitive = elementwise("or", t.BITS, np.bitwise_or, num_operands=2, cases=(_WORDS, _WORDS))


def bitwise_or(x: ArrayLike, y: ArrayLike) -> Value:
    """Bitwise or logical or."""
    return t.binary(or_p, x, y)


xor_p: Primitive = elementwise("xor", t.BITS, np.bitwise_xor, num_operands=2, cases=(_WORDS, _WORDS))


def bitwise_xor(x: ArrayLike, y: ArrayLike) -> Value:
    """Bitwise or logical exclusive or."""
    return t.binary(xor_p, x, y)


not_p: Primitive = elementwise("not", t.BITS, np.invert, cases=(_WORDS,))


def bitwise_not(x: ArrayLike) -> Value:
    """Bitwise or logical negation."""
    return t.unary(not_p, x)


# --- shifts -----------------------------------------------------------------------------------


def _unsigned(dtype: np.dtype) -> np.dtype:
    return np.dtype(f"uint{dtype.itemsize * 8}")


def _shift(move: Callable[..., np.ndarray]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A shift of unsigned numbers that is 0 when the amount is not between 0 and the width."""

    def rule(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        word = _unsigned(x.dtype)
        amount = y.astype(word)  # a negative amount is a huge one
        inside = amount < x.dtype.itemsize * 8
        moved = move(x.astype(word), np.where(inside, amount, 0).astype(word))
        return np.where(inside, moved, 0).astype(word).astype(x.dtype)

    return rule


def _shift_arithmetic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    signed = np.dtype(f"int{x.dtype.itemsize * 8}")
    amount = np.minimum(y.astype(_unsigned(x.dtype)), x.dtype.itemsize * 8 - 1)
    return np.right_shift(x.astype(signed), amount.astype(signed)).astype(x.dtype)


shift_left_p: Primitive = elementwise(
    "shift_left", t.INTEGERS, _shift(np.left_shift), num_operands=2, cases=(_WORDS, _AMOUNTS)
)


def shift_left(x: ArrayLike, y: ArrayLike) -> Value:
    """Shift bits left; 0 when `y` is not between 0 and the number of bits."""
    return t.binary(shift_left_p, x, y)


shift_right_logical_p: Primitive = elementwise(
    "shift_right_logical", t.INTEGERS, _shift(np.right_shift), num_operands=2, cases=(_WORDS, _AMOUNTS)
)


def shift_right_logical(x: ArrayLike, y: ArrayLike) -> Value:
    """Shift bits right, filling with zeros; 0 when `y` is not between 0 and the number of bits."""
    return t.binary(shift_right_logical_p, x, y)


shift_right_arithmetic_p: Primitive = elementwise(
    "shift_right_arithmetic", t.INTEGERS, _shift_arithmetic, num_operands=2, cases=(_WORDS, _AMOUNTS)
)


def shift_right_arithmetic(x: ArrayLike, y: ArrayLike) -> Value:
    """Shift bits right, filling with the highest bit, unsigned numbers too; only that bit is left when `y` is
    not between 0 and the number of bits.
    """
    return t.binary(shift_right_arithmetic_p, x, y)


# --- counts -----------------------------------------------------------------------------------


def _ones(word: Value) -> Value:
    """Bits set in unsigned numbers: sums of pairs, of fours, of bytes, and of all bytes by a product."""
    width = word.dtype.itemsize * 8

    def mask(byte: int) -> int:
        return int.from_bytes(bytes([byte]) * word.dtype.itemsize)

    pairs = t.sub(word, t.both(t.shift_right(word, 1), mask(0x55)))
    fours = t.add(t.both(pairs, mask(0x33)), t.both(t.shift_right(pairs, 2), mask(0x33)))
    bytes_ = t.both(t.add(fours, t.shift_right(fours, 4)), mask(0x0F))
    return t.shift_right(t.mul(bytes_, mask(0x01)), width - 8)


def _decompose_population_count(x: Value) -> tuple[Value]:
    word = _unsigned(x.dtype)
    return (t.convert(_ones(t.convert(x, word)), x.dtype),)


population_count_p: Primitive = elementwise(
    "population_count",
    t.INTEGERS,
    lambda x: np.bitwise_count(x.astype(_unsigned(x.dtype))).astype(x.dtype),
    decompose=_decompose_population_count,
    cases=(_WORDS,),
)


def population_count(x: ArrayLike) -> Value:
    """Number of bits that are set."""
    return t.unary(population_count_p, x)


def _reference_clz(x: np.ndarray) -> np.ndarray:
    left = x.astype(_unsigned(x.dtype))
    length = np.zeros(x.shape, x.dtype)
    while left.any():
        length += (left != 0).astype(x.dtype)
        left = left >> np.ones((), left.dtype)
    return (x.dtype.itemsize * 8 - length).astype(x.dtype)


def _decompose_clz(x: Value) -> tuple[Value]:
    smeared, distance = t.convert(x, _unsigned(x.dtype)), 1
    while distance < x.dtype.itemsize * 8:  # every bit below the highest one is set
        smeared = t.either(smeared, t.shift_right(smeared, distance))
        distance *= 2
    return (t.convert(t.sub(x.dtype.itemsize * 8, _ones(smeared)), x.dtype),)


clz_p: Primitive = elementwise("clz", t.INTEGERS, _reference_clz, decompose=_decompose_clz, cases=(_WORDS,))


def clz(x: ArrayLike) -> Value:
    """Number of zero bits before the highest bit that is set."""
    return t.unary(clz_p, x)
