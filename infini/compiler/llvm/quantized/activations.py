"""Activations as bytes: 32 neighbours of a row become whole numbers up to 127 times a scale.

Results have rows of whole chunks, filled up with zeros: the bytes, float32 scales, and sums of neighbours.
The bytes have signs, or, for products of many rows, 128 added to them. Sums are those of the rounded
activations in float32, or those of the bytes as integers times a factor, as the product wants them. The order
of operations is that of `lax.quantized.codes.rounded`, so the bytes are the same.
"""

from __future__ import annotations

import hashlib

import numpy as np

from infini.compiler.llvm import registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.quantized import forms
from infini.compiler.llvm.quantized.forms import BLOCK
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import F32, I32, I64, PTR, vector
from infini.compiler.passes import quantized
from infini.compiler.passes.quantized import Form
from infini.core.ir import ArrayType

NS_PER_BLOCK = 3.0
TASK_NS = 20e3


def emit(x: ArrayType, form: Form, target: Target) -> tuple[TaskFunction, ...]:
    """One phase, with `args` x, bytes, scales, sums.

    Args:
        x: floats (M, K).
        form: what the product wants.
        target: processor to make code for.
    """
    rows, k = x.shape
    blocks = quantized.types_of(x)[1].shape[1]
    row_ns = blocks * NS_PER_BLOCK
    count = max(1, min(rows, round(TASK_NS / row_ns)))
    f = Function("TASK", [(PTR, "args"), (I64, "task")])
    source, codes, scales, sums = (
        f.load(f.at(f.parameters[0], i, "ptr"), PTR, is_invariant=True) for i in range(4)
    )
    num_tasks = -(-rows // count)
    first: Int = f.mul(f.parameters[1], count) if num_tasks > 1 else 0
    stop: Int = f.minimum(f.add(first, count), rows) if num_tasks > 1 else rows
    element = registers.memory_element(x.dtype)
    lanes = min(forms.lanes_of(target), 16)
    writer = _Writer(f, x.dtype, lanes, form)
    per_block = BLOCK // form.part
    with f.loop(first, stop, runs=True) as row:
        here = f.at(source, f.mul(row.index, k), element)
        places = (
            f.at(codes, f.mul(row.index, blocks * BLOCK), "i8"),
            f.at(scales, f.mul(row.index, blocks), "float"),
            f.at(sums, f.mul(row.index, blocks * per_block), "float"),
        )
        with f.loop(0, k // BLOCK) as block:
            writer.block(f.at(here, f.mul(block.index, BLOCK), element), places, block.index, BLOCK)
        whole = k // BLOCK
        if k % BLOCK:
            writer.block(f.at(here, whole * BLOCK, element), places, whole, k % BLOCK)
            whole += 1
        if whole < blocks:
            with f.loop(whole, blocks) as block:
                writer.zeros(places, block.index)
    text = f.finish()
    name = f"bytes_{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"
    return (
        TaskFunction(
            name, text.replace("@TASK", f"@{name}"), frozenset(f.declares), num_tasks, 0, rows * row_ns
        ),
    )


class _Writer:
    """Writes one block of 32."""

    def __init__(self, f: Function, dtype: np.dtype, lanes: int, form: Form) -> None:
        self.f, self.dtype, self.lanes, self.form = f, dtype, lanes, form

    def block(self, source: Value, places: tuple[Value, Value, Value], number: Int, count: int) -> None:
        """A block of which `count` numbers exist."""
        f, lanes = self.f, self.lanes
        parts = [self._part(source, start, count) for start in range(0, BLOCK, lanes)]
        # Magnitudes in the order of their bits, where NaN is the largest, so that it is not lost.
        sizes = [f.bitcast(f.intrinsic("fabs", part), "i32") for part in parts]
        most = sizes[0]
        for size in sizes[1:]:
            most = f.intrinsic("umax", most, size)
        largest = f.convert("bitcast", self._reduced("umax", most), F32)
        scale = f.binary("fdiv", largest, f.constant(127.0, F32))
        inverse = f.binary("fdiv", f.constant(1.0, F32), scale)
        is_finite = f.compare("olt", f.intrinsic("fabs", inverse), f.constant(float("inf"), F32))
        inverse = f.splat(f.select(is_finite, inverse, f.constant(0.0, F32)), lanes)
        whole = [self._nearest(f.binary("fmul", part, inverse)) for part in parts]
        codes, scales, sums = places
        count_of_parts = BLOCK // self.form.part
        for i in range(count_of_parts):
            some = whole[i * len(whole) // count_of_parts : (i + 1) * len(whole) // count_of_parts]
            total = some[0]
            for part in some[1:]:
                total = f.binary("add", total, part)
            total = self._reduced("add", total)
            if self.form.center:
                found = f.binary("mul", total, f.constant(-self.form.center, I32))
            else:
                found = f.binary("fmul", f.convert("sitofp", total, F32), scale)
            f.store(found, f.at(sums, f.add(f.mul(number, count_of_parts), i), "i32"))
        for i, part in enumerate(whole):
            small = f.convert("trunc", part, part.type.with_element("i8"))
            if self.form.is_biased:
                small = f.binary("xor", small, f.constant(0x80, small.type))
            f.store(small, f.at(codes, f.add(f.mul(number, BLOCK), i * lanes), "i8"))
        f.store(scale, f.at(scales, number, "float"))

    def zeros(self, places: tuple[Value, Value, Value], number: Int) -> None:
        """A block beyond the end of the row."""
        f = self.f
        codes, scales, sums = places
        nothing = f.constant(0x80 if self.form.is_biased else 0, vector("i8", BLOCK))
        f.store(nothing, f.at(codes, f.mul(number, BLOCK), "i8"))
        f.store(f.constant(0.0, F32), f.at(scales, number, "float"))
        count = BLOCK // self.form.part
        for i in range(count):
            f.store(f.constant(0, I32), f.at(sums, f.add(f.mul(number, count), i), "i32"))

    def _part(self, source: Value, start: int, count: int) -> Value:
        f, lanes = self.f, self.lanes
        if start >= count:
            return f.constant(0.0, vector("float", lanes))
        place = f.at(source, start, registers.memory_element(self.dtype))
        if count - start >= lanes:
            return registers.load(f, place, self.dtype, lanes)
        return registers.masked_load(f, place, self.dtype, f.first_lanes(count - start, lanes), 0)

    def _nearest(self, x: Value) -> Value:
        """Whole numbers, halves to even; what is no number becomes the smallest integer."""
        f, whole = self.f, x.type.with_element("i32")
        if x.type.lanes == 16:
            symbol = "@llvm.x86.avx512.mask.cvtps2dq.512"
            f.declare(f"declare {whole} {symbol}({x.type}, {whole}, i16, i32)")
            text = f"call {whole} {symbol}({x.type} {x}, {whole} zeroinitializer, i16 -1, i32 4)"
            return f.pure(text, whole, x)
        symbol = "@llvm.x86.avx.cvt.ps2dq.256"
        f.declare(f"declare {whole} {symbol}({x.type})")
        return f.pure(f"call {whole} {symbol}({x.type} {x})", whole, x)

    def _reduced(self, op: str, x: Value) -> Value:
        f = self.f
        symbol = f"@llvm.vector.reduce.{op}.v{x.type.lanes}i32"
        f.declare(f"declare i32 {symbol}({x.type})")
        return f.pure(f"call i32 {symbol}({x.type} {x})", I32, x)
