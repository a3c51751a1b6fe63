"""Tiles of attention over keys in blocks, of which queries, keys and values are bfloat16, on processors that
multiply pairs of them: neighbours along the contracted dimension are one element of 32 bits.

Queries and keys are pairs as they lie in memory. Values of two keys are put together while they are copied.
Weights are rounded to bfloat16 and overwrite the scores, of which they take half the room; their sum is of
the numbers before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from infini.compiler.llvm import movement, pairs
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.paged_problem import Piece, Problem
from infini.compiler.llvm.paged_tiles import Tiles
from infini.compiler.llvm.types import vector


def is_suited(problem: Problem) -> bool:
    """Whether the processor multiplies pairs of these queries, keys and values."""
    query, keys = problem.types.query.dtype, problem.types.keys.dtype
    is_plain = not problem.options.has_scales and problem.depth % 2 == 0
    return is_plain and pairs.is_paired_kind(query, keys, problem.target)


class PairedTiles(Tiles):
    """As `Tiles`, with products of pairs."""

    is_paired: ClassVar[bool] = True

    def groups(self, count: int) -> int:
        """Pairs of so many numbers."""
        return -(-count // 2)

    def copy_query(self, f: Function, at: Mapping[str, Value], first: tuple[Int, Int], target: Value) -> None:
        """The queries of a token as they are; scores are scaled instead."""
        p = self.p
        with f.loop(0, self.heads) as loop:
            row = f.add(f.add(f.mul(first[0], p.heads), first[1]), loop.index)
            into = self.parts.moved(f, target, f.mul(loop.index, self.depth_row))
            source = f.at(at["query"], f.mul(row, p.depth), "i16")
            movement.copy_bytes(f, into, source, 2 * p.depth)

    def load_keys(self, f: Function, at: Mapping[str, Value], row: Int, column: Int, width: int) -> Value:
        """Pairs of a row of the keys, zeros behind the first `width` lanes."""
        pair = vector("i32", self.lanes)
        place = self.parts.address(f, at, "keys", row, f.mul(column, 2))
        if width >= self.lanes:
            return f.load(place, pair, align=2)
        return f.masked_load(place, f.first_lanes(width, self.lanes), f.constant(0, pair))

    def copy_values(
        self, f: Function, at: Mapping[str, Value], piece: Piece, target: Value, keys: tuple[Int, Int]
    ) -> None:
        """Values of pairs of keys, number by number. A key that has no neighbour is beside itself, where the
        weight is 0.
        """
        parts, p = self.parts, self.p
        key, count = keys
        number, _ = f.divide(f.add(count, 1), 2)
        last = f.add(key, f.sub(count, 1))
        half = vector("i16", self.lanes)
        order = [lane for i in range(self.lanes) for lane in (i, self.lanes + i)]
        with f.loop(0, number, runs=True) as loop:
            low = f.add(key, f.mul(loop.index, 2))
            rows = [parts.row_of_key(f, at, piece, k) for k in (low, f.minimum(f.add(low, 1), last))]
            into = parts.moved(f, target, f.mul(loop.index, self.width_row))
            for column in range(0, p.width, self.lanes):
                places = [parts.address(f, at, parts.values, row, column) for row in rows]
                active = p.width - column
                if active >= self.lanes:
                    first, second = (f.load(place, half) for place in places)
                else:
                    mask = f.first_lanes(active, self.lanes)
                    first, second = (f.masked_load(place, mask, f.constant(0, half)) for place in places)
                f.store(f.shuffle(first, second, order), parts.moved(f, into, column))

    def scaled(self, f: Function, place: Value) -> Value:
        """Scores times the scale, which are stored."""
        scale = self.parts.number(f, self.p.options.scale, self.lanes)
        x = f.binary("fmul", self.parts.vector(f, place), scale)
        f.store(x, place)
        return x

    def keep_weights(self, f: Function, weights: Value, line: Value, column: Int) -> None:
        """Store weights in front of the scores, which have been read."""
        narrow = vector("bfloat", self.lanes)
        symbol = f"@llvm.x86.avx512bf16.cvtneps2bf16.{32 * self.lanes}"
        f.declare(f"declare {narrow} {symbol}({weights.type})")
        x = f.pure(f"call {narrow} {symbol}({weights.type} {weights})", narrow, weights)
        f.store(x, f.at(line, column, "i16"), align=2)
