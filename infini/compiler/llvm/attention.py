"""Attention in two phases: keys and values are copied in panels, then every task computes the result of some
queries, a block of keys at a time.

The scores of a few queries and a block of keys stay in the first-level cache; the sums of earlier blocks are
scaled when a larger score turns up (M. Milakov and N. Gimelshein, https://arxiv.org/abs/1805.02867). Tasks
follow from the shapes alone and own their results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from infini.compiler.llvm import attention_parts, microkernel, registers
from infini.compiler.llvm.attention_parts import Parts, Problem
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import scalar
from infini.compiler.passes.attention_views import View
from infini.core.ir import ArrayType, Attrs
from infini.lax.composites import attention

KEY_BYTES = 2048  # of one row of scores in a block of keys
TASK_QUERIES = 96
COPY_BYTES = 96 << 10  # of the queries of a task
MIN_TASKS = 16
TASK_FLOPS = 1e6
NS_PER_FLOP = 0.014
NS_PER_PACKED_BYTE = 0.15


def emit(
    operands: Sequence[ArrayType],
    results: Sequence[ArrayType],
    attrs: Attrs,
    target: Target,
    views: Sequence[View | None] = (),
) -> tuple[TaskFunction, ...]:
    """Native code of `attention` and `attention_sums`.

    Args:
        operands: types of queries, keys, values, and of bias and mask where there are.
        results: types of the result and perhaps of the largest scores and the sums.
        attrs: attributes of the operation.
        target: processor to make code for.
        views: where the first operands are in the arrays that are given.

    Returns:
        Phases to run one after the other, all with `args` operands, results, scratch.
    """
    own = attention.parse_spec(attrs["spec"])
    letters = (own.query, own.key, own.value, *own.extras, own.out, *(own.rows,) * (len(results) - 1))
    problem = attention_parts.analyse(
        operands, results, letters, attrs, target, is_gradient=False, views=views
    )
    return _Forward(problem, len(results) > 1).phases()


class _Forward(Parts):
    def __init__(self, problem: Problem, keeps_sums: bool) -> None:
        super().__init__(problem)
        self.keeps_sums = keeps_sums
        self.out = 3 + problem.num_extras
        self.key_block = min(self.padded_keys, KEY_BYTES // self.compute.itemsize // self.panel * self.panel)
        self.has_blocks = self.padded_keys > self.key_block
        self.score_row = self.key_block + 16
        self.sub_block = 2 * self.rows
        self.flops = (
            2.0 * problem.num_shared * problem.num_groups * self.queries * self.keys * problem.share
            * (self.depth + self.width)
        )  # fmt: skip
        self.task_queries = self._task_queries()
        self.packed_keys = self.padded_keys * self.depth
        self.packed_values = self.padded_keys * self.width_row
        self.values_start = problem.num_shared * self.packed_keys

    def _task_queries(self) -> int:
        """Queries of a task: as many as share packed keys well, fewer when there are few tasks."""
        batches = self.p.num_shared * self.p.num_groups
        row_bytes = max(self.depth_row, self.width_row) * self.compute.itemsize
        most = min(TASK_QUERIES, COPY_BYTES // row_bytes) // self.sub_block * self.sub_block
        most = max(self.sub_block, most)
        wanted = min(MIN_TASKS, self.flops / TASK_FLOPS)
        while most > self.sub_block and batches * -(-self.queries // most) < wanted:
            most -= self.sub_block
        return most

    def phases(self) -> tuple[TaskFunction, ...]:
        """Copies, then tasks."""
        return self._pack(), self._compute()

    def _pack(self) -> TaskFunction:
        f, pointers = self.start()
        p, scratch = self.p, pointers[-1]
        task = self.keys_of_task(f, pointers)
        packed = self.moved(f, scratch, f.mul(task.batch, self.packed_keys))
        self.copy_panels(f, p.arrays[1], task.key, packed, "d", task.panels)
        packed = self.moved(f, scratch, f.add(self.values_start, f.mul(task.batch, self.packed_values)))
        self.copy_keys(f, 2, task.value, packed, "v", task.keys)
        nbytes = p.num_shared * (self.packed_keys + self.packed_values) * self.compute.itemsize
        cost = nbytes * NS_PER_PACKED_BYTE
        return self.finish("attention_pack", f, p.num_shared * self.key_pieces, cost, nbytes)

    def _compute(self) -> TaskFunction:
        f, pointers = self.start()
        p = self.p
        blocks = -(-self.queries // self.task_queries)
        batch, block = f.divide(f.parameters[1], blocks)
        block = f.sub(blocks - 1, block)  # where there is a band, the last queries have most keys
        shared, group = f.divide(batch, p.num_groups)
        letters = (*p.shared, *p.groups)
        places = [*self.places(f, shared, p.shared), *self.places(f, group, p.groups)]
        first = f.mul(block, self.task_queries)
        count: Int = self.queries
        if blocks > 1:
            count = self.task_queries
            if self.queries % self.task_queries:
                count = f.minimum(f.sub(self.queries, first), self.task_queries)
        keys = self.moved(f, pointers[-1], f.mul(shared, self.packed_keys))
        values = self.moved(f, pointers[-1], f.add(self.values_start, f.mul(shared, self.packed_values)))
        most = -(-self.task_queries // self.rows) * self.rows
        size = self.compute.itemsize
        query_copy = f.allocate(most * self.depth_row * size)
        sums = f.allocate(most * self.width_row * size)
        state = f.allocate(2 * most * size)  # largest scores and sums of the rows
        scores = f.allocate(self.sub_block * self.score_row * size)
        layout = p.arrays[0]
        source = f.add(layout.offset(f, letters, places), f.mul(first, layout.stride("t")))
        self.copy_rows(
            f, layout, f.at(pointers[0], source, layout.element), query_copy, "t", "d",
            count=count, factor=p.scale,
        )  # fmt: skip
        totals = self.moved(f, state, most)
        with f.loop(0, count) as row:
            f.store(self._number(f, -math.inf), self.moved(f, state, row.index))
            f.store(self._number(f, 0.0), self.moved(f, totals, row.index))
        if self.has_blocks:
            self.fill(f, sums, 0, most * self.width_row)
        low, high = self.seen_keys(f, first, f.add(first, count))
        with f.loop(low, high, self.key_block, runs=True) as keys_loop:
            key_stop = f.minimum(f.add(keys_loop.index, self.key_block), high)
            with f.loop(0, count, self.sub_block, runs=True) as sub:
                stop = f.minimum(f.add(sub.index, self.sub_block), count)
                start_key, stop_key = self.seen_keys(f, f.add(first, sub.index), f.add(first, stop))
                start_key = f.maximum(start_key, keys_loop.index)
                stop_key = f.minimum(stop_key, key_stop)
                with f.when(f.compare("slt", start_key, stop_key)):
                    self._scores(f, query_copy, keys, scores, (sub.index, stop), (start_key, stop_key))
                    with f.loop(sub.index, stop, runs=True) as row:
                        query = f.add(first, row.index)
                        extras = self.extra_rows(f, pointers, letters, places, query)
                        line = self.moved(f, scores, f.mul(f.sub(row.index, sub.index), self.score_row))
                        kept = (
                            self.moved(f, state, row.index),
                            self.moved(f, totals, row.index),
                            self.moved(f, sums, f.mul(row.index, self.width_row)),
                        )
                        keys_of_row = (start_key, f.sub(stop_key, start_key))
                        self._weigh(f, line, extras, f.integer(query), keys_of_row, kept)
                    self._mix(f, scores, values, sums, (sub.index, stop), (start_key, stop_key))
        self._write(f, pointers, letters, places, (first, count), (sums, state, totals))
        cost = self.flops * NS_PER_FLOP
        return self.finish("attention", f, blocks * p.num_shared * p.num_groups, cost)

    def _number(self, f: Function, number: float) -> Value:
        return registers.constant(f, number, self.compute)

    def _scores(
        self, f: Function, queries: Value, keys: Value, scores: Value, rows: tuple[Int, Int],
        columns: tuple[Int, Int],
    ) -> None:  # fmt: skip
        """Products of some queries with panels of keys."""
        with f.loop(*columns, self.panel, runs=True) as panel, f.loop(*rows, self.rows, runs=True) as row:
            place = f.add(f.mul(f.sub(row.index, rows[0]), self.score_row), f.sub(panel.index, columns[0]))
            self.product(
                f, "scores",
                (
                    self.moved(f, queries, f.mul(row.index, self.depth_row)),
                    self.moved(f, keys, f.mul(panel.index, self.depth)),
                    self.moved(f, scores, place),
                ),
                self.depth, a_row=self.depth_row, a_depth=1, panel=self.panel, out_row=self.score_row,
                adds=False, has_tail=self.depth % microkernel.UNROLL != 0,
            )  # fmt: skip

    def _mix(
        self, f: Function, weights: Value, values: Value, sums: Value, rows: tuple[Int, Int],
        columns: tuple[Int, Int],
    ) -> None:  # fmt: skip
        """Weights times values, added to the sums."""
        first = self.moved(f, values, f.mul(columns[0], self.width_row))
        with (
            f.loop(0, self.width, self.panel) as panel,
            f.loop(*rows, self.rows, runs=True) as row,
        ):
            place = f.add(f.mul(row.index, self.width_row), panel.index)
            self.product(
                f, "mix",
                (
                    self.moved(f, weights, f.mul(f.sub(row.index, rows[0]), self.score_row)),
                    self.moved(f, first, panel.index),
                    self.moved(f, sums, place),
                ),
                f.sub(columns[1], columns[0]), a_row=self.score_row, a_depth=1, panel=self.width_row,
                out_row=self.width_row, adds=self.has_blocks, has_tail=False,
            )  # fmt: skip

    def _weigh(
        self, f: Function, line: Value, extras: Sequence[Value], query: Value, keys: tuple[Int, Int],
        kept: tuple[Value, Value, Value],
    ) -> None:  # fmt: skip
        """A row of scores, for some keys from a first on, becomes weights, and what is kept of the row (its
        largest score, its sum, its results) takes them in."""
        start, count = keys
        largest_at, total_at, sums = kept
        self._limit_scores(f, line, extras, query, start, count)
        number = scalar(self.element)
        before = f.load(largest_at, number)
        low = self.constant(f, -math.inf)
        with f.loop(0, count, self.panel, [low] * self.vectors, runs=True) as loop:
            loop.next = [
                self.larger(f, self._vector(f, line, loop.index, i), c) for i, c in enumerate(loop.carried)
            ]
        highest = loop.results[0]
        for x in loop.results[1:]:
            highest = self.larger(f, highest, x)
        largest = self.larger(f, self.across(f, highest, largest=True), before)
        # Where no key counts yet, the scores are compared with 0, so that their weights are 0.
        nothing = f.compare("oeq", largest, self._number(f, -math.inf))
        base = f.splat(f.select(nothing, self._number(f, 0.0), largest), self.lanes)
        with f.loop(0, count, self.panel, [self.constant(f, 0.0)] * self.vectors, runs=True) as loop:
            found = []
            for i, c in enumerate(loop.carried):
                place = self.moved(f, f.at(line, loop.index, self.element), i * self.lanes)
                x = registers.load(f, place, self.compute, self.lanes)
                weight = self.exp(f, f.binary("fsub", x, base))
                registers.store(f, weight, place, self.compute)
                found.append(f.binary("fadd", c, weight))
            loop.next = found
        total = loop.results[0]
        for x in loop.results[1:]:
            total = f.binary("fadd", total, x)
        total = self.across(f, total, largest=False)
        if self.has_blocks:
            share = self.exp(f, f.binary("fsub", f.splat(before, self.lanes), base))
            total = f.fma(f.load(total_at, number), f.extract(share, 0), total)
            for column in range(0, self.width, self.lanes):
                here = self.moved(f, sums, column)
                x = registers.load(f, here, self.compute, self.lanes)
                registers.store(f, f.binary("fmul", x, share), here, self.compute)
        f.store(largest, largest_at)
        f.store(total, total_at)

    def _vector(self, f: Function, line: Value, place: Int, number: int) -> Value:
        here = self.moved(f, self.moved(f, line, place), number * self.lanes)
        return registers.load(f, here, self.compute, self.lanes)

    def _limit_scores(
        self, f: Function, line: Value, extras: Sequence[Value], query: Value, start: Int, count: Int
    ) -> None:
        """Add the bias to a row of scores, and replace those that do not count."""
        p = self.p
        low, high = p.band
        if p.num_extras:
            whole = self.keys // self.lanes * self.lanes
            stop = f.minimum(f.sub(whole, start), count)
            with f.loop(0, stop, self.lanes) as loop:
                self._adjust(f, line, extras, query, start, loop.index, with_extras=True)
            with f.loop(f.maximum(stop, 0), count, self.lanes) as loop:
                self._adjust(f, line, extras, query, start, loop.index, with_extras=True, is_edge=True)
            return
        end: Int = self.keys if self.padded_keys > self.keys else self.padded_keys
        if high is not None:
            end = f.minimum(f.add(query, high + 1), end)
        if high is not None or self.padded_keys > self.keys:
            first, _ = f.divide(f.maximum(f.sub(end, start), 0), self.lanes)
            with f.loop(f.mul(first, self.lanes), count, self.lanes) as loop:
                self._adjust(f, line, extras, query, start, loop.index, is_edge=True)
        if low is not None:
            last, _ = f.divide(
                f.maximum(f.add(f.sub(f.add(query, low), start), self.lanes - 1), 0), self.lanes
            )
            with f.loop(0, f.minimum(f.mul(last, self.lanes), count), self.lanes) as loop:
                self._adjust(f, line, extras, query, start, loop.index, is_edge=True)

    def _adjust(
        self, f: Function, line: Value, extras: Sequence[Value], query: Value, start: Int, place: Int, *,
        with_extras: bool = False, is_edge: bool = False,
    ) -> None:  # fmt: skip
        here = self.moved(f, line, place)
        x = registers.load(f, here, self.compute, self.lanes)
        key = f.add(start, place)
        numbers = self.key_numbers(f, key)
        present = self.exists(f, numbers) if is_edge else None
        if with_extras and self.p.has_bias:
            x = f.binary("fadd", x, self.extra(f, 3, extras[0], key, present))
        allowed = self.allowed(f, extras, query, key, numbers, present)
        if allowed is not None:
            x = f.select(allowed, x, self.constant(f, self.p.fill))
        if present is not None:
            x = f.select(present, x, self.constant(f, -math.inf))
        registers.store(f, x, here, self.compute)

    def _write(
        self, f: Function, pointers: Sequence[Value], letters: Sequence[str], places: Sequence[Int],
        queries: tuple[Int, Int], found: tuple[Value, Value, Value],
    ) -> None:  # fmt: skip
        """Results of a task, for some queries from a first on, from its sums."""
        (first, count), (sums, state, totals) = queries, found
        layouts = self.p.arrays[self.out :]
        starts = [
            f.at(pointers[self.out + i], x.offset(f, letters, places), x.element)
            for i, x in enumerate(layouts)
        ]
        number = scalar(self.element)
        with f.loop(0, count, runs=True) as row:
            query = f.add(first, row.index)
            total = f.load(self.moved(f, totals, row.index), number)
            factor = f.splat(f.binary("fdiv", self._number(f, 1.0), total), self.lanes)
            rows = [
                f.at(at, f.mul(query, x.stride("t")), x.element)
                for at, x in zip(starts, layouts, strict=True)
            ]
            here = self.moved(f, sums, f.mul(row.index, self.width_row))
            self.store_row(f, here, layouts[0], rows[0], "v", factor)
            if self.keeps_sums:
                f.store(f.load(self.moved(f, state, row.index), number), rows[1])
                f.store(total, rows[2])
