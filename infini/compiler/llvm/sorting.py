"""Native code of `sort`: rows one after another, spread over tasks.

Keys become unsigned integers (`keys`), which are sorted with the positions of their elements: short rows by
comparing every pair, which vectors do well, long ones by counting digits of eight bits from the lowest (a
radix sort, which is linear). Both are stable. Of several keys the last is sorted by first. Operands follow
their positions; a key alone is made from the sorted integers again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from infini.compiler.llvm import builder as b, movement
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.keys import Keys
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.steps import align
from infini.core.ir import ArrayType, Attrs

MAX_TASKS: Final = 64  # each has memory of its own
_DIGIT: Final = 8  # bits of a digit
_VALUES: Final = 1 << _DIGIT
_UNROLL: Final = 4


def rank_ns(length: int, bits: int, lanes: int) -> float:
    """Estimated time to sort a row by comparing all pairs."""
    return length * (2.0 + length * max(bits, 32) / 32 / lanes * 0.45)


def count_ns(length: int, bits: int) -> float:
    """Estimated time to sort a row by its digits."""
    num_digits = bits // _DIGIT
    return length * (num_digits + 1) * 1.3 + num_digits * _VALUES * 0.6


def row_ns(length: int, bits: int, lanes: int) -> float:
    """Estimated time to sort a row."""
    return min(rank_ns(length, bits, lanes), count_ns(length, bits))


@dataclass(frozen=True, slots=True)
class Buffers:
    """Memory in which a row is sorted: keys twice, positions twice, counters."""

    keys: tuple[Value, Value]
    places: tuple[Value, Value]
    counters: Value


def buffer_bytes(length: int, bits: int) -> int:
    """Memory that `buffers` cuts."""
    return sum(_sizes(length, bits))


def _sizes(length: int, bits: int) -> list[int]:
    room = align(length)  # whole vectors may be read at the end
    return [room * bits // 8] * 2 + [room * 4] * 2 + [4 * max(room, _VALUES * (bits // _DIGIT))]


def buffers(f: Function, memory: Value, length: int, bits: int) -> Buffers:
    """The buffers for rows of a length."""
    sizes = _sizes(length, bits)
    at = [f.at(memory, sum(sizes[:i]), "i8") for i in range(5)]
    return Buffers((at[0], at[1]), (at[2], at[3]), at[4])


def sort(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """The operation `sort` over the last dimension."""
    length = types[0].shape[-1]
    rows = math.prod(types[0].shape[:-1])
    keys = [Keys(t.dtype) for t in types[: attrs["num_keys"]]]
    each_ns = sum(row_ns(length, k.bits, target.lanes) + 2.0 * length for k in keys)
    chunks = chunks_of_rows(rows, each_ns)
    row_bytes = buffer_bytes(length, max(k.bits for k in keys))

    def write(f: Function, pointers: list[Value], task: Value) -> None:
        operands, outputs, scratch = pointers[: len(types)], pointers[len(types) : -1], pointers[-1]
        memory = f.at(scratch, f.mul(task, row_bytes) if chunks.num_tasks > 1 else 0, "i8")
        elements = [movement.bits_of(t.dtype) for t in types]
        with chunks.loop(f, task) as row:
            start = f.mul(row, length)
            sources = [f.at(p, start, e) for p, e in zip(operands, elements, strict=True)]
            targets = [f.at(p, start, e) for p, e in zip(outputs, elements, strict=True)]
            room = buffers(f, memory, length, max(k.bits for k in keys))
            sorter = RowSorter(f, length, room, target.lanes)
            if len(types) == 1:
                sorter.sort_keys(keys[0], sources[0], targets[0])
            else:
                order = sorter.sort_places(keys, sources)
                for source, to, element in zip(sources, targets, elements, strict=True):
                    sorter.gather(source, order, to, element, length)

    task = movement.make_task("sort", 2 * len(types) + 1, chunks.num_tasks, rows * each_ns, write)
    return (dataclasses.replace(task, scratch_bytes=chunks.num_tasks * row_bytes),)


def chunks_of_rows(rows: int, row_ns: float) -> movement.Chunks:
    """Rows in not too many tasks."""
    found = movement.Chunks.of(rows, row_ns * 10)
    return movement.Chunks(rows, max(found.per_task, -(-rows // MAX_TASKS)))


class RowSorter:
    """Writes code that sorts rows of one length.

    Args:
        f: function under construction.
        length: elements of a row.
        room: memory to sort in.
        lanes: 32-bit lanes of a vector register.
    """

    def __init__(self, f: Function, length: int, room: Buffers, lanes: int) -> None:
        self.f, self.length, self.room, self.lanes = f, length, room, lanes

    # --- what `sort` does -------------------------------------------------------------------------

    def sort_keys(self, keys: Keys, source: Value, target: Value) -> None:
        """Sort elements that nothing moves with."""
        f, length = self.f, self.length
        first = self.room.keys[0]

        def load(at: Int, lanes: int) -> None:
            key = keys.of(f, f.load(f.at(source, at, keys.element), keys.type(lanes)))
            f.store(key, f.at(first, at, keys.element))

        self.each_vector(load)
        found, _ = self.by_key(keys.bits, has_places=False)

        def store(at: Int, lanes: int) -> None:
            bits = keys.bits_of(f, f.load(f.at(found, at, keys.element), keys.type(lanes)))
            f.store(bits, f.at(target, at, keys.element))

        self.each_vector(store)
        if keys.has_specials:
            self._restore_specials(keys, source, target, length)

    def sort_places(self, keys: Sequence[Keys], sources: Sequence[Value]) -> Value:
        """Positions of the elements in the order of some keys, the most significant first."""
        order: Value | None = None
        for key, source in zip(reversed(keys), list(sources[: len(keys)])[::-1], strict=True):
            self.load_keys(key, source, order)
            _, order = self.by_key(key.bits, has_places=True, start=order)
        assert order is not None
        return order

    def load_keys(
        self, keys: Keys, source: Value, order: Value | None = None, *, is_descending: bool = False
    ) -> None:
        """Keys of the elements into the first buffer, those in an order if one is given; else with their
        positions."""
        f, room = self.f, self.room
        if order is None:

            def load(at: Int, lanes: int) -> None:
                key = keys.of(f, f.load(f.at(source, at, keys.element), keys.type(lanes)))
                key = f.binary("xor", key, f.constant(-1, key.type)) if is_descending else key
                f.store(key, f.at(room.keys[0], at, keys.element))
                start = f.splat(f.convert("trunc", f.integer(at), b.I32), lanes)
                numbers = f.lane_numbers(start.type)
                f.store(f.binary("add", start, numbers), f.at(room.places[0], at, "i32"))

            self.each_vector(load)
            return
        with f.loop(0, self.length) as loop:
            place = self.position(order, loop.index)
            key = keys.of(f, f.load(f.at(source, place, keys.element), keys.type()))
            f.store(key, f.at(room.keys[0], loop.index, keys.element))

    def gather(self, source: Value, order: Value, target: Value, element: str, count: int) -> None:
        """The first elements in an order."""
        f = self.f
        with f.loop(0, count) as loop:
            bits = f.load(f.at(source, self.position(order, loop.index), element), b.scalar(element))
            f.store(bits, f.at(target, loop.index, element))

    def position(self, buffer: Value, index: Int) -> Value:
        """A position from a buffer of them."""
        f = self.f
        return f.convert("zext", f.load(f.at(buffer, index, "i32"), b.I32), b.I64)

    def each_vector(self, body: Callable[[Int, int], None]) -> None:
        """Run `body(start, lanes)` over the row: vectors, then single elements."""
        whole = self.length - self.length % self.lanes
        with self.f.loop(0, whole, self.lanes) as loop:
            body(loop.index, self.lanes)
        with self.f.loop(whole, self.length) as loop:
            body(loop.index, 1)

    # --- keys and positions -------------------------------------------------------------------------

    def by_key(self, bits: int, *, has_places: bool, start: Value | None = None) -> tuple[Value, Value]:
        """Sort the first buffer of keys, and positions with it; where both are then.

        Args:
            bits: bits of a key.
            has_places: whether positions move too.
            start: where the positions are; the first buffer of positions when absent.
        """
        places = self.room.places
        if start is not None:
            other = self.f.select(self.f.compare("eq", start, places[0]), places[1], places[0])
            places = (start, other)
        if rank_ns(self.length, bits, self.lanes) < count_ns(self.length, bits):
            return self._rank(bits, has_places, places)
        return self._count(bits, has_places, places)

    def _rank(self, bits: int, has_places: bool, places: tuple[Value, Value]) -> tuple[Value, Value]:
        """Each element goes to the place that is the number of elements before it, found by comparing all
        pairs: a vector of elements with one after the other."""
        f, length, element = self.f, self.length, f"i{bits}"
        source, target = self.room.keys
        lanes = self.lanes if bits <= 32 else max(1, self.lanes // 2)
        width = lanes * min(_UNROLL, -(-length // lanes))
        with f.loop(0, length, width) as loop:
            self._ranks_of(loop.index, element, lanes, width)
        with f.loop(0, length) as loop:
            to = self.position(self.room.counters, loop.index)
            key = f.load(f.at(source, loop.index, element), b.scalar(element))
            f.store(key, f.at(target, to, element))
            if has_places:
                place = f.load(f.at(places[0], loop.index, "i32"), b.I32)
                f.store(place, f.at(places[1], to, "i32"))
        return target, places[1]

    def _ranks_of(self, start: Value, element: str, lanes: int, width: int) -> None:
        """The ranks of some neighbours. Equal elements stand in their order, so those further left come
        first; what the vectors read beyond the row is not used."""
        f, source, count = self.f, self.room.keys[0], width // lanes
        type_ = b.scalar(element).with_lanes(lanes)
        mine = [f.load(f.at(source, f.add(start, u * lanes), element), type_) for u in range(count)]
        numbers = f.lane_numbers(b.I64.with_lanes(lanes))
        stop = f.minimum(f.add(start, width), self.length)
        ranks = [f.constant(0, b.I32.with_lanes(lanes)) for _ in mine]
        for first, last, kind in ((0, start, "left"), (start, stop, "inside"), (stop, self.length, "right")):
            with f.loop(first, last, 1, ranks) as loop:
                other = f.splat(f.load(f.at(source, loop.index, element), b.scalar(element)), lanes)
                found = []
                for u, key in enumerate(mine):
                    is_before = f.compare("ule" if kind == "left" else "ult", other, key)
                    if kind == "inside":
                        place = f.splat(f.integer(f.sub(loop.index, f.add(start, u * lanes))), lanes)
                        is_left = f.compare("slt", place, numbers)
                        tied = f.binary("and", f.compare("eq", other, key), is_left)
                        is_before = f.binary("or", is_before, tied)
                    one = f.convert("zext", is_before, loop.carried[u].type)
                    found.append(f.binary("add", loop.carried[u], one))
                loop.next = found
            ranks = loop.results
        for u, rank in enumerate(ranks):
            f.store(rank, f.at(self.room.counters, f.add(start, u * lanes), "i32"))

    def _count(self, bits: int, has_places: bool, places: tuple[Value, Value]) -> tuple[Value, Value]:
        """Digits from the lowest: elements go to where those with smaller digits end. A digit that all
        elements share is left out."""
        f, element, counters = self.f, f"i{bits}", self.room.counters
        num_digits = bits // _DIGIT
        self._count_digits(bits, num_digits)
        source, target = self.room.keys
        source_places, target_places = places
        for digit in range(num_digits):
            own = f.at(counters, digit * _VALUES, "i32")
            first = self._digit(f.load(source, b.scalar(element)), digit, bits)
            share = f.load(f.at(own, first, "i32"), b.I32)
            differs = f.compare("ne", share, f.constant(self.length, b.I32))
            with f.when(differs):
                self._ends_to_starts(own)
                with f.loop(0, self.length) as loop:
                    key = f.load(f.at(source, loop.index, element), b.scalar(element))
                    counter = f.at(own, self._digit(key, digit, bits), "i32")
                    count = f.load(counter, b.I32)
                    f.store(f.binary("add", count, f.constant(1, b.I32)), counter)
                    to = f.convert("zext", count, b.I64)
                    f.store(key, f.at(target, to, element))
                    if has_places:
                        place = f.load(f.at(source_places, loop.index, "i32"), b.I32)
                        f.store(place, f.at(target_places, to, "i32"))
            source, target = f.select(differs, target, source), f.select(differs, source, target)
            if has_places:
                source_places, target_places = (
                    f.select(differs, target_places, source_places),
                    f.select(differs, source_places, target_places),
                )
        return source, source_places

    def _count_digits(self, bits: int, num_digits: int) -> None:
        """How often each digit occurs, for every digit of the keys."""
        f, element, counters = self.f, f"i{bits}", self.room.counters
        zeros = f.constant(0, b.I32.with_lanes(self.lanes))
        with f.loop(0, _VALUES * num_digits, self.lanes) as loop:
            f.store(zeros, f.at(counters, loop.index, "i32"))
        with f.loop(0, self.length) as loop:
            key = f.load(f.at(self.room.keys[0], loop.index, element), b.scalar(element))
            for digit in range(num_digits):
                counter = f.at(counters, f.add(self._digit(key, digit, bits), digit * _VALUES), "i32")
                f.store(f.binary("add", f.load(counter, b.I32), f.constant(1, b.I32)), counter)

    def _digit(self, key: Value, digit: int, bits: int) -> Value:
        f = self.f
        moved = f.binary("lshr", key, f.constant(digit * _DIGIT, key.type)) if digit else key
        if bits > _DIGIT:
            moved = f.binary("and", moved, f.constant(_VALUES - 1, key.type))
        return f.convert("zext", moved, b.I64)

    def _ends_to_starts(self, counters: Value) -> None:
        """Counts become the number of elements with a smaller digit."""
        f = self.f
        with f.loop(0, _VALUES, 1, [f.constant(0, b.I32)]) as loop:
            counter = f.at(counters, loop.index, "i32")
            count = f.load(counter, b.I32)
            f.store(loop.carried[0], counter)
            loop.next = [f.binary("add", loop.carried[0], count)]

    # --- zeros and NaNs ---------------------------------------------------------------------------

    def _restore_specials(self, keys: Keys, source: Value, target: Value, length: int) -> None:
        """Give back what keys do not tell: signs of zeros and bits of NaNs, in the order of the row."""
        f = self.f
        zero, one = f.constant(0, b.I64), f.constant(1, b.I64)
        with f.loop(0, length, 1, [zero, zero, zero]) as loop:
            below, nans, specials = loop.carried
            bits = f.load(f.at(source, loop.index, keys.element), keys.type())
            key = keys.of(f, bits)
            is_below = f.compare("ult", key, f.constant(1 << (keys.bits - 1), key.type))
            counts = (is_below, keys.is_nan(f, bits), keys.is_special(f, bits))
            loop.next = [
                f.select(flag, f.binary("add", n, one), n)
                for flag, n in zip(counts, (below, nans, specials), strict=True)
            ]
        below, nans, specials = loop.results
        with f.when(f.compare("ne", specials, zero)):
            start = f.binary("sub", f.constant(length, b.I64), nans)
            with f.loop(0, length, 1, [below, start]) as loop:
                at_zero, at_nan = loop.carried
                bits = f.load(f.at(source, loop.index, keys.element), keys.type())
                is_zero, is_nan = keys.is_zero(f, bits), keys.is_nan(f, bits)
                with f.when(f.binary("or", is_zero, is_nan)):
                    f.store(bits, f.at(target, f.select(is_zero, at_zero, at_nan), keys.element))
                loop.next = [
                    f.select(is_zero, f.binary("add", at_zero, one), at_zero),
                    f.select(is_nan, f.binary("add", at_nan, one), at_nan),
                ]
