"""A few rows of activations in bytes times a matrix in few bits: the matrix is read once, in order.

A task takes rows of the matrix a few at a time. Codes are unpacked once for all rows of activations, and
products of bytes are added as integers as long as their scales are equal; then they are scaled and added as
float32, lane by lane, in an order that does not depend on how many rows there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm import registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.quantized import forms
from infini.compiler.llvm.quantized.forms import BLOCK, CHUNK, Places, Reader, Unit, Vector
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import I64, PTR, vector
from infini.core.ir import ArrayType
from infini.lax.quantized.scheme import Scheme

MAX_ROWS = 8  # of activations whose sums stay in registers together
TASK_BYTES = 192 << 10  # of the matrix
AHEAD_BYTES = 2 << 10  # of each row that are asked for before they are read
NS_PER_BYTE = 0.03


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
    lanes = forms.lanes_of(target)
    signed = scheme.bits == 8 and not forms.has_dot(target)
    reader = Reader(scheme, tuple(planes), lanes, signed)
    return _Emission(rows, reader, dtype, target).phases()


def group_of(rows: int, target: Target) -> int:
    """Rows of the matrix at a time."""
    if target.num_registers >= 32 and forms.lanes_of(target) == 16:
        return 4 if rows <= 2 else 2
    return 2 if rows <= 2 else 1


@dataclass(frozen=True, slots=True)
class _Sums:
    """What is added up for some rows of the matrix: by rows of activations, then of the matrix."""

    lanes: list[Value]
    offsets: list[Value]


class _Emission:
    def __init__(self, rows: int, reader: Reader, dtype: np.dtype, target: Target) -> None:
        self.rows, self.reader, self.dtype, self.target = rows, reader, dtype, target
        self.f = Function("TASK", [(PTR, "args"), (I64, "task")])
        self.group = group_of(min(rows, MAX_ROWS), target)
        self.blocks = reader.num_chunks * CHUNK // BLOCK

    def phases(self) -> tuple[TaskFunction, ...]:
        """The only phase."""
        f, reader = self.f, self.reader
        num_planes = len(reader.types)
        pointers = [
            f.load(f.at(f.parameters[0], i, "ptr"), PTR, is_invariant=True) for i in range(num_planes + 4)
        ]
        self.codes, self.scales, self.sums = pointers[:3]
        self.planes, self.out = pointers[3:-1], pointers[-1]
        self.memory = [reader.tail_memory(f) for _ in range(self.group)] if reader.tail else []
        count = max(1, TASK_BYTES // reader.row_bytes // self.group) * self.group
        n = reader.num_rows
        num_tasks = -(-n // count)
        first = f.mul(f.parameters[1], count) if num_tasks > 1 else 0
        stop = f.minimum(f.add(first, count), n) if num_tasks > 1 else n
        whole = f.minimum(stop, n // self.group * self.group) if n % self.group else stop
        with f.loop(first, whole, self.group) as loop:
            self._rows(loop.index, self.group)
        if n % self.group:
            with f.loop(whole, stop) as loop:
                self._rows(loop.index, 1)
        text = f.finish()
        name = f"codes_{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"
        cost = reader.row_bytes * n * NS_PER_BYTE * max(1.0, self.rows / 4)
        return (
            TaskFunction(name, text.replace("@TASK", f"@{name}"), frozenset(f.declares), num_tasks, 0, cost),
        )

    def _rows(self, row: Value, count: int) -> None:
        """The products of some rows of the matrix with all rows of activations."""
        for start in range(0, self.rows, MAX_ROWS):
            self._products(row, count, start, min(MAX_ROWS, self.rows - start))

    def _products(self, row: Value, count: int, start: int, rows: int) -> None:
        f, reader = self.f, self.reader
        zero = f.constant(0.0, vector("float", reader.lanes))
        sums = [zero] * (rows * count)
        if reader.has_offsets:
            sums += [f.constant(0.0, vector("float", 8))] * (rows * count)
        whole = reader.num_chunks - bool(reader.tail)
        with f.loop(0, whole, 1, sums) as loop:
            places = [reader.places(f, self.planes, f.add(row, j), loop.index) for j in range(count)]
            for each in places:
                self._ask(each)
            loop.next = self._chunk(places, loop.index, start, rows, loop.carried)
        sums = loop.results
        if reader.tail:
            places = [reader.tail_places(f, self.planes, f.add(row, j), self.memory[j]) for j in range(count)]
            sums = self._chunk(places, reader.num_chunks - 1, start, rows, sums)
        element = registers.memory_element(self.dtype)
        for i in range(rows):
            for j in range(count):
                total = forms.total(f, sums[i * count + j])
                if reader.has_offsets:
                    total = f.binary("fadd", total, forms.total(f, sums[(rows + i) * count + j]))
                place = f.at(self.out, f.add(row, (start + i) * reader.num_rows + j), element)
                registers.store(f, registers.rounded(f, total, self.dtype), place, self.dtype)

    def _ask(self, places: Places) -> None:
        """Ask for what comes later."""
        f, nbytes = self.f, CHUNK * self.reader.scheme.bits // 8
        for start in range(0, nbytes, 64):
            f.prefetch(f.at(places.planes[0], AHEAD_BYTES + start, "i8"))

    def _chunk(
        self, places: Sequence[Places], chunk: Int, start: int, rows: int, sums: Sequence[Value]
    ) -> list[Value]:
        """Add the products of one chunk."""
        f, reader, count = self.f, self.reader, len(places)
        found = list(sums)
        given = [self._given(start + i, chunk) for i in range(rows)]
        scales = [reader.scales(f, each) for each in places]
        x_scales = [self._per_part(x[1]) for x in given]
        both = [f.binary("fmul", scale, x_scales[0]) for scale in scales] if rows == 1 else []
        for unit in reader.units:
            codes = [[reader.codes(f, each, v) for v in unit.vectors] for each in places]
            spread = [forms.spread(f, s, unit.lanes) for s in (both or scales)]
            for i in range(rows):
                xs = [self._x(given[i][0], v) for v in unit.vectors]
                before = self._before(unit, xs)
                own = None if both else forms.spread(f, x_scales[i], unit.lanes)
                for j in range(count):
                    total = before
                    for code, x in zip(codes[j], xs, strict=True):
                        total = forms.dot(f, total, code, x, self.target, signed=reader.signed)
                    number = f.convert("sitofp", total, total.type.with_element("float"))
                    if own is not None:
                        number = f.binary("fmul", number, own)
                    found[i * count + j] = f.fma(number, spread[j], found[i * count + j])
        if reader.has_offsets:
            for j, each in enumerate(places):
                offsets = reader.offsets(f, each)
                for i in range(rows):
                    at = (rows + i) * count + j
                    found[at] = f.fma(offsets, given[i][2], found[at])
        return found

    def _given(self, row: int, chunk: Int) -> tuple[Value, Value, Value]:
        """Of a row of activations, where the bytes of a chunk are, its scales and its sums."""
        f = self.f
        codes = f.at(self.codes, f.add(f.mul(chunk, CHUNK), row * self.blocks * BLOCK), "i8")
        place = f.add(f.mul(chunk, CHUNK // BLOCK), row * self.blocks)
        scales, sums = (
            (
                f.load(f.at(p, place, "float"), vector("float", 8), is_invariant=True)
                for p in (self.scales, self.sums)
            )
            if self.reader.has_offsets
            else (
                f.load(f.at(self.scales, place, "float"), vector("float", 8), is_invariant=True),
                self.scales,
            )
        )
        return codes, scales, sums

    def _per_part(self, scales: Value) -> Value:
        """Scales of activations as many as the matrix has."""
        count = self.reader.num_scales
        return scales if count == 8 else self.f.shuffle(scales, None, [i * 8 // count for i in range(count)])

    def _x(self, codes: Value, v: Vector) -> Value:
        """The activations that lie in the lanes of a vector."""
        f, lanes = self.f, self.reader.lanes
        runs: list[tuple[int, int]] = []  # first number and how many
        for place in v.lanes:
            if runs and runs[-1][0] + runs[-1][1] == place:
                runs[-1] = (runs[-1][0], runs[-1][1] + 4)
            else:
                runs.append((place, 4))
        width = 4 * lanes
        if len(runs) == 1:
            return f.load(f.at(codes, runs[0][0], "i8"), vector("i8", width), is_invariant=True)
        # Registers that hold all of it, and the words of eight bytes that are wanted.
        starts = sorted({start // width * width for start, _ in runs})
        assert len(starts) <= 2
        wide = [
            f.load(f.at(codes, start, "i8"), vector("i64", width // 8), is_invariant=True, align=1)
            for start in (starts[0], starts[-1])
        ]
        words = [
            (place % width + width * starts.index(place // width * width)) // 8
            for start, size in runs
            for place in range(start, start + size, 8)
        ]
        return f.convert("bitcast", f.shuffle(wide[0], wide[1], words), vector("i8", width))

    def _before(self, unit: Unit, xs: Sequence[Value]) -> Value:
        """What sums start with, as codes are too large by the center."""
        f, reader = self.f, self.reader
        zero = f.constant(0, vector("i32", reader.lanes))
        if not reader.center:
            return zero
        total = zero
        center = f.constant(reader.center, xs[0].type)
        for x in xs:
            total = forms.dot(f, total, center, x, self.target)
        return f.binary("sub", zero, total)
