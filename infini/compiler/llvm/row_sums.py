"""Where the sums of a tile start when unsigned bytes stand for signed ones: at a multiple of the sum of each
row of A (see `pairs`).
"""

from __future__ import annotations

from infini.compiler.llvm import registers
from infini.compiler.llvm.blocking import Plan
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.pairs import Paired
from infini.compiler.llvm.types import scalar, vector
from infini.core import dtypes

GROUP = 4  # bytes of an element
UNROLL = 4  # vectors added up side by side


def start(
    f: Function, plan: Plan, matrices: tuple[Value, Value], sums: Value, count: Int, columns: tuple[Int, Int]
) -> None:
    """Store what the sums of a tile start at.

    Args:
        f: function to write into.
        plan: blocks of the product.
        matrices: A from the first row of the tile on, and the result from there on.
        sums: memory for an int32 per row, some more than the tile has.
        count: rows of the tile.
        columns: first and end of its columns.
    """
    x, out = matrices
    pairs = plan.pairs
    assert pairs is not None
    if plan.problem.m.x == 1 and pairs.x_pair > 1:
        _down(f, plan, pairs, x, sums, count)
    else:
        _along(f, plan, pairs, x, sums, count)
    first, stop = columns
    size, lanes = plan.problem.n.size, plan.lanes
    end: Int = f.minimum(stop, size) if not isinstance(stop, int) else min(stop, size)
    with f.loop(0, count) as row:
        total = f.load(f.at(sums, row.index, "i32"), scalar("i32"))
        value = f.splat(f.binary("mul", total, f.constant(pairs.row_factor, total.type)), lanes)
        there = f.at(out, f.mul(row.index, plan.problem.m.out), "i32")
        with f.loop(first, end, lanes) as column:
            mask = None if size % lanes == 0 else f.first_lanes(f.sub(end, column.index), lanes)
            registers.store(f, value, f.at(there, column.index, "i32"), dtypes.int32, mask)


def _along(f: Function, plan: Plan, pairs: Paired, x: Value, sums: Value, count: Int) -> None:
    """Sums of rows that lie in memory byte after byte."""
    row_bytes = plan.problem.m.x * plan.x_dtype.itemsize
    width = GROUP * plan.lanes
    many = pairs.depth // (UNROLL * width) * UNROLL * width
    whole = pairs.depth // width * width
    zero = f.constant(0, vector("i32", plan.lanes))
    with f.loop(0, count) as row:
        here = f.at(x, f.mul(row.index, row_bytes), "i8")
        with f.loop(0, many, UNROLL * width, [zero] * UNROLL) as loop:
            places = [f.at(f.at(here, loop.index, "i8"), u * width, "i8") for u in range(UNROLL)]
            loop.next = [
                _added(f, pairs, total, f.load(place, zero.type, align=1))
                for total, place in zip(loop.carried, places, strict=True)
            ]
        first, *others = loop.results
        for other in others:
            first = f.binary("add", first, other)
        with f.loop(many, whole, width, [first]) as loop:
            place = f.at(here, loop.index, "i8")
            loop.next = [_added(f, pairs, loop.carried[0], f.load(place, zero.type, align=1))]
        (total,) = loop.results
        if whole < pairs.depth:
            nothing = f.constant(0, vector("i8", width))
            mask = f.first_lanes(pairs.depth - whole, width)
            rest = f.masked_load(f.at(here, whole, "i8"), mask, nothing)
            total = _added(f, pairs, total, f.convert("bitcast", rest, zero.type))
        symbol = f"@llvm.vector.reduce.add.v{plan.lanes}i32"
        f.declare(f"declare i32 {symbol}({zero.type})")
        one = f.pure(f"call i32 {symbol}({zero.type} {total})", scalar("i32"), total)
        f.store(one, f.at(sums, row.index, "i32"))


def _added(f: Function, pairs: Paired, total: Value, x: Value) -> Value:
    """Sums to which groups of bytes are added."""
    symbol = f"@llvm.x86.avx512.vpdpbusd.{32 * total.type.lanes}"
    f.declare(f"declare {total.type} {symbol}({total.type}, {total.type}, {total.type})")
    ones = f.constant(0x01010101, total.type)
    first, second = (x, ones) if pairs.x_element == dtypes.uint8 else (ones, x)
    text = f"call {total.type} {symbol}({total.type} {total}, {total.type} {first}, {total.type} {second})"
    return f.pure(text, total.type, total, x)


def _down(f: Function, plan: Plan, pairs: Paired, x: Value, sums: Value, count: Int) -> None:
    """Sums of rows that lie side by side in memory."""
    zero = f.constant(0, vector("i32", plan.lanes))
    nothing = f.constant(0, vector("i8", plan.lanes))
    widen = "zext" if pairs.x_element == dtypes.uint8 else "sext"
    with f.loop(0, count, plan.lanes) as rows:
        mask = f.first_lanes(f.sub(count, rows.index), plan.lanes)
        with f.loop(0, pairs.depth, 1, [zero]) as loop:
            place = f.at(f.at(x, rows.index, "i8"), f.mul(loop.index, pairs.x_pair), "i8")
            wide = f.convert(widen, f.masked_load(place, mask, nothing), zero.type)
            loop.next = [f.binary("add", loop.carried[0], wide)]
        f.store(loop.results[0], f.at(sums, rows.index, "i32"))
