"""Native code of `top_k`: one scan of each row past a threshold, rows spread over tasks.

Keys in the total order, turned round so that the largest element has the smallest key, go into a buffer while
they are below the k-th smallest so far; a full buffer is sorted and cut to k, which lowers the threshold. In
a row of random numbers few elements pass, so the scan compares one vector at a time. Rows that are not much
longer than k are sorted; few elements of a row that is not long are found in registers (`top_few`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

from infini.compiler.llvm import builder as b, movement, sorting, top_few
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.keys import Keys
from infini.compiler.llvm.sorting import RowSorter
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.core.ir import ArrayType, Attrs

_SHORT: Final = 2  # rows up to so many buffers are sorted as a whole
_SCAN_NS: Final = 0.05  # per element
_PASS_NS: Final = 20.0  # of a vector in which an element passes


def top_k(types: tuple[ArrayType, ...], attrs: Attrs, target: Target) -> tuple[TaskFunction, ...]:
    """The operation `top_k` over the last dimension."""
    (type_,) = types
    k, length = attrs["k"], type_.shape[-1]
    rows = math.prod(type_.shape[:-1])
    keys = Keys(type_.dtype, is_total=True)
    room = k + max(k, 3 * target.lanes)  # one vector has to fit, more means fewer cuts
    is_scanned = length > _SHORT * room
    sorted_length = room if is_scanned else length
    row_ns = _row_ns(k, length, sorted_length, keys, target)
    if top_few.is_possible(k, keys, target) and top_few.row_ns(k, length, target) < row_ns:
        return (_few(type_, k, keys, target),)
    chunks = sorting.chunks_of_rows(rows, row_ns)
    row_bytes = sorting.buffer_bytes(sorted_length, keys.bits)
    element = movement.bits_of(type_.dtype)

    def write(f: Function, pointers: list[Value], task: Value) -> None:
        source, values, places, scratch = pointers
        memory = f.at(scratch, f.mul(task, row_bytes) if chunks.num_tasks > 1 else 0, "i8")
        with chunks.loop(f, task) as row:
            at = f.at(source, f.mul(row, length), element)
            to = f.at(values, f.mul(row, k), element)
            to_places = f.at(places, f.mul(row, k), "i32")
            buffers = sorting.buffers(f, memory, sorted_length, keys.bits)
            sorter = RowSorter(f, sorted_length, buffers, target.lanes)
            sorter.load_keys(keys, at, is_descending=True)
            if is_scanned:
                _Scan(sorter, keys, k, length).write(at)
            _, order = sorter.by_key(keys.bits, has_places=True)
            sorter.gather(at, order, to, element, k)
            movement.copy_bytes(f, to_places, order, 4 * k)

    task = movement.make_task("top_k", 4, chunks.num_tasks, rows * row_ns, write)
    return (dataclasses.replace(task, scratch_bytes=chunks.num_tasks * row_bytes),)


def _row_ns(k: int, length: int, sorted_length: int, keys: Keys, target: Target) -> float:
    """Estimated time of a row of random numbers."""
    num_passing = k * math.log(length / sorted_length)
    num_cuts = num_passing / (sorted_length - k - target.lanes + 1) if num_passing else 0.0
    sort_ns = sorting.row_ns(sorted_length, keys.bits, target.lanes)
    return (2 + num_cuts) * sort_ns + num_passing * _PASS_NS + length * _SCAN_NS


def _few(type_: ArrayType, k: int, keys: Keys, target: Target) -> TaskFunction:
    length, rows = type_.shape[-1], math.prod(type_.shape[:-1])
    row_ns = top_few.row_ns(k, length, target)
    chunks = sorting.chunks_of_rows(rows, row_ns)
    element = movement.bits_of(type_.dtype)

    def write(f: Function, pointers: list[Value], task: Value) -> None:
        source, values, places = pointers
        few = top_few.FewOfRow(f, keys, k, length, target.lanes)
        with chunks.loop(f, task) as row:
            first = f.mul(row, k)
            few.write(
                f.at(source, f.mul(row, length), element),
                f.at(values, first, element),
                f.at(places, first, "i32"),
            )

    return movement.make_task("top_k", 3, chunks.num_tasks, rows * row_ns, write)


class _Scan:
    """Writes the scan of a row; the buffer holds its first elements already."""

    def __init__(self, sorter: RowSorter, keys: Keys, k: int, length: int) -> None:
        self.sorter, self.keys, self.k, self.length = sorter, keys, k, length
        self.f = sorter.f
        self.count = self.f.allocate(8)  # elements in the buffer
        self.threshold = self.f.allocate(8)  # key that an element has to be below

    def write(self, source: Value) -> None:
        """Go through the rest of the row."""
        f, lanes, start = self.f, self.sorter.lanes, self.sorter.length
        self._cut()
        whole = start + (self.length - start) // lanes * lanes
        with f.loop(start, whole, lanes) as loop:
            key = self._keys(source, loop.index, lanes)
            limit = f.splat(f.load(self.threshold, self.keys.type()), lanes)
            passes = f.compare("ult", key, limit)
            bits = f.convert("bitcast", passes, b.scalar(f"i{lanes}")) if lanes > 1 else passes
            with f.when(f.compare("ne", bits, f.constant(0, bits.type))):
                for lane in range(lanes):
                    self._append(f.extract(key, lane), f.extract(passes, lane), f.add(loop.index, lane))
                self._cut_if_full(lanes)
        with f.loop(whole, self.length) as loop:
            key = self._keys(source, loop.index, 1)
            self._append(key, f.compare("ult", key, f.load(self.threshold, key.type)), loop.index)
            self._cut_if_full(1)
        # What is not used must not win.
        with f.loop(f.load(self.count, b.I64), start) as loop:
            worst = f.constant(-1, self.keys.type())
            f.store(worst, f.at(self.sorter.room.keys[0], loop.index, self.keys.element))

    def _keys(self, source: Value, at: Int, lanes: int) -> Value:
        f, keys = self.f, self.keys
        key = keys.of(f, f.load(f.at(source, at, keys.element), keys.type(lanes)))
        return f.binary("xor", key, f.constant(-1, key.type))

    def _append(self, key: Value, passes: Value, place: Int) -> None:
        """Write an element behind the buffer, and keep it there if it passes."""
        f, room = self.f, self.sorter.room
        count = f.load(self.count, b.I64)
        f.store(key, f.at(room.keys[0], count, self.keys.element))
        f.store(f.convert("trunc", f.integer(place), b.I32), f.at(room.places[0], count, "i32"))
        f.store(f.binary("add", count, f.convert("zext", passes, b.I64)), self.count)

    def _cut_if_full(self, lanes: int) -> None:
        """Make room when another vector might not fit."""
        f = self.f
        count = f.load(self.count, b.I64)
        with f.when(f.compare("sgt", count, f.constant(self.sorter.length - lanes - 1, b.I64))):
            with f.loop(count, self.sorter.length) as loop:
                worst = f.constant(-1, self.keys.type())
                f.store(worst, f.at(self.sorter.room.keys[0], loop.index, self.keys.element))
            self._cut()

    def _cut(self) -> None:
        """Sort the buffer, keep the k best, and let only better ones pass. Elements come in the order of
        their places and sorting is stable, so of equal ones the first stay."""
        f, room, k, element = self.f, self.sorter.room, self.k, self.keys.element
        found, order = self.sorter.by_key(self.keys.bits, has_places=True)
        with f.when(f.compare("ne", found, room.keys[0])):
            movement.copy_bytes(f, room.keys[0], found, k * self.keys.bits // 8)
        with f.when(f.compare("ne", order, room.places[0])):
            movement.copy_bytes(f, room.places[0], order, 4 * k)
        f.store(f.constant(k, b.I64), self.count)
        f.store(f.load(f.at(room.keys[0], k - 1, element), self.keys.type()), self.threshold)
