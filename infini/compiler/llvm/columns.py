"""Kernels that reduce columns, seen as rows: what `by_rows` can walk in the order of memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from infini.compiler.llvm import accumulators, operations, registers, schedule
from infini.compiler.llvm.accumulators import Accumulator
from infini.compiler.llvm.builder import Int
from infini.compiler.llvm.schedule import Schedule
from infini.compiler.llvm.types import BYTES
from infini.core.ir import ArrayType, Equation
from infini.tile.program import Access, Kernel

MIN_ROWS: Final = 16
MIN_WIDTH: Final = 32
MIN_BYTES: Final = 1 << 18  # of what is reduced; less is read column by column
MAX_WIDTH_BYTES: Final = 1 << 19  # of a row of partial results, which has to stay in the cache


@dataclass(frozen=True, slots=True)
class Columns:
    """A kernel of column reductions, as rows.

    Args:
        kernel: the kernel, whose programs each take a block of columns of one array out of several.
        in_types: types of its operands.
        plan: its passes; the first one reduces.
        outer: arrays.
        rows: elements of a column.
        width: columns.
    """

    kernel: Kernel
    in_types: tuple[ArrayType, ...]
    plan: Schedule
    outer: int
    rows: int
    width: int

    def program_ids(self, array: Int) -> list[Int]:
        """The program of the first columns of an array."""
        grid = self.kernel.grid
        return [array, 0] if len(grid) == 2 else [array] if self.outer > 1 else [0]

    @property
    def reductions(self) -> list[Equation]:
        """What is reduced."""
        return self.plan.passes[0].reductions


def find(kernel: Kernel, in_types: Sequence[ArrayType]) -> Columns | None:
    """How a kernel reduces columns; None when it does not, or when its programs do better."""
    body = kernel.body
    if kernel.extents or len(kernel.grid) > 2 or not body.results:
        return None
    if any(access.fill is not None for access in (*kernel.loads, *kernel.stores)):
        return None
    known = operations.NAMES | {"broadcast_in_dim"} | schedule.REDUCTIONS
    if any(e.op.name not in known for e in body.equations):
        return None
    if any(not constant.is_scalar for _, constant in body.consts):
        return None
    ids = set(body.params[len(kernel.loads) :])
    if any(ids & set(e.inputs) for e in body.equations) or ids & set(body.results):
        return None
    plan = schedule.make_schedule(body)
    first, *rest = plan.passes
    if first.axes != {0} or len(first.space) != 2 or first.kept or first.block is not None:
        return None
    if any(not isinstance(accumulators.accumulator(e), Accumulator) for e in first.reductions):
        return None
    rows, block = first.space
    if any(p.reductions or p.kept or p.block is not None or p.space != (block,) for p in rest):
        return None
    if any(e.inputs[0].type.shape != first.space for e in first.reductions):
        return None
    accesses, arrays = (*kernel.loads, *kernel.stores), (*in_types, *kernel.outputs)
    if any(len(access.offsets) != 1 or len(access.tile) > 2 for access in accesses):
        return None
    # The last dimension of the grid goes on along the rows, unless a row is the tile of one program.
    outer, programs = math.prod(kernel.grid[:-1]), kernel.grid[-1]
    if not all(_continues(access, block, programs) for access in accesses):
        if len(kernel.grid) > 1:
            return None
        outer, programs = programs, 1
    if any(registers.register_type(t.dtype).element == "i1" for t in arrays):
        return None
    width = block * programs
    nbytes = outer * rows * width * max(e.inputs[0].type.dtype.itemsize for e in first.reductions)
    row_bytes = width * sum(BYTES[element(e)] for e in first.reductions)
    if rows < MIN_ROWS or width < MIN_WIDTH or nbytes < MIN_BYTES or row_bytes > MAX_WIDTH_BYTES:
        return None
    return Columns(kernel, tuple(in_types), plan, outer, rows, width)


def _continues(access: Access, block: int, programs: int) -> bool:
    """Whether the tile of a program continues that of the one before along the last dimension."""
    (grid_row,), (tile_row,) = access.grid_strides, access.tile_strides
    step = tile_row[-1] if access.tile and access.tile[-1] == block else 0
    return programs == 1 or grid_row[-1] == step * block


def element(equation: Equation) -> str:
    """LLVM's name of an element of what a reduction accumulates."""
    return registers.register_type(equation.inputs[0].type.dtype).element


def reads_row(columns: Columns, number: int) -> int | None:
    """Elements per row of an operand of which the reduction reads row `i` for row `i`; None when it does
    not.
    """
    access, width = columns.kernel.loads[number], columns.width
    (grid_row,), (row,) = access.grid_strides, access.tile_strides
    if access.offsets != (0,) or len(access.tile) != 2 or access.tile[0] != columns.rows:
        return None
    if columns.outer > 1 and grid_row[0] != columns.rows * row[0]:
        return None
    if row == (width, 1) and access.tile[1] == columns.plan.passes[0].space[1]:
        return width
    return 1 if row[0] == 1 and (row[1] == 0 or access.tile[1] == 1) else None
