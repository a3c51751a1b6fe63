"""Task functions of blocked matrix products: packing B, tiles of the result, and what runs on a tile while it
is in the cache.

A task computes the same tile of one or more products of equal shape. A result that nobody else reads stays in
memory of the task, from where the work behind it (see `epilogues`) takes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from infini.compiler.llvm import registers
from infini.compiler.llvm.blocking import Plan
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.contraction import Dimension
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.tile import TileWriter
from infini.compiler.llvm.types import I64, PTR

PACK_BYTES: Final = 128 << 10  # of one packing task
NS_PER_FLOP: Final = 0.012
NS_PER_PACKED_BYTE: Final = 0.1
MAX_STACK_BYTES: Final = 384 << 10  # a thread of the system may have half a megabyte


@dataclass(frozen=True, slots=True)
class Product:
    """A product, and which arguments of the task functions are its x, y and result; without a result, tiles
    stay in memory of the task. Its columns begin `start` elements into y.
    """

    plan: Plan
    x: int
    y: int
    result: int | None
    start: int = 0


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile that has been computed.

    Args:
        batch: number of the product in its batch.
        row: first row.
        num_rows: how many there are.
        column_block: number of the block of columns.
        memory: of each product, the first element and the elements from row to row.
    """

    batch: Int
    row: Int
    num_rows: Int
    column_block: Int
    memory: tuple[tuple[Value, int], ...]


class Epilogue(Protocol):
    """What runs on every tile."""

    @property
    def cost_ns(self) -> float:
        """Estimated time on one thread."""

    def write(self, f: Function, pointers: Sequence[Value], tile: Tile) -> None:
        """Write it into a task function, with pointers to all arguments."""


def emit(
    products: Sequence[Product], num_arguments: int, epilogue: Epilogue | None = None
) -> tuple[TaskFunction, ...]:
    """Task functions to run one after the other: packing, unless each task packs its own, and computing.

    Args:
        products: with as many rows, columns, blocks and batches each, and packed in the same way.
        num_arguments: operands and results; scratch memory comes after them.
        epilogue: what runs on every tile.

    Returns:
        The functions; none when an epilogue needs more memory than the stack of a thread has.
    """
    return _Emission(products, num_arguments, epilogue).phases()


def places(f: Function, number: Int, dimensions: Sequence[Dimension]) -> list[Int]:
    """A number in a batch as one index per dimension."""
    found: list[Int] = []
    for d in reversed(dimensions[1:]):
        number, place = f.divide(number, d.size)
        found.append(place)
    return [number, *reversed(found)] if dimensions else []


class _Emission:
    """Writes the task functions."""

    def __init__(self, products: Sequence[Product], num_arguments: int, epilogue: Epilogue | None) -> None:
        self.products, self.num_arguments, self.epilogue = products, num_arguments, epilogue
        self.plan = products[0].plan  # of which everything but operands and packing holds for all
        self.writers: dict[Plan, TileWriter] = {}
        self.tiles = [self._writer(_kept(p.plan) if p.result is None else p.plan) for p in products]
        sizes = [p.plan.num_packed * p.plan.packed_size * p.plan.compute.itemsize for p in products]
        self.packed_starts = [sum(-(-n // 64) * 64 for n in sizes[:i]) for i in range(len(sizes) + 1)]

    def _writer(self, plan: Plan) -> TileWriter:
        """One for equal plans, so that they share their helpers."""
        suffix = chr(ord("a") + len(self.writers)) if self.writers else ""
        return self.writers.setdefault(plan, TileWriter(plan, f"TASK{suffix}"))

    def phases(self) -> tuple[TaskFunction, ...]:
        """All of them, in order."""
        plan = self.plan
        cost = sum(p.plan.problem.flops for p in self.products) * NS_PER_FLOP
        cost += self.epilogue.cost_ns if self.epilogue is not None else 0.0
        if plan.packs == "task":
            main, tasks = self._products(), -(-plan.problem.num_batches // plan.batches_per_task)
        else:
            main = self._tile()
            tasks = plan.problem.num_batches * plan.num_row_blocks * plan.num_column_blocks
        if self.epilogue is not None and main.stack_bytes > MAX_STACK_BYTES:
            return ()
        helpers = [f for writer in self.writers.values() for f in writer.helpers.values()]
        compute = _finish("gemm", [main, *helpers], tasks, cost)
        return (self._pack(), compute) if plan.packs == "phase" else (compute,)

    def _start(self) -> tuple[Function, list[Value]]:
        """A task function, and pointers to all arguments."""
        f = Function("TASK", [(PTR, "args"), (I64, "task")])
        count = self.num_arguments + (self.plan.packs == "phase")
        return f, [f.load(f.at(f.parameters[0], i, "ptr"), PTR, is_invariant=True) for i in range(count)]

    # --- the phase that packs B -----------------------------------------------------------------

    def _pack(self) -> TaskFunction:
        """A task packs some panels of a depth block."""
        f, pointers = self._start()
        total = 0
        for number, product in enumerate(self.products):
            tasks = product.plan.num_packed * product.plan.num_depth_blocks * _pack_groups(product.plan)[1]
            if len(self.products) == 1:
                self._pack_panels(f, pointers, number, f.parameters[1])
            else:
                own = f.integer(f.sub(f.parameters[1], total))
                with f.when(f.compare("ult", own, f.integer(tasks))):
                    # Nothing that depends on the number may leave the branch.
                    own = f.here(f"add i64 {own}, 0", I64)
                    self._pack_panels(f, pointers, number, own)
            total += tasks
        nbytes = self.packed_starts[-1]
        packed = _finish("pack", [f], total, nbytes * NS_PER_PACKED_BYTE)
        return dataclasses.replace(packed, scratch_bytes=nbytes)

    def _pack_panels(self, f: Function, pointers: Sequence[Value], number: int, task: Int) -> None:
        product = self.products[number]
        plan = product.plan
        group, groups = _pack_groups(plan)
        rest, part = f.divide(task, groups)
        batch, block = f.divide(rest, plan.num_depth_blocks)
        y = _moved(f, _second(f, pointers, product), plan.y_dtype, _offset(f, batch, plan.y_batch, "y"))
        scratch = f.at(pointers[self.num_arguments], self.packed_starts[number], "i8")
        target = _moved(f, scratch, plan.compute, f.mul(batch, plan.packed_size))
        first = f.mul(part, group)
        panels = (first, f.minimum(f.add(first, group), plan.num_panels))
        self.tiles[number].pack_depth_block(f, y, target, f.mul(block, plan.depth), panels)

    # --- the phase that computes ------------------------------------------------------------------

    def _tile(self) -> Function:
        """A task is one tile of one product of the batch."""
        plan = self.plan
        f, pointers = self._start()
        rest, row_block = f.divide(f.parameters[1], plan.num_row_blocks)
        batch, column_block = f.divide(rest, plan.num_column_blocks)
        self._compute(f, pointers, batch, (row_block, column_block), self._packed(f, pointers, batch))
        return f

    def _packed(self, f: Function, pointers: Sequence[Value], batch: Int) -> list[Value]:
        """Where panels of each product are, or are put by the task."""
        found = []
        shared: dict[int, Value] = {}  # memory that one product after the other packs into
        for number, product in enumerate(self.products):
            plan = product.plan
            if plan.packs == "ready":
                y = _second(f, pointers, product)
                place = _moved(f, y, plan.panels, _packed_offset(f, plan, batch))
            elif plan.packs == "phase":
                scratch = f.at(pointers[self.num_arguments], self.packed_starts[number], "i8")
                place = _moved(f, scratch, plan.compute, _packed_offset(f, plan, batch))
            else:
                nbytes = plan.depth * plan.column_block * plan.compute.itemsize
                if nbytes not in shared:
                    shared[nbytes] = f.allocate(nbytes)
                place = shared[nbytes]
            found.append(place)
        return found

    def _products(self) -> Function:
        """A task is one or more whole products; it packs B on its stack."""
        plan = self.plan
        f, pointers = self._start()
        count = plan.problem.num_batches
        with contextlib.ExitStack() as regions:
            batch: Int = f.parameters[1] if count > 1 else 0
            if plan.batches_per_task > 1 and count > 1:
                first = f.mul(batch, plan.batches_per_task)
                stop = f.minimum(f.add(first, plan.batches_per_task), count)
                batch = regions.enter_context(f.loop(first, stop, runs=True)).index
            packed = [f.allocate(p.plan.packed_size * p.plan.compute.itemsize) for p in self.products]
            for product, tiles, place in zip(self.products, self.tiles, packed, strict=True):
                own, dimensions = product.plan, product.plan.problem.batch
                y = _second(f, pointers, product)
                y = _moved(f, y, own.y_dtype, _offset(f, batch, dimensions, "y"))
                with f.loop(0, own.k.size, own.depth) as loop:
                    tiles.pack_depth_block(f, y, place, loop.index, (0, own.num_panels))
            with f.loop(0, plan.num_row_blocks) as rows, f.loop(0, plan.num_column_blocks) as columns:
                row: Int = rows.index if plan.num_row_blocks > 1 else 0
                column: Int = columns.index if plan.num_column_blocks > 1 else 0
                self._compute(f, pointers, batch, (row, column), packed)
        return f

    def _compute(
        self,
        f: Function,
        pointers: Sequence[Value],
        batch: Int,
        block: tuple[Int, Int],
        packed: Sequence[Value],
    ) -> None:
        """A tile of every product, and then the epilogue."""
        plan = self.plan
        row, column = f.mul(block[0], plan.row_block), f.mul(block[1], plan.column_block)
        memory = []
        for product, tiles, panels in zip(self.products, self.tiles, packed, strict=True):
            own = tiles.plan
            dimensions = own.problem.batch
            x = _moved(f, pointers[product.x], own.x_dtype, _offset(f, batch, dimensions, "x"))
            y = _second(f, pointers, product)
            if own.packs != "ready":
                y = _moved(f, y, own.y_dtype, _offset(f, batch, dimensions, "y"))
            place = f.add(f.mul(row, own.problem.m.out), column)
            if product.result is None:
                here = f.allocate(own.row_block * own.column_block * own.out_dtype.itemsize)
                out = _moved(f, here, own.out_dtype, f.sub(0, place))
            else:
                result = pointers[product.result]
                out = _moved(f, result, own.out_dtype, _offset(f, batch, dimensions, "out"))
                here = _moved(f, out, own.out_dtype, place) if self.epilogue is not None else out
            tiles.write(f, (x, y, panels, out), *block)
            memory.append((here, own.problem.m.out))
        if self.epilogue is not None:
            num_rows = self.tiles[0].rows(f, block[0]).count
            self.epilogue.write(f, pointers, Tile(batch, row, num_rows, block[1], tuple(memory)))


def _kept(plan: Plan) -> Plan:
    """The plan of a product whose tiles lie alone in memory of the task."""
    problem = plan.problem
    batch = tuple(dataclasses.replace(d, out=0) for d in problem.batch)
    m = dataclasses.replace(problem.m, out=plan.column_block)
    return dataclasses.replace(plan, problem=dataclasses.replace(problem, batch=batch, m=m))


def _pack_groups(plan: Plan) -> tuple[int, int]:
    """Panels that a task packs, and tasks of a depth block."""
    panel_bytes = plan.depth * plan.panel * plan.compute.itemsize
    group = max(1, min(plan.num_panels, PACK_BYTES // panel_bytes))
    return group, -(-plan.num_panels // group)


def _packed_offset(f: Function, plan: Plan, batch: Int) -> Int:
    """Elements to the packed matrix of a product; products that share B share it."""
    dimensions = plan.problem.batch
    number: Int = 0
    factor = plan.num_packed
    for d, place in zip(dimensions, places(f, batch, dimensions), strict=True):
        if d.y:
            factor //= d.size
            number = f.add(number, f.mul(place, factor))
    return f.mul(number, plan.packed_size)


def _finish(kind: str, functions: Sequence[Function], num_tasks: int, cost_ns: float) -> TaskFunction:
    text = "".join(f.finish() for f in functions)
    name = f"{kind}_{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"
    declares = frozenset[str]().union(*(f.declares for f in functions))
    return TaskFunction(name, text.replace("@TASK", f"@{name}"), declares, num_tasks, 0, cost_ns)


def _second(f: Function, pointers: Sequence[Value], product: Product) -> Value:
    """Address of the first column of y."""
    plan = product.plan
    dtype = plan.panels if plan.packs == "ready" else plan.y_dtype
    return _moved(f, pointers[product.y], dtype, product.start)


def _moved(f: Function, pointer: Value, dtype: np.dtype, offset: Int) -> Value:
    return f.at(pointer, offset, registers.memory_element(dtype))


def _offset(f: Function, number: Int, dimensions: Sequence[Dimension], which: str) -> Int:
    """Elements to the matrix with a number in the batch, in x, y or out."""
    offset: Int = 0
    for d, place in zip(dimensions, places(f, number, dimensions), strict=True):
        offset = f.add(offset, f.mul(place, getattr(d, which)))
    return offset
