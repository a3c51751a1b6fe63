"""Convolutions whose image is contiguous along a letter, such as NHWC: products of patches and kernel.

As in `gemm`, the kernel is packed into panels, a task computes a tile of the result over all of k, and a
register block runs over it; but the rows of A are copied from the image where a tile needs them, so the
matrix of patches never exists. A contracted letter that is contiguous gives rows of A, a free one (in the
derivative by the kernel) columns of A.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from infini.compiler.llvm import microkernel, registers
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.convolution import copying, partial
from infini.compiler.llvm.convolution.blocks import Plan, stride_of
from infini.compiler.llvm.convolution.emitted import finish, sizes
from infini.compiler.llvm.convolution.problem import without_ones
from infini.compiler.llvm.microkernel import Block
from infini.compiler.llvm.packing import Packer, Source
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.types import I64, PTR
from infini.core import dtypes

PACK_BYTES = 64 << 10
NS_PER_FLOP = 0.006
NS_PER_PACKED_BYTE = 0.1


@dataclass(frozen=True, slots=True)
class _Arrays:
    """First elements of one group: image, kernel or panels of it, result."""

    x: Value
    w: Value
    out: Value


class Emission:
    """Writes the phases of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.runs = _runs(plan)
        self.element = registers.memory_element(plan.copied)
        self.sum_element = registers.memory_element(plan.compute)
        self.w_memory = registers.memory_element(plan.problem.w_dtype)
        # Sums in parts are not rounded before they are added.
        self.sum_dtype = plan.compute if plan.parts > 1 else plan.problem.out_dtype
        self.out_memory = registers.memory_element(self.sum_dtype)
        depth = plan.run_other if plan.has_runs_of_k else stride_of(plan.row_axes) or 0
        self.packer = Packer(_source(plan, depth), plan.panel, plan.lanes, plan.copied)
        self.helpers: dict[tuple[int, int], Function] = {}

    def phases(self) -> tuple[TaskFunction, ...]:
        """Packing, where it is a phase, computing, and adding what is computed in parts."""
        plan = self.plan
        found = [self._compute()]
        if plan.packs:
            found.insert(0, self._pack())
        if plan.parts > 1:
            size = self._num_packed + plan.parts * partial.size_of(plan.problem)
            found[-1] = dataclasses.replace(found[-1], scratch_bytes=size * plan.compute.itemsize)
            found.append(
                partial.added(
                    plan.problem, plan.parts, compute=plan.compute, lanes=plan.lanes, before=self._num_packed
                )
            )
        return tuple(found)

    def _start(self) -> tuple[Function, list[Value]]:
        f = Function("TASK", [(PTR, "args"), (I64, "task")])
        count = 4 if self.plan.packs or self.plan.parts > 1 else 3
        return f, [f.load(f.at(f.parameters[0], i, "ptr"), PTR, is_invariant=True) for i in range(count)]

    def _group(self, f: Function, number: Int) -> tuple[Int, Int, Int]:
        """Elements to the first one of a group in image, kernel and result."""
        return copying.first_of_group(f, self.plan.problem, self.plan.problem.groups, number)

    # --- packing the kernel -----------------------------------------------------------------------

    def _pack(self) -> TaskFunction:
        plan = self.plan
        panel_bytes = plan.block_depth * plan.panel * plan.compute.itemsize
        each = max(1, min(plan.num_panels, PACK_BYTES // panel_bytes))
        parts = -(-plan.num_panels // each)
        f, (_, w, _, scratch) = self._start()
        rest, part = f.divide(f.parameters[1], parts)
        group, block = f.divide(rest, plan.num_blocks)
        w = f.at(w, self._group(f, group)[1], self.w_memory)
        there = f.at(scratch, f.mul(group, self._packed_size), self.element)
        first = f.mul(part, each)
        stop = f.minimum(f.add(first, each), plan.num_panels)
        there = f.at(there, f.mul(self._halved(f, self._first_k(f, block)), self._padded), self.element)
        self._pack_block(f, w, there, block, (first, stop))
        nbytes = self._num_packed * plan.compute.itemsize
        tasks = plan.problem.num_groups * plan.num_blocks * parts
        packed = finish("pack", [f], tasks, nbytes * NS_PER_PACKED_BYTE)
        return dataclasses.replace(packed, scratch_bytes=nbytes)

    @property
    def _padded(self) -> int:
        return self.plan.num_panels * self.plan.panel

    @property
    def _packed_size(self) -> int:
        return self.plan.problem.depth // self.plan.each * self._padded

    def _halved(self, f: Function, depth: Int) -> Int:
        """Elements of the copies that some columns of patches are."""
        return f.divide(depth, self.plan.each)[0]

    @property
    def _num_packed(self) -> int:
        """Elements of all panels that a phase packs."""
        return self.plan.problem.num_groups * self._packed_size if self.plan.packs else 0

    def _pack_block(self, f: Function, w: Value, there: Value, block: Int, panels: tuple[Int, Int]) -> None:
        """Pack panels of one block of k, the first one to `there`, with all panels of a block behind each
        other.
        """
        plan = self.plan
        depth = self._halved(f, self._depth(f, block))
        with f.loop(*panels) as loop:
            first = loop.index if plan.packs else f.sub(loop.index, panels[0])
            panel = f.at(there, f.mul(first, f.mul(depth, plan.panel)), self.element)
            source = f.at(w, f.mul(loop.index, plan.panel * plan.problem.n[1]), self.w_memory)
            for width in sizes(f, loop.index, plan.num_panels, plan.panel, plan.problem.n[0]):
                if not plan.has_runs_of_k:
                    place = f.mul(f.mul(block, plan.per), stride_of(plan.row_axes) or 0)
                    self.packer.panel(f, f.at(source, place, self.w_memory), panel, depth, width)
                    continue
                first_place, count, piece_first, length = self._places(f, block)
                with f.loop(0, count) as places:
                    offset: Int = f.mul(piece_first, plan.run_other)
                    axes = plan.place_axes
                    for axis, index in zip(
                        axes, copying.indices(f, f.add(first_place, places.index), axes), strict=True
                    ):
                        offset = f.add(offset, f.mul(index, axis.other))
                    to = f.at(panel, f.mul(places.index, plan.piece // plan.each * plan.panel), self.element)
                    here = f.at(source, offset, self.w_memory)
                    self.packer.panel(f, here, to, self._halved(f, length), width)

    # --- blocks of k ------------------------------------------------------------------------------

    def _places(self, f: Function, block: Int) -> tuple[Int, Int, Int, Int]:
        """Of a block of k with runs along it: the first place, how many, where the runs start, how long they
        are.
        """
        plan = self.plan
        number, piece = f.divide(block, plan.num_pieces)
        first = f.mul(number, plan.per)
        count: Int = plan.per
        if plan.num_places % plan.per:
            count = _least(f, f.sub(plan.num_places, first), plan.per)
        start = f.mul(piece, plan.piece)
        length: Int = plan.piece
        if plan.length % plan.piece:
            length = _least(f, f.sub(plan.length, start), plan.piece)
        return first, count, start, length

    def _depth(self, f: Function, block: Int) -> Int:
        plan = self.plan
        if plan.has_runs_of_k:
            _, count, _, length = self._places(f, block)
            return f.mul(count, length)
        if plan.problem.depth % plan.per == 0:
            return plan.per
        return _least(f, f.sub(plan.problem.depth, f.mul(block, plan.per)), plan.per)

    def _first_k(self, f: Function, block: Int) -> Int:
        """Columns of patches before a block."""
        plan = self.plan
        if not plan.has_runs_of_k:
            return f.mul(block, plan.per)
        first, _, start, _ = self._places(f, block)
        return f.add(f.mul(first, plan.length), start)

    # --- tiles --------------------------------------------------------------------------------------

    def _compute(self) -> TaskFunction:
        plan, problem = self.plan, self.plan.problem
        f, (x, w, out, *scratch) = self._start()
        rest, part = f.divide(f.parameters[1], plan.parts)
        rest, row_block = f.divide(rest, plan.num_row_blocks)
        group, column_block = f.divide(rest, plan.num_column_blocks)
        x_first, w_first, out_first = self._group(f, group)
        if plan.packs:
            w = f.at(scratch[0], f.mul(group, self._packed_size), self.element)
        else:
            w = f.at(w, w_first, self.w_memory)
        if plan.parts > 1:
            place = f.add(f.mul(part, partial.size_of(problem)), self._num_packed)
            out = f.at(scratch[0], place, self.sum_element)
        out = f.at(out, out_first, self.out_memory)
        self._tile(f, _Arrays(f.at(x, x_first, self.runs.memory), w, out), row_block, column_block, part)
        return finish("conv", [f, *self.helpers.values()], plan.num_tasks, problem.flops * NS_PER_FLOP)

    def _tile(self, f: Function, arrays: _Arrays, row_block: Int, column_block: Int, part: Int) -> None:
        plan = self.plan
        per_tile = plan.column_block // plan.panel
        first_panel = f.mul(column_block, per_tile)
        stop_panel: Int = f.add(first_panel, per_tile)
        if plan.num_panels % per_tile:
            stop_panel = f.minimum(stop_panel, plan.num_panels)
        panels = (first_panel, stop_panel)
        place, first, count = self._rows(f, row_block)
        itemsize = plan.compute.itemsize
        copy = f.allocate(plan.copied_size * itemsize)
        local = None if plan.packs else f.allocate(plan.block_depth * plan.column_block * itemsize)
        sums = f.allocate(plan.row_block * plan.column_block * itemsize) if plan.is_staged else None
        result = arrays.out
        if sums is None:
            result = f.at(result, self._out_offset(f, place, first), self.out_memory)
        first_block, stop_block = self._part(f, part)
        for block in self._blocks_of_k(f, first_block, stop_block):
            depth = self._halved(f, self._depth(f, block))
            self._copy(f, arrays.x, copy, block, (place, first, count))
            if local is None:
                first_k = self._halved(f, self._first_k(f, block))
                base = f.at(arrays.w, f.mul(first_k, self._padded), self.element)
                origin: Int = 0
            else:
                self._pack_block(f, arrays.w, local, block, panels)
                base, origin = local, first_panel
            with f.loop(*panels) as each:
                panel = f.at(base, f.mul(f.sub(each.index, origin), f.mul(depth, plan.panel)), self.element)
                if sums is None:
                    c = f.at(result, f.mul(each.index, plan.panel), self.out_memory)
                else:
                    c = f.at(sums, f.mul(f.sub(each.index, first_panel), plan.panel), self.sum_element)
                for width in sizes(f, each.index, plan.num_panels, plan.panel, plan.problem.n[0]):
                    self._blocks(
                        f, (copy, panel, c), (first, count), (depth, f.sub(block, first_block)), width
                    )
        if sums is not None:
            self._store(f, sums, arrays.out, (place, first, count), panels)

    def _part(self, f: Function, part: Int) -> tuple[Int, Int]:
        """The first block of k of a part, and the end of its blocks."""
        plan = self.plan
        each = -(-plan.num_blocks // plan.parts)
        first = f.mul(part, each)
        return first, _least(f, f.add(first, each), plan.num_blocks)

    def _blocks_of_k(self, f: Function, first: Int, stop: Int) -> Iterator[Int]:
        """The numbers of some blocks, one after another or in a loop."""
        if self.plan.is_written_out:
            yield from range(self.plan.num_blocks)
            return
        with f.loop(first, stop) as loop:
            yield loop.index

    def _rows(self, f: Function, row_block: Int) -> tuple[Int, Int, Int]:
        """Of a tile: its first place of the result (0 when runs are along k), its first row there, and how
        many rows it has.
        """
        plan = self.plan
        size, place, number = plan.problem.rows, 0, row_block
        if not plan.has_runs_of_k:
            tile, number = f.divide(row_block, plan.num_pieces)
            first_place = f.mul(tile, plan.place_block)
            if plan.num_pieces == 1:
                return first_place, 0, plan.row_block
            size, place = plan.length, first_place  # type: ignore[assignment]
        first = f.mul(number, plan.row_block)
        if size <= plan.row_block:
            return place, 0, size
        if size % plan.row_block == 0:
            return place, first, plan.row_block
        return place, first, f.minimum(f.sub(size, first), plan.row_block)

    def _out_offset(self, f: Function, place: Int, row: Int) -> Int:
        """Elements to a row in the result."""
        plan = self.plan
        axes, number, offset = without_ones(plan.problem.m), row, 0
        if not plan.has_runs_of_k:
            axes, number, offset = plan.place_axes, place, f.mul(row, plan.run_other)  # type: ignore[assignment]
        found: Int = offset
        stride = stride_of(axes)
        if stride is not None:
            return f.add(found, f.mul(number, stride))
        for axis, index in zip(axes, copying.indices(f, number, axes), strict=True):
            found = f.add(found, f.mul(index, axis.other))
        return found

    def _copy(self, f: Function, x: Value, copy: Value, block: Int, rows: tuple[Int, Int, Int]) -> None:
        """The part of patches that a tile needs for one block of k."""
        plan, bounds = self.plan, self.plan.problem.bounds
        place, first, count = rows
        if plan.has_runs_of_k:
            first_place, num_places, start, length = self._places(f, block)
            row_first, num_rows = first, count
        else:
            first_place, num_places, start, length = place, plan.place_block, first, count
            if plan.num_pieces == 1:
                length = plan.piece
            row_first, num_rows = f.mul(block, plan.per), self._depth(f, block)
        x = f.at(x, start, self.runs.memory)
        pairs = 2 if plan.is_paired and not plan.has_runs_of_k else 1  # rows that become one
        with f.loop(0, f.divide(num_rows, pairs)[0]) as row:
            there = f.at(copy, f.mul(row.index, plan.copied_row), self.runs.element)
            numbers = [f.add(f.mul(row.index, pairs), i) for i in range(pairs)]
            by_row = [copying.reach(f, f.add(row_first, n), plan.row_axes, bounds) for n in numbers]
            for are_inside in copying.whether_all_inside(f, bounds, by_row, plan.place_axes):
                for number in self._numbers(f, num_places):
                    by_place = copying.reach(f, f.add(first_place, number), plan.place_axes, bounds)
                    here, inside = [], []
                    for one in by_row:
                        here.append(f.at(x, f.add(one.x, by_place.x), self.runs.memory))
                        inside.append(None if are_inside else copying.is_inside(f, bounds, one, by_place))
                    to = f.at(there, f.mul(number, plan.piece), self.runs.element)
                    for size in self._lengths(f, length, start):
                        if pairs == 2:
                            self.runs.copy_pairs(f, here, to, size, inside)
                        else:
                            self.runs.copy(f, here[0], to, size, inside[0])

    def _numbers(self, f: Function, count: Int) -> Iterator[Int]:
        if (self.plan.is_written_out or not self.plan.has_runs_of_k) and isinstance(count, int):
            yield from range(count)
            return
        with f.loop(0, count) as loop:
            yield loop.index

    def _lengths(self, f: Function, length: Int, start: Int) -> Iterator[int]:
        plan = self.plan
        if isinstance(length, int):
            yield length
            return
        number, _ = f.divide(start, plan.piece)
        yield from sizes(f, number, plan.num_pieces, plan.piece, plan.length)

    def _blocks(
        self,
        f: Function,
        matrices: tuple[Value, Value, Value],
        rows: tuple[Int, Int],
        block: tuple[Int, Int],
        width: int,
    ) -> None:
        """Call the micro-kernel for every register block of a tile and panel."""
        plan = self.plan
        a, panel, c = matrices
        first, count = rows
        a_row = plan.copied_row // plan.each if plan.has_runs_of_k else 1
        memory = self.sum_element if plan.is_staged else self.out_memory
        numbers = ", ".join(f"i64 {f.integer(number)}" for number in block)
        for height in self._heights(f, first, count):
            with f.loop(0, height, plan.rows, runs=True) as loop:
                here = f.at(a, f.mul(loop.index, a_row), self.element)
                there = f.at(c, f.mul(loop.index, self._out_row), memory)
                number, _ = f.divide(loop.index, plan.rows)
                for part in sizes(f, number, -(-height // plan.rows), plan.rows, height):
                    name = self._helper(part, width)
                    f.do(f"call void @{name}(ptr {here}, ptr {panel}, ptr {there}, {numbers})")

    def _heights(self, f: Function, first: Int, count: Int) -> Iterator[int]:
        """How many rows a tile may have."""
        plan = self.plan
        if isinstance(count, int):
            yield count
            return
        total = plan.problem.rows if plan.has_runs_of_k else plan.length
        number = f.convert("zext", f.compare("ne", f.integer(count), f.integer(plan.row_block)), I64)
        rest = total - plan.row_block * ((total - 1) // plan.row_block)
        yield from sizes(f, number, 2, plan.row_block, plan.row_block + rest)

    @property
    def _out_row(self) -> int:
        plan = self.plan
        return plan.column_block if plan.is_staged else plan.row_stride or 0

    def _helper(self, height: int, width: int) -> str:
        plan = self.plan
        name = f"TASK_{height}x{width}"
        if (height, width) not in self.helpers:
            a_row, a_depth = (plan.copied_row // plan.each, 1) if plan.has_runs_of_k else (1, plan.copied_row)
            block = Block(
                rows=height,
                lanes=plan.lanes,
                vectors=-(-width // plan.lanes),
                width=plan.panel if plan.is_staged else width,
                a_row=a_row,
                a_depth=a_depth,
                panel=plan.panel,
                out_row=self._out_row,
                compute=plan.compute,
                out=plan.compute if plan.is_staged else self.sum_dtype,
                is_paired=plan.is_paired,
            )
            self.helpers[height, width] = microkernel.emit_block(name, block, has_tail=self._has_tail)
        return name

    @property
    def _has_tail(self) -> bool:
        plan = self.plan
        if plan.has_runs_of_k:
            depths = {plan.piece * plan.per, plan.piece * (plan.num_places % plan.per)}
            depths |= {plan.per * (plan.length % plan.piece)}
        else:
            depths = {plan.per, plan.problem.depth % plan.per}
        return any(depth % microkernel.UNROLL for depth in depths)

    def _store(
        self, f: Function, sums: Value, out: Value, rows: tuple[Int, Int, Int], panels: tuple[Int, Int]
    ) -> None:
        """Complete sums of a tile to their places in the result."""
        plan, dtype = self.plan, self.sum_dtype
        place, first, count = rows
        with f.loop(0, count) as row:
            to = f.at(out, self._out_offset(f, place, f.add(first, row.index)), self.out_memory)
            line = f.at(sums, f.mul(row.index, plan.column_block), self.sum_element)
            with f.loop(*panels) as panel:
                here = f.at(line, f.mul(f.sub(panel.index, panels[0]), plan.panel), self.sum_element)
                there = f.at(to, f.mul(panel.index, plan.panel), self.out_memory)
                for width in sizes(f, panel.index, plan.num_panels, plan.panel, plan.problem.n[0]):
                    for start in range(0, width, plan.lanes):
                        x = registers.load(f, f.at(here, start, self.sum_element), plan.compute, plan.lanes)
                        active = min(plan.lanes, width - start)
                        mask = None if active == plan.lanes else f.first_lanes(active, plan.lanes)
                        x = registers.rounded(f, x, dtype)
                        registers.store(f, x, f.at(there, start, self.out_memory), dtype, mask)


def _runs(plan: Plan) -> copying.Runs:
    """Copies of the image; of pairs along a run its bits."""
    if plan.is_paired and plan.has_runs_of_k:
        return copying.Runs(dtypes.uint16, dtypes.uint16, 2 * plan.lanes)
    return copying.Runs(dtypes.uint16 if plan.is_paired else plan.problem.x_dtype, plan.copied, plan.lanes)


def _source(plan: Plan, depth: int) -> Source:
    """The kernel as a matrix, with `depth` elements from one to the next along k."""
    dtype, width = plan.problem.w_dtype, plan.problem.n[1]
    if not plan.is_paired:
        return Source(dtype, depth, width)
    if width == 1:
        return Source(dtype, 2 * depth, width, pair=depth)
    return Source(dtypes.int32, 1, width // 2)


def _least(f: Function, a: Int, b: Int) -> Int:
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else f.minimum(a, b)
