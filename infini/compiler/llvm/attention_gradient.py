"""The gradient of attention in four phases: keys and values are copied, then queries and cotangents, then
every task computes all that a stretch of keys takes part in, and last the queries' cotangents are added up.

Weights are computed again from the scores, a tile at a time: with weights p, their cotangents dp = ct v^T and
delta the mean of dp, ds = p (dp - delta), dq = ds k, dk = ds^T q, dv = p^T ct, five products in all (T. Dao
et al., https://arxiv.org/abs/2205.14135). Stretches of keys follow from the shapes, and each has sums of its
own for the queries, so results do not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from infini.compiler.llvm import attention_parts, microkernel, registers
from infini.compiler.llvm.attention import NS_PER_FLOP, NS_PER_PACKED_BYTE
from infini.compiler.llvm.attention_parts import Parts, Problem
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import scalar
from infini.compiler.passes.attention_views import View
from infini.core.ir import ArrayType, Attrs
from infini.lax.composites import attention

TILE_QUERIES = 48
TILE_KEYS = 48
MIN_TASKS = 16  # stretches of keys, over all sets of keys
ROWS_PER_TASK = 256  # of queries copied or written


def emit(
    operands: Sequence[ArrayType],
    results: Sequence[ArrayType],
    attrs: Attrs,
    target: Target,
    views: Sequence[View | None] = (),
) -> tuple[TaskFunction, ...]:
    """Native code of `attention_gradient`; as `attention.emit`."""
    own = attention.parse_spec(attrs["spec"])
    letters = (
        own.query, own.key, own.value, *own.extras, own.out, own.rows, own.rows, own.rows,
        own.query, own.key, own.value,
    )  # fmt: skip
    problem = attention_parts.analyse(
        operands, results, letters, attrs, target, is_gradient=True, views=views
    )
    return _Gradient(problem).phases()


class _Gradient(Parts):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        p, self.ct = problem, 3 + problem.num_extras  # the cotangent, the rows' three numbers, then results
        self.padded_queries = -(-self.queries // self.rows) * self.rows
        self.tile_queries = max(1, TILE_QUERIES // self.rows) * self.rows
        unit = math.lcm(self.rows, self.panel)
        self.tile_keys = max(1, TILE_KEYS // unit) * unit if unit <= 2 * TILE_KEYS else self.panel
        self.tile_row = self.tile_keys + max(16, self.rows)
        self.num_queries = p.num_shared * p.num_groups
        tiles = -(-self.keys // self.tile_keys)
        self.num_stretches = min(tiles, max(1, -(-MIN_TASKS // p.num_shared)))
        self.stretch = -(-tiles // self.num_stretches) * self.tile_keys
        self.num_stretches = -(-self.keys // self.stretch)
        self.has_tail = self.padded_queries % microkernel.UNROLL != 0
        # Places in the scratch memory, in elements.
        sizes = {
            "keys_across": p.num_shared * self.padded_keys * self.depth,
            "values_across": p.num_shared * self.padded_keys * self.width,
            "keys": p.num_shared * self.padded_keys * self.depth_row,
            "queries": self.num_queries * self.padded_queries * self.depth_row,
            "cotangents": self.num_queries * self.padded_queries * self.width_row,
            "rows": 3 * self.num_queries * self.padded_queries,
            "sums": self.num_stretches * self.num_queries * self.padded_queries * self.depth_row,
        }
        self.starts, total = {}, 0
        for name, size in sizes.items():
            self.starts[name] = total
            total += -(-size // 16) * 16
        self.scratch_bytes = total * self.compute.itemsize
        self.flops = (
            2.0 * self.num_queries * self.queries * self.keys * p.share * (3 * self.depth + 2 * self.width)
        )

    def phases(self) -> tuple[TaskFunction, ...]:
        """Copies, tasks, sums."""
        return self._copy_keys(), self._copy_queries(), self._compute(), self._add_up()

    def _place(self, f: Function, scratch: Value, name: str, offset: Int) -> Value:
        return self.moved(f, scratch, f.add(self.starts[name], offset))

    # --- copies ----------------------------------------------------------------------------------

    def _copy_keys(self) -> TaskFunction:
        f, pointers = self.start()
        p, scratch = self.p, pointers[-1]
        task = self.keys_of_task(f, pointers)
        for name, number, source, letter, size in (
            ("keys_across", 1, task.key, "d", self.depth),
            ("values_across", 2, task.value, "v", self.width),
        ):
            across = self._place(f, scratch, name, f.mul(task.batch, self.padded_keys * size))
            self.copy_panels(f, p.arrays[number], source, across, letter, task.panels)
        copy = self._place(f, scratch, "keys", f.mul(task.batch, self.padded_keys * self.depth_row))
        self.copy_keys(f, 1, task.key, copy, "d", task.keys)
        cost = (self.starts["queries"] * self.compute.itemsize) * NS_PER_PACKED_BYTE
        return self.finish("gradient_keys", f, p.num_shared * self.key_pieces, cost, self.scratch_bytes)

    def _copy_queries(self) -> TaskFunction:
        f, pointers = self.start()
        p, scratch = self.p, pointers[-1]
        step = -(-ROWS_PER_TASK // self.rows) * self.rows
        pieces = -(-self.padded_queries // step)
        batch, piece = f.divide(f.parameters[1], pieces)
        letters, places = self._query_places(f, batch)
        first = f.mul(piece, step)
        stop = f.minimum(f.add(first, step), self.queries)
        count = f.sub(stop, first)
        start = f.mul(batch, self.padded_queries)
        for name, number, column, factor in (("queries", 0, "d", p.scale), ("cotangents", self.ct, "v", 1.0)):
            layout, row = p.arrays[number], self.long_row(p.sizes[column])
            offset = f.add(layout.offset(f, letters, places), f.mul(first, layout.stride("t")))
            target = self._place(f, scratch, name, f.mul(start, row))
            self.copy_rows(
                f, layout, f.at(pointers[number], offset, layout.element),
                self.moved(f, target, f.mul(first, row)), "t", column, count=count, factor=factor,
            )  # fmt: skip
            if self.padded_queries > self.queries:
                with f.when(f.compare("eq", stop, f.integer(self.queries))):
                    self.fill(f, target, self.queries * row, self.padded_queries * row)
        real = scalar(self.element)
        rows = self._place(f, scratch, "rows", f.mul(start, 3))
        with f.loop(first, stop) as loop:
            place = self.moved(f, rows, f.mul(loop.index, 3))
            for i in range(3):  # the largest score, the sum, delta
                layout = p.arrays[self.ct + 1 + i]
                offset = f.add(layout.offset(f, letters, places), f.mul(loop.index, layout.stride("t")))
                x = f.load(f.at(pointers[self.ct + 1 + i], offset, layout.element), real)
                if i == 1:
                    x = f.binary("fdiv", f.constant(1.0, real), x)
                f.store(x, self.moved(f, place, i))
        if self.padded_queries > self.queries:  # rows that do not exist have no weight
            with (
                f.when(f.compare("eq", stop, f.integer(self.queries))),
                f.loop(3 * self.queries, 3 * self.padded_queries) as loop,
            ):
                f.store(f.constant(0.0, real), self.moved(f, rows, loop.index))
        copied = self.num_queries * self.padded_queries * (self.depth_row + self.width_row)
        cost = copied * self.compute.itemsize * NS_PER_PACKED_BYTE
        return self.finish("gradient_queries", f, self.num_queries * pieces, cost)

    def _query_places(self, f: Function, batch: Int) -> tuple[tuple[str, ...], list[Int]]:
        """Letters of the batch of queries, and their places at a number."""
        p = self.p
        shared, group = f.divide(batch, p.num_groups)
        letters = (*p.shared, *p.groups)
        return letters, [*self.places(f, shared, p.shared), *self.places(f, group, p.groups)]

    # --- tiles -------------------------------------------------------------------------------------

    def _compute(self) -> TaskFunction:
        f, pointers = self.start()
        p, scratch, size = self.p, pointers[-1], self.compute.itemsize
        shared, stretch = f.divide(f.parameters[1], self.num_stretches)
        tile_bytes = self.tile_queries * self.tile_row * size
        weights, change = f.allocate(tile_bytes), f.allocate(tile_bytes)
        sum_rows = self.tile_keys + self.rows
        key_sums = f.allocate(sum_rows * self.depth_row * size)
        value_sums = f.allocate(sum_rows * self.width_row * size)
        own_sums = f.mul(
            f.add(f.mul(stretch, self.num_queries), f.mul(shared, p.num_groups)),
            self.padded_queries * self.depth_row,
        )
        query_sums = self._place(f, scratch, "sums", own_sums)
        self.fill(f, query_sums, 0, p.num_groups * self.padded_queries * self.depth_row)
        panels = {
            name: self._place(f, scratch, name, f.mul(shared, self.padded_keys * width))
            for name, width in (
                ("keys_across", self.depth), ("values_across", self.width), ("keys", self.depth_row)
            )
        }  # fmt: skip
        first = f.mul(stretch, self.stretch)
        last = f.minimum(f.add(first, self.stretch), self.padded_keys)
        with f.loop(first, last, self.tile_keys, runs=True) as key_loop:
            key = key_loop.index
            count = f.minimum(f.sub(last, key), self.tile_keys)
            self.fill(f, key_sums, 0, sum_rows * self.depth_row)
            self.fill(f, value_sums, 0, sum_rows * self.width_row)
            low, high = self._seeing_queries(f, key, f.add(key, count))
            with f.loop(0, p.num_groups, runs=True) as group, f.loop(low, high, self.tile_queries) as query:
                number = f.add(f.mul(shared, p.num_groups), group.index)
                start = f.add(f.mul(number, self.padded_queries), query.index)
                tile = _Tile(
                    self,
                    f,
                    pointers,
                    number=number,
                    query=query.index,
                    num_rows=f.minimum(f.sub(high, query.index), self.tile_queries),
                    key=key,
                    count=count,
                    weights=weights,
                    change=change,
                    queries=self._place(f, scratch, "queries", f.mul(start, self.depth_row)),
                    cotangents=self._place(f, scratch, "cotangents", f.mul(start, self.width_row)),
                    rows=self._place(f, scratch, "rows", f.mul(start, 3)),
                )
                tile.write(panels, key_sums, value_sums)
                row = f.add(f.mul(group.index, self.padded_queries), query.index)
                tile.add_queries(panels["keys"], self.moved(f, query_sums, f.mul(row, self.depth_row)))
            self._store_keys(f, pointers, shared, key, count, (key_sums, value_sums))
        cost = self.flops * NS_PER_FLOP
        return self.finish("gradient", f, p.num_shared * self.num_stretches, cost)

    def _seeing_queries(self, f: Function, first: Int, stop: Int) -> tuple[Int, Int]:
        """Queries, from a whole block of rows on, that have weights for keys from `first` to `stop`."""
        low, high = self.p.band if self.p.skips else (None, None)
        start: Int = 0
        if high is not None:
            blocks, _ = f.divide(f.maximum(f.sub(first, high), 0), self.rows)
            start = f.mul(blocks, self.rows)
        if low is None:
            return start, self.padded_queries
        last, _ = f.divide(f.maximum(f.add(f.sub(stop, low), self.rows - 1), 0), self.rows)
        return start, f.minimum(f.mul(last, self.rows), self.padded_queries)

    def _store_keys(
        self, f: Function, pointers: Sequence[Value], shared: Int, key: Int, count: Int,
        sums: tuple[Value, Value],
    ) -> None:  # fmt: skip
        """Cotangents of some keys and values."""
        p = self.p
        places = self.places(f, shared, p.shared)
        stop = f.minimum(count, f.sub(self.keys, key))
        for number, column, source in ((1, "d", sums[0]), (2, "v", sums[1])):
            place = self.ct + 4 + number
            layout = p.arrays[place]
            start = f.at(pointers[place], layout.offset(f, p.shared, places), layout.element)
            with f.loop(0, stop) as row:
                here = self.moved(f, source, f.mul(row.index, self.long_row(p.sizes[column])))
                offset = f.mul(f.add(key, row.index), layout.stride("s"))
                self.store_row(f, here, layout, f.at(start, offset, layout.element), column, None)

    # --- sums --------------------------------------------------------------------------------------

    def _add_up(self) -> TaskFunction:
        f, pointers = self.start()
        p = self.p
        pieces = -(-self.queries // ROWS_PER_TASK)
        batch, piece = f.divide(f.parameters[1], pieces)
        letters, places = self._query_places(f, batch)
        layout = p.arrays[self.ct + 4]
        target = f.at(pointers[self.ct + 4], layout.offset(f, letters, places), layout.element)
        first = f.mul(piece, ROWS_PER_TASK)
        sums = self._place(f, pointers[-1], "sums", f.mul(batch, self.padded_queries * self.depth_row))
        apart = self.num_queries * self.padded_queries * self.depth_row
        factor = self.constant(f, p.scale)
        line = f.allocate(self.depth_row * self.compute.itemsize)
        with f.loop(first, f.minimum(f.add(first, ROWS_PER_TASK), self.queries)) as row:
            here = self.moved(f, sums, f.mul(row.index, self.depth_row))
            for start in range(0, self.depth, self.lanes):
                place = self.moved(f, here, start)
                total = registers.load(f, place, self.compute, self.lanes)
                for i in range(1, self.num_stretches):
                    x = registers.load(f, self.moved(f, place, i * apart), self.compute, self.lanes)
                    total = f.binary("fadd", total, x)
                registers.store(f, total, self.moved(f, line, start), self.compute)
            there = f.at(target, f.mul(row.index, layout.stride("t")), layout.element)
            self.store_row(f, line, layout, there, "d", factor)
        cost = apart * self.num_stretches * self.compute.itemsize * NS_PER_PACKED_BYTE
        return self.finish("gradient_sums", f, self.num_queries * pieces, cost)


@dataclass(frozen=True, slots=True)
class _Tile:
    """Some queries by some keys.

    Args:
        g: what the tile is a part of.
        f: the task function.
        pointers: operands, results and scratch.
        number: of the set of queries.
        query: first query.
        num_rows: how many queries.
        key: first key.
        count: how many keys, a multiple of a panel.
        weights: memory for scores and weights.
        change: memory for cotangents of weights and scores.
        queries: copies of the queries.
        cotangents: copies of the cotangents of the results.
        rows: for each query its largest score, one over its sum, and delta.
    """

    g: _Gradient
    f: Function
    pointers: Sequence[Value]
    number: Int
    query: Value
    num_rows: Int
    key: Value
    count: Int
    weights: Value
    change: Value
    queries: Value
    cotangents: Value
    rows: Value

    def write(self, panels: dict[str, Value], key_sums: Value, value_sums: Value) -> None:
        """Scores and cotangents of the weights; then both become what they stand for, and are used."""
        g, f = self.g, self.f
        for name, source, row, size, target in (
            ("keys_across", self.queries, g.depth_row, g.depth, self.weights),
            ("values_across", self.cotangents, g.width_row, g.width, self.change),
        ):
            with (
                f.loop(0, self.count, g.panel, runs=True) as panel,
                f.loop(0, self.num_rows, g.rows, runs=True) as rows,
            ):
                g.product(
                    f, name,
                    (
                        g.moved(f, source, f.mul(rows.index, row)),
                        g.moved(f, panels[name], f.mul(f.add(self.key, panel.index), size)),
                        g.moved(f, target, f.add(f.mul(rows.index, g.tile_row), panel.index)),
                    ),
                    size, a_row=row, a_depth=1, panel=g.panel, out_row=g.tile_row, adds=False,
                    has_tail=size % microkernel.UNROLL != 0,
                )  # fmt: skip
        with f.loop(0, self.num_rows, runs=True) as each:
            self._weigh(each.index)
        for name, tile, source, width, size, sums in (
            ("to_values", self.weights, self.cotangents, g.width_row, g.width, value_sums),
            ("to_keys", self.change, self.queries, g.depth_row, g.depth, key_sums),
        ):
            with f.loop(0, size, g.panel) as panel, f.loop(0, self.count, g.rows, runs=True) as rows:
                g.product(
                    f, name,
                    (
                        g.moved(f, tile, rows.index),
                        g.moved(f, source, panel.index),
                        g.moved(f, sums, f.add(f.mul(rows.index, width), panel.index)),
                    ),
                    self.num_rows, a_row=1, a_depth=g.tile_row, panel=width, out_row=width, adds=True,
                    has_tail=True,
                )  # fmt: skip

    def add_queries(self, keys: Value, sums: Value) -> None:
        """The cotangents of the scores times the keys, added to the queries' sums."""
        g, f = self.g, self.f
        first = g.moved(f, keys, f.mul(self.key, g.depth_row))
        with f.loop(0, g.depth, g.panel) as panel, f.loop(0, self.num_rows, g.rows, runs=True) as rows:
            g.product(
                f, "to_queries",
                (
                    g.moved(f, self.change, f.mul(rows.index, g.tile_row)),
                    g.moved(f, first, panel.index),
                    g.moved(f, sums, f.add(f.mul(rows.index, g.depth_row), panel.index)),
                ),
                self.count, a_row=g.tile_row, a_depth=1, panel=g.depth_row, out_row=g.depth_row, adds=True,
                has_tail=False,
            )  # fmt: skip

    def _weigh(self, row: Value) -> None:
        """A row of scores becomes weights, and one of the weights' cotangents becomes the scores'."""
        g, f = self.g, self.f
        number = scalar(g.element)
        at = g.moved(f, self.rows, f.mul(row, 3))
        largest, factor, delta = (f.splat(f.load(g.moved(f, at, i), number), g.lanes) for i in range(3))
        query = f.add(self.query, row)
        assert isinstance(query, Value)
        extras: list[Value] = []
        if g.p.num_extras:
            letters, places = g._query_places(f, self.number)
            # Rows beyond the last have no bias and no mask of their own.
            known = f.minimum(query, g.queries - 1)
            extras = g.extra_rows(f, self.pointers, letters, places, known)
        lines = [g.moved(f, x, f.mul(row, g.tile_row)) for x in (self.weights, self.change)]
        with f.loop(0, self.count, g.lanes, runs=True) as loop:
            places_ = [g.moved(f, line, loop.index) for line in lines]
            x, moved = (registers.load(f, place, g.compute, g.lanes) for place in places_)
            key = f.add(self.key, loop.index)
            numbers = g.key_numbers(f, key)
            present = g.exists(f, numbers)
            if g.p.has_bias:
                x = f.binary("fadd", x, g.extra(f, 3, extras[0], key, present))
            allowed = g.allowed(f, extras, query, key, numbers, present)
            if allowed is not None:
                x = f.select(allowed, x, g.constant(f, g.p.fill))
            weight = f.binary("fmul", g.exp(f, f.binary("fsub", x, largest)), factor)
            changed = f.binary("fmul", weight, f.binary("fsub", moved, delta))
            zero = g.constant(f, 0.0)
            if allowed is not None:
                changed = f.select(allowed, changed, zero)
            if present is not None:
                weight, changed = f.select(present, weight, zero), f.select(present, changed, zero)
            registers.store(f, weight, places_[0], g.compute)
            registers.store(f, changed, places_[1], g.compute)
