"""Copies of operands in the order in which a matrix product reads them, converted to the dtype it computes
in.

A panel holds some columns, row by row, with zeros beyond the edge. Where k is the contiguous dimension of
the source, square blocks are transposed in registers. The text is small loops: many products of a program
pack in a way of their own, and each is compiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm import operations, registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.types import vector
from infini.core import dtypes

LINE_BYTES = 64
AHEAD_ROWS = 8  # of a row-major matrix that are asked for before they are copied


@dataclass(frozen=True, slots=True)
class Source:
    """A matrix in memory: dtype, and elements from one index to the next along k and along m or n.

    With `pair` each element of the copy is a group of `count` elements, each `pair` elements further than the
    one before, and `depth` is the way from one group to the next. Only `tail` elements of the last of
    `num_groups` groups exist, unless it is 0; the others become 0. With `turns` the sign bits of bytes are
    turned.
    """

    dtype: np.dtype
    depth: int
    width: int
    pair: int = 0
    count: int = 2
    num_groups: int = 0
    tail: int = 0
    turns: bool = False


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

    @property
    def is_depth_major(self) -> bool:
        """Whether the rows of a panel lie one after the other in the matrix."""
        whole_groups = self.source.pair == 1 and self.source.depth == self.source.count
        return (self.source.depth == 1 or whole_groups) and not self.is_row_major

    def panel(
        self, f: Function, pointer: Value, target: Value, depth: Int, width: Int, start: Int = 0
    ) -> None:
        """Copy `depth` rows of `width` columns, of which the first is row `start` of the matrix; columns of
        the copy beyond `width` become 0.
        """
        for rows, tail in self._pieces(f, start, depth):
            if tail is not None:
                here = f.at(pointer, f.mul(rows, self.source.depth), self.memory)
                self._row(f, here, f.at(target, f.mul(rows, self.row), self.element), width, tail)
            elif self.is_depth_major:
                self._transposed(f, pointer, target, rows, width)
            else:
                with f.loop(0, rows) as loop:
                    here = f.at(pointer, f.mul(loop.index, self.source.depth), self.memory)
                    self._row(f, here, f.at(target, f.mul(loop.index, self.row), self.element), width)

    def _pieces(self, f: Function, start: Int, depth: Int) -> Iterator[tuple[Int, int | None]]:
        """Rows of whole groups; and inside a branch, if the last row is a shorter one, its number and its
        length.
        """
        tail = self.source.tail
        if not tail:
            yield depth, None
            return
        last = f.sub(self.source.num_groups - 1, start)
        if isinstance(last, int) and isinstance(depth, int):
            yield min(depth, last), None
            if last < depth:
                yield last, tail
            return
        yield f.minimum(depth, last), None
        with f.when(f.compare("slt", f.integer(last), f.integer(depth))):
            yield last, tail

    def panels(
        self, f: Function, pointer: Value, target: Value, depth: Int, panels: tuple[Int, Int], *,
        num_columns: int, width: int = 0, rows_apart: Int = 0, start: Int = 0,
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
            start: number of the first row in the matrix.
        """
        sizes = (num_columns, width or self.row, rows_apart or depth)
        for rows, tail in self._pieces(f, start, depth):
            if tail is not None:
                self._row_of_panels(f, (pointer, target), rows, panels, sizes, tail)
                continue
            with f.loop(0, rows) as row:
                self._row_of_panels(f, (pointer, target), row.index, panels, sizes, 0)

    def _row_of_panels(
        self,
        f: Function,
        pointers: tuple[Value, Value],
        row: Int,
        panels: tuple[Int, Int],
        sizes: tuple[int, int, Int],
        tail: int,
    ) -> None:
        """A row of the matrix into its place in each of some panels; `sizes` are columns of the matrix and of
        a panel, and rows of the copy from one panel to the next.
        """
        num_columns, width, rows_apart = sizes
        whole, rest = divmod(num_columns, width)
        first, stop = panels
        size = f.mul(rows_apart, self.row)
        end: Int = f.minimum(stop, whole) if rest else stop
        here = f.at(pointers[0], f.mul(row, self.source.depth), self.memory)
        there = f.at(pointers[1], f.mul(row, self.row), self.element)
        with f.loop(first, end) as panel:
            source = f.at(here, f.mul(panel.index, width), self.memory)
            for column in range(0, width, LINE_BYTES // self.source.dtype.itemsize):
                f.prefetch(f.at(source, AHEAD_ROWS * self.source.depth + column, self.memory))
            place = f.mul(f.sub(panel.index, first), size)
            self._row(f, source, f.at(there, place, self.element), width, tail)
        if rest:
            with f.when(f.compare("sgt", f.integer(stop), f.integer(whole))):
                source = f.at(here, whole * width, self.memory)
                place = f.mul(f.sub(whole, first), size)
                self._row(f, source, f.at(there, place, self.element), rest, tail)

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
        x = self._load(f, source, self.source.dtype, self.lanes if mask is None else mask)
        registers.store(f, self._converted(f, x), f.at(there, place, self.element), self.compute, mask)

    def _row(self, f: Function, here: Value, there: Value, width: Int, tail: int = 0) -> None:
        """One row of a panel; with `tail` that many elements of its groups exist."""
        for start in range(0, self.row, self.lanes):
            x = self._columns(f, here, start, width, tail)
            registers.store(f, x, f.at(there, start, self.element), self.compute)

    def _columns(self, f: Function, here: Value, start: int, width: Int, tail: int) -> Value:
        """Columns of a row from `start` on in the compute dtype, and zeros from `width` on."""
        zero = registers.constant(f, 0, self.compute, self.lanes)
        count = f.sub(width, start)
        if isinstance(count, int) and count <= 0:
            return zero
        if self.is_row_major:
            place = f.at(here, start, self.memory)
            if isinstance(count, int) and count >= self.lanes:
                return self._read(f, place, self.lanes, tail)
            return self._read(f, place, f.first_lanes(count, self.lanes), tail)
        result = zero
        for lane in range(min(self.lanes, count) if isinstance(count, int) else self.lanes):
            one = self._column(f, here, start + lane, width, 1, tail)
            text = f"insertelement {result.type} {result}, {one.type} {one}, i64 {lane}"
            result = f.pure(text, result.type, result, one)
        return result

    def _read(self, f: Function, place: Value, columns: int | Value, tail: int) -> Value:
        """Neighbouring columns of a row in the compute dtype: so many, or those in the lanes of a mask."""
        if not self.source.pair:
            return self._converted(f, self._load(f, place, self.source.dtype, columns))
        size = 32 // self.source.count
        parts = []
        for i in range(tail or self.source.count):
            at = f.at(place, i * self.source.pair, self.memory)
            bits = self._load(f, at, dtypes.uint16 if size == 16 else dtypes.uint8, columns)
            wide = f.convert("zext", bits, bits.type.with_element("i32"))
            parts.append(f.binary("shl", wide, f.constant(i * size, wide.type)) if i else wide)
        found = parts[0]
        for part in parts[1:]:
            found = f.binary("or", found, part)
        return self._turned(f, found)

    def _turned(self, f: Function, x: Value) -> Value:
        return f.binary("xor", x, f.constant(0x80808080, x.type)) if self.source.turns else x

    def _load(self, f: Function, place: Value, dtype: np.dtype, columns: int | Value) -> Value:
        if isinstance(columns, int):
            return registers.load(f, place, dtype, columns)
        return registers.masked_load(f, place, dtype, columns, 0)

    def _column(self, f: Function, here: Value, column: Int, width: Int, lanes: int, tail: int = 0) -> Value:
        """Elements of a column along k in the compute dtype; beyond `width` zeros, and another is read."""
        offset = f.mul(column, self.source.width)
        if width == self.row or (isinstance(column, int) and isinstance(width, int)):
            return self._along(f, f.at(here, offset, self.memory), lanes, tail)
        is_there = f.compare("slt", f.integer(column), f.integer(width))
        place = f.at(here, f.select(is_there, f.integer(offset), f.integer(0)), self.memory)
        x = self._along(f, place, lanes, tail)
        return f.select(is_there, x, registers.constant(f, 0, self.compute, lanes))

    def _along(self, f: Function, place: Value, lanes: int, tail: int) -> Value:
        """Neighbours along k in the compute dtype."""
        if not self.source.pair:
            return self._converted(f, registers.load(f, place, self.source.dtype, lanes))
        if tail:
            assert lanes == 1
            return self._read(f, place, 1, tail)
        return self._turned(f, f.load(place, vector("i32", lanes), align=1))

    def _converted(self, f: Function, x: Value) -> Value:
        return self._turned(f, operations.convert(f, self.source.dtype, x, new_dtype=self.compute))

    def _transposed(self, f: Function, pointer: Value, target: Value, depth: Int, width: Int) -> None:
        """A panel of a matrix whose depth is contiguous, by square blocks.

        The last block of a depth that is no multiple of the lanes overlaps the one before. A depth that may
        be smaller than a block is copied row by row.
        """
        least = depth if isinstance(depth, int) else self.least_depth
        if least < self.lanes:
            with f.loop(0, depth) as loop:
                here = f.at(pointer, f.mul(loop.index, self.source.depth), self.memory)
                self._row(f, here, f.at(target, f.mul(loop.index, self.row), self.element), width)
            return
        is_even = isinstance(depth, int) and depth % self.lanes == 0
        with f.loop(0, self.row, self.lanes) as half, f.loop(0, depth, self.lanes, runs=True) as loop:
            start: Int = loop.index if is_even else f.minimum(loop.index, f.sub(depth, self.lanes))
            here = f.at(pointer, f.mul(start, self.source.depth), self.memory)
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
