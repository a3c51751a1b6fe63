"""The innermost part of a matrix product: a block of rows times one packed panel, kept in registers.

The block is `rows` by `vectors` registers. Elements of A are broadcast from memory, so A may be laid out by
rows or by columns; the panel of B is dense. LLVM allocates the registers without a spill when `block_size`
chose the block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from infini.compiler.llvm import operations, registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.types import I64, PTR, scalar, vector

UNROLL = 1  # steps of k per turn; more give longer code and no more speed
FEWEST_ROWS = 6  # of a block that still keeps the multipliers busy
# How far ahead rows of a panel are asked for that nobody has packed just before, as they come from far. It
# halves the time of 16 rows times a matrix of 1024 by 4096; 8, 16 and 32 rows ahead gain less.
PREFETCH_ROWS = 64
LINE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Ahead:
    """Memory to ask for: some rows of some cache lines each, a row per step of k or, with `at_once`, all of
    them before the first step.

    Args:
        row_bytes: from one row to the next.
        num_lines: lines of a row to ask for.
        pieces: steps that a row takes, with `num_lines` lines each.
        gap: lines between the lines of a step, and to those of the next step.
        at_once: how many rows; 0 for a row per step.
    """

    row_bytes: int
    num_lines: int
    pieces: int = 1
    gap: int = 1
    at_once: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    """A register block.

    Args:
        rows: rows of A.
        lanes: elements of a register.
        vectors: registers along a row of the result.
        width: columns of the result that exist; less than `lanes * vectors` at its edge.
        a_row: elements from one row of A to the next.
        a_depth: elements from one column of A to the next.
        panel: elements from one row of the panel of B to the next.
        out_row: elements from one row of the result to the next.
        compute: dtype of A, of B and of the accumulators.
        out: dtype of the result.
        stored: dtype of B where it was packed long before, converted as it is loaded; None when it has just
            been packed, in `compute`.
        ahead: what to ask for meanwhile that will be read soon, if anything.
        is_paired: whether elements of A and B are groups of neighbours along k, pairs of bfloat16 or four
            bytes, that one instruction multiplies and adds; then all sizes and steps count groups.
        unsigned: of groups of bytes, those of which operand have no signs; None for bfloat16.
    """

    rows: int
    lanes: int
    vectors: int
    width: int
    a_row: int
    a_depth: int
    panel: int
    out_row: int
    compute: np.dtype
    out: np.dtype
    stored: np.dtype | None = None
    ahead: Ahead | None = None
    is_paired: bool = False
    unsigned: Literal["A", "B"] | None = None


def block_size(target: Target, num_rows: int, compute: np.dtype) -> tuple[int, int, int]:
    """Rows, registers along a row, and lanes of the register block for a product with `num_rows` rows."""
    lanes = max(2, target.lanes * 4 // compute.itemsize)
    # 2 registers hold the row of B and one an element of A; the others accumulate.
    most = 12 if target.num_registers >= 32 else 6
    # A few rows less are as fast, and blocks of one size are half the code to compile.
    even = [rows for rows in range(most, FEWEST_ROWS - 1, -1) if num_rows % rows == 0]
    if even:
        return even[0], 2, lanes
    fewest_turns = -(-num_rows // most)
    return max(1, min(most, -(-num_rows // fewest_turns))), 2, lanes


def emit_block(name: str, block: Block, *, has_tail: bool, adds: bool = True) -> Function:
    """`void name(ptr A, ptr B, ptr C, i64 depth, i64 is_later)`: C = A B, or C += A B when `is_later` is
    not 0.

    With `block.ahead` a sixth argument points to what will be read soon.

    Args:
        name: symbol.
        block: the register block.
        has_tail: whether depth may be no multiple of UNROLL.
        adds: whether `is_later` may be anything but 0.
    """
    f = Function(
        name,
        [
            *((PTR, "A"), (PTR, "B"), (PTR, "C"), (I64, "depth"), (I64, "is_later")),
            *([(PTR, "ahead")] if block.ahead is not None else []),
        ],
        linkage="internal",
        attributes="nounwind noinline",
    )
    a, panel, c, depth, is_later = f.parameters[:5]
    element = registers.register_type(block.compute).element
    type_ = vector(element, block.lanes)
    for row in range(block.rows):
        f.prefetch(f.at(c, row * block.out_row, registers.memory_element(block.out)), is_write=True)
    if block.ahead is not None:
        for row in range(block.ahead.at_once):
            _ask(f, block.ahead, f.parameters[5], row)
    acc = [f.constant(0, type_)] * (block.rows * block.vectors)
    whole = f.mul(f.divide(depth, UNROLL)[0], UNROLL) if has_tail else depth
    with f.loop(0, whole, UNROLL, acc, runs=not has_tail) as loop:
        if block.ahead is not None and not block.ahead.at_once:
            _ask(f, block.ahead, f.parameters[5], loop.index)
        loop.next = _steps(f, block, a, panel, start=loop.index, acc=loop.carried, count=UNROLL)
    acc = loop.results
    if has_tail:
        with f.loop(whole, depth, 1, acc) as loop:
            loop.next = _steps(f, block, a, panel, start=loop.index, acc=loop.carried, count=1)
        acc = loop.results
    _write(f, block, c, acc, is_later if adds else None)
    return f


def _ask(f: Function, ahead: Ahead, first: Value, step: Int) -> None:
    """Prefetch the lines of one step."""
    row, piece = f.divide(step, ahead.pieces)
    here = f.at(first, f.mul(row, ahead.row_bytes), "i8")
    span = LINE_BYTES * ahead.gap
    here = f.at(here, f.mul(piece, ahead.num_lines * span), "i8")
    for line in range(ahead.num_lines):
        f.prefetch(f.at(here, line * span, "i8"))


def _steps(
    f: Function, block: Block, a: Value, panel: Value, *, start: Value, acc: list[Value], count: int
) -> list[Value]:
    acc, type_ = list(acc), acc[0].type
    a_here = f.at(a, f.mul(start, block.a_depth), type_.element)
    if block.is_paired:
        return _paired_steps(f, block, a_here, panel, start=start, acc=acc, count=count)
    stored = block.stored if block.stored is not None else block.compute
    memory = registers.memory_element(stored)
    b_here = f.at(panel, f.mul(start, block.panel), memory)
    for u in range(count):
        if block.stored is not None:
            ahead = f.at(b_here, (PREFETCH_ROWS + u) * block.panel, memory)
            for start_of_line in range(0, block.panel, LINE_BYTES // stored.itemsize):
                f.prefetch(f.at(ahead, start_of_line, memory))
        row_of_b = [
            _row_of_panel(f, block, f.at(b_here, u * block.panel + j * block.lanes, memory), stored)
            for j in range(block.vectors)
        ]
        for i in range(block.rows):
            place = f.at(a_here, i * block.a_row + u * block.a_depth, type_.element)
            x = f.splat(f.load(place, scalar(type_.element)), block.lanes)
            for j in range(block.vectors):
                acc[i * block.vectors + j] = _add_product(f, x, row_of_b[j], acc[i * block.vectors + j])
    return acc


def _add_product(f: Function, a: Value, b: Value, total: Value) -> Value:
    return f.fma(a, b, total) if total.type.is_float else f.binary("add", total, f.binary("mul", a, b))


def _paired_steps(
    f: Function, block: Block, a_here: Value, panel: Value, *, start: Value, acc: list[Value], count: int
) -> list[Value]:
    acc, pairs = list(acc), vector("i32", block.lanes)
    both = pairs if block.unsigned else vector("bfloat", 2 * block.lanes)
    name = "avx512.vpdpbusd" if block.unsigned else "avx512bf16.dpbf16ps"
    symbol = f"@llvm.x86.{name}.{32 * block.lanes}"
    f.declare(f"declare {acc[0].type} {symbol}({acc[0].type}, {both}, {both})")
    b_here = f.at(panel, f.mul(start, block.panel), pairs.element)
    for u in range(count):
        row = f.at(b_here, u * block.panel, pairs.element)
        if block.stored is not None:
            row_of_b = _paired_rows(f, block, row)
        else:
            row_of_b = [f.load(f.at(row, j * block.lanes, "i32"), pairs) for j in range(block.vectors)]
        row_of_b = [f.convert("bitcast", x, both) for x in row_of_b]
        for i in range(block.rows):
            place = f.at(a_here, i * block.a_row + u * block.a_depth, "i32")
            x = f.convert("bitcast", f.splat(f.load(place, scalar("i32")), block.lanes), both)
            for j in range(block.vectors):
                before, row = acc[i * block.vectors + j], row_of_b[j]
                # Of bytes the first factor is the one without signs.
                first, second = (row, x) if block.unsigned == "B" else (x, row)
                acc[i * block.vectors + j] = f.pure(
                    f"call {before.type} {symbol}({before.type} {before}, {both} {first}, {both} {second})",
                    before.type, before, x, row,
                )  # fmt: skip
    return acc


def _paired_rows(f: Function, block: Block, row: Value) -> list[Value]:
    """Two rows of a panel that was packed long before, as pairs."""
    ahead = f.at(row, PREFETCH_ROWS // 2 * block.panel, "i32")
    for line in range(0, 2 * block.panel, LINE_BYTES // 2):
        f.prefetch(f.at(ahead, line, "i16"))
    found = []
    for j in range(block.vectors):
        low = f.load(f.at(row, j * block.lanes, "i16"), vector("i16", block.lanes))
        high = f.load(f.at(row, block.panel + j * block.lanes, "i16"), vector("i16", block.lanes))
        order = [lane for i in range(block.lanes) for lane in (i, block.lanes + i)]
        found.append(f.shuffle(low, high, order))
    return found


def _row_of_panel(f: Function, block: Block, place: Value, stored: np.dtype) -> Value:
    x = registers.load(f, place, stored, block.lanes)
    return operations.convert(f, stored, x, new_dtype=block.compute)


def _write(f: Function, block: Block, c: Value, acc: list[Value], is_later: Value | None) -> None:
    """Store the sums, added to what is there when `is_later` is not 0."""
    element = registers.memory_element(block.out)
    # What makes a sum of a number keeps its bits; with +0 that of -0 would change.
    is_float = acc[0].type.is_float
    nothing = f.constant(-0.0 if is_float else 0, acc[0].type)
    for i in range(block.rows):
        for j in range(block.vectors):
            active = min(block.lanes, block.width - j * block.lanes)
            if active <= 0:
                continue
            place = f.at(c, i * block.out_row + j * block.lanes, element)
            mask = None if active == block.lanes else f.first_lanes(active, block.lanes)
            value = acc[i * block.vectors + j]
            if is_later is not None:
                if mask is None:
                    before = registers.load(f, place, block.out, block.lanes)
                else:
                    before = registers.masked_load(f, place, block.out, mask, 0)
                adds = f.compare("ne", is_later, f.integer(0))
                value = f.binary("fadd" if is_float else "add", f.select(adds, before, nothing), value)
            registers.store(f, registers.rounded(f, value, block.out), place, block.out, mask)
