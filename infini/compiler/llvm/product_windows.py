"""A product whose columns a kernel reads in windows of equal width, element by element: the gates of a
recurrent cell, the halves of a gated layer, made by one product.

It is computed as one product per window, on the same rows and with the columns of the other operand that
belong to it, so that a task has the same columns of every window and needs no whole rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from infini.compiler.llvm import blocking
from infini.compiler.llvm.blocking import Plan
from infini.compiler.llvm.indexing import c_strides
from infini.compiler.llvm.target import Target
from infini.core.ir import ArrayType
from infini.tile.program import Access, Kernel


@dataclass(frozen=True, slots=True)
class Windows:
    """The products that stand for one, and the kernel behind them.

    Args:
        kernel: with loads of the windows as arrays of their own.
        in_types: types of its operands.
        tiles: of each operand, the number of the window it is, or None.
        plan: blocks of each product.
        starts: of each window, elements of the second operand before its columns.
    """

    kernel: Kernel
    in_types: tuple[ArrayType, ...]
    tiles: tuple[int | None, ...]
    plan: Plan
    starts: tuple[int, ...]


def find(
    kernel: Kernel, in_types: Sequence[ArrayType], tiles: Sequence[int | None], plan: Plan, target: Target
) -> Windows | None:
    """The windows in which a kernel reads a product, if it reads it so.

    Args:
        kernel: the kernel.
        in_types: types of its operands.
        tiles: of each operand, 0 where it is the product, or None.
        plan: blocks of the product.
        target: processor to make code for.
    """
    problem = plan.problem
    columns = problem.n.size
    others = [d for d in (*problem.batch, problem.m) if d.size > 1]
    widths = {load.tile for load, number in zip(kernel.loads, tiles, strict=False) if number is not None}
    if len(widths) != 1 or plan.pairs is not None or any(d.out % columns for d in others):
        return None
    (tile,) = widths
    width = tile[0] if len(tile) == 1 else columns
    is_cut = width < columns and columns % width == 0 and width % plan.panel == 0
    is_packed_elsewhere = plan.packs == "ready" and plan.panel_depth < plan.k.size
    rows = math.prod(d.size for d in others)
    if not is_cut or is_packed_elsewhere or kernel.num_programs != rows:
        return None
    steps = c_strides(kernel.grid)
    loads, types, numbers = list(kernel.loads), list(in_types), list[int | None](tiles)
    for i, (load, number) in enumerate(zip(kernel.loads, tiles, strict=False)):
        if number is None:
            continue
        start = _start(load, in_types[i], kernel.grid, columns)
        if start is None or start % width:
            return None
        numbers[i] = start // width
        loads[i] = Access((width,), (tuple(width * step for step in steps),), ((1,),), (0,))
        types[i] = ArrayType((rows * width,), in_types[i].dtype)
    count = columns // width
    return Windows(
        dataclasses.replace(kernel, loads=tuple(loads)),
        tuple(types),
        tuple(numbers),
        _plan(plan, width, target),
        tuple(_first_element(plan, window * width) for window in range(count)),
    )


def _start(load: Access, type_: ArrayType, grid: Sequence[int], columns: int) -> int | None:
    """The first column that a load reads of the row of each program; None when it reads others."""
    if load.fill is not None or load.levels:
        return None
    strides = c_strides(type_.shape)
    offset = sum(n * stride for n, stride in zip(load.offsets, strides, strict=True))
    of_grid = [
        sum(row[d] * stride for row, stride in zip(load.grid_strides, strides, strict=True))
        for d in range(len(grid))
    ]
    of_tile = sum(row[0] * stride for row, stride in zip(load.tile_strides, strides, strict=True))
    wanted = [columns * step for step in c_strides(tuple(grid))]
    is_row = all(n == 1 or a == b for n, a, b in zip(grid, of_grid, wanted, strict=True))
    return offset if is_row and of_tile == 1 and 0 <= offset < columns else None


def _plan(plan: Plan, width: int, target: Target) -> Plan:
    """Blocks of one window; depth blocks stay, so results keep their bits."""
    problem = plan.problem
    count = problem.n.size // width
    own = dataclasses.replace(
        problem,
        batch=tuple(dataclasses.replace(d, out=d.out // count) for d in problem.batch),
        m=dataclasses.replace(problem.m, out=problem.m.out // count),
        n=dataclasses.replace(problem.n, size=width),
    )
    found = blocking.make_plan(own, plan.x_dtype, plan.y_dtype, plan.out_dtype, target, plan.panel_depth)
    return dataclasses.replace(found, depth=plan.depth)


def _first_element(plan: Plan, column: int) -> int:
    """Elements of the second operand before a column, which is the first of a panel."""
    return column * (plan.k.size if plan.packs == "ready" else plan.problem.n.y)
