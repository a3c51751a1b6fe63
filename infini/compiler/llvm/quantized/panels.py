"""A few rows of activations in bytes times an arranged matrix: a register holds 16 rows of the matrix, and
four neighbours of a row of activations are multiplied by all of them at once.

The matrix is read once, in order, and unpacked once for as many rows of activations as there are registers
for sums.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np

from infini.compiler.llvm import registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.quantized import forms, panel_forms
from infini.compiler.llvm.quantized.forms import BLOCK, CHUNK
from infini.compiler.llvm.quantized.panel_forms import PanelReader, Span
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import I32, I64, PTR, vector
from infini.core.ir import ArrayType
from infini.lax.quantized.scheme import ROWS, Scheme

MAX_ROWS: Final = 8  # of activations whose sums are in registers together
MAX_ROWS_OF_SMALL_PARTS: Final = 4  # the same where scales change every 16 numbers
TASK_BYTES: Final = 192 << 10  # of the matrix
AHEAD_BYTES: Final = 4 << 10  # of a panel that are asked for before they are read
NS_PER_BYTE: Final = 0.03


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
    return _Emission(rows, reader_of(planes, scheme, target), dtype, target).phases()


def reader_of(planes: Sequence[ArrayType], scheme: Scheme, target: Target) -> PanelReader:
    """What reads the matrix for few rows."""
    signed = scheme.bits == 8 and not forms.has_dot(target)
    return PanelReader(scheme, tuple(planes), forms.lanes_of(target), signed)


class _Emission:
    def __init__(self, rows: int, reader: PanelReader, dtype: np.dtype, target: Target) -> None:
        self.rows, self.reader, self.dtype, self.target = rows, reader, dtype, target
        self.f = Function("TASK", [(PTR, "args"), (I64, "task")])
        self.padded = -(-reader.k // CHUNK) * CHUNK  # bytes of a row of activations
        wide = MAX_ROWS if reader.part == BLOCK else MAX_ROWS_OF_SMALL_PARTS
        most = wide if target.num_registers >= 32 else wide // 2
        blocks = -(-rows // most)
        self.block = -(-rows // blocks)

    def phases(self) -> tuple[TaskFunction, ...]:
        """The only phase."""
        f, reader = self.f, self.reader
        count = len(reader.types) + 4
        pointers = [f.load(f.at(f.parameters[0], i, "ptr"), PTR, is_invariant=True) for i in range(count)]
        self.codes, self.scales, self.sums = pointers[:3]
        self.planes, self.out = pointers[3:-1], pointers[-1]
        panels = max(1, TASK_BYTES // reader.panel_bytes)
        num_tasks = -(-reader.num_panels // panels)
        first: Int = f.mul(f.parameters[1], panels) if num_tasks > 1 else 0
        stop: Int = f.minimum(f.add(first, panels), reader.num_panels) if num_tasks > 1 else reader.num_panels
        with f.loop(first, stop, runs=True) as loop:
            for half in range(ROWS // reader.lanes):
                for start in range(0, self.rows, self.block):
                    self._panel(loop.index, half, start, min(self.block, self.rows - start))
        text = f.finish()
        name = f"panels_{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"
        nbytes = reader.panel_bytes * reader.num_panels
        cost = nbytes * NS_PER_BYTE * max(1.0, self.rows / 8)
        return (
            TaskFunction(name, text.replace("@TASK", f"@{name}"), frozenset(f.declares), num_tasks, 0, cost),
        )

    def _panel(self, panel: Value, half: int, start: int, rows: int) -> None:
        """The products of a panel with some rows of activations."""
        f, reader = self.f, self.reader
        zero = f.constant(0.0, vector("float", reader.lanes))
        with f.loop(0, reader.k // reader.span, 1, [zero] * rows) as loop:
            span = reader.at(f, self.planes, panel, loop.index, half)
            totals, parts = list(loop.carried), reader.parts()
            nbytes = reader.span * reader.scheme.bits // 8 * ROWS // len(parts)
            for number, part in enumerate(parts):
                if start == half == 0:
                    for line in range(number * nbytes, number * nbytes + nbytes, 64):
                        f.prefetch(f.at(span.planes[0], AHEAD_BYTES + line, "i8"))
                totals = self._part(span, loop.index, part, start, totals)
            loop.next = totals
        element = registers.memory_element(self.dtype)
        for i, total in enumerate(loop.results):
            column = f.add(f.mul(panel, ROWS), (start + i) * reader.num_rows + half * reader.lanes)
            value = registers.rounded(f, total, self.dtype)
            registers.store(f, value, f.at(self.out, column, element), self.dtype)

    def _part(self, span: Span, number: Int, part: int, start: int, totals: list[Value]) -> list[Value]:
        """Add the products of a part of k with one scale."""
        f, reader, rows = self.f, self.reader, len(totals)
        first = f.add(f.mul(number, reader.span), part * reader.part)
        size = reader.part
        whole = [f.constant(0, vector("i32", reader.lanes))] * rows
        per_part = f.add(f.mul(number, reader.span // size), part)
        if reader.center:
            for i in range(rows):
                place = f.add(per_part, (start + i) * (self.padded // size))
                whole[i] = f.splat(f.load(f.at(self.sums, place, "i32"), I32), reader.lanes)
        for k in range(0, size, 4):
            codes = reader.codes(f, span, part * size + k)
            for i in range(rows):
                place = f.add(first, (start + i) * self.padded + k)
                x = f.splat(f.load(f.at(self.codes, place, "i8"), I32, align=4), reader.lanes)
                whole[i] = forms.dot(f, whole[i], codes, x, self.target, signed=reader.signed)
        scale = reader.scales(f, span, part)
        offset = reader.offsets(f, span, part) if reader.has_offsets else None
        per_block = f.add(f.mul(number, reader.span // BLOCK), part * size // BLOCK)
        for i in range(rows):
            place = f.add(per_block, (start + i) * (self.padded // BLOCK))
            own = panel_forms.number_at(f, self.scales, place, reader.lanes)
            number_ = f.convert("sitofp", whole[i], totals[i].type)
            totals[i] = f.fma(f.binary("fmul", number_, own), scale, totals[i])
            if offset is not None:
                of_part = f.add(per_part, (start + i) * (self.padded // size))
                total = panel_forms.number_at(f, self.sums, of_part, reader.lanes)
                totals[i] = f.fma(offset, total, totals[i])
        return totals
