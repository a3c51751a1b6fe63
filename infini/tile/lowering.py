"""From arranged tensors and concrete sizes to a grid and affine accesses.

Flattened dimensions of the grid stay apart: a grid dimension of one tensor made of 2 x 3 and one of size 6
elsewhere meet in the common refinement (2, 3), so no access ever needs a division.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infini.core import errors, ir
from infini.tile import symbols
from infini.tile.arrangement import Dimension, Tensor
from infini.tile.program import Access
from infini.tile.symbols import Size


@dataclass(frozen=True, slots=True)
class Loop:
    """`size` steps, each of which moves by `steps` in the array: a factor with concrete numbers."""

    size: int
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Lowered:
    """Arranged tensors at concrete sizes.

    Args:
        grid: number of programs per dimension of the refined grid.
        grid_parts: per dimension of the arrangement's grid, which refined dimensions it is the product of,
            slowest first.
        accesses: one per tensor.
        tiles: shape of the tile that the application sees, per tensor.
    """

    grid: tuple[int, ...]
    grid_parts: tuple[tuple[int, ...], ...]
    accesses: tuple[Access, ...]
    tiles: tuple[ir.Shape, ...]


def lower(tensors: Sequence[Tensor], num_results: int, values: Mapping[Size, int]) -> Lowered:
    """Accesses of arranged tensors, the last `num_results` of which are results.

    Raises:
        TypeMismatchError: tensors disagree on the grid, an arrangement is no affine map, or tiles of a result
            overlap.
    """
    for number, tensor in enumerate(tensors):
        _check_requirements(number, tensor, values)
    outer = [[_loops(d, values) for d in t.levels[0]] for t in tensors]
    on_grid = [i for i, t in enumerate(tensors) if t.source.shape]
    _check_grids(tensors, outer, on_grid, values)
    rank = len(outer[on_grid[0]]) if on_grid else 0
    refined = [_refine([outer[i][d] for i in on_grid], tensors, d) for d in range(rank)]
    sizes = tuple(size for part in refined for size in part)
    starts = [0, *itertools.accumulate(len(part) for part in refined)]
    accesses, tiles = [], []
    for number, tensor in enumerate(tensors):
        loops = (
            [x for d in range(rank) for x in _split(outer[number][d], refined[d])]
            if number in on_grid
            else []
        )
        is_result = number >= len(tensors) - num_results
        access, tile = _access(number, tensor, loops, len(sizes), is_result, values)
        accesses.append(access)
        tiles.append(tile)
    parts = tuple(tuple(range(starts[d], starts[d + 1])) for d in range(rank))
    return Lowered(sizes, parts, tuple(accesses), tuple(tiles))


def _loops(dimension: Dimension, values: Mapping[Size, int]) -> list[Loop]:
    """The factors of a dimension with numbers, those of size 1 left out and even neighbours joined."""
    joined: list[Loop] = []
    for factor in dimension.factors:
        loop = Loop(
            symbols.number(factor.size, values), tuple(symbols.number(s, values) for s in factor.steps)
        )
        if loop.size == 1:
            continue
        last = joined[-1] if joined else None
        if last and last.steps == tuple(step * loop.size for step in loop.steps):
            joined[-1] = Loop(last.size * loop.size, loop.steps)
        else:
            joined.append(loop)
    return joined


def _size(loops: Sequence[Loop]) -> int:
    return math.prod(loop.size for loop in loops)


def _check_requirements(number: int, tensor: Tensor, values: Mapping[Size, int]) -> None:
    for one in tensor.ones:
        if symbols.number(one, values) != 1:
            raise errors.TypeMismatchError(
                f"tensor {number} of the kernel: a squeezed or expanded dimension must have size 1",
                got=f"{one} = {symbols.number(one, values)}",
            )
    shape = [symbols.number(n, values) for n in tensor.source.shape]
    offsets = [symbols.number(n, values) for n in tensor.offsets]
    for guard in tensor.guards:
        size, reach = symbols.number(guard.size, values), symbols.number(guard.reach, values)
        steps = [symbols.number(s, values) for s in guard.steps]
        is_outside = any(s > 0 and o + s * size >= n for s, o, n in zip(steps, offsets, shape, strict=True))
        if reach > size and any(steps) and not is_outside:
            raise errors.TypeMismatchError(
                f"tensor {number} of the kernel: the last tile overruns its dimension into other elements",
                got=f"{guard.size} = {size} elements, tiles reach to {reach}",
                fix="choose tiles that divide the dimension, or floor_mode=True",
            )


def _check_grids(
    tensors: Sequence[Tensor],
    outer: Sequence[Sequence[Sequence[Loop]]],
    on_grid: Sequence[int],
    values: Mapping[Size, int],
) -> None:
    if not on_grid:
        return
    first = on_grid[0]
    for other in on_grid[1:]:
        if [_size(d) for d in outer[first]] == [_size(d) for d in outer[other]]:
            continue

        def describe(number: int) -> str:
            sizes = tuple(_size(d) for d in outer[number])
            return f"tensor {number} has {tensors[number].shape} = {sizes}"

        raise errors.TypeMismatchError(
            "the outermost levels of the tensors of a kernel must agree: they are the grid of programs",
            got=f"{describe(first)}, {describe(other)}",
            fix="tile, expand or permute one of them so that both count the same programs",
        )


def _refine(found: Sequence[Sequence[Loop]], tensors: Sequence[Tensor], d: int) -> list[int]:
    """Sizes, slowest first, that every tensor's factors of one grid dimension are products of."""
    total = _size(found[0])
    if total == 0:
        return [0]
    bounds = {1, total}
    for loops in found:
        bounds.update(math.prod(loop.size for loop in loops[i:]) for i in range(len(loops)))
    chain = sorted(bounds)
    if any(b % a for a, b in itertools.pairwise(chain)):
        raise errors.TypeMismatchError(
            f"dimension {d} of the grid is flattened in ways that do not fit together",
            got="; ".join(" x ".join(str(loop.size) for loop in loops) for loops in found),
            fix="flatten the same dimensions in every tensor",
        )
    # A dimension of one program stays, so that the grid has the rank of the arrangement.
    return [b // a for a, b in itertools.pairwise(chain)][::-1] or [1]


def _split(loops: Sequence[Loop], sizes: Sequence[int]) -> list[Loop]:
    """The loops of a dimension cut into `sizes`, a refinement of theirs."""
    rank = len(loops[0].steps) if loops else 0
    if not loops or 0 in sizes:
        return [Loop(size, (0,) * rank) for size in sizes]
    remaining, result = list(reversed(loops)), []
    done = 1
    for size in reversed(sizes):
        loop = remaining[0]
        result.append(Loop(size, tuple(step * done for step in loop.steps)))
        done *= size
        if done == loop.size and len(remaining) > 1:
            remaining, done = remaining[1:], 1
    return result[::-1]


def _access(
    number: int,
    tensor: Tensor,
    grid: Sequence[Loop],
    grid_rank: int,
    is_result: bool,
    values: Mapping[Size, int],
) -> tuple[Access, ir.Shape]:
    rank = len(tensor.source.shape)
    shape = [symbols.number(n, values) for n in tensor.source.shape]
    offsets = tuple(symbols.number(n, values) for n in tensor.offsets)
    inner = [[_loops(d, values) for d in level] for level in tensor.levels[1:]]
    tile_shape = tuple(_size(d) for level in inner for d in level)
    tile, levels = _tile_loops(number, inner, rank)
    steps = [loop.steps or (0,) * rank for loop in grid] if grid else [(0,) * rank] * grid_rank
    moves = [
        *zip((loop.size for loop in grid), steps, strict=False),
        *((loop.size, loop.steps) for loop in tile),
    ]
    if is_result:
        _check_disjoint(number, moves)
    fits = all(
        o + sum(min(0, s[d] * (n - 1)) for n, s in moves) >= 0
        and o + sum(max(0, s[d] * (n - 1)) for n, s in moves) < shape[d]
        for d, o in enumerate(offsets)
    )
    other = 0 if tensor.source.other is None else tensor.source.other
    return (
        Access(
            tuple(loop.size for loop in tile),
            tuple(tuple(s[d] for s in steps) for d in range(rank)),
            tuple(tuple(loop.steps[d] for loop in tile) for d in range(rank)),
            offsets,
            None if fits else other,
            levels,
        ),
        tile_shape,
    )


def _tile_loops(number: int, inner: Sequence[Sequence[Sequence[Loop]]], rank: int) -> tuple[list[Loop], int]:
    """Loops of the dimensions of a tile, and how many of them belong to levels that a loop of the application
    walks.
    """
    tile: list[Loop] = []
    levels = 0
    for index, level in enumerate(inner):
        is_walked = index < len(inner) - 1
        for loops in level:
            found = list(loops) or [Loop(1, (0,) * rank)]
            if is_walked and len(found) > 1:
                raise errors.TypeMismatchError(
                    f"tensor {number} of the kernel: a flattened dimension that is walked must lie evenly",
                    got=" x ".join(str(loop.size) for loop in found),
                )
            tile += found
            levels += is_walked
    return tile, levels


def _check_disjoint(number: int, moves: Sequence[tuple[int, tuple[int, ...]]]) -> None:
    """Refuse a result two of whose (program, element) pairs meet: sufficient is that steps are those of a
    mixed radix.
    """
    real = [(n, s) for n, s in moves if n > 1]
    for d in range(len(real[0][1]) if real else 0):
        reach = 0
        for n, s in sorted((m for m in real if m[1][d]), key=lambda m: abs(m[1][d])):
            if abs(s[d]) <= reach or sum(map(bool, s)) > 1:
                raise errors.TypeMismatchError(
                    f"tensor {number} of the kernel is a result and its tiles overlap"
                )
            reach += abs(s[d]) * (n - 1)
    if any(not any(s) for _, s in real):
        raise errors.TypeMismatchError(
            f"tensor {number} of the kernel is a result and its programs or elements write the same place",
            fix="do not expand results",
        )
