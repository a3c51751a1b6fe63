"""Copies of operands in the order in which a matrix product reads them, converted to the dtype it computes
in.

A panel holds some columns, row by row, with zeros beyond the edge. Where k is the contiguous dimension of
the source, square blocks are transposed in registers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm import operations, registers
from infini.compiler.llvm.builder import Function, Int, Value


@dataclass(frozen=True, slots=True)
class Source:
    """A matrix in memory: dtype, and elements from one index to the next along k and along m or n."""

    dtype: np.dtype
    depth: int
    width: int


@dataclass(frozen=True, slots=True)
class Packer:
    """Copies pieces of one matrix.

    Args:
        source: layout of the matrix.
        row: elements of a row of the copy, a multiple of `lanes`.
        lanes: elements of a register.
        compute: dtype of the copy.
    """

    source: Source
    row: int
    lanes: int
    compute: np.dtype

    @property
    def element(self) -> str:
        """LLVM's name of an element of the copy."""
        return registers.memory_element(self.compute)

    @property
    def memory(self) -> str:
        """LLVM's name of an element of the matrix."""
        return registers.memory_element(self.source.dtype)

    def panel(self, f: Function, pointer: Value, target: Value, depth: Int, width: int) -> None:
        """Copy `depth` rows of `width` columns; columns of the copy beyond `width` become 0."""
        if self.source.depth == 1 and self.source.width != 1:
            self._transposed(f, pointer, target, depth, width)
            return
        with f.loop(0, depth) as loop:
            here = f.at(pointer, f.mul(loop.index, self.source.depth), self.memory)
            self._row(f, here, f.at(target, f.mul(loop.index, self.row), self.element), width)

    def rows(self, f: Function, pointer: Value, target: Value, count: Int, depth: int) -> None:
        """Copy `count` rows of `depth` contiguous elements, one row of the copy each."""
        with f.loop(0, count) as loop:
            here = f.at(pointer, f.mul(loop.index, self.source.width), self.memory)
            there = f.at(target, f.mul(loop.index, self.row), self.element)
            step = 4 * self.lanes
            whole = depth // step * step
            with f.loop(0, whole, step) as column:
                for u in range(4):
                    self._move(f, here, there, f.add(column.index, u * self.lanes), self.lanes)
            for start in range(whole, depth, self.lanes):
                self._move(f, here, there, start, min(self.lanes, depth - start))

    def _move(self, f: Function, here: Value, there: Value, place: Int, count: int) -> None:
        x = self._load(f, f.at(here, place, self.memory), count, stride=1)
        mask = None if count == self.lanes else f.first_lanes(count, self.lanes)
        registers.store(f, x, f.at(there, place, self.element), self.compute, mask)

    def _row(self, f: Function, here: Value, there: Value, width: int) -> None:
        for start in range(0, self.row, self.lanes):
            place = f.at(here, start * self.source.width, self.memory)
            x = self._load(f, place, min(self.lanes, width - start), stride=self.source.width)
            registers.store(f, x, f.at(there, start, self.element), self.compute)

    def _load(self, f: Function, pointer: Value, count: int, *, stride: int) -> Value:
        """`count` elements in the compute dtype, and zeros."""
        source, zero = self.source.dtype, registers.constant(f, 0, self.compute, self.lanes)
        if count <= 0:
            return zero
        if stride == 1 and count == self.lanes:
            return self._converted(f, registers.load(f, pointer, source, self.lanes))
        if stride == 1:
            mask = f.first_lanes(count, self.lanes)
            return self._converted(f, registers.masked_load(f, pointer, source, mask, 0))
        result = zero
        for lane in range(count):
            one = self._converted(f, registers.load(f, f.at(pointer, lane * stride, self.memory), source, 1))
            text = f"insertelement {result.type} {result}, {one.type} {one}, i64 {lane}"
            result = f.pure(text, result.type, result, one)
        return result

    def _converted(self, f: Function, x: Value) -> Value:
        return operations.convert(f, self.source.dtype, x, new_dtype=self.compute)

    def _transposed(self, f: Function, pointer: Value, target: Value, depth: Int, width: int) -> None:
        """A panel of a matrix whose depth is contiguous: square blocks, and the rest row by row."""
        whole = f.mul(f.divide(depth, self.lanes)[0], self.lanes)
        with f.loop(0, whole, self.lanes) as loop:
            here = f.at(pointer, loop.index, self.memory)
            there = f.at(target, f.mul(loop.index, self.row), self.element)
            for start in range(0, self.row, self.lanes):
                columns = [
                    self._load(
                        f,
                        f.at(here, (start + lane) * self.source.width, self.memory),
                        self.lanes if start + lane < width else 0,
                        stride=1,
                    )
                    for lane in range(self.lanes)
                ]
                for i, x in enumerate(transpose(f, columns)):
                    registers.store(f, x, f.at(there, i * self.row + start, self.element), self.compute)
        with f.loop(whole, depth) as loop:
            here = f.at(pointer, loop.index, self.memory)
            self._row(f, here, f.at(target, f.mul(loop.index, self.row), self.element), width)


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
