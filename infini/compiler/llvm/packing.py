"""Copies of operands in the order in which the inner loops of a matrix product read them, converted to the compute dtype.

A panel of B holds `width` columns, row by row, with zeros beyond the edge. Where k is the contiguous dimension of the source,
square blocks are transposed in registers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm import operations, registers
from infini.compiler.llvm.builder import Function, Int, Value


@dataclass(frozen=True, slots=True)
class Source:
    """A matrix in memory: dtype and elements from one index to the next along depth (k) and width (m or n)."""

    dtype: np.dtype
    depth: int
    width: int


def pack_panel(
    f: Function, source: Source, pointer: Value, target: Value, depth: Int, width: int, panel: int, lanes: int, compute: np.dtype
) -> None:
    """Copy `depth` rows of `width` columns into rows of `panel` elements; columns beyond `width` become 0.

    Args:
        f: function under construction.
        source: layout of the matrix.
        pointer: its first element.
        target: where the panel goes.
        depth: rows.
        width: columns that exist, at most `panel`.
        panel: elements of a row of the panel, a multiple of `lanes`.
        lanes: elements of a register.
        compute: dtype of the panel.
    """
    if source.depth == 1 and source.width != 1:
        _pack_transposed(f, source, pointer, target, depth, width, panel, lanes, compute)
        return
    element, memory = registers.memory_element(compute), registers.memory_element(source.dtype)
    with f.loop(0, depth) as row:
        here = f.at(pointer, f.mul(row.index, source.depth), memory)
        there = f.at(target, f.mul(row.index, panel), element)
        for start in range(0, panel, lanes):
            count = min(lanes, width - start)
            x = _load_row(f, source, f.at(here, start * source.width, memory), count, lanes, compute)
            registers.store(f, x, f.at(there, start, element), compute)


def _load_row(f: Function, source: Source, pointer: Value, count: int, lanes: int, compute: np.dtype) -> Value:
    """`count` elements along the width, and zeros."""
    if count <= 0:
        return registers.constant(f, 0, compute, lanes)
    if source.width == 1:
        if count == lanes:
            x = registers.load(f, pointer, source.dtype, lanes)
        else:
            x = registers.masked_load(f, pointer, source.dtype, f.first_lanes(count, lanes), 0)
        return operations.convert(f, source.dtype, x, new_dtype=compute)
    memory = registers.memory_element(source.dtype)
    result = registers.constant(f, 0, compute, lanes)
    for lane in range(count):
        one = registers.load(f, f.at(pointer, lane * source.width, memory), source.dtype, 1)
        one = operations.convert(f, source.dtype, one, new_dtype=compute)
        text = f"insertelement {result.type} {result}, {one.type} {one}, i64 {lane}"
        result = f.pure(text, result.type, result, one)
    return result


def _pack_transposed(
    f: Function, source: Source, pointer: Value, target: Value, depth: Int, width: int, panel: int, lanes: int, compute: np.dtype
) -> None:
    """The panel of a matrix whose depth is contiguous: blocks of lanes by lanes, and the rest row by row."""
    element, memory = registers.memory_element(compute), registers.memory_element(source.dtype)
    whole = f.mul(f.divide(depth, lanes)[0], lanes)
    with f.loop(0, whole, lanes) as row:
        here = f.at(pointer, row.index, memory)
        there = f.at(target, f.mul(row.index, panel), element)
        for start in range(0, panel, lanes):
            columns = []
            for lane in range(lanes):
                if start + lane < width:
                    x = registers.load(f, f.at(here, (start + lane) * source.width, memory), source.dtype, lanes)
                    columns.append(operations.convert(f, source.dtype, x, new_dtype=compute))
                else:
                    columns.append(registers.constant(f, 0, compute, lanes))
            for i, x in enumerate(transpose(f, columns)):
                registers.store(f, x, f.at(there, i * panel + start, element), compute)
    with f.loop(whole, depth) as row:
        here = f.at(pointer, row.index, memory)
        there = f.at(target, f.mul(row.index, panel), element)
        for start in range(0, panel, lanes):
            x = _load_row(f, source, f.at(here, start * source.width, memory), min(lanes, width - start), lanes, compute)
            registers.store(f, x, f.at(there, start, element), compute)


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


def copy_rows(
    f: Function, source: Source, pointer: Value, target: Value, rows: Int, depth: int, row_size: int, lanes: int, compute: np.dtype
) -> None:
    """Copy rows of `depth` contiguous elements into rows of `row_size` elements, converted."""
    element, memory = registers.memory_element(compute), registers.memory_element(source.dtype)
    with f.loop(0, rows) as row:
        here = f.at(pointer, f.mul(row.index, source.width), memory)
        there = f.at(target, f.mul(row.index, row_size), element)

        def move(place: Int, count: int, here: Value = here, there: Value = there) -> None:
            x = _load_row(f, Source(source.dtype, 0, 1), f.at(here, place, memory), count, lanes, compute)
            mask = None if count == lanes else f.first_lanes(count, lanes)
            registers.store(f, x, f.at(there, place, element), compute, mask)

        whole = depth // (4 * lanes) * 4 * lanes
        with f.loop(0, whole, 4 * lanes) as column:
            for u in range(4):
                move(f.add(column.index, u * lanes), lanes)
        for start in range(whole, depth, lanes):
            move(start, min(lanes, depth - start))
