"""Native code of `top_k` for few elements: the best of every lane stay in registers, sorted.

Key and place of an element are one integer of 64 bits, the key above and the place, turned round, below: so
all integers differ, and of equal elements the first is the largest. A new one goes down through the sorted
best of its lane by maximum and minimum, without a branch; at the end the largest of all lanes is taken k
times. That costs k steps for each vector, so it is for small k, and for rows in which a threshold would not
yet have spared most elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.keys import Keys
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.types import I32, I64, scalar, vector

_KEY_BITS: Final = 32  # of the widest key that fits above a place
_INSTRUCTION_NS: Final = 0.1
_TAKE_NS: Final = 6.0  # the largest of all lanes, once


def is_possible(k: int, keys: Keys, target: Target) -> bool:
    """Whether the best of every lane are few enough for registers."""
    return 0 < k <= target.num_registers // 4 and keys.bits <= _KEY_BITS and target.lanes >= 4


def row_ns(k: int, length: int, target: Target) -> float:
    """Estimated time of a row."""
    return -(-length // target.lanes) * (6 + 4 * k) * _INSTRUCTION_NS + k * _TAKE_NS


@dataclass(frozen=True, slots=True)
class FewOfRow:
    """Writes code that finds the largest elements of rows of one length.

    Args:
        f: function under construction.
        keys: of the elements.
        k: how many.
        length: elements of a row.
        lanes: 32-bit lanes of a vector register.
    """

    f: Function
    keys: Keys
    k: int
    length: int
    lanes: int

    def write(self, source: Value, values: Value, places: Value) -> None:
        """The largest elements of the row at `source`, and their places."""
        f, lanes = self.f, self.lanes
        # No element is as small as nothing: turned round, its place is not zero.
        nothing = f.constant(0, vector("i64", lanes // 2))
        numbers = f.lane_numbers(vector("i32", lanes))
        turned = f.binary("xor", numbers, f.constant(-1, numbers.type))
        whole = self.length - self.length % lanes
        best = [nothing] * self.k
        with f.loop(0, whole, lanes, [*best, turned]) as loop:
            *best, turned = loop.carried
            keys = self._keys(f.load(f.at(source, loop.index, self.keys.element), self.keys.type(lanes)))
            further = f.binary("sub", turned, f.constant(lanes, turned.type))
            loop.next = [*self._insert(best, self._joined(keys, turned)), further]
        *best, turned = loop.results
        if whole < self.length:
            mask = f.first_lanes(self.length - whole, lanes)
            bits = f.masked_load(
                f.at(source, whole, self.keys.element), mask, f.constant(0, self.keys.type(lanes))
            )
            zero = f.constant(0, turned.type)
            rest = f.select(mask, self._keys(bits), zero), f.select(mask, turned, zero)
            best = self._insert(best, self._joined(*rest))
        self._take(best, source, values, places)

    def _keys(self, bits: Value) -> Value:
        """Keys of 32 bits."""
        return self.f.convert("zext", self.keys.of(self.f, bits), vector("i32", self.lanes))

    def _joined(self, keys: Value, turned: Value) -> list[Value]:
        """Keys above places, in two vectors; in which order the elements come does not matter."""
        f, lanes = self.f, self.lanes
        found = []
        for half in (0, 2):
            starts = [start + half + i for start in range(0, lanes, 4) for i in range(2)]
            order = [place for start in starts for place in (start, lanes + start)]
            both = f.shuffle(turned, keys, order)
            found.append(f.convert("bitcast", both, vector("i64", lanes // 2)))
        return found

    def _insert(self, best: Sequence[Value], elements: Sequence[Value]) -> list[Value]:
        """The best of each lane with some more elements."""
        f = self.f
        for x in elements:
            levels = []
            for level in best:
                levels.append(f.intrinsic("umax", level, x))
                x = f.intrinsic("umin", level, x)
            best = levels
        return list(best)

    def _take(self, best: list[Value], source: Value, values: Value, places: Value) -> None:
        """The largest of all lanes, as often as wanted."""
        f, element = self.f, self.keys.element
        nothing = f.constant(0, best[0].type)
        for number in range(self.k):
            top = self._largest(best[0])
            turned = f.convert("trunc", f.extract(top, 0), I32)
            place = f.binary("xor", turned, f.constant(-1, I32))
            at = f.at(source, self._index(place), element)
            f.store(f.load(at, scalar(element)), f.at(values, number, element))
            f.store(place, f.at(places, number, "i32"))
            is_taken = f.compare("eq", best[0], top)
            best = [
                f.select(is_taken, after, level)
                for level, after in zip(best, [*best[1:], nothing], strict=True)
            ][: self.k - 1 - number]

    def _index(self, place: Value) -> Int:
        return self.f.convert("zext", place, I64)

    def _largest(self, x: Value) -> Value:
        """The largest of all lanes, in every lane."""
        f, lanes = self.f, x.type.lanes
        step = lanes // 2
        while step:
            x = f.intrinsic("umax", x, f.shuffle(x, None, [i ^ step for i in range(lanes)]))
            step //= 2
        return x
