"""Copies of operands in the order in which a matrix product reads them, converted to the dtype it computes
in.

A panel holds some columns, row by row, with zeros beyond the edge. Where k is the contiguous dimension of
the source, square blocks are transposed in registers. The text is small loops: many products of a program
pack in a way of their own, and each is compiled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm import operations, registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.core import dtypes

LINE_BYTES = 64
AHEAD_ROWS = 8  # of a row-major matrix that are asked for before they are copied


@dataclass(frozen=True, slots=True)
class Source:
    """A matrix in memory: dtype, and elements from one index to the next along k and along m or n.

    With `pair` each element of the copy is two of 16 bits, the second `pair` elements further, and `depth` is
    the way from one pair to the next.
    """

    dtype: np.dtype
    depth: int
    width: int
    pair: int = 0


@dataclass(frozen=True, slots=True)
class Packer:
    """Copies pieces of one matrix.

    Args:
        source: layout of the matrix.
        row: elements of a row of the copy, a multiple of `lanes`.
        lanes: elements of a register.
        compute: dtype of the copy.
        least_depth: rows that every piece has at least.
    """

    source: Source
    row: int
    lanes: int
    compute: np.dtype
    least_depth: int = 0

    @property
    def element(self) -> str:
        """LLVM's name of an element of the copy."""
        return registers.memory_element(self.compute)

    @property
    def memory(self) -> str:
        """LLVM's name of an element of the matrix."""
        return registers.memory_element(self.source.dtype)

    @property
    def is_row_major(self) -> bool:
        """Whether the columns of a panel lie one after the other in the matrix."""
        return self.source.width == 1

    def panel(self, f: Function, pointer: Value, target: Value, depth: Int, width: Int) -> None:
        """Copy `depth` rows of `width` columns; columns of the copy beyond `width` become 0."""
        if self.source.depth == 1 and not self.is_row_major:
            self._transposed(f, pointer, target, depth, width)
            return
        with f.loop(0, depth) as loop:
            here = f.at(pointer, f.mul(loop.index, self.source.depth), self.memory)
            self._row(f, here, f.at(target, f.mul(loop.index, self.row), self.element), width)

    def panels(
        self, f: Function, pointer: Value, target: Value, depth: Int, panels: tuple[Int, Int], *,
        num_columns: int, width: int = 0, rows_apart: Int = 0,
    ) -> None:  # fmt: skip
        """Copy `depth` rows of a row-major matrix, each into some panels one after the other, so that it is
        read in long runs, which come faster from memory.

        Args:
            f: function to write into.
            pointer: row 0 of the matrix.
            target: the first of the panels.
            depth: rows to copy.
            panels: first and end of the panels.
            num_columns: columns of the matrix.
            width: columns of a panel, by default those of a row of the copy.
            rows_apart: rows of the copy from one panel to the next, by default `depth`.
        """
        width = width or self.row
        whole, rest = divmod(num_columns, width)
        first, stop = panels
        size = f.mul(rows_apart or depth, self.row)
        end: Int = f.minimum(stop, whole) if rest else stop
        with f.loop(0, depth) as row:
            here = f.at(pointer, f.mul(row.index, self.source.depth), self.memory)
            there = f.at(target, f.mul(row.index, self.row), self.element)
            with f.loop(first, end) as panel:
                source = f.at(here, f.mul(panel.index, width), self.memory)
                for column in range(0, width, LINE_BYTES // self.source.dtype.itemsize):
                    f.prefetch(f.at(source, AHEAD_ROWS * self.source.depth + column, self.memory))
                place = f.mul(f.sub(panel.index, first), size)
                self._row(f, source, f.at(there, place, self.element), width)
            if rest:
                with f.when(f.compare("sgt", f.integer(stop), f.integer(whole))):
                    source = f.at(here, whole * width, self.memory)
                    place = f.mul(f.sub(whole, first), size)
                    self._row(f, source, f.at(there, place, self.element), rest)

    def rows(self, f: Function, pointer: Value, target: Value, count: Int, depth: int) -> None:
        """Copy `count` rows of `depth` contiguous elements, one row of the copy each."""
        with f.loop(0, count) as loop:
            here = f.at(pointer, f.mul(loop.index, self.source.width), self.memory)
            there = f.at(target, f.mul(loop.index, self.row), self.element)
            whole = depth // self.lanes * self.lanes
            with f.loop(0, whole, self.lanes) as column:
                self._move(f, here, there, column.index, self.lanes)
            if whole < depth:
                self._move(f, here, there, whole, depth - whole)

    def _move(self, f: Function, here: Value, there: Value, place: Int, count: int) -> None:
        source = f.at(here, place, self.memory)
        mask = None if count == self.lanes else f.first_lanes(count, self.lanes)
        x = self._load(f, source, self.source.dtype, mask)
        registers.store(f, self._converted(f, x), f.at(there, place, self.element), self.compute, mask)

    def _row(self, f: Function, here: Value, there: Value, width: Int) -> None:
        """One row of a panel."""
        for start in range(0, self.row, self.lanes):
            x = self._columns(f, here, start, width)
            registers.store(f, x, f.at(there, start, self.element), self.compute)

    def _columns(self, f: Function, here: Value, start: int, width: Int) -> Value:
        """Columns of a row from `start` on in the compute dtype, and zeros from `width` on."""
        zero = registers.constant(f, 0, self.compute, self.lanes)
        count = f.sub(width, start)
        if isinstance(count, int) and count <= 0:
            return zero
        if self.is_row_major:
            place = f.at(here, start, self.memory)
            if isinstance(count, int) and count >= self.lanes:
                return self._read(f, place, None)
            return self._read(f, place, f.first_lanes(count, self.lanes))
        result = zero
        for lane in range(min(self.lanes, count) if isinstance(count, int) else self.lanes):
            one = self._column(f, here, start + lane, width, 1)
            text = f"insertelement {result.type} {result}, {one.type} {one}, i64 {lane}"
            result = f.pure(text, result.type, result, one)
        return result

    def _read(self, f: Function, place: Value, mask: Value | None) -> Value:
        """Neighbouring columns of a row in the compute dtype."""
        if not self.source.pair:
            return self._converted(f, self._load(f, place, self.source.dtype, mask))
        halves = []
        for at in (place, f.at(place, self.source.pair, self.memory)):
            bits = self._load(f, at, dtypes.uint16, mask)
            halves.append(f.convert("zext", bits, bits.type.with_element("i32")))
        low, high = halves
        return f.binary("or", low, f.binary("shl", high, f.constant(16, high.type)))

    def _load(self, f: Function, place: Value, dtype: np.dtype, mask: Value | None) -> Value:
        if mask is None:
            return registers.load(f, place, dtype, self.lanes)
        return registers.masked_load(f, place, dtype, mask, 0)

    def _column(self, f: Function, here: Value, column: Int, width: Int, lanes: int) -> Value:
        """Elements of a column along k in the compute dtype; beyond `width` zeros, and another is read."""
        offset = f.mul(column, self.source.width)
        if width == self.row or (isinstance(column, int) and isinstance(width, int)):
            place = f.at(here, offset, self.memory)
            return self._converted(f, registers.load(f, place, self.source.dtype, lanes))
        is_there = f.compare("slt", f.integer(column), f.integer(width))
        place = f.at(here, f.select(is_there, f.integer(offset), f.integer(0)), self.memory)
        x = self._converted(f, registers.load(f, place, self.source.dtype, lanes))
        return f.select(is_there, x, registers.constant(f, 0, self.compute, lanes))

    def _converted(self, f: Function, x: Value) -> Value:
        return operations.convert(f, self.source.dtype, x, new_dtype=self.compute)

    def _transposed(self, f: Function, pointer: Value, target: Value, depth: Int, width: Int) -> None:
        """A panel of a matrix whose depth is contiguous, by square blocks.

        The last block of a depth that is no multiple of the lanes overlaps the one before. A depth that may
        be smaller than a block is copied row by row.
        """
        least = depth if isinstance(depth, int) else self.least_depth
        if least < self.lanes:
            with f.loop(0, depth) as loop:
                here = f.at(pointer, loop.index, self.memory)
                self._row(f, here, f.at(target, f.mul(loop.index, self.row), self.element), width)
            return
        is_even = isinstance(depth, int) and depth % self.lanes == 0
        with f.loop(0, self.row, self.lanes) as half, f.loop(0, depth, self.lanes, runs=True) as loop:
            start: Int = loop.index if is_even else f.minimum(loop.index, f.sub(depth, self.lanes))
            here = f.at(pointer, start, self.memory)
            rows = [
                self._column(f, here, f.add(half.index, lane), width, self.lanes)
                for lane in range(self.lanes)
            ]
            there = f.at(target, f.add(f.mul(start, self.row), half.index), self.element)
            for i, x in enumerate(transpose(f, rows)):
                registers.store(f, x, f.at(there, i * self.row, self.element), self.compute)


def transpose(f: Function, rows: list[Value]) -> list[Value]:
    """A square block of registers transposed, by exchanging halves at distances 1, 2, 4, ..."""
    lanes = len(rows)
    distance = 1
    while distance < lanes:
        swapped = list(rows)
        for i in range(lanes):
            if i & distance:
                continue
            a, b = rows[i], rows[i + distance]
            low = [lane if not lane & distance else lanes + lane - distance for lane in range(lanes)]
            high = [lane + distance if not lane & distance else lanes + lane for lane in range(lanes)]
            swapped[i], swapped[i + distance] = f.shuffle(a, b, low), f.shuffle(a, b, high)
        rows, distance = swapped, distance * 2
    return rows
