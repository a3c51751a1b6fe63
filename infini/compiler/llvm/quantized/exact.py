"""A few rows of float32 activations times a matrix in few bits: codes become float32 in registers, and every
product is a multiply-add of float32.

Where rows of the matrix lie in lanes, sums of a part are scaled once; where numbers along k do, codes are
scaled before they are multiplied.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np

from infini.compiler.llvm import registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.quantized import forms, panel_forms
from infini.compiler.llvm.quantized.forms import CHUNK, Places, Reader
from infini.compiler.llvm.quantized.panel_forms import PanelReader, Span
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import I64, PTR, vector
from infini.core.ir import ArrayType
from infini.lax.quantized.scheme import ROWS, Scheme

MAX_ROWS: Final = 8  # of activations whose sums are in registers together
TASK_BYTES: Final = 96 << 10  # of the matrix
AHEAD_BYTES: Final = 2 << 10  # that are asked for before they are read
CHAINS: Final = 4  # sums that are added to in turn
NS_PER_NUMBER: Final = 0.03


def emit(
    rows: int, planes: Sequence[ArrayType], *, scheme: Scheme, dtype: np.dtype, target: Target
) -> tuple[TaskFunction, ...]:
    """One phase, with `args` float32 activations, planes, result.

    Args:
        rows: rows of activations.
        planes: types of the planes of the matrix.
        scheme: its scheme, with a group.
        dtype: dtype of the result.
        target: processor to make code for.
    """
    kind = _Rows if scheme.rows == 1 else _Panels
    return kind(rows, tuple(planes), scheme, dtype, target).phases()


class _Emission(abc.ABC):
    """What both forms have in common: tasks of some units of the matrix, rows or panels."""

    reader: Reader | PanelReader
    name: str

    def __init__(
        self, rows: int, planes: tuple[ArrayType, ...], scheme: Scheme, dtype: np.dtype, target: Target
    ) -> None:
        self.rows, self.dtype, self.target = rows, dtype, target
        self.f = Function("TASK", [(PTR, "args"), (I64, "task")])
        kind = Reader if scheme.rows == 1 else PanelReader
        self.reader = kind(scheme, planes, forms.lanes_of(target), signed=scheme.bits == 8)
        most = MAX_ROWS if target.num_registers >= 32 else MAX_ROWS // 2
        self.block = -(-rows // -(-rows // most))

    def phases(self) -> tuple[TaskFunction, ...]:
        """The only phase."""
        f, reader = self.f, self.reader
        count = len(reader.types) + 2
        pointers = [f.load(f.at(f.parameters[0], i, "ptr"), PTR, is_invariant=True) for i in range(count)]
        self.x, self.planes, self.out = pointers[0], pointers[1:-1], pointers[-1]
        size, nbytes = self._units()
        per_task = max(1, TASK_BYTES // nbytes)
        num_tasks = -(-size // per_task)
        first: Int = f.mul(f.parameters[1], per_task) if num_tasks > 1 else 0
        stop: Int = f.minimum(f.add(first, per_task), size) if num_tasks > 1 else size
        self._before()
        with f.loop(first, stop, runs=True) as loop:
            for start in range(0, self.rows, self.block):
                self._unit(loop.index, start, min(self.block, self.rows - start))
        text = f.finish()
        name = f"{self.name}_{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"
        cost = size * nbytes / (sum(t.nbytes for t in reader.types) or 1)
        cost *= reader.num_rows * reader.k * NS_PER_NUMBER * max(1.0, self.rows / 2)
        return (
            TaskFunction(name, text.replace("@TASK", f"@{name}"), frozenset(f.declares), num_tasks, 0, cost),
        )

    @abc.abstractmethod
    def _units(self) -> tuple[int, int]:
        """How many units there are, and the bytes of each."""

    def _before(self) -> None:
        """What a task does once: nothing, unless a kind of matrix needs something."""
        return

    @abc.abstractmethod
    def _unit(self, unit: Value, start: int, rows: int) -> None:
        """The products of a unit with some rows of activations."""

    def _floats(self, codes: Value) -> Value:
        """int32 codes as float32."""
        return self.f.convert("sitofp", codes, codes.type.with_element("float"))


class _Panels(_Emission):
    reader: PanelReader
    name = "exact_panels"

    def _units(self) -> tuple[int, int]:
        return self.reader.num_panels, self.reader.panel_bytes

    def _unit(self, unit: Value, start: int, rows: int) -> None:
        f, reader = self.f, self.reader
        zero = f.constant(0.0, vector("float", reader.lanes))
        element = registers.memory_element(self.dtype)
        for half in range(ROWS // reader.lanes):
            with f.loop(0, reader.k // reader.span, 1, [zero] * rows) as loop:
                span = reader.at(f, self.planes, unit, loop.index, half)
                parts = reader.parts()
                nbytes = reader.span * reader.scheme.bits // 8 * ROWS // len(parts)
                totals = list(loop.carried)
                for number, part in enumerate(parts):
                    if start == half == 0:
                        for line in range(number * nbytes, number * nbytes + nbytes, 64):
                            f.prefetch(f.at(span.planes[0], AHEAD_BYTES + line, "i8"))
                    totals = self._part(span, loop.index, part, start, totals)
                loop.next = totals
            for i, total in enumerate(loop.results):
                column = f.add(f.mul(unit, ROWS), (start + i) * reader.num_rows + half * reader.lanes)
                value = registers.rounded(f, total, self.dtype)
                registers.store(f, value, f.at(self.out, column, element), self.dtype)

    def _part(self, span: Span, number: Int, part: int, start: int, totals: list[Value]) -> list[Value]:
        f, reader = self.f, self.reader
        lanes, size = reader.lanes, reader.part
        first = f.add(f.mul(number, reader.span), part * size)
        # Several sums at once where there are few rows: each waits for the one before.
        chains, count = max(1, CHAINS // len(totals)), len(totals)
        sums = [f.constant(0.0, totals[0].type)] * (count * chains)
        plain = sums[:count]
        for k in range(0, size, 4):
            words = f.convert("bitcast", reader.codes(f, span, part * size + k), vector("i32", lanes))
            for byte in range(4):
                codes = self._floats(self._byte(words, byte))
                for i in range(count):
                    place = f.add(first, (start + i) * reader.k + k + byte)
                    x = panel_forms.number_at(f, self.x, place, lanes)
                    at = byte % chains * count + i
                    sums[at] = f.fma(x, codes, sums[at])
                    if reader.has_offsets:
                        plain[i] = f.binary("fadd", x, plain[i])
        scale = reader.scales(f, span, part)
        found = [f.fma(_added(f, sums[i::count]), scale, before) for i, before in enumerate(totals)]
        if reader.has_offsets:
            offset = reader.offsets(f, span, part)
            found = [f.fma(total, offset, before) for total, before in zip(plain, found, strict=True)]
        return found

    def _byte(self, words: Value, byte: int) -> Value:
        """A byte of every word as the number that it stands for."""
        f, reader = self.f, self.reader
        if reader.scheme.bits == 8:
            moved = f.binary("shl", words, f.constant(24 - 8 * byte, words.type)) if byte < 3 else words
            return f.binary("ashr", moved, f.constant(24, words.type))
        moved = f.binary("lshr", words, f.constant(8 * byte, words.type)) if byte else words
        found = f.binary("and", moved, f.constant(255, words.type)) if byte < 3 else moved
        center = reader.center
        return f.binary("sub", found, f.constant(center, words.type)) if center else found


class _Rows(_Emission):
    reader: Reader
    name = "exact_rows"

    def _units(self) -> tuple[int, int]:
        return self.reader.num_rows, self.reader.row_bytes

    def _before(self) -> None:
        self.memory: list[Value] = []
        self.tail_x: list[Value] = []
        if self.reader.tail:
            f, tail = self.f, self.reader.tail
            self.memory = self.reader.tail_memory(f)
            # Activations of the last chunk with zeros behind them.
            for row in range(self.rows):
                copy = f.allocate(4 * CHUNK)
                for start in range(0, CHUNK, 8):
                    f.store(f.constant(0.0, vector("float", 8)), f.at(copy, start, "float"))
                source = f.at(self.x, (row + 1) * self.reader.k - tail, "float")
                forms.copy_bytes(f, source, copy, 4 * tail)
                self.tail_x.append(f.here(f"getelementptr i8, ptr {copy}, i64 0", PTR))

    def _unit(self, unit: Value, start: int, rows: int) -> None:
        f, reader = self.f, self.reader
        zero = f.constant(0.0, vector("float", reader.lanes))
        whole = reader.num_chunks - bool(reader.tail)
        chains = max(1, CHAINS // rows)
        with f.loop(0, whole, 1, [zero] * (rows * chains)) as loop:
            places = reader.places(f, self.planes, unit, loop.index)
            for line in range(0, CHUNK * reader.scheme.bits // 8, 64):
                f.prefetch(f.at(places.planes[0], AHEAD_BYTES + line, "i8"))
            xs = [
                f.at(self.x, f.add(f.mul(loop.index, CHUNK), (start + i) * reader.k), "float")
                for i in range(rows)
            ]
            loop.next = self._chunk(places, xs, list(loop.carried))
        sums = loop.results
        if reader.tail:
            places = reader.tail_places(f, self.planes, unit, self.memory)
            sums = self._chunk(places, self.tail_x[start : start + rows], list(sums))
        element = registers.memory_element(self.dtype)
        for i in range(rows):
            total = _added(f, sums[i::rows])
            place = f.at(self.out, f.add(unit, (start + i) * reader.num_rows), element)
            value = registers.rounded(f, forms.total(f, total), self.dtype)
            registers.store(f, value, place, self.dtype)

    def _chunk(self, places: Places, xs: Sequence[Value], sums: list[Value]) -> list[Value]:
        f, reader = self.f, self.reader
        lanes = reader.lanes
        scales = reader.scales(f, places)
        offsets = reader.offsets(f, places) if reader.has_offsets else None
        for unit in reader.units:
            for v in unit.vectors:
                codes = reader.codes(f, places, v)
                if reader.center:
                    codes = f.binary("sub", codes, f.constant(reader.center, codes.type))
                for first in range(0, 4 * lanes, lanes):
                    number = v.lanes[first // 4]
                    some = f.shuffle(codes, None, range(first, first + lanes))
                    op = "sext" if reader.center or reader.scheme.bits == 8 else "zext"
                    floats = self._floats(f.convert(op, some, vector("i32", lanes)))
                    scale = f.shuffle(scales, None, [number // reader.part] * lanes)
                    if offsets is None:
                        floats = f.binary("fmul", floats, scale)
                    else:
                        offset = f.shuffle(offsets, None, [number // forms.BLOCK] * lanes)
                        floats = f.fma(floats, scale, offset)
                    for i, x in enumerate(xs):
                        given = f.load(f.at(x, number, "float"), vector("float", lanes), is_invariant=True)
                        at = first // lanes * len(xs) % len(sums) + i
                        sums[at] = f.fma(given, floats, sums[at])
        return sums


def _added(f: Function, values: Sequence[Value]) -> Value:
    found = values[0]
    for value in values[1:]:
        found = f.binary("fadd", found, value)
    return found
