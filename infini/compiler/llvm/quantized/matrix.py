"""Many rows of activations in bytes times a matrix in few bits.

A task takes as many rows of the matrix as two registers have lanes, rearranges their codes so that four
neighbours along k lie in one lane and columns of the result beside each other, and multiplies all rows of
activations by them. The activations have no signs (128 is added to them), the codes have; what that adds to a
sum depends on the matrix alone, so sums start with it. Sums of a part, as far as scales are equal, are
integers; then they are scaled and added as float32, block after block of k.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from infini.compiler.llvm import product_tasks, registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.packing import transpose
from infini.compiler.llvm.quantized import forms
from infini.compiler.llvm.quantized.forms import BLOCK, CHUNK, Places, Reader
from infini.compiler.llvm.quantized.panel_forms import PanelReader
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import F32, I1, I32, I64, PTR, vector
from infini.core.ir import ArrayType
from infini.lax.quantized.scheme import ROWS, Scheme

VECTORS: Final = 2  # registers along a row of the result
MOST_ROWS: Final = 6  # of a register block
FEW_ROWS: Final = 4
ROW_BLOCK: Final = 512  # rows of activations per task
DEPTH_CHUNKS: Final = 20  # that are rearranged at once, on the stack
NS_PER_FLOP: Final = 0.003
_BIAS: Final = 128


def is_possible(target: Target) -> bool:
    """Whether the processor has the instructions."""
    return forms.has_dot(target)


def emit(
    rows: int, planes: Sequence[ArrayType], *, scheme: Scheme, dtype: np.dtype, target: Target
) -> tuple[TaskFunction, ...]:
    """One phase, with `args` bytes, scales and sums of the activations, planes, result.

    Args:
        rows: rows of activations.
        planes: types of the planes of the matrix.
        scheme: its scheme, with a group.
        dtype: dtype of the result.
        target: processor to make code for.
    """
    kind = Reader if scheme.rows == 1 else PanelReader
    reader = kind(scheme, tuple(planes), forms.lanes_of(target), signed=scheme.bits == 8)
    return _Emission(rows, reader, dtype, target).phases()


@dataclass(frozen=True, slots=True)
class _Panel:
    """Where the rearranged codes of some columns are, chunk by chunk, and what belongs to them."""

    codes: Value
    before: Value  # what integer sums start with, per part
    scales: Value  # per part
    offsets: Value | None  # per part


@dataclass(frozen=True, slots=True)
class _Place:
    """Some rows of a tile: the first of the activations, and of the task, the first column, and how many."""

    row: Int
    own_row: Int
    column: Int
    width: Value


class _Emission:
    def __init__(self, rows: int, reader: Reader | PanelReader, dtype: np.dtype, target: Target) -> None:
        self.rows, self.reader, self.dtype, self.target = rows, reader, dtype, target
        self.lanes = reader.lanes
        self.columns = VECTORS * reader.lanes
        self.num_chunks = -(-reader.k // CHUNK)
        self.blocks = self.num_chunks * CHUNK // BLOCK
        self.part = reader.part
        self.f = Function("TASK", [(PTR, "args"), (I64, "task")])
        self.helpers: dict[int, Function] = {}
        self.row_block = -(-rows // -(-rows // ROW_BLOCK))
        parts = -(-self.num_chunks // DEPTH_CHUNKS)
        self.depth = -(-self.num_chunks // parts)  # chunks of a part of k
        self.num_depths = -(-self.num_chunks // self.depth)

    def phases(self) -> tuple[TaskFunction, ...]:
        """The only phase."""
        f, reader = self.f, self.reader
        count = len(reader.types) + 4
        pointers = [f.load(f.at(f.parameters[0], i, "ptr"), PTR, is_invariant=True) for i in range(count)]
        self.codes, self.scales, self.sums = pointers[:3]
        self.planes, self.out = pointers[3:-1], pointers[-1]
        self.memory = []
        if isinstance(reader, Reader) and reader.tail:
            self.memory = [reader.tail_memory(f) for _ in range(self.lanes)]
        panel = self._allocate()
        stage = f.allocate(self.row_block * self.columns * 4) if self.num_depths > 1 else None
        num_row_blocks = -(-self.rows // self.row_block)
        num_blocks = -(-reader.num_rows // self.columns)
        column, row_block = f.divide(f.parameters[1], num_row_blocks)
        column = f.mul(column, self.columns)
        row = f.mul(row_block, self.row_block)
        last = self.rows - (num_row_blocks - 1) * self.row_block
        num_rows: Int = self.row_block
        if last != self.row_block:
            is_last = f.compare("eq", f.integer(row_block), f.integer(num_row_blocks - 1))
            num_rows = f.select(is_last, f.integer(last), f.integer(self.row_block))
        for number in range(self.num_depths):
            self._pack(panel, column, number)
            self._multiply(panel, (row, num_rows), column, number, stage)
        assert f.stack_bytes <= product_tasks.MAX_STACK_BYTES
        text = "".join(g.finish() for g in (f, *self.helpers.values()))
        name = f"codes_{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"
        declares = frozenset[str]().union(f.declares, *(g.declares for g in self.helpers.values()))
        cost = 2.0 * self.rows * reader.num_rows * reader.k * NS_PER_FLOP
        return (
            TaskFunction(
                name, text.replace("@TASK", f"@{name}"), declares, num_blocks * num_row_blocks, 0, cost
            ),
        )

    def _allocate(self) -> _Panel:
        f, line = self.f, self.columns * 4
        chunk = CHUNK // self.part * line
        return _Panel(
            f.allocate(self.depth * CHUNK // 4 * line),
            f.allocate(self.depth * chunk),
            f.allocate(self.depth * chunk),
            f.allocate(self.depth * chunk) if self.reader.has_offsets else None,
        )

    # --- rearranging ------------------------------------------------------------------------------

    def _pack(self, panel: _Panel, column: Int, number: int) -> None:
        """Rearrange a part of k of the columns of a task."""
        f, reader = self.f, self.reader
        if isinstance(reader, PanelReader):
            with f.loop(0, VECTORS, 1) as half:
                first = f.add(column, f.mul(half.index, self.lanes))
                self._pack_panel(panel, reader, first, half.index, number)
            return
        start, stop = self._chunks(number)
        with f.loop(0, VECTORS, 1) as half:
            whole = stop - (1 if reader.tail and stop == self.num_chunks else 0)
            first = f.add(column, f.mul(half.index, self.lanes))
            # Rows beyond the last are the last again; what they give is not stored.
            rows = [f.minimum(f.add(first, i), reader.num_rows - 1) for i in range(self.lanes)]
            with f.loop(start, whole) as loop:
                places = [reader.places(f, self.planes, row, loop.index) for row in rows]
                self._pack_chunk(panel, reader, places, half.index, f.sub(loop.index, start))
            if whole < stop:
                places = [
                    reader.tail_places(f, self.planes, row, memory)
                    for row, memory in zip(rows, self.memory, strict=True)
                ]
                self._pack_chunk(panel, reader, places, half.index, whole - start)

    def _pack_panel(self, panel: _Panel, reader: PanelReader, row: Int, half: Int, number: int) -> None:
        """The same of rows that lie together already: their codes are unpacked."""
        f, lanes, span = self.f, self.lanes, reader.span
        start, stop = self._chunks(number)
        begin, end = start * CHUNK // span, min(stop * CHUNK, reader.k) // span
        row = f.minimum(row, reader.num_rows - lanes)  # what lies beyond is not stored
        one, inside = f.divide(row, ROWS)
        mine, bias = f.mul(half, lanes), f.constant(_BIAS, vector("i8", 4 * lanes))
        zero = f.constant(0, vector("i32", lanes))
        with f.loop(begin, end) as loop:
            here = reader.at(f, self.planes, one, loop.index)
            if lanes < ROWS:
                here = reader.moved(f, here, inside)
            place = f.sub(loop.index, begin)
            for part in range(span // self.part):
                total = zero
                at = f.add(f.mul(place, span // self.part), part)
                codes = f.at(panel.codes, f.add(f.mul(at, self.part // 4 * self.columns), mine), "i32")
                for k in range(0, self.part, 4):
                    four = self._centered(reader.codes(f, here, part * self.part + k))
                    total = forms.dot(f, total, bias, four, self.target)
                    f.store(four, f.at(codes, k // 4 * self.columns, "i32"))
                to = f.add(f.mul(at, self.columns), mine)
                f.store(f.binary("sub", zero, total), f.at(panel.before, to, "i32"))
                f.store(reader.scales(f, here, part), f.at(panel.scales, to, "float"))
                if panel.offsets is not None:
                    f.store(reader.offsets(f, here, part), f.at(panel.offsets, to, "float"))

    def _chunks(self, number: int) -> tuple[int, int]:
        start = number * self.depth
        return start, min(start + self.depth, self.num_chunks)

    def _pack_chunk(
        self, panel: _Panel, reader: Reader, places: Sequence[Places], half: Int, chunk: Int
    ) -> None:
        f, lanes = self.f, self.lanes
        mine = f.mul(half, lanes)
        codes = f.at(panel.codes, f.add(f.mul(chunk, CHUNK // 4 * self.columns), mine), "i32")
        for unit in reader.units:
            for v in unit.vectors:
                rows = [self._centered(reader.codes(f, each, v)) for each in places]
                for place, value in zip(v.lanes, transpose(f, rows), strict=True):
                    f.store(value, f.at(codes, place // 4 * self.columns, "i32"))
        parts = reader.num_scales
        before = f.at(panel.before, f.add(f.mul(chunk, parts * self.columns), mine), "i32")
        bias = f.constant(_BIAS, vector("i8", 4 * lanes))
        zero = f.constant(0, vector("i32", lanes))
        with f.loop(0, parts) as loop:
            total = zero
            here = f.at(codes, f.mul(loop.index, self.part // 4 * self.columns), "i32")
            for group in range(self.part // 4):
                four = f.load(f.at(here, group * self.columns, "i32"), vector("i32", lanes))
                total = forms.dot(f, total, bias, four, self.target)
            f.store(f.binary("sub", zero, total), f.at(before, f.mul(loop.index, self.columns), "i32"))
        scales = [reader.scales(f, each) for each in places]
        self._store_columns(panel.scales, scales, f.add(f.mul(chunk, parts * self.columns), mine))
        if panel.offsets is not None:
            offsets = [reader.offsets(f, each) for each in places]
            self._store_columns(panel.offsets, offsets, f.add(f.mul(chunk, parts * self.columns), mine))

    def _centered(self, codes: Value) -> Value:
        """Codes as signed numbers, four in a lane."""
        f, center = self.f, self.reader.center
        if center:
            codes = f.binary("sub", codes, f.constant(center, codes.type))
        return f.convert("bitcast", codes, vector("i32", self.lanes))

    def _store_columns(self, target: Value, rows: Sequence[Value], start: Int) -> None:
        """Numbers of some rows, one row per lane."""
        f, lanes, count = self.f, self.lanes, rows[0].type.lanes
        for first in range(0, count, lanes):
            some = [
                f.shuffle(row, None, [min(first + i, count - 1) for i in range(lanes)])
                if count != lanes
                else row
                for row in rows
            ]
            for i, value in enumerate(transpose(f, some)[: count - first]):
                f.store(value, f.at(target, f.add(start, (first + i) * self.columns), "float"))

    # --- multiplying --------------------------------------------------------------------------------

    def _multiply(
        self, panel: _Panel, rows: tuple[Int, Int], column: Int, number: int, stage: Value | None
    ) -> None:
        f, reader = self.f, self.reader
        first, count = rows
        start, stop = self._chunks(number)
        size = MOST_ROWS if self.row_block >= 2 * MOST_ROWS else min(FEW_ROWS, self.row_block)
        width = f.minimum(f.sub(reader.num_rows, column), self.columns)
        whole = f.mul(f.divide(count, size)[0], size)
        with f.loop(0, whole, size) as loop:
            place = _Place(f.add(first, loop.index), loop.index, column, width)
            self._call(panel, place, (start, stop), size, stage)
        for rest in sorted({self.row_block % size, self.rows % self.row_block % size} - {0}):
            is_this = f.compare("eq", f.integer(f.sub(count, whole)), f.integer(rest))
            with f.when(is_this):
                place = _Place(f.add(first, whole), whole, column, width)
                self._call(panel, place, (start, stop), rest, stage)

    def _call(
        self, panel: _Panel, place: _Place, chunks: tuple[int, int], size: int, stage: Value | None
    ) -> None:
        """Some rows of the result: through a function of its own, which is compiled once."""
        f = self.f
        if size not in self.helpers:
            self.helpers[size] = self._block(size)
        start, stop = chunks
        block = start * CHUNK // BLOCK
        x = f.at(self.codes, f.add(f.mul(place.row, self.blocks * BLOCK), block * BLOCK), "i8")
        first = f.add(f.mul(place.row, self.blocks), block)
        element = registers.memory_element(self.dtype)
        out = f.at(self.out, f.add(f.mul(place.row, self.reader.num_rows), place.column), element)
        sums = out if stage is None else f.at(stage, f.mul(place.own_row, self.columns), "float")
        own_sums = f.at(self.sums, f.mul(first, BLOCK // self.part), "float")
        own_scales = f.at(self.scales, first, "float")
        arguments = [
            x, own_scales, own_sums, panel.codes, panel.before, panel.scales, panel.offsets or panel.scales,
            sums, out,
        ]  # fmt: skip
        text = ", ".join(f"ptr {a}" for a in arguments)
        flags = (1 if start == 0 else 0) + (2 if stop == self.num_chunks else 0)
        num_blocks = -(-(min(stop * CHUNK, self.reader.k) - start * CHUNK) // BLOCK)
        size_text = f"i64 {num_blocks}, i64 {place.width}, i64 {flags}"
        f.do(f"call void @{self.helpers[size].name}({text}, {size_text})")

    def _block(self, size: int) -> Function:
        """`void name(ptr x, ptr scales, ptr sums, ptr codes, ptr before, ptr w_scales, ptr w_offsets,
        ptr stage, ptr out, i64 blocks, i64 width, i64 flags)`: some rows of the result, or with several parts
        of k what they add to the sums in `stage`; flag 1 is set for the first part, 2 for the last.
        """
        names = ("x", "scales", "sums", "codes", "before", "w_scales", "w_offsets", "stage", "out")
        g = Function(
            f"TASK_{size}",
            [*((PTR, name) for name in names), (I64, "blocks"), (I64, "width"), (I64, "flags")],
            linkage="internal",
            attributes="nounwind noinline",
        )
        x, scales, sums, codes, before, w_scales, w_offsets, stage, out, blocks, width, flags = g.parameters
        lanes, columns = self.lanes, self.columns
        zero = g.constant(0.0, vector("float", lanes))
        with g.loop(0, blocks, 1, [zero] * (size * VECTORS), runs=True) as loop:
            totals = list(loop.carried)
            parts = BLOCK // self.part
            w_here = g.at(codes, g.mul(loop.index, BLOCK // 4 * columns), "i32")
            x_here = g.at(x, g.mul(loop.index, BLOCK), "i8")
            per_part = g.mul(loop.index, parts * columns)
            factors = [
                g.splat(g.load(g.at(g.at(scales, loop.index, "float"), i * self.blocks, "float"), F32), lanes)
                for i in range(size)
            ]
            for part in range(parts):
                at = g.add(per_part, part * columns)
                whole = [
                    g.load(g.at(before, g.add(at, j * lanes), "i32"), vector("i32", lanes))
                    for j in range(VECTORS)
                ] * size
                for group in range(part * self.part // 4, (part + 1) * self.part // 4):
                    fours = [
                        g.load(g.at(w_here, group * columns + j * lanes, "i32"), vector("i32", lanes))
                        for j in range(VECTORS)
                    ]
                    for i in range(size):
                        word = g.load(g.at(x_here, i * self.blocks * BLOCK + 4 * group, "i8"), I32, align=1)
                        given = g.splat(word, lanes)
                        for j in range(VECTORS):
                            n = i * VECTORS + j
                            whole[n] = forms.dot(g, whole[n], given, fours[j], self.target)
                for j in range(VECTORS):
                    own = g.load(g.at(w_scales, g.add(at, j * lanes), "float"), zero.type)
                    for i in range(size):
                        n = i * VECTORS + j
                        number = g.convert("sitofp", whole[n], zero.type)
                        totals[n] = g.fma(g.binary("fmul", number, own), factors[i], totals[n])
                if not self.reader.has_offsets:
                    continue
                for j in range(VECTORS):
                    own = g.load(g.at(w_offsets, g.add(at, j * lanes), "float"), zero.type)
                    for i in range(size):
                        place = g.add(g.mul(loop.index, parts), i * self.blocks * parts + part)
                        n = i * VECTORS + j
                        total = g.splat(g.load(g.at(sums, place, "float"), F32), lanes)
                        totals[n] = g.fma(own, total, totals[n])
            loop.next = totals
        totals = loop.results
        if self.num_depths > 1:
            totals = self._staged(g, totals, stage, flags)
            is_last = g.compare("ne", g.binary("and", flags, g.integer(2)), g.integer(0))
            with g.when(is_last):
                self._write(g, totals, out, width)
        else:
            self._write(g, totals, out, width)
        return g

    def _staged(self, g: Function, totals: list[Value], stage: Value, flags: Value) -> list[Value]:
        """Sums with those of earlier parts of k, which are kept."""
        is_first = g.compare("ne", g.binary("and", flags, g.integer(1)), g.integer(0))
        found = []
        for n, total in enumerate(totals):
            place = g.at(stage, n // VECTORS * self.columns + n % VECTORS * self.lanes, "float")
            known = g.load(place, total.type)
            known = g.select(is_first, g.constant(0.0, total.type), known)
            total = g.binary("fadd", known, total)
            g.store(total, place)
            found.append(total)
        return found

    def _write(self, g: Function, totals: list[Value], out: Value, width: Value) -> None:
        """Store the columns that exist."""
        element, lanes = registers.memory_element(self.dtype), self.lanes
        is_whole = g.compare("eq", width, g.integer(self.columns))
        rounded = [registers.rounded(g, total, self.dtype) for total in totals]

        def place(n: int) -> Value:
            return g.at(out, n // VECTORS * self.reader.num_rows + n % VECTORS * lanes, element)

        has_rest = self.reader.num_rows % self.columns != 0
        if not has_rest:
            for n, total in enumerate(rounded):
                registers.store(g, total, place(n), self.dtype)
            return
        with g.when(is_whole):
            for n, total in enumerate(rounded):
                registers.store(g, total, place(n), self.dtype)
        with g.when(g.binary("xor", is_whole, g.constant(True, I1))):
            for n, total in enumerate(rounded):
                mask = g.first_lanes(g.sub(width, n % VECTORS * lanes), lanes)
                registers.store(g, total, place(n), self.dtype, mask)
