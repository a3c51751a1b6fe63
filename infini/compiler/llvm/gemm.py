"""Contractions as native code: blocked matrix products, and streaming loops where nothing would be reused.

The blocked product follows K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix Multiplication"
(ACM TOMS, 2008): panels of B packed once, blocks of A copied by each task, a register block inside. A task
computes a whole tile of the result over all of k, so results do not depend on the number of threads. 16-bit
floats are converted while they are packed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm import blocking, contraction, few_rows, pairs, registers, skinny, streaming
from infini.compiler.llvm.blocking import Plan
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.contraction import Dimension
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.compiler.llvm.tile import TileWriter
from infini.compiler.llvm.types import I64, PTR
from infini.core import dtypes
from infini.core.ir import ArrayType

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
        Phases to run one after the other, all with `args` x, y, result and, when any has scratch_bytes,
            scratch.

    Raises:
        LoweringError: the emitter does not compute with a dtype.
    """
    problem = contraction.analyse(x, y, spec)
    first, second = (y.dtype, x.dtype) if problem.is_swapped else (x.dtype, y.dtype)
    is_dense = problem.n.out == 1 or problem.n.size == 1
    compute = blocking.compute_dtype(dtype)
    if problem.flops == 0 or not dtypes.is_float(compute) or not is_dense or len(problem.k) > 1:
        return streaming.emit(x, y, spec, dtype, compute, target)
    if skinny.is_suited(problem, second):
        return skinny.emit(problem, first, second, dtype, compute, target)
    if few_rows.is_suited(problem, first, second):
        return few_rows.emit(problem, first, second, dtype, compute, target)
    if problem.m.size < MIN_ROWS or problem.n.size < MIN_ROWS:
        return streaming.emit(x, y, spec, dtype, compute, target)
    return _Emission(_plan(problem, first, second, dtype, target)).phases()


def _plan(
    problem: contraction.Problem,
    x_dtype: np.dtype,
    y_dtype: np.dtype,
    dtype: np.dtype,
    target: Target,
    panel_depth: int = 0,
) -> Plan:
    """The blocks of a product, of pairs where the processor multiplies such."""
    pair = None if panel_depth % 2 else pairs.paired(problem, x_dtype, y_dtype, target)
    if pair is None:
        return blocking.make_plan(problem, x_dtype, y_dtype, dtype, target, panel_depth)
    return blocking.make_plan(
        pair.problem, pair.x_dtype, pair.y_dtype, dtype, target, panel_depth // 2, pairs=pair
    )


@dataclass(frozen=True, slots=True)
class Panels:
    """An operand whose memory is in panels: operand 0 or 1, and the rows and columns of a block."""

    operand: int
    depth: int
    width: int


def emit_packed(
    x: ArrayType, y: ArrayType, *, spec: str, dtype: np.dtype, panels: Panels, target: Target
) -> tuple[TaskFunction, ...]:
    """As `emit_contraction`, with one operand in panels that `takes_panels` accepts: nothing is packed."""
    problem = contraction.analyse(x, y, spec)
    first, second = (y.dtype, x.dtype) if problem.is_swapped else (x.dtype, y.dtype)
    return _Emission(_plan(problem, first, second, dtype, target, panels.depth)).phases()


def takes_panels(
    x: ArrayType, y: ArrayType, *, spec: str, dtype: np.dtype, panels: Panels, target: Target
) -> bool:
    """Whether the blocked product can read an operand, of this logical type, in panels: it is a matrix [K, N]
    or a stack of them, and the one that the product packs.
    """
    problem = contraction.analyse(x, y, spec)
    packed, other = (x, y) if panels.operand == 0 else (y, x)
    if not is_packed_kind(problem, dtype, packed.dtype, other.dtype):
        return False
    plan = _plan(problem, other.dtype, packed.dtype, dtype, target, panels.depth)
    (k,), n = problem.k, problem.n
    is_matrix = packed.shape[-2:] == (k.size, n.size) and (k.y, n.y) == (n.size, 1)
    is_stack = [d.y for d in problem.batch if d.y] == [k.size * n.size] * (packed.ndim - 2)
    return (
        problem.is_swapped == (panels.operand == 0)
        and packed.ndim <= 3
        and is_matrix
        and is_stack
        and panels.width == plan.panel
        and (panels.depth >= k.size or plan.panel_depth % plan.depth == 0)
    )


def is_packed_kind(problem: contraction.Problem, dtype: np.dtype, packed: np.dtype, other: np.dtype) -> bool:
    """Whether a product, with these operands and this result, is one that the blocked product computes."""
    compute = blocking.compute_dtype(dtype)
    return (
        problem.flops > 0
        and dtypes.is_float(compute)
        and all(dtypes.is_float(d) and d.itemsize >= 2 for d in (packed, other))
        and (problem.n.out == 1 or problem.n.size == 1)
        and len(problem.k) == 1
    )


class _Emission:
    """Writes the phases of a blocked product."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tiles = TileWriter(plan)

    def phases(self) -> tuple[TaskFunction, ...]:
        """Packing, unless each task packs its own, and computing."""
        plan = self.plan
        cost = plan.problem.flops * NS_PER_FLOP
        if plan.packs == "task":
            tasks = -(-plan.problem.num_batches // plan.batches_per_task)
            return (_finish("gemm", [*self._products(), *self.tiles.helpers.values()], tasks, cost),)
        tasks = plan.problem.num_batches * plan.num_row_blocks * plan.num_column_blocks
        compute = _finish("gemm", [*self._tile(), *self.tiles.helpers.values()], tasks, cost)
        return (self._pack(), compute) if plan.packs == "phase" else (compute,)

    def _start(self) -> tuple[Function, list[Value]]:
        """A task function, and pointers to x, y, result and, if there is, scratch; x and y as the plan has
        them."""
        f = Function("TASK", [(PTR, "args"), (I64, "task")])
        order = [1, 0, 2] if self.plan.problem.is_swapped else [0, 1, 2]
        if self.plan.packs == "phase":
            order.append(3)
        return f, [f.load(f.at(f.parameters[0], i, "ptr"), PTR, is_invariant=True) for i in order]

    # --- the phase that packs B -----------------------------------------------------------------

    def _pack(self) -> TaskFunction:
        """A task packs some panels of a depth block."""
        plan = self.plan
        panel_bytes = plan.depth * plan.panel * plan.compute.itemsize
        group = max(1, min(plan.num_panels, PACK_BYTES // panel_bytes))
        groups = -(-plan.num_panels // group)
        f, (_, y, _, scratch) = self._start()
        rest, part = f.divide(f.parameters[1], groups)
        batch, block = f.divide(rest, plan.num_depth_blocks)
        y = _moved(f, y, plan.y_dtype, _offset(f, batch, plan.y_batch, "y"))
        target = _moved(f, scratch, plan.compute, f.mul(batch, plan.packed_size))
        first = f.mul(part, group)
        panels = (first, f.minimum(f.add(first, group), plan.num_panels))
        self.tiles.pack_depth_block(f, y, target, f.mul(block, plan.depth), panels)
        nbytes = plan.num_packed * plan.packed_size * plan.compute.itemsize
        tasks = plan.num_packed * plan.num_depth_blocks * groups
        packed = _finish("pack", [f], tasks, nbytes * NS_PER_PACKED_BYTE)
        return dataclasses.replace(packed, scratch_bytes=nbytes)

    # --- the phase that computes ------------------------------------------------------------------

    def _tile(self) -> list[Function]:
        """A task is one tile of one product."""
        plan = self.plan
        f, (x, y, out, *scratch) = self._start()
        rest, row_block = f.divide(f.parameters[1], plan.num_row_blocks)
        batch, column_block = f.divide(rest, plan.num_column_blocks)
        x, y, out = self._matrices(f, batch, x, y, out)
        if plan.packs == "ready":
            packed = y
        elif scratch:
            packed = _moved(f, scratch[0], plan.compute, self._packed_offset(f, batch))
        else:
            packed = f.allocate(plan.depth * plan.column_block * plan.compute.itemsize)
        self.tiles.write(f, (x, y, packed, out), row_block, column_block)
        return [f]

    def _products(self) -> list[Function]:
        """A task is one or more whole products; it packs B on its stack."""
        plan = self.plan
        f, (x, y, out) = self._start()
        count = plan.problem.num_batches
        with contextlib.ExitStack() as regions:
            batch: Int = f.parameters[1] if count > 1 else 0
            if plan.batches_per_task > 1 and count > 1:
                first = f.mul(batch, plan.batches_per_task)
                stop = f.minimum(f.add(first, plan.batches_per_task), count)
                batch = regions.enter_context(f.loop(first, stop, runs=True)).index
            x, y, out = self._matrices(f, batch, x, y, out)
            packed = f.allocate(plan.packed_size * plan.compute.itemsize)
            with f.loop(0, plan.k.size, plan.depth) as loop:
                self.tiles.pack_depth_block(f, y, packed, loop.index, (0, plan.num_panels))
            with f.loop(0, plan.num_row_blocks) as rows, f.loop(0, plan.num_column_blocks) as columns:
                self.tiles.write(f, (x, y, packed, out), rows.index, columns.index)
        return [f]

    def _matrices(
        self, f: Function, batch: Int, x: Value, y: Value, out: Value
    ) -> tuple[Value, Value, Value]:
        """The first elements of the matrices of one product."""
        plan, dimensions = self.plan, self.plan.problem.batch
        is_ready = plan.packs == "ready"
        y_offset = self._packed_offset(f, batch) if is_ready else _offset(f, batch, dimensions, "y")
        return (
            _moved(f, x, plan.x_dtype, _offset(f, batch, dimensions, "x")),
            _moved(f, y, plan.panels if is_ready else plan.y_dtype, y_offset),
            _moved(f, out, plan.out_dtype, _offset(f, batch, dimensions, "out")),
        )

    def _packed_offset(self, f: Function, batch: Int) -> Int:
        """Elements to the packed matrix of a product; products that share B share it."""
        dimensions = self.plan.problem.batch
        number: Int = 0
        factor = self.plan.num_packed
        for d, place in zip(dimensions, _places(f, batch, dimensions), strict=True):
            if d.y:
                factor //= d.size
                number = f.add(number, f.mul(place, factor))
        return f.mul(number, self.plan.packed_size)


def _finish(kind: str, functions: Sequence[Function], num_tasks: int, cost_ns: float) -> TaskFunction:
    text = "".join(f.finish() for f in functions)
    name = f"{kind}_{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"
    declares = frozenset[str]().union(*(f.declares for f in functions))
    return TaskFunction(name, text.replace("@TASK", f"@{name}"), declares, num_tasks, 0, cost_ns)


def _moved(f: Function, pointer: Value, dtype: np.dtype, offset: Int) -> Value:
    return f.at(pointer, offset, registers.memory_element(dtype))


def _places(f: Function, number: Int, dimensions: Sequence[Dimension]) -> list[Int]:
    """A number in a batch as one index per dimension."""
    places: list[Int] = []
    for d in reversed(dimensions[1:]):
        number, place = f.divide(number, d.size)
        places.append(place)
    return [number, *reversed(places)] if dimensions else []


def _offset(f: Function, number: Int, dimensions: Sequence[Dimension], which: str) -> Int:
    """Elements to the matrix with a number in the batch, in x, y or out."""
    offset: Int = 0
    for d, place in zip(dimensions, _places(f, number, dimensions), strict=True):
        offset = f.add(offset, f.mul(place, getattr(d, which)))
    return offset
