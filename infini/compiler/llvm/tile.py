"""One tile of a matrix product over all of k: the loops between a task and the register block.

Per depth block the rows of A are copied if their layout wants it, B is packed unless another phase has done
it, and register blocks run over the tile. A result in 16 bits is added up in float32 and rounded at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from infini.compiler.llvm import microkernel, registers, row_sums
from infini.compiler.llvm.blocking import Plan
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.microkernel import Ahead, Block
from infini.compiler.llvm.packing import Packer, Source
from infini.compiler.llvm.types import I1

MANY_BLOCKS = 12  # register blocks per panel among which asking for memory is shared out


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a tile: the first of them in A, and how many there are."""

    first: Int
    count: Int


@dataclass(frozen=True, slots=True)
class _DepthBlock:
    """A piece of k: where it starts, and its length."""

    start: Int
    depth: Int


class TileWriter:
    """Writes tiles of a product into one function, and collects the micro-kernels they call.

    Args:
        plan: blocks of the product.
        prefix: what symbols of the micro-kernels begin with.
    """

    def __init__(self, plan: Plan, prefix: str = "TASK") -> None:
        self.plan, self.prefix = plan, prefix
        self.element = registers.memory_element(plan.compute)
        self.x_memory = registers.memory_element(plan.x_dtype)
        self.y_memory = registers.memory_element(plan.y_dtype)
        self.out_memory = registers.memory_element(plan.out_dtype)
        self.panel_memory = registers.memory_element(plan.panels)
        x_source, y_source = _sources(plan)
        least = plan.k.size - (plan.num_depth_blocks - 1) * plan.depth
        if plan.pairs is not None and plan.pairs.tail:
            least -= 1  # the last group is read in another way
        self.pack_x = Packer(x_source, plan.copied_row, plan.lanes, plan.copied, least)
        self.pack_y = Packer(y_source, plan.panel, plan.lanes, plan.copied, least)
        self.helpers: dict[tuple[int, int], Function] = {}
        self.buffers: dict[str, Value] = {}  # memory of the task, for one tile after the other

    @property
    def has_row_sums(self) -> bool:
        """Whether sums start at something that depends on the row."""
        return self.plan.pairs is not None and self.plan.pairs.row_factor != 0

    # --- packing B ------------------------------------------------------------------------------

    def pack_depth_block(
        self, f: Function, y: Value, packed: Value, start: Int, panels: tuple[Int, Int]
    ) -> None:
        """Pack some panels of the depth block at `start` into their place in a packed matrix."""
        plan = self.plan
        part = self._depth_block(f, start)
        place = f.add(f.mul(start, plan.num_panels), f.mul(panels[0], part.depth))
        self._pack_panels(f, y, f.at(packed, f.mul(place, plan.panel), self.element), part, panels)

    def _pack_panels(
        self, f: Function, y: Value, block: Value, part: _DepthBlock, panels: tuple[Int, Int]
    ) -> None:
        """Pack panels into `block`."""
        plan = self.plan
        y = f.at(y, f.mul(part.start, plan.k.y), self.y_memory)
        if self.pack_y.is_row_major:
            self.pack_y.panels(
                f, y, block, part.depth, panels, num_columns=plan.problem.n.size, start=part.start
            )
            return
        with f.loop(*panels) as loop:
            first = f.mul(loop.index, plan.panel)
            source = f.at(y, f.mul(first, plan.problem.n.y), self.y_memory)
            place = f.mul(f.sub(loop.index, panels[0]), f.mul(part.depth, plan.panel))
            width: Int = plan.panel
            if plan.problem.n.size % plan.panel:
                width = f.minimum(f.sub(plan.problem.n.size, first), plan.panel)
            self.pack_y.panel(f, source, f.at(block, place, self.element), part.depth, width, part.start)

    def _depth_block(self, f: Function, start: Int) -> _DepthBlock:
        plan = self.plan
        if plan.num_depth_blocks == 1:
            return _DepthBlock(start, plan.k.size)
        if plan.k.size % plan.depth == 0:
            return _DepthBlock(start, plan.depth)
        return _DepthBlock(start, f.minimum(f.sub(plan.k.size, start), plan.depth))

    # --- the tile -------------------------------------------------------------------------------

    def write(
        self, f: Function, matrices: tuple[Value, Value, Value, Value], row_block: Int, column_block: Int
    ) -> None:
        """One tile of the result; `matrices` are x, y, packed y and the result."""
        plan, m = self.plan, self.plan.problem.m
        x, y, packed, out = matrices
        rows = self.rows(f, row_block)
        per_tile = plan.column_block // plan.panel
        first_panel = f.mul(column_block, per_tile)
        stop_panel: Int = f.add(first_panel, per_tile)
        if plan.num_panels % per_tile:
            stop_panel = f.minimum(stop_panel, plan.num_panels)
        x = f.at(x, f.mul(rows.first, m.x), self.x_memory)
        out = f.at(out, f.mul(rows.first, m.out), self.out_memory)
        copy = self._buffer(f, "copy", plan.copied_size) if plan.a_layout != "direct" else None
        sums = self._buffer(f, "sums", plan.row_block * plan.column_block) if plan.is_staged else None
        if self.has_row_sums:
            columns = (f.mul(first_panel, plan.panel), f.mul(stop_panel, plan.panel))
            buffer = self._buffer(f, "row sums", plan.row_block + plan.lanes)
            row_sums.start(f, plan, (x, out), buffer, rows.count, columns)
        with f.loop(0, plan.num_depth_blocks) as loop:
            part = self._depth_block(f, f.mul(loop.index, plan.depth))
            a = f.at(x, f.mul(part.start, plan.k.x), self.x_memory)
            if copy is not None:
                self._copy_a(f, a, copy, rows, part)
                a = copy
            if plan.packs == "tile":
                self._pack_panels(f, y, packed, part, (first_panel, stop_panel))
                base, origin = packed, first_panel
            elif plan.packs == "ready":
                number, row = f.divide(part.start, plan.panel_depth)
                place = f.mul(number, plan.num_panels * plan.panel_depth * plan.panel)
                base = f.at(packed, f.add(place, f.mul(row, plan.panel)), self.panel_memory)
                origin = 0
            else:
                base, origin = f.at(packed, f.mul(part.start, plan.num_panels * plan.panel), self.element), 0
            with f.loop(first_panel, stop_panel) as panels:
                rows_of_panel = plan.panel_depth if plan.packs == "ready" else part.depth
                place = f.mul(f.sub(panels.index, origin), f.mul(rows_of_panel, plan.panel))
                panel = f.at(base, place, self.panel_memory)
                c = self._result_panel(f, out, sums, panels.index, first_panel)
                ahead = self._ahead_of(f, y, part, panels.index) if plan.asks_ahead else None
                for width in self._widths(f, panels.index):
                    self._blocks(f, (a, panel, c), rows, part, width, ahead)
        if sums is not None:
            self._convert(f, sums, out, rows, (first_panel, stop_panel))

    def rows(self, f: Function, row_block: Int) -> Rows:
        """The rows of a tile."""
        plan, size = self.plan, self.plan.problem.m.size
        first = f.mul(row_block, plan.row_block)
        count: Int = min(size, plan.row_block)
        if plan.num_row_blocks > 1 and size % plan.row_block:
            count = f.minimum(f.sub(size, first), plan.row_block)
        return Rows(first, count)

    def _buffer(self, f: Function, name: str, size: int) -> Value:
        if name not in self.buffers:
            self.buffers[name] = f.allocate(size * self.plan.compute.itemsize)
        return self.buffers[name]

    def _result_panel(self, f: Function, out: Value, sums: Value | None, panel: Int, first: Int) -> Value:
        if sums is None:
            return f.at(out, f.mul(panel, self.plan.panel), self.out_memory)
        return f.at(sums, f.mul(f.sub(panel, first), self.plan.panel), self.element)

    def _copy_a(self, f: Function, a: Value, copy: Value, rows: Rows, part: _DepthBlock) -> None:
        """The rows of A that a tile needs, of one depth block."""
        plan = self.plan
        if plan.a_layout == "rows":
            for depth in self._depths(f, part.depth):
                self.pack_x.rows(f, a, copy, rows.count, depth)
            return
        if self.pack_x.is_row_major:
            number, _ = f.divide(rows.first, plan.rows)
            blocks, _ = f.divide(f.add(rows.count, plan.rows - 1), plan.rows)
            start = f.at(a, f.sub(0, rows.first), self.x_memory)  # as panels are counted from row 0 of A
            self.pack_x.panels(
                f, start, copy, part.depth, (number, f.add(number, blocks)),
                num_columns=plan.problem.m.size, width=plan.rows, rows_apart=plan.depth, start=part.start,
            )  # fmt: skip
            return
        with f.loop(0, rows.count, plan.rows) as loop:
            source = f.at(a, f.mul(loop.index, plan.problem.m.x), self.x_memory)
            target = f.at(copy, self._a_place(f, loop.index), self.element)
            for count in self._heights(f, f.add(rows.first, loop.index)):
                self.pack_x.panel(f, source, target, part.depth, count, part.start)

    def _a_place(self, f: Function, row: Int) -> Int:
        """Elements to a block of rows in the copy of A, or in A itself."""
        plan = self.plan
        if plan.a_layout == "direct":
            return f.mul(row, plan.problem.m.x)
        if plan.a_layout == "rows":
            return f.mul(row, plan.copied_row)
        number, _ = f.divide(row, plan.rows)
        return f.mul(number, plan.depth * plan.copied_row)

    def _ahead_of(self, f: Function, y: Value, part: _DepthBlock, panel: Int) -> Value:
        """Where the next depth block of a panel begins in B."""
        plan = self.plan
        row = f.add(part.start, plan.depth)
        place = f.add(f.mul(row, plan.k.y), f.mul(f.mul(panel, plan.panel), plan.problem.n.y))
        return f.at(y, place, self.y_memory)

    @property
    def _ahead(self) -> Ahead | None:
        """What a register block asks for: its share of the same panel in the next depth block."""
        plan = self.plan
        if not plan.asks_ahead:
            return None
        size, is_row_major = plan.y_dtype.itemsize, plan.problem.n.y == 1
        num_rows, length = (plan.depth, plan.panel) if is_row_major else (plan.panel, plan.depth)
        row_bytes = (plan.k.y if is_row_major else plan.problem.n.y) * size
        lines = max(1, length * size // microkernel.LINE_BYTES)  # of a row
        num_blocks = -(-plan.row_block // plan.rows)
        if num_blocks >= MANY_BLOCKS:
            return Ahead(row_bytes, lines, at_once=-(-num_rows // num_blocks))
        # A piece per step of k: together they are all rows; two blocks ask for half of the lines each.
        pieces = max(1, plan.depth // num_rows)
        num_lines = max(1, lines // pieces)
        share = num_lines if num_blocks == 1 else max(1, num_lines // 2)
        return Ahead(row_bytes, share, pieces, num_lines // share)

    def _blocks(
        self, f: Function, matrices: tuple[Value, Value, Value], rows: Rows, part: _DepthBlock, width: int,
        ahead: Value | None,
    ) -> None:  # fmt: skip
        """Call the micro-kernel for every block of rows; `matrices`: A, panels of B and of the result."""
        a, panel, c = matrices
        memory = self.element if self.plan.is_staged else self.out_memory
        kind = self._ahead
        with f.loop(0, rows.count, self.plan.rows) as loop:
            here = f.at(a, self._a_place(f, loop.index), self.element)
            there = f.at(c, f.mul(loop.index, self.plan.out_row), memory)
            is_later = f.add(part.start, 1) if self.has_row_sums else part.start
            rest = f"i64 {f.integer(part.depth)}, i64 {f.integer(is_later)}"
            if ahead is not None and kind is not None:
                number, _ = f.divide(loop.index, self.plan.rows)
                if kind.at_once:
                    offset = f.mul(number, kind.at_once * kind.row_bytes)
                else:
                    offset = f.mul(f.divide(number, kind.gap)[1], microkernel.LINE_BYTES)
                rest += f", ptr {f.at(ahead, offset, 'i8')}"
            for height in self._heights(f, f.add(rows.first, loop.index)):
                name = self._helper(height, width)
                f.do(f"call void @{name}(ptr {here}, ptr {panel}, ptr {there}, {rest})")

    def _helper(self, height: int, width: int) -> str:
        """The micro-kernel for a block of this size."""
        plan = self.plan
        name = f"{self.prefix}_{height}x{width}"
        if (height, width) not in self.helpers:
            a_row, a_depth = {
                "direct": (plan.problem.m.x, 1), "rows": (plan.copied_row, 1), "panels": (1, plan.copied_row)
            }[plan.a_layout]  # fmt: skip
            block = Block(
                rows=height,
                lanes=plan.lanes,
                vectors=-(-width // plan.lanes),  # a narrow edge needs fewer registers per row
                width=plan.panel if plan.is_staged else width,
                a_row=a_row,
                a_depth=a_depth,
                panel=plan.panel,
                out_row=plan.out_row,
                compute=plan.compute,
                out=plan.compute if plan.is_staged else plan.out_dtype,
                stored=plan.y_dtype if plan.packs == "ready" else None,
                ahead=self._ahead,
                is_paired=plan.pairs is not None,
                unsigned=None if plan.pairs is None else plan.pairs.unsigned,
            )
            depths = {plan.depth, plan.k.size % plan.depth} if plan.num_depth_blocks > 1 else {plan.k.size}
            has_tail = any(depth % microkernel.UNROLL for depth in depths)
            self.helpers[height, width] = microkernel.emit_block(
                name, block, has_tail=has_tail, adds=plan.num_depth_blocks > 1 or self.has_row_sums
            )
        return name

    def _convert(self, f: Function, sums: Value, out: Value, rows: Rows, panels: tuple[Int, Int]) -> None:
        """Round the sums of a tile into the result."""
        plan = self.plan
        with f.loop(0, rows.count) as row, f.loop(*panels) as panel:
            here = f.at(sums, f.mul(row.index, plan.out_row), self.element)
            here = f.at(here, f.mul(f.sub(panel.index, panels[0]), plan.panel), self.element)
            there = f.at(out, f.mul(row.index, plan.problem.m.out), self.out_memory)
            there = f.at(there, f.mul(panel.index, plan.panel), self.out_memory)
            for width in self._widths(f, panel.index):
                for start in range(0, width, plan.lanes):
                    x = registers.load(f, f.at(here, start, self.element), plan.compute, plan.lanes)
                    active = min(plan.lanes, width - start)
                    mask = None if active == plan.lanes else f.first_lanes(active, plan.lanes)
                    place = f.at(there, start, self.out_memory)
                    registers.store(f, registers.rounded(f, x, plan.out_dtype), place, plan.out_dtype, mask)

    # --- edges: each size is yielded inside the branch that is taken for it ---------------------

    def _widths(self, f: Function, panel: Int) -> Iterator[int]:
        """Widths a panel may have."""
        plan = self.plan
        yield from _sizes(f, panel, plan.num_panels, plan.panel, plan.problem.n.size % plan.panel)

    def _heights(self, f: Function, row: Int) -> Iterator[int]:
        """Numbers of rows that the register block at a row may have."""
        plan, size = self.plan, self.plan.problem.m.size
        number, _ = f.divide(row, plan.rows)
        yield from _sizes(f, number, -(-size // plan.rows), plan.rows, size % plan.rows)

    def _depths(self, f: Function, depth: Int) -> Iterator[int]:
        """Lengths that a depth block may have."""
        if isinstance(depth, int):
            yield depth
            return
        number = f.convert("zext", f.compare("ne", depth, f.integer(self.plan.depth)), depth.type)
        yield from _sizes(f, number, 2, self.plan.depth, self.plan.k.size % self.plan.depth)


def _sizes(f: Function, number: Int, count: int, usual: int, rest: int) -> Iterator[int]:
    """The sizes of block `number` of `count`, of which the last has `rest` elements unless that is 0."""
    if rest == 0:
        yield usual
    elif count == 1:
        yield rest
    else:
        is_last = f.compare("eq", f.integer(number), f.integer(count - 1))
        with f.when(f.binary("xor", is_last, f.constant(True, I1))):
            yield usual
        with f.when(is_last):
            yield rest


def _sources(plan: Plan) -> tuple[Source, Source]:
    """The operands of a product for those who copy them."""
    x = Source(plan.x_dtype, plan.k.x, plan.problem.m.x)
    y = Source(plan.y_dtype, plan.k.y, plan.problem.n.y)
    pairs = plan.pairs
    if pairs is None:
        return x, y

    def grouped(source: Source, pair: int, *, turns: bool) -> Source:
        return dataclasses.replace(
            source, pair=pair, count=pairs.count, num_groups=plan.k.size, tail=pairs.tail, turns=turns
        )

    return grouped(x, pairs.x_pair, turns=False), grouped(y, pairs.y_pair, turns=pairs.row_factor != 0)
