"""Attention of some tokens of a request over a run of keys in blocks, as products of tiles: a block of keys
is copied transposed, the values beside it as rows, both in float32, and register blocks do the rest.

The sums of earlier keys are scaled when a larger score turns up (M. Milakov and N. Gimelshein,
https://arxiv.org/abs/1805.02867). Rows of a tile are tokens, and for each the query heads that share the key
head. Blocks of keys begin at multiples of their size, so what a token gets does not depend on the tile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from infini.compiler.llvm import microkernel
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.microkernel import Block
from infini.compiler.llvm.packing import transpose
from infini.compiler.llvm.paged_parts import Parts, lanes_of
from infini.compiler.llvm.paged_problem import Piece, Row
from infini.compiler.llvm.types import F32, I32
from infini.core import dtypes


@dataclass(frozen=True, slots=True)
class Buffers:
    """What a tile keeps on the stack, as addresses of float32.

    Args:
        query: rows of queries.
        keys: panels of keys.
        values: rows of values.
        scores: rows of scores.
        sums: rows of values times weights.
        tops: the largest score of each row.
        totals: the sum of its weights.
    """

    query: Value
    keys: Value
    values: Value
    scores: Value
    sums: Value
    tops: Value
    totals: Value


class Tiles:
    """Writes the code of such a piece.

    Args:
        parts: what it shares with rows.
    """

    is_paired: ClassVar[bool] = False  # whether products are of pairs of bfloat16

    def __init__(self, parts: Parts) -> None:
        self.parts, self.p, self.lanes = parts, parts.p, parts.lanes
        p = parts.p
        self.heads, self.tokens = p.tile_heads, p.tile_tokens
        self.rows, self.vectors, _ = microkernel.block_size(
            p.target, self.heads * self.tokens, dtypes.float32
        )
        self.most = -(-self.heads * self.tokens // self.rows) * self.rows
        self.panel = self.vectors * self.lanes
        self.key_block = p.key_block
        self.depth = self.groups(p.depth)
        self.depth_row, self.width_row = self._long_row(self.depth), self._long_row(p.width)
        self.score_row = self.key_block + 16

    def groups(self, count: int) -> int:
        """Steps of a product along so many numbers."""
        return count

    def _long_row(self, size: int) -> int:
        """Elements of a row of a copy: a little more than a power of two."""
        return -(-size // self.panel) * self.panel + 16

    def write(self, f: Function, at: Mapping[str, Value], piece: Piece, tile: Int) -> None:
        """The code for one tile, into a task function."""
        parts, p = self.parts, self.p
        number, part = f.divide(tile, p.tile_parts)
        done = f.mul(number, self.tokens)
        first = f.add(piece.request.first, done)
        count = f.minimum(f.sub(piece.request.count, done), self.tokens)
        head = f.add(f.mul(piece.head, p.group), f.mul(part, self.heads))
        buffers = self._buffers(f)
        active = f.mul(count, self.heads)
        with f.loop(0, count, runs=True) as loop:
            into = parts.moved(f, buffers.query, f.mul(loop.index, self.heads * self.depth_row))
            self.copy_query(f, at, (f.add(first, loop.index), head), into)
        with f.loop(active, self.most) as row:
            here = parts.moved(f, buffers.query, f.mul(row.index, self.depth_row))
            parts.fill(f, here, -(-self.depth // self.lanes) * self.lanes, 0.0)
        parts.fill(f, buffers.sums, self.most * self.width_row, 0.0)
        with f.loop(0, self.most) as row:
            f.store(parts.number(f, -math.inf), parts.moved(f, buffers.tops, row.index))
            f.store(parts.number(f, 0.0), parts.moved(f, buffers.totals, row.index))
        low, _ = parts.keys_of_token(f, piece.request, first)
        _, high = parts.keys_of_token(f, piece.request, f.sub(f.add(first, count), 1))
        low, high = f.maximum(low, piece.keys[0]), f.minimum(high, piece.keys[1])
        begin = f.mul(f.divide(low, self.key_block)[0], self.key_block)
        with f.loop(begin, high, self.key_block) as loop:
            columns = f.minimum(f.sub(high, loop.index), self.key_block)
            self._copy_keys(f, at, piece, buffers.keys, loop.index, columns)
            self.copy_values(f, at, piece, buffers.values, (loop.index, columns))
            self._products(f, buffers, active, columns)
            with f.loop(0, active, runs=True) as row:
                place, _ = f.divide(row.index, self.heads)
                seen = parts.keys_of_token(f, piece.request, f.add(first, place))
                self._weigh(f, buffers, row.index, seen, loop.index, columns)
            self._mix(f, buffers, active, columns)
        with f.loop(0, active, runs=True) as row:
            place, own = f.divide(row.index, self.heads)
            found = Row(
                f.add(first, place),
                f.add(head, own),
                parts.moved(f, buffers.sums, f.mul(row.index, self.width_row)),
                f.load(parts.moved(f, buffers.tops, row.index), F32),
                f.load(parts.moved(f, buffers.totals, row.index), F32),
            )
            parts.deliver(f, at, piece, found)

    def _buffers(self, f: Function) -> Buffers:
        sizes = (
            self.most * self.depth_row,
            self.key_block * self.depth,
            self.groups(self.key_block) * self.width_row,
            self.most * self.score_row,
            self.most * self.width_row,
            self.most,
            self.most,
        )
        return Buffers(*(f.allocate(4 * size) for size in sizes))

    # --- copies -----------------------------------------------------------------------------------

    def _copy_keys(
        self, f: Function, at: Mapping[str, Value], piece: Piece, target: Value, key: Int, count: Int
    ) -> None:
        """Some keys from `key` on, in transposed panels; those behind the last are copies of it."""
        parts, p = self.parts, self.p
        groups, _ = f.divide(f.add(count, self.lanes - 1), self.lanes)
        last = f.add(key, f.sub(count, 1))
        with f.loop(0, groups, runs=True) as group:
            first = f.add(key, f.mul(group.index, self.lanes))
            rows = [
                parts.row_of_key(f, at, piece, f.minimum(f.add(first, i), last)) for i in range(self.lanes)
            ]
            factors = None
            if p.options.has_scales:
                factors = [f.splat(parts.scale_at(f, at, "key_scales", row), self.lanes) for row in rows]
            panel, half = f.divide(group.index, self.vectors)
            place = f.add(f.mul(panel, self.depth * self.panel), f.mul(half, self.lanes))
            into = parts.moved(f, target, place)
            whole = self.depth // self.lanes * self.lanes
            with f.loop(0, whole, self.lanes) as column:
                self._square(f, at, (rows, factors), into, column.index, self.lanes)
            if whole < self.depth:
                self._square(f, at, (rows, factors), into, whole, self.depth - whole)

    def _square(
        self, f: Function, at: Mapping[str, Value], keys: tuple[Sequence[Int], Sequence[Value] | None],
        into: Value, column: Int, width: int,
    ) -> None:  # fmt: skip
        """Some columns of as many keys as a register has lanes, transposed; `keys` are their rows in the
        cache and their factors.
        """
        rows, factors = keys
        found = [self.load_keys(f, at, row, column, width) for row in rows]
        if factors is not None:
            found = [f.binary("fmul", x, y) for x, y in zip(found, factors, strict=True)]
        for i, x in enumerate(transpose(f, found)[:width]):
            f.store(x, self.parts.moved(f, into, f.add(f.mul(column, self.panel), i * self.panel)))

    def copy_query(self, f: Function, at: Mapping[str, Value], first: tuple[Int, Int], target: Value) -> None:
        """The queries of a token, from a head on, as rows; `first` are the token and the head."""
        self.parts.copy_query(f, at, first, target, self.depth_row, self.heads)

    def load_keys(self, f: Function, at: Mapping[str, Value], row: Int, column: Int, width: int) -> Value:
        """Neighbours of a row of the keys, zeros behind the first `width` lanes."""
        return self.parts.load_row(f, at, "keys", row, column, width)

    def copy_values(
        self, f: Function, at: Mapping[str, Value], piece: Piece, target: Value, keys: tuple[Int, Int]
    ) -> None:
        """Rows of the values of some keys: the first, and how many."""
        parts, p = self.parts, self.p
        key, count = keys
        with f.loop(0, count, runs=True) as loop:
            row = parts.row_of_key(f, at, piece, f.add(key, loop.index))
            into = parts.moved(f, target, f.mul(loop.index, self.width_row))
            factor = None
            if parts.value_scales is not None:
                factor = f.splat(parts.scale_at(f, at, parts.value_scales, row), self.lanes)
            for column in range(0, p.width, self.lanes):
                x = parts.load_row(f, at, parts.values, row, column, p.width - column)
                f.store(x if factor is None else f.binary("fmul", x, factor), parts.moved(f, into, column))

    # --- products ---------------------------------------------------------------------------------

    def _product(
        self, f: Function, name: str, places: tuple[Value, Value, Value], depth: Int, *, a_row: int,
        panel: int, out_row: int, adds: bool,
    ) -> None:  # fmt: skip
        if name not in self.parts.helpers:
            block = Block(
                rows=self.rows, lanes=self.lanes, vectors=self.vectors, width=self.panel, a_row=a_row,
                a_depth=1, panel=panel, out_row=out_row, compute=dtypes.float32, out=dtypes.float32,
                is_paired=self.is_paired,
            )  # fmt: skip
            self.parts.helpers[name] = microkernel.emit_block(
                f"TASK_{name}", block, has_tail=False, adds=adds
            )
        pointers = ", ".join(f"ptr {x}" for x in places)
        f.do(f"call void @TASK_{name}({pointers}, i64 {f.integer(depth)}, i64 {int(adds)})")

    def _products(self, f: Function, buffers: Buffers, active: Int, columns: Int) -> None:
        """Scores of all rows."""
        parts = self.parts
        with f.loop(0, columns, self.panel, runs=True) as panel:
            keys = parts.moved(f, buffers.keys, f.mul(panel.index, self.depth))
            with f.loop(0, active, self.rows, runs=True) as row:
                out = f.add(f.mul(row.index, self.score_row), panel.index)
                self._product(
                    f, "scores",
                    (
                        parts.moved(f, buffers.query, f.mul(row.index, self.depth_row)),
                        keys,
                        parts.moved(f, buffers.scores, out),
                    ),
                    self.depth, a_row=self.depth_row, panel=self.panel, out_row=self.score_row, adds=False,
                )  # fmt: skip

    def _mix(self, f: Function, buffers: Buffers, active: Int, columns: Int) -> None:
        """Weights times values, added to the sums."""
        parts = self.parts
        depth = f.divide(f.add(columns, 1), 2)[0] if self.is_paired else columns
        with f.loop(0, self.p.width, self.panel) as panel, f.loop(0, active, self.rows, runs=True) as row:
            out = f.add(f.mul(row.index, self.width_row), panel.index)
            self._product(
                f, "mix",
                (
                    parts.moved(f, buffers.scores, f.mul(row.index, self.score_row)),
                    parts.moved(f, buffers.values, panel.index),
                    parts.moved(f, buffers.sums, out),
                ),
                depth, a_row=self.score_row, panel=self.width_row, out_row=self.width_row, adds=True,
            )  # fmt: skip

    # --- weights ----------------------------------------------------------------------------------

    def _weigh(
        self, f: Function, buffers: Buffers, row: Int, seen: tuple[Int, Int], key: Int, columns: Int
    ) -> None:
        """A row of scores of the keys from `key` on becomes weights, and what is kept of the row takes them
        in."""
        parts = self.parts
        line = parts.moved(f, buffers.scores, f.mul(row, self.score_row))
        low, high = (self._places(f, f.sub(x, key)) for x in seen)
        numbers = lanes_of(f, range(self.lanes))
        lowest = parts.number(f, -math.inf, self.lanes)
        highest, masked = lowest, f.integer(0)
        if self.p.options.window is None and self.p.options.softcap is None:
            # Vectors that are seen as a whole need no mask.
            visible = f.maximum(f.minimum(f.sub(seen[1], key), columns), 0)
            masked = f.integer(f.mul(f.divide(visible, self.lanes)[0], self.lanes))
            with f.loop(0, masked, self.lanes, [lowest]) as loop:
                x = self.scaled(f, parts.moved(f, line, loop.index))
                loop.next = [parts.larger(f, x, loop.carried[0])]
            highest = loop.results[0]
        with f.loop(masked, columns, self.lanes, [highest]) as loop:
            here = parts.moved(f, line, loop.index)
            x = parts.capped(f, self.scaled(f, here))
            own = f.binary("add", numbers, self._places(f, loop.index))
            inside = f.compare("slt", own, high)
            if self.p.options.window is not None:
                inside = f.binary("and", inside, f.compare("sge", own, low))
            x = f.select(inside, x, lowest)
            f.store(x, here)
            loop.next = [parts.larger(f, x, loop.carried[0])]
        top_at, total_at = (parts.moved(f, x, row) for x in (buffers.tops, buffers.totals))
        before = f.load(top_at, F32)
        top = parts.larger(f, self._across(f, loop.results[0], largest=True), before)
        base = f.splat(parts.finite(f, top), self.lanes)
        with f.loop(0, columns, self.lanes, [parts.number(f, 0.0, self.lanes)], runs=True) as loop:
            here = parts.moved(f, line, loop.index)
            weight = parts.exp(f, f.binary("fsub", parts.vector(f, here), base))
            self.keep_weights(f, weight, line, loop.index)
            loop.next = [f.binary("fadd", loop.carried[0], weight)]
        share = parts.exp(f, f.binary("fsub", f.splat(before, self.lanes), base))
        total = self._across(f, loop.results[0], largest=False)
        f.store(top, top_at)
        f.store(f.fma(f.load(total_at, F32), f.extract(share, 0), total), total_at)
        changed = f.compare("une", before, top)
        sums = parts.moved(f, buffers.sums, f.mul(row, self.width_row))
        with f.when(changed):
            for column in range(0, self.p.width, self.lanes):
                here = parts.moved(f, sums, column)
                f.store(f.binary("fmul", parts.vector(f, here), share), here)

    def scaled(self, f: Function, place: Value) -> Value:
        """Scores that a product has left."""
        return self.parts.vector(f, place)

    def keep_weights(self, f: Function, weights: Value, line: Value, column: Int) -> None:
        """Store weights in place of the scores of a row."""
        f.store(weights, self.parts.moved(f, line, column))

    def _places(self, f: Function, x: Int) -> Value:
        return f.splat(f.convert("trunc", f.integer(x), I32), self.lanes)

    def _across(self, f: Function, x: Value, *, largest: bool) -> Value:
        """The largest of all lanes, or their sum."""
        lanes = x.type.lanes
        while lanes > 1:
            half = lanes // 2
            a = f.shuffle(x, None, range(half)) if half > 1 else f.extract(x, 0)
            b = f.shuffle(x, None, range(half, lanes)) if half > 1 else f.extract(x, 1)
            x, lanes = (self.parts.larger(f, a, b) if largest else f.binary("fadd", a, b)), half
        return x
