"""Kernels that run on a tile of a matrix product while it is in the cache.

Two kinds can. An elementwise kernel is cut anew: a program becomes the piece of a row that lies in a tile.
The programs of any other kernel stay as they are, when each of them needs some neighbours in a row of the
product, and tiles hold what whole programs need: normalisations where a tile has whole rows, rotations where
it has whole heads.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from infini.compiler.llvm import crossing, kernels, product_tasks, registers, schedule
from infini.compiler.llvm.blocking import Plan
from infini.compiler.llvm.builder import Function, Int, Value
from infini.compiler.llvm.contraction import Dimension
from infini.compiler.llvm.indexing import c_strides
from infini.compiler.llvm.product_tasks import Tile
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.types import PTR
from infini.core import dtypes
from infini.core.ir import ArrayType, Var
from infini.tile.program import Access, Kernel


@dataclass(frozen=True, slots=True)
class Pieces:
    """An elementwise kernel over the elements of a product.

    Args:
        sizes: of the dimensions that its programs run over, the columns of the product last.
        lines: of every load and store, where it starts in its array and its strides along these dimensions.
    """

    sizes: tuple[int, ...]
    lines: tuple[_Line, ...]


@dataclass(frozen=True, slots=True)
class Programs:
    """A kernel of which program `i` has the elements of a product from `i * size` on, and no others."""

    size: int


Kind: TypeAlias = Pieces | Programs


@dataclass(frozen=True, slots=True)
class _Line:
    """Elements of an array: the first, and the steps along some dimensions."""

    offset: int
    strides: tuple[int, ...]


def find(
    kernel: Kernel, in_types: Sequence[ArrayType], tiles: Sequence[int | None], plan: Plan, target: Target
) -> Kind | None:
    """How a kernel can run on tiles of a product, if it can.

    Args:
        kernel: the kernel.
        in_types: types of its operands.
        tiles: of each operand, the number of the product it is, or None.
        plan: blocks of the products.
        target: processor to make code for.
    """
    return _find(kernel, tuple(in_types), tuple(tiles), plan, target)


@functools.lru_cache(maxsize=1024)
def _find(
    kernel: Kernel, in_types: tuple[ArrayType, ...], tiles: tuple[int | None, ...], plan: Plan, target: Target
) -> Kind | None:
    if kernel.extents or not all(kernel.grid) or not kernel.stores:
        return None
    passes = schedule.make_schedule(kernel.body)
    if crossing.find(kernel, in_types, passes, target) is not None:
        return None
    found: Kind | None = None
    if kernels.is_elementwise(kernel, passes):
        found = _pieces(kernel, in_types, tiles, plan)
    return found if found is not None else _programs(kernel, in_types, tiles, plan)


# --- elementwise kernels --------------------------------------------------------------------------


def _pieces(
    kernel: Kernel, in_types: Sequence[ArrayType], tiles: Sequence[int | None], plan: Plan
) -> Pieces | None:
    arrays = _arrays(kernel, in_types)
    length, (size,) = plan.problem.n.size, schedule.make_schedule(kernel.body).passes[0].space
    total = kernel.outputs[0].size
    if total != math.prod(d.size for d in _others(plan)) * length:
        return None
    lines = [_line(access, type_) for access, type_ in arrays]
    dimensions = _merged([*kernel.grid, size], [line.strides for line in lines])
    if math.prod(n for n, _ in dimensions) != total:
        if len(dimensions) > 1:
            return None
        dimensions = [(total, dimensions[0][1])]  # the last program is shorter
    if not _lie_inside(arrays, lines, dimensions):
        return None
    columns, steps = dimensions[-1]
    if columns % length or size == 1 or any(d.out % length for d in _others(plan)):
        return None
    if columns > length:
        rows = (columns // length, tuple(step * length for step in steps))
        dimensions[-1:] = [rows, (length, steps)]
    in_order = _Line(0, c_strides(tuple(n for n, _ in dimensions)))
    lines = [_Line(x.offset, tuple(s[i] for _, s in dimensions)) for i, x in enumerate(lines)]
    whole = [lines[i] for i, number in enumerate(tiles) if number is not None]
    if any(line != in_order for line in (*whole, *lines[len(kernel.loads) :])):
        return None
    if any(access.tile == () and x.strides[-1] for (access, _), x in zip(arrays, lines, strict=True)):
        return None
    return Pieces(tuple(n for n, _ in dimensions), tuple(lines))


def _arrays(kernel: Kernel, in_types: Sequence[ArrayType]) -> list[tuple[Access, ArrayType]]:
    return [
        *zip(kernel.loads, in_types, strict=True),
        *zip(kernel.stores, kernel.outputs, strict=True),
    ]


def _line(access: Access, type_: ArrayType) -> _Line:
    """Where the first element of the first program is, and the steps along grid and tile; a tile of no
    dimensions has a step of 0.
    """
    strides = c_strides(type_.shape)

    def along(rows: Sequence[Sequence[int]], count: int) -> tuple[int, ...]:
        return tuple(sum(s * row[i] for s, row in zip(strides, rows, strict=True)) for i in range(count))

    rank = len(access.grid_strides[0]) if access.grid_strides else 0
    offset = sum(s * o for s, o in zip(strides, access.offsets, strict=True))
    tile = along(access.tile_strides, len(access.tile)) or (0,)
    return _Line(offset, (*along(access.grid_strides, rank), *tile))


def _merged(sizes: Sequence[int], strides: Sequence[tuple[int, ...]]) -> list[tuple[int, tuple[int, ...]]]:
    """Dimensions with the steps of every array along them, neighbours joined where all arrays go on."""
    padded = [s if len(s) == len(sizes) else (0,) * len(sizes) for s in strides]  # arrays of no dimensions
    found: list[tuple[int, tuple[int, ...]]] = []
    for i in reversed(range(len(sizes))):
        steps = tuple(s[i] for s in padded)
        if found and sizes[i] == 1:
            continue
        if found and all(a == b * found[0][0] for a, b in zip(steps, found[0][1], strict=True)):
            found[0] = (found[0][0] * sizes[i], found[0][1])
        else:
            found.insert(0, (sizes[i], steps))
    return found


def _lie_inside(
    arrays: Sequence[tuple[Access, ArrayType]],
    lines: Sequence[_Line],
    dimensions: Sequence[tuple[int, tuple[int, ...]]],
) -> bool:
    """Whether what might be outside of an array never is."""
    for i, ((access, type_), line) in enumerate(zip(arrays, lines, strict=True)):
        if access.fill is None:
            continue
        reach = [steps[i] * (n - 1) for n, steps in dimensions]
        last = line.offset + sum(reach)
        if type_.ndim != 1 or min(reach) < 0 or line.offset < 0 or last >= type_.size:
            return False
    return True


def _others(plan: Plan) -> list[Dimension]:
    """Dimensions of the result other than the columns."""
    return [d for d in (*plan.problem.batch, plan.problem.m) if d.size > 1]


# --- other kernels --------------------------------------------------------------------------------


def _programs(
    kernel: Kernel, in_types: Sequence[ArrayType], tiles: Sequence[int | None], plan: Plan
) -> Programs | None:
    columns = plan.problem.n.size
    total = math.prod(d.size for d in _others(plan)) * columns
    size, rest = divmod(total, kernel.num_programs)
    if rest or columns % size or any(d.out % size for d in _others(plan)):
        return None
    loads = zip(kernel.loads, in_types, tiles, strict=True)
    if any(number is not None and _inside(a, t, kernel.grid, size) is None for a, t, number in loads):
        return None
    return Programs(size)


def _inside(
    load: Access, type_: ArrayType, grid: Sequence[int], size: int
) -> tuple[Access, ArrayType] | None:
    """A load of an array of which program `i` has the elements from `i * size` on as a load of these elements
    alone; None when it loads others.
    """
    in_order = [(n, size * stride) for n, stride in zip(grid, c_strides(tuple(grid)), strict=True) if n > 1]
    line = _line(load, type_)
    if [(n, step) for n, step in zip(grid, line.strides, strict=False) if n > 1] != in_order:
        return None
    none = (0,) * len(grid)
    if load.fill is None:
        steps = line.strides[len(grid) :] if load.tile else ()
        reach = [step * (n - 1) for step, n in zip(steps, load.tile, strict=True)]
        low, high = (line.offset + sum(pick(r, 0) for r in reach) for pick in (min, max))
        is_inside = low >= 0 and high < size and not load.levels
        one = Access(load.tile, (none,), (steps,), (line.offset,))
        return (one, ArrayType((size,), type_.dtype)) if is_inside else None
    # What lies outside is told from what lies inside by the last dimensions, those of one program.
    first = next((d for d in range(type_.ndim) if math.prod(type_.shape[d:]) == size), None)
    if first is None or load.levels:
        return None
    for d in range(type_.ndim):
        last = load.offsets[d] + sum(
            step * (n - 1) for step, n in zip(load.grid_strides[d], grid, strict=True)
        )
        if d >= first and any(load.grid_strides[d]):
            return None
        if d < first and (any(load.tile_strides[d]) or load.offsets[d] or last >= type_.shape[d]):
            return None
    rest = range(first, type_.ndim)
    one = Access(
        load.tile, tuple(none for _ in rest), load.tile_strides[first:], load.offsets[first:], load.fill
    )
    return one, ArrayType(type_.shape[first:], type_.dtype)


# --- writing them ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KernelBehind:
    """A kernel as the epilogue of products.

    Args:
        kernel: the kernel.
        in_types: types of its operands.
        tiles: of each operand, the number of the product it is, or None.
        arguments: of each operand that is no product, and then of each result, the number of the argument.
        kind: how it runs on tiles.
        plan: blocks of the products; its result is the whole array.
        target: processor to make code for.
        cost_ns: estimated time of all programs.
    """

    kernel: Kernel
    in_types: tuple[ArrayType, ...]
    tiles: tuple[int | None, ...]
    arguments: tuple[int, ...]
    kind: Kind
    plan: Plan
    target: Target
    cost_ns: float

    def write(self, f: Function, pointers: Sequence[Value], tile: Tile) -> None:
        """Write it into a task function, with pointers to all arguments."""
        with f.loop(0, tile.num_rows, runs=True) as loop:
            if isinstance(self.kind, Pieces):
                self._piece(f, pointers, tile, loop.index, self.kind)
            else:
                self._row(f, pointers, tile, loop.index, self.kind.size)

    def _piece(self, f: Function, pointers: Sequence[Value], tile: Tile, row: Value, pieces: Pieces) -> None:
        """The columns of a tile of one row."""
        length = pieces.sizes[-1]
        grid, number = pieces.sizes[:-1], self._start(f, tile, f.add(tile.row, row), length)
        ids = [*kernels.program_ids(f, grid, number), tile.column_block]
        kernel, types = _cut(self.kernel, self.in_types, pieces, self.tiles, self.plan.column_block)
        kernels.emit_piece(
            f, kernel, types, self.target, pointers=self._pointers(f, pointers, tile, row, 0), ids=ids,
            length=length,
        )  # fmt: skip

    def _row(self, f: Function, pointers: Sequence[Value], tile: Tile, row: Value, size: int) -> None:
        """The programs of a tile of one row."""
        columns, block = self.plan.problem.n.size, self.plan.column_block
        first = self._start(f, tile, f.add(tile.row, row), size)
        first = f.add(first, f.mul(tile.column_block, block // size))
        count: Int = min(columns, block) // size
        if columns > block and columns % block:
            left = f.sub(columns // size, f.mul(tile.column_block, block // size))
            count = f.minimum(left, count)
        kernel, types = _on_tiles(self.kernel, self.in_types, self.tiles, size)
        with f.loop(0, count, runs=True) as loop:
            place = f.mul(loop.index, size)
            kernels.emit_program(
                f, kernel, types, self.target, pointers=self._pointers(f, pointers, tile, row, place),
                program=f.add(first, loop.index), allocate=f.allocate,
            )  # fmt: skip

    def _start(self, f: Function, tile: Tile, row: Int, size: int) -> Int:
        """Where a row of the product starts in the result, in units of so many elements."""
        batch = self.plan.problem.batch
        start = f.mul(row, self.plan.problem.m.out // size)
        for d, place in zip(batch, product_tasks.places(f, tile.batch, batch), strict=True):
            start = f.add(start, f.mul(place, d.out // size))
        return start

    def _pointers(
        self, f: Function, pointers: Sequence[Value], tile: Tile, row: Value, column: Int
    ) -> list[Value]:
        """Operands and results: of products the place in the tile."""
        found, others = [], iter(self.arguments)
        for type_, number in zip(self.in_types, self.tiles, strict=True):
            if number is None:
                found.append(pointers[next(others)])
                continue
            start, stride = tile.memory[number]
            place = f.add(f.mul(row, stride), column)
            here = f.at(start, place, registers.memory_element(type_.dtype))
            # Loads of operands move to where the address is known: not before the tile has been computed.
            found.append(f.here(f"getelementptr i8, ptr {here}, i64 0", PTR))
        return [*found, *(pointers[i] for i in others)]


def _flat(type_: ArrayType) -> ArrayType:
    return ArrayType((type_.size,), type_.dtype)


def _cut(
    kernel: Kernel, in_types: Sequence[ArrayType], pieces: Pieces, tiles: Sequence[int | None], block: int
) -> tuple[Kernel, list[ArrayType]]:
    """The kernel with pieces of rows as its programs, over flat arrays."""
    *rows, length = pieces.sizes
    block = min(block, length)

    def access(old: Access, line: _Line, is_tile: bool) -> Access:
        grid = (*line.strides[:-1], block * line.strides[-1])
        if is_tile:
            grid = (0,) * len(grid)
        tile = (block,) if old.tile else ()
        return Access(tile, (grid,), ((line.strides[-1],) if tile else (),), (line.offset,))

    count = len(kernel.loads)
    loads = [
        access(old, line, number is not None)
        for old, line, number in zip(kernel.loads, pieces.lines, tiles, strict=False)
    ]
    stores = [access(old, x, False) for old, x in zip(kernel.stores, pieces.lines[count:], strict=True)]
    grid = (*rows, -(-length // block))
    ids = (Var(ArrayType((), dtypes.int32)) for _ in grid)  # which nobody reads
    found = dataclasses.replace(
        kernel,
        grid=grid,
        body=kernel.body.replace(params=(*kernel.body.params[:count], *ids)),
        loads=tuple(loads),
        stores=tuple(stores),
        outputs=tuple(map(_flat, kernel.outputs)),
    )
    return found, [_flat(type_) for type_ in in_types]


def _on_tiles(
    kernel: Kernel, in_types: Sequence[ArrayType], tiles: Sequence[int | None], size: int
) -> tuple[Kernel, list[ArrayType]]:
    """The kernel with the elements of one program in place of products."""
    types, loads = list(in_types), list(kernel.loads)
    for i, number in enumerate(tiles):
        if number is not None:
            found = _inside(loads[i], types[i], kernel.grid, size)
            assert found is not None, "it has been found to run on tiles"
            loads[i], types[i] = found
    return dataclasses.replace(kernel, loads=tuple(loads)), types
