"""Contractions as native code: blocked matrix products of our own, and streaming loops where nothing would be reused.

The blocked product follows K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (ACM TOMS, 2008):
panels of B packed once, blocks of A copied by each task, a register block inside. A task computes a whole tile of the result
over all of k, so results do not depend on the number of threads. 16-bit floats are converted while they are packed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm import builder as b
from infini.compiler.llvm import contraction, microkernel, packing, registers, skinny, streaming
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.contraction import Dimension, Problem
from infini.compiler.llvm.microkernel import Block
from infini.compiler.llvm.packing import Source
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.core import dtypes
from infini.core.ir import ArrayType

TILE_DEPTH = 64  # rows of B that a task packs at once when nobody else needs them
DEPTH_BLOCK = 256  # rows of a packed panel, so that it stays in the first-level cache
ROW_BLOCK = 96  # rows of A per task
COLUMN_BLOCK = 512  # columns per task, so that DEPTH_BLOCK rows of B stay in the second-level cache
LOCAL_BYTES = 128 << 10  # largest B that a task packs on its stack
LOCAL_FLOPS = 2e7  # largest product that is one task
SMALL_FLOPS = 1.5e6  # a single product below this is one task
TASK_FLOPS = 2e6
MIN_TILES = 16  # so that several threads get equal shares
PACK_BYTES = 128 << 10  # of one packing task
NS_PER_FLOP = 0.012
NS_PER_PACKED_BYTE = 0.1
MIN_ROWS = 4  # with fewer rows B is used too seldom to be packed


def emit_contraction(
    x: ArrayType, y: ArrayType, *, spec: str, dtype: np.dtype, target: Target
) -> tuple[TaskFunction, ...]:
    """Native code of the operation `dot`.

    Args:
        x: type of the left operand.
        y: type of the right operand.
        spec: letters of both operands and of the result; dimensions left of them are loops and broadcast.
        dtype: dtype of the result.
        target: processor to make code for.

    Returns:
        Phases to run one after the other, all with `args` x, y, result and, when any has scratch_bytes, scratch.

    Raises:
        LoweringError: the emitter does not compute with a dtype.
    """
    problem = contraction.analyse(x, y, spec)
    sides = (y, x) if problem.is_swapped else (x, y)
    is_dense = problem.n.out == 1 or problem.n.size == 1
    compute = compute_dtype(dtype)
    if problem.flops == 0 or not dtypes.is_float(compute) or not is_dense or len(problem.k) > 1:
        return streaming.emit(x, y, spec, dtype, compute, target)
    if skinny.is_suited(problem, sides[1].dtype):
        return skinny.emit(problem, sides[0].dtype, sides[1].dtype, dtype, compute, target)
    if problem.m.size < MIN_ROWS or problem.n.size < MIN_ROWS:
        return streaming.emit(x, y, spec, dtype, compute, target)
    plan = _make_plan(problem, sides[0].dtype, sides[1].dtype, dtype, target)
    return _Emission(plan).phases()


def compute_dtype(dtype: np.dtype) -> np.dtype:
    """Dtype of products and sums for a result of `dtype`."""
    return dtypes.float32 if dtypes.is_float(dtype) and dtype.itemsize <= 2 else dtype


@dataclass(frozen=True, slots=True)
class _Plan:
    """Blocking of a product."""

    problem: Problem
    x_dtype: np.dtype
    y_dtype: np.dtype
    out_dtype: np.dtype
    compute: np.dtype
    rows: int  # of a register block
    vectors: int
    lanes: int
    depth: int  # of a packed panel
    row_block: int
    column_block: int
    a_layout: str  # "direct", "rows" or "panels"
    packs: str  # who packs B: an own "phase", each "task" a whole matrix, or each "tile" what it needs
    batches_per_task: int

    @property
    def panel(self) -> int:
        """Columns of a packed panel."""
        return self.vectors * self.lanes

    @property
    def num_panels(self) -> int:
        """Panels of one matrix."""
        return -(-self.problem.n.size // self.panel)

    @property
    def k(self) -> Dimension:
        """The contracted dimension."""
        return self.problem.k[0]

    @property
    def num_row_blocks(self) -> int:
        """Blocks along m."""
        return -(-self.problem.m.size // self.row_block)

    @property
    def num_column_blocks(self) -> int:
        """Blocks along n."""
        return -(-self.problem.n.size // self.column_block)

    @property
    def packed_size(self) -> int:
        """Elements of one packed matrix."""
        return self.k.size * self.num_panels * self.panel

    @property
    def y_batch(self) -> tuple[Dimension, ...]:
        """Batch dimensions along which B changes."""
        return tuple(d for d in self.problem.batch if d.y)

    @property
    def is_local(self) -> bool:
        """Whether a task is made of whole products."""
        return self.packs == "task"

    @property
    def num_packed(self) -> int:
        """Different matrices B."""
        return int(np.prod([d.size for d in self.y_batch], dtype=np.int64))

    @property
    def num_depth_blocks(self) -> int:
        """Blocks along k."""
        return -(-self.k.size // self.depth)


def _make_plan(
    problem: Problem, x_dtype: np.dtype, y_dtype: np.dtype, out_dtype: np.dtype, target: Target
) -> _Plan:
    compute = compute_dtype(out_dtype)
    m, n, (k,) = problem.m.size, problem.n.size, problem.k
    rows, vectors, lanes = microkernel.block_size(target, m, compute)
    panel = vectors * lanes
    # A result that is not kept in the compute dtype cannot be added to, so all of k is one block.
    depth = k.size if out_dtype != compute else _even_block(k.size, DEPTH_BLOCK, microkernel.UNROLL)
    one = problem.flops / problem.num_batches
    padded = -(-n // panel) * panel
    is_local = padded * k.size * compute.itemsize <= LOCAL_BYTES and (
        problem.flops <= SMALL_FLOPS or (problem.num_batches >= 4 and one <= LOCAL_FLOPS)
    )
    packs = "task" if is_local else "tile" if m <= ROW_BLOCK else "phase"
    if packs == "tile" and out_dtype == compute:
        depth = _even_block(k.size, TILE_DEPTH, microkernel.UNROLL)
    a_bytes = compute.itemsize * depth
    row_block = _even_block(m, min(ROW_BLOCK, max(rows, (192 << 10) // a_bytes)), rows)
    columns = COLUMN_BLOCK if packs == "phase" else max(panel, LOCAL_BYTES // a_bytes // panel * panel)
    column_block = padded if is_local else _even_block(padded, min(columns, COLUMN_BLOCK), panel)
    if not is_local:
        wanted = min(MIN_TILES, problem.flops / TASK_FLOPS)
        while column_block >= 8 * panel and _tiles(problem, row_block, column_block) < wanted:
            column_block = _even_block(padded, column_block // 2, panel)
        while row_block >= 4 * rows and _tiles(problem, row_block, column_block) < wanted:
            row_block = _even_block(m, row_block // 2, rows)
    is_direct = x_dtype == compute and k.x == 1 and k.size <= 512 and (problem.m.x * compute.itemsize) % 2048
    a_layout = "direct" if is_direct else "rows" if k.x == 1 else "panels"
    batches = max(1, round(TASK_FLOPS / one)) if is_local else 1
    if problem.flops <= SMALL_FLOPS:
        batches = problem.num_batches
    return _Plan(
        problem, x_dtype, y_dtype, out_dtype, compute, rows, vectors, lanes, depth, row_block, column_block,
        a_layout, packs, batches,
    )  # fmt: skip


def _tiles(problem: Problem, row_block: int, column_block: int) -> int:
    return problem.num_batches * -(-problem.m.size // row_block) * -(-problem.n.size // column_block)


def _even_block(size: int, largest: int, unit: int) -> int:
    """A block size of at most about `largest`, a multiple of `unit`, that cuts `size` into equal parts."""
    parts = -(-size // max(largest, unit))
    return -(-(-(-size // parts)) // unit) * unit


class _Emission:
    """Writes the phases of a blocked product."""

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan
        self.element = registers.memory_element(plan.compute)
        self.x_source = Source(plan.x_dtype, plan.k.x, plan.problem.m.x)
        self.y_source = Source(plan.y_dtype, plan.k.y, plan.problem.n.y)
        self.helpers: dict[tuple[int, int], Function] = {}

    def phases(self) -> tuple[TaskFunction, ...]:
        """Packing, unless each task packs its own, and computing."""
        plan, problem = self.plan, self.plan.problem
        compute = self._finish("gemm", self._compute(), self._num_tasks(), problem.flops * NS_PER_FLOP)
        if plan.packs != "phase":
            return (compute,)
        nbytes = plan.num_packed * plan.packed_size * plan.compute.itemsize
        group = self._panels_per_task()
        tasks = plan.num_packed * plan.num_depth_blocks * -(-plan.num_panels // group)
        pack = self._finish("pack", self._pack(group), tasks, nbytes * NS_PER_PACKED_BYTE)
        return dataclasses.replace(pack, scratch_bytes=nbytes), compute

    def _finish(self, kind: str, functions: Sequence[Function], num_tasks: int, cost_ns: float) -> TaskFunction:
        text = "".join(f.finish() for f in functions)
        name = f"{kind}_{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"
        declares = frozenset().union(*(f.declares for f in functions))
        return TaskFunction(name, text.replace("@TASK", f"@{name}"), declares, num_tasks, 0, cost_ns)

    def _arguments(self, f: Function) -> tuple[Value, Value, Value, Value | None]:
        """Pointers to x, y, result and scratch, after the operands have been exchanged if they are."""
        has_scratch = self.plan.packs == "phase"
        places = [0, 1, 2, 3] if has_scratch else [0, 1, 2]
        if self.plan.problem.is_swapped:
            places[0], places[1] = 1, 0
        found = [f.load(f.at(f.parameters[0], i, "ptr"), b.PTR, is_invariant=True) for i in places]
        return found[0], found[1], found[2], found[3] if has_scratch else None

    # --- packing B ------------------------------------------------------------------------

    def _panels_per_task(self) -> int:
        plan = self.plan
        panel_bytes = plan.depth * plan.panel * plan.compute.itemsize
        return max(1, min(plan.num_panels, PACK_BYTES // panel_bytes))

    def _pack(self, group: int) -> list[Function]:
        plan = self.plan
        f = Function("TASK", [(b.PTR, "args"), (b.I64, "task")])
        _, y, _, scratch = self._arguments(f)
        assert scratch is not None
        rest, part = f.divide(f.parameters[1], -(-plan.num_panels // group))
        batch, block = f.divide(rest, plan.num_depth_blocks)
        y = f.at(y, self._batch_offset(f, batch, plan.y_batch, "y"), registers.memory_element(plan.y_dtype))
        target = f.at(scratch, f.mul(batch, plan.packed_size), self.element)
        start = f.mul(block, plan.depth)
        depth = self._block_depth(f, start)
        first = f.mul(part, group)
        self._pack_block(f, y, target, start, depth, first, f.minimum(f.add(first, group), plan.num_panels))
        return [f]

    def _pack_block(self, f: Function, y: Value, target: Value, start: Int, depth: Int, first: Int, stop: Int) -> None:
        """Panels `first` to `stop` of one depth block, into a packed matrix."""
        block = f.at(target, f.mul(start, self.plan.num_panels * self.plan.panel), self.element)
        self._pack_panels(f, y, block, start, depth, first, stop, 0)

    def _pack_panels(
        self, f: Function, y: Value, block: Value, start: Int, depth: Int, first: Int, stop: Int, origin: Int
    ) -> None:
        """Panels `first` to `stop` of one depth block; panel `origin` is the first in `block`."""
        plan = self.plan
        memory = registers.memory_element(plan.y_dtype)
        y = f.at(y, f.mul(start, plan.k.y), memory)
        with f.loop(first, stop) as loop:
            source = f.at(y, f.mul(loop.index, plan.panel * plan.problem.n.y), memory)
            there = f.at(block, f.mul(f.sub(loop.index, origin), f.mul(depth, plan.panel)), self.element)
            for width, _ in self._panel_cases(f, loop.index):
                packing.pack_panel(
                    f, self.y_source, source, there, depth, width, plan.panel, plan.lanes, plan.compute
                )

    def _panel_cases(self, f: Function, panel: Int) -> Iterator[tuple[int, bool]]:
        """The widths a panel may have, each inside a branch for it."""
        plan = self.plan
        rest = plan.problem.n.size % plan.panel
        yield from _cases(f, panel, plan.num_panels, plan.panel, rest or plan.panel)

    def _block_depth(self, f: Function, start: Int) -> Int:
        plan = self.plan
        if plan.k.size % plan.depth == 0:
            return plan.depth
        if plan.num_depth_blocks == 1:
            return plan.k.size
        return f.minimum(f.sub(plan.k.size, start), plan.depth)

    def _batch_offset(self, f: Function, batch: Int, dimensions: Sequence[Dimension], which: str) -> Int:
        """Elements to the matrix number `batch`."""
        offset: Int = 0
        for d in reversed(dimensions):
            batch, place = f.divide(batch, d.size) if d is not dimensions[0] else (0, batch)
            offset = f.add(offset, f.mul(place, getattr(d, which)))
        return offset

    # --- computing ------------------------------------------------------------------------

    def _num_tasks(self) -> int:
        plan = self.plan
        if plan.is_local:
            return -(-plan.problem.num_batches // plan.batches_per_task)
        return plan.problem.num_batches * plan.num_row_blocks * plan.num_column_blocks

    def _compute(self) -> list[Function]:
        plan, problem = self.plan, self.plan.problem
        f = Function("TASK", [(b.PTR, "args"), (b.I64, "task")])
        x, y, out, scratch = self._arguments(f)
        with contextlib.ExitStack() as regions:
            if plan.is_local:
                batch = self._local_batches(f, regions)
                row_block: Int = 0
                column_block: Int = 0
                scratch = f.allocate(plan.packed_size * plan.compute.itemsize)
                y = f.at(y, self._batch_offset(f, batch, problem.batch, "y"), registers.memory_element(plan.y_dtype))
                with f.loop(0, plan.k.size, plan.depth) as loop:
                    self._pack_block(f, y, scratch, loop.index, self._block_depth(f, loop.index), 0, plan.num_panels)
            else:
                rest, row_block = f.divide(f.parameters[1], plan.num_row_blocks)
                batch, column_block = f.divide(rest, plan.num_column_blocks)
                y = f.at(y, self._batch_offset(f, batch, problem.batch, "y"), registers.memory_element(plan.y_dtype))
                if scratch is None:
                    scratch = f.allocate(plan.depth * plan.column_block * plan.compute.itemsize)
                else:
                    scratch = f.at(scratch, self._packed_offset(f, batch), self.element)
            x = f.at(x, self._batch_offset(f, batch, problem.batch, "x"), registers.memory_element(plan.x_dtype))
            out = f.at(out, self._batch_offset(f, batch, problem.batch, "out"), registers.memory_element(plan.out_dtype))
            if plan.is_local:
                with f.loop(0, plan.num_row_blocks) as loop:
                    self._tile(f, x, y, scratch, out, loop.index, column_block)
            else:
                self._tile(f, x, y, scratch, out, row_block, column_block)
        return [*self.helpers.values(), f]

    def _local_batches(self, f: Function, regions: contextlib.ExitStack) -> Int:
        plan = self.plan
        count = plan.problem.num_batches
        if count == 1:
            return 0
        if plan.batches_per_task == 1:
            return f.parameters[1]
        first = f.mul(f.parameters[1], plan.batches_per_task)
        stop = f.minimum(f.add(first, plan.batches_per_task), count)
        return regions.enter_context(f.loop(first, stop, runs=True)).index

    def _packed_offset(self, f: Function, batch: Int) -> Int:
        """Elements to the packed matrix of a batch; batches that share B share it."""
        plan = self.plan
        sizes = [d.size for d in plan.problem.batch]
        number: Int = 0
        factor = plan.num_packed
        places: list[Int] = []
        for size in reversed(sizes[1:]):
            batch, place = f.divide(batch, size)
            places.append(place)
        places = [batch, *reversed(places)] if sizes else []
        for d, place in zip(plan.problem.batch, places, strict=True):
            if d.y:
                factor //= d.size
                number = f.add(number, f.mul(place, factor))
        return f.mul(number, plan.packed_size)

    def _tile(
        self, f: Function, x: Value, y: Value, packed: Value, out: Value, row_block: Int, column_block: Int
    ) -> None:
        """One tile of the result over all of k."""
        plan, m = self.plan, self.plan.problem.m
        first_row = f.mul(row_block, plan.row_block)
        num_rows: Int = plan.row_block
        if m.size % plan.row_block:
            num_rows = m.size if plan.num_row_blocks == 1 else f.minimum(f.sub(m.size, first_row), plan.row_block)
        panels = plan.column_block // plan.panel
        first_panel = f.mul(column_block, panels)
        stop_panel: Int = f.add(first_panel, panels)
        if plan.num_panels % panels:
            stop_panel = f.minimum(stop_panel, plan.num_panels)
        copy = None if plan.a_layout == "direct" else f.allocate(self._copy_size() * plan.compute.itemsize)
        x = f.at(x, f.mul(first_row, m.x), registers.memory_element(plan.x_dtype))
        out = f.at(out, f.mul(first_row, m.out), registers.memory_element(plan.out_dtype))
        with f.loop(0, plan.num_depth_blocks) as depth_loop:
            start = f.mul(depth_loop.index, plan.depth)
            depth = self._block_depth(f, start)
            a = f.at(x, f.mul(start, plan.k.x), registers.memory_element(plan.x_dtype))
            if copy is not None:
                self._copy_a(f, a, copy, num_rows, depth, first_row)
            origin: Int = 0
            base = packed
            if plan.packs == "tile":
                origin = first_panel
                self._pack_panels(f, y, base, start, depth, first_panel, stop_panel, origin)
            else:
                base = f.at(packed, f.mul(start, plan.num_panels * plan.panel), self.element)
            with f.loop(first_panel, stop_panel) as panel_loop:
                place = f.mul(f.sub(panel_loop.index, origin), f.mul(depth, plan.panel))
                panel = f.at(base, place, self.element)
                c = f.at(out, f.mul(panel_loop.index, plan.panel), registers.memory_element(plan.out_dtype))
                for width, _ in self._panel_cases(f, panel_loop.index):
                    with f.loop(0, num_rows, plan.rows) as rows_loop:
                        self._block(f, rows_loop.index, first_row, width, a if copy is None else copy, panel, c, depth, start)

    def _copy_size(self) -> int:
        plan = self.plan
        if plan.a_layout == "rows":
            return plan.row_block * self._copied_row()
        return plan.row_block // plan.rows * plan.depth * self._a_panel()

    def _copied_row(self) -> int:
        """Elements of a copied row of A: not a power of two, so that rows do not share cache sets."""
        return -(-self.plan.depth // 16) * 16 + 16

    def _a_panel(self) -> int:
        """Elements of a row of a packed panel of A."""
        return -(-self.plan.rows // self.plan.lanes) * self.plan.lanes

    def _copy_a(self, f: Function, a: Value, copy: Value, num_rows: Int, depth: Int, first_row: Int) -> None:
        """The rows of A that this tile needs, of one depth block."""
        plan = self.plan
        if plan.a_layout == "rows":
            last = plan.k.size - (plan.num_depth_blocks - 1) * plan.depth
            for static_depth in _depth_cases(f, depth, plan.depth, last):
                packing.copy_rows(
                    f, self.x_source, a, copy, num_rows, static_depth, self._copied_row(), plan.lanes, plan.compute
                )
            return
        memory = registers.memory_element(plan.x_dtype)
        with f.loop(0, num_rows, plan.rows) as loop:
            source = f.at(a, f.mul(loop.index, plan.problem.m.x), memory)
            there = f.at(copy, self._a_place(f, loop.index), self.element)
            for count in self._row_cases(f, f.add(first_row, loop.index)):
                packing.pack_panel(f, self.x_source, source, there, depth, count, self._a_panel(), plan.lanes, plan.compute)

    def _a_place(self, f: Function, row: Int) -> Int:
        """Elements to a block of rows in what `_copy_a` wrote, or in A itself."""
        plan = self.plan
        if plan.a_layout == "direct":
            return f.mul(row, plan.problem.m.x)
        if plan.a_layout == "rows":
            return f.mul(row, self._copied_row())
        number, _ = f.divide(row, plan.rows)
        return f.mul(number, plan.depth * self._a_panel())

    def _row_cases(self, f: Function, row: Int) -> Iterator[int]:
        """The numbers of rows a register block may have, each inside a branch for it."""
        plan = self.plan
        size = plan.problem.m.size
        number, _ = f.divide(row, plan.rows)
        for count, _ in _cases(f, number, -(-size // plan.rows), plan.rows, size % plan.rows or plan.rows):
            yield count

    def _block(
        self, f: Function, row: Int, first_row: Int, width: int, a: Value, panel: Value, c: Value, depth: Int, start: Int
    ) -> None:
        """Call the micro-kernel for one register block."""
        plan = self.plan
        here = f.at(a, self._a_place(f, row), self.element)
        there = f.at(c, f.mul(row, plan.problem.m.out), registers.memory_element(plan.out_dtype))
        for count in self._row_cases(f, f.add(first_row, row)):
            name = self._helper(count, width)
            f.do(
                f"call void @{name}(ptr {here}, ptr {panel}, ptr {there}, i64 {f.integer(depth)}, i64 {f.integer(start)})"
            )

    def _helper(self, rows: int, width: int) -> str:
        """The micro-kernel for a block of this size."""
        if (rows, width) not in self.helpers:
            plan = self.plan
            a_row, a_depth = {
                "direct": (plan.problem.m.x, 1),
                "rows": (self._copied_row(), 1),
                "panels": (1, self._a_panel()),
            }[plan.a_layout]
            # A narrow edge needs fewer registers per row.
            vectors = -(-width // plan.lanes)
            block = Block(
                rows, plan.lanes, vectors, width, a_row, a_depth, plan.panel, plan.problem.m.out, plan.compute, plan.out_dtype
            )
            has_tail = plan.k.size % plan.depth % microkernel.UNROLL != 0 or plan.depth % microkernel.UNROLL != 0
            self.helpers[rows, width] = microkernel.emit_block(f"TASK_{rows}x{width}", block, has_tail=has_tail)
        return f"TASK_{rows}x{width}"


def _cases(f: Function, number: Int, count: int, usual: int, last: int) -> Iterator[tuple[int, bool]]:
    """The sizes of block `number` of `count`: each is yielded inside a branch that is taken for it."""
    if usual == last or count == 1:
        yield last, True
        return
    if isinstance(number, int):
        yield (last if number == count - 1 else usual), True
        return
    is_last = f.compare("eq", number, f.integer(count - 1))
    with f.when(f.binary("xor", is_last, f.constant(True, b.I1))):
        yield usual, False
    with f.when(is_last):
        yield last, True


def _depth_cases(f: Function, depth: Int, usual: int, last: int) -> Iterator[int]:
    if isinstance(depth, int):
        yield depth
        return
    is_usual = f.compare("eq", depth, f.integer(usual))
    with f.when(is_usual):
        yield usual
    with f.when(f.binary("xor", is_usual, f.constant(True, b.I1))):
        yield last
